//! The changes that control accepts and every node applies, in the order of their revisions.
//!
//! These are the entries of the journal, of a node's copy of it and of `GET /v1/journal`. Field
//! and variant names are the JSON that journals hold on disk, so they never change.

use serde::{Deserialize, Serialize};

/// One accepted change with its revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Position in the order: rises from entry to entry, usually by one. Compaction and
    /// [`Journal::reconcile`](crate::journal::Journal::reconcile) leave gaps.
    pub revision: u64,
    /// Time of acceptance, milliseconds after the Unix epoch.
    pub accepted_unix_ms: u64,
    /// The change itself.
    pub change: Change,
}

/// A change of the fleet's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Change {
    /// Invalidates stored responses.
    Purge(Purge),
    /// Replaces the fleet file with this text, which was checked before it was accepted.
    FleetFile {
        /// The complete file.
        text: String,
    },
    /// Orders a cluster to prefill its caches.
    Push(PushOrder),
    /// Steers clients away from an edge or a cluster, or ends that.
    Drain(Drain),
    /// Replaces what name servers and edges answer to authorities that issue certificates.
    Challenges(Challenges),
}

/// The answers to the questions by which authorities check that names are ours (RFC 8555 section
/// 8): all that are open at a time. They are no secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenges {
    /// What name servers answer.
    #[serde(default)]
    pub dns: Vec<DnsChallenge>,
    /// What edges answer.
    #[serde(default)]
    pub http: Vec<HttpChallenge>,
}

/// A TXT record at `_acme-challenge.<host>` (RFC 8555 section 8.4).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DnsChallenge {
    /// The host, without `*.`.
    pub host: String,
    /// Content of the record.
    pub value: String,
}

/// A file at `/.well-known/acme-challenge/<token>` (RFC 8555 section 8.3).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HttpChallenge {
    /// The host.
    pub host: String,
    /// Last part of the path.
    pub token: String,
    /// Content of the file.
    pub key_authorization: String,
}

/// Begins or ends a drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// The drained edge or cluster.
    pub target: DrainTarget,
    /// `true` steers clients away; `false` ends the drain.
    pub drained: bool,
}

/// The edge or cluster that a drain names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "of", content = "name", rename_all = "snake_case")]
pub enum DrainTarget {
    /// The edge with this name.
    Node(String),
    /// Every edge of the cluster with this name, including edges added later.
    Cluster(String),
}

impl DrainTarget {
    /// Name of the edge or cluster.
    pub fn name(&self) -> &str {
        match self {
            Self::Node(name) | Self::Cluster(name) => name,
        }
    }

    /// Kind of the target: `node` or `cluster`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Node(_) => "node",
            Self::Cluster(_) => "cluster",
        }
    }
}

/// A purge as an operator requested it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    /// The stored responses it covers.
    pub scope: PurgeScope,
    /// `true` marks covered responses stale, so that they are validated; `false` makes them
    /// unusable.
    #[serde(default)]
    pub soft: bool,
}

/// The stored responses that a purge covers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "by", content = "value", rename_all = "snake_case")]
pub enum PurgeScope {
    /// One absolute URL: every variant and every equivalent spelling, see [`crate::scope::url`]. The
    /// scheme `*` stands for both schemes, here and in a prefix.
    Url(String),
    /// Every URL with this prefix, written `http://host/path/*`. A prefix without a star comes from
    /// an earlier version, see [`crate::scope::beginnings`].
    Prefix(String),
    /// Every URL of a host.
    Host(String),
    /// Every URL of a site.
    Site(String),
    /// Every response with this tag.
    Tag(String),
    /// Every response of one site with this tag. The only tag scope that a site's own purge token
    /// may use.
    SiteTag {
        /// Name of the site.
        site: String,
        /// The tag, as in [`PurgeScope::Tag`].
        tag: String,
    },
    /// Every stored response.
    All,
    /// Every response that one of these scopes covers. Lists do not nest, and a list has at most
    /// [`crate::scope::SCOPES_MAX`] scopes.
    Any(Vec<PurgeScope>),
}

impl PurgeScope {
    /// The scopes of a list, or the single scope itself.
    pub fn each(&self) -> &[PurgeScope] {
        match self {
            Self::Any(scopes) => scopes,
            one => std::slice::from_ref(one),
        }
    }
}

/// Content that a cluster fetches before its next peak.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PushOrder {
    /// Unique name of the order.
    pub id: String,
    /// Name of the cluster.
    pub cluster: String,
    /// URLs to fetch, most valuable first.
    pub items: Vec<PushItem>,
    /// Limit for the whole cluster, bytes a second.
    pub rate_bytes: u64,
    /// Deadline in real time, milliseconds after the Unix epoch.
    pub not_after_unix_ms: u64,
    /// End of the cluster's next peak in real time, until which the items must stay fresh,
    /// milliseconds after the Unix epoch. 0 in orders of an earlier version: then an item that is
    /// fresh now is fresh enough.
    #[serde(default)]
    pub fresh_until_unix_ms: u64,
}

/// One URL to fetch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PushItem {
    /// Name of its site.
    pub site: String,
    /// Absolute URL as clients request it.
    pub url: String,
    /// Expected length in bytes.
    pub bytes: u64,
}
