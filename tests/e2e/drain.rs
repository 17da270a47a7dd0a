//! Planned work on nodes: a role that is told to end takes nothing new, finishes what it has begun
//! and ends with 0, and no client that is steered by DNS notices; what an operator drains stays
//! drained.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nearcast_testing::{Gate, Origin, Reply};

use crate::lab::certificates::{ECDSA, Pair};
use crate::lab::fleet::{CLIENTS, Fleet, Plan};
use crate::lab::process::Process;
use crate::lab::tools::{PYTHON, dig_addresses};
use crate::lab::wait;

/// Longer than a lame duck here (detection, and the TTL of 5 s) and what it leaves behind take, on
/// a busy machine.
const DRAINED: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(20);

#[test]
fn an_edge_leaves_the_answers_and_finishes_the_transfer_it_has_begun() {
    let mut plan = Plan {
        clusters: 1,
        nodes: 2,
        ..Plan::new()
    };
    // Longer than the lame duck lasts.
    let origin = Origin::start_at(plan.origin_address(), |_| {
        Reply::ok(vec![b'x'; 300_000], "max-age=60").slow(40, 300)
    });
    plan.origin = Some(origin.url());
    let mut fleet = Fleet::start(plan);
    let edge = fleet.plan.edge(0, 0);
    let mut command = Command::new("curl");
    command.args([
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{size_download}",
        "-H",
        "Host: www.demo.test",
    ]);
    command.arg(format!("http://{edge}:8080/long"));
    let mut transfer = Process::start("curl", &fleet.path(""), command);
    wait::until("the transfer to begin", SOON, || {
        if origin.count("/long") == 1 {
            Ok(())
        } else {
            Err("not yet")
        }
    });
    fleet.node("ams-1").signal("TERM");
    wait_addresses(&fleet, 0, &[(0, 1)]);
    assert!(transfer.wait(DRAINED).success());
    assert_eq!(transfer.output(), "200 300000", "the transfer was finished");
    assert!(
        fleet.node("ams-1").wait(DRAINED).success(),
        "and the edge ended well"
    );
}

#[test]
fn over_tls_open_requests_finish_and_idle_connections_are_told_the_end() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let pair = Pair::make(directory.path(), "www", &ECDSA, "DNS:www.demo.test");
    // The edge gives root up.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&pair.key, mode).expect("it is ours");
    let mut plan = Plan {
        clusters: 1,
        nodes: 1,
        more: pair.section(),
        fleet: "drain_max = \"5s\"".into(),
        ..Plan::new()
    };
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start_at(plan.origin_address(), move |seen| {
        match seen.target.starts_with("/long") {
            true => Reply::ok(vec![b'x'; 300_000], "no-store").held_at(100_000, &held),
            false => Reply::ok("a page", "max-age=60"),
        }
    });
    plan.origin = Some(origin.url());
    let mut fleet = Fleet::start(plan);
    let edge = fleet.plan.edge(0, 0).to_string();

    let resolve = format!("www.demo.test:443:{edge}");
    let curl = |version: &str, path: &str| {
        let mut command = Command::new("curl");
        let shown = "%{http_code} %{size_download} %{http_version}";
        command.args(["-sS", "-m", "60", "-o", "/dev/null", "-w", shown, version]);
        command.args(["--resolve", &resolve, "--cacert", pair.cert()]);
        command.arg(format!("https://www.demo.test{path}"));
        command
    };
    let mut transfers = [("--http1.1", "/long1", "1.1"), ("--http2", "/long2", "2")].map(
        |(version, path, shown)| {
            let transfer = Process::start(&path[1..], &fleet.path(""), curl(version, path));
            wait::until("the transfer to begin", SOON, || match origin.count(path) {
                1 => Ok(()),
                count => Err(format!("{count}")),
            });
            (transfer, shown)
        },
    );
    // Idle connections: one of HTTP/1.1, whose end `openssl` shows, and one of HTTP/2.
    let mut idle = Command::new("sh");
    let to = format!(
        "{{ printf 'GET / HTTP/1.1\\r\\nHost: www.demo.test\\r\\n\\r\\n'; cat; }} | \
         openssl s_client -connect {edge}:443 -servername www.demo.test -quiet -ign_eof -msg 2>&1"
    );
    idle.args(["-c", &to]).stdin(std::process::Stdio::null());
    let mut idle = Process::start("openssl", &fleet.path(""), idle);
    idle.wait_for_output("a page", SOON);
    let mut multiplexed = Command::new(PYTHON);
    multiplexed
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/e2e/lab/http2_goodbye.py"
        ))
        .args([&edge, "443", pair.cert()]);
    let mut multiplexed = Process::start("http2", &fleet.path(""), multiplexed);
    multiplexed.wait_for_output("served", SOON);

    fleet.node("ams-1").signal("TERM");
    idle.wait_for_output("close_notify", DRAINED);
    multiplexed.wait_for_output("goaway 0", DRAINED);
    multiplexed.wait_for_output("closed", DRAINED);
    let refused = curl("--http1.1", "/").output().expect("curl runs");
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");

    gate.open();
    for (transfer, version) in &mut transfers {
        assert!(transfer.wait(SOON).success(), "{}", transfer.output());
        assert_eq!(transfer.output(), format!("200 300000 {version}"));
    }
    assert!(fleet.node("ams-1").wait(DRAINED).success());
}

