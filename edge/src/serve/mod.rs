//! A client's connection: its socket, its limits, and one protocol a module.
//!
//! Reads requests, has [`crate::request`] answer them, and writes what it gives. Knows nothing of
//! caching.
//!
//! - [`server`]: listeners of one worker, accepting under a limit, drain. [`connection`]: the steps
//!   before the first request; [`handshake`]: that of TLS; [`transport`]: TCP alone, or TLS on it.
//! - [`connections`]: how many connections there may be, and which are closed to make room.
//! - [`socket`]: time-outs and the orderly end of a connection; [`phase`]: what it is doing.
//! - [`quic`]: accepting connections of QUIC, and their handshakes.
//! - [`http1`]: HTTP/1.1; [`http2`]: HTTP/2; [`http3`]: HTTP/3; [`tunnel`]: the bytes of a connection that became a WebSocket.

pub(crate) mod connection;
pub(crate) mod connections;
pub(crate) mod handshake;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod http3;
mod phase;
pub(crate) mod quic;
pub(crate) mod server;
mod socket;
mod transport;
mod tunnel;
