//! Opening the files, and building the directories from what an earlier run left.
//!
//! After a run that ended in order the checkpoint has everything: the directories answer at once and
//! read a segment when it is first used, all others in the background. After another end all
//! segments are read, then the records behind the checkpoint. Without a checkpoint all regions are
//! read. The result is the same: of several records of one head the newest counts, all removals that
//! may not have been carried out are applied again, and what lost is destroyed, so that it does not
//! come back later.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::pool::{PoolFile, PoolLog, REGIONS_MAX};
use super::queue::pool_name;
use super::record::{Header, Kind};
use super::removals::{Removal, Removals};
use super::shared::{
    Opened, POOLS, Shared, body_hash, head_entry, slice_entry, slice_hash, slice_key_of,
};
use super::superblock::{SESSION_FILE, SILENCE_MAX_MS, Superblock, Unusable, begin_session};
use crate::body::{BodyId, Pool};
use crate::checkpoint::{Checkpoint, Checkpoints, is_damage};
use crate::directory::{Directory, Found, Insertion, Place, REGION_BYTES_MAX, SEGMENTS};
use crate::groups;
use crate::io::Files;
use crate::measures;

/// By so much the order of writes jumps after a run that did not end in order: more than the writes
/// between two signs of life.
const SEQUENCE_JUMP: u64 = 1 << 32;

/// Sizes and places of a tier.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) pool_bytes: [u64; 2],
    /// Where the number of the run is kept; `None` where there is no such place.
    pub(crate) state_directory: Option<std::path::PathBuf>,
}

/// What the thread of the tier has after the files were opened.
#[derive(Debug)]
pub(crate) struct Recovery {
    pub(crate) pools: [PoolLog; 2],
    pub(crate) checkpoints: Checkpoints,
    checkpoint: Option<Arc<Checkpoint>>,
    pub(crate) was_clean: bool,
    /// Removals of earlier runs that may not have been carried out.
    removals: Vec<Removal>,
}

/// Opens all files, and makes those that are missing.
pub(crate) fn open(
    shared: &Shared,
    files: &Arc<dyn Files>,
    layout: &Layout,
) -> Result<Recovery, Unusable> {
    files.lock()?;
    drop_old_files(&**files)?;
    let superblock_file = files.create("superblock")?;
    let before = Superblock::read(&*superblock_file)?;
    let mut block = before.unwrap_or_else(|| Superblock {
        store: random(),
        seed: random(),
        ..Superblock::default()
    });

    let is_doubtful = begin_run(&mut block, before.is_some(), layout, now_ms());
    let removals_file = files.create("removals")?;
    if before.is_none() {
        Removals::reset(&*removals_file)?;
    }
    let (removals, is_damaged) = shared.removals.open(&removals_file, block.removals_done)?;
    let newest_removal = removals.iter().map(|r| r.sequence).max().unwrap_or(0);
    let first_sequence = match block.is_clean {
        true => block.sequence.max(newest_removal + 1),
        false => block.sequence.max(newest_removal) + SEQUENCE_JUMP,
    };
    let requested = shared.sequence.load(Ordering::SeqCst);
    shared
        .sequence
        .fetch_max(first_sequence + requested, Ordering::SeqCst);
    if is_doubtful || is_damaged {
        block.doubtful_before = first_sequence;
    }
    shared.set_doubtful_before(block.doubtful_before);

    let table = files.create("regions")?;
    let mut logs = Vec::new();
    for pool in POOLS {
        let name = pool_name(pool);
        let file = files.create(&format!("{name}.data"))?;
        let capacity = layout.pool_bytes[pool as usize];
        let (sizes, is_new) = region_sizes(&block, pool, capacity);
        if is_new && file.length()? > 0 {
            tracing::info!(
                pool = name,
                "the size of the pool has changed; it starts empty"
            );
            file.set_len(0)?;
        }
        (
            block.region_bytes[pool as usize],
            block.regions[pool as usize],
        ) = (u64::from(sizes.0), sizes.1 as u64);
        let shared_file = Arc::new(PoolFile::new(pool, block.store, sizes, file));
        let mut log = PoolLog::open(shared_file, table.clone(), block.session << 32)?;
        if is_new {
            log.clear()?;
        }
        logs.push(log);
    }
    let pushed = logs.pop().expect("two pools");
    let pull = logs.pop().expect("two pools");
    shared
        .groups
        .load(files.create(groups::NAME)?, block.store)?;
    let (checkpoints, checkpoint) =
        Checkpoints::open(files.clone(), block.store, shared.budget.clone())?;

    let was_clean = block.is_clean;
    block.is_clean = false;
    block.sequence = first_sequence;
    block.alive_ms = now_ms();
    block.write(&*superblock_file)?;
    superblock_file.sync_data()?;
    files.sync()?;
    let opened = Opened {
        seed: block.seed,
        pools: [pull.shared().clone(), pushed.shared().clone()],
        first_sequence,
        superblock: Mutex::new(block),
        superblock_file,
        removals_file,
    };
    shared.open(opened);
    Ok(Recovery {
        pools: [pull, pushed],
        checkpoints,
        checkpoint: checkpoint.map(Arc::new),
        was_clean,
        removals,
    })
}

