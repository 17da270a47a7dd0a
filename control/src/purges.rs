//! Purges and which edges have confirmed them. Pure: reports and the time come in.
//!
//! An edge confirms with the count in its report. One that has folded the revision but says no
//! count (it started after the purge, or the count has left its list) confirms with its second
//! report that is past the revision, once it has also asked for what follows: a revision in a
//! report alone may be one of a journal that was set back since.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use nearcast_fleet::journal::{Purge, PurgeScope};
use nearcast_fleet::report::EdgeReport;
use serde::{Deserialize, Serialize};

use crate::events::{Happening, Level};
use crate::facts::Fact;
use crate::view;

/// Purges that are kept with their confirmations; older ones stay in the journal, and here as long
/// as somebody waits for them.
pub(crate) const KEPT_MAX: usize = 256;
/// Purges that are waited for at a time; more are answered as they stand.
pub(crate) const WAITED_MAX: usize = 4096;
/// Scopes of one purge that are kept and shown.
const SCOPES_SHOWN_MAX: usize = 16;
/// Scopes of one purge that a sentence names.
const SCOPES_NAMED_MAX: usize = 3;

/// A purge and what is known of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) revision: u64,
    accepted_unix_ms: u64,
    /// For people.
    description: String,
    scopes: Vec<view::Scope>,
    scopes_total: usize,
    soft: bool,
    /// By edge: responses covered, and when.
    confirmed: BTreeMap<String, (u64, u64)>,
    /// Edges that were past the revision once without a count.
    #[serde(default)]
    passed: BTreeSet<String>,
    /// Edges that have fetched the change.
    #[serde(default)]
    received: BTreeSet<String>,
    completed_unix_ms: u64,
    /// From an earlier process that kept no facts: its completion is no news.
    #[serde(default)]
    is_old: bool,
    /// It is complete, but that is not on disk yet: shown once facts up to this number are;
    /// `u64::MAX` until they have one.
    #[serde(skip)]
    shown_after: Option<u64>,
}

/// The newest purges.
#[derive(Debug, Default)]
pub(crate) struct Purges {
    /// Oldest first.
    records: VecDeque<Record>,
    /// Of revisions that somebody waits for.
    waited: HashMap<u64, usize>,
    /// What has become known and is not taken yet.
    facts: Vec<Fact>,
    /// A record may have `shown_after`.
    has_unshown: bool,
}

/// What a purge waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outstanding {
    /// Edges that report and have not confirmed.
    pub(crate) reporting: usize,
}

impl Purges {
    /// Takes in a journal entry; `is_old` for those of an earlier process.
    pub(crate) fn accept(
        &mut self,
        revision: u64,
        accepted_unix_ms: u64,
        purge: &Purge,
        is_old: bool,
    ) {
        self.push(Record {
            revision,
            accepted_unix_ms,
            description: describe(purge),
            scopes: purge
                .scope
                .each()
                .iter()
                .take(SCOPES_SHOWN_MAX)
                .map(scope_view)
                .collect(),
            scopes_total: purge.scope.each().len(),
            soft: purge.soft,
            confirmed: BTreeMap::new(),
            passed: BTreeSet::new(),
            received: BTreeSet::new(),
            completed_unix_ms: 0,
            is_old,
            shown_after: None,
        });
    }

