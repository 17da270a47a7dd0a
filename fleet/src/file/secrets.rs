//! Keys and tokens: where they come from, and whether they are good enough.

use std::collections::BTreeMap;
use std::path::Path;

use super::reader::Section;
use super::registry::Registry;
use super::values::path;
use crate::config::{KeyPolicy, Secret};
use crate::failure::{Failure, FailureKind};
use crate::node_key::{self, OwnKey, Strength};

/// The shortest node key, and the shortest purge token.
const NODE_KEY_CHARS_MIN: usize = 16;

/// The highest generation of a node's key.
const KEY_GENERATION_MAX: u64 = 1_000_000;

/// Where the node key of a fleet comes from.
#[derive(Debug, Clone, Copy)]
pub enum KeySource<'k> {
    /// The fleet file, or the file that it names.
    File,
    /// This one, whatever the fleet file says: the key of this machine. An empty one is none, and
    /// the fleet file is asked.
    Given(&'k Secret),
    /// This one in place of what the file that it names holds; a key that the fleet file itself has
    /// counts.
    InPlaceOfFile(&'k Secret),
    /// Nobody needs it: the file that the fleet file names need not be there.
    Unneeded,
}

/// How a secret is made.
pub(super) const MAKE_SECRET: &str =
    "make one with `nearcast key --new` or `head -c 24 /dev/urandom | base64`";

pub(super) fn check_node_key(
    head: &Section<'_>,
    base: &Path,
    source: KeySource<'_>,
    is_needed: bool,
) -> Secret {
    if head.item("node_keys").and_then(|item| item.silent_text()) == Some("own")
        && let Some(text) = head.text("node_key")
    {
        // The file goes to every node, and with it what only control and name servers may hold.
        text.note(
            "every node gets the fleet file, and with node_keys = \"own\" none may hold the fleet's key",
            "put it into a file on the machines of control and the name servers, and name that with node_key_file",
        );
    }
    match source {
        KeySource::Given(key) if !key.0.is_empty() => return key.clone(),
        KeySource::InPlaceOfFile(key) if !key.0.is_empty() && !head.has("node_key") => {
            return key.clone();
        }
        KeySource::Unneeded if !head.has("node_key") => return Secret(String::new()),
        _ => {}
    }
    if is_needed && head.is_present() && !head.has("node_key") && !head.has("node_key_file") {
        head.note_missing(
            "node_key",
            &format!(
                "node_key or node_key_file, the secret that nodes show one another; {MAKE_SECRET}"
            ),
        );
    }
    let key = check_secret(head, base, ["node_key", "node_key_file"], "key")
        .unwrap_or_else(|| Secret(String::new()));
    if node_key::is_own(&key) {
        match head.text("node_key") {
            Some(text) => text.note(
                "this is one node's own key, and the fleet file is the same for all",
                "put it into a file of that node (node_key_file)",
            ),
            None if OwnKey::parse(&key.0).is_none() => {
                if let Some(text) = head.text("node_key_file") {
                    text.note(
                        "the file begins as a node's own key does, and is none",
                        "write there what `nearcast key NODE` prints, one line",
                    );
                }
            }
            None => {}
        }
    }
    key
}

/// Reads the node key of this machine from a file of its own: the fleet's key, or a node's own one.
///
/// # Errors
/// [`FailureKind::NoInput`] when it cannot be read; [`FailureKind::Usage`] when it holds no key, or
/// one that anybody can guess.
pub fn read_key(path: &Path) -> Result<Secret, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::new(
            FailureKind::NoInput,
            format!(
                "cannot read the key file {}: {error}; `nearcast key` makes one",
                path.display()
            ),
        )
    })?;
    let key = Secret(text.trim_end_matches(['\r', '\n']).to_owned());
    let problem = match secret_problem(&key.0, "key") {
        Some((problem, hint)) => Some(format!("{problem}; {hint}")),
        None if node_key::is_own(&key) && OwnKey::parse(&key.0).is_none() => Some(
            "this is no node's own key; write there what `nearcast key NODE` prints, one line"
                .to_owned(),
        ),
        None => None,
    };
    match problem {
        Some(problem) => Err(Failure::new(
            FailureKind::Usage,
            format!("{}: {problem}", path.display()),
        )),
        None => Ok(key),
    }
}

/// What is wrong with a secret, and what mends it.
fn secret_problem(secret: &str, what: &str) -> Option<(String, String)> {
    if secret.chars().count() < NODE_KEY_CHARS_MIN {
        return Some((
            format!("the {what} has fewer than {NODE_KEY_CHARS_MIN} characters"),
            MAKE_SECRET.to_owned(),
        ));
    }
    if secret.trim() != secret || !secret.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        let hint =
            format!("use visible ASCII characters, none of them blank at its ends; {MAKE_SECRET}");
        return Some((
            format!("the {what} has characters that an HTTP field cannot carry"),
            hint,
        ));
    }
    match node_key::strength(secret) {
        Strength::Worthless(why) => Some((format!("the {what} {why}"), MAKE_SECRET.to_owned())),
        _ => None,
    }
}

/// Which keys nodes may show.
pub(super) fn check_keys(head: &Section<'_>, registry: Registry) -> KeyPolicy {
    const FORMS: &str = "write \"own\", which takes each node's own key alone, or \"shared\", which takes the fleet's key too";
    let Registry {
        generations,
        cluster_generations,
        ..
    } = registry;
    let mut keys = KeyPolicy {
        own_only: false,
        generations,
        cluster_generations,
    };
    match head.text("node_keys") {
        Some(text) if text.text == "own" => keys.own_only = true,
        Some(text) if text.text != "shared" => {
            text.note(format!("{:?} is no way to show keys", text.text), FORMS)
        }
        _ => {}
    }
    keys
}

/// Notes the generation of a key where it is not the first.
pub(super) fn key_generation(
    section: &Section<'_>,
    name: &str,
    generations: &mut BTreeMap<String, u32>,
) {
    if let Some(generation) = section
        .integer("key_generation", 1..=KEY_GENERATION_MAX)
        .filter(|generation| *generation != 1)
    {
        generations.insert(name.to_owned(), generation as u32);
    }
}

/// A secret in one of two settings: itself, or the name of the file that has it alone; `None` when
/// neither is there.
pub(super) fn check_secret(
    section: &Section<'_>,
    base: &Path,
    [plain, in_file]: [&'static str; 2],
    what: &str,
) -> Option<Secret> {
    let (secret, text) = match (section.text(plain), section.text(in_file)) {
        (Some(_), Some(file)) => {
            file.note(
                format!("the {what} is in {plain} already"),
                format!("keep one of {plain} and {in_file}"),
            );
            return None;
        }
        (Some(text), None) => (text.text.to_owned(), text),
        (None, Some(text)) => match std::fs::read_to_string(path(&text, base)) {
            Ok(content) => (content.trim_end_matches(['\r', '\n']).to_owned(), text),
            Err(error) => {
                let problem = format!("cannot read {}: {error}", base.join(text.text).display());
                text.note(
                    problem,
                    format!("put the {what} there, alone; {MAKE_SECRET}"),
                );
                return None;
            }
        },
        (None, None) => return None,
    };
    if let Some((problem, hint)) = secret_problem(&secret, what) {
        text.note(problem, hint);
    }
    Some(Secret(secret))
}
