//! The newest events, in a bounded ring, and a live feed of new ones.
//!
//! Ids grow by one and start no lower than the process's start in milliseconds, so they also grow
//! over restarts. Events are written to the state log and outlive the process.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::event::{Level, NewEvent};
use crate::fleet_state::saved::StateRecord;
use crate::persist::state_log::StateLog;
use crate::views::Event;

/// Events in the ring.
pub(crate) const EVENTS_MAX: usize = 512;
/// A reader of the feed that is further behind than this continues from the ring.
const FEED_MAX: usize = 256;
/// Longer messages are cut.
const MESSAGE_CHARS_MAX: usize = 500;

/// The ring and the feed.
#[derive(Debug)]
pub(crate) struct EventLog {
    ring: Mutex<Ring>,
    feed: broadcast::Sender<Event>,
    /// Where events are saved; none in tests.
    log: Option<StateLog>,
}

#[derive(Debug)]
struct Ring {
    newest_id: u64,
    /// Oldest first.
    events: VecDeque<Event>,
}

impl EventLog {
    /// `earlier` are the events of earlier processes, oldest first; new ids follow both theirs and
    /// `first_id`. New events are saved in `log`.
    pub(crate) fn new(first_id: u64, earlier: Vec<Event>, log: Option<StateLog>) -> Self {
        let newest_id = earlier
            .iter()
            .map(|e| e.id)
            .max()
            .unwrap_or(0)
            .max(first_id);
        let surplus = earlier.len().saturating_sub(EVENTS_MAX);
        Self {
            ring: Mutex::new(Ring {
                newest_id,
                events: earlier.into_iter().skip(surplus).collect(),
            }),
            feed: broadcast::channel(FEED_MAX).0,
            log,
        }
    }

    /// Adds events that happened at a real time.
    pub(crate) fn add(&self, now_unix_ms: u64, new_events: impl IntoIterator<Item = NewEvent>) {
        let mut ring = self.ring.lock();
        for new in new_events {
            ring.newest_id += 1;
            let event = Event {
                id: ring.newest_id,
                at_unix_ms: now_unix_ms,
                kind: new.kind.to_owned(),
                message: new.message.chars().take(MESSAGE_CHARS_MAX).collect(),
                level: new.level.name().to_owned(),
                node: new.node,
                cluster: new.cluster,
                revision: new.revision,
                order: new.order,
            };
            match new.level {
                Level::Warn => tracing::warn!(kind = event.kind, "{}", event.message),
                Level::Good | Level::Info => {
                    tracing::info!(kind = event.kind, "{}", event.message);
                }
            }
            if ring.events.len() == EVENTS_MAX {
                ring.events.pop_front();
            }
            ring.events.push_back(event.clone());
            if let Some(log) = &self.log {
                log.append([StateRecord::Event(event.clone())]);
            }
            // Fails when nobody follows the feed; the ring has the event.
            let _ = self.feed.send(event);
        }
    }

    /// Id of the newest event.
    pub(crate) fn newest(&self) -> u64 {
        self.ring.lock().newest_id
    }

    /// Events after an id, oldest first: the newest `most` of them.
    pub(crate) fn after(&self, id: u64, most: usize) -> Vec<Event> {
        let ring = self.ring.lock();
        let newest_first = ring.events.iter().rev().take_while(|e| e.id > id);
        let mut found: Vec<Event> = newest_first.take(most).cloned().collect();
        found.reverse();
        found
    }

    /// Events after an id, and a receiver of all later ones. None is lost between the two; the
    /// receiver may repeat some.
    pub(crate) fn follow(&self, id: u64, most: usize) -> (Vec<Event>, broadcast::Receiver<Event>) {
        // Subscribe first. The caller skips repeated events by their ids.
        let feed = self.feed.subscribe();
        (self.after(id, most), feed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_with_growing_ids() {
        let events = EventLog::new(1000, Vec::new(), None);
        events.add(
            5,
            (0..EVENTS_MAX + 10)
                .map(|n| NewEvent::new("node_up", Level::Good, n.to_string()).node("a")),
        );
        assert_eq!(events.newest(), 1000 + EVENTS_MAX as u64 + 10);
        let all = events.after(0, usize::MAX);
        assert_eq!(
            (all.len(), all[0].message.as_str(), all[0].id),
            (EVENTS_MAX, "10", 1011)
        );
        assert_eq!(events.after(events.newest() - 2, 10).len(), 2);
        let newest: Vec<_> = events.after(0, 2).iter().map(|e| e.id).collect();
        assert_eq!(newest, [events.newest() - 1, events.newest()]);
        assert!(events.after(events.newest(), 10).is_empty());
    }

    #[test]
    fn those_of_an_earlier_process_come_first_and_ids_go_on() {
        let events = EventLog::new(1000, Vec::new(), None);
        events.add(
            5,
            (0..EVENTS_MAX + 10).map(|n| NewEvent::new("node_up", Level::Good, n.to_string())),
        );
        let earlier = events.after(0, usize::MAX);
        for (first_id, expected) in [(5, earlier[EVENTS_MAX - 1].id + 1), (1_000_000, 1_000_001)] {
            let next = EventLog::new(first_id, earlier.clone(), None);
            assert_eq!(next.after(0, usize::MAX), earlier);
            next.add(6, [NewEvent::new("node_up", Level::Good, "new")]);
            assert_eq!(
                (next.newest(), next.after(0, 1)[0].id),
                (expected, expected)
            );
        }
    }

    #[tokio::test]
    async fn a_follower_gets_the_old_and_the_new() {
        let events = EventLog::new(0, Vec::new(), None);
        events.add(1, [NewEvent::new("a", Level::Info, "one")]);
        let (old, mut feed) = events.follow(0, 10);
        events.add(2, [NewEvent::new("b", Level::Warn, "x".repeat(10_000))]);
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
