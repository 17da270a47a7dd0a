//! Certificates, handshakes and tickets against a client of rustls, over loopback TCP.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

/// Certificates in a directory of their own.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn pair(&self, name: &str) -> PairFiles {
        PairFiles {
            cert: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
        }
    }

    /// Writes a self-signed certificate of P-256 for these names.
    fn make(&self, name: &str, hosts: &[&str]) -> PairFiles {
        self.make_until(name, hosts, 2090)
    }

    fn make_until(&self, name: &str, hosts: &[&str], year: i32) -> PairFiles {
        self.make_with(name, hosts, 2000..year, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    /// Writes a certificate that is valid from the first year to the begin of the last.
    fn make_with(
        &self,
        name: &str,
        hosts: &[&str],
        years: std::ops::Range<i32>,
        algorithm: &'static rcgen::SignatureAlgorithm,
    ) -> PairFiles {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = rcgen::CertificateParams::new(hosts).expect("names");
        let subject = &mut params.distinguished_name;
        subject.push(rcgen::DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        let key = rcgen::KeyPair::generate_for(algorithm).expect("a key");
        let cert = params.self_signed(&key).expect("a certificate");
        let pair = self.pair(name);
        std::fs::write(&pair.cert, cert.pem()).expect("written");
        std::fs::write(&pair.key, key.serialize_pem()).expect("written");
        pair
    }
}

fn options() -> ServerOptions {
    ServerOptions {
        default_host: None,
        allows_1_2: true,
        alpn: vec![b"http/1.1".to_vec()],
        tickets: Some(Arc::default()),
    }
}

fn side(files: Vec<PairFiles>, options: ServerOptions) -> ServerSide {
    ServerSide::new(Arc::new(Store::open(files, options).0))
}

/// A client that trusts the certificates of these files.
fn client(files: &[&PairFiles]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for pair in files {
        for root in ClientRoots::load(Some(&pair.cert)).expect("a root").roots {
            roots.roots.push(root);
        }
    }
    let mut client = client_config(roots, None).expect("no identity");
    // A resumed session shows no certificate.
    client.resumption = Resumption::disabled();
    client
}

/// What the two sides of one handshake find.
type Shaken = (
    Result<(HandshakeKind, Vec<u8>), String>,
    Result<TlsAccepted, HandshakeError>,
);

async fn shake(side: &ServerSide, client: &Arc<ClientConfig>, name: &str) -> Shaken {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let stream = TcpStream::connect(listener.local_addr().expect("bound"))
        .await
        .expect("somebody listens");
    let (accepted, _) = listener.accept().await.expect("a connection");
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let connector = TlsConnector::from(client.clone());
    let connect = async {
        let mut stream = connector.connect(name, stream).await?;
        // Tickets come with the first bytes.
        stream.read_u8().await?;
        let connection = stream.get_ref().1;
        let shown = connection.peer_certificates().expect("a certificate")[0].to_vec();
        Ok((connection.handshake_kind().expect("complete"), shown))
    };
    let accept = async {
        let mut accepted = side.accept(accepted, LIMIT, None).await?;
        let _ = accepted.stream.write_all(b"x").await;
        let _ = accepted.stream.flush().await;
        Ok(accepted)
    };
    let (connected, accepted) = tokio::join!(connect, accept);
    (
        connected.map_err(|error: std::io::Error| error.to_string()),
        accepted,
    )
}

fn leaf(pair: &PairFiles) -> Vec<u8> {
    files::certificates(&pair.cert).expect("a certificate")[0].to_vec()
}

#[tokio::test]
async fn a_client_gets_the_certificate_of_the_host_that_it_names() {
    let files = Files::new();
    let exact = files.make("exact", &["www.a.test", "192.0.2.1"]);
    let wild = files.make("wild", &["*.a.test", "b.test"]);
    let local = files.make("local", &["127.0.0.1"]);
    let all = vec![wild.clone(), exact.clone()];
    let with_default = ServerOptions {
        default_host: Some("b.test".into()),
        ..options()
    };
    let with_address = vec![wild.clone(), local.clone()];
    // Files, options, name of the client; the pair that it gets or why it gets none.
    let table = [
        (&all, options(), "www.a.test", Ok(&exact)),
        (&all, options(), "WWW.A.Test", Ok(&exact)),
        (&all, options(), "x.a.test", Ok(&wild)),
        (&all, options(), "b.test", Ok(&wild)),
        (&all, options(), "a.test", Err(Refusal::UnknownName)),
        (&all, options(), "y.x.a.test", Err(Refusal::UnknownName)),
        (&all, options(), "c.test", Err(Refusal::UnknownName)),
        (
            &all,
            with_default.clone(),
            "c.test",
            Err(Refusal::UnknownName),
        ),
        // An address is not sent as a name.
        (&all, options(), "127.0.0.1", Err(Refusal::NoName)),
        (&all, with_default.clone(), "127.0.0.1", Ok(&wild)),
        (&with_address, options(), "127.0.0.1", Ok(&local)),
        (&with_address, with_default, "127.0.0.1", Ok(&local)),
    ];
    for (pairs, options, name, expected) in table {
        let side = side(pairs.clone(), options);
        let client = Arc::new(client(&[&exact, &wild, &local]));
        let (connected, accepted) = shake(&side, &client, name).await;
        match expected {
            Ok(pair) if name == "127.0.0.1" && *pair == wild => {
                // The client finds that the default certificate is not for it.
                assert!(connected.is_err(), "{name}");
                assert_eq!(accepted.expect_err("refused").refusal, Refusal::ClientAlert);
            }
            Ok(pair) => {
                assert_eq!(connected.expect("complete").1, leaf(pair), "{name}");
                assert!(
                    accepted
                        .expect("complete")
                        .identity
                        .covers(&name.to_lowercase())
                );
            }
            Err(refusal) => {
                let error = connected.expect_err("refused");
                assert!(error.contains("UnrecognisedName"), "{name}: {error}");
                assert_eq!(accepted.expect_err("refused").refusal, refusal, "{name}");
            }
        }
    }
}

#[test]
fn a_wildcard_covers_one_label_and_an_address_is_no_name() {
    let files = Files::new();
    let pair = files.make("a", &["*.a.test", "B.test", "192.0.2.1", "2001:db8::1"]);
    let identity = Identity::load(&pair.cert, &pair.key).expect("good");
    for (host, is_covered) in [
        ("x.a.test", true),
        ("a.test", false),
        (".a.test", false),
        ("y.x.a.test", false),
        ("b.test", true),
        ("x.b.test", false),
        ("192.0.2.1", true),
        ("192.0.2.2", false),
        ("2001:db8::1", true),
        ("[2001:db8::1]", true),
        ("2001:db8::2", false),
        ("", false),
        ("test", false),
    ] {
        assert_eq!(identity.covers(host), is_covered, "{host:?}");
    }
    assert_eq!(
        identity.names(),
        ["*.a.test", "b.test", "192.0.2.1", "2001:db8::1"]
    );
}

#[test]
fn a_pair_that_cannot_be_used_says_why_and_an_expired_one_is_only_warned_of() {
    let files = Files::new();
    let good = files.make("good", &["a.test"]);
    let other = files.make("other", &["a.test"]);
    let old = files.make_until("old", &["a.test"], 2001);
    let bare = files.make("bare", &[]);
    let write = |name: &str, text: &[u8]| {
        std::fs::write(files.path(name), text).expect("written");
        files.path(name)
    };
    let both = [&good.cert, &other.cert].map(|path| std::fs::read(path).expect("there"));
    let chain = write("chain", &both.concat());
    let cut = write("cut", &both[0][..200]);
    let encrypted = write(
        "encrypted",
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let many = write("many", &both[0].repeat(17));
    let missing = files.path("missing");
    let directory = files.path("");
    let der = write("der", &leaf(&good));
    let empty = write("empty", b"");
    let huge = files.path("huge");
    std::fs::File::create(&huge)
        .and_then(|file| file.set_len(1 << 40))
        .expect("a sparse file");
    let table: [(&Path, &Path, &str); 16] = [
        (
            &der,
            &good.key,
            "der has no certificate in PEM form; it is in DER form",
        ),
        (&good.cert, &der, "it is in DER form: `openssl pkey"),
        (
            &empty,
            &good.key,
            "empty has no certificate in PEM form; it is empty",
        ),
        (&good.cert, &empty, "; it is empty"),
        (&good.key, &good.cert, "are cert and key exchanged?"),
        (
            &chain,
            &other.key,
            "chain has the certificate of this key behind another one",
        ),
        (&huge, &good.key, "huge has more than 4194304 bytes"),
        (&good.cert, &other.key, "other.key cannot be used with"),
        (&good.cert, &other.key, "the key of another certificate"),
        (&missing, &good.key, "cannot read"),
        (&good.cert, &missing, "missing"),
        (&cut, &good.key, "cut has no certificate"),
        (
            &good.cert,
            &encrypted,
            "encrypted has a private key with a passphrase",
        ),
        (&bare.cert, &bare.key, "bare.pem names no host"),
        (&many, &good.key, "many has more than 16 certificates"),
        (&directory, &good.key, "is not a regular file"),
    ];
    for (cert, key, words) in table {
        let error = Identity::load(cert, key).expect_err("unusable").to_string();
        assert!(error.contains(words), "{error} in place of {words}");
    }
    let warning = |cert: &Path, key: &Path| {
        let identity = Identity::load(cert, key).expect("usable");
        identity.warning(1_800_000_000)
    };
    assert_eq!(warning(&good.cert, &good.key), None);
    assert!(warning(&old.cert, &old.key).is_some_and(|words| words.contains("expired")));
    assert!(warning(&chain, &good.key).is_some_and(|words| words.contains("did not issue")));
    // From 2000 to 2001; a tenth of it is longer than two weeks.
    let identity = Identity::load(&old.cert, &old.key).expect("usable");
    let end = identity.not_after_unix_s();
    for (before_end, expected) in [
        (15 * 86_400, None),
        (14 * 86_400, None),
        (14 * 86_400 - 1, Some(14 * 86_400 - 1)),
        (0, Some(0)),
        (-1, None),
        (400 * 86_400, None),
    ] {
        assert_eq!(identity.expires_soon(end - before_end), expected);
    }

    // Editors and people put text around the PEM.
    let [cert, key] = [&good.cert, &good.key].map(|path| std::fs::read(path).expect("there"));
    for (before, after) in [
        (&b"\xef\xbb\xbf"[..], &b""[..]),
        (b"\xef\xbb\xbf# ours\r\n", b"\n\x00junk"),
        (b"\r\n \n", b"---"),
    ] {
        let around = |text: &[u8]| [before, text, after].concat();
        let cert = write("around.pem", &around(&cert));
        let key = write("around.key", &around(&key));
        Identity::load(&cert, &key).expect("usable");
    }
    let identity = Identity::load(&good.cert, &good.key).expect("usable");
    assert!(
        identity
            .warning(0)
            .is_some_and(|words| words.contains("not valid yet"))
    );
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let files = Files::new();
    let good = files.make("good", &["a.test"]);
    let [pipe, socket] = ["pipe", "socket"].map(|name| files.path(name));
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|status| status.success()));
    let _socket = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
    let link = files.path("link");
    std::os::unix::fs::symlink(&pipe, &link).expect("linked");
    let (zero, terminal) = (PathBuf::from("/dev/zero"), PathBuf::from("/dev/ptmx"));
    for odd in [pipe, socket, link, zero, terminal, files.path("")] {
        for (cert, key) in [(&odd, &good.key), (&good.cert, &odd)] {
            // In a thread of its own, which a reader that waits would hold for ever.
            let (done, result) = std::sync::mpsc::channel();
            let (cert, key) = (cert.clone(), key.clone());
            std::thread::spawn(move || drop(done.send(Identity::load(&cert, &key))));
            let read = result.recv_timeout(LIMIT).expect("an answer at once");
            let problem = read.expect_err("unusable").to_string();
            assert!(problem.ends_with("is not a regular file"), "{problem}");
        }
    }
}

#[tokio::test]
async fn a_broken_pair_leaves_the_former_one_in_force_and_is_told_once() {
    let files = Files::new();
    let (first, second) = (files.make("a", &["a.test"]), files.make("b", &["b.test"]));
    let (next, former) = (files.make("next", &["a.test"]), leaf(&first));
    let (store, events) = Store::open(vec![first.clone(), second.clone()], options());
    assert!(
        matches!(&events[..], [Event::Loaded { names, .. }, Event::Loaded { .. }] if names == &["a.test"])
    );
    assert_eq!(store.check(false), []);
    assert_eq!(store.check(true), []);
    let side = ServerSide::new(Arc::new(store));
    let store = side.store().clone();
    let client = Arc::new(client(&[&first, &second, &next]));
    let shown = async |name: &str| shake(&side, &client, name).await.0.map(|(_, shown)| shown);

    // The certificate is new, its key is not yet: half of a renewal.
    std::fs::copy(&next.cert, &first.cert).expect("copied");
    let events = store.check(false);
    let [
        Event::Failed {
            files: at,
            names,
            problem,
        },
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!((at, &names[..]), (&first, &["a.test".to_owned()][..]));
    assert!(
        problem.contains("a.key") && problem.contains("another certificate"),
        "{problem}"
    );
    assert_eq!(store.check(false), []);
    // The same reason again is not told.
    assert_eq!(store.check(true), []);
    assert_eq!(shown("a.test").await.as_ref(), Ok(&former));
    assert!(store.states()[0].is_broken && !store.states()[1].is_broken);

    std::fs::remove_file(&first.key).expect("removed");
    let events = store.check(false);
    assert!(
        matches!(&events[..], [Event::Failed { problem, .. }] if problem.contains("cannot read")),
        "{events:?}"
    );
    assert_eq!(shown("a.test").await.as_ref(), Ok(&former));
    assert_eq!(shown("b.test").await, Ok(leaf(&second)));

    std::fs::copy(&next.key, &first.key).expect("copied");
    assert!(matches!(&store.check(false)[..], [Event::Loaded { .. }]));
    assert_eq!(shown("a.test").await, Ok(leaf(&next)));
    assert!(!store.states()[0].is_broken);

    // Another list: what stays is not read again, what went is not shown.
    let third = files.pair("missing");
    let events = store.replace(vec![second.clone(), third], options());
    assert!(
        matches!(&events[..], [Event::Failed { names, .. }] if names.is_empty()),
        "{events:?}"
    );
    assert!(shown("a.test").await.is_err());
    assert_eq!(shown("b.test").await, Ok(leaf(&second)));
    assert!(!store.is_empty());
    store.replace(Vec::new(), options());
    assert!(store.is_empty());
}

#[tokio::test]
async fn a_session_is_resumed_by_any_node_with_the_same_keys() {
    let files = Files::new();
    let pair = files.make("a", &["a.test"]);
    let key = |number: u8| TicketKey {
        name: [number; 16],
        secret: [number; 32],
        begins_unix_s: 0,
        ends_unix_s: u64::MAX,
    };
    let node = |keys: Vec<TicketKey>| {
        let tickets = Arc::new(Tickets::default());
        tickets.set(keys);
        let tickets = Some(tickets);
        side(
            vec![pair.clone()],
            ServerOptions {
                tickets,
                ..options()
            },
        )
    };
    let [first, second, other] = [
        node(vec![key(1)]),
        node(vec![key(2), key(1)]),
        node(vec![key(2)]),
    ];
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (target, expected) in [
            (&first, HandshakeKind::Resumed),
            (&second, HandshakeKind::Resumed),
            (&other, HandshakeKind::Full),
        ] {
            let mut roots = RootCertStore::empty();
            roots.roots = ClientRoots::load(Some(&pair.cert)).expect("a root").roots;
            let mut client = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[version])
                .expect("a version")
                .with_root_certificates(roots)
                .with_no_client_auth();
            client.resumption = Resumption::in_memory_sessions(8);
            let client = Arc::new(client);
            let (connected, _) = shake(&first, &client, "a.test").await;
            assert_eq!(connected.expect("complete").0, HandshakeKind::Full);
            let (connected, _) = shake(target, &client, "a.test").await;
            assert_eq!(connected.expect("complete").0, expected, "{version:?}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_agreed_on_is_refused_by_its_name() {
    let files = Files::new();
    let pair = files.make("a", &["a.test"]);
    let only_1_3 = ServerOptions {
        allows_1_2: false,
        ..options()
    };
    let of_1_2 = |client: &mut ClientConfig| {
        let roots = ClientRoots::load(Some(&pair.cert)).expect("a root");
        *client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth();
    };
    let of_h3 = |client: &mut ClientConfig| client.alpn_protocols = vec![b"h3".to_vec()];
    let distrusts = |client: &mut ClientConfig| {
        let roots = ClientRoots::load(None).expect("roots");
        *client = client_config(roots, None).expect("no identity");
    };
    type Change<'a> = &'a dyn Fn(&mut ClientConfig);
    let table: [(ServerOptions, Change<'_>, Refusal, &str); 3] = [
        (only_1_3, &of_1_2, Refusal::Version, "ProtocolVersion"),
        (
            options(),
            &of_h3,
            Refusal::NoProtocol,
            "NoApplicationProtocol",
        ),
        (
            options(),
            &distrusts,
            Refusal::ClientAlert,
            "invalid peer certificate",
        ),
    ];
    for (options, change, refusal, words) in table {
        let mut client = client(&[&pair]);
        change(&mut client);
        let side = side(vec![pair.clone()], options);
        let (connected, accepted) = shake(&side, &Arc::new(client), "a.test").await;
        let error = connected.expect_err("refused");
        assert!(error.contains(words), "{error}");
        assert_eq!(accepted.expect_err("refused").refusal, refusal);
    }
}

/// A ClientHello of TLS 1.3 that names these hosts, as many as there are.
fn hello(hosts: &[&[u8]]) -> Vec<u8> {
    fn sized(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
    }
    let names: Vec<u8> = hosts
        .iter()
        .flat_map(|host| [&[0][..], &sized(host)].concat())
        .collect();
    let extension =
        |number: u16, content: &[u8]| [&number.to_be_bytes()[..], &sized(content)].concat();
    let extensions = [
        extension(0, &sized(&names)),
        extension(10, &[0, 2, 0, 29]),
        extension(13, &[0, 2, 4, 3]),
        extension(43, &[2, 3, 4]),
        extension(51, &sized(&[&[0, 29][..], &sized(&[9; 32])].concat())),
    ]
    .concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0, 0, 2, 0x13, 1, 1, 0],
        &sized(&extensions),
    ]
    .concat();
    let message = [&[1, 0][..], &sized(&body)].concat();
    [&[22, 3, 1][..], &sized(&message)].concat()
}

#[tokio::test]
async fn odd_server_names_are_refused_or_are_the_name_that_they_mean() {
    let files = Files::new();
    let side = side(vec![files.make("a", &["a.test", "*.w.test"])], options());
    let long = [b'x'; 300];
    let label = [&[b'x'; 64][..], b".w.test"].concat();
    // Names, and the refusal; `None` where the handshake goes on.
    let table: [(&[&[u8]], Option<Refusal>); 12] = [
        (&[b"a.test"], None),
        (&[b"A.tEsT"], None),
        (&[b"a.test."], None),
        (&[b"x.w.test"], None),
        (&[&long], Some(Refusal::Junk)),
        (&[&label], Some(Refusal::Junk)),
        (&[b""], Some(Refusal::Junk)),
        (&[], Some(Refusal::Junk)),
        (&[b"a.test", b"a.test"], Some(Refusal::Junk)),
        (&[b"a test"], Some(Refusal::Junk)),
        (&[b"a.test\0.b.test"], Some(Refusal::Junk)),
        (&[b"192.0.2.1"], Some(Refusal::NoName)),
    ];
    for (hosts, expected) in table {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut stream = TcpStream::connect(listener.local_addr().expect("bound"))
            .await
            .expect("somebody listens");
        let (accepted, _) = listener.accept().await.expect("a connection");
        stream.write_all(&hello(hosts)).await.expect("sent");
        stream.shutdown().await.expect("ended");
        let error = side
            .accept(accepted, LIMIT, None)
            .await
            .expect_err("never complete");
        // A handshake that goes on misses the client's part.
        let names: Vec<_> = hosts
            .iter()
            .map(|host| String::from_utf8_lossy(host))
            .collect();
        assert_eq!(
            error.refusal,
            expected.unwrap_or(Refusal::Left),
            "{names:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_its_time_and_its_first_bytes_are_looked_at() {
    let files = Files::new();
    let side = side(vec![files.make("a", &["a.test"])], options());
    let record = |kind: u8, length: u16, rest: &[u8]| {
        let mut bytes = vec![kind, 3, 1];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(rest);
        bytes
    };
    // What the client sends and whether it then ends; the refusal.
    let table: [(Vec<u8>, bool, Refusal); 10] = [
        (b"".to_vec(), false, Refusal::TimedOut),
        (b"".to_vec(), true, Refusal::Left),
        (vec![22], false, Refusal::TimedOut),
        (vec![22, 3, 1], true, Refusal::Left),
        (record(22, 500, &[1, 0, 1, 0xf0]), false, Refusal::TimedOut),
        (
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            false,
            Refusal::PlainHttp,
        ),
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            false,
            Refusal::PlainHttp,
        ),
        (b"SSH-2.0-x\r\n".to_vec(), false, Refusal::Junk),
        (record(22, 4, &[99, 0, 0, 0]), false, Refusal::Junk),
        (record(22, 0xffff, &[1; 100]), false, Refusal::Junk),
    ];
    for (bytes, ends, refusal) in table {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut stream = TcpStream::connect(listener.local_addr().expect("bound"))
            .await
            .expect("somebody listens");
        let (accepted, _) = listener.accept().await.expect("a connection");
        stream.write_all(&bytes).await.expect("sent");
        if ends {
            stream.shutdown().await.expect("ended");
        }
        let began = tokio::time::Instant::now();
        let error = side
            .accept(accepted, LIMIT, None)
            .await
            .expect_err("refused");
        assert_eq!(error.refusal, refusal, "{bytes:?}");
        assert_eq!(error.plain.is_some(), refusal == Refusal::PlainHttp);
        assert_eq!(
            began.elapsed() >= LIMIT,
            refusal == Refusal::TimedOut,
            "{bytes:?}"
        );
    }
}

/// The begin of a year, in seconds after the Unix epoch, to a day.
fn year(year: i64) -> i64 {
    (year - 1970) * 31_556_952
}

#[test]
fn a_certificate_that_is_valid_now_comes_before_others_of_its_name() {
    let files = Files::new();
    let host = &["a.b.test"][..];
    let (ecdsa, ed25519) = (&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519);
    let old = files.make_with("old", host, 2000..2010, ecdsa);
    let other = files.make_with("other", host, 2000..2020, ed25519);
    let wildcard = files.make_with("wildcard", &["*.b.test"], 2000..2030, ecdsa);
    let next = files.make_with("next", host, 2040..2060, ecdsa);
    let pairs = [&old, &other, &wildcard, &next];
    // Whatever the order of the file, and without reading the files again.
    for turn in 0..pairs.len() {
        let mut order = pairs.map(Clone::clone);
        order.rotate_left(turn);
        let (store, _) = Store::open(order.to_vec(), options());
        for (now, expected) in [
            (2005, &old),
            (2015, &other),
            (2025, &wildcard),
            (2045, &next),
            (2009, &old),
        ] {
            let shown = store.choose_at("a.b.test", year(now)).expect("one of them");
            let found = &shown.identity.certified.cert[0];
            assert_eq!(found.to_vec(), leaf(expected), "{now}, turn {turn}");
        }
        // None is valid: an exact name by its algorithm, and the order of the file.
        let shown = store
            .choose_at("a.b.test", year(2035))
            .expect("one of them");
        let found = shown.identity.certified.cert[0].to_vec();
        assert!(found == leaf(&old) || found == leaf(&next), "turn {turn}");
        let shown = store
            .choose_at("c.b.test", year(2035))
            .expect("the wildcard");
        assert_eq!(shown.identity.certified.cert[0].to_vec(), leaf(&wildcard));
    }
}

#[tokio::test]
async fn an_expired_exact_certificate_gives_way_to_a_valid_wildcard() {
    let files = Files::new();
    let old = files.make_until("old", &["a.b.test"], 2001);
    let wildcard = files.make("wildcard", &["*.b.test"]);
    let side = side(vec![old, wildcard.clone()], options());
    let client = Arc::new(client(&[&wildcard]));
    let (connected, _) = shake(&side, &client, "a.b.test").await;
    let (_, shown) = connected.expect("a handshake that the client accepts");
    assert_eq!(shown, leaf(&wildcard));
}

#[test]
fn a_certificate_that_expires_is_warned_of_once_for_each_reason() {
    let files = Files::new();
    let algorithm = &rcgen::PKCS_ECDSA_P256_SHA256;
    let pair = files.make_with("a", &["a.test"], 2000..2090, algorithm);
    let (store, events) = Store::open(vec![pair], options());
    assert!(matches!(&events[..], [Event::Loaded { warning: None, .. }]));
    let end = store.states()[0].not_after_unix_s.expect("in force");
    let day = 86_400;
    for (now, words) in [
        (end - 15 * day, None),
        (end - 13 * day, Some("expires soon")),
        (end - 12 * day, None),
        (end + 1, Some("has expired")),
        (end + day, None),
    ] {
        let events = store.check_at(false, now);
        match (words, &events[..]) {
            (None, []) => {}
            (Some(words), [Event::Aged { names, warning, .. }]) => {
                assert!(
                    warning.contains(words) && names == &["a.test"],
                    "{events:?}"
                );
            }
            _ => panic!("{events:?} where {words:?} is due"),
        }
    }
    let short = Identity::load(
        &files
            .make_with("s", &["a.test"], 2000..2001, algorithm)
            .cert,
        &files.pair("s").key,
    )
    .expect("usable");
    let end = short.not_after_unix_s();
    assert_eq!(short.warning(end - 15 * day), None);
    assert!(short.warning(end - 13 * day).is_some());
}

/// What an authority sees of a challenge (RFC 8737 section 3): the server's certificate, or the error.
/// Its connection must end by itself.
async fn ask_for_challenge(
    side: &ServerSide,
    name: &str,
    offered: &[&[u8]],
) -> (Result<Vec<u8>, String>, Refusal) {
    let mut client = authority();
    client.alpn_protocols = offered.iter().map(|protocol| protocol.to_vec()).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let stream = TcpStream::connect(address).await.expect("it listens");
    let (accepted, _) = listener.accept().await.expect("a connection");
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let connect = async {
        let connector = TlsConnector::from(Arc::new(client));
        let mut stream = connector.connect(name, stream).await?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await?;
        assert!(rest.is_empty(), "the server closes without a word");
        let connection = stream.get_ref().1;
        assert_eq!(connection.alpn_protocol(), Some(&b"acme-tls/1"[..]));
        Ok(connection.peer_certificates().expect("shown")[0].to_vec())
    };
    let (seen, accepted) = tokio::join!(connect, side.accept(accepted, LIMIT, None));
    let refusal = accepted.expect_err("no requests follow").refusal;
    (
        seen.map_err(|error: std::io::Error| error.to_string()),
        refusal,
    )
}

/// A client that accepts every certificate: that of a challenge has a critical extension which
/// other clients refuse.
fn authority() -> ClientConfig {
    #[derive(Debug)]
    struct Any;

    impl rustls::client::danger::ServerCertVerifier for Any {
        fn verify_server_cert(
            &self,
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &[rustls::pki_types::CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            let algorithms = provider().signature_verification_algorithms;
            algorithms.supported_schemes()
        }
    }

    let mut client = client(&[]);
    client.dangerous().set_certificate_verifier(Arc::new(Any));
    client
}

#[tokio::test]
async fn an_authority_alone_sees_the_certificate_of_a_challenge() {
    const ACME: &[u8] = b"acme-tls/1";
    const HTTP: &[u8] = b"http/1.1";
    let files = Files::new();
    let pair = files.make("a", &["a.test"]);
    let side = side(vec![pair.clone()], options());
    let (digest, other) = ([7; 32], [9; 32]);
    let open = [
        ("New.test".to_owned(), digest),
        ("a.test".to_owned(), other),
    ];
    side.challenges().set(&open).expect("names");
    for (name, digest) in [
        ("new.test", digest),
        ("NEW.test", digest),
        ("a.test", other),
    ] {
        let (seen, refusal) = ask_for_challenge(&side, name, &[ACME]).await;
        assert_eq!(refusal, Refusal::Challenge, "{name}");
        let seen = seen.expect("a certificate");
        let (_, seen) = x509_parser::parse_x509_certificate(&seen).expect("good");
        let extension = seen
            .extensions()
            .iter()
            .find(|extension| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.31");
        let extension = extension.expect("acmeIdentifier");
        assert!(extension.critical);
        assert_eq!(extension.value, [&[4, 32][..], &digest].concat());
        let names = seen.subject_alternative_name().expect("one").expect("one");
        let [x509_parser::extensions::GeneralName::DNSName(only)] = names.value.general_names[..]
        else {
            panic!("{names:?}")
        };
        assert!(only.eq_ignore_ascii_case(name));
    }

    // Another host, no challenge, or a client that offers more gets no such certificate.
    let (seen, refusal) = ask_for_challenge(&side, "b.test", &[ACME]).await;
    assert!(seen.expect_err("refused").contains("UnrecognisedName"));
    assert_eq!(refusal, Refusal::UnknownName);
    let (connected, accepted) = {
        let mut client = client(&[&pair]);
        client.alpn_protocols = vec![ACME.to_vec(), HTTP.to_vec()];
        shake(&side, &Arc::new(client), "a.test").await
    };
    assert_eq!(connected.expect("complete").1, leaf(&pair));
    let accepted = accepted.expect("complete");
    assert_eq!(accepted.stream.get_ref().1.alpn_protocol(), Some(HTTP));
    side.challenges().set(&[]).expect("none");
    let (seen, refusal) = ask_for_challenge(&side, "a.test", &[ACME]).await;
    assert!(seen.expect_err("refused").contains("NoApplicationProtocol"));
    assert_eq!(refusal, Refusal::NoProtocol);

    for bad in ["*.a.test", "192.0.2.1", "ä.test"] {
        let refused = side.challenges().set(&[(bad.to_owned(), digest)]);
        let error = refused.expect_err("not a host").to_string();
        assert!(error.contains(bad), "{error}");
    }
}
