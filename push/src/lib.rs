//! Predicts tomorrow's popular content and chooses the part that fits: the pure half of a push.
//!
//! [`popularity`] accumulates the edges' request counts, [`forecast`] derives the next day's
//! expected requests, [`plan`] chooses the content to fetch within a cluster's disk share and fill
//! budget and bounds its distance from the optimum, [`schedule`] computes a cluster's local
//! off-peak window, and [`account`] sums up cost and yield of a push.
//!
//! Nothing here opens a socket, reads a clock or logs: the time is an argument, so a test runs a
//! day of traffic in a loop. The control role owns the state and issues the orders.

pub mod account;
pub mod forecast;
pub mod plan;
pub mod popularity;
pub mod schedule;
