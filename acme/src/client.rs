//! The HTTP client for authorities: what they answer is bounded, and errors say who, where and why.
//!
//! The library that speaks ACME gets responses of success, and those of nonces that were refused;
//! all else becomes a [`CallError`]. `Retry-After` is brought within bounds before the library sees
//! it.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use instant_acme::{BodyWrapper, BytesResponse, HttpClient, Problem};
use nearcast_net::tls::{self, ClientRoots};
use parking_lot::Mutex;
use rustls::CertificateError;

use crate::{Authority, Limits, text};

/// The most bytes of a response.
const BODY_BYTES_MAX: usize = 1 << 20;
/// How long an idle connection is kept: an order asks every few seconds.
const IDLE_KEPT: Duration = Duration::from_secs(20);
/// Bounds of `Retry-After` while an order or an authorization is polled.
const POLL_AGAIN_S: (u64, u64) = (1, 20);
/// Bounds of `Retry-After` of renewal information (RFC 9773 section 4.3.2), and its default.
const RENEWAL_AGAIN_S: (u64, u64) = (60, 86_400);
const RENEWAL_AGAIN_DEFAULT_S: u64 = 6 * 3600;
/// Bounds of `Retry-After` of a refusal.
const REFUSED_AGAIN_S: (u64, u64) = (60, 86_400);
/// A nonce that the authority does not take is no failure: the library asks for another one.
pub(crate) const BAD_NONCE: &str = "urn:ietf:params:acme:error:badNonce";
/// Name and version of this client (RFC 8555 section 6.1).
const AGENT: &str = concat!("nearcast/", env!("CARGO_PKG_VERSION"), " instant-acme");

/// A request to an authority that failed.
#[derive(Debug)]
pub(crate) struct CallError {
    /// Name of the authority.
    authority: Arc<str>,
    url: String,
    pub(crate) why: Why,
}

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum Why {
    /// Neither `https`, nor `http` on this machine.
    NotHttps,
    /// The file of authorities cannot be used; the reason.
    Roots(String),
    /// No connection, no TLS, or the connection broke; the reason.
    Unreachable(String),
    /// No whole response within the time.
    Slow(Duration),
    /// The response has more than [`BODY_BYTES_MAX`].
    TooLarge,
    /// It refers to another URL.
    Redirects(String),
    /// The response is not what an ACME server says; the reason.
    NotAcme(String),
    /// An error of the authority.
    Refused {
        status: StatusCode,
        problem: Box<Problem>,
        /// Bounded.
        retry_after: Option<Duration>,
    },
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, url) = (&self.authority, &self.url);
        match &self.why {
            Why::NotHttps => write!(
                f,
                "authority {name}: the URL {url} is not https; only a directory on this machine's loopback addresses may be http"
            ),
            Why::Roots(reason) => write!(f, "authority {name} cannot be verified: {reason}"),
            Why::Unreachable(reason) => {
                write!(f, "authority {name} is not reachable at {url}: {reason}")
            }
            Why::Slow(time) => write!(
                f,
                "authority {name} did not answer {url} within {} s",
                time.as_secs_f32()
            ),
            Why::TooLarge => write!(
                f,
                "authority {name} answered {url} with more than {BODY_BYTES_MAX} bytes"
            ),
            Why::Redirects(to) => write!(
                f,
                "authority {name} redirects {url} to {to}; write that URL, if it is the authority's directory"
            ),
            Why::NotAcme(reason) => write!(
                f,
                "authority {name} does not answer as an ACME server at {url}: {reason}"
            ),
            Why::Refused {
                status, problem, ..
            } => write!(
                f,
                "authority {name} refused {url} with status {}: {}",
                status.as_u16(),
                text::of_problem(problem)
            ),
        }
    }
}

impl Error for CallError {}

/// A client of one authority. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    name: Arc<str>,
    http: legacy::Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    request_time: Duration,
    /// Whether the directory, and so what it refers to, may be `http`.
    allows_plain: bool,
    /// What the authority's clock said last, and when that was.
    clock: Mutex<Option<(i64, Instant)>>,
}

