//! One purge: its scope, the edges that have confirmed it, and its state in words.

use std::collections::{BTreeMap, BTreeSet};

use nearcast_fleet::change::Purge;
use nearcast_fleet::report::{EdgeReport, PurgeProgress};
use serde::{Deserialize, Serialize};

use crate::event::{Level, NewEvent, count};
use crate::views::{self, Scope};

/// Scopes of one purge that are kept and shown.
const SCOPES_SHOWN_MAX: usize = 16;
/// Scopes of one purge that a sentence names.
const SCOPES_NAMED_MAX: usize = 3;

/// What an edge says of a purge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Confirmation {
    /// Responses covered.
    pub(super) responses: u64,
    pub(super) at_unix_ms: u64,
    /// Whether there may have been more.
    pub(super) is_at_least: bool,
}

/// A purge and everything known about it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PurgeRecord {
    pub(crate) revision: u64,
    pub(super) accepted_unix_ms: u64,
    /// In words, for messages.
    pub(super) description: String,
    pub(super) scopes: Vec<Scope>,
    pub(super) scopes_total: usize,
    pub(super) soft: bool,
    /// By edge: responses covered, and time of the confirmation.
    pub(super) confirmed: BTreeMap<String, (u64, u64)>,
    /// Edges that may have had more responses than they say.
    #[serde(default)]
    pub(super) at_least: BTreeSet<String>,
    /// Edges that have once reported a later revision without a count.
    #[serde(default)]
    pub(super) passed: BTreeSet<String>,
    /// Edges that have fetched the change.
    #[serde(default)]
    pub(super) received: BTreeSet<String>,
    pub(super) completed_unix_ms: u64,
    /// Accepted by an earlier process that had no state log: its completion is not worth an event.
    #[serde(default)]
    pub(super) is_old: bool,
    /// The purge is complete, but that is not on disk yet. It is shown as complete once the state
    /// log has written up to this number; `u64::MAX` until the number is known.
    #[serde(skip)]
    pub(super) shown_after: Option<u64>,
}

impl PurgeRecord {
    /// A purge that the journal has just accepted.
    pub(super) fn new(revision: u64, accepted_unix_ms: u64, purge: &Purge, is_old: bool) -> Self {
        let scopes = purge.scope.each();
        Self {
            revision,
            accepted_unix_ms,
            description: describe(purge),
            scopes: scopes
                .iter()
                .take(SCOPES_SHOWN_MAX)
                .map(Scope::from)
                .collect(),
            scopes_total: scopes.len(),
            soft: purge.soft,
            confirmed: BTreeMap::new(),
            at_least: BTreeSet::new(),
            passed: BTreeSet::new(),
            received: BTreeSet::new(),
            completed_unix_ms: 0,
            is_old,
            shown_after: None,
        }
    }

    /// Applies an edge's report with its count for this purge. Returns the confirmation when it is
    /// new or has changed.
    pub(super) fn confirm(
        &mut self,
        report: &EdgeReport,
        count: Option<&PurgeProgress>,
        now_unix_ms: u64,
    ) -> Option<Confirmation> {
        let earlier = self.confirmation(&report.node);
        let confirmation = if let Some(count) = count {
            Some(Confirmation {
                responses: count.responses,
                at_unix_ms: count.effective_unix_ms,
                is_at_least: count.at_least,
            })
        } else if earlier.is_none()
            && report.revision >= self.revision
            && !self.passed.insert(report.node.clone())
            && self.received.contains(&report.node)
        {
            Some(Confirmation {
                responses: 0,
                at_unix_ms: now_unix_ms,
                is_at_least: false,
            })
        } else {
            earlier
        };
        let changed = confirmation.filter(|_| confirmation != earlier)?;
        self.set_confirmation(&report.node, changed);
        Some(changed)
    }

    /// What an edge has said.
    fn confirmation(&self, node: &str) -> Option<Confirmation> {
        let (responses, at_unix_ms) = *self.confirmed.get(node)?;
        Some(Confirmation {
            responses,
            at_unix_ms,
            is_at_least: self.at_least.contains(node),
        })
    }

    /// Notes what an edge says.
    pub(super) fn set_confirmation(&mut self, node: &str, said: Confirmation) {
        let count = (said.responses, said.at_unix_ms);
        self.confirmed.insert(node.to_owned(), count);
        if said.is_at_least {
            self.at_least.insert(node.to_owned());
        } else {
            self.at_least.remove(node);
        }
    }

    /// Whether all these edges have confirmed it. A fleet without edges confirms nothing.
    pub(super) fn is_confirmed_by_all(&self, edges: &[String]) -> bool {
        !edges.is_empty()
            // Most purges fail this cheap test first.
            && self.confirmed.len() >= edges.len()
            && edges.iter().all(|edge| self.confirmed.contains_key(edge))
    }

