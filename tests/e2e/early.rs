//! Answers that come before the upload they answer is complete: the client gets them, whichever
//! protocol it speaks, and however long it sends before it reads.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use nearcast_testing::Reply;

use crate::lab::edge::{Edge, Settings, status};

/// Answers each request as soon as its head has come, then reads on until the edge ends.
fn start_early_origin(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer_early(stream));
        }
    });
}

fn answer_early(stream: TcpStream) -> std::io::Result<()> {
    let mut input = BufReader::new(stream);
    let (mut first, mut line) = (String::new(), String::new());
    input.read_line(&mut first)?;
    while line != "\r\n" {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
    }
    let status = if first.contains("/large") { 413 } else { 200 };
    let answer =
        format!("HTTP/1.1 {status} Early\r\ncontent-length: 6\r\nconnection: close\r\n\r\nenough");
    input.get_mut().write_all(answer.as_bytes())?;
    input.get_mut().shutdown(Shutdown::Write)?;
    std::io::copy(&mut input, &mut std::io::sink()).map(drop)
}

/// An edge that answers much itself, with an origin at `early.test` that answers early.
fn edge() -> Edge {
    let edge = Edge::start(
        |block| Settings {
            site: format!(
                "[site.https]\nredirect = true\n[site.limits]\nrequest_body_max = \"0\"\n\
                 [[site]]\nname = \"early\"\nhosts = [\"early.test\"]\norigin = \"http://{}:8000\"\n",
                block.host(81)
            ),
            ..Settings::default()
        },
        |_| Reply::ok("", "no-store"),
    );
    let listener = TcpListener::bind((edge.block.host(81), 8000)).expect("a free address");
    start_early_origin(listener);
    edge
}

/// The answer behind the interim ones.
fn final_part(answer: &str) -> &str {
    answer
        .strip_prefix("HTTP/1.1 100 Continue\r\n\r\n")
        .unwrap_or(answer)
}

#[test]
fn uploads_that_are_answered_early_get_their_answers() {
    let edge = edge();
    let mut wrong = Vec::new();
    for (name, bytes) in [("small", 1 << 10), ("some", 100 << 10), ("large", 4 << 20)] {
        std::fs::write(edge.path(name), vec![b'x'; bytes]).expect("written");
        let body = format!("@{}", edge.path(name).display());
        let unknown_length = ["-H", "Transfer-Encoding: chunked", "-H", "Expect:"];
        for more in [
            &[][..],
            &["-H", "Expect:"],
            &["-H", "Expect: 100-continue"],
            &unknown_length,
        ] {
            for (versions, url, method, expected) in [
                (
                    ["--http1.1", "--http2-prior-knowledge"],
                    "http://www.test:8080/",
                    "POST",
                    "308",
                ),
                (
                    ["--http1.1", "--http2"],
                    "https://www.test:8443/",
                    "POST",
                    "413",
                ),
                (
                    ["--http1.1", "--http2-prior-knowledge"],
                    "http://early.test:8080/",
                    "PURGE",
                    "405",
                ),
                (
                    ["--http1.1", "--http2-prior-knowledge"],
                    "http://unknown.test:8080/",
                    "POST",
                    "421",
                ),
                (
                    ["--http1.1", "--http2-prior-knowledge"],
                    "http://early.test:8080/",
                    "POST",
                    "200",
                ),
                (
                    ["--http1.1", "--http2-prior-knowledge"],
                    "http://early.test:8080/large",
                    "POST",
                    "413",
                ),
            ] {
                for version in versions {
                    // Once curl 7.88 has the whole response of a stream, it reads no window for the
                    // rest of an upload that it still wants to send. And it ends an upload as soon as
                    // it reads an error status, short of the length that it stated: that is an error
                    // of the stream, and the body is lost if it comes behind the head.
                    let is_passed_on = url.contains("early.test");
                    let is_hard = match name {
                        "large" => expected < "400" || is_passed_on,
                        "some" => expected >= "400" && is_passed_on,
                        _ => false,
                    };
                    if is_hard && version != "--http1.1" {
                        continue;
                    }
                    let always = [version, "-X", method, "--data-binary", &body];
                    let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        edge.curl(&[&always, more].concat(), url)
                    }));
                    let case = format!("{version} {method} {url} {name} {more:?}");
                    match answer {
                        // A length that is not known is found too large when some of it has come.
                        Ok(answer) if status(final_part(&answer)) == expected => {}
                        Ok(answer) => wrong.push(format!("{case}: {answer}")),
                        Err(_) => wrong.push(case),
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A client that reads nothing before it has sent all, as many do.
#[test]
fn a_client_that_sends_all_before_it_reads_gets_its_answer() {
    let edge = edge();
    for (host, path, expected) in [
        ("www.test", "/", "308"),
        ("early.test", "/", "200"),
        ("early.test", "/large", "413"),
    ] {
        let mut stream = TcpStream::connect((edge.ip, 8080)).expect("the edge listens");
        // More than the buffers of both ends have room for.
        let length = 32 << 20;
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("the edge reads");
        let sent = stream.write_all(&vec![b'x'; length]);
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        assert!(sent.is_ok(), "{host}{path}: {sent:?}");
        assert!(read.is_ok(), "{host}{path}: {read:?}");
        let expected = format!("HTTP/1.1 {expected}");
        assert!(answer.starts_with(&expected), "{host}{path}: {answer}");
    }
}
