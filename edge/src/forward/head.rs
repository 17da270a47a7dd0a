//! What the head of an origin's response leads to: stored, passed to its client, requested in
//! another way, or refused. Pure.
//!
//! Follows RFC 9110 sections 15.3.7 and 15.5.17, and RFC 9111 sections 3, 3.3 and 4.3.4.

use http::header::{CONNECTION, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use nearcast_fleet::config::CachePolicy;

use super::collapse::{ForwardResult, Requester, SharedError};
use super::representation::complete_length;
use super::wanted::{SliceRange, WantedSlices, can_be_assembled};
use crate::origin::OriginError;
use nearcast_http_rules::conditional::{self, StrongValidator};
use nearcast_http_rules::fields;
use nearcast_http_rules::freshness::{Exchange, Freshness};
use nearcast_http_rules::not_stored::NotStored;
use nearcast_http_rules::reuse;
use nearcast_http_rules::storing::{Assessment, RequestFacts, assess};
use nearcast_store::SLICE_BYTES;

/// Bytes of the largest error response that followers share. A larger one, or one of unknown length,
/// goes to the leader alone, and the followers get its status.
const SHARED_ERROR_BYTES_MAX: u64 = SLICE_BYTES as u64;

/// Values of `Set-Cookie` that a response sets for its leader alone, and that are not stored.
pub(crate) type Cookies = Vec<HeaderValue>;

/// The facts of a forward request that decide on its response.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    /// The client's fields.
    pub(super) client: &'a HeaderMap,
    pub(super) policy: &'a CachePolicy,
    /// Largest body that is stored.
    pub(super) body_bytes_max: u64,
    /// The slices that were requested, unless the whole was.
    pub(super) wanted: Option<WantedSlices>,
    /// A stored response may still be used when the origin fails.
    pub(super) has_stale: bool,
    pub(super) exchange: Exchange,
}

/// The head of an origin's response.
#[derive(Debug, Clone, Copy)]
pub(super) struct OriginHead<'a> {
    pub(super) status: StatusCode,
    pub(super) fields: &'a HeaderMap,
    /// Length of the body that follows, where it is known.
    pub(super) length: Option<u64>,
}

/// What a response's head leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeadDecision {
    pub(super) action: HeadAction,
    /// Parts of this representation cannot be joined: ranges of it are not requested in slices for
    /// a while.
    pub(super) is_unjoinable: bool,
}

/// What to do with a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadAction {
    /// Its body goes into a fill, which is stored unless there is a reason against it.
    Fill(Admission),
    /// The response goes to the leader alone.
    PassResponse {
        not_stored: NotStored,
        followers: Followers,
    },
    /// The response is of no use: the leader's request is forwarded as it was made.
    PassRequest { followers: Followers },
    /// The response says that other slices have to be requested.
    RequestAgain(WantedSlices),
    /// The response is none to this request.
    Fail(OriginError),
}

/// A response that goes into a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Admission {
    /// Status of the whole representation: 200 where the response is a part of it.
    pub(super) status: StatusCode,
    /// The slices that the response carries, unless it is the whole.
    pub(super) part: Option<SliceRange>,
    /// Length of the whole representation, where it is known.
    pub(super) length: Option<u64>,
    pub(super) freshness: Freshness,
    /// Why the fill is for its readers only; `None` where it is stored.
    pub(super) not_stored: Option<NotStored>,
    /// What followers get where the response is not stored.
    pub(super) followers: Followers,
}

/// What followers get from a response that is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Followers {
    /// Each is forwarded alone.
    Alone,
    /// Each of the leader's kind is forwarded alone; each, where the leader's kind is an ordinary
    /// one.
    AloneByKind,
    /// As [`AloneByKind`](Self::AloneByKind), and nothing is remembered.
    LeaderOnly,
    /// Those with the leader's range are forwarded alone.
    RangeNotSatisfiable,
    /// Those with the leader's fields share the error, the others look up again.
    Error {
        status: StatusCode,
        cause: NotStored,
    },
    /// They look up again.
    LookUpAgain,
}