    /// The event of its completion.
    pub(super) fn completion_event(&self) -> NewEvent {
        let took = self.completed_unix_ms.saturating_sub(self.accepted_unix_ms);
        let message = format!(
            "purge {} of {} covered {}{} on {} after {took} ms",
            self.revision,
            self.description,
            if self.at_least.is_empty() {
                ""
            } else {
                "at least "
            },
            count(self.responses(), "response"),
            count(self.confirmed.len() as u64, "node")
        );
        NewEvent::new("purge_complete", Level::Good, message).revision(self.revision)
    }

    /// Whether every edge has confirmed it, and that is on disk.
    pub(super) fn is_complete(&self) -> bool {
        self.completed_unix_ms > 0 && self.shown_after.is_none()
    }

    /// Responses covered, on all edges.
    pub(super) fn responses(&self) -> u64 {
        self.confirmed
            .values()
            .fold(0, |a, (n, _)| a.saturating_add(*n))
    }

    /// As an answer of the API. `edges` are all edges, with whether they report.
    pub(super) fn view(&self, edges: &[(String, bool)]) -> views::PurgeView {
        let is_complete = self.is_complete();
        let missing: Vec<&(String, bool)> = edges
            .iter()
            .filter(|(e, _)| !is_complete && !self.confirmed.contains_key(e))
            .collect();
        let names = |keep: &dyn Fn(&(String, bool)) -> bool| {
            missing
                .iter()
                .filter(|e| keep(e))
                .map(|e| e.0.clone())
                .collect()
        };
        views::PurgeView {
            revision: self.revision,
            accepted_unix_ms: self.accepted_unix_ms,
            scope: self.scopes.first().cloned().unwrap_or(Scope::All),
            scopes: self.scopes.clone(),
            scopes_total: self.scopes_total,
            soft: self.soft,
            complete: is_complete,
            completed_unix_ms: if is_complete {
                self.completed_unix_ms
            } else {
                0
            },
            responses: self.responses(),
            at_least: !self.at_least.is_empty(),
            nodes: self
                .confirmed
                .iter()
                .map(|(node, (responses, at))| views::PurgeNode {
                    node: node.clone(),
                    responses: *responses,
                    at_least: self.at_least.contains(node),
                    effective_unix_ms: *at,
                })
                .collect(),
            missing: names(&|_| true),
            silent: names(&|(_, is_reporting)| !is_reporting),
            received: names(&|(edge, _)| self.received.contains(edge)),
            notes: Vec::new(),
        }
    }
}

/// A purge in words: `url http://a/`, `everything`, `site www (soft)`, `tag a, tag b, tag c and 4 more`.
pub(crate) fn describe(purge: &Purge) -> String {
    let scopes = purge.scope.each();
    let mut words = scopes
        .iter()
        .take(SCOPES_NAMED_MAX)
        .map(|scope| Scope::from(scope).describe())
        .collect::<Vec<_>>()
        .join(", ");
    if scopes.len() > SCOPES_NAMED_MAX {
        words.push_str(&format!(" and {} more", scopes.len() - SCOPES_NAMED_MAX));
    }
    if purge.soft {
        format!("{words} (soft)")
    } else {
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearcast_fleet::change::PurgeScope;

    #[test]
    fn words_for_people() {
        let tags = |count: u32| {
            PurgeScope::Any(
                (1..=count)
                    .map(|n| PurgeScope::Tag(format!("t{n}")))
                    .collect(),
            )
        };
        let table = [
            (
                Purge {
                    scope: PurgeScope::Prefix("http://a/x*".into()),
                    soft: false,
                },
                "prefix http://a/x",
            ),
            (
                Purge {
                    scope: PurgeScope::SiteTag {
                        site: "www".into(),
                        tag: "t".into(),
                    },
                    soft: false,
                },
                "tag t of site www",
            ),
            (
                Purge {
                    scope: tags(2),
                    soft: true,
                },
                "tag t1, tag t2 (soft)",
            ),
            (
                Purge {
                    scope: tags(5),
                    soft: false,
                },
                "tag t1, tag t2, tag t3 and 2 more",
            ),
            (
                Purge {
                    scope: PurgeScope::All,
                    soft: false,
                },
                "everything",
            ),
            (
                Purge {
                    scope: PurgeScope::Site("www".into()),
                    soft: true,
                },
                "site www (soft)",
            ),
            (
                Purge {
                    scope: PurgeScope::Url("http://a/".into()),
                    soft: false,
                },
                "url http://a/",
            ),
        ];
        for (purge, expected) in table {
            assert_eq!(describe(&purge), expected);
        }
        assert_eq!(
            (count(1, "node"), count(0, "node")),
            ("1 node".into(), "0 nodes".into())
        );
    }
}
