//! Compression by this cache: which stored responses it may code, which form a request gets, and the
//! fields of a coded form.
//!
//! A response that the origin sends without a content coding has an identity form and coded forms,
//! each a representation of its own (RFC 9110 section 8.8.3.3): with a tag of its own and ranges of
//! its own. Follows RFC 9110 sections 8.8.3 (tags), 12.5.3 (`Accept-Encoding`), 13.1 (conditions) and
//! 14 (ranges), RFC 9111 section 5.2.2.6 (`no-transform`) and RFC 9530 section 2 (digests).

use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, IF_RANGE, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use nearcast_fleet::config::{Coding, CompressionPolicy};

use crate::cache_control::CacheControl;
use crate::coding::Weights;
use crate::{conditional, fields};

/// All codings, in the order of [`number`].
pub const CODINGS: [Coding; 3] = [Coding::Zstd, Coding::Brotli, Coding::Gzip];

/// The type of responses that may never end and whose events must arrive at once.
const EVENT_STREAM: &[u8] = b"text/event-stream";

/// Fields that describe the bytes of the identity form (RFC 9530; `Content-MD5` and `Digest` are
/// their predecessors).
const OF_IDENTITY: [HeaderName; 5] = [
    CONTENT_LENGTH,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

/// The name of a coding in `Content-Encoding`.
pub fn name(coding: Coding) -> &'static str {
    match coding {
        Coding::Zstd => "zstd",
        Coding::Brotli => "br",
        Coding::Gzip => "gzip",
    }
}

/// The position of a coding in [`CODINGS`].
pub fn number(coding: Coding) -> usize {
    match coding {
        Coding::Zstd => 0,
        Coding::Brotli => 1,
        Coding::Gzip => 2,
    }
}

/// The form of a response that a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// The response has this one form.
    Only,
    /// The form without a coding of a response that has coded forms, too.
    Identity,
    /// The form with this coding.
    Coded(Coding),
}

/// Whether a response may have coded forms by its status, fields and type. Its length has a rule of
/// its own, [`is_fit_length`].
///
/// Only a 200 is coded: it is the one status whose ranges and conditions this cache evaluates, and
/// other bodies are short.
pub fn is_compressible(
    status: StatusCode,
    response: &HeaderMap,
    policy: &CompressionPolicy,
) -> bool {
    status == StatusCode::OK
        && !policy.codings.is_empty()
        && !response.contains_key(CONTENT_ENCODING)
        && !response.contains_key(CONTENT_RANGE)
        && has_type(response, &policy.types)
        && !CacheControl::of_response(response).no_transform
}

/// Whether a body of that length is compressed. One of unknown length is.
pub fn is_fit_length(length: Option<u64>, policy: &CompressionPolicy) -> bool {
    length.is_none_or(|length| (policy.bytes_min.0..=policy.bytes_max.0).contains(&length))
}

/// Whether the type of a response is one of a list, whose members are in lower case and may end with
/// `/*`. A response with several types has none.
fn has_type(response: &HeaderMap, types: &[String]) -> bool {
    let mut values = response.get_all(CONTENT_TYPE).into_iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    let essence = value
        .as_bytes()
        .split(|b| *b == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    let is_it = |listed: &String| match listed.strip_suffix('*') {
        Some(prefix) => essence
            .get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes())),
        None => essence.eq_ignore_ascii_case(listed.as_bytes()),
    };
    !essence.eq_ignore_ascii_case(EVENT_STREAM) && types.iter().any(is_it)
}

/// What a request accepts of the forms of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// In thousandths, by [`number`].
    weights: [u16; CODINGS.len()],
    identity: u16,
    refuses_identity: bool,
}

impl Accepted {
    /// What the lines of `Accept-Encoding` accept; nothing but identity without a line.
    pub fn of<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Self {
        let weights = Weights::of(CODINGS.map(|coding| name(coding).as_bytes()), lines);
        Self {
            weights: weights.offered,
            identity: weights.identity.unwrap_or(0),
            refuses_identity: weights.identity.or(weights.others) == Some(0),
        }
    }

