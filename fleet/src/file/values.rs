//! Readers of single values that several sections share: names, paths, URLs, references.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::names;
use super::reader::{Section, Text, nearest};

/// One day.
pub(super) const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn check_label(text: &Text<'_>) -> bool {
    let good = names::is_label(text.text);
    if !good {
        text.note(
            format!("{:?} cannot be a name", text.text),
            "use up to 63 lower-case letters, digits and -, such as \"ams-1\"",
        );
    }
    good
}

pub(super) fn host_name(text: &Text<'_>) -> String {
    let host = names::normal(text.text);
    if let Some(problem) = names::host_problem(&host) {
        text.note(
            format!("{:?} is not a host name: {problem}", text.text),
            "write a name such as \"www.example.org\", without scheme, port and path",
        );
    }
    host
}

pub(super) fn zone_name(text: &Text<'_>, or_root: bool) -> Option<String> {
    let zone = names::normal(text.text);
    if or_root && text.text == "." {
        return Some(zone);
    }
    match names::host_problem(&zone) {
        None => Some(zone),
        Some(problem) => {
            text.note(
                format!("{:?} is not a zone name: {problem}", text.text),
                "write a domain name such as \"example.org\"",
            );
            None
        }
    }
}

pub(super) fn path(text: &Text<'_>, base: &Path) -> PathBuf {
    if text.text.is_empty() {
        text.note(
            "the path is empty",
            "write a path, from the fleet file's directory or absolute",
        );
    }
    // As components: `.` is left out.
    base.join(text.text).components().collect()
}

pub(super) fn url(text: &Text<'_>, schemes: &[&str]) -> String {
    names::base_url(text.text, schemes).unwrap_or_else(|problem| {
        let forms: Vec<String> = schemes
            .iter()
            .map(|s| format!("{s}://host[:port]"))
            .collect();
        text.note(
            format!("{:?} cannot be used: {problem}", text.text),
            format!("write {} and nothing more", forms.join(" or ")),
        );
        String::new()
    })
}

/// Registry by which a listener may be asked, see [`crate::own_names`].
pub(super) fn check_own_names(section: &Section<'_>, key: &'static str) -> Vec<String> {
    let check = |text: Text<'_>| match text.text {
        "*" => "*".to_owned(),
        written => {
            let name = names::normal(written.strip_prefix("*.").unwrap_or(written));
            if let Some(problem) = names::host_problem(&name) {
                text.note(
                    format!("{written:?} is no host name: {problem}"),
                    "write a name without a port, *.NAME for all below it, or *",
                );
            }
            if written.starts_with("*.") {
                format!("*.{name}")
            } else {
                name
            }
        }
    };
    section
        .texts(key)
        .unwrap_or_default()
        .into_iter()
        .map(check)
        .collect()
}

pub(super) fn need_socket(section: &Section<'_>, key: &'static str, example: &str) -> SocketAddr {
    if !section.has(key) {
        section.note_missing(key, example);
    }
    section
        .socket(key)
        .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)))
}

/// A URL that other nodes use; by default the listener's, if that has an address.
pub(super) fn reachable_url(
    section: &Section<'_>,
    key: &'static str,
    listen: SocketAddr,
    listen_key: &str,
) -> String {
    if let Some(text) = section.text(key) {
        return url(&text, &["http"]);
    }
    if listen.ip().is_unspecified() && !section.has(key) {
        let problem = format!(
            "{}: this setting is required, as {listen_key} is {listen}, every address",
            section.path_of(key)
        );
        section.mistakes.note(
            section.at,
            problem,
            format!(
                "add {key} = \"http://host:{}\", by which other nodes reach it",
                listen.port()
            ),
        );
    }
    format!("http://{listen}")
}

pub(super) fn unique<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    values.for_each(|v| {
        if !seen.contains(&v) {
            seen.push(v)
        }
    });
    seen
}

/// A list of references that is no longer than this is looked up name by name.
const SHORT_LIST: usize = 16;

/// Indexes of the things that a list names; all of them without a list.
pub(super) fn references<T>(
    section: &Section<'_>,
    key: &'static str,
    things: &[T],
    name: impl Fn(&T) -> &String,
    what: &str,
) -> Vec<usize> {
    let Some(texts) = section.texts(key) else {
        return (0..things.len()).collect();
    };
    let names: Vec<&String> = things.iter().map(&name).collect();
    // Most lists are short, and there are many of them.
    let numbers: Option<HashMap<&str, usize>> = (texts.len() > SHORT_LIST).then(|| {
        names
            .iter()
            .enumerate()
            .rev()
            .map(|(number, name)| (name.as_str(), number))
            .collect()
    });
    let number_of = |text: &str| match &numbers {
        Some(numbers) => numbers.get(text).copied(),
        None => names.iter().position(|n| *n == text),
    };
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    if texts.is_empty() {
        section.mistakes.note(
            section.at_of(key),
            format!("{}: the list is empty", section.path_of(key)),
            format!("name at least one {what}, or leave {key} out for all"),
        );
    }
    for text in texts {
        match number_of(text.text) {
            Some(index) if !seen.insert(index) => {
                text.note(format!("{:?} is there twice", text.text), "remove one")
            }
            Some(index) => found.push(index),
            None if names.is_empty() => text.note(
                format!("there is no {what} {:?}; there is none at all", text.text),
                format!("add a [[{}]] of that name", what.replace(' ', "_")),
            ),
            None => {
                let near = nearest(text.text, &names)
                    .map_or_else(String::new, |n| format!("did you mean {n:?}? "));
                let all: Vec<String> = names.iter().map(|n| format!("{n:?}")).collect();
                text.note(
                    format!("there is no {what} {:?}", text.text),
                    format!("{near}there is {}", all.join(", ")),
                );
            }
        }
    }
    found
}
