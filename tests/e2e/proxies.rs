//! Proxies in front of an edge: HAProxy, nginx, curl's PROXY header, and those whom nobody trusts.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use nearcast_testing::Reply;

use crate::lab::addresses::Block;
use crate::lab::edge::{Edge, Settings, field, status};
use crate::lab::process::nearcast;

/// Last bytes of addresses: the trusted proxy, a stranger, and a client of the proxy.
const PROXY: u8 = 20;
const STRANGER: u8 = 30;
const CLIENT: u8 = 40;

/// The address from which the kernel connects to any loopback address, which is trusted too.
const RAW: &str = "127.0.0.1";

const REFUSED: &str = "nearcast_edge_proxy_connections_refused_total";

/// An edge that trusts the proxy, with PROXY listeners on 8081 and, with TLS, 8444.
fn start() -> Edge {
    let settings = |block: Block| {
        let ip = block.host(10);
        Settings {
            sections: format!(
                "[clients]\ntrusted_proxies = [\"{}\", \"{RAW}\"]\nhandshake_timeout = \"1s\"\n",
                block.host(PROXY)
            ),
            node: format!(
                "listen = [\"{ip}:8080\", \"{ip}:8081\"]\nlisten_tls = [\"{ip}:8443\", \"{ip}:8444\"]\n\
                 proxy_protocol = [\"{ip}:8081\", \"{ip}:8444\"]\nservice = \"{ip}:8080\"\n"
            ),
            site: "purge_from = [\"192.0.2.0/24\"]\n".to_owned(),
        }
    };
    Edge::start(settings, |seen| {
        let scheme = seen.fields["x-forwarded-proto"].as_str();
        Reply::ok(format!("by {scheme}"), "max-age=600")
    })
}

/// `curl` from the address with this last byte.
fn from(edge: &Edge, last: u8, arguments: &[&str], url: &str) -> String {
    from_to(edge, last, edge.ip, arguments, url)
}

fn from_to(edge: &Edge, last: u8, to: Ipv4Addr, arguments: &[&str], url: &str) -> String {
    let address = edge.block.host(last).to_string();
    let first = ["--interface", &address];
    edge.curl_at(to, &[&first, arguments].concat(), url)
}

/// Checks who asked for a path, and by which scheme, as the origin was told and as the log says of
/// each of that many requests.
fn check_told(edge: &Edge, path: &str, requests: usize, client: &str, scheme: &str) {
    for line in edge.logged(path, requests) {
        assert_eq!(line["client"], client, "{line}");
    }
    let fields = edge.seen(path).fields;
    let told = (&*fields["x-forwarded-for"], &*fields["x-forwarded-proto"]);
    assert_eq!(told, (client, scheme), "{path}");
    assert!(!fields.contains_key("forwarded"), "{fields:?}");
}

/// Sends bytes to a listener from [`RAW`] and gives all that comes back until the end.
fn raw(to: SocketAddr, pieces: &[&[u8]], ends: bool) -> String {
    let mut stream = TcpStream::connect(to).expect("it listens");
    stream.set_nodelay(true).expect("a socket");
    let limit = Some(Duration::from_secs(20));
    stream.set_read_timeout(limit).expect("a socket");
    for piece in pieces {
        stream.write_all(piece).expect("it is sent");
    }
    if ends {
        stream.shutdown(Shutdown::Write).expect("it is open");
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
            // Bytes were left unread there.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error}"),
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// A header of version 2 for a client's address.
fn version_2(client: [u8; 4], more: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    header.extend_from_slice(&(12 + more.len() as u16).to_be_bytes());
    header.extend_from_slice(&client);
    header.extend_from_slice(&[127, 0, 0, 1, 0x30, 0x39, 0, 80]);
    header.extend_from_slice(more);
    header
}

fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n\r\n").into_bytes()
}

#[test]
fn fields_are_believed_of_a_trusted_proxy_alone() {
    let edge = start();
    let (proxy, stranger) = (
        edge.block.host(PROXY).to_string(),
        edge.block.host(STRANGER).to_string(),
    );
    let chain = ["-H", "X-Forwarded-For: 203.0.113.5, 192.0.2.7"];
    let https = ["-H", "X-Forwarded-Proto: https"];
    let both = [chain, https].concat();
    let forwarded = [
        "-H",
        "Forwarded: for=203.0.113.5, for=\"[2001:db8::7]:4711\";proto=https",
    ];
    let junk = ["-H", "X-Forwarded-For: 192.0.2.7, junk"];
    let table: [(u8, &[&str], &str, &str); 7] = [
        (PROXY, &both, "192.0.2.7", "https"),
        (PROXY, &chain, "192.0.2.7", "http"),
        (PROXY, &forwarded, "2001:db8::7", "https"),
        (PROXY, &junk, &proxy, "http"),
        (PROXY, &[], &proxy, "http"),
        (STRANGER, &both, &stranger, "http"),
        (STRANGER, &forwarded, &stranger, "http"),
    ];
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for (number, (last, fields, client, scheme)) in table.iter().enumerate() {
            let path = format!("/{version}/{number}");
            let url = format!("http://www.test:8080{path}");
            let answer = from(&edge, *last, &[&[version], *fields].concat(), &url);
            assert_eq!(status(&answer), "200", "{answer}");
            check_told(&edge, &path, 1, client, scheme);
        }
    }
    let malformed = "nearcast_edge_proxy_fields_malformed_total";
    assert_eq!(edge.metric(malformed), 2);

    // Over TLS the connection has a scheme already, which a proxy that speaks for its client replaces.
    for version in ["--http1.1", "--http2"] {
        for (last, stated, scheme) in [(STRANGER, "http", "https"), (PROXY, "http", "http")] {
            let path = format!("/tls{version}/{last}");
            let stated = format!("X-Forwarded-Proto: {stated}");
            let url = format!("https://www.test:8443{path}");
            from(&edge, last, &[version, "-H", &stated], &url);
            assert_eq!(edge.seen(&path).fields["x-forwarded-proto"], scheme);
        }
    }
}

