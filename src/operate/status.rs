//! `nearcast status`.

use nearcast_fleet::failure::Failure;
use serde_json::Value;

use super::api::{Api, list, number, string};
use super::print_json;
use crate::cli::StatusArgs;
use crate::text::Table;
use crate::{find, text};

/// Certificates that a warning names.
const FAILING_SHOWN_MAX: usize = 5;

/// Shows the state of the fleet.
pub(crate) async fn run(arguments: StatusArgs) -> Result<(), Failure> {
    let fleet = find::fleet_to_ask(&arguments.ask)?;
    let window = arguments.window.as_secs().clamp(1, 3600);
    let api = Api::of(&fleet)?;
    let answer = api.get(&format!("/v1/status?window={window}")).await?;
    if arguments.json {
        print_json(&answer);
    } else {
        let width = text::terminal_width();
        out!("{}", describe(&answer, width));
        // The status is worth more than a failure to ask for this.
        let certificates = api.get("/v1/certificates").await.unwrap_or_default();
        if let Some(warning) = failing_certificates(&certificates) {
            out!("\n{}", text::wrapped(&warning, width));
        }
    }
    Ok(())
}

fn describe(status: &Value, width: usize) -> String {
    let recent = &status["recent"];
    let speed = number(&status["clock"]["speed"]);
    let fast = if speed == 1.0 {
        String::new()
    } else {
        format!(", clock {speed:.0} times as fast")
    };
    let mut text = format!(
        "{}, revision {}{fast}\n",
        string(&status["zone"]),
        status["revision"]
    );
    let recent = format!(
        "last {} s: {:.1} requests/s, {} to clients, object hit ratio {}, byte hit ratio {}, {} of requests hit pushed content{}\n\n",
        status["window_seconds"],
        number(&recent["requests_per_second"]),
        text::bits_per_second(number(&recent["egress_bits_per_second"])),
        text::percent(recent["object_hit_ratio"].as_f64()),
        text::percent(recent["byte_hit_ratio"].as_f64()),
        text::percent(recent["pushed_hit_ratio"].as_f64()),
        // Bytes of pushes are not part of the byte hit ratio.
        match number(&recent["push_origin_bytes"]) + number(&recent["push_peer_bytes"]) {
            0.0 => String::new(),
            pushed => format!("; pushes fetched {}", text::bytes(pushed)),
        },
    );
    text.push_str(&text::wrapped(&recent, width));
    let clusters: Vec<Vec<String>> = list(&status["clusters"]).iter().map(cluster_row).collect();
    let table = Table {
        heading: &[
            "cluster",
            "state",
            "edges",
            "local time",
            ">req/s",
            ">egress",
            ">hit",
            ">byte hit",
            "push",
        ],
        rows: &clusters,
        remark: None,
        optional: &["push", "byte hit", "edges", "egress"],
    };
    text.push_str(&table.fit(width));
    for cluster in list(&status["clusters"]) {
        if let Some(missed) = cluster["push_missed"].as_str() {
            let words = format!("warning: push to {}: {missed}", string(&cluster["name"]));
            text.push_str(&text::wrapped(&words, width));
        }
    }
    text.push('\n');
    let nodes: Vec<Vec<String>> = list(&status["nodes"]).iter().map(node_row).collect();
    let table = Table {
        heading: &[
            "node",
            "role",
            "state",
            ">reported",
            ">behind",
            ">req/s",
            ">hit",
            ">memory",
            ">disk",
            ">pushed",
            "why",
        ],
        rows: &nodes,
        remark: Some("why"),
        optional: &["pushed", "behind", "memory", "disk", "role"],
    };
    text.push_str(&table.fit(width));
    text
}

