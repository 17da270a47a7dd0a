//! What control has acknowledged and shown is there after it was killed or restarted.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nearcast_fleet::change::{Change, PurgeScope};
use nearcast_fleet::journal::Journal;
use serde_json::Value;

use crate::lab::fleet::{Fleet, Plan};
use crate::lab::process::{Process, nearcast};
use crate::lab::tools::curl;
use crate::lab::wait;

const CLIENTS: usize = 32;
/// Acknowledged purges after which control is killed.
const STORM: usize = 1500;

fn start_control(directory: &Path, plan: &Plan) -> Process {
    let mut command = nearcast();
    command
        .args(["control", "--node", "control", "--fleet"])
        .arg(directory.join("nearcast.toml"));
    let process = Process::start("control", directory, command);
    let address = plan.control();
    wait::until("control to listen", Duration::from_secs(30), || {
        TcpStream::connect(address).map(drop)
    });
    process
}

/// Purges tags of its own, one at a time on one connection, until the connection ends; gives what
/// was acknowledged.
fn purge_until_the_end(
    address: SocketAddr,
    token: &str,
    client: usize,
    acknowledged: &AtomicUsize,
) -> Vec<(u64, String)> {
    let mut stream = BufReader::new(TcpStream::connect(address).expect("control listens"));
    let mut mine = Vec::new();
    for n in 0.. {
        let tag = format!("{client}-{n}");
        let body = format!("{{\"scope\":{{\"by\":\"tag\",\"value\":\"{tag}\"}},\"wait_ms\":0}}");
        let request = format!(
            "POST /v1/purges HTTP/1.1\r\nHost: control\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.get_mut().write_all(request.as_bytes()).is_err() {
            break;
        }
        let Some(answer) = read_answer(&mut stream) else {
            break;
        };
        mine.push((
            answer["revision"]
                .as_u64()
                .unwrap_or_else(|| panic!("no purge: {answer}")),
            tag,
        ));
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    mine
}

/// A whole answer's body; none when the connection ends before.
fn read_answer(stream: &mut BufReader<TcpStream>) -> Option<Value> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            let mut body = vec![0; length];
            stream.read_exact(&mut body).ok()?;
            return serde_json::from_slice(&body).ok();
        }
    }
}

/// The tags of a journal's purges by revision.
fn tags(journal: &Path, copy: &Path) -> BTreeMap<u64, String> {
    std::fs::copy(journal, copy).expect("the journal can be copied");
    let journal = Journal::open(copy).expect("the journal is whole");
    let mut tags = BTreeMap::new();
    loop {
        let page = journal.after(
            tags.last_key_value().map_or(0, |(revision, _)| *revision),
            1000,
        );
        if page.is_empty() {
            return tags;
        }
        for entry in page {
            let Change::Purge(purge) = entry.change else {
                panic!("{entry:?}")
            };
            let PurgeScope::Tag(tag) = purge.scope else {
                panic!("{purge:?}")
            };
            tags.insert(entry.revision, tag);
        }
    }
}

#[test]
fn a_kill_in_a_storm_of_purges_loses_none_that_was_acknowledged() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    std::fs::write(directory.path().join("nearcast.toml"), plan.text())
        .expect("the file can be written");
    let mut control = start_control(directory.path(), &plan);
    let token = wait::until("a token to be made", Duration::from_secs(30), || {
        std::fs::read_to_string(directory.path().join("state/control/token"))
            .ok()
            .filter(|t| t.len() >= 64)
            .ok_or("there is none")
    });
    let journal = directory.path().join("state/control/journal");
    let mut all: Vec<(u64, String)> = Vec::new();
    for round in 0..2 {
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let storm: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (token, acknowledged) = (token.clone(), acknowledged.clone());
                let (address, client) = (plan.control(), client + CLIENTS * round);
                std::thread::spawn(move || {
                    purge_until_the_end(address, &token, client, &acknowledged)
                })
            })
            .collect();
        wait::until("a storm of purges", Duration::from_secs(120), || {
            let count = acknowledged.load(Ordering::Relaxed);
            if count >= STORM {
                Ok(())
            } else {
                Err(format!("{count} were acknowledged"))
            }
        });
        control.kill();
        all.extend(
            storm
                .into_iter()
                .flat_map(|client| client.join().expect("a client ends with its connection")),
        );
        let kept = tags(&journal, &directory.path().join("copy"));
        for (revision, tag) in &all {
            assert_eq!(
                kept.get(revision),
                Some(tag),
                "round {round}: revision {revision} was acknowledged"
            );
        }
        // As a loss of power would: a record of which the end was never written.
        std::fs::File::options()
            .append(true)
            .open(&journal)
            .and_then(|mut file| file.write_all(&[0x40, 0, 0, 0, 1, 2, 3]))
            .expect("the journal can be written");
        control = start_control(directory.path(), &plan);
    }
    let newest = all.iter().max().expect("some");
    let shown = curl(&[&format!("http://{}/v1/purges", plan.control())]);
    assert!(
        shown.contains(&format!("\"{}\"", newest.1)),
        "the newest is shown"
    );
}

fn get(fleet: &Fleet, path: &str) -> Value {
    serde_json::from_str(&curl(&[&format!(
        "http://{}/v1/{path}",
        fleet.plan.control()
    )]))
    .expect("JSON")
}

/// What must be the same afterwards.
#[derive(Debug, PartialEq)]
struct Shown {
    purges: Vec<Value>,
    pushes: Vec<Value>,
    events: Vec<Value>,
    /// Requests by second.
    series: BTreeMap<u64, f64>,
}

