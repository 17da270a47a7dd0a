//! Histories of the whole store on a disk that is cut, killed, broken, full and hung.
//!
//! A history is a seeded sequence of what an edge does: bodies are stored, replaced, read, removed
//! one by one and many at once, and the store ends in one of several ways, again and again. A model
//! knows what may be found. After each start everything is loaded and compared:
//!
//! - each head and slice is what was stored under that name, byte by byte;
//! - nothing comes back whose removal was recorded ([`Store::removals_recorded`]); where it could not
//!   be recorded and the disk answered again before the end, it comes back as doubtful at most.
//!
//! `cargo test -p nearcast-store --test faults` runs some two hundred of them;
//! `NEARCAST_HISTORIES=10000 cargo test --release -p nearcast-store --test faults` more, from the seed
//! `NEARCAST_SEED` on. A failure says its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Runtime;

use nearcast_store::io::simulated::{Fault, Kind, Random, SimulatedDisk};
use nearcast_store::io::{DiskState, Patience};
use nearcast_store::{Pool, SLICE_BYTES, Store, StoredBody};

/// Names of a history.
const NAMES: u64 = 24;
/// Steps between two starts.
const STEPS: u64 = 40;
/// Starts of a history.
const STARTS: u64 = 4;
/// So little that most reads are of the disk.
const MEMORY_BYTES: u64 = 64 << 10;
const PULL_BYTES: u64 = 6 << 20;
const PUSHED_BYTES: u64 = 4 << 20;
const SITE: &str = "www";

/// How often and from which seed on.
fn histories(usual: u64) -> std::ops::Range<u64> {
    let of_environment = |name: &str, usual: u64| {
        std::env::var(name).map_or(usual, |text| text.parse().expect("a number"))
    };
    let first = of_environment("NEARCAST_SEED", 1);
    first..first + of_environment("NEARCAST_HISTORIES", usual)
}

/// Histories that run at once: they wait most of their time.
const AT_ONCE: usize = 4;

