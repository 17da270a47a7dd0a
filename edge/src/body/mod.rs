//! The bytes of one representation: slices in the store, slices that fills are receiving, and the
//! readers that take both.
//!
//! - [`content`]: the representation, with its running fills and a count of its readers.
//! - [`coded`]: its coded forms, each a content of its own.
//! - [`fill`]: the bytes that one forward request brings, until the store has them.
//! - [`writer`]: the writing side of a fill.
//! - [`reader`]: reads a byte range for one client.
//! - [`seek`]: permission to fetch bytes far ahead of a running fill.
//!
//! A fill runs as a task of its own. It writes into the store and keeps its last few slices in
//! memory. Readers wait for bytes, never for whole slices, and no reader slows a fill down, with one
//! exception: a body that turns out to be too large for the store is relayed at the pace of its
//! slowest reader, at most [`fill::RELAY_SLICES`] ahead of it. A reader far ahead of a fill need not
//! wait for it: a seek takes over the slices from there on.
//!
//! This module asks no origin and writes no HTTP.

mod coded;
mod content;
mod fill;
mod reader;
mod seek;
mod writer;

#[cfg(test)]
mod tests;

pub(crate) use coded::BeginCoded;
pub(crate) use content::Content;
pub(crate) use fill::{Fill, FillState};
pub(crate) use reader::{Next, Reader};
pub(crate) use writer::FillWriter;
