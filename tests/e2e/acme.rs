//! Certificates that control orders: a fleet of control, two name servers and two edges, and Pebble
//! as the authority, which asks our name servers and edges. Needs root, for ports below 1024.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::lab::browser::open;
use crate::lab::certificates::{Authority, s_client};
use crate::lab::fleet::{Fleet, Plan};
use crate::lab::process::{Process, run};
use crate::lab::tools;
use crate::lab::wait;

const SOON: Duration = Duration::from_secs(90);
const WILDCARD: &str = "*.demo.test";

/// Pebble, with a certificate of its own for its directory.
struct Pebble {
    process: Process,
    directory: TempDir,
    address: SocketAddr,
    management: SocketAddr,
}

impl Pebble {
    fn start(plan: &Plan) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new(&directory.path().join("ca.pem"));
        authority.write_for(&[plan.block.host(90).to_string()], directory.path());
        let [address, management] =
            [14000, 15000].map(|port| SocketAddr::from((plan.block.host(90), port)));
        let config = serde_json::json!({"pebble": {
            "listenAddress": address, "managementListenAddress": management,
            "certificate": directory.path().join("node.pem"), "privateKey": directory.path().join("node.key"),
            "httpPort": 8080, "tlsPort": 443, "ocspResponderURL": "", "externalAccountBindingRequired": false,
        }});
        let file = directory.path().join("pebble.json");
        std::fs::write(&file, config.to_string()).expect("written");
        let mut command = Command::new("pebble");
        command.arg("-config").arg(file).arg("-strict");
        command.args(["-dnsserver", &plan.dns().to_string()]);
        // It waits for seconds otherwise before it asks, and refuses a part of all nonces.
        command.env("PEBBLE_VA_NOSLEEP", "1");
        command.env("PEBBLE_WFE_NONCEREJECT", "10");
        // Each order has its challenges.
        command.env("PEBBLE_AUTHZREUSE", "0");
        let mut process = Process::start("pebble", directory.path(), command);
        process.wait_for_output("ACME directory available", SOON);
        Self {
            process,
            directory,
            address,
            management,
        }
    }

    /// Its section of a fleet file.
    fn section(&self) -> String {
        format!(
            "[[acme.authority]]\nname = \"pebble\"\ndirectory = \"https://{}/dir\"\nca = {:?}\n",
            self.address,
            self.directory.path().join("ca.pem")
        )
    }

    /// Writes the certificate at the end of the chains that it issues.
    fn root(&self) -> PathBuf {
        let root = tools::curl(&["-k", &format!("https://{}/roots/0", self.management)]);
        let file = self.directory.path().join("root.pem");
        std::fs::write(&file, root).expect("written");
        file
    }

    /// Orders that it has had.
    fn orders(&self) -> usize {
        let log = self.process.output();
        log.matches("orders in the db").count()
    }
}

/// A plan with one cluster of two edges, two name servers, and these sections.
fn plan(hosts: Vec<&'static str>, acme: impl FnOnce(&Plan) -> String) -> Plan {
    let mut plan = Plan {
        clusters: 1,
        hosts,
        ..Plan::new()
    };
    let ns2 = plan.block.host(54);
    let mut more = format!(
        "[[name_server]]\nname = \"ns2\"\nlisten = \"{ns2}:5300\"\nadmin = \"{ns2}:9100\"\n\
         [[zone]]\nname = \"other.test\"\nrecords = [\"files CNAME www.cdn.test.\", \"gone A 192.0.2.99\"]\n\
         [[zone]]\nname = \"alias.test\"\nrecords = [\"www CNAME www.cdn.test.\", \
         \"_acme-challenge.www CNAME www.alias.test._acme-challenge.cdn.test.\"]\n"
    );
    let _ = writeln!(
        more,
        "[acme]\nterms_agreed = true\nresolver = \"{}\"",
        plan.dns()
    );
    more += &acme(&plan);
    plan.more = more;
    plan
}

/// Starts a fleet of such a plan.
fn start(plan: Plan) -> Fleet {
    let mut fleet = Fleet::start(plan);
    let ns2 = fleet.plan.block.host(54);
    fleet.start_node("gslb-dns", "ns2");
    fleet.wait_ready("ns2", ns2);
    fleet
}