    /// Adds the newest record; the oldest that nobody waits for make room.
    fn push(&mut self, record: Record) {
        self.records.push_back(record);
        let mut surplus = self.records.len().saturating_sub(KEPT_MAX);
        if surplus == 0 {
            return;
        }
        // Those that are waited for stay: at most as many as there are waiters, and looked at only
        // while there are any.
        let waited = &self.waited;
        if waited.is_empty() {
            self.records.drain(..surplus);
            return;
        }
        let newest = self.records.len() - KEPT_MAX;
        let mut at = 0;
        self.records.retain(|r| {
            at += 1;
            let goes = surplus > 0 && at <= newest && !waited.contains_key(&r.revision);
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// Keeps a purge until [`Purges::waited`]; false where too many are waited for.
    pub(crate) fn wait(&mut self, revision: u64) -> bool {
        if self.waited.len() >= WAITED_MAX && !self.waited.contains_key(&revision) {
            return false;
        }
        *self.waited.entry(revision).or_insert(0) += 1;
        true
    }

    /// Ends one [`Purges::wait`].
    pub(crate) fn waited(&mut self, revision: u64) {
        if let Some(count) = self.waited.get_mut(&revision) {
            *count -= 1;
            if *count == 0 {
                self.waited.remove(&revision);
            }
        }
    }

    /// How many purges are waited for.
    pub(crate) fn waited_for(&self) -> usize {
        self.waited.len()
    }

    /// Takes in what an earlier process knew, oldest fact first.
    pub(crate) fn restore(&mut self, fact: Fact) {
        match fact {
            Fact::Purge(record) => match self
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
                    while self.records.len() > KEPT_MAX {
                        self.records.pop_front();
                    }
                }
            },
            Fact::Confirmed { node, purges } => {
                for (revision, responses, at) in purges {
                    if let Some(record) = self.find_mut(revision) {
                        record.confirmed.insert(node.clone(), (responses, at));
                        record.is_old = false;
                    }
                }
            }
            Fact::Complete {
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

    /// What has become known since the last call.
    pub(crate) fn take_facts(&mut self) -> Vec<Fact> {
        std::mem::take(&mut self.facts)
    }

    /// All that is known, as facts.
    pub(crate) fn all_facts(&self) -> Vec<Fact> {
        self.records.iter().cloned().map(Fact::Purge).collect()
    }

    /// The facts that were taken have numbers up to this one: what they complete is shown when they
    /// are on disk.
    pub(crate) fn recorded(&mut self, number: u64) {
        for record in self
            .records
            .iter_mut()
            .filter(|r| r.shown_after == Some(u64::MAX))
        {
            record.shown_after = Some(number);
        }
    }

    /// Facts up to this number are on disk.
    pub(crate) fn show(&mut self, is_kept: impl Fn(u64) -> bool) {
        if !self.has_unshown {
            return;
        }
        for record in &mut self.records {
            if record.shown_after.is_some_and(&is_kept) {
                record.shown_after = None;
            }
        }
        self.has_unshown = self.records.iter().any(|r| r.shown_after.is_some());
    }

    /// Takes in an edge's report; `edges` are all of the fleet. Says which purges became complete.
    pub(crate) fn report(
        &mut self,
        report: &EdgeReport,
        edges: &[String],
        now_unix_ms: u64,
    ) -> Vec<Happening> {
        let mut happenings = Vec::new();
        let mut confirmed = Vec::new();
        let mut completed = Vec::new();
        let counts: HashMap<u64, (u64, u64)> = report
            .purges
            .iter()
            .rev()
            .map(|p| (p.revision, (p.responses, p.effective_unix_ms)))
            .collect();
        for record in self.records.iter_mut().filter(|r| r.completed_unix_ms == 0) {
            let known = record.confirmed.get(&report.node).copied();
            let now = if let Some(count) = counts.get(&record.revision) {
                Some(*count)
            } else if known.is_none()
                && report.revision >= record.revision
                && !record.passed.insert(report.node.clone())
                && record.received.contains(&report.node)
            {
                Some((0, now_unix_ms))
            } else {
                known
            };
            if let Some((responses, at)) = now.filter(|_| now != known) {
                record
                    .confirmed
                    .insert(report.node.clone(), (responses, at));
                confirmed.push((record.revision, responses, at));
            }
            let may_be_complete = !edges.is_empty() && record.confirmed.len() >= edges.len();
            if may_be_complete && edges.iter().all(|e| record.confirmed.contains_key(e)) {
                record.completed_unix_ms = now_unix_ms;
                record.passed.clear();
                record.shown_after = Some(u64::MAX);
                completed.push(Fact::Complete {
                    revision: record.revision,
                    at_unix_ms: now_unix_ms,
                });
                if !record.is_old {
                    let took = now_unix_ms.saturating_sub(record.accepted_unix_ms);
                    let message = format!(
                        "purge {} of {} covered {} on {} after {took} ms",
                        record.revision,
                        record.description,
                        count(record.responses(), "response"),
                        count(record.confirmed.len() as u64, "node")
                    );
                    happenings.push(
                        Happening::new("purge_complete", Level::Good, message)
                            .revision(record.revision),
                    );
                }
            }
        }
        if !confirmed.is_empty() {
            self.facts.push(Fact::Confirmed {
                node: report.node.clone(),
                purges: confirmed,
            });
        }
        self.has_unshown |= !completed.is_empty();
        self.facts.append(&mut completed);
        happenings
    }

    /// An edge has asked for what follows `after`: it holds everything up to there.
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

    /// Whom a purge still waits for; `None` for one that is not kept.
    pub(crate) fn outstanding(
        &self,
        revision: u64,
        edges: &[(String, bool)],
    ) -> Option<Outstanding> {
        let record = self.find(revision)?;
        if record.is_complete() {
            return Some(Outstanding { reporting: 0 });
        }
        // What is complete and not on disk yet is waited for like an edge.
        let unshown = usize::from(record.shown_after.is_some());
        let missing = edges
            .iter()
            .filter(|(e, is_reporting)| *is_reporting && !record.confirmed.contains_key(e))
            .count();
        Some(Outstanding {
            reporting: missing.max(unshown),
        })
    }

    /// One as an answer. `edges` are all of the fleet, with whether they report.
    pub(crate) fn view(&self, revision: u64, edges: &[(String, bool)]) -> Option<view::PurgeView> {
        self.find(revision).map(|r| r.view(edges))
    }

    /// All as answers, newest first.
    pub(crate) fn views(&self, edges: &[(String, bool)]) -> Vec<view::PurgeView> {
        self.records.iter().rev().map(|r| r.view(edges)).collect()
    }

    fn find(&self, revision: u64) -> Option<&Record> {
        let at = self
            .records
            .binary_search_by_key(&revision, |r| r.revision)
            .ok()?;
        self.records.get(at)
    }

    fn find_mut(&mut self, revision: u64) -> Option<&mut Record> {
        let at = self
            .records
            .binary_search_by_key(&revision, |r| r.revision)
            .ok()?;
        self.records.get_mut(at)
    }
}

impl Record {
    /// Every edge has confirmed it, and that is on disk.
    fn is_complete(&self) -> bool {
        self.completed_unix_ms > 0 && self.shown_after.is_none()
    }

    fn responses(&self) -> u64 {
        self.confirmed
            .values()
            .fold(0, |a, (n, _)| a.saturating_add(*n))
    }

    fn view(&self, edges: &[(String, bool)]) -> view::PurgeView {
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
        view::PurgeView {
            revision: self.revision,
            accepted_unix_ms: self.accepted_unix_ms,
            scope: self.scopes.first().cloned().unwrap_or(view::Scope::All),
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
            nodes: self
                .confirmed
                .iter()
                .map(|(node, (responses, at))| view::PurgeNode {
                    node: node.clone(),
                    responses: *responses,
                    effective_unix_ms: *at,
                })
                .collect(),
            missing: names(&|_| true),
            silent: names(&|(_, is_reporting)| !is_reporting),
            received: names(&|(e, _)| self.received.contains(e)),
            notes: Vec::new(),
        }
    }
}

/// For people: `url http://a/`, `everything`, `site www (soft)`, `tag a, tag b, tag c and 4 more`.
pub(crate) fn describe(purge: &Purge) -> String {
    let scopes = purge.scope.each();
    let mut words = scopes
        .iter()
        .take(SCOPES_NAMED_MAX)
        .map(describe_one)
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

fn describe_one(scope: &PurgeScope) -> String {
    match scope_view(scope) {
        view::Scope::Url(v) => format!("url {v}"),
        view::Scope::Prefix(v) => format!("prefix {v}"),
        view::Scope::Host(v) => format!("host {v}"),
        view::Scope::Site(v) => format!("site {v}"),
        view::Scope::Tag(v) => format!("tag {v}"),
        view::Scope::SiteTag { site, tag } => format!("tag {tag} of site {site}"),
        view::Scope::All => "everything".to_owned(),
    }
}

/// `1 node`, `2 nodes`.
pub(crate) fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn scope_view(scope: &PurgeScope) -> view::Scope {
    match scope.clone() {
        PurgeScope::Url(v) => view::Scope::Url(v),
        PurgeScope::Prefix(v) => view::Scope::Prefix(v.trim_end_matches('*').to_owned()),
        PurgeScope::Host(v) => view::Scope::Host(v),
        PurgeScope::Site(v) => view::Scope::Site(v),
        PurgeScope::Tag(v) => view::Scope::Tag(v),
        PurgeScope::SiteTag { site, tag } => view::Scope::SiteTag { site, tag },
        // A list is never in a list.
        PurgeScope::All | PurgeScope::Any(_) => view::Scope::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearcast_fleet::report::PurgeProgress;

    fn report(node: &str, revision: u64, counts: &[(u64, u64)]) -> EdgeReport {
        EdgeReport {
            node: node.into(),
            revision,
            purges: counts
                .iter()
                .map(|(revision, responses)| PurgeProgress {
                    revision: *revision,
                    responses: *responses,
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
        // Shown when it is on disk.
        assert_eq!(
            (p.view(5, &seen).unwrap().complete, p.outstanding(5, &seen)),
            (false, Some(Outstanding { reporting: 1 }))
        );
        assert_eq!(
            p.take_facts().len(),
            3,
            "two confirmations and that it is complete"
        );
        p.show(|_| true);
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
            [view::PurgeNode {
                node: "a".into(),
                responses: 0,
                effective_unix_ms: 113
            }]
        );
    }

    #[test]
    fn an_edge_that_counts_ahead_confirms_nothing_that_it_has_not_fetched() {
        let (mut p, edges, seen) = purges();
        // It followed this journal before that was set back: it has never seen this purge.
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
        for revision in 1..=KEPT_MAX as u64 + 1 {
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
            (None, KEPT_MAX, KEPT_MAX as u64 + 1)
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
            [1, 2, 3, 3000 - KEPT_MAX as u64, 3001 - KEPT_MAX as u64]
                .map(|revision| p.knows(revision))
        };
        assert_eq!(
            (kept(&p), p.records.len()),
            ([false, true, true, false, true], KEPT_MAX + 2)
        );
        p.waited(2);
        p.waited(3);
        accept(&mut p, 3001);
        assert_eq!(
            (kept(&p)[1..3].to_vec(), p.records.len()),
            (vec![true, false], KEPT_MAX + 1)
        );
        p.waited(2);
        accept(&mut p, 3002);
        assert_eq!(
            (p.knows(2), p.records.len(), p.waited.len()),
            (false, KEPT_MAX, 0)
        );
        // Nobody can make it grow without end.
        for revision in 4000..4000 + WAITED_MAX as u64 + 10 {
            accept(&mut p, revision);
            assert_eq!(p.wait(revision), revision < 4000 + WAITED_MAX as u64);
        }
        assert!(p.records.len() <= WAITED_MAX + KEPT_MAX);
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
        p.show(|_| true);
        let facts = p.take_facts();
        for facts in [facts, p.all_facts()] {
            let mut q = Purges::default();
            accept(&mut q, 5, true);
            accept(&mut q, 6, true);
            // As they are written and read.
            let facts: Vec<Fact> =
                serde_json::from_slice(&serde_json::to_vec(&facts).unwrap()).unwrap();
            facts.into_iter().for_each(|fact| q.restore(fact));
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
            // And it goes on.
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
            (16, 100, view::Scope::Prefix("http://a/0".into()))
        );
    }

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
