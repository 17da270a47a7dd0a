//! Any text as a fleet file: it is accepted, or every mistake has a place inside it. The zones of an
//! accepted file compile, or every fault has a text; and the file means the same when it is read again
//! with a comment at its end.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use nearcast_fleet::file::{self, Mistake};

fuzz_target!(|text: &str| {
    let base = Path::new("/base");
    match file::parse(text, base) {
        Ok(fleet) => {
            for fault in nearcast_gslb_dns::zone::check(&fleet) {
                assert!(!fault.to_string().is_empty());
            }
            let commented = format!("{text}\n# a comment");
            let again = file::parse(&commented, base).expect("a comment changes nothing");
            assert!(again.says_the_same(&fleet));
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            let lines: Vec<&str> = text.split('\n').collect();
            for mistake in &mistakes {
                assert_place(mistake, &lines);
                assert!(!mistake.problem.is_empty(), "{mistake:?}");
            }
        }
    }
});

/// The place of a mistake is a character of the text, or the end of a line.
fn assert_place(mistake: &Mistake, lines: &[&str]) {
    let line = mistake.line.checked_sub(1).and_then(|n| lines.get(n));
    let line = line.unwrap_or_else(|| panic!("{mistake:?} of {} lines", lines.len()));
    let columns = 1..=line.chars().count() + 1;
    assert!(columns.contains(&mistake.column), "{mistake:?} in {line:?}");
}
