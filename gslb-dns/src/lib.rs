//! placeholder
pub mod steer;
