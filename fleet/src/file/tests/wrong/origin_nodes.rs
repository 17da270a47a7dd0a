//! Wrong values: `[[origin_node]]`.

use super::Case;

pub(super) const CASES: &[Case] = &[(
    "[[origin_node]]",
    "[origin_node]",
    "[origin_node]",
    1,
    "origin_node: this is a section",
    "[[origin_node]]",
)];
