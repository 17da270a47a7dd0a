//! HTTPS at an edge: certificates, handshakes and their limits, against openssl and curl.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nearcast_testing::{Origin, Reply};

use crate::lab::addresses::Block;
use crate::lab::certificates::{ECDSA, Pair, RSA, s_client};
use crate::lab::process::{Process, nearcast, run};
use crate::lab::tools::curl;
use crate::lab::wait;

const LIMIT: Duration = Duration::from_secs(20);

/// An edge with a fleet file, without control.
struct Lab {
    edge: Process,
    http: SocketAddr,
    https: SocketAddr,
    admin: SocketAddr,
    origin: Origin,
    directory: tempfile::TempDir,
}

impl Lab {
    /// With sections of the fleet file that `more` writes for certificates in a directory.
    fn start(more: impl FnOnce(&Path) -> String) -> Self {
        Self::with(more, "")
    }

    /// The same with settings of the node.
    fn with(more: impl FnOnce(&Path) -> String, node: &str) -> Self {
        let block = Block::take();
        let [http, https, admin] =
            [8080, 8443, 9100].map(|port| SocketAddr::from((block.host(10), port)));
        let origin = Origin::start_at(SocketAddr::from((block.host(80), 8000)), |seen| match seen
            .target
            .as_str()
        {
            "/large" => Reply::ok(vec![b'x'; 1 << 20], "max-age=60"),
            _ => Reply::ok(format!("for {}", seen.fields["host"]), "max-age=60"),
        });
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let mut text = format!(
            "[fleet]\nzone = \"cdn.test\"\nstate_dir = \"state\"\n{}\n",
            more(directory.path())
        );
        let ip = http.ip();
        let _ = write!(
            text,
            "[[cluster]]\nname = \"ams\"\nplace = {{ latitude = 52.37, longitude = 4.9 }}\n\
             [[cluster.node]]\nname = \"ams-1\"\naddress = \"{ip}\"\nlisten = \"{http}\"\nlisten_tls = \"{https}\"\n\
             admin = \"{admin}\"\nmemory = \"16MiB\"\ndisk = \"0\"\nthreads = 1\n{node}\n\
             [[site]]\nname = \"www\"\nhosts = [\"*\"]\norigin = \"{}\"\n",
            origin.url()
        );
        let file = directory.path().join("nearcast.toml");
        std::fs::write(&file, text).expect("the fleet file can be written");
        let mut command = nearcast();
        command.args(["edge", "--node", "ams-1", "--user", "root", "--fleet"]);
        command.arg(&file);
        let mut edge = Process::start("edge", directory.path(), command);
        edge.wait_for_output("the edge serves", LIMIT);
        Self {
            edge,
            http,
            https,
            admin,
            origin,
            directory,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `curl` for `https://<host>:8443<path>` at the edge; arguments come before the URL.
    fn curl(&self, pair: &Pair, host: &str, arguments: &[&str], path: &str) -> String {
        let resolve = format!("{host}:8443:{}", self.https.ip());
        let url = format!("https://{host}:8443{path}");
        let first = ["--resolve", &resolve, "--cacert", pair.cert()];
        curl(&[&first, arguments, &[url.as_str()]].concat())
    }

    /// Handshakes with this result.
    fn handshakes(&self, result: &str) -> u64 {
        self.metric(&format!(
            "nearcast_edge_tls_handshakes_total{{result=\"{result}\"}}"
        ))
        .unwrap_or_default() as u64
    }

    fn metric(&self, series: &str) -> Option<f64> {
        self.series(series)?.rsplit(' ').next()?.parse().ok()
    }

    /// A line of the metrics.
    fn series(&self, series: &str) -> Option<String> {
        let metrics = curl(&[&format!("http://{}/metrics", self.admin)]);
        let line = metrics.lines().find(|line| line.starts_with(series));
        line.map(str::to_owned)
    }

    fn wait_handshakes(&self, result: &str, count: u64) {
        wait::until(
            &format!("{count} handshakes with {result}"),
            LIMIT,
            || match self.handshakes(result) {
                found if found >= count => Ok(()),
                found => Err(format!("{found}")),
            },
        );
    }

    /// The subject of the certificate that a client is shown.
    fn shown(&self, arguments: &[&str]) -> String {
        let said = s_client(self.https, arguments, "");
        let subject = said.lines().find_map(|line| line.strip_prefix("subject="));
        subject.map_or(said.clone(), |subject| {
            subject
                .replace(' ', "")
                .trim_start_matches("CN=")
                .to_owned()
        })
    }
}

#[test]
fn a_site_is_served_over_https() {
    let mut pair = None;
    let lab = Lab::start(|directory| {
        let made = Pair::make(directory, "www", &ECDSA, "DNS:www.test,DNS:*.a.test");
        pair.insert(made).section()
    });
    let pair = pair.expect("made");
    for host in ["www.test", "x.a.test"] {
        for status in ["fwd=uri-miss", "; hit"] {
            let answer = lab.curl(&pair, host, &["-i"], "/page");
            assert!(
                answer.contains(status) && answer.ends_with(&format!("for {host}")),
                "{answer}"
            );
        }
    }
    // Both versions, a large body, one connection for several requests, a request with a body.
    for version in ["1.2", "1.3"] {
        let only = [
            "--tls-max",
            version,
            "-o",
            "/dev/null",
            "-w",
            "%{size_download} %{num_connects} ",
        ];
        let first = "https://www.test:8443/page";
        let sizes = lab.curl(
            &pair,
            "www.test",
            &[&only[..], &[first, "-o", "/dev/null"]].concat(),
            "/large",
        );
        assert_eq!(sizes, "12 1 1048576 0 ", "{version}");
        let posted = lab.curl(
            &pair,
            "www.test",
            &["-d", "a=b", "--tls-max", version],
            "/post",
        );
        assert_eq!(posted, "for www.test");
    }
    let seen = lab.origin.seen();
    assert!(
        seen.iter()
            .any(|seen| seen.target == "/post" && seen.body == b"a=b")
    );
    assert!(lab.handshakes("full") >= 4);
    // What the metrics say of the certificate.
    let expiry = lab.metric("nearcast_edge_certificate_expiry_timestamp_seconds");
    let series = "nearcast_edge_certificate_expiry_timestamp_seconds{";
    let source = lab.series(series).expect("there");
    assert!(source.contains("source=\"file\""), "{source}");
    let days = (expiry.expect("there") - nearcast_fleet::clock::now_unix_s() as f64) / 86_400.0;
    assert!((28.0..31.0).contains(&days), "{days}");
    assert_eq!(lab.metric("nearcast_edge_certificate_broken"), Some(0.0));
}

#[test]
fn versions_and_ciphers_are_those_of_today() {
    let make = |directory: &Path| Pair::make(directory, "www", &ECDSA, "DNS:www.test").section();
    let lab = Lab::start(make);
    let name = ["-servername", "www.test"];
    let table: [(&[&str], &str); 7] = [
        (&["-tls1_2"], "New, TLSv1.2, Cipher is ECDHE-ECDSA-"),
        (&["-tls1_3"], "New, TLSv1.3, Cipher is TLS_"),
        (
            &["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"],
            "Cipher is ECDHE-ECDSA-CHACHA20-POLY1305",
        ),
        (
            &["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"],
            "alert handshake failure",
        ),
        (
            &["-tls1", "-cipher", "DEFAULT@SECLEVEL=0"],
            "alert handshake failure",
        ),
        // CBC, and keys that are not ephemeral.
        (
            &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"],
            "alert handshake failure",
        ),
        (
            &["-tls1_2", "-cipher", "AES128-GCM-SHA256"],
            "alert handshake failure",
        ),
    ];
    for (arguments, expected) in table {
        let said = s_client(lab.https, &[&name[..], arguments].concat(), "");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    assert_eq!(
        (lab.handshakes("version"), lab.handshakes("mismatch")),
        (2, 2)
    );
    // A client cannot renegotiate; and TLS 1.3 has no early data.
    let said = s_client(lab.https, &[&name[..], &["-tls1_2"]].concat(), "R\n");
    assert!(
        said.contains("RENEGOTIATING") && said.contains("no renegotiation"),
        "{said}"
    );
    let said = s_client(lab.https, &[&name[..], &["-tls1_3"]].concat(), "");
    assert!(
        said.contains("Secure Renegotiation IS NOT supported")
            && !said.contains("Early data was accepted"),
        "{said}"
    );

    let lab = Lab::start(|directory| format!("[tls]\nversion_min = \"1.3\"\n{}", make(directory)));
    let old = s_client(lab.https, &["-servername", "www.test", "-tls1_2"], "");
    assert!(old.contains("alert protocol version"), "{old}");
    assert_eq!(lab.shown(&["-servername", "www.test", "-tls1_3"]), "www");
}

#[test]
fn each_name_gets_its_certificate_and_unknown_names_are_refused() {
    let pairs = |directory: &Path| {
        let exact = Pair::make(directory, "exact", &ECDSA, "DNS:www.a.test");
        let wild = Pair::make(directory, "wild", &ECDSA, "DNS:*.a.test");
        exact.section() + &wild.section()
    };
    let lab = Lab::start(pairs);
    let refused = "tlsv1 unrecognized name";
    let table: [(&[&str], &str); 9] = [
        (&["-servername", "www.a.test"], "exact"),
        (&["-servername", "WWW.A.TEST"], "exact"),
        (&["-servername", "x.a.test"], "wild"),
        (&["-servername", "x.a.test", "-tls1_2"], "wild"),
        (&["-servername", "a.test"], refused),
        (&["-servername", "y.x.a.test"], refused),
        (&["-servername", "b.test", "-tls1_2"], refused),
        (&["-noservername"], refused),
        // No name, by RFC 6066 section 3.
        (&["-servername", "127.0.0.1"], refused),
    ];
    for (arguments, expected) in table {
        let shown = lab.shown(arguments);
        assert!(shown.contains(expected), "{arguments:?}: {shown}");
    }
    assert_eq!(
        (lab.handshakes("unknown-name"), lab.handshakes("no-name")),
        (3, 2)
    );
    for name in [
        "a..test",
        "-",
        "\u{e4}.test",
        &"x".repeat(255),
        "www.a.test ",
    ] {
        let shown = lab.shown(&["-servername", name]);
        assert!(shown.contains("alert"), "{name}: {shown}");
    }
    let shown = lab.shown(&["-servername", "www.a.test."]);
    assert!(shown == "exact" || shown.contains("alert"), "{shown}");

    let lab =
        Lab::start(|directory| format!("[tls]\ndefault_host = \"x.a.test\"\n{}", pairs(directory)));
    assert_eq!(lab.shown(&["-noservername"]), "wild");
    assert!(lab.shown(&["-servername", "b.test"]).contains(refused));
}

#[test]
fn a_client_gets_the_key_type_that_it_supports() {
    let lab = Lab::start(|directory| {
        // RSA first: ECDSA is preferred nevertheless.
        let rsa = Pair::make(directory, "rsa", &RSA, "DNS:www.test");
        let ecdsa = Pair::make(directory, "ecdsa", &ECDSA, "DNS:www.test");
        rsa.section() + &ecdsa.section()
    });
    let table: [(&[&str], &str); 6] = [
        (&[], "ecdsa"),
        (&["-tls1_2"], "ecdsa"),
        (&["-sigalgs", "RSA-PSS+SHA256"], "rsa"),
        (&["-sigalgs", "ECDSA+SHA256"], "ecdsa"),
        (
            &[
                "-tls1_2",
                "-sigalgs",
                "RSA+SHA256:ECDSA+SHA256",
                "-cipher",
                "ECDHE-RSA-AES128-GCM-SHA256",
            ],
            "rsa",
        ),
        (
            &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"],
            "ecdsa",
        ),
    ];
    for (arguments, expected) in table {
        let shown = lab.shown(&[&["-servername", "www.test"][..], arguments].concat());
        assert!(shown.contains(expected), "{arguments:?}: {shown}");
    }
}

#[test]
fn sessions_are_resumed_by_tickets() {
    let lab = Lab::start(|directory| {
        Pair::make(directory, "www", &ECDSA, "DNS:www.test,DNS:other.test").section()
    });
    let session = lab.path("session");
    let session = session.to_str().expect("a path of ASCII");
    let request = "GET /page HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n\r\n";
    for version in ["-tls1_2", "-tls1_3"] {
        let ask = |name: &str, arguments: &[&str]| {
            let first = ["-servername", name, version, "-ign_eof"];
            s_client(lab.https, &[&first, arguments].concat(), request)
        };
        let new = ask("www.test", &["-sess_out", session]);
        assert!(
            new.contains("New, TLSv1") && new.contains("for www.test"),
            "{new}"
        );
        let again = ask("www.test", &["-sess_in", session]);
        assert!(
            again.contains("Reused, TLSv1") && again.contains("for www.test"),
            "{again}"
        );
        // A session belongs to the name for which it was made.
        let other = ask("other.test", &["-sess_in", session]);
        assert!(other.contains("New, TLSv1"), "{other}");
    }
    assert_eq!(lab.handshakes("resumed"), 2);
}

#[test]
fn a_request_for_a_host_that_the_certificate_does_not_cover_gets_421() {
    let mut pairs = Vec::new();
    let lab = Lab::start(|directory| {
        pairs.push(Pair::make(
            directory,
            "a",
            &ECDSA,
            "DNS:a.test,DNS:*.a.test",
        ));
        pairs.push(Pair::make(directory, "b", &ECDSA, "DNS:b.test"));
        pairs.iter().map(Pair::section).collect()
    });
    let status = |host: &str| {
        let field = format!("Host: {host}");
        let arguments = ["-o", "/dev/null", "-w", "%{http_code}", "-H", &field];
        lab.curl(&pairs[0], "a.test", &arguments, "/page")
    };
    for (host, expected) in [
        ("a.test", "200"),
        ("A.test:8443", "200"),
        ("x.a.test", "200"),
        ("b.test", "421"),
        ("y.x.a.test", "421"),
        ("www.cdn.test", "421"),
        ("192.0.2.1", "421"),
        // Again, behind the fast path's memory of it.
        ("b.test", "421"),
    ] {
        assert_eq!(status(host), expected, "{host}");
    }
    // The same on one connection, in which the host changes.
    let one = |host: &str| format!("GET /page HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let last = "GET /page HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    let said = s_client(
        lab.https,
        &["-servername", "a.test", "-quiet"],
        &(one("a.test") + &one("b.test") + &one("x.a.test") + last),
    );
    let statuses: Vec<_> = said
        .lines()
        .filter(|line| line.contains("HTTP/1.1 "))
        .collect();
    assert!(
        statuses.len() == 4 && statuses[1].contains("421") && statuses[2].contains("200"),
        "{said}"
    );
    assert!(said.contains("the certificate of this connection does not cover that host"));
    // In plain HTTP there is no certificate.
    let plain = curl(&["-H", "Host: b.test", &format!("http://{}/page", lab.http)]);
    assert_eq!(plain, "for b.test");
}

#[test]
fn changed_files_are_read_again_and_broken_ones_change_nothing() {
    let mut pairs = Vec::new();
    let mut lab = Lab::start(|directory| {
        pairs.push(Pair::make(directory, "first", &ECDSA, "DNS:www.test"));
        pairs.push(Pair::make(directory, "second", &ECDSA, "DNS:www.test"));
        pairs.push(Pair::make(directory, "third", &RSA, "DNS:www.test"));
        pairs[0].section()
    });
    let name = ["-servername", "www.test"];
    assert_eq!(lab.shown(&name), "first");
    let wait_shown = |lab: &Lab, expected: &str| {
        wait::until(&format!("{expected} to be shown"), LIMIT, || {
            match lab.shown(&name) {
                shown if shown == expected => Ok(()),
                shown => Err(shown),
            }
        });
    };
    // The key of another certificate; then the pair is whole.
    std::fs::copy(&pairs[1].cert, &pairs[0].cert).expect("copied");
    lab.edge
        .wait_for_output("the key of another certificate", LIMIT);
    lab.edge
        .wait_for_output("the former one stays in force", LIMIT);
    assert!(
        lab.edge.output().contains("www.test"),
        "the hosts are named"
    );
    assert_eq!(lab.shown(&name), "first");
    assert_eq!(lab.metric("nearcast_edge_certificate_broken"), Some(1.0));
    std::fs::copy(&pairs[1].key, &pairs[0].key).expect("copied");
    wait_shown(&lab, "second");
    assert_eq!(lab.metric("nearcast_edge_certificate_broken"), Some(0.0));

    // By renaming, as most tools do it, and at a signal.
    for (from, to) in [
        (&pairs[2].cert, &pairs[0].cert),
        (&pairs[2].key, &pairs[0].key),
    ] {
        let copy = lab.path("copy");
        std::fs::copy(from, &copy).expect("copied");
        std::fs::rename(&copy, to).expect("renamed");
    }
    lab.edge.signal("HUP");
    wait_shown(&lab, "third");
    // Half a file; the log says it once.
    let text = std::fs::read(&pairs[0].cert).expect("there");
    std::fs::write(&pairs[0].cert, &text[..text.len() / 2]).expect("written");
    lab.edge.wait_for_output("has no certificate", LIMIT);
    lab.edge.signal("HUP");
    assert_eq!(lab.shown(&name), "third");
    std::fs::write(&pairs[0].cert, &text).expect("written");
    wait::until("the whole file to be read", LIMIT, || {
        match lab.metric("nearcast_edge_certificate_broken") {
            Some(0.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let told = lab.edge.output().matches("has no certificate").count();
    assert_eq!(told, 1, "{}", lab.edge.output());
    assert_eq!(lab.edge.ended(), None);
}

#[test]
fn one_broken_pair_does_not_keep_other_hosts_from_starting() {
    let mut expired = None;
    let lab = Lab::start(|directory| {
        let good = Pair::make(directory, "good", &ECDSA, "DNS:good.test");
        let mut broken = Pair::make(directory, "broken", &ECDSA, "DNS:broken.test");
        broken.key = good.key.clone();
        let mut params =
            rcgen::CertificateParams::new(vec!["old.test".to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let key = rcgen::KeyPair::generate().expect("a key");
        let old = Pair {
            cert: directory.join("old.pem"),
            key: directory.join("old.key"),
        };
        let cert = params.self_signed(&key).expect("a certificate").pem();
        std::fs::write(&old.cert, cert).expect("written");
        std::fs::write(&old.key, key.serialize_pem()).expect("written");
        let text = good.section() + &broken.section() + &old.section();
        expired = Some(old);
        text
    });
    assert_eq!(lab.shown(&["-servername", "good.test"]), "good");
    assert!(
        lab.shown(&["-servername", "broken.test"])
            .contains("unrecognized name")
    );
    let log = lab.edge.output();
    assert!(
        log.contains("broken.pem") && log.contains("good.key cannot be used with"),
        "{log}"
    );
    assert!(
        log.contains("old.test") && log.contains("has expired"),
        "{log}"
    );
    let old = s_client(lab.https, &["-servername", "old.test"], "");
    assert!(old.contains("certificate has expired"), "{old}");
    // `check` finds the same on this machine.
    let checked = nearcast()
        .arg("check")
        .arg(lab.path("nearcast.toml"))
        .output()
        .expect("the binary runs");
    let warnings = String::from_utf8_lossy(&checked.stderr);
    assert!(
        checked.status.success()
            && warnings.contains("good.key cannot be used with")
            && warnings.contains("has expired"),
        "{warnings}"
    );

    // Nothing to show is no start.
    let text = std::fs::read_to_string(lab.path("nearcast.toml")).expect("there");
    std::fs::write(
        lab.path("nearcast.toml"),
        text.replace("good.pem", "missing.pem")
            .replace("old.pem", "none.pem"),
    )
    .expect("written");
    let Lab {
        edge,
        directory,
        origin: _origin,
        ..
    } = lab;
    drop(edge);
    let ended = nearcast()
        .args(["edge", "--node", "ams-1", "--user", "root", "--fleet"])
        .arg(directory.path().join("nearcast.toml"))
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(
        !ended.status.success() && said.contains("missing.pem") && said.contains("none.pem"),
        "{said}"
    );
}

#[test]
fn junk_slow_and_plain_clients_are_refused_and_counted() {
    let mut pair = None;
    let lab = Lab::with(
        |directory| {
            let made = Pair::make(directory, "www", &ECDSA, "DNS:www.test");
            pair.insert(made).section()
        },
        "clients = { handshake_timeout = \"2s\" }",
    );
    let pair = pair.expect("made");
    let connect = || {
        let stream = TcpStream::connect(lab.https).expect("the edge listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a time-out");
        stream
    };
    // Plain HTTP gets an answer that it understands.
    let status = curl(&["-w", "%{http_code}", &format!("http://{}/page", lab.https)]);
    assert!(
        status.contains("this port speaks TLS") && status.ends_with("400"),
        "{status}"
    );
    let posted = curl(&[
        "--data-binary",
        &format!("@{}", pair.cert()),
        &format!("http://{}/page", lab.https),
    ]);
    assert!(posted.contains("this port speaks TLS"), "{posted}");
    lab.wait_handshakes("plain-http", 2);

    // Junk is closed at once, silence and a dripping hello after the time-out.
    let table: [(&[u8], &str, bool); 6] = [
        (b"SSH-2.0-OpenSSH\r\n", "junk", false),
        (&[22, 3, 1, 0, 4, 99, 0, 0, 0], "junk", false),
        (&[0x80, 0x2e, 1, 3, 1], "junk", false),
        (b"", "timeout", true),
        (&[22], "timeout", true),
        (&[22, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3], "timeout", true),
    ];
    for (bytes, result, is_slow) in table {
        let before = lab.handshakes(result);
        let began = Instant::now();
        let mut stream = connect();
        stream.write_all(bytes).expect("sent");
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() < 16, "an alert at most: {rest:?}");
        let elapsed = began.elapsed();
        assert_eq!(
            elapsed >= Duration::from_secs(2),
            is_slow,
            "{bytes:?}: {elapsed:?}"
        );
        lab.wait_handshakes(result, before + 1);
    }
    // Clients that leave.
    let before = lab.handshakes("left");
    for bytes in [&b""[..], &[22, 3, 1]] {
        connect().write_all(bytes).expect("sent");
    }
    lab.wait_handshakes("left", before + 2);
    // Whatever came: the next client is served.
    assert_eq!(lab.curl(&pair, "www.test", &[], "/page"), "for www.test");
}

#[test]
fn slow_handshakes_keep_nobody_out() {
    let mut pair = None;
    let lab = Lab::with(
        |directory| {
            let made = Pair::make(directory, "www", &ECDSA, "DNS:www.test");
            pair.insert(made).section()
        },
        "clients = { connections_max = 64, handshake_timeout = \"5m\" }",
    );
    let pair = pair.expect("made");
    let mut held = Vec::new();
    for n in 0..256 {
        let Ok(mut stream) = TcpStream::connect(lab.https) else {
            continue;
        };
        // Every other one has begun a handshake.
        let _ = stream.write_all(&[22, 3, 1][..3 * (n % 2)]);
        held.push(stream);
    }
    let from = "127.200.0.1";
    for _ in 0..10 {
        let answer = lab.curl(&pair, "www.test", &["--interface", from], "/page");
        assert_eq!(answer, "for www.test");
    }
    drop(held);
}

#[test]
fn a_connection_ends_in_order() {
    let lab = Lab::with(
        |directory| Pair::make(directory, "www", &ECDSA, "DNS:www.test").section(),
        "clients = { idle_timeout = \"1s\" }",
    );
    // The end is told (close_notify), after the last response and after an idle time.
    for last in ["Connection: close\r\n", ""] {
        let request = format!("GET /page HTTP/1.1\r\nHost: www.test\r\n{last}\r\n");
        let said = s_client(
            lab.https,
            &["-servername", "www.test", "-ign_eof", "-msg"],
            &request,
        );
        assert!(
            said.contains("for www.test") && said.contains("close_notify"),
            "{said}"
        );
        assert!(!said.contains("unexpected eof"), "{said}");
    }
}

#[test]
fn the_protocol_is_agreed_on_by_alpn() {
    let mut pair = None;
    let lab = Lab::start(|directory| {
        let made = Pair::make(directory, "www", &ECDSA, "DNS:www.test");
        pair.insert(made).section()
    });
    let pair = pair.expect("made");
    let table: [(&[&str], &str); 5] = [
        (&["-alpn", "h2,http/1.1"], "ALPN protocol: h2"),
        // The edge's order decides.
        (&["-alpn", "http/1.1,h2"], "ALPN protocol: h2"),
        (&["-alpn", "http/1.1"], "ALPN protocol: http/1.1"),
        (&[], "No ALPN negotiated"),
        (&["-alpn", "h3,spdy/1"], "alert no application protocol"),
    ];
    for (arguments, expected) in table {
        let said = s_client(
            lab.https,
            &[&["-servername", "www.test"], arguments].concat(),
            "",
        );
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    assert_eq!(lab.handshakes("no-protocol"), 1);
    for (arguments, version) in [
        (&["--http2"][..], "2"),
        (&["--http1.1"], "1.1"),
        (&["--no-alpn"], "1.1"),
    ] {
        let shows = ["-o", "/dev/null", "-w", "%{http_code} %{http_version}"];
        let answer = lab.curl(&pair, "www.test", &[&shows, arguments].concat(), "/page");
        assert_eq!(answer, format!("200 {version}"), "{arguments:?}");
    }
}

#[test]
fn a_quick_edge_speaks_tls() {
    let block = Block::take();
    let origin = Origin::start_at(SocketAddr::from((block.host(80), 8000)), |seen| {
        Reply::ok(format!("for {}", seen.fields["host"]), "max-age=60")
    });
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let ip = block.host(10);
    let [one, two] = [
        ("one", "DNS:one.test".to_owned()),
        ("two", format!("IP:{ip}")),
    ]
    .map(|(name, names)| Pair::make(directory.path(), name, &ECDSA, &names));
    let (listen, tls) = (format!("{ip}:8080"), format!("{ip}:8443"));
    let mut command = nearcast();
    command
        .args([
            "edge",
            "--listen",
            &listen,
            "--listen-tls",
            &tls,
            "--user",
            "root",
            "--origin",
            &origin.url(),
        ])
        .arg("--state-dir")
        .arg(directory.path().join("state"));
    for pair in [&one, &two] {
        command
            .arg("--cert")
            .arg(&pair.cert)
            .arg("--key")
            .arg(&pair.key);
    }
    let mut edge = Process::start("edge", directory.path(), command);
    edge.wait_for_output("the edge serves", LIMIT);
    let resolve = format!("one.test:8443:{ip}");
    let named = curl(&[
        "--resolve",
        &resolve,
        "--cacert",
        one.cert(),
        "https://one.test:8443/",
    ]);
    assert_eq!(named, "for one.test");
    // An address is not sent as a name; the certificate of the address that was connected to is.
    let by_address = curl(&["--cacert", two.cert(), &format!("https://{tls}/")]);
    assert_eq!(by_address, format!("for {ip}"));
    // A signal without a fleet file reads certificates, and ends nothing.
    edge.signal("HUP");
    let named = curl(&[
        "--resolve",
        &resolve,
        "--cacert",
        one.cert(),
        "https://one.test:8443/",
    ]);
    assert_eq!(named, "for one.test");

    for (arguments, words) in [
        (&["--listen-tls", "127.0.0.1:1"][..], "--cert"),
        (&["--cert", one.cert()], "--key"),
        (
            &[
                "--listen-tls",
                "127.0.0.1:1",
                "--cert",
                one.cert(),
                "--cert",
                two.cert(),
                "--key",
                one.cert(),
            ],
            "each certificate needs its key",
        ),
    ] {
        let ended = nearcast()
            .args([
                "edge",
                "--listen",
                "127.0.0.1:1",
                "--origin",
                "http://127.0.0.1:1",
            ])
            .args(arguments)
            .output()
            .expect("the binary runs");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success() && said.contains(words), "{said}");
    }
}

#[test]
fn a_websocket_goes_through_tls() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/lab/websocket.py");
    let mut pair = None;
    let lab = Lab::start(|directory| {
        let made = Pair::make(directory, "www", &ECDSA, "DNS:www.test");
        pair.insert(made).section()
    });
    let pair = pair.expect("made");
    let origin = lab.origin.url();
    let (ip, port) = origin
        .trim_start_matches("http://")
        .split_once(':')
        .expect("an address and a port");
    lab.origin.stop();
    let mut command = Command::new("python3");
    command.args([script, "serve", ip, port]);
    let mut server = Process::start("websocket", lab.directory.path(), command);
    server.wait_for_output("listening", LIMIT);
    let at = lab.https.ip().to_string();
    let said = run(
        "python3",
        [script, "talk", &at, "8443", "www.test", pair.cert()],
    );
    assert!(
        said.starts_with("talked") && said.contains("fwd=bypass"),
        "{said}"
    );
}