#[test]
fn a_proxy_s_requests_are_hits_of_their_own_scheme() {
    let edge = start();
    let https = ["-H", "X-Forwarded-Proto: https"];
    let client = ["-H", "X-Forwarded-For: 192.0.2.7"];
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let url = format!("http://www.test:8080/page/{version}");
        for cached in ["fwd=uri-miss", "; hit"] {
            for (fields, body) in [(&client[..], "by http"), (&https, "by https")] {
                let answer = from(&edge, PROXY, &[&[version], fields].concat(), &url);
                assert!(
                    answer.contains(cached) && answer.ends_with(body),
                    "{answer}"
                );
            }
        }
        // The path has no part in what a stranger gets.
        let answer = from(&edge, STRANGER, &[&[version], &https[..]].concat(), &url);
        assert!(
            answer.contains("; hit") && answer.ends_with("by http"),
            "{answer}"
        );
    }
}

#[test]
fn a_purge_is_permitted_by_the_client_s_address() {
    let edge = start();
    // Without control a permitted purge comes to 503.
    let table = [
        (PROXY, "X-Forwarded-For: 192.0.2.7", "503"),
        (PROXY, "X-Forwarded-For: 192.0.2.7, 198.51.100.1", "403"),
        (PROXY, "X-Forwarded-For: unknown", "403"),
        (STRANGER, "X-Forwarded-For: 192.0.2.7", "403"),
    ];
    for (last, stated, expected) in table {
        let arguments = ["-X", "PURGE", "-H", stated];
        let answer = from(&edge, last, &arguments, "http://www.test:8080/page");
        assert_eq!(status(&answer), expected, "{stated}: {answer}");
    }
    let header = version_2([192, 0, 2, 9], b"");
    let purge = b"PURGE /page HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n\r\n";
    let answer = raw((edge.ip, 8081).into(), &[&header, purge], false);
    assert_eq!(status(&answer), "503", "{answer}");
}

#[test]
fn curl_s_proxy_header_comes_before_the_request_and_before_tls() {
    let edge = start();
    let proxy = edge.block.host(PROXY).to_string();
    let header = "--haproxy-protocol";
    for (arguments, url, scheme) in [
        (&[header, "--http1.1"][..], "http://www.test:8081/a", "http"),
        (
            &[header, "--http2-prior-knowledge"],
            "http://www.test:8081/b",
            "http",
        ),
        (&[header, "--http1.1"], "https://www.test:8444/c", "https"),
        (&[header, "--http2"], "https://www.test:8444/d", "https"),
    ] {
        let answer = from(&edge, PROXY, arguments, url);
        assert_eq!(status(&answer), "200", "{answer}");
        check_told(&edge, &url[url.len() - 2..], 1, &proxy, scheme);
    }
    // The header names another proxy, which states its own client.
    let answer = from(
        &edge,
        PROXY,
        &[header, "-H", "X-Forwarded-For: 192.0.2.7"],
        "http://www.test:8081/e",
    );
    assert_eq!(status(&answer), "200", "{answer}");
    check_told(&edge, "/e", 1, "192.0.2.7", "http");
}

