//! Small numbers for the names of sites, kept beside the data.
//!
//! Each record on disk has the number of its site, so that the directory counts the responses of a
//! site without reading them. The file has one slot of [`SLOT_BYTES`] a number, in the order of
//! their numbers, and only grows: a checksum with the store's number, the length of the name, the
//! name. A number is never given to a second name, as records with it may exist, so a damaged slot is
//! lost and the others stay.
//!
//! Serving threads ask for numbers and never wait for the disk. The writer saves new names before it
//! writes a record with their numbers.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::budget::{Budget, Charge, Kind};
use crate::io::DiskFile;

/// Name of the file.
pub const NAME: &str = "groups";

const SLOT_BYTES: usize = 256;
const NAME_AT: usize = 6;
/// Most bytes of a name that gets a number.
const NAME_BYTES_MAX: usize = SLOT_BYTES - NAME_AT;
/// What a name costs in memory beside its bytes, about.
const NAME_OVERHEAD: u64 = 64;

/// The number of a site beside the data on disk, for counts and for purges of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group(pub u16);

impl Group {
    /// All sites that have no number of their own: those beyond the first 65,535, those whose names
    /// are too long, and those that were asked for before the numbers were read.
    pub const OTHER: Self = Self(0);
}

/// The numbers of one store.
#[derive(Debug)]
pub struct Groups {
    names: RwLock<Names>,
    /// Whether there are names that the file does not have.
    has_unsaved: AtomicBool,
    file: Mutex<Option<SlotFile>>,
}

#[derive(Debug)]
struct Names {
    numbers: HashMap<Arc<str>, Group>,
    unsaved: Vec<(Arc<str>, Group)>,
    /// The number that the next name gets; `None` while the file has not been read.
    next: Option<u32>,
    charge: Charge,
}

#[derive(Debug)]
struct SlotFile {
    file: Arc<dyn DiskFile>,
    store: u64,
}

impl Groups {
    /// No numbers yet; all sites are [`Group::OTHER`] until [`load`](Self::load).
    pub fn new(budget: &Arc<Budget>) -> Self {
        let names = Names {
            numbers: HashMap::new(),
            unsaved: Vec::new(),
            next: None,
            charge: budget.charge_for(Kind::Directory, 0),
        };
        Self {
            names: RwLock::new(names),
            has_unsaved: AtomicBool::new(false),
            file: Mutex::default(),
        }
    }

    /// Reads the numbers of a store from its file, which may be empty.
    pub fn load(&self, file: Arc<dyn DiskFile>, store: u64) -> io::Result<()> {
        let length = file.length()?;
        let length = length.min(u64::from(u16::MAX) * SLOT_BYTES as u64) as usize;
        let whole = length / SLOT_BYTES;
        let mut bytes = vec![0; whole * SLOT_BYTES];
        file.read_at(&mut bytes, 0)?;

        let mut names = self.names.write();
        for (slot, number) in bytes.chunks_exact(SLOT_BYTES).zip(1..=u16::MAX) {
            if let Some(name) = read_slot(slot, store, number) {
                names.add(name.into(), Group(number));
            }
        }
        // A slot that was cut short is lost as well.
        names.next = Some(length.div_ceil(SLOT_BYTES) as u32 + 1);
        drop(names);
        *self.file.lock() = Some(SlotFile { file, store });
        Ok(())
    }

    /// The number of a site, a new one if it has none. Waits for no disk.
    pub fn number(&self, site: &str) -> Group {
        if let Some(number) = self.existing(site) {
            return number;
        }
        let mut names = self.names.write();
        if let Some(number) = names.numbers.get(site) {
            return *number;
        }
        let next = names.next.and_then(|next| u16::try_from(next).ok());
        let Some(number) = next.filter(|_| site.len() <= NAME_BYTES_MAX) else {
            return Group::OTHER;
        };
        let site: Arc<str> = site.into();
        names.add(site.clone(), Group(number));
        names.unsaved.push((site, Group(number)));
        names.next = Some(u32::from(number) + 1);
        self.has_unsaved.store(true, Ordering::Release);
        Group(number)
    }

    /// The number of a site, if it has one.
    pub fn existing(&self, site: &str) -> Option<Group> {
        self.names.read().numbers.get(site).copied()
    }

