//! End-to-end tests of the built binary with real clients: each module is one behaviour, each test
//! reads like its name.
//!
//! Every test runs a fleet of its own on loopback addresses that no other test has, so they run
//! side by side.

#![allow(
    clippy::print_stderr,
    reason = "a test that fails shows the logs of what it ran"
)]
#![allow(
    unreachable_pub,
    reason = "`pub` marks what the lab offers to the tests"
)]

mod keys;
mod lab;

mod access_log;
mod acme;
mod alt_svc;
mod bad_input;
mod browser;
mod budget;
mod cache;
mod collapse;
mod compose;
mod compression;
mod control_down;
mod crowded;
mod demo;
mod disk;
mod drain;
mod early;
mod examples;
mod failover;
mod fleet_file;
mod full_disk;
mod history;
mod http2;
mod http2_clients;
mod http2_origin;
mod http3;
mod https;
mod https_records;
mod media;
mod metrics;
mod names;
mod nodes_https;
mod player;
mod privileges;
mod proxies;
mod purge;
mod pushed;
mod quic;
mod quick_edge;
mod quick_https;
mod readme;
mod resolver;
mod round_trip;
mod steering;
mod tls;
mod trace;
mod websocket;
mod where_names_lead;