#[test]
fn a_proxy_header_may_come_in_any_pieces_and_says_no_more_than_it_says() {
    let edge = start();
    let to = SocketAddr::from((edge.ip, 8081));
    let named = version_2([192, 0, 2, 9], b"");
    // TLV of the client's TLS: that it used TLS, and that its certificate was verified.
    let ssl = version_2([192, 0, 2, 9], &[0x20, 0, 5, 1, 0, 0, 0, 0]);
    let no_ssl = version_2([192, 0, 2, 9], &[0x20, 0, 5, 0, 0, 0, 0, 0]);
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec();
    let line = b"PROXY TCP4 192.0.2.9 127.0.0.1 4711 80\r\n".to_vec();
    let unknown = b"PROXY UNKNOWN\r\n".to_vec();
    let table = [
        ("/named", named, "192.0.2.9", "http"),
        ("/ssl", ssl, "192.0.2.9", "https"),
        ("/no-ssl", no_ssl, "192.0.2.9", "http"),
        ("/local", local, RAW, "http"),
        ("/line", line, "192.0.2.9", "http"),
        ("/unknown", unknown, RAW, "http"),
    ];
    for (path, header, client, scheme) in table {
        for split in 0..2 {
            let path = format!("{path}/{split}");
            let all = [&header[..], &request(&path)].concat();
            let pieces: Vec<&[u8]> = match split {
                0 => vec![&all],
                _ => all.chunks(1).collect(),
            };
            let answer = raw(to, &pieces, false);
            assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
            check_told(&edge, &path, 1, client, scheme);
        }
    }
    // A client that is named in the header states nothing itself.
    let stated = "GET /stated HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n\
                  X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-Proto: https\r\n\r\n";
    let header = version_2([192, 0, 2, 9], b"");
    raw(to, &[&header, stated.as_bytes()], false);
    check_told(&edge, "/stated", 1, "192.0.2.9", "http");
}

