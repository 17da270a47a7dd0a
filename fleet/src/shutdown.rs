//! Moved to [`nearcast_net::shutdown`].

pub use nearcast_net::shutdown::*; // alias until the parts are merged
