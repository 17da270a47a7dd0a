//! Cache directives of requests and responses.
//!
//! Follows RFC 9111 sections 5.2 and 5.4 and RFC 9213. Reading is tolerant, as RFC 9111 section
//! 4.2.1 asks; where a directive is in doubt, the reading that stores less wins.

use http::header::{CACHE_CONTROL, PRAGMA};
use http::{HeaderMap, HeaderName};

use crate::fields::{DELTA_SECONDS_MAX, delta_seconds, list, unquoted};
use crate::structured::{Item, dictionary};

/// The targeted fields that this cache obeys, in order of precedence (RFC 9213 section 2.2).
const TARGETED: [HeaderName; 1] = [HeaderName::from_static("cdn-cache-control")];

/// The cache directives of a request or response (RFC 9111 section 5.2). Durations are in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the directives are named and explained in the RFC"
)]
pub struct CacheControl {
    /// Whether the message has such a field.
    pub is_present: bool,
    /// Whether they come from a targeted field, so that `Expires` is ignored (RFC 9213 section
    /// 2.2).
    pub is_targeted: bool,
    pub no_store: bool,
    /// With or without a list of fields.
    pub no_cache: bool,
    /// With or without a list of fields.
    pub private: bool,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub must_understand: bool,
    pub no_transform: bool,
    pub immutable: bool,
    pub only_if_cached: bool,
    pub max_age: Option<u64>,
    pub s_maxage: Option<u64>,
    pub min_fresh: Option<u64>,
    /// [`DELTA_SECONDS_MAX`] when it has no argument.
    pub max_stale: Option<u64>,
    pub stale_while_revalidate: Option<u64>,
    pub stale_if_error: Option<u64>,
}

impl CacheControl {
    /// The directives of an origin for this cache: those of the first valid targeted field, else of
    /// `Cache-Control`.
    pub fn of_response(fields: &HeaderMap) -> Self {
        TARGETED
            .iter()
            .find_map(|name| Self::targeted(fields, name))
            .unwrap_or_else(|| Self::read(fields, &CACHE_CONTROL))
    }

    /// The directives of a client. `Pragma: no-cache` counts if there is no `Cache-Control` (RFC
    /// 9111 section 5.4).
    pub fn of_request(fields: &HeaderMap) -> Self {
        let mut found = Self::read(fields, &CACHE_CONTROL);
        if !found.is_present {
            found.no_cache =
                list(fields, PRAGMA).any(|member| member.eq_ignore_ascii_case(b"no-cache"));
        }
        found
    }

    /// Reads all lines of a field with the grammar of `Cache-Control`.
    pub fn read(fields: &HeaderMap, name: &HeaderName) -> Self {
        let mut found = Self {
            is_present: fields.contains_key(name),
            ..Self::default()
        };
        for member in list(fields, name) {
            match member.iter().position(|b| *b == b'=') {
                Some(at) => {
                    let (directive, argument) = (&member[..at], &member[at + 1..]);
                    // White space before the sign makes the argument invalid, as it does after the
                    // sign. The directive stays known, which is the stricter reading.
                    let is_spaced = directive.trim_ascii_end().len() < directive.len();
                    found.take(
                        directive.trim_ascii_end(),
                        Some(if is_spaced { b"" } else { unquoted(argument) }),
                    );
                }
                None => found.take(member, None),
            }
        }
        found
    }

    /// Reads a targeted field, which is a structured dictionary; `None` when it is missing or
    /// cannot be parsed.
    pub fn targeted(fields: &HeaderMap, name: &HeaderName) -> Option<Self> {
        let mut found = Self {
            is_present: true,
            is_targeted: true,
            ..Self::default()
        };
        for (directive, item) in dictionary(fields, name)? {
            match item {
                Item::True => found.take(directive, None),
                Item::Integer(seconds) => {
                    found.take_seconds(directive, u64::try_from(seconds).unwrap_or(0))
                }
                // These two may have a list of field names; all other arguments are numbers.
                Item::Text if matches!(directive, b"private" | b"no-cache") => {
                    found.take(directive, None)
                }
                Item::Text | Item::Other => {}
            }
        }
        Some(found)
    }

