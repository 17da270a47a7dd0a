//! Field sections as they are written: entries of the static table, and literals. Sections depend on
//! no other, so one that was written once can be sent at any time.
//!
//! Follows RFC 9204 section 4.5.

use http::{HeaderMap, StatusCode};

use super::static_table::find;

/// The prefix of a section without dynamic entries.
const PREFIX: [u8; 2] = [0, 0];

/// Begins a section, of a response with this status.
pub(in crate::serve::http3) fn begin(output: &mut Vec<u8>, status: StatusCode) {
    output.extend_from_slice(&PREFIX);
    write_field(output, ":status", status.as_str().as_bytes());
}

/// Appends all fields.
pub(in crate::serve::http3) fn write_fields(output: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        write_field(output, name.as_str(), value.as_bytes());
    }
}

/// Appends one field, whose name is in lower case.
pub(in crate::serve::http3) fn write_field(output: &mut Vec<u8>, name: &str, value: &[u8]) {
    match find(name, value) {
        Some((index, true)) => write_integer(output, 0b1100_0000, 6, index),
        Some((index, false)) => {
            write_integer(output, 0b0101_0000, 4, index);
            write_string(output, value);
        }
        None => {
            write_integer(output, 0b0010_0000, 3, name.len() as u64);
            output.extend_from_slice(name.as_bytes());
            write_string(output, value);
        }
    }
}

fn write_string(output: &mut Vec<u8>, value: &[u8]) {
    write_integer(output, 0, 7, value.len() as u64);
    output.extend_from_slice(value);
}

/// Appends an integer whose first bits are those of `first` (RFC 7541 section 5.1).
pub(super) fn write_integer(output: &mut Vec<u8>, first: u8, bits: u32, value: u64) {
    let most = (1u64 << bits) - 1;
    if value < most {
        output.push(first | value as u8);
        return;
    }
    output.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        output.push(rest as u8 | 128);
        rest >>= 7;
    }
    output.push(rest as u8);
}
