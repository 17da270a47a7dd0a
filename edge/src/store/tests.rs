//! The store with its disk: restarts, damage, limits and eviction.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const OWNER: u128 = 7;

/// Head and, for each of the first three slices, its bytes.
type Found = (Bytes, [Option<Bytes>; 3]);

/// A store on a directory, with what it finds there.
fn open(directory: &Path) -> (Store, Vec<Found>) {
    let disk = DiskConfig {
        directory: directory.to_owned(),
        pull_bytes: 16 << 20,
        pushed_bytes: 0,
    };
    let (store, _gone) = Store::open(&StoreConfig {
        memory_bytes: 1 << 20,
        disk: Some(disk),
    });
    let mut found = Vec::new();
    store.recover(|_, _| Some(OWNER), |body| found.push(body));
    let mut found: Vec<_> = found
        .iter()
        .map(|f| {
            (
                f.head.clone(),
                [0, 1, 2].map(|index| store.read_blocking(&f.body, index)),
            )
        })
        .collect();
    found.sort_by(|one, other| one.0.cmp(&other.0));
    (store, found)
}

fn put(store: &Store, head: &'static str, slices: usize) -> Arc<StoredBody> {
    let body = store.new_body(OWNER, Pool::Pull);
    for index in 0..slices as u32 {
        store.put(&body, index, slice(head, index));
    }
    store.put_head(&body, Bytes::from_static(head.as_bytes()));
    store.flush();
    body
}

fn slice(head: &str, index: u32) -> Bytes {
    format!("{head} {index} ").repeat(1000).into()
}

fn region(directory: &Path) -> std::path::PathBuf {
    let mut files: Vec<_> = fs::read_dir(directory.join("pull"))
        .expect("it was made")
        .map(|f| f.expect("readable").path())
        .collect();
    files.sort();
    files.pop().expect("a region was written")
}

/// Changes one byte where `text` first stands in a file.
fn damage(file: &Path, text: &str) {
    let mut bytes = fs::read(file).expect("readable");
    let at = bytes
        .windows(text.len())
        .position(|w| w == text.as_bytes())
        .expect("it was written");
    bytes[at] ^= 1;
    fs::write(file, bytes).expect("writable");
}

#[test]
fn what_was_written_is_found_again_and_what_was_forgotten_never() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (store, _) = open(directory.path());
    put(&store, "kept", 2);
    let forgotten = put(&store, "forgotten", 2);
    store.forget(&forgotten);
    // Still in the queue when it is forgotten.
    let queued = store.new_body(OWNER, Pool::Pull);
    store.put(&queued, 0, slice("queued", 0));
    store.put_head(&queued, Bytes::from_static(b"queued"));
    store.forget(&queued);
    store.flush();
    drop(store);
    for _ in 0..2 {
        let (store, found) = open(directory.path());
        assert_eq!(
            found,
            [(
                Bytes::from_static(b"kept"),
                [Some(slice("kept", 0)), Some(slice("kept", 1)), None]
            )]
        );
        store.flush();
    }
}

#[test]
fn a_region_that_was_half_written_at_a_crash_gives_what_is_whole() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (store, _) = open(directory.path());
    put(&store, "first", 2);
    let whole = fs::metadata(region(directory.path()))
        .expect("readable")
        .len();
    put(&store, "second", 2);
    drop(store);
    let file = region(directory.path());
    let all = fs::read(&file).expect("readable");
    let first = (
        Bytes::from_static(b"first"),
        [Some(slice("first", 0)), Some(slice("first", 1)), None],
    );
    // In a header, in a slice, and with a slice but without the head; a hole where the kernel
    // had written no page yet.
    let record = slice("second", 0).len() as u64 + 40;
    for (length, has_hole) in [
        (whole + 7, false),
        (whole + 500, false),
        (whole + record + 500, false),
        (whole + record, true),
    ] {
        let mut left = all[..length as usize].to_vec();
        left.resize(if has_hole { all.len() } else { left.len() }, 0);
        fs::write(&file, left).expect("writable");
        let (_store, found) = open(directory.path());
        assert_eq!(
            found,
            std::slice::from_ref(&first),
            "cut at {length} of {}",
            all.len()
        );
    }
    let (store, _) = open(directory.path());
    put(&store, "third", 1);
    drop(store);
    let (_store, found) = open(directory.path());
    assert_eq!(
        found,
        [
            first,
            (
                Bytes::from_static(b"third"),
                [Some(slice("third", 0)), None, None]
            )
        ]
    );
}

