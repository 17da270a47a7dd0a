//! The store with its disk: restarts, damage, removals, limits and reclaiming.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::measures::{SLICE_BYTES, stored_bytes, usable_bytes};
use crate::{DiskConfig, FoundBody, Frontier, Group, Pool, Purged, Store, StoreConfig, StoredBody};

const OWNER: u128 = 7;

/// A store of which an earlier run's files are in `directory`.
fn open_sized(directory: &Path, pull_bytes: u64, pushed_bytes: u64) -> Store {
    let disk = DiskConfig {
        directory: directory.join("store"),
        pull_bytes,
        pushed_bytes,
    };
    let (store, _gone) = Store::open(&StoreConfig {
        memory_bytes: 1 << 20,
        disk: Some(disk),
    });
    store.wait_until_loaded();
    store
}

fn open(directory: &Path) -> Store {
    open_sized(directory, 16 << 20, 0)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
        .block_on(future)
}

fn load(store: &Store, name: &str) -> Vec<FoundBody> {
    run(store.load(name, OWNER, &[]))
}

fn slice(head: &str, index: u32) -> Bytes {
    format!("{head} {index} ").repeat(1000).into()
}

/// Puts a body under the name of its head.
fn put(store: &Store, head: &str, slices: u32) -> Arc<StoredBody> {
    let body = store.new_body(OWNER, Pool::Pull);
    for index in 0..slices {
        store.put(&body, index, slice(head, index));
    }
    store.put_head(
        &body,
        head,
        store.group("site"),
        Bytes::from(head.to_owned()),
    );
    store.flush();
    body
}

/// The first three slices of the newest body of a name, from disk; `None` where there is no head.
fn find(store: &Store, name: &str) -> Option<[Option<Bytes>; 3]> {
    let found = load(store, name).into_iter().next()?;
    assert_eq!(found.head, name, "the head of another name");
    Some([0, 1, 2].map(|index| run(store.read_slice(&found.body, index))))
}

fn whole(name: &str, slices: u32) -> Option<[Option<Bytes>; 3]> {
    Some([0, 1, 2].map(|index| (index < slices).then(|| slice(name, index))))
}

fn data(directory: &Path) -> PathBuf {
    directory.join("store").join("pull.data")
}

#[test]
fn what_was_written_is_found_again_and_what_was_removed_never() {
    for is_clean in [true, false] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = open(directory.path());
        for name in ["one", "two", "removed", "forgotten"] {
            put(&store, name, 2);
        }
        put(&store, "single", 1);
        let forgotten = load(&store, "forgotten").remove(0).body;
        store.forget(&forgotten);
        store.remove("removed");
        assert!(!store.may_have("removed") && !store.has_head(&forgotten));
        assert!(run(store.removals_recorded()));
        // Still in the queue when it is forgotten.
        let queued = store.new_body(OWNER, Pool::Pull);
        store.put(&queued, 0, slice("queued", 0));
        store.put_head(&queued, "queued", Group::OTHER, Bytes::from("queued"));
        store.forget(&queued);
        if is_clean {
            store.close();
        }
        drop(store);

        for _ in 0..3 {
            let store = open(directory.path());
            for (name, slices) in [("one", 2), ("two", 2), ("single", 1)] {
                assert_eq!(find(&store, name), whole(name, slices), "{name} {is_clean}");
                let found = load(&store, name).remove(0);
                assert!(found.is_of_earlier_run && !found.is_doubtful);
                assert!(store.has_head(&found.body));
            }
            for name in ["removed", "forgotten", "queued", "never"] {
                assert!(find(&store, name).is_none(), "{name} {is_clean}");
            }
            assert_eq!(store.heads_on_disk("site"), 3);
        }
    }
}

/// The directory of a store, with the files of another moment.
fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("store")).expect("a new directory");
    for file in fs::read_dir(from.join("store")).expect("it was made") {
        let file = file.expect("readable");
        fs::copy(file.path(), to.join("store").join(file.file_name())).expect("room");
    }
    let session = fs::read(from.join("store-session")).expect("it was made");
    fs::write(to.join("store-session"), session).expect("room");
}

fn remove_checkpoints(directory: &Path) {
    for name in crate::checkpoint::NAMES {
        let _ = fs::remove_file(directory.join("store").join(name));
    }
}

