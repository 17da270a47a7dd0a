//! The questions of one request, answered from fields and times alone: the seam between the handler and the caching
//! rules.

use http::header::{
    AGE, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, EXPIRES,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, PRAGMA, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use nearcast_fleet::config::CachePolicy;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::response::StoredResponse;

/// Seconds that no lifetime exceeds (RFC 9111 section 1.2.2).
const SECONDS_MAX: u64 = 1 << 31;
/// Longest lifetime that is guessed from `Last-Modified`.
const GUESSED_MAX: u64 = 86_400;

/// That a response may be stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Storing;

/// `Cache-Control` of a response or a request, as far as it concerns a shared cache.
#[derive(Debug, Default, Clone)]
pub(crate) struct Directives {
    pub(crate) no_store: bool,
    pub(crate) no_cache: bool,
    pub(crate) private: bool,
    pub(crate) public: bool,
    pub(crate) must_revalidate: bool,
    pub(crate) must_understand: bool,
    pub(crate) only_if_cached: bool,
    pub(crate) s_maxage: Option<u64>,
    pub(crate) max_age: Option<u64>,
    pub(crate) min_fresh: Option<u64>,
    /// `Some(None)`: however stale.
    pub(crate) max_stale: Option<Option<u64>>,
    pub(crate) stale_while_revalidate: Option<u64>,
    pub(crate) stale_if_error: Option<u64>,
    is_targeted: bool,
    is_there: bool,
}

impl Directives {
    fn read(fields: &HeaderMap, name: &str) -> Self {
        let mut found = Self::default();
        for value in fields.get_all(name).iter().filter_map(|v| v.to_str().ok()) {
            for member in split(value) {
                found.note(member);
            }
        }
        found
    }

    fn note(&mut self, member: &str) {
        self.is_there = true;
        let (name, argument) = match member.split_once('=') {
            Some((name, argument)) => (name, Some(argument.trim().trim_matches('"'))),
            None => (member, None),
        };
        // Invalid numbers count as stale already, of several the least is taken.
        let seconds = argument.map(|a| {
            a.parse::<u64>()
                .unwrap_or(if a.bytes().all(|b| b.is_ascii_digit()) && !a.is_empty() { SECONDS_MAX } else { 0 })
                .min(SECONDS_MAX)
        });
        let least = |old: Option<u64>| Some(old.unwrap_or(SECONDS_MAX).min(seconds.unwrap_or(0)));
        match name.trim().to_ascii_lowercase().as_str() {
            "no-store" => self.no_store = true,
            "no-cache" => self.no_cache = true,
            "private" => self.private = true,
            "public" => self.public = true,
            "must-revalidate" | "proxy-revalidate" => self.must_revalidate = true,
            "must-understand" => self.must_understand = true,
            "only-if-cached" => self.only_if_cached = true,
            "s-maxage" => self.s_maxage = least(self.s_maxage),
            "max-age" => self.max_age = least(self.max_age),
            "min-fresh" => self.min_fresh = least(self.min_fresh),
            "max-stale" => self.max_stale = Some(seconds),
            "stale-while-revalidate" => self.stale_while_revalidate = least(self.stale_while_revalidate),
            "stale-if-error" => self.stale_if_error = least(self.stale_if_error),
            _ => {}
        }
    }

    /// What the origin says to us: `CDN-Cache-Control` before `Cache-Control` (RFC 9213).
    pub(crate) fn of_response(fields: &HeaderMap) -> Self {
        let targeted = Self::read(fields, "cdn-cache-control");
        if targeted.is_there {
            return Self { is_targeted: true, ..targeted };
        }
        Self::read(fields, CACHE_CONTROL.as_str())
    }

    /// What a client asks for; `Pragma: no-cache` counts where there is no `Cache-Control`.
    pub(crate) fn of_request(fields: &HeaderMap) -> Self {
        let mut found = Self::read(fields, CACHE_CONTROL.as_str());
        if !found.is_there {
            found.no_cache =
                fields.get_all(PRAGMA).iter().filter_map(|v| v.to_str().ok()).any(|v| v.to_ascii_lowercase().contains("no-cache"));
        }
        found
    }
}

/// Members of a list, quoted strings kept together.
fn split(value: &str) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    value
        .split(move |c| {
            is_quoted ^= c == '"';
            c == ',' && !is_quoted
        })
        .map(str::trim)
        .filter(|member| !member.is_empty())
}

