//! Keys by which nodes know one another: the fleet's key, and each node's own key that is derived
//! from it.
//!
//! **The fleet's key** is the root. Control and the name servers hold it, since they check what
//! others show. **A node's own key** is derived from it (BLAKE3, keyed) with the node's name and
//! its generation, so that nobody enrols nodes and nothing is stored: whoever holds the fleet's key
//! can say what a node's own key is. A node that holds its own key alone cannot speak for another
//! node. A key is revoked by a higher `key_generation` of that node in the fleet file, or by taking
//! the node out of it.
//!
//! An own key is one line, `nck1.NODE.GENERATION.SECRET.PEER`. What a node shows is the line
//! without the last part. `PEER` is the secret of the node's cluster, by which its edges know one
//! another (`-` for nodes that are no edges); it is the same for all edges of a cluster and renewed
//! by the cluster's own `key_generation`.
//!
//! Owns the text of keys, their derivation, their comparison in constant time, and what makes a
//! secret weak. Does no input or output.

use std::collections::BTreeSet;

use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};

use crate::config::{Fleet, Secret};

/// How a node's own key begins.
pub const OWN_KEY_START: &str = "nck1.";

/// How a new fleet key is made.
pub const MAKE_KEY: &str = "make one with `nearcast key --new`";

/// Separates these keys from everything else that is derived with BLAKE3.
const CONTEXT: &str = "nearcast 2026-11-27 keys of nodes";

/// Longest text in which a key is looked for; an own key has some 220 characters.
const SHOWN_CHARS_MAX: usize = 1024;

/// A secret with less strength than this is refused, in bits as [`strength_bits`] estimates them.
const BITS_MIN: f64 = 36.0;

/// Of so many characters, letters and digits among them, a secret is warned of and not refused, if
/// ...
const LONG_CHARS: usize = 20;

/// ... so many of them differ: the estimate is rough, and errs most about long ones.
const LONG_DIFFERENT: usize = 12;

/// A secret with less strength than this is warned of.
const BITS_GOOD: f64 = 64.0;

/// Secrets that documents have shown as examples: everybody knows them.
const EXAMPLES: [&str; 6] = [
    "at least sixteen characters, kept secret",
    "a long secret that the nodes share",
    "a secret of sixteen characters",
    "sixteen characters or more",
    "correct horse battery staple",
    "replace this by a secret of your own",
];

/// What many people write where a secret is asked for.
const COMMON: [&str; 23] = [
    "password", "passwort", "secret", "changeme", "letmein", "qwerty", "qwertz", "asdfgh", "admin",
    "nearcast", "example", "default", "token", "test", "node", "fleet", "key", "change", "replace",
    "insert", "please", "sample", "your",
];

/// A node's own key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnKey {
    /// The node that it is of.
    pub node: String,
    /// Its generation, 1 for the first.
    pub generation: u32,
    secret: String,
    /// By which edges of its cluster know one another; none for nodes that are no edges.
    peer: Option<String>,
}

/// Who shows a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A node with its own key.
    Node(String),
    /// Somebody with the fleet's key, which speaks for every node.
    Shared,
}

/// Why a key is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRefused {
    /// None is shown.
    Missing,
    /// It is neither the fleet's nor any node's; the node that it names, if the fleet has it.
    Wrong(Option<String>),
    /// It is a node's own, of another generation than the fleet file asks for.
    Revoked {
        /// The node.
        node: String,
        /// The key's generation.
        shown: u32,
        /// The fleet file's.
        current: u32,
    },
    /// It is the own key of a node that the fleet file does not have.
    Gone(String),
    /// It is the fleet's, where each node is to show its own.
    Shared,
    /// It is a node's own, and what comes with it names another one.
    Other {
        /// Whose key it is.
        shown: String,
        /// Who is named.
        named: String,
    },
    /// This node holds its own key alone, by which no other can be checked.
    CannotCheck,
}

impl KeyRefused {
    /// A label for metrics.
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

    /// The node whose key was shown, or that a wrong key names; only names that the fleet has, or
    /// once had.
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
    /// Reads one line; `None` when it is no own key.
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

    /// The own key of a node of the fleet, at the generation of the fleet file; `None` when the
    /// fleet has no such node.
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