#[test]
fn slices_of_every_length_are_read_into_the_arena_and_never_damaged() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let lengths = [1000, 31 << 10, 32 << 10, 64 << 10, SLICE_BYTES];
    let bytes = |length: usize| Bytes::from_iter((0..length).map(|at| (at * length / 251) as u8));
    let heads = ["short".to_owned(), "long ".repeat(2000)];
    let store = open(directory.path());
    for length in lengths {
        for (number, head) in heads.iter().enumerate() {
            let body = store.new_body(OWNER, Pool::Pull);
            store.put(&body, 0, bytes(length));
            store.put(&body, 1, bytes(length));
            let name = format!("{length} {number}");
            store.put_head(&body, &name, Group::OTHER, Bytes::from(head.clone()));
            store.flush();
        }
    }
    store.close();
    drop(store);

    let read = |store: &Store, length: usize, number: usize| -> Option<[Option<Bytes>; 2]> {
        let found = load(store, &format!("{length} {number}")).pop()?;
        assert_eq!(found.head, heads[number], "{length}");
        Some([0, 1].map(|index| run(store.read_slice(&found.body, index))))
    };
    let store = open(directory.path());
    for length in lengths {
        for number in 0..heads.len() {
            let slices = read(&store, length, number).expect("it was written");
            for slice in slices.map(|slice| slice.expect("it was written")) {
                assert_eq!(slice, bytes(length), "{length} {number}");
                assert!(store.arena().owns(&slice), "{length} {number}");
            }
        }
    }
    drop(store);

    // A bit in the middle of each long slice.
    let mut file = fs::read(data(directory.path())).expect("it was made");
    for length in lengths {
        let wanted = bytes(length);
        let middle = &wanted[length / 2..length / 2 + 200];
        let found: Vec<_> = (0..file.len() - 200)
            .filter(|at| file[*at] == middle[0] && file[*at..].starts_with(middle))
            .collect();
        found.into_iter().for_each(|at| file[at + 100] ^= 1);
    }
    fs::write(data(directory.path()), file).expect("room");
    let store = open(directory.path());
    for length in lengths {
        for number in 0..heads.len() {
            let slices = read(&store, length, number).unwrap_or_default();
            assert_eq!(slices, [None, None], "{length} {number}");
        }
    }
}

#[test]
fn a_newer_head_keeps_the_slices_and_its_removal_removes_both() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (round, has_checkpoint) in [true, false].into_iter().enumerate() {
        let name = format!("round {round}");
        let store = open(directory.path());
        let body = put(&store, &name, 1);
        store.put_head(&body, &name, Group::OTHER, Bytes::from(name.clone()));
        store.flush();
        assert_eq!(store.disk_figures().expect("a disk").heads, 1);
        assert_eq!(find(&store, &name), whole(&name, 1));
        drop(store);

        let store = open(directory.path());
        assert_eq!(find(&store, &name), whole(&name, 1));
        store.close();
        drop(store);
        if !has_checkpoint {
            remove_checkpoints(directory.path());
        }
        let store = open(directory.path());
        assert_eq!(load(&store, &name).len(), 1, "the older head is there too");
        assert_eq!(find(&store, &name), whole(&name, 1));
        store.remove(&name);
        assert!(run(store.removals_recorded()));
        drop(store);
        // Once with the removal still to be carried out, once without.
        for _ in 0..2 {
            remove_checkpoints(directory.path());
            let store = open(directory.path());
            assert!(find(&store, &name).is_none());
            store.close();
        }
    }
}

#[test]
fn a_head_may_leave_before_its_slices() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    for slices in [1, 2] {
        let name = format!("of {slices}");
        let body = put(&store, &name, slices);
        let body = load(&store, &name).pop().map_or(body, |found| found.body);
        store.forget_head(&body);
        assert!(load(&store, &name).is_empty() && !store.has_head(&body));
        store.flush();
        for index in 0..slices {
            let read = run(store.read_slice(&body, index));
            assert_eq!(read, Some(slice(&name, index)));
            assert!(
                store.is_kept(&body, index),
                "{index} of {slices} is on disk"
            );
        }
    }
    assert!(run(store.removals_recorded()));
    drop(store);
    let store = open(directory.path());
    assert!(find(&store, "of 1").is_none() && find(&store, "of 2").is_none());
}