fn date(fields: &HeaderMap, name: HeaderName) -> Option<u64> {
    let when = httpdate::parse_http_date(fields.get(name)?.to_str().ok()?).ok()?;
    Some(when.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// How long a response is fresh after it was made, in seconds; `None` when nothing says so.
fn lifetime(directives: &Directives, status: StatusCode, fields: &HeaderMap, received_ms: u64, cache: &CachePolicy) -> Option<u64> {
    if let Some(seconds) = directives.s_maxage.or(directives.max_age) {
        return Some(seconds);
    }
    let made = date(fields, DATE).unwrap_or(received_ms / 1000);
    if !directives.is_targeted && fields.contains_key(EXPIRES) {
        return Some(date(fields, EXPIRES).map_or(0, |expires| expires.saturating_sub(made)));
    }
    if cache.heuristic
        && (is_heuristic(status) || directives.public)
        && let Some(modified) = date(fields, LAST_MODIFIED)
    {
        return Some((made.saturating_sub(modified) / 10).min(GUESSED_MAX));
    }
    cache.default_ttl.filter(|_| is_heuristic(status)).map(|ttl| ttl.as_secs())
}

fn is_heuristic(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Whether a response may be stored (RFC 9111 section 3).
///
/// # Errors
/// Why not, for `Cache-Status`.
pub(crate) fn storing(
    method: &Method,
    client: &HeaderMap,
    status: StatusCode,
    fields: &HeaderMap,
    cache: &CachePolicy,
) -> Result<Storing, &'static str> {
    let directives = Directives::of_response(fields);
    if *method != Method::GET {
        return Err("method");
    }
    if status.is_informational() || status == StatusCode::NOT_MODIFIED {
        return Err("status");
    }
    if directives.must_understand && !is_heuristic(status) {
        return Err("must-understand");
    }
    if (directives.no_store && !directives.must_understand) || (cache.obey_client && Directives::of_request(client).no_store) {
        return Err("no-store");
    }
    if directives.private {
        return Err("private");
    }
    if vary_names(fields).any(|name| name == "*") {
        return Err("vary");
    }
    if client.contains_key(AUTHORIZATION) && !(directives.public || directives.s_maxage.is_some() || directives.must_revalidate) {
        return Err("authorization");
    }
    if fields.contains_key(SET_COOKIE) && !(directives.public || directives.is_targeted) {
        return Err("set-cookie");
    }
    let has_lifetime = lifetime(&directives, status, fields, 0, cache).is_some();
    let can_be_validated = directives.no_cache && (fields.contains_key(ETAG) || fields.contains_key(LAST_MODIFIED));
    if !(has_lifetime || can_be_validated) {
        return Err("no freshness information");
    }
    Ok(Storing)
}

/// How a stored response stands at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    /// Seconds.
    pub(crate) age: u64,
    /// Seconds that it is still fresh; negative when stale.
    pub(crate) ttl: i64,
    pub(crate) must_validate: bool,
    /// Stale, and may be used while it is validated.
    pub(crate) while_validating: bool,
    /// Stale, and may be used when the origin fails.
    pub(crate) on_error: bool,
}

/// How a stored response stands (RFC 9111 section 4.2, RFC 5861).
pub(crate) fn standing(response: &StoredResponse, now_ms: u64, cache: &CachePolicy) -> Standing {
    let directives = Directives::of_response(&response.fields);
    let lifetime = lifetime(&directives, response.status, &response.fields, response.received_ms, cache).unwrap_or(0);
    let age = age(response, now_ms);
    let ttl = lifetime as i64 - age as i64;
    let late = Duration::from_secs(ttl.min(0).unsigned_abs());
    let forbids_stale = directives.must_revalidate || directives.s_maxage.is_some() && !directives.is_targeted || directives.no_cache;
    let within = |said: Option<u64>, else_: Duration| late < said.map_or(else_, Duration::from_secs);
    let explicit_swr = directives.stale_while_revalidate;
    let explicit_sie = directives.stale_if_error;
    Standing {
        age,
        ttl,
        must_validate: directives.no_cache,
        while_validating: ttl <= 0 && !forbids_stale && within(explicit_swr, cache.stale_while_revalidate),
        on_error: !forbids_stale && within(explicit_sie, cache.stale_if_error),
    }
}

fn age(response: &StoredResponse, now_ms: u64) -> u64 {
    let received = response.received_ms / 1000;
    let apparent = date(&response.fields, DATE).map_or(0, |made| received.saturating_sub(made));
    let said = response.fields.get(AGE).and_then(|v| v.to_str().ok()?.split(',').next()?.trim().parse::<u64>().ok()).unwrap_or(0);
    let corrected = said + response.received_ms.saturating_sub(response.requested_ms) / 1000;
    apparent.max(corrected) + now_ms.saturating_sub(response.received_ms) / 1000
}

/// Names in `Vary`, in lower case.
fn vary_names(fields: &HeaderMap) -> impl Iterator<Item = String> {
    fields
        .get_all(VARY)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|n| n.trim().to_ascii_lowercase())
        .filter(|n| !n.is_empty())
}

