//! Former names of settings work for one release, with a warning.

use super::*;

/// A fleet file that sets every renamed setting under its former name, and the same file with the
/// present names.
fn written_both_ways() -> (String, String) {
    let (mut former, mut present) = (EVERYTHING.to_owned(), EVERYTHING.to_owned());
    for (section, settings) in SETTINGS {
        for (old, new) in settings.former {
            let line = format!("\n{new} = ");
            let (before, after) = former
                .split_once(&format!("[{section}]"))
                .expect("the file has every section");
            assert!(after.contains(&line), "[{section}] {new} is set");
            let renamed = after.replacen(&line, &format!("\n{old} = "), 1);
            former = format!("{before}[{section}]{renamed}");
        }
    }
    present.push('\n');
    former.push('\n');
    (former, present)
}

fn renamed() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    SETTINGS.iter().flat_map(|(section, settings)| {
        let pairs = settings.former.iter();
        pairs.map(move |(former, present)| (*section, *former, *present))
    })
}

#[test]
fn every_former_name_gives_the_same_fleet_and_one_warning() {
    let (former, present) = written_both_ways();
    assert_eq!(fleet_of(&former), fleet_of(&present));
    assert_eq!(renamed_settings(&present), []);
    let warnings = renamed_settings(&former);
    assert_eq!(warnings.len(), renamed().count());
    assert!(warnings.is_sorted_by_key(|warning| warning.line));
    for (section, old, new) in renamed() {
        let is_about = |warning: &&Mistake| {
            warning
                .problem
                .ends_with(&format!(".{old}: this setting was renamed"))
        };
        let [warning] = warnings.iter().filter(is_about).collect::<Vec<_>>()[..] else {
            panic!("[{section}] {old}: {warnings:#?}");
        };
        let line = former.lines().nth(warning.line - 1).expect("a line");
        assert!(line.starts_with(&format!("{old} = ")), "{line}");
        assert_eq!(warning.column, 1, "{old}");
        assert!(
            warning.hint.starts_with(&format!("write {new};")),
            "{warning:?}"
        );
    }
}

#[test]
fn a_former_name_is_warned_of_wherever_it_stands() {
    let table = [
        (
            "limits.first_byte = \"9s\"",
            "site[0].limits.first_byte",
            (16, 8),
        ),
        (
            "limits = { head = \"64KiB\" }",
            "site[0].limits.head",
            (16, 12),
        ),
    ];
    for (line, path, at) in table {
        let warnings = renamed_settings(&format!("{SMALLEST}{line}\n"));
        let [warning] = &warnings[..] else {
            panic!("{line}: {warnings:?}");
        };
        assert_eq!(warning.problem, format!("{path}: this setting was renamed"));
        assert_eq!((warning.line, warning.column), at, "{line}");
    }
    let two = format!("{SMALLEST}[[site]]\nname = \"b\"\nlimits.connect = \"1s\"\n");
    assert_eq!(
        renamed_settings(&two)[0].problem,
        "site[1].limits.connect: this setting was renamed"
    );
    assert_eq!(renamed_settings("site = 3\n[[cluster]]\nconnect = 1"), []);
    assert_eq!(renamed_settings("no toml ["), []);
}

#[test]
fn a_setting_under_both_names_is_a_mistake() {
    for (section, old, new) in renamed() {
        let text = with_setting(section, old, "1");
        let mistakes = parse(&text, Path::new("/")).expect_err(old);
        let [mistake] = &mistakes[..] else {
            panic!("{old}: {mistakes:#?}");
        };
        let problem = format!("{old}: this is the former name of {new}, which is set as well");
        assert!(mistake.problem.ends_with(&problem), "{mistake:?}");
        assert_eq!(mistake.hint, format!("remove {old}"));
        assert!(
            text.lines()
                .nth(mistake.line - 1)
                .expect("a line")
                .starts_with(old)
        );
    }
}

#[test]
fn a_wrong_value_is_noted_under_the_name_that_the_file_uses() {
    let text = format!("{SMALLEST}limits.first_byte = \"60\"\n");
    let mistakes = parse(&text, Path::new("/")).expect_err("no unit");
    assert!(
        mistakes[0]
            .problem
            .starts_with("site[0].limits.first_byte: "),
        "{mistakes:?}"
    );
}

#[test]
fn a_mistyped_setting_is_compared_with_present_names_only() {
    let text = format!("{SMALLEST}limits.first_bite = \"60s\"\n");
    let mistakes = parse(&text, Path::new("/")).expect_err("no such setting");
    assert!(!mistakes[0].hint.contains("first_byte,"), "{mistakes:?}");
    let text = format!("{SMALLEST}limits.first_byte_timeou = \"60s\"\n");
    let mistakes = parse(&text, Path::new("/")).expect_err("no such setting");
    assert!(
        mistakes[0]
            .hint
            .starts_with("did you mean first_byte_timeout?"),
        "{mistakes:?}"
    );
}

#[test]
fn no_former_name_is_in_use() {
    for (section, settings) in SETTINGS {
        for (former, present) in settings.former {
            assert!(!settings.names.contains(former), "[{section}] {former}");
            assert!(settings.names.contains(present), "[{section}] {present}");
        }
    }
}
