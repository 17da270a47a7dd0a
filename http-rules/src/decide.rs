//! What to do with a request, given the response that is stored for it: one value in, one
//! [`Decision`] out.
//!
//! Every use of a stored response asks here: ordinary requests, the fast path for hits, pushes.
//! Owns the order of the questions. Knows no store, origin or task: the caller states the facts
//! ([`Terms`], [`Stored`]) and acts on the decision. Follows RFC 9111
//! sections 4 and 5.2.1, RFC 5861 and RFC 9211 section 2.

use http::header::AUTHORIZATION;
use http::{HeaderMap, Method};
use nearcast_fleet::config::CachePolicy;
use nearcast_fleet::report::CacheStatus;

use crate::cache_control::CacheControl;
use crate::freshness::Freshness;
use crate::key::{self, MethodClass};
use crate::not_stored::NotStored;
use crate::reuse::{self, Reuse};
use crate::status::{ForwardReason, Outcome};

/// The terms on which a request accepts a stored response.
#[derive(Debug, Clone)]
pub struct Terms<'a> {
    /// The site's settings.
    pub policy: &'a CachePolicy,
    /// The request's directives; `None` where the site does not obey clients.
    pub directives: Option<CacheControl>,
    /// Only a stored response may answer it.
    pub is_only_if_cached: bool,
    /// It is a HEAD.
    pub is_head: bool,
    /// It has an `Authorization` field.
    pub has_credentials: bool,
    /// When it came.
    pub began_ms: u64,
    /// It has waited for the response to another request, which was stored meanwhile.
    pub has_waited: bool,
}

impl<'a> Terms<'a> {
    /// Of a GET without directives or credentials.
    pub fn plain(policy: &'a CachePolicy, began_ms: u64) -> Self {
        Self {
            policy,
            directives: None,
            is_only_if_cached: false,
            is_head: false,
            has_credentials: false,
            began_ms,
            has_waited: false,
        }
    }

    /// Of a GET or HEAD with these fields. `is_peer` says that a node of the same cluster sent it:
    /// such a request may always ask for stored responses only.
    pub fn of(
        method: &Method,
        fields: &HeaderMap,
        policy: &'a CachePolicy,
        is_peer: bool,
        began_ms: u64,
    ) -> Self {
        let directives = (policy.obey_client || is_peer).then(|| CacheControl::of_request(fields));
        let is_only_if_cached = directives.as_ref().is_some_and(|d| d.only_if_cached);
        Self {
            policy,
            directives,
            is_only_if_cached,
            is_head: *method == Method::HEAD,
            has_credentials: fields.contains_key(AUTHORIZATION),
            began_ms,
            has_waited: false,
        }
    }
}

/// The facts of a stored response that a request selects. A purged response is not one.
#[derive(Debug, Clone, Copy)]
pub struct Stored {
    /// Its age, lifetime and directives.
    pub freshness: Freshness,
    /// When the request for it was sent.
    pub requested_ms: u64,
    /// A soft purge covers it: it is to be validated.
    pub is_soft_purged: bool,
    /// An earlier run stored it, and this node may lack a purge of it.
    pub is_unsynced: bool,
    /// Some of its body is still to come from the origin.
    pub is_awaited: bool,
}

impl Stored {
    /// Whether it can be used at any moment until then without a validation.
    pub fn is_usable_until(&self, until_ms: u64) -> bool {
        !self.is_soft_purged
            && !self.is_unsynced
            && !self.freshness.no_cache
            && self.freshness.is_fresh(until_ms)
    }
}

/// What to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Serve the stored response.
    Serve {
        /// How the request is then answered.
        outcome: Outcome,
        /// Seconds, for `Age`.
        age: u64,
        /// It is stale: validate it in the background.
        revalidate: bool,
    },
    /// Answer 504: a stored response was asked for, and none can be used.
    OnlyIfCached {
        /// How the request is then answered.
        outcome: Outcome,
    },
    /// Send the request on; its answer is not stored.
    Pass {
        /// Why.
        reason: ForwardReason,
    },
    /// Ask the origin.
    Forward {
        /// Why.
        reason: ForwardReason,
        /// With which other requests the answer may be shared.
        sharing: Sharing,
        /// Where there is a stored response to validate.
        validation: Option<Validation>,
    },
}

