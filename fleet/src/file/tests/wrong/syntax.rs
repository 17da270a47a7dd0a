//! Wrong values: Files that are no TOML, and sections that are not known.

use super::Case;

pub(super) const CASES: &[Case] = &[
    (
        "zone = \"cdn.test\"\n",
        "zone = \"cdn.test\n",
        "zone = \"cdn.test",
        17,
        "invalid basic string",
        "TOML",
    ),
    ("[control]\n", "[control\n", "[control", 9, "", "TOML"),
];
