//! The life of a client's request, from its head to the response that answers it.
//!
//! - [`handler`]: the steps in order. [`check`]: which site and URL the request names, or why it is
//!   rejected.
//! - [`hit`]: the stored response that a request selects, and the fast path for hits. [`form`]: the
//!   form that a request gets, plain or coded. [`deliver`]: a stored response made into one client's:
//!   conditions, ranges, body.
//! - [`miss`]: a request that is forwarded, or waits for another one. [`stale`]: a stored response
//!   whose validation fails, or runs in the background.
//! - [`pass`]: requests that go to the origin as the client made them, and what they invalidate.
//!   [`to_origin`]: the request that the origin gets.
//!   [`upgrade`]: requests for a WebSocket. [`purge_request`]: the method `PURGE`.
//! - [`answer`]: the answers of this node's own, and the fields that every answer carries.
//!   [`account`]: counters and popularity. [`trail`]: a request's id, and what is logged of it.
//!
//! [`nearcast_http_rules::decide`] decides, these modules act. They know no protocol version: a
//! protocol under [`crate::serve`] hands requests in and writes what comes out.

mod account;
mod answer;
pub(crate) mod check;
mod deliver;
mod form;
pub(crate) mod handler;
pub(crate) mod hit;
mod miss;
mod pass;
pub(crate) mod purge_request;
mod stale;
mod to_origin;
mod trail;
pub(crate) mod upgrade;