#[test]
fn every_role_ends_well_when_told_to() {
    let mut fleet = Fleet::start(Plan {
        nodes: 1,
        clusters: 1,
        ..Plan::new()
    });
    fleet.head(fleet.plan.edge(0, 0), "/");
    for name in ["ams-1", "ns1", "origin", "control"] {
        fleet.node(name).signal("TERM");
        let status = fleet.node(name).wait(DRAINED);
        assert!(status.success(), "{name} ended with {status}");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut plan = Plan {
        nodes: 1,
        clusters: 1,
        fleet: "finish_max = \"1h\"".into(),
        ..Plan::new()
    };
    let origin = Origin::start_at(plan.origin_address(), |_| {
        Reply::ok(vec![b'x'; 3600], "no-store").slow(3600, 1000)
    });
    plan.origin = Some(origin.url());
    let mut fleet = Fleet::start(plan);
    // It would be waited for.
    let mut transfer = Command::new("curl");
    transfer.args([
        "-sS",
        "-o",
        "/dev/null",
        "-H",
        "Host: www.demo.test",
        &format!("http://{}:8080/long", fleet.plan.edge(0, 0)),
    ]);
    let _transfer = Process::start("curl", &fleet.path(""), transfer);
    wait::until("the transfer to begin", SOON, || {
        if origin.count("/long") == 1 {
            Ok(())
        } else {
            Err("not yet")
        }
    });
    fleet.node("ams-1").signal("TERM");
    fleet
        .node("ams-1")
        .wait_for_output("once more ends at once", SOON);
    fleet.node("ams-1").signal("INT");
    assert_eq!(fleet.node("ams-1").wait(SOON).code(), Some(130));
}

/// Clients that resolve as a caching resolver does, once a TTL, and ask on a new connection each
/// time. They try nothing twice.
struct Load {
    is_over: Arc<AtomicBool>,
    addresses: Arc<Mutex<Vec<String>>>,
    /// Good answers by address.
    served: Arc<Mutex<BTreeMap<String, u64>>>,
    failures: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    const CLIENTS: usize = 4;
    const PAUSE: Duration = Duration::from_millis(10);
    const TTL: Duration = Duration::from_secs(5);

    fn start(name_servers: Vec<SocketAddr>) -> Self {
        let look_up = move |turn: usize| {
            dig_addresses(
                name_servers[turn % name_servers.len()],
                "www.cdn.test",
                CLIENTS[0].1,
            )
        };
        let mut load = Self {
            is_over: Arc::default(),
            addresses: Arc::new(Mutex::new(look_up(0))),
            served: Arc::default(),
            failures: Arc::default(),
            threads: Vec::new(),
        };
        let (is_over, addresses) = (load.is_over.clone(), load.addresses.clone());
        load.threads.push(std::thread::spawn(move || {
            let mut turn = 1;
            while !is_over.load(Ordering::Relaxed) {
                // As long as what was looked up may be used.
                let until = Instant::now() + Self::TTL;
                while Instant::now() < until && !is_over.load(Ordering::Relaxed) {
                    std::thread::park_timeout(Self::PAUSE);
                }
                *addresses.lock().expect("no panic") = look_up(turn);
                turn += 1;
            }
        }));
        for client in 0..Self::CLIENTS {
            let (is_over, addresses, served, failures) = (
                load.is_over.clone(),
                load.addresses.clone(),
                load.served.clone(),
                load.failures.clone(),
            );
            load.threads.push(std::thread::spawn(move || {
                let mut turn = client;
                while !is_over.load(Ordering::Relaxed) {
                    let known = addresses.lock().expect("no panic").clone();
                    let address = known[turn % known.len()].clone();
                    turn += 1;
                    match Self::ask(&address) {
                        Ok(()) => {
                            *served.lock().expect("no panic").entry(address).or_default() += 1
                        }
                        Err(error) => failures
                            .lock()
                            .expect("no panic")
                            .push(format!("{address}: {error}")),
                    }
                    std::thread::park_timeout(Self::PAUSE);
                }
            }));
        }
        load
    }

    fn ask(address: &str) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(format!("{address}:8080"))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: www.demo.test\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let is_whole = answer.starts_with("HTTP/1.1 200") && answer.ends_with("<h1>hello</h1>\n");
        if is_whole {
            Ok(())
        } else {
            Err(std::io::Error::other(format!("{answer:?}")))
        }
    }

    fn served(&self, address: &str) -> u64 {
        self.served
            .lock()
            .expect("no panic")
            .get(address)
            .copied()
            .unwrap_or(0)
    }

    /// Ends it; what failed.
    fn end(mut self) -> Vec<String> {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads
            .drain(..)
            .for_each(|thread| thread.join().expect("no panic"));
        std::mem::take(&mut *self.failures.lock().expect("no panic"))
    }
}