impl Followers {
    /// What the followers of such a request receive; `shared` is the error, where it is shared.
    pub(super) fn result(self, leader: &Requester, shared: Option<SharedError>) -> ForwardResult {
        match self {
            Self::Alone => ForwardResult::NotShareable,
            Self::AloneByKind => leader.not_shareable(),
            Self::LeaderOnly => ForwardResult::LeaderOnly,
            Self::RangeNotSatisfiable => ForwardResult::RangeNotSatisfiable,
            Self::Error { status, cause } => ForwardResult::ErrorResponse {
                status,
                cause,
                shared,
            },
            Self::LookUpAgain => ForwardResult::LookUpAgain,
        }
    }
}

/// Decides what a response's head leads to. A 304 is none of these: see [`freshen`].
pub(super) fn decide(head: OriginHead<'_>, expected: &Expected<'_>) -> HeadDecision {
    let is_joinable = StrongValidator::of(head.fields, expected.exchange.received_ms).is_some();
    match (head.status, expected.wanted) {
        (StatusCode::PARTIAL_CONTENT, Some(wanted)) => {
            match usable_part(head, expected, wanted, is_joinable) {
                Some(part) => admit(head, expected, Some(part), is_joinable),
                None => refuse_part(head, expected, wanted, is_joinable),
            }
        }
        // A 206 to a request without a range is an error, unless it is the whole.
        (StatusCode::PARTIAL_CONTENT, None) => match SliceRange::of_whole(head.fields) {
            Some(whole) => admit(head, expected, Some(whole), is_joinable),
            None => HeadAction::Fail(OriginError::Protocol).into(),
        },
        // Nor did the request have a condition, or ask for another protocol.
        (StatusCode::NOT_MODIFIED, _) => HeadAction::Fail(OriginError::Protocol).into(),
        (status, _) if status.is_informational() => HeadAction::Fail(OriginError::Protocol).into(),
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(wanted)) => {
            refuse_range(head, expected, wanted).into()
        }
        _ => admit(head, expected, None, is_joinable),
    }
}

impl From<HeadAction> for HeadDecision {
    fn from(action: HeadAction) -> Self {
        Self {
            action,
            is_unjoinable: false,
        }
    }
}

fn is_too_large(head: OriginHead<'_>, expected: &Expected<'_>) -> bool {
    complete_length(head.fields).is_some_and(|complete| complete > expected.body_bytes_max)
}

/// The slices that a 206 carries, where they are of use: of a body that is too large to be stored
/// only to assemble several ranges.
fn usable_part(
    head: OriginHead<'_>,
    expected: &Expected<'_>,
    wanted: WantedSlices,
    is_joinable: bool,
) -> Option<SliceRange> {
    let part = wanted.part(head.fields, is_joinable)?;
    let is_usable = !is_too_large(head, expected)
        || is_joinable && can_be_assembled(expected.client, head.fields, part.complete);
    is_usable.then_some(part)
}

/// A 206 whose slices are of no use: it is passed on where it happens to be what the client asked
/// for.
fn refuse_part(
    head: OriginHead<'_>,
    expected: &Expected<'_>,
    wanted: WantedSlices,
    is_joinable: bool,
) -> HeadDecision {
    let is_too_large = is_too_large(head, expected);
    let (not_stored, followers) = match is_too_large {
        true => (NotStored::TooLarge, Followers::Alone),
        false => (NotStored::Partial, Followers::LeaderOnly),
    };
    HeadDecision {
        action: match wanted.is_met_by(head.fields) {
            true => HeadAction::PassResponse {
                not_stored,
                followers,
            },
            false => HeadAction::PassRequest { followers },
        },
        is_unjoinable: !is_too_large || !is_joinable,
    }
}

/// A 416: where the client asked for more than the one range, another may be inside.
fn refuse_range(head: OriginHead<'_>, expected: &Expected<'_>, wanted: WantedSlices) -> HeadAction {
    if !wanted.may_need_more {
        return HeadAction::PassResponse {
            not_stored: NotStored::Status,
            followers: Followers::RangeNotSatisfiable,
        };
    }
    match wanted.after_unsatisfied(head.fields, expected.client) {
        Some(other) => HeadAction::RequestAgain(other),
        None => HeadAction::PassRequest {
            followers: Followers::LeaderOnly,
        },
    }
}