    /// The whole line, for the node's own file.
    pub fn line(&self) -> Secret {
        Secret(format!(
            "{}.{}",
            self.shown().0,
            self.peer.as_deref().unwrap_or("-")
        ))
    }

    /// What the node shows to control and name servers.
    pub fn shown(&self) -> Secret {
        Secret(format!(
            "{OWN_KEY_START}{}.{}.{}",
            self.node, self.generation, self.secret
        ))
    }
}

/// Whether a key is a node's own one rather than the fleet's.
pub fn is_own(key: &Secret) -> bool {
    key.0.starts_with(OWN_KEY_START)
}

/// What a node shows to control and to name servers: its own key, the one derived for it where each
/// node has its own, or the fleet's. `None` where there is no key at all.
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

/// Who shows the key that a request carries (`Authorization: Bearer KEY`). Compared in constant
/// time. A fleet without a key trusts nobody.
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

/// What the edges of a cluster show one another, as an edge of it knows it; `None` without a key.
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

/// What other edges of the cluster may show: the cluster's secret, and the fleet's key where that
/// is still accepted.
pub fn accepted_from_peers(fleet: &Fleet, cluster: &str) -> Vec<Secret> {
    let held = &fleet.node_key;
    let is_root_accepted = !fleet.keys.own_only && !held.0.is_empty() && !is_own(held);
    shown_to_peers(fleet, cluster)
        .into_iter()
        .chain(is_root_accepted.then(|| held.clone()))
        .collect()
}

/// Whether what is shown is one of the secrets that are accepted. Compared in constant time.
pub fn is_one_of(shown: &[u8], accepted: &[Secret]) -> bool {
    // Without an early end, which would show how many do not match.
    let matches = accepted.iter().map(|secret| secret.matches(shown));
    matches.fold(false, |found, is_match| found | is_match)
}

/// A node's key generation in the fleet file.
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

/// Names have no blanks, so parts with blanks between them cannot be read in two ways.
fn derived(root: &Secret, parts: &[&str]) -> String {
    let key = blake3::derive_key(CONTEXT, root.0.as_bytes());
    blake3::keyed_hash(&key, parts.join(" ").as_bytes())
        .to_hex()
        .to_string()
}

/// How good a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Strength {
    /// Nothing speaks against it.
    Good,
    /// It could be guessed with effort, and why.
    Weak(String),
    /// Anybody can guess it, and why.
    Worthless(String),
}

/// Judges a secret that people have chosen.
pub fn strength(secret: &str) -> Strength {
    if is_own(&Secret(secret.to_owned())) {
        return Strength::Good;
    }
    let lower = secret.to_lowercase();
    if EXAMPLES.contains(&lower.trim())
        || lower.starts_with("paste ")
        || (lower.starts_with('<') && lower.ends_with('>'))
    {
        return Strength::Worthless(
            "is an example of the documentation, which everybody knows".to_owned(),
        );
    }
    if secret.chars().collect::<BTreeSet<_>>().len() < 6 {
        return Strength::Worthless("has fewer than six different characters".to_owned());
    }
    let bits = strength_bits(secret);
    if bits < BITS_MIN && !is_long_and_mixed(without_repetition(secret)) {
        return Strength::Worthless(
            "is made of common words, runs or repetitions, which are guessed first".to_owned(),
        );
    }
    if bits < BITS_GOOD {
        return Strength::Weak(
            "is made of few words, runs or repetitions, and may be guessed".to_owned(),
        );
    }
    Strength::Good
}

/// Whether a secret that does not repeat itself and has no common word is too long and too mixed to
/// be refused for an estimate alone.
fn is_long_and_mixed(secret: &str) -> bool {
    let is_mixed = secret.bytes().any(|b| b.is_ascii_digit())
        && secret.bytes().any(|b| b.is_ascii_alphabetic());
    let plain: String = secret.to_lowercase().chars().map(plain_letter).collect();
    is_mixed
        && !COMMON.iter().any(|word| plain.contains(word))
        && secret.chars().count() >= LONG_CHARS
        && secret.chars().collect::<BTreeSet<_>>().len() >= LONG_DIFFERENT
}

