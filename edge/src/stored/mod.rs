//! Stored responses: what a look-up finds for a cache key, and what purges say of it.
//!
//! [`response`] is one stored response and its form on disk, [`index`] finds them by cache key,
//! [`generations`] holds the purges that cover them, and [`recover`] restores them from the disk at
//! start. The bytes of their bodies are in [`crate::body`].

pub(crate) mod generations;
pub(crate) mod index;
pub(crate) mod recover;
pub(crate) mod response;
