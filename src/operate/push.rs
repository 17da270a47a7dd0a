//! `nearcast push`.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use nearcast_fleet::failure::{Failure, FailureKind};
use serde_json::{Value, json};

use super::api::{Api, list, number, string};
use super::print_json;
use crate::cli::PushArgs;
use crate::text::Table;
use crate::{find, text};

/// How often the orders' progress is asked for.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Steps of a bar.
const BAR_STEPS: u64 = 1000;

/// Pushes now and shows progress, or shows the orders so far.
pub(crate) async fn run(arguments: PushArgs) -> Result<(), Failure> {
    let fleet = find::fleet_to_ask(&arguments.ask)?;
    let api = Api::of(&fleet)?;
    if !arguments.now {
        let answer = api.get("/v1/pushes").await?;
        if arguments.json {
            print_json(&answer);
        } else {
            out!(
                "{}",
                orders_table(list(&answer["orders"]), text::terminal_width())
            );
        }
        return Ok(());
    }
    let token = find::token(arguments.token.token, &fleet)?;
    let body = if arguments.cluster.is_empty() {
        json!({})
    } else {
        json!({"clusters": arguments.cluster})
    };
    let accepted = api
        .post("/v1/pushes", &token, &body, Duration::ZERO)
        .await?;
    let asked: Vec<String> = list(&accepted["orders"])
        .iter()
        .map(|o| string(&o["id"]))
        .collect();
    for skipped in list(&accepted["skipped"]) {
        errln!(
            "nearcast: {} is left out: {}",
            string(&skipped["cluster"]),
            string(&skipped["reason"])
        );
    }
    let orders = match asked.is_empty() {
        true => Vec::new(),
        false => watch(&api, &asked, arguments.wait, arguments.json).await?,
    };
    if arguments.json {
        print_json(&json!({"orders": orders, "skipped": accepted["skipped"]}));
    } else if !orders.is_empty() {
        out!("{}", orders_table(&orders, text::terminal_width()));
    }
    verdict(&orders)
}