/// Begins a run in the superblock. Whether what earlier runs left is doubtful.
fn begin_run(block: &mut Superblock, is_known: bool, layout: &Layout, now_ms: u64) -> bool {
    let is_silent = now_ms.saturating_sub(block.alive_ms) > SILENCE_MAX_MS;
    let is_future = block.alive_ms > now_ms;
    let begun = match &layout.state_directory {
        Some(directory) => begin_session(directory, block.session),
        None => Ok((Some(block.session), block.session + 1)),
    };
    let (last, session) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            tracing::warn!(%error, "the number of this run cannot be kept; what is on disk is validated before use");
            (None, block.session + 1)
        }
    };
    let was_last = last == Some(block.session);
    block.session = session;
    is_known && (!was_last || !block.is_clean && (is_silent || is_future))
}

/// Length and number of the regions of a pool, and whether they are others than before.
fn region_sizes(block: &Superblock, pool: Pool, capacity: u64) -> ((u32, usize), bool) {
    let bytes = block.region_bytes[pool as usize];
    let is_kept = bytes > 0
        && bytes <= u64::from(REGION_BYTES_MAX)
        && (4..=REGIONS_MAX).contains(&(capacity / bytes));
    let wanted = measures::region_bytes(capacity).min(u64::from(REGION_BYTES_MAX));
    let region = if is_kept { bytes } else { wanted };
    let least = measures::record_span(measures::SLICE_BYTES) + measures::record_span(4096);
    let regions = match region {
        // Too small to hold anything.
        region if region < least => 0,
        region => (capacity / region).min(REGIONS_MAX),
    };
    ((region as u32, regions as usize), region != bytes)
}

/// Removes the files of versions that had one file a region.
fn drop_old_files(files: &dyn Files) -> io::Result<()> {
    let names = files.list()?;
    let old: Vec<_> = ["pull", "pushed"]
        .into_iter()
        .filter(|old| names.iter().any(|name| name == old))
        .collect();
    if !old.is_empty() {
        tracing::warn!(
            directories = ?old,
            "the store's files are of an earlier version and are dropped; the disk tier starts empty"
        );
    }
    old.into_iter().try_for_each(|name| files.remove(name))
}

fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish().max(1)
}

/// Milliseconds after the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

