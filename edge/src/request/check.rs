//! The checks of a request before the cache is involved: its host, method, target, and whether it
//! has been here before.
//!
//! Follows RFC 9110 sections 7.1 (target), 7.2 (Host) and 7.6.2 (Max-Forwards), RFC 9112 section
//! 3.2 and RFC 8586 (CDN-Loop).

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{HOST, MAX_FORWARDS};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use nearcast_http_rules::forward::{self, Loop, MaxForwards};
use nearcast_http_rules::https;
use nearcast_http_rules::key::{self, Host, MethodClass};
use nearcast_http_rules::proxies::{self, Seen};
use nearcast_http_rules::request_fields;
use nearcast_http_rules::status::ProxyError;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use super::trail::Trail;
use crate::challenges;
use crate::edge::{Edge, Worker};
use crate::interim::InterimSender;
use crate::origin::Target;
use crate::peer::{self, PEER, is_peer};
use crate::proxies::TrustedProxies;
use crate::request_body::RequestBody;
use crate::serve::handshake::TlsInfo;
use crate::site::{Site, Sites};

/// Hosts that a worker remembers beside those of its connections.
const LAST_HOSTS_MAX: usize = 32;
/// The path of health checks, under any host. The fleet file may name another one.
const HEALTH_PATH: &str = "/.nearcast/health";

/// The result of a health check, if a request is one; an error is the reason why the node accepts no
/// clients. The path that the fleet file names is an ordinary one while the node accepts clients,
/// and always for other nodes of its cluster, which ask on behalf of theirs.
pub(super) fn check_health<B>(
    edge: &Edge,
    request: &http::Request<B>,
) -> Option<Result<(), &'static str>> {
    let refusal = edge.lifecycle.refusal();
    if is_health_path(request) {
        return Some(refusal.map_or(Ok(()), Err));
    }
    let is_refused = matches!(*request.method(), Method::GET | Method::HEAD)
        && request
            .uri()
            .path_and_query()
            .is_some_and(|target| edge.lifecycle.refuses(target.as_str()))
        && !request.headers().contains_key(PEER);
    refusal.filter(|_| is_refused).map(Err)
}

pub(super) fn is_health_path<B>(request: &http::Request<B>) -> bool {
    request.uri().path() == HEALTH_PATH
}

/// Whether the node itself may answer a request for this path, with its query: a health check, or a
/// challenge of an authority.
pub(super) fn may_be_own(edge: &Edge, path: &str) -> bool {
    path == HEALTH_PATH || edge.lifecycle.refuses(path) || path.starts_with(challenges::PATH)
}

/// The answer to an authority that asks whether a host is served here (RFC 8555 section 8.3), if a
/// request asks for an open challenge. Other tokens are the origin's, which may have a client of its
/// own.
pub(super) fn check_challenge<B>(edge: &Edge, request: &http::Request<B>) -> Option<String> {
    let token = request.uri().path().strip_prefix(challenges::PATH)?;
    if request.method() != Method::GET {
        return None;
    }
    let host = match request.uri().host() {
        Some(host) => host,
        None => request.headers().get(HOST)?.to_str().ok()?,
    };
    edge.challenges.find(host, token)
}

/// The connection on which a client's requests come.
#[derive(Clone)]
pub(crate) struct ClientConnection {
    address: IpAddr,
    scheme: &'static str,
    /// The address is a trusted proxy's, and each request may name its client.
    is_proxy: bool,
    tls: Option<Arc<TlsInfo>>,
    /// What its responses say of HTTP/3, on a connection of another version.
    alternative: Option<Arc<HeaderValue>>,
    last_host: Arc<Mutex<LastHost>>,
}

impl ClientConnection {
    pub(crate) fn new(address: IpAddr, scheme: &'static str) -> Self {
        Self {
            address,
            scheme,
            is_proxy: false,
            tls: None,
            alternative: None,
            last_host: Arc::default(),
        }
    }

