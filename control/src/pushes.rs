//! Push orders: how far every node is with them, and what they earn. Pure: reports and the time
//! come in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use nearcast_fleet::config::Fleet;
use nearcast_fleet::journal::PushOrder;
use nearcast_fleet::report::{EdgeReport, FillProgress};
use nearcast_fleet::units::Bytes;
use nearcast_push::account::{Account, Earnings, Filled};
use serde::{Deserialize, Serialize};

use crate::events::{Happening, Level};
use crate::purges::count;
use crate::view;

/// Orders that are kept, besides the newest of each cluster and its newest scheduled one; older
/// ones stay in the journal.
pub(crate) const KEPT_MAX: usize = 64;
/// Progress is told in steps of this many percent.
const PROGRESS_STEP_PERCENT: u64 = 25;
/// Reasons of failures kept a node.
const REASONS_MAX: usize = 8;
/// Names of nodes in one message.
const NAMES_MAX: usize = 8;
/// Marks an order that an operator asked for: follows the cluster's name in its id.
const ASKED: &str = "-asked-";

/// An order and what is known of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    id: String,
    cluster: String,
    revision: u64,
    accepted_unix_ms: u64,
    not_after_unix_ms: u64,
    rate_bytes: u64,
    items: u64,
    bytes: u64,
    /// Nodes of the cluster when it was accepted.
    nodes: Vec<String>,
    progress: BTreeMap<String, FillProgress>,
    account: Account,
    /// When the next order took over; 0 while this one earns.
    until_unix_ms: u64,
    /// When it was seen to be over; 0 while it runs.
    over: Option<Over>,
    told_percent: u64,
    /// As it was last given to be kept.
    #[serde(skip)]
    kept: Option<Kept>,
}

/// What an order was when it was last given to be kept.
#[derive(Debug, Clone, PartialEq)]
struct Kept {
    is_over: bool,
    /// It was over, and earned no more: nothing about it changes again.
    is_final: bool,
    json: String,
}

/// How an order came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Over {
    Ended,
    Expired,
    Replaced,
}

/// Why an off-peak window did not bring what it should. The same word in the event, the metric and
/// the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missed {
    /// Control was not running.
    ControlDown,
    /// The order could not be written.
    NotOrdered,
    /// A node said nothing, or not that it ended.
    SilentNode,
    /// Time was over before all was there.
    Unfinished,
}

impl Missed {
    /// Its label in the metric.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ControlDown => "control-down",
            Self::NotOrdered => "not-ordered",
            Self::SilentNode => "silent-node",
            Self::Unfinished => "unfinished",
        }
    }
}

/// The newest orders.
#[derive(Debug, Default)]
pub(crate) struct Pushes {
    /// Oldest first.
    records: VecDeque<Record>,
    /// What was missed last, in words, by cluster, until a push ends well.
    missed: BTreeMap<String, String>,
    /// What was missed since it was last asked for.
    missed_lately: Vec<(String, Missed)>,
    /// Nothing runs out of time before: nodes may have ended orders while control was away, and get
    /// time to say so.
    expires_not_before_unix_ms: u64,
}

/// Name of an order, unique as far as one cluster has one order a millisecond. `date` is the
/// window's for scheduled ones.
pub(crate) fn order_id(cluster: &str, date: Option<&str>, now_unix_ms: u64) -> String {
    match date {
        Some(date) => format!("{cluster}-{date}-{now_unix_ms:x}"),
        None => format!("{cluster}{ASKED}{now_unix_ms:x}"),
    }
}

