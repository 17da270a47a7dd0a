//! The section `[site.https]`.

use std::time::Duration;

use super::reader::Section;
use super::settings::Settings;
use super::values::DAY;
use crate::config::{Hsts, HttpsPolicy};

/// Settings of `[site.https]`.
pub(super) const HTTPS: Settings = Settings::of(&[
    "acme",
    "redirect",
    "hsts",
    "hsts_subdomains",
    "hsts_preload",
    "dns_record",
]);

/// Longest `hsts`.
const HSTS_MAX: Duration = Duration::from_secs(3650 * 86_400);
/// What lists of browsers require of a site that asks to be on them (hstspreload.org).
const PRELOAD_MIN: Duration = Duration::from_secs(365 * 86_400);

pub(super) fn check_https(section: &Section<'_>) -> HttpsPolicy {
    let redirect = section.boolean("redirect", false);
    let max_age = section.duration("hsts", Duration::ZERO..=HSTS_MAX);
    let subdomains = section.boolean("hsts_subdomains", false);
    let preload = section.boolean("hsts_preload", false);
    for (key, is_set) in [("hsts_subdomains", subdomains), ("hsts_preload", preload)] {
        if is_set && !section.has("hsts") {
            section.note_at(
                key,
                "it says nothing without hsts",
                "write hsts = \"365d\", for how long browsers keep to https",
            );
        }
    }
    let is_listable = redirect && subdomains && max_age.is_none_or(|age| age >= PRELOAD_MIN);
    if preload && section.has("hsts") && !is_listable {
        section.note_at(
            "hsts_preload",
            "the lists of browsers do not take this site",
            format!(
                "write redirect = true, hsts_subdomains = true and hsts = \"{}d\" or more, or leave hsts_preload out",
                PRELOAD_MIN.as_secs() / DAY.as_secs()
            ),
        );
    }
    HttpsPolicy {
        brings_certificates: !section.boolean("acme", true),
        redirect,
        hsts: max_age.map(|max_age| Hsts {
            max_age,
            subdomains,
            preload,
        }),
        dns_record: section.boolean("dns_record", true),
    }
}
