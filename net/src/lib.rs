//! Sockets for every role: listeners, accepting under a limit, HTTP/1.1 with time-outs, drain.
//!
//! - [`address`] parses a listener as a person writes it; [`listen`] opens it.
//! - [`accept`] accepts connections until shutdown, survives the errors of the system, and answers
//!   the connections that are queued when shutdown begins.
//! - [`proxy_header`] reads the header by which a proxy names a connection's client.
//! - [`serve`] serves HTTP/1.1 on one connection, for the listeners of control, origin and admin.
//!   The edge has its own HTTP/1.1 loop, and DNS its own messages.
//! - [`stamp`] shows that a file has changed since it was read.
//! - [`quic`] has the sockets, connection IDs and tokens of a QUIC server.
//! - [`tls`] has certificates, handshakes and session tickets.
//! - [`linger`] ends a connection whose peer may still be sending.
//! - [`shutdown`] is the value that all of them wait for.
//!
//! This crate is the lowest of the workspace and depends on none of the others. It must not know
//! the fleet file, nor the content of a response.

pub mod accept;
pub mod address;
pub mod linger;
pub mod listen;
pub mod proxy_header;
pub mod quic;
pub mod serve;
pub mod shutdown;
pub mod stamp;
pub mod tls;
