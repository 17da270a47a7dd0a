//! The lab: starts roles and tools as processes, waits for conditions, and ends everything it
//! started.

pub mod addresses;
pub mod browser;
pub mod certificates;
pub mod compose;
pub mod edge;
pub mod fleet;
pub mod network;
pub mod process;
pub mod tools;
pub mod wait;