#[test]
fn connections_without_a_good_header_are_closed_and_counted() {
    let edge = start();
    let plain = SocketAddr::from((edge.ip, 8081));
    let over_tls = SocketAddr::from((edge.ip, 8444));
    let request = request("/never");
    let checksum = version_2([192, 0, 2, 9], &[3, 0, 4, 1, 2, 3, 4]);
    let long = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
    let table: [(&str, &[u8], bool); 10] = [
        ("absent", &request, false),
        ("absent", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false),
        ("absent", b"\x16\x03\x01\x02\x00\x01", false),
        ("malformed", b"PROXY TCP4 192.0.2.9 x 1 2\r\n", false),
        ("malformed", b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c", false),
        ("too_long", &long, false),
        ("checksum", &checksum, false),
        ("ended", b"PROXY TCP4 192.0", true),
        ("ended", b"", true),
        ("slow", b"PROXY TCP4 192.0", false),
    ];
    let count = |reason: &str| edge.metric(&format!("{REFUSED}{{reason=\"{reason}\"}}"));
    for to in [plain, over_tls] {
        for (reason, sent, ends) in table {
            let before = count(reason);
            let answer = raw(to, &[sent], ends);
            assert_eq!(answer, "", "{reason} at {to}");
            assert_eq!(count(reason), before + 1, "{reason} at {to}");
        }
    }

    // A stranger's header, over HTTP and TLS.
    let stranger = edge.block.host(STRANGER).to_string();
    for url in ["http://www.test:8081/never", "https://www.test:8444/never"] {
        let before = count("stranger");
        let to = format!("::{}:", edge.ip);
        let output = Command::new("curl")
            .args(["-sS", "-m", "20", "--haproxy-protocol", "--connect-to", &to])
            .args(["--interface", &stranger, "--cacert", edge.pair.cert(), url])
            .output()
            .expect("curl runs; tests/run installs it");
        assert!(
            !output.status.success() && output.stdout.is_empty(),
            "{output:?}"
        );
        assert_eq!(count("stranger"), before + 1);
    }
    assert_eq!(edge.origin.count("/never"), 0);
    // The header is no request elsewhere.
    let header = b"PROXY TCP4 192.0.2.9 127.0.0.1 4711 80\r\n";
    let answer = raw((edge.ip, 8080).into(), &[header, &request], false);
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[test]
fn haproxy_names_its_clients() {
    let edge = start();
    let (front, to) = (edge.block.host(PROXY), edge.ip);
    let both = [&edge.pair.cert, &edge.pair.key]
        .map(|file| std::fs::read_to_string(file).expect("it was made"))
        .concat();
    std::fs::write(edge.path("both.pem"), both).expect("written");
    // Port of the proxy, its listener and mode, and how it connects to the edge.
    let tls = "ssl crt both.pem alpn h2,http/1.1";
    let checked = "check inter 100ms fall 1 send-proxy-v2";
    let table = [
        (8101, "", "http", format!("{to}:8081 send-proxy")),
        (
            8102,
            "",
            "http",
            format!("{to}:8081 {checked} proxy-v2-options crc32c,unique-id"),
        ),
        (8103, tls, "http", format!("{to}:8081 send-proxy-v2-ssl-cn")),
        (
            8104,
            tls,
            "http",
            format!("{to}:8081 send-proxy-v2-ssl proto h2"),
        ),
        (8105, "", "tcp", format!("{to}:8444 send-proxy-v2")),
        (8106, tls, "http", format!("{to}:8080")),
        (8107, tls, "http", format!("{to}:8080 proto h2")),
    ];
    let mut config = String::from(
        "defaults\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n option forwardfor\n",
    );
    for (port, listener, mode, server) in &table {
        let fields = match port {
            8106.. => " http-request set-header X-Forwarded-Proto https\n",
            _ => "",
        };
        let check = match port {
            8102 => " option httpchk GET /.nearcast/health\n http-check expect status 200\n",
            _ => "",
        };
        config += &format!(
            "listen p{port}\n mode {mode}\n bind {front}:{port} {listener}\n{fields}{check} server edge {server} source {front}\n"
        );
    }
    std::fs::write(edge.path("haproxy.cfg"), config).expect("written");
    let mut command = Command::new("haproxy");
    command.args(["-db", "-f", "haproxy.cfg"]);
    let haproxy = edge.start_beside(command, (front, 8101).into());

    let client = edge.block.host(CLIENT).to_string();
    for (port, scheme, arguments) in [
        (8101, "http", &[][..]),
        (8102, "http", &[]),
        (8103, "https", &["--http1.1"][..]),
        (8104, "https", &["--http2"]),
        (8105, "https", &["--http1.1"]),
        (8105, "https", &["--http2"]),
        (8106, "https", &["--http2"]),
        (8107, "https", &["--http2"]),
    ] {
        let path = format!("/{port}/{}", arguments.concat());
        // What the client states itself is not believed through a proxy that names it.
        let arguments = [arguments, &["-H", "X-Forwarded-For: 192.0.2.66"]].concat();
        let sent = if port < 8103 { "http" } else { "https" };
        let url = format!("{sent}://www.test:{port}{path}");
        for cached in ["fwd=uri-miss", "; hit"] {
            let answer = from_to(&edge, CLIENT, front, &arguments, &url);
            assert!(
                status(&answer) == "200" && answer.contains(cached),
                "{port}: {answer}"
            );
            assert!(
                answer.ends_with(&format!("by {scheme}")),
                "{port}: {answer}"
            );
        }
        check_told(&edge, &path, 2, &client, scheme);
    }
    for reason in ["stranger", "absent", "malformed", "checksum", "too_long"] {
        assert_eq!(edge.metric(&format!("{REFUSED}{{reason=\"{reason}\"}}")), 0);
    }
    let said = haproxy.output();
    assert!(!said.contains("is DOWN"), "{said}");
}

#[test]
fn nginx_states_its_clients_in_fields() {
    let edge = start();
    let (front, to) = (edge.block.host(PROXY), edge.ip);
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {kind};\n"))
        .concat();
    let config = format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}\
         server {{\nlisten {front}:8201;\nlisten {front}:8202 ssl;\nssl_certificate www.pem;\nssl_certificate_key www.key;\n\
         location / {{\nproxy_pass http://{to}:8080;\nproxy_bind {front};\nproxy_http_version 1.1;\n\
         proxy_set_header Connection \"\";\nproxy_set_header Host $host;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\nproxy_set_header X-Forwarded-Proto $scheme;\n}}\n}}\n}}\n"
    );
    std::fs::write(edge.path("nginx.conf"), config).expect("written");
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-p", ".", "-c", "nginx.conf"]);
    let _nginx = edge.start_beside(command, (front, 8201).into());

    let client = edge.block.host(CLIENT).to_string();
    // What the client states comes before what nginx adds.
    let spoofed = [
        "-H",
        "X-Forwarded-For: 192.0.2.66",
        "-H",
        "Forwarded: for=192.0.2.66;proto=https",
    ];
    for (at, url, scheme) in [
        (0, "http://www.test:8201/page", "http"),
        (1, "https://www.test:8202/page", "https"),
    ] {
        for cached in ["fwd=uri-miss", "; hit"] {
            let answer = from_to(&edge, CLIENT, front, &spoofed, url);
            assert!(answer.contains(cached), "{answer}");
            assert!(answer.ends_with(&format!("by {scheme}")), "{answer}");
        }
        assert_eq!(edge.origin.count("/page"), at + 1);
        check_told(&edge, "/page", 2 * (at + 1), &client, scheme);
    }
}

#[test]
fn clients_behind_a_proxy_are_redirected_by_their_own_scheme() {
    let settings = |block: Block| Settings {
        sections: format!("[clients]\ntrusted_proxies = \"{}\"\n", block.host(PROXY)),
        node: String::new(),
        site: "[site.https]\nredirect = true\nhsts = \"1d\"\n".to_owned(),
    };
    let edge = Edge::start(settings, |_| Reply::ok("page", "max-age=600"));
    let url = "http://www.test:8080/page";
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for (last, stated, expected, security) in [
            (PROXY, "X-Forwarded-Proto: https", "200", "max-age=86400"),
            (PROXY, "X-Forwarded-Proto: https", "200", "max-age=86400"),
            (PROXY, "X-Forwarded-Proto: http", "301", ""),
            (STRANGER, "X-Forwarded-Proto: https", "301", ""),
        ] {
            let answer = from(&edge, last, &[version, "-H", stated], url);
            assert_eq!(status(&answer), expected, "{answer}");
            let found = field(&answer, "strict-transport-security");
            assert_eq!(found, security, "{answer}");
        }
    }
}

#[test]
fn proxy_settings_that_cannot_work_are_named() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("nearcast.toml");
    let fleet = |clients: &str, node: &str| {
        format!(
            "[fleet]\nzone = \"cdn.test\"\n[clients]\n{clients}\n[[cluster]]\nname = \"ams\"\nplace = {{ latitude = 52.4, longitude = 4.9 }}\n\
             [[cluster.node]]\nname = \"ams-1\"\naddress = \"127.0.0.1\"\nlisten = \"127.0.0.1:8080\"\n{node}\n\
             [[site]]\nname = \"www\"\nhosts = [\"www.test\"]\norigin = \"http://127.0.0.1:8000\"\n"
        )
    };
    for (clients, node, hint) in [
        ("", "proxy_protocol = \"127.0.0.1:8080\"", "trusted_proxies"),
        (
            "trusted_proxies = \"10.0.0.0/8\"",
            "proxy_protocol = \"127.0.0.1:8081\"",
            "127.0.0.1:8081",
        ),
        ("trusted_proxies = \"10.0.0.0/33\"", "", "10.0.0.0/33"),
    ] {
        std::fs::write(&file, fleet(clients, node)).expect("written");
        let output = nearcast()
            .arg("check")
            .arg(&file)
            .output()
            .expect("the binary runs");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(!output.status.success() && said.contains(hint), "{said}");
    }
}

#[test]
fn shares_of_connections_are_those_of_the_clients_behind_a_proxy() {
    let settings = |block: Block| {
        let ip = block.host(10);
        Settings {
            sections: format!("[clients]\ntrusted_proxies = \"{RAW}\"\nconnections_max = 32\n"),
            node: format!(
                "listen = [\"{ip}:8080\", \"{ip}:8081\"]\nproxy_protocol = \"{ip}:8081\"\nservice = \"{ip}:8080\"\n"
            ),
            site: String::new(),
        }
    };
    let edge = Edge::start(settings, |_| Reply::ok("page", "max-age=600"));
    let to = SocketAddr::from((edge.ip, 8081));
    let many = version_2([192, 0, 2, 1], b"");
    let mut held = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(to).expect("it listens");
        let begun = b"GET /page HTTP/1.1\r\nHost: www.test\r\n";
        // It may have been refused already.
        let _ = stream.write_all(&[&many, &begun[..]].concat());
        held.push(stream);
        let other = version_2([198, 51, 100, 1], b"");
        let answer = raw(to, &[&other, &request("/page")], false);
        assert_eq!(status(&answer), "200", "{} held: {answer}", held.len());
    }
    let refused = edge.metric("nearcast_edge_connections_refused_total{reason=\"share\"}");
    assert!(refused > 0);
}
