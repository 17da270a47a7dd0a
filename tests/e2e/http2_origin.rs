//! Origins that offer HTTP/2: nginx, and one that makes its frames itself and misbehaves.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nearcast_testing::{Origin, Reply};

use crate::lab::addresses::Block;
use crate::lab::process::{Process, nearcast};
use crate::lab::tools::{PYTHON, curl};
use crate::lab::wait;

const READY: Duration = Duration::from_secs(20);

/// An edge in front of an origin at port 8443 of the block's address 80, whose certificate it trusts.
struct Lab {
    block: Block,
    directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let lab = Self {
            block: Block::take(),
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
        };
        let made = rcgen::generate_simple_self_signed([lab.block.host(80).to_string()]);
        let own = made.expect("a certificate");
        std::fs::write(lab.path("cert.pem"), own.cert.pem()).expect("written");
        std::fs::write(lab.path("key.pem"), own.signing_key.serialize_pem()).expect("written");
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn origin(&self) -> SocketAddr {
        SocketAddr::from((self.block.host(80), 8443))
    }

    fn start(&self, name: &str, command: Command) -> Process {
        Process::start(name, self.directory.path(), command)
    }

    /// An edge with one worker, so that the number of connections is known. `site` has more lines of
    /// the site.
    fn edge(&self, site: &str) -> Process {
        let (edge, control) = (self.block.host(10), self.block.host(70));
        let file = format!(
            "[fleet]\nzone = \"cdn.test\"\nnode_key = \"a key that only this test knows\"\nstate_dir = \"state\"\n\
             [control]\nlisten = \"{control}:7700\"\nadmin = \"{control}:9100\"\n\
             [[name_server]]\nname = \"ns1\"\nlisten = \"{}:5300\"\nadmin = \"{}:9100\"\n\
             [[cluster]]\nname = \"ams\"\nplace = {{ latitude = 52.4, longitude = 4.9 }}\n\
             [[cluster.node]]\nname = \"ams-1\"\naddress = \"{edge}\"\nlisten = \"{edge}:8080\"\nadmin = \"{edge}:9100\"\n\
             memory = \"16MiB\"\nthreads = 1\n\
             [[site]]\nname = \"www\"\nhosts = [\"*\"]\norigin = \"https://{}\"\norigin_host = \"{}\"\norigin_ca = \"cert.pem\"\n{site}\n",
            self.block.host(53),
            self.block.host(53),
            self.origin(),
            self.origin(),
        );
        std::fs::write(self.path("nearcast.toml"), file).expect("written");
        let mut command = nearcast();
        command
            .args(["edge", "--node", "ams-1", "--fleet"])
            .arg(self.path("nearcast.toml"));
        let process = self.start("edge", command);
        wait::until("the edge to answer", READY, || {
            std::net::TcpStream::connect(format!("{edge}:8080")).map(drop)
        });
        process
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}:8080{path}", self.block.host(10))
    }

    fn get(&self, path: &str) -> String {
        curl(&["-i", &self.url(path)])
    }

    /// The value of a metric of the edge.
    fn metric(&self, line: &str) -> f64 {
        let url = format!("http://{}:9100/metrics", self.block.host(10));
        let text = curl(&[&url]);
        let found = text.lines().find_map(|of| of.strip_prefix(line));
        let found = found.unwrap_or_else(|| panic!("no {line} in\n{text}"));
        found.trim().parse().expect("a number")
    }

    /// nginx with these lines in its server, and with these parameters of its listener.
    fn nginx(&self, listener: &str, server: &str) -> Process {
        let mut config = String::from(
            "daemon off; master_process off; pid nginx.pid; error_log stderr;\n\
             events { worker_connections 512; }\nhttp {\n\
             log_format one '$connection $server_protocol $request_method $uri $status';\n\
             access_log requests.log one; sendfile on; client_max_body_size 64m;\n",
        );
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            let _ = writeln!(config, "{kind}_temp_path {kind};");
        }
        let _ = writeln!(
            config,
            "server {{ listen {} {listener}; ssl_certificate cert.pem; ssl_certificate_key key.pem; root content;\n{server} }} }}",
            self.origin()
        );
        std::fs::write(self.path("nginx.conf"), config).expect("written");
        let _ = std::fs::create_dir(self.path("content"));
        let mut command = Command::new("nginx");
        command.arg("-p").arg(self.directory.path());
        command.args(["-e", "stderr", "-c", "nginx.conf"]);
        let process = self.start("nginx", command);
        self.wait_for_origin();
        process
    }

    fn wait_for_origin(&self) {
        wait::until("the origin to listen", READY, || {
            std::net::TcpStream::connect(self.origin()).map(drop)
        });
    }

    /// The lines of nginx's log: connection, protocol, method, path, status.
    fn requests(&self) -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(self.path("requests.log")).unwrap_or_default();
        text.lines()
            .map(|line| line.split(' ').map(str::to_owned).collect())
            .collect()
    }

    /// The origin of hand-made frames.
    fn frames(&self) -> Process {
        let mut command = Command::new(PYTHON);
        command
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/e2e/lab/http2_origin.py"
            ))
            .args([self.block.host(80).to_string(), "8443".to_owned()])
            .args([self.path("cert.pem"), self.path("key.pem")]);
        let mut process = self.start("origin", command);
        process.wait_for_output("listening", READY);
        process
    }
}

