//! The demo as a user meets it: it steers, it caches, a second one is refused, and however it ends
//! nothing stays.
//!
//! Its addresses are fixed, so one test at a time runs it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::lab::browser::open;
use crate::lab::process::{Process, nearcast, run};
use crate::lab::{tools, wait};

/// How long the demo may take until it says what to try: the limit for the first hit.
const READY: Duration = Duration::from_secs(10);
/// How long it may take to end.
const END: Duration = Duration::from_secs(15);

static ADDRESSES: Mutex<()> = Mutex::new(());

/// The demo in a directory of its own.
struct Demo {
    process: Process,
    dir: PathBuf,
    _parent: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let turn = ADDRESSES
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let parent = tempfile::tempdir().expect("a temporary directory can be made");
        let dir = parent.path().join("demo");
        let mut command = nearcast();
        command
            .arg("demo")
            .args(arguments)
            .arg("--state-dir")
            .arg(&dir);
        let process = Process::start("demo", parent.path(), command);
        let mut demo = Self {
            process,
            dir,
            _parent: parent,
            _turn: turn,
        };
        demo.process.wait_for_output("Ctrl-C ends it", READY);
        demo
    }

    /// The file with the root of its authority.
    fn root(&self) -> String {
        let root = self.dir.join("certificates/ca.pem");
        root.to_str().expect("a plain path").to_owned()
    }

    /// Runs an operator command for it.
    fn operate(&self, arguments: &[&str]) -> String {
        let output = nearcast()
            .args(arguments)
            .arg("--fleet")
            .arg(self.dir.join("nearcast.toml"))
            .output()
            .expect("the binary runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{arguments:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }
}

/// Processes of the demo that has its state in `dir`, by their command lines: its children name the
/// fleet file there.
fn children(dir: &Path) -> Vec<u32> {
    let fleet = dir
        .join("nearcast.toml")
        .to_str()
        .expect("a plain path")
        .to_owned();
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&fleet))
    })
    .collect()
}

fn wait_gone(dir: &Path) {
    wait::until("every process of the demo to end", END, || {
        let left = children(dir);
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?} still run"))
        }
    });
}

fn head(edge: &str, path: &str) -> String {
    let (resolve, url) = (
        format!("www.demo.test:8080:{edge}"),
        format!("http://www.demo.test:8080{path}"),
    );
    tools::curl(&["-D", "-", "-o", "/dev/null", "--resolve", &resolve, &url]).to_lowercase()
}

/// The head over HTTPS, from an edge whose certificate curl has verified with the demo's root.
fn secure_head(demo: &Demo, edge: &str, path: &str) -> String {
    let (resolve, url) = (
        format!("www.demo.test:8443:{edge}"),
        format!("https://www.demo.test:8443{path}"),
    );
    let root = demo.root();
    let arguments = ["-D", "-", "-o", "/dev/null", "--cacert", &root];
    tools::curl(&[&arguments[..], &["--resolve", &resolve, &url]].concat()).to_lowercase()
}

