//! Purges as generations: for each scope the revision of the control journal that purged it last.
//!
//! A stored response carries the revision that was folded when its request was sent. A later purge
//! of its site, host, prefix, URL or tags makes it unusable, wherever its bytes are. So a purge
//! costs one entry here, and holds for bodies on disk and for running fills. One task writes, all
//! threads read.
//!
//! Scopes are kept as hashes, so that an entry has the same size whatever it names. URLs are
//! compared in the canonical form of [`nearcast_fleet::scope`], so that a purge covers every
//! spelling of a URL.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use nearcast_fleet::change::{Purge, PurgeScope};
use nearcast_fleet::scope::{self, Covered};
use nearcast_http_rules::key::Host;
use parking_lot::RwLock;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Largest number of scopes in the table: as many as the journal keeps, so that a start forgets none.
/// Beyond it, the older half is replaced by a floor: a response requested before the floor counts as
/// purged. Stored responses in memory are checked before that, see [`Generations::compact`]; those on
/// disk only are fetched again.
const SCOPES_MAX: usize = 262_144;

/// Whether a purge covers a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PurgeState {
    /// No purge covers it.
    Clean,
    /// A soft purge covers it: it may be used after validation.
    Soft,
    /// A purge covers it: it must not be used.
    Gone,
}

/// What purges can name of a stored response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PurgeSubject<'a> {
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

    fn join(&mut self, other: Self) {
        self.hard = self.hard.max(other.hard);
        self.soft = self.soft.max(other.soft);
    }

    fn newest(&self) -> u64 {
        self.hard.max(self.soft)
    }
}

/// The text of a scope, of any length, in a few bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ScopeHash {
    /// xxh3-128 of the text.
    hash: u128,
    length: u32,
}

type Scopes = HashMap<ScopeHash, Marks>;

#[derive(Debug)]
struct Table {
    /// Seed of the hashes. It is random for each process, so that no client can choose texts whose
    /// hashes collide.
    seed: u64,
    all: Marks,
    /// By [`ScopeKind`].
    scopes: [Scopes; SCOPE_KINDS],
    /// Lengths of the URL beginnings with their counts, of those with a scheme and of those without:
    /// a look-up tries only these lengths.
    lengths: [BTreeMap<usize, usize>; 2],
    /// Responses requested before this revision count as purged: the purges before it are no longer
    /// known.
    floor: u64,
}

impl Default for Table {
    fn default() -> Self {
        use std::hash::BuildHasher;
        Self {
            seed: std::hash::RandomState::new().hash_one(SCOPE_KINDS),
            all: Marks::default(),
            scopes: Default::default(),
            lengths: Default::default(),
            floor: 0,
        }
    }
}

/// The kinds of scopes that the table keeps. They are those of [`PurgeScope`] after a prefix was
/// taken apart into beginnings and URLs; [`keys_of`] is the only place that maps one to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ScopeKind {
    Site,
    Host,
    /// The beginning of a URL.
    Beginning,
    /// The beginning of a URL without its scheme.
    AnyBeginning,
    Url,
    /// A URL without its scheme.
    AnyUrl,
    Tag,
    /// `site/tag`; a site's name has no slash.
    SiteTag,
}

const SCOPE_KINDS: usize = 8;

impl ScopeKind {
    /// Which of the lengths of beginnings it has.
    fn lengths(self) -> Option<usize> {
        match self {
            Self::Beginning => Some(0),
            Self::AnyBeginning => Some(1),
            _ => None,
        }
    }
}

/// All purges, by scope, and the revision up to which the journal has been folded.
#[derive(Debug, Default)]
pub(crate) struct Generations {
    table: RwLock<Table>,
    revision: AtomicU64,
}

impl Generations {
    /// Revision of the newest folded entry.
    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Whether the table has room for a purge. If not, apply all purges to every stored response, and
    /// then call [`Generations::compact`].
    pub(crate) fn has_room(&self, purge: &Purge) -> bool {
        let table = self.table.read();
        table.len() + keys_of(&purge.scope).len() <= SCOPES_MAX
    }

