//! A small HTTP/1.1 client for requests between nodes and from the command line, with TLS for
//! `https` URLs.
//!
//! Certificates are always verified, against the authority that the fleet file or the command names
//! (see [`crate::trust`]). The edge uses another client for origins. Limits: a time-out for the whole exchange, 64 MiB of
//! response body, one kept connection a host. A request on a kept connection that the other end
//! closes is not repeated: only the caller knows whether it is safe to.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body as _;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::watch;

use crate::config::{Fleet, Secret};
use crate::trust::{self, TlsClient, Trusted};

/// Largest response body.
pub const BODY_BYTES_MAX: usize = 64 << 20;

/// Time for which an idle connection is kept.
const IDLE_KEPT: Duration = Duration::from_secs(8);

/// Kept connections a host: control needs a connection for every node of the fleet.
const IDLE_PER_HOST_MAX: usize = 1;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL is not `http://host[:port]/path` or `https://host[:port]/path`.
    #[error("{0:?} is not a URL of the form http://host:port/path or https://host:port/path")]
    Url(String),
    /// Connecting failed.
    #[error("cannot connect to {authority}: {reason}")]
    Connect {
        /// Host and port.
        authority: String,
        /// The system's error.
        reason: String,
    },
    /// The certificates of the trusted authorities cannot be used.
    #[error("cannot verify {authority}: {reason}")]
    Authorities {
        /// Host and port.
        authority: String,
        /// File and error, with a hint.
        reason: String,
    },
    /// The other side's certificate is not trusted, or it does not speak TLS.
    #[error("no TLS with {authority}: {reason}")]
    Tls {
        /// Host and port.
        authority: String,
        /// Description of the error, with a hint.
        reason: String,
    },
    /// The exchange exceeded the time-out.
    #[error("no whole answer from {authority} within {after:?}")]
    Timeout {
        /// Host and port.
        authority: String,
        /// The limit.
        after: Duration,
    },
    /// The connection broke or the answer was not HTTP.
    #[error("the exchange with {authority} failed: {reason}")]
    Exchange {
        /// Host and port.
        authority: String,
        /// Description of the error.
        reason: String,
    },
    /// The response is larger than the limit.
    #[error("the answer of {authority} is larger than {limit} bytes")]
    TooLarge {
        /// Host and port.
        authority: String,
        /// The limit.
        limit: usize,
    },
}

/// The client of one kind of connector.
pub(crate) type Inner<C> = legacy::Client<C, Full<Bytes>>;

/// A client with kept connections. Clones are cheap and share the connections.
#[derive(Debug, Clone)]
pub struct Client {
    plain: Inner<HttpConnector>,
    tls: Arc<TlsClient>,
}

impl Client {
    /// A client that trusts the certificates of that authority (PEM), or of those of the Web.
    pub fn new(ca: Option<PathBuf>) -> Self {
        Self::with(Trusted::File(ca))
    }

    /// A client that trusts the authority of the fleet file in force (`ca` of `[fleet]`).
    pub fn following(fleet: watch::Receiver<Arc<Fleet>>) -> Self {
        Self::with(Trusted::OfFleet(fleet))
    }

    fn with(trusted: Trusted) -> Self {
        Self {
            plain: build(connector()),
            tls: Arc::new(TlsClient::new(trusted)),
        }
    }

    /// Sends a request with an absolute URI and reads the whole response without trailers. Statuses
    /// of 400 and above are responses, not errors.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn send(
        &self,
        request: Request<Bytes>,
        timeout: Duration,
    ) -> Result<Response<Bytes>, ClientError> {
        let authority = match (request.uri().scheme_str(), request.uri().authority()) {
            (Some("http" | "https"), Some(authority)) => authority.to_string(),
            _ => return Err(ClientError::Url(request.uri().to_string())),
        };
        match tokio::time::timeout(timeout, self.exchange(request, &authority)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ClientError::Timeout {
                authority,
                after: timeout,
            }),
        }
    }

    /// `GET`.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn get(&self, url: &str, timeout: Duration) -> Result<Response<Bytes>, ClientError> {
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = parse_url(url)?;
        self.send(request, timeout).await
    }

    /// `GET` with a bearer token.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn get_with(
        &self,
        url: &str,
        bearer: &Secret,
        timeout: Duration,
    ) -> Result<Response<Bytes>, ClientError> {
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = parse_url(url)?;
        authorize(&mut request, bearer)?;
        self.send(request, timeout).await
    }

    /// `POST` of a JSON body with a bearer token.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn post_json<T: serde::Serialize + ?Sized>(
        &self,
        url: &str,
        bearer: Option<&Secret>,
        body: &T,
        timeout: Duration,
    ) -> Result<Response<Bytes>, ClientError> {
        let uri = parse_url(url)?;
        let text = serde_json::to_vec(body).map_err(|e| ClientError::Exchange {
            authority: authority_of(&uri),
            reason: format!("the body has no JSON form: {e}"),
        })?;
        let mut request = Request::new(Bytes::from(text));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        request
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(bearer) = bearer {
            authorize(&mut request, bearer)?;
        }
        self.send(request, timeout).await
    }

    async fn exchange(
        &self,
        request: Request<Bytes>,
        authority: &str,
    ) -> Result<Response<Bytes>, ClientError> {
        let is_tls = request.uri().scheme_str() == Some("https");
        let request = request.map(Full::new);
        let answered = if is_tls {
            let client =
                self.tls
                    .current(Instant::now())
                    .map_err(|error| ClientError::Authorities {
                        authority: authority.to_owned(),
                        reason: format!("{error}; {}", trust::FILE_HINT),
                    })?;
            client.request(request).await
        } else {
            self.plain.request(request).await
        };
        let response = answered.map_err(|e| {
            let authority = authority.to_owned();
            if let Some(reason) = trust::tls_problem(&e) {
                return ClientError::Tls { authority, reason };
            }
            let reason = root_cause(&e);
            if e.is_connect() {
                ClientError::Connect { authority, reason }
            } else {
                ClientError::Exchange { authority, reason }
            }
        })?;

        let (head, body) = response.into_parts();
        if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
            return Err(ClientError::TooLarge {
                authority: authority.to_owned(),
                limit: BODY_BYTES_MAX,
            });
        }

        let body = Limited::new(body, BODY_BYTES_MAX)
            .collect()
            .await
            .map_err(|e| {
                let authority = authority.to_owned();
                if e.is::<LengthLimitError>() {
                    ClientError::TooLarge {
                        authority,
                        limit: BODY_BYTES_MAX,
                    }
                } else {
                    ClientError::Exchange {
                        authority,
                        reason: root_cause(e.as_ref()),
                    }
                }
            })?;

        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