    /// The connection of a trusted proxy, whose requests name their clients.
    pub(crate) fn through_proxy(self) -> Self {
        Self {
            is_proxy: true,
            ..self
        }
    }

    /// The same with TLS.
    pub(crate) fn with_tls(self, tls: TlsInfo) -> Self {
        Self {
            tls: Some(Arc::new(tls)),
            ..self
        }
    }

    /// The same, where its client may come to that port by HTTP/3. A proxy may not: its clients reach
    /// it, and not this node.
    pub(crate) fn with_alternative(self, http3_port: Option<u16>) -> Self {
        let port = http3_port.filter(|_| !self.is_proxy);
        Self {
            alternative: port.map(|port| Arc::new(https::alternative(port))),
            ..self
        }
    }

    /// `Alt-Svc` of its responses. A node that ends sends none: clients would begin connections that
    /// end with it. What they know of HTTP/3 stays true of the nodes that they are steered to then.
    pub(crate) fn alternative(&self, edge: &Edge) -> Option<&HeaderValue> {
        let alternative = self.alternative.as_deref();
        alternative.filter(|_| !edge.lifecycle.is_ending())
    }

    /// `None` where the connection has no TLS.
    pub(crate) fn tls(&self) -> Option<&TlsInfo> {
        self.tls.as_deref()
    }

    /// The address of the connection's other end: of the client, or of a trusted proxy. The client
    /// of one request is in [`ClientConnection::seen`].
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// The version of TLS, as the log names it.
    pub(super) fn tls_version(&self) -> Option<&'static str> {
        self.tls.as_ref().map(|tls| tls.version)
    }

    /// Whether a trusted proxy sends these requests.
    pub(crate) fn is_proxied(&self) -> bool {
        self.is_proxy
    }

    /// The client of a request on this connection: by the fields of the request where a trusted
    /// proxy sent it.
    pub(crate) fn seen<'a>(
        &self,
        trusted: &TrustedProxies,
        fields: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Seen {
        let connection = (self.address, self.scheme);
        match self.is_proxy {
            true => proxies::stated(connection, fields, |address| trusted.contains(address)),
            false => Seen {
                address: self.address,
                scheme: self.scheme,
                is_malformed: false,
            },
        }
    }

    /// `http` or `https`.
    pub(crate) fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// The site of the connection's last request, if this one names the same host, or that of a
    /// host which another connection of the worker named lately.
    pub(super) fn with_last_host<T>(
        &self,
        worker: &Worker,
        host: &str,
        sites: &Arc<Sites>,
        look: impl FnOnce(&KnownHost) -> Option<T>,
    ) -> Option<T> {
        let mut last_host = self.last_host.lock();
        if let Some(known) = last_host.known(host, sites) {
            return look(known);
        }
        let known = worker.last_hosts.lock().find(host, sites)?;
        if self.covers(&known.host) {
            return look(last_host.keep(known));
        }
        None
    }

    /// Whether requests for a host may come on this connection.
    fn covers(&self, host: &Host) -> bool {
        self.tls().is_none_or(|tls| tls.covers(host.as_str()))
    }
}

/// A request that has passed the checks.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) worker: Arc<Worker>,
    pub(super) site: Arc<Site>,
    pub(super) scheme: &'static str,
    /// The cache key, and its hash.
    pub(super) url: Arc<str>,
    pub(super) hash: u128,
    /// The version of HTTP in which the client sent it.
    pub(super) version: Version,
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) host: HeaderValue,
    pub(super) fields: Arc<HeaderMap>,
    /// Those of its fields that the site keys by.
    pub(super) keyed: Arc<HeaderMap>,
    pub(super) loop_id: HeaderValue,
    pub(super) address: IpAddr,
    /// A node of the same cluster sent it.
    pub(super) is_peer: bool,
    pub(super) began_ms: u64,
    /// Journal revision that was folded when the request came.
    pub(super) revision: u64,
    /// Where interim responses go; `None` where the client gets none.
    pub(super) interim: Option<InterimSender>,
    pub(super) trail: Arc<Trail>,
}

