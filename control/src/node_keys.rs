//! The keys that nodes use: the kind of each node's key, and refused keys.
//!
//! A refused key is an event, at most one a minute for each node and reason, with the number of
//! refusals in between: a node with a wrong key repeats its request several times a second. Pure: the
//! time is an argument.

use std::collections::BTreeMap;

use nearcast_fleet::node_key::{Caller, KeyRefused};
use parking_lot::Mutex;

use crate::event::{Level, NewEvent};

/// Time between two events of one node and reason.
const EVENT_EVERY_MS: u64 = 60_000;
/// Nodes and reasons that are distinguished; the rest share one.
const REFUSALS_MAX: usize = 4096;

/// The last event of a node and reason.
#[derive(Debug, Default)]
struct LastEvent {
    at_unix_ms: u64,
    /// Refusals since then.
    refusals: u64,
}

#[derive(Debug, Default)]
struct Inner {
    refused: BTreeMap<(String, &'static str), LastEvent>,
    /// The kind of key that each node used last.
    kinds: BTreeMap<String, &'static str>,
}

/// The keys that nodes use.
#[derive(Debug, Default)]
pub(crate) struct NodeKeys(Mutex<Inner>);

impl NodeKeys {
    /// Notes a refused key. `node` is the node that the request seems to come from, if the fleet has
    /// it. Returns the event, when one is due.
    pub(crate) fn refused(
        &self,
        node: Option<&str>,
        refused: &KeyRefused,
        now_unix_ms: u64,
    ) -> Option<NewEvent> {
        let mut inner = self.0.lock();
        let name = node.unwrap_or_default();
        let mut key = (name.to_owned(), refused.label());
        if inner.refused.len() >= REFUSALS_MAX && !inner.refused.contains_key(&key) {
            key = (String::new(), refused.label());
        }
        let last = inner.refused.entry(key).or_default();
        if last.at_unix_ms > 0 && now_unix_ms.saturating_sub(last.at_unix_ms) < EVENT_EVERY_MS {
            last.refusals += 1;
            return None;
        }

        let now = LastEvent {
            at_unix_ms: now_unix_ms,
            refusals: 0,
        };
        let more = match std::mem::replace(last, now).refusals {
            0 => String::new(),
            refusals => format!(" ({refusals} more since the last event)"),
        };
        let who = node.unwrap_or("an unknown node");
        let message = format!("{who} is refused: {refused}{more}");
        let new_event = NewEvent::new("key_refused", Level::Warn, message);
        Some(match node {
            Some(node) => new_event.node(node),
            None => new_event,
        })
    }

    /// Notes a valid key of a node.
    pub(crate) fn accepted(&self, node: &str, caller: &Caller) {
        let kind = if caller.is_shared() { "shared" } else { "own" };
        let mut inner = self.0.lock();
        if inner.kinds.get(node) != Some(&kind) {
            inner.kinds.insert(node.to_owned(), kind);
        }
    }

    /// The kind of key that a node used last, `own` or `shared`.
    pub(crate) fn last_kind(&self, node: &str) -> Option<&'static str> {
        self.0.lock().kinds.get(node).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_key_is_told_once_a_minute_with_its_count() {
        let node_keys = NodeKeys::default();
        let wrong = KeyRefused::Wrong(None);
        let first = node_keys
            .refused(Some("ams-1"), &wrong, 1_000)
            .expect("the first is told");
        assert_eq!(
            (first.kind, first.node.as_deref()),
            ("key_refused", Some("ams-1"))
        );
        assert!(
            first
                .message
                .starts_with("ams-1 is refused: the node key is wrong"),
            "{}",
            first.message
        );
        for n in 0..50 {
            assert!(
                node_keys
                    .refused(Some("ams-1"), &wrong, 2_000 + n)
                    .is_none()
            );
        }
        assert!(
            node_keys.refused(Some("ams-2"), &wrong, 3_000).is_some(),
            "each node by itself"
        );
        assert!(
            node_keys
                .refused(Some("ams-1"), &KeyRefused::Missing, 3_000)
                .is_some(),
            "each reason by itself"
        );
        assert!(
            node_keys
                .refused(None, &wrong, 3_000)
                .expect("told")
                .message
                .starts_with("an unknown node")
        );
        let again = node_keys
            .refused(Some("ams-1"), &wrong, 61_000)
            .expect("a minute later");
        assert!(
            again.message.ends_with("(50 more since the last event)"),
            "{}",
            again.message
        );
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let node_keys = NodeKeys::default();
        for n in 0..2 * REFUSALS_MAX {
            let _ = node_keys.refused(Some(&n.to_string()), &KeyRefused::Missing, 1);
        }
        assert!(node_keys.0.lock().refused.len() <= REFUSALS_MAX + 1);
    }
}
