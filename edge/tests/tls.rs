//! TLS with origins: whom an edge trusts, what it shows, and what it says when that fails.

mod lab;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use lab::{Origin, Plan, Reply, free_address, wait_for};
use nearcast_fleet::config::OriginTls;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A private authority, and the files that an edge needs to know of it.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"))
            .expect("a certificate");
        let authority = Self {
            issuer,
            directory: tempfile::tempdir().expect("a directory"),
        };
        authority.write("ca.pem", &authority.issuer.pem());
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).expect("written");
        self.path(name)
    }

    /// A certificate for a name, and its key.
    fn sign(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        (
            params.signed_by(&key, &self.issuer).expect("a certificate"),
            key,
        )
    }

    /// What an edge shows of itself.
    fn identity(&self) -> (PathBuf, PathBuf) {
        let (cert, key) = self.sign("edge.test", |_| {});
        (
            self.write("edge.pem", &cert.pem()),
            self.write("edge.key", &key.serialize_pem()),
        )
    }

    fn trusted(&self) -> OriginTls {
        OriginTls {
            ca: Some(self.path("ca.pem")),
            identity: None,
        }
    }
}

/// An origin that speaks TLS, and notes its clients.
struct TlsOrigin {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// The name that a client asked for, and whether it showed a certificate.
type Seen = (Option<String>, bool);

impl TlsOrigin {
    fn start((cert, key): (rcgen::Certificate, KeyPair), clients: Option<&Authority>) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots
                    .add(authority.issuer.der().clone())
                    .expect("a certificate");
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .expect("a verifier");
                builder.with_client_cert_verifier(verifier)
            }
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = builder
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("they fit");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("set");
        let address = listener.local_addr().expect("bound");
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let noted = seen.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                while let Ok((stream, _)) = listener.accept().await {
                    let (acceptor, noted) = (acceptor.clone(), noted.clone());
                    tokio::spawn(async move {
                        let mut stream = acceptor.accept(stream).await?;
                        let session = stream.get_ref().1;
                        let note = (session.server_name().map(str::to_owned), session.peer_certificates().is_some());
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            if stream.read_buf(&mut head).await? == 0 {
                                return Ok(());
                            }
                        }
                        noted.lock().expect("unpoisoned").push(note);
                        if String::from_utf8_lossy(&head).to_lowercase().contains("upgrade: websocket") {
                            stream.write_all(b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await?;
                            let (mut reader, mut writer) = tokio::io::split(stream);
                            tokio::io::copy(&mut reader, &mut writer).await?;
                            writer.write_all(b"bye").await?;
                            return writer.shutdown().await;
                        }
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecret").await?;
                        stream.shutdown().await
                    });
                }
            });
        });
        Self { address, seen }
    }

    fn plan(&self, tls: OriginTls) -> Plan {
        let plain = Origin::start(|_| Reply::status(404));
        let mut plan = Plan::new(&plain);
        plan.origin = format!("https://localhost:{}", self.address.port());
        plan.origin_policy.tls = tls;
        plan
    }
}

#[test]
fn an_origin_of_a_private_authority_is_trusted_where_the_site_says_so() {
    let (authority, other) = (Authority::new("ours"), Authority::new("other"));
    let origin = TlsOrigin::start(authority.sign("localhost", |_| {}), None);
    let unknown =
        "ams-1; error=tls_certificate_error; details=\"its certificate's issuer is unknown\"";
    for (tls, status, proxy_status) in [
        (OriginTls::default(), 502, unknown),
        (other.trusted(), 502, unknown),
        (authority.trusted(), 200, ""),
    ] {
        let answer = origin.plan(tls).start().get("/");
        assert_eq!(
            (answer.status, answer.error().as_str()),
            (status, proxy_status)
        );
    }
    assert_eq!(
        *origin.seen.lock().expect("unpoisoned"),
        [(Some("localhost".into()), false)]
    );
}

#[test]
fn the_name_in_the_handshake_and_in_the_certificate_is_that_of_the_origins_host() {
    let authority = Authority::new("ours");
    let origin = TlsOrigin::start(authority.sign("shop.test", |_| {}), None);
    let wrong =
        "ams-1; error=tls_certificate_error; details=\"its certificate is for another name\"";
    for (host, status) in [
        (None, 502),
        (Some("shop.test"), 200),
        (Some("shop.test:8443"), 200),
        (Some("other.test"), 502),
    ] {
        let mut plan = origin.plan(authority.trusted());
        plan.origin_host = host.map(str::to_owned);
        let answer = plan.start().get("/");
        assert_eq!(answer.status, status, "{host:?}");
        assert_eq!(
            answer.error(),
            if status == 200 { "" } else { wrong },
            "{host:?}"
        );
    }
    assert_eq!(
        *origin.seen.lock().expect("unpoisoned"),
        vec![(Some("shop.test".into()), false); 2]
    );
}

