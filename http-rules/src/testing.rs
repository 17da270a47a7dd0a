//! Helpers for tests of this crate and of its users: fields from text, dates, and generated field
//! values.

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// 2026-01-01T00:00:00Z.
pub const NOW_S: u64 = 1_767_225_600;
/// The same in milliseconds.
pub const NOW_MS: u64 = NOW_S * 1000;

/// The same cases in every run; `PROPTEST_RNG_SEED` and `PROPTEST_CASES` choose others.
pub fn seeded() -> ProptestConfig {
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    match config.rng_seed {
        RngSeed::Random => ProptestConfig {
            rng_seed: RngSeed::Fixed(SEED),
            ..config
        },
        RngSeed::Fixed(_) => config,
    }
}

const SEED: u64 = 0x6e65_6172;

/// Fields from text: `name: value` lines, trimmed.
pub fn map(lines: &[&str]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').expect("a colon");
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        fields.append(
            name,
            HeaderValue::from_bytes(value.trim().as_bytes()).expect("a value"),
        );
    }
    fields
}

/// The date this number of seconds after [`NOW_S`], or before it.
pub fn date(offset: i64) -> String {
    let value = crate::dates::format_date(NOW_S.saturating_add_signed(offset));
    value.to_str().expect("ASCII").to_owned()
}

/// A field value of any valid bytes, with more of those that have a meaning in the grammar.
pub fn value() -> impl Strategy<Value = HeaderValue> {
    let byte = prop_oneof![
        4 => proptest::sample::select(b",;=\"\\ -*?:()/0123456789W.".to_vec()),
        4 => 0x61u8..0x7b,
        1 => 0x80u8..=0xff,
        1 => 0x21u8..0x7f,
    ];
    proptest::collection::vec(byte, 0..80)
        .prop_map(|bytes| HeaderValue::from_bytes(&bytes).expect("valid bytes"))
}

/// A field value of these pieces in any order.
pub fn pieces(known: &'static [&'static str]) -> impl Strategy<Value = HeaderValue> {
    let piece = prop_oneof![
        8 => proptest::sample::select(known).prop_map(str::to_owned),
        2 => proptest::sample::select(&[",", ", ", "=", "\"", ";", "-", "0", "99999999999999999999", "\\"][..]).prop_map(str::to_owned),
    ];
    proptest::collection::vec(piece, 0..12)
        .prop_map(|found| HeaderValue::try_from(found.concat()).expect("valid pieces"))
}
