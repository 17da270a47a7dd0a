//! Fills, seeks and readers, by themselves and under seeded schedules.

use std::sync::Arc;

use bytes::Bytes;

use super::content::{FORGOTTEN_INLINE_MAX, RUN_SLICES_MAX, SEEK_SLICES};
use super::fill::SLICE;
use super::writer::WINDOW;
use super::*;
use crate::origin::OriginError;
use nearcast_fleet::random::Random;
use nearcast_http_rules::conditional::StrongValidator;
use nearcast_store::{Pool, SLICE_BYTES, Store, StoreConfig};

fn content(memory_bytes: u64, length: Option<u64>) -> Arc<Content> {
    content_of(memory_bytes, length, false)
}

fn content_of(memory_bytes: u64, length: Option<u64>, is_tagged: bool) -> Arc<Content> {
    let (store, _gone) = Store::open(&StoreConfig {
        memory_bytes,
        disk: None,
    });
    let store = Arc::new(store);
    let body = store.new_body(1, Pool::Pull);
    Content::new(
        store,
        body,
        length,
        is_tagged.then(|| StrongValidator::Tag(http::HeaderValue::from_static("\"t\""))),
    )
}

fn writer(content: &Arc<Content>) -> FillWriter {
    let fill = content.begin_fill(0, content.length());
    FillWriter::new(content.clone(), fill, false)
}

async fn read_all(mut reader: Reader) -> Result<Vec<u8>, Next> {
    let mut whole = Vec::new();
    loop {
        match reader.next().await {
            Next::Piece(piece) => whole.extend_from_slice(&piece),
            Next::End => return Ok(whole),
            other => return Err(other),
        }
    }
}

#[tokio::test]
async fn readers_get_bytes_as_they_come_and_slices_afterwards() {
    let body: Vec<u8> = (0..SLICE_BYTES * 2 + 1000)
        .map(|i| (i % 251) as u8)
        .collect();
    let content = content(64 << 20, None);
    let mut fill = writer(&content);
    let mut early = content.reader(0, None);
    fill.write(Bytes::from_static(b"\0"));
    assert!(
        matches!(early.next().await, Next::Piece(p) if p.as_ref() == [0]),
        "the first byte comes alone"
    );
    let rest = tokio::spawn(read_all(early));
    for piece in body[1..].chunks(70_000) {
        fill.write(Bytes::copy_from_slice(piece));
        tokio::task::yield_now().await;
    }
    let middle = tokio::spawn(read_all(content.reader(300_000, Some(300_100))));
    assert!(content.learn_length(body.len() as u64));
    fill.finish();
    assert_eq!(rest.await.expect("no panic").expect("whole"), body[1..]);
    assert_eq!(
        middle.await.expect("no panic").expect("whole"),
        body[300_000..300_100]
    );
    assert_eq!(
        read_all(content.reader(0, None)).await.expect("whole"),
        body
    );
    assert!(content.has(0, body.len() as u64) && !content.is_filling());
}

#[tokio::test]
async fn a_failed_fill_fails_its_readers_and_a_forgotten_one_too() {
    for fail in [true, false] {
        let content = content(64 << 20, None);
        let mut fill = writer(&content);
        fill.write(Bytes::from_static(b"part"));
        let reader = tokio::spawn(read_all(content.reader(0, None)));
        tokio::task::yield_now().await;
        if fail {
            fill.fail(OriginError::BetweenBytesTimeout)
        } else {
            drop(fill)
        }
        assert!(matches!(
            reader.await.expect("no panic"),
            Err(Next::Failed(_))
        ));
    }
}

