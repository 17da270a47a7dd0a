//! What an HTTP shared cache decides, as pure functions: fields, settings and the time go in, a
//! named outcome comes out.
//!
//! Knows no sockets, clocks, stores or tasks. Times are milliseconds after the Unix epoch (`_ms`),
//! spans are seconds. Follows RFC 9110, 9111, 9211, 9213, 5861, 8586, 9209 and 9875.
//!
//! In the order in which one request asks:
//! - [`key`]: what the request is for, and whether its method and path may be answered from the
//!   store.
//! - [`vary`]: which stored response it selects; [`reuse`]: whether that one may be used now.
//! - [`decide`]: the one answer to what happens next: serve it, validate it, ask the origin.
//! - [`conditional`] and [`range`]: what of it the client wants.
//! - [`request_fields`]: which of a client's fields reach the origin, and which make an answer one
//!   client's own; [`forward`]: the request to the origin, and the fields of what goes back to the
//!   client.
//! - [`freshness`]: whether and for how long the answer may be stored; [`invalidate`]: what it
//!   makes unusable.
//! - [`finish`]: whether it goes on coming when nobody reads it any more.
//! - [`status`]: the one value that feeds `Cache-Status`, `Proxy-Status`, metrics and log.
//! - [`transfer_coding`]: whether a message's body can be read at all.
//! - [`fields`]: the grammar under all of them.

pub mod cache_control;
pub mod coding;
pub mod conditional;
pub mod dates;
pub mod decide;
pub mod fields;
pub mod finish;
pub mod forward;
pub mod freshness;
pub mod invalidate;
pub mod key;
pub mod not_stored;
pub mod range;
pub mod request_fields;
pub mod reuse;
pub mod status;
pub mod storing;
pub mod structured;
pub mod transfer_coding;
pub mod vary;
#[cfg(test)]
mod walk;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
