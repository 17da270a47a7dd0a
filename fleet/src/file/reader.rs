//! Readers of a parsed TOML document that keep every position: sections, their known settings,
//! typed values.
//!
//! Every reader returns a value in any case, a stand-in where it noted a mistake, so that one pass
//! finds all mistakes. Knows TOML and units, not the meaning of settings.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistakes::Mistakes;
use super::settings::Settings;
use crate::units::{self, Bytes, UnitError};
use nearcast_net::address;

/// Most entries of a list.
const LIST_MAX: usize = 100_000;

/// A table of the file.
#[derive(Clone)]
pub(super) struct Section<'a> {
    pub(super) mistakes: &'a Mistakes<'a>,
    table: Option<&'a DeTable<'a>>,
    settings: Settings,
    /// Dotted path (`cluster[1].node[0]`); empty for the whole file.
    pub(super) path: String,
    /// Byte at which it starts.
    pub(super) at: usize,
}

/// A value with its position.
#[derive(Clone)]
pub(super) struct Item<'a> {
    mistakes: &'a Mistakes<'a>,
    value: &'a DeValue<'a>,
    /// Dotted path of the setting.
    pub(super) path: String,
    /// Byte at which it starts.
    pub(super) at: usize,
}

/// A string with its position.
#[derive(Clone)]
pub(super) struct Text<'a> {
    mistakes: &'a Mistakes<'a>,
    pub(super) text: &'a str,
    pub(super) path: String,
    pub(super) at: usize,
}

impl<'a> Section<'a> {
    /// The whole file; notes unknown sections.
    pub(super) fn root(
        mistakes: &'a Mistakes<'a>,
        table: &'a DeTable<'a>,
        settings: Settings,
    ) -> Self {
        let section = Self {
            mistakes,
            table: Some(table),
            settings,
            path: String::new(),
            at: 0,
        };
        section.note_unknown();
        section
    }

    fn note_unknown(&self) {
        for key in self.table.iter().flat_map(|t| t.keys()) {
            let (name, at): (&str, usize) = (key.get_ref(), key.span().start);
            if self.settings.names.contains(&name) {
                continue;
            }
            let known = self.settings.names.join(", ");
            match self.settings.present_name(name) {
                // A former name alone works; `renamed_settings` warns of it.
                Some(present) if !self.has_written(present) => {}
                Some(present) => self.mistakes.note(
                    at,
                    format!(
                        "{}: this is the former name of {present}, which is set as well",
                        self.path_of(name)
                    ),
                    format!("remove {name}"),
                ),
                None => self.mistakes.note(
                    at,
                    format!("{}: there is no such setting", self.path_of(name)),
                    match nearest(name, self.settings.names) {
                        Some(near) => {
                            format!("did you mean {near}? The settings here are {known}")
                        }
                        None => format!("the settings here are {known}"),
                    },
                ),
            }
        }
    }

    /// Whether the section contains exactly this name.
    fn has_written(&self, name: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(name))
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// Whether the file has the section.
    pub(super) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    pub(super) fn has(&self, key: &'static str) -> bool {
        self.item(key).is_some()
    }

    /// Notes that a required setting is missing, at the section's start.
    pub(super) fn note_missing(&self, key: &str, hint: &str) {
        self.mistakes.note(
            self.at,
            format!("{}: this setting is required", self.path_of(key)),
            format!("add {hint}"),
        );
    }

    /// Notes a mistake at a setting, or at the section where it is not set.
    pub(super) fn note_at(
        &self,
        key: &'static str,
        problem: impl AsRef<str>,
        hint: impl Into<String>,
    ) {
        let problem = format!("{}: {}", self.path_of(key), problem.as_ref());
        self.mistakes.note(self.at_of(key), problem, hint);
    }

    /// Byte of a setting's value, or of the section where it is not set.
    pub(super) fn at_of(&self, key: &'static str) -> usize {
        self.item(key).map_or(self.at, |item| item.at)
    }

