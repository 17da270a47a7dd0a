//! Sockets for every role: listeners, accepting under a limit, HTTP/1.1 with time-outs, drain.
//!
//! - [`address`] parses a listener as a person writes it; [`listen`] opens it.
//! - [`accept`] accepts connections until shutdown, survives the errors of the system, and answers
//!   the connections that are queued when shutdown begins.
//! - [`serve`] serves HTTP/1.1 on one connection, for the listeners of control, origin and admin.
//!   The edge has its own HTTP/1.1 loop, and DNS its own messages.
//! - [`shutdown`] is the value that all of them wait for.
//!
//! This crate is the lowest of the workspace and depends on none of the others. It must not know
//! the fleet file, nor the content of a response.
//!
//! TLS belongs in a module `tls` between [`accept`] and the protocols: certificates by server name,
//! their reload, and the protocol that ALPN selected. QUIC belongs in a module `quic` beside
//! [`accept`]: one endpoint for HTTP/3 and DNS over QUIC. Both use [`listen`] and [`shutdown`].

pub mod accept;
pub mod address;
pub mod listen;
pub mod serve;
pub mod shutdown;