/// What is printed fits a terminal of 80 columns, where no path of this test makes it longer, and is
/// in colour on a terminal alone.
fn fits_80_columns(demo: &Demo, printed: &str) {
    let directory = demo.dir.parent().and_then(Path::to_str).expect("a path");
    let is_longer = |line: &&str| line.chars().count() > 80;
    let long: Vec<&str> = printed
        .lines()
        .filter(is_longer)
        .filter(|line| !line.contains(directory) && !line.contains("/nearcast "))
        .collect();
    assert!(long.is_empty(), "{long:?}");
    for command in [
        "status",
        "plan",
        "push",
        "explain www.demo.test --client 203.0.113.9",
    ] {
        let told = |terminal: bool, variables: &[(&str, &str)]| {
            let mut line = nearcast();
            let program = line.get_program().to_str().expect("a path").to_owned();
            let fleet = demo.dir.join("nearcast.toml");
            let asked = format!("{program} {command} --fleet {}", fleet.display());
            let in_terminal = format!("stty cols 80 rows 24; {asked}");
            line = std::process::Command::new(if terminal { "script" } else { "sh" });
            match terminal {
                true => line.args(["-qec", &in_terminal, "/dev/null"]),
                false => line.args(["-c", &asked]),
            };
            let output = line.env("TERM", "xterm").envs(variables.iter().copied());
            let output = output.env_remove("CI").output().expect("it runs");
            assert!(output.status.success(), "{command}: {output:?}");
            String::from_utf8(output.stdout)
                .expect("text")
                .replace('\r', "")
        };
        let piped = told(false, &[("COLUMNS", "80")]);
        let shown = told(true, &[("NO_COLOR", "1")]);
        for text in [&piped, &shown] {
            let long: Vec<&str> = text.lines().filter(is_longer).collect();
            let is_url = |line: &&&str| !line.contains("http://");
            let long: Vec<&&str> = long.iter().filter(is_url).collect();
            assert!(long.is_empty(), "{command}: {long:?}");
            assert!(!text.contains('\u{1b}'), "{command}: {text:?}");
        }
        if command == "status" {
            let coloured = told(true, &[]);
            assert!(coloured.contains("\u{1b}[32mup\u{1b}[0m"), "{coloured:?}");
        }
    }
}

#[test]
fn the_demo_steers_caches_and_leaves_nothing_behind() {
    let begun = Instant::now();
    let mut demo = Demo::start(&["--no-traffic"]);
    let places = [
        ("198.51.100.0/24", "127.0.10."),
        ("203.0.113.0/24", "127.0.20."),
        ("192.0.2.0/24", "127.0.30."),
    ];
    for (subnet, prefix) in places {
        let found = tools::dig_addresses(
            "127.0.0.1:5300".parse().expect("an address"),
            "www.demo.test",
            subnet,
        );
        assert!(
            found.len() == 2 && found.iter().all(|a| a.starts_with(prefix)),
            "{subnet}: {found:?}"
        );
    }
    let first = head("127.0.20.1", "/about.html?first");
    assert!(
        first.starts_with("http/1.1 200") && !first.contains("; hit"),
        "{first}"
    );
    let second = head("127.0.20.1", "/about.html?first");
    assert!(second.contains("; hit"), "{second}");
    assert!(
        begun.elapsed() < READY + Duration::from_secs(5),
        "from the start to a hit: {:?}",
        begun.elapsed()
    );
    // Everything that it prints to try is there.
    assert!(tools::curl(&["http://127.0.0.1:7700/"]).contains("<html"));
    assert!(tools::curl(&["-L", "http://127.0.10.1:8080/watch"]).contains("<video"));
    assert!(
        tools::curl(&["--cacert", &demo.root(), "https://127.0.10.1:8443/watch"])
            .contains("<video")
    );
    let printed = demo.process.output();
    // A command may go on over several lines, as a shell takes it.
    let whole = printed.replace("\\\n", "");
    let lines: Vec<&str> = whole.lines().map(str::trim).collect();
    let curls: Vec<&&str> = lines.iter().filter(|l| l.starts_with("curl ")).collect();
    assert_eq!(curls.len(), 2, "{printed}");
    for (line, version) in curls.into_iter().zip(["HTTP/1.1 200", "HTTP/2 200"]) {
        let head = run("sh", ["-c", line]);
        assert!(head.starts_with(version), "{line}: {head}");
    }
    // The log has a request within a second, and its trace is where the log's id leads.
    let (tail, trace) = (
        lines.iter().find(|l| l.starts_with("tail -n 1")),
        lines.iter().find(|l| l.contains(" trace ")),
    );
    let (tail, trace) = (tail.expect("printed"), trace.expect("printed"));
    wait::until("a line of the access log", Duration::from_secs(10), || {
        let line = std::process::Command::new("sh").args(["-c", tail]).output();
        let line = String::from_utf8_lossy(&line.expect("a shell runs").stdout).into_owned();
        if line.contains("\"protocol\":\"HTTP/2") && line.contains("\"tls\":\"TLSv1.3\"") {
            Ok(())
        } else {
            Err(line)
        }
    });
    let traced = run("sh", ["-c", trace]);
    assert!(
        traced.contains("nyc-1") && traced.contains("/about.html?first"),
        "{traced}"
    );
    let second = secure_head(&demo, "127.0.20.1", "/about.html?first");
    assert!(
        second.starts_with("http/2 200") && second.contains("; hit"),
        "{second}"
    );
    assert!(
        demo.operate(&["explain", "www.demo.test", "--client", "203.0.113.9"])
            .contains("nyc")
    );
    assert!(
        demo.operate(&["purge", "--site", "www"])
            .contains("complete")
    );
    assert!(demo.operate(&["plan"]).contains("sin"));
    assert!(demo.operate(&["status"]).contains("ams-1"));
    fits_80_columns(&demo, &printed);

    let log = demo.dir.with_file_name("second");
    let second = nearcast()
        .args(["demo", "--state-dir"])
        .arg(&demo.dir)
        .output()
        .expect("the binary runs");
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(69), "{words}");
    assert!(
        words.contains(&demo.process.pid().to_string()) && words.contains("http://127.0.0.1:7700"),
        "{words}"
    );
    let elsewhere = nearcast()
        .args(["demo", "--state-dir"])
        .arg(&log)
        .output()
        .expect("the binary runs");
    let words = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
    assert_eq!(
        elsewhere.status.code(),
        Some(69),
        "its addresses are taken: {words}"
    );
    assert_eq!(words.trim().lines().count(), 1, "{words}");
    assert!(!log.exists(), "nothing half-started is left behind");

    assert!(children(&demo.dir).len() >= 9);
    demo.process.signal("TERM");
    let status = demo.process.wait(END);
    assert!(status.success(), "{status}: {}", demo.process.output());
    wait_gone(&demo.dir);
    assert!(!demo.dir.exists());
}

