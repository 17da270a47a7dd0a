//! The words of others in our messages: one line, bounded, without control characters.

use std::fmt::Write as _;

use instant_acme::{Identifier, Problem};

/// The most characters of a text by others.
const CHARACTERS_MAX: usize = 400;
/// The most problems of single names that are repeated.
const SUBPROBLEMS_MAX: usize = 5;
/// Begin of the type of a problem of ACME (RFC 8555 section 6.7).
const PREFIX: &str = "urn:ietf:params:acme:error:";

/// The text in one line of bounded length.
pub(crate) fn line(text: &str) -> String {
    let mut line = String::new();
    let mut characters = 0;
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        if word.is_empty() {
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
            characters += 1;
        }
        for c in word.chars() {
            if characters == CHARACTERS_MAX {
                line.push('…');
                return line;
            }
            // Marks that turn the direction of text around could change what a reader sees.
            let turns = matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            line.push(if turns { '?' } else { c });
            characters += 1;
        }
    }
    line
}

/// What a problem document says: the detail, then the type, then the same for single names.
pub(crate) fn of_problem(problem: &Problem) -> String {
    let mut said = of_parts(problem.detail.as_deref(), problem.r#type.as_deref());
    for sub in problem.subproblems.iter().take(SUBPROBLEMS_MAX) {
        let name = match &sub.identifier {
            Some(Identifier::Dns(name)) => line(name),
            Some(Identifier::Ip(address)) => address.to_string(),
            _ => "another name".to_owned(),
        };
        let of_name = of_parts(sub.detail.as_deref(), sub.r#type.as_deref());
        let _ = write!(said, "; {name}: {of_name}");
    }
    said
}

fn of_parts(detail: Option<&str>, kind: Option<&str>) -> String {
    let kind = kind.map(|kind| line(kind.strip_prefix(PREFIX).unwrap_or(kind)));
    match (detail.map(line), kind) {
        (Some(detail), Some(kind)) => format!("{detail} ({kind})"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => "it gives no reason".to_owned(),
    }
}

/// The type of a problem without its prefix; empty for one that is not of ACME.
pub(crate) fn kind(problem: &Problem) -> &str {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    kind.strip_prefix(PREFIX).unwrap_or_default()
}

/// A time as people read it, in UTC.
pub(crate) fn time(unix_s: i64) -> String {
    match jiff::Timestamp::from_second(unix_s) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        Err(_) => format!("{unix_s} s"),
    }
}

/// A span as people read it: its largest unit.
pub(crate) fn span(s: u64) -> String {
    let (n, unit) = match s {
        0..120 => (s, "second"),
        120..7200 => (s / 60, "minute"),
        7200..172_800 => (s / 3600, "hour"),
        _ => (s / 86_400, "day"),
    };
    format!("{n} {unit}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_others_are_one_bounded_line() {
        for (text, expected) in [
            ("as it is", "as it is"),
            ("a\r\nb\u{1b}[31mc\0", "a b [31mc"),
            ("  much   space ", "much space"),
            ("\u{202e}turned", "?turned"),
            ("", ""),
        ] {
            assert_eq!(line(text), expected, "{text:?}");
        }
        assert_eq!(line(&"ä".repeat(9999)).chars().count(), CHARACTERS_MAX + 1);
    }

    #[test]
    fn a_problem_is_told_with_its_names() {
        let problem: Problem = serde_json::from_str(
            r#"{"type":"urn:ietf:params:acme:error:malformed","detail":"Some were rejected",
                "subproblems":[{"type":"urn:ietf:params:acme:error:caa","detail":"CAA forbids",
                "identifier":{"type":"dns","value":"a.test"}}]}"#,
        )
        .unwrap();
        assert_eq!(
            of_problem(&problem),
            "Some were rejected (malformed); a.test: CAA forbids (caa)"
        );
        assert_eq!(kind(&problem), "malformed");
    }

    #[test]
    fn spans_have_their_largest_unit() {
        for (s, expected) in [
            (1, "1 second"),
            (119, "119 seconds"),
            (600, "10 minutes"),
            (86_400, "24 hours"),
            (172_800, "2 days"),
        ] {
            assert_eq!(span(s), expected);
        }
    }
}