/// Runs a history for each seed. A panic says the seed.
fn for_each_seed(usual: u64, history: impl Fn(u64) + Sync) {
    let seeds = Mutex::new(histories(usual));
    let failed = Mutex::new(None);
    let run = || {
        while failed.lock().expect("no panic").is_none() {
            let Some(seed) = seeds.lock().expect("no panic").next() else {
                break;
            };
            if catch_unwind(AssertUnwindSafe(|| history(seed))).is_err() {
                *failed.lock().expect("no panic") = Some(seed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(run);
        }
    });
    if let Some(seed) = failed.into_inner().expect("no panic") {
        panic!("the history with seed {seed} failed (NEARCAST_SEED={seed} NEARCAST_HISTORIES=1)");
    }
}

/// The bytes of a slice.
fn slice_of(name: u64, version: u64, index: u32, length: usize) -> Bytes {
    let mut random = Random::new(name << 40 ^ version << 8 ^ u64::from(index));
    let word = random.number().to_le_bytes();
    let mut bytes: Vec<u8> = word.iter().copied().cycle().take(length).collect();
    // Each sector is of its own, so that none can stand for another.
    for (n, sector) in bytes.chunks_mut(512).enumerate() {
        sector[0] ^= n as u8;
        if sector.len() > 1 {
            sector[1] ^= (n >> 8) as u8;
        }
    }
    bytes.into()
}

fn lengths_of(length: usize) -> Vec<usize> {
    let whole = length / SLICE_BYTES;
    let mut lengths = vec![SLICE_BYTES; whole];
    if !length.is_multiple_of(SLICE_BYTES) {
        lengths.push(length % SLICE_BYTES);
    }
    lengths
}

/// A head names everything of its body.
fn head_of(name: u64, version: u64, length: usize) -> Bytes {
    let mut head = format!("{name} {version} {length} ");
    let more = (name * 31 + version * 17) % 1500;
    for n in 0..more {
        let _ = write!(head, "{}", n % 10);
    }
    head.into()
}

fn parse(head: &[u8]) -> (u64, u64, usize) {
    let text = std::str::from_utf8(head).expect("a head is text");
    let mut fields = text.split(' ');
    let mut number = || -> u64 {
        let field = fields.next().expect("three numbers");
        field.parse().expect("a number")
    };
    let (name, version, length) = (number(), number(), number() as usize);
    assert_eq!(head, head_of(name, version, length), "a head is whole");
    (name, version, length)
}

fn url_of(name: u64) -> String {
    format!("http://www.test/{name}")
}

/// What may be found under a name: versions.
#[derive(Debug, Default, Clone)]
struct Known {
    newest: u64,
    /// Removed in this run.
    hidden: BTreeSet<u64>,
    /// Removed in this run, and that could not be recorded.
    unrecorded: BTreeSet<u64>,
    /// Removed, and that was recorded.
    removed: BTreeSet<u64>,
    /// Removed; that could not be recorded, and the disk has answered since then.
    doubtful: BTreeSet<u64>,
    body: Option<(u64, Arc<StoredBody>)>,
}

/// One history.
struct History {
    random: Random,
    disk: SimulatedDisk,
    runtime: Runtime,
    store: Option<Store>,
    names: BTreeMap<u64, Known>,
    log: Vec<String>,
    /// Operations failed in a disk that goes on. A record whose write failed may lie on it
    /// nevertheless; where that could not be recorded, all is doubtful.
    has_failed: bool,
    patience: Patience,
}

impl Drop for History {
    fn drop(&mut self) {
        self.disk.release();
        if std::thread::panicking() {
            for line in &self.log {
                #[expect(clippy::print_stderr, reason = "what a failed history did")]
                {
                    eprintln!("{line}");
                }
            }
        }
    }
}

impl History {
    fn new(seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        Self {
            random: Random::new(seed),
            disk: SimulatedDisk::new(seed ^ 0x5eed),
            runtime,
            store: None,
            names: (0..NAMES).map(|name| (name, Known::default())).collect(),
            log: Vec::new(),
            has_failed: false,
            patience: Patience {
                answer: Duration::from_millis(100),
                prompt: Duration::from_millis(50),
                background: Duration::from_millis(200),
                probe_first: Duration::from_millis(10),
                ..Patience::default()
            },
        }
    }

    fn note(&mut self, text: impl Into<String>) {
        let at = self.disk.operations();
        self.log.push(format!("{at}: {}", text.into()));
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("it is open")
    }

    /// Opens the store on what the disk has, and waits until it has found everything.
    fn open(&mut self) {
        self.open_at_once();
        self.store().wait_until_loaded();
    }

    fn open_at_once(&mut self) {
        self.store = None;
        let shares = [PULL_BYTES, PUSHED_BYTES];
        let (store, _) = Store::open_on(self.disk.files(), MEMORY_BYTES, shares, self.patience);
        self.store = Some(store);
        self.note("opened");
    }

    fn put(&mut self, name: u64) {
        let length = match self.random.below(10) {
            0 => SLICE_BYTES + self.random.below(2 * SLICE_BYTES as u64) as usize,
            1 => 0,
            2..5 => 1 + self.random.below(200_000) as usize,
            _ => 1 + self.random.below(20_000) as usize,
        };
        let pool = match self.random.below(8) {
            0 => Pool::Pushed,
            _ => Pool::Pull,
        };
        let version = self.names[&name].newest + 1;
        // Whoever stores has looked first, and replaces what there was.
        let mut replaced = self.load(name);
        replaced.extend(self.names[&name].body.clone());
        self.note(format!("put {name} version {version}, {length} bytes"));
        let store = self.store();
        let body = store.new_body(u128::from(name), pool);
        let mut indices: Vec<_> = (0..).zip(lengths_of(length)).collect();
        let group = store.group(SITE);
        let head = head_of(name, version, length);
        // Heads are stored before the body has ended, or after it.
        let is_early = version.is_multiple_of(3);
        if is_early {
            store.put_head(&body, &url_of(name), group, head.clone());
        }
        if version.is_multiple_of(5) {
            indices.reverse();
        }
        for (index, length) in indices {
            store.put(&body, index, slice_of(name, version, index, length));
        }
        if !is_early {
            store.put_head(&body, &url_of(name), group, head);
        }
        let known = self.names.get_mut(&name).expect("all names are known");
        known.newest = version;
        known.body = Some((version, body));
        known
            .hidden
            .extend(replaced.iter().map(|(version, _)| *version));
        for (_, body) in replaced {
            self.store().forget(&body);
        }
    }

    /// What is found under a name, by version.
    fn load(&self, name: u64) -> Vec<(u64, Arc<StoredBody>)> {
        let url = url_of(name);
        let load = self.store().load(&url, u128::from(name), &[]);
        let found = self.runtime.block_on(load).into_iter();
        found
            .map(|found| (parse(&found.head).1, found.body))
            .collect()
    }

    /// Removes names, as an unsafe request or a purge does, and waits until that is recorded.
    fn remove(&mut self, names: &[u64]) {
        for name in names {
            self.store().remove(&url_of(*name));
            let known = self.names.get_mut(name).expect("all names are known");
            known.hidden.extend(1..=known.newest);
            known.body = None;
        }
        self.record();
        self.note(format!("removed {names:?}"));
    }

    /// Waits until what was removed is recorded.
    fn record(&mut self) -> bool {
        let store = self.store.as_ref().expect("it is open");
        let is_recorded = self.runtime.block_on(store.removals_recorded());
        for known in self.names.values_mut() {
            let new = known.hidden.difference(&known.unrecorded);
            if is_recorded {
                known.removed.extend(new);
            } else {
                let new: Vec<_> = new
                    .filter(|v| !known.removed.contains(v))
                    .copied()
                    .collect();
                known.unrecorded.extend(new);
            }
        }
        self.note(if is_recorded {
            "recorded"
        } else {
            "not recorded"
        });
        is_recorded
    }

    /// Loads a name, and compares what is found. How many bodies of the newest version were found
    /// whole.
    fn check(&mut self, name: u64) -> usize {
        let store = self.store.as_ref().expect("it is open");
        let found = self
            .runtime
            .block_on(store.load(&url_of(name), u128::from(name), &[]));
        let known = &self.names[&name];
        let mut whole = 0;
        let mut before = u64::MAX;
        for found in found {
            let (head_name, version, length) = parse(&found.head);
            assert_eq!(head_name, name, "another name's head");
            assert!(
                version <= known.newest,
                "{name}: version {version}, {known:?}"
            );
            assert!(
                version < before,
                "{name}: newest first, {version} after {before}"
            );
            before = version;
            assert!(
                !known.removed.contains(&version) || found.is_doubtful && self.has_failed,
                "{name}: version {version} is back, doubtful: {}, {known:?}",
                found.is_doubtful
            );
            assert!(
                !known.hidden.contains(&version),
                "{name}: version {version} was removed in this run, {known:?}"
            );
            assert!(
                !known.doubtful.contains(&version) || found.is_doubtful,
                "{name}: version {version} is not doubtful, {known:?}"
            );
            let mut is_whole = true;
            for (index, length) in (0..).zip(lengths_of(length)) {
                let store = self.store.as_ref().expect("it is open");
                let read = store.get_memory(&found.body, index);
                let read =
                    read.or_else(|| self.runtime.block_on(store.read_slice(&found.body, index)));
                match read {
                    Some(bytes) => assert!(
                        bytes == slice_of(name, version, index, length),
                        "{name}: slice {index} of version {version} has other bytes"
                    ),
                    None => is_whole = false,
                }
            }
            whole += usize::from(is_whole && version == known.newest);
        }
        whole
    }

    fn check_all(&mut self) -> usize {
        (0..NAMES).map(|name| self.check(name)).sum()
    }

    fn step(&mut self) {
        let name = self.random.below(NAMES);
        match self.random.below(20) {
            0..9 => self.put(name),
            9..12 => self.remove(&[name]),
            12 => {
                let many: Vec<u64> = (0..NAMES).filter(|n| n % 3 == name % 3).collect();
                self.remove(&many);
            }
            13 => {
                self.record();
            }
            14 => std::thread::sleep(Duration::from_millis(self.random.below(4))),
            _ => {
                self.check(name);
            }
        }
    }

    /// The run is over, whatever it left: what was removed in it and not recorded may come back.
    fn forget_the_run(&mut self) {
        self.store = None;
        for known in self.names.values_mut() {
            known.hidden.clear();
            known.unrecorded.clear();
            known.body = None;
        }
    }

    /// Waits until the disk answers.
    fn wait_until_on(&self) {
        let begun = Instant::now();
        while self.store().disk_state() != Some(DiskState::On) {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "the disk is not used: {:?}",
                self.store().disk_state()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn power_cuts() {
    for_each_seed(100, |seed| {
        let mut history = History::new(seed);
        for _ in 0..STARTS {
            history.open();
            history.check_all();
            // At a numbered operation, or between two steps.
            let at = history.random.below(STEPS * 6);
            history.disk.fault_after(at, Fault::Cut);
            let steps = history.random.below(STEPS);
            for _ in 0..steps {
                history.step();
            }
            if history.random.one_in(5) {
                history.note("close");
                history.store().close();
            }
            history.note("cut");
            history.disk.cut();
            history.forget_the_run();
        }
        history.open();
        history.check_all();
    });
}

#[test]
fn kills_and_ends_in_order() {
    let (mut kept, mut of) = (0, 0);
    for seed in histories(15) {
        let mut history = History::new(seed);
        for _ in 0..STARTS {
            history.open();
            history.check_all();
            for _ in 0..history.random.below(STEPS) {
                history.step();
            }
            // What has been written survives a kill, and all of it an end in order.
            history.store().flush();
            let stored = history.check_all();
            if history.random.one_in(2) {
                history.note("close");
                history.store().close();
            } else {
                history.note("kill");
            }
            history.disk.kill();
            for known in history.names.values_mut() {
                // The process was killed, the disk was not: a removal that was asked for before the
                // flush is on disk.
                known.removed.extend(&known.hidden);
            }
            history.forget_the_run();
            history.open();
            kept += history.check_all();
            of += stored;
        }
    }
    // A slice may have left the disk that memory still had.
    assert!(kept * 100 >= of * 99, "{kept} of {of} are found again");
}

#[test]
fn errors_hangs_and_full_disks() {
    let kinds = [Kind::Read, Kind::Write, Kind::Sync];
    for_each_seed(12, |seed| {
        let mut history = History::new(seed);
        history.open();
        for _ in 0..STEPS {
            history.step();
        }
        let kind = kinds[history.random.below(3) as usize];
        let fault = match history.random.below(3) {
            0 => Fault::Hang,
            1 => Fault::Error(libc::EIO),
            _ => Fault::Error(libc::ENOSPC),
        };
        history.note(format!("from now on each {kind:?} has {fault:?}"));
        if fault == Fault::Error(libc::ENOSPC) {
            history.disk.set_capacity(0);
        } else {
            history.disk.fault_always(kind, fault);
        }
        history.has_failed = true;
        let begun = Instant::now();
        for _ in 0..STEPS {
            history.step();
        }
        // Each step that waits for a hung disk would take 0.1 s or more.
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "the disk is left"
        );
        let removed: Vec<u64> = (0..NAMES).filter(|name| name % 2 == 0).collect();
        history.remove(&removed);

        history.disk.set_capacity(u64::MAX);
        history.disk.release();
        history.note("it answers again");
        history.wait_until_on();
        for _ in 0..STEPS / 2 {
            history.step();
        }
        history.store().flush();
        history.record();
        // The next sign of life of the store says what could not be recorded.
        std::thread::sleep(Duration::from_millis(1500));
        for known in history.names.values_mut() {
            known.doubtful.extend(&known.hidden);
        }
        history.note("kill");
        history.disk.kill();
        history.forget_the_run();
        history.open();
        history.check_all();
    });
}

#[test]
fn one_fault_at_any_operation() {
    let faults = [
        Fault::Lost,
        Fault::Misdirected,
        Fault::FlippedBit,
        Fault::Error(libc::EIO),
        Fault::Error(libc::ENOSPC),
        Fault::Hang,
    ];
    for_each_seed(30, |seed| {
        let mut history = History::new(seed);
        history.open();
        let fault = faults[(seed % faults.len() as u64) as usize];
        history.has_failed = true;
        let is_lie = matches!(fault, Fault::Lost | Fault::Misdirected | Fault::FlippedBit);
        for _ in 0..STEPS {
            if history.random.one_in(8) {
                let at = history.random.below(20);
                history.disk.fault_after(at, fault);
            }
            history.step();
        }
        if !is_lie {
            history.disk.release();
            history.wait_until_on();
        }
        history.store().flush();
        history.disk.kill();
        history.forget_the_run();
        if is_lie {
            // A disk that says that it wrote what it did not may bring removed responses back, and
            // nobody can know. Bytes are right nevertheless.
            for known in history.names.values_mut() {
                known.removed.clear();
            }
        }
        history.open();
        history.check_all();
    });
}

#[test]
fn damage_by_other_hands() {
    for_each_seed(40, |seed| {
        let mut history = History::new(seed);
        history.open();
        for _ in 0..STEPS {
            history.step();
        }
        history.store().flush();
        if seed % 2 == 0 {
            history.store().close();
        }
        history.disk.kill();
        history.forget_the_run();
        // Removals are on the disk that is damaged, so they may be lost with it.
        for known in history.names.values_mut() {
            known.removed.clear();
        }

        let names = history.disk.names();
        let pick = |random: &mut Random| names[random.below(names.len() as u64) as usize].clone();
        let (one, other) = (pick(&mut history.random), pick(&mut history.random));
        let mut bytes = history.disk.bytes(&one);
        let length = bytes.len() as u64;
        match history.random.below(5) {
            0 => {
                for _ in 0..200 {
                    let at = history.random.below(length.max(1));
                    history.disk.flip(&one, at, (at % 8) as u8);
                }
            }
            1 => {
                let end = history.random.below(length + 1) as usize;
                history.disk.set_bytes(&one, &bytes[..end]);
            }
            2 => {
                history.disk.set_bytes(&one, &history.disk.bytes(&other));
                history.disk.set_bytes(&other, &bytes);
            }
            3 => {
                // A part of the file is where another part was.
                let step = 4096;
                let from = history.random.below(length / step + 1) * step;
                let to = history.random.below(length / step + 1) * step;
                let count = (length - from.max(to)).min(1 << 20) as usize;
                let (from, to) = (from as usize, to as usize);
                if count > 0 {
                    bytes.copy_within(from..from + count, to);
                }
                history.disk.set_bytes(&one, &bytes);
            }
            _ => history.disk.set_bytes(&one, &[]),
        }
        history.note(format!("damage to {one} ({other})"));
        history.open();
        history.check_all();
        // It works on.
        if history.store().disk_state() == Some(DiskState::On) {
            for _ in 0..STEPS {
                history.step();
            }
        }
    });
}

#[test]
fn a_start_on_a_disk_that_hangs_waits_for_nothing() {
    for_each_seed(6, |seed| {
        let mut history = History::new(seed);
        history.open();
        for _ in 0..STEPS {
            history.step();
        }
        history.store().flush();
        history.disk.kill();
        history.forget_the_run();

        for kind in [Kind::Read, Kind::Write, Kind::Sync] {
            history.disk.fault_always(kind, Fault::Hang);
        }
        history.open_at_once();
        for name in 0..NAMES {
            assert_eq!(history.check(name), 0, "the disk answers nothing");
        }
        history.put(0);
        let removed: Vec<u64> = (1..NAMES).filter(|name| name % 2 == 0).collect();
        history.remove(&removed);

        history.disk.release();
        history.wait_until_on();
        history.store().wait_until_loaded();
        history.check_all();
        // What was removed before the disk answered is not served later either.
        std::thread::sleep(Duration::from_millis(1500));
        for known in history.names.values_mut() {
            known.doubtful.extend(&known.hidden);
        }
        history.disk.kill();
        history.forget_the_run();
        history.open();
        history.check_all();
    });
}
