//! The outcome of one request, and the fields, metric labels and log words for it.
//!
//! Follows RFC 9211 (Cache-Status) and RFC 9209 (Proxy-Status).

use crate::structured::write_integer;
use http::{HeaderName, HeaderValue, StatusCode};

use nearcast_fleet::report::CacheStatus;

use crate::not_stored::NotStored;
use crate::structured::{write_name, write_string};

/// `Cache-Status`.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// `Proxy-Status`.
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Why a request was forwarded (RFC 9211 section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ForwardReason {
    /// The cache was configured not to handle the request.
    Bypass,
    /// The method's semantics require it.
    Method,
    /// No stored response for the URL.
    UriMiss,
    /// Stored responses for the URL, none of which the request selects.
    VaryMiss,
    /// One of the two above; it is not known which.
    Miss,
    /// The client's directives require it.
    Request,
    /// The stored response is stale.
    Stale,
    /// The stored response lacks some of the bytes.
    Partial,
}

impl ForwardReason {
    /// The registered token.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Miss => "miss",
            Self::Request => "request",
            Self::Stale => "stale",
            Self::Partial => "partial",
        }
    }
}

/// How one request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The source of the response.
    pub label: CacheStatus,
    /// Why the request was forwarded; `None` for a hit, also a stale one.
    pub forward: Option<ForwardReason>,
    /// The status from the origin, if the client gets another one.
    pub forward_status: Option<StatusCode>,
    /// Remaining freshness in seconds; negative when stale.
    pub ttl: Option<i64>,
    /// Whether the origin's response was stored.
    pub is_stored: bool,
    /// Whether the request waited for the forward request of another one.
    pub is_collapsed: bool,
    /// Implementation-specific detail (RFC 9211 section 2.8).
    pub detail: Option<&'static str>,
    /// Why the origin's response was not stored.
    pub not_stored: Option<NotStored>,
    /// Whether a stored response was used although this node may lack a purge of it.
    pub is_unsynced: bool,
}

/// `detail` of a stored response that was used although this node may lack a purge of it.
const UNSYNCED: &str = "unsynced";
/// Longest name of a request field in `detail`; longer ones are left out.
const NAMED_BYTES_MAX: usize = 64;

impl Outcome {
    /// Served from the store without a forward request; `ttl` in seconds, zero or less when stale.
    pub fn hit(ttl: i64) -> Self {
        let label = if ttl > 0 {
            CacheStatus::Hit
        } else {
            CacheStatus::Stale
        };
        Self {
            ttl: Some(ttl),
            ..Self::bare(label, None)
        }
    }

    /// Forwarded to the origin.
    pub fn forwarded(label: CacheStatus, reason: ForwardReason) -> Self {
        Self::bare(label, Some(reason))
    }

    /// Answered by this node itself.
    pub fn local(detail: &'static str) -> Self {
        Self {
            detail: Some(detail),
            ..Self::bare(CacheStatus::Local, None)
        }
    }

    fn bare(label: CacheStatus, forward: Option<ForwardReason>) -> Self {
        Self {
            label,
            forward,
            forward_status: None,
            ttl: None,
            is_stored: false,
            is_collapsed: false,
            detail: None,
            not_stored: None,
            is_unsynced: false,
        }
    }

    /// Whether the response was served without a forward request.
    pub fn is_hit(&self) -> bool {
        self.forward.is_none() && matches!(self.label, CacheStatus::Hit | CacheStatus::Stale)
    }

    /// Appends this cache's member of `Cache-Status`, such as `ams-1; hit; ttl=30`, to a buffer.
    /// Does not allocate if the buffer has the capacity.
    pub fn write(&self, name: &str, buffer: &mut Vec<u8>) {
        self.write_naming(name, None, buffer);
    }