fn certificates(fleet: &Fleet) -> serde_json::Value {
    let url = format!("http://{}/v1/certificates", fleet.plan.control());
    serde_json::from_str(&tools::curl(&[&url])).expect("JSON")
}

/// Waits until a certificate is in force at control; gives when it expires.
fn wait_valid(fleet: &Fleet, name: &str) -> i64 {
    wait::until(&format!("a certificate for {name}"), SOON, || {
        let all = certificates(fleet);
        let list = all["certificates"].as_array().expect("a list");
        let one = list.iter().find(|one| one["name"] == name);
        one.and_then(|one| one["not_after_unix_s"].as_i64())
            .ok_or_else(|| format!("{all:#}"))
    })
}

/// What `curl` gives for `https://<host>/index.html` at an edge: status, and whether it verified.
fn fetch(root: &Path, edge: Ipv4Addr, host: &str) -> Result<(), String> {
    let output = Command::new("curl")
        .args([
            "-sS",
            "--max-time",
            "20",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
        ])
        .arg("--cacert")
        .arg(root)
        .args(["--resolve", &format!("{host}:443:{edge}")])
        .arg(format!("https://{host}/index.html"))
        .output()
        .expect("curl runs; tests/run installs it");
    let (code, said) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    match code.as_str() {
        "200" if output.status.success() => Ok(()),
        _ => Err(format!("{host} at {edge}: {code} {said}")),
    }
}

/// The serial number of the certificate that an edge shows for a host.
fn serial(edge: Ipv4Addr, host: &str) -> String {
    let said = s_client(SocketAddr::from((edge, 443)), &["-servername", host], "");
    let begin = "-----BEGIN CERTIFICATE-----";
    let Some(pem) = said.find(begin).map(|at| &said[at..]) else {
        return String::new();
    };
    let end = pem.find("-----END").expect("a certificate ends");
    pem[..end].to_owned()
}

