//! The origin: serves files of a directory to edges and to whoever asks, with what caches and
//! players need.
//!
//! A request's walk: [`server`] (sockets, limits) -> [`handler`] (the steps in order) -> [`path`]
//! (which file) -> [`coding`] (which variant) -> [`conditions`] (preconditions, range) -> [`rules`]
//! (content type, `Cache-Control`) -> [`body`]. [`demo`] writes the demo's pages and video.

mod body;
mod coding;
mod conditions;
pub mod demo;
mod handler;
mod metrics;
mod path;
mod rules;
mod server;
mod start;

pub use crate::start::run;
