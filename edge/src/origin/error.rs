//! Why an origin gave no usable response.

use http::{HeaderValue, StatusCode};
use rustls::{AlertDescription, CertificateError};

use super::Failing;
use nearcast_http_rules::status::{Parameter, ProxyError};

/// Why an origin gave no usable response. Each maps to one error type of RFC 9209 section 2.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OriginError {
    /// Its name could not be resolved.
    #[error("the origin's name could not be resolved")]
    Dns,
    /// Its name resolves to an address that is never connected to.
    #[error("the origin's name resolves to a forbidden address")]
    Forbidden,
    /// It refused the connection.
    #[error("the origin refused the connection")]
    Refused,
    /// It is not reachable.
    #[error("the origin cannot be reached")]
    Unreachable,
    /// This node has no file, port or memory left for another socket, whatever the state of the
    /// origin.
    #[error("this node has no socket left for a connection to the origin")]
    NoSocket,
    /// Connecting took too long.
    #[error("connecting to the origin took too long")]
    ConnectTimeout,
    /// TLS failed.
    #[error("TLS with the origin failed: {0}")]
    Tls(TlsFault),
    /// All connections that the site allows are in use, and the wait for one has ended.
    #[error("all connections to the origin are in use")]
    ConnectionLimit,
    /// It answered nothing for several URLs, and is probed rarely. With the seconds to the next probe.
    #[error("the origin is known not to answer")]
    Unavailable { retry_after: u32 },
    /// It did not begin to answer in time.
    #[error("the origin did not answer in time")]
    FirstByteTimeout,
    /// It paused too long within a body.
    #[error("the origin paused too long")]
    BetweenBytesTimeout,
    /// It closed the connection before its response was complete.
    #[error("the origin ended its response early")]
    Incomplete,
    /// It closed the connection instead of answering.
    #[error("the origin closed the connection")]
    Terminated,
    /// It refused the request on an HTTP/2 connection without having acted on it.
    #[error("the origin refused the request unprocessed")]
    Unprocessed,
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
    /// It sent an error for a part of a stored representation.
    #[error("the origin answered with an error")]
    Erred,
    /// The fill was given up: it had no reader, and was not worth finishing or one of too many.
    #[error("no client waited for the origin's response")]
    GivenUp,
    /// Its response to a validation or a range request is for another representation.
    #[error("the origin's response is for another representation than the stored one")]
    Unfit,
}

impl OriginError {
    /// How the validation of a URL failed by it; `None` when the failure is not specific to the URL.
    pub(crate) fn failing(self) -> Option<Failing> {
        match self {
            // No client should wait for a time-out twice.
            Self::ConnectTimeout | Self::FirstByteTimeout | Self::BetweenBytesTimeout => {
                Some(Failing::TimedOut)
            }
            Self::NoSocket | Self::ConnectionLimit | Self::Unavailable { .. } | Self::GivenUp => {
                None
            }
            error if error.is_of_client() => None,
            Self::Erred => Some(Failing::Status),
            _ => Some(Failing::Unanswered),
        }
    }

    /// Whether the origin may have received the request, and may have carried it out.
    pub(crate) fn may_have_arrived(self) -> bool {
        match self {
            Self::Dns
            | Self::Forbidden
            | Self::Refused
            | Self::Unreachable
            | Self::NoSocket
            | Self::ConnectTimeout
            | Self::Tls(_)
            | Self::ConnectionLimit
            | Self::Unprocessed
            | Self::Unavailable { .. } => false,
            // An incomplete request cannot have been carried out.
            Self::RequestBody | Self::RequestPause | Self::RequestTooLarge => false,
            Self::FirstByteTimeout
            | Self::BetweenBytesTimeout
            | Self::Incomplete
            | Self::Terminated
            | Self::HeadTooLarge
            | Self::TransferCoding
            | Self::Protocol
            | Self::Erred
            | Self::GivenUp
            | Self::Unfit => true,
        }
    }

