//! Why a request on an HTTP/2 connection got no response, and whether it may be sent again.

use h2::Reason;
use http::Request;

use super::super::{OriginError, OriginRequestBody, TlsFault};

/// A request without a response.
pub(in super::super) struct Failed {
    pub(in super::super) error: OriginError,
    pub(in super::super) processed: Processed,
    /// The request, where nothing of it was sent.
    pub(in super::super) unsent: Option<Request<OriginRequestBody>>,
}

/// Whether the origin may have acted on a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Processed {
    /// It may have.
    Maybe,
    /// It has not: the request may be sent again, whatever its method (RFC 9113 section 8.7).
    No,
    /// It has not, and wants the request by HTTP/1.1 (RFC 9113 section 7).
    NeedsHttp1,
}

impl Failed {
    pub(in super::super) fn of(error: OriginError) -> Self {
        Self {
            error,
            processed: Processed::Maybe,
            unsent: None,
        }
    }

    /// The failure of a stream on which a request was sent.
    pub(super) fn of_stream(error: &h2::Error) -> Self {
        let processed = processed(error.is_remote(), error.is_go_away(), error.reason());
        let error = match processed {
            Processed::Maybe => classify(error),
            Processed::No | Processed::NeedsHttp1 => OriginError::Unprocessed,
        };
        Self {
            processed,
            ..Self::of(error)
        }
    }
}

/// Whether a request was processed whose stream ended with an error. An error by GOAWAY ends only the
/// streams behind the last one that the origin names in it.
fn processed(is_remote: bool, is_go_away: bool, reason: Option<Reason>) -> Processed {
    match reason {
        _ if !is_remote => Processed::Maybe,
        _ if is_go_away => Processed::No,
        Some(Reason::REFUSED_STREAM) => Processed::No,
        Some(Reason::HTTP_1_1_REQUIRED) => Processed::NeedsHttp1,
        _ => Processed::Maybe,
    }
}

fn classify(error: &h2::Error) -> OriginError {
    if let Some(fault) = error.get_io().and_then(|error| TlsFault::find(error)) {
        OriginError::Tls(fault)
    } else if error.is_library() {
        OriginError::Protocol
    } else {
        OriginError::Terminated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_sent_again_only_if_the_origin_says_that_it_did_nothing() {
        // Remote, by GOAWAY, reason.
        let table = [
            (true, false, Some(Reason::REFUSED_STREAM), Processed::No),
            (true, true, Some(Reason::NO_ERROR), Processed::No),
            (true, true, Some(Reason::INTERNAL_ERROR), Processed::No),
            (
                true,
                false,
                Some(Reason::HTTP_1_1_REQUIRED),
                Processed::NeedsHttp1,
            ),
            (true, false, Some(Reason::INTERNAL_ERROR), Processed::Maybe),
            (true, false, Some(Reason::CANCEL), Processed::Maybe),
            (true, false, Some(Reason::NO_ERROR), Processed::Maybe),
            (false, false, Some(Reason::REFUSED_STREAM), Processed::Maybe),
            (false, true, Some(Reason::PROTOCOL_ERROR), Processed::Maybe),
            (false, false, None, Processed::Maybe),
        ];
        for (is_remote, is_go_away, reason, expected) in table {
            assert_eq!(
                processed(is_remote, is_go_away, reason),
                expected,
                "{is_remote} {is_go_away} {reason:?}"
            );
        }
    }
}