impl Request {
    /// The site's `Strict-Transport-Security`, where the client asked by `https` (RFC 6797 section
    /// 7.2).
    pub(super) fn transport_security(&self) -> Option<&HeaderValue> {
        let is_due = self.scheme == "https" && !self.is_peer;
        self.site.hsts.as_ref().filter(|_| is_due)
    }

    /// The origin to which the request goes where it is forwarded.
    pub(super) fn target(&self) -> &Arc<Target> {
        self.site
            .origins
            .pick(tokio::time::Instant::now(), self.hash)
    }
}

/// Why a request is not handled further.
pub(super) enum Rejection {
    /// It gets this error.
    Refused {
        status: StatusCode,
        error: ProxyError,
        /// The reason for people.
        text: &'static str,
    },
    /// Its `Max-Forwards` makes this node the one that answers it.
    LastHop,
}

impl Rejection {
    fn new(status: StatusCode, error: ProxyError, text: &'static str) -> Self {
        Self::Refused {
            status,
            error,
            text,
        }
    }

    fn malformed(text: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ProxyError::HttpRequestError, text)
    }
}

/// Checks a request, and gives it with its body.
pub(super) fn check(
    worker: &Arc<Worker>,
    client: &ClientConnection,
    trail: &Arc<Trail>,
    interim: Option<InterimSender>,
    request: http::Request<Option<RequestBody>>,
) -> Result<(Request, Option<RequestBody>), Rejection> {
    let (mut head, body) = request.into_parts();
    if key::method_class(&head.method) == MethodClass::Refused {
        return Err(Rejection::new(
            StatusCode::NOT_IMPLEMENTED,
            ProxyError::HttpRequestDenied,
            "this method is not served here\n",
        ));
    }

    let sites = worker.edge.sites.load();
    let mut last_host = client.last_host.lock();
    let KnownHost {
        host,
        host_field,
        site,
        ..
    } = find_host(worker, client, &head, &mut last_host, &sites)?;
    let is_peer = is_peer(&head.headers, &sites.peer_secrets);
    let seen = seen_by(worker, client, &sites, &head, is_peer);
    let (path, url) = find_target(&head, seen.scheme, host)?;

    let loop_id = sites
        .loop_id
        .clone()
        .unwrap_or(HeaderValue::from_static("nearcast"));
    if forward::find_loop(&head.headers, loop_id.as_bytes()) != Loop::Clear {
        return Err(Rejection::new(
            StatusCode::LOOP_DETECTED,
            ProxyError::ProxyLoopDetected,
            "the request has come here before\n",
        ));
    }
    match forward::max_forwards(&head.method, &head.headers) {
        MaxForwards::Unlimited => {}
        MaxForwards::Left(left) => drop(head.headers.insert(MAX_FORWARDS, HeaderValue::from(left))),
        MaxForwards::Here => return Err(Rejection::LastHop),
    }

    let request = Request {
        worker: worker.clone(),
        site: site.clone(),
        scheme: seen.scheme,
        hash: worker.edge.index.hash(&url),
        url,
        version: head.version,
        method: head.method,
        path,
        host: host_field.clone(),
        keyed: match site.cache.key_fields.is_empty() {
            true => worker.no_fields.clone(),
            false => Arc::new(request_fields::keyed(&head.headers, &site.cache)),
        },
        is_peer,
        fields: Arc::new(head.headers),
        loop_id,
        address: seen.address,
        began_ms: worker.edge.clock.unix_ms(),
        revision: worker.edge.generations.revision(),
        interim,
        trail: trail.clone(),
    };
    Ok((request, body))
}

/// The client of a request. A node of the cluster states the scheme of the URL that it asks for.
fn seen_by(
    worker: &Worker,
    client: &ClientConnection,
    sites: &Sites,
    head: &Parts,
    is_peer: bool,
) -> Seen {
    if is_peer {
        return Seen {
            address: client.address,
            scheme: peer::scheme(&head.headers),
            is_malformed: false,
        };
    }
    let fields = head.headers.iter();
    let fields = fields.map(|(name, value)| (name.as_str(), value.as_bytes()));
    let seen = client.seen(&sites.trusted_proxies, fields);
    if seen.is_malformed {
        worker.edge.proxy_counters.note_malformed();
    }
    seen
}

