//! The edge: a pull cache in front of an origin, one of several in a cluster.
//!
//! - [`serve`]: a client's connection, its limits, and one protocol a module.
//! - [`request`]: the life of one request, in order; [`nearcast_http_rules`]: its decisions, as pure
//!   functions. [`client_body`], [`interim`]: what a protocol is given to write, beside a response's
//!   head; [`request_body`]: what it gives to be read.
//! - [`forward`]: forward requests that fill the store, shared by all clients that want the same;
//!   [`origin`]: the pool of connections under them; [`body`]: the bytes of a representation, from
//!   fills to readers.
//! - [`compress`]: makes the coded forms of bodies, once for all clients.
//! - [`stored`], [`spellings`]: stored responses and the purges that cover them; [`nearcast_store`]: their
//!   slices, in memory and on disk.
//! - [`changes`]: the latest changes by unsafe requests; [`journal`]: folds the control journal;
//!   [`push`]: carries out push orders.
//! - [`start`]: the stages of the role, from its listeners to its drain; [`lifecycle`]: whether the
//!   node accepts clients, is drained, or is shutting down.
//! - [`access_log`]: lines and traces of requests; [`request_id`]: their ids; [`traces`]: answers
//!   control's questions about them.
//! - [`metrics`], [`popularity`], [`rtt`], [`report`]: what the node counts and reports.
//! - [`certificates`]: those that clients are shown, and their files; [`ticket_keys`] come from
//!   control; [`challenges`]: the files that authorities ask for; [`own_certificates`]: ordered by this node.
//! - [`site`]: sites by their hosts; [`peer`]: what nodes of a cluster send each other; [`clock`]:
//!   the time of day, as an argument.
//!
//! One current-thread runtime a worker, SO_REUSEPORT, shared index; counters are each worker's own.

mod access_log;
mod body;
mod certificates;
mod challenges;
mod changes;
mod client_body;
mod clock;
mod compress;
#[cfg(test)]
mod documented;
mod edge;
mod forward;
#[doc(hidden)]
pub mod fuzzing;
mod heap;
mod interim;
mod journal;
mod kernel;
mod lifecycle;
mod metrics;
mod node_certificates;
mod origin;
mod own_certificates;
mod peer;
mod popularity;
mod proxies;
mod push;
mod report;
mod request;
mod request_body;
mod request_id;
mod rtt;
mod serve;
mod site;
mod spellings;
mod start;
mod stored;
mod ticket_keys;
mod traces;

pub use self::serve::http1::judge as request_head;
pub use crate::start::run;