#[test]
fn bytes_that_changed_on_disk_are_never_served() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (store, _) = open(directory.path());
    put(&store, "one", 2);
    put(&store, "two", 1);
    drop(store);
    damage(&region(directory.path()), "one 1 ");
    let (store, found) = open(directory.path());
    assert_eq!(
        found[0],
        (
            Bytes::from_static(b"one"),
            [Some(slice("one", 0)), None, None]
        )
    );
    assert_eq!(
        (found.len(), store.disk_figures().expect("a disk").errors),
        (2, 1)
    );
    drop(store);
    let head = fs::read(region(directory.path())).expect("readable");
    let at = head
        .windows(3)
        .rposition(|w| w == b"two")
        .expect("its head");
    let mut bytes = head;
    bytes[at] ^= 1;
    fs::write(region(directory.path()), bytes).expect("writable");
    let (_store, found) = open(directory.path());
    assert!(
        matches!(&found[..], [(head, _)] if head.as_ref() == b"one"),
        "a body without its head is nothing: {found:?}"
    );
}

#[test]
fn what_waits_for_the_disk_is_bounded_by_the_memory_there_is() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (memory_bytes, most) in [
        (4 << 20, 8 << 20),
        (32 << 20, 32 << 20),
        (1 << 30, 64 << 20),
    ] {
        let disk = DiskConfig {
            directory: directory.path().to_owned(),
            pull_bytes: 16 << 20,
            pushed_bytes: 0,
        };
        let (store, _gone) = Store::open(&StoreConfig {
            memory_bytes,
            disk: Some(disk),
        });
        assert_eq!(store.write_room(), most);
        // Nothing is written before the earlier run was looked at.
        let body = store.new_body(OWNER, Pool::Pull);
        let slices = (most / SLICE_BYTES as u64 + 10) as u32;
        (0..slices)
            .for_each(|index| store.put_on_disk(&body, index, Bytes::from(vec![0; SLICE_BYTES])));
        let shed = store.disk_figures().expect("a disk").dropped_writes;
        assert!(
            (10..=12).contains(&shed) && store.write_room() < SLICE_BYTES as u64 + 40,
            "{shed} shed of {slices}"
        );
    }
}

fn open_pushed(directory: &Path, pushed_bytes: u64) -> (Store, Vec<RecoveredBody>) {
    let disk = DiskConfig {
        directory: directory.to_owned(),
        pull_bytes: 0,
        pushed_bytes,
    };
    let (store, _gone) = Store::open(&StoreConfig {
        memory_bytes: 64 << 20,
        disk: Some(disk),
    });
    let mut found = Vec::new();
    store.recover(|_, _| Some(OWNER), |body| found.push(body));
    (store, found)
}

fn push(store: &Store, length: u64) -> Arc<StoredBody> {
    let body = store.new_body(OWNER, Pool::Pushed);
    let mut left = length as usize;
    for index in 0.. {
        let slice = left.min(SLICE_BYTES);
        store.put_on_disk(&body, index, Bytes::from(vec![index as u8; slice]));
        left -= slice;
        if left == 0 {
            break;
        }
    }
    store.put_head(&body, Bytes::from(vec![b'h'; 1500]));
    // Fills wait for room in the queue; so does this.
    store.flush();
    body
}

fn is_whole(store: &Store, body: &StoredBody, length: u64) -> bool {
    (0..length.div_ceil(SLICE_BYTES as u64) as u32).all(|index| store.is_kept(body, index))
}

/// Lengths of bodies of about that size that fill a share to what is usable of it.
fn lengths_that_fit(share: u64, about: u64, seed: u64) -> Vec<u64> {
    let mut left = nearcast_fleet::disk::usable_bytes(share);
    let mut lengths = Vec::new();
    loop {
        let length =
            about / 2 + (lengths.len() as u64 + 1) * (seed * 2_654_435_761 % about) % about;
        match left.checked_sub(nearcast_fleet::disk::stored_bytes(length)) {
            Some(rest) => left = rest,
            None => return lengths,
        }
        lengths.push(length);
    }
}

