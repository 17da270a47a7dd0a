//! The newest entries in memory, and the answers to nodes made of them.

use std::collections::VecDeque;

use bytes::Bytes;
use nearcast_fleet::change::{Change, Entry};

/// Entries in one answer to a node.
pub(crate) const PAGE_ENTRIES_MAX: usize = 256;
/// Bytes of entries in one answer; no further entry is added beyond them.
const PAGE_BYTES_MAX: usize = 8 << 20;
/// Newest entries in memory, and their bytes.
pub(super) const ENTRIES_MAX: usize = 1024;
const BYTES_MAX: usize = 8 << 20;
/// Answers that are kept for nodes with the same cursor.
const PAGES_MAX: usize = 8;

/// The newest entries and the answers made of them.
#[derive(Debug)]
pub(super) struct RecentEntries {
    entries: VecDeque<Encoded>,
    bytes: usize,
    /// Newest revision that is not kept here. A cursor at or after it needs no read of the file.
    floor: u64,
    newest: u64,
    /// Answers by cursor. They end with the newest revision.
    pages: VecDeque<Page>,
}

/// An entry as JSON.
#[derive(Debug, Clone)]
pub(super) struct Encoded {
    pub(super) revision: u64,
    pub(super) json: Bytes,
    /// When the items of an order expire; `None` for other entries.
    pub(super) items_end_unix_ms: Option<u64>,
}

/// An answer.
#[derive(Debug)]
struct Page {
    after: u64,
    /// After this time an order in it has expired, and the answer is made anew.
    good_until_unix_ms: u64,
    body: Bytes,
}

impl Encoded {
    pub(super) fn of(entry: &Entry) -> Self {
        let json =
            serde_json::to_vec(entry).expect("an entry has string keys and no failing parts");
        let items_end_unix_ms = match &entry.change {
            Change::Push(order) if !order.items.is_empty() => Some(order.not_after_unix_ms),
            _ => None,
        };
        Self {
            revision: entry.revision,
            json: json.into(),
            items_end_unix_ms,
        }
    }

    /// The entry at a time: an expired order has no items.
    fn at(&self, now_unix_ms: u64) -> Self {
        if self.items_end_unix_ms.is_none_or(|end| end >= now_unix_ms) {
            return self.clone();
        }
        let entry: Entry = serde_json::from_slice(&self.json).expect("it was encoded here");
        Self::of(&drop_expired_items(vec![entry], now_unix_ms)[0])
    }
}

impl RecentEntries {
    /// No entries. `newest` is the newest revision on disk.
    pub(super) fn after(newest: u64) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            floor: newest,
            newest,
            pages: VecDeque::new(),
        }
    }

    /// Adds new entries and returns the newest revision.
    pub(super) fn add<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>) -> u64 {
        for entry in entries {
            // There is a gap when revisions were skipped, or when entries were written but not added
            // here. Earlier cursors need the file then.
            if entry.revision != self.newest + 1 {
                self.begin_after(entry.revision - 1);
            }
            let encoded = Encoded::of(entry);
            self.bytes += encoded.json.len();
            self.newest = entry.revision;
            self.entries.push_back(encoded);
            while self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX {
                let Some(oldest) = self.entries.pop_front() else {
                    break;
                };
                self.bytes -= oldest.json.len();
                self.floor = oldest.revision;
            }
        }
        self.pages.clear();
        self.newest
    }

    /// Drops all entries. Those up to a revision are on disk.
    pub(super) fn begin_after(&mut self, revision: u64) {
        self.entries.clear();
        self.pages.clear();
        (self.bytes, self.floor, self.newest) = (0, revision, revision);
    }

    /// The answer for a cursor, when it needs no read of the file.
    pub(super) fn page(&mut self, id: &str, after: u64, now_unix_ms: u64) -> Option<Bytes> {
        if let Some(page) = self
            .pages
            .iter()
            .find(|p| p.after == after && p.good_until_unix_ms >= now_unix_ms)
        {
            return Some(page.body.clone());
        }
        if after < self.floor {
            return None;
        }
        let first = self.entries.partition_point(|e| e.revision <= after);
        let mut bytes = 0;
        let entries: Vec<Encoded> = self
            .entries
            .range(first..)
            .take(PAGE_ENTRIES_MAX)
            .enumerate()
            .take_while(|(n, e)| {
                bytes += e.json.len();
                *n == 0 || bytes <= PAGE_BYTES_MAX
            })
            .map(|(_, e)| e.at(now_unix_ms))
            .collect();
        Some(self.keep(id, after, now_unix_ms, &entries))
    }

    /// Makes an answer, and keeps it for other nodes with the same cursor.
    pub(super) fn keep(
        &mut self,
        id: &str,
        after: u64,
        now_unix_ms: u64,
        entries: &[Encoded],
    ) -> Bytes {
        let newest = entries
            .last()
            .map_or(self.newest, |e| e.revision.max(self.newest));
        let mut body =
            format!("{{\"journal\":\"{id}\",\"revision\":{newest},\"entries\":[").into_bytes();
        for (n, entry) in entries.iter().enumerate() {
            if n > 0 {
                body.push(b',');
            }
            body.extend_from_slice(&entry.json);
        }
        body.extend_from_slice(b"]}");
        let body = Bytes::from(body);
        if self.pages.len() == PAGES_MAX {
            self.pages.pop_front();
        }
        let good_until_unix_ms = entries
            .iter()
            .filter_map(|e| e.items_end_unix_ms)
            .filter(|end| *end >= now_unix_ms)
            .min()
            .unwrap_or(u64::MAX);
        self.pages.retain(|p| p.after != after);
        self.pages.push_back(Page {
            after,
            good_until_unix_ms,
            body: body.clone(),
        });
        body
    }
}

/// Empties orders whose time is over. No node fills for them any more, but their entries stay.
pub(super) fn drop_expired_items(mut entries: Vec<Entry>, now_unix_ms: u64) -> Vec<Entry> {
    for entry in &mut entries {
        if let Change::Push(order) = &mut entry.change
            && order.not_after_unix_ms < now_unix_ms
        {
            order.items.clear();
        }
    }
    entries
}
