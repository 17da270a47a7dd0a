//! Many clients for one cold, slow URL cost the origin one request, and nobody waits for the end.

use std::time::Duration;

use crate::lab::fleet::{Fleet, Plan};
use crate::lab::http::{Origin, Reply};
use crate::lab::process::run;

#[test]
fn two_hundred_at_once_on_one_cold_slow_url_are_one_origin_request() {
    let mut plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    let body = vec![b'x'; 1 << 20];
    let origin = Origin::start(plan.origin_address(), move |_| {
        Reply::ok(body.clone(), "max-age=600")
            .field("ETag", "\"slow\"")
            .slow(16, Duration::from_millis(60))
    });
    plan.origin = Some(origin.url());
    let fleet = Fleet::start(plan);
    let edge = fleet.plan.edge(0, 0);
    // curl runs all transfers of one command in parallel and prints a line for each.
    let mut arguments = vec![
        "-sS".to_owned(),
        "--parallel".into(),
        "--parallel-immediate".into(),
        "--parallel-max".into(),
        "200".into(),
    ];
    arguments.extend([
        "--max-time".into(),
        "60".into(),
        "-H".into(),
        "Host: www.demo.test".into(),
    ]);
    arguments.extend([
        "-w".into(),
        "%{http_code} %{size_download} %{time_starttransfer} %{time_total}\\n".into(),
    ]);
    for _ in 0..200 {
        arguments.extend([
            "-o".into(),
            "/dev/null".into(),
            format!("http://{edge}:8080/slow"),
        ]);
    }
    let text = run("curl", &arguments);
    let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split(' ').collect()).collect();
    assert_eq!(lines.len(), 200);
    assert!(
        lines.iter().all(|l| l[0] == "200" && l[1] == "1048576"),
        "{text}"
    );
    assert_eq!(origin.count("/slow"), 1, "one request at the origin");
    // The bytes came as the origin sent them: every first byte is well before the same transfer's
    // end.
    let early = lines
        .iter()
        .filter(|l| {
            l[2].parse::<f64>().expect("seconds") < 0.7 * l[3].parse::<f64>().expect("seconds")
        })
        .count();
    assert!(early > 150, "only {early} of 200 saw bytes before the end");
}