/// Whether requests for the same URL may share one forward request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// It is this request's alone.
    Unshared,
    /// They may.
    Shared,
    /// They may if the stored response varies on every field by which this request differs from
    /// most.
    SharedIfVaried,
}

/// A stored response that cannot be used before it is validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validation {
    /// Whether it is used when the validation fails.
    pub on_failure: OnFailure,
    /// Why it is validated.
    pub reuse: Reuse,
    /// Its age in seconds.
    pub age: u64,
    /// Seconds of freshness that it has left; negative when stale.
    pub ttl: i64,
    /// It may be served without waiting for an origin that is known to fail.
    pub may_serve_while_failing: bool,
}

impl Validation {
    /// How the request is answered when it does not wait for an origin that is known to fail for
    /// the reason `detail`.
    pub fn outcome_while_failing(&self, detail: &'static str, is_unsynced: bool) -> Outcome {
        Outcome {
            label: CacheStatus::Stale,
            detail: Some(detail),
            is_unsynced,
            ..Outcome::hit(self.ttl)
        }
    }
}

/// Whether a stored response is used when its validation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// It may not be used.
    Fail,
    /// It is served.
    Serve,
    /// This node may lack a purge of it: it is served only where control does not answer either.
    ServeUnsynced,
}

/// Which way a request takes by its method, path and body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// A stored response may answer it.
    LookUp,
    /// It is sent on, and its answer is not stored.
    Pass {
        /// Why it is sent on.
        reason: ForwardReason,
        /// Why its answer is not stored.
        cause: NotStored,
    },
    /// It is sent on, and may change stored responses.
    PassUnsafe,
}

/// Decides which way a request takes.
pub fn route(method: &Method, path: &str, has_body: bool) -> Route {
    let bypass = |cause| Route::Pass {
        reason: ForwardReason::Bypass,
        cause,
    };
    match key::method_class(method) {
        MethodClass::Get | MethodClass::Head if has_body => bypass(NotStored::RequestBody),
        // Origins read such a path in different ways.
        MethodClass::Get | MethodClass::Head if key::ambiguity(path).is_some() => {
            bypass(NotStored::AmbiguousPath)
        }
        MethodClass::Get | MethodClass::Head => Route::LookUp,
        MethodClass::Safe | MethodClass::Refused => Route::Pass {
            reason: ForwardReason::Method,
            cause: NotStored::Method,
        },
        MethodClass::Unsafe => Route::PassUnsafe,
    }
}

/// Decides what to do with a request. `found` is the stored response that it selects, or why there
/// is none.
pub fn decide(terms: &Terms<'_>, found: Result<Stored, ForwardReason>) -> Decision {
    let (reason, validation, sharing) = match found {
        Err(reason) => {
            // A response to a request with `Authorization` is private unless a stored response
            // shows that it is shared (RFC 9111 section 3.5).
            let sharing = match terms.has_credentials {
                true => Sharing::Unshared,
                false => Sharing::Shared,
            };
            (reason, None, sharing)
        }
        Ok(stored) => match serve_or_validate(terms, stored) {
            Err(serve) => return serve,
            Ok((reason, validation)) => {
                // Each request needs its own validation of a response with `no-cache` (RFC 9111
                // section 5.2.2.4).
                let sharing = match stored.freshness.no_cache {
                    true => Sharing::Unshared,
                    false => Sharing::SharedIfVaried,
                };
                (reason, Some(validation), sharing)
            }
        },
    };

    if terms.is_only_if_cached {
        let outcome = Outcome {
            detail: Some("only-if-cached"),
            ..Outcome::forwarded(CacheStatus::Local, reason)
        };
        return Decision::OnlyIfCached { outcome };
    }
    // The answer to a HEAD has no body to store.
    if terms.is_head && validation.is_none() {
        return Decision::Pass { reason };
    }
    Decision::Forward {
        reason,
        sharing,
        validation,
    }
}