/// An estimate of how much a secret is worth, in bits, as somebody would guess it who tries words,
/// runs and repetitions first.
fn strength_bits(secret: &str) -> f64 {
    let text = without_repetition(secret);
    let plain: String = text.to_lowercase().chars().map(plain_letter).collect();
    let (mut text, mut plain) = (text.to_owned(), plain);
    let mut bits = 0.0;
    for word in COMMON {
        while let Some(at) = plain.find(word).filter(|_| plain.len() == text.len()) {
            plain.replace_range(at..at + word.len(), " ");
            text.replace_range(at..at + word.len(), " ");
            bits += 4.0;
        }
    }
    bits + text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .map(token_bits)
        .sum::<f64>()
}

/// One of several repetitions; the whole when it does not repeat.
fn without_repetition(text: &str) -> &str {
    let bytes = text.as_bytes();
    let period =
        (1..=bytes.len() / 2).find(|p| bytes.iter().zip(&bytes[*p..]).all(|(a, b)| a == b));
    period.and_then(|p| text.get(..p)).unwrap_or(text)
}

/// Undoes what people do to letters, so that `p4ssw0rd` is what it is.
fn plain_letter(c: char) -> char {
    match c {
        '0' => 'o',
        '1' | '!' => 'i',
        '3' => 'e',
        '4' | '@' => 'a',
        '5' | '$' => 's',
        '7' => 't',
        other => other,
    }
}

fn token_bits(token: &str) -> f64 {
    let bytes = token.as_bytes();
    let changes = bytes
        .windows(2)
        .filter(|w| class(w[0]) != class(w[1]))
        .count();
    // Letters that follow one another, or the same again, say nothing new.
    let new = bytes.windows(2).filter(|w| w[0].abs_diff(w[1]) > 1).count()
        + usize::from(!bytes.is_empty());
    let share = if bytes.is_empty() {
        0.0
    } else {
        new as f64 / bytes.len() as f64
    };
    if changes >= 3 {
        return bytes.len() as f64
            * share
            * if bytes.iter().all(u8::is_ascii_hexdigit) {
                4.0
            } else {
                5.5
            };
    }
    let runs = bytes.chunk_by(|a, b| class(*a) == class(*b));
    runs.map(|run| match (class(run[0]), run.len() as f64) {
        (Class::Digit, length) => 3.3 * length * share,
        (_, length) => (4.7 * length * share).min(11.0 * (length / 4.5).ceil()),
    })
    .sum()
}

#[derive(PartialEq, Eq)]
enum Class {
    Digit,
    Lower,
    Upper,
}

fn class(byte: u8) -> Class {
    match byte {
        b'0'..=b'9' => Class::Digit,
        b'A'..=b'Z' => Class::Upper,
        _ => Class::Lower,
    }
}

/// What is good enough to run and is to be mended: one sentence each, for `check`, logs and the
/// console.
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

