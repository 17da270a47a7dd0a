//! Why an origin gave no usable response.

use http::StatusCode;

use crate::policy::status::ProxyError;

/// Why an origin gave no usable response. Each maps to one error type of RFC 9209 section 2.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OriginError {
    /// Its name could not be resolved.
    #[error("the origin's name could not be resolved")]
    Dns,
    /// Its name resolves to an address that is never asked.
    #[error("the origin's name leads to a forbidden address")]
    Forbidden,
    /// It took no connection.
    #[error("the origin refused the connection")]
    Refused,
    /// It is not reachable.
    #[error("the origin cannot be reached")]
    Unreachable,
    /// Connecting took too long.
    #[error("connecting to the origin took too long")]
    ConnectTimeout,
    /// TLS failed.
    #[error("TLS with the origin failed")]
    Tls,
    /// It did not begin to answer in time.
    #[error("the origin did not answer in time")]
    FirstByteTimeout,
    /// It paused too long within a body.
    #[error("the origin paused too long")]
    BetweenBytesTimeout,
    /// It closed the connection before its response was whole.
    #[error("the origin ended its response early")]
    Incomplete,
    /// It closed the connection instead of answering.
    #[error("the origin closed the connection")]
    Terminated,
    /// Its response has more fields, or a larger head, than the site allows.
    #[error("the head of the origin's response is too large")]
    HeadTooLarge,
    /// Its response has a transfer coding other than `chunked`, once.
    #[error("the origin's response has a transfer coding that is not understood")]
    TransferCoding,
    /// What it sent is not HTTP.
    #[error("the origin broke the protocol")]
    Protocol,
    /// The client's request body failed.
    #[error("the request's body ended early")]
    RequestBody,
    /// The client sent nothing of its request's body for too long.
    #[error("the client paused too long within the request's body")]
    RequestPause,
    /// The client's request body turned out larger than the site allows.
    #[error("the request's body is too large")]
    RequestTooLarge,
    /// It answered with an error where a part of what is stored was asked for.
    #[error("the origin answered with an error")]
    Erred,
    /// Its response was given up: nobody waited for it, and there were too many.
    #[error("nobody waited for the origin's response")]
    GivenUp,
    /// Its answer to a validation or a range request does not fit what is stored.
    #[error("the origin's answer does not fit what is stored")]
    Unfit,
}

impl OriginError {
    /// Whether it took the longest time that it may, which nobody should have to wait for twice.
    pub(crate) fn is_timeout(self) -> bool {
        matches!(self, Self::ConnectTimeout | Self::FirstByteTimeout | Self::BetweenBytesTimeout)
    }

    /// The registered error type.
    pub(crate) fn proxy_error(self) -> ProxyError {
        match self {
            Self::Dns => ProxyError::DnsError,
            Self::Forbidden => ProxyError::DestinationIpProhibited,
            Self::Refused => ProxyError::ConnectionRefused,
            Self::Unreachable | Self::Erred => ProxyError::DestinationUnavailable,
            Self::ConnectTimeout => ProxyError::ConnectionTimeout,
            Self::Tls => ProxyError::TlsProtocolError,
            Self::FirstByteTimeout => ProxyError::HttpResponseTimeout,
            Self::BetweenBytesTimeout => ProxyError::ConnectionReadTimeout,
            Self::Incomplete | Self::GivenUp => ProxyError::HttpResponseIncomplete,
            Self::Terminated => ProxyError::ConnectionTerminated,
            Self::Protocol | Self::Unfit => ProxyError::HttpProtocolError,
            Self::TransferCoding => ProxyError::HttpResponseTransferCoding,
            Self::HeadTooLarge => ProxyError::HttpResponseHeaderSectionSize,
            Self::RequestBody | Self::RequestPause | Self::RequestTooLarge => ProxyError::HttpRequestError,
        }
    }

    /// The status to answer with where nothing stored helps.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::RequestPause => StatusCode::REQUEST_TIMEOUT,
            Self::RequestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            other => other.proxy_error().status(),
        }
    }

    /// Whether the client brought it about, so that it says nothing of the origin.
    pub(crate) fn is_of_client(self) -> bool {
        matches!(self, Self::RequestBody | Self::RequestPause | Self::RequestTooLarge)
    }
}