/// Connects by TCP, for one of the two clients.
pub(crate) fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector
}

/// A client with its limits of kept connections.
pub(crate) fn build<C>(connector: C) -> Inner<C>
where
    C: legacy::connect::Connect + Clone,
{
    legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_KEPT)
        .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
        .build(connector)
}

fn parse_url(url: &str) -> Result<Uri, ClientError> {
    url.parse().map_err(|_| ClientError::Url(url.to_owned()))
}

fn authority_of(uri: &Uri) -> String {
    uri.authority()
        .map_or_else(String::new, ToString::to_string)
}

fn authorize(request: &mut Request<Bytes>, bearer: &Secret) -> Result<(), ClientError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", bearer.0)).map_err(|_| {
        ClientError::Exchange {
            authority: authority_of(request.uri()),
            reason: "the token or node key has characters that an HTTP field cannot carry".into(),
        }
    })?;
    value.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, value);
    Ok(())
}

/// The message of the innermost error; the outer ones only say that something failed.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    /// A server that takes connections and answers each request with the same bytes; gives its URL.
    async fn answering(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/x", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        url
    }

    #[tokio::test]
    async fn a_status_of_500_is_a_response() {
        let url = answering(b"HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\nwhy?").await;
        let client = Client::new(None);
        for _ in 0..3 {
            let response = client
                .post_json(&url, Some(&Secret("k".into())), &[1, 2], SOON)
                .await
                .expect("answered");
            assert_eq!(
                (response.status().as_u16(), &response.body()[..]),
                (500, &b"why?"[..])
            );
        }
    }

    #[tokio::test]
    async fn errors_say_which_kind_and_where() {
        let unused = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let closed = format!("http://{}/", unused.local_addr().expect("bound"));
        drop(unused);
        let not_http = answering(b"SSH-2.0-x\r\n").await;
        let client = Client::new(None);
        for (url, words) in [
            (closed.as_str(), "cannot connect to 127.0.0.1:"),
            (not_http.as_str(), "the exchange with 127.0.0.1:"),
            ("ftp://127.0.0.1/", "is not a URL of the form"),
            ("no url", "is not a URL of the form"),
            ("/path", "is not a URL of the form"),
        ] {
            let error = client.get(url, SOON).await.expect_err(url).to_string();
            assert!(error.contains(words), "{url}: {error}");
        }
    }

    #[tokio::test]
    async fn a_slow_body_ends_at_the_limit_of_time() {
        let url = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
        let error = Client::new(None)
            .get(&url, Duration::from_millis(50))
            .await
            .expect_err("never whole");
        assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_refused_by_its_length() {
        let url = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 67108865\r\n\r\n").await;
        let outcome = Client::new(None).get(&url, SOON).await;
        assert!(
            matches!(outcome, Err(ClientError::TooLarge { .. })),
            "{outcome:?}"
        );
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_refused_while_it_comes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/x", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            assert!(stream.read(&mut [0; 4096]).await.expect("a request") > 0);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\n\r\n")
                .await
                .expect("taken");
            while stream.write_all(&[b'x'; 1 << 16]).await.is_ok() {}
        });
        let outcome = Client::new(None).get(&url, 4 * SOON).await;
        assert!(
            matches!(outcome, Err(ClientError::TooLarge { .. })),
            "{:?}",
            outcome.map(|r| r.body().len())
        );
    }
}
