//! Content codings: which ones a request accepts, and which one to serve.
//!
//! Follows RFC 9110 sections 8.4.1 and 12.5.3.

use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, HeaderValue};

use crate::fields;
/// The content codings that a stored response is selected by, in the order in which browsers list
/// them. Others that a client names are ignored.
const KNOWN: [&str; 6] = ["gzip", "deflate", "br", "zstd", "dcb", "dcz"];

/// An `Accept-Encoding`, reduced to the part that selects a response: which of [`KNOWN`] it
/// accepts, and whether it accepts `identity`. A weight is reduced to whether it is 0, since
/// clients could otherwise create thousands of variants of one response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct AcceptedCodings {
    /// A bit for each of [`KNOWN`].
    accepted: u8,
    /// Codings that an accepting `*` does not cover; none without such a `*`, which refuses every
    /// coding that is not named.
    refused: u8,
    /// Whether a `*` accepts codings that are not named.
    accepts_others: bool,
    refuses_identity: bool,
}

impl AcceptedCodings {
    /// Those of a request; `None` when it has no `Accept-Encoding`.
    pub(crate) fn of_request(request: &HeaderMap) -> Option<Self> {
        let lines = request.get_all(ACCEPT_ENCODING);
        request
            .contains_key(ACCEPT_ENCODING)
            .then(|| Self::of(lines.into_iter().map(HeaderValue::as_bytes)))
    }

    /// Those of all lines of a field. A member with a malformed weight counts as absent; for a
    /// coding that is named twice a refusal wins.
    pub(crate) fn of<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Self {
        let (mut accepted, mut refused) = (0_u8, 0_u8);
        // `Some` when the member is there, with whether it is accepted.
        let (mut identity, mut others) = (None, None);

        for (name, weight) in lines.flat_map(fields::members).filter_map(member) {
            let is_accepted = weight > 0;
            let and = |before: Option<bool>| Some(before.unwrap_or(true) && is_accepted);
            match known_bit(name) {
                Some(bit) if is_accepted => accepted |= bit,
                Some(bit) => refused |= bit,
                None if name == b"*" => others = and(others),
                None if name.eq_ignore_ascii_case(b"identity") => identity = and(identity),
                None => {}
            }
        }

        let accepts_others = others == Some(true);
        Self {
            accepted: accepted & !refused,
            refused: if accepts_others { refused } else { 0 },
            accepts_others,
            refuses_identity: identity.or(others) == Some(false),
        }
    }

    /// The field value that all requests with these codings send to the origin.
    pub(crate) fn to_value(self) -> HeaderValue {
        let named = |bits: u8| {
            KNOWN
                .iter()
                .enumerate()
                .filter(move |(at, _)| bits & 1 << at != 0)
                .map(|(_, name)| *name)
        };

        let mut members: Vec<String> = named(self.accepted).map(str::to_owned).collect();
        members.extend(self.accepts_others.then(|| "*".to_owned()));
        members.extend(named(self.refused).map(|name| format!("{name};q=0")));
        if self.refuses_identity {
            members.push("identity;q=0".to_owned());
        }
        if members.is_empty() {
            members.push("identity".to_owned());
        }

        // Tokens and weights are always a valid value.
        HeaderValue::try_from(members.join(", ")).unwrap_or(HeaderValue::from_static("identity"))
    }
}

/// The reduced `Accept-Encoding` that a forward request sends when its response may be stored;
/// `None` when the request has none.
pub(crate) fn accept_encoding(request: &HeaderMap) -> Option<HeaderValue> {
    AcceptedCodings::of_request(request).map(AcceptedCodings::to_value)
}

/// The offered codings that a request accepts, most wanted first; ties keep the order of `offered`.
/// `identity` is always offered: codings that the request names but wants less are left out.
///
/// A coding that is not named is accepted where a `*` accepts it. Without `Accept-Encoding` any
/// coding would be acceptable, and none is chosen.
pub fn preferred<'o>(request: &HeaderMap, offered: &[&'o str]) -> Vec<&'o str> {
    let identity = identity_weight(request);
    let mut weighed: Vec<(u16, &str)> = offered
        .iter()
        .map(|name| (weight_of(request, name), *name))
        .filter(|(weight, _)| *weight > 0 && *weight >= identity)
        .collect();
    weighed.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    weighed.into_iter().map(|(_, name)| name).collect()
}

