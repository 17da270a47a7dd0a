//! Bringing a body once more from its first byte on, for readers that are behind: where parts of it
//! cannot be requested.
//!
//! Without a strong validator nothing in a response's head says that its body is the one that a
//! reader has begun (RFC 9110 section 15.3.7.3). So the bytes themselves are compared: the first
//! fill notes a checksum of each slice, and a repeat shows readers only slices with the same one.
//! The coded form of a body is compared in the same way when it is made again.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use super::content::Content;
use super::fill::{Fill, SLICE};
use super::writer::FillWriter;
use crate::compress::Recipe;
use crate::origin::OriginError;
use nearcast_store::SLICE_BYTES;

/// Repeats of one body that run at once. Readers share them where they can; one more waits until
/// another ends.
const REPEATS_MAX: usize = 4;
/// A repeat begins at the slowest reader that is at most so many bytes behind the one that begins
/// it, so that those who fell behind together share it.
const SHARED_BEHIND: u64 = 8 * SLICE;

/// What is known of a body that cannot be fetched in parts.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// The checksums of its slices from the first one on.
    slices: Mutex<Vec<u64>>,
    /// How it was made, where it is a coded form.
    recipe: OnceLock<Arc<Recipe>>,
}

/// What [`Content::begin_again`] finds.
pub(crate) enum BeginAgain {
    /// The bytes are on their way, or are stored.
    Found,
    /// The caller is to bring the body again, from its first byte on.
    New(FillWriter),
    /// Too many do so already: wait for the end of this fill.
    Busy(Arc<Fill>),
    /// The bytes were never received.
    Unknown,
}

impl Content {
    /// Notes the checksum of a slice that was received for the first time.
    pub(super) fn note_sum(&self, index: u32, slice: &[u8]) {
        // Readers that are behind request parts by a validator; and the bytes of one slice are
        // given to a reader at once.
        if self.has_validator() || index == 0 && slice.len() < SLICE_BYTES {
            return;
        }
        let mut sums = self.sums_to_fill().slices.lock();
        if sums.len() == index as usize {
            sums.push(xxh3_64(slice));
        }
    }

    /// Whether a slice is the one that was received first; `None` when none was.
    fn is_same_slice(&self, index: u32, slice: &[u8]) -> Option<bool> {
        let sums = self.sums()?.slices.lock();
        Some(*sums.get(index as usize)? == xxh3_64(slice))
    }

    /// How many slices have a checksum.
    fn known_slices(&self) -> u64 {
        self.sums()
            .map_or(0, |sums| sums.slices.lock().len() as u64)
    }

    /// Notes how this coded form is made.
    pub(crate) fn set_recipe(&self, recipe: Arc<Recipe>) {
        let _ = self.sums_to_fill().recipe.set(recipe);
    }

    /// How this coded form was made.
    pub(crate) fn recipe(&self) -> Option<Arc<Recipe>> {
        self.sums()?.recipe.get().cloned()
    }

    /// Whether a reader at `at` can be given the rest by a repeat: its bytes were received, and all
    /// others were or still are.
    pub(crate) fn is_repeatable(&self, at: u64) -> bool {
        let known = self.known_slices();
        at / SLICE < known
            && (self
                .length()
                .is_some_and(|length| length.div_ceil(SLICE) <= known)
                || self.fills().running.iter().any(|fill| !fill.is_repeat()))
    }

    /// Begins to bring the body once more for a reader at `at`, which nothing else brings.
    pub(crate) fn begin_again(self: &Arc<Self>, at: u64) -> BeginAgain {
        let index = at / SLICE;
        let mut fills = self.fills();
        if fills.covering(at).is_some() || self.has_slice(index as u32) {
            return BeginAgain::Found;
        }
        if index >= self.known_slices() {
            return BeginAgain::Unknown;
        }
        let mut repeats = fills.running.iter().filter(|fill| fill.is_repeat());
        if let Some(first) = repeats.next()
            && repeats.count() + 1 >= REPEATS_MAX
        {
            return BeginAgain::Busy(first.clone());
        }

        let behind = fills
            .running
            .iter()
            .filter_map(|fill| fill.readers())
            .map(|readers| readers.slowest)
            .fold(at, u64::min);
        let first = behind.max(at.saturating_sub(SHARED_BEHIND)) / SLICE * SLICE;
        let fill = self.add_fill(&mut fills, first, None);
        fill.become_repeat();
        drop(fills);
        BeginAgain::New(FillWriter::new(self.clone(), fill, false))
    }
}

/// Writes a repeat from the pieces of the whole body, until it has met what is received for the
/// first time, or has no reader any more.
pub(crate) async fn repeat<E>(
    mut writer: FillWriter,
    mut pieces: impl Stream<Item = Result<Bytes, E>> + Unpin,
) {
    let content = writer.content().clone();
    let first = writer.fill().first();
    let mut charge = content.store().budget().charge(SLICE);
    let (mut slice, mut length, mut index) = (Vec::new(), 0, 0);
    loop {
        let (rest, is_end) = match pieces.next().await {
            Some(Ok(piece)) => (piece, false),
            Some(Err(_)) => return writer.fail(OriginError::Incomplete),
            None => (Bytes::new(), true),
        };
        let mut rest = rest;
        loop {
            let piece = rest.split_to(rest.len().min(SLICE_BYTES - length));
            length += piece.len();
            slice.push(piece);
            let is_complete = length == SLICE_BYTES || is_end && length > 0;
            if !is_complete {
                break;
            }
            let whole = content.store().arena().gather(&slice, length);
            match content.is_same_slice(index, &whole) {
                // What comes from here on is received for the first time by another fill.
                None => return writer.finish(),
                Some(false) => return writer.fail(OriginError::Unfit),
                Some(true) if u64::from(index) * SLICE < first => {}
                Some(true) => {
                    charge.set(0);
                    writer.write(whole);
                    writer.flush();
                    if !writer.pace().await {
                        return writer.fail(OriginError::GivenUp);
                    }
                    charge.set(SLICE);
                }
            }
            if writer.fill().reader_count() == 0 {
                return writer.fail(OriginError::GivenUp);
            }
            (length, index) = (0, index + 1);
            slice.clear();
        }
        if is_end {
            // An origin that sends less than before has sent another body.
            return match u64::from(index) < content.known_slices() {
                true => writer.fail(OriginError::Unfit),
                false => writer.finish(),
            };
        }
    }
}