    /// Folds a purge. It holds for every look-up that begins after this returns.
    pub(crate) fn fold(&self, revision: u64, purge: &Purge) {
        let keys = keys_of(&purge.scope);
        let mut table = self.table.write();
        for key in keys {
            match key {
                None => table.all.note(revision, purge.soft),
                Some((kind, name)) => table.note(kind, &name, revision, purge.soft),
            }
        }
        let is_full = table.len() > SCOPES_MAX;
        drop(table);
        if is_full {
            self.compact();
        }
        self.advance(revision);
    }

    /// Drops the older half of the purges. Responses to which the newest dropped one was applied keep
    /// their state. All others that were requested before it count as purged: those are responses of
    /// requests that took longer than the half of the table took to fill.
    pub(crate) fn compact(&self) {
        // There is one writer, so the half is copied under a read lock: readers wait only for the
        // exchange.
        let kept = self.table.read().newer_half();
        let old = std::mem::replace(&mut *self.table.write(), kept);
        drop(old);
    }

    /// Notes that the journal is folded up to a revision.
    pub(crate) fn advance(&self, revision: u64) {
        self.revision.fetch_max(revision, Ordering::AcqRel);
    }

    /// Whether purges after revision `since` cover a stored response.
    pub(crate) fn purge_state(&self, since: u64, subject: PurgeSubject<'_>) -> PurgeState {
        let table = self.table.read();
        if since < table.floor {
            return PurgeState::Gone;
        }
        let mut found = table.all;
        let mut look = |kind: ScopeKind, name: &str| {
            if let Some(marks) = table.find(kind, name) {
                found.join(marks);
            }
        };
        look(ScopeKind::Site, subject.site);
        look(ScopeKind::Host, host_of(subject.url));
        if table.names_urls() {
            let url = scope::canonical_key(subject.url);
            let any = &url[url.find("://").map_or(0, |at| at + 1)..];
            look(ScopeKind::Url, &url);
            look(ScopeKind::AnyUrl, any);
            for (kind, url, lengths) in [
                (ScopeKind::Beginning, &*url, &table.lengths[0]),
                (ScopeKind::AnyBeginning, any, &table.lengths[1]),
            ] {
                let beginnings = lengths
                    .range(..=url.len())
                    .filter_map(|(length, _)| url.get(..*length));
                beginnings.for_each(|beginning| look(kind, beginning));
            }
        }
        if !table.of(ScopeKind::Tag).is_empty() {
            subject
                .tags
                .iter()
                .for_each(|tag| look(ScopeKind::Tag, tag));
        }
        if !table.of(ScopeKind::SiteTag).is_empty() {
            subject
                .tags
                .iter()
                .for_each(|tag| look(ScopeKind::SiteTag, &site_tag(subject.site, tag)));
        }
        if found.hard > since {
            PurgeState::Gone
        } else if found.soft > since {
            PurgeState::Soft
        } else {
            PurgeState::Clean
        }
    }
}

impl Table {
    fn of(&self, kind: ScopeKind) -> &Scopes {
        &self.scopes[kind as usize]
    }

    fn names_urls(&self) -> bool {
        !self.of(ScopeKind::Url).is_empty()
            || !self.of(ScopeKind::AnyUrl).is_empty()
            || self.lengths.iter().any(|lengths| !lengths.is_empty())
    }

    fn len(&self) -> usize {
        self.scopes.iter().map(HashMap::len).sum()
    }

    fn name(&self, text: &str) -> ScopeHash {
        // A scope comes in one request, which is far shorter than 4 GiB.
        ScopeHash {
            hash: xxh3_128_with_seed(text.as_bytes(), self.seed),
            length: u32::try_from(text.len()).unwrap_or(u32::MAX),
        }
    }

    fn find(&self, kind: ScopeKind, name: &str) -> Option<Marks> {
        let scopes = self.of(kind);
        // Most kinds have no purge: then there is nothing to hash.
        if scopes.is_empty() {
            None
        } else {
            scopes.get(&self.name(name)).copied()
        }
    }

    fn note(&mut self, kind: ScopeKind, name: &str, revision: u64, soft: bool) {
        let length = name.len();
        let name = self.name(name);
        let marks = self.scopes[kind as usize].entry(name).or_default();
        if let Some(lengths) = kind.lengths().filter(|_| marks.newest() == 0) {
            *self.lengths[lengths].entry(length).or_default() += 1;
        }
        marks.note(revision, soft);
    }