#[test]
fn every_edge_shows_the_certificate_for_the_name_and_the_root_is_needed() {
    let mut demo = Demo::start(&["--no-traffic"]);
    let root = demo.root();
    for edge in [
        "127.0.10.1",
        "127.0.10.2",
        "127.0.20.1",
        "127.0.20.2",
        "127.0.30.1",
        "127.0.30.2",
    ] {
        for host in [
            "www.demo.test",
            "video.demo.test",
            "www.cdn.test",
            "video.cdn.test",
            edge,
        ] {
            let (to, url) = (
                format!("{host}:8443:{edge}:8443"),
                format!("https://{host}:8443/"),
            );
            let about = "%{http_code} %{http_version} %{ssl_verify_result}";
            let arguments = ["-o", "/dev/null", "-w", about, "--cacert", &root];
            let found = tools::curl(&[&arguments[..], &["--connect-to", &to, &url]].concat());
            assert_eq!(found, "200 2 0", "{host} at {edge}");
        }
    }
    let without = std::process::Command::new("curl")
        .args(["-sS", "-m", "10", "https://127.0.10.1:8443/"])
        .status()
        .expect("curl runs");
    assert_eq!(
        without.code(),
        Some(60),
        "a client that was not given the root trusts no edge"
    );
    demo.process.signal("TERM");
    assert!(demo.process.wait(END).success());
}

/// The argument by which Chromium lets exactly the keys of the demo's certificates pass: that of the
/// page's name, and that of the addresses from which the player fetches segments. It has no option for
/// another root.
fn pinned_keys(demo: &Demo) -> String {
    let pins = ["demo.test.pem", "cdn.test.pem"].map(|name| {
        let certificate = demo.dir.join("certificates").join(name);
        let certificate = certificate.to_str().expect("a plain path");
        run(
        "sh",
        [
            "-c",
            "openssl x509 -in \"$0\" -noout -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64",
            certificate,
        ],
        )
    });
    format!(
        "--chromium=--ignore-certificate-errors-spki-list={},{}",
        pins[0].trim(),
        pins[1].trim()
    )
}