#[test]
fn a_tls_failure_tells_its_reason_in_the_answer_and_in_the_metrics() {
    let authority = Authority::new("ours");
    type Change = fn(&mut CertificateParams);
    let table: [(Change, &str, &str); 2] = [
        (
            |params| params.not_after = date_time_ymd(2001, 1, 1),
            "its certificate has expired",
            "tls_certificate_expired",
        ),
        (
            |params| params.not_before = date_time_ymd(3001, 1, 1),
            "its certificate is not valid yet",
            "tls_certificate_not_valid_yet",
        ),
    ];
    for (change, details, reason) in table {
        let origin = TlsOrigin::start(authority.sign("localhost", change), None);
        let edge = origin.plan(authority.trusted()).start();
        let answer = edge.get("/");
        let expected = format!("ams-1; error=tls_certificate_error; details=\"{details}\"");
        assert_eq!(
            (answer.status, answer.error().as_str()),
            (502, expected.as_str())
        );
        assert_eq!(
            edge.metric(&format!(
                "nearcast_edge_origin_failures_total{{reason=\"{reason}\",site=\"www\"}}"
            )),
            1.0
        );
    }
    // What is no TLS at all, and what ends at once.
    let plain = Origin::start(|_| Reply::ok("x", ""));
    for (answers, details) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            "the handshake failed",
        ),
        (b"", "it closed the connection during the handshake"),
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut plan = Plan::new(&plain);
        plan.origin = format!("https://{}", listener.local_addr().expect("bound"));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut hello = [0; 4096];
                let _ = stream.read(&mut hello);
                let _ = stream.write_all(answers);
            }
        });
        let answer = plan.start().get("/");
        let expected = format!("ams-1; error=tls_protocol_error; details=\"{details}\"");
        assert_eq!(
            (answer.status, answer.error().as_str()),
            (502, expected.as_str())
        );
    }
}

#[test]
fn an_edge_shows_its_certificate_where_the_origin_asks_for_one() {
    let (authority, other) = (Authority::new("ours"), Authority::new("other"));
    let origin = TlsOrigin::start(authority.sign("localhost", |_| {}), Some(&authority));
    let with = |identity| OriginTls {
        identity,
        ..authority.trusted()
    };
    let edge = origin.plan(with(Some(authority.identity()))).start();
    assert_eq!(edge.get("/").text(), "secret");
    assert_eq!(
        *origin.seen.lock().expect("unpoisoned"),
        [(Some("localhost".into()), true)]
    );
    let required =
        "ams-1; error=tls_alert_received; alert-id=116; alert-message=\"CertificateRequired\"";
    for (identity, expected) in [
        (None, required),
        (
            Some(other.identity()),
            "ams-1; error=tls_alert_received; alert-id=48; alert-message=\"UnknownCA\"",
        ),
    ] {
        let answer = origin.plan(with(identity)).start().get("/");
        assert_eq!((answer.status, answer.error().as_str()), (502, expected));
    }
}

#[test]
fn an_edge_does_not_start_with_files_that_it_cannot_use() {
    let authority = Authority::new("ours");
    let origin = TlsOrigin::start(authority.sign("localhost", |_| {}), None);
    let (cert, _) = authority.identity();
    let empty = authority.write("empty.pem", "");
    let missing = Path::new("/nowhere/ca.pem").to_owned();
    let ca = |path: &PathBuf| OriginTls {
        ca: Some(path.clone()),
        identity: None,
    };
    let mismatched = OriginTls {
        ca: None,
        identity: Some((cert.clone(), cert)),
    };
    for (tls, code, words) in [
        (ca(&missing), 66, "/nowhere/ca.pem"),
        (ca(&empty), 65, "empty.pem"),
        (mismatched, 65, "edge.pem"),
    ] {
        let failure = origin.plan(tls).try_start().err().expect("it cannot start");
        assert_eq!(failure.kind.exit_code(), code, "{failure}");
        assert!(
            failure.message.contains(words) && failure.message.contains("\"www\""),
            "{failure}"
        );
    }
}

#[test]
fn a_change_that_names_a_missing_file_leaves_the_sites_as_they_are_until_it_is_there() {
    let authority = Authority::new("ours");
    let origin = TlsOrigin::start(authority.sign("localhost", |_| {}), None);
    let edge = origin.plan(authority.trusted()).start();
    assert_eq!(edge.get("/").status, 200);
    let change = |hosts: &[&str], ca: PathBuf| {
        let mut plan = origin.plan(OriginTls {
            ca: Some(ca),
            identity: None,
        });
        plan.hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        edge.fleet
            .send_replace(Arc::new(plan.fleet(free_address(), free_address())));
    };
    let status = |host: &str| edge.ask("GET", "/", &[("Host", host)]).status;
    change(&["new.test"], authority.path("missing.pem"));
    // Nothing shows that the change was looked at but the next one, which is taken at once.
    change(&["other.test"], authority.path("ca.pem"));
    wait_for("the change that can be made", || {
        status("other.test") == 200
    });
    change(&["www.test"], authority.path("missing.pem"));
    assert_eq!(
        (status("other.test"), status("www.test")),
        (200, 421),
        "the old sites stay"
    );
    std::fs::copy(authority.path("ca.pem"), authority.path("missing.pem")).expect("copied");
    wait_for("the file to be found", || status("www.test") == 200);
    assert_eq!(status("other.test"), 421);
}

#[test]
fn a_websocket_goes_to_an_origin_over_tls() {
    let authority = Authority::new("ours");
    let origin = TlsOrigin::start(authority.sign("localhost", |_| {}), None);
    let edge = origin.plan(authority.trusted()).start();
    let mut stream = edge.connect();
    stream
        .set_read_timeout(Some(std::time::Duration::from_secs(30)))
        .expect("set");
    let ask =
        "GET / HTTP/1.1\r\nHost: www.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(ask.as_bytes()).expect("sent");
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("a response");
        head.push(byte[0]);
    }
    assert!(
        head.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    // More than a record of TLS.
    let message: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
    stream.write_all(&message).expect("sent");
    let mut echoed = vec![0; message.len()];
    stream.read_exact(&mut echoed).expect("an echo");
    assert!(echoed == message);
    stream.shutdown(std::net::Shutdown::Write).expect("ended");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("an orderly end");
    assert_eq!(rest, b"bye");
}