/// The weights of some codings in a request, read in one pass. In thousandths; 0 is a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weights<const N: usize> {
    /// Those of the offered codings, 0 where a coding is not acceptable.
    pub(crate) offered: [u16; N],
    /// That of `identity`, where it is named.
    pub(crate) identity: Option<u16>,
    /// That of `*`, where it is named.
    pub(crate) others: Option<u16>,
}

impl<const N: usize> Weights<N> {
    /// Those of all lines of a field. A member with a malformed weight counts as absent; of one that
    /// is named more than once the least weight counts.
    pub(crate) fn of<'a>(offered: [&[u8]; N], lines: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut named = [None; N];
        let (mut identity, mut others) = (None, None);
        for (name, weight) in lines.flat_map(fields::members).filter_map(member) {
            let name = canonical(name);
            let slot = match offered.iter().position(|o| o.eq_ignore_ascii_case(name)) {
                Some(at) => &mut named[at],
                None if name == b"*" => &mut others,
                None if name.eq_ignore_ascii_case(b"identity") => &mut identity,
                None => continue,
            };
            *slot = Some(slot.map_or(weight, |least: u16| least.min(weight)));
        }
        Self {
            offered: named.map(|weight| weight.or(others).unwrap_or(0)),
            identity,
            others,
        }
    }
}

/// The weight of a coding in thousandths, 0 when it is not acceptable. A `*` covers every coding
/// that is not named.
fn weight_of(request: &HeaderMap, coding: &str) -> u16 {
    named_weight(request, coding.as_bytes())
        .or_else(|| named_weight(request, b"*"))
        .unwrap_or(0)
}

/// The weight of `identity` in thousandths, 0 when it is refused or not named.
fn identity_weight(request: &HeaderMap) -> u16 {
    named_weight(request, b"identity").unwrap_or(0)
}

/// The weight of a member; the least when it is there more than once.
fn named_weight(request: &HeaderMap, coding: &[u8]) -> Option<u16> {
    fields::list(request, ACCEPT_ENCODING)
        .filter_map(member)
        .filter(|(name, _)| canonical(name).eq_ignore_ascii_case(coding))
        .map(|(_, weight)| weight)
        .min()
}

/// Name and weight of a member; `None` when the weight is malformed.
fn member(member: &[u8]) -> Option<(&[u8], u16)> {
    let mut parts = member.split(|b| *b == b';').map(<[u8]>::trim_ascii);
    let name = parts.next().unwrap_or_default();
    Some((name, weight(parts)?))
}

/// The coding that a name stands for: `x-gzip` is `gzip` (RFC 9110 section 8.4.1.3).
fn canonical(name: &[u8]) -> &[u8] {
    if name.eq_ignore_ascii_case(b"x-gzip") {
        b"gzip"
    } else {
        name
    }
}

fn known_bit(name: &[u8]) -> Option<u8> {
    KNOWN
        .iter()
        .position(|known| known.as_bytes().eq_ignore_ascii_case(canonical(name)))
        .map(|at| 1 << at)
}

/// The weight among these parameters in thousandths, 1000 when there is none; `None` when it is
/// malformed (RFC 9110 section 12.4.2). More than three digits are tolerated and never rounded down
/// to 0, which would be a refusal.
fn weight<'a>(mut parameters: impl Iterator<Item = &'a [u8]>) -> Option<u16> {
    let weight = parameters.find_map(|parameter| {
        let at = parameter.iter().position(|b| *b == b'=')?;
        parameter[..at]
            .trim_ascii()
            .eq_ignore_ascii_case(b"q")
            .then(|| parameter[at + 1..].trim_ascii())
    });
    let Some(weight) = weight else {
        return Some(1000);
    };

    let (whole, digits) = match weight.iter().position(|b| *b == b'.') {
        Some(at) => (&weight[..at], &weight[at + 1..]),
        None => (weight, &[][..]),
    };
    match whole {
        b"0" if digits.iter().all(u8::is_ascii_digit) => Some(thousandths(digits)),
        b"1" if digits.iter().all(|b| *b == b'0') => Some(1000),
        _ => None,
    }
}