    /// As [`write`](Self::write), with the name of the request field because of which the response
    /// was not stored.
    fn write_naming(&self, name: &str, field: Option<&str>, buffer: &mut Vec<u8>) {
        write_name(name, buffer);
        if self.is_hit() {
            buffer.extend_from_slice(b"; hit");
        }

        if let Some(reason) = self.forward {
            buffer.extend_from_slice(b"; fwd=");
            buffer.extend_from_slice(reason.as_str().as_bytes());
            if let Some(status) = self.forward_status {
                buffer.extend_from_slice(b"; fwd-status=");
                buffer.extend_from_slice(status.as_str().as_bytes());
            }
        }

        if let Some(ttl) = self.ttl {
            buffer.extend_from_slice(b"; ttl=");
            write_integer(ttl, buffer);
        }
        // Both apply to forwarded requests only (RFC 9211 sections 2.5 and 2.6).
        if self.forward.is_some() && self.is_stored {
            buffer.extend_from_slice(b"; stored");
        }
        if self.forward.is_some() && self.is_collapsed {
            buffer.extend_from_slice(b"; collapsed");
        }

        // There can be one `detail` only: the one that a reader expects least.
        if self.is_unsynced {
            buffer.extend_from_slice(b"; detail=");
            buffer.extend_from_slice(UNSYNCED.as_bytes());
        } else if let Some(detail) = self.detail {
            buffer.extend_from_slice(b"; detail=");
            write_string(detail, buffer);
        } else if let Some(reason) = self.not_stored.filter(|_| self.forward.is_some()) {
            buffer.extend_from_slice(b"; detail=");
            buffer.extend_from_slice(reason.as_str().as_bytes());
            if let Some(field) = field.filter(|field| field.len() <= NAMED_BYTES_MAX) {
                buffer.push(b':');
                buffer.extend_from_slice(field.as_bytes());
            }
        }
    }

    /// The member as a field value, to append after those of caches nearer to the origin.
    pub fn cache_status(&self, name: &str) -> HeaderValue {
        self.cache_status_naming(name, None)
    }

    /// As [`cache_status`](Self::cache_status), with the name of the request field because of which
    /// the response was not stored.
    pub fn cache_status_naming(&self, name: &str, field: Option<&HeaderName>) -> HeaderValue {
        let mut buffer = Vec::with_capacity(96);
        self.write_naming(name, field.map(HeaderName::as_str), &mut buffer);
        HeaderValue::from_maybe_shared(bytes::Bytes::from(buffer))
            .unwrap_or(HeaderValue::from_static("nearcast"))
    }
}

/// An error that this node generated, by its registered type (RFC 9209 section 2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the types are named and explained in the RFC")]
pub enum ProxyError {
    DnsTimeout,
    DnsError,
    DestinationNotFound,
    DestinationUnavailable,
    DestinationIpProhibited,
    DestinationIpUnroutable,
    ConnectionRefused,
    ConnectionTerminated,
    ConnectionTimeout,
    ConnectionReadTimeout,
    ConnectionWriteTimeout,
    ConnectionLimitReached,
    TlsProtocolError,
    TlsCertificateError,
    TlsAlertReceived,
    HttpRequestError,
    HttpRequestDenied,
    HttpResponseIncomplete,
    HttpResponseHeaderSectionSize,
    HttpResponseBodySize,
    HttpResponseTransferCoding,
    HttpResponseTimeout,
    HttpProtocolError,
    ProxyInternalError,
    ProxyLoopDetected,
}

impl ProxyError {
    /// All types.
    pub const ALL: [Self; 25] = [
        Self::DnsTimeout,
        Self::DnsError,
        Self::DestinationNotFound,
        Self::DestinationUnavailable,
        Self::DestinationIpProhibited,
        Self::DestinationIpUnroutable,
        Self::ConnectionRefused,
        Self::ConnectionTerminated,
        Self::ConnectionTimeout,
        Self::ConnectionReadTimeout,
        Self::ConnectionWriteTimeout,
        Self::ConnectionLimitReached,
        Self::TlsProtocolError,
        Self::TlsCertificateError,
        Self::TlsAlertReceived,
        Self::HttpRequestError,
        Self::HttpRequestDenied,
        Self::HttpResponseIncomplete,
        Self::HttpResponseHeaderSectionSize,
        Self::HttpResponseBodySize,
        Self::HttpResponseTransferCoding,
        Self::HttpResponseTimeout,
        Self::HttpProtocolError,
        Self::ProxyInternalError,
        Self::ProxyLoopDetected,
    ];

