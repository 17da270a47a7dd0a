//! Any text, any cut and any value are read without a panic.

use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = parse(&text, Path::new("/"));
    }

    #[test]
    fn no_cut_or_spliced_file_panics(at in any::<prop::sample::Index>(), length in 0usize..40, insert in "[\\[\\]{}\"=.,a-z0-9 \n]{0,20}") {
        let at = at.index(EVERYTHING.len());
        let end = (at + length).min(EVERYTHING.len());
        let text = format!("{}{insert}{}", &EVERYTHING[..at], &EVERYTHING[end..]);
        if let Err(mistakes) = parse(&text, Path::new("/")) {
            prop_assert!(!mistakes.is_empty());
            let lines = text.lines().count().max(1);
            for mistake in mistakes {
                prop_assert!((1..=lines + 1).contains(&mistake.line) && mistake.column >= 1, "{mistake:?}");
                prop_assert!(!mistake.problem.contains('\n') && !mistake.hint.contains('\n'), "{mistake:?}");
            }
        }
    }

    #[test]
    fn any_strings_are_checked_without_panic(value in ".{0,40}") {
        let value = toml::Value::String(value).to_string();
        for (section, settings) in SETTINGS.iter().filter(|(s, _)| !s.is_empty()) {
            for key in settings.names {
                let _ = parse(&with_setting(section, key, &value), Path::new("/"));
            }
        }
    }
}
