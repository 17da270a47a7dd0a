//! Purges and the edges that have confirmed them. Pure: reports and the time are arguments.
//!
//! An edge confirms with the count in its report. An edge that has folded the revision but reports
//! no count (it started after the purge, or the count has left its list) confirms with its second
//! report at or beyond the revision, once it has also asked for later entries. A revision in a report
//! alone is no proof: it may belong to a journal that was set back since.

use std::collections::{HashMap, VecDeque};

use nearcast_fleet::change::Purge;
use nearcast_fleet::report::{EdgeReport, PurgeProgress};

use crate::event::NewEvent;
use crate::fleet_state::purge_record::{Confirmation, PurgeRecord};
use crate::fleet_state::saved::StateRecord;
use crate::views;

/// Purges that are kept with their confirmations. Older ones are kept only while a request waits for
/// them.
pub(crate) const PURGES_MAX: usize = 256;
/// Purges that requests wait for at a time. Further requests are answered at once.
pub(crate) const WAITED_MAX: usize = 4096;

/// The newest purges.
#[derive(Debug, Default)]
pub(crate) struct Purges {
    /// Oldest first.
    records: VecDeque<PurgeRecord>,
    /// Requests that wait, by revision.
    waiters: HashMap<u64, usize>,
    /// Records that the state log has not been given yet.
    unsaved: Vec<StateRecord>,
    /// Some record may have `shown_after`.
    has_unshown: bool,
}

/// How much of a purge is outstanding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outstanding {
    /// Edges that report and have not confirmed.
    pub(crate) reporting: usize,
}

impl Purges {
    /// Adds a purge of the journal. `is_old` marks one that an earlier process accepted and did not
    /// save.
    pub(crate) fn accept(
        &mut self,
        revision: u64,
        accepted_unix_ms: u64,
        purge: &Purge,
        is_old: bool,
    ) {
        self.push(PurgeRecord::new(revision, accepted_unix_ms, purge, is_old));
    }

