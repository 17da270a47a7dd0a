//! The grammar of HTTP fields: lists, cache directives, structured dictionaries, dates, hop-by-hop
//! fields.
//!
//! Follows RFC 9110 section 5 and 7.6.1, RFC 9111 section 5.2, RFC 8941 (as far as RFC 9213 needs
//! it). Works on bytes, because field values may hold any; is tolerant as RFC 9111 section 4.2.1
//! asks, and strict where doubt arises: then the reading that stores less wins.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{
    AsHeaderName, CACHE_CONTROL, CONNECTION, PRAGMA, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Largest delta-seconds; more is this much (RFC 9111 section 1.2.2).
pub(crate) const DELTA_SECONDS_MAX: u64 = 1 << 31;
/// Members of one structured dictionary; one with more cannot be parsed.
pub const DICTIONARY_MEMBERS_MAX: usize = 64;
/// The targeted fields this cache obeys, first one first (RFC 9213 section 2.2).
pub(crate) const TARGETED: [HeaderName; 1] = [HeaderName::from_static("cdn-cache-control")];

/// Members of a comma-separated list in order, trimmed, without empty ones; a quoted string is
/// never cut.
///
/// A quote that is not closed counts as an ordinary character, so that it cannot hide what comes
/// after it.
pub fn members(value: &[u8]) -> Members<'_> {
    Members {
        rest: value,
        has_escapes: true,
    }
}

/// See [`members`].
#[derive(Debug, Clone)]
pub struct Members<'a> {
    rest: &'a [u8],
    has_escapes: bool,
}

impl<'a> Iterator for Members<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.rest.is_empty() {
            let end = member_end(self.rest, self.has_escapes);
            let member = self.rest[..end].trim_ascii();
            self.rest = self.rest.get(end + 1..).unwrap_or_default();
            if !member.is_empty() {
                return Some(member);
            }
        }
        None
    }
}

/// Where the first member ends: its comma, or the end.
fn member_end(text: &[u8], has_escapes: bool) -> usize {
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b',' => return at,
            b'"' => at += quoted_length(&text[at..], has_escapes).unwrap_or(1),
            _ => at += 1,
        }
    }
    at
}

/// Length of the quoted string at the start, with its quotes; `None` when it is not closed.
fn quoted_length(text: &[u8], has_escapes: bool) -> Option<usize> {
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            b'"' => return Some(at + 1),
            b'\\' if has_escapes => at += 2,
            _ => at += 1,
        }
    }
    None
}

/// Members of all lines of a field, in order.
pub fn list(fields: &HeaderMap, name: impl AsHeaderName) -> impl Iterator<Item = &[u8]> {
    fields
        .get_all(name)
        .into_iter()
        .flat_map(|value| members(value.as_bytes()))
}

/// Entity tags of all lines of a field: a list whose quoted parts have no escapes (RFC 9110 section
/// 8.8.3).
pub(crate) fn entity_tags(
    fields: &HeaderMap,
    name: impl AsHeaderName,
) -> impl Iterator<Item = &[u8]> {
    fields.get_all(name).into_iter().flat_map(|value| Members {
        rest: value.as_bytes(),
        has_escapes: false,
    })
}

/// A request's or response's cache directives (RFC 9111 section 5.2). Spans are seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the directives are named and explained in the RFC"
)]
pub struct CacheControl {
    /// Whether there is such a field at all.
    pub is_present: bool,
    /// Whether they come from a targeted field, so that `Expires` does not count (RFC 9213 section
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
    /// What an origin says to this cache: the first targeted field that is valid, else
    /// `Cache-Control`.
    pub fn of_response(fields: &HeaderMap) -> Self {
        TARGETED
            .iter()
            .find_map(|name| Self::targeted(fields, name))
            .unwrap_or_else(|| Self::read(fields, &CACHE_CONTROL))
    }

