//! What is known of one request from its head to the last byte of its response: its id, and what is
//! logged of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::header::{HOST, REFERER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use nearcast_http_rules::status::Outcome;

use super::check::ClientConnection;
use crate::access_log::{Ending, Entry};
use crate::edge::Worker;
use crate::peer;
use crate::request_id::{RequestId, X_REQUEST_ID};

/// The status that is logged for a request whose client left before there was a response: nginx's
/// number for it.
const CLIENT_LEFT: u16 = 499;

/// One request's id and facts.
pub(super) struct Trail {
    pub(super) id: RequestId,
    worker: Arc<Worker>,
    began: Instant,
    began_ms: u64,
    client: IpAddr,
    tls: Option<&'static str>,
    /// `None` where its head could not be read.
    head: Option<Head>,
    /// Microseconds for which it waited for the origin, plus one; 0 while it has not.
    origin_us: AtomicU64,
    /// It is not logged, or was.
    is_noted: AtomicBool,
}

/// The parts of a head that are logged.
struct Head {
    method: Method,
    target: Uri,
    version: Version,
    host: Option<HeaderValue>,
    referer: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
}

/// What became of a request.
pub(super) struct Result<'a> {
    /// Empty where it has none.
    pub(super) site: &'a str,
    pub(super) is_peer: bool,
    pub(super) outcome: &'a Outcome,
    pub(super) status: u16,
    pub(super) bytes: u64,
    /// `None` where the head came with the end.
    pub(super) first_byte: Option<Duration>,
    pub(super) ending: Ending,
}

impl Trail {
    /// Begins with a request's head. Takes the id out of its fields: what goes to the origin is the
    /// id of this request, whoever chose it, and does not influence what is stored.
    pub(super) fn begin<B>(
        worker: &Arc<Worker>,
        client: &ClientConnection,
        request: &mut http::Request<B>,
    ) -> Arc<Self> {
        let given = take_given_id(worker, client, request.headers_mut());
        let is_logged = worker.log.is_on();
        let field = |name: HeaderName| {
            let value = request.headers().get(name);
            value.filter(|_| is_logged).cloned()
        };
        let head = Head {
            method: request.method().clone(),
            target: request.uri().clone(),
            version: request.version(),
            host: request.headers().get(HOST).cloned(),
            referer: field(REFERER),
            user_agent: field(USER_AGENT),
        };
        let fields = request.headers().iter();
        let fields = fields.map(|(name, value)| (name.as_str(), value.as_bytes()));
        let trusted = &worker.edge.sites.load().trusted_proxies;
        let address = client.seen(trusted, fields).address;
        Self::new(worker, client, address, given, Some(head))
    }

    /// Begins with a head that could not be read.
    pub(super) fn of_refused(worker: &Arc<Worker>, client: &ClientConnection) -> Arc<Self> {
        Self::new(worker, client, client.address(), None, None)
    }

    fn new(
        worker: &Arc<Worker>,
        client: &ClientConnection,
        address: IpAddr,
        given: Option<RequestId>,
        head: Option<Head>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: given.unwrap_or_else(|| worker.log.next_id()),
            worker: worker.clone(),
            began: Instant::now(),
            began_ms: worker.edge.clock.unix_ms(),
            client: address,
            tls: client.tls_version(),
            head,
            origin_us: AtomicU64::new(0),
            is_noted: AtomicBool::new(false),
        })
    }

    pub(super) fn began(&self) -> Instant {
        self.began
    }

    pub(super) fn is_head_request(&self) -> bool {
        self.head
            .as_ref()
            .is_some_and(|head| head.method == Method::HEAD)
    }

    /// Waits for the origin, and adds the time to that of the request.
    pub(super) async fn waiting_for_origin<T>(&self, exchange: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let result = exchange.await;
        let took = began.elapsed().as_micros() as u64;
        let before = self.origin_us.load(Ordering::Relaxed).max(1);
        self.origin_us
            .store(before.saturating_add(took), Ordering::Relaxed);
        result
    }

    /// Health checks are not logged: they would be most of the log of an idle node.
    pub(super) fn forget(&self) {
        self.is_noted.store(true, Ordering::Relaxed);
    }

    /// Logs the request, once.
    pub(super) fn note(&self, result: &Result<'_>) {
        if self.is_noted.swap(true, Ordering::Relaxed) {
            return;
        }
        let head = self.head.as_ref();
        let host = head.and_then(|head| match head.target.authority() {
            Some(authority) => Some(authority.as_str().as_bytes()),
            None => head.host.as_ref().map(HeaderValue::as_bytes),
        });
        let path = head.map(|head| match head.target.path_and_query() {
            Some(path) => path.as_str(),
            // The authority of a CONNECT.
            None => head.target.authority().map_or("", |name| name.as_str()),
        });
        let field = |field: fn(&Head) -> &Option<HeaderValue>| {
            head.and_then(|head| field(head).as_ref())
                .map_or(&b""[..], HeaderValue::as_bytes)
        };
        let total = self.began.elapsed();
        let origin_us = self.origin_us.load(Ordering::Relaxed);
        self.worker.log.note(&Entry {
            id: &self.id,
            began_ms: self.began_ms,
            client: self.client,
            is_peer: result.is_peer,
            host: host.unwrap_or_default(),
            method: head.map_or("", |head| head.method.as_str()),
            path: path.unwrap_or_default(),
            version: head.map_or(Version::HTTP_11, |head| head.version),
            tls: self.tls,
            referer: field(|head| &head.referer),
            user_agent: field(|head| &head.user_agent),
            site: result.site,
            status: result.status,
            bytes: result.bytes,
            outcome: result.outcome,
            first_byte: result.first_byte.unwrap_or(total),
            total,
            origin: origin_us.checked_sub(1).map(Duration::from_micros),
            ending: result.ending,
        });
    }
}

/// The client may leave before there is a response; then nobody has logged the request.
impl Drop for Trail {
    fn drop(&mut self) {
        self.note(&Result {
            site: "",
            is_peer: false,
            outcome: &Outcome::local(""),
            status: CLIENT_LEFT,
            bytes: 0,
            first_byte: None,
            ending: Ending::ClientLeft,
        });
    }
}

/// Takes the id from a request's fields; gives it where the sender is one that may choose it: a
/// node of the cluster, or a trusted proxy.
fn take_given_id(
    worker: &Worker,
    client: &ClientConnection,
    fields: &mut HeaderMap,
) -> Option<RequestId> {
    let given = fields.remove(X_REQUEST_ID)?;
    let is_trusted =
        client.is_proxied() || peer::is_peer(fields, &worker.edge.sites.load().peer_secrets);
    RequestId::given(given.as_bytes()).filter(|_| is_trusted)
}
