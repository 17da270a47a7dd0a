//! Which bytes stay: the policies of both tiers, as data structures without locks, clocks and I/O.
//!
//! - [`memory`]: which entry of the memory tier goes next. It weighs requests served a byte.
//! - [`disk`]: where a record goes in the log of regions, and what happens to it when its region is
//!   reclaimed. It weighs bytes served.
//! - [`ghost`]: keys that are no longer held, in six bytes each.
//!
//! A hit calls neither policy. It sets a counter of its entry, which the tier owns; the policy reads
//! the counter when it considers the entry for eviction. Keys are 64-bit hashes that the caller has
//! seeded, so clients cannot choose them.

pub mod disk;
mod ghost;
pub mod memory;

pub use disk::{DiskPolicy, Fate, Stream};
pub use memory::MemoryPolicy;
