//! One push order: the progress of its nodes, its end, and the benefit of what it pushed.

use std::collections::BTreeMap;

use nearcast_fleet::change::PushOrder;
use nearcast_fleet::report::FillProgress;
use nearcast_fleet::units::Bytes;
use nearcast_push::account::{Account, Filled};
use serde::{Deserialize, Serialize};

use crate::event::{Level, NewEvent, count};
use crate::views;

/// Step between two progress events of an order.
const PROGRESS_STEP_PERCENT: u64 = 25;
/// Names of nodes in one message.
const NAMES_MAX: usize = 8;
/// Marks the id of an order that an operator requested; follows the cluster's name.
const MANUAL: &str = "-manual-";
/// The same mark in journals of earlier versions.
const MANUAL_EARLIER: &str = "-asked-";

/// An order and everything known about it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OrderRecord {
    pub(super) id: String,
    pub(super) cluster: String,
    pub(crate) revision: u64,
    pub(super) accepted_unix_ms: u64,
    pub(super) not_after_unix_ms: u64,
    pub(super) rate_bytes: u64,
    pub(super) items: u64,
    pub(super) bytes: u64,
    /// Nodes of the cluster when it was accepted.
    pub(super) nodes: Vec<String>,
    pub(super) progress: BTreeMap<String, FillProgress>,
    pub(super) account: Account,
    /// When the cluster's next order took over; 0 while requests count for this one.
    pub(super) until_unix_ms: u64,
    /// How it ended; `None` while it runs.
    #[serde(rename = "over")]
    pub(super) outcome: Option<Outcome>,
    /// Progress in the last progress event.
    #[serde(rename = "told_percent")]
    pub(super) last_reported_percent: u64,
    /// The order as it was last saved.
    #[serde(skip)]
    pub(super) saved: Option<SavedOrder>,
}

/// An order as it was last saved.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SavedOrder {
    pub(super) has_ended: bool,
    /// It had ended and requests no longer counted for it: nothing about it changes again.
    pub(super) is_final: bool,
    pub(super) json: String,
}

/// How an order ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Ended,
    Expired,
    Replaced,
}

/// Why an off-peak window did not complete its push: the label of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MissedReason {
    /// Control was not running.
    ControlDown,
    /// The order could not be appended to the journal.
    NotOrdered,
    /// A node did not report, or did not report the end.
    SilentNode,
    /// The window ended before all items were stored.
    Unfinished,
}

impl MissedReason {
    /// The label of the metric.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ControlDown => "control-down",
            Self::NotOrdered => "not-ordered",
            Self::SilentNode => "silent-node",
            Self::Unfinished => "unfinished",
        }
    }
}

/// A change of an order that is worth an event.
pub(super) enum OrderUpdate {
    Progress(NewEvent),
    End(OrderEnd),
}

/// How an order ended.
pub(super) struct OrderEnd {
    pub(super) new_event: NewEvent,
    pub(super) cluster: String,
    /// Why its window is counted as missed, and in words.
    pub(super) missed: Option<(MissedReason, String)>,
    /// All items are stored on all nodes.
    pub(super) is_good: bool,
}

/// Id of an order, unique because a cluster gets at most one order a millisecond. `date` is the
/// window's date for scheduled orders.
pub(crate) fn order_id(cluster: &str, date: Option<&str>, now_unix_ms: u64) -> String {
    match date {
        Some(date) => format!("{cluster}-{date}-{now_unix_ms:x}"),
        None => format!("{cluster}{MANUAL}{now_unix_ms:x}"),
    }
}

impl OrderRecord {
    /// An order that the journal has just accepted. `nodes` are the cluster's.
    pub(super) fn new(
        order: &PushOrder,
        revision: u64,
        accepted_unix_ms: u64,
        nodes: Vec<String>,
    ) -> Self {
        Self {
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
            outcome: None,
            last_reported_percent: 0,
            saved: None,
        }
    }

    /// Whether an operator requested it, rather than the schedule.
    pub(super) fn is_manual(&self) -> bool {
        self.id
            .strip_prefix(&self.cluster)
            .is_some_and(|rest| rest.starts_with(MANUAL) || rest.starts_with(MANUAL_EARLIER))
    }

    /// Whether a node has reported that it ended the order.
    pub(super) fn has_ended_on(&self, node: &str) -> bool {
        self.progress.get(node).is_some_and(|p| p.ended)
    }

    fn filled(&self) -> Filled {
        Filled::sum(self.progress.values())
    }

    /// Items times nodes.
    fn items_expected(&self) -> u64 {
        self.items.saturating_mul(self.nodes.len() as u64)
    }