/// Names the certificates whose orders fail.
fn failing_certificates(answer: &Value) -> Option<String> {
    let failing: Vec<String> = list(&answer["certificates"])
        .iter()
        .filter(|one| number(&one["failures"]) > 0.0)
        .map(|one| string(&one["name"]))
        .collect();
    let more = match failing.len().saturating_sub(FAILING_SHOWN_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let shown = &failing[..failing.len().min(FAILING_SHOWN_MAX)];
    (!shown.is_empty()).then(|| {
        format!(
            "warning: orders of certificates fail: {}{more}; `nearcast certificates` says why",
            shown.join(", ")
        )
    })
}

fn cluster_row(c: &Value) -> Vec<String> {
    let time = string(&c["local_time"]);
    let off_peak = if c["off_peak_now"] == true {
        " off-peak"
    } else {
        ""
    };
    vec![
        string(&c["name"]),
        string(&c["state"]),
        format!("{}/{}", c["nodes_up"], c["nodes"]),
        time.split('T').nth(1).map_or(String::new(), |t| {
            t.chars().take(5).collect::<String>() + off_peak
        }),
        format!("{:.1}", number(&c["recent"]["requests_per_second"])),
        text::bits_per_second(number(&c["recent"]["egress_bits_per_second"])),
        text::percent(c["recent"]["object_hit_ratio"].as_f64()),
        text::percent(c["recent"]["byte_hit_ratio"].as_f64()),
        string(&c["push_order"]),
    ]
}

fn node_row(n: &Value) -> Vec<String> {
    let never = number(&n["last_report_unix_ms"]) == 0.0;
    let bytes = |key: &str| n[key].as_f64().map_or(String::new(), text::bytes);
    let rate = n["requests_per_second"]
        .as_f64()
        .or(n["queries_per_second"].as_f64());
    vec![
        string(&n["name"]),
        string(&n["role"]),
        string(&n["state"]),
        if never {
            "never".to_owned()
        } else {
            format!("{} ago", text::span_ms(number(&n["age_ms"]) as u64))
        },
        format!("{:.0}", number(&n["behind"])),
        rate.map_or(String::new(), |r| format!("{r:.1}")),
        if n["role"] == "edge" {
            text::percent(n["object_hit_ratio"].as_f64())
        } else {
            String::new()
        },
        bytes("memory_bytes"),
        bytes("disk_bytes"),
        bytes("pushed_bytes"),
        string(&n["reason"]),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const WIDE: usize = 200;

    #[test]
    fn certificates_whose_orders_fail_are_named() {
        let answer = |failures: &[u64]| {
            let one = |(n, failures)| json!({ "name": format!("{n}.test"), "failures": failures });
            let all: Vec<Value> = failures.iter().enumerate().map(one).collect();
            json!({ "acme": true, "certificates": all })
        };
        assert_eq!(failing_certificates(&Value::Null), None);
        assert_eq!(failing_certificates(&answer(&[0, 0])), None);
        assert_eq!(
            failing_certificates(&answer(&[0, 2, 1])).as_deref(),
            Some(
                "warning: orders of certificates fail: 1.test, 2.test; `nearcast certificates` says why"
            )
        );
        let many = failing_certificates(&answer(&[1; 7])).expect("they fail");
        assert!(
            many.contains("4.test and 2 more;") && !many.contains("5.test"),
            "{many}"
        );
    }

    /// The API's documented example: the text names its parts.
    #[test]
    fn the_documented_status_is_described() {
        let documents = include_str!("../../control/API.md");
        let example = documents
            .split("```json status\n")
            .nth(1)
            .and_then(|rest| rest.split("```").next())
            .expect("the example is there");
        let mut status: Value = serde_json::from_str(example).expect("it is JSON");
        assert!(!describe(&status, WIDE).contains("warning"));
        status["clusters"][0]["push_missed"] = "control was not running".into();
        let text = describe(&status, WIDE);
        assert!(
            text.contains("warning: push to ams: control was not running"),
            "{text}"
        );
        for words in [
            "cdn.test",
            "93.8 %",
            "360 times as fast",
            "ams-1",
            "03:00 off-peak",
            "2/2",
            "no report for 4 s",
            "ams-2026-06-01-x8k2j0",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
