//! Reclaiming: a region is freed as a whole, after the records in it that are worth it were written
//! again.
//!
//! A region with little in it goes first, and all of it is written again: a run that ends leaves its
//! last regions as they are, and many short runs would fill a pool with them.
//!
//! Order matters for what a power cut leaves. The copies are synced, then the region is released
//! durably, and only then do the directories forget the records that were dropped: until then a
//! removal finds them, and is recorded.

use std::io;
use std::sync::atomic::Ordering;

use super::record::{Header, Kind};
use super::shared::{slice_hash, slice_key_of};
use super::writer::{Origin, Pending, Writer, policy_key};
use crate::body::{BodyId, Pool};
use crate::directory::Place;
use crate::policy::{Fate, Stream};

/// Regions that stay free in a pool of two streams: one for the copies out of a region that is
/// reclaimed, one for new records.
pub(super) const SPARE_REGIONS: usize = 2;

/// A record of the region that counts.
struct Live {
    header: Header,
    place: Place,
    uses: u8,
    /// Whether its head counts; only its slice does otherwise.
    is_head: bool,
}

impl Live {
    fn key(&self) -> u128 {
        if self.is_head {
            self.header.key
        } else {
            slice_hash(slice_key_of(&self.header))
        }
    }
}

/// How many bytes may be written again.
struct Budget {
    /// Records that are not pinned: at most half of a region, so that reclaiming makes progress.
    unpinned: u64,
}

