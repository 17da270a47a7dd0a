//! What happened lately: a bounded ring of events and a live feed of them.
//!
//! Ids grow by one and start no lower than the process's start in milliseconds, so that they also
//! grow over restarts. Events are facts and outlive the process.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::sync::broadcast;

use crate::facts::{Fact, Facts};
use crate::view::Event;

/// Events that are kept.
pub(crate) const KEPT_MAX: usize = 512;
/// A reader further behind than this skips to the kept ones.
const FEED_MAX: usize = 256;
/// Longer messages are cut.
const MESSAGE_CHARS_MAX: usize = 500;

/// An event in the making.
#[derive(Debug, Clone, Default)]
pub(crate) struct Happening {
    pub(crate) kind: &'static str,
    pub(crate) level: Level,
    pub(crate) message: String,
    pub(crate) node: Option<String>,
    pub(crate) cluster: Option<String>,
    pub(crate) revision: Option<u64>,
    pub(crate) order: Option<String>,
}

/// How a reader should take it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Level {
    #[default]
    Info,
    Good,
    Warn,
}

impl Happening {
    pub(crate) fn new(kind: &'static str, level: Level, message: impl Into<String>) -> Self {
        Self {
            kind,
            level,
            message: message.into(),
            ..Self::default()
        }
    }

    pub(crate) fn node(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    pub(crate) fn cluster(mut self, cluster: &str) -> Self {
        self.cluster = Some(cluster.to_owned());
        self
    }

    pub(crate) fn revision(mut self, revision: u64) -> Self {
        self.revision = Some(revision);
        self
    }

    pub(crate) fn order(mut self, order: &str) -> Self {
        self.order = Some(order.to_owned());
        self
    }
}

/// The kept events and the feed.
#[derive(Debug)]
pub(crate) struct Events {
    kept: Mutex<(u64, VecDeque<Event>)>,
    feed: broadcast::Sender<Event>,
    /// Where they are written.
    facts: Option<Facts>,
}

impl Events {
    /// Those of earlier processes, oldest first; ids go on after them and after `first_id`. New
    /// ones go to `facts`.
    pub(crate) fn new(first_id: u64, earlier: Vec<Event>, facts: Option<Facts>) -> Self {
        let last = earlier
            .iter()
            .map(|e| e.id)
            .max()
            .unwrap_or(0)
            .max(first_id);
        let kept = earlier
            .into_iter()
            .rev()
            .take(KEPT_MAX)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect();
        Self {
            kept: Mutex::new((last, kept)),
            feed: broadcast::channel(FEED_MAX).0,
            facts,
        }
    }

    /// Records events that happened at a real time.
    pub(crate) fn add(&self, now_unix_ms: u64, happenings: impl IntoIterator<Item = Happening>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for h in happenings {
            kept.0 += 1;
            let event = Event {
                id: kept.0,
                at_unix_ms: now_unix_ms,
                kind: h.kind.to_owned(),
                message: h.message.chars().take(MESSAGE_CHARS_MAX).collect(),
                level: match h.level {
                    Level::Info => "info",
                    Level::Good => "good",
                    Level::Warn => "warn",
                }
                .to_owned(),
                node: h.node,
                cluster: h.cluster,
                revision: h.revision,
                order: h.order,
            };
            tracing::info!(kind = event.kind, "{}", event.message);
            if kept.1.len() == KEPT_MAX {
                kept.1.pop_front();
            }
            kept.1.push_back(event.clone());
            if let Some(facts) = &self.facts {
                facts.record([Fact::Event(event.clone())]);
            }
            // Nobody listens: the ring has it.
            let _ = self.feed.send(event);
        }
    }

    /// Id of the newest event.
    pub(crate) fn newest(&self) -> u64 {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Kept events after an id, oldest first, the newest `most` of them.
    pub(crate) fn after(&self, id: u64, most: usize) -> Vec<Event> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found: Vec<Event> = kept
            .1
            .iter()
            .rev()
            .take_while(|e| e.id > id)
            .take(most)
            .cloned()
            .collect();
        found.into_iter().rev().collect()
    }

    /// Those after an id, and all that come: nothing is lost or doubled between the two.
    pub(crate) fn follow(&self, id: u64, most: usize) -> (Vec<Event>, broadcast::Receiver<Event>) {
        // Subscribed first; what is in both is left out by its id.
        let feed = self.feed.subscribe();
        (self.after(id, most), feed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_with_growing_ids() {
        let events = Events::new(1000, Vec::new(), None);
        events.add(
            5,
            (0..KEPT_MAX + 10)
                .map(|n| Happening::new("node_up", Level::Good, n.to_string()).node("a")),
        );
        assert_eq!(events.newest(), 1000 + KEPT_MAX as u64 + 10);
        let all = events.after(0, usize::MAX);
        assert_eq!(
            (all.len(), all[0].message.as_str(), all[0].id),
            (KEPT_MAX, "10", 1011)
        );
        assert_eq!(events.after(events.newest() - 2, 10).len(), 2);
        let newest: Vec<_> = events.after(0, 2).iter().map(|e| e.id).collect();
        assert_eq!(newest, [events.newest() - 1, events.newest()]);
        assert!(events.after(events.newest(), 10).is_empty());
    }

    #[test]
    fn those_of_an_earlier_process_come_first_and_ids_go_on() {
        let events = Events::new(1000, Vec::new(), None);
        events.add(
            5,
            (0..KEPT_MAX + 10).map(|n| Happening::new("node_up", Level::Good, n.to_string())),
        );
        let earlier = events.after(0, usize::MAX);
        for (first_id, expected) in [(5, earlier[KEPT_MAX - 1].id + 1), (1_000_000, 1_000_001)] {
            let next = Events::new(first_id, earlier.clone(), None);
            assert_eq!(next.after(0, usize::MAX), earlier);
            next.add(6, [Happening::new("node_up", Level::Good, "new")]);
            assert_eq!(
                (next.newest(), next.after(0, 1)[0].id),
                (expected, expected)
            );
        }
    }

    #[tokio::test]
    async fn a_follower_gets_the_old_and_the_new() {
        let events = Events::new(0, Vec::new(), None);
        events.add(1, [Happening::new("a", Level::Info, "one")]);
        let (old, mut feed) = events.follow(0, 10);
        events.add(2, [Happening::new("b", Level::Warn, "x".repeat(10_000))]);
        assert_eq!(old.len(), 1);
        let event = feed.recv().await.unwrap();
        assert_eq!(
            (
                event.id,
                event.kind.as_str(),
                event.level.as_str(),
                event.message.len()
            ),
            (2, "b", "warn", MESSAGE_CHARS_MAX)
        );
    }
}