#[test]
fn no_client_notices_a_planned_restart() {
    let mut plan = Plan {
        clusters: 1,
        nodes: 2,
        ..Plan::new()
    };
    let second = plan.block.host(54);
    plan.more = format!(
        "\n[[name_server]]\nname = \"ns2\"\nlisten = \"{second}:5300\"\nadmin = \"{second}:9100\"\n"
    );
    let mut fleet = Fleet::start(plan);
    fleet.start_node("gslb-dns", "ns2");
    fleet.wait_ready("ns2", second);
    let restarted = fleet.plan.edge(0, 0).to_string();
    let load = Load::start(vec![fleet.plan.dns(), SocketAddr::from((second, 5300))]);
    let served = |least: u64| {
        wait::until("clients", DRAINED, || {
            if load.served(&restarted) > least {
                Ok(())
            } else {
                Err("too few")
            }
        })
    };
    served(50);
    fleet.node("ams-1").signal("TERM");
    assert!(fleet.node("ams-1").wait(DRAINED).success());
    let before = load.served(&restarted);
    fleet.start_node("edge", "ams-1");
    fleet.wait_ready("ams-1", fleet.plan.edge(0, 0));
    served(before + 50);
    assert_eq!(load.end(), [""; 0], "not one of them failed");
}

fn wait_addresses(fleet: &Fleet, cluster: usize, edges: &[(usize, usize)]) {
    let mut expected: Vec<String> = edges
        .iter()
        .map(|(c, n)| fleet.plan.edge(*c, *n).to_string())
        .collect();
    expected.sort();
    wait::until(&format!("{expected:?} in the answers"), SOON, || {
        let mut found = dig_addresses(fleet.plan.dns(), "www.cdn.test", CLIENTS[cluster].1);
        found.sort();
        if found == expected {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
}

fn operate(fleet: &Fleet, arguments: &[&str]) -> (i32, String) {
    let output = fleet.operate(arguments);
    let words = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), words)
}

#[test]
fn what_is_drained_is_in_no_answer_until_it_is_undrained() {
    let mut fleet = Fleet::start(Plan {
        clusters: 2,
        nodes: 2,
        ..Plan::new()
    });
    let (code, words) = operate(&fleet, &["drain", "ams-1"]);
    assert_eq!(code, 0, "{words}");
    assert!(
        words.contains("node ams-1 is drained")
            && words.contains("seen by ns1")
            && words.contains("5 s (the TTL)"),
        "{words}"
    );
    wait_addresses(&fleet, 0, &[(0, 1)]);
    assert_eq!(
        fleet.curl(fleet.plan.edge(0, 0), &[], "/"),
        "<h1>hello</h1>\n",
        "it serves whoever comes"
    );
    let (code, words) = operate(&fleet, &["drain", "ams-1", "--json"]);
    let again: serde_json::Value = serde_json::from_str(&words).expect("JSON");
    assert_eq!(
        (code, &again["changed"]),
        (0, &serde_json::json!(false)),
        "twice is once: {words}"
    );
    wait::until("status to show it", SOON, || {
        let (_, words) = operate(&fleet, &["status"]);
        let shows = words
            .lines()
            .any(|line| line.starts_with("ams-1 ") && line.contains("drained by an operator"));
        if shows { Ok(()) } else { Err(words) }
    });
    let (_, words) = operate(
        &fleet,
        &["explain", "www.demo.test", "--client", "198.51.100.9"],
    );
    assert!(words.contains("ams-1: drained by an operator"), "{words}");

    // Both restart, and it stays so.
    for (role, name) in [
        ("edge", "ams-1"),
        ("gslb-dns", "ns1"),
        ("control", "control"),
    ] {
        fleet.node(name).signal("TERM");
        assert!(fleet.node(name).wait(DRAINED).success());
        fleet.start_node(role, name);
    }
    let (edge, dns, control) = (
        fleet.plan.edge(0, 0),
        fleet.plan.block.host(53),
        fleet.plan.block.host(70),
    );
    for (name, ip) in [("ams-1", edge), ("ns1", dns), ("control", control)] {
        fleet.wait_ready(name, ip);
    }
    wait_addresses(&fleet, 0, &[(0, 1)]);
    let health = fleet.curl(edge, &["-w", "%{http_code}"], "/.nearcast/health");
    assert_eq!(health, "drained\n503");

    let (code, words) = operate(&fleet, &["undrain", "ams-1"]);
    assert_eq!(code, 0, "{words}");
    wait_addresses(&fleet, 0, &[(0, 0), (0, 1)]);

    // A whole cluster, whose clients go to the other one.
    assert_eq!(operate(&fleet, &["drain", "ams"]).0, 0);
    wait_addresses(&fleet, 0, &[(1, 0), (1, 1)]);
    for (arguments, code, words) in [
        (vec!["drain", "nyc"], 64, "the last in service for www"),
        (vec!["undrain", "ams-2"], 64, "drained with its cluster"),
        (vec!["drain", "amz"], 64, "did you mean ams?"),
        (vec!["drain", "ns1"], 64, "is a name server"),
        (vec!["drain", "nyc", "--token", "wrong"], 77, "token"),
    ] {
        let (found, told) = operate(&fleet, &arguments);
        assert!(
            found == code && told.contains(words),
            "{arguments:?}: {found} {told}"
        );
    }
    let (code, words) = operate(&fleet, &["drain", "nyc", "--force"]);
    assert!(
        code == 0 && words.contains("no edge is in service for www"),
        "{words}"
    );
    let last_resort = dig_addresses(fleet.plan.dns(), "www.cdn.test", CLIENTS[0].1);
    assert!(!last_resort.is_empty(), "some address is better than none");
    for cluster in ["ams", "nyc"] {
        assert_eq!(operate(&fleet, &["undrain", cluster]).0, 0);
    }
    wait_addresses(&fleet, 0, &[(0, 0), (0, 1)]);
}