#[tokio::test]
async fn an_empty_body_is_whole_and_missing_slices_are_named() {
    let empty = content(1 << 20, Some(0));
    writer(&empty).finish();
    assert_eq!(
        read_all(empty.reader(0, Some(0))).await.expect("whole"),
        b""
    );
    assert_eq!(empty.whole_in_memory().as_deref(), Some(&b""[..]));
    let parts = content(64 << 20, Some(5 * SLICE));
    let fill = parts.begin_fill(2 * SLICE, Some(3 * SLICE));
    assert!(
        parts.begin_fill_of_missing(2 * SLICE, 5 * SLICE).is_none(),
        "it is on its way"
    );
    let before = parts
        .begin_fill_of_missing(10, 5 * SLICE)
        .expect("it is missing");
    assert_eq!(
        (before.at(), before.end()),
        (0, Some(2 * SLICE)),
        "up to what is on its way"
    );
    let after = parts
        .begin_fill_of_missing(3 * SLICE + 1, 3 * SLICE + 2)
        .expect("it is missing");
    assert_eq!(
        (after.at(), after.end()),
        (3 * SLICE, Some(4 * SLICE)),
        "whole slices"
    );
    for fill in [fill, before, after] {
        drop(FillWriter::new(parts.clone(), fill, false));
    }
    assert!(matches!(
        parts.reader(0, Some(1)).next().await,
        Next::Missing
    ));
}

#[tokio::test]
async fn a_long_row_of_slices_is_forgotten_away_from_the_thread_that_serves() {
    for (slices, is_here) in [(FORGOTTEN_INLINE_MAX, true), (4_000_000, false)] {
        let content = content(64 << 20, None);
        let (store, body) = (content.store().clone(), content.body.clone());
        store.put_in_memory(&body, slices - 1, Bytes::from_static(b"x"));
        content.discard();
        drop(content);
        // Millions of looks take longer than this one.
        assert_eq!(store.contains(&body, slices - 1), !is_here, "{slices}");
        while store.contains(&body, slices - 1) {
            tokio::task::yield_now().await;
        }
    }
}

#[test]
fn a_run_of_missing_slices_is_looked_through_in_bounded_steps() {
    let content = content(1 << 20, Some(1 << 62));
    let fill = content
        .begin_fill_of_missing(SLICE, 1 << 62)
        .expect("it is missing");
    assert_eq!(
        (fill.at(), fill.end()),
        (SLICE, Some((RUN_SLICES_MAX + 1) * SLICE))
    );
    let next = content
        .begin_fill_of_next_missing(SLICE, 1 << 62)
        .expect("what comes after it");
    assert_eq!(
        (next.at(), next.end()),
        (
            (RUN_SLICES_MAX + 1) * SLICE,
            Some((2 * RUN_SLICES_MAX + 1) * SLICE)
        )
    );
}

#[tokio::test]
async fn what_is_cut_by_a_seek_settles_with_its_last_slice() {
    let content = seekable(12);
    let mut behind = writer(&content);
    let settled = tokio::spawn({
        let content = content.clone();
        async move { content.fills_ended().await }
    });
    let ahead = content
        .begin_seek(8 * SLICE)
        .expect("far ahead")
        .take_over(9 * SLICE)
        .expect("still far");
    let mut ahead = FillWriter::new(content.clone(), ahead, false);
    behind.write(Bytes::from(vec![1; 8 * SLICE_BYTES]));
    let rest = content
        .begin_fill_of_next_missing(8 * SLICE, 12 * SLICE)
        .expect("the rest");
    let mut rest = FillWriter::new(content.clone(), rest, false);
    behind.finish();
    ahead.write(Bytes::from(vec![1; SLICE_BYTES]));
    ahead.finish();
    tokio::task::yield_now().await;
    assert!(!settled.is_finished(), "three slices are on their way");
    rest.write(Bytes::from(vec![1; 3 * SLICE_BYTES]));
    rest.finish();
    assert!(settled.await.expect("no panic"));
    let (cut, fill) = (seekable(2), seekable(2));
    drop(writer(&cut));
    assert!(
        !cut.fills_ended().await && !fill.fills_ended().await,
        "nothing has come"
    );
}

#[tokio::test]
async fn a_fill_remembers_no_readers_that_have_gone() {
    let content = content(64 << 20, Some(10 * SLICE));
    let writer = writer(&content);
    let mut stays = content.reader(SLICE, None);
    assert!(futures_util::FutureExt::now_or_never(stays.next()).is_none() && content.is_read());
    for _ in 0..1000 {
        let mut reader = content.reader(SLICE, Some(SLICE + 1));
        assert!(
            futures_util::FutureExt::now_or_never(reader.next()).is_none(),
            "it waits"
        );
    }
    assert!(writer.fill().reader_slots() <= 8);
    drop(stays);
    assert!(!content.is_read());
}

fn seekable(slices: u64) -> Arc<Content> {
    content_of(64 << 20, Some(slices * SLICE), true)
}