/// Shows progress until every order has ended or `limit` has passed; returns the orders as last
/// seen.
async fn watch(
    api: &Api,
    asked: &[String],
    limit: Duration,
    quiet: bool,
) -> Result<Vec<Value>, Failure> {
    let mut shown = Shown::new(quiet);
    let begun = tokio::time::Instant::now();
    loop {
        let answer = api.get("/v1/pushes").await?;
        let orders: Vec<Value> = list(&answer["orders"])
            .iter()
            .filter(|o| asked.contains(&string(&o["id"])))
            .cloned()
            .collect();
        for order in &orders {
            shown.show(order);
        }
        if orders.len() == asked.len() && orders.iter().all(|o| o["state"] != "running") {
            return Ok(orders);
        }
        if begun.elapsed() > limit {
            let message = format!(
                "the push still runs after {}; `nearcast push` shows how far it is",
                text::span_ms(limit.as_millis() as u64)
            );
            return Err(Failure::new(FailureKind::Unavailable, message));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A push has failed when a node did not report, when its time ended before it was complete, or
/// when none of its items arrived.
fn verdict(orders: &[Value]) -> Result<(), Failure> {
    let silent = |is_it: fn(&Value) -> bool| -> Vec<String> {
        orders
            .iter()
            .flat_map(|o| list(&o["nodes"]))
            .filter(|n| is_it(n))
            .map(|n| string(&n["node"]))
            .collect()
    };
    let (unheard, unended) = (
        silent(|n| n["reported"] != true),
        silent(|n| n["reported"] == true && n["ended"] != true),
    );
    if !(unheard.is_empty() && unended.is_empty()) {
        let mut words = Vec::new();
        if !unheard.is_empty() {
            words.push(format!(
                "{} did not report on this push",
                unheard.join(", ")
            ));
        }
        if !unended.is_empty() {
            words.push(format!(
                "{} did not report the end of this push",
                unended.join(", ")
            ));
        }
        let message = format!(
            "{}; does `nearcast status` show {} up?",
            words.join("; "),
            if words.len() > 1 { "them" } else { "it" }
        );
        return Err(Failure::new(FailureKind::Unavailable, message));
    }
    let sum = |key: &str| -> f64 { orders.iter().map(|o| number(&o["total"][key])).sum() };
    if sum("failed") > 0.0 && sum("warmed") + sum("already_warm") == 0.0 {
        let reasons = orders
            .iter()
            .flat_map(|o| list(&o["nodes"]))
            .flat_map(|n| list(&n["reasons"]))
            .next();
        let why = reasons.map_or(String::new(), |r| {
            format!(
                " ({})",
                r.as_str().map_or_else(|| r.to_string(), str::to_owned)
            )
        });
        return Err(Failure::new(
            FailureKind::Unavailable,
            format!("every item failed{why}; does the origin answer?"),
        ));
    }
    let unfinished = sum("unfinished");
    if unfinished > 0.0 {
        let message = format!(
            "the time ended before the push was complete: {unfinished:.0} copies are missing; the next push continues it"
        );
        return Err(Failure::new(FailureKind::Unavailable, message));
    }
    Ok(())
}

/// One bar for each cluster on a terminal, elsewhere a line at each tenth.
struct Shown {
    bars: Option<MultiProgress>,
    quiet: bool,
    by_order: BTreeMap<String, (Option<ProgressBar>, u64)>,
}

impl Shown {
    fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal() && !quiet;
        Self {
            bars: terminal.then(MultiProgress::new),
            quiet,
            by_order: BTreeMap::new(),
        }
    }

    fn show(&mut self, order: &Value) {
        let id = string(&order["id"]);
        let cluster = string(&order["cluster"]);
        let share = number(&order["progress"]).clamp(0.0, 1.0);
        let bars = &self.bars;
        let (bar, tenths) = self
            .by_order
            .entry(id)
            .or_insert_with(|| (bars.as_ref().map(|b| b.add(new_bar(&cluster))), u64::MAX));
        let now = (share * 10.0) as u64;
        match bar {
            Some(bar) => {
                bar.set_position((share * BAR_STEPS as f64) as u64);
                bar.set_message(progress_words(order));
                if order["state"] != "running" {
                    bar.abandon();
                }
            }
            None if !self.quiet && *tenths != now => errln!(
                "{cluster}: {:.0} %, {}",
                (share * 100.0).floor(),
                progress_words(order)
            ),
            None => {}
        }
        *tenths = now;
    }
}

fn new_bar(cluster: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>8} [{bar:30}] {percent:>3} %  {msg}")
        .expect("the template is right");
    ProgressBar::new(BAR_STEPS)
        .with_style(style.progress_chars("=> "))
        .with_prefix(cluster.to_owned())
}

fn progress_words(order: &Value) -> String {
    let total = &order["total"];
    let failed = number(&total["failed"]);
    let mut words = format!(
        "{} from the origin, {} from peers, {:.0} warm already",
        text::bytes(number(&total["origin_bytes"])),
        text::bytes(number(&total["peer_bytes"])),
        number(&total["already_warm"]),
    );
    if failed > 0.0 {
        words.push_str(&format!(", {failed:.0} failed"));
    }
    words
}

fn orders_table(orders: &[Value], width: usize) -> String {
    if orders.is_empty() {
        let words = "no push so far; `nearcast push --now` starts one, `nearcast plan` shows what it would hold";
        return text::wrapped(words, width);
    }
    let rows: Vec<Vec<String>> = orders
        .iter()
        .map(|o| {
            let total = &o["total"];
            vec![
                string(&o["cluster"]),
                string(&o["state"]),
                format!("{:.0} %", number(&o["progress"]) * 100.0),
                format!("{:.0}", number(&o["items"])),
                text::bytes(number(&o["bytes"])),
                format!("{:.0}", number(&total["already_warm"])),
                format!("{:.0}", number(&total["warmed"])),
                format!("{:.0}", number(&total["failed"])),
                text::bytes(number(&total["origin_bytes"])),
                text::bytes(number(&total["peer_bytes"])),
                text::percent(o["benefit"]["pushed_hit_ratio"].as_f64()),
            ]
        })
        .collect();
    let heading = &[
        "cluster",
        "state",
        ">done",
        ">items",
        ">bytes",
        ">warm",
        ">warmed",
        ">failed",
        ">origin",
        ">peers",
        ">pushed hits",
    ];
    let words = "\
        warm (there before), warmed and failed count copies: each edge of a cluster has its own.\n\
        pushed hits: the share of requests since then that were answered from pushed content.\n";
    let table = Table {
        heading,
        rows: &rows,
        remark: None,
        optional: &["peers", "origin", "warm", "warmed"],
    };
    format!("{}\n{}", table.fit(width), text::wrapped(words, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documented() -> Value {
        let documents = include_str!("../../control/API.md");
        let example = documents
            .split("```json pushes\n")
            .nth(1)
            .and_then(|rest| rest.split("```").next())
            .expect("the example is there");
        serde_json::from_str(example).expect("it is JSON")
    }

    #[test]
    fn the_documented_orders_are_described() {
        let orders = documented();
        let text = orders_table(list(&orders["orders"]), usize::MAX);
        for words in ["ams", "running", "50 %", "15.3 MiB", "5.7 MiB", "50.0 %"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert_eq!(
            progress_words(&orders["orders"][0]),
            "5.7 MiB from the origin, 5.7 MiB from peers, 10 warm already"
        );
    }

    #[test]
    fn a_push_of_which_nothing_arrived_has_failed() {
        let table = [
            ((0, 0, 0), true),
            ((0, 3, 2), true),
            ((4, 0, 2), true),
            ((0, 0, 2), false),
        ];
        for ((already_warm, warmed, failed), good) in table {
            let order = json!({"total": {"already_warm": already_warm, "warmed": warmed, "failed": failed}, "nodes": []});
            assert_eq!(
                verdict(&[order]).is_ok(),
                good,
                "{already_warm} {warmed} {failed}"
            );
        }
    }

    #[test]
    fn a_push_of_which_a_node_said_nothing_has_failed_and_says_which() {
        // Its name, whether it reported, and whether it ended.
        type Node<'a> = (&'a str, bool, bool);
        let order = |nodes: &[Node<'_>], unfinished: u64| {
            let node = |(name, reported, ended): &Node<'_>| json!({"node": name, "reported": reported, "ended": ended});
            let nodes: Vec<Value> = nodes.iter().map(node).collect();
            json!({"total": {"already_warm": 1, "warmed": 3, "failed": 0, "unfinished": unfinished}, "nodes": nodes})
        };
        let said = [("ams-1", true, true)];
        assert!(verdict(&[order(&said, 0)]).is_ok());
        let table: [(&[Node<'_>], u64, &str); 4] = [
            (
                &[("ams-1", true, true), ("ams-2", false, false)],
                0,
                "ams-2 did not report on this push",
            ),
            (
                &[("ams-1", false, false), ("ams-2", false, false)],
                0,
                "ams-1, ams-2 did not report on this push",
            ),
            (
                &[("ams-1", true, true), ("ams-2", true, false)],
                0,
                "ams-2 did not report the end of this push",
            ),
            (&said, 2, "2 copies are missing"),
        ];
        for (nodes, unfinished, words) in table {
            let failure =
                verdict(&[order(&said, 0), order(nodes, unfinished)]).expect_err("a failure");
            assert!(failure.message.contains(words), "{failure}");
            assert_ne!(failure.kind.exit_code(), 0);
        }
    }
}