    /// What a request accepts. A request with `no-transform` wants what the origin sent (RFC 9111
    /// section 5.2.1.6).
    pub fn of_request(request: &HeaderMap) -> Self {
        let is_untransformed =
            request.contains_key(CACHE_CONTROL) && CacheControl::of_request(request).no_transform;
        match is_untransformed {
            true => Self::of(std::iter::empty()),
            false => Self::of(
                request
                    .get_all(ACCEPT_ENCODING)
                    .into_iter()
                    .map(HeaderValue::as_bytes),
            ),
        }
    }

    /// The coding that is wanted most; the first one of `offered` where several are wanted equally.
    /// `None` where identity is wanted more, or no coding is acceptable.
    pub fn preferred(&self, offered: &[Coding]) -> Option<Coding> {
        let weight = |coding: Coding| self.weights[number(coding)];
        offered
            .iter()
            .copied()
            .filter(|coding| weight(*coding) > 0 && weight(*coding) >= self.identity)
            // Of equal ones `max_by_key` gives the last.
            .rev()
            .max_by_key(|coding| weight(*coding))
    }

    /// Whether the form without a coding is acceptable.
    pub fn accepts_identity(&self) -> bool {
        !self.refuses_identity
    }
}

/// Names one coded form: the bytes of two of them differ, even if they are of one response and one
/// coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FormId(pub u64);

/// Turns the fields of the identity form into those of a coded one. `id` is `None` for a form that
/// does not exist yet: it has no tag. `length` is that of the coded body, once it is known.
pub fn set_coded(
    response: &mut HeaderMap,
    coding: Coding,
    id: Option<FormId>,
    length: Option<u64>,
) {
    response.insert(CONTENT_ENCODING, HeaderValue::from_static(name(coding)));
    for field in &OF_IDENTITY {
        response.remove(field);
    }
    if length.is_none() {
        response.remove(ACCEPT_RANGES);
    }
    if let Some(tag) = response.remove(ETAG)
        && let Some(coded) = id.and_then(|id| coded_tag(&tag, coding, id))
    {
        response.insert(ETAG, coded);
    }
    add_vary(response);
}

/// Turns the fields of the identity form into those of a coded one that is made for one client and
/// kept nowhere: its tag is weak, so that the origin still recognises it and no parts are joined by
/// it.
pub fn set_coded_once(response: &mut HeaderMap, coding: Coding) {
    let tag = response.get(ETAG).and_then(weakened);
    set_coded(response, coding, None, None);
    if let Some(tag) = tag {
        response.insert(ETAG, tag);
    }
}

fn weakened(tag: &HeaderValue) -> Option<HeaderValue> {
    let text = tag.as_bytes();
    match text.starts_with(b"W/") {
        true => Some(tag.clone()),
        false => HeaderValue::from_bytes(&[b"W/", text].concat()).ok(),
    }
}

