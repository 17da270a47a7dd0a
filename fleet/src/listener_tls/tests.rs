//! A listener with a certificate, and the client that verifies it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use nearcast_net::serve::{HeadLimit, Limits, serve_connection};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::client::Client;
use crate::testing::FleetText;

const SOON: Duration = Duration::from_secs(5);

/// A certification authority with its directory, where it also writes the certificates.
struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("a certificate");
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("ca.pem"), cert.pem()).expect("written");
        let issuer = Issuer::new(params, key);
        Self { dir, issuer }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Writes a certificate for a name and its key, with the years of its validity.
    fn write(&self, name: &str, years: (i32, i32)) -> CertificateFiles {
        self.write_as(IsCa::NoCa, name, years)
    }

    fn write_as(&self, is_ca: IsCa, name: &str, years: (i32, i32)) -> CertificateFiles {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        params.is_ca = is_ca;
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        let files = CertificateFiles {
            cert: self.dir.path().join("node.pem"),
            key: self.dir.path().join("node.key"),
        };
        std::fs::write(&files.cert, cert.pem()).expect("written");
        std::fs::write(&files.key, key.serialize_pem()).expect("written");
        files
    }
}

fn fleet_with(files: Option<CertificateFiles>) -> watch::Sender<Arc<Fleet>> {
    let fleet = FleetText::new().cluster("ams", &["192.0.2.1"]).fleet();
    watch::Sender::new(Arc::new(Fleet {
        admin_identity: files,
        ..fleet
    }))
}

fn open(fleet: &watch::Sender<Arc<Fleet>>) -> Result<ListenerTls, Failure> {
    ListenerTls::open(fleet.subscribe(), |fleet| fleet.admin_identity.as_ref())
}

/// Serves every connection; answers `tls`, or `refused` to a client without TLS.
async fn serving(tls: ListenerTls) -> SocketAddr {
    const LIMITS: Limits = Limits {
        head_time_max: SOON,
        head: HeadLimit::Buffers {
            bytes_max: 16 << 10,
        },
        write_stall_max: None,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let tls = Arc::new(tls);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let answer = |text: &'static str| {
                    service_fn(move |_| {
                        let answer = http::Response::new(Full::new(Bytes::from(text)));
                        std::future::ready(Ok::<_, Infallible>(answer))
                    })
                };
                let never = std::future::pending::<()>();
                let _ = match tls.accept(stream).await {
                    Ok(Accepted::Tls(s)) => serve_connection(s, LIMITS, answer("tls"), never).await,
                    Ok(Accepted::Plain(s)) => {
                        serve_connection(s, LIMITS, answer("plain"), never).await
                    }
                    Ok(Accepted::Unencrypted(s)) => {
                        serve_connection(s, LIMITS, answer("refused"), never).await
                    }
                    Err(_) => Ok(()),
                };
            });
        }
    });
    address
}

/// The body of the answer, or the words of the error.
async fn get(ca: Option<&Path>, url: &str) -> Result<String, String> {
    let client = Client::new(ca.map(Path::to_owned));
    let response = client.get(url, SOON).await.map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(response.body()).into_owned())
}

#[tokio::test]
async fn a_client_gets_an_answer_from_a_certificate_that_it_trusts_and_words_otherwise() {
    let authority = Authority::new();
    let other = Authority::new();
    let good = authority.write("localhost", (2020, 2120));
    let address = serving(open(&fleet_with(Some(good))).expect("good files")).await;
    let url = format!("https://localhost:{}/", address.port());
    assert_eq!(get(Some(&authority.ca()), &url).await, Ok("tls".into()));

    let plain = serving(open(&fleet_with(None)).expect("no files")).await;
    let expired = authority.write("localhost", (2020, 2021));
    let expired = serving(open(&fleet_with(Some(expired))).expect("a warning only")).await;
    let early = authority.write("localhost", (2110, 2120));
    let early = serving(open(&fleet_with(Some(early))).expect("a warning only")).await;
    // As `openssl req -x509` makes them.
    let wrong_kind = IsCa::Ca(BasicConstraints::Unconstrained);
    let wrong_kind = authority.write_as(wrong_kind, "localhost", (2020, 2120));
    let wrong_kind = serving(open(&fleet_with(Some(wrong_kind))).expect("a warning only")).await;
    let at = |address: SocketAddr| format!("https://localhost:{}/", address.port());
    let missing = authority.dir.path().join("missing.pem");
    let (own, others) = (authority.ca(), other.ca());
    for (ca, url, words) in [
        (
            Some(&others),
            url.clone(),
            "an authority that is not trusted here; name the authority",
        ),
        (None, url.clone(), "an authority that is not trusted here"),
        (
            Some(&own),
            format!("https://{address}/"),
            "not for 127.0.0.1, but for ",
        ),
        (Some(&own), at(expired), "has expired; renew it"),
        (
            Some(&own),
            at(wrong_kind),
            "is that of an authority, which no server may show; make one with",
        ),
        (
            Some(&own),
            at(early),
            "is not valid yet; compare the clocks",
        ),
        (
            Some(&own),
            at(plain),
            "speaks HTTP without TLS, or another protocol; write http://",
        ),
        (Some(&missing), url.clone(), "missing.pem"),
        (
            Some(&missing),
            url.clone(),
            "ca in [fleet], --ca, NEARCAST_CA",
        ),
    ] {
        let error = get(ca.map(PathBuf::as_path), &url).await.expect_err(words);
        assert!(error.contains(words), "{url}: {error}");
    }
}

