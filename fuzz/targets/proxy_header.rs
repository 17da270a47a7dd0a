//! Any bytes as the start of a connection with the PROXY protocol: a header is found at the same
//! place however much has come, and within its limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nearcast_net::proxy_header::{self, Parsed, V2_BYTES_MAX};

/// Longest header of which every beginning is tried.
const ALL_BEGINNINGS_MAX: usize = 256;

fuzz_target!(|input: &[u8]| {
    match proxy_header::parse(input) {
        Ok(Parsed::Whole(length, header)) => {
            assert!(0 < length && length <= input.len().min(V2_BYTES_MAX));
            let alone = proxy_header::parse(&input[..length]);
            assert!(matches!(alone, Ok(Parsed::Whole(same, of)) if same == length && of == header));
            for at in 0..length.min(ALL_BEGINNINGS_MAX) {
                match proxy_header::parse(&input[..at]) {
                    // What is read next is the header's own.
                    Ok(Parsed::Incomplete(more)) => assert!(more > 0 && at + more <= length),
                    other => panic!("{other:?} of {at} bytes"),
                }
            }
        }
        Ok(Parsed::Incomplete(more)) => {
            assert!(more > 0 && input.len() + more <= V2_BYTES_MAX);
        }
        Err(error) => assert!(proxy_header::ProxyHeaderError::REASONS.contains(&error.reason())),
    }
});
