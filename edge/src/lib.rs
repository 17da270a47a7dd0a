//! The edge: a pull cache in front of an origin, one of several in a cluster.
//!
//! - [`server`]: listeners of one worker thread; [`connection`]: a client's socket with its
//!   time-outs; [`request_head`]: what is refused before anything else looks at it; [`http1`]: the
//!   requests and responses on it; [`connections`]: how many there may be, and which give way;
//!   [`interim`]: the responses that come before a response.
//! - [`handler`]: the life of one request, in order; [`nearcast_http_rules`]: its questions, answered by pure
//!   functions.
//! - [`upgrade`]: connections that become WebSockets.
//! - [`fill`]: forward requests that fill the store, shared by everybody who wants the same;
//!   [`origin`]: the pool of connections under them; [`content`]: bytes on their way and the
//!   readers that follow them.
//! - [`index`], [`response`], [`spellings`]: what is stored; [`store`]: the slices themselves, in
//!   memory and on disk.
//! - [`changes`]: what unsafe requests have changed; [`purge`]: generations; [`journal`]: folds the
//!   control journal into them; [`push`]: carries out push orders.
//! - [`purge_request`]: the method `PURGE`, which control is asked about.
//! - [`standing`]: whether the node wants clients: drained, or on its way to its end.
//! - [`start`]: the stages of the role, from its listeners to its drain.
//! - [`metrics`], [`popularity`], [`rtt`], [`report`]: what the node tells about itself.
//!
//! One current-thread runtime a worker, SO_REUSEPORT, shared index; counters are each worker's own.

mod body;
mod changes;
mod connection;
mod connections;
mod content;
mod edge;
mod fill;
mod handler;
mod http1;
mod index;
mod interim;
mod journal;
mod kernel;
mod metrics;
mod origin;
mod popularity;
mod purge;
mod purge_request;
mod push;
mod report;
pub mod request_head;
mod response;
mod rtt;
mod server;
mod spellings;
mod standing;
mod start;
pub mod store;
mod upgrade;

pub use crate::start::run;
