//! What was popular is pushed: its first request at a node that never saw it is a hit.

use std::time::Duration;

use nearcast_fleet::clock::now_unix_s;
use nearcast_testing::{Origin, Reply};

use crate::lab::fleet::{Fleet, Plan};
use crate::lab::wait;

const SEGMENT: &str = "/v/film/720p/seg-1.m4s";

/// One cluster of two edges in front of an origin that serves segments of 200 kB.
fn fleet(more: String) -> (Fleet, Origin) {
    let mut plan = Plan {
        clusters: 1,
        nodes: 2,
        own_keys: true,
        more,
        ..Plan::new()
    };
    let origin = Origin::start_at(plan.origin_address(), |_| {
        Reply::ok(vec![7; 200_000], "max-age=86400").field("ETag", "\"film\"")
    });
    plan.origin = Some(origin.url());
    (Fleet::start(plan), origin)
}

fn make_popular(fleet: &Fleet) {
    for _ in 0..20 {
        fleet.head(fleet.plan.edge(0, 0), SEGMENT);
    }
}

#[test]
fn a_pushed_videos_first_request_is_a_hit() {
    let (fleet, origin) = fleet(String::new());
    make_popular(&fleet);
    wait::until(
        "the plan to hold the segment",
        Duration::from_secs(20),
        || {
            let plan = fleet.operate(&["plan", "--json"]);
            let text = String::from_utf8_lossy(&plan.stdout).into_owned();
            if text.contains(SEGMENT) {
                Ok(())
            } else {
                Err(format!("{text}{}", String::from_utf8_lossy(&plan.stderr)))
            }
        },
    );
    let push = fleet.operate(&["push", "--now"]);
    assert!(
        push.status.success(),
        "{}{}",
        String::from_utf8_lossy(&push.stdout),
        String::from_utf8_lossy(&push.stderr)
    );
    let first = fleet.head(fleet.plan.edge(0, 1), SEGMENT);
    assert!(
        first.contains("; hit"),
        "the other edge never saw a request for it: {first}"
    );
    assert!(
        origin.count(SEGMENT) <= 2,
        "the origin gave it {} times to two nodes",
        origin.count(SEGMENT)
    );
}

#[test]
fn the_push_runs_by_itself_when_the_clock_reaches_the_window() {
    // 00:00 UTC is 01:00 in Amsterdam's winter; the window opens at 02:00, ten real seconds later
    // at this speed.
    let fleet_time = 1_767_830_400; // 2026-01-08 00:00:00 UTC
    let clock = format!(
        "\n[clock]\nspeed = 120\nanchor_real = {}\nanchor_fleet = {fleet_time}\n",
        now_unix_s() + 20
    );
    let (fleet, _origin) = fleet(clock);
    make_popular(&fleet);
    wait::until(
        "the window to open and the other edge to be filled",
        Duration::from_secs(90),
        || {
            let text =
                crate::lab::tools::curl(&[&format!("http://{}/v1/pushes", fleet.plan.control())]);
            if text.contains("\"ended\":true") {
                Ok(())
            } else {
                Err(text)
            }
        },
    );
    let first = fleet.head(fleet.plan.edge(0, 1), SEGMENT);
    assert!(first.contains("; hit"), "{first}");
}

#[test]
fn a_push_of_which_a_node_said_nothing_fails_and_names_it() {
    let (mut fleet, _origin) = fleet(String::new());
    make_popular(&fleet);
    wait::until(
        "the plan to hold the segment",
        Duration::from_secs(20),
        || {
            let text =
                String::from_utf8_lossy(&fleet.operate(&["plan", "--json"]).stdout).into_owned();
            if text.contains(SEGMENT) {
                Ok(())
            } else {
                Err(text)
            }
        },
    );
    fleet.node("ams-2").kill();
    let push = fleet.operate(&["push", "--now"]);
    let words = String::from_utf8_lossy(&push.stderr);
    assert!(
        push.status.code() == Some(69) && words.contains("ams-2 did not report on this push"),
        "{:?} {words}",
        push.status
    );
}
