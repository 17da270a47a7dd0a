//! What happened lately: a bounded ring of events and a live feed of them.
//!
//! Ids grow by one and start at the process's start in milliseconds, so that they also grow over restarts.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::sync::broadcast;

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
        Self { kind, level, message: message.into(), ..Self::default() }
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
}

impl Events {
    /// None yet; ids begin after `first_id`.
    pub(crate) fn new(first_id: u64) -> Self {
        Self { kept: Mutex::new((first_id, VecDeque::new())), feed: broadcast::channel(FEED_MAX).0 }
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
        let found: Vec<Event> = kept.1.iter().rev().take_while(|e| e.id > id).take(most).cloned().collect();
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
        let events = Events::new(1000);
        events.add(5, (0..KEPT_MAX + 10).map(|n| Happening::new("node_up", Level::Good, n.to_string()).node("a")));
        assert_eq!(events.newest(), 1000 + KEPT_MAX as u64 + 10);
        let all = events.after(0, usize::MAX);
        assert_eq!((all.len(), all[0].message.as_str(), all[0].id), (KEPT_MAX, "10", 1011));
        assert_eq!(events.after(events.newest() - 2, 10).len(), 2);
        let newest: Vec<_> = events.after(0, 2).iter().map(|e| e.id).collect();
        assert_eq!(newest, [events.newest() - 1, events.newest()]);
        assert!(events.after(events.newest(), 10).is_empty());
    }

    #[tokio::test]
    async fn a_follower_gets_the_old_and_the_new() {
        let events = Events::new(0);
        events.add(1, [Happening::new("a", Level::Info, "one")]);
        let (old, mut feed) = events.follow(0, 10);
        events.add(2, [Happening::new("b", Level::Warn, "x".repeat(10_000))]);
        assert_eq!(old.len(), 1);
        let event = feed.recv().await.unwrap();
        assert_eq!((event.id, event.kind.as_str(), event.level.as_str(), event.message.len()), (2, "b", "warn", MESSAGE_CHARS_MAX));
    }
}
