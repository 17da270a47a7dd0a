//! Stored responses: what a look-up finds for a cache key, and what purges say of it.
//!
//! [`response`] is one stored response and its form on disk, [`head`] its text, [`index`] finds
//! them by cache key, [`load`] brings back those whose head is on disk only,
//! [`generations`] holds the purges that cover them, and [`covered`] takes out and counts what a purge
//! covers. The bytes of their bodies are in [`crate::body`].

pub(crate) mod covered;
pub(crate) mod generations;
pub(crate) mod head;
pub(crate) mod index;
pub(crate) mod load;
pub(crate) mod response;
