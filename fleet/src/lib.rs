//! What Nearcast's roles share: the fleet file, the control journal and how nodes follow it, the
//! reports that nodes send one another, the admin listener, the fleet's clock, failures with exit
//! codes, shutdown.
//!
//! This crate knows nothing of HTTP caching, DNS answers or planning; the roles depend on it and it
//! depends on none of them.

pub mod admin;
pub mod change;
pub mod client;
pub mod clock;
pub mod config;
pub mod disk;
pub mod drains;
pub mod failure;
pub mod file;
mod fold;
pub mod follow;
pub mod framed;
pub mod journal;
pub mod listener;
pub mod lookup;
pub mod node_key;
pub mod own_names;
pub mod random;
pub mod report;
pub mod reporter;
pub mod request_fields;
pub mod scope;
pub mod secret;
pub mod shutdown;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod units;
