//! What the pages in `docs/` list, for tests that compare it with the code.

use std::collections::BTreeSet;

/// The words in backquotes in the first column of the table whose head begins so.
pub(crate) fn first_column<'p>(page: &'p str, head: &str) -> BTreeSet<&'p str> {
    let mut lines = page.lines().skip_while(|line| !line.starts_with(head));
    assert!(lines.next().is_some(), "the page has no table {head}");
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    let first = rows.filter_map(|row| row.split('|').nth(1));
    let mut found = BTreeSet::new();
    for word in first.flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
        assert!(found.insert(word), "{word} is listed twice");
    }
    found
}
