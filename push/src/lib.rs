//! What tomorrow's popular content is, and what of it fits: the pure half of a push.
//!
//! [`popularity`] folds the edges' request counts, [`forecast`] makes the next day's expectation of
//! them, [`plan`] chooses what to fill under a cluster's disk share and fill budget and proves how
//! far from the best that choice can be, [`schedule`] knows when a cluster's local off-peak window
//! is, and [`account`] sums up what a push cost and earned.
//!
//! Nothing here opens a socket, reads a clock or logs: time comes in as an argument, so a day of
//! traffic is a loop in a test. The control role owns the state and issues the orders.

pub mod account;
pub mod forecast;
pub mod plan;
pub mod popularity;
pub mod schedule;
