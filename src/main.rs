//! The command line of Nearcast.
fn main() {}
