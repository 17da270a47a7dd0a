//! Any bytes as the begin of a connection: what is let pass is a whole head with one end, however
//! it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nearcast_edge::request_head::{BodyEnd, Judged, judge};
use nearcast_fleet::config::ClientLimits;

fuzz_target!(|input: &[u8]| {
    let limits = ClientLimits {
        head_bytes_max: 4096,
        fields_max: 16,
        ..ClientLimits::default()
    };
    match judge(input, &limits) {
        Judged::Incomplete => assert!(
            input.len() < limits.head_bytes_max,
            "a client cannot go on for ever"
        ),
        Judged::Whole { length, body } => {
            assert!(
                length <= input.len().min(limits.head_bytes_max)
                    && input[..length].ends_with(b"\r\n\r\n")
            );
            assert_eq!(
                judge(&input[..length], &limits),
                Judged::Whole { length, body },
                "what follows changes nothing"
            );
            assert_eq!(
                judge(&input[..length - 1], &limits),
                Judged::Incomplete,
                "it ends there and not before"
            );
            let head = input[..length].to_ascii_lowercase();
            let has = |name: &[u8]| head.windows(name.len()).any(|part| part == name);
            assert!(body != BodyEnd::Chunked || has(b"transfer-encoding") && has(b"chunked"));
            assert!(
                body == BodyEnd::Length(0) || body == BodyEnd::Chunked || has(b"content-length")
            );
        }
        Judged::Refused(refusal) => {
            assert!(
                refusal.status.is_client_error() || refusal.status.is_server_error(),
                "{refusal:?}"
            );
            assert!(
                refusal.words.ends_with('\n') && refusal.words.is_ascii(),
                "{refusal:?}"
            );
        }
    }
});
