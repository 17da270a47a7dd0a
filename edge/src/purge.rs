//! Purges as generations: what was purged when, in the order of the control journal.
//!
//! A stored response carries the revision its request was sent under; one that a later purge of its site, host,
//! prefix, URL or tags covers does not exist any more, wherever its bytes lie. So a purge costs one entry here,
//! and holds for bodies on disk and for fills under way. Written by one task, read by all.

use std::collections::HashMap;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nearcast_fleet::journal::{Purge, PurgeScope};

/// Most scopes kept apart; past that the oldest half is folded into one floor below which nothing counts.
const SCOPES_MAX: usize = 65_536;

/// What purges say of a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No purge since.
    Clean,
    /// It may be used after validation.
    Soft,
    /// It does not exist any more.
    Gone,
}

/// What a stored response is looked up by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) site: &'a str,
    /// `scheme://host/path?query`.
    pub(crate) url: &'a str,
    pub(crate) tags: &'a [Box<str>],
}

/// Revisions of the newest hard and soft purge of one scope.
#[derive(Debug, Default, Clone, Copy)]
struct Marks {
    hard: u64,
    soft: u64,
}

impl Marks {
    fn note(&mut self, revision: u64, soft: bool) {
        let mark = if soft { &mut self.soft } else { &mut self.hard };
        *mark = revision.max(*mark);
    }

    fn newest(&self) -> u64 {
        self.hard.max(self.soft)
    }
}

#[derive(Debug, Default)]
struct Table {
    all: Marks,
    scopes: HashMap<(Kind, Box<str>), Marks>,
    /// Everything older than this counts as purged: its purges are no longer known apart.
    floor: u64,
    has_prefixes: bool,
    has_tags: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Site,
    Host,
    Prefix,
    Url,
    Tag,
}

/// See the module's words.
#[derive(Debug, Default)]
pub(crate) struct Generations {
    table: RwLock<Table>,
    revision: AtomicU64,
}

impl Generations {
    /// Revision of the newest entry that has been folded.
    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Folds a purge; it holds for every look-up that begins after this returns.
    pub(crate) fn fold(&self, revision: u64, purge: &Purge) {
        let mut table = self.table.write().expect("no holder of this lock panics");
        match key_of(&purge.scope) {
            None => table.all.note(revision, purge.soft),
            Some(key) => {
                table.has_prefixes |= key.0 == Kind::Prefix;
                table.has_tags |= key.0 == Kind::Tag;
                table.scopes.entry(key).or_default().note(revision, purge.soft);
            }
        }
        if table.scopes.len() > SCOPES_MAX {
            table.compact();
        }
        drop(table);
        self.advance(revision);
    }

    /// Notes that the journal has been folded up to a revision.
    pub(crate) fn advance(&self, revision: u64) {
        self.revision.fetch_max(revision, Ordering::AcqRel);
    }

    /// What purges after revision `since` say of a stored response.
    pub(crate) fn verdict(&self, since: u64, subject: Subject<'_>) -> Verdict {
        let table = self.table.read().expect("no holder of this lock panics");
        if since < table.floor {
            return Verdict::Gone;
        }
        let mut found = table.all;
        let mut look = |kind: Kind, name: &str| {
            if let Some(marks) = table.scopes.get(&(kind, Box::from(name))) {
                found.note(marks.hard, false);
                found.note(marks.soft, true);
            }
        };
        if !table.scopes.is_empty() {
            look(Kind::Site, subject.site);
            look(Kind::Url, subject.url);
            look(Kind::Host, host_of(subject.url));
            if table.has_prefixes {
                prefixes(subject.url).for_each(|prefix| look(Kind::Prefix, prefix));
            }
            if table.has_tags {
                subject.tags.iter().for_each(|tag| look(Kind::Tag, tag));
            }
        }
        if found.hard > since {
            Verdict::Gone
        } else if found.soft > since {
            Verdict::Soft
        } else {
            Verdict::Clean
        }
    }
}

impl Table {
    fn compact(&mut self) {
        let mut revisions: Vec<u64> = self.scopes.values().map(Marks::newest).collect();
        let middle = revisions.len() / 2;
        let (_, median, _) = revisions.select_nth_unstable(middle);
        let median = *median;
        self.scopes.retain(|_, marks| marks.newest() > median);
        self.floor = self.floor.max(median);
    }
}

fn key_of(scope: &PurgeScope) -> Option<(Kind, Box<str>)> {
    Some(match scope {
        PurgeScope::All => return None,
        PurgeScope::Site(name) => (Kind::Site, name.as_str().into()),
        PurgeScope::Tag(tag) => (Kind::Tag, tag.as_str().into()),
        PurgeScope::Host(host) => (Kind::Host, canonical_host(host).into()),
        PurgeScope::Url(url) => (Kind::Url, canonical_url(url).into()),
        PurgeScope::Prefix(prefix) => (Kind::Prefix, without_end(&canonical_url(prefix)).into()),
    })
}

