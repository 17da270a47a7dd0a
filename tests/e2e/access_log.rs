//! The access log: what its lines say, where they go, and that no request waits for them.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nearcast_testing::{Origin, Reply};
use serde_json::Value;

use crate::lab::addresses::Block;
use crate::lab::fleet::{Fleet, Plan};
use crate::lab::process::{Process, nearcast, run};
use crate::lab::tools::curl;
use crate::lab::wait;

const SOON: Duration = Duration::from_secs(20);

/// An edge without a fleet file, in front of a scripted origin.
struct Edge {
    process: Process,
    origin: Origin,
    listen: String,
    directory: tempfile::TempDir,
}

impl Edge {
    fn start(log: &str, more: &[&str]) -> Self {
        let block = Block::take();
        let origin = Origin::start_at(SocketAddr::from((block.host(80), 8000)), |seen| match seen
            .target
            .as_str()
            .split('?')
            .next()
            .unwrap_or_default()
        {
            "/private" => Reply::ok("mine", "no-store"),
            "/missing" => Reply::status(404),
            "/cut" => Reply::ok(vec![b'x'; 100_000], "no-store").cut_after(50_000),
            "/endless" => Reply::ok(vec![b'x'; 50 << 20], "no-store"),
            _ => Reply::ok(vec![b'x'; 1000], "max-age=600"),
        });
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        // The edge of root runs as another user.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777))
            .expect("it is ours");
        let listen = format!("{}:8080", block.host(10));
        let mut command = nearcast();
        command
            .args(["edge", "--listen", &listen, "--origin", &origin.url()])
            .args(["--access-log", log])
            .args(more)
            .arg("--state-dir")
            .arg(directory.path().join("state"))
            .current_dir(directory.path());
        let process = Process::start("edge", directory.path(), command);
        let edge = Self {
            process,
            origin,
            listen,
            directory,
        };
        wait::until("the edge to answer", SOON, || {
            TcpStream::connect(&edge.listen).map(drop)
        });
        edge
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    /// curl's output for a path, with the response's head.
    fn curl(&self, arguments: &[&str], path: &str) -> String {
        let url = format!("http://{}{path}", self.listen);
        curl(&[&["-i"], arguments, &[url.as_str()]].concat())
    }

    /// Sends bytes, and reads the response to its end or to the first `most` bytes.
    fn raw(&self, request: &str, most: u64) -> String {
        let mut stream = TcpStream::connect(&self.listen).expect("it listens");
        stream
            .write_all(request.as_bytes())
            .expect("it takes the request");
        let mut answer = Vec::new();
        stream
            .take(most)
            .read_to_end(&mut answer)
            .expect("it answers");
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn end(&mut self) {
        self.process.signal("TERM");
        self.process.wait(SOON);
    }
}

/// The lines of a file, once there are as many as expected.
fn lines(file: &Path, count: usize) -> Vec<String> {
    wait::until(&format!("{count} lines"), SOON, || {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        match lines.len() == count {
            true => Ok(lines),
            false => Err(text),
        }
    })
}

fn objects(lines: &[String]) -> Vec<Value> {
    lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

/// The value of a field in a response as curl shows it.
fn field<'a>(answer: &'a str, name: &str) -> &'a str {
    answer
        .lines()
        .find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
        .unwrap_or_else(|| panic!("no {name} in {answer}"))
}

#[test]
fn a_line_of_json_says_what_curl_saw() {
    let mut edge = Edge::start("logs/access.log", &[]);
    let before = nearcast_fleet::clock::now_unix_ms();
    let host = "Host: Www.Example";
    let agent = "a \"quoted\" agent\\";
    let common = ["-H", host, "-A", agent, "-e", "http://x.example/from"];
    edge.curl(
        &[&common[..], &["-H", "X-Request-Id: chosen"]].concat(),
        "/page?a=%22b",
    );
    edge.curl(&common, "/page?a=%22b");
    edge.curl(&["-H", host], "/private");
    edge.curl(&["-H", host, "--http1.0"], "/missing");
    edge.curl(&["-H", host, "-I"], "/page?a=%22b");
    edge.curl(&["-H", host, "-d", "x=y"], "/form");
    // Health checks are not logged.
    edge.curl(&[], "/.nearcast/health");
    let refused = edge.raw("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 10_000);
    assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");

    let mut lines = objects(&lines(&edge.path("logs/access.log"), 7));
    // Each worker has a buffer of its own.
    lines.sort_by_key(|line| line["time"].as_str().map(str::to_owned));
    let text = |at: usize, name: &str| lines[at][name].as_str().unwrap_or_default().to_owned();
    for (at, method, path, status, bytes, cache) in [
        (0, "GET", "/page?a=%22b", 200, 1000, "miss"),
        (1, "GET", "/page?a=%22b", 200, 1000, "hit"),
        (2, "GET", "/private", 200, 4, "miss"),
        (3, "GET", "/missing", 404, 0, "miss"),
        (4, "HEAD", "/page?a=%22b", 200, 0, "hit"),
        (5, "POST", "/form", 200, 1000, "bypass"),
    ] {
        let line = &lines[at];
        assert_eq!(
            (text(at, "method"), text(at, "path"), text(at, "cache")),
            (method.to_owned(), path.to_owned(), cache.to_owned()),
            "{line}"
        );
        assert_eq!(
            (&line["status"], &line["bytes"]),
            (&status.into(), &bytes.into()),
            "{line}"
        );
        assert_eq!(text(at, "host"), "Www.Example");
        assert_eq!(
            (text(at, "node"), text(at, "cluster"), text(at, "site")),
            ("edge".into(), "local".into(), "site".into())
        );
        assert!(
            line["client"]
                .as_str()
                .is_some_and(|c| c.starts_with("127.")),
            "{line}"
        );
        let time: jiff::Timestamp = text(at, "time").parse().expect("RFC 3339");
        let time = time.as_millisecond() as u64;
        assert!((before..=before + 60_000).contains(&time), "{line}");
        let [first, total] =
            ["first_byte_us", "total_us"].map(|name| line[name].as_u64().expect("a number"));
        assert!(first <= total && total < 20_000_000, "{line}");
        assert_eq!(line["origin_us"].is_u64(), cache != "hit", "{line}");
        assert!(
            line.get("ended").is_none() && line.get("peer").is_none(),
            "{line}"
        );
    }
    assert_eq!(
        (text(0, "forward"), text(2, "not_stored")),
        ("uri-miss".into(), "no-store".into())
    );
    assert_eq!(
        (text(0, "protocol"), text(3, "protocol")),
        ("HTTP/1.1".into(), "HTTP/1.0".into())
    );
    for at in 0..2 {
        assert_eq!(
            (text(at, "user_agent"), text(at, "referer")),
            (agent.into(), "http://x.example/from".into())
        );
    }
    assert_eq!(
        (&lines[6]["status"], text(6, "method")),
        (&400.into(), String::new())
    );

    // The origin gets the ids of the log, and no id that a client has chosen.
    let of_origin: Vec<String> = edge
        .origin
        .seen()
        .iter()
        .map(|seen| seen.fields["x-request-id"].clone())
        .collect();
    let forwarded: Vec<String> = [0, 2, 3, 5].map(|at| text(at, "request_id")).into();
    assert_eq!(of_origin, forwarded);
    let ids: BTreeSet<String> = (0..7).map(|at| text(at, "request_id")).collect();
    assert!(
        ids.len() == 7 && ids.iter().all(|id| id.len() == 24),
        "{ids:?}"
    );
    assert!(
        refused.contains(&format!("request id: {}\n", text(6, "request_id"))),
        "{refused}"
    );
    edge.end();
}

#[test]
fn responses_that_end_early_and_errors_are_told_apart() {
    let mut edge = Edge::start("access.log", &[]);
    let log = edge.path("access.log");
    edge.raw("GET /endless HTTP/1.1\r\nHost: a\r\n\r\n", 1000);
    let first = lines(&log, 1);
    assert!(
        first[0].contains("\"ended\":\"client-left\""),
        "{}",
        first[0]
    );
    edge.raw("GET /cut HTTP/1.1\r\nHost: a\r\n\r\n", 1 << 20);
    let second = lines(&log, 2);
    assert!(second[1].contains("\"ended\":\"cut\""), "{}", second[1]);

    edge.origin.stop();
    let failed = edge.curl(&[], "/other");
    let lines = objects(&lines(&log, 3));
    let id = lines[2]["request_id"].as_str().expect("an id");
    assert_eq!(
        (&lines[2]["status"], &lines[2]["cache"]),
        (&502.into(), &"error".into())
    );
    let status = field(&failed, "proxy-status");
    assert!(
        status.starts_with("edge; error=connection_refused")
            && status.ends_with(&format!("request-id={id}\"")),
        "{status}"
    );
    assert!(failed.ends_with(&format!("request id: {id}\n")), "{failed}");
    edge.end();
}

#[test]
fn a_line_has_the_version_of_tls() {
    let block = Block::take();
    let origin = Origin::start_at(SocketAddr::from((block.host(80), 8000)), |_| {
        Reply::ok("x", "max-age=600")
    });
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let listen = |port: u16| format!("{}:{port}", block.host(10));
    run(
        "openssl",
        [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=www.test",
            "-addext",
            "subjectAltName=DNS:www.test",
            "-keyout",
            &path("key.pem"),
            "-out",
            &path("cert.pem"),
        ],
    );
    for (file, mode) in [("", 0o777), ("key.pem", 0o644)] {
        std::fs::set_permissions(path(file), std::fs::Permissions::from_mode(mode))
            .expect("it is ours");
    }
    let mut command = nearcast();
    command
        .args([
            "edge",
            "--listen",
            &listen(8080),
            "--listen-tls",
            &listen(8443),
            "--origin",
            &origin.url(),
        ])
        .args(["--cert", &path("cert.pem"), "--key", &path("key.pem")])
        .args([
            "--access-log",
            &path("access.log"),
            "--state-dir",
            &path("state"),
        ]);
    let _edge = Process::start("edge", directory.path(), command);
    wait::until("the edge to answer", SOON, || {
        TcpStream::connect(listen(8443)).map(drop)
    });
    let resolve = format!("www.test:8443:{}", block.host(10));
    for (at, version) in [(1, "1.2"), (2, "1.3")] {
        curl(&[
            "--cacert",
            &path("cert.pem"),
            "--resolve",
            &resolve,
            "--http1.1",
            "--tls-max",
            version,
            "https://www.test:8443/page",
        ]);
        let line = lines(Path::new(&path("access.log")), at).remove(at - 1);
        let line: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(line["tls"], format!("TLSv{version}"), "{line}");
        assert_eq!(line["cache"], ["miss", "hit"][at - 1], "{line}");
    }
}

#[test]
fn common_lines_are_read_by_a_program_for_them() {
    // The expression that log analysers use.
    let script = r#"
import re, sys
line = re.compile(r'^(\S+) (\S+) (\S+) \[([^\]]+)\] "((?:[^"\\]|\\.)*)" (\d{3}) (\d+|-)(?: "((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)")?$')
import datetime
for text in open(sys.argv[1], encoding='ascii'):
    found = line.match(text.rstrip('\n'))
    assert found, text
    datetime.datetime.strptime(found[4], '%d/%b/%Y:%H:%M:%S %z')
    print(found[5], found[6], found[7], found[8], found[9], sep='|')
"#;
    for (form, expected) in [
        (
            "common",
            [
                "GET /page HTTP/1.1|200|1000|None|None",
                "HEAD /page HTTP/1.1|200|-|None|None",
            ],
        ),
        (
            "combined",
            [
                "GET /page HTTP/1.1|200|1000|-|a \\\"q\\\" \\xc3\\xa9",
                "HEAD /page HTTP/1.1|200|-|http://x.example/|curl",
            ],
        ),
    ] {
        let mut edge = Edge::start("access.log", &["--access-log-format", form]);
        edge.curl(&["-A", "a \"q\" é"], "/page");
        lines(&edge.path("access.log"), 1);
        edge.curl(&["-I", "-A", "curl", "-e", "http://x.example/"], "/page");
        lines(&edge.path("access.log"), 2);
        let read = run(
            "python3",
            ["-c", script, &edge.path("access.log").to_string_lossy()],
        );
        assert_eq!(read.lines().collect::<Vec<_>>(), expected, "{form}");
        edge.end();
    }
}

#[test]
fn the_end_of_an_edge_writes_every_line_to_standard_output() {
    let mut edge = Edge::start("-", &[]);
    for n in 0..20 {
        edge.curl(&[], &format!("/page?{n}"));
    }
    edge.end();
    let logged: Vec<String> = edge
        .process
        .output()
        .lines()
        .filter(|line| line.starts_with("{\"time\""))
        .map(str::to_owned)
        .collect();
    assert_eq!(objects(&logged).len(), 20);
}

#[test]
fn a_reader_that_is_gone_or_reads_nothing_delays_nobody() {
    for reads in ["true", "sleep 60"] {
        let block = Block::take();
        let origin = Origin::start_at(SocketAddr::from((block.host(80), 8000)), |_| {
            Reply::ok(vec![b'x'; 1000], "max-age=600")
        });
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let listen = format!("{}:8080", block.host(10));
        let mut reader = Command::new("sh")
            .args(["-c", &format!("exec {reads}")])
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh runs");
        let mut command = nearcast();
        command
            .args(["edge", "--listen", &listen, "--origin", &origin.url()])
            .args(["--access-log", "-", "--state-dir"])
            .arg(directory.path().join("state"))
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(directory.path().join("log")).expect("a log"))
            .stdout(reader.stdin.take().expect("a pipe"));
        let mut edge = command.spawn().expect("the binary runs");
        wait::until("the edge to answer", SOON, || {
            TcpStream::connect(&listen).map(drop)
        });
        // More than a pipe takes: 64 KiB.
        let url = format!("http://{listen}/page?[1-600]");
        let codes = curl(&["-w", "%{http_code}\n", "-o", "/dev/null", &url]);
        assert_eq!(codes.lines().filter(|code| *code == "200").count(), 600);
        run("kill", ["-TERM", &edge.id().to_string()]);
        wait::until("the edge to end", SOON, || {
            edge.try_wait().expect("a child").ok_or("it still runs")
        });
        if reads == "true" {
            let said = std::fs::read_to_string(directory.path().join("log")).expect("text");
            assert_eq!(
                said.matches("lines of the access log are lost").count(),
                1,
                "{said}"
            );
        }
        let _ = reader.kill();
        let _ = reader.wait();
    }
}

#[test]
fn a_log_that_cannot_be_written_is_found_at_the_start() {
    let block = Block::take();
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    std::fs::create_dir(directory.path().join("taken")).expect("made");
    for (path, words) in [
        (
            "/proc/nearcast/access.log",
            "cannot write the access log to /proc/nearcast/access.log",
        ),
        ("taken", "another path"),
    ] {
        let ended = nearcast()
            .args(["edge", "--listen", &format!("{}:8080", block.host(10))])
            .args([
                "--origin",
                "http://127.0.0.1:9",
                "--access-log",
                path,
                "--state-dir",
            ])
            .arg(directory.path().join("state"))
            .current_dir(directory.path())
            .output()
            .expect("the binary runs");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(
            ended.status.code() == Some(73) && said.contains(words),
            "{path}: {:?} {said}",
            ended.status
        );
    }
}

fn plan(log: &str) -> Plan {
    Plan {
        clusters: 1,
        nodes: 1,
        more: format!("[access_log]\n{log}\n"),
        ..Plan::new()
    }
}

#[test]
fn a_log_is_rotated_by_its_size_and_opened_anew_on_sighup() {
    let mut fleet = Fleet::start(plan(
        "path = \"logs/access.log\"\nrotate_at = \"1MiB\"\nkept = 2",
    ));
    let edge = fleet.plan.edge(0, 0);
    let logs = fleet.path("state/ams-1/logs");
    // Lines of about 4 KiB.
    let path = format!("/[1-1000]?{}", "x".repeat(4000));
    fleet.curl(edge, &["-o", "/dev/null"], &path);
    wait::until("two rotated files and no third", SOON, || {
        let names: BTreeSet<String> = std::fs::read_dir(&logs)
            .map_err(|e| e.to_string())?
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        let expected = ["access.log", "access.log.1", "access.log.2"];
        match names.iter().eq(expected)
            && std::fs::read_to_string(logs.join("access.log"))
                .is_ok_and(|text| text.contains("\"/1000?"))
        {
            true => Ok(()),
            false => Err(format!("{names:?}")),
        }
    });
    let mut last = 1001;
    for name in ["access.log", "access.log.1", "access.log.2"] {
        let text = std::fs::read_to_string(logs.join(name)).expect("text");
        assert!(text.len() <= 1 << 20, "{name}: {}", text.len());
        let all: Vec<String> = text.lines().map(str::to_owned).collect();
        for object in objects(&all).iter().rev() {
            let number = object["path"]
                .as_str()
                .and_then(|p| p[1..].split('?').next()?.parse().ok());
            assert_eq!(number, Some(last - 1), "no line is missing between files");
            last -= 1;
        }
    }

    std::fs::rename(logs.join("access.log"), logs.join("moved")).expect("renamed");
    fleet.node("ams-1").signal("HUP");
    wait::until("a new file", SOON, || {
        std::fs::metadata(logs.join("access.log")).map(drop)
    });
    fleet.curl(edge, &["-o", "/dev/null"], "/after");
    assert!(lines(&logs.join("access.log"), 1)[0].contains("\"/after\""));
}

/// Applies the fleet's file with another end.
fn apply(fleet: &Fleet, log: &str) {
    let plan = Plan {
        more: log.to_owned(),
        ..fleet.plan.clone()
    };
    let file = fleet.path("nearcast.toml");
    std::fs::write(&file, plan.text()).expect("the file can be written");
    let applied = fleet.operate(&["apply", &file.to_string_lossy()]);
    let said = String::from_utf8_lossy(&applied.stderr);
    assert!(applied.status.success(), "{said}");
}

#[test]
fn a_new_fleet_file_changes_the_log_of_running_edges() {
    let mut fleet = Fleet::start(plan("path = \"a.log\""));
    let edge = fleet.plan.edge(0, 0);
    let state = fleet.path("state/ams-1");
    fleet.curl(edge, &["-o", "/dev/null"], "/one");
    lines(&state.join("a.log"), 1);
    apply(
        &fleet,
        "[access_log]\npath = \"b.log\"\nformat = \"common\"\nclient = \"truncated\"\n",
    );
    wait::until("the other file", SOON, || {
        std::fs::metadata(state.join("b.log")).map(drop)
    });
    fleet.curl(edge, &["-o", "/dev/null"], "/two");
    let two = lines(&state.join("b.log"), 1);
    assert!(
        two[0].contains(".0 - - [") && two[0].contains("\"GET /two HTTP/1.1\" 404"),
        "{}",
        two[0]
    );
    lines(&state.join("a.log"), 1);

    apply(
        &fleet,
        "[access_log]\npath = \"b.log\"\nformat = \"json\"\nsample = \"25%\"\n",
    );
    // A line of JSON shows that the setting is in force.
    wait::until("a line in the new form", SOON, || {
        fleet.curl(edge, &["-o", "/dev/null"], "/probe");
        match std::fs::read_to_string(state.join("b.log"))
            .unwrap_or_default()
            .contains("{\"time\"")
        {
            true => Ok(()),
            false => Err("none yet"),
        }
    });
    fleet.curl(edge, &["-o", "/dev/null"], "/sampled?[1-400]");
    fleet.curl(edge, &["-o", "/dev/null"], "/last?[1-60]");
    wait::until("the last lines", SOON, || {
        match std::fs::read_to_string(state.join("b.log"))
            .unwrap_or_default()
            .contains("/last?")
        {
            true => Ok(()),
            false => Err("none yet"),
        }
    });
    let text = std::fs::read_to_string(state.join("b.log")).expect("text");
    // 400 x 25 %, within six standard deviations.
    let sampled = text.matches("/sampled?").count();
    assert!((48..=152).contains(&sampled), "{sampled}");

    apply(&fleet, "");
    fleet
        .node("ams-1")
        .wait_for_output("requests are not logged any more", SOON);
    let before = std::fs::read_to_string(state.join("b.log")).expect("text");
    fleet.curl(edge, &["-o", "/dev/null"], "/off?[1-40]");
    // The end writes whatever there is to write.
    fleet.node("ams-1").signal("TERM");
    fleet.node("ams-1").signal("TERM");
    fleet.node("ams-1").wait(SOON);
    let after = std::fs::read_to_string(state.join("b.log")).expect("text");
    assert_eq!(before, after);
}