    /// Whether the request's own fields may have caused it, so that the next request may succeed.
    pub(crate) fn may_be_of_request(self) -> bool {
        use OriginError::*;
        !matches!(
            self,
            Dns | Forbidden
                | Refused
                | Unreachable
                | ConnectTimeout
                | Tls(_)
                | ConnectionLimit
                | NoSocket
                | Unavailable { .. }
        )
    }

    /// The registered error type.
    pub(crate) fn proxy_error(self) -> ProxyError {
        match self {
            Self::Dns => ProxyError::DnsError,
            Self::Forbidden => ProxyError::DestinationIpProhibited,
            Self::Refused => ProxyError::ConnectionRefused,
            Self::Unreachable | Self::Erred | Self::Unprocessed | Self::Unavailable { .. } => {
                ProxyError::DestinationUnavailable
            }
            Self::ConnectTimeout => ProxyError::ConnectionTimeout,
            Self::Tls(fault) => fault.proxy_error(),
            Self::FirstByteTimeout => ProxyError::HttpResponseTimeout,
            Self::BetweenBytesTimeout => ProxyError::ConnectionReadTimeout,
            Self::Incomplete | Self::GivenUp => ProxyError::HttpResponseIncomplete,
            Self::Terminated => ProxyError::ConnectionTerminated,
            Self::Protocol | Self::Unfit => ProxyError::HttpProtocolError,
            Self::ConnectionLimit => ProxyError::ConnectionLimitReached,
            Self::NoSocket => ProxyError::ProxyInternalError,
            Self::TransferCoding => ProxyError::HttpResponseTransferCoding,
            Self::HeadTooLarge => ProxyError::HttpResponseHeaderSectionSize,
            Self::RequestBody | Self::RequestPause | Self::RequestTooLarge => {
                ProxyError::HttpRequestError
            }
        }
    }

    /// This node's member of `Proxy-Status`.
    pub(crate) fn proxy_status(self, name: &str) -> HeaderValue {
        let error = self.proxy_error();
        match self {
            Self::Tls(TlsFault::Alert(alert)) => {
                let message = alert.as_str().unwrap_or("unknown");
                let id = Parameter::Integer(u8::from(alert).into());
                error.proxy_status_with(
                    name,
                    &[
                        ("alert-id", id),
                        ("alert-message", Parameter::String(message)),
                    ],
                )
            }
            Self::Unavailable { .. } => error.proxy_status_with(
                name,
                &[(
                    "details",
                    Parameter::String("it answered nothing for several URLs"),
                )],
            ),
            Self::Tls(fault) => {
                error.proxy_status_with(name, &[("details", Parameter::String(&fault.to_string()))])
            }
            _ => error.proxy_status(name),
        }
    }

    /// Its name in metrics.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Tls(fault) => fault.reason(),
            Self::GivenUp => "given_up",
            Self::Unavailable { .. } => "breaker_open",
            Self::NoSocket => "no_socket",
            Self::Unprocessed => "refused_stream",
            Self::Erred => "error_for_part",
            Self::Unfit => "changed_representation",
            other => other.proxy_error().as_str(),
        }
    }

    /// The status of the response to the client, where no stored response can be used.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::RequestPause => StatusCode::REQUEST_TIMEOUT,
            Self::RequestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            // The shortage is temporary, unlike the error of RFC 9209 section 2.3.30.
            Self::NoSocket => StatusCode::SERVICE_UNAVAILABLE,
            other => other.proxy_error().status(),
        }
    }

    /// Seconds after which the client may retry, where that is known.
    pub(crate) fn retry_after(self) -> Option<u64> {
        match self {
            Self::ConnectionLimit | Self::NoSocket => Some(1),
            Self::Unavailable { retry_after } => Some(retry_after.into()),
            _ => None,
        }
    }

    /// Whether the client caused it, whatever the state of the origin.
    pub(crate) fn is_of_client(self) -> bool {
        matches!(
            self,
            Self::RequestBody | Self::RequestPause | Self::RequestTooLarge
        )
    }
}