/// A prefix without what would make it more than a path cut at a `/`.
fn without_end(prefix: &str) -> &str {
    prefix.trim_end_matches(['/', '*'])
}

/// Lower case, without port or trailing dot.
pub(crate) fn canonical_host(host: &str) -> String {
    let host = host.trim().to_ascii_lowercase();
    let end = match host.strip_prefix('[').and_then(|h| h.find(']')) {
        Some(at) => at + 2,
        None => host.find(':').unwrap_or(host.len()),
    };
    host[..end].trim_end_matches('.').to_owned()
}

/// A URL as cache keys write it: scheme and host in lower case, no port, no fragment, at least `/` as its path.
pub(crate) fn canonical_url(url: &str) -> String {
    let url = url.trim();
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let rest = rest.split('#').next().unwrap_or_default();
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let slash = if path.starts_with('/') { "" } else { "/" };
    // Clients reach this node without TLS, also those whose URLs say https because something in front of it ends theirs.
    let scheme = if scheme.eq_ignore_ascii_case("https") { "http".to_owned() } else { scheme.to_ascii_lowercase() };
    format!("{scheme}://{}{slash}{path}", canonical_host(authority))
}

/// The host in a canonical URL.
pub(crate) fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    &rest[..rest.find('/').unwrap_or(rest.len())]
}

/// Every prefix of a canonical URL that ends before a `/` of its path, and the whole path.
fn prefixes(url: &str) -> impl Iterator<Item = &str> {
    let path_end = url.find('?').unwrap_or(url.len());
    let start = url.find("://").map_or(0, |at| at + 3);
    let cuts = url[start..path_end].match_indices('/').map(move |(at, _)| start + at);
    cuts.chain(std::iter::once(path_end)).map(move |at| &url[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_the_same_however_it_is_written() {
        for (url, expected) in [
            ("http://A.test:80/x?y#z", "http://a.test/x?y"),
            ("https://a.test/x", "http://a.test/x"),
            ("HTTPS://a.test", "http://a.test/"),
            ("a.test?x", "http://a.test/?x"),
        ] {
            assert_eq!(canonical_url(url), expected, "{url}");
        }
    }

    fn purge(scope: PurgeScope, soft: bool) -> Purge {
        Purge { scope, soft }
    }

    #[test]
    fn each_scope_covers_what_it_names_and_nothing_else() {
        let tags = ["news".into(), "front".into()];
        let subject = Subject { site: "www", url: "http://a.test/x/y?z=1", tags: &tags };
        let s = str::to_owned;
        let table = [
            (PurgeScope::All, true),
            (PurgeScope::Site(s("www")), true),
            (PurgeScope::Site(s("video")), false),
            (PurgeScope::Host(s("A.test")), true),
            (PurgeScope::Host(s("a.test:8080")), true),
            (PurgeScope::Host(s("b.test")), false),
            (PurgeScope::Url(s("http://a.test/x/y?z=1")), true),
            (PurgeScope::Url(s("HTTP://a.test:8080/x/y?z=1#top")), true),
            (PurgeScope::Url(s("http://a.test/x/y")), false),
            (PurgeScope::Prefix(s("http://a.test/x/")), true),
            (PurgeScope::Prefix(s("http://a.test/x")), true),
            (PurgeScope::Prefix(s("http://a.test/x/y")), true),
            (PurgeScope::Prefix(s("http://a.test/")), true),
            (PurgeScope::Prefix(s("http://a.test/x/yy")), false),
            (PurgeScope::Prefix(s("http://a.test/xx")), false),
            (PurgeScope::Tag(s("front")), true),
            (PurgeScope::Tag(s("sport")), false),
        ];
        for (scope, covered) in table {
            for soft in [false, true] {
                let generations = Generations::default();
                generations.fold(7, &purge(scope.clone(), soft));
                let expected = match (covered, soft) {
                    (false, _) => Verdict::Clean,
                    (true, false) => Verdict::Gone,
                    (true, true) => Verdict::Soft,
                };
                assert_eq!(generations.verdict(6, subject), expected, "{scope:?} soft {soft}");
                assert_eq!(generations.verdict(7, subject), Verdict::Clean, "{scope:?}: sent after the purge");
            }
        }
    }

    #[test]
    fn very_many_purges_are_bounded_and_forget_on_the_safe_side() {
        let generations = Generations::default();
        let revisions = SCOPES_MAX as u64 + 10;
        for revision in 1..=revisions {
            generations.fold(revision, &purge(PurgeScope::Url(format!("http://a.test/{revision}")), false));
        }
        assert!(generations.table.read().expect("unpoisoned").scopes.len() <= SCOPES_MAX);
        let other = Subject { site: "www", url: "http://a.test/other", tags: &[] };
        assert_eq!(generations.verdict(0, other), Verdict::Gone, "an old response may have been covered");
        assert_eq!(generations.verdict(revisions - 5, other), Verdict::Clean);
        let last = format!("http://a.test/{revisions}");
        assert_eq!(generations.verdict(revisions - 1, Subject { url: &last, ..other }), Verdict::Gone);
    }
}