#[test]
fn a_run_after_a_kill_leaves_a_checkpoint_before_it_ends() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let checkpoints = || {
        let lengths = crate::checkpoint::NAMES.map(|name| {
            let path = directory.path().join("store").join(name);
            fs::metadata(path).map_or(0, |file| file.len())
        });
        lengths.iter().filter(|length| **length > 0).count()
    };
    let store = open(directory.path());
    put(&store, "name", 1);
    store.flush();
    drop(store);
    assert_eq!(checkpoints(), 0);
    let store = open(directory.path());
    let begun = Instant::now();
    while checkpoints() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint");
        std::thread::yield_now();
    }
    drop(store);
    assert_eq!(load(&open(directory.path()), "name").len(), 1);
}

#[test]
fn many_short_runs_evict_nothing() {
    const RUNS: usize = 24;
    let directory = tempfile::tempdir().expect("a temporary directory");
    for run in 0..RUNS {
        let store = open_sized(directory.path(), 64 << 20, 0);
        put(&store, &format!("run {run}"), 1);
        store.flush();
        if run % 3 == 0 {
            store.close();
        }
    }
    let store = open_sized(directory.path(), 64 << 20, 0);
    let found = (0..RUNS).filter(|run| load(&store, &format!("run {run}")).len() == 1);
    assert_eq!(found.count(), RUNS);
}

#[test]
fn a_head_that_cannot_be_read_takes_no_other_of_its_name_with_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    for head in ["the first head", "the second head"] {
        let body = store.new_body(OWNER, Pool::Pull);
        store.put(&body, 0, slice(head, 0));
        store.put_head(&body, "name", Group::OTHER, Bytes::from(head));
    }
    store.flush();
    let bytes = fs::read(data(directory.path())).expect("it was made");
    let at = bytes
        .windows(14)
        .position(|found| found == b"the first head");
    let mut file = bytes.clone();
    file[at.expect("it was written")] ^= 1;
    fs::write(data(directory.path()), &file).expect("room");
    let heads = |store: &Store| -> Vec<Bytes> {
        let found = load(store, "name");
        found.into_iter().map(|found| found.head).collect()
    };
    assert_eq!(heads(&store), ["the second head"]);
    assert!(run(store.removals_recorded()));
    drop(store);
    assert_eq!(heads(&open(directory.path())), ["the second head"]);
}

#[test]
fn what_is_known_of_a_name_is_not_read_again() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let bodies = [put(&store, "name", 1), put(&store, "name", 1)].map(|body| body.id);
    // In the queue, and on disk.
    for is_written in [false, true] {
        if is_written {
            store.flush();
        }
        assert!(store.may_have_others("name", &[]));
        assert!(store.may_have_others("name", &bodies[1..]));
        assert!(!store.may_have_others("name", &bodies));
        assert!(!store.may_have_others("other", &[]));
        let others = run(store.load("name", OWNER, &bodies[1..]));
        let others: Vec<_> = others.iter().map(|found| found.body.id).collect();
        assert_eq!(others, bodies[..1]);
    }
}

#[test]
fn variants_of_a_name_come_newest_first_and_are_removed_one_by_one() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let bodies: Vec<_> = (0..3)
        .map(|number| {
            let body = store.new_body(OWNER, Pool::Pull);
            store.put(&body, 0, slice("variant", number));
            store.put_head(&body, "name", Group::OTHER, Bytes::from(vec![number as u8]));
            // Some from the queue, some from the disk.
            if number == 1 {
                store.flush();
            }
            body
        })
        .collect();
    let heads = |store: &Store| -> Vec<u8> {
        load(store, "name")
            .iter()
            .map(|found| found.head[0])
            .collect()
    };
    assert_eq!(heads(&store), [2, 1, 0]);
    store.forget(&bodies[1]);
    store.flush();
    assert_eq!(heads(&store), [2, 0]);
    drop(store);
    let store = open(directory.path());
    assert_eq!(heads(&store), [2, 0]);
}

