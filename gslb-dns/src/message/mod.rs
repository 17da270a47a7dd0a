//! DNS messages as bytes: a bounded parser for queries and a writer for responses.
//!
//! Owns header, question, EDNS and record framing (RFC 1035 section 4, RFC 6891, RFC 7871 section
//! 6). Knows no zones and no sockets. No library is used here: one would allocate for each query,
//! and the scope of the client subnet and the extended errors must be exact. In tests
//! `hickory-proto` checks every message.

pub mod registry;

mod edns;
mod name;
mod query;
mod service;
mod tsig;
mod writer;

pub use edns::{ClientSubnet, Cookie, Edns, OptRecord};
pub use name::{
    LABEL_BYTES_MAX, NAME_BYTES_MAX, QName, is_at_or_below, is_name, labels, name_bytes, parent,
    presentation,
};
pub use query::{QUERY_BYTES_MAX, Query, Question};
pub use registry::{class, flag, rcode, rtype};
pub use service::{ServiceParam, write_service};
pub use tsig::Tsig;
pub use writer::{Owner, Section, Writer};

/// Bytes of a message header.
pub const HEADER_BYTES: usize = 12;
/// Largest UDP response, whatever size the client offers (RFC 9715, DNS flag day 2020).
pub const UDP_BYTES_MAX: usize = 1232;
/// UDP response limit for clients without EDNS.
pub const UDP_BYTES_PLAIN: usize = 512;
/// Largest message over TCP.
pub const TCP_BYTES_MAX: usize = 65_535;
