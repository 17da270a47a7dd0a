//! `nearcast purge`.

use std::time::Duration;

use nearcast_fleet::failure::{Failure, FailureKind};
use serde_json::{Value, json};

use super::api::{Api, list, number, string};
use super::print_json;
use crate::cli::PurgeArgs;
use crate::{find, text};

/// The longest that control waits for confirmations.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Purges and says how far it got. A purge that not every edge has confirmed in time is a failure for whoever waits, though it
/// is accepted and comes to the others when control reaches them.
pub(crate) async fn run(arguments: PurgeArgs) -> Result<(), Failure> {
    if arguments.wait > WAIT_MAX {
        let message =
            format!("--wait is at most {} s; give a shorter one: edges that are not waited for purge all the same", WAIT_MAX.as_secs());
        return Err(Failure::new(FailureKind::Usage, message));
    }
    let fleet = find::fleet(arguments.fleet.fleet.as_deref())?;
    let scope = scope(&arguments);
    let token = find::token(arguments.token.token, &fleet)?;
    let body = json!({"scope": scope, "soft": arguments.soft, "wait_ms": arguments.wait.as_millis() as u64});
    let answer = Api::of(&fleet)?.post("/v1/purges", &token, &body, arguments.wait).await?;
    if arguments.json {
        print_json(&answer);
    } else {
        out!("{}", told(&answer, arguments.soft));
    }
    verdict(&answer, arguments.wait)
}

fn verdict(answer: &Value, wait: Duration) -> Result<(), Failure> {
    if answer["complete"] == true || wait.is_zero() {
        return Ok(());
    }
    let message = "not every edge has confirmed the purge; it is in the journal. An edge that is down folds it before it serves \
                   anything; one that runs but does not reach control serves what it has until it does";
    Err(Failure::new(FailureKind::Unavailable, message))
}

fn scope(arguments: &PurgeArgs) -> Value {
    let scopes = [
        ("url", &arguments.url),
        ("prefix", &arguments.prefix),
        ("host", &arguments.host),
        ("site", &arguments.site),
        ("tag", &arguments.tag),
    ];
    let given = scopes.iter().find_map(|(by, value)| value.as_ref().map(|v| json!({"by": by, "value": v})));
    given.unwrap_or_else(|| json!({"by": "all"}))
}

fn told(answer: &Value, soft: bool) -> String {
    let nodes = list(&answer["nodes"]);
    let responses = text::plural(number(&answer["responses"]) as usize, "response");
    let verb = if soft { "to be validated" } else { "forgotten" };
    let mut told = format!("revision {}: {responses} {verb} on {}", answer["revision"], text::plural(nodes.len(), "edge"));
    let took = number(&answer["completed_unix_ms"]) - number(&answer["accepted_unix_ms"]);
    if answer["complete"] == true {
        told.push_str(&format!("; complete after {:.0} ms\n", took.max(0.0)));
    } else {
        let missing: Vec<String> = list(&answer["missing"]).iter().map(string).collect();
        told.push_str(&format!("; not confirmed by {}\n", missing.join(", ")));
    }
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|n| {
            let after = number(&n["effective_unix_ms"]) - number(&answer["accepted_unix_ms"]);
            vec![string(&n["node"]), format!("{:.0}", number(&n["responses"])), format!("{:.0} ms", after.max(0.0))]
        })
        .collect();
    if !rows.is_empty() {
        told.push_str(&text::table(&["edge", ">responses", ">after"], &rows));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_told() {
        let mut answer = json!({
            "revision": 12, "accepted_unix_ms": 1000, "complete": true, "completed_unix_ms": 1093, "responses": 2,
            "nodes": [{"node": "ams-1", "responses": 2, "effective_unix_ms": 1050}], "missing": []
        });
        let whole = told(&answer, false);
        assert!(whole.starts_with("revision 12: 2 responses forgotten on 1 edge; complete after 93 ms\n"), "{whole}");
        assert!(whole.contains("ams-1          2  50 ms"), "{whole}");
        answer["complete"] = json!(false);
        answer["missing"] = json!(["nyc-2"]);
        assert!(told(&answer, true).contains("to be validated on 1 edge; not confirmed by nyc-2\n"));
    }

    #[test]
    fn who_waits_learns_whether_every_edge_has_confirmed() {
        for (complete, wait, good) in [(true, 5, true), (false, 5, false), (true, 0, true), (false, 0, true)] {
            let answer = json!({"complete": complete});
            assert_eq!(verdict(&answer, Duration::from_secs(wait)).is_ok(), good, "{complete} {wait}");
        }
    }
}
