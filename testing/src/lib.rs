//! Servers for the tests of several crates; `src/bin/` has the loads of `tests/bench`. Only
//! dev-dependencies name this crate.

mod origin;

pub use self::origin::{Gate, Origin, Reply, Seen};