    pub(super) fn item(&self, key: &'static str) -> Option<Item<'a>> {
        debug_assert!(
            self.settings.names.contains(&key),
            "{key} is not in the list of this section's settings"
        );
        let table = self.table?;
        let (key, value) = match table.get(key) {
            Some(value) => (key, value),
            None => {
                let former = self.settings.former_name(key)?;
                (former, table.get(former)?)
            }
        };
        Some(Item {
            mistakes: self.mistakes,
            value: value.get_ref(),
            path: self.path_of(key),
            at: value.span().start,
        })
    }

    /// A subsection, empty when the file does not have it.
    pub(super) fn section(&self, key: &'static str, settings: Settings) -> Self {
        let empty = Self {
            mistakes: self.mistakes,
            table: None,
            settings,
            path: self.path_of(key),
            at: self.at,
        };
        let Some(item) = self.item(key) else {
            return empty;
        };
        item.as_section(settings).unwrap_or(empty)
    }

    /// The sections of an array of tables (`[[site]]`).
    pub(super) fn sections(&self, key: &'static str, settings: Settings) -> Vec<Self> {
        let Some(item) = self.item(key) else {
            return Vec::new();
        };
        let DeValue::Array(array) = item.value else {
            item.note_type(&format!(
                "one or more sections [[{}]]",
                header_path(&item.path)
            ));
            return Vec::new();
        };

        if array.is_empty() {
            item.note(
                "the list is empty",
                format!(
                    "write one or more sections [[{}]], or leave it out",
                    header_path(&item.path)
                ),
            );
        }

        array
            .iter()
            .enumerate()
            .filter_map(|(n, value)| item.element(n, value).as_section(settings))
            .collect()
    }

    pub(super) fn text(&self, key: &'static str) -> Option<Text<'a>> {
        self.item(key)?.as_text("a string")
    }

    /// A required string; `example` is the line to add.
    pub(super) fn need_text(&self, key: &'static str, example: &str) -> Option<Text<'a>> {
        if !self.has(key) {
            self.note_missing(key, example);
        }
        self.text(key)
    }

    /// A string or a list of strings.
    pub(super) fn texts(&self, key: &'static str) -> Option<Vec<Text<'a>>> {
        let item = self.item(key)?;
        let DeValue::Array(array) = item.value else {
            return Some(
                item.as_text("a string or a list of strings")
                    .into_iter()
                    .collect(),
            );
        };
        if array.len() > LIST_MAX {
            item.note(
                format!("the list has {} entries", array.len()),
                format!("at most {LIST_MAX} are read"),
            );
        }
        Some(
            array
                .iter()
                .take(LIST_MAX)
                .enumerate()
                .filter_map(|(n, value)| item.element(n, value).as_text("a string"))
                .collect(),
        )
    }

    pub(super) fn boolean(&self, key: &'static str, default: bool) -> bool {
        let Some(item) = self.item(key) else {
            return default;
        };
        item.value.as_bool().unwrap_or_else(|| {
            item.note_type("true or false");
            default
        })
    }

    pub(super) fn integer(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let item = self.item(key)?;
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        let Some(number) = item.value.as_integer() else {
            item.note_type(&expected());
            return None;
        };
        match u64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .filter(|n| range.contains(n))
        {
            None => {
                item.note(
                    format!("{} is out of range", number.as_str()),
                    format!("write {}", expected()),
                );
                None
            }
            found => found,
        }
    }

    /// A number, integer or float.
    pub(super) fn float(&self, key: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let item = self.item(key)?;
        let expected = || format!("a number from {} to {}", range.start(), range.end());
        let Some(number) = item.number() else {
            item.note_type(&expected());
            return None;
        };
        if !range.contains(&number) {
            item.note(
                format!("{number} is out of range"),
                format!("write {}", expected()),
            );
            return None;
        }
        Some(number)
    }

    pub(super) fn duration(
        &self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.quantity(
            key,
            units::duration,
            range,
            |d| format!("{d:?}"),
            "a duration such as \"30s\"",
        )
    }

    pub(super) fn bytes(&self, key: &'static str, range: RangeInclusive<Bytes>) -> Option<Bytes> {
        self.quantity(
            key,
            units::bytes,
            range,
            |b| b.to_string(),
            "a size such as \"512MiB\"",
        )
    }

    pub(super) fn rate(&self, key: &'static str) -> Option<u64> {
        self.quantity(
            key,
            units::rate,
            1000..=1_000_000_000_000_000,
            |r| format!("{r}bit/s"),
            "a rate such as \"100Mbit/s\"",
        )
    }

    pub(super) fn percent(&self, key: &'static str) -> Option<f64> {
        self.quantity(
            key,
            units::percent,
            0.0..=1.0,
            |p| format!("{}%", p * 100.0),
            "a percentage such as \"10%\"",
        )
    }

    fn quantity<T: PartialOrd>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, UnitError>,
        range: RangeInclusive<T>,
        show: impl Fn(&T) -> String,
        expected: &str,
    ) -> Option<T> {
        let item = self.item(key)?;
        let text = match item.value {
            _ if item.is_bare_zero() => Text {
                mistakes: self.mistakes,
                text: "0",
                path: item.path.clone(),
                at: item.at,
            },
            _ => item.as_text(expected)?,
        };

        let found = text.quantity(parse)?;
        if !range.contains(&found) {
            let hint = format!(
                "write one from {} to {}",
                show(range.start()),
                show(range.end())
            );
            item.note(format!("{} is out of range", text.text), hint);
            return None;
        }

        Some(found)
    }

    pub(super) fn socket(&self, key: &'static str) -> Option<SocketAddr> {
        self.text(key)?.socket()
    }

    /// A socket address, by default a port of the loopback interface.
    pub(super) fn socket_or_local(&self, key: &'static str, port: u16) -> SocketAddr {
        let default = SocketAddr::from(([127, 0, 0, 1], port));
        self.socket(key).unwrap_or(default)
    }

    /// One or more socket addresses; empty only when the setting is missing or a mistake was noted.
    pub(super) fn sockets(&self, key: &'static str) -> Vec<SocketAddr> {
        let Some(texts) = self.texts(key) else {
            return Vec::new();
        };
        if texts.is_empty() && self.item(key).is_some_and(|i| i.value.is_array()) {
            self.mistakes.note(
                self.at_of(key),
                format!("{}: the list is empty", self.path_of(key)),
                "name at least one address and port",
            );
        }
        texts.iter().filter_map(Text::socket).collect()
    }

    pub(super) fn addresses(&self, key: &'static str) -> Vec<(IpAddr, usize)> {
        let Some(texts) = self.texts(key) else {
            return Vec::new();
        };
        if texts.is_empty() && self.item(key).is_some_and(|i| i.value.is_array()) {
            self.mistakes.note(
                self.at_of(key),
                format!("{}: the list is empty", self.path_of(key)),
                "name at least one IP address",
            );
        }
        texts
            .iter()
            .filter_map(|t| t.address().map(|a| (a, t.at)))
            .collect()
    }
}

impl<'a> Item<'a> {
    fn element(&self, n: usize, value: &'a Spanned<DeValue<'a>>) -> Self {
        Self {
            mistakes: self.mistakes,
            value: value.get_ref(),
            path: format!("{}[{n}]", self.path),
            at: value.span().start,
        }
    }

    /// Whether the value is the number 0, the only quantity that needs no unit.
    pub(super) fn is_bare_zero(&self) -> bool {
        matches!(self.value, DeValue::Integer(n) if n.as_str() == "0")
    }

    /// The string, if the value is one. Another type is noted elsewhere.
    pub(super) fn silent_text(&self) -> Option<&'a str> {
        self.value.as_str()
    }

    fn as_section(&self, settings: Settings) -> Option<Section<'a>> {
        let DeValue::Table(table) = self.value else {
            self.note_type(&format!("a section [{}]", header_path(&self.path)));
            return None;
        };
        let section = Section {
            mistakes: self.mistakes,
            table: Some(table),
            settings,
            path: self.path.clone(),
            at: self.at,
        };
        section.note_unknown();
        Some(section)
    }

    pub(super) fn as_text(&self, expected: &str) -> Option<Text<'a>> {
        let Some(text) = self.value.as_str() else {
            self.note_type(expected);
            return None;
        };
        Some(Text {
            mistakes: self.mistakes,
            text,
            path: self.path.clone(),
            at: self.at,
        })
    }