impl Client {
    /// Reads the authority's `ca` file. Blocks for that.
    pub(crate) fn new(authority: &Authority, limits: &Limits) -> Result<Self, CallError> {
        let name: Arc<str> = authority.name.as_str().into();
        let failed = |why| CallError {
            authority: name.clone(),
            url: text::line(&authority.directory),
            why,
        };
        let directory: Uri = authority
            .directory
            .parse()
            .map_err(|_| failed(Why::NotHttps))?;
        let allows_plain = directory.scheme_str() == Some("http") && is_loopback(&directory);
        if !allows_plain && directory.scheme_str() != Some("https") {
            return Err(failed(Why::NotHttps));
        }

        let roots = ClientRoots::load(authority.ca.as_deref())
            .map_err(|error| failed(Why::Roots(error.to_string())))?;
        let config = tls::client_config(roots, None).expect("it reads no file");
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(limits.connect_time));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_KEPT)
            .build(connector);
        Ok(Self {
            inner: Arc::new(Inner {
                name,
                http,
                request_time: limits.request_time,
                allows_plain,
                clock: Mutex::new(None),
            }),
        })
    }

    /// By how many seconds this machine's clock is ahead of the authority's; `None` if that did not
    /// say.
    pub(crate) fn ahead_s(&self, now_unix_s: i64, now: Instant) -> Option<i64> {
        let (said, at) = (*self.inner.clock.lock())?;
        let since = now.saturating_duration_since(at).as_secs() as i64;
        Some(now_unix_s - (said + since))
    }

    async fn call(
        &self,
        mut request: Request<BodyWrapper<Bytes>>,
    ) -> Result<BytesResponse, CallError> {
        let inner = &self.inner;
        let url = text::line(&request.uri().to_string());
        let failed = |why| CallError {
            authority: inner.name.clone(),
            url: url.clone(),
            why,
        };
        let is_https = request.uri().scheme_str() == Some("https");
        let may_be_plain = inner.allows_plain && is_loopback(request.uri());
        if !is_https && !may_be_plain {
            return Err(failed(Why::NotHttps));
        }
        request
            .headers_mut()
            .insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let method = request.method().clone();

        let exchange = async {
            let response = inner
                .http
                .request(request)
                .await
                .map_err(|error| Why::Unreachable(describe(&error)))?;
            let (parts, body) = response.into_parts();
            match Limited::new(body, BODY_BYTES_MAX).collect().await {
                Ok(body) => Ok(Response::from_parts(parts, body.to_bytes())),
                Err(error) if error.is::<LengthLimitError>() => Err(Why::TooLarge),
                Err(error) => Err(Why::Unreachable(format!(
                    "the connection broke within a response: {}",
                    describe(&*error)
                ))),
            }
        };
        let response = tokio::time::timeout(inner.request_time, exchange)
            .await
            .unwrap_or(Err(Why::Slow(inner.request_time)))
            .map_err(failed)?;

        let date = date(response.headers().get(DATE));
        if let Some(date) = date {
            *inner.clock.lock() = Some((date, Instant::now()));
        }
        judge(&method, response, date).map_err(failed)
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move {
            let answer = client.call(request).await;
            answer.map_err(|error| instant_acme::Error::Other(Box::new(error)))
        })
    }
}