/// A metric of control.
fn metric(fleet: &Fleet, series: &str) -> Option<f64> {
    let url = format!("http://{}:9100/metrics", fleet.plan.control().ip());
    let metrics = tools::curl(&[&url]);
    let line = metrics.lines().find(|line| line.starts_with(series))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn a_fleet_gets_its_certificates_and_renews_them_under_load() {
    let hosts = vec![
        "www.demo.test",
        "demo.test",
        "files.other.test",
        "www.alias.test",
    ];
    let base = plan(hosts, |_| String::new());
    let pebble = Pebble::start(&base);
    let plan = Plan {
        more: base.more.clone()
            + &pebble.section()
            + "[[certificate]]\nhosts = [\"*.demo.test\", \"demo.test\"]\n\
               [[certificate]]\nhosts = [\"files.other.test\"]\nchallenge = \"http\"\n\
               [[certificate]]\nhosts = [\"www.alias.test\"]\nchallenge = \"dns\"\n",
        site: "https.redirect = true\n".to_owned(),
        own_keys: true,
        ..base
    };
    let servers = [53, 54].map(|n| SocketAddr::from((plan.block.host(n), 5300)));
    // Which name servers answer the challenge while it is open.
    let is_over = Arc::new(AtomicBool::new(false));
    let watch = servers.map(|server| {
        let is_over = is_over.clone();
        std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !is_over.load(Ordering::Relaxed) {
                // The server may not run yet.
                let output = Command::new("kdig")
                    .args([&format!("@{}", server.ip()), "-p", "5300", "+retry=0"])
                    .args(["+timeout=1", "+short", "_acme-challenge.demo.test", "TXT"])
                    .output()
                    .expect("kdig runs; tests/run installs it");
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                let mut values: Vec<String> = said
                    .lines()
                    .filter(|line| line.starts_with('"'))
                    .map(str::to_owned)
                    .collect();
                values.sort();
                seen.insert(values);
                std::thread::sleep(Duration::from_millis(10));
            }
            seen
        })
    });
    let mut fleet = start(plan);
    let edges = [0, 1].map(|n| fleet.plan.edge(0, n));
    for name in [WILDCARD, "files.other.test", "www.alias.test"] {
        wait_valid(&fleet, name);
    }
    is_over.store(true, Ordering::Relaxed);
    let seen = watch.map(|thread| thread.join().expect("it ends"));
    let values = |number: usize| seen[number].iter().flatten().collect::<BTreeSet<_>>();
    assert_eq!(values(0), values(1), "both name servers answer the same");
    for seen in &seen {
        // That of the wildcard and that of the zone itself have one name.
        assert!(seen.iter().any(|values| values.len() == 2), "{seen:?}");
    }

    // Both edges show them, to clients that verify.
    let root = pebble.root();
    for edge in edges {
        for host in ["www.demo.test", "files.other.test", "www.alias.test"] {
            wait::until(&format!("{host} at {edge}"), SOON, || {
                fetch(&root, edge, host)
            });
        }
        let refused = fetch(&root, edge, "www.third.test").expect_err("no such host");
        assert!(refused.contains("000"), "{refused}");
        // Nothing is answered any more, and other tokens are the origin's.
        let path = "/.well-known/acme-challenge/unknown";
        assert!(
            fleet.head(edge, path).contains(" 404"),
            "{}",
            fleet.head(edge, path)
        );
    }
    for server in servers {
        let told = tools::kdig(server, &["_acme-challenge.demo.test", "TXT"]);
        assert!(told.contains("status: NXDOMAIN"), "{told}");
    }
    for node in ["ams-1", "ams-2"] {
        let directory = fleet.path(&format!("state/{node}/certificates"));
        let files = std::fs::read_dir(&directory).expect("it is there");
        let files: Vec<_> = files.map(|file| file.expect("readable")).collect();
        assert_eq!(files.len(), 3, "{files:?}");
        for file in files {
            let mode = file.metadata().expect("readable").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file:?}");
        }
    }
    // No key is in what all nodes get.
    for file in [
        "state/control/journal",
        "state/ams-1/journal.copy",
        "state/ns1/journal.copy",
    ] {
        let content = std::fs::read(fleet.path(file)).expect("it is there");
        let content = String::from_utf8_lossy(&content);
        assert!(
            content.contains("challenges") && !content.contains("PRIVATE KEY"),
            "{file}"
        );
    }

    only_edges_get_keys_and_each_its_own(&fleet);
    renew_under_load(&fleet, &root, edges);
    a_name_server_that_is_down_blocks_no_order(&mut fleet);
    control_may_be_down(&mut fleet, &root, edges);
    a_copy_of_controls_directory_orders_nothing(&mut fleet, &pebble);
}

fn only_edges_get_keys_and_each_its_own(fleet: &Fleet) {
    let url = format!("http://{}/v1/certificate-keys", fleet.plan.control());
    let key = |node: &str| {
        let printed = fleet.operate(&["key", node]);
        String::from_utf8_lossy(&printed.stdout).trim().to_owned()
    };
    let ask = |key: &str, query: &str, fields: &[&str]| {
        let bearer = format!("Authorization: Bearer {key}");
        let status = ["-w", "\n%{http_code}", "-H", &bearer];
        let fields = fields.iter().flat_map(|field| ["-H", field]);
        let arguments: Vec<&str> = status.into_iter().chain(fields).collect();
        tools::curl(&[&arguments[..], &[format!("{url}{query}").as_str()]].concat())
    };
    let token = std::fs::read_to_string(fleet.path("state/control/token")).expect("a token");
    let fleet_key = std::fs::read_to_string(fleet.path("fleet.key")).expect("a key");
    for (who, key, status) in [
        ("the fleet", fleet_key.trim(), "401"),
        ("operators", token.trim(), "401"),
        ("nobody", "x", "401"),
        ("a name server", &key("ns1"), "404"),
    ] {
        let answer = ask(key, "", &[]);
        assert!(answer.ends_with(status), "{who}: {answer}");
        assert!(!answer.contains("digest"), "{who}: {answer}");
    }

    let own = key("ams-1");
    let listed = ask(&own, "", &[]);
    let list: serde_json::Value =
        serde_json::from_str(listed.trim_end_matches("\n200")).expect("a list");
    let digest = list["certificates"][0]["digest"]
        .as_str()
        .expect("a digest");
    let exchange = format!("Nearcast-Exchange-Key: {}", "09".repeat(32));
    for (query, fields, status) in [
        (
            format!("?digests={digest}"),
            &[exchange.as_str()][..],
            "200",
        ),
        (format!("?digests={digest}"), &[], "400"),
        ("?digests=all".to_owned(), &[exchange.as_str()], "400"),
        ("?wait_ms=x".to_owned(), &[], "400"),
    ] {
        let answer = ask(&own, &query, fields);
        assert!(answer.ends_with(status), "{query} {fields:?}: {answer}");
        assert!(!answer.contains("PRIVATE KEY"), "{answer}");
    }
}