/// The request's fields that select this response.
pub(crate) fn selecting(client: &HeaderMap, fields: &HeaderMap) -> HeaderMap {
    let mut found = HeaderMap::new();
    for name in vary_names(fields).filter_map(|n| HeaderName::from_bytes(n.as_bytes()).ok()) {
        for value in client.get_all(&name) {
            found.append(name.clone(), value.clone());
        }
    }
    found
}

fn joined(fields: &HeaderMap, name: &str) -> Vec<String> {
    let values = fields.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    values.flat_map(|v| v.split(',').map(|m| m.trim().to_owned()).collect::<Vec<_>>()).filter(|m| !m.is_empty()).collect()
}

/// Whether a stored response answers a request with these fields (RFC 9111 section 4.1).
pub(crate) fn is_selected(response: &StoredResponse, client: &HeaderMap) -> bool {
    !response.fields.contains_key(VARY)
        || vary_names(&response.fields).all(|name| name != "*" && joined(client, &name) == joined(&response.selecting, &name))
}

/// Whether `new` takes the place of `old`.
pub(crate) fn is_same_variant(old: &StoredResponse, new: &StoredResponse) -> bool {
    is_selected(old, &new.selecting) || is_selected(new, &old.selecting)
}

/// A strong entity tag.
pub(crate) fn strong_tag(fields: &HeaderMap) -> Option<HeaderValue> {
    fields.get(ETAG).filter(|t| t.as_bytes().starts_with(b"\"") && t.as_bytes().ends_with(b"\"") && t.len() >= 2).cloned()
}

/// First, last, complete length.
pub(crate) fn content_range(fields: &HeaderMap) -> Option<(u64, u64, Option<u64>)> {
    let text = fields.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, length) = text.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let length = if length.trim() == "*" { None } else { Some(length.trim().parse().ok()?) };
    (first <= last && length.is_none_or(|l: u64| last < l)).then_some((first, last, length))
}

/// The conditions of a validation.
pub(crate) fn conditions(stale: &StoredResponse) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(2);
    if let Some(tag) = stale.fields.get(ETAG) {
        fields.insert(IF_NONE_MATCH, tag.clone());
    }
    if let Some(modified) = stale.fields.get(LAST_MODIFIED) {
        fields.insert(IF_MODIFIED_SINCE, modified.clone());
    }
    fields
}