/// Decides what the library sees of a response.
fn judge(
    method: &Method,
    response: Response<Bytes>,
    date_unix_s: Option<i64>,
) -> Result<BytesResponse, Why> {
    let (mut parts, body) = response.into_parts();
    let after = retry_after_s(&parts.headers, date_unix_s);
    if parts.status.is_redirection() {
        let to = parts.headers.get(LOCATION).map(HeaderValue::as_bytes);
        return Err(Why::Redirects(text::line(&String::from_utf8_lossy(
            to.unwrap_or(b"nowhere"),
        ))));
    }
    if !parts.status.is_success() {
        // Some servers and what stands before them answer with pages, or with nothing.
        let problem = serde_json::from_slice::<Problem>(&body).unwrap_or(Problem {
            r#type: None,
            detail: None,
            status: None,
            subproblems: Vec::new(),
        });
        if parts.status == StatusCode::BAD_REQUEST && problem.r#type.as_deref() == Some(BAD_NONCE) {
            return Ok(bytes_response(parts, body));
        }
        let (least, most) = REFUSED_AGAIN_S;
        return Err(Why::Refused {
            status: parts.status,
            problem: Box::new(problem),
            retry_after: after.map(|after| Duration::from_secs(after.clamp(least, most))),
        });
    }
    if *method != Method::HEAD && !body.is_empty() {
        check_content(&parts.headers, &body)?;
    }

    let bounded = match *method == Method::GET {
        true => Some(
            after
                .unwrap_or(RENEWAL_AGAIN_DEFAULT_S)
                .clamp(RENEWAL_AGAIN_S.0, RENEWAL_AGAIN_S.1),
        ),
        false => after.map(|after| after.clamp(POLL_AGAIN_S.0, POLL_AGAIN_S.1)),
    };
    match bounded {
        Some(after) => parts.headers.insert(RETRY_AFTER, after.into()),
        None => parts.headers.remove(RETRY_AFTER),
    };
    Ok(bytes_response(parts, body))
}

fn bytes_response(parts: http::response::Parts, body: Bytes) -> BytesResponse {
    BytesResponse {
        parts,
        body: Box::new(body),
    }
}

/// Whether a body is what its type says, and of a type that ACME has.
fn check_content(headers: &HeaderMap, body: &[u8]) -> Result<(), Why> {
    let kind = match headers.get(CONTENT_TYPE) {
        None => String::new(),
        Some(kind) => String::from_utf8_lossy(kind.as_bytes()).into_owned(),
    };
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let is_json = ["application/json", "application/problem+json", ""]
        .iter()
        .any(|known| essence.eq_ignore_ascii_case(known));
    if essence.eq_ignore_ascii_case("application/pem-certificate-chain") {
        return Ok(());
    }
    if !is_json {
        return Err(Why::NotAcme(format!(
            "the response is {}; is this the URL of an ACME directory?",
            text::line(essence)
        )));
    }
    match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
        Ok(_) => Ok(()),
        Err(error) => Err(Why::NotAcme(format!("the response is no JSON: {error}"))),
    }
}

/// Seconds that a response asks to wait for: `Retry-After` as a number, or as a date by the clock of
/// the server (RFC 9110 section 10.2.3).
fn retry_after_s(headers: &HeaderMap, date_unix_s: Option<i64>) -> Option<u64> {
    let value = headers.get(RETRY_AFTER)?;
    let written = value.to_str().ok()?.trim();
    if !written.is_empty() && written.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(written.parse().unwrap_or(u64::MAX));
    }
    let until = date(Some(value))?;
    let now = date_unix_s.unwrap_or_else(crate::now_unix_s);
    Some(u64::try_from(until - now).unwrap_or(0))
}

fn date(value: Option<&HeaderValue>) -> Option<i64> {
    let written = value?.to_str().ok()?;
    let date = jiff::fmt::rfc2822::parse(written).ok()?;
    Some(date.timestamp().as_second())
}

