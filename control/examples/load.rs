//! Load on a control role, for `tests/bench/control`: many nodes that follow and report with the
//! code of real nodes, or many clients that purge. Starts the role itself, in a directory of its
//! own that is removed at the end.
//!
//!     load NEARCAST nodes COUNT SECONDS
//!     load NEARCAST purges CLIENTS SECONDS

#![allow(clippy::print_stdout, reason = "results are printed")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nearcast_fleet::client::Client;
use nearcast_fleet::config::{Fleet, Secret};
use nearcast_fleet::report::{EdgeReport, SiteTotals};
use nearcast_fleet::{file, follow, reporter};
use nearcast_net::shutdown;
use serde_json::{Value, json};
use tokio::sync::watch;

const CONTROL: &str = "http://127.77.0.1:7700";
const SOON: Duration = Duration::from_secs(10);
/// Edges in a cluster of the simulated fleet.
const CLUSTER: usize = 50;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The control process; killed when this is dropped.
struct Control(Child);

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Control {
    /// CPU seconds so far, and resident bytes.
    fn used(&self) -> Result<(f64, u64), Error> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let number = |at: usize| {
            fields
                .get(at)
                .and_then(|f| f.parse::<u64>().ok())
                .ok_or("/proc/PID/stat is odd")
        };
        // Ticks are 10 ms and pages 4 KiB on every supported Linux.
        Ok((
            (number(11)? + number(12)?) as f64 / 100.0,
            number(21)? * 4096,
        ))
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [binary, what, count, seconds] = &arguments[..] else {
        return Err("load NEARCAST nodes|purges COUNT SECONDS".into());
    };
    let (count, seconds) = (count.parse()?, seconds.parse()?);
    let dir = tempfile::tempdir()?;
    let nodes = if what == "nodes" { count } else { 1 };
    let text = fleet_text(nodes);
    std::fs::write(dir.path().join("nearcast.toml"), &text)?;
    let control = start(binary, dir.path()).await?;
    match what.as_str() {
        "nodes" => run_nodes(&control, dir.path(), &text, count, seconds).await,
        "purges" => run_purges(&control, dir.path(), count, seconds).await,
        other => Err(format!("{other} is neither nodes nor purges").into()),
    }
}

fn fleet_text(nodes: usize) -> String {
    let mut text = format!(
        "[fleet]\nzone = \"cdn.test\"\nnode_key = \"{}\"\nstate_dir = \"state\"\nreport_interval = \"2s\"\n[control]\nlisten = \"127.77.0.1:7700\"\nadmin = \"127.77.0.1:9170\"\n",
        "a key of this bench alone"
    );
    for n in 0..nodes {
        if n % CLUSTER == 0 {
            let _ = write!(
                text,
                "[[cluster]]\nname = \"c{0}\"\nplace = {{ latitude = {0}, longitude = {0} }}\n",
                n / CLUSTER
            );
        }
        let ip = format!("127.78.{}.{}", n / 200, n % 200 + 1);
        let _ = write!(
            text,
            "[[cluster.node]]\nname = \"n{n}\"\naddress = \"{ip}\"\nlisten = \"{ip}:8080\"\nadmin = \"{ip}:9100\"\n"
        );
    }
    text + "[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.0.0.1:8000\"\n"
}