#[tokio::test]
async fn a_seek_takes_over_what_is_far_ahead_and_its_readers() {
    let content = seekable(12);
    let mut behind = writer(&content);
    behind.write(Bytes::from(vec![1; SLICE_BYTES / 2]));
    let early = tokio::spawn(read_all(content.reader(8 * SLICE + 5, Some(8 * SLICE + 7))));
    tokio::task::yield_now().await;
    assert!(
        content.begin_seek(SEEK_SLICES * SLICE).is_none(),
        "that is near"
    );
    let seek = content.begin_seek(8 * SLICE + 5).expect("far ahead");
    assert!(
        content.begin_seek(9 * SLICE).is_none(),
        "somebody asks for nearly the same"
    );
    assert_eq!(seek.first(), 8 * SLICE);
    let fill = seek.take_over(10 * SLICE).expect("still far");
    assert_eq!(
        (fill.at(), fill.end(), behind.fill().end()),
        (8 * SLICE, Some(10 * SLICE), Some(8 * SLICE))
    );
    let mut ahead = FillWriter::new(content.clone(), fill, false);
    ahead.write(Bytes::from(vec![2; SLICE_BYTES]));
    assert_eq!(
        early.await.expect("no panic").expect("whole"),
        [2, 2],
        "a reader that waited for the one behind"
    );
    // What the one behind was sent beyond its new end is not written twice.
    behind.write(Bytes::from(vec![1; 9 * SLICE_BYTES]));
    assert_eq!(behind.at(), 8 * SLICE);
    behind.finish();
    ahead.write(Bytes::from(vec![2; SLICE_BYTES]));
    ahead.finish();
    assert!(content.has(0, 10 * SLICE) && !content.has(10 * SLICE, 12 * SLICE));
    let next = content
        .begin_fill_of_next_missing(8 * SLICE, 12 * SLICE)
        .expect("the last two");
    assert_eq!((next.at(), next.end()), (10 * SLICE, Some(12 * SLICE)));
    drop(FillWriter::new(content.clone(), next, false));
    assert!(content.begin_fill_of_next_missing(0, 10 * SLICE).is_none());
}

type Writers = std::rc::Rc<std::cell::RefCell<Vec<(FillWriter, u64)>>>;

fn add(writers: &Writers, content: &Arc<Content>, fill: Arc<Fill>) {
    let goal = fill.end().expect("it is known");
    add_towards(writers, content, fill, goal);
}

fn add_towards(writers: &Writers, content: &Arc<Content>, fill: Arc<Fill>, goal: u64) {
    writers
        .borrow_mut()
        .push((FillWriter::new(content.clone(), fill, false), goal));
}

/// Reads a range as a client's request does: seeks where the fill is far behind, and fills what
/// is missing.
async fn read_range(
    content: Arc<Content>,
    writers: Writers,
    first: u64,
    end: u64,
    patience: u64,
) -> Vec<u8> {
    if let Some(seek) = content.begin_seek(first) {
        // The origin's answer takes its time.
        for _ in 0..patience {
            tokio::task::yield_now().await;
        }
        if let Some(fill) = seek.take_over(end) {
            add(&writers, &content, fill);
        }
    }
    let (mut reader, mut bytes) = (content.reader(first, Some(end)), Vec::new());
    loop {
        match reader.next().await {
            Next::Piece(piece) => bytes.extend_from_slice(&piece),
            Next::End => return bytes,
            Next::Missing => match content.begin_fill_of_missing(reader.range().0, end) {
                Some(fill) => add(&writers, &content, fill),
                None => tokio::task::yield_now().await,
            },
            Next::Failed(error) => panic!("no fill failed: {error}"),
        }
    }
}

