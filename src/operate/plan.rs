//! `nearcast plan`.

use nearcast_fleet::failure::Failure;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use serde_json::Value;

use super::api::{Api, list, number, string};
use super::print_json;
use crate::cli::PlanArgs;
use crate::text::Table;
use crate::{find, text};

/// The most items that control shows of one cluster.
const ITEMS_MAX: u32 = 1000;

/// Characters that a query component must not contain.
const ESCAPED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Shows the plan that control would push next.
pub(crate) async fn run(arguments: PlanArgs) -> Result<(), Failure> {
    let fleet = find::fleet_to_ask(&arguments.ask)?;
    let items = if arguments.json {
        arguments.items.max(50)
    } else {
        arguments.items
    };
    let mut path = format!("/v1/plan?items={}", items.min(ITEMS_MAX));
    if let Some(cluster) = &arguments.cluster {
        path.push_str(&format!("&cluster={}", percent_encoded(cluster)));
    }
    let answer = Api::of(&fleet)?.get(&path).await?;
    if arguments.json {
        print_json(&answer);
    } else {
        out!("{}", describe(&answer, text::terminal_width()));
    }
    Ok(())
}

/// Escapes a query component: all but letters, digits and `-._~` (RFC 3986 section 2.3).
fn percent_encoded(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, &ESCAPED)
}

fn describe(answer: &Value, width: usize) -> String {
    let mut text = String::new();
    if answer["enabled"] == false {
        let words = "Pushing is turned off in the fleet file (control.push.enabled); this is what would be pushed.\n\n";
        text.push_str(&text::wrapped(words, width));
    }
    let now = number(&answer["now_unix_ms"]);
    let clusters = list(&answer["clusters"]);
    let rows: Vec<Vec<String>> = clusters.iter().map(|c| cluster_row(c, now)).collect();
    let heading = &[
        "cluster",
        "local",
        "window",
        ">items",
        ">bytes",
        ">of share",
        ">expected requests",
        ">expected bytes",
        ">gap",
        "limit",
    ];
    let table = Table {
        heading,
        rows: &rows,
        remark: None,
        optional: &["gap", "local", "expected bytes", "of share"],
    };
    text.push_str(&table.fit(width));
    for cluster in clusters {
        let items = list(&cluster["items"]);
        if items.is_empty() {
            let excluded = list(&cluster["excluded"]);
            let reasons: Vec<String> = excluded
                .iter()
                .map(|e| format!("{} {}", e["count"], string(&e["reason"]).replace('_', " ")))
                .collect();
            let why = if reasons.is_empty() {
                "no requests were reported yet".to_owned()
            } else {
                reasons.join(", ")
            };
            let words = format!("\n{}: nothing to push ({why})", string(&cluster["cluster"]));
            text.push_str(&text::wrapped(&words, width));
            continue;
        }
        let rows: Vec<Vec<String>> = items
            .iter()
            .map(|i| {
                vec![
                    format!("{:.0}", number(&i["expected_requests"])),
                    text::bytes(number(&i["bytes"])),
                    string(&i["url"]),
                ]
            })
            .collect();
        text.push_str(&format!(
            "\n{}, best {} of {}:\n",
            string(&cluster["cluster"]),
            items.len(),
            cluster["items_total"]
        ));
        let table = Table {
            heading: &[">expected requests", ">bytes", "URL"],
            rows: &rows,
            ..Table::default()
        };
        text.push_str(&table.fit(width));
    }
    text
}

fn cluster_row(cluster: &Value, now: f64) -> Vec<String> {
    let window = &cluster["window"];
    let opens_in = number(&window["start_unix_ms"]) - now;
    let when = match window["open"].as_bool() {
        Some(true) => "open now".to_owned(),
        Some(false) => format!("in {}", text::span_ms(opens_in.max(0.0) as u64)),
        None => "none".to_owned(),
    };
    let share = number(&cluster["budget"]["share_bytes"]);
    let stored = number(&cluster["stored_bytes"]);
    let time = string(&cluster["local_time"]);
    vec![
        string(&cluster["cluster"]),
        time.split('T')
            .nth(1)
            .map_or(String::new(), |t| t.chars().take(5).collect()),
        when,
        format!("{:.0}", number(&cluster["items_total"])),
        text::bytes(stored),
        text::percent((share > 0.0).then(|| stored / share)),
        text::count(number(&cluster["expected_requests"])),
        text::bytes(number(&cluster["expected_bytes"])),
        text::percent(cluster["gap"].as_f64()),
        string(&cluster["limit"]).replace('_', " "),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_is_told_with_its_gap() {
        let answer = json!({"now_unix_ms": 1000, "enabled": true, "clusters": [
            {"cluster": "ams", "local_time": "2026-06-01T03:00:00", "window": {"open": false, "start_unix_ms": 41_000},
             "budget": {"share_bytes": 16_000_000}, "items_total": 40, "stored_bytes": 8_000_000, "limit": "disk_share",
             "expected_requests": 9000.0, "expected_bytes": 9e8, "gap": 0.011,
             "items": [{"url": "http://h/v", "bytes": 400_000, "expected_requests": 300.0}], "excluded": []},
            {"cluster": "nyc", "window": null, "items": [], "excluded": [{"reason": "too_few_requests", "count": 3}]},
        ]});
        let text = describe(&answer, usize::MAX);
        for words in [
            "03:00",
            "in 40 s",
            "50.0 %",
            "9000",
            "1.1 %",
            "disk share",
            "http://h/v",
            "nyc: nothing to push (3 too few requests)",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn a_name_cannot_add_to_the_query() {
        assert_eq!(percent_encoded("a&b=c d").to_string(), "a%26b%3Dc%20d");
    }
}