    /// The registered token.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DnsTimeout => "dns_timeout",
            Self::DnsError => "dns_error",
            Self::DestinationNotFound => "destination_not_found",
            Self::DestinationUnavailable => "destination_unavailable",
            Self::DestinationIpProhibited => "destination_ip_prohibited",
            Self::DestinationIpUnroutable => "destination_ip_unroutable",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectionTerminated => "connection_terminated",
            Self::ConnectionTimeout => "connection_timeout",
            Self::ConnectionReadTimeout => "connection_read_timeout",
            Self::ConnectionWriteTimeout => "connection_write_timeout",
            Self::ConnectionLimitReached => "connection_limit_reached",
            Self::TlsProtocolError => "tls_protocol_error",
            Self::TlsCertificateError => "tls_certificate_error",
            Self::TlsAlertReceived => "tls_alert_received",
            Self::HttpRequestError => "http_request_error",
            Self::HttpRequestDenied => "http_request_denied",
            Self::HttpResponseIncomplete => "http_response_incomplete",
            Self::HttpResponseHeaderSectionSize => "http_response_header_section_size",
            Self::HttpResponseBodySize => "http_response_body_size",
            Self::HttpResponseTransferCoding => "http_response_transfer_coding",
            Self::HttpResponseTimeout => "http_response_timeout",
            Self::HttpProtocolError => "http_protocol_error",
            Self::ProxyInternalError => "proxy_internal_error",
            Self::ProxyLoopDetected => "proxy_loop_detected",
        }
    }

    /// The status that RFC 9209 section 2.3 recommends.
    pub fn status(self) -> StatusCode {
        match self {
            Self::DnsTimeout
            | Self::ConnectionTimeout
            | Self::ConnectionReadTimeout
            | Self::ConnectionWriteTimeout
            | Self::HttpResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::DestinationUnavailable | Self::ConnectionLimitReached => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::DestinationNotFound | Self::ProxyInternalError => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::HttpRequestError => StatusCode::BAD_REQUEST,
            Self::HttpRequestDenied => StatusCode::FORBIDDEN,
            Self::ProxyLoopDetected => StatusCode::LOOP_DETECTED,
            _ => StatusCode::BAD_GATEWAY,
        }
    }

    /// This node's member of `Proxy-Status`, such as `ams-1; error=connection_refused`.
    pub fn proxy_status(self, name: &str) -> HeaderValue {
        self.proxy_status_with(name, &[])
    }

    /// As [`proxy_status`](Self::proxy_status), with the parameters that the type registers, or
    /// `details`.
    pub fn proxy_status_with(
        self,
        name: &str,
        parameters: &[(&str, Parameter<'_>)],
    ) -> HeaderValue {
        let mut buffer = Vec::with_capacity(64);
        write_name(name, &mut buffer);
        buffer.extend_from_slice(b"; error=");
        buffer.extend_from_slice(self.as_str().as_bytes());
        for (key, value) in parameters {
            buffer.extend_from_slice(b"; ");
            buffer.extend_from_slice(key.as_bytes());
            buffer.push(b'=');
            match value {
                Parameter::Integer(number) => write_integer(*number, &mut buffer),
                Parameter::String(text) => write_string(text, &mut buffer),
            }
        }
        HeaderValue::from_maybe_shared(bytes::Bytes::from(buffer)).unwrap_or(
            HeaderValue::from_static("nearcast; error=proxy_internal_error"),
        )
    }
}

/// The value of a parameter of `Proxy-Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameter<'a> {
    /// A structured integer.
    Integer(i64),
    /// A structured string.
    String(&'a str),
}

/// A member of `Proxy-Status` with the id of its request in `details`, the parameter for what the
/// other ones cannot say (RFC 9209 section 2.1.5). `id` is a token.
pub fn with_request_id(member: &HeaderValue, id: &str) -> HeaderValue {
    let bytes = member.as_bytes();
    let mut buffer = Vec::with_capacity(bytes.len() + 32 + id.len());
    // `details` is the last parameter where there is one.
    let has_details = member
        .to_str()
        .is_ok_and(|text| text.contains("; details=\""))
        && bytes.ends_with(b"\"");
    if has_details {
        buffer.extend_from_slice(&bytes[..bytes.len() - 1]);
        buffer.extend_from_slice(b"; request-id=");
    } else {
        buffer.extend_from_slice(bytes);
        buffer.extend_from_slice(b"; details=\"request-id=");
    }
    buffer.extend_from_slice(id.as_bytes());
    buffer.push(b'"');
    HeaderValue::from_maybe_shared(bytes::Bytes::from(buffer)).unwrap_or_else(|_| member.clone())
}

/// This node's member of `Proxy-Status` on a response that it generated in place of the origin's,
/// with the origin's status (RFC 9209 section 2.1.4): `ams-1; received-status=503`.
pub fn received(name: &str, status: StatusCode) -> HeaderValue {
    let mut buffer = Vec::with_capacity(64);
    write_name(name, &mut buffer);
    buffer.extend_from_slice(b"; received-status=");
    buffer.extend_from_slice(status.as_str().as_bytes());
    HeaderValue::from_maybe_shared(bytes::Bytes::from(buffer))
        .unwrap_or(HeaderValue::from_static("nearcast"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    fn text(outcome: &Outcome, name: &str) -> String {
        outcome
            .cache_status(name)
            .to_str()
            .expect("ASCII")
            .to_owned()
    }

    #[test]
    fn errors_name_their_request_in_details() {
        for (member, expected) in [
            (
                ProxyError::ConnectionRefused.proxy_status("ams-1"),
                "ams-1; error=connection_refused; details=\"request-id=7f\"",
            ),
            (
                ProxyError::HttpProtocolError
                    .proxy_status_with("ams-1", &[("details", Parameter::String("why \"so\""))]),
                "ams-1; error=http_protocol_error; details=\"why \\\"so\\\"; request-id=7f\"",
            ),
            (
                ProxyError::DnsError
                    .proxy_status_with("ams-1", &[("rcode", Parameter::String("NXDOMAIN"))]),
                "ams-1; error=dns_error; rcode=\"NXDOMAIN\"; details=\"request-id=7f\"",
            ),
        ] {
            assert_eq!(with_request_id(&member, "7f"), expected);
        }
    }

    #[test]
    fn cache_status_says_what_happened() {
        // RFC 9211 section 2.
        let forwarded = Outcome::forwarded;
        let table = [
            (Outcome::hit(30), "ams-1; hit; ttl=30"),
            (Outcome::hit(0), "ams-1; hit; ttl=0"),
            (Outcome::hit(-412), "ams-1; hit; ttl=-412"),
            (
                Outcome {
                    is_stored: true,
                    ttl: Some(60),
                    ..forwarded(CacheStatus::Miss, ForwardReason::UriMiss)
                },
                "ams-1; fwd=uri-miss; ttl=60; stored",
            ),
            (
                Outcome {
                    is_collapsed: true,
                    ttl: Some(60),
                    ..forwarded(CacheStatus::Collapsed, ForwardReason::VaryMiss)
                },
                "ams-1; fwd=vary-miss; ttl=60; collapsed",
            ),
            (
                Outcome {
                    forward_status: Some(StatusCode::NOT_MODIFIED),
                    ..forwarded(CacheStatus::Revalidated, ForwardReason::Stale)
                },
                "ams-1; fwd=stale; fwd-status=304",
            ),
            (
                Outcome {
                    forward_status: Some(StatusCode::SERVICE_UNAVAILABLE),
                    ttl: Some(-5),
                    detail: Some("stale-if-error"),
                    ..forwarded(CacheStatus::Stale, ForwardReason::Stale)
                },
                "ams-1; fwd=stale; fwd-status=503; ttl=-5; detail=\"stale-if-error\"",
            ),
            (
                Outcome {
                    is_unsynced: true,
                    ttl: Some(5),
                    detail: Some("x"),
                    ..forwarded(CacheStatus::Stale, ForwardReason::Stale)
                },
                "ams-1; fwd=stale; ttl=5; detail=unsynced",
            ),
            (
                Outcome {
                    not_stored: Some(NotStored::NoStore),
                    ..forwarded(CacheStatus::Miss, ForwardReason::UriMiss)
                },
                "ams-1; fwd=uri-miss; detail=no-store",
            ),
            (
                forwarded(CacheStatus::Bypass, ForwardReason::Method),
                "ams-1; fwd=method",
            ),
            (
                forwarded(CacheStatus::Partial, ForwardReason::Partial),
                "ams-1; fwd=partial",
            ),
            (Outcome::local("health"), "ams-1; detail=\"health\""),
        ];
        for (outcome, expected) in table {
            assert_eq!(text(&outcome, "ams-1"), expected);
        }
    }

    #[test]
    fn why_an_answer_is_not_stored_is_a_token_with_the_field_that_is_to_blame() {
        let mut words = std::collections::BTreeSet::new();
        for (number, reason) in NotStored::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number, "{reason:?} is at its own place");
            assert!(
                reason
                    .as_str()
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'-'),
                "{reason:?}"
            );
            assert!(words.insert(reason.as_str()), "{reason:?}");
        }
        let outcome = Outcome {
            not_stored: Some(NotStored::RequestFields),
            ..Outcome::forwarded(CacheStatus::Miss, ForwardReason::UriMiss)
        };
        let with = |name: &str| {
            let field = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            outcome
                .cache_status_naming("ams-1", Some(&field))
                .to_str()
                .expect("ASCII")
                .to_owned()
        };
        assert_eq!(
            with("x-odd_!"),
            "ams-1; fwd=uri-miss; detail=request-field:x-odd_!"
        );
        assert_eq!(
            with(&"x".repeat(NAMED_BYTES_MAX + 1)),
            "ams-1; fwd=uri-miss; detail=request-field"
        );
    }

    #[test]
    fn proxy_status_says_more_where_more_is_known() {
        let table = [
            (
                ProxyError::ConnectionRefused,
                vec![],
                "ams-1; error=connection_refused",
            ),
            (
                ProxyError::TlsAlertReceived,
                vec![
                    ("alert-id", Parameter::Integer(42)),
                    ("alert-message", Parameter::String("bad \"x\"")),
                ],
                "ams-1; error=tls_alert_received; alert-id=42; alert-message=\"bad \\\"x\\\"\"",
            ),
        ];
        for (error, parameters, expected) in table {
            assert_eq!(error.proxy_status_with("ams-1", &parameters), expected);
        }
    }

    #[test]
    fn labels_follow_freshness() {
        assert_eq!(
            (
                Outcome::hit(1).label,
                Outcome::hit(0).label,
                Outcome::hit(-1).label
            ),
            (CacheStatus::Hit, CacheStatus::Stale, CacheStatus::Stale)
        );
    }

    #[test]
    fn tokens_are_the_registered_ones() {
        // RFC 9211 section 2.2 and RFC 9209 section 2.3.
        use ForwardReason::*;
        let reasons = [
            Bypass, Method, UriMiss, VaryMiss, Miss, Request, Stale, Partial,
        ]
        .map(ForwardReason::as_str);
        assert_eq!(
            reasons,
            [
                "bypass",
                "method",
                "uri-miss",
                "vary-miss",
                "miss",
                "request",
                "stale",
                "partial"
            ]
        );
        let labels = CacheStatus::ALL.map(CacheStatus::as_str);
        assert_eq!(
            labels,
            [
                "hit",
                "stale",
                "revalidated",
                "collapsed",
                "miss",
                "partial",
                "bypass",
                "error",
                "local"
            ]
        );
        for error in ProxyError::ALL {
            let token: String = format!("{error:?}")
                .chars()
                .flat_map(|c| {
                    if c.is_uppercase() {
                        vec!['_', c.to_ascii_lowercase()]
                    } else {
                        vec![c]
                    }
                })
                .collect();
            assert_eq!(error.as_str(), token.trim_start_matches('_'));
            assert!(error.status().is_client_error() || error.status().is_server_error());
        }
    }

    #[test]
    fn names_that_are_no_tokens_are_strings() {
        let table = [
            ("ams-1", "ams-1; hit; ttl=1"),
            ("1st", "\"1st\"; hit; ttl=1"),
            ("a b", "\"a b\"; hit; ttl=1"),
            ("a\"\\é", "\"a\\\"\\\\\"; hit; ttl=1"),
        ];
        for (name, expected) in table {
            assert_eq!(text(&Outcome::hit(1), name), expected);
        }
    }

    #[test]
    fn an_answer_in_place_of_the_origins_tells_its_status() {
        assert_eq!(
            received("ams-1", StatusCode::SERVICE_UNAVAILABLE),
            "ams-1; received-status=503"
        );
        assert_eq!(
            received("1 a", StatusCode::BAD_GATEWAY),
            "\"1 a\"; received-status=502"
        );
    }

    #[test]
    fn proxy_status_names_the_error() {
        // RFC 9209 section 2.3.
        assert_eq!(
            ProxyError::ConnectionRefused.proxy_status("ams-1"),
            "ams-1; error=connection_refused"
        );
        let statuses = [
            (ProxyError::ConnectionTimeout, 504),
            (ProxyError::ConnectionRefused, 502),
            (ProxyError::ProxyLoopDetected, 508),
            (ProxyError::HttpRequestError, 400),
        ];
        for (error, status) in statuses {
            assert_eq!(error.status().as_u16(), status, "{error:?}");
        }
    }

    #[test]
    fn a_buffer_is_reused_and_added_to() {
        let mut buffer = b"up; hit, ".to_vec();
        buffer.reserve(64);
        let room = buffer.capacity();
        Outcome::hit(7).write("ams-1", &mut buffer);
        assert_eq!(
            (&buffer[..], buffer.capacity()),
            (&b"up; hit, ams-1; hit; ttl=7"[..], room)
        );
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn hit_and_forward_exclude_each_other(name in ".{0,20}", ttl in any::<i64>(), is_forwarded in any::<bool>(), is_stored in any::<bool>()) {
            let base = if is_forwarded { Outcome::forwarded(CacheStatus::Miss, ForwardReason::Miss) } else { Outcome::hit(ttl) };
            let outcome = Outcome { is_stored, ..base };
            let mut buffer = Vec::new();
            outcome.write("ams-1", &mut buffer);
            let written = String::from_utf8(buffer).expect("ASCII");
            prop_assert_eq!(written.contains("; hit"), !is_forwarded);
            prop_assert_eq!(written.contains("; fwd="), is_forwarded);
            prop_assert_eq!(written.contains("; stored"), is_forwarded && is_stored);
            prop_assert!(outcome.cache_status(&name).to_str().is_ok());
            prop_assert!(ProxyError::DnsError.proxy_status(&name).to_str().is_ok());
        }
    }
}