impl Recovery {
    /// Builds the directories. Lets them answer as early as it can.
    pub(crate) fn run(&mut self, shared: &Shared) -> io::Result<()> {
        let checkpoint = self.checkpoint.take();
        let state = checkpoint
            .as_ref()
            .and_then(|c| decode_state(&c.state))
            .unwrap_or_default();
        if let Some(checkpoint) = checkpoint {
            match self.load(shared, &checkpoint, &state) {
                Ok(()) => {}
                Err(error) if is_damage(&error) => {
                    tracing::warn!(%error, "the store's checkpoint is damaged; all records are read");
                    self.scan_all(shared)?;
                }
                Err(error) => return Err(error),
            }
        } else {
            self.scan_all(shared)?;
        }

        for removal in &self.removals {
            apply(shared, removal)?;
        }
        shared.finish_loading(|removal| apply(shared, removal))
    }

    /// Builds the directories from all records.
    fn scan_all(&mut self, shared: &Shared) -> io::Result<()> {
        shared.close_directories();
        for directory in [&shared.heads, &shared.slices] {
            for segment in 0..SEGMENTS {
                // Nothing happens to segments that were read.
                let _ = directory.fill(segment, &[], |_| false);
                directory.retain(segment, |_| false);
            }
        }
        self.scan(shared, &HashMap::new())
    }

    /// Builds the directories from a checkpoint and the records behind it.
    fn load(
        &mut self,
        shared: &Shared,
        checkpoint: &Arc<Checkpoint>,
        state: &HashMap<(u8, u16), (u64, u32)>,
    ) -> io::Result<()> {
        let is_whole = self.was_clean && self.removals.is_empty();
        for directory in [&shared.heads, &shared.slices] {
            directory.defer();
        }
        let regions = self.current_regions(state);
        let regions = Arc::new(regions);
        if is_whole {
            for log in &mut self.pools {
                for slot in log.used_slots() {
                    let key = (log.pool() as u8, slot);
                    log.set_used(slot, state.get(&key).map_or(0, |(_, used)| *used));
                }
            }
            shared.answer_from(checkpoint.clone(), regions.clone());
        }
        for (index, directory) in [&shared.heads, &shared.slices].into_iter().enumerate() {
            checkpoint.load(index, directory, |found| is_in(&regions, found))?;
        }
        if !is_whole {
            self.scan(shared, state)?;
        }
        Ok(())
    }

    /// Regions of the checkpoint that are still in the same use.
    fn current_regions(&self, state: &HashMap<(u8, u16), (u64, u32)>) -> Vec<(u8, u16)> {
        let mut regions: Vec<_> = state
            .iter()
            .filter(|((pool, slot), (generation, _))| {
                let log = self.pools.get(usize::from(*pool));
                log.is_some_and(|log| log.generation(*slot) == *generation)
            })
            .map(|(key, _)| *key)
            .collect();
        regions.sort_unstable();
        regions
    }

    /// Takes the records of all regions into the directories: those behind the offsets of a
    /// checkpoint's state.
    fn scan(&mut self, shared: &Shared, state: &HashMap<(u8, u16), (u64, u32)>) -> io::Result<()> {
        for log in &mut self.pools {
            let file = log.shared().clone();
            for slot in log.used_slots() {
                let known = state
                    .get(&(log.pool() as u8, slot))
                    .filter(|(generation, _)| *generation == log.generation(slot));
                let from = known.map_or(0, |(_, used)| *used);
                let used = file.scan(slot, from, |header, place| {
                    add(shared, header, place);
                    Ok(())
                })?;
                log.set_used(slot, used);
            }
        }
        Ok(())
    }
}

/// Whether the place of an entry is in one of the regions.
pub(crate) fn is_in(regions: &[(u8, u16)], found: &Found) -> bool {
    let region = (found.place.pool as u8, found.place.slot);
    regions.binary_search(&region).is_ok()
}

/// Takes a record into the directories.
fn add(shared: &Shared, header: &Header, place: Place) {
    match header.kind {
        Kind::Removed => {}
        Kind::Slice => {
            add_slice(&shared.slices, header, place);
        }
        Kind::Head | Kind::Object => add_head(shared, header, place),
    }
}

