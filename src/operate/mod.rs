//! Commands that talk to a running fleet, one module each; `api` is their client of control.

pub(crate) mod api;
pub(crate) mod apply;
pub(crate) mod certificates;
pub(crate) mod check;
pub(crate) mod drain;
pub(crate) mod explain;
pub(crate) mod health;
pub(crate) mod key;
pub(crate) mod plan;
pub(crate) mod purge;
pub(crate) mod push;
pub(crate) mod status;
pub(crate) mod trace;

/// Prints a value as JSON.
fn print_json(value: &impl serde::Serialize) {
    outln!(
        "{}",
        serde_json::to_string_pretty(value)
            .expect("values with string keys can be written as JSON")
    );
}