fn write(directory: &Path, name: &str, bytes: usize) -> Vec<u8> {
    let content: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
    std::fs::write(directory.join(name), &content).expect("written");
    content
}

const BY_HTTP2: &str =
    "nearcast_edge_origin_connections_opened_total{protocol=\"http2\",site=\"www\"}";
const BY_HTTP1: &str =
    "nearcast_edge_origin_connections_opened_total{protocol=\"http1\",site=\"www\"}";

#[test]
fn nginx_gets_many_requests_at_a_time_on_one_connection() {
    let lab = Lab::new();
    let upstream =
        Origin::start(|seen| Reply::ok(format!("{} bytes", seen.body.len()), "no-store"));
    let _nginx = lab.nginx(
        "ssl http2",
        &format!("location /upload {{ proxy_pass {}; }}", upstream.url()),
    );
    let content = lab.path("content");
    let large = write(&content, "large", 24 << 20);
    for n in 0..40 {
        write(&content, &format!("{n}"), 10_000);
    }
    let _edge = lab.edge("");
    let url = lab.url("/[0-39]");
    let sizes = curl(&[
        "-Z",
        "--parallel-immediate",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{size_download}\n",
        &url,
    ]);
    assert_eq!(sizes, "200 10000\n".repeat(40));
    let got = lab.path("got");
    curl(&["-o", &got.to_string_lossy(), &lab.url("/large")]);
    assert!(std::fs::read(&got).expect("read") == large, "it is whole");
    let (file, to) = (format!("@{}", got.display()), lab.url("/upload"));
    for method in ["POST", "PUT"] {
        let answer = curl(&["-X", method, "-H", "Expect:", "--data-binary", &file, &to]);
        assert_eq!(answer, format!("{} bytes", 24 << 20));
    }
    let chunked = [
        "-X",
        "POST",
        "-H",
        "Transfer-Encoding: chunked",
        "--data-binary",
    ];
    let answer = curl(&[&chunked[..], &[&file, &to]].concat());
    assert_eq!(answer, format!("{} bytes", 24 << 20));
    assert!(lab.get("/none").starts_with("HTTP/1.1 404"));
    let head = curl(&["-I", &lab.url("/large?head")]).to_lowercase();
    assert!(head.contains("content-length: 25165824"), "{head}");

    let requests = lab.requests();
    assert!(requests.len() >= 45, "{requests:?}");
    assert!(
        requests.iter().all(|line| line[1] == "HTTP/2.0"),
        "{requests:?}"
    );
    let connections: std::collections::BTreeSet<_> = requests.iter().map(|line| &line[0]).collect();
    assert!(connections.len() <= 2, "{connections:?}");
    assert!(lab.metric(BY_HTTP2) <= 2.0);
    assert_eq!(lab.metric(BY_HTTP1), 0.0);
    assert!(lab.metric("nearcast_edge_origin_http2_connections{site=\"www\"}") >= 1.0);
}