fn renew_under_load(fleet: &Fleet, root: &Path, edges: [Ipv4Addr; 2]) {
    let before = edges.map(|edge| serial(edge, "www.demo.test"));
    assert_eq!(before[0], before[1]);
    let is_over = AtomicBool::new(false);
    let count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let load = edges.map(|edge| {
            let (is_over, count) = (&is_over, &count);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    fetch(root, edge, "www.demo.test")?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<(), String>(())
            })
        });
        let renewed = fleet.operate(&["certificates", "--renew", WILDCARD]);
        assert!(renewed.status.success(), "{renewed:?}");
        for (edge, before) in edges.iter().zip(&before) {
            wait::until(
                &format!("a renewed certificate at {edge}"),
                SOON,
                || match serial(*edge, "www.demo.test") {
                    now if now != *before && !now.is_empty() => Ok(()),
                    now => Err(now),
                },
            );
        }
        // Some more with the new one.
        let so_far = count.load(Ordering::Relaxed);
        wait::until("more requests", SOON, || {
            match count.load(Ordering::Relaxed) {
                now if now > so_far + 10 => Ok(()),
                now => Err(now),
            }
        });
        is_over.store(true, Ordering::Relaxed);
        for thread in load {
            thread.join().expect("it ends").expect("no request fails");
        }
    });
    let obtained = metric(
        fleet,
        "nearcast_control_acme_orders_total{authority=\"pebble\",result=\"obtained\"}",
    );
    assert_eq!(obtained, Some(4.0));
    let expiry = format!(
        "nearcast_control_certificate_expiry_timestamp_seconds{{certificate=\"{WILDCARD}\"}}"
    );
    assert!(metric(fleet, &expiry).is_some_and(|s| s > 1e9));
    let events = tools::curl(&[&format!("http://{}/v1/events/log", fleet.plan.control())]);
    assert!(
        events.contains("certificate_obtained") && events.contains("renewed from pebble"),
        "{events}"
    );
}

/// The end of a certificate that no order is under way or due for.
fn settled(fleet: &Fleet, name: &str) -> Option<i64> {
    let all = certificates(fleet);
    let list = all["certificates"].as_array().expect("a list");
    let one = list.iter().find(|one| one["name"] == name)?;
    let now = std::time::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .as_secs() as i64;
    let is_due = one["ordering"] != false || one["next_order_unix_s"].as_i64()? <= now + 60;
    one["not_after_unix_s"].as_i64().filter(|_| !is_due)
}

fn a_name_server_that_is_down_blocks_no_order(fleet: &mut Fleet) {
    let name = "www.alias.test";
    let before = wait_valid(fleet, name);
    fleet.node("ns2").kill();
    // A second is the resolution of the end of a certificate. No order is left when this is over.
    wait::until("a renewed certificate", SOON, || {
        match settled(fleet, name) {
            Some(now) if now > before => Ok(()),
            Some(now) => {
                let renewed = fleet.operate(&["certificates", "--renew", name]);
                assert!(renewed.status.success(), "{renewed:?}");
                Err(format!("it ends at {now}"))
            }
            None => Err("an order is under way".to_owned()),
        }
    });
    let control = fleet.node("control");
    control.wait_for_output("goes on without ns2, which does not report", SOON);
}

fn control_may_be_down(fleet: &mut Fleet, root: &Path, edges: [Ipv4Addr; 2]) {
    fleet.node("control").kill();
    for (number, edge) in edges.into_iter().enumerate() {
        let name = format!("ams-{}", number + 1);
        fleet.node(&name).kill();
        fleet.start_node("edge", &name);
        fleet.wait_ready(&name, edge);
        for host in ["www.demo.test", "files.other.test"] {
            fetch(root, edge, host).expect("it has its certificates");
        }
    }
}

