//! The section `[site.compression]`.

use super::reader::{Section, Text, nearest};
use super::settings::Settings;
use crate::config::{Coding, CompressionPolicy};
use crate::units::Bytes;

/// Settings of `[site.compression]`.
pub(super) const COMPRESSION: Settings =
    Settings::of(&["codings", "level", "size_min", "size_max", "types"]);

/// Codings by their names in `Content-Encoding`.
const CODINGS: [(&str, Coding); 3] = [
    ("zstd", Coding::Zstd),
    ("br", Coding::Brotli),
    ("gzip", Coding::Gzip),
];
/// Most types in a list: each may be compared with that of a stored response.
const TYPES_MAX: usize = 64;
/// Longest type.
const TYPE_BYTES_MAX: usize = 128;
/// Largest body that can be compressed.
const SIZE_MAX: Bytes = Bytes(1 << 30);

pub(super) fn check_compression(section: &Section<'_>) -> CompressionPolicy {
    let defaults = CompressionPolicy::default();
    let bytes_min = section
        .bytes("size_min", Bytes(0)..=SIZE_MAX)
        .unwrap_or(defaults.bytes_min);
    let bytes_max = section
        .bytes("size_max", Bytes(0)..=SIZE_MAX)
        .unwrap_or(defaults.bytes_max);
    if bytes_min > bytes_max
        && let Some(item) = section
            .item("size_min")
            .or_else(|| section.item("size_max"))
    {
        item.note(
            "size_min is larger than size_max, so that nothing is compressed",
            "write a smaller size_min, or codings = [] to turn compression off",
        );
    }
    CompressionPolicy {
        codings: match section.texts("codings") {
            Some(texts) => check_codings(&texts),
            None => defaults.codings,
        },
        level: section
            .integer("level", 1..=9)
            .map_or(defaults.level, |level| level as u32),
        bytes_min,
        bytes_max,
        types: match section.texts("types") {
            Some(texts) => check_types(&texts),
            None => defaults.types,
        },
    }
}

fn check_codings(texts: &[Text<'_>]) -> Vec<Coding> {
    let mut codings = Vec::new();
    for text in texts {
        match CODINGS.iter().find(|(name, _)| *name == text.text) {
            Some((name, coding)) if codings.contains(coding) => {
                text.note(format!("{name} is listed twice"), "remove one");
            }
            Some((_, coding)) => codings.push(*coding),
            None => {
                let known = CODINGS.map(|(name, _)| name);
                let near = match text.text {
                    "brotli" => "did you mean \"br\"? ".to_owned(),
                    written => nearest(written, &known)
                        .map_or_else(String::new, |n| format!("did you mean {n:?}? ")),
                };
                text.note(
                    format!("there is no coding {:?}", text.text),
                    format!(
                        "{near}write some of {}, the preferred one first; [] turns compression off",
                        known.map(|n| format!("{n:?}")).join(", ")
                    ),
                );
            }
        }
    }
    codings
}

/// Media types, in lower case.
fn check_types(texts: &[Text<'_>]) -> Vec<String> {
    if let Some(text) = texts.get(TYPES_MAX) {
        text.note(
            format!("there are more than {TYPES_MAX} types"),
            "remove some, or write type/* for all types of a kind",
        );
    }
    let mut types = Vec::new();
    for text in texts.iter().take(TYPES_MAX) {
        let name = text.text.to_ascii_lowercase();
        if !is_type(&name) {
            text.note(
                format!("{:?} is not a media type", text.text),
                "write it without parameters, such as \"text/html\" or \"text/*\"",
            );
        } else if types.contains(&name) {
            text.note(format!("{name} is listed twice"), "remove one");
        } else {
            types.push(name);
        }
    }
    types
}

/// Whether this is a type and a subtype, or a type and `*` (RFC 9110 section 8.3.1).
fn is_type(name: &str) -> bool {
    let is_token = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
    };
    name.len() <= TYPE_BYTES_MAX
        && name
            .split_once('/')
            .is_some_and(|(kind, sub)| is_token(kind) && (sub == "*" || is_token(sub)))
}