/// Adds `Accept-Encoding` to `Vary`, so that caches keep the forms of a response apart.
pub fn add_vary(response: &mut HeaderMap) {
    let is_named = fields::list(&*response, VARY).any(|member| {
        member == b"*" || member.eq_ignore_ascii_case(ACCEPT_ENCODING.as_str().as_bytes())
    });
    if !is_named {
        response.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// The tag of a coded form: `"abc"` becomes `"abc;gzip-0123456789ab"`, and a weak one stays weak.
/// `None` when the tag is malformed.
fn coded_tag(tag: &HeaderValue, coding: Coding, id: FormId) -> Option<HeaderValue> {
    let mut text = coded_prefix(tag, coding)?;
    text.extend_from_slice(format!("{:012x}\"", id.0 & 0xffff_ffff_ffff).as_bytes());
    HeaderValue::from_bytes(&text).ok()
}

/// The begin of the tags of all coded forms of one coding, up to the number of the form.
fn coded_prefix(tag: &HeaderValue, coding: Coding) -> Option<Vec<u8>> {
    let opened = tag.as_bytes().trim_ascii().strip_suffix(b"\"")?;
    let is_quoted = opened
        .strip_prefix(b"W/")
        .unwrap_or(opened)
        .starts_with(b"\"");
    is_quoted.then(|| [opened, b";", name(coding).as_bytes(), b"-"].concat())
}

/// The tag in `If-None-Match` of a client that has some coded form of the same response. That form
/// may have been made anew since, or be another node's, but it is the same content (weak comparison,
/// RFC 9110 section 8.8.3.2). `identity` is the tag of the identity form.
pub fn known_form(
    request: &HeaderMap,
    identity: Option<&HeaderValue>,
    coding: Coding,
) -> Option<HeaderValue> {
    let prefix = coded_prefix(identity?, coding)?;
    let opaque = |tag: &[u8]| tag.strip_prefix(b"W/").unwrap_or(tag).to_vec();
    let wanted = opaque(&prefix);
    let is_it = |tag: &&[u8]| {
        let id = opaque(tag)
            .strip_prefix(&wanted[..])
            .and_then(|rest| rest.strip_suffix(b"\"").map(<[u8]>::to_vec));
        id.is_some_and(|id| id.len() == 12 && id.iter().all(u8::is_ascii_hexdigit))
    };
    fields::entity_tags(request, IF_NONE_MATCH)
        .find(is_it)
        .and_then(|tag| HeaderValue::from_bytes(tag).ok())
}

/// The tag of the identity form of a response whose coded form has this tag.
fn identity_of(tag: &[u8]) -> Option<Vec<u8>> {
    let opened = tag.strip_suffix(b"\"")?;
    let (identity, suffix) = opened.split_at(opened.iter().rposition(|byte| *byte == b';')?);
    let id = CODINGS.into_iter().find_map(|coding| {
        suffix
            .strip_prefix(b";")?
            .strip_prefix(name(coding).as_bytes())?
            .strip_prefix(b"-")
    })?;
    let is_id = id.len() == 12 && id.iter().all(u8::is_ascii_hexdigit);
    is_id.then(|| [identity, b"\""].concat())
}

/// Adds the tags that the origin knows to the conditions of a request that is sent on as the client
/// made it: an origin knows none of the coded forms, and would refuse a change (`If-Match`) or send
/// a known body again (`If-None-Match`). `If-Range` stays: parts of two forms must not be joined.
pub fn add_identity_tags(forward: &mut HeaderMap) {
    for field in [IF_MATCH, IF_NONE_MATCH] {
        let tags = fields::entity_tags(&*forward, &field);
        let known: Vec<Vec<u8>> = tags.filter_map(identity_of).collect();
        if let Ok(value) = HeaderValue::from_bytes(&known.join(&b", "[..]))
            && !known.is_empty()
        {
            forward.append(field, value);
        }
    }
}

/// Gives a 304 of the origin the tag of the coded form that its client has. One that names the
/// identity form, too, may have either.
pub fn set_known_tag(request: &HeaderMap, response: &mut HeaderMap) {
    let Some(identity) = response.get(ETAG) else {
        return;
    };
    let opaque = |tag: &[u8]| tag.strip_prefix(b"W/").unwrap_or(tag).to_vec();
    let own = opaque(identity.as_bytes());
    let names_identity = fields::entity_tags(request, IF_NONE_MATCH).any(|tag| opaque(tag) == own);
    let known = CODINGS
        .into_iter()
        .find_map(|coding| known_form(request, Some(identity), coding));
    if let Some(tag) = known.filter(|_| !names_identity) {
        response.insert(ETAG, tag);
        add_vary(response);
    }
}

/// Whether a request asks for parts of the identity form, or for none if that has changed: `If-Range`
/// or `If-Match` has its strong tag.
pub fn names_identity(request: &HeaderMap, identity: &HeaderMap) -> bool {
    let Some(tag) = conditional::strong_tag(identity).map(HeaderValue::as_bytes) else {
        return false;
    };
    let mut named = [IF_RANGE, IF_MATCH]
        .into_iter()
        .flat_map(|name| fields::entity_tags(request, name));
    named.any(|named| named == tag)
}

/// Whether a condition of a range on a coded form can hold: only a tag names that form, since all
/// forms share their `Last-Modified`.
pub fn may_have_range(request: &HeaderMap) -> bool {
    request
        .get(IF_RANGE)
        .is_none_or(|value| value.as_bytes().trim_ascii().starts_with(b"\""))
}

/// The form that a request gets of a response that is sent to its client alone.
pub fn form_of_uncached(
    request: &HeaderMap,
    status: StatusCode,
    response: &HeaderMap,
    length: Option<u64>,
    policy: &CompressionPolicy,
) -> Form {
    if !is_compressible(status, response, policy) || !is_fit_length(length, policy) {
        return Form::Only;
    }
    Accepted::of_request(request)
        .preferred(&policy.codings)
        .map_or(Form::Identity, Form::Coded)
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::units::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, map};

    fn accepted(value: &str) -> Accepted {
        Accepted::of(std::iter::once(value.as_bytes()))
    }

    #[test]
    fn a_200_of_a_listed_type_without_a_coding_is_compressible() {
        let html = "content-type: text/html";
        let table: [(u16, &[&str], bool); 22] = [
            (200, &[html], true),
            (200, &["content-type: Text/HTML; charset=utf-8"], true),
            (200, &["content-type: text/html ;charset=utf-8"], true),
            (200, &["content-type: image/svg+xml"], true),
            (200, &["content-type: application/json"], true),
            (200, &["content-type: application/jsonp"], false),
            (200, &["content-type: image/png"], false),
            (200, &["content-type: texthtml"], false),
            (200, &[], false),
            (200, &["content-type:"], false),
            (200, &[html, "content-type: image/png"], false),
            // Its events must arrive at once.
            (200, &["content-type: text/event-stream"], false),
            (200, &["content-type: Text/Event-Stream;x=y"], false),
            (200, &[html, "content-encoding: gzip"], false),
            (200, &[html, "content-encoding: identity"], false),
            (200, &[html, "content-range: bytes 0-1/2"], false),
            (
                200,
                &[html, "cache-control: max-age=1, No-Transform"],
                false,
            ),
            (200, &[html, "cache-control: max-age=1"], true),
            (206, &[html], false),
            (203, &[html], false),
            (404, &[html], false),
            (304, &[html], false),
        ];
        for (status, fields, expected) in table {
            let status = StatusCode::from_u16(status).expect("valid");
            let found = is_compressible(status, &map(fields), &CompressionPolicy::default());
            assert_eq!(found, expected, "{status} {fields:?}");
        }
        let off = CompressionPolicy {
            codings: Vec::new(),
            ..CompressionPolicy::default()
        };
        assert!(!is_compressible(StatusCode::OK, &map(&[html]), &off));
        let listed = CompressionPolicy {
            types: vec!["x/y".into(), "z/*".into()],
            ..CompressionPolicy::default()
        };
        for (value, expected) in [
            ("x/y", true),
            ("z/a", true),
            ("z", false),
            ("text/html", false),
        ] {
            let response = map(&[&format!("content-type: {value}")]);
            let found = is_compressible(StatusCode::OK, &response, &listed);
            assert_eq!(found, expected, "{value}");
        }
    }

    #[test]
    fn lengths_have_two_bounds() {
        let policy = CompressionPolicy {
            bytes_min: Bytes(10),
            bytes_max: Bytes(20),
            ..CompressionPolicy::default()
        };
        for (length, expected) in [
            (None, true),
            (Some(9), false),
            (Some(10), true),
            (Some(20), true),
            (Some(21), false),
        ] {
            assert_eq!(is_fit_length(length, &policy), expected, "{length:?}");
        }
    }

    #[test]
    fn the_most_wanted_coding_is_chosen_and_ties_go_by_the_policy() {
        use Coding::{Brotli, Gzip, Zstd};
        // Field, coding, whether identity is acceptable.
        let table = [
            ("gzip, deflate, br, zstd", Some(Zstd), true),
            ("gzip, deflate, br", Some(Gzip), true),
            ("br, gzip;q=0.9", Some(Brotli), true),
            ("gzip", Some(Gzip), true),
            ("x-gzip", Some(Gzip), true),
            ("GZIP;Q=0.5", Some(Gzip), true),
            ("gzip, br;q=0.9, zstd;q=0.1", Some(Gzip), true),
            ("gzip;q=0, br;q=0.001", Some(Brotli), true),
            ("gzip;q=0", None, true),
            ("gzip, gzip;q=0", None, true),
            ("zstd;q=0, *", Some(Gzip), true),
            ("*", Some(Zstd), true),
            ("*;q=0", None, false),
            ("identity", None, true),
            ("identity;q=1, *;q=0", None, true),
            ("identity;q=0, gzip;q=0.1", Some(Gzip), false),
            ("identity;q=0", None, false),
            ("identity, gzip;q=0.5", None, true),
            ("identity;q=0.5, gzip;q=0.5", Some(Gzip), true),
            ("deflate", None, true),
            ("", None, true),
            ("gzip;q=2", None, true),
            ("\"gzip\"", None, true),
        ];
        let policy = CompressionPolicy::default();
        for (value, coding, identity) in table {
            let found = accepted(value);
            assert_eq!(found.preferred(&policy.codings), coding, "{value:?}");
            assert_eq!(found.accepts_identity(), identity, "{value:?}");
        }
        assert_eq!(accepted("*").preferred(&[Gzip, Zstd]), Some(Gzip));
        assert_eq!(
            accepted("gzip, br").preferred(&[Brotli, Gzip]),
            Some(Brotli)
        );
        assert_eq!(accepted("br, zstd").preferred(&[Gzip]), None);
        assert_eq!(Accepted::of(std::iter::empty()).preferred(&CODINGS), None);
        let two = [b"br;q=0.5".as_slice(), b"gzip"];
        assert_eq!(
            Accepted::of(two.into_iter()).preferred(&CODINGS),
            Some(Gzip)
        );
        let long = format!("{}gzip", "x;q=0.5, ".repeat(900));
        assert_eq!(accepted(&long).preferred(&CODINGS), Some(Gzip), "8 kB");
        let untransformed = map(&["accept-encoding: gzip", "cache-control: no-transform"]);
        assert_eq!(
            Accepted::of_request(&untransformed).preferred(&CODINGS),
            None
        );
    }

    #[test]
    fn a_coded_form_has_fields_of_its_own() {
        let identity = map(&[
            "etag: \"abc\"",
            "content-type: text/html",
            "content-length: 9",
            "content-md5: x",
            "digest: x",
            "content-digest: x",
            "repr-digest: x",
            "accept-ranges: bytes",
            "vary: Origin",
        ]);
        let mut coded = identity.clone();
        set_coded(&mut coded, Coding::Gzip, Some(FormId(0x12)), Some(5));
        let expected = [
            "content-type: text/html",
            "accept-ranges: bytes",
            "vary: Origin",
            "vary: Accept-Encoding",
            "content-encoding: gzip",
            "etag: \"abc;gzip-000000000012\"",
        ];
        assert_eq!(coded, map(&expected));

        let mut unknown = identity.clone();
        set_coded(&mut unknown, Coding::Brotli, None, None);
        for name in [ETAG, ACCEPT_RANGES] {
            assert!(!unknown.contains_key(&name), "{name} is not known yet");
        }
        let mut once = identity;
        set_coded_once(&mut once, Coding::Zstd);
        assert_eq!(once.get(ETAG).expect("a tag"), "W/\"abc\"");
    }

    #[test]
    fn vary_names_the_field_once() {
        for (vary, expected) in [
            (&[][..], &["vary: Accept-Encoding"][..]),
            (&["vary: accept-encoding"], &["vary: accept-encoding"]),
            (&["vary: a, Accept-Encoding"], &["vary: a, Accept-Encoding"]),
            (&["vary: *"], &["vary: *"]),
            (&["vary: a"], &["vary: a", "vary: Accept-Encoding"]),
        ] {
            let mut fields = map(vary);
            add_vary(&mut fields);
            assert_eq!(fields, map(expected));
        }
    }

    #[test]
    fn tags_of_coded_forms_follow_the_origins() {
        for (tag, expected) in [
            ("\"a\"", Some("\"a;br-0000000000ff\"")),
            ("W/\"a\"", Some("W/\"a;br-0000000000ff\"")),
            ("\"\"", Some("\";br-0000000000ff\"")),
            ("a", None),
            ("a\"", None),
            ("\"", None),
        ] {
            let tag = HeaderValue::from_static(tag);
            let found = coded_tag(&tag, Coding::Brotli, FormId(0xff));
            let found = found.as_ref().map(|v| v.to_str().expect("text"));
            assert_eq!(found, expected, "{tag:?}");
        }
    }

    #[test]
    fn a_form_that_was_made_anew_is_the_same_content() {
        let tag = HeaderValue::from_static("\"a\"");
        for (value, is_known) in [
            ("\"a;gzip-0123456789ab\"", true),
            ("W/\"a;gzip-0123456789ab\"", true),
            ("\"x\", \"a;gzip-0123456789ab\"", true),
            ("\"a\"", false),
            ("*", false),
            ("\"a;br-0123456789ab\"", false),
            ("\"b;gzip-0123456789ab\"", false),
            ("\"a;gzip-0123\"", false),
            ("\"a;gzip-0123456789zz\"", false),
        ] {
            let request = map(&[&format!("if-none-match: {value}")]);
            let found = known_form(&request, Some(&tag), Coding::Gzip);
            assert_eq!(found.is_some(), is_known, "{value}");
        }
        let request = map(&["if-none-match: \"a;gzip-0123456789ab\""]);
        assert!(known_form(&request, None, Coding::Gzip).is_none());
    }

    #[test]
    fn the_origin_gets_its_own_tags_and_the_client_keeps_the_one_it_has() {
        const CODED: &str = "\"a;gzip-0123456789ab\"";
        for (value, added) in [
            (CODED, Some("\"a\"")),
            ("W/\"a;br-0123456789ab\"", Some("W/\"a\"")),
            (
                "\"a;b;zstd-0123456789ab\", \"c\", \"d;br-0123456789ab\"",
                Some("\"a;b\", \"d\""),
            ),
            ("\"a;gzip-0123\"", None),
            ("\"a;deflate-0123456789ab\"", None),
            ("\"a;gzip-0123456789ag\"", None),
            ("\"a\"", None),
            ("*", None),
        ] {
            for name in ["if-match", "if-none-match"] {
                let mut forward = map(&[
                    &format!("{name}: {value}"),
                    "if-range: \"x;gzip-0123456789ab\"",
                ]);
                add_identity_tags(&mut forward);
                let mut lines = forward.get_all(name).into_iter();
                assert_eq!(lines.next().expect("there"), value);
                assert_eq!(
                    lines.next().map(|line| line.to_str().expect("text")),
                    added,
                    "{value}"
                );
                assert_eq!(forward.get_all("if-range").into_iter().count(), 1);
            }
        }
        for (known, tag, expected) in [
            (CODED.to_owned(), "\"a\"", CODED),
            (format!("W/{CODED}"), "\"a\"", &*format!("W/{CODED}")),
            (format!("\"a\", {CODED}"), "\"a\"", "\"a\""),
            (CODED.to_owned(), "\"b\"", "\"b\""),
            ("\"a\"".to_owned(), "\"a\"", "\"a\""),
        ] {
            let mut response = map(&[&format!("etag: {tag}")]);
            set_known_tag(&map(&[&format!("if-none-match: {known}")]), &mut response);
            assert_eq!(response[ETAG], expected, "{known}");
            assert_eq!(response.contains_key(VARY), expected != tag, "{known}");
        }
    }

    #[test]
    fn ranges_belong_to_the_form_that_their_condition_names() {
        let identity = map(&["etag: \"a\""]);
        for (field, names_it, may_range) in [
            ("if-range: \"a\"", true, true),
            ("if-match: \"x\", \"a\"", true, true),
            ("if-range: \"a;gzip-0123456789ab\"", false, true),
            ("if-range: W/\"a\"", false, false),
            ("if-range: Mon, 02 Nov 2026 10:00:00 GMT", false, false),
            ("if-none-match: \"a\"", false, true),
        ] {
            let request = map(&[field]);
            assert_eq!(names_identity(&request, &identity), names_it, "{field}");
            assert_eq!(may_have_range(&request), may_range, "{field}");
        }
        let weak = map(&["etag: W/\"a\""]);
        assert!(!names_identity(&map(&["if-match: W/\"a\""]), &weak));
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn both_readings_of_the_field_agree(value in testing::pieces(&[
            "gzip", "br", "zstd", "identity", "*", ";q=0", ";q=0.5", ";q=1", ", ", "x",
        ])) {
            let request = HeaderMap::from_iter([(ACCEPT_ENCODING, value)]);
            let names = CODINGS.map(name);
            let expected = crate::coding::preferred(&request, &names);
            let found = Accepted::of_request(&request).preferred(&CODINGS);
            prop_assert_eq!(found.map(name), expected.first().copied());
        }
    }
}