    /// Makes all numbers durable that were given so far. For the writer, before it writes a record
    /// with a number; costs nothing where there is no new one. After an error they are still to be
    /// saved.
    pub fn save(&self) -> io::Result<()> {
        if !self.has_unsaved.load(Ordering::Acquire) {
            return Ok(());
        }
        let file = self.file.lock();
        let Some(SlotFile { file, store }) = &*file else {
            return Ok(());
        };
        let unsaved = self.names.read().unsaved.clone();
        for (name, number) in &unsaved {
            let offset = u64::from(number.0 - 1) * SLOT_BYTES as u64;
            file.write_at(&slot(name, *store, number.0), offset)?;
        }
        file.sync_data()?;

        let mut names = self.names.write();
        names.unsaved.drain(..unsaved.len());
        self.has_unsaved
            .store(!names.unsaved.is_empty(), Ordering::Release);
        Ok(())
    }
}

impl Names {
    fn add(&mut self, name: Arc<str>, group: Group) {
        let bytes = self.charge.bytes() + name.len() as u64 + NAME_OVERHEAD;
        self.charge.set(bytes);
        self.numbers.insert(name, group);
    }
}

fn slot(name: &str, store: u64, number: u16) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[4..NAME_AT].copy_from_slice(&(name.len() as u16).to_le_bytes());
    slot[NAME_AT..NAME_AT + name.len()].copy_from_slice(name.as_bytes());
    let sum = slot_sum(&slot, store, number);
    slot[..4].copy_from_slice(&sum.to_le_bytes());
    slot
}

fn read_slot(slot: &[u8], store: u64, number: u16) -> Option<&str> {
    let sum = u32::from_le_bytes(slot[..4].try_into().expect("four bytes"));
    let length = u16::from_le_bytes([slot[4], slot[5]]);
    if sum != slot_sum(slot, store, number) {
        return None;
    }
    std::str::from_utf8(slot[NAME_AT..].get(..usize::from(length))?).ok()
}

fn slot_sum(slot: &[u8], store: u64, number: u16) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&store.to_le_bytes());
    sum.update(&number.to_le_bytes());
    sum.update(&slot[4..]);
    sum.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Files, RealFiles};

    fn file() -> (tempfile::TempDir, Arc<dyn DiskFile>) {
        let directory = tempfile::tempdir().expect("a directory");
        let files = RealFiles::new(directory.path().to_path_buf());
        let file = files.create(NAME).expect("a file");
        (directory, file)
    }

    fn load(file: &Arc<dyn DiskFile>, store: u64) -> Groups {
        let groups = Groups::new(&Budget::new(u64::MAX));
        groups.load(file.clone(), store).expect("a disk");
        groups
    }

    #[test]
    fn numbers_stay_over_runs() {
        let (_directory, file) = file();
        let groups = Groups::new(&Budget::new(u64::MAX));
        assert_eq!(groups.number("early"), Group::OTHER);
        groups.load(file.clone(), 5).expect("a disk");
        assert_eq!(groups.number("shop"), Group(1));
        assert_eq!(groups.number("video"), Group(2));
        assert_eq!(groups.number("shop"), Group(1));
        groups.save().expect("room");

        let groups = load(&file, 5);
        assert_eq!(groups.existing("video"), Some(Group(2)));
        assert_eq!(groups.existing("early"), None);
        assert_eq!(groups.number("early"), Group(3));
        drop(groups);
        let groups = load(&file, 5);
        assert_eq!(groups.number("late"), Group(3), "early was not saved");
    }

    #[test]
    fn a_damaged_slot_is_lost_and_not_given_again() {
        let (_directory, file) = file();
        let groups = load(&file, 5);
        for name in ["a", "b", "c"] {
            groups.number(name);
        }
        groups.save().expect("room");
        file.write_at(b"x", SLOT_BYTES as u64 + 6).expect("room");
        file.set_len(3 * SLOT_BYTES as u64 - 1).expect("a file");

        let groups = load(&file, 5);
        assert_eq!(groups.existing("a"), Some(Group(1)));
        assert_eq!((groups.existing("b"), groups.existing("c")), (None, None));
        assert_eq!(groups.number("c"), Group(4));
        groups.save().expect("room");
        assert_eq!(load(&file, 5).existing("c"), Some(Group(4)));
        assert_eq!(load(&file, 6).existing("c"), None, "another store");
    }

    #[test]
    fn names_beyond_the_limits_are_others() {
        let (_directory, file) = file();
        let groups = load(&file, 5);
        assert_eq!(groups.number(&"n".repeat(NAME_BYTES_MAX + 1)), Group::OTHER);
        assert_eq!(groups.number(&"n".repeat(NAME_BYTES_MAX)), Group(1));
        for number in 2..=u16::MAX {
            assert_eq!(groups.number(&number.to_string()), Group(number));
        }
        assert_eq!(groups.number("one more"), Group::OTHER);
        groups.save().expect("room");
        let groups = load(&file, 5);
        assert_eq!(groups.number("65535"), Group(u16::MAX));
        assert_eq!(groups.number("one more"), Group::OTHER);
    }
}
