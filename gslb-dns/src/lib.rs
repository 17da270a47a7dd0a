//! Authoritative DNS that gives each client the best edge cluster.
//!
//! A query's walk: `server` (sockets) -> `handler` (the steps in order) -> `wire` (bytes) ->
//! `answer` over `zone` (which records) -> `steer` (which addresses) -> `wire`. `rdata` reads
//! records as people write them, `serial` keeps the zones' serial, `cookie` makes DNS cookies,
//! `limit` keeps forged queries from using us, `kernel` talks to the system.

pub mod answer;
pub mod cookie;
pub mod handler;
pub mod kernel;
pub mod limit;
pub mod metrics;
pub mod rdata;
mod serial;
pub mod server;
mod start;
pub mod steer;
pub mod wire;
pub mod zone;

pub use crate::start::run;