/// Decides on a response that carries a representation, whole or in part. A part is assessed, and
/// stored, as the whole that it belongs to.
fn admit(
    head: OriginHead<'_>,
    expected: &Expected<'_>,
    part: Option<SliceRange>,
    is_joinable: bool,
) -> HeadDecision {
    let status = part.map_or(head.status, |_| StatusCode::OK);
    let length = part.map_or(head.length, |part| Some(part.complete));
    let request = RequestFacts {
        method: &Method::GET,
        fields: expected.client,
    };
    let assessment = assess(
        request,
        status,
        head.fields,
        expected.policy,
        expected.exchange,
    );
    // Fields that `Connection` names concern one hop, also where they state a lifetime (RFC 9110
    // section 7.6.1).
    let names_a_field = fields::list(head.fields, CONNECTION).any(|option| {
        !option.eq_ignore_ascii_case(b"keep-alive") && !option.eq_ignore_ascii_case(b"close")
    });
    let freshness = match names_a_field {
        true => Freshness::of(
            status,
            &conditional::stored_fields(head.fields, expected.exchange.received_ms),
            expected.policy,
            expected.exchange,
        ),
        false => assessment.freshness,
    };
    let is_error = reuse::is_error(status);
    let not_stored = assessment.not_stored.or_else(|| {
        if is_error && expected.has_stale {
            return Some(NotStored::ErrorBesideStored);
        }
        let is_too_large = length.is_some_and(|length| length > expected.body_bytes_max);
        is_too_large.then_some(NotStored::TooLarge)
    });
    let fill = |not_stored, followers| {
        HeadAction::Fill(Admission {
            status,
            part,
            length,
            freshness,
            not_stored,
            followers,
        })
    };

    let Some(cause) = not_stored else {
        // Slices that cannot be joined to others serve the leader alone.
        if is_joinable || part.is_none_or(SliceRange::is_whole) {
            return fill(None, Followers::LookUpAgain).into();
        }
        return HeadDecision {
            action: fill(Some(NotStored::Partial), Followers::LeaderOnly),
            is_unjoinable: true,
        };
    };
    if is_error {
        let followers = Followers::Error { status, cause };
        return match is_error_shared(&assessment, length) {
            true => fill(Some(cause), followers).into(),
            false => HeadAction::PassResponse {
                not_stored: cause,
                followers,
            }
            .into(),
        };
    }
    let followers = match cause {
        // The reason is in the request, and says nothing about responses to others.
        NotStored::Authorization | NotStored::RequestNoStore => Followers::LeaderOnly,
        _ => Followers::AloneByKind,
    };
    match part {
        Some(_) => fill(Some(cause), followers).into(),
        None => HeadAction::PassResponse {
            not_stored: cause,
            followers,
        }
        .into(),
    }
}

/// Whether followers with the leader's fields get an error's body as well: where it is small, and
/// only its lifetime or those fields are why it is not stored.
fn is_error_shared(assessment: &Assessment, length: Option<u64>) -> bool {
    let is_for_others = assessment.not_stored.is_none_or(|cause| {
        matches!(
            cause,
            NotStored::NoLifetime
                | NotStored::Useless
                | NotStored::RequestFields
                | NotStored::Credentials
        )
    });
    is_for_others && length.is_some_and(|length| length <= SHARED_ERROR_BYTES_MAX)
}

/// A stored response after a 304 has validated it.
#[derive(Debug)]
pub(super) struct Freshened {
    pub(super) fields: HeaderMap,
    pub(super) freshness: Freshness,
    pub(super) cookies: Cookies,
    pub(super) effect: FreshenEffect,
}

/// What a 304 does to the stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FreshenEffect {
    /// The freshened response replaces it.
    Replace,
    /// It stays as it was; the freshened response is for the leader alone.
    LeaderOnly(NotStored),
    /// It is removed; the freshened response is used once more.
    Remove(NotStored),
}

