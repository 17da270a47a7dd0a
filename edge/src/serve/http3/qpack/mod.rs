//! Compression of fields without a dynamic table (RFC 9204).
//!
//! This node offers a table of no bytes and uses none, so each section stands for itself, and no
//! stream waits for another.

mod decode;
pub(super) mod encode;
mod huffman;
mod static_table;

pub(super) use self::decode::{FieldSection, SectionFault, SectionLimits, integer};
