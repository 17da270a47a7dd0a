//! Keys with which nodes authenticate to one another: the fleet's key, and each node's own key,
//! which is derived from it.
//!
//! **The fleet's key** is the root. Control and the name servers have it, as they check the keys of
//! other nodes. **A node's own key** is derived from it with keyed BLAKE3 over the node's name and
//! its key generation, so nodes need no enrolment and nothing is stored: whoever has the fleet's
//! key can compute every node's own key. A node that has only its own key cannot speak for another
//! node. A higher `key_generation` of the node in the fleet file revokes its key, and so does
//! removing the node.
//!
//! An own key is one line, `nck1.NODE.GENERATION.SECRET.PEER`. A node presents the line without the
//! last part. `PEER` is the secret of the node's cluster, with which its edges authenticate to one
//! another (`-` for nodes that are not edges). It is the same for all edges of a cluster; the
//! cluster's own `key_generation` renews it.
//!
//! Owns the syntax of keys, their derivation and their comparison in constant time; [`strength`]
//! finds weak secrets. Does no input or output.

mod strength;

use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};

pub(crate) use self::strength::{Strength, strength};
use crate::config::{Fleet, Secret};

/// Prefix of a node's own key.
const OWN_KEY_START: &str = "nck1.";

/// The hint how to create a fleet key.
const MAKE_KEY: &str = "make one with `nearcast key --new`";

/// BLAKE3 context that separates these keys from other derived ones.
const CONTEXT: &str = "nearcast 2026-11-27 keys of nodes";

/// Longest text that is parsed as a key; an own key has about 220 characters.
const SHOWN_CHARS_MAX: usize = 1024;

/// A node's own key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnKey {
    /// Name of its node.
    pub node: String,
    /// Generation, from 1.
    pub generation: u32,
    secret: String,
    /// Peer secret of its cluster; `None` for nodes that are not edges.
    peer: Option<String>,
}

/// The owner of a presented key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A node with its own key.
    Node(String),
    /// The owner of the fleet's key, which speaks for every node.
    Shared,
}

/// Why a key is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRefused {
    /// The request has no key.
    Missing,
    /// The key is neither the fleet's nor a node's; with the node that it names, if the fleet has
    /// it.
    Wrong(Option<String>),
    /// A node's own key of another generation than in the fleet file.
    Revoked {
        /// The node.
        node: String,
        /// Generation of the key.
        shown: u32,
        /// Generation in the fleet file.
        current: u32,
    },
    /// The own key of a node that the fleet file does not have.
    Gone(String),
    /// The fleet's key, where each node must present its own.
    Shared,
    /// A node's own key with a message about another node.
    Other {
        /// Owner of the key.
        shown: String,
        /// Node that the message names.
        named: String,
    },
    /// This node has only its own key and cannot check others.
    CannotCheck,
}

impl KeyRefused {
    /// Label in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Wrong(_) => "wrong",
            Self::Revoked { .. } => "revoked",
            Self::Gone(_) => "unknown-node",
            Self::Shared => "shared",
            Self::Other { .. } => "other-node",
            Self::CannotCheck => "cannot-check",
        }
    }

    /// The status of the answer: 403 for a good key of another node, 401 otherwise.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Other { .. } => StatusCode::FORBIDDEN,
            Self::CannotCheck => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNAUTHORIZED,
        }
    }

    /// The node of the key, or that a wrong key names. Only names that the fleet has or had.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Wrong(node) => node.as_deref(),
            Self::Revoked { node, .. } | Self::Gone(node) => Some(node),
            Self::Other { shown, .. } => Some(shown),
            Self::Missing | Self::Shared | Self::CannotCheck => None,
        }
    }
}

impl std::fmt::Display for KeyRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("this needs a node key (Authorization: Bearer)"),
            Self::Wrong(_) => f.write_str("the node key is wrong: it is neither this fleet's key nor the own key of one of its nodes"),
            Self::Revoked { node, shown, current } => write!(
                f,
                "the key of {node} is of generation {shown}, and the fleet file in force says key_generation = {current}: give the node \
                 the key that `nearcast key {node}` prints"
            ),
            Self::Gone(node) => write!(f, "the key is of {node}, which the fleet file in force does not have"),
            Self::Shared => f.write_str(
                "this is the fleet's key, and the fleet file says node_keys = \"own\": give each node the key that `nearcast key NODE` prints",
            ),
            Self::Other { shown, named } => write!(f, "the key is of {shown}, which may not speak for {named:?}"),
            Self::CannotCheck => f.write_str("this node holds its own key alone; control and name servers need the fleet's key"),
        }
    }
}

impl std::error::Error for KeyRefused {}