    fn newer_half(&self) -> Self {
        let mut revisions: Vec<u64> = self
            .scopes
            .iter()
            .flat_map(HashMap::values)
            .map(Marks::newest)
            .collect();
        if revisions.is_empty() {
            return Self {
                seed: self.seed,
                all: self.all,
                floor: self.floor,
                ..Self::default()
            };
        }
        let middle = revisions.len() / 2;
        let (_, median, _) = revisions.select_nth_unstable(middle);
        let median = *median;
        let newer = |scopes: &Scopes| -> Scopes {
            scopes
                .iter()
                .filter(|(_, marks)| marks.newest() > median)
                .map(|(name, marks)| (*name, *marks))
                .collect()
        };
        let scopes = std::array::from_fn(|kind| newer(&self.scopes[kind]));
        let lengths = [ScopeKind::Beginning, ScopeKind::AnyBeginning].map(|kind| {
            let mut lengths = BTreeMap::new();
            for name in scopes[kind as usize].keys() {
                *lengths.entry(name.length as usize).or_default() += 1;
            }
            lengths
        });
        Self {
            seed: self.seed,
            all: self.all,
            scopes,
            lengths,
            floor: self.floor.max(median),
        }
    }
}

fn site_tag(site: &str, tag: &str) -> String {
    format!("{site}/{tag}")
}

/// A key of the table; `None` stands for everything.
type ScopeKey = Option<(ScopeKind, Box<str>)>;

/// The keys of a scope.
fn keys_of(scope: &PurgeScope) -> Vec<ScopeKey> {
    scope.each().iter().flat_map(keys_of_one).collect()
}

fn keys_of_one(scope: &PurgeScope) -> Vec<ScopeKey> {
    let (kind, text) = match scope {
        PurgeScope::Site(name) => (ScopeKind::Site, name.clone()),
        PurgeScope::Tag(tag) => (ScopeKind::Tag, tag.clone()),
        PurgeScope::SiteTag { site, tag } => (ScopeKind::SiteTag, site_tag(site, tag)),
        PurgeScope::Host(host) => (ScopeKind::Host, host_key(host)),
        PurgeScope::Url(url) => return vec![url_key(scope::journalled_url(url))],
        PurgeScope::Prefix(prefix) => {
            let key = |covered| match covered {
                Covered::Beginning(text) => match scope::of_any_scheme(&text) {
                    Some(any) => Some((ScopeKind::AnyBeginning, any.into())),
                    None => Some((ScopeKind::Beginning, text.into())),
                },
                Covered::Url(url) => url_key(url),
            };
            return scope::prefix_coverage(prefix)
                .into_iter()
                .map(key)
                .collect();
        }
        // Control writes no list within a list. If there is one it covers everything, which is
        // never too little.
        PurgeScope::All | PurgeScope::Any(_) => return vec![None],
    };
    vec![Some((kind, text.into()))]
}

/// The key of a URL in canonical form.
fn url_key(url: String) -> ScopeKey {
    match scope::of_any_scheme(&url) {
        Some(any) => Some((ScopeKind::AnyUrl, any.into())),
        None => Some((ScopeKind::Url, url.into())),
    }
}

/// A purged host in the form of cache keys. Control accepts valid hosts only.
fn host_key(host: &str) -> String {
    Host::parse(host).map_or_else(
        |_| host.to_ascii_lowercase(),
        |host| host.as_str().to_owned(),
    )
}

