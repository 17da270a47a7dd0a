//! Purges and which edges have confirmed them. Pure: reports and the time come in.
//!
//! An edge confirms with the count in its report. One that has folded the revision but says no count (it started after
//! the purge, or the count has left its list) confirms with its second report that is past the revision.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use nearcast_fleet::journal::{Purge, PurgeScope};
use nearcast_fleet::report::EdgeReport;

use crate::events::{Happening, Level};
use crate::view;

/// Purges that are kept with their confirmations; older ones stay in the journal.
pub(crate) const KEPT_MAX: usize = 256;
/// Scopes of one purge that are kept and shown.
const SCOPES_SHOWN_MAX: usize = 16;
/// Scopes of one purge that a sentence names.
const SCOPES_NAMED_MAX: usize = 3;

#[derive(Debug)]
struct Record {
    revision: u64,
    accepted_unix_ms: u64,
    /// For people.
    description: String,
    scopes: Vec<view::Scope>,
    scopes_total: usize,
    soft: bool,
    /// By edge: responses covered, and when.
    confirmed: BTreeMap<String, (u64, u64)>,
    /// Edges that were past the revision once without a count.
    passed: BTreeSet<String>,
    /// Edges that have fetched the change.
    received: BTreeSet<String>,
    completed_unix_ms: u64,
    /// From an earlier process: its completion is no news.
    is_old: bool,
}

/// The newest purges.
#[derive(Debug, Default)]
pub(crate) struct Purges {
    /// Oldest first.
    records: VecDeque<Record>,
}

/// What a purge waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outstanding {
    /// Edges that report and have not confirmed.
    pub(crate) reporting: usize,
}

impl Purges {
    /// Takes in a journal entry; `is_old` for those of an earlier process.
    pub(crate) fn accept(&mut self, revision: u64, accepted_unix_ms: u64, purge: &Purge, is_old: bool) {
        if self.records.len() == KEPT_MAX {
            self.records.pop_front();
        }
        self.records.push_back(Record {
            revision,
            accepted_unix_ms,
            description: describe(purge),
            scopes: purge.scope.each().iter().take(SCOPES_SHOWN_MAX).map(scope_view).collect(),
            scopes_total: purge.scope.each().len(),
            soft: purge.soft,
            confirmed: BTreeMap::new(),
            passed: BTreeSet::new(),
            received: BTreeSet::new(),
            completed_unix_ms: 0,
            is_old,
        });
    }

    /// Takes in an edge's report; `edges` are all of the fleet. Says which purges became complete.
    pub(crate) fn report(&mut self, report: &EdgeReport, edges: &[String], now_unix_ms: u64) -> Vec<Happening> {
        let mut happenings = Vec::new();
        for record in self.records.iter_mut().filter(|r| r.completed_unix_ms == 0) {
            if let Some(p) = report.purges.iter().find(|p| p.revision == record.revision) {
                record.confirmed.insert(report.node.clone(), (p.responses, p.effective_unix_ms));
            } else if report.revision >= record.revision
                && !record.passed.insert(report.node.clone())
                && !record.confirmed.contains_key(&report.node)
            {
                record.confirmed.insert(report.node.clone(), (0, now_unix_ms));
            }
            if !edges.is_empty() && edges.iter().all(|e| record.confirmed.contains_key(e)) {
                record.completed_unix_ms = now_unix_ms;
                record.passed.clear();
                if !record.is_old {
                    let took = now_unix_ms.saturating_sub(record.accepted_unix_ms);
                    let message = format!(
                        "purge {} of {} covered {} on {} after {took} ms",
                        record.revision,
                        record.description,
                        count(record.responses(), "response"),
                        count(record.confirmed.len() as u64, "node")
                    );
                    happenings.push(Happening::new("purge_complete", Level::Good, message).revision(record.revision));
                }
            }
        }
        happenings
    }

    /// An edge has asked for what follows `after`: it holds everything up to there.
    pub(crate) fn cursor(&mut self, node: &str, after: u64) {
        for record in self.records.iter_mut().filter(|r| r.completed_unix_ms == 0 && r.revision <= after) {
            record.received.insert(node.to_owned());
        }
    }

    /// Whom a purge still waits for; `None` for one that is not kept.
    pub(crate) fn outstanding(&self, revision: u64, edges: &[(String, bool)]) -> Option<Outstanding> {
        let record = self.find(revision)?;
        let reporting = edges.iter().filter(|(e, is_reporting)| *is_reporting && !record.confirmed.contains_key(e)).count();
        Some(Outstanding { reporting: if record.completed_unix_ms > 0 { 0 } else { reporting } })
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
        self.records.iter().rev().find(|r| r.revision == revision)
    }
}

impl Record {
    fn responses(&self) -> u64 {
        self.confirmed.values().fold(0, |a, (n, _)| a.saturating_add(*n))
    }

    fn view(&self, edges: &[(String, bool)]) -> view::PurgeView {
        let is_complete = self.completed_unix_ms > 0;
        let missing: Vec<&(String, bool)> = edges.iter().filter(|(e, _)| !is_complete && !self.confirmed.contains_key(e)).collect();
        let names = |keep: &dyn Fn(&(String, bool)) -> bool| missing.iter().filter(|e| keep(e)).map(|e| e.0.clone()).collect();
        view::PurgeView {
            revision: self.revision,
            accepted_unix_ms: self.accepted_unix_ms,
            scope: self.scopes.first().cloned().unwrap_or(view::Scope::All),
            scopes: self.scopes.clone(),
            scopes_total: self.scopes_total,
            soft: self.soft,
            complete: is_complete,
            completed_unix_ms: self.completed_unix_ms,
            responses: self.responses(),
            nodes: self
                .confirmed
                .iter()
                .map(|(node, (responses, at))| view::PurgeNode { node: node.clone(), responses: *responses, effective_unix_ms: *at })
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
    let mut words = scopes.iter().take(SCOPES_NAMED_MAX).map(describe_one).collect::<Vec<_>>().join(", ");
    if scopes.len() > SCOPES_NAMED_MAX {
        words.push_str(&format!(" and {} more", scopes.len() - SCOPES_NAMED_MAX));
    }
    if purge.soft { format!("{words} (soft)") } else { words }
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
                .map(|(revision, responses)| PurgeProgress { revision: *revision, responses: *responses, effective_unix_ms: 7 })
                .collect(),
            ..EdgeReport::default()
        }
    }

