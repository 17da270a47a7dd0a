//! What control has come to know and nobody else can tell it again: which edges confirmed a purge
//! and when, how pushes went and ended, events. The file `facts` in control's directory.
//!
//! Facts are given in order and written together, with one sync for all that wait; who must not
//! show something before it is on disk asks [`Facts::kept`]. Facts may be repeated: the newest of a
//! kind holds. When the file has grown, the state that they come to takes their place.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::kept::KeptFile;
use crate::purges;
use crate::pushes;
use crate::view::Event;

const MAGIC: [u8; 8] = *b"NCFACT1\n";
/// Facts that wait to be written; more are left out, and the file is written anew.
const WAITING_MAX: usize = 1 << 16;
/// Facts that are written at a time.
const GROUP_MAX: usize = 4096;
/// Facts are gathered for so long before they are written.
const GATHER_TIME: Duration = Duration::from_millis(3);
/// Bytes of a record, beyond which another one is begun.
const RECORD_BYTES: usize = 1 << 20;
/// Somebody waits no longer than this for the disk.
const KEPT_TIME_MAX: Duration = Duration::from_secs(5);

/// Something that is so from then on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub(crate) enum Fact {
    /// The journal that revisions are of.
    Journal { id: String },
    /// A purge with all that is known of it.
    Purge(purges::Record),
    /// An edge confirms purges.
    Confirmed {
        node: String,
        /// Revision, responses covered, when.
        purges: Vec<(u64, u64, u64)>,
    },
    /// Every edge has confirmed a purge.
    Complete { revision: u64, at_unix_ms: u64 },
    /// A push order with all that is known of it.
    Push(Box<pushes::Record>),
    /// What was last said of nodes and clusters.
    Told {
        nodes: BTreeMap<String, String>,
        clusters: BTreeMap<String, String>,
    },
    /// Something happened.
    Event(Event),
}

/// Leaves out what is of another journal, or beyond the newest revision of this one: the journal
/// was begun anew, or restored from an older copy, and its revisions mean other changes now. Events
/// stay: they happened.
pub(crate) fn of_journal(facts: Vec<Fact>, id: &str, newest: u64) -> Vec<Fact> {
    let is_of_it = facts.iter().rev().find_map(|f| {
        if let Fact::Journal { id } = f {
            Some(id.as_str())
        } else {
            None
        }
    }) == Some(id);
    let is_kept = |revision: u64| is_of_it && revision <= newest;
    let keep = |fact| match fact {
        Fact::Purge(ref record) => is_kept(record.revision).then_some(fact),
        Fact::Complete { revision, .. } => is_kept(revision).then_some(fact),
        Fact::Push(ref record) => is_kept(record.revision()).then_some(fact),
        Fact::Confirmed { node, mut purges } => {
            purges.retain(|(revision, ..)| is_kept(*revision));
            Some(Fact::Confirmed { node, purges })
        }
        Fact::Journal { .. } | Fact::Told { .. } | Fact::Event(_) => Some(fact),
    };
    facts.into_iter().filter_map(keep).collect()
}

/// The file and what waits for it.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    file: Arc<Mutex<KeptFile>>,
    queue: Arc<Mutex<Queue>>,
    written: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Fact>,
    /// Facts that were ever given.
    given: u64,
    is_written: bool,
    /// Some were left out.
    is_missing: bool,
}

impl Facts {
    /// Opens the file and gives what is in it, oldest first, and whether there was none. Blocking.
    pub(crate) fn open(path: PathBuf) -> (Self, Vec<Fact>, bool) {
        let is_first = !path.exists();
        let (mut facts, mut unknown) = (Vec::new(), 0u64);
        let file = KeptFile::open(path, MAGIC, |payload| {
            let values: Vec<serde_json::Value> =
                serde_json::from_slice(payload).unwrap_or_default();
            for value in values {
                match serde_json::from_value(value) {
                    Ok(fact) => facts.push(fact),
                    Err(_) => unknown += 1,
                }
            }
        });
        if unknown > 0 {
            tracing::warn!(path = %file.path().display(), unknown, "facts that this version does not know are left out");
        }
        let this = Self {
            file: Arc::new(Mutex::new(file)),
            queue: Arc::default(),
            written: Arc::new(watch::channel(0).0),
        };
        (this, facts, is_first)
    }

    /// Takes facts; gives the number to wait for. Must be called within the runtime.
    pub(crate) fn record(&self, facts: impl IntoIterator<Item = Fact>) -> u64 {
        let mut queue = self.queue();
        for fact in facts {
            queue.given += 1;
            if queue.waiting.len() < WAITING_MAX {
                queue.waiting.push_back(fact);
            } else {
                // What goes missing is made good when the file is written anew.
                queue.is_missing = true;
            }
        }
        if !queue.waiting.is_empty() && !std::mem::replace(&mut queue.is_written, true) {
            let this = self.clone();
            tokio::task::spawn_blocking(move || this.write_waiting());
        }
        queue.given
    }

    /// Writes what waits until nothing does. Blocking.
    fn write_waiting(&self) {
        loop {
            // More come meanwhile, and the journal has the disk.
            std::thread::sleep(GATHER_TIME);
            let mut file = self.file();
            let (facts, upto) = {
                let mut queue = self.queue();
                if std::mem::take(&mut queue.is_missing) {
                    file.set_due();
                }
                let count = queue.waiting.len().min(GROUP_MAX);
                if count == 0 {
                    queue.is_written = false;
                    let given = queue.given;
                    self.written
                        .send_if_modified(|written| std::mem::replace(written, given) != given);
                    return;
                }
                let facts: Vec<Fact> = queue.waiting.drain(..count).collect();
                (facts, queue.given - queue.waiting.len() as u64)
            };
            for record in records(&facts) {
                file.append(&record);
            }
            drop(file);
            self.written.send_replace(upto);
        }
    }

