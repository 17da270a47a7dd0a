//! Replays a trace through policies and prints what each of them missed. `tests/bench/traces.py`
//! writes the traces, runs it and prints the tables.
//!
//!     policies TRACE CAPACITY POLICY...      one line of JSON a policy
//!     policies --hits FILE TRACE CAPACITY POLICY    also a byte a request, 1 for a hit
//!
//! `memory` and `disk` are the edge's own policies, driven as the two tiers drive them: whole
//! responses, or slices where the trace has them, under a limit of bytes; on disk records in regions
//! that are reclaimed whole. The others are here so that an outside judge can check this program.

#![allow(clippy::print_stdout)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::error::Error;
use std::fs;

use nearcast_store::policy::{DiskPolicy, Fate, MemoryPolicy, Stream};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of a request in a trace: key, bytes, mark, bytes of the body, little-endian.
const RECORD_BYTES: usize = 24;
/// Regions of a pool on disk, at most, and the size of a region: as the disk tier has them.
const REGION_BYTES_MIN: u64 = 4 << 20;
const REGION_BYTES_MAX: u64 = 64 << 20;
const REGIONS: u64 = 64;
/// Bytes of a slice.
const SLICE_BYTES: u64 = nearcast_store::SLICE_BYTES as u64;
/// Uses that a place in the directory counts.
const USES_MAX: u8 = 3;

#[derive(Clone, Copy)]
struct Request {
    key: u64,
    bytes: u64,
    is_marked: bool,
    body_bytes: u64,
}

/// A cache that is asked for a key and stores what it misses.
trait Cache {
    /// Bytes that the request misses. What it misses is stored.
    fn request(&mut self, request: &Request) -> u64;

