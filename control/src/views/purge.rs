//! Purge requests and purges.

use nearcast_fleet::change::PurgeScope;
use nearcast_fleet::scope;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A purge request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PurgeRequest {
    /// Either this or `scopes`.
    #[serde(default)]
    pub scope: Option<Scope>,
    /// Several at once, 256 at most: all of them are purged or none.
    #[serde(default)]
    pub scopes: Option<Vec<Scope>>,
    /// Mark responses stale instead of removing them.
    #[serde(default)]
    pub soft: bool,
    /// Time to wait for edges, at most 60,000; 5,000 by default.
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

/// A purge that a client of a site requested from an edge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SitePurgeRequest {
    /// The edge.
    pub node: String,
    /// The site that the client may purge.
    pub site: String,
    /// URLs of its hosts, and tags, which cover responses of this site only.
    pub scopes: Vec<Scope>,
    /// Mark responses stale instead of removing them.
    #[serde(default)]
    pub soft: bool,
    /// Time to wait for edges, at most 60,000; 5,000 by default.
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

/// A part of what a purge covers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "by", content = "value", rename_all = "snake_case")]
pub(crate) enum Scope {
    /// One absolute URL, every variant and every equivalent spelling.
    Url(String),
    /// Every URL with this prefix.
    Prefix(String),
    /// Every URL of a host.
    Host(String),
    /// Every URL of a site.
    Site(String),
    /// Every response with this tag.
    Tag(String),
    /// Every response of one site with this tag.
    SiteTag {
        /// Its name.
        site: String,
        tag: String,
    },
    /// Everything.
    All,
}

impl Scope {
    /// The value of `by`; also the label of the metric.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Url(_) => "url",
            Self::Prefix(_) => "prefix",
            Self::Host(_) => "host",
            Self::Site(_) => "site",
            Self::Tag(_) => "tag",
            Self::SiteTag { .. } => "site_tag",
            Self::All => "all",
        }
    }

    /// In words: `url http://a/`, `tag a of site www`, `everything`.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Url(value)
            | Self::Prefix(value)
            | Self::Host(value)
            | Self::Site(value)
            | Self::Tag(value) => format!("{} {value}", self.name()),
            Self::SiteTag { site, tag } => format!("tag {tag} of site {site}"),
            Self::All => "everything".to_owned(),
        }
    }
}

impl From<&PurgeScope> for Scope {
    fn from(scope: &PurgeScope) -> Self {
        match scope.clone() {
            PurgeScope::Url(url) => Self::Url(written(&url).to_owned()),
            PurgeScope::Prefix(prefix) => {
                Self::Prefix(written(prefix.trim_end_matches('*')).to_owned())
            }
            PurgeScope::Host(host) => Self::Host(host),
            PurgeScope::Site(site) => Self::Site(site),
            PurgeScope::Tag(tag) => Self::Tag(tag),
            PurgeScope::SiteTag { site, tag } => Self::SiteTag { site, tag },
            // The caller splits lists, and a list never holds a list.
            PurgeScope::All | PurgeScope::Any(_) => Self::All,
        }
    }
}

/// A URL or prefix as operators write it: `//host/path` where it covers both schemes.
fn written(canonical: &str) -> &str {
    scope::of_any_scheme(canonical).unwrap_or(canonical)
}

/// The scope as an operator wrote it: neither checked nor in canonical form.
impl From<Scope> for PurgeScope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Url(url) => Self::Url(url),
            Scope::Prefix(prefix) => Self::Prefix(prefix),
            Scope::Host(host) => Self::Host(host),
            Scope::Site(site) => Self::Site(site),
            Scope::Tag(tag) => Self::Tag(tag),
            Scope::SiteTag { site, tag } => Self::SiteTag { site, tag },
            Scope::All => Self::All,
        }
    }
}

/// A purge and its progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PurgeView {
    pub revision: u64,
    pub accepted_unix_ms: u64,
    /// The first of `scopes`.
    pub scope: Scope,
    /// The scopes in canonical form; the first 16.
    pub scopes: Vec<Scope>,
    /// Number of scopes.
    pub scopes_total: usize,
    pub soft: bool,
    /// Whether every edge of the fleet has confirmed it.
    pub complete: bool,
    /// 0 before that.
    pub completed_unix_ms: u64,
    /// Stored responses that it covered on all nodes.
    pub responses: u64,
    /// Whether there may have been more. An edge that keeps responses on disk does not read them all
    /// to count those of a host, a prefix or a tag.
    #[serde(default)]
    pub at_least: bool,
    pub nodes: Vec<PurgeNode>,
    /// Edges that have not confirmed.
    pub missing: Vec<String>,
    /// The missing edges that are silent.
    pub silent: Vec<String>,
    /// The missing edges that have fetched the change.
    pub received: Vec<String>,
    /// Possible mistakes in the request, such as a host of no site. Only in the answer to the request
    /// itself.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The confirmation of a purge by one edge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PurgeNode {
    pub node: String,
    pub responses: u64,
    #[serde(default)]
    pub at_least: bool,
    pub effective_unix_ms: u64,
}

/// All purges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Purges {
    /// Newest first.
    pub purges: Vec<PurgeView>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_for_both_schemes_is_shown_without_one() {
        for text in ["//a.test/x", "http://a.test/x", "https://a.test/x"] {
            for written in [Scope::Url(text.to_owned()), Scope::Prefix(text.to_owned())] {
                let canonical = scope::canonical(&PurgeScope::from(written.clone()));
                assert_eq!(Scope::from(&canonical.expect("it names a host")), written);
            }
        }
    }

    #[test]
    fn every_scope_has_one_word_in_json_and_metrics_and_is_the_same_in_the_journal() {
        let text = || "x".to_owned();
        let table = [
            (Scope::Url(text()), "url x"),
            (Scope::Prefix(text()), "prefix x"),
            (Scope::Host(text()), "host x"),
            (Scope::Site(text()), "site x"),
            (Scope::Tag(text()), "tag x"),
            (
                Scope::SiteTag {
                    site: "www".to_owned(),
                    tag: text(),
                },
                "tag x of site www",
            ),
            (Scope::All, "everything"),
        ];
        for (scope, words) in table {
            let json = serde_json::to_value(&scope).expect("a scope is JSON");
            assert_eq!(
                (json["by"].as_str(), scope.describe()),
                (Some(scope.name()), words.to_owned())
            );
            assert_eq!(Scope::from(&PurgeScope::from(scope.clone())), scope);
        }
    }
}