fn add_slice(slices: &Directory, header: &Header, place: Place) {
    let key = slice_hash(slice_key_of(header));
    slices.insert(key, slice_entry(header, place));
}

fn add_head(shared: &Shared, header: &Header, place: Place) {
    let entry = head_entry(header, place);
    let old = match shared.heads.insert(header.key, entry) {
        Insertion::Added => return,
        Insertion::Full => {
            shared.counters.count_dropped();
            shared.destroy_later(header.key, place, false);
            shared.record_disowned(header);
            return;
        }
        Insertion::Replaced(old) if old.place.is_same_position(&place) => return,
        Insertion::Replaced(old) => old,
    };
    let before = shared.read_header(old.place).ok();
    let before = before.filter(|before| before.body == header.body);
    let Some(before) = before else { return };
    if before.kind == Kind::Slice {
        // It was the head of this body when the checkpoint was written.
        add_slice(&shared.slices, &before, old.place);
        return;
    }
    if !before.kind.has_head() || before.key != header.key {
        return;
    }
    let is_older = before.sequence > header.sequence;
    if is_older {
        shared
            .heads
            .insert(header.key, head_entry(&before, old.place));
    }
    let (winner, loser, lost) = if is_older {
        (&before, header, place)
    } else {
        (header, &before, old.place)
    };
    let keeps_slice = loser.kind == Kind::Object && winner.kind == Kind::Head;
    if keeps_slice {
        add_slice(&shared.slices, loser, lost);
    }
    shared.destroy_later(header.key, lost, keeps_slice);
}

/// Applies a removal to directories that were read from disk.
fn apply(shared: &Shared, removal: &Removal) -> io::Result<()> {
    for found in shared.heads.find(removal.key) {
        let is_other = removal
            .body
            .is_some_and(|body| body_hash(BodyId(body)) != found.body);
        if is_other {
            continue;
        }
        let header = match shared.read_header(found.place) {
            Ok(header) => header,
            Err(error) if error.raw_os_error().is_some() => return Err(error),
            // Without a header there is nothing that could come back.
            Err(_) => {
                shared.heads.remove_at(removal.key, found.place);
                continue;
            }
        };
        if removal.covers(header.key, header.body, header.sequence) {
            shared.heads.remove_at(removal.key, found.place);
            shared.destroy_later(header.key, found.place, false);
        }
    }
    Ok(())
}

/// What a checkpoint says of the log: by pool and region, the generation and the end of the records
/// that the directories have.
pub(crate) fn encode_state(pools: &[PoolLog; 2]) -> Vec<u8> {
    let mut out = Vec::new();
    for log in pools {
        for slot in log.used_slots() {
            out.push(log.pool() as u8);
            out.extend_from_slice(&slot.to_le_bytes());
            out.extend_from_slice(&log.generation(slot).to_le_bytes());
            out.extend_from_slice(&log.used(slot).to_le_bytes());
        }
    }
    out
}

fn decode_state(bytes: &[u8]) -> Option<HashMap<(u8, u16), (u64, u32)>> {
    let (rows, []) = bytes.as_chunks::<15>() else {
        return None;
    };
    let rows = rows.iter().map(|row| {
        let key = (row[0], u16::from_le_bytes([row[1], row[2]]));
        let generation = row[3..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        let used = row[11..]
            .first_chunk()
            .map_or(0, |b| u32::from_le_bytes(*b));
        (key, (generation, used))
    });
    Some(rows.collect())
}

/// Counts a run of a node without a disk tier, so that a later run with one knows that removals may
/// have passed it by.
pub(crate) fn note_run_without_disk(state_directory: &Path) -> io::Result<()> {
    // Where no run had a disk tier, there is none that a run could pass by.
    match state_directory.join(SESSION_FILE).exists() {
        true => begin_session(state_directory, 0).map(|_| ()),
        false => Ok(()),
    }
}
