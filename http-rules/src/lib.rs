//! The rules of an HTTP shared cache as pure functions: fields, settings and the time are the
//! arguments, a named outcome is the result.
//!
//! The crate has no sockets, clocks, stores and tasks. Times are milliseconds after the Unix epoch
//! (`_ms`), durations are seconds. It follows RFC 9110, 9111, 9211, 9213, 5861, 6797, 7239, 8246, 8470,
//! 8586, 9209 and 9875.
//!
//! The modules in the order in which one request uses them:
//!
//! 1. [`transfer_coding`]: whether the body of a message can be read.
//! 2. [`proxies`]: the client and its scheme, where a trusted proxy is in front; [`https`]: whether
//!    it is redirected; [`key`]: the cache key, and whether method and path allow an answer from the store.
//! 3. [`vary`]: which stored response a request selects; [`coding`]: the content codings that it
//!    accepts.
//! 4. [`reuse`]: whether the selected response may be used now, by its [`freshness`]; [`decide`]: what
//!    happens next: it is served, validated, or a request is forwarded.
//! 5. [`compress`]: which form of it the client gets, plain or with a content coding; [`conditional`]
//!    and [`range`]: which part of that form.
//! 6. [`request_fields`]: which fields of a client reach the origin, and which make a response
//!    specific to one client; [`forward`]: the fields of the forward request and of the response to
//!    the client.
//! 7. [`storing`]: whether the response of the origin may be stored, else a [`not_stored`] reason;
//!    [`invalidate`]: which stored responses it invalidates.
//! 8. [`finish`]: whether a fill without readers continues.
//! 9. [`status`]: the outcome for `Cache-Status`, `Proxy-Status`, metrics and the log.
//!
//! Below them is the grammar of fields: lists in [`fields`], cache directives in [`cache_control`],
//! structured fields in [`structured`], [`dates`].

pub mod cache_control;
pub mod coding;
pub mod compress;
pub mod conditional;
pub mod dates;
pub mod decide;
pub mod fields;
pub mod finish;
pub mod forward;
pub mod freshness;
pub mod https;
pub mod invalidate;
pub mod key;
pub mod not_stored;
pub mod proxies;
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