    /// What a client asks for. `Pragma: no-cache` counts where there is no `Cache-Control` (RFC
    /// 9111 section 5.4).
    pub fn of_request(fields: &HeaderMap) -> Self {
        let mut found = Self::read(fields, &CACHE_CONTROL);
        if !found.is_present {
            found.no_cache =
                list(fields, PRAGMA).any(|member| member.eq_ignore_ascii_case(b"no-cache"));
        }
        found
    }

    /// All lines of a field with the grammar of `Cache-Control`.
    pub fn read(fields: &HeaderMap, name: &HeaderName) -> Self {
        let mut found = Self {
            is_present: fields.contains_key(name),
            ..Self::default()
        };
        for member in list(fields, name) {
            match member.iter().position(|b| *b == b'=') {
                Some(at) => {
                    let (directive, argument) = (&member[..at], &member[at + 1..]);
                    // White space before the sign makes the argument invalid, as it does behind it,
                    // and not the directive unknown: the stricter reading.
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

    /// A targeted field: a structured dictionary; `None` when there is none, or none that can be
    /// parsed.
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
                // The form with a list of fields; nothing else takes an argument that is not a
                // number.
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
        // A flag with an argument is still that flag.
        self.take_flag(directive);
        match argument {
            Some(argument) => self.take_seconds(directive, delta_seconds(argument).unwrap_or(0)),
            None if is("max-stale") => self.take_seconds(directive, DELTA_SECONDS_MAX),
            // Without its argument it is invalid: stale.
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

    /// Of several the least counts, which is the stricter for each of them but `min-fresh`.
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

/// The text inside the quotes where the whole is quoted, else all of it. Escapes stay: no number
/// needs one.
pub fn unquoted(text: &[u8]) -> &[u8] {
    match text {
        [b'"', inner @ .., b'"'] => inner,
        _ => text,
    }
}

/// A delta-seconds, clamped (RFC 9111 section 1.2.2); `None` when it is none.
pub(crate) fn delta_seconds(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u64, digit: &u8| (sum * 10 + u64::from(digit - b'0')).min(DELTA_SECONDS_MAX);
    Some(text.iter().fold(0, add))
}

/// A value of a structured dictionary, as far as cache directives need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// No value, or `?1`.
    True,
    /// An integer.
    Integer(i64),
    /// A string or a token.
    Text,
    /// Anything else: false, decimals, byte sequences, inner lists.
    Other,
}

/// A field as a structured dictionary (RFC 8941 section 4.2.2); of equal keys the last counts.
///
/// `None` when the field is missing, empty or cannot be parsed: then it is to be ignored as a
/// whole.
pub fn dictionary<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<Vec<(&'a [u8], Item)>> {
    let mut found: Vec<(&[u8], Item)> = Vec::new();
    for value in fields.get_all(name) {
        let mut parser = Structured {
            rest: value.as_bytes().trim_ascii(),
        };
        while !parser.rest.is_empty() {
            let (key, item) = parser.member()?;
            found.retain(|(old, _)| *old != key);
            if found.len() == DICTIONARY_MEMBERS_MAX {
                return None;
            }
            found.push((key, item));
            parser.next_member()?;
        }
    }
    (!found.is_empty()).then_some(found)
}

/// A field as a structured list of strings (RFC 8941 section 4.2.1); members of other types are
/// left out.
///
/// Empty when the field is missing or cannot be parsed: then it is to be ignored as a whole.
pub fn strings(fields: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let mut found = Vec::new();
    for value in fields.get_all(name) {
        let mut parser = Structured {
            rest: value.as_bytes().trim_ascii(),
        };
        while !parser.rest.is_empty() {
            let Some(string) = parser.list_member() else {
                return Vec::new();
            };
            found.extend(string);
        }
    }
    found
}

/// The text of a string between its quotes, without escapes.
fn unescaped(text: &[u8]) -> String {
    let mut is_escaped = false;
    let keep = |byte: &&u8| {
        is_escaped = **byte == b'\\' && !is_escaped;
        !is_escaped
    };
    text.iter().filter(keep).map(|b| char::from(*b)).collect()
}

/// The rest of a structured field's line.
struct Structured<'a> {
    rest: &'a [u8],
}

impl<'a> Structured<'a> {
    fn take_while(&mut self, is_in: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self
            .rest
            .iter()
            .position(|b| !is_in(*b))
            .unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn eat(&mut self, byte: u8) -> bool {
        let is_next = self.rest.first() == Some(&byte);
        self.rest = &self.rest[usize::from(is_next)..];
        is_next
    }

    fn key(&mut self) -> Option<&'a [u8]> {
        self.rest
            .first()
            .filter(|b| b.is_ascii_lowercase() || **b == b'*')?;
        Some(self.take_while(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'.' | b'*')
        }))
    }

    fn member(&mut self) -> Option<(&'a [u8], Item)> {
        let key = self.key()?;
        let item = match self.eat(b'=') {
            false => Item::True,
            true if self.rest.first() == Some(&b'(') => self.inner_list()?,
            true => self.bare_item()?,
        };
        self.parameters()?;
        Some((key, item))
    }

    /// One member of a list and the comma after it; what it is where it is a string.
    fn list_member(&mut self) -> Option<Option<String>> {
        let before = self.rest;
        let item = if before.first() == Some(&b'(') {
            self.inner_list()?
        } else {
            self.bare_item()?
        };
        let is_string = item == Item::Text && before.first() == Some(&b'"');
        let text = &before[..before.len() - self.rest.len()];
        let string = is_string.then(|| unescaped(unquoted(text)));
        self.parameters()?;
        self.next_member()?;
        Some(string)
    }

    fn parameters(&mut self) -> Option<()> {
        while self.eat(b';') {
            self.take_while(|b| b == b' ');
            self.key()?;
            if self.eat(b'=') {
                self.bare_item()?;
            }
        }
        Some(())
    }

    /// The comma and what may stand around it; a comma at the end is an error.
    fn next_member(&mut self) -> Option<()> {
        self.take_while(|b| matches!(b, b' ' | b'\t'));
        if self.rest.is_empty() {
            return Some(());
        }
        if !self.eat(b',') {
            return None;
        }
        self.take_while(|b| matches!(b, b' ' | b'\t'));
        (!self.rest.is_empty()).then_some(())
    }

    fn inner_list(&mut self) -> Option<Item> {
        self.eat(b'(');
        loop {
            self.take_while(|b| b == b' ');
            if self.eat(b')') {
                return Some(Item::Other);
            }
            self.bare_item()?;
            self.parameters()?;
            self.rest.first().filter(|b| matches!(b, b' ' | b')'))?;
        }
    }

    fn bare_item(&mut self) -> Option<Item> {
        match *self.rest.first()? {
            b'"' => self.string().map(|()| Item::Text),
            b'?' => self.boolean(),
            b':' => self.bytes(),
            b'-' | b'0'..=b'9' => self.number(),
            b'*' | b'A'..=b'Z' | b'a'..=b'z' => {
                self.take_while(|b| is_token(b) || matches!(b, b':' | b'/'));
                Some(Item::Text)
            }
            _ => None,
        }
    }

    fn string(&mut self) -> Option<()> {
        let mut at = 1;
        loop {
            match *self.rest.get(at)? {
                b'"' => break,
                b'\\' if matches!(self.rest.get(at + 1), Some(b'"' | b'\\')) => at += 2,
                b'\\' => return None,
                0x20..=0x7e => at += 1,
                _ => return None,
            }
        }
        self.rest = &self.rest[at + 1..];
        Some(())
    }

    fn boolean(&mut self) -> Option<Item> {
        let item = match self.rest.get(1)? {
            b'1' => Item::True,
            b'0' => Item::Other,
            _ => return None,
        };
        self.rest = &self.rest[2..];
        Some(item)
    }

    fn bytes(&mut self) -> Option<Item> {
        self.eat(b':');
        self.take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='));
        self.eat(b':').then_some(Item::Other)
    }

    fn number(&mut self) -> Option<Item> {
        let is_negative = self.eat(b'-');
        let digits = self.take_while(|b| b.is_ascii_digit());
        if digits.is_empty() || digits.len() > 15 {
            return None;
        }
        if self.eat(b'.') {
            let fraction = self.take_while(|b| b.is_ascii_digit());
            return (digits.len() <= 12 && matches!(fraction.len(), 1..=3)).then_some(Item::Other);
        }
        let value = digits
            .iter()
            .fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
        Some(Item::Integer(if is_negative { -value } else { value }))
    }
}

/// Whether a byte may stand in a token (RFC 9110 section 5.6.2).
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// An HTTP date (RFC 9110 section 5.6.7) as seconds after the Unix epoch; all three forms, in any
/// letter case. The name of the day says nothing that the rest does not: a wrong one is overlooked.
pub(crate) fn parse_date(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value.trim_ascii()).ok()?;
    if text.len() > DATE_BYTES_MAX {
        return None;
    }
    let when = httpdate::parse_http_date(text).ok().or_else(|| {
        let cased = cased(text);
        httpdate::parse_http_date(&cased)
            .ok()
            .or_else(|| with_right_day(&cased))
    })?;
    Some(when.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// Longest date: `Wednesday, 09-Nov-94 08:49:37 GMT`, and some.
const DATE_BYTES_MAX: usize = 40;

const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

/// The date with the one name of a day, in the same form, that makes it valid.
fn with_right_day(text: &str) -> Option<SystemTime> {
    let (day, rest) = text.split_at(text.find(|c: char| !c.is_ascii_alphabetic())?);
    let forms = [DAYS.map(|name| &name[..3]), DAYS];
    let form = forms.iter().find(|form| form.contains(&day))?;
    form.iter()
        .find_map(|name| httpdate::parse_http_date(&format!("{name}{rest}")).ok())
}

/// Each word with a capital, `GMT` with three.
fn cased(text: &str) -> String {
    let mut is_start = true;
    let mut cased: String = text
        .chars()
        .map(|c| {
            let c = if is_start {
                c.to_ascii_uppercase()
            } else {
                c.to_ascii_lowercase()
            };
            is_start = !c.is_ascii_alphabetic();
            c
        })
        .collect();
    if cased.ends_with(" Gmt") {
        cased.replace_range(cased.len() - 3.., "GMT");
    }
    cased
}

/// The date in a field; `None` when there is none, several that differ, or none that is valid.
pub fn date(fields: &HeaderMap, name: impl AsHeaderName) -> Option<u64> {
    let mut values = fields.get_all(name).into_iter();
    let first = values.next()?;
    if values.any(|other| other != first) {
        return None;
    }
    parse_date(first.as_bytes())
}

/// A date as IMF-fixdate.
pub fn format_date(unix_seconds: u64) -> HeaderValue {
    // The year 9999 is the last that the form has.
    let when = UNIX_EPOCH + Duration::from_secs(unix_seconds.min(253_402_300_799));
    HeaderValue::try_from(httpdate::fmt_http_date(when))
        .unwrap_or(HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

/// Whether a field speaks of one connection or one server only, or of a proxy's own business (RFC
/// 9110 section 7.6.1, RFC 9111 section 3.1, RFC 7838 section 3).
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    const OTHERS: [&str; 7] = [
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "http2-settings",
        "alt-svc",
    ];
    matches!(
        *name,
        CONNECTION | TE | TRAILER | TRANSFER_ENCODING | UPGRADE
    ) || OTHERS.contains(&name.as_str())
}

/// Fields that `Connection` cannot name: those for everybody on the way, or a client could take
/// away what guards against loops, or cut a body loose from its length (RFC 8586 section 2, RFC
/// 9110 section 7.6.1).
const FOR_EVERYBODY: [&str; 5] = ["cdn-loop", "via", "host", "content-length", "cache-control"];

fn is_for_everybody(name: &[u8]) -> bool {
    FOR_EVERYBODY
        .iter()
        .any(|known| known.as_bytes().eq_ignore_ascii_case(name))
}

/// Whether `Connection` names a field, which then ends here.
pub(crate) fn is_named_by_connection(fields: &HeaderMap, name: &str) -> bool {
    let is_named =
        || list(fields, CONNECTION).any(|named| named.eq_ignore_ascii_case(name.as_bytes()));
    fields.contains_key(CONNECTION) && !is_for_everybody(name.as_bytes()) && is_named()
}

/// Fields without those for one hop: the hop-by-hop ones and those named by `Connection`.
///
/// Values are copied where `is_kept_long`, so that a stored one does not keep a connection's read
/// buffer alive.
pub fn end_to_end(fields: &HeaderMap, is_kept_long: bool) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(fields.len() + 4);
    for (name, value) in fields.iter().filter(|(name, _)| !is_hop_by_hop(name)) {
        let value = if is_kept_long {
            HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
        } else {
            value.clone()
        };
        kept.append(name.clone(), value);
    }
    for named in list(fields, CONNECTION).filter(|named| !is_for_everybody(named)) {
        if let Ok(name) = std::str::from_utf8(named) {
            kept.remove(name);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use http::header::{DATE, EXPIRES};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, map};

    fn text(members: Members<'_>) -> Vec<String> {
        members
            .map(|m| String::from_utf8_lossy(m).into_owned())
            .collect()
    }

    #[test]
    fn lists_are_cut_at_commas_outside_quotes() {
        let table: [(&str, &[&str]); 8] = [
            ("", &[]),
            (" , ,", &[]),
            ("a", &["a"]),
            (" a ,\tb,, c ", &["a", "b", "c"]),
            ("a=\"x, y\", b", &["a=\"x, y\"", "b"]),
            ("\"a\\\", b\", c", &["\"a\\\", b\"", "c"]),
            ("a=\"open, no-store", &["a=\"open", "no-store"]),
            ("\"x\\", &["\"x\\"]),
        ];
        for (value, expected) in table {
            assert_eq!(text(members(value.as_bytes())), expected, "{value}");
        }
    }

    #[test]
    fn lines_of_one_field_are_joined() {
        let fields = map(&["vary: a, b", "vary: c"]);
        assert_eq!(list(&fields, "vary").count(), 3);
    }

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
    fn dictionaries_are_bounded() {
        let wide = |count| {
            (0..count)
                .map(|n| format!("k{n}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let name = &TARGETED[0];
        let fields = |count| map(&[&format!("cdn-cache-control: {}", wide(count))]);
        assert_eq!(
            dictionary(&fields(DICTIONARY_MEMBERS_MAX), name).map(|d| d.len()),
            Some(DICTIONARY_MEMBERS_MAX)
        );
        assert_eq!(dictionary(&fields(DICTIONARY_MEMBERS_MAX + 1), name), None);
    }

    #[test]
    fn structured_strings() {
        let table: [(&[&str], &[&str]); 8] = [
            (&["g: \"a\", \"b c\""], &["a", "b c"]),
            (&["g: \"a\"", "g: \"b\""], &["a", "b"]),
            (&["g: \"a\\\"b\\\\c\""], &["a\"b\\c"]),
            (
                &["g: \"a, b\";x=1, token, 5, (\"in\" \"ner\"), \"z\""],
                &["a, b", "z"],
            ),
            (&["g: \"a\", \"open"], &[]),
            (&["g: \"a\" \"b\""], &[]),
            (&["g: \"a\","], &[]),
            (&["other: \"a\""], &[]),
        ];
        for (lines, expected) in table {
            assert_eq!(
                strings(&map(lines), &HeaderName::from_static("g")),
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

    #[test]
    fn dates_in_three_forms_and_any_case() {
        let valid = [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "SUN, 06 nov 1994 08:49:37 gMT",
            " Sun, 06 Nov 1994 08:49:37 GMT ",
            "Mon, 06 Nov 1994 08:49:37 GMT",
            "saturday, 06-Nov-94 08:49:37 GMT",
            "Wed Nov  6 08:49:37 1994",
        ];
        for value in valid {
            assert_eq!(parse_date(value.as_bytes()), Some(784_111_777), "{value}");
        }
        let invalid = [
            "",
            "0",
            "-1",
            "foo",
            "Thu, 18 Aug 2050 02:01:18 UTC",
            "Thu, 18 Aug 2050 02:01:18 AEST",
            "Thu, 18 Aug 50 02:01:18 GMT",
            "Thu 18 Aug 2050 02:01:18 GMT",
            "Thu, 18  Aug  2050 02:01:18 GMT",
            "Thu, 18-Aug-2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02.01.18 GMT",
            "Thu, 18 Aug 2050 2:01:18 GMT",
            "Thu, 18 Aug 2050 02:01:18 GMT and then some more text",
            "Mon, 31 Feb 2050 02:01:18 GMT",
            "Thu, 32 Aug 2050 02:01:18 GMT",
            "Foo, 18 Aug 2050 02:01:18 GMT",
            "Thursda, 18-Aug-50 02:01:18 GMT",
            ", 18 Aug 2050 02:01:18 GMT",
            "Thursday, 18 Aug 2050 02:01:18 GMT",
            "Thu, 18-Aug-50 02:01:18 GMT",
            "Thu",
        ];
        for value in invalid {
            assert_eq!(parse_date(value.as_bytes()), None, "{value}");
        }
        assert_eq!(
            parse_date(b"Thu, 18 Aug 2050 02:01:18 GMT"),
            Some(2_544_400_878)
        );
    }

    #[test]
    fn a_date_in_two_lines_counts_when_both_agree() {
        let one = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(
            date(
                &map(&[&format!("date: {one}"), &format!("date: {one}")]),
                DATE
            ),
            Some(784_111_777)
        );
        assert_eq!(
            date(&map(&[&format!("expires: {one}"), "expires: 0"]), EXPIRES),
            None
        );
        assert_eq!(date(&map(&[]), DATE), None);
    }

    #[test]
    fn dates_are_written_as_they_are_read() {
        assert_eq!(format_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(format_date(u64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[test]
    fn fields_of_one_hop_end_here() {
        // RFC 9110 section 7.6.1 and RFC 9111 section 3.1.
        let fields = map(&[
            "connection: a, B, cdn-loop, close, host, cache-control",
            "a: 1",
            "b: 2",
            "c: 3",
            "cdn-loop: x",
            "cache-control: no-store",
            "host: h",
            "keep-alive: 5",
            "proxy-connection: x",
            "proxy-authenticate: x",
            "proxy-authentication-info: x",
            "proxy-authorization: x",
            "te: trailers",
            "trailer: x",
            "transfer-encoding: chunked",
            "upgrade: x",
            "alt-svc: clear",
            "set-cookie: a=1",
            "set-cookie: b=2",
        ]);
        for is_kept_long in [false, true] {
            let mut kept: Vec<String> = end_to_end(&fields, is_kept_long)
                .iter()
                .map(|(n, _)| n.to_string())
                .collect();
            kept.sort();
            assert_eq!(
                kept,
                [
                    "c",
                    "cache-control",
                    "cdn-loop",
                    "host",
                    "set-cookie",
                    "set-cookie"
                ],
                "what all are to see cannot be taken away"
            );
        }
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

        #[test]
        fn dates_survive(seconds in 0u64..253_402_300_799) {
            prop_assert_eq!(parse_date(format_date(seconds).as_bytes()), Some(seconds));
        }

        #[test]
        fn any_day_will_do(seconds in 0u64..253_402_300_799, day in 0usize..7) {
            let written = format_date(seconds);
            let rest = &written.to_str().expect("ASCII")[3..];
            prop_assert_eq!(parse_date(format!("{}{rest}", &DAYS[day][..3]).as_bytes()), Some(seconds));
        }

        #[test]
        fn no_date_panics(text in "[A-Za-z]{0,9}[, ]{0,2}.{0,20}") {
            let _ = parse_date(text.as_bytes());
        }

        #[test]
        fn numbers_clamp(number in any::<u128>()) {
            let expected = u64::try_from(number).unwrap_or(u64::MAX).min(DELTA_SECONDS_MAX);
            prop_assert_eq!(delta_seconds(number.to_string().as_bytes()), Some(expected));
        }
    }
}
