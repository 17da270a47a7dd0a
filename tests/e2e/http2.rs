//! HTTP/2 of clients with frames made by hand: every MUST of RFC 9113, and floods.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nearcast_testing::{Gate, Origin, Reply};

use crate::lab::addresses::Block;
use crate::lab::process::{Process, nearcast, run};
use crate::lab::tools::PYTHON;
use crate::lab::wait;

const LARGE_BYTES: usize = 256 << 10;
/// A measured client asks once in this time, however long its last answer took.
const PACE: Duration = Duration::from_millis(3);

/// An edge with one worker, whose clients have little time, and its origin.
struct Lab {
    edge: Process,
    address: SocketAddr,
    origin: Origin,
    /// Ends the requests that are held when the test ends.
    held: Gate,
    /// The origin of `stuck.test`: connections wait in its queue, and nothing is read from them.
    _stuck: TcpListener,
    _directory: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.held.open();
    }
}

impl Lab {
    /// The site's `queue_timeout` is short, as uploads that find no connection to the origin are held
    /// for that long: with the default of half a minute the same happens later.
    fn new() -> Self {
        let block = Block::take();
        let held = Gate::default();
        let gate = held.clone();
        let origin =
            Origin::start_at(
                SocketAddr::from((block.host(80), 8000)),
                move |seen| match seen.target.split('?').next().unwrap_or_default() {
                    "/large" => Reply::ok(vec![b'x'; LARGE_BYTES], "max-age=3600"),
                    "/echo" => Reply::ok(seen.body.clone(), "no-store"),
                    "/held" => Reply {
                        held_head: Some(gate.clone()),
                        ..Reply::ok("", "no-store")
                    },
                    "/fields" => {
                        let lines = seen.fields.iter();
                        let lines: Vec<String> = lines.map(|(n, v)| format!("{n}: {v}")).collect();
                        Reply::ok(lines.join("\n"), "no-store")
                    }
                    _ => Reply::ok("a page", "max-age=3600"),
                },
            );
        let stuck = TcpListener::bind((block.host(81), 8000)).expect("a free address");
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let (edge, control, dns) = (block.host(10), block.host(70), block.host(53));
        let file = format!(
            "[fleet]\nzone = \"cdn.test\"\nnode_key = \"a key that only this test knows\"\nstate_dir = \"state\"\n\
             [control]\nlisten = \"{control}:7700\"\nadmin = \"{control}:9100\"\n\
             [clients]\nhead_timeout = \"3s\"\nwrite_timeout = \"3s\"\nidle_timeout = \"4s\"\nhead_max = \"12KiB\"\n\
             [[name_server]]\nname = \"ns1\"\nlisten = \"{dns}:5300\"\nadmin = \"{dns}:9100\"\n\
             [[cluster]]\nname = \"ams\"\nplace = {{ latitude = 52.4, longitude = 4.9 }}\n\
             [[cluster.node]]\nname = \"ams-1\"\naddress = \"{edge}\"\nlisten = \"{edge}:8080\"\nadmin = \"{edge}:9100\"\n\
             memory = \"16MiB\"\nthreads = 1\n\
             [[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"{}\"\n\
             [site.limits]\nrequest_body_timeout = \"3s\"\nqueue_timeout = \"2s\"\n\
             [[site]]\nname = \"stuck\"\nhosts = [\"stuck.test\"]\norigin = \"http://{}:8000\"\n",
            origin.url(),
            block.host(81)
        );
        let path = directory.path().join("nearcast.toml");
        std::fs::write(&path, file).expect("written");
        let mut command = nearcast();
        command
            .args(["edge", "--node", "ams-1", "--fleet"])
            .arg(&path);
        let address = SocketAddr::from((edge, 8080));
        let lab = Self {
            edge: Process::start("edge", directory.path(), command),
            address,
            origin,
            held,
            _stuck: stuck,
            _directory: directory,
        };
        wait::until("the edge to answer", Duration::from_secs(20), || {
            TcpStream::connect(address).map(drop)
        });
        let mut client = Honest::new(address);
        client.get("/");
        client.get("/large");
        lab
    }

