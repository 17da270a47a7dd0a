//! What an HTTP shared cache decides, as pure functions: fields, settings and the time go in, a
//! named outcome comes out.
//!
//! Knows no sockets, clocks, stores or tasks. Times are milliseconds after the Unix epoch (`_ms`),
//! spans are seconds. Follows RFC 9110, 9111, 9211, 9213, 5861, 8586, 9209 and 9875.
//!
//! In the order in which one request asks:
//! - [`key`]: what the request is for, and whether its method and path may be answered from the
//!   store.
//! - [`vary`]: which stored response it selects; [`reuse`]: whether that one may be used now.
//! - [`conditional`] and [`range`]: what of it the client wants.
//! - [`request_fields`]: which of a client's fields reach the origin, and which make an answer one
//!   client's own; [`forward`]: the request to the origin, and the fields of what goes back to the
//!   client.
//! - [`freshness`]: whether and for how long the answer may be stored; [`invalidate`]: what it
//!   makes unusable.
//! - [`finish`]: whether it goes on coming when nobody reads it any more.
//! - [`status`]: the one value that feeds `Cache-Status`, `Proxy-Status`, metrics and log.
//! - [`coding`]: whether a message's body can be read at all.
//! - [`fields`]: the grammar under all of them.

pub mod coding;
pub mod conditional;
pub mod fields;
pub mod finish;
pub mod forward;
pub mod freshness;
pub mod invalidate;
pub mod key;
pub mod range;
pub mod request_fields;
pub mod reuse;
pub mod status;
pub mod vary;
#[cfg(test)]
mod walk;

#[cfg(test)]
pub(crate) mod testing {
    use http::{HeaderMap, HeaderName, HeaderValue};
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    /// 2026-01-01T00:00:00Z.
    pub(crate) const NOW_S: u64 = 1_767_225_600;
    /// The same in milliseconds.
    pub(crate) const NOW_MS: u64 = NOW_S * 1000;

    /// The same cases in every run; `PROPTEST_RNG_SEED` and `PROPTEST_CASES` choose others.
    pub(crate) fn seeded() -> ProptestConfig {
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
    pub(crate) fn map(lines: &[&str]) -> HeaderMap {
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

    /// The date of so many seconds after (or before) [`NOW_S`].
    pub(crate) fn date(offset: i64) -> String {
        let value = super::fields::format_date(NOW_S.saturating_add_signed(offset));
        value.to_str().expect("ASCII").to_owned()
    }

    /// Bytes a field value can have, with more of those that matter to the grammar.
    pub(crate) fn value() -> impl Strategy<Value = HeaderValue> {
        let byte = prop_oneof![
            4 => proptest::sample::select(b",;=\"\\ -*?:()/0123456789W.".to_vec()),
            4 => 0x61u8..0x7b,
            1 => 0x80u8..=0xff,
            1 => 0x21u8..0x7f,
        ];
        proptest::collection::vec(byte, 0..80)
            .prop_map(|bytes| HeaderValue::from_bytes(&bytes).expect("valid bytes"))
    }

    /// Values made of pieces that the grammar knows, in any order.
    pub(crate) fn pieces(known: &'static [&'static str]) -> impl Strategy<Value = HeaderValue> {
        let piece = prop_oneof![
            8 => proptest::sample::select(known).prop_map(str::to_owned),
            2 => proptest::sample::select(&[",", ", ", "=", "\"", ";", "-", "0", "99999999999999999999", "\\"][..]).prop_map(str::to_owned),
        ];
        proptest::collection::vec(piece, 0..12)
            .prop_map(|found| HeaderValue::try_from(found.concat()).expect("valid pieces"))
    }
}
