//! The control role: the journal of changes, the API and the console, the push job.
//!
//! - `api` answers `/v1` (examples in `API.md`, schema at `/v1/openapi.json`) and serves the
//!   console; `server` accepts connections under the limits of `admission`. `views` are the API's
//!   JSON types.
//! - `journal` is the journal that nodes follow; `fleet_file` decides which fleet file is in force.
//! - `fleet_state` folds reports into the state of the fleet: nodes, time series, purges, push
//!   orders. `event_log` keeps the newest events.
//! - `persist` keeps on disk, over restarts, what reports and events alone have shown; `history`
//!   reads it and the journal at start.
//! - `certificates` has certificates ordered (by `nearcast-acme`) and answers authorities by the
//!   journal.
//! - `push` turns reported popularity into push orders, with the pure rules of `nearcast-push`.
//! - `tasks` is the periodic work.
//!
//! Nothing that serves clients depends on this role: while it is down, there are no changes and no
//! console.
//!
//! The fleet file in force is the one that changed last: the journal's newest revision, unless the
//! file on disk was edited since control last read it (at start or on SIGHUP). An edited file is
//! recorded as a new revision.

mod admission;
mod api;
mod asking;
mod certificates;
mod dir;
mod error;
mod event;
mod event_log;
mod fleet_file;
mod fleet_state;
mod history;
mod journal;
mod kernel;
mod metrics;
mod node_keys;
mod persist;
mod push;
mod server;
mod start;
mod state;
mod tasks;
mod ticket_keys;
mod traces;
mod views;

pub use crate::start::run;