fn a_copy_of_controls_directory_orders_nothing(fleet: &mut Fleet, pebble: &Pebble) {
    let orders = pebble.orders();
    assert!(orders >= 4, "{orders}");
    let [here, away] = ["state/control", "state/away"].map(|path| fleet.path(path));
    std::fs::rename(&here, &away).expect("it is ended");
    run("cp", [Path::new("-a"), &away, &here]);
    fleet.start_node("control", "control");
    let ip = fleet.plan.block.host(70);
    fleet.wait_ready("control", ip);
    for name in [WILDCARD, "files.other.test", "www.alias.test"] {
        wait_valid(fleet, name);
    }
    // It has looked at what is due.
    let all = certificates(fleet);
    for one in all["certificates"].as_array().expect("a list") {
        assert_eq!(
            (&one["ordering"], &one["failures"]),
            (&false.into(), &0.into()),
            "{one:#}"
        );
    }
    assert_eq!(pebble.orders(), orders);
}

#[test]
fn an_order_that_cannot_succeed_is_not_begun_and_says_why() {
    let plan = plan(vec!["gone.other.test"], |plan| {
        // Nobody listens there.
        format!(
            "[[acme.authority]]\nname = \"own\"\ndirectory = \"https://{}:14000/dir\"\n\
             [[certificate]]\nhosts = [\"gone.other.test\"]\nchallenge = \"http\"\n",
            plan.block.host(90)
        )
    });
    let mut fleet = start(plan);
    let edge = fleet.plan.edge(0, 0);
    let reason = "gone.other.test leads to 192.0.2.99";
    wait::until("an order to fail", SOON, || {
        let all = certificates(&fleet);
        let one = &all["certificates"][0];
        match one["last_error"]["reason"].as_str() {
            Some(said) if said.contains(reason) && one["failures"] != 0 => Ok(()),
            Some(_) => {
                // The name server did not run yet when control asked it.
                fleet.operate(&["certificates", "--renew", "gone.other.test"]);
                Err(format!("{all:#}"))
            }
            None => Err(format!("{all:#}")),
        }
    });
    let told = fleet.operate(&["certificates"]);
    let words = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        words.contains("failed") && words.contains(reason),
        "{words}"
    );
    assert_eq!(told.status.code(), Some(69));
    let failures = "nearcast_control_certificate_failures{certificate=\"gone.other.test\"}";
    wait::until("the metric", SOON, || match metric(&fleet, failures) {
        Some(count) if count >= 1.0 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let events = tools::curl(&[&format!("http://{}/v1/events/log", fleet.plan.control())]);
    assert!(events.contains("certificate_failed"), "{events}");
    let log = fleet.node("control").output();
    assert!(
        log.lines()
            .any(|line| line.contains("WARN") && line.contains("gone.other.test not obtained")),
        "{log}"
    );
    let status = fleet.operate(&["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(
        status.contains("warning: orders of certificates fail: gone.other.test"),
        "{status}"
    );

    // The console has the error in a row of its own, and breaks hosts at dots only.
    let shown = "(row => row && row.innerText.includes('gone.other.test') \
        && row.firstChild.offsetWidth > 0.95 * document.getElementById('certificates').offsetWidth \
        && [...document.querySelectorAll('#certificates .label')].map(l => l.innerText).join('').includes('gone.other.test') \
        && [...document.querySelectorAll('#certificates .label')].every(l => l.offsetHeight < 30))\
        (document.querySelector('#certificates tr.why'))";
    for scheme in ["light", "dark"] {
        let url = format!("http://{}/", fleet.plan.control());
        open(&url, shown, &["--axe", "--scheme", scheme]);
    }

    // The edge serves http, and refuses TLS by an alert.
    assert!(
        fleet
            .curl(edge, &["-H", "Host: gone.other.test"], "/index.html")
            .contains("hello")
    );
    let alert = s_client(
        SocketAddr::from((edge, 443)),
        &["-servername", "gone.other.test"],
        "",
    );
    assert!(alert.contains("unrecognized name"), "{alert}");
    assert!(fleet.node("ams-1").ended().is_none());

    let unknown = fleet.operate(&["certificates", "--renew", "www.demo.test"]);
    assert!(!unknown.status.success());
    let words = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(words.contains("no certificate is ordered"), "{words}");
}
