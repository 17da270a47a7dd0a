//! The id of a request: the same word in the access log, at the origin, in errors and in traces.

use http::{HeaderName, HeaderValue};
use nearcast_fleet::random;
use nearcast_fleet::trace::ID_BYTES_MAX;
use xxhash_rust::xxh3::xxh3_64;

/// The field that carries the id to origins and to other nodes.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Random bytes of an id. 96 bits: of a million million ids, two are equal with a probability of
/// 1 in 100,000.
pub(crate) const RANDOM_BYTES: usize = 12;
/// Ids for which random bytes are fetched at a time.
const IDS_AHEAD: usize = 128;

/// The id of one request: 24 hexadecimal digits, or what a trusted sender has chosen.
///
/// Nearly all ids are made here and seldom read, so they are spelt only where they are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestId {
    /// Its digits spell these bytes. Ids of senders that look so are no different, so that equal
    /// texts are equal ids.
    Random([u8; RANDOM_BYTES]),
    Given(IdText),
}

/// The text of an id.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdText {
    text: [u8; ID_BYTES_MAX],
    length: u8,
}

impl IdText {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.text[..usize::from(self.length)]
    }

    pub(crate) fn as_str(&self) -> &str {
        // Its characters are ASCII.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl RequestId {
    /// The id that a sender gives; `None` unless it has 1 to 64 characters of a token (RFC 9110
    /// section 5.6.2).
    pub(crate) fn given(text: &[u8]) -> Option<Self> {
        if !nearcast_fleet::trace::is_id(text) {
            return None;
        }
        if let Some(bytes) = random_bytes(text) {
            return Some(Self::Random(bytes));
        }
        let mut id = IdText {
            text: [0; ID_BYTES_MAX],
            length: text.len() as u8,
        };
        id.text[..text.len()].copy_from_slice(text);
        Some(Self::Given(id))
    }

    /// Its text.
    pub(crate) fn text(&self) -> IdText {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let bytes = match self {
            Self::Given(text) => return *text,
            Self::Random(bytes) => bytes,
        };
        let mut id = IdText {
            text: [0; ID_BYTES_MAX],
            length: 2 * RANDOM_BYTES as u8,
        };
        for (pair, byte) in id.text.chunks_exact_mut(2).zip(bytes) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        id
    }

    /// The value of [`X_REQUEST_ID`].
    pub(crate) fn to_field(self) -> HeaderValue {
        HeaderValue::from_bytes(self.text().as_bytes()).unwrap_or(HeaderValue::from_static("-"))
    }

    /// A number of `0..=u64::MAX` that every node computes from the same id.
    pub(crate) fn hash(&self) -> u64 {
        xxh3_64(self.text().as_bytes())
    }
}

/// The bytes that a text spells, where it is spelt as [`RequestId::text`] does it.
fn random_bytes(text: &[u8]) -> Option<[u8; RANDOM_BYTES]> {
    let digit = |character: u8| match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; RANDOM_BYTES];
    if text.len() != 2 * RANDOM_BYTES {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

impl std::fmt::Debug for RequestId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.text().as_str())
    }
}

/// Makes ids. They are random, so that they are unique over workers, nodes and restarts, and show
/// nobody how many requests a node gets.
pub(crate) struct RequestIds {
    ahead: Box<[u8; RANDOM_BYTES * IDS_AHEAD]>,
    used: usize,
}

impl Default for RequestIds {
    fn default() -> Self {
        Self {
            ahead: Box::new([0; RANDOM_BYTES * IDS_AHEAD]),
            used: IDS_AHEAD,
        }
    }
}

impl RequestIds {
    pub(crate) fn next(&mut self) -> RequestId {
        if self.used == IDS_AHEAD {
            // Without entropy, ids repeat: that serves better than a request that fails for its id.
            if let Ok(bytes) = random::entropy() {
                *self.ahead = bytes;
            }
            self.used = 0;
        }
        let begin = self.used * RANDOM_BYTES;
        self.used += 1;
        let mut bytes = [0; RANDOM_BYTES];
        bytes.copy_from_slice(&self.ahead[begin..begin + RANDOM_BYTES]);
        RequestId::Random(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_of_one_shape() {
        let (mut one, mut other) = (RequestIds::default(), RequestIds::default());
        let mut seen = HashSet::new();
        for _ in 0..3 * IDS_AHEAD {
            for ids in [&mut one, &mut other] {
                let id = ids.next();
                let text = id.text();
                assert_eq!(text.as_str().len(), 24);
                assert!(text.as_bytes().iter().all(u8::is_ascii_hexdigit), "{id:?}");
                assert_eq!(RequestId::given(text.as_bytes()), Some(id));
                assert!(seen.insert(text.as_str().to_owned()), "{id:?} came twice");
            }
        }
    }

    #[test]
    fn only_tokens_of_a_bounded_length_are_taken_over() {
        let longest = "a".repeat(64);
        for good in [
            "a",
            "7f3a-01_x.y",
            "!#$%&'*+-.^_`|~",
            longest.as_str(),
            "0123456789abcdef01234567",
            "0123456789ABCDEF01234567",
            "0123456789abcdef0123456g",
            "0123456789abcdef0123456",
            "0123456789abcdef012345678",
        ] {
            assert_eq!(
                RequestId::given(good.as_bytes()).map(|id| id.text().as_str().to_owned()),
                Some(good.to_owned())
            );
        }
        let longer = "a".repeat(65);
        let huge = "a".repeat(10_000);
        for bad in [
            "", " a", "a b", "a\"", "a\\", "a/b", "é", "a\n", "a,b", "../x", &longer, &huge,
        ] {
            assert_eq!(RequestId::given(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
