//! Random histories of the disk tier on a simulated disk. Their end is a kill or a power cut. What a
//! start finds is compared with what happened, and a start from checkpoint and log with one that
//! reads all records. `NEARCAST_HISTORIES` sets how many there are, `NEARCAST_HISTORIES_FROM` the seed
//! of the first:
//!
//!     NEARCAST_HISTORIES=1000 cargo test --release -p nearcast-store --lib histories

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use crate::io::Patience;
use crate::io::simulated::{Random, SimulatedDisk};
use crate::{Pool, Store, StoredBody};

const NAMES: u64 = 30;

/// A body as it was put: its version is in all of its bytes.
#[derive(Debug, Clone)]
struct Put {
    body: Arc<StoredBody>,
    version: u64,
    slices: u32,
}

/// What is known of a name.
#[derive(Debug, Default)]
struct Name {
    now: Option<Put>,
    /// Versions up to this one have been removed, and that was acknowledged.
    gone: u64,
    /// Single versions of which the same is true. Versions before one of them may be back: that they
    /// were forgotten was not acknowledged before a power cut.
    forgotten: Vec<u64>,
}

struct History {
    seed: u64,
    random: Random,
    disk: SimulatedDisk,
    names: BTreeMap<u64, Name>,
    versions: u64,
}

fn slice_of(name: u64, version: u64, index: u32) -> Bytes {
    let length = 40 + (name * 7919 + version * 104_729) as usize % 60_000;
    format!("{name} {version} {index};")
        .repeat(length / 8)
        .into()
}

fn head_of(name: u64, version: u64, update: u64) -> Bytes {
    format!("head {name} {version} {update}").into()
}

fn open(disk: &SimulatedDisk) -> Store {
    let (store, _gone) = Store::open_on(
        disk.files(),
        1 << 20,
        [20 << 20, 8 << 20],
        Patience::default(),
    );
    store.wait_until_loaded();
    store
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
        .block_on(future)
}