/// Plays the film in Chromium with these arguments; all that is fetched comes by the protocol, which
/// the page names.
fn play(demo: &Demo, alpn: &str, shown: &str, more: &[&str]) {
    let playing = format!(
        "(v => v && v.currentTime > 2 && v.videoWidth > 0 && document.getElementById('protocol').innerText === '{shown}' && \
         (all => all.length > 4 && all.every(e => e.nextHopProtocol === '{alpn}'))\
         (performance.getEntriesByType('resource').filter(e => /[.](js|css|webp|json|mpd|m4s|mp4)$/.test(e.name) && e.nextHopProtocol)))\
         (document.querySelector('video'))"
    );
    let url = "https://www.demo.test:8443/watch?as=Singapore";
    let pin = pinned_keys(demo);
    let arguments = [
        &pin,
        "--chromium=--host-resolver-rules=MAP www.demo.test 127.0.30.1",
        "--allow-host=127.0.0.1:7700",
        "--allow-host=127.0.30.1:8443",
        "--allow-host=127.0.30.2:8443",
    ];
    for text in open(url, &playing, &[&arguments[..], more].concat()) {
        let text = text.to_lowercase();
        for word in [&shown.to_lowercase(), "sin-1", "in use", "big buck bunny"] {
            assert!(text.contains(word), "the page shows {word:?}:\n{text}");
        }
    }
}

#[test]
fn chromium_plays_the_film_over_http2() {
    let mut demo = Demo::start(&["--no-traffic"]);
    play(&demo, "h2", "HTTP/2", &[]);
    demo.process.signal("TERM");
    assert!(demo.process.wait(END).success());
}

#[test]
fn chromium_finds_http3_by_itself_and_plays_the_film_over_it() {
    let mut demo = Demo::start(&["--no-traffic"]);
    // Chromium takes HTTP/3 from authorities of the Web alone, except for hosts that it is told to use
    // it for. Port 1 is another origin: for the one that is visited, it learns of HTTP/3 by Alt-Svc.
    let found = "(fetch('/about.html?' + Math.random()), \
                 performance.getEntriesByType('navigation')[0].nextHopProtocol === 'h2' && \
                 performance.getEntriesByType('resource').some(e => e.nextHopProtocol === 'h3'))";
    let pin = pinned_keys(&demo);
    open(
        "https://www.demo.test:8443/about.html",
        found,
        &[
            &pin,
            "--chromium=--host-resolver-rules=MAP www.demo.test 127.0.30.1",
            "--chromium=--origin-to-force-quic-on=www.demo.test:1",
        ],
    );
    let origins = "www.demo.test:8443,127.0.30.1:8443,127.0.30.2:8443";
    let force = format!("--chromium=--origin-to-force-quic-on={origins}");
    play(&demo, "h3", "HTTP/3", &[&force]);
    demo.process.signal("TERM");
    assert!(demo.process.wait(END).success());
}

#[test]
fn a_killed_edge_is_told_of_and_clients_go_on() {
    let mut demo = Demo::start(&["--traffic-rate", "40"]);
    let status: serde_json::Value =
        wait::until("clients to be served", Duration::from_secs(20), || {
            let status: serde_json::Value =
                serde_json::from_str(&demo.operate(&["status", "--json"]))
                    .expect("--json prints JSON");
            if status["recent"]["counted"].as_f64().unwrap_or(0.0) > 20.0 {
                Ok(status)
            } else {
                Err(status["recent"].to_string())
            }
        });
    assert_eq!(status["zone"], "cdn.test");
    // The two that need clients, of all that it prints to try.
    let pushed = demo.operate(&["push", "--now"]);
    assert!(
        pushed.contains("ended") && pushed.contains("100 %") && !pushed.contains("running"),
        "{pushed}"
    );
    let printed = demo.process.output();
    let kill = printed
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("kill -9 "))
        .expect("it prints how to kill an edge");
    assert!(kill.ends_with("# ams-1"), "{kill}");
    let killed = std::process::Command::new("sh")
        .args(["-c", kill])
        .status()
        .expect("a shell runs");
    assert!(killed.success());
    demo.process.wait_for_output(
        "ams-1 has been killed; the others go on",
        Duration::from_secs(5),
    );
    let output = nearcast()
        .args([
            "traffic",
            "--duration",
            "5s",
            "--rate",
            "60",
            "--json",
            "--fleet",
        ])
        .arg(demo.dir.join("nearcast.toml"))
        .output();
    let output = output.expect("the binary runs");
    let summary: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("--json prints JSON");
    assert!(summary["requests"].as_u64().unwrap_or(0) > 50, "{summary}");
    assert_eq!(summary["errors"], 0, "one retry suffices: {summary}");
    demo.process.signal("INT");
    assert!(demo.process.wait(END).success());
    wait_gone(&demo.dir);
    assert!(!demo.dir.exists());
}

