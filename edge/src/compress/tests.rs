//! Encoders, coders and jobs.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use nearcast_fleet::config::Coding;
use nearcast_http_rules::compress::{CODINGS, number};
use tokio::sync::mpsc;

use super::coder::Coded;
use super::encoder::Encoder;
use super::*;
use crate::body::{BeginCoded, Content, FillWriter, Next};
use crate::client_body::{BodyCut, Pieces};
use crate::origin::OriginError;
use nearcast_store::{Pool, Store, StoreConfig};

fn text(bytes: usize) -> Vec<u8> {
    let words = [
        "slice", "origin", "edge", "cluster", "fresh", "stale", "purge",
    ];
    (0..)
        .map(|i: usize| words[i * i % 7].as_bytes())
        .flat_map(|word| word.iter().chain(b" "))
        .copied()
        .take(bytes)
        .collect()
}

/// What a decoder gets from the begin of a coded body.
fn decode(coding: Coding, coded: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    let mut buffer = [0; 4096];
    let mut reader: Box<dyn Read> = match coding {
        Coding::Zstd => Box::new(zstd::stream::read::Decoder::new(coded).expect("memory")),
        Coding::Brotli => Box::new(brotli::Decompressor::new(coded, 4096)),
        Coding::Gzip => Box::new(flate2::read::GzDecoder::new(coded)),
    };
    // A body that is cut gives an error after all that can be decoded.
    while let Ok(read @ 1..) = reader.read(&mut buffer) {
        whole.extend_from_slice(&buffer[..read]);
    }
    whole
}

fn pieces(pieces: Vec<Result<Bytes, BodyCut>>) -> Pieces {
    Box::pin(stream::iter(pieces))
}

fn ready(compressions: &Arc<Compressions>, coding: Coding) -> ReadyCoder {
    let permit = compressions.enter(coding).expect("nothing else is coded");
    ReadyCoder::new(permit, 4, None).expect("memory")
}

async fn all(mut pieces: Pieces) -> Result<Vec<u8>, BodyCut> {
    let mut whole = Vec::new();
    while let Some(piece) = pieces.next().await {
        whole.extend_from_slice(&piece?);
    }
    Ok(whole)
}

#[test]
fn every_coding_and_level_gives_the_body_back() {
    for coding in CODINGS {
        for level in 1..=9 {
            for length in [0, 1, 300, 60_000, 700_000] {
                let body = text(length);
                for known in [None, Some(length as u64)] {
                    let mut encoder = Encoder::new(coding, level, known).expect("memory");
                    let mut coded = encoder.push(&body).expect("it fits").to_vec();
                    coded.extend_from_slice(&encoder.finish().expect("it fits"));
                    assert!(
                        decode(coding, &coded) == body,
                        "{coding:?} {level} {length} {known:?}"
                    );
                    assert!(length < 300 || coded.len() < length / 2);
                }
            }
        }
    }
}