impl Writer {
    /// Reclaims regions until as many are free as a pool needs.
    pub(super) fn keep_regions_free(&mut self, pool: Pool, keeps_used: bool) -> io::Result<()> {
        let spare = if self.has_two_streams(pool) {
            SPARE_REGIONS
        } else {
            1
        };
        let tries = self.pools[pool as usize].regions_max();
        for attempt in 0..2 * tries {
            if self.pools[pool as usize].free() >= spare {
                break;
            }
            let Some(victim) = self.victim(pool) else {
                break;
            };
            let reclaimed = self.reclaim(pool, victim, keeps_used && attempt < tries);
            let moved = std::mem::take(&mut self.moved);
            if let Err(error) = reclaimed {
                // The region stays, and its records that count elsewhere must not come back.
                for (key, place) in moved {
                    self.destroy_soon(key, place, false);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn victim(&self, pool: Pool) -> Option<u16> {
        let log = &self.pools[pool as usize];
        if let Some(sparse) = log.oldest_sparse() {
            return Some(sparse);
        }
        if !self.has_two_streams(pool) {
            let oldest = [Stream::Main, Stream::Probation].map(|stream| log.oldest(stream));
            return oldest
                .into_iter()
                .flatten()
                .min_by_key(|slot| log.generation(*slot));
        }
        let bytes = [Stream::Probation, Stream::Main].map(|stream| log.sealed_bytes(stream));
        let stream = self.policies[pool as usize].reclaim(bytes[0], bytes[1]);
        let other = match stream {
            Stream::Probation => Stream::Main,
            Stream::Main => Stream::Probation,
        };
        log.oldest(stream).or_else(|| log.oldest(other))
    }

    fn reclaim(&mut self, pool: Pool, victim: u16, keeps_used: bool) -> io::Result<()> {
        for stream in [Stream::Probation, Stream::Main] {
            self.write_stream(pool, stream)?;
        }
        let from = self.pools[pool as usize].stream_of(victim);
        // The few records of such a region have not had their time.
        let keeps_all = keeps_used && self.pools[pool as usize].is_sparse(victim);
        let live = self.live_records(pool, victim)?;
        let records = (self.shared.heads.len() + self.shared.slices.len()) as usize;
        let mut budget = Budget {
            unpinned: u64::from(self.pools[pool as usize].region_bytes() / 2),
        };
        let mut dropped = Vec::new();
        let mut has_copies = false;
        for record in live {
            let fate = match keeps_all {
                true => Fate::Rewrite(Stream::Main, record.uses),
                false => self.fate(pool, from, &record, records, keeps_used, &mut budget),
            };
            match fate {
                Fate::Rewrite(_, uses) => {
                    let is_copied = self.copy(pool, &record, uses)?;
                    has_copies |= is_copied;
                    if !is_copied {
                        dropped.push(record);
                    }
                }
                Fate::Drop => dropped.push(record),
            }
        }
        self.write_stream(pool, Stream::Main)?;
        if has_copies {
            self.pools[pool as usize].shared().sync()?;
        }

        self.pools[pool as usize].release(victim)?;
        for record in dropped {
            let directory = if record.is_head {
                &self.shared.heads
            } else {
                &self.shared.slices
            };
            directory.remove_at(record.key(), record.place);
        }
        self.shared
            .counters
            .evictions
            .fetch_add(1, Ordering::Relaxed);
        self.pools[pool as usize].punch(victim)
    }

    /// The records of a region that a directory knows.
    fn live_records(&self, pool: Pool, slot: u16) -> io::Result<Vec<Live>> {
        let mut live = Vec::new();
        let shared = &*self.shared;
        self.pools[pool as usize]
            .shared()
            .scan(slot, 0, |header, place| {
                let as_head = header
                    .kind
                    .has_head()
                    .then(|| shared.heads.take_uses(header.key, place))
                    .flatten();
                let uses = as_head.or_else(|| {
                    let has_slice = matches!(header.kind, Kind::Object | Kind::Slice);
                    let key = slice_hash(slice_key_of(header));
                    has_slice
                        .then(|| shared.slices.take_uses(key, place))
                        .flatten()
                });
                if let Some(uses) = uses {
                    live.push(Live {
                        header: *header,
                        place,
                        uses,
                        is_head: as_head.is_some(),
                    });
                }
                Ok(())
            })?;
        Ok(live)
    }

    fn fate(
        &mut self,
        pool: Pool,
        from: Stream,
        record: &Live,
        records: usize,
        keeps_used: bool,
        budget: &mut Budget,
    ) -> Fate {
        if pool == Pool::Pushed && self.shared.pins.is_pinned(BodyId(record.header.body)) {
            return Fate::Rewrite(Stream::Main, record.uses);
        }
        let span = record.header.span();
        let fate = if self.has_two_streams(pool) {
            self.policies[pool as usize].examine(
                from,
                policy_key(&record.header),
                span,
                record.uses,
                records,
            )
        } else if record.uses > 0 {
            Fate::Rewrite(Stream::Main, record.uses - 1)
        } else {
            Fate::Drop
        };
        match fate {
            Fate::Rewrite(..) if keeps_used && u64::from(span) <= budget.unpinned => {
                budget.unpinned -= u64::from(span);
                fate
            }
            _ => Fate::Drop,
        }
    }

    /// Writes a record again. `false` where it cannot be read, or no region is free for it.
    fn copy(&mut self, pool: Pool, record: &Live, uses: u8) -> io::Result<bool> {
        let mut header = record.header;
        let read = self.pools[pool as usize]
            .shared()
            .clone()
            .read(record.place, true, |read| {
                (read.header == header).then(|| (read.head.to_vec(), read.slice.to_vec()))
            });
        let Some(Ok(Some((mut head, slice)))) = read else {
            self.shared.counters.count_error();
            return Ok(false);
        };
        if !record.is_head {
            header.index = slice_key_of(&header).index;
            header.kind = Kind::Slice;
            (header.head_length, header.head_crc) = (0, 0);
            head.clear();
        }

        let log = &self.pools[pool as usize];
        if log.is_full_for(Stream::Main, header.span()) {
            if log.free() == 0 {
                return Ok(false);
            }
            self.write_stream(pool, Stream::Main)?;
            self.pools[pool as usize].roll(Stream::Main)?;
        }
        let place = self.pools[pool as usize].gather(Stream::Main, &header, &head, &slice);
        self.pending[pool as usize][Stream::Main as usize].push(Pending {
            header,
            place,
            origin: Origin::Moved {
                from: record.place,
                uses,
                is_head: record.is_head,
            },
        });
        if self.pools[pool as usize].has_much(Stream::Main) {
            self.write_stream(pool, Stream::Main)?;
        }
        Ok(true)
    }
}
