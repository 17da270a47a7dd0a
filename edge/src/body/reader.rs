//! Reads a byte range of a representation from memory, running fills and the disk.

use std::sync::Arc;

use bytes::Bytes;

use super::content::Content;
use super::fill::{Fill, FillBytes, FillFollower, FillState, SLICE};
use crate::origin::OriginError;

/// What a reader finds at its offset.
#[derive(Debug)]
pub(crate) enum Next {
    /// Bytes; the reader is behind them now.
    Piece(Bytes),
    /// The end of its range.
    End,
    /// The slice at that offset is neither stored nor being filled.
    Missing,
    /// The fill that it waited for failed.
    Failed(OriginError),
}

/// What the followed fill offers a reader.
enum FromFill {
    Piece(Bytes),
    Failed(OriginError),
    /// Nothing; look in the store.
    Nothing,
}

/// Reads a range of a representation for one client.
#[derive(Debug)]
pub(crate) struct Reader {
    content: Arc<Content>,
    at: u64,
    end: Option<u64>,
    /// The fill that it follows.
    follower: Option<FillFollower>,
}

impl Content {
    /// A reader of a byte range. `end` is `None` while the length is unknown.
    pub(crate) fn reader(self: &Arc<Self>, first: u64, end: Option<u64>) -> Reader {
        self.add_reader();
        Reader {
            content: self.clone(),
            at: first,
            end,
            follower: None,
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.content.remove_reader();
    }
}

impl Reader {
    /// Offset of the next byte, and the end if it is known.
    pub(crate) fn range(&self) -> (u64, Option<u64>) {
        (self.at, self.end.or_else(|| self.content.length()))
    }

    /// The representation that it reads.
    pub(crate) fn content(&self) -> &Arc<Content> {
        &self.content
    }

    /// Whether a repeat can bring its bytes and all that come after them.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.content.is_repeatable(self.at)
    }

    /// Follows a fill from now on, so that its end is seen even when it ends before the first read.
    pub(crate) fn attach(&mut self, fill: Arc<Fill>) {
        self.follower = Some(FillFollower::new(fill, self.at));
    }

    /// Follows the fill that brings its bytes, if one does: from now on that fill knows that it has
    /// a reader there.
    pub(crate) fn attach_running(&mut self) {
        if self.follower.is_none()
            && let Some(fill) = self.content.fill_of(self.at)
        {
            self.attach(fill);
        }
    }

    /// The next bytes, waiting for the origin and the disk.
    pub(crate) async fn next(&mut self) -> Next {
        loop {
            if self.end.is_some_and(|end| self.at >= end) {
                return Next::End;
            }
            self.attach_running();

            // The newest bytes are in the fill only, and the store need not be looked through for
            // each piece of them.
            let in_fill = self.follower.as_ref().map(|f| f.fill().find(self.at));
            if let Some(FillBytes::Piece(piece)) = in_fill {
                return self.take(piece);
            }
            if let Some(piece) = self.piece_in_memory() {
                return self.take(piece);
            }
            // A fill that has no known end may bring again what is stored.
            if matches!(in_fill, Some(FillBytes::NotYet(_)))
                && self.content.has_slice(self.slice_index())
                && let Some(piece) = self.piece_on_disk().await
            {
                return self.take(piece);
            }
            match self.piece_in_fill().await {
                FromFill::Piece(piece) => return self.take(piece),
                FromFill::Failed(error) => return Next::Failed(error),
                FromFill::Nothing => {}
            }

            let length = self.content.length();
            if length.is_some_and(|length| self.at >= length) {
                return Next::End;
            }
            return match self.piece_on_disk().await {
                Some(piece) => self.take(piece),
                // Another fill began while the disk was read.
                None if self.follower.is_none() && self.content.fill_of(self.at).is_some() => {
                    continue;
                }
                None => Next::Missing,
            };
        }
    }

    /// Asks the followed fill and waits for it. Stops following it when it has nothing to offer.
    async fn piece_in_fill(&mut self) -> FromFill {
        let Some(follower) = &self.follower else {
            return FromFill::Nothing;
        };
        let at = self.at;
        let found = match follower.find(at).await {
            FillBytes::Piece(piece) => return FromFill::Piece(piece),
            FillBytes::NotYet(FillState::Failed(error))
                if follower.fill().end().is_none_or(|end| at < end) =>
            {
                FromFill::Failed(error)
            }
            // It has ended, or a seek has taken over the bytes from here on.
            FillBytes::Passed | FillBytes::NotYet(_) => FromFill::Nothing,
        };
        self.follower = None;
        found
    }

    fn take(&mut self, mut piece: Bytes) -> Next {
        if let Some(end) = self.end {
            piece.truncate((end - self.at).min(piece.len() as u64) as usize);
        }
        self.at += piece.len() as u64;
        if let Some(follower) = &self.follower {
            follower.advance(self.at);
        }
        Next::Piece(piece)
    }

    fn slice_index(&self) -> u32 {
        (self.at / SLICE) as u32
    }

    /// The part of a slice from the reader's offset on.
    fn rest_of(&self, slice: Bytes) -> Option<Bytes> {
        let offset = (self.at % SLICE) as usize;
        (offset < slice.len()).then(|| slice.slice(offset..))
    }

    fn piece_in_memory(&self) -> Option<Bytes> {
        self.content
            .slice_in_memory(self.slice_index())
            .and_then(|slice| self.rest_of(slice))
    }

    async fn piece_on_disk(&self) -> Option<Bytes> {
        let slice = self.content.read_slice(self.slice_index()).await?;
        self.rest_of(slice)
    }
}