/// Whether a response can be validated at all.
pub(crate) fn has_validator(response: &StoredResponse) -> bool {
    response.fields.contains_key(ETAG) || response.fields.contains_key(LAST_MODIFIED)
}

/// Whether a 304 with these fields speaks of that stored response.
pub(crate) fn validates(stale: &StoredResponse, fields: &HeaderMap) -> bool {
    let opaque = |t: &HeaderValue| t.as_bytes().strip_prefix(b"W/").unwrap_or(t.as_bytes()).to_vec();
    match (fields.get(ETAG), stale.fields.get(ETAG)) {
        (Some(new), Some(old)) => opaque(new) == opaque(old),
        (Some(_), None) => false,
        (None, _) => fields.get(LAST_MODIFIED).is_none_or(|new| stale.fields.get(LAST_MODIFIED).is_none_or(|old| old == new)),
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(*name, CONNECTION | TE | TRAILER | TRANSFER_ENCODING | UPGRADE)
        || matches!(
            name.as_str(),
            "keep-alive" | "proxy-connection" | "proxy-authenticate" | "proxy-authentication-info" | "proxy-authorization"
        )
}

fn connection_names(fields: &HeaderMap) -> Vec<String> {
    joined(fields, "connection").into_iter().map(|n| n.to_ascii_lowercase()).collect()
}

/// The fields of a response that are stored.
pub(crate) fn stored_fields(fields: &HeaderMap) -> HeaderMap {
    let named = connection_names(fields);
    let mut stored = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields {
        if !is_hop_by_hop(name)
            && *name != CONTENT_LENGTH
            && *name != REVISION
            && *name != CONTENT_RANGE
            && !named.iter().any(|n| n == name.as_str())
        {
            // A copy of its own: the value may keep the parser's whole buffer alive.
            stored.append(name.clone(), HeaderValue::from_bytes(value.as_bytes()).expect("it was valid before"));
        }
    }
    if !stored.contains_key(DATE) {
        let now = httpdate::fmt_http_date(SystemTime::now());
        stored.insert(DATE, HeaderValue::try_from(now).expect("a date is a valid value"));
    }
    stored
}

/// Stored fields after a 304 (RFC 9111 section 3.2).
pub(crate) fn freshened(stored: &HeaderMap, new: &HeaderMap) -> HeaderMap {
    let mut fields = stored.clone();
    // An old age says nothing of a response that was validated now.
    fields.remove(AGE);
    let update = stored_fields(new);
    for name in update.keys().filter(|n| **n != CONTENT_ENCODING && **n != CONTENT_TYPE) {
        fields.remove(name);
        for value in update.get_all(name) {
            fields.append(name.clone(), value.clone());
        }
    }
    fields
}

/// The fields of a response that is passed on.
pub(crate) fn passed_fields(fields: &HeaderMap) -> HeaderMap {
    let named = connection_names(fields);
    fields
        .iter()
        .filter(|(n, _)| !is_hop_by_hop(n) && !named.iter().any(|c| c == n.as_str()))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect()
}

/// What a client asks of a representation's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    All,
    /// First and end of each, in the order asked for.
    Ranges(Vec<(u64, u64)>),
    Unsatisfiable,
}

/// Ranges of one request before the length is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spec {
    From(u64),
    FromTo(u64, u64),
    Last(u64),
}

/// Ranges in one request; more give the whole.
const RANGES_MAX: usize = 16;