/// The host that a request names, and its site.
fn find_host<'a>(
    worker: &Worker,
    client: &ClientConnection,
    head: &Parts,
    last_host: &'a mut LastHost,
    sites: &Arc<Sites>,
) -> Result<&'a KnownHost, Rejection> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => {
            return Err(Rejection::malformed(
                "the request has more than one Host field\n",
            ));
        }
        (Some(host), None) => host.to_str().ok(),
        (None, _) if head.version == Version::HTTP_11 => {
            return Err(Rejection::malformed("the request has no Host field\n"));
        }
        (None, _) => Some(""),
    };
    // The authority of an absolute target is used, but does not excuse a malformed `Host` (RFC 9112
    // section 3.2).
    let is_malformed = |host: &str| !host.is_empty() && Host::parse(host).is_err();
    if head.uri.authority().is_some() && host.is_none_or(is_malformed) {
        return Err(Rejection::malformed("the Host is malformed\n"));
    }
    let host = match head.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => host,
    };

    if host.is_some_and(|host| last_host.known(host, sites).is_some()) {
        return Ok(last_host.0.as_ref().expect("it was just found"));
    }
    // The port is the one by which the client reached this node, and no part of the resource's
    // name.
    let named = host.and_then(|named| Some((named, Host::parse(named).ok()?)));
    let Some((named, host)) = named else {
        return Err(Rejection::malformed("the Host is malformed\n"));
    };
    let Some(site) = sites.of_host(&host) else {
        return Err(Rejection::new(
            StatusCode::MISDIRECTED_REQUEST,
            ProxyError::DestinationNotFound,
            "no site of this network has that host\n",
        ));
    };
    // Browsers use a connection for other hosts that its certificate covers, and repeat a request on
    // another one after a 421 (RFC 9110 sections 7.4 and 15.5.20).
    if !client.covers(&host) {
        return Err(Rejection::new(
            StatusCode::MISDIRECTED_REQUEST,
            ProxyError::HttpRequestDenied,
            "the certificate of this connection does not cover that host\n",
        ));
    }
    let known = Arc::new(KnownHost {
        named: named.into(),
        sites: sites.clone(),
        host_field: HeaderValue::try_from(host.as_str()).unwrap_or(HeaderValue::from_static("")),
        host,
        site: site.clone(),
    });
    worker.last_hosts.lock().keep(&known);
    Ok(last_host.keep(known))
}

/// The path of a request's target, and its cache key.
fn find_target(
    head: &Parts,
    scheme: &str,
    host: &Host,
) -> Result<(PathAndQuery, Arc<str>), Rejection> {
    let path = match head.uri.path_and_query() {
        None => PathAndQuery::from_static("/"),
        // An absolute target may have a query after an empty path, which means `/` (RFC 9110
        // section 4.2.3).
        Some(path) if path.as_str().starts_with('?') => path
            .to_string()
            .parse()
            .map_err(|_| Rejection::malformed("the request's target is malformed\n"))?,
        Some(path) => path.clone(),
    };
    // `OPTIONS *` asks about the host, and is never answered from the store.
    let key_path = match path.as_str() {
        "*" if head.method == Method::OPTIONS => "/*",
        path => path,
    };
    let mut url = String::new();
    let written = host.write_url(scheme, key_path, &mut url);
    written.map_err(|error| {
        Rejection::new(
            error.status(),
            ProxyError::HttpRequestError,
            "the request's target is malformed or too long\n",
        )
    })?;
    Ok((path, url.into()))
}

/// The host of a connection's last request and its site: the next request nearly always names the
/// same host.
#[derive(Default)]
struct LastHost(Option<Arc<KnownHost>>);