/// The stored response with this status and these fields, after a 304 with the fields
/// `not_modified`. `None` where the 304 does not name it.
pub(super) fn freshen(
    status: StatusCode,
    stored: &HeaderMap,
    not_modified: &HeaderMap,
    expected: &Expected<'_>,
) -> Option<Freshened> {
    let Expected {
        policy, exchange, ..
    } = *expected;
    if !conditional::is_confirmed(stored, not_modified, true) {
        return None;
    }
    let mut fields = conditional::freshened(stored, not_modified, exchange.received_ms);
    let cookies = take_cookies(&mut fields, policy);

    let assess_for = |client: &HeaderMap, fields: &HeaderMap| {
        let request = RequestFacts {
            method: &Method::GET,
            fields: client,
        };
        assess(request, status, fields, policy, exchange)
    };
    // Whether the stored response may stay depends on its fields alone: it was not made for this
    // request. Whether the fields of the 304 are for other clients as well, and may remove it,
    // depends on the request, as with any response.
    let Assessment {
        freshness,
        not_stored: refused,
    } = assess_for(&HeaderMap::new(), &fields);
    let refused_for_client =
        assess_for(expected.client, stored)
            .not_stored
            .or_else(|| match refused {
                Some(_) => None,
                None => assess_for(expected.client, &fields).not_stored,
            });
    let effect = match (refused_for_client, refused) {
        (Some(cause), _) => FreshenEffect::LeaderOnly(cause),
        (None, Some(cause)) => FreshenEffect::Remove(cause),
        (None, None) => FreshenEffect::Replace,
    };
    Some(Freshened {
        fields,
        freshness,
        cookies,
        effect,
    })
}