#[test]
fn bytes_that_changed_on_disk_are_never_served() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    for name in ["one", "two", "three"] {
        put(&store, name, 2);
    }
    put(&store, "single", 1);
    store.close();
    drop(store);
    let bytes = fs::read(data(directory.path())).expect("readable");
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("records") + 1;

    let seed = crate::io::simulated::Random::new(11);
    let mut random = seed;
    for round in 0..60 {
        let copy = tempfile::tempdir().expect("a temporary directory");
        copy_files(directory.path(), copy.path());
        if round % 2 == 0 {
            remove_checkpoints(copy.path());
        }
        let mut damaged = bytes.clone();
        match round % 4 {
            0 | 1 => {
                for _ in 0..3 {
                    damaged[random.below(end as u64) as usize] ^= 1 << random.below(8);
                }
            }
            2 => damaged.truncate(random.below(end as u64) as usize),
            _ => {
                // Pages that came from elsewhere in the file.
                let page = |number: u64| (number * 4096) as usize..(number * 4096 + 4096) as usize;
                let from = page(random.below(end as u64 / 4096));
                let to = page(random.below(end as u64 / 4096));
                damaged.copy_within(from, to.start);
            }
        }
        fs::write(data(copy.path()), &damaged).expect("room");
        let store = open(copy.path());
        for (name, slices) in [("one", 2), ("two", 2), ("three", 2), ("single", 1)] {
            let expected = whole(name, slices).expect("it was put");
            for (read, written) in find(&store, name).into_iter().flatten().zip(expected) {
                assert!(read.is_none() || read == written, "{name}, round {round}");
            }
        }
        // And goes on.
        put(&store, "new", 2);
        assert_eq!(find(&store, "new"), whole("new", 2), "round {round}");
    }
}

#[test]
fn files_of_another_store_are_none_of_this_one() {
    let [ours, theirs] = [0, 1].map(|_| tempfile::tempdir().expect("a temporary directory"));
    for (directory, name) in [(&ours, "ours"), (&theirs, "theirs")] {
        let store = open(directory.path());
        put(&store, name, 1);
        store.close();
    }
    for file in ["pull.data", "regions", "removals", "checkpoint-a", "groups"] {
        let copy = tempfile::tempdir().expect("a temporary directory");
        copy_files(ours.path(), copy.path());
        let from = theirs.path().join("store").join(file);
        fs::copy(from, copy.path().join("store").join(file)).expect("room");
        let store = open(copy.path());
        assert!(find(&store, "theirs").is_none(), "{file}");
        let is_there = find(&store, "ours").is_some();
        assert_eq!(
            is_there,
            !["pull.data", "regions"].contains(&file),
            "{file}"
        );
        put(&store, "new", 1);
        drop(store);
        assert!(find(&open(copy.path()), "new").is_some(), "{file}");
    }
}

#[test]
fn files_of_earlier_versions_go_and_those_of_later_ones_stay() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let region = directory.path().join("store/pull/region-0000000000000001");
    fs::create_dir_all(region.parent().expect("a directory")).expect("room");
    fs::write(&region, b"NCREGN01\x01\0\0\0\0\0\0\0").expect("room");
    let store = open(directory.path());
    put(&store, "name", 1);
    assert!(!region.parent().expect("a directory").exists());
    assert_eq!(store.disk_refusal(), None);
    store.close();
    drop(store);

    // A version that changes the format writes its number at the same place.
    let superblock = directory.path().join("store/superblock");
    let mut newer = fs::read(&superblock).expect("readable");
    for copy in newer.chunks_mut(4096) {
        copy[8] = 3;
    }
    fs::write(&superblock, &newer).expect("room");
    let before = fs::read(data(directory.path())).expect("readable");
    let store = open(directory.path());
    let refusal = store.disk_refusal().expect("the files are refused");
    assert!(refusal.contains("format 3"), "{refusal}");
    assert!(!store.disk_figures().expect("a disk").is_enabled);
    // It goes on without the disk.
    put(&store, "other", 1);
    assert!(!store.may_have("name") && load(&store, "name").is_empty());
    store.remove("name");
    store.close();
    drop(store);
    assert_eq!(fs::read(&superblock).expect("readable"), newer);
    assert_eq!(fs::read(data(directory.path())).expect("readable"), before);

    // The version of those files knows that a run has passed them by.
    for copy in newer.chunks_mut(4096) {
        copy[8] = 2;
    }
    fs::write(&superblock, &newer).expect("room");
    let store = open(directory.path());
    assert!(load(&store, "name")[0].is_doubtful);
    put(&store, "other", 1);
    assert!(!load(&store, "other")[0].is_doubtful);
}