impl Caller {
    /// Whether this caller may speak for a node.
    ///
    /// # Errors
    /// [`KeyRefused::Other`].
    pub fn speaks_for(&self, named: &str) -> Result<(), KeyRefused> {
        match self {
            Self::Node(shown) if shown != named => Err(KeyRefused::Other {
                shown: shown.clone(),
                named: named.chars().take(64).collect(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether the key was the fleet's.
    pub fn is_shared(&self) -> bool {
        *self == Self::Shared
    }
}

impl OwnKey {
    /// Parses a line; `None` when it is not an own key.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text
            .strip_prefix(OWN_KEY_START)
            .filter(|rest| rest.len() <= SHOWN_CHARS_MAX)?;
        let parts: Vec<&str> = rest.split('.').collect();
        let (node, generation, secret, peer) = match parts[..] {
            [node, generation, secret] => (node, generation, secret, None),
            [node, generation, secret, peer] => {
                (node, generation, secret, (peer != "-").then_some(peer))
            }
            _ => return None,
        };

        let is_secret = |text: &str| {
            text.len() == 2 * blake3::OUT_LEN && text.bytes().all(|b| b.is_ascii_hexdigit())
        };
        let good = !node.is_empty()
            && is_secret(secret)
            && peer.is_none_or(is_secret)
            && generation.bytes().all(|b| b.is_ascii_digit());
        Some(Self {
            node: good.then(|| node.to_owned())?,
            generation: generation.parse().ok()?,
            secret: secret.to_owned(),
            peer: peer.map(str::to_owned),
        })
    }

    /// Derives the own key of a node at the generation in the fleet file; `None` when the fleet has
    /// no such node.
    pub fn derive(root: &Secret, fleet: &Fleet, node: &str) -> Option<Self> {
        let is_known = fleet.has_reporting_node(node);
        let generation = generation(fleet, node);
        let peer = fleet
            .edge(node)
            .map(|(cluster, _)| peer_secret(root, fleet, &cluster.name));
        is_known.then(|| Self {
            node: node.to_owned(),
            generation,
            secret: secret(root, node, generation),
            peer,
        })
    }

    /// The whole line, for the node's key file.
    pub fn line(&self) -> Secret {
        Secret(format!(
            "{}.{}",
            self.shown().0,
            self.peer.as_deref().unwrap_or("-")
        ))
    }

    /// The line that the node presents to control and name servers.
    pub fn shown(&self) -> Secret {
        Secret(format!(
            "{OWN_KEY_START}{}.{}.{}",
            self.node, self.generation, self.secret
        ))
    }
}

/// Whether a key is a node's own key and not the fleet's.
pub fn is_own(key: &Secret) -> bool {
    key.0.starts_with(OWN_KEY_START)
}

/// The key that a node presents to control and name servers: its own key, the one derived for it
/// where each node has its own, or the fleet's. `None` without a key.
pub fn shown_by(fleet: &Fleet, node: &str) -> Option<Secret> {
    let held = &fleet.node_key;
    if held.0.is_empty() {
        return None;
    }
    if is_own(held) {
        return Some(OwnKey::parse(&held.0).map_or_else(|| held.clone(), |own| own.shown()));
    }
    if fleet.keys.own_only
        && let Some(own) = OwnKey::derive(held, fleet, node)
    {
        return Some(own.shown());
    }
    Some(held.clone())
}

/// The own key that a node presents where nothing else is accepted; `None` without a key, and for a
/// name that is no node of the fleet.
pub fn own_of(fleet: &Fleet, node: &str) -> Option<Secret> {
    let held = &fleet.node_key;
    if held.0.is_empty() {
        return None;
    }
    let own = match is_own(held) {
        true => OwnKey::parse(&held.0),
        false => OwnKey::derive(held, fleet, node),
    };
    own.map(|own| own.shown())
}

/// The owner of the key in a request (`Authorization: Bearer KEY`), compared in constant time. A
/// fleet without a key trusts nobody.
///
/// # Errors
/// [`KeyRefused`].
pub fn caller(fleet: &Fleet, fields: &HeaderMap) -> Result<Caller, KeyRefused> {
    let mut all = fields.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return Err(KeyRefused::Missing);
    };
    let Some((scheme, shown)) = value.to_str().ok().and_then(|v| v.split_once(' ')) else {
        return Err(KeyRefused::Wrong(None));
    };
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(KeyRefused::Missing);
    }
    caller_of(fleet, shown.trim())
}

fn caller_of(fleet: &Fleet, shown: &str) -> Result<Caller, KeyRefused> {
    let root = &fleet.node_key;
    if root.0.is_empty() {
        return Err(KeyRefused::Wrong(None));
    }
    if is_own(root) {
        return Err(KeyRefused::CannotCheck);
    }
    let Some(own) = OwnKey::parse(shown) else {
        return match (root.matches(shown.as_bytes()), fleet.keys.own_only) {
            (true, false) => Ok(Caller::Shared),
            (true, true) => Err(KeyRefused::Shared),
            (false, _) => Err(KeyRefused::Wrong(None)),
        };
    };

    let is_known = fleet.has_reporting_node(&own.node);
    if !Secret(secret(root, &own.node, own.generation)).matches(own.secret.as_bytes()) {
        return Err(KeyRefused::Wrong(is_known.then_some(own.node)));
    }
    if !is_known {
        return Err(KeyRefused::Gone(own.node));
    }
    let current = generation(fleet, &own.node);
    if own.generation != current {
        return Err(KeyRefused::Revoked {
            node: own.node,
            shown: own.generation,
            current,
        });
    }

    Ok(Caller::Node(own.node))
}

/// The secret that an edge presents to the other edges of its cluster; `None` without a key.
pub fn shown_to_peers(fleet: &Fleet, cluster: &str) -> Option<Secret> {
    let held = &fleet.node_key;
    if held.0.is_empty() {
        return None;
    }
    if is_own(held) {
        return OwnKey::parse(&held.0)?.peer.map(Secret);
    }
    Some(Secret(peer_secret(held, fleet, cluster)))
}

/// The secrets that are accepted from other edges of the cluster: the cluster's, and the fleet's
/// key while that is accepted.
pub fn accepted_from_peers(fleet: &Fleet, cluster: &str) -> Vec<Secret> {
    let held = &fleet.node_key;
    let is_root_accepted = !fleet.keys.own_only && !held.0.is_empty() && !is_own(held);
    shown_to_peers(fleet, cluster)
        .into_iter()
        .chain(is_root_accepted.then(|| held.clone()))
        .collect()
}

/// Whether a presented secret is one of the accepted ones, compared in constant time.
pub fn is_one_of(shown: &[u8], accepted: &[Secret]) -> bool {
    // Without an early end, which would show how many do not match.
    let matches = accepted.iter().map(|secret| secret.matches(shown));
    matches.fold(false, |found, is_match| found | is_match)
}

/// Key generation of a node in the fleet file.
pub fn generation(fleet: &Fleet, node: &str) -> u32 {
    fleet.keys.generations.get(node).copied().unwrap_or(1)
}

/// Every node that shows a key, edges first.
pub fn nodes(fleet: &Fleet) -> Vec<&str> {
    let edges = fleet
        .clusters
        .iter()
        .flat_map(|c| &c.nodes)
        .map(|n| n.name.as_str());
    let others = fleet
        .name_servers
        .iter()
        .map(|n| n.name.as_str())
        .chain(fleet.origins.iter().map(|o| o.name.as_str()));
    edges.chain(others).collect()
}

fn secret(root: &Secret, node: &str, generation: u32) -> String {
    derived(root, &["node", node, &generation.to_string()])
}

fn peer_secret(root: &Secret, fleet: &Fleet, cluster: &str) -> String {
    let generation = fleet
        .keys
        .cluster_generations
        .get(cluster)
        .copied()
        .unwrap_or(1);
    derived(root, &["peer", cluster, &generation.to_string()])
}

/// Names contain no blanks, so the joined parts are unambiguous.
fn derived(root: &Secret, parts: &[&str]) -> String {
    let key = blake3::derive_key(CONTEXT, root.0.as_bytes());
    blake3::keyed_hash(&key, parts.join(" ").as_bytes())
        .to_hex()
        .to_string()
}

/// Warnings about keys that work but should be replaced: one sentence each, for `check`, logs and
/// the console.
pub fn warnings(fleet: &Fleet) -> Vec<String> {
    let mut found = Vec::new();
    let key = &fleet.node_key;
    if !key.0.is_empty()
        && !is_own(key)
        && let Strength::Weak(why) = strength(&key.0)
    {
        found.push(format!("fleet.node_key {why}; {MAKE_KEY}"));
    }
    for site in &fleet.sites {
        if let Some(Strength::Weak(why)) = site.purge.token.as_ref().map(|token| strength(&token.0))
        {
            found.push(format!(
                "the purge token of the site {} {why}; {MAKE_KEY}",
                site.name
            ));
        }
    }
    if !key.0.is_empty() && !fleet.keys.own_only {
        found.push(SHARED_WARNING.to_owned());
    }
    found
}

/// The warning about a fleet whose nodes may still present the fleet's key.
const SHARED_WARNING: &str = "the fleet's key is accepted from every node, so each node can speak for all others; give each node its \
     own key (`nearcast key NODE`) and set node_keys = \"own\" in [fleet]; the next release takes nothing else";

#[cfg(test)]
mod tests;
