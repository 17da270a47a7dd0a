//! The section `[access_log]`.

use super::reader::{Section, Text, nearest};
use super::settings::Settings;
use crate::config::{AccessLog, LogFormat, LogTarget};
use crate::units::Bytes;

/// Settings of `[access_log]`.
pub(super) const ACCESS_LOG: Settings =
    Settings::of(&["path", "format", "sample", "client", "rotate_at", "kept"]);

/// Names of the forms of a line.
const FORMATS: [(&str, LogFormat); 3] = [
    ("json", LogFormat::Json),
    ("common", LogFormat::Common),
    ("combined", LogFormat::Combined),
];

/// Names for whether clients' addresses are truncated.
const CLIENTS: [(&str, bool); 2] = [("whole", false), ("truncated", true)];

pub(super) fn check_access_log(root: &Section<'_>) -> Option<AccessLog> {
    let section = root.section("access_log", ACCESS_LOG);
    if !section.is_present() {
        return None;
    }
    let path = section.need_text(
        "path",
        "path = \"access.log\", a file in the node's state directory, or \"-\" for standard output",
    );
    let target = path.map_or(LogTarget::Stdout, |text| check_target(&text));
    let defaults = AccessLog::to(target.clone());
    Some(AccessLog {
        target,
        format: choice(&section, "format", &FORMATS).unwrap_or(defaults.format),
        sample: section.percent("sample").unwrap_or(defaults.sample),
        truncates_clients: choice(&section, "client", &CLIENTS)
            .unwrap_or(defaults.truncates_clients),
        rotate_at: section
            .bytes("rotate_at", Bytes(1 << 20)..=Bytes(1 << 40))
            .unwrap_or(defaults.rotate_at),
        kept: section
            .integer("kept", 0..=1000)
            .map_or(defaults.kept, |n| n as usize),
    })
}

fn check_target(text: &Text<'_>) -> LogTarget {
    if text.text == "-" {
        return LogTarget::Stdout;
    }
    let name = text.text.rsplit('/').next().unwrap_or_default();
    if matches!(name, "" | "." | "..") || text.text.contains('\0') {
        text.note(
            format!("{:?} is not the path of a file", text.text),
            "write a file name such as \"access.log\", an absolute path, or \"-\" for standard output",
        );
    }
    // Relative paths begin in the node's own directory; the name of the journal's copy is refused
    // everywhere, as an absolute path may lead there, too.
    let parts: Vec<&str> = text.text.split('/').filter(|part| *part != ".").collect();
    if parts.contains(&"..") {
        text.note(
            format!("{:?} has a \"..\"", text.text),
            "write an absolute path, or a name below the node's directory",
        );
    }
    let is_own = parts.first() == Some(&"store")
        || parts.iter().any(|part| part.starts_with("journal.copy"));
    if is_own {
        text.note(
            format!("{:?} is a file of the node itself", text.text),
            "write another name, such as \"access.log\"",
        );
    }
    LogTarget::File(text.text.into())
}

/// The value that a name stands for.
fn choice<T: Copy>(
    section: &Section<'_>,
    key: &'static str,
    values: &[(&'static str, T)],
) -> Option<T> {
    let text = section.text(key)?;
    if let Some((_, value)) = values.iter().find(|(name, _)| *name == text.text) {
        return Some(*value);
    }
    let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
    let near = nearest(text.text, &names)
        .map_or_else(String::new, |name| format!("did you mean {name:?}? "));
    let listed: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    text.note(
        format!("there is no {key} {:?}", text.text),
        format!("{near}write one of {}", listed.join(", ")),
    );
    None
}