impl Pushes {
    /// Takes in an order from the journal. `nodes` are the cluster's.
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
            earlier.over.get_or_insert(Over::Replaced);
        }
        self.records.push_back(Record {
            id: order.id.clone(),
            cluster: order.cluster.clone(),
            revision,
            accepted_unix_ms,
            not_after_unix_ms: order.not_after_unix_ms,
            rate_bytes: order.rate_bytes,
            items: order.items.len() as u64,
            bytes: order.items.iter().fold(0, |a, i| a.saturating_add(i.bytes)),
            nodes,
            progress: BTreeMap::new(),
            account: Account::default(),
            until_unix_ms: 0,
            over: None,
            told_percent: 0,
            kept: None,
        });
        self.make_room();
    }

    /// Forgets the oldest orders beyond [`KEPT_MAX`], but never what runs or says that a cluster's
    /// window has had its order.
    fn make_room(&mut self) {
        let surplus = self.records.len().saturating_sub(KEPT_MAX);
        if surplus == 0 {
            return;
        }
        let mut newest = BTreeSet::new();
        let kept: Vec<bool> = self
            .records
            .iter()
            .rev()
            .map(|r| newest.insert((r.cluster.clone(), r.is_asked())))
            .collect();
        let (mut kept, mut surplus) = (kept.into_iter().rev(), surplus);
        self.records.retain(|_| {
            let goes = surplus > 0 && !kept.next().unwrap_or(true);
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// Takes on the fleet: nobody waits for nodes that a cluster no longer has, and nothing is
    /// missed where nothing is pushed.
    pub(crate) fn follow(&mut self, fleet: &Fleet) {
        let cluster = |name: &str| fleet.clusters.iter().find(|c| c.name == name);
        for record in self.records.iter_mut().filter(|r| r.over.is_none()) {
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
            .retain(|name, _| is_pushing && cluster(name).is_some());
        // Those of clusters that have gone are kept like any other, or names that come and go would
        // add up.
        let mut surplus = self.records.len().saturating_sub(KEPT_MAX);
        self.records.retain(|r| {
            let goes = surplus > 0 && r.over.is_some() && cluster(&r.cluster).is_none();
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// Takes in what an earlier process knew of an order, oldest fact first.
    pub(crate) fn restore(&mut self, record: Record) {
        match self.records.iter_mut().find(|r| r.id == record.id) {
            Some(known) => *known = record,
            None => {
                let at = self
                    .records
                    .partition_point(|r| r.revision < record.revision);
                self.records.insert(at, record);
                self.make_room();
            }
        }
    }

    /// Whether an order of the journal is kept, or was and had to make room.
    pub(crate) fn knows(&self, order: &PushOrder, revision: u64) -> bool {
        let oldest = self
            .records
            .len()
            .checked_sub(KEPT_MAX)
            .and_then(|at| self.records.get(at));
        oldest.is_some_and(|r| r.revision > revision)
            || self.records.iter().any(|r| r.id == order.id)
    }

    /// Lets nothing run out of time before then.
    pub(crate) fn expire_not_before(&mut self, unix_ms: u64) {
        self.expires_not_before_unix_ms = unix_ms;
    }

    /// Orders that have changed since they were last given: those that have come to their end
    /// since, or `all`.
    pub(crate) fn take_changed(&mut self, all: bool) -> Vec<Record> {
        let mut changed = Vec::new();
        for record in &mut self.records {
            let is_over = record.over.is_some();
            let is_same = record
                .kept
                .as_ref()
                .map_or(!is_over, |k| k.is_over == is_over);
            if (!all && is_same) || record.kept.as_ref().is_some_and(|k| k.is_final) {
                continue;
            }
            let json =
                serde_json::to_string(record).expect("an order has string keys and finite numbers");
            let now = Some(Kept {
                is_over,
                is_final: is_over && record.until_unix_ms > 0,
                json,
            });
            if record.kept != now {
                record.kept = now;
                changed.push(record.clone());
            }
        }
        changed
    }

    /// All orders.
    pub(crate) fn all(&self) -> Vec<Record> {
        self.records.iter().cloned().collect()
    }

    /// Takes in an edge's progress. Says what is worth telling.
    pub(crate) fn report(&mut self, report: &EdgeReport) -> Vec<Happening> {
        let mut happenings = Vec::new();
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
            match record.told() {
                Some(Told::Progress(happening)) => happenings.push(happening),
                Some(Told::End(end)) => {
                    happenings.extend(note(&mut self.missed, &mut self.missed_lately, end))
                }
                None => {}
            }
        }
        happenings
    }

    /// A window passed without an order. Says so.
    pub(crate) fn miss(&mut self, cluster: &str, why: Missed, words: String) -> Happening {
        let happening = Happening::new("push_missed", Level::Warn, words.clone()).cluster(cluster);
        self.missed.insert(cluster.to_owned(), words);
        self.missed_lately.push((cluster.to_owned(), why));
        happening
    }

    /// What a cluster's last window did not bring, in words.
    pub(crate) fn missed(&self, cluster: &str) -> Option<&str> {
        self.missed.get(cluster).map(String::as_str)
    }

    /// What was missed since the last call, for the metric.
    pub(crate) fn take_missed(&mut self) -> Vec<(String, Missed)> {
        std::mem::take(&mut self.missed_lately)
    }

    /// Whether a scheduled order of a cluster was accepted within that time.
    pub(crate) fn was_ordered(&self, cluster: &str, from_unix_ms: u64, to_unix_ms: u64) -> bool {
        let is_it = |r: &&Record| {
            r.cluster == cluster
                && !r.is_asked()
                && (from_unix_ms..to_unix_ms).contains(&r.accepted_unix_ms)
        };
        self.records.iter().any(|r| is_it(&r))
    }

    /// Ends quietly what ran out of time before this process: it is no news.
    pub(crate) fn settle(&mut self, now_unix_ms: u64) {
        let _ = self.tick(now_unix_ms, 0, |_| true);
        self.missed.clear();
        self.missed_lately.clear();
    }

    /// Takes up again what the orders of an earlier process did not bring, so that it is shown
    /// until a push ends well.
    pub(crate) fn recall_missed(&mut self) {
        for record in &self.records {
            if matches!(record.over, Some(Over::Ended | Over::Expired)) {
                match record.missed() {
                    Some((_, words)) => drop(self.missed.insert(record.cluster.clone(), words)),
                    None => drop(self.missed.remove(&record.cluster)),
                }
            }
        }
    }

    /// Adds what a cluster's requests earned in a local hour to the order that earns now.
    pub(crate) fn earn(&mut self, cluster: &str, hour: u8, earnings: Earnings) {
        if let Some(record) = self
            .records
            .iter_mut()
            .rev()
            .find(|r| r.cluster == cluster && r.until_unix_ms == 0)
        {
            record.account.add(hour, earnings);
        }
    }

    /// Ends orders whose time has been over for `grace_ms`, within which nodes report how they
    /// ended it, and those that every node has ended which reports: one that is dead must not hold
    /// back the next order. Says which.
    pub(crate) fn tick(
        &mut self,
        now_unix_ms: u64,
        grace_ms: u64,
        reports: impl Fn(&str) -> bool,
    ) -> Vec<Happening> {
        let mut happenings = Vec::new();
        let earliest = self.expires_not_before_unix_ms;
        for record in self.records.iter_mut().filter(|r| r.over.is_none()) {
            let has_ended = |node: &String| record.progress.get(node).is_some_and(|p| p.ended);
            if record.nodes.iter().any(has_ended)
                && record.nodes.iter().all(|n| has_ended(n) || !reports(n))
            {
                happenings.extend(note(
                    &mut self.missed,
                    &mut self.missed_lately,
                    record.end(),
                ));
            }
        }
        let is_over = |r: &&mut Record| {
            r.over.is_none()
                && now_unix_ms > r.not_after_unix_ms.saturating_add(grace_ms).max(earliest)
        };
        for record in self.records.iter_mut().filter(is_over) {
            happenings.extend(note(
                &mut self.missed,
                &mut self.missed_lately,
                record.end(),
            ));
        }
        happenings
    }

    /// The order that runs in a cluster.
    pub(crate) fn running(&self, cluster: &str) -> Option<&str> {
        self.records
            .iter()
            .rev()
            .find(|r| r.cluster == cluster && r.over.is_none())
            .map(|r| r.id.as_str())
    }

    /// When the cluster's last scheduled order was accepted.
    pub(crate) fn last_scheduled_unix_ms(&self, cluster: &str) -> Option<u64> {
        self.records
            .iter()
            .rev()
            .find(|r| r.cluster == cluster && !r.is_asked())
            .map(|r| r.accepted_unix_ms)
    }

    /// All as answers, newest first.
    pub(crate) fn views(&self) -> Vec<view::Order> {
        self.records.iter().rev().map(Record::view).collect()
    }
}

/// What is worth telling of an order.
enum Told {
    Progress(Happening),
    End(End),
}

/// How an order ended.
struct End {
    happening: Happening,
    cluster: String,
    missed: Option<(Missed, String)>,
    is_good: bool,
}

/// Keeps what an order did not bring, and says what is worth telling.
fn note(
    missed: &mut BTreeMap<String, String>,
    lately: &mut Vec<(String, Missed)>,
    end: End,
) -> Vec<Happening> {
    let mut told = vec![end.happening];
    if end.is_good {
        missed.remove(&end.cluster);
    }
    if let Some((why, words)) = end.missed {
        told.push(
            Happening::new(
                "push_missed",
                Level::Warn,
                format!("{}: {words}", end.cluster),
            )
            .cluster(&end.cluster),
        );
        missed.insert(end.cluster.clone(), words);
        lately.push((end.cluster, why));
    }
    told
}

fn are_copies(number: u64) -> String {
    if number == 1 {
        "1 copy is".to_owned()
    } else {
        format!("{number} copies are")
    }
}

/// The first few of some names.
fn names(all: &[&str]) -> String {
    let shown = all[..all.len().min(NAMES_MAX)].join(", ");
    if all.len() > NAMES_MAX {
        format!("{shown}, ...")
    } else {
        shown
    }
}

impl Record {
    /// Its revision in the journal.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether an operator asked for it, rather than the schedule.
    fn is_asked(&self) -> bool {
        self.id
            .strip_prefix(&self.cluster)
            .is_some_and(|rest| rest.starts_with(ASKED))
    }

    fn filled(&self) -> Filled {
        Filled::sum(self.progress.values())
    }

    /// Items times nodes.
    fn items_expected(&self) -> u64 {
        self.items.saturating_mul(self.nodes.len() as u64)
    }

    fn told(&mut self) -> Option<Told> {
        if self.over.is_some() {
            return None;
        }
        if !self.nodes.is_empty()
            && self
                .nodes
                .iter()
                .all(|n| self.progress.get(n).is_some_and(|p| p.ended))
        {
            return Some(Told::End(self.end()));
        }
        let percent = (self.filled().progress(self.items_expected()) * 100.0) as u64
            / PROGRESS_STEP_PERCENT
            * PROGRESS_STEP_PERCENT;
        if percent <= self.told_percent || percent >= 100 {
            return None;
        }
        self.told_percent = percent;
        let message = format!("push to {} is at {percent} %", self.cluster);
        Some(Told::Progress(
            Happening::new("push_progress", Level::Info, message)
                .cluster(&self.cluster)
                .order(&self.id),
        ))
    }

    /// Nodes that have not said that they ended.
    fn silent(&self) -> Vec<&str> {
        self.nodes
            .iter()
            .filter(|n| self.progress.get(*n).is_none_or(|p| !p.ended))
            .map(String::as_str)
            .collect()
    }

    /// It is over; what came of it.
    fn end(&mut self) -> End {
        let filled = self.filled();
        let silent = self.silent();
        let is_in_time = filled.unfinished == 0 && silent.len() < self.nodes.len();
        let mut message = format!(
            "push to {} {}: {} copies were warm, {} filled, {} failed; {} from the origin, {} from neighbours",
            self.cluster,
            if is_in_time {
                "ended"
            } else {
                "ran out of time"
            },
            filled.already_warm,
            filled.warmed,
            filled.failed,
            Bytes(filled.origin_bytes).rounded(),
            Bytes(filled.peer_bytes).rounded()
        );
        if filled.unfinished > 0 {
            message += &format!("; {} not there", are_copies(filled.unfinished));
        }
        if !silent.is_empty() {
            message += &format!(
                "; {} ({}) did not report",
                count(silent.len() as u64, "node"),
                names(&silent)
            );
        }
        let is_good = filled.failed == 0 && filled.unfinished == 0 && silent.is_empty();
        let level = if is_good { Level::Good } else { Level::Warn };
        let end = End {
            happening: Happening::new("push_ended", level, message)
                .cluster(&self.cluster)
                .order(&self.id),
            cluster: self.cluster.clone(),
            missed: self.missed(),
            is_good,
        };
        self.over = Some(if is_in_time {
            Over::Ended
        } else {
            Over::Expired
        });
        end
    }

    /// What a scheduled order did not bring, once it is over.
    fn missed(&self) -> Option<(Missed, String)> {
        let silent = self.silent();
        match (silent.is_empty(), self.filled().unfinished) {
            _ if self.is_asked() => None,
            (false, _) => Some((
                Missed::SilentNode,
                format!(
                    "the last scheduled push did not reach {}: {}",
                    count(silent.len() as u64, "node"),
                    names(&silent)
                ),
            )),
            (true, 0) => None,
            (true, left) => Some((
                Missed::Unfinished,
                format!(
                    "the last scheduled push ran out of time: {} not there; the next one goes on from there",
                    are_copies(left)
                ),
            )),
        }
    }

    fn view(&self) -> view::Order {
        let filled = self.filled();
        let total = self.account.total();
        view::Order {
            id: self.id.clone(),
            cluster: self.cluster.clone(),
            revision: self.revision,
            why: if self.is_asked() {
                "asked"
            } else {
                "scheduled"
            }
            .to_owned(),
            state: match self.over {
                None => "running",
                Some(Over::Ended) => "ended",
                Some(Over::Expired) => "expired",
                Some(Over::Replaced) => "replaced",
            }
            .to_owned(),
            accepted_unix_ms: self.accepted_unix_ms,
            not_after_unix_ms: self.not_after_unix_ms,
            rate_bytes: self.rate_bytes,
            items: self.items,
            bytes: self.bytes,
            progress: filled.progress(self.items_expected()),
            total: view::FilledView {
                items: self.items_expected(),
                already_warm: filled.already_warm,
                already_warm_bytes: filled.already_warm_bytes,
                warmed: filled.warmed,
                failed: filled.failed,
                unfinished: filled.unfinished,
                origin_bytes: filled.origin_bytes,
                peer_bytes: filled.peer_bytes,
            },
            nodes: self.nodes.iter().map(|n| self.node_view(n)).collect(),
            earned: view::EarnedView {
                until_unix_ms: self.until_unix_ms,
                requests: total.requests,
                response_bytes: total.response_bytes,
                pushed_hits: total.pushed_hits,
                pushed_hit_bytes: total.pushed_hit_bytes,
                pushed_hit_ratio: total.pushed_hit_ratio(),
                hours: (0u8..)
                    .zip(self.account.hours())
                    .filter(|(_, e)| e.requests > 0)
                    .map(|(hour, e)| view::HourView {
                        hour,
                        requests: e.requests,
                        pushed_hits: e.pushed_hits,
                        pushed_hit_bytes: e.pushed_hit_bytes,
                    })
                    .collect(),
                peak: self.account.peak().map(|p| view::PeakView {
                    from_hour: p.from_hour,
                    to_hour: p.to_hour,
                    requests: p.earnings.requests,
                    pushed_hits: p.earnings.pushed_hits,
                    pushed_hit_bytes: p.earnings.pushed_hit_bytes,
                    pushed_hit_ratio: p.earnings.pushed_hit_ratio(),
                }),
            },
        }
    }

    fn node_view(&self, node: &str) -> view::OrderNode {
        let p = self.progress.get(node);
        let of = |f: fn(&FillProgress) -> u64| p.map_or(0, f);
        view::OrderNode {
            node: node.to_owned(),
            reported: p.is_some(),
            items: of(|p| p.items),
            already_warm: of(|p| p.already_warm),
            already_warm_bytes: of(|p| p.already_warm_bytes),
            warmed: of(|p| p.warmed),
            origin_bytes: of(|p| p.origin_bytes),
            peer_bytes: of(|p| p.peer_bytes),
            failed: of(|p| p.failed),
            unfinished: of(|p| p.unfinished),
            reasons: p.map(|p| p.reasons.clone()).unwrap_or_default(),
            ended: p.is_some_and(|p| p.ended),
            ended_unix_ms: of(|p| p.ended_unix_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearcast_fleet::journal::PushItem;

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

    fn kinds(happenings: &[Happening]) -> Vec<&str> {
        happenings.iter().map(|h| h.kind).collect()
    }

    #[test]
    fn an_order_runs_and_ends() {
        let mut p = Pushes::default();
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
        let mut p = Pushes::default();
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
            .map(|v| (v.id.clone(), v.state.clone(), v.earned.until_unix_ms))
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
        let mut p = Pushes::default();
        p.accept(&order("x", "ams", 4), 3, 100, vec!["a".into()]);
        p.accept(&order("y", "nyc", 4), 4, 100, vec!["n".into()]);
        assert!(p.take_changed(false).is_empty());
        p.report(&report("a", "x", 4, true));
        p.report(&report("n", "y", 2, false));
        p.earn(
            "ams",
            20,
            Earnings {
                requests: 7,
                ..Earnings::default()
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
        p.earn(
            "nyc",
            20,
            Earnings {
                requests: 7,
                ..Earnings::default()
            },
        );
        let again = p.take_changed(true);
        assert_eq!(
            again.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(),
            ["y"]
        );
        let mut q = Pushes::default();
        for record in ended.into_iter().chain(again) {
            q.restore(serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap());
        }
        assert_eq!(q.views(), p.views());
        assert!(q.knows(&order("x", "ams", 4), 3) && !q.knows(&order("z", "ams", 4), 5));
        assert!(
            q.report(&report("a", "x", 4, true)).is_empty(),
            "it does not end twice"
        );
        // Time ran out while control was away: the node gets time to say that it has ended.
        q.expire_not_before(9000);
        assert!(q.tick(8000, 0, |_| true).is_empty());
        assert_eq!(kinds(&q.report(&report("n", "y", 4, true))), ["push_ended"]);
        assert_eq!(q.views()[0].state, "ended");
    }

    #[test]
    fn a_dead_node_does_not_hold_an_order_open() {
        let mut p = Pushes::default();
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
        assert_eq!(p.take_missed(), [("ams".to_owned(), Missed::SilentNode)]);
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
        let mut p = Pushes::default();
        p.accept(&order("x", "ams", 4), 1, 100, vec!["a".into(), "b".into()]);
        assert!(
            p.report(&report("a", "x", 4, true))
                .iter()
                .all(|h| h.kind == "push_progress")
        );
        // Its time is over, and how the other one ended is on its way.
        assert!(p.tick(1050, 100, |_| true).is_empty());
        let told = p.report(&unfinished("b", "x", 1));
        assert_eq!(
            (kinds(&told), told[0].level),
            (vec!["push_ended", "push_missed"], Level::Warn)
        );
        assert!(
            told[0].message.contains("ran out of time")
                && told[0].message.contains("1 copy is not there"),
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
        assert_eq!(p.take_missed(), [("ams".to_owned(), Missed::Unfinished)]);
        // One that an operator asked for shows what it lacks itself, and mends all when it ends
        // well.
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
        let happening = p.miss("ams", Missed::ControlDown, "words".into());
        assert_eq!(
            (happening.kind, happening.level, p.missed("ams")),
            ("push_missed", Level::Warn, Some("words"))
        );
        p.settle(5000);
        assert!(p.take_missed().is_empty() && p.missed("ams").is_none());
    }

    fn fleet(clusters: &[(&str, &[&str])], push: bool) -> Fleet {
        let mut text = format!(
            "[fleet]\nzone = \"cdn.test\"\nnode_key = \"a key that only this test knows\"\n[control]\n[control.push]\nenabled = {push}\n"
        );
        for (n, (cluster, nodes)) in clusters.iter().enumerate() {
            text += &format!(
                "[[cluster]]\nname = \"{cluster}\"\nplace = {{ latitude = 1, longitude = 1 }}\n"
            );
            for (m, node) in nodes.iter().enumerate() {
                text += &format!(
                    "[[cluster.node]]\nname = \"{node}\"\naddress = \"127.0.{}.{}\"\n",
                    n + 10,
                    m + 1
                );
            }
        }
        nearcast_fleet::file::parse(&text, std::path::Path::new("/"))
            .unwrap_or_else(|e| panic!("{e:?}"))
    }

    #[test]
    fn nobody_waits_for_a_node_that_has_left_its_cluster() {
        let mut p = Pushes::default();
        p.accept(
            &order("x", "ams", 4),
            1,
            100,
            vec!["a".into(), "b".into(), "gone".into()],
        );
        p.report(&report("gone", "x", 1, false));
        p.report(&report("b", "x", 4, true));
        p.follow(&fleet(&[("ams", &["a"])], true));
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
            (fleet(&[("ams", &["a"])], true), true),
            (fleet(&[("ams", &["a"])], false), false),
            (fleet(&[("nyc", &["a"])], true), false),
        ] {
            let mut p = Pushes::default();
            p.miss("ams", Missed::NotOrdered, "words".into());
            p.follow(&fleet);
            assert_eq!(p.missed("ams").is_some(), left);
        }
    }

    #[test]
    fn every_cluster_has_its_newest_orders_however_many_there_are() {
        let clusters = 3 * KEPT_MAX;
        let mut p = Pushes::default();
        let accept = |p: &mut Pushes, n: usize, revision: usize| {
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
        let are_ordered = |p: &Pushes| {
            (0..clusters).all(|n| {
                p.was_ordered(&format!("c{n}"), 100, 101) && p.running(&format!("c{n}")).is_some()
            })
        };
        assert!(are_ordered(&p));
        // Those that an operator asks for do not hide that the schedule had its turn.
        for revision in clusters..2 * clusters {
            p.accept(
                &order(&order_id("c0", None, revision as u64), "c0", 1),
                revision as u64,
                200,
                vec!["a".into()],
            );
        }
        assert!(are_ordered(&p) && p.records.len() == clusters + 1);
        let mut q = Pushes::default();
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
        // The next ones take their places.
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
        // Clusters that go leave no more than the usual number behind.
        p.tick(5000, 0, |_| true);
        p.follow(&fleet(&[("c1", &["a"])], true));
        assert_eq!(
            (
                p.records.len(),
                p.running("c1"),
                p.was_ordered("c1", 100, 101)
            ),
            (KEPT_MAX, None, true)
        );
    }

    #[test]
    fn earnings_go_to_the_newest_order_of_the_cluster() {
        let mut p = Pushes::default();
        let e = Earnings {
            requests: 10,
            response_bytes: 100,
            pushed_hits: 5,
            pushed_hit_bytes: 50,
        };
        p.earn("ams", 20, e);
        p.accept(&order("x", "ams", 1), 1, 100, vec!["a".into()]);
        p.earn("ams", 20, e);
        p.earn("nyc", 20, e);
        p.accept(&order("y", "ams", 1), 2, 200, vec!["a".into()]);
        p.earn("ams", 21, e);
        p.earn(
            "ams",
            3,
            Earnings {
                requests: 1,
                ..Earnings::default()
            },
        );
        let views = p.views();
        assert_eq!(
            (views[1].earned.requests, views[1].earned.until_unix_ms),
            (10, 200)
        );
        let newest = &views[0].earned;
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
        let mut p = Pushes::default();
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
            .map(|v| (v.id.clone(), v.why.clone()))
            .collect();
        assert_eq!(
            why,
            [
                ("ams-asked-100".into(), "asked".into()),
                ("ams-2026-06-01-ff".into(), "scheduled".into())
            ]
        );
        assert_eq!(p.last_scheduled_unix_ms("ams"), Some(255));
        // A cluster's name may look like it.
        let name = "lab-asked-1";
        p.accept(
            &order(&order_id(name, Some("2026-06-01"), 257), name, 1),
            3,
            257,
            vec![],
        );
        assert_eq!(
            (p.last_scheduled_unix_ms(name), p.views()[0].why.as_str()),
            (Some(257), "scheduled")
        );
        p.accept(&order(&order_id(name, None, 258), name, 1), 4, 258, vec![]);
        assert_eq!(
            (p.last_scheduled_unix_ms(name), p.views()[0].why.as_str()),
            (Some(257), "asked")
        );
    }
}
