//! Push orders: how far every node is with them, and the benefit of what they pushed. Pure: reports
//! and the time are arguments.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use nearcast_fleet::change::PushOrder;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::report::EdgeReport;
use nearcast_push::account::Earnings as PushBenefit;

use crate::event::{Level, NewEvent};
use crate::fleet_state::order_record::{
    MissedReason, OrderEnd, OrderRecord, OrderUpdate, Outcome, SavedOrder,
};
use crate::views;

/// Orders that are kept, besides the newest order and the newest scheduled order of each cluster.
pub(crate) const ORDERS_MAX: usize = 64;
/// Reasons of failures that are kept for each node.
const REASONS_MAX: usize = 8;

/// The newest push orders.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    /// Oldest first.
    records: VecDeque<OrderRecord>,
    missed: MissedWindows,
    /// No order expires before this time: nodes may have ended orders while control was away, and
    /// get time to report it.
    expires_not_before_unix_ms: u64,
}

/// Off-peak windows that did not complete their push.
#[derive(Debug, Default)]
struct MissedWindows {
    /// The last one of each cluster in words, until a push succeeds there.
    by_cluster: BTreeMap<String, String>,
    /// Those that the metric has not counted yet.
    uncounted: Vec<(String, MissedReason)>,
}

impl MissedWindows {
    fn add(&mut self, cluster: &str, why: MissedReason, words: String) {
        self.by_cluster.insert(cluster.to_owned(), words);
        self.uncounted.push((cluster.to_owned(), why));
    }

    /// Applies the end of an order. Returns its events.
    fn note_end(&mut self, end: OrderEnd) -> Vec<NewEvent> {
        let mut new_events = vec![end.new_event];
        if end.is_good {
            self.by_cluster.remove(&end.cluster);
        }
        if let Some((why, words)) = end.missed {
            let message = format!("{}: {words}", end.cluster);
            new_events
                .push(NewEvent::new("push_missed", Level::Warn, message).cluster(&end.cluster));
            self.add(&end.cluster, why, words);
        }
        new_events
    }
}

impl Orders {
    /// Adds an order of the journal. `nodes` are the cluster's.
    pub(crate) fn accept(
        &mut self,
        order: &PushOrder,
        revision: u64,
        accepted_unix_ms: u64,
        nodes: Vec<String>,
    ) {
        for earlier in self
            .records
            .iter_mut()
            .filter(|r| r.cluster == order.cluster && r.until_unix_ms == 0)
        {
            earlier.until_unix_ms = accepted_unix_ms;
            earlier.outcome.get_or_insert(Outcome::Replaced);
        }
        self.records
            .push_back(OrderRecord::new(order, revision, accepted_unix_ms, nodes));
        self.drop_oldest();
    }

