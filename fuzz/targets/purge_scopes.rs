//! Any text as what a purge names, and as a stored URL: what is accepted is in canonical form, and
//! stays so.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nearcast_fleet::scope;

fuzz_target!(|text: &str| {
    if let Ok(url) = scope::url(text) {
        assert_eq!(
            scope::url(&url).as_ref(),
            Ok(&url),
            "a canonical URL is its own"
        );
        assert_eq!(
            scope::canonical_key(&url),
            url,
            "a key that is spelt so is found"
        );
    }
    if let Ok(prefix) = scope::prefix(text) {
        // A star in it is one of the URL, which people write as an escape.
        assert_eq!(
            scope::prefix(&prefix.replace('*', "%2A")).as_ref(),
            Ok(&prefix),
            "a canonical prefix is its own"
        );
        let covered = scope::Covered::Beginning(prefix.clone());
        assert_eq!(
            scope::prefix_coverage(&format!("{prefix}*")),
            [covered],
            "the journal's form covers it"
        );
    }
    if let Ok(host) = scope::host(text) {
        assert_eq!(
            scope::host(&host).as_ref(),
            Ok(&host),
            "a canonical host is its own"
        );
    }
    if let Ok(tag) = scope::tag(text) {
        assert_eq!(scope::tag(&tag), Ok(tag.clone()));
    }
    let stored = scope::canonical_key(text);
    assert_eq!(scope::canonical_key(&stored), stored);
    let _ = (scope::journalled_url(text), scope::prefix_coverage(text));
});