    pub(super) fn number(&self) -> Option<f64> {
        match self.value {
            DeValue::Integer(n) => i64::from_str_radix(n.as_str(), n.radix())
                .ok()
                .map(|n| n as f64),
            DeValue::Float(n) => n.as_str().parse().ok(),
            _ => None,
        }
    }

    /// A date and time as written, as a TOML date or a string.
    pub(super) fn date(&self) -> Option<String> {
        match self.value {
            DeValue::Datetime(date) => Some(date.to_string()),
            DeValue::String(text) => Some(text.to_string()),
            _ => None,
        }
    }

    pub(super) fn note(&self, problem: impl AsRef<str>, hint: impl Into<String>) {
        self.mistakes.note(
            self.at,
            format!("{}: {}", self.path, problem.as_ref()),
            hint,
        );
    }

    pub(super) fn note_type(&self, expected: &str) {
        let (kind, hint) = match self.value {
            DeValue::String(_) => ("a string", ""),
            DeValue::Integer(_) | DeValue::Float(_) if expected.contains('"') => {
                ("a number", ", quotes and unit included")
            }
            DeValue::Integer(_) => ("a whole number", ""),
            DeValue::Float(_) => ("a number", ""),
            DeValue::Boolean(_) => ("true or false", ""),
            DeValue::Datetime(_) => ("a date", ""),
            DeValue::Array(_) => ("a list", ""),
            DeValue::Table(_) => ("a section", ""),
        };
        self.note(format!("this is {kind}"), format!("write {expected}{hint}"));
    }
}

