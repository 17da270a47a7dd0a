//! Nodes that speak https to one another: control, admin listeners and name servers with a
//! certificate, and the keys of session tickets that the edges of a cluster share.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::lab::certificates::Authority;
use crate::lab::fleet::{Fleet, Plan};
use crate::lab::process::Process;
use crate::lab::tools;
use crate::lab::wait;

const SOON: Duration = Duration::from_secs(30);

fn start(clusters: usize, own_keys: bool) -> (Fleet, Authority, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let plan = Plan {
        clusters,
        own_keys,
        certificates: Some(directory.path().to_owned()),
        ..Plan::new()
    };
    let authority = Authority::new(&directory.path().join("ca.pem"));
    authority.write(&plan, directory.path());
    (Fleet::start(plan), authority, directory)
}

fn words(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// What `openssl s_client` says of an exchange.
fn openssl(address: &str, arguments: &[&str]) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", address, "-ign_eof"])
        .args(["-servername", "www.demo.test"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl runs; tests/run installs it");
    let request = b"GET / HTTP/1.1\r\nHost: www.demo.test\r\nConnection: close\r\n\r\n";
    // The server may have refused the handshake.
    let _ = child.stdin.take().expect("piped").write_all(request);
    words(&child.wait_with_output().expect("it ends"))
}

#[test]
fn a_fleet_speaks_https_between_its_nodes() {
    let (mut fleet, authority, directory) = start(1, false);
    let control = fleet.plan.control();
    let ca = directory.path().join("ca.pem");
    let ca = ca.to_str().expect("text");

    // Edges follow and confirm, and commands verify control, by https.
    let purged = fleet.operate(&["purge", "--site", "www", "--wait", "10s", "--json"]);
    assert!(purged.status.success(), "{}", words(&purged));
    let explained = fleet.operate(&["explain", "www.cdn.test", "--client", "198.51.100.0/24"]);
    assert!(explained.status.success(), "{}", words(&explained));
    let url = format!("https://{}:9100/ready", fleet.plan.block.host(53));
    let healthy = fleet.operate(&["health", &url, "--ca", ca]);
    assert!(healthy.status.success(), "{}", words(&healthy));
    fleet.node("ns1").kill();
    fleet
        .node("ams-1")
        .wait_for_output("reports are not accepted", SOON);
    fleet.start_node("gslb-dns", "ns1");
    fleet
        .node("ams-1")
        .wait_for_output("reports are accepted again", SOON);
    fleet.wait_ready("ns1", fleet.plan.block.host(53));

    // Another authority is refused, and the words name the remedy.
    let other = directory.path().join("other.pem");
    Authority::new(&other);
    let refused = fleet.operate(&["status", "--ca", other.to_str().expect("text")]);
    assert_eq!(refused.status.code(), Some(69), "{}", words(&refused));
    assert!(
        words(&refused).contains("not trusted here"),
        "{}",
        words(&refused)
    );
    let health = fleet.operate(&["health", &url]);
    assert!(
        words(&health).contains("name the authority's certificate"),
        "{}",
        words(&health)
    );

    // The commands that ask control take the authority, too: here the answer is that of control.
    let id = "0123456789abcdef01234567";
    let traced = fleet.operate(&["trace", id, "--ca", ca]);
    assert!(words(&traced).contains("no edge"), "{}", words(&traced));
    let traced = fleet.operate(&["trace", id, "--ca", other.to_str().expect("text")]);
    assert!(
        words(&traced).contains("not trusted here"),
        "{}",
        words(&traced)
    );

    // Clients without TLS.
    let code = ["-o", "/dev/null", "-w", "%{http_code} %{redirect_url}"];
    let page = tools::curl(&[&code[..], &[&format!("http://{control}/#/purges")]].concat());
    assert_eq!(page, format!("307 https://{control}/"));
    let api = tools::curl(&[&format!("http://{control}/v1/status")]);
    assert!(
        api.contains("this port speaks TLS; write https://"),
        "{api}"
    );
    let admin = tools::curl(&[&format!("http://{}:9100/metrics", control.ip())]);
    assert!(
        admin.contains("this port speaks TLS; write https://"),
        "{admin}"
    );

    // A broken pair changes nothing; a good one is shown without a restart.
    let shown = || {
        let text = openssl(&control.to_string(), &["-CAfile", ca]);
        let begin = text.find("-----BEGIN").expect("a certificate");
        text[begin..].split("-----END").next().map(str::to_owned)
    };
    let first = shown();
    std::fs::write(directory.path().join("node.key"), "junk").expect("written");
    wait::until("words about the broken key", SOON, || {
        assert_eq!(shown(), first);
        let output = fleet.node("control").output();
        match output.contains("the one before stays in force") {
            true => Ok(()),
            false => Err(output),
        }
    });
    authority.write(&fleet.plan, directory.path());
    wait::until("the new certificate", SOON, || match shown() {
        now if now != first => Ok(()),
        _ => Err("the first is shown"),
    });
    let status = fleet.operate(&["status"]);
    assert!(status.status.success(), "{}", words(&status));
}

/// The lines that deploy/prometheus/prometheus.yml names for admin listeners with a certificate.
#[test]
fn prometheus_scrapes_admin_listeners_with_a_certificate() {
    let (fleet, _authority, directory) = start(1, false);
    let targets = [
        fleet.plan.edge(0, 0),
        fleet.plan.block.host(53),
        fleet.plan.block.host(70),
    ];
    let targets: Vec<String> = targets.iter().map(|ip| format!("{ip}:9100")).collect();
    let config = format!(
        "global: {{ scrape_interval: 1s, scrape_timeout: 1s }}\nscrape_configs:\n\
         - job_name: nodes\n  scheme: https\n  tls_config: {{ ca_file: {:?} }}\n\
         \x20 static_configs: [{{ targets: {targets:?} }}]\n",
        directory.path().join("ca.pem")
    );
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("prometheus.yml"), config).expect("written");
    let listen = format!("{}:9090", fleet.plan.block.host(90));
    let mut command = Command::new("prometheus");
    command.args([
        format!("--config.file={}", path("prometheus.yml")),
        format!("--storage.tsdb.path={}", path("series")),
        format!("--web.listen-address={listen}"),
    ]);
    let _prometheus = Process::start("prometheus", directory.path(), command);
    let query = format!("http://{listen}/api/v1/query?query=sum(up)");
    wait::until("all targets up", SOON, || {
        let answer = Command::new("curl").args(["-sSg", &query]).output();
        let answer = words(&answer.expect("curl runs"));
        match answer.contains("\"3\"") {
            true => Ok(()),
            false => Err(answer),
        }
    });
}

/// Whether a session that one edge began is resumed at another.
fn is_resumed(version: &str, directory: &Path, from: Ipv4Addr, to: Ipv4Addr) -> bool {
    let session = directory.join("session.pem");
    let session = session.to_str().expect("text");
    let first = openssl(&format!("{from}:8443"), &[version, "-sess_out", session]);
    assert!(first.contains("New, TLSv1"), "{first}");
    let second = openssl(&format!("{to}:8443"), &[version, "-sess_in", session]);
    assert!(second.contains("HTTP/1.1 200"), "{second}");
    second.contains("Reused, TLSv1")
}

#[test]
fn the_edges_of_a_cluster_resume_one_anothers_sessions() {
    let (mut fleet, _authority, directory) = start(2, false);
    let edges = [fleet.plan.edge(0, 0), fleet.plan.edge(0, 1)];
    let elsewhere = fleet.plan.edge(1, 0);
    let dir = directory.path();
    for version in ["-tls1_2", "-tls1_3"] {
        wait::until(
            "a session resumed at the other edge",
            SOON,
            || match is_resumed(version, dir, edges[0], edges[1]) {
                true => Ok(()),
                false => Err(format!("{version}: not resumed")),
            },
        );
        assert!(is_resumed(version, dir, edges[1], edges[0]), "{version}");
        assert!(!is_resumed(version, dir, edges[0], elsewhere), "{version}");
    }

    // Neither the fleet's key nor a token opens the keys, and another node's key opens none.
    let control = fleet.plan.control();
    let ca = dir.join("ca.pem").display().to_string();
    let token = std::fs::read_to_string(fleet.path("state/control/token")).expect("a token");
    let own = |name: &str| {
        let line = words(&fleet.operate(&["key", name]));
        let line = line
            .lines()
            .find(|l| l.starts_with("nck1."))
            .expect("a key")
            .to_owned();
        line.rsplit_once('.').expect("five parts").0.to_owned()
    };
    let ask = |key: &str| {
        tools::curl(&[
            "--cacert",
            &ca,
            "-w",
            "%{http_code}",
            "-H",
            &format!("Authorization: Bearer {key}"),
            &format!("https://{control}/v1/ticket-keys"),
        ])
    };
    for (key, status) in [
        (own("ams-1"), "200"),
        (own("ns1"), "404"),
        ("a key that only this test knows".to_owned(), "401"),
        (token.trim().to_owned(), "401"),
        (own("ams-1").replace("ams-1", "ams-2"), "401"),
    ] {
        let answer = ask(&key);
        assert!(answer.ends_with(status), "{status}: {answer}");
        assert_eq!(answer.contains("secret"), status == "200", "{answer}");
    }
    assert!(ask(&own("ams-1"))[..100] == ask(&own("ams-2"))[..100]);

    // Control is away: the edges go on with the keys that they have.
    fleet.node("control").kill();
    assert!(is_resumed("-tls1_3", dir, edges[0], edges[1]));
    for name in ["ams-1", "control"] {
        let output = fleet.node(name).output();
        assert!(!output.contains("secret"), "{output}");
    }
}