impl History {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            random: Random::new(seed),
            disk: SimulatedDisk::new(seed),
            names: (0..NAMES).map(|name| (name, Name::default())).collect(),
            versions: 0,
        }
    }

    fn step(&mut self, store: &Store) {
        let number = self.random.below(NAMES);
        match self.random.below(20) {
            0..=9 => self.put(store, number),
            10 | 11 => self.update(store, number),
            12 | 13 => self.forget(store, number),
            14 | 15 => {
                store.remove(&number.to_string());
                self.acknowledge(store, number, None);
            }
            16 | 17 => drop(run(store.load(&number.to_string(), 1, &[]))),
            18 => store.flush(),
            _ if self.random.one_in(3) => store.checkpoint(),
            _ => {}
        }
    }

    /// Puts a new body under a name, in place of the one before.
    fn put(&mut self, store: &Store, number: u64) {
        self.versions += 1;
        let version = self.versions;
        let pool = match number % 5 {
            0 => Pool::Pushed,
            _ => Pool::Pull,
        };
        let body = store.new_body(1, pool);
        let slices = match self.random.below(4) {
            0 => 3,
            _ => 1,
        };
        for index in 0..slices {
            store.put(&body, index, slice_of(number, version, index));
        }
        if self.random.one_in(8) {
            store.flush();
        }
        let name = number.to_string();
        store.put_head(
            &body,
            &name,
            store.group("site"),
            head_of(number, version, 0),
        );
        let put = Put {
            body,
            version,
            slices,
        };
        let known = self.names.get_mut(&number).expect("all names");
        if let Some(before) = known.now.replace(put) {
            store.forget(&before.body);
        }
    }

    fn update(&mut self, store: &Store, number: u64) {
        if let Some(put) = &self.names[&number].now {
            let head = head_of(number, put.version, self.random.below(100));
            let group = store.group("site");
            store.put_head(&put.body, &number.to_string(), group, head);
        }
    }

    fn forget(&mut self, store: &Store, number: u64) {
        let Some(put) = self.names[&number].now.clone() else {
            return;
        };
        if self.random.one_in(2) {
            store.forget(&put.body);
        } else {
            store.forget_head(&put.body);
        }
        self.acknowledge(store, number, Some(put.version));
    }

    /// Sometimes waits until the removal of a name is recorded.
    fn acknowledge(&mut self, store: &Store, number: u64, version: Option<u64>) {
        let is_recorded = self.random.one_in(2) && run(store.removals_recorded());
        let versions = self.versions;
        let known = self.names.get_mut(&number).expect("all names");
        known.now = None;
        match version {
            Some(version) if is_recorded => known.forgotten.push(version),
            None if is_recorded => known.gone = versions,
            _ => {}
        }
    }

    /// What a store has under all names, each byte checked.
    fn check(&self, store: &Store) -> HashMap<u64, Vec<(Bytes, Vec<bool>)>> {
        let mut all = HashMap::new();
        for (number, known) in &self.names {
            let mut bodies: Vec<_> = run(store.load(&number.to_string(), 1, &[]))
                .iter()
                .map(|found| {
                    let text = std::str::from_utf8(&found.head).expect("a head as it was put");
                    let words: Vec<_> = text.split(' ').collect();
                    assert_eq!(words[1], number.to_string(), "seed {}", self.seed);
                    let version: u64 = words[2].parse().expect("a version");
                    assert!(
                        version > known.gone && !known.forgotten.contains(&version),
                        "seed {}: {text} is back after version {} was removed",
                        self.seed,
                        known.gone
                    );
                    let slices = (0..3).map(|index| {
                        let read = run(store.read_slice(&found.body, index));
                        if let Some(read) = &read {
                            let expected = slice_of(*number, version, index);
                            assert_eq!(*read, expected, "seed {}", self.seed);
                        }
                        read.is_some()
                    });
                    (found.head.clone(), slices.collect())
                })
                .collect();
            bodies.sort();
            all.insert(*number, bodies);
        }
        all
    }

    /// After a kill, everything that was written is there.
    fn check_all_there(&self, found: &HashMap<u64, Vec<(Bytes, Vec<bool>)>>) {
        for (number, known) in &self.names {
            let Some(put) = &known.now else { continue };
            let is_there = found[number].iter().any(|(head, slices)| {
                let expected = format!("head {number} {} ", put.version);
                head.starts_with(expected.as_bytes())
                    && slices[..put.slices as usize]
                        .iter()
                        .all(|is_there| *is_there)
            });
            assert!(
                is_there,
                "seed {}: version {} of {number} is lost: {:?}",
                self.seed, put.version, found[number]
            );
        }
    }

    fn run(mut self, lives: u64, steps: u64) {
        let mut has_left = false;
        for life in 0..lives {
            let store = open(&self.disk);
            for _ in 0..self.random.below(steps) {
                self.step(&store);
            }
            let has_power_cut = self.random.one_in(2);
            if !has_power_cut {
                store.flush();
            }
            // What was reclaimed or left out is not lost.
            let figures = store.disk_figures().expect("a disk");
            has_left |= figures.evictions + figures.unadmitted + figures.dropped_writes > 0;
            match self.random.below(3) {
                0 => store.close(),
                _ if has_power_cut => self.disk.cut(),
                _ => self.disk.kill(),
            }
            drop(store);

            let scanned = self.disk.copy(self.seed);
            for name in crate::checkpoint::NAMES {
                scanned.set_bytes(name, &[]);
            }
            let by_scan = self.check(&open(&scanned));
            let by_checkpoint = self.check(&open(&self.disk.copy(self.seed)));
            assert_eq!(by_checkpoint, by_scan, "seed {}, life {life}", self.seed);
            if !has_power_cut && !has_left {
                self.check_all_there(&by_scan);
            } else {
                self.forget_lost(&by_scan);
            }
        }
    }

    /// What a power cut has taken is no more expected.
    fn forget_lost(&mut self, found: &HashMap<u64, Vec<(Bytes, Vec<bool>)>>) {
        for (number, known) in &mut self.names {
            let is_lost = known.now.as_ref().is_some_and(|put| {
                let expected = format!("head {number} {} ", put.version);
                !found[number].iter().any(|(head, slices)| {
                    head.starts_with(expected.as_bytes())
                        && slices[..put.slices as usize]
                            .iter()
                            .all(|is_there| *is_there)
                })
            });
            if is_lost {
                known.now = None;
            }
        }
    }
}

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn histories_end_as_they_were_and_a_checkpoint_finds_what_a_scan_finds() {
    let first = number_of("NEARCAST_HISTORIES_FROM").unwrap_or(1);
    let count = number_of("NEARCAST_HISTORIES").unwrap_or(8);
    for seed in first..first + count {
        History::new(seed).run(4, 150);
    }
}
