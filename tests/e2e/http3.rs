//! HTTP/3 of clients: every MUST of RFC 9114 and RFC 9204 with streams made by hand, floods, priorities,
//! time-outs and drain, and aioquic as a client.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nearcast_testing::{Gate, Origin, Reply};

use crate::lab::addresses::Block;
use crate::lab::certificates::{ECDSA, Pair};
use crate::lab::process::{Process, nearcast, run};
use crate::lab::tools::{self, PYTHON};
use crate::lab::wait;

const LIMIT: Duration = Duration::from_secs(30);
const LARGE_BYTES: usize = 256 << 10;
/// Memory that a flood may add: what its connections may hold, and what an allocator keeps.
const MORE_MEMORY: u64 = 32 << 20;

/// An edge with one worker, whose clients have little time, and its origin.
struct Lab {
    edge: Process,
    address: SocketAddr,
    admin: SocketAddr,
    origin: Origin,
    /// Ends the requests that are held.
    held: Gate,
    directory: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.held.open();
    }
}

fn reply(path: &str, body: &[u8], gate: &Gate) -> Reply {
    let large = || vec![b'x'; LARGE_BYTES];
    match path {
        "/large" => Reply::ok(large(), "max-age=3600"),
        "/film" => Reply::ok(vec![b'x'; 16 * LARGE_BYTES], "max-age=3600"),
        "/part" => Reply::ok(vec![b'x'; 4 * LARGE_BYTES], "max-age=3600"),
        "/chunked" => Reply {
            chunked: true,
            ..Reply::ok(large(), "no-store")
        },
        "/cut" => Reply {
            cut: Some(1000),
            ..Reply::ok(large(), "no-store")
        },
        "/cut-chunked" => Reply {
            cut: Some(1000),
            chunked: true,
            ..Reply::ok(large(), "no-store")
        },
        "/echo" => Reply::ok(body, "no-store"),
        "/held" => Reply {
            held_head: Some(gate.clone()),
            ..Reply::ok("", "no-store")
        },
        "/hints" => Reply {
            interim: "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n",
            ..Reply::ok("a page", "no-store")
        },
        "/tagged" => {
            let mut reply = Reply::ok("a page", "max-age=3600");
            reply.fields.push(("ETag".into(), "\"tag\"".into()));
            reply
        }
        _ => Reply::ok("a page", "max-age=3600"),
    }
}

impl Lab {
    fn new() -> Self {
        let block = Block::take();
        let held = Gate::default();
        let gate = held.clone();
        let at = SocketAddr::from((block.host(80), 8000));
        let origin = Origin::start_at(at, move |seen| {
            let path = seen.target.split('?').next().unwrap_or_default();
            match path {
                "/fields" => {
                    let lines = seen.fields.iter();
                    let lines: Vec<String> = lines.map(|(n, v)| format!("{n}: {v}")).collect();
                    Reply::ok(lines.join("\n"), "no-store")
                }
                path => reply(path, &seen.body, &gate),
            }
        });
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let pair = Pair::make(directory.path(), "www", &ECDSA, "DNS:www.demo.test");
        let ip = block.host(10);
        let mut text = format!(
            "[fleet]\nzone = \"cdn.test\"\nstate_dir = \"state\"\n{}\n\
             [clients]\nhead_timeout = \"3s\"\nwrite_timeout = \"3s\"\nidle_timeout = \"4s\"\nhead_max = \"12KiB\"\n",
            pair.section()
        );
        let _ = write!(
            text,
            "[[cluster]]\nname = \"ams\"\nplace = {{ latitude = 52.37, longitude = 4.9 }}\n\
             [[cluster.node]]\nname = \"ams-1\"\naddress = \"{ip}\"\nlisten = \"{ip}:8080\"\nlisten_tls = \"{ip}:8443\"\n\
             admin = \"{ip}:9100\"\nmemory = \"64MiB\"\ndisk = \"0\"\nthreads = 1\n\
             [access_log]\npath = {:?}\n\
             [[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"{}\"\n",
            directory.path().join("access.log"),
            origin.url()
        );
        let file = directory.path().join("nearcast.toml");
        std::fs::write(&file, text).expect("the fleet file can be written");
        let mut command = nearcast();
        command.args(["edge", "--node", "ams-1", "--user", "root", "--fleet"]);
        command.arg(&file);
        let mut edge = Process::start("edge", directory.path(), command);
        edge.wait_for_output("the edge serves", LIMIT);
        let [address, admin] = [8443, 9100].map(|port| SocketAddr::from((ip, port)));
        Self {
            edge,
            address,
            admin,
            origin,
            held,
            directory,
        }
    }

    fn script(&self, script: &str, case: Option<&str>, more: &[&str]) -> Vec<String> {
        let path = format!("{}/tests/e2e/lab/{script}", env!("CARGO_MANIFEST_DIR"));
        let (ip, port) = (
            self.address.ip().to_string(),
            self.address.port().to_string(),
        );
        let before = [Some(path.as_str()), case, Some(&ip), Some(&port)];
        let words = before.into_iter().flatten().chain(more.iter().copied());
        words.map(str::to_owned).collect()
    }

    /// Runs a case to its end.
    fn client(&self, case: &str) {
        run(PYTHON, self.script("http3_client.py", Some(case), &[]));
        self.is_well();
    }

    /// The edge has not lost a task.
    fn is_well(&self) {
        let output = self.edge.output();
        assert!(!output.contains("panicked"), "{output}");
    }

