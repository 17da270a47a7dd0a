//! What the README says is true: its fleet file is good and small, its commands exist, and those for
//! HTTPS do what it says.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use nearcast_testing::{Origin, Reply};

use crate::lab::addresses::Block;
use crate::lab::process::{Process, nearcast, run};
use crate::lab::wait;

const README: &str = include_str!("../../README.md");

#[test]
fn the_smallest_fleet_file_is_good_and_small() {
    let file = README
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("the README shows a fleet file");
    let settings = file.lines().filter(|l| !l.trim().is_empty()).count();
    assert!(
        settings < 20,
        "the smallest useful file has {settings} lines"
    );
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("nearcast.toml");
    std::fs::write(&path, file).expect("the file can be written");
    let made = nearcast()
        .args(["key", "--new", "--out"])
        .arg(directory.path().join("node.key"))
        .status()
        .expect("the binary runs");
    assert!(made.success());
    let output = nearcast()
        .arg("check")
        .arg(&path)
        .output()
        .expect("the binary runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The line that begins with these words, as it is.
fn line(begin: &str) -> &'static str {
    README
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with(begin))
        .unwrap_or_else(|| panic!("the README has a line {begin:?}"))
}

#[test]
fn one_command_serves_https_and_http2_with_a_certificate_of_ones_own() {
    let block = Block::take();
    let origin = Origin::start_at(SocketAddr::from((block.host(80), 8000)), |_| {
        Reply::ok("hello", "max-age=60")
    });
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = |name: &str| directory.path().join(name);
    let made = nearcast()
        .args(["demo", "--certificates"])
        .arg(directory.path())
        .status();
    assert!(made.expect("the binary runs").success());
    for (ours, theirs) in [
        ("demo.test.pem", "fullchain.pem"),
        ("demo.test.key", "privkey.pem"),
    ] {
        std::fs::rename(path(ours), path(theirs)).expect("it was written");
    }
    // The addresses and the origin of this test, and the host of a certificate that it can have.
    let ours = |line: &str| {
        line.replace(
            "--origin https://www.example.com",
            &format!("--origin {}", origin.url()),
        )
        .replace("127.0.0.1", &block.host(10).to_string())
        .replace("www.example.com", "www.demo.test")
    };
    let binary = env!("CARGO_BIN_EXE_nearcast");
    let edge = ours(line("nearcast edge --listen-tls")).replacen("nearcast", binary, 1);
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("exec {edge} --state-dir state")])
        .current_dir(directory.path());
    let _edge = Process::start("edge", directory.path(), command);
    let listens = format!("{}:8443", block.host(10));
    wait::until("the edge to listen", Duration::from_secs(20), || {
        std::net::TcpStream::connect(&listens).map(drop)
    });
    let curl = ours(line("curl -sD - -o /dev/null --connect-to"));
    let root = path("ca.pem");
    let curl = format!("{curl} --cacert {}", root.display());
    let first = run("sh", ["-c", &curl]).to_lowercase();
    assert!(first.starts_with("http/2 200"), "{first}");
    let second = run("sh", ["-c", &curl]).to_lowercase();
    assert!(
        second.starts_with("http/2 200") && second.contains("; hit"),
        "{second}"
    );
}

#[test]
fn every_command_that_it_names_exists_and_has_examples() {
    let mut names: Vec<&str> = README
        .split(&['\n', '`'][..])
        .filter_map(|part| {
            part.trim()
                .trim_start_matches("target/release/")
                .strip_prefix("nearcast ")
        })
        .filter_map(|rest| rest.split_whitespace().next())
        .filter(|name| {
            name.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !name.starts_with('-')
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    assert!(names.len() >= 7, "{names:?}");
    for name in names {
        let output = nearcast()
            .args([name, "--help"])
            .output()
            .expect("the binary runs");
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            help.contains(&format!("nearcast {name}")) && help.to_lowercase().contains("example"),
            "{name} --help shows examples:\n{help}"
        );
    }
}