    /// Further figures of the policy, by name.
    fn figures(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let hits_file = (arguments.first().map(String::as_str) == Some("--hits")).then(|| {
        arguments.remove(0);
        arguments.remove(0)
    });
    let [trace, capacity, policies @ ..] = arguments.as_slice() else {
        return Err("usage: policies [--hits FILE] TRACE CAPACITY POLICY...".into());
    };
    let trace = read(trace)?;
    let capacity = capacity.parse()?;
    for name in policies {
        let mut cache = cache(name, capacity)?;
        let missed: Vec<u64> = trace.iter().map(|request| cache.request(request)).collect();
        report(name, &trace, &missed, cache.as_ref());
        if let Some(file) = &hits_file {
            let hits: Vec<u8> = missed.iter().map(|bytes| u8::from(*bytes == 0)).collect();
            fs::write(file, hits)?;
        }
    }
    Ok(())
}

fn read(file: &str) -> Result<Vec<Request>, Box<dyn Error>> {
    let bytes = fs::read(file)?;
    let number = |at: &[u8]| {
        let mut value = [0; 8];
        value[..at.len()].copy_from_slice(at);
        u64::from_le_bytes(value)
    };
    Ok(bytes
        .chunks_exact(RECORD_BYTES)
        .map(|record| Request {
            key: number(&record[..8]),
            bytes: number(&record[8..12]),
            is_marked: number(&record[12..16]) != 0,
            body_bytes: number(&record[16..24]),
        })
        .collect())
}

fn cache(name: &str, capacity: u64) -> Result<Box<dyn Cache>, String> {
    Ok(match name {
        "lru" => Box::new(Lru::new(capacity)),
        "s3fifo" => Box::new(S3Fifo::new(capacity)),
        "sieve" => Box::new(Sieve::new(capacity)),
        "memory" => Box::new(Memory::new(capacity)),
        "disk" => Box::new(Disk::new(capacity)),
        _ => return Err(format!("no policy {name}")),
    })
}

fn report(name: &str, trace: &[Request], missed: &[u64], cache: &dyn Cache) {
    let misses = || trace.iter().zip(missed).filter(|(_, bytes)| **bytes != 0);
    let missed_bytes: u64 = missed.iter().sum();
    let marked = trace.iter().filter(|request| request.is_marked).count();
    let marked_misses = misses().filter(|(request, _)| request.is_marked).count();
    let misses = misses().count();
    let figures: String = cache
        .figures()
        .iter()
        .map(|(name, value)| format!(", \"{name}\": {value}"))
        .collect();
    println!(
        "{{\"policy\": \"{name}\", \"requests\": {}, \"misses\": {misses}, \
         \"missed_bytes\": {missed_bytes}, \"marked\": {marked}, \
         \"marked_misses\": {marked_misses}{figures}}}",
        trace.len(),
    );
}

/// The slices of a request for a whole body; a request for a slice stays as it is.
fn slices(request: &Request) -> impl Iterator<Item = Request> + use<> {
    let request = *request;
    (0..request.bytes.div_ceil(SLICE_BYTES).max(1)).map(move |index| Request {
        key: request.key ^ index << 48,
        bytes: (request.bytes - index * SLICE_BYTES).min(SLICE_BYTES),
        ..request
    })
}

/// The policy of the memory tier, driven as the tier does: an entry goes in, then victims go until the
/// bytes fit.
struct Memory {
    capacity: u64,
    bytes: u64,
    policy: MemoryPolicy,
    slots: HashMap<u64, u32>,
    entries: Vec<(u64, u64)>,
    uses: Vec<u32>,
    free: Vec<u32>,
}

impl Memory {
    fn new(capacity: u64) -> Self {
        Self {
            capacity,
            bytes: 0,
            policy: MemoryPolicy::default(),
            slots: HashMap::new(),
            entries: Vec::new(),
            uses: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl Cache for Memory {
    fn request(&mut self, request: &Request) -> u64 {
        slices(request).map(|slice| self.slice(&slice)).sum()
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("entries", self.policy.len() as u64),
            ("policy_bytes", self.policy.memory_bytes() as u64),
        ]
    }
}

impl Memory {
    fn slice(&mut self, request: &Request) -> u64 {
        if let Some(slot) = self.slots.get(&request.key) {
            self.uses[*slot as usize] += 1;
            return 0;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push((0, 0));
            self.uses.push(0);
            self.uses.len() as u32 - 1
        });
        self.slots.insert(request.key, slot);
        self.entries[slot as usize] = (request.key, request.bytes);
        self.uses[slot as usize] = 0;
        self.bytes += request.bytes;
        let key = xxh3_64(&request.key.to_le_bytes());
        self.policy
            .insert(slot, key, request.bytes as u32, request.body_bytes);
        while self.bytes > self.capacity {
            let uses = &mut self.uses;
            let victim = self
                .policy
                .evict(|slot| Some(std::mem::take(&mut uses[slot as usize])))
                .expect("entries may always be evicted here");
            let (key, bytes) = self.entries[victim as usize];
            self.slots.remove(&key);
            self.free.push(victim);
            self.bytes -= bytes;
        }
        request.bytes
    }
}

/// The policy of a pool on disk, driven as the log does.
struct Disk {
    policy: DiskPolicy,
    region_bytes: u64,
    regions_max: usize,
    streams: [VecDeque<Region>; 2],
    places: HashMap<u64, Place>,
    written_bytes: u64,
    rewritten_bytes: u64,
    refused: u64,
    next_region: u64,
}

#[derive(Default)]
struct Region {
    number: u64,
    bytes: u64,
    records: Vec<(u64, u64)>,
}

struct Place {
    region: u64,
    uses: u8,
}

impl Disk {
    fn new(capacity: u64) -> Self {
        let region_bytes = (capacity / REGIONS).clamp(REGION_BYTES_MIN, REGION_BYTES_MAX);
        let mut disk = Self {
            policy: DiskPolicy::new(capacity),
            region_bytes,
            regions_max: (capacity / region_bytes) as usize,
            streams: [VecDeque::new(), VecDeque::new()],
            places: HashMap::new(),
            written_bytes: 0,
            rewritten_bytes: 0,
            refused: 0,
            next_region: 0,
        };
        disk.open(Stream::Probation);
        disk.open(Stream::Main);
        disk
    }

    fn regions(&self) -> usize {
        self.streams.iter().map(VecDeque::len).sum()
    }

    fn open(&mut self, stream: Stream) {
        self.next_region += 1;
        self.streams[stream as usize].push_back(Region {
            number: self.next_region,
            ..Region::default()
        });
    }

    fn append(&mut self, stream: Stream, key: u64, bytes: u64, uses: u8) {
        let region = self.streams[stream as usize].back().expect("one is open");
        if region.bytes + bytes > self.region_bytes {
            self.open(stream);
        }
        let region = self.streams[stream as usize]
            .back_mut()
            .expect("just opened");
        region.bytes += bytes;
        region.records.push((key, bytes));
        let region = region.number;
        self.places.insert(key, Place { region, uses });
        self.written_bytes += bytes;
    }

    fn slice(&mut self, request: &Request) -> u64 {
        if let Some(place) = self.places.get_mut(&request.key) {
            place.uses = (place.uses + 1).min(USES_MAX);
            return 0;
        }
        let is_full = self.regions() >= self.regions_max;
        let hash = xxh3_64(&request.key.to_le_bytes());
        match self.policy.place(hash, request.bytes as u32, is_full) {
            Some(stream) => self.append(stream, request.key, request.bytes, 0),
            None => self.refused += 1,
        }
        while self.regions() > self.regions_max {
            self.reclaim();
        }
        request.bytes
    }

