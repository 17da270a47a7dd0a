//! The bytes of one representation: slices in the store, slices that fills are receiving, and the
//! readers that take both.
//!
//! - [`content`]: the representation, with its running fills and a count of its readers.
//! - [`coded`]: its coded forms, each a content of its own.
//! - [`fill`]: the bytes that one forward request brings, until the store has them.
//! - [`writer`]: the writing side of a fill.
//! - [`windows`]: how much of the memory fills hold for their readers.
//! - [`reader`]: reads a byte range for one client.
//! - [`seek`]: permission to fetch bytes far ahead of a running fill.
//! - [`again`]: brings a body once more, where no parts of it can be requested.
//!
//! A fill runs as a task of its own. It writes into the store, and readers wait for bytes, never for
//! whole slices. Eviction never ends a reader:
//!
//! - Where the disk takes the slices, a fill waits for no reader: who is behind reads from disk.
//! - Otherwise a fill holds its complete slices for the readers that follow it, in its *window*: a
//!   quarter of the memory tier, divided among the fills that run, but at least 64 KiB for each. What
//!   it holds is charged to the budget of the store, beside the slice that is being received. So
//!   `n` fills take at most a quarter of the memory, or `n` times (256 + 64 KiB and one read of the
//!   origin's connection) where that is more. Fills that have ended hold slices for readers that are
//!   behind in another quarter.
//! - A fill whose window is full waits for its *fastest* reader. So the only reader sets the pace,
//!   and a slow reader never slows a fast one.
//! - A reader that is more than the window behind the fastest finds its slices in the store, or
//!   *missing*. With a strong validator it requests the missing ones as a range, beginning a fill
//!   that others share and that is paced like any other: the origin sends two bodies for any number
//!   of fast readers and slow ones that read at one pace. Without one, the whole body is requested
//!   once more, from its first byte on, and readers see only slices with the checksum of the first
//!   ones ([`again`]): as many bytes. A coded form is made again from the body, with the same
//!   settings and flushes, and compared in the same way. At most four repeats of a body run at once.
//! - A reader ends early where the origin has another representation by now, where its fill failed
//!   and cannot be resumed, or the origin fails again and again.
//!
//! A body that turns out to be too large for the store is relayed: nothing of it is stored, and its
//! fill ends with its last reader. A reader holds one slice. A reader far ahead of a fill need not
//! wait for it: a seek takes over the slices from there on.
//!
//! This module asks no origin and writes no HTTP.

mod again;
mod coded;
mod content;
mod fill;
mod reader;
mod seek;
mod windows;
mod writer;

#[cfg(test)]
mod tests;

pub(crate) use again::{BeginAgain, repeat};
pub(crate) use coded::BeginCoded;
pub(crate) use content::Content;
pub(crate) use fill::{Fill, FillState};
pub(crate) use reader::{Next, Reader};
pub(crate) use windows::Windows;
pub(crate) use writer::FillWriter;