impl Text<'_> {
    pub(super) fn note(&self, problem: impl AsRef<str>, hint: impl Into<String>) {
        self.mistakes.note(
            self.at,
            format!("{}: {}", self.path, problem.as_ref()),
            hint,
        );
    }

    pub(super) fn quantity<T>(&self, parse: impl Fn(&str) -> Result<T, UnitError>) -> Option<T> {
        match parse(self.text) {
            Ok(value) => Some(value),
            Err(error) => {
                let words = error.to_string();
                let (problem, hint) = words
                    .split_once("; ")
                    .unwrap_or((&words, "write a smaller one"));
                let problem = if problem.contains(self.text) {
                    problem.to_owned()
                } else {
                    format!("{:?}: {problem}", self.text)
                };
                self.note(problem, hint);
                None
            }
        }
    }

    pub(super) fn socket(&self) -> Option<SocketAddr> {
        let setting = self.path.rsplit('.').next().unwrap_or_default();
        let usual_port = match setting.split('[').next() {
            Some("listen") if self.path.starts_with("name_server") => 53,
            Some("resolver") => 53,
            Some("listen") if self.path.starts_with("control") => 7700,
            Some("admin") => 9100,
            _ => 80,
        };
        match address::parse(self.text, usual_port) {
            Ok(address) => Some(address),
            Err(error) => {
                self.note(error.problem, error.hint);
                None
            }
        }
    }

    pub(super) fn address(&self) -> Option<IpAddr> {
        let found: Option<IpAddr> = self.text.parse().ok();
        if found.is_none() {
            let example = if self.text.parse::<SocketAddr>().is_ok() {
                "leave the port out"
            } else {
                "write an IP address"
            };
            self.note(
                format!("{:?} is not an IP address", self.text),
                format!("{example}, such as \"192.0.2.1\" or \"2001:db8::1\""),
            );
        }
        found
    }
}

/// The nearest known name, if it is near enough to be meant.
pub(super) fn nearest<'k, K: AsRef<str>>(name: &str, known: &'k [K]) -> Option<&'k str> {
    let lower = name.to_lowercase();
    let scored = known.iter().map(|k| {
        (
            strsim::damerau_levenshtein(&lower, &k.as_ref().to_lowercase()),
            k.as_ref(),
        )
    });
    let (distance, near) = scored.min_by_key(|(distance, _)| *distance)?;
    (distance <= 2.max(near.len() / 3)).then_some(near)
}

/// The path of a setting as a section header writes it, without indexes.
fn header_path(path: &str) -> String {
    let mut header = String::new();
    let mut inside = false;
    for c in path.chars() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            c if !inside => header.push(c),
            _ => {}
        }
    }
    header
}