#[test]
fn http1_is_used_where_the_site_says_so_or_the_origin_offers_no_more() {
    for (site, listener) in [("origin_http2 = false", "ssl http2"), ("", "ssl")] {
        let lab = Lab::new();
        let _nginx = lab.nginx(listener, "");
        write(&lab.path("content"), "a", 1000);
        let _edge = lab.edge(site);
        for n in 0..3 {
            let answer = lab.get(&format!("/a?{n}"));
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        let protocols: Vec<String> = lab.requests().iter().map(|line| line[1].clone()).collect();
        assert_eq!(protocols, ["HTTP/1.1"; 3], "{site}");
        assert_eq!(lab.metric(BY_HTTP1), 1.0, "the connection is kept");
        assert_eq!(lab.metric(BY_HTTP2), 0.0);
    }
}

#[test]
fn nginx_may_close_its_connections_at_any_time() {
    let lab = Lab::new();
    // GOAWAY after so many requests.
    let _nginx = lab.nginx("ssl http2", "keepalive_requests 15;");
    let content = lab.path("content");
    for n in 0..60 {
        write(&content, &format!("{n}"), 5_000);
    }
    let _edge = lab.edge("");
    let codes = curl(&[
        "-Z",
        "--parallel-max",
        "4",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{size_download}\n",
        &lab.url("/[0-59]"),
    ]);
    assert_eq!(codes, "200 5000\n".repeat(60));
}

#[test]
fn what_an_origin_must_not_send_is_an_error_and_never_stored() {
    let lab = Lab::new();
    let mut origin = lab.frames();
    let _edge = lab.edge("");
    for path in [
        "/connection-field",
        "/transfer-encoding",
        "/upper-case",
        "/padded-value",
        "/line-break",
        "/no-status",
        "/odd-status",
        "/two-status",
        "/late-pseudo",
        "/two-lengths",
        "/interim-101",
        "/data-first",
        "/push",
    ] {
        for _ in 0..2 {
            let answer = lab.get(path);
            assert!(answer.starts_with("HTTP/1.1 502"), "{path}: {answer}");
            assert!(
                answer.contains("error=http_protocol_error"),
                "{path}: {answer}"
            );
            assert!(!answer.contains("<forbidden>"), "{path}: {answer}");
        }
        assert_eq!(origin.output().matches(path).count(), 2, "{path}");
        // The next request is served, on the same connection or a new one.
        let fine = lab.get(&format!("/fine?{path}"));
        assert!(fine.ends_with("fine"), "after {path}: {fine}");
    }
    // A body that ends early, or does not fit its length.
    for path in ["/short", "/cut-without-error", "/too-long"] {
        for _ in 0..2 {
            // It fails for an error as well as for a body that is cut.
            let ended = Command::new("curl")
                .args([
                    "-fsS",
                    "--max-time",
                    "20",
                    "-o",
                    "/dev/null",
                    &lab.url(path),
                ])
                .status()
                .expect("curl runs");
            assert!(!ended.success(), "{path}");
        }
        let asked = origin.output().matches(&format!("{path} ")).count();
        assert!(asked >= 2, "{path} is asked again: {asked}");
    }
    assert!(origin.ended().is_none(), "the origin runs on");
}

#[test]
fn what_an_origin_did_not_process_or_did_not_finish_is_requested_again() {
    let lab = Lab::new();
    let origin = lab.frames();
    let _edge = lab.edge("");
    for path in ["/refused", "/goaway"] {
        // The first request of each connection is refused, and the second try has a new one: so the
        // connection has to be used before.
        let lines = || origin.output().matches(&format!("GET {path}")).count();
        lab.get("/fine?warm");
        let answer = lab.get(path);
        assert!(answer.ends_with("fine") || lines() > 1, "{path}: {answer}");
    }
    let whole: Vec<u8> = (0..60_000).map(|at| (at % 251) as u8).collect();
    let got = lab.path("got");
    curl(&["-o", &got.to_string_lossy(), &lab.url("/resumed")]);
    assert!(std::fs::read(&got).expect("read") == whole, "it is whole");
    assert!(origin.output().contains("/resumed bytes="));

    // An upload that is answered early.
    for bytes in [1 << 10, 100 << 10, 4 << 20] {
        std::fs::write(lab.path("body"), vec![b'x'; bytes]).expect("written");
        let file = format!("@{}", lab.path("body").display());
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            for status in ["200", "413"] {
                // Once curl 7.88 has the whole response of a stream, it reads no window for the rest
                // of an upload that it still wants to send. And it ends an upload as soon as it reads
                // an error status, short of the length that it stated: that is an error of the
                // stream, and the body is lost if it comes behind the head.
                let is_hard = bytes == 4 << 20 || status == "413" && bytes > 1 << 10;
                if is_hard && version != "--http1.1" {
                    continue;
                }
                let url = lab.url(&format!("/early?{status}"));
                let upload = ["-H", "Expect:", "--data-binary", &file, &url];
                let answer = curl(&[&[version, "-w", " %{http_code}"], &upload[..]].concat());
                assert_eq!(
                    answer,
                    format!("enough {status}"),
                    "{version}: {bytes} bytes"
                );
            }
        }
    }

    let answer = lab.get("/hints");
    assert!(answer.starts_with("HTTP/1.1 103"), "{answer}");
    assert!(
        answer.contains("</a>; rel=preload") && answer.ends_with("final"),
        "{answer}"
    );

    let fields = curl(&[
        "-H",
        "Connection: x-hop",
        "-H",
        "X-Hop: 1",
        "-H",
        "TE: trailers",
        "-H",
        "Cookie: a=b; c=d",
        &lab.url("/fields?a=b"),
    ]);
    let authority = format!(":authority: {}", lab.origin());
    for there in [
        &*authority,
        ":scheme: https",
        ":path: /fields?a=b",
        "cookie: a=b; c=d",
        "via: ",
    ] {
        assert!(fields.contains(there), "{there} in {fields}");
    }
    for absent in [
        "host:",
        "connection:",
        "te:",
        "x-hop:",
        "transfer-encoding:",
    ] {
        let is_there = fields.lines().any(|line| line.starts_with(absent));
        assert!(!is_there, "{absent} in {fields}");
    }
}
