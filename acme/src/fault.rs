//! Why an order failed: whose side it was, and what follows from it.

use std::time::Duration;

use instant_acme::{Error, Problem};

use crate::client::{CallError, Why};
use crate::{Authority, text};

/// An order that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OrderError {
    pub(crate) fault: Fault,
    /// One line.
    pub(crate) reason: String,
}

/// Whose side failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The authority: it is asked for nothing for a while, at least for `retry_after`.
    Authority { retry_after: Option<Duration> },
    /// The authority limits the orders for these names or of this account.
    Limited { retry_after: Option<Duration> },
    /// The authority refuses the account or the order.
    Refused,
    /// The authority does not know the account.
    AccountLost,
    /// The authority did not find the answers to its challenges at these hosts.
    Validation { hosts: Vec<String> },
    /// This machine's clock differs from the authority's.
    Clock,
    /// This machine: no answer to a challenge could be shown, a file not written.
    Ours,
    /// The work was stopped.
    Stopped,
}

impl Fault {
    /// Whether another authority may issue what this one did not.
    pub(crate) fn may_be_mended_by_another(&self) -> bool {
        match self {
            Self::Authority { .. }
            | Self::Limited { .. }
            | Self::Refused
            | Self::AccountLost
            | Self::Clock => true,
            Self::Validation { .. } | Self::Ours | Self::Stopped => false,
        }
    }
}

impl OrderError {
    pub(crate) fn ours(reason: impl Into<String>) -> Self {
        Self {
            fault: Fault::Ours,
            reason: reason.into(),
        }
    }

    /// An authority that does not do what ACME says.
    pub(crate) fn of_authority(authority: &Authority, reason: &str) -> Self {
        Self {
            fault: Fault::Authority { retry_after: None },
            reason: about(authority, reason),
        }
    }

    /// What the library or the client says.
    pub(crate) fn of_call(authority: &Authority, error: &Error) -> Self {
        let (fault, reason) = match error {
            Error::Other(other) => match other.downcast_ref::<CallError>() {
                Some(call) => {
                    return Self {
                        fault: of_why(&call.why),
                        reason: call.to_string(),
                    };
                }
                None => (
                    Fault::Authority { retry_after: None },
                    text::line(&other.to_string()),
                ),
            },
            Error::Api(problem) => (of_kind(text::kind(problem)), text::of_problem(problem)),
            Error::Timeout(_) => (
                Fault::Authority { retry_after: None },
                "it did not come to an end in time".to_owned(),
            ),
            Error::Json(error) => (
                Fault::Authority { retry_after: None },
                format!("a response lacks what ACME demands: {error}"),
            ),
            other => (
                Fault::Authority { retry_after: None },
                text::line(&other.to_string()),
            ),
        };
        Self {
            fault,
            reason: about(authority, &reason),
        }
    }
}

/// The problem document of an error, if it has one.
pub(crate) fn problem(error: &Error) -> Option<&Problem> {
    match error {
        Error::Api(problem) => Some(problem),
        Error::Other(other) => match &other.downcast_ref::<CallError>()?.why {
            Why::Refused { problem, .. } => Some(problem),
            _ => None,
        },
        _ => None,
    }
}

/// Whether the same request may succeed a moment later: it was not answered, or only with an error
/// of the server.
pub(crate) fn is_passing(error: &Error) -> bool {
    let Error::Other(other) = error else {
        return false;
    };
    match other.downcast_ref::<CallError>().map(|call| &call.why) {
        Some(Why::Unreachable(_) | Why::Slow(_)) => true,
        Some(Why::Refused { status, .. }) => status.is_server_error(),
        _ => false,
    }
}

pub(crate) fn about(authority: &Authority, reason: &str) -> String {
    format!(
        "authority {} ({}): {reason}",
        authority.name, authority.directory
    )
}

fn of_why(why: &Why) -> Fault {
    match why {
        Why::NotHttps | Why::Roots(_) => Fault::Refused,
        Why::Unreachable(_)
        | Why::Slow(_)
        | Why::TooLarge
        | Why::Redirects(_)
        | Why::NotAcme(_) => Fault::Authority { retry_after: None },
        Why::Refused {
            status,
            problem,
            retry_after,
        } => {
            let retry_after = *retry_after;
            match of_kind(text::kind(problem)) {
                Fault::AccountLost => Fault::AccountLost,
                Fault::Limited { .. } => Fault::Limited { retry_after },
                _ if status.as_u16() == 429 => Fault::Limited { retry_after },
                _ if status.is_server_error() => Fault::Authority { retry_after },
                fault => fault,
            }
        }
    }
}

/// What follows from the type of a problem (RFC 8555 section 6.7).
fn of_kind(kind: &str) -> Fault {
    match kind {
        "accountDoesNotExist" => Fault::AccountLost,
        "rateLimited" => Fault::Limited { retry_after: None },
        "serverInternal" | "badNonce" => Fault::Authority { retry_after: None },
        _ => Fault::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_of_a_problem_says_whose_side_failed() {
        for (kind, expected) in [
            ("accountDoesNotExist", Fault::AccountLost),
            ("rateLimited", Fault::Limited { retry_after: None }),
            ("serverInternal", Fault::Authority { retry_after: None }),
            ("externalAccountRequired", Fault::Refused),
            ("rejectedIdentifier", Fault::Refused),
            ("", Fault::Refused),
        ] {
            assert_eq!(of_kind(kind), expected, "{kind}");
        }
    }
}