fn is_loopback(url: &Uri) -> bool {
    let Some(host) = url.host() else { return false };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The innermost reason of an error, with a hint for what TLS refuses.
fn describe(error: &(dyn Error + 'static)) -> String {
    let (mut next, mut last) = (Some(error), error);
    while let Some(error) = next {
        if let Some(refused) = error.downcast_ref::<rustls::Error>() {
            return of_tls(refused);
        }
        last = error;
        // The source of such an error is that of the error inside it.
        let inside = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .map(|inside| inside as &(dyn Error + 'static));
        next = inside.or_else(|| error.source());
    }
    text::line(&last.to_string())
}

fn of_tls(error: &rustls::Error) -> String {
    use rustls::Error::InvalidCertificate;
    let clock = || {
        format!(
            "or this machine's clock is wrong: it says {}",
            text::time(crate::now_unix_s())
        )
    };
    match error {
        InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its own certificate is from an issuer that is not trusted here; name that issuer's certificate with ca".to_owned()
        }
        InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            format!("its own certificate has expired, {}", clock())
        }
        InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => format!("its own certificate is not valid yet, {}", clock()),
        other => text::line(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, fields: &[(&str, &str)], body: &str) -> Response<Bytes> {
        let mut response = Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        response
            .body(Bytes::copy_from_slice(body.as_bytes()))
            .unwrap()
    }

    #[test]
    fn retry_after_is_a_number_or_a_date_of_the_servers_clock() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (written, expected) in [
            ("0", Some(0)),
            ("120", Some(120)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:51:37 GMT", Some(120)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("-5", None),
            ("soon", None),
            ("", None),
        ] {
            let response = answer(503, &[("retry-after", written), ("date", date)], "");
            let now = super::date(response.headers().get(DATE));
            assert_eq!(now, Some(784_111_777));
            assert_eq!(
                retry_after_s(response.headers(), now),
                expected,
                "{written:?}"
            );
        }
    }

    #[test]
    fn what_the_library_sees_of_retry_after_is_within_bounds() {
        for (method, written, expected) in [
            (Method::POST, Some("0"), Some("1")),
            (Method::POST, Some("7"), Some("7")),
            (Method::POST, Some("9999999"), Some("20")),
            (Method::POST, None, None),
            (Method::POST, Some("soon"), None),
            (Method::GET, Some("0"), Some("60")),
            (Method::GET, Some("7200"), Some("7200")),
            (Method::GET, Some("9999999"), Some("86400")),
            (Method::GET, None, Some("21600")),
        ] {
            let fields: Vec<_> = written
                .iter()
                .map(|value| ("retry-after", *value))
                .collect();
            let Ok(seen) = judge(&method, answer(200, &fields, ""), None) else {
                panic!("a response of success");
            };
            let seen = seen.parts.headers.get(RETRY_AFTER);
            assert_eq!(
                seen.map(|value| value.to_str().unwrap()),
                expected,
                "{method} {written:?}"
            );
        }
    }

    #[test]
    fn only_what_an_acme_server_says_passes() {
        let json = ("content-type", "application/json; charset=utf-8");
        let page = ("content-type", "text/html");
        let nonce = format!(r#"{{"type":"{BAD_NONCE}"}}"#);
        let other = r#"{"type":"urn:ietf:params:acme:error:malformed","detail":"no\nway"}"#;
        for (response, expected) in [
            (answer(200, &[json], "{}"), "passes"),
            (answer(200, &[], ""), "passes"),
            (answer(400, &[json], &nonce), "passes"),
            (answer(200, &[json], "{"), "no JSON"),
            (answer(200, &[page], "<html>"), "text/html"),
            (
                answer(302, &[("location", "http://a.test/")], ""),
                "redirects",
            ),
            (answer(400, &[json], other), "no way"),
            (answer(502, &[page], "<html>"), "status 502"),
            (answer(404, &[json], "[]"), "status 404: it gives no reason"),
        ] {
            let said = match judge(&Method::POST, response, None) {
                Ok(_) => "passes".to_owned(),
                Err(why) => CallError {
                    authority: "ca".into(),
                    url: "https://ca.test/x".to_owned(),
                    why,
                }
                .to_string(),
            };
            assert!(said.contains(expected), "{said} has {expected}");
            if expected != "passes" {
                assert!(said.contains("authority ca") && said.contains("https://ca.test/x"));
            }
        }
    }

    #[test]
    fn plain_http_is_for_directories_on_loopback_only() {
        let limits = Limits::default();
        for (directory, is_fine) in [
            ("https://ca.test/dir", true),
            ("http://127.0.0.1:14000/dir", true),
            ("http://[::1]:14000/dir", true),
            ("http://localhost/dir", true),
            ("http://ca.test/dir", false),
            ("http://127.0.0.1.ca.test/dir", false),
            ("ftp://ca.test/dir", false),
            ("ca.test/dir", false),
            ("", false),
        ] {
            let authority = Authority {
                name: "ca".to_owned(),
                directory: directory.to_owned(),
                ca: None,
                external_account: None,
                profile: None,
            };
            let made = Client::new(&authority, &limits);
            assert_eq!(made.is_ok(), is_fine, "{directory}");
        }
    }
}