#[test]
fn a_decoder_gets_all_that_was_pushed_before_a_flush() {
    for coding in CODINGS {
        let mut encoder = Encoder::new(coding, 4, None).expect("memory");
        let mut coded = Vec::new();
        let mut body = Vec::new();
        for part in [text(10), text(5000), b"x".to_vec()] {
            coded.extend_from_slice(&encoder.push(&part).expect("memory"));
            coded.extend_from_slice(&encoder.flush().expect("memory"));
            body.extend_from_slice(&part);
            assert!(decode(coding, &coded) == body, "{coding:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_of_a_body_that_pauses_are_not_kept() {
    let compressions = Compressions::new(1);
    for coding in CODINGS {
        let (sender, receiver) = mpsc::unbounded_channel::<Bytes>();
        let source = stream::unfold(receiver, |mut receiver| async {
            Some((Ok(receiver.recv().await?), receiver))
        });
        let mut coded = coded_pieces(ready(&compressions, coding).read(Box::pin(source)));
        let mut so_far = Vec::new();
        let mut body = Vec::new();
        for part in [text(40), text(3)] {
            body.extend_from_slice(&part);
            sender.send(part.into()).expect("it is read");
            while decode(coding, &so_far) != body {
                let piece = coded.next().await.expect("more comes").expect("no failure");
                so_far.extend_from_slice(&piece);
            }
        }
        drop(sender);
        so_far.extend_from_slice(&all(coded).await.expect("it ends"));
        assert!(decode(coding, &so_far) == body, "{coding:?}");
    }
}

#[tokio::test]
async fn a_body_that_is_cut_is_never_taken_for_a_whole_one() {
    let compressions = Compressions::new(1);
    for parts in [0, 1, 3] {
        let mut list: Vec<Result<Bytes, BodyCut>> =
            (0..parts).map(|_| Ok(text(900).into())).collect();
        list.push(Err(BodyCut("the origin ended".to_owned())));
        let coded = coded_pieces(ready(&compressions, Coding::Gzip).read(pieces(list)));
        assert!(all(coded).await.is_err(), "{parts}");
    }
}

#[test]
fn only_so_many_bodies_are_coded_at_once() {
    let compressions = Compressions::new(1);
    let once: Vec<_> = (0..OPEN_ONCE_MAX)
        .map(|_| {
            compressions
                .enter_once(Coding::Zstd)
                .expect("there is room")
        })
        .collect();
    assert!(
        compressions.enter_once(Coding::Zstd).is_none(),
        "slow origins leave room for the store"
    );
    let stored: Vec<_> = (OPEN_ONCE_MAX..OPEN_MAX)
        .map(|_| compressions.enter(Coding::Gzip).expect("there is room"))
        .collect();
    assert!(compressions.enter(Coding::Gzip).is_none());
    drop((once, stored));
    assert!(compressions.enter_once(Coding::Zstd).is_some());
    let waiting: Vec<_> = (0..compressions.waiting_max)
        .map(|_| Waiting::begin(&compressions.waiting))
        .collect();
    assert!(
        compressions.enter(Coding::Gzip).is_none(),
        "no thread is free for long"
    );
    drop(waiting);
    assert!(compressions.enter(Coding::Gzip).is_some());
}

fn content(body: &[u8]) -> Arc<Content> {
    let (store, _gone) = Store::open(&StoreConfig {
        memory_bytes: 64 << 20,
        disk: None,
    });
    let store = Arc::new(store);
    let stored = store.new_body(1, Pool::Pull);
    let content = Content::new(store, stored, Some(body.len() as u64), None);
    let fill = content.begin_fill(0, content.length());
    let mut writer = FillWriter::new(content.clone(), fill, false);
    writer.write(body.to_vec().into());
    writer.finish();
    content
}

fn begin(content: &Arc<Content>, coding: Coding) -> Option<FillWriter> {
    match content.begin_coded(number(coding)) {
        BeginCoded::New(writer) => Some(writer),
        BeginCoded::Begun(_) | BeginCoded::Refused => None,
    }
}

#[tokio::test]
async fn a_job_writes_a_form_that_all_readers_share() {
    let compressions = Compressions::new(2);
    let body = text(600_000);
    let content = content(&body);
    for coding in CODINGS {
        let writer = begin(&content, coding).expect("the first one");
        assert!(begin(&content, coding).is_none(), "one writes");
        let form = writer.content().clone();
        let readers: Vec<_> = (0..5)
            .map(|_| {
                let mut reader = form.reader(0, None);
                tokio::spawn(async move {
                    let mut whole = Vec::new();
                    while let Next::Piece(piece) = reader.next().await {
                        whole.extend_from_slice(&piece);
                    }
                    whole
                })
            })
            .collect();
        let list = body
            .chunks(70_000)
            .map(|part| Ok(Bytes::copy_from_slice(part)));
        let coder = ready(&compressions, coding).read(pieces(list.collect()));
        Job::new(content.clone(), coding, writer).run(coder).await;
        for reader in readers {
            assert!(decode(coding, &reader.await.expect("no panic")) == body);
        }
        let usable = content.usable_coded(number(coding)).expect("it is whole");
        assert!(Arc::ptr_eq(&usable, &form) && form.length().is_some());
    }
    content.discard();
    let forms = CODINGS.map(|coding| content.usable_coded(number(coding)).expect("still here"));
    assert!(forms.iter().all(|form| form.is_discarded()), "with it");
    content.remove_coded(number(Coding::Gzip), &forms[number(Coding::Gzip)]);
    let late = begin(&content, Coding::Gzip).expect("another");
    assert!(
        late.content().is_discarded(),
        "one that is begun later, too"
    );
}

#[tokio::test]
async fn a_form_that_is_not_shorter_is_made_once_and_not_served() {
    let compressions = Compressions::new(1);
    let body: Vec<u8> = (0..40_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let content = content(&body);
    let writer = begin(&content, Coding::Gzip).expect("the first one");
    let coder = ready(&compressions, Coding::Gzip).read(pieces(vec![Ok(body.into())]));
    Job::new(content.clone(), Coding::Gzip, writer)
        .run(coder)
        .await;
    assert!(content.is_coded_refused(number(Coding::Gzip)));
    assert!(begin(&content, Coding::Gzip).is_none());
    assert!(content.usable_coded(number(Coding::Gzip)).is_none());
    assert!(!content.is_coded_refused(number(Coding::Brotli)));
}

#[tokio::test]
async fn a_form_whose_body_was_cut_fails_its_readers_and_is_made_anew() {
    let compressions = Compressions::new(1);
    let content = content(&text(5000));
    let writer = begin(&content, Coding::Gzip).expect("the first one");
    let mut reader = writer.content().reader(0, None);
    reader.attach(writer.fill().clone());
    let list = vec![Ok(text(2000).into()), Err(BodyCut("cut".to_owned()))];
    let coder = ready(&compressions, Coding::Gzip).read(pieces(list));
    Job::new(content.clone(), Coding::Gzip, writer)
        .run(coder)
        .await;
    loop {
        match reader.next().await {
            Next::Piece(_) => {}
            Next::Failed(error) => break assert_eq!(error, OriginError::Incomplete),
            other => panic!("a cut body ended as {other:?}"),
        }
    }
    let again = begin(&content, Coding::Gzip).expect("it is made anew");
    // The client of a job may leave before the job begins.
    drop(Job::new(content.clone(), Coding::Gzip, again));
    assert!(begin(&content, Coding::Gzip).is_some());
}

#[tokio::test]
async fn forms_have_numbers_of_their_own() {
    let content = content(&text(500));
    let ids = [1, 2].map(|_| {
        let writer = begin(&content, Coding::Zstd).expect("the one before was removed");
        let id = writer.content().form_id();
        content.remove_coded(number(Coding::Zstd), &writer.content().clone());
        id
    });
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_nobody_reads_keeps_no_fill_running() {
    let compressions = Compressions::new(1);
    let (store, _gone) = Store::open(&StoreConfig {
        memory_bytes: 64 << 20,
        disk: None,
    });
    let store = Arc::new(store);
    let stored = store.new_body(1, Pool::Pull);
    let content = Content::new(store, stored, None, None);
    let fill = content.begin_fill(0, None);
    let writer = begin(&content, Coding::Gzip).expect("the first one");
    let reader = writer.content().reader(0, None);
    let coder = ready(&compressions, Coding::Gzip).read(Box::pin(stream::pending()));
    let mut job = std::pin::pin!(Job::new(content.clone(), Coding::Gzip, writer).run(coder));
    let minute = std::time::Duration::from_secs(60);
    assert!(
        tokio::time::timeout(minute, job.as_mut()).await.is_err(),
        "it has a reader"
    );
    drop(reader);
    tokio::time::timeout(minute, job)
        .await
        .expect("it ends without one");
    drop(fill);
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_the_body_is_noticed() {
    let compressions = Compressions::new(1);
    let mut coder = ready(&compressions, Coding::Gzip).read(Box::pin(stream::pending()));
    assert!(coder.next().now_or_never().is_none());
    assert!(matches!(coder.next().await, Coded::Idle));
}

#[tokio::test]
async fn a_step_whose_reader_left_keeps_its_permits_until_it_ends() {
    let compressions = Compressions::new(1);
    let permit = compressions
        .enter_once(Coding::Gzip)
        .expect("there is room");
    let (begin, begun) = tokio::sync::oneshot::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let step = tokio::spawn(async move {
        let step = move || {
            let _ = begin.send(());
            let _ = ended.recv();
        };
        permit.run(step).await
    });
    begun.await.expect("it runs");
    step.abort();
    assert!(step.await.is_err(), "its reader has left");
    assert_eq!(compressions.threads.available_permits(), 0);
    let open = || [&compressions.open, &compressions.open_once].map(|count| count.load(Relaxed));
    assert_eq!(open(), [1, 1], "its encoder is still there");
    end.send(()).expect("the step waits");
    let freed = compressions.threads.acquire().await.expect("never closed");
    drop(freed);
    while open() != [0, 0] {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_more_threads_encode_than_permitted_however_many_readers_leave() {
    const THREADS: usize = 2;
    let compressions = Compressions::new(THREADS);
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let body: Bytes = text(200_000).into();
    let mut readers = Vec::new();
    for number in 0..OPEN_MAX {
        let Some(permit) = compressions.enter(CODINGS[number % 3]) else {
            break;
        };
        let (running, most) = (running.clone(), most.clone());
        let body = body.clone();
        readers.push(tokio::spawn(async move {
            for _ in 0..4 {
                let (running, most, body) = (running.clone(), most.clone(), body.clone());
                let coding = permit.coding;
                let step = move || {
                    most.fetch_max(running.fetch_add(1, Relaxed) + 1, Relaxed);
                    let mut encoder = Encoder::new(coding, 4, None).expect("memory");
                    encoder.push(&body).expect("memory");
                    encoder.finish().expect("memory");
                    running.fetch_sub(1, Relaxed);
                };
                permit.run(step).await.expect("no panic");
            }
        }));
    }
    assert!(readers.len() > THREADS);
    for (number, reader) in readers.into_iter().enumerate() {
        if number % 2 == 0 {
            reader.abort();
        }
        let _ = reader.await;
    }
    let all = compressions.threads.acquire_many(THREADS as u32).await;
    drop(all.expect("never closed"));
    assert!((1..=THREADS).contains(&most.load(Relaxed)), "{most:?}");
}
