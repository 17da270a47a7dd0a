//! What the README says is true: its fleet file is good and small, its commands exist.

use crate::lab::process::nearcast;

const README: &str = include_str!("../../README.md");

#[test]
fn the_smallest_fleet_file_is_good_and_small() {
    let file = README
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("the README shows a fleet file");
    let settings = file.lines().filter(|l| !l.trim().is_empty()).count();
    assert!(
        settings < 20,
        "the smallest useful file has {settings} lines"
    );
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("nearcast.toml");
    std::fs::write(&path, file).expect("the file can be written");
    let made = nearcast()
        .args(["key", "--new", "--out"])
        .arg(directory.path().join("node.key"))
        .status()
        .expect("the binary runs");
    assert!(made.success());
    let output = nearcast()
        .arg("check")
        .arg(&path)
        .output()
        .expect("the binary runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn every_command_that_it_names_exists_and_has_examples() {
    let mut names: Vec<&str> = README
        .split(&['\n', '`'][..])
        .filter_map(|part| {
            part.trim()
                .trim_start_matches("target/release/")
                .strip_prefix("nearcast ")
        })
        .filter_map(|rest| rest.split_whitespace().next())
        .filter(|name| {
            name.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !name.starts_with('-')
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    assert!(names.len() >= 7, "{names:?}");
    for name in names {
        let output = nearcast()
            .args([name, "--help"])
            .output()
            .expect("the binary runs");
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            help.contains(&format!("nearcast {name}")) && help.to_lowercase().contains("example"),
            "{name} --help shows examples:\n{help}"
        );
    }
}