    fn purges() -> (Purges, Vec<String>, Vec<(String, bool)>) {
        let mut p = Purges::default();
        p.accept(5, 100, &Purge { scope: PurgeScope::All, soft: false }, false);
        (p, vec!["a".into(), "b".into()], vec![("a".into(), true), ("b".into(), false)])
    }

    #[test]
    fn complete_when_every_edge_has_confirmed() {
        let (mut p, edges, seen) = purges();
        assert_eq!(p.outstanding(5, &seen), Some(Outstanding { reporting: 1 }), "a silent edge is not waited for");
        assert!(p.report(&report("a", 5, &[(5, 3)]), &edges, 110).is_empty());
        assert_eq!(p.outstanding(5, &seen), Some(Outstanding { reporting: 0 }));
        p.cursor("b", 5);
        let view = p.view(5, &seen).unwrap();
        assert_eq!(
            (view.complete, view.responses, view.missing.as_slice(), view.silent.as_slice()),
            (false, 3, &["b".to_owned()][..], &["b".to_owned()][..])
        );
        assert_eq!(view.received, ["b"]);
        let done = p.report(&report("b", 6, &[(5, 2)]), &edges, 120);
        assert_eq!(done.len(), 1);
        assert!(done[0].message.contains("5 responses on 2 nodes after 20 ms"), "{}", done[0].message);
        let view = p.view(5, &seen).unwrap();
        assert_eq!((view.complete, view.completed_unix_ms, view.responses, view.missing.len(), view.nodes.len()), (true, 120, 5, 0, 2));
        assert!(p.report(&report("b", 6, &[(5, 2)]), &edges, 130).is_empty(), "said once");
    }

    #[test]
    fn an_edge_that_is_past_it_without_a_count_confirms_with_its_second_report() {
        let (mut p, edges, seen) = purges();
        p.report(&report("a", 4, &[]), &edges, 110);
        p.report(&report("a", 4, &[]), &edges, 111);
        assert_eq!(p.outstanding(5, &seen), Some(Outstanding { reporting: 1 }), "not folded yet");
        p.report(&report("a", 5, &[]), &edges, 112);
        assert_eq!(p.outstanding(5, &seen), Some(Outstanding { reporting: 1 }), "the count may still come");
        p.report(&report("a", 5, &[]), &edges, 113);
        assert_eq!(p.outstanding(5, &seen), Some(Outstanding { reporting: 0 }));
        assert_eq!(p.view(5, &seen).unwrap().nodes, [view::PurgeNode { node: "a".into(), responses: 0, effective_unix_ms: 113 }]);
    }

    #[test]
    fn the_newest_are_kept() {
        let mut p = Purges::default();
        for revision in 1..=KEPT_MAX as u64 + 1 {
            p.accept(revision, 0, &Purge { scope: PurgeScope::Tag("t".into()), soft: true }, true);
        }
        assert_eq!((p.view(1, &[]), p.views(&[]).len(), p.views(&[])[0].revision), (None, KEPT_MAX, KEPT_MAX as u64 + 1));
        assert_eq!(p.outstanding(1, &[]), None);
    }

    #[test]
    fn a_fleet_without_edges_completes_nothing() {
        let (mut p, _, _) = purges();
        p.report(&report("gone", 9, &[(5, 1)]), &[], 110);
        assert!(!p.view(5, &[]).unwrap().complete);
    }

    #[test]
    fn many_scopes_are_shown_in_part() {
        let scopes = (0..100).map(|n| PurgeScope::Prefix(format!("http://a/{n}*"))).collect();
        let mut p = Purges::default();
        p.accept(1, 0, &Purge { scope: PurgeScope::Any(scopes), soft: true }, false);
        let view = p.view(1, &[]).unwrap();
        assert_eq!((view.scopes.len(), view.scopes_total, view.scope), (16, 100, view::Scope::Prefix("http://a/0".into())));
    }

    #[test]
    fn words_for_people() {
        let tags = |count: u32| PurgeScope::Any((1..=count).map(|n| PurgeScope::Tag(format!("t{n}"))).collect());
        let table = [
            (Purge { scope: PurgeScope::Prefix("http://a/x*".into()), soft: false }, "prefix http://a/x"),
            (Purge { scope: PurgeScope::SiteTag { site: "www".into(), tag: "t".into() }, soft: false }, "tag t of site www"),
            (Purge { scope: tags(2), soft: true }, "tag t1, tag t2 (soft)"),
            (Purge { scope: tags(5), soft: false }, "tag t1, tag t2, tag t3 and 2 more"),
            (Purge { scope: PurgeScope::All, soft: false }, "everything"),
            (Purge { scope: PurgeScope::Site("www".into()), soft: true }, "site www (soft)"),
            (Purge { scope: PurgeScope::Url("http://a/".into()), soft: false }, "url http://a/"),
        ];
        for (purge, expected) in table {
            assert_eq!(describe(&purge), expected);
        }
        assert_eq!((count(1, "node"), count(0, "node")), ("1 node".into(), "0 nodes".into()));
    }
}
