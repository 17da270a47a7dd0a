//! The control role over real sockets, as operators, nodes and the console use it.

mod drains;
mod fleet_file;
mod keys;
mod lab;
mod purges;
mod pushes;
mod requests;
mod restarts;
mod status;