    fn take(&mut self, directive: &[u8], argument: Option<&[u8]>) {
        let is = |name: &str| directive.eq_ignore_ascii_case(name.as_bytes());
        // A flag with an argument is still set.
        self.take_flag(directive);
        match argument {
            Some(argument) => self.take_seconds(directive, delta_seconds(argument).unwrap_or(0)),
            None if is("max-stale") => self.take_seconds(directive, DELTA_SECONDS_MAX),
            // Without its argument the directive is invalid, and the response is stale.
            None if is("max-age") || is("s-maxage") => self.take_seconds(directive, 0),
            None => {}
        }
    }

    fn take_flag(&mut self, directive: &[u8]) {
        let is = |name: &str| directive.eq_ignore_ascii_case(name.as_bytes());
        let flags: [(&str, &mut bool); 10] = [
            ("no-store", &mut self.no_store),
            ("no-cache", &mut self.no_cache),
            ("private", &mut self.private),
            ("public", &mut self.public),
            ("must-revalidate", &mut self.must_revalidate),
            ("proxy-revalidate", &mut self.proxy_revalidate),
            ("must-understand", &mut self.must_understand),
            ("no-transform", &mut self.no_transform),
            ("immutable", &mut self.immutable),
            ("only-if-cached", &mut self.only_if_cached),
        ];
        if let Some((_, flag)) = flags.into_iter().find(|(name, _)| is(name)) {
            *flag = true;
        }
    }

