//! Servers for the tests of several crates. Only dev-dependencies name this crate.

mod origin;

pub use self::origin::{Gate, Origin, Reply, Seen};