/// Why TLS with an origin failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TlsFault {
    /// Its certificate has expired.
    #[error("its certificate has expired")]
    Expired,
    /// Its certificate is not valid yet.
    #[error("its certificate is not valid yet")]
    NotValidYet,
    /// No trusted authority has signed its certificate.
    #[error("its certificate's issuer is unknown")]
    UnknownIssuer,
    /// Its certificate is for other names.
    #[error("its certificate is for another name")]
    WrongName,
    /// Its certificate was revoked.
    #[error("its certificate was revoked")]
    Revoked,
    /// Its certificate is wrong in another way.
    #[error("its certificate cannot be used")]
    Certificate,
    /// It refused with an alert.
    #[error("it sent the alert {}", .0.as_str().unwrap_or("of an unknown number"))]
    Alert(AlertDescription),
    /// It closed the connection during the handshake.
    #[error("it closed the connection during the handshake")]
    Closed,
    /// It does not speak TLS, or no version or cipher that both sides have.
    #[error("the handshake failed")]
    Protocol,
}

impl TlsFault {
    /// The fault of a TLS library's error anywhere in a chain of errors; `None` when the chain has
    /// none.
    pub(super) fn find(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            let wrapped = error
                .downcast_ref::<std::io::Error>()
                .and_then(|error| error.get_ref()?.downcast_ref());
            if let Some(found) = wrapped.or_else(|| error.downcast_ref()) {
                return Some(Self::of(found));
            }
            next = error.source();
        }
        None
    }

    /// The fault that ended a handshake.
    pub(super) fn of_handshake(error: &std::io::Error) -> Self {
        Self::find(error).unwrap_or(Self::Closed)
    }

    fn of(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::AlertReceived(alert) => Self::Alert(*alert),
            rustls::Error::InvalidCertificate(problem) => match problem {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    Self::Expired
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotValidYet
                }
                CertificateError::UnknownIssuer => Self::UnknownIssuer,
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => Self::WrongName,
                CertificateError::Revoked => Self::Revoked,
                _ => Self::Certificate,
            },
            rustls::Error::NoCertificatesPresented => Self::Certificate,
            _ => Self::Protocol,
        }
    }

    fn proxy_error(self) -> ProxyError {
        match self {
            Self::Expired
            | Self::NotValidYet
            | Self::UnknownIssuer
            | Self::WrongName
            | Self::Revoked
            | Self::Certificate => ProxyError::TlsCertificateError,
            Self::Alert(_) => ProxyError::TlsAlertReceived,
            Self::Closed | Self::Protocol => ProxyError::TlsProtocolError,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Expired => "tls_certificate_expired",
            Self::NotValidYet => "tls_certificate_not_valid_yet",
            Self::UnknownIssuer => "tls_certificate_unknown_issuer",
            Self::WrongName => "tls_certificate_wrong_name",
            Self::Revoked => "tls_certificate_revoked",
            Self::Certificate => "tls_certificate_error",
            Self::Alert(_) => "tls_alert_received",
            Self::Closed => "tls_closed",
            Self::Protocol => "tls_protocol_error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::OriginError::*;
    use super::*;

    #[test]
    fn only_what_may_have_been_sent_may_have_changed_something() {
        let not_sent = [
            Dns,
            Forbidden,
            Refused,
            Unreachable,
            NoSocket,
            ConnectTimeout,
            Tls(TlsFault::Closed),
            ConnectionLimit,
            Unprocessed,
            Unavailable { retry_after: 1 },
            RequestBody,
            RequestPause,
            RequestTooLarge,
        ];
        let maybe_sent = [
            FirstByteTimeout,
            BetweenBytesTimeout,
            Incomplete,
            Terminated,
            HeadTooLarge,
            TransferCoding,
            Protocol,
            Erred,
            GivenUp,
            Unfit,
        ];
        for error in not_sent {
            assert!(!error.may_have_arrived(), "{error}");
        }
        for error in maybe_sent {
            assert!(error.may_have_arrived(), "{error}");
        }
    }
}
