//! Any bytes as the begin of a connection, read by the edge's own HTTP/1 parser: it accepts heads
//! that the first check accepts, with the same end, and what follows a head changes nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nearcast_edge::fuzzing::fuzz_head;
use nearcast_edge::request_head::{BodyEnd, Judged, judge};
use nearcast_fleet::config::ClientLimits;

fuzz_target!(|input: &[u8]| {
    let limits = ClientLimits {
        head_bytes_max: 4096,
        fields_max: 16,
        ..ClientLimits::default()
    };
    let judged = judge(input, &limits);
    // The edge reads a head only after it has been judged.
    let Judged::Whole { length, body } = judged else {
        let _ = fuzz_head(input, &limits);
        return;
    };

    let accepted = fuzz_head(&input[..length], &limits);
    assert_eq!(
        fuzz_head(input, &limits),
        accepted,
        "what follows a head changes nothing"
    );
    if let Some((accepted, _)) = accepted {
        assert_eq!(accepted, length, "both find the same end");
        assert_eq!(
            body,
            BodyEnd::Length(0),
            "heads of requests with a body are not accepted"
        );
    }
});
