//! Headless Chromium, driven by `browser.py`.

use super::process::run;
use super::tools::PYTHON;

/// Opens a page on a wide and on a narrow screen and waits on each until a JavaScript expression is
/// true; gives the page's text on the two.
///
/// # Panics
/// When the page logs an error, asks another host, gets an error status, overflows its screen, or
/// the condition never holds.
pub fn open(url: &str, condition: &str, arguments: &[&str]) -> [String; 2] {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/lab/browser.py");
    let output = run(PYTHON, [&[script, url, condition], arguments].concat());
    let seen: serde_json::Value = serde_json::from_str(&output).expect("browser.py prints JSON");
    let problems = seen["problems"].as_array().expect("a list of problems");
    assert!(
        problems.is_empty(),
        "{url}: {}",
        serde_json::to_string_pretty(problems).expect("JSON prints")
    );
    ["wide", "narrow"].map(|screen| {
        seen["text"][screen]
            .as_str()
            .expect("the page has text")
            .to_owned()
    })
}