    /// Adds the newest record and drops the oldest ones that no request waits for.
    fn push(&mut self, record: PurgeRecord) {
        self.records.push_back(record);
        let mut surplus = self.records.len().saturating_sub(PURGES_MAX);
        if surplus == 0 {
            return;
        }
        // Keep purges that requests wait for. There are at most as many as waiting requests, so the
        // slower path below runs only while there are any.
        let waiters = &self.waiters;
        if waiters.is_empty() {
            self.records.drain(..surplus);
            return;
        }
        let newest = self.records.len() - PURGES_MAX;
        let mut at = 0;
        self.records.retain(|r| {
            at += 1;
            let goes = surplus > 0 && at <= newest && !waiters.contains_key(&r.revision);
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// Keeps a purge until [`Purges::end_wait`]. Returns false when too many requests wait.
    pub(crate) fn wait(&mut self, revision: u64) -> bool {
        if self.waiters.len() >= WAITED_MAX && !self.waiters.contains_key(&revision) {
            return false;
        }
        *self.waiters.entry(revision).or_insert(0) += 1;
        true
    }

    /// Ends one [`Purges::wait`].
    pub(crate) fn end_wait(&mut self, revision: u64) {
        if let Some(count) = self.waiters.get_mut(&revision) {
            *count -= 1;
            if *count == 0 {
                self.waiters.remove(&revision);
            }
        }
    }

    /// Number of purges that requests wait for.
    pub(crate) fn waited_count(&self) -> usize {
        self.waiters.len()
    }

    /// Restores a record of an earlier process. Call it for the oldest record first.
    pub(crate) fn restore(&mut self, record: StateRecord) {
        match record {
            StateRecord::Purge(record) => match self
                .records
                .iter_mut()
                .find(|r| r.revision == record.revision)
            {
                Some(known) => *known = record,
                None => {
                    let at = self
                        .records
                        .partition_point(|r| r.revision < record.revision);
                    self.records.insert(at, record);
                    while self.records.len() > PURGES_MAX {
                        self.records.pop_front();
                    }
                }
            },
            StateRecord::Confirmed {
                node,
                purges,
                at_least,
            } => {
                for (revision, responses, at_unix_ms) in purges {
                    if let Some(record) = self.find_mut(revision) {
                        let said = Confirmation {
                            responses,
                            at_unix_ms,
                            is_at_least: at_least.contains(&revision),
                        };
                        record.set_confirmation(&node, said);
                        record.is_old = false;
                    }
                }
            }
            StateRecord::Complete {
                revision,
                at_unix_ms,
            } => {
                if let Some(record) = self.find_mut(revision) {
                    record.completed_unix_ms = at_unix_ms;
                    record.passed.clear();
                }
            }
            _ => {}
        }
    }

    /// Whether a purge is kept.
    #[cfg(test)]
    fn knows(&self, revision: u64) -> bool {
        self.find(revision).is_some()
    }

    /// Records to save since the last call.
    pub(crate) fn take_records(&mut self) -> Vec<StateRecord> {
        std::mem::take(&mut self.unsaved)
    }

    /// Everything that is known, as records.
    pub(crate) fn all_records(&self) -> Vec<StateRecord> {
        self.records
            .iter()
            .cloned()
            .map(StateRecord::Purge)
            .collect()
    }

    /// The records that were taken have numbers up to this one: purges that they complete are shown as
    /// complete once the records are on disk.
    pub(crate) fn saved_as(&mut self, number: u64) {
        for record in self
            .records
            .iter_mut()
            .filter(|r| r.shown_after == Some(u64::MAX))
        {
            record.shown_after = Some(number);
        }
    }

    /// Shows purges as complete whose records are on disk.
    pub(crate) fn show_written(&mut self, is_written: impl Fn(u64) -> bool) {
        if !self.has_unshown {
            return;
        }
        for record in &mut self.records {
            if record.shown_after.is_some_and(&is_written) {
                record.shown_after = None;
            }
        }
        self.has_unshown = self.records.iter().any(|r| r.shown_after.is_some());
    }

    /// Applies an edge's report. `edges` are all edges of the fleet. Returns events of purges that became
    /// complete.
    pub(crate) fn report(
        &mut self,
        report: &EdgeReport,
        edges: &[String],
        now_unix_ms: u64,
    ) -> Vec<NewEvent> {
        let (mut new_events, mut completed) = (Vec::new(), Vec::new());
        let (mut confirmed, mut at_least) = (Vec::new(), Vec::new());
        let progress = report.purges.iter().rev().map(|p| (p.revision, p));
        let counts: HashMap<u64, &PurgeProgress> = progress.collect();

        for record in self.records.iter_mut().filter(|r| r.completed_unix_ms == 0) {
            let count = counts.get(&record.revision).copied();
            if let Some(said) = record.confirm(report, count, now_unix_ms) {
                confirmed.push((record.revision, said.responses, said.at_unix_ms));
                if said.is_at_least {
                    at_least.push(record.revision);
                }
            }
            if record.is_confirmed_by_all(edges) {
                record.completed_unix_ms = now_unix_ms;
                record.passed.clear();
                record.shown_after = Some(u64::MAX);
                completed.push(StateRecord::Complete {
                    revision: record.revision,
                    at_unix_ms: now_unix_ms,
                });
                if !record.is_old {
                    new_events.push(record.completion_event());
                }
            }
        }

        if !confirmed.is_empty() {
            self.unsaved.push(StateRecord::Confirmed {
                node: report.node.clone(),
                purges: confirmed,
                at_least,
            });
        }
        self.has_unshown |= !completed.is_empty();
        self.unsaved.append(&mut completed);
        new_events
    }

    /// Notes an edge's cursor: it has received all entries up to `after`.
    pub(crate) fn cursor(&mut self, node: &str, after: u64) {
        for record in self
            .records
            .iter_mut()
            .filter(|r| r.completed_unix_ms == 0 && r.revision <= after)
        {
            if !record.received.contains(node) {
                record.received.insert(node.to_owned());
            }
        }
    }

    /// What a purge still waits for; `None` when it is not kept.
    pub(crate) fn outstanding(
        &self,
        revision: u64,
        edges: &[(String, bool)],
    ) -> Option<Outstanding> {
        let record = self.find(revision)?;
        if record.is_complete() {
            return Some(Outstanding { reporting: 0 });
        }
        // A complete purge that is not on disk yet counts as one missing edge.
        let unshown = usize::from(record.shown_after.is_some());
        let missing = edges
            .iter()
            .filter(|(e, is_reporting)| *is_reporting && !record.confirmed.contains_key(e))
            .count();
        Some(Outstanding {
            reporting: missing.max(unshown),
        })
    }

    /// One purge as an answer. `edges` are all edges of the fleet, with whether they report.
    pub(crate) fn view(&self, revision: u64, edges: &[(String, bool)]) -> Option<views::PurgeView> {
        self.find(revision).map(|r| r.view(edges))
    }

    /// All purges as answers, newest first.
    pub(crate) fn views(&self, edges: &[(String, bool)]) -> Vec<views::PurgeView> {
        self.records.iter().rev().map(|r| r.view(edges)).collect()
    }

    fn find(&self, revision: u64) -> Option<&PurgeRecord> {
        let at = self
            .records
            .binary_search_by_key(&revision, |r| r.revision)
            .ok()?;
        self.records.get(at)
    }

    fn find_mut(&mut self, revision: u64) -> Option<&mut PurgeRecord> {
        let at = self
            .records
            .binary_search_by_key(&revision, |r| r.revision)
            .ok()?;
        self.records.get_mut(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearcast_fleet::change::PurgeScope;

    fn report(node: &str, revision: u64, counts: &[(u64, u64)]) -> EdgeReport {
        EdgeReport {
            node: node.into(),
            revision,
            purges: counts
                .iter()
                .map(|(revision, responses)| PurgeProgress {
                    revision: *revision,
                    responses: *responses,
                    at_least: false,
                    effective_unix_ms: 7,
                })
                .collect(),
            ..EdgeReport::default()
        }
    }

    fn purges() -> (Purges, Vec<String>, Vec<(String, bool)>) {
        let mut p = Purges::default();
        p.accept(
            5,
            100,
            &Purge {
                scope: PurgeScope::All,
                soft: false,
            },
            false,
        );
        (
            p,
            vec!["a".into(), "b".into()],
            vec![("a".into(), true), ("b".into(), false)],
        )
    }

    #[test]
    fn complete_when_every_edge_has_confirmed() {
        let (mut p, edges, seen) = purges();
        assert_eq!(
            p.outstanding(5, &seen),
            Some(Outstanding { reporting: 1 }),
            "a silent edge is not waited for"
        );
        assert!(p.report(&report("a", 5, &[(5, 3)]), &edges, 110).is_empty());
        assert_eq!(p.outstanding(5, &seen), Some(Outstanding { reporting: 0 }));
        p.cursor("b", 5);
        let view = p.view(5, &seen).unwrap();
        assert_eq!(
            (
                view.complete,
                view.responses,
                view.missing.as_slice(),
                view.silent.as_slice()
            ),
            (false, 3, &["b".to_owned()][..], &["b".to_owned()][..])
        );
        assert_eq!(view.received, ["b"]);
        let done = p.report(&report("b", 6, &[(5, 2)]), &edges, 120);
        assert_eq!(done.len(), 1);
        assert!(
            done[0]
                .message
                .contains("5 responses on 2 nodes after 20 ms"),
            "{}",
            done[0].message
        );
        // It is shown as complete when that is on disk.
        assert_eq!(
            (p.view(5, &seen).unwrap().complete, p.outstanding(5, &seen)),
            (false, Some(Outstanding { reporting: 1 }))
        );
        assert_eq!(
            p.take_records().len(),
            3,
            "two confirmations and that it is complete"
        );
        p.show_written(|_| true);
        let view = p.view(5, &seen).unwrap();
        assert_eq!(
            (
                view.complete,
                view.completed_unix_ms,
                view.responses,
                view.missing.len(),
                view.nodes.len()
            ),
            (true, 120, 5, 0, 2)
        );
        assert!(
            p.report(&report("b", 6, &[(5, 2)]), &edges, 130).is_empty(),
            "said once"
        );
    }

    #[test]
    fn a_count_that_may_be_too_small_says_so_over_restarts() {
        let (mut p, edges, seen) = purges();
        let mut counted = report("a", 5, &[(5, 3)]);
        counted.purges[0].at_least = true;
        p.report(&counted, &edges, 110);
        let done = p.report(&report("b", 5, &[(5, 2)]), &edges, 120);
        let words = "everything covered at least 5 responses on 2 nodes";
        assert!(done[0].message.contains(words), "{}", done[0].message);

        let (mut restored, _, _) = purges();
        for record in p.take_records() {
            let text = serde_json::to_string(&record).unwrap();
            restored.restore(serde_json::from_str(&text).unwrap());
        }
        for purges in [&p, &restored] {
            let view = purges.view(5, &seen).unwrap();
            let nodes: Vec<(u64, bool)> = view
                .nodes
                .iter()
                .map(|n| (n.responses, n.at_least))
                .collect();
            assert_eq!((view.responses, view.at_least), (5, true));
            assert_eq!(nodes, [(3, true), (2, false)]);
        }

        // A later count of the same edge that is exact.
        let (mut p, edges, seen) = self::purges();
        p.report(&counted, &edges, 110);
        p.report(&report("a", 5, &[(5, 4)]), &edges, 111);
        assert!(!p.view(5, &seen).unwrap().at_least);
    }

    #[test]
    fn an_edge_that_is_past_it_without_a_count_confirms_with_its_second_report() {
        let (mut p, edges, seen) = purges();
        p.cursor("a", 5);
        p.report(&report("a", 4, &[]), &edges, 110);
        p.report(&report("a", 4, &[]), &edges, 111);
        assert_eq!(
            p.outstanding(5, &seen),
            Some(Outstanding { reporting: 1 }),
            "not folded yet"
        );
        p.report(&report("a", 5, &[]), &edges, 112);
        assert_eq!(
            p.outstanding(5, &seen),
            Some(Outstanding { reporting: 1 }),
            "the count may still come"
        );
        p.report(&report("a", 5, &[]), &edges, 113);
        assert_eq!(p.outstanding(5, &seen), Some(Outstanding { reporting: 0 }));
        assert_eq!(
            p.view(5, &seen).unwrap().nodes,
            [views::PurgeNode {
                node: "a".into(),
                responses: 0,
                at_least: false,
                effective_unix_ms: 113
            }]
        );
    }

    #[test]
    fn an_edge_that_counts_ahead_confirms_nothing_that_it_has_not_fetched() {
        let (mut p, edges, seen) = purges();
        // The edge followed this journal before it was set back, and has never seen this purge.
        for at in 110..115 {
            p.report(&report("a", 9, &[]), &edges, at);
        }
        p.cursor("a", 4);
        p.report(&report("a", 9, &[]), &edges, 115);
        assert_eq!(p.outstanding(5, &seen), Some(Outstanding { reporting: 1 }));
        p.cursor("a", 6);
        p.report(&report("a", 9, &[]), &edges, 116);
        assert_eq!(p.outstanding(5, &seen), Some(Outstanding { reporting: 0 }));
    }

    #[test]
    fn the_newest_are_kept() {
        let mut p = Purges::default();
        for revision in 1..=PURGES_MAX as u64 + 1 {
            p.accept(
                revision,
                0,
                &Purge {
                    scope: PurgeScope::Tag("t".into()),
                    soft: true,
                },
                true,
            );
        }
        assert_eq!(
            (p.view(1, &[]), p.views(&[]).len(), p.views(&[])[0].revision),
            (None, PURGES_MAX, PURGES_MAX as u64 + 1)
        );
        assert_eq!(p.outstanding(1, &[]), None);
    }

    #[test]
    fn those_that_are_waited_for_are_kept_however_many_come() {
        let mut p = Purges::default();
        let accept = |p: &mut Purges, revision: u64| {
            p.accept(
                revision,
                0,
                &Purge {
                    scope: PurgeScope::All,
                    soft: false,
                },
                false,
            )
        };
        for revision in 1..=3 {
            accept(&mut p, revision);
        }
        assert!(p.wait(2) && p.wait(2) && p.wait(3));
        for revision in 4..=3000 {
            accept(&mut p, revision);
        }
        let kept = |p: &Purges| {
            [1, 2, 3, 3000 - PURGES_MAX as u64, 3001 - PURGES_MAX as u64]
                .map(|revision| p.knows(revision))
        };
        assert_eq!(
            (kept(&p), p.records.len()),
            ([false, true, true, false, true], PURGES_MAX + 2)
        );
        p.end_wait(2);
        p.end_wait(3);
        accept(&mut p, 3001);
        assert_eq!(
            (kept(&p)[1..3].to_vec(), p.records.len()),
            (vec![true, false], PURGES_MAX + 1)
        );
        p.end_wait(2);
        accept(&mut p, 3002);
        assert_eq!(
            (p.knows(2), p.records.len(), p.waiters.len()),
            (false, PURGES_MAX, 0)
        );
        // The number of kept purges is bounded.
        for revision in 4000..4000 + WAITED_MAX as u64 + 10 {
            accept(&mut p, revision);
            assert_eq!(p.wait(revision), revision < 4000 + WAITED_MAX as u64);
        }
        assert!(p.records.len() <= WAITED_MAX + PURGES_MAX);
    }

    #[test]
    fn what_was_known_is_known_again() {
        let (mut p, edges, seen) = purges();
        let accept = |p: &mut Purges, revision: u64, is_old: bool| {
            p.accept(
                revision,
                100,
                &Purge {
                    scope: PurgeScope::Tag("t".into()),
                    soft: false,
                },
                is_old,
            );
        };
        accept(&mut p, 6, false);
        p.report(&report("a", 6, &[(5, 3), (6, 1)]), &edges, 110);
        p.report(&report("b", 5, &[(5, 4)]), &edges, 134);
        p.show_written(|_| true);
        let records = p.take_records();
        for records in [records, p.all_records()] {
            let mut q = Purges::default();
            accept(&mut q, 5, true);
            accept(&mut q, 6, true);
            // Encode and decode the records.
            let records: Vec<StateRecord> =
                serde_json::from_slice(&serde_json::to_vec(&records).unwrap()).unwrap();
            records.into_iter().for_each(|record| q.restore(record));
            let view = q.view(5, &seen).unwrap();
            assert_eq!(
                (view.complete, view.completed_unix_ms, view.responses),
                (true, 134, 7)
            );
            let view = q.view(6, &seen).unwrap();
            assert_eq!(
                (view.complete, view.nodes, view.missing),
                (false, p.view(6, &seen).unwrap().nodes, vec!["b".to_owned()])
            );
            // The restored purges go on.
            let done = q.report(&report("b", 6, &[(5, 4), (6, 2)]), &edges, 150);
            assert_eq!(
                done.iter().map(|h| h.revision).collect::<Vec<_>>(),
                [Some(6)],
                "said once, and not of the old one again"
            );
        }
    }

    #[test]
    fn a_fleet_without_edges_completes_nothing() {
        let (mut p, _, _) = purges();
        p.report(&report("gone", 9, &[(5, 1)]), &[], 110);
        assert!(!p.view(5, &[]).unwrap().complete);
    }

    #[test]
    fn many_scopes_are_shown_in_part() {
        let scopes = (0..100)
            .map(|n| PurgeScope::Prefix(format!("http://a/{n}*")))
            .collect();
        let mut p = Purges::default();
        p.accept(
            1,
            0,
            &Purge {
                scope: PurgeScope::Any(scopes),
                soft: true,
            },
            false,
        );
        let view = p.view(1, &[]).unwrap();
        assert_eq!(
            (view.scopes.len(), view.scopes_total, view.scope),
            (16, 100, views::Scope::Prefix("http://a/0".into()))
        );
    }
}
