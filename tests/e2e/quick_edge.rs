//! `nearcast edge --listen ADDR --origin URL`: no fleet file, any origin, any host.

use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nearcast_testing::{Origin, Reply};

use crate::lab::addresses::Block;
use crate::lab::certificates::{ECDSA, Pair};
use crate::lab::process::{Process, nearcast};
use crate::lab::tools::curl;
use crate::lab::wait;

#[test]
fn an_edge_without_a_fleet_file_caches_any_origin_under_any_host() {
    let block = Block::take();
    let origin = Origin::start_at(SocketAddr::from((block.host(80), 8000)), |seen| match seen
        .target
        .as_str()
    {
        "/bare" => Reply {
            fields: vec![],
            ..Reply::ok("bare", "")
        },
        "/dated" => Reply {
            fields: vec![(
                "Last-Modified".into(),
                "Wed, 01 Jan 2025 00:00:00 GMT".into(),
            )],
            ..Reply::ok("dated", "")
        },
        _ => Reply::ok(format!("for {}", seen.fields["host"]), "max-age=60"),
    });
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let listen = format!("{}:8080", block.host(10));
    let mut command = nearcast();
    command
        .args([
            "edge",
            "--listen",
            &listen,
            "--origin",
            &origin.url(),
            "--state-dir",
        ])
        .arg(directory.path().join("state"));
    command.args(["--forward-field", "X-Trace", "--key-field", "X-Tenant"]);
    let _edge = Process::start("edge", directory.path(), command);
    wait::until("the edge to answer", Duration::from_secs(20), || {
        std::net::TcpStream::connect(&listen).map(drop)
    });
    for host in ["one.example", "two.example"] {
        let field = format!("Host: {host}");
        let ask = || curl(&["-i", "-H", &field, &format!("http://{listen}/page")]);
        assert!(ask().ends_with(&format!("for {host}")));
        let second = ask().to_lowercase();
        assert!(
            second.contains("; hit") && second.ends_with(&format!("for {host}")),
            "{second}"
        );
    }
    for (name, value, other, is_hit) in [
        ("X-Trace", "1", "2", true),
        ("X-Tenant", "a", "b", false),
        ("X-Unlisted", "1", "1", false),
    ] {
        let ask = |value: &str| {
            curl(&[
                "-i",
                "-H",
                &format!("{name}: {value}"),
                &format!("http://{listen}/{name}"),
            ])
            .to_lowercase()
        };
        ask(value);
        assert_eq!(ask(other).contains("; hit"), is_hit, "{name}");
    }
    // As with a site of a fleet file a lifetime is guessed where there is something to guess from;
    // what is not stored says why.
    for (path, is_stored, asked) in [("/bare", false, 2), ("/dated", true, 1)] {
        let answers =
            [(); 2].map(|()| curl(&["-i", &format!("http://{listen}{path}")]).to_lowercase());
        assert_eq!(
            answers[1].contains("; hit"),
            is_stored,
            "{path}: {}",
            answers[1]
        );
        assert_eq!(
            answers[0].contains("detail=no-freshness"),
            !is_stored,
            "{path}: {}",
            answers[0]
        );
        assert_eq!(origin.count(path), asked, "{path}");
    }
    let strict = format!("{}:8080", block.host(12));
    let mut command = nearcast();
    command.args([
        "edge",
        "--no-heuristic",
        "--listen",
        &strict,
        "--origin",
        &origin.url(),
        "--state-dir",
    ]);
    command.arg(directory.path().join("strict"));
    let _strict = Process::start("strict", directory.path(), command);
    wait::until(
        "the edge without guesses to answer",
        Duration::from_secs(20),
        || std::net::TcpStream::connect(&strict).map(drop),
    );
    for _ in 0..2 {
        let answer = curl(&["-i", &format!("http://{strict}/dated")]).to_lowercase();
        assert!(
            answer.contains("detail=no-freshness") && !answer.contains("; hit"),
            "{answer}"
        );
    }
    // One in front of another is no loop.
    let front = format!("{}:8080", block.host(11));
    let mut command = nearcast();
    command
        .args([
            "edge",
            "--listen",
            &front,
            "--origin",
            &format!("http://{listen}"),
            "--state-dir",
        ])
        .arg(directory.path().join("front"));
    let _front = Process::start("front", directory.path(), command);
    wait::until(
        "the edge in front to answer",
        Duration::from_secs(20),
        || std::net::TcpStream::connect(&front).map(drop),
    );
    let answer = curl(&[
        "-i",
        "-H",
        "Host: one.example",
        &format!("http://{front}/page"),
    ]);
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("for one.example"),
        "{answer}"
    );
    assert_eq!(origin.count("/page"), 2, "each host has its own response");
}

#[test]
fn an_edge_without_a_fleet_file_may_leave_http3_out() {
    let block = Block::take();
    let listen = SocketAddr::from((block.host(10), 8443));
    let _other = UdpSocket::bind(listen).expect("a free address");
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let pair = Pair::make(directory.path(), "www", &ECDSA, "DNS:www.demo.test");
    // The edge may be another user than this test.
    for (path, mode) in [(directory.path(), 0o755), (&pair.key, 0o644)] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("our own file");
    }
    let command = |more: &[&str]| {
        let mut command = nearcast();
        command
            .args(["edge", "--listen-tls", &listen.to_string()])
            .args(["--listen", &format!("{}:8080", block.host(10))])
            .args(["--cert", pair.cert(), "--key"])
            .arg(&pair.key)
            .args(["--origin", "http://127.0.0.1:1"])
            .args(more);
        command
    };
    let mut edge = Process::start("edge", directory.path(), command(&[]));
    let status = edge.wait(Duration::from_secs(60));
    let output = edge.output();
    assert!(
        status.code() == Some(69) && output.contains("--no-http3"),
        "{output}"
    );
    let mut edge = Process::start("edge-without", directory.path(), command(&["--no-http3"]));
    edge.wait_for_output("the edge serves", Duration::from_secs(60));
}