    fn reclaim(&mut self) {
        let reclaimable = |stream: &VecDeque<Region>| (stream.len() as u64 - 1) * self.region_bytes;
        let stream = self
            .policy
            .reclaim(reclaimable(&self.streams[0]), reclaimable(&self.streams[1]));
        let region = self.streams[stream as usize]
            .pop_front()
            .expect("a stream with bytes has regions");
        let mut rewritable = self.region_bytes / 2;
        for (key, bytes) in region.records {
            let Some(place) = self.places.get(&key) else {
                continue;
            };
            if place.region != region.number {
                continue;
            }
            let uses = place.uses;
            let hash = xxh3_64(&key.to_le_bytes());
            match self
                .policy
                .examine(stream, hash, bytes as u32, uses, self.places.len())
            {
                Fate::Rewrite(stream, uses) if bytes <= rewritable => {
                    rewritable -= bytes;
                    self.rewritten_bytes += bytes;
                    self.append(stream, key, bytes, uses);
                }
                _ => {
                    self.places.remove(&key);
                }
            }
        }
    }
}

impl Cache for Disk {
    fn request(&mut self, request: &Request) -> u64 {
        slices(request).map(|slice| self.slice(&slice)).sum()
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("written_bytes", self.written_bytes),
            ("rewritten_bytes", self.rewritten_bytes),
            ("refused", self.refused),
            ("policy_bytes", self.policy.memory_bytes() as u64),
        ]
    }
}

/// Least recently used goes first.
struct Lru {
    capacity: u64,
    bytes: u64,
    clock: u64,
    /// Key -> time of its last use and bytes.
    held: HashMap<u64, (u64, u64)>,
    order: BTreeMap<u64, u64>,
}

impl Lru {
    fn new(capacity: u64) -> Self {
        Self {
            capacity,
            bytes: 0,
            clock: 0,
            held: HashMap::new(),
            order: BTreeMap::new(),
        }
    }
}

impl Cache for Lru {
    fn request(&mut self, request: &Request) -> u64 {
        self.clock += 1;
        if let Some((used, _)) = self.held.get_mut(&request.key) {
            self.order.remove(used);
            self.order.insert(self.clock, request.key);
            *used = self.clock;
            return 0;
        }
        if request.bytes > self.capacity {
            return request.bytes;
        }
        while self.bytes + request.bytes > self.capacity {
            let (_, key) = self.order.pop_first().expect("bytes are held");
            self.bytes -= self.held.remove(&key).expect("in both").1;
        }
        self.held.insert(request.key, (self.clock, request.bytes));
        self.order.insert(self.clock, request.key);
        self.bytes += request.bytes;
        request.bytes
    }
}

/// S3-FIFO (SOSP 2023) as libcachesim has it: while nothing was evicted, what does not fit into the
/// small queue goes into the main queue; two uses lead from the small queue to the main one.
struct S3Fifo {
    capacity: u64,
    small_bytes_max: u64,
    main_bytes_max: u64,
    ghost_bytes_max: u64,
    small: VecDeque<u64>,
    main: VecDeque<u64>,
    small_bytes: u64,
    main_bytes: u64,
    has_evicted: bool,
    /// Key -> whether it is in the main queue, uses, bytes.
    held: HashMap<u64, (bool, u32, u64)>,
    ghost: Fifo,
}

impl S3Fifo {
    fn new(capacity: u64) -> Self {
        let small_bytes_max = (capacity as f64 * 0.1) as u64;
        Self {
            capacity,
            small_bytes_max,
            main_bytes_max: capacity - small_bytes_max,
            ghost_bytes_max: (capacity as f64 * 0.9) as u64,
            small: VecDeque::new(),
            main: VecDeque::new(),
            small_bytes: 0,
            main_bytes: 0,
            has_evicted: false,
            held: HashMap::new(),
            ghost: Fifo::default(),
        }
    }

    fn evict(&mut self) {
        self.has_evicted = true;
        if self.main_bytes > self.main_bytes_max || self.small_bytes == 0 {
            self.evict_main();
        } else {
            self.evict_small();
        }
    }

    fn evict_small(&mut self) {
        while let Some(key) = self.small.pop_front() {
            let (is_main, uses, bytes) = self.held.get_mut(&key).expect("queued");
            self.small_bytes -= *bytes;
            if *uses >= 2 {
                (*is_main, *uses) = (true, 0);
                self.main_bytes += *bytes;
                self.main.push_back(key);
                continue;
            }
            self.ghost.insert(key, *bytes, self.ghost_bytes_max);
            self.held.remove(&key);
            return;
        }
    }

