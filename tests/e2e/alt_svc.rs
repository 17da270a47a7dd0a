//! `Alt-Svc` (RFC 7838): how clients of HTTP/1.1 and HTTP/2 hear of HTTP/3.

use std::net::Ipv4Addr;
use std::time::Duration;

use nearcast_testing::Reply;

use crate::lab::addresses::Block;
use crate::lab::certificates::Authority;
use crate::lab::edge::{Edge, Settings, field, status};
use crate::lab::fleet::{Fleet, Plan};
use crate::lab::tools::curl;
use crate::lab::wait;

const HTTP3: &str = "h3=\":8443\"; ma=86400";
/// Last bytes of addresses: a trusted proxy, and somebody else.
const PROXY: u8 = 20;
const STRANGER: u8 = 30;

/// An origin that says where its own alternative is.
fn origin(_: &nearcast_testing::Seen) -> Reply {
    Reply::ok("body", "max-age=600").field("Alt-Svc", "h2=\"origin.test:443\"")
}

#[test]
fn responses_over_tls_name_http3_on_the_same_port() {
    let edge = Edge::start(|_| Settings::default(), origin);
    for (path, version) in [("/one", "--http1.1"), ("/two", "--http2")] {
        let url = format!("https://www.test:8443{path}");
        for outcome in ["uri-miss", "hit", "hit"] {
            let answer = edge.curl(&[version], &url);
            assert!(field(&answer, "cache-status").contains(outcome), "{answer}");
            assert_eq!(field(&answer, "alt-svc"), HTTP3, "{version}: {answer}");
            assert_eq!(answer.to_lowercase().matches("alt-svc").count(), 1);
        }
        for arguments in [&[version, "-I"][..], &[version, "-X", "POST", "-d", "x"]] {
            let answer = edge.curl(arguments, &url);
            assert_eq!(field(&answer, "alt-svc"), HTTP3, "{arguments:?}: {answer}");
        }
        // The same stored response, to a client that did not show that it trusts this host.
        let answer = edge.curl(&[], &format!("http://www.test:8080{path}"));
        assert_eq!(status(&answer), "200");
        assert_eq!(field(&answer, "alt-svc"), "", "{answer}");
    }
    // RFC 7838 section 6: a 421 says nothing of alternatives.
    let refused = edge.curl(
        &["--http2", "-H", "Host: stranger.test"],
        "https://www.test:8443/one",
    );
    assert_eq!(status(&refused), "421", "{refused}");
    assert_eq!(field(&refused, "alt-svc"), "", "{refused}");
}

#[test]
fn without_http3_nothing_is_said() {
    let settings = |_| Settings {
        sections: "[clients]\nhttp3 = false\n".to_owned(),
        ..Settings::default()
    };
    let edge = Edge::start(settings, origin);
    for _ in 0..2 {
        let answer = edge.curl(&[], "https://www.test:8443/");
        assert_eq!(status(&answer), "200");
        assert_eq!(field(&answer, "alt-svc"), "", "{answer}");
    }
}

#[test]
fn clients_behind_a_proxy_are_told_nothing() {
    let settings = |block: Block| {
        let ip = block.host(10);
        Settings {
            sections: format!("[clients]\ntrusted_proxies = [\"{}\"]\n", block.host(PROXY)),
            node: format!(
                "listen = \"{ip}:8080\"\nlisten_tls = [\"{ip}:8443\", \"{ip}:8444\"]\n\
                 proxy_protocol = \"{ip}:8444\"\nservice = \"{ip}:8080\"\n"
            ),
            site: String::new(),
        }
    };
    let edge = Edge::start(settings, origin);
    let from = |last: u8, arguments: &[&str], url: &str| {
        let address = edge.block.host(last).to_string();
        edge.curl(&[&["--interface", &address], arguments].concat(), url)
    };
    for _ in 0..2 {
        let direct = from(STRANGER, &[], "https://www.test:8443/");
        assert_eq!(field(&direct, "alt-svc"), HTTP3, "{direct}");
        let proxied = from(PROXY, &[], "https://www.test:8443/");
        assert_eq!(status(&proxied), "200");
        assert_eq!(field(&proxied, "alt-svc"), "", "{proxied}");
        let header = ["--haproxy-protocol"];
        let proxied = from(PROXY, &header, "https://www.test:8444/");
        assert_eq!(status(&proxied), "200");
        assert_eq!(field(&proxied, "alt-svc"), "", "{proxied}");
    }
}

#[test]
fn a_node_that_ends_tells_nobody_to_come_by_http3() {
    let directory = tempfile::tempdir().expect("a directory");
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        certificates: Some(directory.path().to_owned()),
        ..Plan::new()
    };
    Authority::new(&directory.path().join("ca.pem")).write(&plan, directory.path());
    let mut fleet = Fleet::start(plan);
    let ip: Ipv4Addr = fleet.plan.edge(0, 0);
    let ca = directory.path().join("ca.pem").display().to_string();
    let get = || {
        let to = format!("::{ip}:");
        let fixed = ["-i", "--connect-to", &to, "--cacert", &ca];
        curl(&[&fixed[..], &["https://www.demo.test:8443/"]].concat())
    };
    assert_eq!(field(&get(), "alt-svc"), HTTP3);
    fleet.node("ams-1").signal("TERM");
    let health = format!("http://{ip}:8080/.nearcast/health");
    wait::until("the node to end", Duration::from_secs(20), || {
        match curl(&["-i", &health]) {
            answer if status(&answer) == "503" => Ok(()),
            answer => Err(answer),
        }
    });
    let answer = get();
    assert_eq!(field(&answer, "alt-svc"), "", "{answer}");
}