/// Whether a stored response is served, or why and how it is validated. `Err` is the final decision
/// to serve it.
fn serve_or_validate(
    terms: &Terms<'_>,
    stored: Stored,
) -> Result<(ForwardReason, Validation), Decision> {
    let Terms {
        policy, directives, ..
    } = terms;
    let freshness = &stored.freshness;
    let now = terms.began_ms.max(freshness.received_ms);
    let evaluation = reuse::evaluate(
        freshness,
        directives.as_ref(),
        stored.is_soft_purged,
        policy,
        now,
    );
    let may_serve = evaluation.reuse.may_serve_now()
        || was_requested_while_waiting(terms, stored, evaluation.reuse);
    if may_serve && !stored.is_unsynced {
        let is_collapsed = terms.has_waited || stored.is_awaited;
        let outcome = match is_collapsed {
            true => Outcome {
                is_collapsed,
                ..Outcome::forwarded(CacheStatus::Collapsed, ForwardReason::UriMiss)
            },
            false => Outcome::hit(evaluation.ttl),
        };
        return Err(Decision::Serve {
            outcome,
            age: evaluation.age,
            revalidate: !is_collapsed
                && !terms.is_only_if_cached
                && matches!(evaluation.reuse, Reuse::Stale { .. }),
        });
    }

    let reason = match evaluation.reuse.is_required_by_client() {
        true => ForwardReason::Request,
        false => ForwardReason::Stale,
    };
    let may_serve_unsynced =
        || reuse::may_serve_unsynced(freshness, directives.as_ref(), policy, evaluation.ttl);
    let on_failure = match stored.is_unsynced {
        false if evaluation.reuse.may_serve_on_error() => OnFailure::Serve,
        true if may_serve_unsynced() => OnFailure::ServeUnsynced,
        false | true => OnFailure::Fail,
    };
    Ok((
        reason,
        Validation {
            on_failure,
            reuse: evaluation.reuse,
            age: evaluation.age,
            ttl: evaluation.ttl,
            // A client that asks for a validation waits for it.
            may_serve_while_failing: reason == ForwardReason::Stale
                && !terms.is_only_if_cached
                && on_failure != OnFailure::Fail,
        },
    ))
}