#[test]
fn what_lay_there_while_the_tier_was_off_is_doubtful() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let is_doubtful = |name| {
        let store = open(directory.path());
        let is_doubtful = load(&store, name)[0].is_doubtful;
        store.close();
        is_doubtful
    };
    let store = open(directory.path());
    put(&store, "name", 1);
    store.close();
    drop(store);
    assert!(!is_doubtful("name"));
    crate::note_run_without_disk(directory.path());
    // For as long as it is there.
    assert!(is_doubtful("name") && is_doubtful("name"));
    let store = open(directory.path());
    put(&store, "newer", 1);
    drop(store);
    assert!(!is_doubtful("newer"));
    fs::remove_file(directory.path().join("store-session")).expect("it was made");
    assert!(is_doubtful("newer"));
}

#[test]
fn a_removal_that_was_not_recorded_leaves_doubt_after_a_quick_kill() {
    use crate::arena::Arena;
    use crate::budget::Budget;
    use crate::disk::recovery::Layout;
    use crate::disk::{DiskTier, LoadedBody};
    use crate::io::Patience;
    use crate::io::simulated::{Fault, Kind, SimulatedDisk};

    // With the mark, and without a place for it.
    for has_state_directory in [true, false] {
        let state = tempfile::tempdir().expect("a temporary directory");
        let disk = SimulatedDisk::new(1);
        let budget = Budget::new(4 << 20);
        let arena = Arc::new(Arena::new(budget.clone()));
        let start = |disk: &SimulatedDisk| {
            let layout = Layout {
                pool_bytes: [16 << 20, 0],
                state_directory: has_state_directory.then(|| state.path().to_owned()),
            };
            let files = disk.files();
            let patience = Patience::default();
            let tier =
                DiskTier::open_with("a test's".into(), files, layout, patience, &budget, &arena);
            tier.wait_until_loaded();
            tier
        };
        let doubts = |tier: &DiskTier, name: &str| -> Vec<bool> {
            let loaded = run(tier.load(name, &[]));
            let on_disk = loaded.iter().filter_map(|found| {
                matches!(found.body, LoadedBody::OnDisk { .. }).then_some(found.sequence)
            });
            on_disk.flatten().map(|at| tier.is_doubtful(at)).collect()
        };
        let tier = start(&disk);
        let (gone, _gone) = tokio::sync::mpsc::unbounded_channel();
        let body = StoredBody::new(crate::BodyId(1), OWNER, Pool::Pull, gone);
        tier.write_head(&body, "name", Group::OTHER, Bytes::from_static(b"head"));
        tier.flush();
        assert_eq!(doubts(&tier, "name"), [false]);

        for kind in [Kind::Write, Kind::Sync] {
            disk.fault_always(kind, Fault::Error(5));
        }
        tier.remove("name");
        assert!(!run(tier.removals_recorded()));
        disk.kill();
        let after = disk.copy(1);
        let next = start(&after);
        let found = doubts(&next, "name");
        assert!(found.iter().all(|is_doubtful| *is_doubtful), "{found:?}");
        assert_eq!(found.len(), 1, "it was removed in memory only");
        next.close();
    }
}

#[test]
fn a_run_that_ended_with_its_last_region_taken_leaves_room_to_the_next() {
    use crate::arena::Arena;
    use crate::budget::Budget;
    use crate::disk::DiskTier;
    use crate::io::Patience;
    use crate::io::simulated::{Fault, SimulatedDisk};

    let budget = Budget::new(64 << 20);
    let arena = Arc::new(Arena::new(budget.clone()));
    let start = |disk: &SimulatedDisk| {
        let (files, pools) = (disk.files(), [16 << 20, 0]);
        let tier = DiskTier::open_on_files(files, pools, Patience::default(), &budget, &arena);
        tier.wait_until_loaded();
        tier
    };
    let (gone, _gone) = tokio::sync::mpsc::unbounded_channel();
    let write = |tier: &DiskTier, numbers: std::ops::Range<u64>| {
        for number in numbers {
            let id = crate::BodyId(number);
            let body = StoredBody::new(id, OWNER, Pool::Pull, gone.clone());
            tier.write_slice(&body, 0, Bytes::from(vec![number as u8; SLICE_BYTES]));
            let (name, head) = (format!("name {number}"), Bytes::from_static(b"head"));
            tier.write_head(&body, &name, Group::OTHER, head);
            if number % 16 == 0 {
                tier.flush();
            }
        }
        tier.flush();
    };
    // As full as it gets.
    let full = SimulatedDisk::new(1);
    let tier = start(&full);
    write(&tier, 1..400);
    drop(tier);
    for operations in 0..12 {
        let disk = full.copy(operations);
        for _ in 0..4 {
            let tier = start(&disk);
            disk.fault_after(operations, Fault::Cut);
            write(&tier, 1000..1004);
            drop(tier);
            disk.cut();
        }

        let tier = start(&disk);
        write(&tier, 2000..2004);
        let dropped = tier.figures().dropped_writes;
        assert_eq!(dropped, 0, "cut after {operations} operations");
    }
}