/// Hosts that clients named last on any connection of a worker, so that the first request of a
/// connection finds its site as fast as the next ones. Those of one set of sites: no other set is
/// kept in memory by it.
#[derive(Default)]
pub(crate) struct LastHosts([Option<Arc<KnownHost>>; LAST_HOSTS_MAX]);

/// A host that a client named, and its site.
pub(super) struct KnownHost {
    /// As the client wrote it.
    named: Box<str>,
    /// The sites in which it was looked up.
    sites: Arc<Sites>,
    /// In canonical form.
    pub(super) host: Host,
    host_field: HeaderValue,
    pub(super) site: Arc<Site>,
}

impl LastHost {
    fn known(&self, named: &str, sites: &Arc<Sites>) -> Option<&KnownHost> {
        self.0.as_deref().filter(|known| known.is(named, sites))
    }

    fn keep(&mut self, known: Arc<KnownHost>) -> &KnownHost {
        self.0.insert(known)
    }
}

impl KnownHost {
    fn is(&self, named: &str, sites: &Arc<Sites>) -> bool {
        *self.named == *named && Arc::ptr_eq(&self.sites, sites)
    }
}

impl LastHosts {
    /// The only place where a host may be kept. Clients may choose names that share it: then they
    /// have no more than an ordinary look-up.
    fn place(named: &str) -> usize {
        xxh3_64(named.as_bytes()) as usize % LAST_HOSTS_MAX
    }

    fn find(&self, named: &str, sites: &Arc<Sites>) -> Option<Arc<KnownHost>> {
        let known = self.0[Self::place(named)].as_ref();
        known.filter(|known| known.is(named, sites)).cloned()
    }

    fn keep(&mut self, known: &Arc<KnownHost>) {
        let is_of_others = |kept: &Arc<KnownHost>| !Arc::ptr_eq(&kept.sites, &known.sites);
        if self.0.iter().flatten().any(is_of_others) {
            *self = Self::default();
        }
        self.0[Self::place(&known.named)] = Some(known.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_looked_up_again_when_the_sites_have_changed() {
        let metrics = crate::metrics::Metrics::new(1, "ams");
        let sites = [Arc::new(Sites::default()), Arc::new(Sites::default())];
        let site = Arc::new(Site {
            name: "www".into(),
            origins: crate::origin::SiteOrigins::single(Target::peer(([127, 0, 0, 1], 80).into())),
            origin_host: None,
            cache: nearcast_fleet::config::CachePolicy::default(),
            compression: crate::compress::SiteCompression::new(
                nearcast_fleet::config::CompressionPolicy::default(),
            ),
            purge: nearcast_fleet::config::PurgePolicy::default(),
            redirects_to_https: false,
            hsts: None,
            counters: metrics.site("www"),
            warned_ms: std::sync::atomic::AtomicU64::new(0),
        });
        let (mut last, mut of_worker) = (LastHost::default(), LastHosts::default());
        let known = |sites: &Arc<Sites>, named: &str| {
            Arc::new(KnownHost {
                named: named.into(),
                sites: sites.clone(),
                host: Host::parse("a.test").expect("a host"),
                host_field: HeaderValue::from_static("a.test"),
                site: site.clone(),
            })
        };
        let first = known(&sites[0], "A.test:80");
        of_worker.keep(&first);
        last.keep(first);
        for (named, of, is_known) in [
            ("A.test:80", 0, true),
            ("a.test", 0, false),
            ("A.test:80", 1, false),
        ] {
            assert_eq!(
                last.known(named, &sites[of]).is_some(),
                is_known,
                "{named} {of}"
            );
            assert_eq!(
                of_worker.find(named, &sites[of]).is_some(),
                is_known,
                "{named} {of}"
            );
        }

        of_worker.keep(&known(&sites[1], "b.test"));
        assert!(of_worker.find("A.test:80", &sites[0]).is_none());
        drop(last);
        assert_eq!(Arc::strong_count(&sites[0]), 1, "old sites are not kept");
    }
}