async fn start(binary: &str, dir: &Path) -> Result<Control, Error> {
    let log = std::fs::File::create(dir.join("log"))?;
    let mut command = Command::new(binary);
    command
        .args(["control", "--fleet"])
        .arg(dir.join("nearcast.toml"))
        .stdout(Stdio::null())
        .stderr(log);
    let control = Control(command.spawn()?);
    let begun = Instant::now();
    while Client::new(None)
        .get("http://127.77.0.1:9170/ready", SOON)
        .await
        .is_err()
    {
        if begun.elapsed() > SOON {
            return Err(format!(
                "control does not start:\n{}",
                std::fs::read_to_string(dir.join("log"))?
            )
            .into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(control)
}

async fn run_nodes(
    control: &Control,
    dir: &Path,
    text: &str,
    count: usize,
    seconds: u64,
) -> Result<(), Error> {
    let (_, bytes_before) = control.used()?;
    let fleet =
        file::parse(text, dir).map_err(|mistakes| file::describe("fleet file", &mistakes))?;
    let (trigger, shutdown) = shutdown::channel();
    let mut states = Vec::new();
    // Real nodes each sync the journal to their own disk. All of them on one disk would measure
    // that disk.
    let disks = if Path::new("/dev/shm").is_dir() {
        tempfile::tempdir_in("/dev/shm")?
    } else {
        tempfile::tempdir()?
    };
    for n in 0..count {
        let (fleet_tx, _) = watch::channel(Arc::new(fleet.clone()));
        let directory = disks.path().join(format!("node-{n}"));
        let mut context = follow::prepare(
            format!("n{n}"),
            fleet_tx,
            directory,
            |_: &Fleet, _: &str| Vec::new(),
            shutdown.clone(),
        )
        .await;
        context.following.begin().await.map_err(|e| e.to_string())?;
        let state = context.state.clone();
        states.push(state.clone());
        tokio::spawn(async move { while context.entries.recv().await.is_some() {} });
        let mut requests = 0;
        let report = move |_| {
            requests += 1000;
            let totals = SiteTotals {
                requests: [
                    ("hit".to_owned(), requests),
                    ("miss".to_owned(), requests / 10),
                ]
                .into(),
                bytes: [("hit".to_owned(), requests * 100_000)].into(),
                ..SiteTotals::default()
            };
            EdgeReport {
                node: format!("n{n}"),
                started_unix_ms: 1,
                revision: state.borrow().revision,
                sites: [("www".to_owned(), totals)].into(),
                ..EdgeReport::default()
            }
        };
        tokio::spawn(reporter::run(
            context.name.clone(),
            |f| reporter::to_control(f, "edge"),
            context.fleet,
            report,
            shutdown.clone(),
        ));
    }
    let begun = Instant::now();
    while states.iter().any(|s| !s.borrow().caught_up) {
        if begun.elapsed() > 6 * SOON {
            let behind = states.iter().filter(|s| !s.borrow().caught_up).count();
            return Err(format!("{behind} of {count} nodes do not reach control").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!(
        "{count} nodes follow after {:.1} s",
        begun.elapsed().as_secs_f64()
    );

    let token = Secret(std::fs::read_to_string(dir.join("state/control/token"))?);
    let client = Client::new(None);
    let (cpu_before, _) = control.used()?;
    let begun = Instant::now();
    let (mut status, mut purges) = (Vec::new(), Vec::new());
    while begun.elapsed() < Duration::from_secs(seconds) {
        let at = Instant::now();
        client.get(&format!("{CONTROL}/v1/status"), SOON).await?;
        status.push(at.elapsed());
        let at = Instant::now();
        let purge = json!({"scope": {"by": "tag", "value": "t"}, "wait_ms": 0});
        let answer = client
            .post_json(&format!("{CONTROL}/v1/purges"), Some(&token), &purge, SOON)
            .await?;
        let revision = serde_json::from_slice::<Value>(answer.body())?["revision"]
            .as_u64()
            .ok_or("no revision")?;
        while states.iter().any(|s| s.borrow().revision < revision) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        purges.push(at.elapsed());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let took = begun.elapsed().as_secs_f64();
    let (cpu, bytes) = control.used()?;
    println!(
        "a purge is at all nodes after {:.1} ms (median), {:.1} ms (worst)",
        millis(&mut purges, 50),
        millis(&mut purges, 100)
    );
    println!(
        "/v1/status answers in {:.1} ms (median), {:.1} ms (worst)",
        millis(&mut status, 50),
        millis(&mut status, 100)
    );
    let metrics = client.get("http://127.77.0.1:9170/metrics", SOON).await?;
    let metrics = String::from_utf8_lossy(metrics.body()).into_owned();
    for line in metrics
        .lines()
        .filter(|l| l.starts_with("nearcast_control_connections"))
    {
        println!("{line}");
    }
    let cores = (cpu - cpu_before) / took;
    println!(
        "control: {:.2} % of a core, {:.1} MiB",
        100.0 * cores,
        bytes as f64 / 1_048_576.0
    );
    let a_node = count as f64;
    println!(
        "a node: {:.4} % of a core, {:.1} KiB",
        100.0 * cores / a_node,
        bytes.saturating_sub(bytes_before) as f64 / 1024.0 / a_node
    );
    trigger.shut_down();
    Ok(())
}

async fn run_purges(
    control: &Control,
    dir: &Path,
    clients: usize,
    seconds: u64,
) -> Result<(), Error> {
    println!(
        "one fdatasync after another on this disk: {:.0} a second",
        syncs(dir)?
    );
    let token = Secret(std::fs::read_to_string(dir.join("state/control/token"))?);
    for clients in [1, clients] {
        let count = Arc::new(AtomicU64::new(0));
        let (cpu_before, _) = control.used()?;
        let begun = Instant::now();
        let mut storm = tokio::task::JoinSet::new();
        for client in 0..clients {
            let (count, token) = (count.clone(), token.clone());
            storm.spawn(async move {
                let http = Client::new(None);
                let mut took = Vec::new();
                while begun.elapsed() < Duration::from_secs(seconds) {
                    let n = count.fetch_add(1, Ordering::Relaxed);
                    let purge = json!({"scope": {"by": "url", "value": format!("http://www.demo.test/{client}/{n}")}, "wait_ms": 0});
                    let at = Instant::now();
                    let answer = http.post_json(&format!("{CONTROL}/v1/purges"), Some(&token), &purge, SOON).await?;
                    if answer.status() != 200 {
                        return Err(format!("status {}", answer.status()).into());
                    }
                    took.push(at.elapsed());
                }
                Ok::<_, Error>(took)
            });
        }
        let mut took = Vec::new();
        while let Some(client) = storm.join_next().await {
            took.extend(client??);
        }
        let elapsed = begun.elapsed().as_secs_f64();
        let (cpu, _) = control.used()?;
        println!(
            "{clients} clients: {:.0} purges a second acknowledged, {:.1} ms (median), {:.1} ms (99 %), {:.2} CPU ms each",
            took.len() as f64 / elapsed,
            millis(&mut took, 50),
            millis(&mut took, 99),
            1000.0 * (cpu - cpu_before) / took.len() as f64
        );
    }
    Ok(())
}

/// Appends of a few bytes with a sync each, per second, one after another.
fn syncs(dir: &Path) -> Result<f64, Error> {
    use std::io::Write as _;
    let mut file = std::fs::File::create(dir.join("syncs"))?;
    let begun = Instant::now();
    let mut count = 0.0;
    while begun.elapsed() < Duration::from_secs(1) {
        file.write_all(&[7; 200])?;
        file.sync_data()?;
        count += 1.0;
    }
    Ok(count / begun.elapsed().as_secs_f64())
}

fn millis(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    times
        .get(((times.len() * percent) / 100).min(times.len().saturating_sub(1)))
        .map_or(f64::NAN, |t| t.as_secs_f64() * 1000.0)
}