#[test]
fn what_was_left_long_ago_without_an_end_is_doubtful() {
    use super::superblock::Superblock;
    use crate::io::{Files, RealFiles};

    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    put(&store, "name", 1);
    store.close();
    drop(store);
    for (silence, is_clean, expected) in [
        (3_600_000, true, false),
        (0, false, false),
        (-3_600_000, true, false),
        (3_000, false, true),
        (-3_600_000, false, true),
    ] {
        let files = RealFiles::new(directory.path().join("store"));
        let file = files.open("superblock").expect("it was made");
        let mut block = Superblock::read(&*file).expect("readable").expect("ours");
        let alive_ms = super::recovery::now_ms().saturating_add_signed(-silence);
        (block.alive_ms, block.is_clean) = (alive_ms, is_clean);
        block.write(&*file).expect("room");
        let store = open(directory.path());
        let found = load(&store, "name");
        assert_eq!(found[0].is_doubtful, expected, "{silence} {is_clean}");
        store.close();
    }
}

#[test]
fn what_waits_for_the_disk_is_bounded() {
    use crate::io::simulated::{Fault, Kind, SimulatedDisk};

    for (memory_bytes, most) in [
        (4 << 20, 8 << 20),
        (32 << 20, 32 << 20),
        (1 << 30, 64 << 20),
    ] {
        let disk = SimulatedDisk::new(1);
        disk.fault_always(Kind::Write, Fault::Hang);
        let patience = crate::io::Patience::default();
        let (store, _gone) = Store::open_on(disk.files(), memory_bytes, [16 << 20, 0], patience);
        assert_eq!(store.write_room(), most);
        let body = store.new_body(OWNER, Pool::Pull);
        let slices = (most / SLICE_BYTES as u64 + 10) as u32;
        (0..slices)
            .for_each(|index| store.put_on_disk(&body, index, Bytes::from(vec![0; SLICE_BYTES])));
        let shed = store.disk_figures().expect("a disk").dropped_writes;
        assert!(
            (10..=12).contains(&shed) && store.write_room() < SLICE_BYTES as u64 + 64,
            "{shed} shed of {slices}"
        );
        disk.release();
    }
}

fn push(store: &Store, name: &str, length: u64) -> Arc<StoredBody> {
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
    store.put_head(&body, name, Group::OTHER, Bytes::from(vec![b'h'; 1500]));
    // Fills wait for room in the queue; so does this.
    store.flush();
    body
}

fn is_whole(store: &Store, body: &StoredBody, length: u64) -> bool {
    (0..length.div_ceil(SLICE_BYTES as u64) as u32).all(|index| store.is_kept(body, index))
}