    /// Whether what was given up to a number is on disk, or cannot be brought there.
    pub(crate) fn is_kept(&self, number: u64) -> bool {
        *self.written.borrow() >= number
    }

    /// Waits for that.
    pub(crate) async fn kept(&self, number: u64) {
        let mut written = self.written.subscribe();
        let _ = tokio::time::timeout(KEPT_TIME_MAX, written.wait_for(|n| *n >= number)).await;
    }

    /// Puts the state in place of the facts that led to it, when the file has grown or lacks
    /// something, or `now`. `state` is asked with the file locked, so that no fact can come
    /// between. Blocking.
    pub(crate) fn rewrite(&self, now: bool, state: impl FnOnce() -> Vec<Fact>) {
        let mut file = self.file();
        if now || file.is_due() {
            file.rewrite(records(&state()).into_iter());
        }
    }

    fn file(&self) -> MutexGuard<'_, KeptFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Facts as records of some size, each a JSON array.
fn records(facts: &[Fact]) -> Vec<Vec<u8>> {
    let mut records: Vec<Vec<u8>> = Vec::new();
    for fact in facts {
        let json = serde_json::to_vec(fact).expect("facts have string keys and finite numbers");
        match records.last_mut() {
            Some(record) if record.len() + json.len() < RECORD_BYTES => record.push(b','),
            _ => records.push(vec![b'[']),
        }
        records.last_mut().expect("there is one").extend(json);
    }
    records.iter_mut().for_each(|record| record.push(b']'));
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(revision: u64) -> Fact {
        Fact::Complete {
            revision,
            at_unix_ms: revision + 7,
        }
    }

    fn revisions(facts: &[Fact]) -> Vec<u64> {
        let of = |f: &Fact| {
            if let Fact::Complete {
                revision,
                at_unix_ms,
            } = f
            {
                (*at_unix_ms == revision + 7).then_some(*revision)
            } else {
                None
            }
        };
        facts.iter().filter_map(of).collect()
    }

    #[tokio::test]
    async fn what_is_kept_is_there_after_a_kill_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("facts");
        let (facts, old, is_first) = Facts::open(path.clone());
        assert!(old.is_empty() && is_first && facts.is_kept(0));
        let mut last = 0;
        for n in 1..=3000 {
            last = facts.record([complete(n)]);
        }
        facts.kept(last).await;
        assert!(facts.is_kept(last));
        // As a kill leaves it, and then with half a record behind it.
        for tail in [&b""[..], b"\x09\x00\x00\x00half"] {
            let copy = dir.path().join("copy");
            std::fs::copy(&path, &copy).unwrap();
            std::fs::OpenOptions::new()
                .append(true)
                .open(&copy)
                .and_then(|mut f| std::io::Write::write_all(&mut f, tail))
                .unwrap();
            let (_, read, is_first) = Facts::open(copy);
            assert_eq!((revisions(&read), is_first), ((1..=3000).collect(), false));
        }
        facts.rewrite(true, || vec![complete(2999), complete(3000)]);
        let last = facts.record([complete(3001)]);
        facts.kept(last).await;
        assert_eq!(revisions(&Facts::open(path).1), [2999, 3000, 3001]);
    }

    #[test]
    fn facts_of_another_journal_are_not_of_this_one() {
        let journal = |id: &str| Fact::Journal { id: id.into() };
        let confirmed = Fact::Confirmed {
            node: "a".into(),
            purges: vec![(3, 1, 1), (9, 1, 1)],
        };
        let facts = vec![
            journal("old"),
            journal("this"),
            complete(3),
            complete(9),
            confirmed,
        ];
        for (id, newest, expected) in [
            ("this", 9, vec![3, 9]),
            ("this", 8, vec![3]),
            ("other", 9, vec![]),
            ("old", 9, vec![]),
        ] {
            let kept = of_journal(facts.clone(), id, newest);
            let Some(Fact::Confirmed { purges, .. }) = kept.last() else {
                panic!("{kept:?}")
            };
            assert_eq!(
                (
                    revisions(&kept),
                    purges.iter().map(|p| p.0).collect::<Vec<_>>()
                ),
                (expected.clone(), expected),
                "{id} {newest}"
            );
        }
    }

    #[tokio::test]
    async fn damage_costs_one_record_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("facts");
        let (facts, ..) = Facts::open(path.clone());
        for n in [1, 2, 3] {
            let number = facts.record([complete(n)]);
            facts.kept(number).await;
        }
        drop(facts);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes
            .windows(12)
            .position(|w| w == b"\"revision\":2")
            .unwrap();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let (facts, read, _) = Facts::open(path.clone());
        assert_eq!(revisions(&read), [1, 3]);
        assert_eq!(
            std::fs::read(dir.path().join("facts.damaged")).unwrap(),
            bytes
        );
        facts.rewrite(false, || read);
        assert_eq!(
            revisions(&Facts::open(path).1),
            [1, 3],
            "written anew without being asked to"
        );
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_made_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("not-there/facts");
        let (facts, ..) = Facts::open(path.clone());
        let number = facts.record([complete(1)]);
        facts.kept(number).await;
        assert!(facts.is_kept(number));
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        facts.rewrite(false, || vec![complete(1)]);
        assert_eq!(revisions(&Facts::open(path).1), [1]);
    }
}
