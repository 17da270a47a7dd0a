//! `nearcast certificates`.

use std::time::{Duration, SystemTime};

use nearcast_fleet::failure::{Failure, FailureKind};
use serde_json::{Value, json};

use super::api::{Api, list, string};
use super::print_json;
use crate::cli::CertificatesArgs;
use crate::text::Table;
use crate::{find, text};

/// Time for control to begin an order.
const RENEW_TIME: Duration = Duration::from_secs(5);

/// Shows the certificates that control orders, or has it order one now.
pub(crate) async fn run(arguments: CertificatesArgs) -> Result<(), Failure> {
    let fleet = find::fleet_to_ask(&arguments.ask)?;
    let api = Api::of(&fleet)?;
    if let Some(name) = &arguments.renew {
        let token = find::token(arguments.token.token, &fleet)?;
        let answer = api
            .post(
                "/v1/certificates/renew",
                &token,
                &json!({ "name": name }),
                RENEW_TIME,
            )
            .await?;
        match arguments.json {
            true => print_json(&answer),
            false => out!("{}", ordered(name, &string(&answer["name"]))),
        }
        return Ok(());
    }
    let answer = api.get("/v1/certificates").await?;
    if arguments.json {
        print_json(&answer);
    } else {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now_unix_s = now.map_or(0, |now| now.as_secs() as i64);
        out!("{}", describe(&answer, now_unix_s, text::terminal_width()));
    }
    verdict(&answer)
}

/// What is ordered for a name that was asked for.
fn ordered(asked: &str, certificate: &str) -> String {
    let which = match asked.eq_ignore_ascii_case(certificate) {
        true => String::new(),
        false => format!(", which has {asked},"),
    };
    format!("{certificate}{which} is ordered now; `nearcast certificates` shows how it goes\n")
}

fn describe(answer: &Value, now_unix_s: i64, width: usize) -> String {
    if answer["acme"] != true {
        return text::wrapped(
            "The fleet file has no [acme], so control orders no certificates: edges show those that [[certificate]] names. \
             The demo makes its own, as no authority can see it. docs/certificates.md says how control orders them.",
            width,
        );
    }
    let rows: Vec<Vec<String>> = list(&answer["certificates"])
        .iter()
        .map(|one| row(one, now_unix_s))
        .collect();
    let table = Table {
        heading: &[
            "certificate",
            "state",
            "authority",
            "valid for",
            "next order",
            "challenge",
            "last error",
        ],
        rows: &rows,
        remark: Some("last error"),
        optional: &["challenge", "next order", "authority"],
    };
    let mut told = String::new();
    if rows.is_empty() {
        told.push_str("No host of a site needs a certificate.\n");
    } else {
        told.push_str(&table.fit(width));
    }
    if let Some(problem) = answer["problem"].as_str() {
        told.push_str(&text::wrapped(&format!("warning: {problem}"), width));
    }
    told
}

fn row(one: &Value, now_unix_s: i64) -> Vec<String> {
    let hosts = list(&one["hosts"]);
    let name = match hosts.len() {
        0 | 1 => string(&one["name"]),
        more => format!("{} (+{})", string(&one["name"]), more - 1),
    };
    let left = |end: &Value| end.as_i64().map(|end| end - now_unix_s);
    let valid = left(&one["not_after_unix_s"]);
    let error = &one["last_error"];
    vec![
        name,
        state(one, valid).to_owned(),
        one["authority"].as_str().unwrap_or_default().to_owned(),
        valid.map_or_else(String::new, |s| span(s.max(0))),
        match left(&one["next_order_unix_s"]) {
            Some(s) if s > 0 => format!("in {}", span(s)),
            Some(_) => "now".to_owned(),
            None => String::new(),
        },
        string(&one["challenge"]),
        match error["reason"].as_str() {
            // An error of before the last success is history.
            Some(reason) if one["failures"] != 0 => {
                // Most reasons name the authority themselves.
                let authority = error["authority"].as_str();
                let authority = authority.filter(|name| !reason.contains(name));
                authority.map_or_else(String::new, |name| format!("{name}: ")) + reason
            }
            _ => String::new(),
        },
    ]
}

fn state(one: &Value, valid: Option<i64>) -> &'static str {
    let failed = one["failures"] != 0;
    match (valid, one["ordering"] == true) {
        (_, true) => "ordering",
        (Some(..=0), _) => "expired",
        (Some(_), _) if failed => "valid, not renewed",
        (Some(_), _) => "valid",
        (None, _) if failed => "failed",
        (None, _) => "waiting",
    }
}

/// `85 d`, `5 h`, `12 min`, `30 s`.
fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Whether a host is without a certificate because orders fail.
fn verdict(answer: &Value) -> Result<(), Failure> {
    let is_lacking = |one: &&Value| one["not_after_unix_s"].is_null() && one["failures"] != 0;
    let lacking = list(&answer["certificates"])
        .iter()
        .filter(is_lacking)
        .count();
    if lacking == 0 {
        return Ok(());
    }
    let message = format!(
        "{} cannot be obtained; see the last error",
        text::plural(lacking, "certificate")
    );
    Err(Failure::new(FailureKind::Unavailable, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The API's documented example.
    fn documented() -> Value {
        let documents = include_str!("../../control/API.md");
        let example = documents
            .split("```json certificates\n")
            .nth(1)
            .and_then(|rest| rest.split("```").next())
            .expect("the example is there");
        serde_json::from_str(example).expect("it is JSON")
    }

    #[test]
    fn what_is_ordered_is_named_as_it_is_listed() {
        assert!(ordered("a.test", "a.test").starts_with("a.test is ordered now;"));
        assert!(
            ordered("example.org", "*.example.org")
                .starts_with("*.example.org, which has example.org, is ordered now;")
        );
    }

    #[test]
    fn the_documented_certificates_are_described() {
        let mut answer = documented();
        let told = describe(&answer, 1_780_272_009, 300);
        for words in [
            "*.example.org (+1)  valid",
            "letsencrypt",
            "60 d",
            "www.example.net",
            "failed",
            "www.example.net leads to 203.0.113.9",
        ] {
            assert!(told.contains(words), "{words}:\n{told}");
        }
        let failure = verdict(&answer).expect_err("one is lacking");
        assert!(
            failure.message.starts_with("1 certificate cannot"),
            "{failure}"
        );
        answer["certificates"][1]["failures"] = json!(0);
        verdict(&answer).expect("none failed");
        let told = describe(&json!({ "acme": false }), 0, 300);
        assert!(
            told.contains("no [acme]") && told.contains("demo"),
            "{told}"
        );
    }

    #[test]
    fn states_are_of_what_clients_get() {
        for (valid, ordering, failures, expected) in [
            (None, false, 0, "waiting"),
            (None, true, 0, "ordering"),
            (None, false, 2, "failed"),
            (Some(60), false, 0, "valid"),
            (Some(60), true, 1, "ordering"),
            (Some(60), false, 1, "valid, not renewed"),
            (Some(0), false, 1, "expired"),
        ] {
            let one = json!({ "ordering": ordering, "failures": failures });
            assert_eq!(state(&one, valid), expected, "{valid:?} {one}");
        }
    }
}