/// The ranges of a request, `None` when there are none that count.
pub(crate) fn specs(client: &HeaderMap) -> Option<Vec<Spec>> {
    let text = client.get(http::header::RANGE)?.to_str().ok()?;
    let (unit, list) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut found = Vec::new();
    for member in list.split(',').map(str::trim).filter(|m| !m.is_empty()) {
        let (first, last) = member.split_once('-')?;
        let number = |t: &str| if t.bytes().all(|b| b.is_ascii_digit()) { t.parse::<u64>().ok() } else { None };
        found.push(match (first.trim(), last.trim()) {
            ("", last) => Spec::Last(number(last)?),
            (first, "") => Spec::From(number(first)?),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                if last < first {
                    return None;
                }
                Spec::FromTo(first, last)
            }
        });
    }
    (!found.is_empty() && found.len() <= RANGES_MAX).then_some(found)
}

/// The ranges of a request within a representation.
pub(crate) fn wanted(specs: &[Spec], length: u64) -> Wanted {
    let ranges: Vec<(u64, u64)> = specs
        .iter()
        .filter_map(|spec| match *spec {
            Spec::From(first) => (first < length).then_some((first, length)),
            Spec::FromTo(first, last) => (first < length).then_some((first, length.min(last.saturating_add(1)))),
            Spec::Last(count) => (count > 0 && length > 0).then_some((length.saturating_sub(count), length)),
        })
        .collect();
    if ranges.is_empty() {
        return Wanted::Unsatisfiable;
    }
    if ranges.len() > 1 && ranges.iter().map(|(a, b)| b - a).sum::<u64>() > length {
        return Wanted::All;
    }
    Wanted::Ranges(ranges)
}

/// Whether a conditional request is answered with 304 (RFC 9110 section 13).
pub(crate) fn is_not_modified(client: &HeaderMap, stored: &StoredResponse) -> bool {
    if stored.status != StatusCode::OK {
        return false;
    }
    if client.contains_key(IF_NONE_MATCH) {
        let opaque = |t: &str| t.trim().trim_start_matches("W/").to_owned();
        let own = stored.fields.get(ETAG).and_then(|t| t.to_str().ok()).map(opaque);
        return client
            .get_all(IF_NONE_MATCH)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .any(|value| value.trim() == "*" || split(value).any(|tag| own.as_deref() == Some(&opaque(tag))));
    }
    match (date(client, IF_MODIFIED_SINCE), date(&stored.fields, LAST_MODIFIED).or(date(&stored.fields, DATE))) {
        (Some(since), Some(modified)) => modified <= since,
        _ => false,
    }
}

/// Whether `If-Range` lets ranges count (RFC 9110 section 13.1.5).
pub(crate) fn if_range_holds(client: &HeaderMap, stored: &StoredResponse) -> bool {
    match client.get(http::header::IF_RANGE) {
        None => true,
        Some(tag) if tag.as_bytes().starts_with(b"\"") => strong_tag(&stored.fields).as_ref() == Some(tag),
        Some(other) => stored.fields.get(LAST_MODIFIED) == Some(other),
    }
}

/// The cache key of a target named in a response, when it has the same origin.
pub(crate) fn same_origin_url(url: &str, target: &str) -> Option<String> {
    let host = crate::purge::host_of(url);
    if target.contains("://") {
        let named = crate::purge::canonical_url(target);
        return (crate::purge::host_of(&named) == host).then_some(named);
    }
    if target.starts_with("//") {
        return None;
    }
    if target.starts_with('/') {
        return Some(crate::purge::canonical_url(&format!("http://{host}{target}")));
    }
    let directory = &url[..url.split('?').next()?.rfind('/')? + 1];
    Some(crate::purge::canonical_url(&format!("{directory}{target}")))
}

/// The field by which a node tells a peer up to which journal revision its answer is clean.
pub(crate) const REVISION: HeaderName = HeaderName::from_static("nearcast-revision");

/// The revision that a peer named, 0 when it named none.
pub(crate) fn revision(fields: &HeaderMap) -> u64 {
    fields.get(&REVISION).and_then(|v| v.to_str().ok()?.parse().ok()).unwrap_or(0)
}
