//! The edge.
mod kernel;
pub mod store;
