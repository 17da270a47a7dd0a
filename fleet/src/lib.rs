//! The parts that Nearcast's roles share:
//!
//! - configuration: [`file`] parses the fleet file into a [`config::Fleet`]; [`units`],
//!   [`lookup`], [`secret`];
//! - certificates: [`wanted_certificates`] says which control orders;
//! - changes: [`change`] defines them, [`journal`] stores them at control, [`follow`] brings them
//!   to the nodes, [`framed`] is the file format of both, [`drains`] and [`scope`] interpret them;
//! - reports: [`report`] defines them, [`reporter`] sends them with [`client`] and [`node_key`];
//!   [`trace`]: questions about single requests;
//! - processes: [`admin`], [`role`], [`own_names`], [`failure`]; [`listener_tls`], `trust` and
//!   [`ticket_keys`] are TLS between the nodes, [`node_certificates`] brings edges what they show;
//! - [`clock`], [`random`], [`request_fields`]: rules and sums that several roles must
//!   agree on.
//!
//! This crate knows nothing of HTTP caching, DNS answers and planning. The roles depend on it, and
//! it depends on none of them.

pub mod admin;
pub mod change;
pub mod client;
pub mod clock;
pub mod config;
pub mod drains;
pub mod failure;
pub mod file;
mod fold;
pub mod follow;
pub mod framed;
pub mod journal;
pub mod listener_tls;
pub mod lookup;
pub mod node_certificates;
pub mod node_key;
pub mod own_names;
pub mod random;
pub mod report;
pub mod reporter;
pub mod request_fields;
pub mod role;
pub mod scope;
pub mod secret;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod ticket_keys;
pub mod trace;
mod trust;
pub mod units;
pub mod wanted_certificates;
