//! Any bytes as the fields of a request and a response: the cache's decisions on them hold
//! together.
//!
//! The input is lines; an empty one ends the request's fields. A line is `name: value`.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use libfuzzer_sys::fuzz_target;
use nearcast_fleet::config::CachePolicy;
use nearcast_fleet::request_fields;
use nearcast_http_rules::range::{self, ContentRange, Part};
use nearcast_http_rules::{
    cache_control, conditional, forward, freshness, invalidate, key, reuse, storing, structured,
    vary,
};

const NOW_MS: u64 = 1_800_000_000_000;

fn read<'l>(lines: impl Iterator<Item = &'l [u8]>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in lines.take(64) {
        let Some(at) = line.iter().position(|b| *b == b':') else {
            continue;
        };
        let value = HeaderValue::from_bytes(line[at + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..at]), value) {
            map.append(name, value);
        }
    }
    map
}

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|b| *b == b'\n');
    let request = read(lines.by_ref().take_while(|l| !l.is_empty()));
    let response = read(lines);
    ranges(&request, &response);
    stored(&request, &response);
    for name in request.keys().chain(response.keys()) {
        let _ = cache_control::CacheControl::read(&request, name);
        let _ = structured::strings(&response, name);
        let members = structured::dictionary(&response, name);
        assert!(members.is_none_or(|m| m.len() <= structured::DICTIONARY_MEMBERS_MAX));
    }
    let _ = (
        forward::find_loop(&request, b"nearcast"),
        forward::max_forwards(&Method::TRACE, &request),
    );
    if let Ok(tags) = invalidate::tags(&response) {
        assert!(tags.len() <= invalidate::TAGS_MAX);
    }
    for name in request.keys() {
        assert!(
            !(request_fields::is_removed(name.as_str())
                && request_fields::is_ordinary(name.as_str())),
            "{name} is one or the other"
        );
    }
    let _ = invalidate::invalidated(&Method::POST, "http://a.test/b", StatusCode::OK, &response);
    if let Some(host) = request.get(header::HOST).and_then(|h| h.to_str().ok())
        && let Ok(authority) = key::authority("http", host)
    {
        assert_eq!(
            key::authority("http", &authority).as_ref(),
            Ok(&authority),
            "a key's authority is settled"
        );
    }
});

fn ranges(request: &HeaderMap, response: &HeaderMap) {
    if let Some(specs) = range::requested(&Method::GET, request) {
        for length in [0, 1, 10, 1 << 20, u64::MAX] {
            let parts = match range::resolve(&specs, length) {
                Part::Ranges(ranges) => ranges,
                Part::Whole | Part::Unsatisfiable => vec![],
            };
            assert!(parts.len() <= range::RANGES_MAX);
            assert!(
                parts.iter().all(|p| p.length() > 0 && p.end() <= length),
                "{parts:?} of {length}"
            );
        }
    }
    if let Some(found) = ContentRange::of(response) {
        assert_eq!(
            ContentRange::parse(found.to_value().as_bytes()),
            Some(found)
        );
    }
}

fn stored(request: &HeaderMap, response: &HeaderMap) {
    let policy = CachePolicy {
        obey_client: true,
        ..CachePolicy::default()
    };
    let exchange = freshness::Exchange {
        requested_ms: NOW_MS - 50,
        received_ms: NOW_MS,
    };
    let facts = storing::RequestFacts {
        method: &Method::GET,
        fields: request,
    };
    let _ = conditional::evaluate(&Method::GET, request, StatusCode::OK, response);
    let assessment = storing::assess(facts, StatusCode::OK, response, &policy, exchange);
    if assessment.not_stored.is_none() {
        let fresh = assessment.freshness;
        let directives = cache_control::CacheControl::of_response(response);
        assert!(!directives.no_store && !directives.private);
        let asked = cache_control::CacheControl::of_request(request);
        let much_later = NOW_MS + 1000 * (fresh.lifetime + 1);
        let evaluation = reuse::evaluate(&fresh, Some(&asked), false, &policy, much_later);
        assert!(
            evaluation.ttl <= 0 && evaluation.reuse != reuse::Reuse::Fresh,
            "{fresh:?}"
        );
        assert!(
            !(fresh.must_revalidate && evaluation.reuse.may_serve_now()),
            "{fresh:?}"
        );
        let _ = conditional::freshened(
            &conditional::stored_fields(response, NOW_MS),
            request,
            NOW_MS,
        );
    }
    if vary::names(response).is_some() {
        let kept = vary::selecting(request, response);
        assert!(
            vary::is_selected(response, &kept, request),
            "a request selects what was stored for it"
        );
    }
}