async fn walk(seed: u64) {
    const SLICES: u64 = 24;
    let length = SLICES * SLICE - 1000;
    let body: Bytes = (0..length)
        .map(|at| (at % 251) as u8 ^ (at / SLICE) as u8)
        .collect::<Vec<_>>()
        .into();
    let content = content_of(64 << 20, Some(length), true);
    let mut random = Random::new(seed);
    let mut below = |end: u64| random.below(end as usize) as u64;
    let writers = Writers::default();
    add(&writers, &content, content.begin_fill(0, Some(length)));
    let readers: Vec<_> = (0..12)
        .map(|_| {
            let first = below(length);
            let end = first + 1 + below(length - first);
            let reading = read_range(content.clone(), writers.clone(), first, end, below(40));
            (first, end, tokio::task::spawn_local(reading))
        })
        .collect();
    let mut written = 0;
    while !writers.borrow().is_empty() {
        tokio::task::yield_now().await;
        let number = below(writers.borrow().len() as u64) as usize;
        let (mut writer, goal) = writers.borrow_mut().swap_remove(number);
        // The origin does not know that a fill's end has come nearer.
        let (at, more) = (writer.at(), 1 + below(2 * SLICE));
        writer.write(body.slice(at as usize..(at + more).min(goal) as usize));
        written += writer.at() - at;
        let end = writer.fill().end().expect("it is known");
        if writer.at() < end {
            writers.borrow_mut().push((writer, goal));
            continue;
        }
        writer.finish();
        if end < goal
            && let Some(fill) = content.begin_fill_of_next_missing(end, goal)
        {
            add_towards(&writers, &content, fill, goal);
        }
    }
    for (first, end, reader) in readers {
        assert!(content.has(0, length), "seed {seed}: some of it never came");
        let bytes = reader.await.expect("no panic");
        assert!(
            bytes == body[first as usize..end as usize],
            "seed {seed}: {first}-{end}"
        );
    }
    assert_eq!(written, length, "seed {seed}: some of it came twice");
}

#[test]
fn whoever_seeks_where_everything_comes_once_and_everybody_reads_what_was_sent() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    for seed in 0..20 {
        tokio::task::LocalSet::new().block_on(&runtime, walk(seed));
    }
}

#[test]
fn a_seek_that_comes_too_late_or_cannot_be_joined_is_none() {
    let content = seekable(12);
    let mut behind = writer(&content);
    let seek = content.begin_seek(6 * SLICE).expect("far ahead");
    behind.write(Bytes::from(vec![1; 5 * SLICE_BYTES + 1]));
    assert!(
        seek.take_over(7 * SLICE).is_none(),
        "the fill has come near"
    );
    drop(seek);
    assert_eq!(behind.fill().end(), Some(12 * SLICE));
    assert!(content.begin_seek(10 * SLICE).is_some());
    content.note_whole_only();
    assert!(
        content.begin_seek(10 * SLICE).is_none(),
        "the origin gives no parts"
    );
    let untagged = self::content(64 << 20, Some(12 * SLICE));
    let _fill = writer(&untagged);
    assert!(
        untagged.begin_seek(10 * SLICE).is_none(),
        "without a strong validator parts never meet"
    );
}