/// Lengths of bodies of about that size that fill a share to what is usable of it.
fn lengths_that_fit(share: u64, about: u64, seed: u64) -> Vec<u64> {
    let mut left = usable_bytes(share);
    let mut lengths = Vec::new();
    loop {
        let length =
            about / 2 + (lengths.len() as u64 + 1) * (seed * 2_654_435_761 % about) % about;
        match left.checked_sub(stored_bytes(length)) {
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
        let store = open_sized(directory.path(), 0, share);
        let mut kept: Vec<(Arc<StoredBody>, String, u64)> = Vec::new();
        for night in 0..4 {
            store.new_pin_epoch();
            // Half of the last night's bodies are wanted again: every other one, so that they
            // lie everywhere.
            let mut number = night;
            kept.retain(|_| {
                number += 1;
                number % 2 == 0
            });
            kept.iter().for_each(|(body, ..)| store.pin(body));
            let taken: u64 = kept.iter().map(|(.., length)| stored_bytes(*length)).sum();
            let mut left = usable_bytes(share) - taken;
            for length in lengths_that_fit(share, about, 7 + night) {
                let Some(rest) = left.checked_sub(stored_bytes(length)) else {
                    break;
                };
                left = rest;
                let name = format!("{night} {}", kept.len());
                kept.push((push(&store, &name, length), name, length));
            }
            let whole = kept
                .iter()
                .filter(|(body, _, length)| is_whole(&store, body, *length))
                .count();
            assert_eq!(
                whole,
                kept.len(),
                "share {share}, bodies of about {about}, night {night}"
            );
        }
        assert_eq!(store.disk_figures().expect("a disk").dropped_writes, 0);
        drop(store);
        let store = open_sized(directory.path(), 0, share);
        for (body, name, length) in &kept {
            let found = load(&store, name);
            let found = found.iter().find(|found| found.body.id == body.id);
            let found = found.expect("its head is there at the next start, too");
            assert!(is_whole(&store, &found.body, *length));
        }
    }
}

#[test]
fn what_does_not_fit_beside_wanted_bodies_is_not_written() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open_sized(directory.path(), 0, 8 << 20);
    let lengths = lengths_that_fit(8 << 20, 300_000, 7);
    let push_all = |round: &str| -> Vec<_> {
        let pushed = lengths.iter().enumerate();
        pushed
            .map(|(n, length)| (push(&store, &format!("{round} {n}"), *length), *length))
            .collect()
    };
    let are_whole = |bodies: &[(Arc<StoredBody>, u64)]| {
        bodies
            .iter()
            .all(|(body, length)| is_whole(&store, body, *length))
    };
    let first = push_all("first");
    let beyond: Vec<_> = (0..40)
        .map(|n| push(&store, &format!("beyond {n}"), 300_000))
        .collect();
    assert!(are_whole(&first), "what came first has gone");
    assert!(store.disk_figures().expect("a disk").dropped_writes > 30);
    assert!(!is_whole(&store, &beyond[39], 300_000));
    // Bodies that are removed make room, and so does a new wish.
    store.forget(&first[0].0);
    store.forget(&first[1].0);
    store.flush();
    let next = push(&store, "next", 250_000);
    assert!(is_whole(&store, &next, 250_000));
    store.new_pin_epoch();
    assert!(are_whole(&push_all("newest")));
}

#[test]
fn pools_do_not_push_each_other_out_and_take_the_space_that_they_may() {
    use std::os::unix::fs::MetadataExt;

    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open_sized(directory.path(), 24 << 20, 8 << 20);
    let pushed: Vec<_> = (0..12)
        .map(|n| push(&store, &format!("pushed {n}"), 300_000))
        .collect();
    for number in 0..200 {
        let body = store.new_body(OWNER, Pool::Pull);
        let name = format!("pulled {number}");
        store.put_on_disk(&body, 0, Bytes::from(vec![number as u8; SLICE_BYTES]));
        store.put_head(&body, &name, Group::OTHER, Bytes::from_static(b"head"));
        store.flush();
    }
    assert!(pushed.iter().all(|body| is_whole(&store, body, 300_000)));
    let figures = store.disk_figures().expect("a disk");
    assert_eq!(figures.dropped_writes, 0);
    assert!(figures.evictions > 0, "{figures:?}");
    let pulled = (0..200).filter(|n| !load(&store, &format!("pulled {n}")).is_empty());
    let pulled = pulled.count();
    assert!((50..96).contains(&pulled), "{pulled} of 200 in 24 MiB");

    let pull = fs::metadata(data(directory.path())).expect("it was made");
    let space = pull.blocks() * 512;
    assert!(
        space <= 24 << 20 && space.abs_diff(figures.pull_bytes) < 24 << 14,
        "{space} on disk, {figures:?}"
    );
}

#[test]
fn used_bodies_stay_while_others_pass() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open_sized(directory.path(), 32 << 20, 0);
    let names: Vec<_> = (0..10).map(|number| format!("used {number}")).collect();
    let put_one = |name: &str| {
        let body = store.new_body(OWNER, Pool::Pull);
        store.put_on_disk(&body, 0, Bytes::from(vec![1; 100_000]));
        store.put_head(&body, name, Group::OTHER, Bytes::from_static(b"head"));
    };
    names.iter().for_each(|name| put_one(name));
    for number in 0..2000 {
        put_one(&format!("passing {number}"));
        if number % 20 == 0 {
            store.flush();
            names.iter().for_each(|name| drop(load(&store, name)));
        }
    }
    store.flush();
    let left = names.iter().filter(|name| !load(&store, name).is_empty());
    assert_eq!(left.count(), 10);
    assert!(load(&store, "passing 0").is_empty());
}

