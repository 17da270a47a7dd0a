//! Any text as a fleet file: it is good, or every mistake has a place in it and a mend. A good
//! one's zones compile or say why not.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match nearcast_fleet::file::parse(text, std::path::Path::new("/base")) {
        Ok(fleet) => {
            for fault in nearcast_gslb_dns::zone::check(&fleet) {
                assert!(!fault.to_string().is_empty());
            }
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            let lines = text.split('\n').count();
            for mistake in mistakes {
                assert!(
                    (1..=lines + 1).contains(&mistake.line),
                    "{mistake:?} of {lines} lines"
                );
                assert!(mistake.column >= 1, "{mistake:?}");
                assert!(!mistake.problem.is_empty(), "{mistake:?}");
            }
        }
    }
});