/// Whether a response that another request brought counts as this request's own: it was asked for
/// or received after this request came, so a forward request of its own would have brought no
/// newer one.
fn was_requested_while_waiting(terms: &Terms<'_>, stored: Stored, reuse: Reuse) -> bool {
    let freshness = &stored.freshness;
    let was_requested = stored.requested_ms >= terms.began_ms && !freshness.no_cache;
    let was_received = freshness.received_ms >= terms.began_ms
        && freshness.may_serve_waiting_requests()
        && !reuse.is_required_by_client();
    terms.has_waited && !stored.is_soft_purged && (was_requested || was_received)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use super::*;
    use crate::freshness::Exchange;
    use crate::testing::{NOW_MS, map};

    fn policy() -> CachePolicy {
        CachePolicy {
            obey_client: true,
            serve_unsynced: true,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            ..CachePolicy::default()
        }
    }

    /// A response with these directives that was received that many seconds ago.
    fn freshness(directives: &str, seconds: u64) -> Freshness {
        let at = NOW_MS - seconds * 1000;
        let exchange = Exchange {
            requested_ms: at,
            received_ms: at,
        };
        let fields = map(&[&format!("cache-control: {directives}")]);
        Freshness::of(StatusCode::OK, &fields, &policy(), exchange)
    }

    fn stored(freshness: &Freshness) -> Stored {
        Stored {
            freshness: *freshness,
            requested_ms: freshness.received_ms,
            is_soft_purged: false,
            is_unsynced: false,
            is_awaited: false,
        }
    }

    /// A decision in short, as tables show it.
    fn short(decision: Decision) -> String {
        match decision {
            Decision::Serve {
                outcome,
                revalidate,
                ..
            } => format!(
                "serve {}{}",
                outcome.label.as_str(),
                if revalidate { " revalidate" } else { "" }
            ),
            Decision::OnlyIfCached { outcome } => {
                format!("504 {}", outcome.forward.expect("a reason").as_str())
            }
            Decision::Pass { reason } => format!("pass {}", reason.as_str()),
            Decision::Forward {
                reason,
                sharing,
                validation,
            } => format!(
                "forward {} {sharing:?}{}",
                reason.as_str(),
                validation.map_or(String::new(), |v| format!(
                    " {:?}{}",
                    v.on_failure,
                    if v.may_serve_while_failing {
                        " early"
                    } else {
                        ""
                    }
                ))
            ),
        }
    }

    #[test]
    fn a_stored_response_is_served_or_validated_by_its_freshness_and_the_request() {
        let table = [
            // Directives of the response, its age, those of the request, and the decision.
            ("max-age=10", 5, "", "serve hit"),
            (
                "max-age=10",
                5,
                "no-cache",
                "forward request SharedIfVaried Serve",
            ),
            (
                "max-age=10",
                5,
                "max-age=3",
                "forward request SharedIfVaried Serve",
            ),
            ("max-age=10", 20, "", "forward stale SharedIfVaried Fail"),
            ("max-age=10", 20, "max-stale", "serve stale"),
            (
                "max-age=10, stale-if-error=60",
                20,
                "",
                "forward stale SharedIfVaried Serve early",
            ),
            (
                "max-age=10, stale-while-revalidate=60",
                20,
                "",
                "serve stale revalidate",
            ),
            (
                "max-age=10, stale-while-revalidate=60",
                20,
                "only-if-cached",
                "serve stale",
            ),
            ("max-age=10", 20, "only-if-cached", "504 stale"),
            (
                "max-age=10, stale-if-error=60",
                20,
                "only-if-cached",
                "504 stale",
            ),
            (
                "max-age=10, must-revalidate, stale-if-error=60",
                20,
                "",
                "forward stale SharedIfVaried Fail",
            ),
            ("no-cache, max-age=10", 5, "", "forward stale Unshared Fail"),
        ];
        for (response, seconds, request, expected) in table {
            let (policy, freshness) = (policy(), freshness(response, seconds));
            let fields = map(&[&format!("cache-control: {request}")]);
            let terms = Terms::of(&Method::GET, &fields, &policy, false, NOW_MS);
            let decision = decide(&terms, Ok(stored(&freshness)));
            assert_eq!(short(decision), expected, "{response} {seconds} {request}");
        }
    }

    #[test]
    fn a_request_without_a_stored_response_is_forwarded_passed_or_refused() {
        let table: [(Method, &[&str], bool, &str); 7] = [
            (Method::GET, &[], false, "forward uri-miss Shared"),
            (Method::HEAD, &[], false, "pass uri-miss"),
            (
                Method::GET,
                &["authorization: x"],
                false,
                "forward uri-miss Unshared",
            ),
            (
                Method::GET,
                &["cache-control: only-if-cached"],
                false,
                "forward uri-miss Shared",
            ),
            (
                Method::GET,
                &["cache-control: only-if-cached"],
                true,
                "504 uri-miss",
            ),
            (
                Method::HEAD,
                &["cache-control: only-if-cached"],
                true,
                "504 uri-miss",
            ),
            (
                Method::GET,
                &["cache-control: no-cache"],
                false,
                "forward uri-miss Shared",
            ),
        ];
        // A peer's directives are read also where the site does not obey those of clients.
        let policy = CachePolicy {
            obey_client: false,
            ..policy()
        };
        for (method, fields, is_peer, expected) in table {
            let terms = Terms::of(&method, &map(fields), &policy, is_peer, NOW_MS);
            let decision = decide(&terms, Err(ForwardReason::UriMiss));
            assert_eq!(short(decision), expected, "{method} {fields:?} {is_peer}");
        }
    }

    #[test]
    fn purges_and_an_earlier_run_hold_a_stored_response_back() {
        let policy = policy();
        let table = [
            // Directives, age, a soft purge, unsynced, and the decision.
            (
                "max-age=10",
                5,
                true,
                false,
                "forward stale SharedIfVaried Fail",
            ),
            (
                "max-age=10, stale-while-revalidate=60",
                5,
                true,
                false,
                "serve stale revalidate",
            ),
            (
                "max-age=10",
                5,
                false,
                true,
                "forward stale SharedIfVaried Fail",
            ),
            (
                "max-age=10, stale-if-error=60",
                5,
                false,
                true,
                "forward stale SharedIfVaried ServeUnsynced early",
            ),
            (
                "max-age=10, stale-if-error=60, no-cache",
                5,
                false,
                true,
                "forward stale Unshared Fail",
            ),
        ];
        for (directives, seconds, is_soft_purged, is_unsynced, expected) in table {
            let freshness = freshness(directives, seconds);
            let found = Stored {
                is_soft_purged,
                is_unsynced,
                ..stored(&freshness)
            };
            let decision = decide(&Terms::plain(&policy, NOW_MS), Ok(found));
            assert_eq!(
                short(decision),
                expected,
                "{directives} {is_soft_purged} {is_unsynced}"
            );
            assert!(!found.is_usable_until(NOW_MS), "a push fetches it anew");
        }
    }

    #[test]
    fn a_push_leaves_alone_only_what_stays_fresh() {
        let freshness = freshness("max-age=10", 5);
        let found = stored(&freshness);
        for (after, expected) in [(0, true), (4999, true), (5000, false)] {
            assert_eq!(found.is_usable_until(NOW_MS + after), expected, "{after}");
        }
    }

    #[test]
    fn a_response_that_came_while_a_request_waited_is_its_own() {
        let policy = policy();
        let table = [
            // Directives, seconds between its receipt and the request, soft purge, the request's
            // directives, and the decisions before and after a wait.
            ("max-age=10", 0, false, "", "serve hit", "serve collapsed"),
            (
                "max-age=10",
                0,
                false,
                "no-cache",
                "forward request SharedIfVaried Serve",
                "serve collapsed",
            ),
            (
                "no-cache, max-age=10",
                0,
                false,
                "",
                "forward stale Unshared Fail",
                "forward stale Unshared Fail",
            ),
            (
                "max-age=10",
                0,
                true,
                "",
                "forward stale SharedIfVaried Fail",
                "forward stale SharedIfVaried Fail",
            ),
            (
                "max-age=10",
                11,
                false,
                "",
                "forward stale SharedIfVaried Fail",
                "forward stale SharedIfVaried Fail",
            ),
        ];
        for (directives, seconds, is_soft_purged, request, before, after) in table {
            let freshness = freshness(directives, seconds);
            let found = Stored {
                is_soft_purged,
                ..stored(&freshness)
            };
            let fields = map(&[&format!("cache-control: {request}")]);
            let terms = Terms::of(&Method::GET, &fields, &policy, false, NOW_MS);
            assert_eq!(
                short(decide(&terms, Ok(found))),
                before,
                "{directives} {request}"
            );
            let terms = Terms {
                has_waited: true,
                ..terms
            };
            assert_eq!(
                short(decide(&terms, Ok(found))),
                after,
                "{directives} {request}"
            );
        }
    }

    #[test]
    fn a_body_on_its_way_counts_as_shared_with_the_request_that_fetches_it() {
        let (policy, freshness) = (policy(), freshness("max-age=10", 0));
        let found = Stored {
            is_awaited: true,
            ..stored(&freshness)
        };
        let decision = decide(&Terms::plain(&policy, NOW_MS), Ok(found));
        assert_eq!(short(decision), "serve collapsed");
    }

    #[test]
    fn method_body_and_path_say_whether_a_stored_response_may_answer() {
        let bypass = |cause| Route::Pass {
            reason: ForwardReason::Bypass,
            cause,
        };
        let method = Route::Pass {
            reason: ForwardReason::Method,
            cause: NotStored::Method,
        };
        let table = [
            (Method::GET, "/", false, Route::LookUp),
            (Method::HEAD, "/a?b", false, Route::LookUp),
            (Method::GET, "/", true, bypass(NotStored::RequestBody)),
            (
                Method::GET,
                "/a/../b",
                false,
                bypass(NotStored::AmbiguousPath),
            ),
            (Method::GET, "/a/../b", true, bypass(NotStored::RequestBody)),
            (Method::OPTIONS, "*", false, method),
            (Method::POST, "/", true, Route::PassUnsafe),
            (Method::DELETE, "/", false, Route::PassUnsafe),
        ];
        for (of, path, has_body, expected) in table {
            assert_eq!(
                route(&of, path, has_body),
                expected,
                "{of} {path} {has_body}"
            );
        }
    }
}