    /// Drops the oldest orders beyond [`ORDERS_MAX`], but keeps those that run and those that show that
    /// a cluster's window has had its order.
    fn drop_oldest(&mut self) {
        let surplus = self.records.len().saturating_sub(ORDERS_MAX);
        if surplus == 0 {
            return;
        }
        let mut newest = BTreeSet::new();
        let kept: Vec<bool> = self
            .records
            .iter()
            .rev()
            .map(|r| newest.insert((r.cluster.clone(), r.is_manual())))
            .collect();
        let (mut kept, mut surplus) = (kept.into_iter().rev(), surplus);
        self.records.retain(|_| {
            let goes = surplus > 0 && !kept.next().unwrap_or(true);
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// Adapts to the fleet: running orders no longer wait for nodes that their cluster has lost, and
    /// windows are not missed where nothing is pushed.
    pub(crate) fn follow(&mut self, fleet: &Fleet) {
        let cluster = |name: &str| fleet.clusters.iter().find(|c| c.name == name);
        for record in self.records.iter_mut().filter(|r| r.outcome.is_none()) {
            let nodes = cluster(&record.cluster)
                .map(|c| c.nodes.as_slice())
                .unwrap_or_default();
            let progress = &record.progress;
            record.nodes.retain(|n| {
                nodes.iter().any(|node| node.name == *n) || progress.get(n).is_some_and(|p| p.ended)
            });
            let kept = &record.nodes;
            record.progress.retain(|n, _| kept.contains(n));
        }
        let is_pushing = fleet.control.as_ref().is_some_and(|c| c.push.is_some());
        self.missed
            .by_cluster
            .retain(|name, _| is_pushing && cluster(name).is_some());
        // Orders of removed clusters count towards the limit too. Otherwise clusters that are added and
        // removed would make the list grow.
        let mut surplus = self.records.len().saturating_sub(ORDERS_MAX);
        self.records.retain(|r| {
            let goes = surplus > 0 && r.outcome.is_some() && cluster(&r.cluster).is_none();
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// Restores an order of an earlier process. Call it for the oldest order first.
    pub(crate) fn restore(&mut self, record: OrderRecord) {
        match self.records.iter_mut().find(|r| r.id == record.id) {
            Some(known) => *known = record,
            None => {
                let at = self
                    .records
                    .partition_point(|r| r.revision < record.revision);
                self.records.insert(at, record);
                self.drop_oldest();
            }
        }
    }

    /// Whether an order of the journal is kept, or was dropped as one of the oldest.
    pub(crate) fn knows(&self, order: &PushOrder, revision: u64) -> bool {
        let oldest = self
            .records
            .len()
            .checked_sub(ORDERS_MAX)
            .and_then(|at| self.records.get(at));
        oldest.is_some_and(|r| r.revision > revision)
            || self.records.iter().any(|r| r.id == order.id)
    }

    /// Lets no order expire before then.
    pub(crate) fn expire_not_before(&mut self, unix_ms: u64) {
        self.expires_not_before_unix_ms = unix_ms;
    }

    /// Orders to save: those that have ended since the last call, or with `all` every order that has
    /// changed.
    pub(crate) fn take_changed(&mut self, all: bool) -> Vec<OrderRecord> {
        let mut changed = Vec::new();
        for record in &mut self.records {
            let has_ended = record.outcome.is_some();
            let is_same = record
                .saved
                .as_ref()
                .map_or(!has_ended, |saved| saved.has_ended == has_ended);
            if (!all && is_same) || record.saved.as_ref().is_some_and(|saved| saved.is_final) {
                continue;
            }
            let json =
                serde_json::to_string(record).expect("an order has string keys and finite numbers");
            let now = Some(SavedOrder {
                has_ended,
                is_final: has_ended && record.until_unix_ms > 0,
                json,
            });
            if record.saved != now {
                record.saved = now;
                changed.push(record.clone());
            }
        }
        changed
    }

    /// All orders.
    pub(crate) fn all(&self) -> Vec<OrderRecord> {
        self.records.iter().cloned().collect()
    }

    /// Applies an edge's progress. Returns the events that it brings.
    pub(crate) fn report(&mut self, report: &EdgeReport) -> Vec<NewEvent> {
        let mut new_events = Vec::new();
        for fill in &report.fills {
            let Some(record) = self.records.iter_mut().rev().find(|r| r.id == fill.order) else {
                continue;
            };
            if !record.nodes.contains(&report.node) {
                continue;
            }
            let mut fill = fill.clone();
            fill.reasons.truncate(REASONS_MAX);
            record.progress.insert(report.node.clone(), fill);
            match record.update() {
                Some(OrderUpdate::Progress(new_event)) => new_events.push(new_event),
                Some(OrderUpdate::End(end)) => new_events.extend(self.missed.note_end(end)),
                None => {}
            }
        }
        new_events
    }

    /// Notes that a window passed without an order. Returns the event.
    pub(crate) fn miss(&mut self, cluster: &str, why: MissedReason, words: String) -> NewEvent {
        let new_event = NewEvent::new("push_missed", Level::Warn, words.clone()).cluster(cluster);
        self.missed.add(cluster, why, words);
        new_event
    }

    /// Why a cluster's last window is counted as missed, in words.
    pub(crate) fn missed(&self, cluster: &str) -> Option<&str> {
        self.missed.by_cluster.get(cluster).map(String::as_str)
    }

    /// Windows missed since the last call, for the metric.
    pub(crate) fn take_missed(&mut self) -> Vec<(String, MissedReason)> {
        std::mem::take(&mut self.missed.uncounted)
    }

    /// Whether a scheduled order of a cluster was accepted within that time.
    pub(crate) fn was_ordered(&self, cluster: &str, from_unix_ms: u64, to_unix_ms: u64) -> bool {
        let is_it = |r: &&OrderRecord| {
            r.cluster == cluster
                && !r.is_manual()
                && (from_unix_ms..to_unix_ms).contains(&r.accepted_unix_ms)
        };
        self.records.iter().any(|r| is_it(&r))
    }

    /// Ends orders whose time ran out before this process, without events.
    pub(crate) fn expire_silently(&mut self, now_unix_ms: u64) {
        let _ = self.tick(now_unix_ms, 0, |_| true);
        self.missed = MissedWindows::default();
    }

    /// Restores which windows the orders of an earlier process missed, so that they are shown until a
    /// push succeeds.
    pub(crate) fn restore_missed(&mut self) {
        for record in &self.records {
            if matches!(record.outcome, Some(Outcome::Ended | Outcome::Expired)) {
                match record.missed() {
                    Some((_, words)) => {
                        self.missed.by_cluster.insert(record.cluster.clone(), words);
                    }
                    None => {
                        self.missed.by_cluster.remove(&record.cluster);
                    }
                }
            }
        }
    }

    /// Credits the newest order of a cluster with the benefit of requests in a local hour.
    pub(crate) fn credit(&mut self, cluster: &str, hour: u8, benefit: PushBenefit) {
        if let Some(record) = self
            .records
            .iter_mut()
            .rev()
            .find(|r| r.cluster == cluster && r.until_unix_ms == 0)
        {
            record.account.add(hour, benefit);
        }
    }

    /// Ends orders whose time ran out more than `grace_ms` ago, which gives nodes time to report how
    /// they ended. Also ends orders that every reporting node has ended: a dead node must not delay
    /// the next order. Returns the events.
    pub(crate) fn tick(
        &mut self,
        now_unix_ms: u64,
        grace_ms: u64,
        reports: impl Fn(&str) -> bool,
    ) -> Vec<NewEvent> {
        let mut new_events = Vec::new();
        let earliest = self.expires_not_before_unix_ms;
        for record in self.records.iter_mut().filter(|r| r.outcome.is_none()) {
            let ended = |node: &String| record.has_ended_on(node);
            let is_ended = record.nodes.iter().any(ended)
                && record.nodes.iter().all(|n| ended(n) || !reports(n));
            if is_ended {
                new_events.extend(self.missed.note_end(record.end()));
            }
        }

        let is_expired = |r: &&mut OrderRecord| {
            r.outcome.is_none()
                && now_unix_ms > r.not_after_unix_ms.saturating_add(grace_ms).max(earliest)
        };
        for record in self.records.iter_mut().filter(is_expired) {
            new_events.extend(self.missed.note_end(record.end()));
        }
        new_events
    }

    /// The order that runs in a cluster.
    pub(crate) fn running(&self, cluster: &str) -> Option<&str> {
        self.records
            .iter()
            .rev()
            .find(|r| r.cluster == cluster && r.outcome.is_none())
            .map(|r| r.id.as_str())
    }

    /// When the cluster's last scheduled order was accepted.
    pub(crate) fn last_scheduled_unix_ms(&self, cluster: &str) -> Option<u64> {
        self.records
            .iter()
            .rev()
            .find(|r| r.cluster == cluster && !r.is_manual())
            .map(|r| r.accepted_unix_ms)
    }

    /// All orders as answers, newest first.
    pub(crate) fn views(&self) -> Vec<views::Order> {
        self.records.iter().rev().map(OrderRecord::view).collect()
    }
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::testing::FleetText;

    use super::*;
    use crate::fleet_state::order_record::order_id;
    use nearcast_fleet::change::PushItem;
    use nearcast_fleet::report::FillProgress;

    fn order(id: &str, cluster: &str, items: usize) -> PushOrder {
        let item = PushItem {
            site: "www".into(),
            url: "http://a/".into(),
            bytes: 100,
        };
        PushOrder {
            id: id.into(),
            cluster: cluster.into(),
            items: vec![item; items],
            rate_bytes: 10,
            not_after_unix_ms: 1000,
            fresh_until_unix_ms: 0,
        }
    }

    fn report(node: &str, order: &str, warmed: u64, ended: bool) -> EdgeReport {
        let fill = FillProgress {
            order: order.into(),
            items: 4,
            warmed,
            origin_bytes: warmed * 100,
            ended,
            ..FillProgress::default()
        };
        EdgeReport {
            node: node.into(),
            fills: vec![fill],
            ..EdgeReport::default()
        }
    }

    fn kinds(new_events: &[NewEvent]) -> Vec<&str> {
        new_events.iter().map(|h| h.kind).collect()
    }

    #[test]
    fn an_order_runs_and_ends() {
        let mut p = Orders::default();
        p.accept(&order("x", "ams", 4), 3, 100, vec!["a".into(), "b".into()]);
        assert_eq!((p.running("ams"), p.running("nyc")), (Some("x"), None));
        assert_eq!(
            kinds(&p.report(&report("a", "x", 1, false))),
            Vec::<&str>::new()
        );
        assert_eq!(
            kinds(&p.report(&report("a", "x", 2, false))),
            ["push_progress"]
        );
        assert!(
            p.report(&report("a", "x", 3, false)).is_empty(),
            "a step is told once"
        );
        assert!(p.report(&report("stranger", "x", 4, true)).is_empty());
        assert_eq!(
            kinds(&p.report(&report("a", "x", 4, true))),
            ["push_progress"]
        );
        assert_eq!(p.views()[0].progress, 0.5);
        assert_eq!(kinds(&p.report(&report("b", "x", 4, true))), ["push_ended"]);
        let view = &p.views()[0];
        assert_eq!(
            (
                view.state.as_str(),
                view.progress,
                view.total.items,
                view.total.origin_bytes,
                view.bytes
            ),
            ("ended", 1.0, 8, 800, 400)
        );
        assert_eq!(p.running("ams"), None);
        assert!(p.tick(2000, 100, |_| true).is_empty(), "it is over");
    }

    #[test]
    fn an_order_can_run_out_of_time_or_be_replaced() {
        let mut p = Orders::default();
        p.accept(&order("x", "ams", 4), 3, 100, vec!["a".into()]);
        p.accept(&order("y", "nyc", 4), 4, 100, vec!["n".into()]);
        p.accept(&order("z", "ams", 4), 5, 200, vec!["a".into()]);
        assert!(p.tick(1100, 100, |_| true).is_empty());
        assert_eq!(
            kinds(&p.tick(1101, 100, |_| true)),
            ["push_ended", "push_missed", "push_ended", "push_missed"]
        );
        let states: Vec<_> = p
            .views()
            .iter()
            .map(|v| (v.id.clone(), v.state.clone(), v.benefit.until_unix_ms))
            .collect();
        assert_eq!(
            states,
            [
                ("z".into(), "expired".into(), 0),
                ("y".into(), "expired".into(), 0),
                ("x".into(), "replaced".into(), 200)
            ]
        );
    }

    #[test]
    fn what_was_known_is_known_again() {
        let mut p = Orders::default();
        p.accept(&order("x", "ams", 4), 3, 100, vec!["a".into()]);
        p.accept(&order("y", "nyc", 4), 4, 100, vec!["n".into()]);
        assert!(p.take_changed(false).is_empty());
        p.report(&report("a", "x", 4, true));
        p.report(&report("n", "y", 2, false));
        p.credit(
            "ams",
            20,
            PushBenefit {
                requests: 7,
                ..PushBenefit::default()
            },
        );
        let ended = p.take_changed(false);
        assert_eq!(
            ended.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(),
            ["x"],
            "its end is kept at once"
        );
        assert!(p.take_changed(false).is_empty());
        assert_eq!(
            p.take_changed(true).len(),
            1,
            "the other one has never been given"
        );
        p.credit(
            "nyc",
            20,
            PushBenefit {
                requests: 7,
                ..PushBenefit::default()
            },
        );
        let again = p.take_changed(true);
        assert_eq!(
            again.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(),
            ["y"]
        );
        let mut q = Orders::default();
        for record in ended.into_iter().chain(again) {
            q.restore(serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap());
        }
        assert_eq!(q.views(), p.views());
        assert!(q.knows(&order("x", "ams", 4), 3) && !q.knows(&order("z", "ams", 4), 5));
        assert!(
            q.report(&report("a", "x", 4, true)).is_empty(),
            "it does not end twice"
        );
        // Time ran out while control was down: the node gets time to report the end.
        q.expire_not_before(9000);
        assert!(q.tick(8000, 0, |_| true).is_empty());
        assert_eq!(kinds(&q.report(&report("n", "y", 4, true))), ["push_ended"]);
        assert_eq!(q.views()[0].state, "ended");
    }

    #[test]
    fn a_dead_node_does_not_hold_an_order_open() {
        let mut p = Orders::default();
        p.accept(
            &order("x", "ams", 4),
            1,
            100,
            vec!["a".into(), "b".into(), "dead".into()],
        );
        let reports = |node: &str| node != "dead";
        assert!(p.tick(200, 100, |_| false).is_empty(), "nobody has begun");
        p.report(&report("a", "x", 4, true));
        assert!(p.tick(300, 100, reports).is_empty());
        assert_eq!(p.running("ams"), Some("x"), "b is still at it");
        p.report(&report("b", "x", 4, true));
        assert_eq!(
            p.running("ams"),
            Some("x"),
            "nobody knows yet that the third is dead"
        );
        assert!(p.tick(400, 100, |_| true).is_empty());
        let told = p.tick(500, 100, reports);
        assert_eq!(
            (kinds(&told), told[0].level, p.running("ams")),
            (vec!["push_ended", "push_missed"], Level::Warn, None)
        );
        assert!(
            told[0].message.ends_with("; 1 node (dead) did not report"),
            "{}",
            told[0].message
        );
        assert_eq!(
            told[1].message,
            "ams: the last scheduled push did not reach 1 node: dead"
        );
        assert_eq!(
            (p.missed("ams"), p.missed("nyc")),
            (
                Some("the last scheduled push did not reach 1 node: dead"),
                None
            )
        );
        assert_eq!(
            p.take_missed(),
            [("ams".to_owned(), MissedReason::SilentNode)]
        );
        assert!(p.take_missed().is_empty(), "each is counted once");
        assert!(p.tick(2000, 100, reports).is_empty(), "it is told once");
    }

    #[test]
    fn an_order_whose_time_was_over_is_missed_until_a_push_ends_well() {
        let unfinished = |node: &str, order: &str, left: u64| {
            let fill = FillProgress {
                order: order.into(),
                items: 4,
                warmed: 4 - left,
                unfinished: left,
                origin_bytes: 370,
                ended: true,
                ..FillProgress::default()
            };
            EdgeReport {
                node: node.into(),
                fills: vec![fill],
                ..EdgeReport::default()
            }
        };
        let mut p = Orders::default();
        p.accept(&order("x", "ams", 4), 1, 100, vec!["a".into(), "b".into()]);
        assert!(
            p.report(&report("a", "x", 4, true))
                .iter()
                .all(|h| h.kind == "push_progress")
        );
        // Its time is over, and the last report of the other node may still arrive.
        assert!(p.tick(1050, 100, |_| true).is_empty());
        let told = p.report(&unfinished("b", "x", 1));
        assert_eq!(
            (kinds(&told), told[0].level),
            (vec!["push_ended", "push_missed"], Level::Warn)
        );
        assert!(
            told[0].message.contains("ran out of time")
                && told[0].message.contains("1 copy is missing"),
            "{}",
            told[0].message
        );
        let view = &p.views()[0];
        assert_eq!(
            (
                view.state.as_str(),
                view.total.unfinished,
                view.total.origin_bytes
            ),
            ("expired", 1, 770)
        );
        assert!(
            p.missed("ams")
                .is_some_and(|words| words.contains("ran out of time"))
        );
        assert_eq!(
            p.take_missed(),
            [("ams".to_owned(), MissedReason::Unfinished)]
        );
        // A manual order misses no window, and clears a missed one when it succeeds.
        let asked = order_id("ams", None, 200);
        p.accept(&order(&asked, "ams", 4), 2, 200, vec!["a".into()]);
        assert_eq!(
            kinds(&p.report(&unfinished("a", &asked, 2))),
            ["push_ended"]
        );
        let asked = order_id("ams", None, 300);
        p.accept(&order(&asked, "ams", 4), 3, 300, vec!["a".into()]);
        assert_eq!(
            kinds(&p.report(&unfinished("a", &asked, 0))),
            ["push_ended"]
        );
        assert!(p.take_missed().is_empty() && p.missed("ams").is_none());
        let new_event = p.miss("ams", MissedReason::ControlDown, "words".into());
        assert_eq!(
            (new_event.kind, new_event.level, p.missed("ams")),
            ("push_missed", Level::Warn, Some("words"))
        );
        p.expire_silently(5000);
        assert!(p.take_missed().is_empty() && p.missed("ams").is_none());
    }

    fn fleet(cluster: &str, node: &str, push: bool) -> Fleet {
        FleetText::new()
            .control("127.0.0.1:7700")
            .text_after(&format!("[control.push]\nenabled = {push}"))
            .cluster_head(cluster, "")
            .node(node, "127.0.10.1", "")
            .fleet()
    }

    #[test]
    fn nobody_waits_for_a_node_that_has_left_its_cluster() {
        let mut p = Orders::default();
        p.accept(
            &order("x", "ams", 4),
            1,
            100,
            vec!["a".into(), "b".into(), "gone".into()],
        );
        p.report(&report("gone", "x", 1, false));
        p.report(&report("b", "x", 4, true));
        p.follow(&fleet("ams", "a", true));
        assert_eq!(p.running("ams"), Some("x"), "a is still at it");
        let told = p.report(&report("a", "x", 4, true));
        assert_eq!(
            (kinds(&told), told[0].level),
            (vec!["push_ended"], Level::Good),
            "{}",
            told[0].message
        );
        assert!(p.missed("ams").is_none() && p.take_missed().is_empty());
        let names: Vec<String> = p.views()[0].nodes.iter().map(|n| n.node.clone()).collect();
        assert_eq!(names, ["a", "b"], "b had ended before it left");
    }

    #[test]
    fn what_was_missed_ends_with_pushing_and_with_the_cluster() {
        for (fleet, left) in [
            (fleet("ams", "a", true), true),
            (fleet("ams", "a", false), false),
            (fleet("nyc", "a", true), false),
        ] {
            let mut p = Orders::default();
            p.miss("ams", MissedReason::NotOrdered, "words".into());
            p.follow(&fleet);
            assert_eq!(p.missed("ams").is_some(), left);
        }
    }

    #[test]
    fn every_cluster_has_its_newest_orders_however_many_there_are() {
        let clusters = 3 * ORDERS_MAX;
        let mut p = Orders::default();
        let accept = |p: &mut Orders, n: usize, revision: usize| {
            let name = format!("c{n}");
            let order = order(
                &order_id(&name, Some("2026-06-01"), revision as u64),
                &name,
                1,
            );
            p.accept(&order, revision as u64, 100, vec!["a".into()]);
            order
        };
        let first: Vec<PushOrder> = (0..clusters).map(|n| accept(&mut p, n, n)).collect();
        let are_ordered = |p: &Orders| {
            (0..clusters).all(|n| {
                p.was_ordered(&format!("c{n}"), 100, 101) && p.running(&format!("c{n}")).is_some()
            })
        };
        assert!(are_ordered(&p));
        // Manual orders do not hide that the schedule has had its turn.
        for revision in clusters..2 * clusters {
            p.accept(
                &order(&order_id("c0", None, revision as u64), "c0", 1),
                revision as u64,
                200,
                vec!["a".into()],
            );
        }
        assert!(are_ordered(&p) && p.records.len() == clusters + 1);
        let mut q = Orders::default();
        for record in p.all() {
            q.restore(record);
        }
        assert!(
            are_ordered(&q)
                && first
                    .iter()
                    .zip(0..)
                    .all(|(order, revision)| q.knows(order, revision))
        );
        // Newer orders replace them.
        for n in 0..clusters {
            accept(&mut p, n, 2 * clusters + n);
        }
        assert_eq!(p.records.len(), clusters + 1);
        assert!(
            first
                .iter()
                .zip(0..)
                .all(|(order, revision)| p.knows(order, revision)),
            "they do not come back from the journal"
        );
        // Orders of removed clusters count towards the limit.
        p.tick(5000, 0, |_| true);
        p.follow(&fleet("c1", "a", true));
        assert_eq!(
            (
                p.records.len(),
                p.running("c1"),
                p.was_ordered("c1", 100, 101)
            ),
            (ORDERS_MAX, None, true)
        );
    }

    #[test]
    fn earnings_go_to_the_newest_order_of_the_cluster() {
        let mut p = Orders::default();
        let e = PushBenefit {
            requests: 10,
            response_bytes: 100,
            pushed_hits: 5,
            pushed_hit_bytes: 50,
        };
        p.credit("ams", 20, e);
        p.accept(&order("x", "ams", 1), 1, 100, vec!["a".into()]);
        p.credit("ams", 20, e);
        p.credit("nyc", 20, e);
        p.accept(&order("y", "ams", 1), 2, 200, vec!["a".into()]);
        p.credit("ams", 21, e);
        p.credit(
            "ams",
            3,
            PushBenefit {
                requests: 1,
                ..PushBenefit::default()
            },
        );
        let views = p.views();
        assert_eq!(
            (views[1].benefit.requests, views[1].benefit.until_unix_ms),
            (10, 200)
        );
        let newest = &views[0].benefit;
        assert_eq!(
            (newest.requests, newest.pushed_hits, newest.hours.len()),
            (11, 5, 2)
        );
        let peak = newest.peak.as_ref().unwrap();
        assert_eq!(
            (peak.from_hour, peak.to_hour, peak.pushed_hit_ratio),
            (18, 22, Some(0.5))
        );
    }

    #[test]
    fn ids_say_why() {
        let mut p = Orders::default();
        p.accept(
            &order(&order_id("ams", Some("2026-06-01"), 255), "ams", 1),
            1,
            255,
            vec![],
        );
        p.accept(
            &order(&order_id("ams", None, 256), "ams", 1),
            2,
            256,
            vec![],
        );
        let why: Vec<_> = p
            .views()
            .iter()
            .map(|v| (v.id.clone(), v.trigger.clone()))
            .collect();
        assert_eq!(
            why,
            [
                ("ams-manual-100".into(), "manual".into()),
                ("ams-2026-06-01-ff".into(), "scheduled".into())
            ]
        );
        assert_eq!(p.last_scheduled_unix_ms("ams"), Some(255));
        // A cluster's name may contain the mark.
        let name = "lab-manual-1";
        p.accept(
            &order(&order_id(name, Some("2026-06-01"), 257), name, 1),
            3,
            257,
            vec![],
        );
        assert_eq!(
            (
                p.last_scheduled_unix_ms(name),
                p.views()[0].trigger.as_str()
            ),
            (Some(257), "scheduled")
        );
        p.accept(&order(&order_id(name, None, 258), name, 1), 4, 258, vec![]);
        assert_eq!(
            (
                p.last_scheduled_unix_ms(name),
                p.views()[0].trigger.as_str()
            ),
            (Some(257), "manual")
        );
    }
}
