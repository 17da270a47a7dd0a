//! The state of the fleet at start: what the journal and the state log of earlier processes say.

use std::collections::{BTreeMap, VecDeque};

use nearcast_fleet::change::{Challenges, Change, Entry};
use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::drains::Drains;

use crate::event_log;
use crate::fleet_state::saved::StateRecord;
use crate::fleet_state::{FleetState, orders, purges};
use crate::journal::{self, SharedJournal};
use crate::views;

/// Orders whose time ran out while control was away stay open for this long, so that nodes can
/// report how they ended.
const ORDERS_GRACE_MS: u64 = 15_000;

/// The state that the journal's entries add up to.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Newest fleet file and its revision.
    pub(crate) fleet_file: Option<(u64, String)>,
    /// Whether nodes still answer challenges of an authority.
    pub(crate) has_open_challenges: bool,
    /// The drains in force.
    drains: Drains,
    /// Newest purges, oldest first.
    purges: VecDeque<Entry>,
    /// Newest push orders, oldest first.
    orders: VecDeque<Entry>,
}

impl History {
    /// Reads the whole journal. Blocking.
    pub(crate) fn read(journal: &SharedJournal) -> Self {
        let mut history = Self::default();
        let mut after = 0;
        loop {
            let page = journal.after_blocking(after, journal::PAGE_ENTRIES_MAX);
            let Some(last) = page.last() else {
                return history;
            };
            after = last.revision;
            for entry in page {
                history.add(entry);
            }
        }
    }

    fn add(&mut self, entry: Entry) {
        let (newest, most) = match entry.change {
            Change::FleetFile { text } => {
                self.fleet_file = Some((entry.revision, text));
                return;
            }
            Change::Purge(_) => (&mut self.purges, purges::PURGES_MAX),
            Change::Push(_) => (&mut self.orders, orders::ORDERS_MAX),
            Change::Drain(_) => {
                self.drains.fold(&entry);
                return;
            }
            Change::Challenges(open) => {
                self.has_open_challenges = open != Challenges::default();
                return;
            }
        };
        if newest.len() == most {
            newest.pop_front();
        }
        newest.push_back(entry);
    }

    /// The state of the fleet as earlier processes left it, and their events. `saved` is what the
    /// state log holds; `is_first` says that there was no state log.
    pub(crate) fn restore(
        &self,
        fleet: &Fleet,
        saved: Vec<StateRecord>,
        is_first: bool,
    ) -> (FleetState, Vec<views::Event>) {
        let now = now_unix_ms();
        let mut fleet_state = FleetState::new(now);
        fleet_state.drains = self.drains.clone();

        // Saved orders come before the journal's, which replace them in their cluster. Saved
        // confirmations come after the journal's purges, which they belong to.
        let (orders, others): (Vec<StateRecord>, Vec<StateRecord>) = saved
            .into_iter()
            .partition(|record| matches!(record, StateRecord::Order(_)));
        for record in orders {
            fleet_state.restore(record);
        }
        self.accept_entries(&mut fleet_state, fleet, is_first);
        let mut events = BTreeMap::new();
        for record in others {
            match record {
                StateRecord::Event(event) => {
                    events.insert(event.id, event);
                    while events.len() > event_log::EVENTS_MAX {
                        events.pop_first();
                    }
                }
                other => fleet_state.restore(other),
            }
        }

        if is_first {
            // Orders whose time ran out before this process are not worth an event.
            fleet_state.orders.expire_silently(now);
        }
        fleet_state.orders.restore_missed();
        fleet_state.orders.expire_not_before(now + ORDERS_GRACE_MS);
        (fleet_state, events.into_values().collect())
    }

    /// Takes the purges and orders of the journal into the state.
    fn accept_entries(&self, fleet_state: &mut FleetState, fleet: &Fleet, is_first: bool) {
        for entry in self.purges.iter().chain(&self.orders) {
            match &entry.change {
                Change::Purge(purge) => fleet_state.purges.accept(
                    entry.revision,
                    entry.accepted_unix_ms,
                    purge,
                    is_first,
                ),
                Change::Push(order) if fleet_state.orders.knows(order, entry.revision) => {}
                Change::Push(order) => {
                    let cluster = fleet.clusters.iter().find(|c| c.name == order.cluster);
                    let nodes = cluster
                        .map(|c| c.nodes.iter().map(|n| n.name.clone()).collect())
                        .unwrap_or_default();
                    fleet_state
                        .orders
                        .accept(order, entry.revision, entry.accepted_unix_ms, nodes);
                }
                Change::FleetFile { .. } | Change::Drain(_) | Change::Challenges(_) => {}
            }
        }
    }
}