    fn arguments(&self, script: &str, more: &[&str]) -> Vec<String> {
        let path = format!("{}/tests/e2e/lab/{script}", env!("CARGO_MANIFEST_DIR"));
        let at = [
            path,
            self.address.ip().to_string(),
            self.address.port().to_string(),
        ];
        let more = more.iter().map(|argument| (*argument).to_owned());
        at.into_iter().chain(more).collect()
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

/// A client of HTTP/1.1 that asks for what is stored, again and again.
struct Honest(BufReader<TcpStream>);

impl Honest {
    fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the edge listens");
        let limit = Some(Duration::from_secs(20));
        stream.set_read_timeout(limit).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        Self(BufReader::new(stream))
    }

    fn get(&mut self, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: www.demo.test\r\n\r\n");
        let sent = self.0.get_mut().write_all(request.as_bytes());
        sent.expect("the edge reads");
        let (mut line, mut length) = (String::new(), 0);
        self.0.read_line(&mut line).expect("the edge answers");
        assert!(line.starts_with("HTTP/1.1 200"), "{line}");
        while line != "\r\n" {
            line.clear();
            self.0.read_line(&mut line).expect("the edge answers");
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("a whole body");
    }
}

/// What honest clients and the edge had while something else went on.
#[derive(Debug)]
struct Measured {
    p99: Duration,
    /// That of an edge beside this one, which nothing else asked: what the machine does to both.
    p99_beside: Duration,
    memory: u64,
    /// Connections by the code that ended them.
    ended: serde_json::Map<String, serde_json::Value>,
}

impl Measured {
    /// Whether honest clients had to wait for more than twice as long as `without` the load.
    fn is_hurt(&self, without: Duration) -> bool {
        self.p99 > (without.max(self.p99_beside) * 2).max(p99_floor())
    }
}

/// Asks for a page a few hundred times a second while a script sends a kind of load, and in turns asks
/// an edge `beside` that has none.
fn measure(lab: &Lab, beside: &Lab, kind: &str, seconds: f64, connections: usize) -> Measured {
    let more = [kind, &seconds.to_string(), &connections.to_string()];
    let mut script = Command::new(PYTHON)
        .args(lab.arguments("http2_flood.py", &more))
        .stdout(Stdio::piped())
        .spawn()
        .expect("the tests' Python runs");
    let (mut client, mut other) = (Honest::new(lab.address), Honest::new(beside.address));
    let (mut took, mut took_beside, mut memory) = (Vec::new(), Vec::new(), 0);
    while script.try_wait().expect("a child").is_none() {
        let began = Instant::now();
        client.get("/");
        took.push(began.elapsed());
        let began_beside = Instant::now();
        other.get("/");
        took_beside.push(began_beside.elapsed());
        memory = memory.max(lab.memory());
        std::thread::sleep(PACE.saturating_sub(began.elapsed()));
    }
    let output = script.wait_with_output().expect("a child");
    assert!(output.status.success(), "{kind}");
    let p99 = |mut took: Vec<Duration>| {
        took.sort();
        took[took.len() * 99 / 100]
    };
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    Measured {
        p99: p99(took),
        p99_beside: p99(took_beside),
        memory,
        ended: found["ended"].as_object().expect("codes").clone(),
    }
}

#[test]
fn what_rfc_9113_requires_of_a_server_holds() {
    let lab = Lab::new();
    let output = run(PYTHON, lab.arguments("http2_conformance.py", &[]));
    let cases: Vec<serde_json::Value> = output
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert!(cases.len() > 180, "{}", cases.len());
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
    let reached: Vec<String> = lab
        .origin
        .seen()
        .into_iter()
        .filter(|seen| seen.target.contains("bad"))
        // An upload is passed on while it is received; one that turns out malformed is never complete.
        .filter(|seen| {
            let stated = seen.fields.get("content-length");
            stated.is_none_or(|stated| stated.parse() == Ok(seen.body.len()))
        })
        .map(|seen| seen.target)
        .collect();
    assert!(reached.is_empty(), "{reached:?} reached the origin");
}

/// Memory that a flood may add: what its connections may hold, and what an allocator keeps.
const MORE_MEMORY: u64 = 32 << 20;
/// Memory of a request whose body is awaited.
const UPLOAD_MEMORY: u64 = 16 << 10;
/// Differences below this are not judged: an unoptimized build on a busy machine has them. The
/// variable sets a lower one, in milliseconds, for measurements of an optimized build.
fn p99_floor() -> Duration {
    let stated = std::env::var("NEARCAST_P99_FLOOR_MS");
    let stated = stated.map(|text| text.parse().expect("a number of milliseconds"));
    Duration::from_millis(stated.unwrap_or(40))
}
const ROUNDS: usize = 3;

/// Checks a flood against the same number of connections with harmless requests. It fails if most
/// rounds do, each of which is judged by itself: a machine that does other things too does not do them
/// in the same way for long.
fn check_flood(lab: &Lab, beside: &Lab, kind: &str, codes: &[&str]) -> Option<String> {
    let before = lab.memory();
    let (mut rounds, mut most_memory) = (Vec::new(), 0);
    let mut ended = serde_json::Map::new();
    for _ in 0..ROUNDS {
        let without = measure(lab, beside, "harmless", 1.0, 4).p99;
        let flooded = measure(lab, beside, kind, 1.0, 4);
        if flooded.memory > before + MORE_MEMORY {
            return Some(format!(
                "{kind}: {} bytes in place of {before}",
                flooded.memory
            ));
        }
        most_memory = most_memory.max(flooded.memory);
        let is_hurt = flooded.is_hurt(without);
        rounds.push((is_hurt, flooded.p99, without, flooded.p99_beside));
        ended.extend(flooded.ended);
    }
    let more = most_memory.saturating_sub(before) >> 10;
    eprintln!("{kind}: {more} KiB more, ended by {ended:?}");
    for (_, with, without, beside) in &rounds {
        eprintln!("    a p99 of {with:?} in place of {without:?}, {beside:?} beside it");
    }
    if rounds.iter().filter(|(is_hurt, ..)| *is_hurt).count() > ROUNDS / 2 {
        return Some(format!(
            "{kind}: hurt, p99 with, without and beside: {rounds:?}"
        ));
    }
    let is_ended = codes.iter().any(|code| ended.contains_key(*code));
    (!is_ended).then(|| format!("{kind}: ended by {ended:?} in place of {codes:?}"))
}

fn check_floods(floods: &[(&str, &[&str])]) {
    let _alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let (lab, beside) = (Lab::new(), Lab::new());
    let wrong: Vec<String> = floods
        .iter()
        .filter_map(|(kind, codes)| check_flood(&lab, &beside, kind, codes))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// GOAWAY with ENHANCE_YOUR_CALM.
const CALM: &[&str] = &["11"];
/// Latencies are measured by one test at a time.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn floods_of_streams_and_resets_end_their_connections_and_hurt_nobody() {
    check_floods(&[
        ("rapid-reset", CALM),
        ("induced-reset", CALM),
        ("malformed", CALM),
        ("malformed-name", &["1"]),
        ("refused", CALM),
        ("trailers", CALM),
    ]);
}

#[test]
fn floods_of_frames_that_ask_for_nothing_end_their_connections_and_hurt_nobody() {
    check_floods(&[
        ("continuation", CALM),
        ("empty-continuation", CALM),
        ("settings", CALM),
        ("settings-window", CALM),
        ("settings-table", CALM),
        ("large-settings", CALM),
        ("ping", CALM),
        ("priority", CALM),
        ("unknown", CALM),
        ("large-unknown", CALM),
        ("window-update", CALM),
        ("stream-window-update", CALM),
        ("goaway", CALM),
    ]);
}

#[test]
fn floods_of_bodies_and_tables_end_their_connections_and_hurt_nobody() {
    check_floods(&[
        ("empty-data", CALM),
        ("padded-data", CALM),
        ("small-data", CALM),
        // Its heads are refused as too large.
        ("bomb", CALM),
        ("table-resize", CALM),
    ]);
}

#[test]
fn connections_that_hold_and_do_nothing_are_closed_and_hold_little() {
    let _alone = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let (lab, beside) = (Lab::new(), Lab::new());
    let before = lab.memory();
    let mut wrong = Vec::new();
    // The last ones make memory that an allocator keeps.
    for kind in [
        "silence",
        "half-preface",
        "preface-only",
        "half-frame",
        "half-block",
        "idle",
        "zero-window",
        "no-connection-window",
        "slow-read",
        "no-body",
        "half-body",
    ] {
        let connections = 40;
        // Uploads are given up after request_body_timeout, and their connections are idle then.
        let (seconds, more_memory) = match kind {
            "no-body" | "half-body" => (14.0, MORE_MEMORY + connections * 100 * UPLOAD_MEMORY),
            _ => (9.0, MORE_MEMORY),
        };
        let held = measure(&lab, &beside, kind, seconds, connections as usize);
        let ended: u64 = held.ended.values().filter_map(|count| count.as_u64()).sum();
        if ended != connections {
            wrong.push(format!("{kind}: {ended} of {connections} were closed"));
        }
        if held.memory > before + more_memory {
            wrong.push(format!(
                "{kind}: {} bytes in place of {before}",
                held.memory
            ));
        }
        // Beside others of this machine that are busy for as long.
        let without = measure(&lab, &beside, "harmless", 1.0, 4).p99;
        let more = held.memory.saturating_sub(before) >> 10;
        eprintln!(
            "{kind}: a p99 of {:?} in place of {without:?}, {more} KiB more",
            held.p99
        );
        if held.is_hurt(without) {
            wrong.push(format!(
                "{kind}: a p99 of {:?} in place of {without:?}",
                held.p99
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