    fn evict_main(&mut self) {
        while let Some(key) = self.main.pop_front() {
            let (_, uses, bytes) = self.held.get_mut(&key).expect("queued");
            if *uses >= 1 {
                *uses = (*uses).min(3) - 1;
                self.main.push_back(key);
                continue;
            }
            self.main_bytes -= *bytes;
            self.held.remove(&key);
            return;
        }
    }
}

impl Cache for S3Fifo {
    fn request(&mut self, request: &Request) -> u64 {
        let Request { key, bytes, .. } = *request;
        if let Some((is_main, uses, _)) = self.held.get_mut(&key) {
            *uses += 1;
            if *is_main {
                self.ghost.remove(key);
            }
            return 0;
        }
        let is_remembered = self.ghost.remove(key);
        if bytes > self.small_bytes_max {
            return request.bytes;
        }
        while self.small_bytes + self.main_bytes + bytes > self.capacity {
            self.evict();
        }
        let is_main = if is_remembered {
            true
        } else {
            if bytes >= self.small_bytes_max {
                return request.bytes;
            }
            !self.has_evicted && self.small_bytes >= self.small_bytes_max
        };
        let (queue, queue_bytes) = match is_main {
            true => (&mut self.main, &mut self.main_bytes),
            false => (&mut self.small, &mut self.small_bytes),
        };
        queue.push_back(key);
        *queue_bytes += bytes;
        self.held.insert(key, (is_main, 0, bytes));
        request.bytes
    }
}

/// Keys in the order of their insertion, under a limit of the bytes that they had.
#[derive(Default)]
struct Fifo {
    order: VecDeque<(u64, u64)>,
    /// Key -> number of its insertion and bytes.
    keys: HashMap<u64, (u64, u64)>,
    bytes: u64,
    inserted: u64,
}

impl Fifo {
    fn insert(&mut self, key: u64, bytes: u64, bytes_max: u64) {
        if bytes > bytes_max || self.keys.contains_key(&key) {
            return;
        }
        while self.bytes + bytes > bytes_max {
            let (oldest, number) = self.order.pop_front().expect("bytes are held");
            if self.keys.get(&oldest).is_some_and(|(n, _)| *n == number) {
                self.remove(oldest);
            }
        }
        self.inserted += 1;
        self.keys.insert(key, (self.inserted, bytes));
        self.order.push_back((key, self.inserted));
        self.bytes += bytes;
    }

    fn remove(&mut self, key: u64) -> bool {
        let removed = self.keys.remove(&key);
        self.bytes -= removed.map_or(0, |(_, bytes)| bytes);
        removed.is_some()
    }
}

/// SIEVE (NSDI 2024).
struct Sieve {
    capacity: u64,
    bytes: u64,
    inserted: u64,
    /// Number of the insertion -> key; the hand goes from old to new.
    order: BTreeMap<u64, u64>,
    hand: u64,
    /// Key -> number of its insertion, whether it was used, bytes.
    held: HashMap<u64, (u64, bool, u64)>,
}

impl Sieve {
    fn new(capacity: u64) -> Self {
        Self {
            capacity,
            bytes: 0,
            inserted: 0,
            order: BTreeMap::new(),
            hand: 0,
            held: HashMap::new(),
        }
    }

    fn evict(&mut self) {
        loop {
            let at = self.order.range(self.hand..).next();
            let (number, key) = at.or_else(|| self.order.first_key_value()).expect("held");
            let (number, key) = (*number, *key);
            self.hand = number + 1;
            let (_, is_used, bytes) = self.held.get_mut(&key).expect("in both");
            if !std::mem::take(is_used) {
                self.bytes -= *bytes;
                self.held.remove(&key);
                self.order.remove(&number);
                // The hand of the judge returns to the oldest when the newest was the victim.
                if self.order.range(self.hand..).next().is_none() {
                    self.hand = 0;
                }
                return;
            }
        }
    }
}

impl Cache for Sieve {
    fn request(&mut self, request: &Request) -> u64 {
        if let Some((_, is_used, _)) = self.held.get_mut(&request.key) {
            *is_used = true;
            return 0;
        }
        if request.bytes > self.capacity {
            return request.bytes;
        }
        while self.bytes + request.bytes > self.capacity {
            self.evict();
        }
        self.inserted += 1;
        self.order.insert(self.inserted, request.key);
        self.held
            .insert(request.key, (self.inserted, false, request.bytes));
        self.bytes += request.bytes;
        request.bytes
    }
}
