//! Authoritative DNS that gives each client the best edge cluster.
//!
//! The path of a query: `transport` (sockets) -> `handler` (the steps in order) -> `message` (bytes)
//! -> `answer` over `zone` (records) -> `steer` (addresses) -> `respond` (bytes). Beside it: `cookie`
//! makes DNS cookies, `challenges` holds the records of open orders of certificates, `limit` bounds the answers to forged queries, `metrics` counts, and `kernel`
//! holds the system calls. `start` starts and ends the role.

pub mod answer;
pub mod challenges;
pub mod cookie;
pub mod handler;
mod kernel;
pub mod limit;
pub mod message;
pub mod metrics;
pub mod places;
mod respond;
mod start;
pub mod steer;
pub mod transport;
pub mod zone;

pub use crate::start::run;
