//! Forward requests that fill the store: shared by all clients that want the same response
//! (collapsed), resumed after a cut, and the requests for slices that a stored response lacks.
//!
//! [`collapse`] decides which request leads and what its followers receive. [`fetch`] sends one
//! [`ForwardRequest`]; [`head`] decides what its response leads to. [`wanted`] decides which slices a
//! range request asks for. [`pump`] moves a body into a fill; [`refill`] requests the slices
//! that a stored response lacks. [`pacer`] holds push orders back to their rate, [`permit`] limits
//! how many fills run.
//!
//! A fill is a task of its own and outlives the client that began it, unless it has no reader any
//! more and [`finish`](nearcast_http_rules::finish) decides that too much of it is left, or so many
//! fills run that those without a reader have to end. A client that waits learns the outcome of the
//! head, then reads from the store as bytes are received.

mod collapse;
mod fetch;
mod head;
mod origin_request;
mod pacer;
mod permit;
mod pump;
pub(crate) mod refill;
mod representation;
#[cfg(test)]
mod simulation;
mod wanted;

pub(crate) use self::collapse::{FollowerStep, Forwards, Join, Requester, SharedError, Turns};
pub(crate) use self::fetch::{ForwardRequest, Forwarded};
pub(crate) use self::head::Cookies;
pub(crate) use self::origin_request::OriginRequest;
pub(crate) use self::pacer::Pacer;
pub(crate) use self::wanted::WantedSlices;