/// Removes the cookies from the fields of a response that others may get, unless the site shares
/// them.
pub(super) fn take_cookies(fields: &mut HeaderMap, policy: &CachePolicy) -> Cookies {
    let mut cookies = Vec::new();
    if !policy.store_set_cookie {
        cookies.extend(fields.get_all(SET_COOKIE).iter().cloned());
        fields.remove(SET_COOKIE);
        fields.remove("set-cookie2");
    }
    cookies
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearcast_http_rules::range;
    use nearcast_http_rules::testing::{NOW_MS, map};

    const LARGE: u64 = 100 << 20;

    /// A request, the head of its response, and the decision in short.
    struct Case {
        client: &'static [&'static str],
        status: u16,
        fields: &'static [&'static str],
        length: Option<u64>,
        has_stale: bool,
        expected: &'static str,
    }

    fn case(
        client: &'static [&'static str],
        status: u16,
        fields: &'static [&'static str],
        expected: &'static str,
    ) -> Case {
        Case {
            client,
            status,
            fields,
            length: Some(1000),
            has_stale: false,
            expected,
        }
    }

    fn decided(case: &Case) -> String {
        short(decision(case))
    }

    fn decision(case: &Case) -> HeadDecision {
        let client = map(case.client);
        let wanted = range::requested(&Method::GET, &client)
            .and_then(|specs| WantedSlices::of(&specs, client.contains_key("if-range")));
        let policy = CachePolicy::default();
        let expected = Expected {
            client: &client,
            policy: &policy,
            body_bytes_max: LARGE,
            wanted,
            has_stale: case.has_stale,
            exchange: Exchange {
                requested_ms: NOW_MS,
                received_ms: NOW_MS,
            },
        };
        let fields = map(case.fields);
        let head = OriginHead {
            status: StatusCode::from_u16(case.status).expect("a status"),
            fields: &fields,
            length: case.length,
        };
        decide(head, &expected)
    }

    fn short(decision: HeadDecision) -> String {
        let action = match decision.action {
            HeadAction::Fill(admission) => {
                let part = admission.part.map_or(String::new(), |part| {
                    format!(" {}-{}", part.range.first, part.range.last)
                });
                match admission.not_stored {
                    None => format!("store {}{part}", admission.status.as_u16()),
                    Some(cause) => format!(
                        "fill {}{part} {} {}",
                        admission.status.as_u16(),
                        cause.as_str(),
                        word(admission.followers)
                    ),
                }
            }
            HeadAction::PassResponse {
                not_stored,
                followers,
            } => format!("pass {} {}", not_stored.as_str(), word(followers)),
            HeadAction::PassRequest { followers } => format!("pass request {}", word(followers)),
            HeadAction::RequestAgain(wanted) => {
                format!("again {}", wanted.field()["range"].to_str().expect("text"))
            }
            HeadAction::Fail(error) => format!("fail {error:?}"),
        };
        match decision.is_unjoinable {
            true => action + ", unjoinable",
            false => action,
        }
    }

    fn word(followers: Followers) -> String {
        match followers {
            Followers::Error { status, .. } => format!("error {}", status.as_u16()),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_whole_response_is_stored_or_passed() {
        const FRESH: &[&str] = &["cache-control: max-age=10"];
        let table = [
            case(&[], 200, FRESH, "store 200"),
            case(&[], 404, FRESH, "store 404"),
            case(
                &[],
                200,
                &["cache-control: no-store"],
                "pass no-store AloneByKind",
            ),
            case(
                &[],
                200,
                &["cache-control: private"],
                "pass private AloneByKind",
            ),
            case(
                &["authorization: a"],
                200,
                FRESH,
                "pass authorization LeaderOnly",
            ),
            case(
                &["cookie: a=b"],
                200,
                &["last-modified: Sun, 06 Nov 1994 08:49:37 GMT"],
                "pass credentials AloneByKind",
            ),
            case(&[], 200, &["vary: *"], "pass vary-star AloneByKind"),
            Case {
                length: Some(LARGE + 1),
                ..case(&[], 200, FRESH, "pass too-large AloneByKind")
            },
            // It may turn out to be too large later.
            Case {
                length: None,
                ..case(&[], 200, FRESH, "store 200")
            },
            // No request has a condition, asks for a part or for another protocol.
            case(&[], 304, FRESH, "fail Protocol"),
            case(&[], 101, FRESH, "fail Protocol"),
            case(
                &[],
                206,
                &["content-range: bytes 0-9/1000"],
                "fail Protocol",
            ),
            case(
                &[],
                416,
                &["content-range: bytes */1000"],
                "pass status AloneByKind",
            ),
        ];
        for case in &table {
            let shown = format!("{} {:?} to {:?}", case.status, case.fields, case.client);
            assert_eq!(decided(case), case.expected, "{shown}");
        }
    }

    #[test]
    fn fields_for_one_hop_state_no_lifetime() {
        const EXPIRES: &str = "expires: Fri, 02 Jan 2026 00:00:00 GMT";
        let table: [(&[&str], u64); 3] = [
            (&[EXPIRES], 86_400),
            (&[EXPIRES, "connection: keep-alive"], 86_400),
            (&[EXPIRES, "connection: expires"], 0),
        ];
        for (fields, expected) in table {
            let decision = decision(&case(&[], 200, fields, ""));
            let HeadAction::Fill(admission) = decision.action else {
                panic!("{fields:?} is a fill");
            };
            assert_eq!(admission.freshness.lifetime, expected, "{fields:?}");
        }
    }

    #[test]
    fn an_error_is_shared_with_those_who_wait_for_it() {
        let table = [
            case(&[], 503, &["cache-control: max-age=10"], "store 503"),
            case(&[], 503, &[], "fill 503 no-freshness error 503"),
            case(
                &[],
                503,
                &["cache-control: no-store"],
                "pass no-store error 503",
            ),
            case(
                &["cookie: a=b"],
                503,
                &[],
                "fill 503 request-field error 503",
            ),
            Case {
                length: Some(SHARED_ERROR_BYTES_MAX + 1),
                ..case(&[], 503, &[], "pass no-freshness error 503")
            },
            Case {
                length: None,
                ..case(&[], 503, &[], "pass no-freshness error 503")
            },
            Case {
                has_stale: true,
                ..case(
                    &[],
                    503,
                    &["cache-control: max-age=10"],
                    "fill 503 error-beside-stored error 503",
                )
            },
        ];
        for case in &table {
            let shown = format!("{:?} {:?} to {:?}", case.length, case.fields, case.client);
            assert_eq!(decided(case), case.expected, "{shown}");
        }
    }

    #[test]
    fn a_part_is_stored_joined_or_passed() {
        const SECOND: &[&str] = &["range: bytes=1048580-1048589"];
        const TWO: &[&str] = &["range: bytes=1048580-1048589, 5000000-5000009"];
        let table = [
            // With a strong validator, further slices can be joined.
            case(
                SECOND,
                206,
                &[
                    "cache-control: max-age=10",
                    "etag: \"v\"",
                    "content-range: bytes 1048576-2097151/50000000",
                ],
                "store 200 1048576-2097151",
            ),
            // Without one the part serves its leader alone.
            case(
                SECOND,
                206,
                &[
                    "cache-control: max-age=10",
                    "content-range: bytes 1048576-2097151/50000000",
                ],
                "fill 200 1048576-2097151 partial LeaderOnly, unjoinable",
            ),
            case(
                SECOND,
                206,
                &[
                    "cache-control: no-store",
                    "etag: \"v\"",
                    "content-range: bytes 1048576-2097151/50000000",
                ],
                "fill 200 1048576-2097151 no-store AloneByKind",
            ),
            // The origin sends what the client asked for, and not the slices around it.
            case(
                SECOND,
                206,
                &[
                    "etag: \"v\"",
                    "content-range: bytes 1048580-1048589/50000000",
                ],
                "pass partial LeaderOnly, unjoinable",
            ),
            case(
                SECOND,
                206,
                &["etag: \"v\"", "content-range: bytes 0-99/50000000"],
                "pass request LeaderOnly, unjoinable",
            ),
            // Too large to be stored: several ranges are assembled, one is not.
            case(
                SECOND,
                206,
                &[
                    "etag: \"v\"",
                    "content-range: bytes 1048576-2097151/5000000000",
                ],
                "pass request Alone",
            ),
            case(
                TWO,
                206,
                &[
                    "cache-control: max-age=10",
                    "etag: \"v\"",
                    "content-range: bytes 1048576-2097151/5000000000",
                ],
                "fill 200 1048576-2097151 too-large AloneByKind",
            ),
            case(
                TWO,
                206,
                &["content-range: bytes 1048576-2097151/5000000000"],
                "pass request Alone, unjoinable",
            ),
            // All of it is as good as a 200, with a range and without.
            case(
                SECOND,
                206,
                &[
                    "cache-control: max-age=10",
                    "content-range: bytes 0-1999999/2000000",
                ],
                "store 200 0-1999999",
            ),
            case(
                &[],
                206,
                &[
                    "cache-control: max-age=10",
                    "content-range: bytes 0-999/1000",
                ],
                "store 200 0-999",
            ),
            // The origin ignores the range.
            case(SECOND, 200, &["cache-control: max-age=10"], "store 200"),
            case(
                SECOND,
                416,
                &["content-range: bytes */1000"],
                "pass status RangeNotSatisfiable",
            ),
            case(
                &["range: bytes=1048580-1048589, 5-9"],
                416,
                &["content-range: bytes */1000"],
                "again bytes=0-262143",
            ),
            case(
                TWO,
                416,
                &["content-range: bytes */1000"],
                "pass request LeaderOnly",
            ),
        ];
        for case in &table {
            let shown = format!("{} {:?} to {:?}", case.status, case.fields, case.client);
            assert_eq!(decided(case), case.expected, "{shown}");
        }
    }

    #[test]
    fn a_304_replaces_the_stored_response_or_is_for_its_client_alone() {
        use FreshenEffect::*;
        const STORED: &[&str] = &["cache-control: max-age=10", "etag: \"v\""];
        // The request's fields, those of the 304, and its effect; `None` where it names another
        // response.
        type Row = (
            &'static [&'static str],
            &'static [&'static str],
            Option<FreshenEffect>,
        );
        let table: [Row; 7] = [
            (&[], &["etag: \"v\""], Some(Replace)),
            (&[], &[], Some(Replace)),
            (&[], &["etag: \"w\""], None),
            (
                &[],
                &["etag: \"v\"", "cache-control: no-store"],
                Some(Remove(NotStored::NoStore)),
            ),
            (
                &["authorization: a"],
                &["etag: \"v\""],
                Some(LeaderOnly(NotStored::Authorization)),
            ),
            (
                &["authorization: a"],
                &["etag: \"v\"", "cache-control: no-store"],
                Some(LeaderOnly(NotStored::Authorization)),
            ),
            // A cookie is for its client, and does not make the response one.
            (&[], &["etag: \"v\"", "set-cookie: a=b"], Some(Replace)),
        ];
        for (client, not_modified, effect) in table {
            let (client, policy) = (map(client), CachePolicy::default());
            let expected = Expected {
                client: &client,
                policy: &policy,
                body_bytes_max: LARGE,
                wanted: None,
                has_stale: true,
                exchange: Exchange {
                    requested_ms: NOW_MS,
                    received_ms: NOW_MS,
                },
            };
            let fields = map(not_modified);
            let freshened = freshen(StatusCode::OK, &map(STORED), &fields, &expected);
            let found = freshened.as_ref().map(|freshened| freshened.effect);
            assert_eq!(found, effect, "{client:?} {not_modified:?}");
            if let Some(freshened) = freshened {
                assert!(!freshened.fields.contains_key(SET_COOKIE));
                let cookies = usize::from(fields.contains_key(SET_COOKIE));
                assert_eq!(freshened.cookies.len(), cookies);
            }
        }
    }
}
