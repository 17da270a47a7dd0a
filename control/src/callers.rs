//! Who the nodes are that ask control: what keys they show, and which were refused.
//!
//! A refused key is an event and a line of the log, at most one a minute for each node and reason,
//! with how often it was shown meanwhile: a node with a wrong key asks several times a second.
//! Pure: the time comes in.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use nearcast_fleet::node_key::{Caller, KeyRefused};

use crate::events::{Happening, Level};

/// Time between two events of one node and reason.
const TOLD_EVERY_MS: u64 = 60_000;
/// Nodes and reasons that are kept apart; the rest share one.
const KEPT_MAX: usize = 4096;

#[derive(Debug, Default)]
struct Told {
    at_unix_ms: u64,
    /// Refusals since then.
    since: u64,
}

#[derive(Debug, Default)]
struct Inner {
    refused: BTreeMap<(String, &'static str), Told>,
    /// What kind of key each node has shown last.
    shown: BTreeMap<String, &'static str>,
}

/// What nodes have shown.
#[derive(Debug, Default)]
pub(crate) struct Callers(Mutex<Inner>);

impl Callers {
    /// A key was refused; `node` is who it seems to be, if the fleet has that node. Gives what is
    /// to be told.
    pub(crate) fn refused(
        &self,
        node: Option<&str>,
        refused: &KeyRefused,
        now_unix_ms: u64,
    ) -> Option<Happening> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = node.unwrap_or_default();
        let mut key = (name.to_owned(), refused.label());
        if inner.refused.len() >= KEPT_MAX && !inner.refused.contains_key(&key) {
            key = (String::new(), refused.label());
        }
        let told = inner.refused.entry(key).or_default();
        if told.at_unix_ms > 0 && now_unix_ms.saturating_sub(told.at_unix_ms) < TOLD_EVERY_MS {
            told.since += 1;
            return None;
        }
        let before = std::mem::replace(
            told,
            Told {
                at_unix_ms: now_unix_ms,
                since: 0,
            },
        )
        .since;
        let who = node.unwrap_or("somebody");
        let more = if before == 0 {
            String::new()
        } else {
            format!(" ({before} more since it was last told)")
        };
        let happening = Happening::new(
            "key_refused",
            Level::Warn,
            format!("{who} is refused: {refused}{more}"),
        );
        Some(match node {
            Some(node) => happening.node(node),
            None => happening,
        })
    }

    /// A node has shown a good key.
    pub(crate) fn accepted(&self, node: &str, caller: &Caller) {
        let kind = if caller.is_shared() { "shared" } else { "own" };
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.shown.get(node) != Some(&kind) {
            inner.shown.insert(node.to_owned(), kind);
        }
    }

    /// What kind of key a node has shown last, `own` or `shared`.
    pub(crate) fn shown(&self, node: &str) -> Option<&'static str> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .shown
            .get(node)
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_key_is_told_once_a_minute_with_its_count() {
        let callers = Callers::default();
        let wrong = KeyRefused::Wrong(None);
        let first = callers
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
            assert!(callers.refused(Some("ams-1"), &wrong, 2_000 + n).is_none());
        }
        assert!(
            callers.refused(Some("ams-2"), &wrong, 3_000).is_some(),
            "each node by itself"
        );
        assert!(
            callers
                .refused(Some("ams-1"), &KeyRefused::Missing, 3_000)
                .is_some(),
            "each reason by itself"
        );
        assert!(
            callers
                .refused(None, &wrong, 3_000)
                .expect("told")
                .message
                .starts_with("somebody")
        );
        let again = callers
            .refused(Some("ams-1"), &wrong, 61_000)
            .expect("a minute later");
        assert!(
            again.message.ends_with("(50 more since it was last told)"),
            "{}",
            again.message
        );
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let callers = Callers::default();
        for n in 0..2 * KEPT_MAX {
            let _ = callers.refused(Some(&n.to_string()), &KeyRefused::Missing, 1);
        }
        assert!(callers.0.lock().expect("whole").refused.len() <= KEPT_MAX + 1);
    }
}
