//! Orders at Pebble, the reference test server of ACME, in its strict mode: it refuses a fifth of
//! all nonces and reuses half of the authorizations.

mod support;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{RData, Record, RecordType};
use nearcast_acme::{Authority, ChallengeKind, Event};
use support::{Answers, Running, ServerFiles, authority, copy_dir, limits, until, wanted};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

const DNS: &[ChallengeKind] = &[ChallengeKind::Dns01];
const HTTP: &[ChallengeKind] = &[ChallengeKind::Http01];

/// A running Pebble with the servers that it asks.
struct Pebble {
    files: ServerFiles,
    address: SocketAddr,
    dns: SocketAddr,
    http: SocketAddr,
    settings: Settings,
    child: Child,
}

#[derive(Clone, Default)]
struct Settings {
    /// How long its certificates are valid; its default is five years.
    validity_s: Option<u64>,
    /// The accounts elsewhere that it demands.
    external: Option<(&'static str, &'static str)>,
}

impl Pebble {
    async fn start(answers: &Arc<Answers>, settings: Settings) -> Self {
        let dns = serve_dns(answers.clone()).await;
        let http = serve_http(answers.clone()).await;
        let files = ServerFiles::make();
        let address = support::free_address();
        let child = launch(&files, address, dns, http, &settings);
        let mut pebble = Self {
            files,
            address,
            dns,
            http,
            settings,
            child,
        };
        pebble.is_up().await;
        pebble
    }

    async fn is_up(&mut self) {
        until("Pebble listens", || {
            assert!(self.child.try_wait().unwrap().is_none(), "Pebble has ended");
            std::net::TcpStream::connect(self.address).ok()
        })
        .await;
    }

    /// Starts it again: all that it knew is lost.
    async fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = launch(
            &self.files,
            self.address,
            self.dns,
            self.http,
            &self.settings,
        );
        self.is_up().await;
    }

    fn authority(&self) -> Authority {
        let directory = format!("https://{}/dir", self.address);
        authority("pebble", directory, self.files.ca())
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn launch(
    files: &ServerFiles,
    address: SocketAddr,
    dns: SocketAddr,
    http: SocketAddr,
    settings: &Settings,
) -> Child {
    let mut config = serde_json::json!({
        "listenAddress": address.to_string(),
        "managementListenAddress": "",
        "certificate": files.cert(),
        "privateKey": files.key(),
        "httpPort": http.port(),
        "tlsPort": 1,
        "externalAccountBindingRequired": settings.external.is_some(),
    });
    if let Some((id, key)) = settings.external {
        config["externalAccountMACKeys"] = serde_json::json!({ id: key });
    }
    if let Some(validity) = settings.validity_s {
        config["certificateValidityPeriod"] = validity.into();
    }
    let path = files.dir.path().join("pebble.json");
    fs::write(&path, serde_json::json!({ "pebble": config }).to_string()).unwrap();
    let log = fs::File::create(files.dir.path().join("pebble.log")).unwrap();
    Command::new("pebble")
        .args(["-strict", "-dnsserver", &dns.to_string(), "-config"])
        .arg(&path)
        .env("PEBBLE_VA_NOSLEEP", "1")
        .env("PEBBLE_VA_ALWAYS_VALID", "0")
        .env("PEBBLE_WFE_NONCEREJECT", "20")
        .env("PEBBLE_AUTHZREUSE", "50")
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()
        .expect("pebble is installed")
}

/// A name server: all names lead here, and have the TXT records of the challenges.
async fn serve_dns(answers: Arc<Answers>) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let question = query.queries[0].clone();
            let mut response = Message::new(
                query.metadata.id,
                MessageType::Response,
                query.metadata.op_code,
            );
            response.metadata.authoritative = true;
            response.metadata.response_code = ResponseCode::NoError;
            let name = question.name().clone();
            let records: Vec<RData> = match question.query_type() {
                RecordType::A => vec![RData::A(A(Ipv4Addr::LOCALHOST))],
                RecordType::TXT => answers
                    .txt(&name.to_ascii())
                    .into_iter()
                    .map(|value| RData::TXT(TXT::new(vec![value])))
                    .collect(),
                _ => Vec::new(),
            };
            response.add_query(question);
            for data in records {
                response.add_answer(Record::from_rdata(name.clone(), 0, data));
            }
            socket
                .send_to(&response.to_vec().unwrap(), from)
                .await
                .unwrap();
        }
    });
    address
}

