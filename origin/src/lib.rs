//! The origin: serves the files of a directory to edges and other HTTP clients, with the fields that
//! caches and players need.
//!
//! The path of a request: [`server`] (sockets, limits) -> [`handler`] (the steps in order) ->
//! [`path`] (which file) -> [`representation`] (the file or a variant, by [`coding`]) ->
//! [`conditions`] (preconditions, range) -> [`rules`] (content type, `Cache-Control`) -> [`body`].
//! [`demo`] writes the demo's pages and video.

mod body;
mod coding;
mod conditions;
pub mod demo;
mod fields;
mod handler;
mod metrics;
mod path;
mod representation;
mod rules;
mod server;
mod start;

pub use crate::start::run;
