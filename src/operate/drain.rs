//! `nearcast drain` and `nearcast undrain`.

use std::time::Duration;

use nearcast_fleet::failure::{Failure, FailureKind};
use serde_json::{Value, json};

use super::api::{Api, list, number, string};
use super::print_json;
use crate::cli::{DrainArgs, DrainTargetArgs};
use crate::{find, text};

/// The longest that control waits for name servers.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Steers clients away from an edge or a cluster.
pub(crate) async fn drain(arguments: DrainArgs) -> Result<(), Failure> {
    run(arguments.target, true, arguments.force).await
}

/// Returns an edge or a cluster to service.
pub(crate) async fn undrain(arguments: DrainTargetArgs) -> Result<(), Failure> {
    run(arguments, false, false).await
}

async fn run(arguments: DrainTargetArgs, drained: bool, force: bool) -> Result<(), Failure> {
    let DrainTargetArgs {
        name,
        kind,
        wait,
        ask,
        token,
        json,
    } = arguments;
    if wait > WAIT_MAX {
        let message = format!(
            "--wait is at most {} s; name servers that are not waited for see the change all the same",
            WAIT_MAX.as_secs()
        );
        return Err(Failure::new(FailureKind::Usage, message));
    }
    let fleet = find::fleet_to_ask(&ask)?;
    let token = find::token(token.token, &fleet)?;
    let mut body = json!({"name": name, "drained": drained, "force": force, "wait_ms": wait.as_millis() as u64});
    if let Some(kind) = kind {
        body["kind"] = json!(kind);
    }
    let answer = Api::of(&fleet)?
        .post("/v1/drains", &token, &body, wait)
        .await?;
    if json {
        print_json(&answer);
    } else {
        out!(
            "{}",
            text::wrapped(&describe(&answer), text::terminal_width())
        );
    }
    verdict(&answer, wait)
}

fn describe(answer: &Value) -> String {
    let names = |key: &str| list(&answer[key]).iter().map(string).collect::<Vec<_>>();
    let (drained, changed) = (answer["drained"] == true, answer["changed"] == true);
    let state = match (drained, changed) {
        (true, true) => "is drained",
        (true, false) => "is drained already",
        (false, true) => "is back in service",
        (false, false) => "is in service already",
    };
    let mut text = format!(
        "{} {} {state}",
        string(&answer["kind"]),
        string(&answer["name"])
    );
    if answer["kind"] == "cluster" {
        text.push_str(&format!(" ({})", names("nodes").join(", ")));
    }
    text.push('\n');
    let (seen, missing, silent) = (names("seen"), names("missing"), names("silent"));
    if !seen.is_empty() {
        text.push_str(&format!("seen by {}\n", seen.join(", ")));
    }
    for (names, words) in [
        (&missing, "not seen yet by"),
        (&silent, "no report came lately, so nothing is known, of"),
    ] {
        if !names.is_empty() {
            text.push_str(&format!("{words} {}\n", names.join(", ")));
        }
    }
    if drained {
        text.push_str(&format!(
            "resolvers may still send clients there for {:.0} s (the TTL); the edge still serves them. The drain stays over restarts, until `nearcast undrain {}`\n",
            number(&answer["ttl_seconds"]),
            string(&answer["name"]),
        ));
    }
    let without = names("sites_without_nodes");
    if !without.is_empty() {
        text.push_str(&format!(
            "no edge is in service for {}: its clients are given drained edges all the same\n",
            without.join(", ")
        ));
    }
    for note in names("notes")
        .iter()
        .filter(|note| !note.ends_with(" already"))
    {
        text.push_str(&format!("{note}\n"));
    }
    text
}

fn verdict(answer: &Value, wait: Duration) -> Result<(), Failure> {
    let is_known_of_all = list(&answer["silent"]).is_empty();
    if (answer["complete"] == true && is_known_of_all) || wait.is_zero() {
        return Ok(());
    }
    let message = "not every name server has seen the change in time; it is in the journal, and comes to the others when they reach control";
    Err(Failure::new(FailureKind::Unavailable, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The API's documented example: the text names its parts.
    #[test]
    fn the_documented_drain_is_described() {
        let documents = include_str!("../../control/API.md");
        let example = documents
            .split("```json drain\n")
            .nth(1)
            .and_then(|rest| rest.split("```").next())
            .expect("the example is there");
        let answer: Value = serde_json::from_str(example).expect("it is JSON");
        let drained = describe(&answer);
        for words in [
            "cluster ams is drained (ams-1, ams-2)",
            "seen by ns1",
            "20 s (the TTL)",
            "nearcast undrain ams",
        ] {
            assert!(drained.contains(words), "{words}: {drained}");
        }
        verdict(&answer, Duration::from_secs(1)).expect("everybody has seen it");
    }

    #[test]
    fn what_is_not_seen_is_said_and_fails() {
        let answer = json!({
            "name": "ams-1", "kind": "node", "drained": true, "changed": false, "ttl_seconds": 5, "seen": [], "missing": ["ns1"],
            "silent": ["ns2"], "complete": false, "sites_without_nodes": ["www"], "notes": ["ams-1 is drained already"],
        });
        let words = describe(&answer);
        for expected in [
            "node ams-1 is drained already\n",
            "not seen yet by ns1",
            "nothing is known, of ns2",
            "no edge is in service for www",
        ] {
            assert!(words.contains(expected), "{expected}: {words}");
        }
        assert_eq!(
            verdict(&answer, Duration::from_secs(1))
                .expect_err("one is missing")
                .kind,
            FailureKind::Unavailable
        );
        let silent = json!({"seen": ["ns1"], "missing": [], "silent": ["ns2"], "complete": true});
        assert_eq!(
            verdict(&silent, Duration::from_secs(1))
                .expect_err("one is silent")
                .kind,
            FailureKind::Unavailable
        );
        verdict(&answer, Duration::ZERO).expect("nobody was waited for");
    }
}
