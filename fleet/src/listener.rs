//! Moved to [`nearcast_net::address`].

pub use nearcast_net::address::*; // alias until the parts are merged
