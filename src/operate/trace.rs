//! `nearcast trace`.

use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::trace::is_id;
use serde_json::Value;

use super::api::{Api, list, number, string};
use super::print_json;
use crate::cli::TraceArgs;
use crate::find;

/// Shows what the edges have kept of one request.
pub(crate) async fn run(arguments: TraceArgs) -> Result<(), Failure> {
    let TraceArgs {
        id,
        ask,
        token,
        json,
    } = arguments;
    if !is_id(id.as_bytes()) {
        let shown: String = id.chars().take(80).collect();
        return Err(Failure::new(
            FailureKind::Usage,
            format!(
                "{shown:?} is not the id of a request; write one such as 0123456789abcdef01234567, from the access log (request_id), from \
                 X-Request-Id at the origin, or from the text of an error"
            ),
        ));
    }
    let fleet = find::fleet_to_ask(&ask)?;
    let token = find::token(token.token, &fleet)?;
    let path = format!("/v1/traces/{}", escaped(&id));
    let answer = Api::of(&fleet)?.get_with(&path, &token).await?;
    if json {
        print_json(&answer);
    } else {
        out!("{}", describe(&answer));
    }
    Ok(())
}

/// An id as a segment of a path: a token may have characters that a path may not.
fn escaped(id: &str) -> String {
    id.bytes().fold(String::new(), |mut path, byte| {
        match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            true => path.push(byte.into()),
            false => path.push_str(&format!("%{byte:02X}")),
        }
        path
    })
}

fn describe(answer: &Value) -> String {
    let mut text = String::new();
    for record in list(&answer["records"]) {
        text.push_str(&describe_record(record));
    }
    let silent: Vec<String> = list(&answer["silent"]).iter().map(string).collect();
    if !silent.is_empty() {
        text.push_str(&format!("no answer came from {}\n", silent.join(", ")));
    }
    text
}

fn describe_record(record: &Value) -> String {
    let text = |name: &str| string(&record[name]);
    let or = |name: &str, otherwise: &str| match text(name) {
        value if value.is_empty() => otherwise.to_owned(),
        value => value,
    };
    let time = jiff::Timestamp::from_millisecond(number(&record["time_unix_ms"]) as i64)
        .map_or_else(|_| String::new(), |time| format!("{time:.3}"));
    let mut lines = format!("{} ({})  {time}\n", text("node"), text("cluster"));
    let tls = match text("tls") {
        tls if tls.is_empty() => String::new(),
        tls => format!(", {tls}"),
    };
    let peer = match record["is_peer"] == true {
        true => ", a node of the cluster",
        false => "",
    };
    lines.push_str(&format!("  client   {}{peer}\n", text("client")));
    lines.push_str(&format!(
        "  request  {} {} on {} ({}{tls}), site {}\n",
        or("method", "-"),
        or("path", "-"),
        or("host", "-"),
        text("protocol"),
        or("site", "-")
    ));
    let ended = match &*text("ended") {
        "" => "",
        "client-left" => ", the client left early",
        _ => ", cut",
    };
    lines.push_str(&format!(
        "  answer   {}, {} bytes{ended}\n",
        number(&record["status"]),
        number(&record["bytes"])
    ));
    let mut cache = text("cache");
    for name in ["forward", "not_stored"] {
        let value = text(name);
        if !value.is_empty() {
            cache.push_str(&format!(", {} {value}", name.replace('_', " ")));
        }
    }
    lines.push_str(&format!("  cache    {cache}\n"));
    let origin = match record["origin_us"].as_f64() {
        Some(time) => format!(", of which the origin took {}", milliseconds(time)),
        None => String::new(),
    };
    lines.push_str(&format!(
        "  time     first byte after {}, end after {}{origin}\n",
        milliseconds(number(&record["first_byte_us"])),
        milliseconds(number(&record["total_us"]))
    ));
    lines
}

fn milliseconds(microseconds: f64) -> String {
    format!("{:.3} ms", microseconds / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The API's documented example: the text names its parts.
    #[test]
    fn the_documented_trace_is_described() {
        let documents = include_str!("../../control/API.md");
        let example = documents
            .split("```json trace\n")
            .nth(1)
            .and_then(|rest| rest.split("```").next())
            .expect("the example is there");
        let mut answer: Value = serde_json::from_str(example).expect("it is JSON");
        let words = describe(&answer);
        for expected in [
            "ams-1 (ams)  2026-06-01T00:00:09.000Z\n",
            "client   198.51.100.7\n",
            "GET /index.html on www.demo.test (HTTP/1.1), site www\n",
            "answer   200, 5120 bytes\n",
            "cache    miss, forward uri-miss\n",
            "first byte after 3.210 ms, end after 3.480 ms, of which the origin took 3.002 ms\n",
        ] {
            assert!(words.contains(expected), "{expected}: {words}");
        }
        assert!(!words.contains("no answer"), "{words}");

        answer["silent"] = serde_json::json!(["nyc-1", "sin-1"]);
        let record = &mut answer["records"][0];
        record["is_peer"] = true.into();
        record["ended"] = "client-left".into();
        record["tls"] = "TLSv1.3".into();
        let words = describe(&answer);
        for expected in [
            "no answer came from nyc-1, sin-1\n",
            "198.51.100.7, a node of the cluster\n",
            "(HTTP/1.1, TLSv1.3)",
            "the client left early\n",
        ] {
            assert!(words.contains(expected), "{expected}: {words}");
        }
    }

    #[test]
    fn an_id_is_one_segment_of_the_path() {
        assert_eq!(escaped("7f-._~"), "7f-._~");
        assert_eq!(escaped("a#b%c'"), "a%23b%25c%27");
    }
}