    /// Of several values the strictest counts: the largest for `min-fresh`, the least for the
    /// others.
    fn take_seconds(&mut self, directive: &[u8], seconds: u64) {
        let is = |name: &str| directive.eq_ignore_ascii_case(name.as_bytes());
        let seconds = seconds.min(DELTA_SECONDS_MAX);
        if is("min-fresh") {
            self.min_fresh = Some(self.min_fresh.map_or(seconds, |old| old.max(seconds)));
            return;
        }
        let spans: [(&str, &mut Option<u64>); 5] = [
            ("max-age", &mut self.max_age),
            ("s-maxage", &mut self.s_maxage),
            ("max-stale", &mut self.max_stale),
            ("stale-while-revalidate", &mut self.stale_while_revalidate),
            ("stale-if-error", &mut self.stale_if_error),
        ];
        if let Some((_, span)) = spans.into_iter().find(|(name, _)| is(name)) {
            *span = Some(span.map_or(seconds, |old| old.min(seconds)));
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::CONNECTION;
    use proptest::prelude::*;

    use super::*;
    use crate::dates::parse_date;
    use crate::fields::{end_to_end, members};
    use crate::structured::strings;
    use crate::testing::{self, map};

    #[test]
    fn directives_parse_tolerantly_and_doubt_stores_less() {
        let nothing = CacheControl {
            is_present: true,
            ..CacheControl::default()
        };
        let max_age = |seconds| CacheControl {
            max_age: Some(seconds),
            ..nothing
        };
        let table: [(&[&str], CacheControl); 24] = [
            // RFC 9111 sections 1.2.2 and 4.2.1: the stricter of duplicates; invalid is stale;
            // large values are clamped.
            (&["max-age=10, max-age=5"], max_age(5)),
            (&["max-age=5", "max-age=10"], max_age(5)),
            (&["max-age=a5"], max_age(0)),
            (&["max-age=5a"], max_age(0)),
            (&["max-age=-5"], max_age(0)),
            (&["max-age=5.5"], max_age(0)),
            (&["max-age='5'"], max_age(0)),
            (&["max-age"], max_age(0)),
            (&["max-age="], max_age(0)),
            (&["max-age =5"], max_age(0)),
            (&["max-age= 5"], max_age(0)),
            (
                &["max-age=99999999999999999999"],
                max_age(DELTA_SECONDS_MAX),
            ),
            (&["max-age=2147483648"], max_age(1 << 31)),
            (&["max-age=003600"], max_age(3600)),
            // RFC 9111 sections 5.2 and 5.2.3: both forms of arguments, any case, unknown
            // directives ignored.
            (&["max-age=\"7\""], max_age(7)),
            (&["MaX-aGe=7, foobar, x=y"], max_age(7)),
            (&["ext=\"max-age=100\", max-age=1"], max_age(1)),
            (&["max-age=1, ext=\"a, no-store\""], max_age(1)),
            // A flag with an argument is that flag.
            (
                &["no-cache=\"a, b\""],
                CacheControl {
                    no_cache: true,
                    ..nothing
                },
            ),
            (
                &["Private=\"set-cookie\""],
                CacheControl {
                    private: true,
                    ..nothing
                },
            ),
            (
                &["no-store=0"],
                CacheControl {
                    no_store: true,
                    ..nothing
                },
            ),
            // An open quote hides nothing.
            (
                &["x=\"y, no-store"],
                CacheControl {
                    no_store: true,
                    ..nothing
                },
            ),
            (
                &["max-stale"],
                CacheControl {
                    max_stale: Some(DELTA_SECONDS_MAX),
                    ..nothing
                },
            ),
            (
                &["min-fresh=1, min-fresh=9"],
                CacheControl {
                    min_fresh: Some(9),
                    ..nothing
                },
            ),
        ];
        for (values, expected) in table {
            let mut fields = HeaderMap::new();
            for value in values {
                fields.append(CACHE_CONTROL, HeaderValue::from_static(value));
            }
            assert_eq!(
                CacheControl::read(&fields, &CACHE_CONTROL),
                expected,
                "{values:?}"
            );
        }
        let all = "public, must-revalidate, proxy-revalidate, must-understand, no-transform, immutable, only-if-cached, \
                   s-maxage=1, stale-while-revalidate=2, stale-if-error=3, max-stale=4";
        let found = CacheControl::read(&map(&[&format!("cache-control: {all}")]), &CACHE_CONTROL);
        assert!(
            found.public
                && found.must_revalidate
                && found.proxy_revalidate
                && found.must_understand
        );
        assert!(
            found.no_transform
                && found.immutable
                && found.only_if_cached
                && !found.no_store
                && !found.private
        );
        assert_eq!(
            (
                found.s_maxage,
                found.stale_while_revalidate,
                found.stale_if_error,
                found.max_stale
            ),
            (Some(1), Some(2), Some(3), Some(4))
        );
    }

    #[test]
    fn targeted_field_wins_when_it_is_valid() {
        // RFC 9213 sections 2.1 and 2.2. Fields, and what counts: (max-age, no-store, private,
        // no-cache, targeted).
        type Expected = (Option<u64>, bool, bool, bool, bool);
        let table: [(&[&str], Expected); 20] = [
            (
                &["cdn-cache-control: max-age=5", "cache-control: no-store"],
                (Some(5), false, false, false, true),
            ),
            (
                &["cdn-cache-control: no-store", "cache-control: max-age=5"],
                (None, true, false, false, true),
            ),
            (
                &["cdn-cache-control: private", "cache-control: max-age=5"],
                (None, false, true, false, true),
            ),
            (
                &["cdn-cache-control: private=\"a\""],
                (None, false, true, false, true),
            ),
            (
                &["cdn-cache-control: no-cache=(\"a\")"],
                (None, false, false, false, true),
            ),
            (
                &["cdn-cache-control: max-age=0", "cache-control: max-age=5"],
                (Some(0), false, false, false, true),
            ),
            (
                &["cdn-cache-control: max-age=-1"],
                (Some(0), false, false, false, true),
            ),
            (
                &["cdn-cache-control: max-age=1, max-age=9"],
                (Some(9), false, false, false, true),
            ),
            (
                &[
                    "cdn-cache-control: max-age=1",
                    "cdn-cache-control: no-cache",
                ],
                (Some(1), false, false, true, true),
            ),
            (
                &["cdn-cache-control: no-cache=?0, max-age=3"],
                (Some(3), false, false, false, true),
            ),
            (
                &["cdn-cache-control: no-cache=?1;x=\"y\";z, max-age=3"],
                (Some(3), false, false, true, true),
            ),
            // Wrong type of a member: the member is ignored.
            (
                &[
                    "cdn-cache-control: max-age=\"5\"",
                    "cache-control: max-age=1",
                ],
                (None, false, false, false, true),
            ),
            (
                &["cdn-cache-control: max-age=5.0", "cache-control: max-age=1"],
                (None, false, false, false, true),
            ),
            (
                &["cdn-cache-control: max-age=:YQ==:, max-age=2"],
                (Some(2), false, false, false, true),
            ),
            // Not a dictionary: the field is ignored.
            (
                &[
                    "cdn-cache-control: max-age=5, &&&",
                    "cache-control: no-store",
                ],
                (None, true, false, false, false),
            ),
            (
                &["cdn-cache-control: max-age =5", "cache-control: max-age=1"],
                (Some(1), false, false, false, false),
            ),
            (
                &["cdn-cache-control: MaX-aGe=5", "cache-control: max-age=1"],
                (Some(1), false, false, false, false),
            ),
            (
                &["cdn-cache-control: max-age=5,", "cache-control: max-age=1"],
                (Some(1), false, false, false, false),
            ),
            (
                &["cdn-cache-control:", "cache-control: max-age=1"],
                (Some(1), false, false, false, false),
            ),
            (
                &[
                    "cdn-cache-control: max-age=1234567890123456",
                    "cache-control: max-age=1",
                ],
                (Some(1), false, false, false, false),
            ),
        ];
        for (lines, expected) in table {
            let found = CacheControl::of_response(&map(lines));
            assert_eq!(
                (
                    found.max_age,
                    found.no_store,
                    found.private,
                    found.no_cache,
                    found.is_targeted
                ),
                expected,
                "{lines:?}"
            );
        }
    }

    #[test]
    fn pragma_counts_without_cache_control_only() {
        // RFC 9111 section 5.4.
        let table: [(&[&str], bool); 4] = [
            (&["pragma: no-cache"], true),
            (&["pragma: x, No-Cache"], true),
            (&["pragma: no-cache", "cache-control: max-age=5"], false),
            (&["pragma: foo"], false),
        ];
        for (lines, expected) in table {
            assert_eq!(
                CacheControl::of_request(&map(lines)).no_cache,
                expected,
                "{lines:?}"
            );
        }
        assert!(
            !CacheControl::of_response(&map(&["pragma: no-cache"])).no_cache,
            "it says nothing in a response"
        );
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn no_value_panics(values in proptest::collection::vec(testing::value(), 0..4), known in testing::pieces(&["max-age=5", "no-store", "private=\"a\"", "x=(1 2)", "?1", "\"s\"", "k"])) {
            let mut fields = HeaderMap::new();
            for value in values.into_iter().chain([known]) {
                for name in ["cache-control", "cdn-cache-control", "connection", "pragma", "g"] {
                    fields.append(HeaderName::from_static(name), value.clone());
                }
                parse_date(value.as_bytes());
                delta_seconds(value.as_bytes());
                for member in members(value.as_bytes()) {
                    prop_assert!(!member.is_empty());
                }
            }
            let _ = CacheControl::of_response(&fields);
            let _ = CacheControl::of_request(&fields);
            let _ = strings(&fields, &HeaderName::from_static("g"));
            prop_assert!(!end_to_end(&fields, true).contains_key(CONNECTION));
        }

        #[test]
        fn a_strict_directive_is_never_lost(before in testing::value(), after in testing::value()) {
            // Whatever stands around it: unless it is inside a closed quoted string, `no-store`
            // counts.
            let before: Vec<u8> = before.as_bytes().iter().copied().filter(|b| *b != b'"').collect();
            let value = [&before[..], b", no-store, ", after.as_bytes()].concat();
            let mut fields = HeaderMap::new();
            fields.insert(CACHE_CONTROL, HeaderValue::from_bytes(&value).expect("valid"));
            prop_assert!(CacheControl::of_response(&fields).no_store);
        }
    }
}