/// Puts a body of one slice for a site.
fn put_for(store: &Store, site: &str, name: &str) -> Arc<StoredBody> {
    let body = store.new_body(OWNER, Pool::Pull);
    store.put(&body, 0, slice(name, 0));
    let head = Bytes::from(name.to_owned());
    store.put_head(&body, name, store.group(site), head);
    body
}

#[test]
fn a_purge_of_a_site_removes_and_counts_what_was_there_before_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    let nothing = Frontier::default();
    for number in 0..20 {
        put_for(&store, "www", &format!("www {number}"));
        put_for(&store, "video", &format!("video {number}"));
    }
    store.flush();
    let early = store.frontier().expect("open files");
    for number in 20..30 {
        put_for(&store, "www", &format!("www {number}"));
    }
    store.flush();
    let before = store.frontier().expect("open files");
    put_for(&store, "www", "www later");
    store.flush();

    let purged = |certain, uncertain| Purged {
        certain,
        uncertain,
        is_incomplete: false,
    };
    assert_eq!(
        store.count_on_disk(Some("www"), &before, &nothing),
        purged(30, 0)
    );
    assert_eq!(
        store.count_on_disk(Some("www"), &before, &early),
        purged(10, 20)
    );
    assert_eq!(
        store.count_on_disk(Some("none"), &before, &nothing),
        purged(0, 0)
    );
    assert_eq!(store.count_on_disk(None, &before, &nothing), purged(50, 0));
    assert_eq!(store.count_name("www 1", &nothing), purged(1, 0));
    assert_eq!(store.count_name("www 1", &early), purged(0, 1));
    assert_eq!(store.withdraw_name("www 1", &nothing), purged(1, 0));

    assert_eq!(
        store.purge_on_disk(Some("www"), &before, &nothing),
        purged(29, 0)
    );
    assert_eq!(
        store.purge_on_disk(Some("www"), &before, &nothing),
        purged(0, 0),
        "once"
    );
    assert!(!store.may_have("www 7") && store.may_have("www later"));
    assert_eq!(find(&store, "video 7"), whole("video 7", 1));
    assert_eq!(store.heads_on_disk("www"), 1);

    let all = store.frontier().expect("open files");
    assert_eq!(store.purge_on_disk(None, &all, &nothing), purged(21, 0));
    assert_eq!(store.disk_figures().expect("a disk").heads, 0);
}

#[test]
fn what_earlier_runs_wrote_is_known_as_theirs() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    put_for(&store, "www", "earlier");
    store.close();
    drop(store);
    let store = open(directory.path());
    put_for(&store, "www", "now");
    store.flush();
    let before = store.frontier().expect("open files");
    let purged = store.purge_on_disk(Some("www"), &before, &store.frontier_at_start());
    assert_eq!((purged.certain, purged.uncertain), (1, 1));
}

#[test]
fn space_of_purged_regions_is_given_back() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open_sized(directory.path(), 64 << 20, 0);
    let body = Bytes::from(vec![7; SLICE_BYTES]);
    for number in 0..120 {
        let stored = store.new_body(OWNER, Pool::Pull);
        store.put(&stored, 0, body.clone());
        let head = Bytes::from(format!("{number}"));
        store.put_head(&stored, &format!("{number}"), store.group("www"), head);
        store.flush();
    }
    let taken = || {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(data(directory.path()))
            .expect("a file")
            .blocks()
            * 512
    };
    let full = taken();
    assert!(full > 25 << 20, "{full}");
    let before = store.frontier().expect("open files");
    store.purge_on_disk(None, &before, &Frontier::default());
    store.give_back_space();
    store.flush();
    // The region that is being written stays.
    assert!(taken() <= full / 2, "{} of {full}", taken());
    assert_eq!(find(&store, "3"), None);
    put(&store, "new", 1);
    assert_eq!(find(&store, "new"), whole("new", 1));
}