#[tokio::test]
async fn a_client_without_tls_is_known_as_one() {
    let authority = Authority::new();
    let files = authority.write("localhost", (2020, 2120));
    let address = serving(open(&fleet_with(Some(files))).expect("good files")).await;
    let answer = get(None, &format!("http://{address}/")).await;
    assert_eq!(answer, Ok("refused".into()));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_slow_or_sends_junk_is_closed() {
    let authority = Authority::new();
    let files = authority.write("localhost", (2020, 2120));
    let tls = open(&fleet_with(Some(files))).expect("good files");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    for (sent, expected) in [
        (&b""[..], "too-slow"),
        (&[22, 3, 1][..], "too-slow"),
        (&[22, 3, 1, 0, 4, 1, 2, 3, 4][..], "broken"),
        (&[22, 255, 255, 255, 255, 0, 0][..], "broken"),
    ] {
        let mut client = TcpStream::connect(address).await.expect("it listens");
        let (stream, _) = listener.accept().await.expect("queued");
        client.write_all(sent).await.expect("sent");
        let begun = tokio::time::Instant::now();
        let failed = tls.accept(stream).await.expect_err("no handshake");
        assert_eq!(failed.label(), expected, "{sent:?}: {failed}");
        assert_eq!(
            begun.elapsed() >= HANDSHAKE_TIME_MAX,
            expected == "too-slow"
        );
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest).await;
    }
}

#[test]
fn files_that_cannot_be_used_at_the_start_are_failures() {
    let authority = Authority::new();
    let good = authority.write("localhost", (2020, 2120));
    let missing = CertificateFiles {
        key: authority.dir.path().join("missing.key"),
        ..good.clone()
    };
    let swapped = CertificateFiles {
        cert: good.key.clone(),
        key: good.cert.clone(),
    };
    for (files, kind, words) in [
        (missing, FailureKind::NoInput, "missing.key"),
        (swapped, FailureKind::BadData, "admin_cert and admin_key"),
    ] {
        let failure = open(&fleet_with(Some(files))).expect_err(words);
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.to_string().contains(words), "{failure}");
    }
}

#[test]
fn changed_files_are_read_again_and_a_broken_pair_changes_nothing() {
    let authority = Authority::new();
    let files = authority.write("localhost", (2020, 2120));
    let fleet = fleet_with(Some(files.clone()));
    let tls = open(&fleet).expect("good files");
    let start = Instant::now();
    let at = |looks: u32| {
        tls.config(start + 2 * looks * LOOK_EVERY)
            .expect("a certificate")
    };
    let first = at(1);
    assert!(
        Arc::ptr_eq(&first, &at(2)),
        "unchanged files are not read again"
    );

    let before = std::fs::read(&files.key).expect("readable");
    authority.write("localhost", (2020, 2120));
    let second = at(3);
    assert!(!Arc::ptr_eq(&first, &second), "a new pair is shown");
    std::fs::write(&files.key, before).expect("written");
    assert!(
        Arc::ptr_eq(&second, &at(4)),
        "the key of another certificate"
    );
    std::fs::remove_file(&files.cert).expect("removed");
    assert!(Arc::ptr_eq(&second, &at(5)), "no certificate");
    authority.write("localhost", (2020, 2120));
    let third = at(6);
    assert!(!Arc::ptr_eq(&second, &third), "good files again");

    // Permissions that were mended change neither content nor time of modification. The clock of a
    // file system may be coarse: repeated until the next tick of it.
    let before = Stamp::of(&files.key);
    while Stamp::of(&files.key) == before {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
        std::fs::set_permissions(&files.key, mode).expect("permitted");
    }
    assert!(!Arc::ptr_eq(&third, &at(7)), "it may be readable now");

    // A revision of the fleet file takes effect at once.
    fleet.send_modify(|fleet| Arc::make_mut(fleet).admin_identity = None);
    assert!(tls.config(start + 16 * LOOK_EVERY).is_none());
}

#[tokio::test]
async fn a_client_reads_changed_authorities_again() {
    let (authority, other) = (Authority::new(), Authority::new());
    let files = authority.write("localhost", (2020, 2120));
    let address = serving(open(&fleet_with(Some(files))).expect("good files")).await;
    let url = format!("https://localhost:{}/", address.port());
    let fleet = fleet_with(None);
    fleet.send_modify(|fleet| Arc::make_mut(fleet).ca = Some(other.ca()));
    let client = Client::following(fleet.subscribe());
    client.get(&url, SOON).await.expect_err("another authority");
    fleet.send_modify(|fleet| Arc::make_mut(fleet).ca = Some(authority.ca()));
    client.get(&url, SOON).await.expect("a revision names it");
}
