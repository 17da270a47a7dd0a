//! `nearcast purge`.

use std::io::{BufRead, IsTerminal as _, Write};
use std::time::Duration;

use nearcast_fleet::change::PurgeScope;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::scope;
use serde_json::{Value, json};

use super::api::{Api, list, number, string};
use super::print_json;
use crate::cli::PurgeArgs;
use crate::text::Table;
use crate::{find, text};

/// The longest that control waits for confirmations.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Bytes of an answer to a question that are read.
const REPLY_BYTES_MAX: u64 = 1024;

/// Purges, and reports which edges have confirmed. Without all confirmations in time the command
/// fails, although control has accepted the purge and the other edges get it later.
pub(crate) async fn run(arguments: PurgeArgs) -> Result<(), Failure> {
    if arguments.wait > WAIT_MAX {
        let message = format!(
            "--wait is at most {} s; give a shorter one: edges that are not waited for purge all the same",
            WAIT_MAX.as_secs()
        );
        return Err(Failure::new(FailureKind::Usage, message));
    }
    let scopes = scopes(&arguments);
    check(&scopes)?;
    if arguments.all && !arguments.yes && !std::io::stdin().is_terminal() {
        let message = "a purge of everything needs confirmation, and there is no terminal for it: give --yes to purge";
        return Err(Failure::new(FailureKind::Usage, message));
    }
    let fleet = find::fleet_to_ask(&arguments.ask)?;
    if arguments.all && !arguments.yes {
        confirm(
            &fleet,
            &mut std::io::stdin().lock(),
            &mut std::io::stderr().lock(),
        )?;
    }
    let token = find::token(arguments.token.token, &fleet)?;
    let mut body = json!({"soft": arguments.soft, "wait_ms": arguments.wait.as_millis() as u64});
    // A single scope in the form that earlier versions of control accept.
    match &scopes[..] {
        [one] => body["scope"] = json!(one),
        several => body["scopes"] = json!(several),
    }
    let answer = Api::of(&fleet)?
        .post("/v1/purges", &token, &body, arguments.wait)
        .await?;
    if arguments.json {
        print_json(&answer);
    } else {
        let words = summary(&answer, arguments.soft, arguments.wait);
        out!("{}", text::wrapped(&words, text::terminal_width()));
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

fn scopes(arguments: &PurgeArgs) -> Vec<PurgeScope> {
    let mut scopes = Vec::new();
    let mut add = |values: &[String], named: fn(String) -> PurgeScope| {
        scopes.extend(values.iter().cloned().map(named))
    };
    add(&arguments.url, PurgeScope::Url);
    add(&arguments.prefix, PurgeScope::Prefix);
    add(&arguments.host, PurgeScope::Host);
    add(&arguments.site, PurgeScope::Site);
    add(&arguments.tag, PurgeScope::Tag);
    if arguments.all {
        scopes.push(PurgeScope::All);
    }
    scopes
}

/// Refuses scopes that control would refuse, before the confirmation, and names the argument.
fn check(scopes: &[PurgeScope]) -> Result<(), Failure> {
    let usage =
        |message: String| Failure::new(FailureKind::Usage, message + "; nothing was purged");
    for one in scopes {
        let argument = match one {
            PurgeScope::Url(_) => "--url",
            PurgeScope::Prefix(_) => "--prefix",
            PurgeScope::Host(_) => "--host",
            PurgeScope::Site(_) => "--site",
            _ => "--tag",
        };
        scope::canonical(one).map_err(|error| usage(format!("{argument}: {error}")))?;
    }
    scope::any_of(scopes)
        .map(drop)
        .map_err(|error| usage(error.to_string()))
}

/// Asks for confirmation of a purge of everything.
fn confirm(
    fleet: &Fleet,
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> Result<(), Failure> {
    let edges = fleet.clusters.iter().map(|c| c.nodes.len()).sum();
    let sites: Vec<&str> = fleet.sites.iter().map(|s| s.name.as_str()).collect();
    let question = format!(
        "This purges everything that {} of {} {}: {}. Every request then goes to the origins until it is stored again.\nType the zone's name, {}, to go on: ",
        text::plural(edges, "edge"),
        fleet.zone,
        if edges == 1 { "stores" } else { "store" },
        sites.join(", "),
        fleet.zone
    );
    let asked = output
        .write_all(question.as_bytes())
        .and_then(|()| output.flush());
    let mut reply = String::new();
    let read =
        asked.and_then(|()| std::io::Read::take(input, REPLY_BYTES_MAX).read_line(&mut reply));
    if read.is_ok() && reply.trim() == fleet.zone {
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::Usage,
        "not confirmed; nothing was purged",
    ))
}

fn summary(answer: &Value, soft: bool, wait: Duration) -> String {
    let nodes = list(&answer["nodes"]);
    let revision = &answer["revision"];
    let is_complete = answer["complete"] == true;
    let missing: Vec<String> = list(&answer["missing"]).iter().map(string).collect();
    let silent: Vec<String> = list(&answer["silent"]).iter().map(string).collect();
    if wait.is_zero() && !is_complete {
        let mut text = format!(
            "accepted as revision {revision}; not waited for: edges purge it as they follow the journal\n"
        );
        push_notes(answer, &mut text);
        return text;
    }
    let count = number(&answer["responses"]) as usize;
    let responses = text::plural(count, "response");
    // An edge does not read all that it has on disk to count it.
    let least = if answer["at_least"] == true {
        "at least "
    } else {
        ""
    };
    let verb = if soft { "to be validated" } else { "forgotten" };
    let edges = text::plural(nodes.len(), "edge");
    let mut text = match (nodes.len(), count) {
        (0, _) => format!("revision {revision}: accepted, and no edge has confirmed it"),
        (_, 0) if least.is_empty() => {
            format!("revision {revision}: nothing that it covers was stored on {edges}")
        }
        _ => format!("revision {revision}: {least}{responses} {verb} on {edges}"),
    };
    let took = number(&answer["completed_unix_ms"]) - number(&answer["accepted_unix_ms"]);
    if is_complete {
        text.push_str(&format!("; complete after {:.0} ms\n", took.max(0.0)));
    } else if missing.is_empty() {
        text.push_str("; the fleet has no edges\n");
    } else {
        let named: Vec<String> = missing
            .iter()
            .map(|name| {
                if silent.contains(name) {
                    format!("{name} (silent)")
                } else {
                    name.clone()
                }
            })
            .collect();
        text.push_str(&format!("; not confirmed by {}\n", named.join(", ")));
    }
    if count == 0 && least.is_empty() {
        push_notes(answer, &mut text);
    }
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|n| {
            let after = number(&n["effective_unix_ms"]) - number(&answer["accepted_unix_ms"]);
            vec![
                string(&n["node"]),
                format!(
                    "{}{:.0}",
                    if n["at_least"] == true { "≥ " } else { "" },
                    number(&n["responses"])
                ),
                format!("{:.0} ms", after.max(0.0)),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let table = Table {
            heading: &["edge", ">responses", ">after"],
            rows: &rows,
            ..Table::default()
        };
        text.push_str(&table.fit(usize::MAX));
    }
    text
}

fn push_notes(answer: &Value, text: &mut String) {
    for note in list(&answer["notes"]) {
        text.push_str(&format!("note: {}\n", string(note)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(5);

    #[test]
    fn what_happened_is_described() {
        let mut answer = json!({
            "revision": 12, "accepted_unix_ms": 1000, "complete": true, "completed_unix_ms": 1093, "responses": 2,
            "nodes": [{"node": "ams-1", "responses": 2, "effective_unix_ms": 1050}], "missing": []
        });
        let whole = summary(&answer, false, WAIT);
        assert!(
            whole.starts_with(
                "revision 12: 2 responses forgotten on 1 edge; complete after 93 ms\n"
            ),
            "{whole}"
        );
        assert!(whole.contains("ams-1          2  50 ms"), "{whole}");
        answer["complete"] = json!(false);
        answer["missing"] = json!(["nyc-2"]);
        assert!(
            summary(&answer, true, WAIT)
                .contains("to be validated on 1 edge; not confirmed by nyc-2\n")
        );
    }

    #[test]
    fn a_count_that_may_be_too_small_says_so() {
        let answer = json!({
            "revision": 12, "accepted_unix_ms": 1000, "complete": true, "completed_unix_ms": 1093,
            "responses": 0, "at_least": true, "missing": [], "notes": ["odd"],
            "nodes": [{"node": "ams-1", "responses": 0, "at_least": true, "effective_unix_ms": 1050}]
        });
        let whole = summary(&answer, false, WAIT);
        assert!(
            whole.starts_with("revision 12: at least 0 responses forgotten on 1 edge; complete"),
            "{whole}"
        );
        assert!(whole.contains("ams-1        ≥ 0  50 ms"), "{whole}");
        assert!(
            !whole.contains("odd"),
            "a note explains why nothing is covered"
        );
    }

    #[test]
    fn a_purge_that_covered_nothing_or_was_not_waited_for_says_so() {
        let none = json!([]);
        let one = json!([{"node": "ams-1", "responses": 0, "effective_unix_ms": 1050}]);
        let table = [
            (
                true,
                &one,
                json!([]),
                json!([]),
                5,
                "revision 7: nothing that it covers was stored on 1 edge; complete after 93 ms\nnote: odd\n",
            ),
            (
                false,
                &one,
                json!(["b"]),
                json!([]),
                5,
                "revision 7: nothing that it covers was stored on 1 edge; not confirmed by b\n",
            ),
            (
                false,
                &none,
                json!(["a", "b"]),
                json!(["b"]),
                5,
                "revision 7: accepted, and no edge has confirmed it; not confirmed by a, b (silent)\n",
            ),
            (
                false,
                &none,
                json!([]),
                json!([]),
                5,
                "revision 7: accepted, and no edge has confirmed it; the fleet has no edges\n",
            ),
            (
                false,
                &none,
                json!(["a"]),
                json!([]),
                0,
                "accepted as revision 7; not waited for: edges purge it as they follow the journal\nnote: odd\n",
            ),
            (
                true,
                &one,
                json!([]),
                json!([]),
                0,
                "revision 7: nothing that it covers was stored on 1 edge; complete",
            ),
        ];
        for (complete, nodes, missing, silent, wait, expected) in table {
            let answer = json!({
                "revision": 7, "accepted_unix_ms": 1000, "complete": complete, "completed_unix_ms": 1093, "responses": 0,
                "nodes": nodes, "missing": missing, "silent": silent, "notes": ["odd"]
            });
            let text = summary(&answer, false, Duration::from_secs(wait));
            assert!(text.starts_with(expected), "{text}");
            assert!(
                !text.contains("0 responses") && !text.contains("0 edges"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_cannot_be_purged_is_refused_before_anybody_is_asked() {
        let s = str::to_owned;
        let table = [
            (PurgeScope::Url(s("/news")), "--url: "),
            (PurgeScope::Url(s("http://a.test/100%")), "%25"),
            (PurgeScope::Prefix(s("http://a.te")), "--prefix: "),
            (PurgeScope::Prefix(s("http://a.test/*/x")), "not at its end"),
            (PurgeScope::Host(s("http://a.test/")), "--host: "),
            (PurgeScope::Site(s("")), "--site: "),
            (PurgeScope::Tag(s("")), "--tag: "),
            (PurgeScope::Tag("x".repeat(2000)), "1024 bytes"),
        ];
        let good = PurgeScope::Tag(s("good"));
        for (scope, words) in table {
            let failure = check(&[good.clone(), scope]).expect_err(words);
            assert!(
                failure.kind == FailureKind::Usage && failure.message.contains(words),
                "{words}: {failure}"
            );
        }
        assert!(
            check(&vec![good.clone(); scope::SCOPES_MAX + 1])
                .is_err_and(|f| f.message.contains("at most 256"))
        );
        assert!(check(&[good]).is_ok() && check(&[PurgeScope::All]).is_ok());
    }

    #[test]
    fn everything_goes_only_when_the_zone_is_typed() {
        let edge = nearcast_fleet::file::StandaloneEdge {
            listen: vec![([127, 0, 0, 1], 80).into()],
            listen_tls: Vec::new(),
            certificates: Vec::new(),
            ordered: nearcast_fleet::file::StandaloneAcme::default(),
            origin: "http://o".into(),
            state_dir: std::path::PathBuf::new(),
            memory: nearcast_fleet::units::Bytes(1 << 20),
            disk: nearcast_fleet::units::Bytes(0),
            cache: nearcast_fleet::config::CachePolicy::default(),
        };
        let fleet = nearcast_fleet::file::standalone_edge(edge);
        let fleet = Fleet {
            zone: "cdn.test".into(),
            ..fleet.expect("a fleet")
        };
        for (reply, is_good) in [
            ("cdn.test\n", true),
            (" cdn.test", true),
            ("y\n", false),
            ("\n", false),
            ("", false),
            ("cdn.tes\n", false),
        ] {
            let mut asked = Vec::new();
            let found = confirm(&fleet, &mut reply.as_bytes(), &mut asked);
            assert_eq!(found.is_ok(), is_good, "{reply:?}");
            let asked = String::from_utf8(asked).expect("text");
            assert!(
                asked.contains("1 edge of cdn.test stores: site."),
                "{asked}"
            );
        }
    }

    #[test]
    fn who_waits_learns_whether_every_edge_has_confirmed() {
        for (complete, wait, good) in [
            (true, 5, true),
            (false, 5, false),
            (true, 0, true),
            (false, 0, true),
        ] {
            let answer = json!({"complete": complete});
            assert_eq!(
                verdict(&answer, Duration::from_secs(wait)).is_ok(),
                good,
                "{complete} {wait}"
            );
        }
    }
}