fn shown(fleet: &Fleet) -> Shown {
    let pick = |list: &Value, members: &[&str]| -> Vec<Value> {
        list.as_array()
            .expect("a list")
            .iter()
            .map(|item| members.iter().map(|m| item[*m].clone()).collect())
            .collect()
    };
    let series = get(fleet, "series?seconds=600");
    let start = series["start_unix_ms"].as_u64().expect("a time") / 1000;
    let counted = series["total"]["counted"].as_array().expect("a list");
    Shown {
        purges: pick(
            &get(fleet, "purges")["purges"],
            &[
                "revision",
                "accepted_unix_ms",
                "scopes",
                "complete",
                "completed_unix_ms",
                "responses",
                "nodes",
            ],
        ),
        pushes: pick(
            &get(fleet, "pushes")["orders"],
            &[
                "id",
                "state",
                "accepted_unix_ms",
                "items",
                "bytes",
                "progress",
                "total",
                "nodes",
            ],
        ),
        events: get(fleet, "events/log")["events"]
            .as_array()
            .expect("a list")
            .clone(),
        series: counted
            .iter()
            .enumerate()
            .filter_map(|(n, v)| Some((start + n as u64, v.as_f64()?)))
            .collect(),
    }
}

/// Waits until control has a report from both edges.
fn wait_for_edges(fleet: &Fleet) {
    wait::until("both edges to report", Duration::from_secs(30), || {
        let status = get(fleet, "status");
        let up = status["nodes"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|n| n["role"] == "edge" && n["state"] == "up")
            .count();
        if up == 2 {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
}

#[test]
fn what_control_has_shown_is_shown_again_after_a_restart_and_after_a_kill() {
    let mut fleet = Fleet::start(Plan {
        clusters: 1,
        nodes: 2,
        ..Plan::new()
    });
    // Requests before an edge's first report are counted for the time before it, partly that in
    // which control had not started.
    wait_for_edges(&fleet);
    let edge = fleet.plan.edge(0, 0);
    for _ in 0..30 {
        fleet.head(edge, "/");
    }
    wait::until("a plan to push something", Duration::from_secs(30), || {
        let plan = fleet.operate(&["plan", "--json"]);
        let text = String::from_utf8_lossy(&plan.stdout).into_owned();
        if text.contains("http://www.demo.test/") {
            Ok(())
        } else {
            Err(text)
        }
    });
    let push = fleet.operate(&["push", "--now"]);
    assert!(
        push.status.success(),
        "{}",
        String::from_utf8_lossy(&push.stderr)
    );
    let purge = fleet.operate(&["purge", "--url", "http://www.demo.test/"]);
    assert!(
        purge.status.success(),
        "{}",
        String::from_utf8_lossy(&purge.stderr)
    );
    for kind in ["TERM", "KILL"] {
        wait::until(
            "the push to have ended and the purge to be complete",
            Duration::from_secs(30),
            || {
                let now = shown(&fleet);
                let is_ended = now.pushes.iter().all(|p| p[1] == "ended") && !now.pushes.is_empty();
                let is_complete = now.purges.iter().all(|p| p[3] == true) && !now.purges.is_empty();
                let has_requests = now.series.values().sum::<f64>() >= 29.0;
                if is_ended && is_complete && has_requests {
                    Ok(())
                } else {
                    Err(format!("{now:?}"))
                }
            },
        );
        // Charts are written every other second.
        let charts = fleet.path("state/control/series");
        let written = |path: &Path| {
            std::fs::metadata(path)
                .and_then(|m| m.modified())
                .expect("it is there")
        };
        let (before, at) = (shown(&fleet), written(&charts));
        wait::until("the charts to be written", Duration::from_secs(30), || {
            if written(&charts) > at {
                Ok(())
            } else {
                Err("not yet")
            }
        });
        if kind == "TERM" {
            fleet.node("control").signal("TERM");
            assert!(
                fleet
                    .node("control")
                    .wait(Duration::from_secs(30))
                    .success()
            );
        } else {
            fleet.node("control").kill();
        }
        fleet.start_node("control", "control");
        let ip = fleet.plan.block.host(70);
        fleet.wait_ready("control", ip);
        wait_for_edges(&fleet);
        let after = shown(&fleet);
        assert_eq!(
            (&after.purges, &after.pushes),
            (&before.purges, &before.pushes),
            "{kind}"
        );
        let old: Vec<&Value> = after
            .events
            .iter()
            .filter(|e| before.events.contains(e))
            .collect();
        assert_eq!(old.len(), before.events.len(), "{kind}: no event is gone");
        for event in &after.events[before.events.len()..] {
            let kind_of = event["kind"].as_str().expect("a kind");
            assert!(
                !["push_ended", "purge_complete", "push_progress"].contains(&kind_of),
                "{kind}: told again: {event}"
            );
        }
        let newest = before.series.keys().max().copied().unwrap_or(0);
        // Kept in single precision.
        for (second, requests) in before
            .series
            .iter()
            .filter(|(second, _)| **second + 3 < newest)
        {
            let again = after.series.get(second);
            assert!(
                again.is_some_and(|again| (again - requests).abs() < 0.005),
                "{kind}: {second}: {again:?} for {requests}"
            );
        }
        let total = |shown: &Shown| shown.series.values().sum::<f64>();
        // The newest seconds may have settled meanwhile.
        let more = total(&after) - total(&before);
        assert!(
            (-0.5..5.0).contains(&more),
            "{kind}: {more} more requests, and nobody asked"
        );
    }
}
