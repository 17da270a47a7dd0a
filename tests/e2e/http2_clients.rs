//! HTTP/2 with prior knowledge, as curl and h2load speak it.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use nearcast_testing::{Origin, Reply};

use crate::lab::addresses::Block;
use crate::lab::process::{Process, nearcast};
use crate::lab::tools::curl;
use crate::lab::wait;

#[test]
fn curl_and_h2load_get_what_clients_of_http_1_1_get() {
    let block = Block::take();
    let origin = Origin::start_at(SocketAddr::from((block.host(80), 8000)), |seen| {
        match (seen.method.as_str(), seen.target.as_str()) {
            ("POST", _) => Reply::ok(seen.body.clone(), "no-store"),
            (_, "/none") => Reply {
                status: 404,
                ..Reply::ok("none", "max-age=60")
            },
            _ => Reply::ok("0123456789".repeat(1000), "max-age=60").field("ETag", "\"v1\""),
        }
    });
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let listen = format!("{}:8080", block.host(10));
    let mut command = nearcast();
    command.args(["edge", "--listen", &listen, "--origin", &origin.url()]);
    command
        .arg("--state-dir")
        .arg(directory.path().join("state"));
    let _edge = Process::start("edge", directory.path(), command);
    wait::until("the edge to answer", Duration::from_secs(20), || {
        std::net::TcpStream::connect(&listen).map(drop)
    });

    let ask = |arguments: &[&str], path: &str| {
        let url = format!("http://{listen}{path}");
        let always = ["--http2-prior-knowledge", "-i"];
        curl(&[&always, arguments, &[url.as_str()]].concat())
    };
    let first = ask(&[], "/a");
    assert!(
        first.starts_with("HTTP/2 200") && first.contains("fwd=uri-miss"),
        "{first}"
    );
    let second = ask(&[], "/a");
    assert!(
        second.contains("; hit") && second.contains("\nage: "),
        "{second}"
    );
    assert!(second.ends_with("0123456789"));
    let head = ask(&["-I"], "/a");
    assert!(head.contains("content-length: 10000"), "{head}");
    let part = ask(&["-r", "5-7"], "/a");
    assert!(
        part.starts_with("HTTP/2 206") && part.ends_with("567"),
        "{part}"
    );
    let same = ask(&["-H", "If-None-Match: \"v1\""], "/a");
    assert!(same.starts_with("HTTP/2 304"), "{same}");
    let none = ask(&[], "/none");
    assert!(
        none.starts_with("HTTP/2 404") && none.ends_with("none"),
        "{none}"
    );
    let sent = "x".repeat(100_000);
    let body = directory.path().join("body");
    std::fs::write(&body, &sent).expect("written");
    let data = format!("@{}", body.display());
    let echoed = ask(&["--data-binary", &data], "/echo");
    assert!(
        echoed.ends_with(&sent),
        "{}",
        &echoed[..echoed.len().min(500)]
    );
    assert_eq!(origin.count("/a"), 1);

    let loaded = Command::new("h2load")
        .args(["-n", "1000", "-c", "4", "-m", "32"])
        .arg(format!("http://{listen}/a"))
        .output()
        .expect("h2load runs");
    let text = String::from_utf8_lossy(&loaded.stdout);
    assert!(
        text.contains("1000 succeeded, 0 failed, 0 errored"),
        "{text}"
    );
}
