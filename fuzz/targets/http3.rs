//! Any bytes as what a client of HTTP/3 sends: field sections, frames in pieces, SETTINGS and
//! instructions of QPACK.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nearcast_edge::fuzzing::fuzz_http3;

fuzz_target!(|input: &[u8]| {
    let Some((cut, input)) = input.split_first() else {
        return;
    };
    fuzz_http3(input, usize::from(*cut));
});
