//! Orders at a small server that does what a test says: advice about renewals, which Pebble does not
//! give, lies, stalls, limits, and several authorities.

mod support;

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nearcast_acme::{Authority, ChallengeKind, Event, Limits};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa,
    KeyPair,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use serde_json::{Value, json};
use support::{Running, ServerFiles, authority, limits, until, wanted};
use time::OffsetDateTime;
use tokio::net::TcpListener;

const DNS: &[ChallengeKind] = &[ChallengeKind::Dns01];
const PROBLEM: &str = "urn:ietf:params:acme:error:";
const DAY: i64 = 86_400;

type Body = BoxBody<Bytes, Infallible>;

/// What a test may change.
#[derive(Default)]
struct Script {
    /// What is answered to requests for a resource, rather than what is usual.
    answers: HashMap<&'static str, Answer>,
    signs: Sign,
    /// Whether challenges fail.
    refuses_challenges: bool,
    /// Whether challenges stay open.
    validates_never: bool,
    /// Advice by number of the certificate: begin and end as seconds from now, and a page.
    advice: HashMap<usize, (i64, i64, Option<&'static str>)>,
    /// Refuses orders that replace another certificate.
    all_are_replaced: bool,
    /// What its clock is ahead.
    ahead_s: i64,
    /// Name and token in authorizations, rather than what is usual.
    authorizes: Option<&'static str>,
    token: Option<&'static str>,

    /// Requests for resources, with their content.
    log: Vec<(String, Value)>,
    orders: Vec<Order>,
    certificates: Vec<String>,
    connections: usize,
}

#[derive(Clone, Default)]
enum Answer {
    #[default]
    Nothing,
    Says(u16, Vec<(&'static str, String)>, String),
    Stalls,
    Trickles,
    Closes,
    TooMuch,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Sign {
    #[default]
    AsOrdered,
    AnotherKey,
    AnotherName,
    Nothing,
    LongChain,
    NotValidYet,
    Expired,
    WithAKey,
}

struct Order {
    names: Vec<String>,
    status: &'static str,
    challenged: Vec<bool>,
    certificate: Option<usize>,
}

impl Script {
    fn requests(&self, resource: &str) -> Vec<Value> {
        let of_resource = self.log.iter().filter(|(name, _)| name == resource);
        of_resource.map(|(_, content)| content.clone()).collect()
    }
}

/// A running server.
struct Server {
    files: ServerFiles,
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
}

impl Server {
    async fn start() -> Self {
        Self::start_with(ServerFiles::make()).await
    }

    async fn start_with(files: ServerFiles) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let chain = CertificateDer::pem_file_iter(files.cert()).unwrap();
        let key = PrivateKeyDer::from_pem_file(files.key()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.map(Result::unwrap).collect(), key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let script: Arc<Mutex<Script>> = Arc::default();
        let issuer = Arc::new(issuer());

        let shared = script.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                shared.lock().connections += 1;
                let (acceptor, script, issuer) = (acceptor.clone(), shared.clone(), issuer.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(move |request| {
                        answer(request, address, script.clone(), issuer.clone())
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            files,
            address,
            script,
        }
    }

    fn authority(&self, name: &str) -> Authority {
        authority(
            name,
            format!("https://{}/dir", self.address),
            self.files.ca(),
        )
    }

    fn orders(&self) -> usize {
        self.script.lock().requests("order").len()
    }

    /// Answers requests for a resource otherwise.
    fn says(
        &self,
        resource: &'static str,
        status: u16,
        fields: &[(&'static str, &str)],
        body: &str,
    ) {
        let fields = fields
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        let answer = Answer::Says(status, fields.collect(), body.to_owned());
        self.script.lock().answers.insert(resource, answer);
    }
}

fn issuer() -> CertifiedIssuer<'static, KeyPair> {
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap()
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn at(unix_s: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(unix_s).unwrap()
}

fn base64url(text: &str) -> Vec<u8> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for letter in text.bytes() {
        let value = alphabet.iter().position(|a| *a == letter).unwrap();
        bits = bits << 6 | value as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

fn whole(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed()
}

async fn answer(
    request: Request<Incoming>,
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    issuer: Arc<CertifiedIssuer<'static, KeyPair>>,
) -> Result<Response<Body>, std::io::Error> {
    let path: Vec<String> = request
        .uri()
        .path()
        .split('/')
        .skip(1)
        .map(str::to_owned)
        .collect();
    let resource = path[0].clone();
    let method = request.method().clone();
    let body = request
        .into_body()
        .collect()
        .await
        .map_err(std::io::Error::other)?
        .to_bytes();
    let content = serde_json::from_slice::<Value>(&body)
        .ok()
        .and_then(|signed| {
            let payload = base64url(signed["payload"].as_str()?);
            serde_json::from_slice::<Value>(&payload).ok()
        });
    let content = content.unwrap_or(Value::Null);

    let special = {
        let mut script = script.lock();
        script.log.push((resource.clone(), content.clone()));
        script
            .answers
            .get(resource.as_str())
            .cloned()
            .unwrap_or_default()
    };
    let mut response = match special {
        Answer::Nothing => {
            let mut script = script.lock();
            usual(&mut script, &path, &method, &content, address, &issuer)
        }
        Answer::Says(status, fields, body) => {
            let mut response = Response::builder().status(status);
            for (name, value) in fields {
                response = response.header(name, value);
            }
            response.body(whole(body)).unwrap()
        }
        Answer::Stalls => std::future::pending().await,
        Answer::Closes => return Err(std::io::Error::other("closed")),
        Answer::Trickles => {
            let bytes = stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(200)).await;
                Some((Ok(Frame::data(Bytes::from_static(b" "))), ()))
            });
            Response::new(StreamBody::new(bytes).boxed())
        }
        Answer::TooMuch => Response::new(whole(vec![b' '; 2 << 20])),
    };
    let date = jiff::Timestamp::from_second(now() + script.lock().ahead_s).unwrap();
    let date = date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    response.headers_mut().insert("date", date.parse().unwrap());
    if !response.headers().contains_key("content-type") {
        response
            .headers_mut()
            .insert("content-type", "application/json".parse().unwrap());
    }
    response
        .headers_mut()
        .insert("replay-nonce", "bm9uY2U".parse().unwrap());
    Ok(response)
}

fn usual(
    script: &mut Script,
    path: &[String],
    method: &Method,
    content: &Value,
    address: SocketAddr,
    issuer: &CertifiedIssuer<'static, KeyPair>,
) -> Response<Body> {
    let url = |path: String| format!("https://{address}/{path}");
    let number = |n: usize| path.get(n).and_then(|part| part.parse::<usize>().ok());
    let said = |status: u16, value: Value| {
        Response::builder()
            .status(status)
            .body(whole(value.to_string()))
            .unwrap()
    };
    match path[0].as_str() {
        "dir" => said(
            200,
            json!({
                "newNonce": url("nonce".into()), "newAccount": url("account".into()),
                "newOrder": url("order".into()), "renewalInfo": url("advice".into()),
            }),
        ),
        "nonce" => Response::new(whole("")),
        "account" => {
            let mut response = said(201, json!({"status": "valid"}));
            let location = url("account/1".into()).parse().unwrap();
            response.headers_mut().insert("location", location);
            response
        }
        "order" if !content["replaces"].is_null() && script.all_are_replaced => said(
            409,
            json!({"type": format!("{PROBLEM}alreadyReplaced"), "detail": "it was replaced"}),
        ),
        "order" => {
            let n = script.orders.len();
            let names = content["identifiers"].as_array().unwrap().iter();
            let names: Vec<_> = names
                .map(|name| name["value"].as_str().unwrap().to_owned())
                .collect();
            script.orders.push(Order {
                challenged: vec![false; names.len()],
                names,
                status: "pending",
                certificate: None,
            });
            let mut value = order(script, n, &url);
            value["replaces"] = content["replaces"].clone();
            let mut response = said(201, value);
            let location = url(format!("state/{n}")).parse().unwrap();
            response.headers_mut().insert("location", location);
            response
        }
        "state" => said(200, order(script, number(1).unwrap(), &url)),
        "authorization" | "challenge" => {
            let (n, m) = (number(1).unwrap(), number(2).unwrap());
            let is_refused = script.refuses_challenges;
            let validates = !script.validates_never;
            let name = script.authorizes.map(str::to_owned);
            let token = script.token.unwrap_or("dG9rZW4");
            let order = &mut script.orders[n];
            if path[0] == "challenge" && validates {
                order.challenged[m] = true;
                order.status = match is_refused {
                    true => "invalid",
                    false if order.challenged.iter().all(|done| *done) => "ready",
                    false => "pending",
                };
            }
            let status = match order.challenged[m] {
                false => "pending",
                true if is_refused => "invalid",
                true => "valid",
            };
            let mut challenge = json!({
                "type": "dns-01", "url": url(format!("challenge/{n}/{m}")),
                "token": token, "status": status,
            });
            if status == "invalid" {
                challenge["error"] = json!({
                    "type": format!("{PROBLEM}unauthorized"), "detail": "Incorrect TXT record",
                });
            }
            if path[0] == "challenge" {
                challenge["error"] = Value::Null;
                return said(200, challenge);
            }
            let wanted = order.names[m].clone();
            let name = name.unwrap_or(wanted);
            let (host, is_wildcard) = match name.strip_prefix("*.") {
                Some(host) => (host, true),
                None => (name.as_str(), false),
            };
            let status = match content["status"].as_str() {
                Some("deactivated") => "deactivated",
                _ => status,
            };
            said(
                200,
                json!({
                    "identifier": {"type": "dns", "value": host}, "wildcard": is_wildcard,
                    "status": status, "challenges": [challenge],
                }),
            )
        }
        "finalize" => {
            let n = number(1).unwrap();
            let csr = base64url(content["csr"].as_str().unwrap());
            let chain = sign(script.signs, &csr, issuer);
            script.certificates.push(chain);
            script.orders[n].certificate = Some(script.certificates.len() - 1);
            script.orders[n].status = "valid";
            said(200, order(script, n, &url))
        }
        "certificate" => {
            let chain = script.certificates[number(1).unwrap()].clone();
            Response::builder()
                .header("content-type", "application/pem-certificate-chain")
                .body(whole(chain))
                .unwrap()
        }
        "advice" if *method == Method::GET => {
            // Certificates are told apart by their serial numbers.
            let n = script
                .certificates
                .iter()
                .position(|chain| path[1] == id(chain));
            let (start, end, page) = match n.and_then(|n| script.advice.get(&n)) {
                Some(advice) => *advice,
                None => return said(404, json!({"detail": "no such certificate"})),
            };
            let time = |s: i64| jiff::Timestamp::from_second(now() + s).unwrap().to_string();
            let mut advice = json!({"suggestedWindow": {"start": time(start), "end": time(end)}});
            if let Some(page) = page {
                advice["explanationURL"] = page.into();
            }
            let mut response = said(200, advice);
            response
                .headers_mut()
                .insert("retry-after", "21600".parse().unwrap());
            response
        }
        _ => said(404, json!({"detail": "no such resource"})),
    }
}

fn id(chain: &str) -> String {
    let Ok(leaf) = CertificateDer::from_pem_slice(chain.as_bytes()) else {
        return String::new();
    };
    instant_acme::CertificateIdentifier::try_from(&leaf).map_or(String::new(), |id| id.to_string())
}

fn order(script: &Script, n: usize, url: &dyn Fn(String) -> String) -> Value {
    let order = &script.orders[n];
    let authorizations: Vec<_> = (0..order.names.len())
        .map(|m| url(format!("authorization/{n}/{m}")))
        .collect();
    let certificate = order.certificate.map(|n| url(format!("certificate/{n}")));
    json!({
        "status": order.status, "authorizations": authorizations,
        "finalize": url(format!("finalize/{n}")), "certificate": certificate,
    })
}

fn sign(how: Sign, csr: &[u8], issuer: &CertifiedIssuer<'static, KeyPair>) -> String {
    let csr = CertificateSigningRequestDer::from(csr.to_vec());
    let mut request = CertificateSigningRequestParams::from_der(&csr).unwrap();
    let wanted = &mut request.params;
    wanted.use_authority_key_identifier_extension = true;
    let (from, until) = match how {
        Sign::NotValidYet => (DAY, 91 * DAY),
        Sign::Expired => (-91 * DAY, -DAY),
        _ => (-3600, 90 * DAY),
    };
    (wanted.not_before, wanted.not_after) = (at(now() + from), at(now() + until));
    if how == Sign::AnotherName {
        wanted.subject_alt_names = CertificateParams::new(["other.test".to_owned()])
            .unwrap()
            .subject_alt_names;
    }
    let leaf = match how {
        Sign::AnotherKey => {
            let key = KeyPair::generate().unwrap();
            request.params.signed_by(&key, issuer).unwrap()
        }
        _ => request.signed_by(issuer).unwrap(),
    };
    let chain = leaf.pem() + &issuer.pem();
    match how {
        Sign::Nothing => "\n".to_owned(),
        Sign::LongChain => chain + &issuer.pem().repeat(20),
        Sign::WithAKey => KeyPair::generate().unwrap().serialize_pem() + &chain,
        _ => chain,
    }
}

fn want(running: &Running, hosts: &[&str], authorities: Vec<Authority>) {
    running
        .keeper
        .want(vec![wanted(hosts, DNS)], authorities, Vec::new());
}

/// Orders once more; the reason why that fails.
async fn fails(running: &Running, name: &str) -> String {
    let before = running.failures(name).len();
    until("no order is under way", || {
        (!running.status(name).is_ordering).then_some(())
    })
    .await;
    assert!(running.keeper.renew_now(name).await);
    running.failed(name, before + 1).await
}

/// Something in the way of a file that is to be written, as effective as a full disk, also for root.
fn obstruct(dir: &Path, file: &str) -> std::path::PathBuf {
    let obstacle = dir.join("certificates").join(format!("{file}.new"));
    fs::create_dir(&obstacle).unwrap();
    obstacle
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_follows_the_advice_and_says_what_it_replaces() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    {
        let mut script = server.script.lock();
        let page = Some("https://ca.test/incident");
        script.advice.insert(0, (-2 * DAY, -DAY, page));
        script.advice.insert(1, (10 * DAY, 11 * DAY, None));
    }
    let running = Running::start(dir.path(), limits());
    let mut authority = server.authority("ca");
    authority.profile = Some("short".to_owned());
    want(&running, &["a.test"], vec![authority]);
    until("it is renewed", || {
        (running.successes("a.test") == 2).then_some(())
    })
    .await;
    let next = until("the second advice", || {
        let next = running.status("a.test").next_unix_s?;
        (next < now() + 20 * DAY).then_some(next)
    })
    .await;
    assert!((now() + 10 * DAY - 60..now() + 11 * DAY + 60).contains(&next));

    let script = server.script.lock();
    let orders = script.requests("order");
    assert_eq!(orders.len(), 2);
    assert_eq!(orders[0]["replaces"], Value::Null);
    assert_eq!(
        orders[1]["replaces"],
        Value::String(id(&script.certificates[0]))
    );
    assert_eq!(orders[1]["profile"], "short");
    let advised = running.events.lock().iter().find_map(|event| match event {
        Event::Advised {
            explanation_url,
            renew_unix_s,
            ..
        } => Some((explanation_url.clone(), *renew_unix_s)),
        _ => None,
    });
    let (page, renew) = advised.expect("an event");
    assert_eq!(page.as_deref(), Some("https://ca.test/incident"));
    assert!(renew < now());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_replaced_already_is_ordered_without_saying_so() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    server.script.lock().all_are_replaced = true;
    let running = Running::start(dir.path(), limits());
    want(&running, &["a.test"], vec![server.authority("ca")]);
    let first = running.obtained("a.test").await;
    until("no order is under way", || {
        (!running.status("a.test").is_ordering).then_some(())
    })
    .await;
    running.keeper.renew_now("a.test").await;
    running.obtained_after("a.test", &first).await;
    let orders = server.script.lock().requests("order");
    let replaces: Vec<_> = orders
        .iter()
        .map(|order| !order["replaces"].is_null())
        .collect();
    assert_eq!(replaces, [false, true, false]);
    assert!(running.failures("a.test").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_ordered_is_refused_and_the_former_stays_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    let running = Running::start(dir.path(), limits());
    want(
        &running,
        &["a.test", "*.a.test"],
        vec![server.authority("ca")],
    );
    let first = running.obtained("a.test").await;
    let clock = "by this machine's clock, which may be wrong";
    for (signs, expected) in [
        (Sign::AnotherKey, "sent a certificate for another key"),
        (
            Sign::AnotherName,
            "sent a certificate without a.test, *.a.test",
        ),
        (Sign::Nothing, "sent no certificate"),
        (Sign::LongChain, "sent a chain of more than 16 certificates"),
        (Sign::NotValidYet, clock),
        (Sign::Expired, clock),
    ] {
        server.script.lock().signs = signs;
        let reason = fails(&running, "a.test").await;
        assert!(reason.contains(expected), "{reason} has {expected}");
        assert!(
            reason.contains("authority ca (https://127.0.0.1:"),
            "{reason}"
        );
    }

    server.script.lock().signs = Sign::AsOrdered;
    for (authorizes, token, expected) in [
        (
            Some("other.test"),
            None,
            "asks for an authorization of other.test",
        ),
        (None, Some("../../x"), "without a token that can be used"),
        (None, Some(""), "without a token that can be used"),
    ] {
        {
            let mut script = server.script.lock();
            (script.authorizes, script.token) = (authorizes, token);
        }
        let reason = fails(&running, "a.test").await;
        assert!(reason.contains(expected), "{reason} has {expected}");
    }
    assert_eq!(running.issued("a.test"), Some(first.clone()));
    let stored = fs::read_to_string(dir.path().join("certificates/a.test.pem")).unwrap();
    assert!(stored.ends_with(&first.pem));
    assert!(running.solver.inner.shown.lock().is_empty());

    // A key among the certificates is left out.
    {
        let mut script = server.script.lock();
        (script.authorizes, script.token, script.signs) = (None, None, Sign::WithAKey);
    }
    running.keeper.renew_now("a.test").await;
    let last = running.obtained_after("a.test", &first).await;
    assert_eq!(last.pem.matches("BEGIN PRIVATE KEY").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_does_not_answer_as_one_is_named_with_url_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    let limits = Limits {
        request_time: Duration::from_secs(2),
        ..limits()
    };
    let running = Running::start(dir.path(), limits);
    want(&running, &["a.test"], vec![server.authority("ca")]);
    let first = running.obtained("a.test").await;
    let html = &[("content-type", "text/html")];
    let json = &[("content-type", "application/json")];
    let wait = &[("retry-after", "120")];
    let problem = format!(r#"{{"type":"{PROBLEM}malformed","detail":"so\nnot"}}"#);
    let says = |status, fields: &[(&'static str, &str)], body: &str| {
        let fields = fields
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        Answer::Says(status, fields.collect(), body.to_owned())
    };
    for (resource, answer, expected) in [
        ("order", Answer::Stalls, "did not answer"),
        ("order", Answer::Trickles, "did not answer"),
        ("order", Answer::Closes, "is not reachable"),
        ("order", Answer::TooMuch, "with more than 1048576 bytes"),
        (
            "dir",
            says(200, html, "<html>"),
            "is this the URL of an ACME directory?",
        ),
        ("order", says(201, json, "{\"status\":"), "no JSON"),
        (
            "order",
            says(201, json, "{\"status\":\"new\"}"),
            "lacks what ACME demands",
        ),
        (
            "order",
            says(302, &[("location", "http://b.test/")], ""),
            "redirects",
        ),
        ("order", says(503, wait, "busy"), "status 503"),
        ("order", says(500, json, "{}"), "status 500"),
        ("order", says(400, json, &problem), "so not (malformed)"),
        ("nonce", says(500, html, ""), "status 500"),
    ] {
        server.script.lock().answers.insert(resource, answer);
        let reason = fails(&running, "a.test").await;
        assert!(reason.contains(expected), "{reason} has {expected}");
        assert!(reason.contains("authority ca"), "{reason}");
        assert!(
            reason.contains(&format!("https://{}/", server.address)),
            "{reason}"
        );
        server.script.lock().answers.clear();
    }
    assert_eq!(running.issued("a.test"), Some(first));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_trusted_gets_no_request() {
    let expired = ServerFiles::made(|server| {
        server.not_before = at(now() - 10 * DAY);
        server.not_after = at(now() - DAY);
    });
    let other = ServerFiles::make();
    for (server, ca, expected) in [
        (
            Server::start_with(expired).await,
            None,
            "its own certificate has expired, or this machine's clock is wrong",
        ),
        (
            Server::start().await,
            Some(other.ca()),
            "from an issuer that is not trusted here",
        ),
        (
            Server::start().await,
            Some("/nowhere/ca.pem".into()),
            "cannot read /nowhere/ca.pem",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let running = Running::start(dir.path(), limits());
        let mut authority = server.authority("ca");
        authority.ca = ca.or(authority.ca);
        want(&running, &["a.test"], vec![authority]);
        let reason = running.failed("a.test", 1).await;
        assert!(reason.contains(expected), "{reason} has {expected}");
        assert!(server.script.lock().log.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_kept_as_long_as_the_authority_says() {
    for (fields, body, least, most) in [
        (&[("retry-after", "7200")][..], "rateLimited", 7100, 7300),
        (
            &[("retry-after", "99999999")],
            "rateLimited",
            DAY - 100,
            DAY + 100,
        ),
        (&[("retry-after", "7200")], "", 7100, 7300),
        (&[], "rateLimited", 20, 120),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start().await;
        let problem = format!(r#"{{"type":"{PROBLEM}{body}","detail":"too many"}}"#);
        server.says("order", 429, fields, &problem);
        let running = Running::start(dir.path(), limits());
        want(&running, &["a.test"], vec![server.authority("ca")]);
        running.failed("a.test", 1).await;
        let next = running.status("a.test").next_unix_s.unwrap() - now();
        assert!((least..most).contains(&next), "{fields:?}: {next}");
    }

    // An authority that is busy is left alone by all.
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    server.says("order", 503, &[("retry-after", "600")], "");
    let running = Running::start(dir.path(), limits());
    want(&running, &["a.test"], vec![server.authority("ca")]);
    running.failed("a.test", 1).await;
    let both = vec![wanted(&["a.test"], DNS), wanted(&["b.test"], DNS)];
    running
        .keeper
        .want(both, vec![server.authority("ca")], Vec::new());
    let other = running.status("b.test");
    assert!(other.next_unix_s.unwrap() > now() + 500);
    assert!(other.last_error.unwrap().reason.contains("status 503"));
    assert_eq!((other.failures, server.orders()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_authority_is_asked_when_the_one_before_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Server::start().await, Server::start().await);
    let mut gone = first.authority("gone");
    gone.directory = format!("https://{}/dir", support::free_address());
    first.says(
        "order",
        429,
        &[],
        &format!(r#"{{"type":"{PROBLEM}rateLimited"}}"#),
    );
    let running = Running::start(dir.path(), limits());
    let all = || {
        vec![
            gone.clone(),
            first.authority("first"),
            second.authority("second"),
        ]
    };
    want(&running, &["a.test"], all());
    let issued = running.obtained("a.test").await;
    assert_eq!(issued.authority, "second");
    assert_eq!((first.orders(), second.orders()), (1, 1));
    assert!(running.failures("a.test").is_empty());

    // The first one is asked first at the next renewal.
    first.script.lock().answers.clear();
    until("no order is under way", || {
        (!running.status("a.test").is_ordering).then_some(())
    })
    .await;
    running.keeper.renew_now("a.test").await;
    let renewed = running.obtained_after("a.test", &issued).await;
    assert_eq!(renewed.authority, "first");
    let orders = first.script.lock().requests("order");
    assert_eq!(orders[1]["replaces"], Value::Null, "it is another's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validation_that_fails_is_no_reason_for_the_next_authority_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Server::start().await, Server::start().await);
    first.script.lock().refuses_challenges = true;
    let running = Running::start(dir.path(), limits());
    want(
        &running,
        &["a.test"],
        vec![first.authority("first"), second.authority("second")],
    );
    let reason = running.failed("a.test", 1).await;
    assert!(reason.contains("authority first") && reason.contains("could not validate a.test"));
    assert!(second.script.lock().log.is_empty());
    running.keeper.renew_now("a.test").await;
    assert_eq!(running.obtained("a.test").await.authority, "second");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_ordered_with_a_wrong_clock() {
    for ahead in [-DAY, DAY] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start().await;
        server.script.lock().ahead_s = ahead;
        let running = Running::start(dir.path(), limits());
        want(&running, &["a.test"], vec![server.authority("ca")]);
        let reason = running.failed("a.test", 1).await;
        let direction = if ahead > 0 { "behind" } else { "ahead of" };
        assert!(
            reason.contains("this machine's clock may be wrong"),
            "{reason}"
        );
        assert!(
            reason.contains(&format!(" {direction} the authority's")),
            "{reason}"
        );
        assert_eq!(server.orders(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_written_is_kept_and_written_later() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    let limits = Limits {
        write_again: Duration::from_millis(200),
        ..limits()
    };
    let running = Running::start(dir.path(), limits);
    want(&running, &["a.test"], vec![server.authority("ca")]);
    let first = running.obtained("a.test").await;
    let stored = || fs::read_to_string(dir.path().join("certificates/a.test.pem")).unwrap();

    let obstacle = obstruct(dir.path(), "a.test.pem");
    let reason = fails(&running, "a.test").await;
    assert!(
        reason.contains("cannot write") && reason.contains("a.test.pem"),
        "{reason}"
    );
    assert!(reason.contains("the former one stays in force"), "{reason}");
    assert_eq!(running.issued("a.test"), Some(first.clone()));
    assert!(stored().ends_with(&first.pem));
    let status = running.status("a.test");
    assert!(
        status.next_unix_s.unwrap() > now() + DAY,
        "it is not ordered again"
    );
    assert_eq!(status.last_error.unwrap().reason, reason);

    fs::remove_dir(obstacle).unwrap();
    let second = running.obtained_after("a.test", &first).await;
    assert!(stored().ends_with(&second.pem));
    assert_eq!(
        (server.orders(), running.status("a.test").last_error),
        (2, None)
    );
    until("an event", || {
        (running.successes("a.test") == 2).then_some(())
    })
    .await;

    // Where nothing can be written before, nothing is ordered.
    obstruct(dir.path(), "a.test.json");
    let reason = fails(&running, "a.test").await;
    assert!(
        reason.contains("nothing was ordered: cannot write"),
        "{reason}"
    );
    assert_eq!(server.orders(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_stopped_withdraws_and_deactivates() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    server.script.lock().validates_never = true;
    let running = Running::start(dir.path(), limits());
    want(&running, &["a.test"], vec![server.authority("ca")]);
    let answers = running.solver.inner.clone();
    until("the order waits", || {
        let is_asked = !server.script.lock().requests("challenge").is_empty();
        (is_asked && !answers.shown.lock().is_empty()).then_some(())
    })
    .await;
    let status = running.status("a.test");
    assert!(status.is_ordering && status.next_unix_s.is_none());
    assert!(
        running.keeper.renew_now("a.test").await,
        "it is ordered once"
    );
    running.stop().await;
    assert_eq!(server.orders(), 1);
    assert!(answers.shown.lock().is_empty());
    let authorizations = server.script.lock().requests("authorization");
    assert!(
        authorizations
            .iter()
            .any(|sent| sent["status"] == "deactivated")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_was_signed_meanwhile_is_not_ordered_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    server
        .script
        .lock()
        .answers
        .insert("certificate", Answer::Closes);
    let quick = Limits {
        order_time: Duration::from_secs(5),
        ..limits()
    };
    let running = Running::start(dir.path(), quick);
    want(&running, &["a.test"], vec![server.authority("ca")]);
    let reason = running.failed("a.test", 1).await;
    assert!(reason.contains("was not done after 5 seconds"), "{reason}");
    assert_eq!(server.script.lock().certificates.len(), 1, "it was signed");
    running.stop().await;

    server.script.lock().answers.clear();
    let running = Running::start(dir.path(), limits());
    want(&running, &["a.test"], vec![server.authority("ca")]);
    running.keeper.renew_now("a.test").await;
    let first = running.obtained("a.test").await;
    assert_eq!(server.orders(), 1);

    // One that nobody can take up any longer is given up.
    server
        .script
        .lock()
        .answers
        .insert("certificate", Answer::Closes);
    running.stop().await;
    let quick = Limits {
        order_time: Duration::from_secs(5),
        ..limits()
    };
    let running = Running::start(dir.path(), quick);
    want(&running, &["a.test"], vec![server.authority("ca")]);
    fails(&running, "a.test").await;
    {
        let mut script = server.script.lock();
        script.answers.clear();
        script
            .orders
            .iter_mut()
            .for_each(|order| order.status = "invalid");
    }
    running.keeper.renew_now("a.test").await;
    running.obtained_after("a.test", &first).await;
    assert_eq!(server.orders(), 3);
    until("the key is forgotten", || {
        let path = dir.path().join("certificates/a.test.json");
        let notes = fs::read_to_string(path).unwrap();
        (!notes.contains("PRIVATE KEY")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_cannot_be_shown_end_the_order_and_are_withdrawn() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    let running = Running::start(dir.path(), limits());
    *running.solver.inner.fails.lock() = Some("no name server\nanswers".to_owned());
    want(&running, &["a.test"], vec![server.authority("ca")]);
    let reason = running.failed("a.test", 1).await;
    assert!(
        reason.contains("could not be shown: no name server answers"),
        "{reason}"
    );
    assert!(running.solver.inner.shown.lock().is_empty());
    let script = server.script.lock();
    assert!(script.requests("challenge").is_empty());
    let authorizations = script.requests("authorization");
    assert!(
        authorizations
            .iter()
            .any(|sent| sent["status"] == "deactivated")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_do_not_lead_here_are_told_before_the_order() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    let running = Running::start(dir.path(), limits());
    *running.solver.inner.precheck.lock() = Some("a.test leads to 192.0.2.1".to_owned());
    want(&running, &["a.test"], vec![server.authority("ca")]);
    assert_eq!(
        running.failed("a.test", 1).await,
        "a.test leads to 192.0.2.1"
    );
    assert_eq!(running.status("a.test").last_error.unwrap().authority, None);
    assert_eq!(server.script.lock().connections, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn back_off_survives_a_restart_and_ends_with_other_settings() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    server.script.lock().refuses_challenges = true;
    let running = Running::start(dir.path(), limits());
    want(&running, &["a.test"], vec![server.authority("ca")]);
    let reason = running.failed("a.test", 1).await;
    running.stop().await;

    server.script.lock().refuses_challenges = false;
    let running = Running::start(dir.path(), limits());
    want(&running, &["a.test"], vec![server.authority("ca")]);
    let status = running.status("a.test");
    assert_eq!(status.failures, 1);
    assert_eq!(status.last_error.unwrap().reason, reason);
    assert!(status.next_unix_s.unwrap() > now());
    // Another name that is obtained says that all were looked at.
    let both = || vec![wanted(&["a.test"], DNS), wanted(&["b.test"], DNS)];
    running
        .keeper
        .want(both(), vec![server.authority("ca")], Vec::new());
    running.obtained("b.test").await;
    assert!(running.issued("a.test").is_none());
    let contact = vec!["mailto:admin@a.test".to_owned()];
    running
        .keeper
        .want(both(), vec![server.authority("ca")], contact);
    assert_eq!(running.status("a.test").failures, 0);
    running.obtained("a.test").await;
    let accounts = server.script.lock().requests("account");
    assert!(
        accounts
            .iter()
            .any(|sent| sent["contact"] == json!(["mailto:admin@a.test"]))
    );
    assert!(running.solver.inner.prechecks.load(Ordering::SeqCst) >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_names_the_time_of_the_next_order() {
    let retry_after = [("retry-after", "7200")];
    for (fields, least, most) in [(&[][..], 50, 80), (&retry_after[..], 7100, 7300)] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start().await;
        server.says("order", 503, fields, "");
        let running = Running::start(dir.path(), limits());
        want(&running, &["a.test"], vec![server.authority("ca")]);
        running.failed("a.test", 1).await;
        let shown = running.status("a.test").next_unix_s.unwrap();
        let told = running.events.lock().iter().find_map(|event| match event {
            Event::Failed { next_unix_s, .. } => Some(*next_unix_s),
            _ => None,
        });
        let told = told.expect("an event");
        assert!((least..=most).contains(&(told - now())), "{told}");
        // Both are rounded to seconds.
        assert!((told - shown).abs() <= 2, "{told} {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_was_asked_for_is_wanted_until_it_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    let running = Running::start(dir.path(), limits());
    want(&running, &["a.test"], vec![server.authority("ca")]);
    let first = running.obtained("a.test").await;
    server.says("order", 503, &[], "");
    fails(&running, "a.test").await;
    let next = running.status("a.test").next_unix_s.unwrap() - now();
    assert!((30..=80).contains(&next), "{next}");
    running.stop().await;

    server.script.lock().answers.clear();
    let running = Running::start(dir.path(), limits());
    want(&running, &["a.test"], vec![server.authority("ca")]);
    let next = running.status("a.test").next_unix_s.unwrap() - now();
    assert!((10..=80).contains(&next), "{next}");
    // Other settings end the back-off.
    let wanted = vec![wanted(&["a.test"], DNS)];
    let contact = vec!["mailto:admin@a.test".to_owned()];
    running
        .keeper
        .want(wanted, vec![server.authority("ca")], contact);
    running.obtained_after("a.test", &first).await;
    let next = until("the order has ended", || {
        running.status("a.test").next_unix_s
    })
    .await;
    assert!(next > now() + DAY, "it is done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_was_asked_for_is_on_disk_before_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    let running = Running::start(dir.path(), limits());
    want(&running, &["a.test"], vec![server.authority("ca")]);
    let first = running.obtained("a.test").await;
    running.stop().await;
    // A keeper that does no work stands for one that was killed.
    let killed = || {
        let heard = Arc::new(|_| {});
        let keeper = nearcast_acme::Keeper::open(
            dir.path().to_owned(),
            support::TestSolver::default(),
            heard,
        )
        .unwrap();
        keeper.want(
            vec![wanted(&["a.test"], DNS)],
            vec![server.authority("ca")],
            Vec::new(),
        );
        keeper
    };
    assert!(killed().renew_now("a.test").await);
    let running = Running::start(dir.path(), limits());
    want(&running, &["a.test"], vec![server.authority("ca")]);
    running.obtained_after("a.test", &first).await;
    running.stop().await;

    // Who no longer wants the certificate wants no renewal either.
    assert!(killed().renew_now("a.test").await);
    let running = Running::start(dir.path(), limits());
    want(&running, &["b.test"], vec![server.authority("ca")]);
    until("that is noted", || {
        let notes = fs::read_to_string(dir.path().join("certificates/a.test.json")).unwrap();
        notes.contains("\"asked_for\": null").then_some(())
    })
    .await;
    want(&running, &["a.test"], vec![server.authority("ca")]);
    let next = running.status("a.test").next_unix_s.unwrap();
    assert!(next > now() + DAY, "{next}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_not_validated_more_than_five_times_an_hour() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    server.script.lock().refuses_challenges = true;
    let running = Running::start(dir.path(), limits());
    want(&running, &["a.test"], vec![server.authority("ca")]);
    running.failed("a.test", 1).await;
    for _ in 1..5 {
        fails(&running, "a.test").await;
    }
    assert!(running.keeper.renew_now("a.test").await);
    let next = running.status("a.test").next_unix_s.unwrap() - now();
    assert!((3000..=3601).contains(&next), "{next}");
    assert_eq!(server.orders(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_hosts_pass_through_a_bounded_queue() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    let limits = Limits {
        orders_at_once: 3,
        order_burst: 5,
        order_interval: Duration::from_millis(20),
        ..limits()
    };
    let running = Running::start(dir.path(), limits);
    let names: Vec<_> = (0..40).map(|n| format!("host{n}.test")).collect();
    let all = names.iter().map(|name| wanted(&[name], DNS)).collect();
    running
        .keeper
        .want(all, vec![server.authority("ca")], Vec::new());
    let mut most = 0;
    until("all are there", || {
        let statuses = running.keeper.statuses();
        most = most.max(statuses.iter().filter(|status| status.is_ordering).count());
        let shown = running.solver.inner.shown.lock().len();
        assert!(shown <= 3, "{shown} challenges at a time");
        (running.keeper.issued().borrow().len() == names.len()).then_some(())
    })
    .await;
    assert!((1..=3).contains(&most), "{most} orders at a time");
    assert_eq!(server.orders(), names.len());
    assert_eq!(server.script.lock().requests("account").len(), 1);
}

#[test]
fn keys_are_not_in_what_is_printed_for_debugging() {
    let mut authority = authority("ca", "https://ca.test/dir".to_owned(), "/ca.pem".into());
    authority.external_account = Some(("id".to_owned(), "secret-key".to_owned()));
    assert!(!format!("{authority:?}").contains("secret-key"));
    let issued = nearcast_acme::Issued {
        hosts: vec!["a.test".to_owned()],
        pem: "secret-key".to_owned(),
        authority: "ca".to_owned(),
        not_before_unix_s: 0,
        not_after_unix_s: 1,
    };
    assert!(!format!("{issued:?}").contains("secret-key"));
}