    fn metric(&self, series: &str) -> u64 {
        let metrics = tools::curl(&[&format!("http://{}/metrics", self.admin)]);
        let line = metrics.lines().find(|line| line.starts_with(series));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("no {series} in {metrics}")) as u64
    }

    fn closed(&self, reason: &str) -> u64 {
        self.metric(&format!(
            "nearcast_edge_http3_closed_total{{reason=\"{reason}\"}}"
        ))
    }

    /// Resident bytes of the edge.
    fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.edge.pid());
        let status = std::fs::read_to_string(path).expect("the edge runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.expect("it has memory").trim().trim_end_matches(" kB");
        kilobytes.parse::<u64>().expect("a number") << 10
    }
}

#[test]
fn what_rfc_9114_and_rfc_9204_require_of_a_server_holds() {
    let lab = Lab::new();
    let output = run(PYTHON, lab.script("http3_conformance.py", None, &[]));
    let cases: Vec<serde_json::Value> = output
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert!(cases.len() > 270, "{}", cases.len());
    let wrong: Vec<String> = cases
        .iter()
        .filter(|case| !case["wrong"].is_null())
        .map(|case| format!("{} {}: {}", case["section"], case["name"], case["wrong"]))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    let seen = lab.origin.seen().into_iter();
    let reached: Vec<String> = seen
        .filter(|seen| seen.target.contains("bad"))
        // An upload is passed on while it is received; one that turns out malformed is never complete.
        .filter(|seen| {
            let stated = seen.fields.get("content-length");
            stated.is_none_or(|stated| stated.parse() == Ok(seen.body.len()))
        })
        .map(|seen| seen.target)
        .collect();
    assert!(reached.is_empty(), "{reached:?} reached the origin");
    assert!(lab.closed("frame-unexpected") > 20 && lab.closed("decompression") > 20);
    lab.is_well();
}

/// Floods are ended by H3_EXCESSIVE_LOAD with this reason. A harmless client is served meanwhile.
fn check_floods(floods: &[(&str, &str)]) {
    let lab = Lab::new();
    let mut wrong = Vec::new();
    for (kind, reason) in floods {
        let before = lab.memory();
        let output = run(PYTHON, lab.script("http3_flood.py", None, &[kind, "3"]));
        let found: serde_json::Value = serde_json::from_str(&output).expect("JSON");
        let code = format!("0x107 {reason}");
        if found["ended"][&code]
            .as_u64()
            .is_none_or(|count| count == 0)
        {
            wrong.push(format!("{kind}: not ended by {code}: {found}"));
        }
        if found["answered"].as_u64().is_none_or(|count| count == 0) || !found["lost"].is_null() {
            wrong.push(format!("{kind}: a harmless client was not served: {found}"));
        }
        if lab.memory() > before + MORE_MEMORY {
            wrong.push(format!(
                "{kind}: {} bytes in place of {before}",
                lab.memory()
            ));
        }
        if lab.closed(reason) == 0 {
            wrong.push(format!("{kind}: not counted"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    lab.is_well();
}

#[test]
fn floods_of_requests_end_their_connections_and_no_other() {
    check_floods(&[
        ("cancelled", "reset"),
        ("reset", "reset"),
        ("malformed", "refused"),
        ("refused", "refused"),
        ("incomplete", "refused"),
        ("empty", "refused"),
    ]);
}

#[test]
fn floods_of_frames_that_ask_for_nothing_end_their_connections_and_no_other() {
    check_floods(&[
        ("unknown-frames", "unknown"),
        ("large-unknown-frames", "unknown"),
        ("unknown-frames-of-requests", "unknown"),
        ("unknown-streams", "unknown"),
        ("goaway", "control"),
        ("max-push-id", "control"),
        ("cancelled-sections", "control"),
        ("priority", "priority"),
        ("empty-data", "small-data"),
        ("small-data", "small-data"),
    ]);
}

#[test]
fn a_client_gets_pages_films_and_forms() {
    let lab = Lab::new();
    lab.client("exchange");
    lab.client("cut");
    let log = lab.directory.path().join("access.log");
    wait::until("lines in the log", LIMIT, || {
        let text = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
        match text.contains("HTTP/3.0") && text.contains("TLSv1.3") {
            true => Ok(()),
            false => Err(text),
        }
    });
}

#[test]
fn the_most_urgent_response_is_sent_first() {
    let lab = Lab::new();
    for case in ["priority", "order", "turns", "update"] {
        lab.client(case);
    }
}

#[test]
fn clients_that_take_or_send_nothing_are_not_waited_for() {
    let lab = Lab::new();
    for case in ["stalled", "silent", "idle"] {
        lab.client(case);
    }
    assert!(lab.closed("slow") >= 1 && lab.closed("idle") >= 1);
}

/// A case in which something is done in the middle.
struct Held {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Held {
    fn start(arguments: &[String]) -> Self {
        let mut child = Command::new(PYTHON)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("python runs; tests/run installs it");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, output }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.output.read_line(&mut line);
        read.expect("it prints a line");
        line.trim().to_owned()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_edge_that_ends_answers_what_is_under_way_and_says_what_it_does_not() {
    let mut lab = Lab::new();
    let mut client = Held::start(&lab.script("http3_client.py", Some("drain"), &[]));
    assert_eq!(client.line(), "requested");
    wait::until("the request at the origin", LIMIT, || {
        let seen = lab.origin.seen();
        match seen.iter().any(|seen| seen.target == "/held") {
            true => Ok(()),
            false => Err(seen.len()),
        }
    });
    lab.edge.signal("TERM");
    assert_eq!(client.line(), "goaway");
    lab.held.open();
    let status = client.child.wait().expect("it ends");
    assert!(status.success(), "the client says on stderr what is wrong");
    assert!(lab.edge.wait(LIMIT).success());
    lab.is_well();
}