/// The host in a canonical URL.
pub(crate) fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    &rest[..rest.find('/').unwrap_or(rest.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purge(scope: PurgeScope, soft: bool) -> Purge {
        Purge { scope, soft }
    }

    #[test]
    fn each_scope_covers_what_it_names_and_nothing_else() {
        let tags = ["news".into(), "front".into()];
        let subject = PurgeSubject {
            site: "www",
            url: "http://a.test/x/y?z=1",
            tags: &tags,
        };
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
            (PurgeScope::Prefix(s("http://a.test/x/y?z=*")), true),
            (PurgeScope::Prefix(s("http://a.test/x/y?z=2*")), false),
            (PurgeScope::Prefix(s("http://a.test/*")), true),
            (PurgeScope::Prefix(s("http://a.test/x/y/*")), false),
            (PurgeScope::Prefix(s("http://b.test/*")), false),
            (
                PurgeScope::SiteTag {
                    site: s("www"),
                    tag: s("news"),
                },
                true,
            ),
            (
                PurgeScope::SiteTag {
                    site: s("video"),
                    tag: s("news"),
                },
                false,
            ),
            (
                PurgeScope::Any(vec![
                    PurgeScope::Tag(s("sport")),
                    PurgeScope::Host(s("a.test")),
                ]),
                true,
            ),
            (
                PurgeScope::Any(vec![
                    PurgeScope::Tag(s("sport")),
                    PurgeScope::Host(s("b.test")),
                ]),
                false,
            ),
            (PurgeScope::Tag(s("front")), true),
            (PurgeScope::Tag(s("sport")), false),
        ];
        for (scope, covered) in table {
            for soft in [false, true] {
                let generations = Generations::default();
                generations.fold(7, &purge(scope.clone(), soft));
                let expected = match (covered, soft) {
                    (false, _) => PurgeState::Clean,
                    (true, false) => PurgeState::Gone,
                    (true, true) => PurgeState::Soft,
                };
                assert_eq!(
                    generations.purge_state(6, subject),
                    expected,
                    "{scope:?} soft {soft}"
                );
                assert_eq!(
                    generations.purge_state(7, subject),
                    PurgeState::Clean,
                    "{scope:?}: sent after the purge"
                );
            }
        }
    }

    #[test]
    fn very_many_purges_are_bounded_and_forget_on_the_safe_side() {
        let generations = Generations::default();
        let revisions = SCOPES_MAX as u64 + 10;
        for revision in 1..=revisions {
            generations.fold(
                revision,
                &purge(PurgeScope::Url(format!("http://a.test/{revision}")), false),
            );
        }
        assert!(generations.table.read().len() <= SCOPES_MAX);
        let other = PurgeSubject {
            site: "www",
            url: "http://a.test/other",
            tags: &[],
        };
        assert_eq!(
            generations.purge_state(0, other),
            PurgeState::Gone,
            "an old response may have been covered"
        );
        assert_eq!(
            generations.purge_state(revisions - 5, other),
            PurgeState::Clean
        );
        let last = format!("http://a.test/{revisions}");
        assert_eq!(
            generations.purge_state(
                revisions - 1,
                PurgeSubject {
                    url: &last,
                    ..other
                }
            ),
            PurgeState::Gone
        );
    }

    #[test]
    fn a_purge_covers_every_spelling_of_what_it_names() {
        // The stored URL, the purged one, whether the purge is by prefix.
        let table = [
            ("http://a.test/caf%c3%a9", "http://a.test/café", false),
            ("http://a.test/caf%C3%A9", "http://a.test/caf%c3%a9", false),
            ("http://a.test/~u", "http://a.test/%7Eu", false),
            ("http://a.test/%7eu", "http://a.test/~u", false),
            ("http://a.test/?q=100%", "http://a.test/?q=100%25", false),
            ("http://a.test/a%20b/c", "http://a.test/a b/*", true),
            ("http://a.test/%e5%81%a5/x", "http://a.test/健/*", true),
            ("http://a.test/v/720p.m3u8", "http://a.test/v/720*", true),
        ];
        for (stored, named, is_prefix) in table {
            let generations = Generations::default();
            let scope = if is_prefix {
                PurgeScope::Prefix(named.into())
            } else {
                PurgeScope::Url(named.into())
            };
            let scope = scope::canonical(&scope).expect("good");
            generations.fold(7, &purge(scope, false));
            let verdict = |url| {
                generations.purge_state(
                    6,
                    PurgeSubject {
                        site: "www",
                        url,
                        tags: &[],
                    },
                )
            };
            assert_eq!(
                (verdict(stored), verdict("http://a.test/other")),
                (PurgeState::Gone, PurgeState::Clean),
                "{stored} by {named}"
            );
        }
    }

    #[test]
    fn a_purge_covers_its_scheme_and_without_one_both() {
        let s = str::to_owned;
        let table = [
            (PurgeScope::Url(s("http://a.test/x")), [true, false]),
            (PurgeScope::Url(s("https://a.test/x")), [false, true]),
            (PurgeScope::Url(s("*://a.test/x")), [true, true]),
            (PurgeScope::Url(s("*://b.test/x")), [false, false]),
            (PurgeScope::Prefix(s("http://a.test/*")), [true, false]),
            (PurgeScope::Prefix(s("https://a.test/*")), [false, true]),
            (PurgeScope::Prefix(s("*://a.test/*")), [true, true]),
            (PurgeScope::Prefix(s("*://a.test/y*")), [false, false]),
            (PurgeScope::Host(s("a.test")), [true, true]),
        ];
        for (scope, expected) in table {
            let generations = Generations::default();
            generations.fold(7, &purge(scope.clone(), false));
            let found = ["http://a.test/x", "https://a.test/x"].map(|url| {
                let subject = PurgeSubject {
                    site: "www",
                    url,
                    tags: &[],
                };
                generations.purge_state(6, subject) == PurgeState::Gone
            });
            assert_eq!(found, expected, "{scope:?}");
        }
    }

    #[test]
    fn prefixes_are_looked_up_by_their_lengths() {
        let generations = Generations::default();
        for (revision, prefix) in ["http://a.test/a*", "http://a.test/bb*", "http://a.test/a*"]
            .iter()
            .enumerate()
        {
            generations.fold(
                revision as u64 + 1,
                &purge(PurgeScope::Prefix((*prefix).to_owned()), false),
            );
        }
        let lengths: Vec<(usize, usize)> = generations.table.read().lengths[0]
            .iter()
            .map(|(l, n)| (*l, *n))
            .collect();
        assert_eq!(lengths, [(15, 1), (16, 1)]);
        generations.compact();
        let table = generations.table.read();
        assert_eq!(
            (table.len(), table.floor, table.lengths[0].len()),
            (0, 3, 0),
            "none is newer than the middle one of two"
        );
    }

    #[test]
    fn a_scope_takes_the_same_room_however_long_it_is() {
        assert!(
            SCOPES_MAX * size_of::<(ScopeHash, Marks)>() < 16 << 20,
            "a full table, but for the room that maps keep free"
        );
        let generations = Generations::default();
        let long = |end: &str| format!("http://a.test/{}{end}", "%E5".repeat(8000));
        let tag = "t".repeat(24_000);
        let any = PurgeScope::Any(vec![
            PurgeScope::Url(long("a")),
            PurgeScope::Prefix(long("b*")),
            PurgeScope::Tag(tag.clone()),
        ]);
        generations.fold(7, &purge(any, false));
        let verdict = |url: &str, tags: &[Box<str>]| {
            generations.purge_state(
                6,
                PurgeSubject {
                    site: "www",
                    url,
                    tags,
                },
            )
        };
        let table = [
            (long("a"), PurgeState::Gone),
            (long("bc"), PurgeState::Gone),
            (long("c"), PurgeState::Clean),
            (long(""), PurgeState::Clean),
        ];
        for (url, expected) in table {
            assert_eq!(verdict(&url, &[]), expected, "{}", url.len());
        }
        assert_eq!(verdict("http://a.test/", &[tag.into()]), PurgeState::Gone);
        assert_eq!(
            verdict("http://a.test/", &["t".repeat(23_999).into()]),
            PurgeState::Clean
        );
        let other = Generations::default();
        assert_ne!(
            generations.table.read().name("a"),
            other.table.read().name("a"),
            "no two processes share their hashes"
        );
    }

    #[test]
    fn what_was_looked_up_before_purges_are_forgotten_is_not_touched() {
        let generations = Generations::default();
        let url = |n: u64| PurgeScope::Url(format!("http://a.test/{n}"));
        let mut revision = 0;
        while generations.has_room(&purge(url(revision + 1), false)) {
            revision += 1;
            generations.fold(revision, &purge(url(revision), false));
        }
        assert_eq!(revision, SCOPES_MAX as u64);
        let other = PurgeSubject {
            site: "www",
            url: "http://a.test/other",
            tags: &[],
        };
        assert_eq!(generations.purge_state(0, other), PurgeState::Clean);
        generations.compact();
        assert_eq!(
            generations.purge_state(revision, other),
            PurgeState::Clean,
            "it was clean up to there"
        );
        assert_eq!(
            generations.purge_state(0, other),
            PurgeState::Gone,
            "of what was not looked up nothing is known"
        );
        assert!(generations.has_room(&purge(url(0), false)));
    }
}