/// What is said of a fleet whose nodes may still show the fleet's key.
pub const SHARED_WARNING: &str = "the fleet's key is accepted from every node, so each node can speak for all others; give each node its \
     own key (`nearcast key NODE`) and set node_keys = \"own\" in [fleet]; the next release takes nothing else";

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::testing::FleetText;

    const ROOT: &str = "zmeTmqW0rsUuA4mGJ8J3ZkSb0hWcYyTt";

    fn fleet(more: &str, nodes: &str) -> Fleet {
        FleetText::new()
            .set("node_key", &format!("\"{ROOT}\""))
            .text_in_fleet(more)
            .text_after("[control]")
            .name_server("ns1", "127.0.0.1:5300")
            .cluster_head("ams", "")
            .node("ams-1", "192.0.2.1", nodes)
            .node("ams-2", "192.0.2.2", "")
            .fleet()
    }

    fn own_only(mut fleet: Fleet) -> Fleet {
        fleet.keys.own_only = true;
        fleet
    }

    fn key(fleet: &Fleet, node: &str) -> OwnKey {
        OwnKey::derive(&Secret(ROOT.into()), fleet, node).expect("a node of the fleet")
    }

    fn with(shown: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            AUTHORIZATION,
            HeaderValue::try_from(format!("Bearer {shown}")).expect("a field"),
        )])
    }

    #[test]
    fn a_key_is_read_as_it_was_written_and_nothing_else_is_one() {
        let fleet = fleet("", "");
        let edge = key(&fleet, "ams-1");
        assert_eq!(OwnKey::parse(&edge.line().0), Some(edge.clone()));
        let dns = key(&fleet, "ns1");
        assert!(
            dns.line().0.ends_with(".-"),
            "no edge, no secret of a cluster"
        );
        assert_eq!(OwnKey::parse(&dns.line().0), Some(dns));
        assert!(
            !edge
                .shown()
                .0
                .contains(edge.peer.as_deref().expect("an edge")),
            "control never sees the secret of the cluster"
        );
        assert_eq!(OwnKey::derive(&Secret(ROOT.into()), &fleet, "lon-1"), None);
        for bad in [
            "",
            "nck1.",
            "nck1.a.1.b",
            "nck1.a.x.y.z",
            "nck2.ams-1.1",
            ROOT,
            &edge.line().0[..90],
            &format!("{}.x", edge.line().0),
        ] {
            assert_eq!(OwnKey::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn keys_differ_by_node_generation_root_and_use() {
        let (one, two) = (fleet("", ""), fleet("", "key_generation = 2"));
        let other = Secret("another key of the fleet, long enough".into());
        let all = [
            key(&one, "ams-1").secret,
            key(&one, "ams-2").secret,
            key(&one, "ns1").secret,
            key(&two, "ams-1").secret,
            OwnKey::derive(&other, &one, "ams-1")
                .expect("a node")
                .secret,
            key(&one, "ams-1").peer.expect("an edge"),
        ];
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        assert_eq!(
            key(&one, "ams-1").peer,
            key(&two, "ams-2").peer,
            "one secret a cluster"
        );
    }

    #[test]
    fn each_key_speaks_for_whom_it_is_of() {
        let shared = fleet("", "key_generation = 2");
        let own = own_only(shared.clone());
        let before = key(&fleet("", ""), "ams-1").shown().0;
        let now = key(&shared, "ams-1").shown().0;
        let gone = {
            let mut with_more = shared.clone();
            with_more.clusters[0].nodes[1].name = "lon-1".into();
            key(&with_more, "lon-1").shown().0
        };
        let revoked = KeyRefused::Revoked {
            node: "ams-1".into(),
            shown: 1,
            current: 2,
        };
        let forged = format!("{}0", &now[..now.len() - 1]);
        let forged = if forged == now {
            format!("{}1", &now[..now.len() - 1])
        } else {
            forged
        };
        let table = [
            (&shared, ROOT, Ok(Caller::Shared)),
            (&own, ROOT, Err(KeyRefused::Shared)),
            (&shared, now.as_str(), Ok(Caller::Node("ams-1".into()))),
            (&own, now.as_str(), Ok(Caller::Node("ams-1".into()))),
            (&own, before.as_str(), Err(revoked.clone())),
            (&shared, before.as_str(), Err(revoked)),
            (&own, gone.as_str(), Err(KeyRefused::Gone("lon-1".into()))),
            (
                &own,
                forged.as_str(),
                Err(KeyRefused::Wrong(Some("ams-1".into()))),
            ),
            (&shared, "another", Err(KeyRefused::Wrong(None))),
            (&own, "another", Err(KeyRefused::Wrong(None))),
        ];
        for (fleet, shown, expected) in table {
            assert_eq!(caller(fleet, &with(shown)), expected, "{shown}");
        }
        assert_eq!(caller(&own, &HeaderMap::new()), Err(KeyRefused::Missing));
        let mut twice = with(&now);
        twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        assert_eq!(caller(&own, &twice), Err(KeyRefused::Missing));
        let mut holder = own.clone();
        holder.node_key = key(&own, "ams-2").line();
        assert_eq!(caller(&holder, &with(&now)), Err(KeyRefused::CannotCheck));
        holder.node_key = Secret(String::new());
        assert_eq!(
            caller(&holder, &with("")),
            Err(KeyRefused::Wrong(None)),
            "a fleet without a key trusts nobody"
        );
        let caller = Caller::Node("ams-1".into());
        assert_eq!(caller.speaks_for("ams-1"), Ok(()));
        let refused = caller.speaks_for("ams-2").expect_err("another node");
        assert_eq!(
            (refused.status(), refused.node()),
            (StatusCode::FORBIDDEN, Some("ams-1"))
        );
        assert_eq!(Caller::Shared.speaks_for("ams-2"), Ok(()));
    }

    #[test]
    fn a_node_shows_what_is_checked() {
        for fleet in [fleet("", ""), own_only(fleet("", "key_generation = 7"))] {
            for node in nodes(&fleet) {
                let shown = shown_by(&fleet, node).expect("a key");
                caller(&fleet, &with(&shown.0))
                    .expect("good")
                    .speaks_for(node)
                    .expect("its own");
                let mut holder = fleet.clone();
                holder.node_key = key(&fleet, node).line();
                let shown = shown_by(&holder, node).expect("a key");
                assert_eq!(
                    caller(&fleet, &with(&shown.0)),
                    Ok(Caller::Node(node.to_owned()))
                );
            }
        }
    }

    #[test]
    fn edges_of_a_cluster_know_one_another_by_its_secret() {
        let root = fleet("", "");
        let (mut one, mut two) = (root.clone(), root.clone());
        one.node_key = key(&root, "ams-1").line();
        two.node_key = key(&root, "ams-2").line();
        let is_peer = |fleet: &Fleet, cluster: &str, shown: &[u8]| {
            is_one_of(shown, &accepted_from_peers(fleet, cluster))
        };
        let shown = shown_to_peers(&one, "ams").expect("an edge");
        for fleet in [&two, &root, &own_only(root.clone())] {
            assert!(is_peer(fleet, "ams", shown.0.as_bytes()));
            assert!(!is_peer(fleet, "ams", b"x") && !is_peer(fleet, "ams", b""));
        }
        assert!(
            is_peer(&root, "ams", ROOT.as_bytes()),
            "an edge of an earlier version"
        );
        assert!(!is_peer(&own_only(root.clone()), "ams", ROOT.as_bytes()));
        assert!(!is_peer(&two, "ams", two.node_key.0.as_bytes()));
        let mut renewed = root.clone();
        renewed.keys.cluster_generations.insert("ams".into(), 2);
        assert!(!is_peer(&renewed, "ams", shown.0.as_bytes()));
        let mut none = root;
        none.node_key = Secret(String::new());
        assert!(!is_peer(&none, "ams", b""));
    }

    #[test]
    fn secrets_that_are_guessed_first_are_known() {
        let made = (0..64_u32).map(|n| derived(&Secret(n.to_string()), &["x"])[..32].to_owned());
        for good in made.chain([
            ROOT.to_owned(),
            "a key that only this test knows".to_owned(),
        ]) {
            assert_eq!(strength(&good), Strength::Good, "{good}");
        }
        for weak in [
            "sixteen characters",
            "a key for one benchmark",
            "the key of this test",
            "kqzjxwvbmtrplfgh",
            "0123456789abcdef0123",
        ] {
            assert!(
                matches!(strength(weak), Strength::Weak(_)),
                "{weak}: {:?} {}",
                strength(weak),
                strength_bits(weak)
            );
        }
        for worthless in [
            "at least sixteen characters, kept secret",
            "A long secret that the nodes share",
            "aaaaaaaaaaaaaaaa",
            "abababababababab",
            "1234567890123456",
            "0123456789abcdef",
            "0123456789abcdef0123456789abcdef",
            "abcdefghijklmnopqrstuvwxyz",
            "abcdefghijklmnop",
            "01234567890123456789",
            "password0123456789abcdef",
            "passwordpassword",
            "P4ssw0rdP4ssw0rd",
            "secret-node-key-1",
            "changemechangeme!",
            "nearcastnearcast",
            "qwertyqwerty1234",
            "testtesttesttest",
            "<your secret here>",
            "example-node-key-123",
            "CHANGE-ME-PLEASE-NOW",
            "replace-this-key-please",
        ] {
            assert!(
                matches!(strength(worthless), Strength::Worthless(_)),
                "{worthless}: {}",
                strength_bits(worthless)
            );
        }
    }

    #[test]
    fn a_shared_key_is_warned_of() {
        let shared = fleet("", "");
        assert_eq!(warnings(&shared), [SHARED_WARNING]);
        assert_eq!(warnings(&own_only(shared.clone())), Vec::<String>::new());
        let mut weak = own_only(shared);
        weak.node_key = Secret("sixteen characters".into());
        assert!(
            warnings(&weak)[0].starts_with("fleet.node_key is made of few words"),
            "{:?}",
            warnings(&weak)
        );
    }
}