#[test]
fn of_many_that_miss_the_same_slice_one_begins_its_fill() {
    for _ in 0..200 {
        let content = content(64 << 20, Some(2 * SLICE));
        let start = std::sync::Barrier::new(4);
        let begun = std::thread::scope(|scope| {
            let begin = || {
                start.wait();
                content.begin_fill_of_missing(0, SLICE).is_some()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(begin)).collect();
            threads
                .into_iter()
                .map(|t| t.join().expect("no panic"))
                .filter(|b| *b)
                .count()
        });
        assert_eq!(begun, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_relayed_body_waits_for_its_reader_and_ends_without_one() {
    let content = content(64 << 20, None);
    let mut fill = writer(&content);
    let mut reader = content.reader(0, None);
    fill.write(Bytes::from(vec![1u8; SLICE_BYTES]));
    assert!(matches!(reader.next().await, Next::Piece(_)));
    fill.relay();
    for _ in 0..WINDOW / SLICE {
        assert!(fill.pace().await);
        fill.write(Bytes::from(vec![2u8; SLICE_BYTES]));
    }
    fill.write(Bytes::from(vec![2u8; SLICE_BYTES]));
    let wait = std::time::Duration::from_secs(60);
    assert!(
        tokio::time::timeout(wait, fill.pace()).await.is_err(),
        "the reader is too far behind"
    );
    while reader.range().0 < fill.at() {
        assert!(matches!(reader.next().await, Next::Piece(_)));
    }
    assert!(fill.pace().await);
    drop(reader);
    assert!(!fill.pace().await, "nobody reads");
}

fn body_of(slices: u64) -> Bytes {
    (0..slices * SLICE - 1000)
        .map(|at| (at % 251) as u8 ^ (at / SLICE) as u8)
        .collect::<Vec<_>>()
        .into()
}

/// Writes a body as a pump does, in pieces of that many bytes.
async fn pump(mut writer: FillWriter, body: Bytes, piece: usize) -> u64 {
    let (mut at, mut furthest) = (0, 0);
    while at < body.len() {
        let end = (at + piece).min(body.len());
        writer.write(body.slice(at..end));
        writer.flush();
        at = end;
        furthest = furthest.max(writer.fill().held_bytes());
        if !writer.pace().await {
            break;
        }
        tokio::task::yield_now().await;
    }
    writer.content().learn_length(body.len() as u64);
    writer.finish();
    furthest
}

#[tokio::test]
async fn a_lone_reader_of_what_nothing_keeps_paces_its_fill_and_misses_nothing() {
    for (length, is_tagged) in [
        (None, false),
        (Some(()), false),
        (None, true),
        (Some(()), true),
    ] {
        let body = body_of(40);
        let content = content_of(1 << 20, length.map(|()| body.len() as u64), is_tagged);
        let mut reader = content.reader(0, None);
        let fill = content.begin_fill(0, content.length());
        reader.attach(fill.clone());
        let writer = FillWriter::new(content.clone(), fill, false);
        let writing = tokio::spawn(pump(writer, body.clone(), 60_000));
        let mut whole = Vec::new();
        loop {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            match reader.next().await {
                Next::Piece(piece) => whole.extend_from_slice(&piece),
                Next::End => break,
                other => panic!("{length:?} {is_tagged}: {other:?} at {}", whole.len()),
            }
        }
        assert!(whole == body, "{length:?} {is_tagged}");
        let furthest = writing.await.expect("no panic");
        assert!(furthest <= WINDOW + 2 * SLICE, "{furthest} bytes held");
    }
}

/// A reader that stalls after its first byte beside one that does not, and what the store holds
/// when the fast one has read everything.
async fn stall(content: &Arc<Content>, body: &Bytes) -> Reader {
    let fill = content.begin_fill(0, content.length());
    let (mut slow, mut fast) = (content.reader(0, None), content.reader(0, None));
    slow.attach(fill.clone());
    fast.attach(fill.clone());
    let writer = FillWriter::new(content.clone(), fill, false);
    let writing = tokio::spawn(pump(writer, body.clone(), 50_000));
    assert!(matches!(slow.next().await, Next::Piece(_)));
    assert!(
        read_all(fast).await.expect("whole") == *body,
        "the fast one is not slowed"
    );
    writing.await.expect("no panic");
    slow
}

fn in_pieces(body: Bytes) -> impl futures_util::Stream<Item = Result<Bytes, ()>> + Unpin {
    let pieces: Vec<_> = (0..body.len())
        .step_by(70_000)
        .map(|at| Ok(body.slice(at..(at + 70_000).min(body.len()))))
        .collect();
    futures_util::stream::iter(pieces)
}

#[tokio::test]
async fn a_reader_that_fell_behind_gets_the_same_bytes_from_a_repeat_and_no_others() {
    let body = body_of(30);
    for changed_at in [None, Some(10), Some(10 * SLICE_BYTES), Some(body.len() - 1)] {
        let content = content(1 << 20, None);
        let mut slow = stall(&content, &body).await;
        let mut again = body.to_vec();
        if let Some(at) = changed_at {
            again[at] ^= 1;
        }
        let again = Bytes::from(again);
        let mut whole = body.slice(..slow.range().0 as usize).to_vec();
        let mut repeats = 0;
        let end = loop {
            match slow.next().await {
                Next::Piece(piece) => whole.extend_from_slice(&piece),
                Next::Missing => {
                    let BeginAgain::New(writer) = content.begin_again(slow.range().0) else {
                        panic!("nothing else brings it");
                    };
                    slow.attach(writer.fill().clone());
                    tokio::spawn(repeat(writer, in_pieces(again.clone())));
                    repeats += 1;
                }
                other => break other,
            }
        };
        assert!(repeats <= 1, "{repeats} repeats");
        assert!(
            body.starts_with(&whole),
            "{changed_at:?}: never another byte"
        );
        match changed_at {
            None => assert!(matches!(end, Next::End) && whole == body),
            Some(_) => assert!(
                matches!(end, Next::Failed(OriginError::Unfit)),
                "{changed_at:?}: {end:?}"
            ),
        }
    }
}

#[tokio::test]
async fn a_repeat_is_shared_and_begins_at_the_slowest() {
    let body = body_of(30);
    let content = content(1 << 20, None);
    let slow = stall(&content, &body).await;
    drop(slow);
    let first = content.begin_again(9 * SLICE + 7);
    let BeginAgain::New(first) = first else {
        panic!("it is missing");
    };
    assert_eq!(first.at(), 9 * SLICE);
    assert!(matches!(content.begin_again(12 * SLICE), BeginAgain::Found));
    let mut kept = Vec::new();
    for index in [7, 5, 3] {
        match content.begin_again(index * SLICE) {
            BeginAgain::New(writer) => kept.push(writer),
            _ => panic!("{index}: nothing brings it"),
        }
    }
    assert!(matches!(content.begin_again(SLICE), BeginAgain::Busy(_)));
    assert!(matches!(content.begin_again(40 * SLICE), BeginAgain::Found));
    drop((first, kept));
    assert!(matches!(
        content.begin_again(40 * SLICE),
        BeginAgain::Unknown
    ));
    assert!(content.is_repeatable(SLICE) && !content.is_repeatable(40 * SLICE));
}

#[tokio::test]
async fn fills_that_have_ended_hold_a_share_of_memory_and_no_more() {
    let windows = Windows::new(32 << 20);
    let mut readers = Vec::new();
    for _ in 0..8 {
        let content = content(1 << 20, None);
        let fill = content.begin_fill(0, None);
        let mut reader = content.reader(0, None);
        reader.attach(fill.clone());
        let mut writer = FillWriter::new(content, fill.clone(), false);
        writer.join(&windows);
        (0..8).for_each(|_| writer.write(Bytes::from(vec![1; SLICE_BYTES])));
        writer.finish();
        readers.push((reader, fill));
    }
    let held: Vec<u64> = readers.iter().map(|(_, fill)| fill.held_bytes()).collect();
    let slices = 8 * SLICE;
    assert_eq!(
        held,
        [0, 0, 0, 0, slices, slices, slices, slices][..]
            .to_vec()
            .as_slice(),
        "the newest"
    );
}

#[test]
fn a_body_in_crumbs_is_few_pieces() {
    let content = content(64 << 20, None);
    let mut writer = writer(&content);
    let mut reader = content.reader(0, None);
    let body = body_of(1);
    for at in (0..200_000).step_by(100) {
        writer.write(body.slice(at..at + 100));
    }
    let (mut pieces, mut whole) = (0, Vec::new());
    while let Some(Next::Piece(piece)) = futures_util::FutureExt::now_or_never(reader.next()) {
        pieces += 1;
        whole.extend_from_slice(&piece);
    }
    assert!(whole == body[..200_000] && pieces <= 40, "{pieces} pieces");
}

#[tokio::test(start_paused = true)]
async fn many_readers_are_woken_together() {
    let content = content(64 << 20, None);
    let mut writer = writer(&content);
    let readers: Vec<_> = (0..1000)
        .map(|_| {
            let mut reader = content.reader(0, None);
            tokio::spawn(async move {
                let (mut pieces, mut bytes) = (0, 0);
                while let Next::Piece(piece) = reader.next().await {
                    pieces += 1;
                    bytes += piece.len();
                }
                (pieces, bytes)
            })
        })
        .collect();
    tokio::task::yield_now().await;
    for _ in 0..100 {
        writer.write(Bytes::from_static(&[7; 100]));
        if let Some(due) = writer.due() {
            let wait = std::time::Duration::from_millis(1);
            if tokio::time::timeout(wait, tokio::time::sleep_until(due))
                .await
                .is_ok()
            {
                writer.flush();
            }
        }
    }
    content.learn_length(10_000);
    writer.finish();
    for reader in readers {
        let (pieces, bytes) = reader.await.expect("no panic");
        assert!(
            bytes == 10_000 && pieces <= 15,
            "{pieces} pieces, {bytes} bytes"
        );
    }
}
