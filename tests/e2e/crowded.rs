//! More clients than the edge may have files open: those who take all keep nobody else out.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use nearcast_testing::{Origin, Reply};
use socket2::{Domain, Socket, Type};

use crate::lab::addresses::Block;
use crate::lab::process::{Process, nearcast};
use crate::lab::tools::curl;
use crate::lab::wait;

/// Files that the edge may have open; three quarters of them are for clients.
const FILES: usize = 256;
const CLIENTS: usize = 192;

fn connect(from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&to.into(), Duration::from_secs(10))?;
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// An edge that may have few files open, and what it needs.
struct Lab {
    edge: Process,
    listen: SocketAddr,
    block: Block,
    _origin: Origin,
    _directory: tempfile::TempDir,
}

impl Lab {
    fn start() -> Self {
        let block = Block::take();
        let origin = Origin::start_at(SocketAddr::from((block.host(80), 8000)), |seen| {
            Reply::ok(seen.target.clone(), "max-age=60")
        });
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let listen = SocketAddr::from((block.host(10), 8080));
        let mut command = Command::new("prlimit");
        command
            .arg(format!("--nofile={FILES}:{FILES}"))
            .arg(nearcast().get_program());
        command
            .args([
                "edge",
                "--listen",
                &listen.to_string(),
                "--origin",
                &origin.url(),
                "--state-dir",
            ])
            .arg(directory.path().join("state"));
        let edge = Process::start("edge", directory.path(), command);
        // Its listener is open before it serves.
        wait::until("the edge to serve", Duration::from_secs(20), || {
            if edge.output().contains("the edge serves") {
                Ok(())
            } else {
                Err(edge.output())
            }
        });
        Self {
            edge,
            listen,
            block,
            _origin: origin,
            _directory: directory,
        }
    }
}

#[test]
fn idle_and_slow_clients_keep_nobody_out() {
    let lab = Lab::start();
    let (block, listen) = (&lab.block, lab.listen);

    // Nothing sent; a request, and then nothing; a head that never ends.
    let floods: [(&str, bool); 3] = [
        ("", false),
        ("GET /hot HTTP/1.1\r\nHost: a.test\r\n\r\n", true),
        ("GET /hot HTTP/1.1\r\nHost:", false),
    ];
    let mut held: Vec<TcpStream> = Vec::new();
    for (n, (sent, is_answered)) in floods.iter().enumerate() {
        for from in [block.host(21), block.host(22)] {
            for _ in 0..2 * CLIENTS {
                let Ok(mut stream) = connect(from, listen) else {
                    continue;
                };
                let _ = stream.write_all(sent.as_bytes());
                if *is_answered {
                    // Some are turned away.
                    let _ = stream.read(&mut [0; 2048]);
                }
                held.push(stream);
            }
        }
        for turn in 0..20 {
            let began = Instant::now();
            let source = block.host(30 + turn).to_string();
            let ask = |path: &str| {
                curl(&[
                    "-i",
                    "--interface",
                    &source,
                    &format!("http://{listen}{path}"),
                ])
            };
            for path in ["/hot".to_owned(), format!("/cold-{n}-{turn}")] {
                let answer = ask(&path);
                assert!(
                    answer.starts_with("HTTP/1.1 200") && answer.ends_with(&path),
                    "{sent:?}: {answer}"
                );
            }
            assert!(
                began.elapsed() < Duration::from_secs(5),
                "{sent:?}: {:?}",
                began.elapsed()
            );
        }
        let open = open_files(lab.edge.pid());
        assert!(open < FILES - 10, "{sent:?}: {open} files are open");
        held.clear();
        let closed = || {
            if open_files(lab.edge.pid()) < 64 {
                Ok(())
            } else {
                Err(open_files(lab.edge.pid()).to_string())
            }
        };
        wait::until("the connections to end", Duration::from_secs(20), closed);
    }
    let warnings = lab
        .edge
        .output()
        .lines()
        .filter(|line| line.contains("WARN"))
        .count();
    assert!(
        warnings < 20,
        "one line in a while, not one a connection: {warnings}"
    );
}

#[test]
fn too_few_files_for_origins_are_named_once() {
    let lab = Lab::start();
    let warnings: Vec<String> = lab
        .edge
        .output()
        .lines()
        .filter(|line| line.contains("limits.connections"))
        .map(str::to_owned)
        .collect();
    let [warning] = &warnings[..] else {
        panic!("{warnings:?}")
    };
    assert!(
        warning.contains("connections=128") && warning.contains("others=64"),
        "{warning}"
    );
    assert!(
        warning.contains("connections_max") && warning.contains("ulimit -n"),
        "{warning}"
    );
}

#[test]
fn who_is_turned_away_is_told_why() {
    let lab = Lab::start();
    let (block, listen) = (&lab.block, lab.listen);
    // Heads that have begun are not closed for others, so that one address soon has its share.
    let mut held = Vec::new();
    let answer = wait::until("an answer", Duration::from_secs(20), || {
        let mut stream = connect(block.host(21), listen).map_err(|error| error.to_string())?;
        stream
            .set_read_timeout(Some(Duration::from_millis(5)))
            .map_err(|error| error.to_string())?;
        let mut answer = [0; 1024];
        match stream.read(&mut answer) {
            Ok(length) if length > 0 => Ok(String::from_utf8_lossy(&answer[..length]).into_owned()),
            _ => {
                let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost:");
                held.push(stream);
                Err(format!("{} are held", held.len()))
            }
        }
    });
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("proxy-status: edge; error=connection_limit_reached\r\n"),
        "{answer}"
    );
    assert!(held.len() >= CLIENTS / 2, "{}", held.len());
}