#[test]
fn control_sees_clients_of_many_countries_in_every_cluster() {
    let mut demo = Demo::start(&["--traffic-rate", "150"]);
    wait::until("clients of a world", Duration::from_secs(90), || {
        let status: serde_json::Value =
            serde_json::from_str(&demo.operate(&["status", "--json"])).expect("--json prints JSON");
        let selections = status["selections"].as_array().expect("a list").clone();
        let named = |name: &str| -> BTreeSet<String> {
            let values = selections.iter().filter_map(|s| s[name].as_str());
            values
                .filter(|v| !v.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let (countries, clusters) = (named("country"), named("cluster"));
        if countries.len() >= 30 && clusters.len() == 3 {
            Ok(())
        } else {
            Err(format!("{countries:?} {clusters:?}"))
        }
    });
    let steered = [
        ("198.18.78.0/24", "127.0.20."),
        ("198.18.56.0/24", "127.0.30."),
        ("198.18.29.0/24", "127.0.10."),
    ];
    for (subnet, prefix) in steered {
        let server = "127.0.0.1:5300".parse().expect("an address");
        let found = tools::dig_addresses(server, "www.demo.test", subnet);
        assert!(
            !found.is_empty() && found.iter().all(|a| a.starts_with(prefix)),
            "{subnet}: {found:?}"
        );
    }
    demo.process.signal("TERM");
    assert!(demo.process.wait(END).success());
}

#[test]
fn a_killed_demo_takes_its_children_along_and_the_next_one_cleans_up() {
    let mut demo = Demo::start(&[]);
    // The synthetic clients start after the demo has printed what to try.
    wait::until("all children to run", END, || match children(&demo.dir) {
        running if running.len() >= 10 => Ok(()),
        running => Err(format!("{running:?}")),
    });
    demo.process.kill();
    wait_gone(&demo.dir);
    assert!(
        demo.dir.join("nearcast.toml").exists(),
        "nobody was left to remove it"
    );
    let again = nearcast()
        .args(["demo", "--no-traffic", "--state-dir"])
        .arg(&demo.dir)
        .args(["--clock-speed", "0"])
        .output();
    assert_eq!(
        again.expect("the binary runs").status.code(),
        Some(64),
        "a clock that stands still is refused"
    );
    let mut command = nearcast();
    command
        .args(["demo", "--no-traffic", "--state-dir"])
        .arg(&demo.dir);
    let mut next = Process::start("next", demo.dir.parent().expect("it has one"), command);
    next.wait_for_output("Ctrl-C ends it", READY);
    next.signal("TERM");
    assert!(next.wait(END).success());
    assert!(!demo.dir.exists());
}

#[test]
fn the_death_of_its_parent_ends_the_demo() {
    let turn = ADDRESSES
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let parent = tempfile::tempdir().expect("a temporary directory can be made");
    let dir = parent.path().join("demo");
    let mut shell = std::process::Command::new("sh");
    // The shell stays the demo's parent: a last command would replace it.
    let script = "\"$0\" demo --no-traffic --state-dir \"$1\"; exit $?";
    shell
        .args(["-c", script, env!("CARGO_BIN_EXE_nearcast")])
        .arg(&dir);
    let mut shell = Process::start("shell", parent.path(), shell);
    shell.wait_for_output("Ctrl-C ends it", READY);
    shell.kill();
    wait_gone(&dir);
    wait::until("the demo's directory to go", END, || {
        if dir.exists() {
            Err("it is there")
        } else {
            Ok(())
        }
    });
    drop(turn);
}