#[test]
fn what_fits_a_share_is_there_night_after_night() {
    for (share, about) in [
        (8 << 20, 100_000),
        (16 << 20, 700_000),
        (32 << 20, 262_143),
        (32 << 20, 1_500_000),
        (48 << 20, 5_000),
    ] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (store, _) = open_pushed(directory.path(), share);
        let mut kept: Vec<(Arc<StoredBody>, u64)> = Vec::new();
        for night in 0..4 {
            store.new_pin_epoch();
            // Half of the last night's bodies are wanted again: every other one, so that they
            // lie everywhere.
            let mut number = night;
            kept.retain(|_| {
                number += 1;
                number % 2 == 0
            });
            kept.iter().for_each(|(body, _)| store.pin(body));
            let taken: u64 = kept
                .iter()
                .map(|(_, length)| nearcast_fleet::disk::stored_bytes(*length))
                .sum();
            let mut left = nearcast_fleet::disk::usable_bytes(share) - taken;
            for length in lengths_that_fit(share, about, 7 + night) {
                let Some(rest) = left.checked_sub(nearcast_fleet::disk::stored_bytes(length))
                else {
                    break;
                };
                left = rest;
                kept.push((push(&store, length), length));
            }
            let whole = kept
                .iter()
                .filter(|(body, length)| is_whole(&store, body, *length))
                .count();
            assert_eq!(
                whole,
                kept.len(),
                "share {share}, bodies of about {about}, night {night}"
            );
        }
        assert_eq!(store.disk_figures().expect("a disk").dropped_writes, 0);
        drop(store);
        let (_, found) = open_pushed(directory.path(), share);
        let found = kept
            .iter()
            .filter(|(body, _)| {
                found
                    .iter()
                    .any(|f| f.body.id == body.id && f.head.len() == 1500)
            })
            .count();
        assert_eq!(
            found,
            kept.len(),
            "their heads are there at the next start, too"
        );
    }
}

#[test]
fn what_does_not_fit_beside_wanted_bodies_is_not_written() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (store, _) = open_pushed(directory.path(), 8 << 20);
    let lengths = lengths_that_fit(8 << 20, 300_000, 7);
    let first: Vec<_> = lengths
        .iter()
        .map(|length| (push(&store, *length), *length))
        .collect();
    let beyond: Vec<_> = (0..40).map(|_| push(&store, 300_000)).collect();
    assert!(
        first
            .iter()
            .all(|(body, length)| is_whole(&store, body, *length)),
        "what came first has gone"
    );
    assert!(store.disk_figures().expect("a disk").dropped_writes > 30);
    assert!(!is_whole(&store, &beyond[39], 300_000));
    // A body that is forgotten makes room, and so does a new wish.
    store.forget(&first[0].0);
    store.forget(&first[1].0);
    store.flush();
    let next = push(&store, 250_000);
    assert!(is_whole(&store, &next, 250_000));
    store.new_pin_epoch();
    let newest: Vec<_> = lengths
        .iter()
        .map(|length| (push(&store, *length), *length))
        .collect();
    assert!(
        newest
            .iter()
            .all(|(body, length)| is_whole(&store, body, *length))
    );
}

#[test]
fn a_file_that_is_no_region_is_taken_away_and_others_stay() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (store, _) = open(directory.path());
    put(&store, "kept", 1);
    drop(store);
    let odd = directory
        .path()
        .join("pull")
        .join("region-00000000000000ff");
    fs::write(&odd, b"nothing of ours, but long enough to be read").expect("writable");
    let (_store, found) = open(directory.path());
    assert_eq!(found.len(), 1);
    assert!(!odd.exists());
}

/// A record of a small body with good checksums, damaged in some cases.
fn any_record() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![0..4u64, Just(u64::MAX)];
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    let damage = prop::option::weighted(0.1, any::<prop::sample::Index>());
    (1..4u8, number.clone(), number, payload, damage).prop_map(
        |(kind, index, sequence, payload, damage)| {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let mut record =
                fuzz_record(kind, 7, index, sequence, &payload).expect("one of three kinds");
            if let Some(at) = damage {
                let at = at.index(record.len());
                record[at] ^= 1;
            }
            record
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_region_file_holds_it_opens_and_takes_a_new_body(
        records in prop::collection::vec(any_record(), 0..12),
        torn in 0..20usize,
    ) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut file = fuzz_region_header(1);
        records.iter().for_each(|record| file.extend(record));
        file.truncate(file.len().saturating_sub(torn));
        let pool = directory.path().join("pull");
        fs::create_dir(&pool).expect("a new directory");
        fs::write(pool.join(format!("region-{:016x}", 1)), &file).expect("writable");

        let (store, found) = open(directory.path());
        prop_assert!(found.len() <= 1, "all records are of one body");
        for bytes in found.iter().flat_map(|(head, slices)| slices.iter().flatten().chain([head])) {
            prop_assert!(bytes.is_empty() || file.windows(bytes.len()).any(|window| window == bytes));
        }
        put(&store, "new", 2);
        drop(store);
        let (_store, again) = open(directory.path());
        let new = [Some(slice("new", 0)), Some(slice("new", 1)), None];
        prop_assert!(again.contains(&(Bytes::from_static(b"new"), new)));
        prop_assert!(found.iter().all(|body| again.contains(body)));
    }
}