fn thousandths(digits: &[u8]) -> u16 {
    let digit = |at: usize| digits.get(at).map_or(0, |b| u16::from(b - b'0'));
    let found = digit(0) * 100 + digit(1) * 10 + digit(2);
    if found == 0 && digits.iter().any(|b| *b != b'0') {
        1
    } else {
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, map};

    #[test]
    fn the_most_wanted_coding_is_chosen() {
        // RFC 9110 section 12.5.3. Field, codings in order.
        let table: [(&str, &[&str]); 22] = [
            // An empty field accepts nothing but `identity`.
            ("", &[]),
            ("gzip", &["gzip"]),
            ("GZIP", &["gzip"]),
            ("x-gzip", &["gzip"]),
            ("deflate", &[]),
            // Equal weights leave the choice to the server.
            ("gzip, br", &["br", "gzip"]),
            ("gzip, br;q=0.5", &["gzip", "br"]),
            ("gzip;q=0.1, br;q=0.25, zstd;q=0.3", &["zstd", "br", "gzip"]),
            // 0 is a refusal, also for one that is named twice.
            ("gzip;q=0, br", &["br"]),
            ("gzip;q=0.000, gzip", &[]),
            // A star covers codings that are not named.
            ("*", &["zstd", "br", "gzip"]),
            ("*;q=0", &[]),
            ("*, gzip;q=0", &["zstd", "br"]),
            ("*;q=0.5, gzip", &["gzip", "zstd", "br"]),
            // `identity` is always offered, and wins where it is wanted more.
            ("identity, gzip;q=0.1", &[]),
            ("identity;q=0.5, gzip", &["gzip"]),
            ("identity;q=0.5, *;q=0.1", &[]),
            ("identity;q=0, gzip;q=0.1", &["gzip"]),
            // A member with a malformed weight counts as absent.
            ("gzip;q=nonsense", &[]),
            ("gzip;q=1.5, br", &["br"]),
            ("gzip;q=0.0001", &["gzip"]),
            ("gzip;level=9;q=0.2, br;q=0.1", &["gzip", "br"]),
        ];
        for (value, expected) in table {
            let request = map(&[&format!("accept-encoding: {value}")]);
            let found = preferred(&request, &["zstd", "br", "gzip"]);
            assert_eq!(found, expected, "{value:?}");
        }
        let lines = map(&["accept-encoding: gzip;q=0.5", "accept-encoding: br"]);
        assert_eq!(preferred(&lines, &["gzip", "br"]), ["br", "gzip"]);
        assert!(
            preferred(&map(&[]), &["gzip"]).is_empty(),
            "without a field"
        );
    }

    fn codings_value() -> impl Strategy<Value = HeaderValue> {
        testing::pieces(&[
            "gzip", "br", "identity", "*", ";q=0", ";q=0.5", ";q=1", ", ", "x",
        ])
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn what_is_reduced_stays_as_it_is(first in codings_value(), second in codings_value()) {
            let codings = |value: &HeaderValue| AcceptedCodings::of(std::iter::once(value.as_bytes()));
            let reduced = codings(&first).to_value();
            prop_assert_eq!(codings(&reduced), codings(&first));
            prop_assert_eq!(codings(&first) == codings(&second), reduced == codings(&second).to_value());
        }

        #[test]
        fn no_refused_coding_is_preferred(value in codings_value()) {
            let mut request = HeaderMap::new();
            request.insert(ACCEPT_ENCODING, value.clone());
            let accepted = AcceptedCodings::of(std::iter::once(value.as_bytes()));
            for name in preferred(&request, &KNOWN) {
                let bit = known_bit(name.as_bytes()).expect("it is known");
                let is_accepted = accepted.accepted & bit != 0
                    || accepted.accepts_others && accepted.refused & bit == 0;
                prop_assert!(is_accepted, "{name} of {value:?}");
            }
        }
    }
}