    /// The change that the newest report brought, when it is worth an event.
    pub(super) fn update(&mut self) -> Option<OrderUpdate> {
        if self.outcome.is_some() {
            return None;
        }
        if !self.nodes.is_empty() && self.nodes.iter().all(|node| self.has_ended_on(node)) {
            return Some(OrderUpdate::End(self.end()));
        }
        let percent = (self.filled().progress(self.items_expected()) * 100.0) as u64
            / PROGRESS_STEP_PERCENT
            * PROGRESS_STEP_PERCENT;
        if percent <= self.last_reported_percent || percent >= 100 {
            return None;
        }
        self.last_reported_percent = percent;
        let message = format!("push to {} is at {percent} %", self.cluster);
        Some(OrderUpdate::Progress(
            NewEvent::new("push_progress", Level::Info, message)
                .cluster(&self.cluster)
                .order(&self.id),
        ))
    }

    /// Nodes that have not reported the end.
    fn silent(&self) -> Vec<&str> {
        self.nodes
            .iter()
            .filter(|node| !self.has_ended_on(node))
            .map(String::as_str)
            .collect()
    }

    /// Ends the order.
    pub(super) fn end(&mut self) -> OrderEnd {
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
            message += &format!("; {} missing", are_copies(filled.unfinished));
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
        let end = OrderEnd {
            new_event: NewEvent::new("push_ended", level, message)
                .cluster(&self.cluster)
                .order(&self.id),
            cluster: self.cluster.clone(),
            missed: self.missed(),
            is_good,
        };
        self.outcome = Some(if is_in_time {
            Outcome::Ended
        } else {
            Outcome::Expired
        });
        end
    }

    /// Why the window of a scheduled order that has ended is counted as missed, and in words.
    pub(super) fn missed(&self) -> Option<(MissedReason, String)> {
        let silent = self.silent();
        match (silent.is_empty(), self.filled().unfinished) {
            _ if self.is_manual() => None,
            (false, _) => Some((
                MissedReason::SilentNode,
                format!(
                    "the last scheduled push did not reach {}: {}",
                    count(silent.len() as u64, "node"),
                    names(&silent)
                ),
            )),
            (true, 0) => None,
            (true, left) => Some((
                MissedReason::Unfinished,
                format!(
                    "the last scheduled push ran out of time: {} missing; the next push continues from there",
                    are_copies(left)
                ),
            )),
        }
    }

    /// As an answer of the API.
    pub(super) fn view(&self) -> views::Order {
        let filled = self.filled();
        views::Order {
            id: self.id.clone(),
            cluster: self.cluster.clone(),
            revision: self.revision,
            trigger: if self.is_manual() {
                "manual"
            } else {
                "scheduled"
            }
            .to_owned(),
            state: match self.outcome {
                None => "running",
                Some(Outcome::Ended) => "ended",
                Some(Outcome::Expired) => "expired",
                Some(Outcome::Replaced) => "replaced",
            }
            .to_owned(),
            accepted_unix_ms: self.accepted_unix_ms,
            not_after_unix_ms: self.not_after_unix_ms,
            rate_bytes: self.rate_bytes,
            items: self.items,
            bytes: self.bytes,
            progress: filled.progress(self.items_expected()),
            total: views::FilledView {
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
            benefit: self.benefit_view(),
        }
    }

    fn benefit_view(&self) -> views::BenefitView {
        let total = self.account.total();
        views::BenefitView {
            until_unix_ms: self.until_unix_ms,
            requests: total.requests,
            response_bytes: total.response_bytes,
            pushed_hits: total.pushed_hits,
            pushed_hit_bytes: total.pushed_hit_bytes,
            pushed_hit_ratio: total.pushed_hit_ratio(),
            hours: (0u8..)
                .zip(self.account.hours())
                .filter(|(_, e)| e.requests > 0)
                .map(|(hour, e)| views::HourView {
                    hour,
                    requests: e.requests,
                    pushed_hits: e.pushed_hits,
                    pushed_hit_bytes: e.pushed_hit_bytes,
                })
                .collect(),
            peak: self.account.peak().map(|p| views::PeakView {
                from_hour: p.from_hour,
                to_hour: p.to_hour,
                requests: p.earnings.requests,
                pushed_hits: p.earnings.pushed_hits,
                pushed_hit_bytes: p.earnings.pushed_hit_bytes,
                pushed_hit_ratio: p.earnings.pushed_hit_ratio(),
            }),
        }
    }

    fn node_view(&self, node: &str) -> views::OrderNode {
        let p = self.progress.get(node);
        let of = |f: fn(&FillProgress) -> u64| p.map_or(0, f);
        views::OrderNode {
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

fn are_copies(number: u64) -> String {
    if number == 1 {
        "1 copy is".to_owned()
    } else {
        format!("{number} copies are")
    }
}

/// Names for a message, the first [`NAMES_MAX`] of them.
fn names(all: &[&str]) -> String {
    let shown = all[..all.len().min(NAMES_MAX)].join(", ");
    if all.len() > NAMES_MAX {
        format!("{shown}, ...")
    } else {
        shown
    }
}