/// A web server with the files of the challenges.
async fn serve_http(answers: Arc<Answers>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answers = answers.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                    let mut part = [0; 1024];
                    match stream.read(&mut part).await {
                        Ok(0) | Err(_) => return,
                        Ok(length) => head.extend_from_slice(&part[..length]),
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default();
                let token = path.strip_prefix("/.well-known/acme-challenge/");
                let response = match token.and_then(|token| answers.file(token)) {
                    Some(file) => format!(
                        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{file}",
                        file.len()
                    ),
                    None => {
                        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                            .to_owned()
                    }
                };
                let _ = stream.write_all(response.as_bytes()).await;
            });
        }
    });
    address
}

/// The text that `openssl x509` prints of the first certificate.
fn openssl(pem: &str, options: &[&str]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), pem).unwrap();
    let output = Command::new("openssl")
        .args(["x509", "-noout", "-in"])
        .arg(file.path())
        .args(options)
        .output()
        .expect("openssl is installed");
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_and_its_apex_come_in_one_order_by_dns() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), limits());
    let pebble = Pebble::start(&running.solver.inner, Settings::default()).await;
    let hosts = &["*.a.test", "a.test"];
    running.keeper.want(
        vec![wanted(hosts, DNS)],
        vec![pebble.authority()],
        vec!["mailto:admin@a.test".to_owned()],
    );

    let issued = running.obtained("*.a.test").await;
    assert_eq!(issued.hosts, hosts);
    assert_eq!(issued.authority, "pebble");
    let names = openssl(&issued.pem, &["-ext", "subjectAltName"]);
    assert!(names.contains("DNS:*.a.test") && names.contains("DNS:a.test"));
    let chain = issued.pem.matches("BEGIN CERTIFICATE").count();
    assert!(chain >= 2, "the chain is there");
    assert!(issued.pem.find("PRIVATE KEY") > issued.pem.rfind("END CERTIFICATE"));
    assert!(openssl(&issued.pem, &["-text"]).contains("ASN1 OID: prime256v1"));

    until("challenges are withdrawn", || {
        running.solver.inner.shown.lock().is_empty().then_some(())
    })
    .await;
    assert_eq!(running.solver.inner.count.load(Ordering::SeqCst), 2);
    let status = running.status("*.a.test");
    assert_eq!((status.failures, status.last_error), (0, None));
    assert_eq!(
        status.validity_unix_s,
        Some((issued.not_before_unix_s, issued.not_after_unix_s))
    );
    assert!(matches!(
        &running.events.lock()[..],
        [Event::Obtained {
            is_renewal: false,
            ..
        }]
    ));

    let stored = dir.path().join("certificates/_wildcard.a.test.pem");
    assert_eq!(
        fs::metadata(&stored).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(fs::read_to_string(stored).unwrap().ends_with(&issued.pem));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_come_by_http_and_what_is_removed_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), limits());
    let pebble = Pebble::start(&running.solver.inner, Settings::default()).await;
    let all: Vec<_> = (0..6).map(|n| format!("host{n}.test")).collect();
    let want = |names: &[String]| {
        let wanted = names.iter().map(|name| wanted(&[name], HTTP)).collect();
        running
            .keeper
            .want(wanted, vec![pebble.authority()], Vec::new());
    };
    want(&all);
    let mut first = Vec::new();
    for name in &all {
        first.push(running.obtained(name).await);
    }
    want(&all[1..]);
    assert!(running.issued(&all[0]).is_none());
    want(&all);
    assert_eq!(running.issued(&all[0]), Some(first[0].clone()));
    assert!(running.failures(&all[0]).is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_with_a_new_key_before_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), limits());
    let settings = Settings {
        validity_s: Some(30),
        ..Settings::default()
    };
    let pebble = Pebble::start(&running.solver.inner, settings).await;
    running.keeper.want(
        vec![wanted(&["a.test"], DNS)],
        vec![pebble.authority()],
        Vec::new(),
    );
    let first = running.obtained("a.test").await;
    assert!((29..=31).contains(&(first.not_after_unix_s - first.not_before_unix_s)));
    let second = running.obtained_after("a.test", &first).await;
    let key = |pem: &str| openssl(pem, &["-pubkey"]);
    assert_ne!(key(&first.pem), key(&second.pem));
    until("an event", || {
        (running.successes("a.test") >= 2).then_some(())
    })
    .await;
    let events = running.events.lock().clone();
    assert!(matches!(
        events[1],
        Event::Obtained {
            is_renewal: true,
            ..
        }
    ));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_that_another_client_answers_is_told_and_tried_again() {
    for (challenges, place) in [
        (DNS, "_acme-challenge.a.test"),
        (HTTP, "http://a.test/.well-known/acme-challenge/"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let running = Running::start(dir.path(), limits());
        let pebble = Pebble::start(&running.solver.inner, Settings::default()).await;
        let answers = &running.solver.inner;
        *answers.taken_by.lock() = Some("another".to_owned());
        running.keeper.want(
            vec![wanted(&["a.test"], challenges)],
            vec![pebble.authority()],
            Vec::new(),
        );
        let reason = running.failed("a.test", 1).await;
        for part in [
            "authority pebble",
            "could not validate a.test",
            "(unauthorized)",
            "another",
            place,
        ] {
            assert!(reason.contains(part), "{reason} has {part}");
        }
        assert!(running.issued("a.test").is_none());
        assert!(answers.shown.lock().is_empty(), "they are withdrawn");
        let status = running.status("a.test");
        assert_eq!(status.failures, 1);
        assert_eq!(status.last_error.unwrap().reason, reason);
        let next = status.next_unix_s.unwrap();
        let now = jiff::Timestamp::now().as_second();
        assert!(
            (now + 10..=now + 80).contains(&next),
            "a minute of back-off"
        );

        *answers.taken_by.lock() = None;
        assert!(running.keeper.renew_now("a.test").await);
        running.obtained("a.test").await;
        until("it is noted", || {
            (running.status("a.test").failures == 0).then_some(())
        })
        .await;
        assert!(
            !running.keeper.renew_now("b.test").await,
            "nobody wants that"
        );
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_elsewhere_is_bound_if_the_authority_demands_it() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), limits());
    let external = (
        "kid-1",
        "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W",
    );
    let settings = Settings {
        external: Some(external),
        ..Settings::default()
    };
    let pebble = Pebble::start(&running.solver.inner, settings).await;
    let want = |account: Option<(&str, &str)>| {
        let mut authority = pebble.authority();
        authority.external_account = account.map(|(id, key)| (id.to_owned(), key.to_owned()));
        running
            .keeper
            .want(vec![wanted(&["a.test"], DNS)], vec![authority], Vec::new());
    };
    want(None);
    let reason = running.failed("a.test", 1).await;
    assert!(
        reason.contains("externalAccountRequired") && reason.contains("set its external account")
    );
    want(Some(("kid-1", "d3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmc")));
    let reason = running.failed("a.test", 2).await;
    assert!(
        reason.contains("check identifier and key of its external account"),
        "{reason}"
    );
    assert!(!reason.contains("d3Jvbm"));
    want(Some(external));
    running.obtained("a.test").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_the_authority_lost_is_registered_again() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), limits());
    let mut pebble = Pebble::start(&running.solver.inner, Settings::default()).await;
    running.keeper.want(
        vec![wanted(&["a.test"], DNS)],
        vec![pebble.authority()],
        Vec::new(),
    );
    let first = running.obtained("a.test").await;
    let accounts = || {
        let files = fs::read_dir(dir.path().join("accounts")).unwrap();
        let mut names: Vec<_> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(accounts().len(), 1);

    pebble.restart().await;
    until("no order is under way", || {
        (!running.status("a.test").is_ordering).then_some(())
    })
    .await;
    running.keeper.renew_now("a.test").await;
    let second = running.obtained_after("a.test", &first).await;
    assert!(second.not_after_unix_s >= first.not_after_unix_s);
    let names = accounts();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names[1].ends_with(".json.damaged"));
    assert!(running.failures("a.test").is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_directory_orders_nothing_and_has_the_account() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(&dir.path().join("old"), limits());
    let pebble = Pebble::start(&running.solver.inner, Settings::default()).await;
    let contact = vec!["mailto:admin@a.test".to_owned()];
    running.keeper.want(
        vec![wanted(&["a.test"], DNS)],
        vec![pebble.authority()],
        contact.clone(),
    );
    let first = running.obtained("a.test").await;
    copy_dir(&dir.path().join("old"), &dir.path().join("new"));
    let solver = running.solver.clone();
    running.stop().await;
    let account = || {
        let accounts = fs::read_dir(dir.path().join("new/accounts")).unwrap();
        let files = accounts.map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
        files.collect::<Vec<_>>()
    };
    let before = account();
    assert_eq!(before.len(), 1);

    let running = Running::start_with(&dir.path().join("new"), limits(), solver);
    running.keeper.want(
        vec![wanted(&["a.test"], DNS), wanted(&["b.test"], DNS)],
        vec![pebble.authority()],
        contact,
    );
    assert_eq!(running.issued("a.test"), Some(first.clone()));
    // The order of another name says that it has looked at all of them.
    running.obtained("b.test").await;
    assert_eq!(running.issued("a.test"), Some(first));
    assert_eq!(running.successes("a.test"), 0);
    assert!(!running.status("a.test").is_ordering);
    assert_eq!(account(), before);
    running.stop().await;
}
