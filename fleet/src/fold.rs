//! Folds journal entries: the rules by which later entries supersede earlier ones. Pure.

use std::collections::HashMap;

use crate::change::{Change, DrainTarget, Entry, Purge, PurgeScope};
use crate::scope;

/// Most separate purged scopes, about 40 MB of JSON. Beyond it the older half becomes one purge of
/// everything, which covers more. Running nodes have applied the purges one by one before that, and
/// lose nothing.
const PURGES_MAX: usize = 262_144;
/// Most bytes of the names in these scopes, with the same rule.
const PURGES_BYTES_MAX: usize = 64 << 20;

/// The entries that are still in force, in order of revision: the newest fleet file; the newest
/// push order of each cluster, while it runs; the newest drain of each node and cluster, including
/// its end, since a reader may know its begin; purges that no later purge covers wholly. The newest
/// entry always stays, so that a reader reaches the same revision as with all entries.
///
/// A reader may begin at any revision: for every removed entry, a later one covers the same or
/// more.
pub(crate) fn fold(mut entries: Vec<Entry>, now_unix_ms: u64) -> Vec<Entry> {
    entries.sort_by_key(|entry| entry.revision);
    let last = entries.len().saturating_sub(1);
    let mut newest: HashMap<Key, usize> = HashMap::new();
    let mut everything = 0;
    for (n, entry) in entries.iter().enumerate() {
        newest.insert(key(&entry.change), n);
        if matches!(
            &entry.change,
            Change::Purge(Purge {
                scope: PurgeScope::All,
                soft: false
            })
        ) {
            everything = entry.revision;
        }
    }

    let is_kept = |n: usize, entry: &Entry| {
        let is_newest = newest.get(&key(&entry.change)) == Some(&n);
        is_newest
            && match &entry.change {
                Change::FleetFile { .. } | Change::Drain(_) | Change::Challenges(_) => true,
                Change::Push(order) => order.not_after_unix_ms > now_unix_ms || n == last,
                Change::Purge(purge) => {
                    let is_later = |scope: &PurgeScope, soft| {
                        let later = newest.get(&Key::Purge(scope.clone(), soft));
                        later.is_some_and(|later| *later > n)
                    };
                    let wider = scope::in_any_scheme(&purge.scope);
                    let is_covered = purge.soft && is_later(&purge.scope, false)
                        || wider.is_some_and(|wider| {
                            is_later(&wider, false) || purge.soft && is_later(&wider, true)
                        });
                    entry.revision >= everything && !is_covered
                }
            }
    };

    let kept: Vec<bool> = entries
        .iter()
        .enumerate()
        .map(|(n, entry)| is_kept(n, entry))
        .collect();

    let mut kept = kept.into_iter();
    entries.retain(|_| kept.next().unwrap_or(false));
    limit_purges(entries)
}

fn limit_purges(entries: Vec<Entry>) -> Vec<Entry> {
    let counted = limit(entries, PURGES_MAX, |_| 1);
    limit(counted, PURGES_BYTES_MAX, text_bytes)
}

/// Bytes of the names in a scope.
fn text_bytes(scope: &PurgeScope) -> usize {
    match scope {
        PurgeScope::Url(text)
        | PurgeScope::Prefix(text)
        | PurgeScope::Host(text)
        | PurgeScope::Site(text)
        | PurgeScope::Tag(text) => text.len(),
        PurgeScope::SiteTag { site, tag } => site.len() + tag.len(),
        PurgeScope::All => 0,
        PurgeScope::Any(scopes) => scopes.iter().map(text_bytes).sum(),
    }
}

/// If the purged scopes weigh more than `most`, all but the newest become one purge of everything;
/// the newest weigh at most half of it.
fn limit(mut entries: Vec<Entry>, most: usize, weigh: impl Fn(&PurgeScope) -> usize) -> Vec<Entry> {
    let weigh_entry = |entry: &Entry| match &entry.change {
        Change::Purge(purge) => purge.scope.each().iter().map(&weigh).sum(),
        _ => 0,
    };
    let total: usize = entries.iter().map(weigh_entry).sum();
    if total > most {
        let mut older = 0;
        let last = entries.iter().position(|entry| {
            older += weigh_entry(entry);
            older >= total - most / 2
        });
        let last = last.expect("the weights add up to the total");
        entries[last].change = Change::Purge(Purge {
            scope: PurgeScope::All,
            soft: false,
        });
        let revision = entries[last].revision;
        entries.retain(|entry| {
            !matches!(entry.change, Change::Purge(_)) || entry.revision >= revision
        });
    }
    entries
}

/// Entries with one key supersede one another.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key {
    FleetFile,
    Push(String),
    Purge(PurgeScope, bool),
    Drain(DrainTarget),
    Challenges,
}

fn key(change: &Change) -> Key {
    match change {
        Change::FleetFile { .. } => Key::FleetFile,
        Change::Push(order) => Key::Push(order.cluster.clone()),
        Change::Purge(purge) => Key::Purge(purge.scope.clone(), purge.soft),
        Change::Drain(drain) => Key::Drain(drain.target.clone()),
        Change::Challenges(_) => Key::Challenges,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::change::{Challenges, DnsChallenge, Drain, PushOrder};

    fn challenges(revision: u64, value: &str) -> Entry {
        let (host, value) = ("a.test".to_owned(), value.to_owned());
        Entry {
            revision,
            accepted_unix_ms: 0,
            change: Change::Challenges(Challenges {
                dns: vec![DnsChallenge { host, value }],
                http: Vec::new(),
            }),
        }
    }

    fn purge(revision: u64, scope: PurgeScope, soft: bool) -> Entry {
        Entry {
            revision,
            accepted_unix_ms: 0,
            change: Change::Purge(Purge { scope, soft }),
        }
    }

    fn url(revision: u64, url: &str, soft: bool) -> Entry {
        purge(revision, PurgeScope::Url(url.into()), soft)
    }

    fn file(revision: u64) -> Entry {
        Entry {
            revision,
            accepted_unix_ms: 0,
            change: Change::FleetFile {
                text: revision.to_string(),
            },
        }
    }

    fn push(revision: u64, cluster: &str, not_after_unix_ms: u64) -> Entry {
        let order = PushOrder {
            id: revision.to_string(),
            cluster: cluster.into(),
            items: Vec::new(),
            rate_bytes: 1,
            not_after_unix_ms,
            fresh_until_unix_ms: 0,
        };
        Entry {
            revision,
            accepted_unix_ms: 0,
            change: Change::Push(order),
        }
    }

    fn drain(revision: u64, node: &str, drained: bool) -> Entry {
        let drain = Drain {
            target: DrainTarget::Node(node.into()),
            drained,
        };
        Entry {
            revision,
            accepted_unix_ms: 0,
            change: Change::Drain(drain),
        }
    }

    #[test]
    fn only_what_nothing_later_covers_is_kept() {
        let table: Vec<(&str, Vec<Entry>, Vec<u64>)> = vec![
            (
                "one scope, newest",
                vec![url(1, "a", false), url(2, "b", false), url(3, "a", false)],
                vec![2, 3],
            ),
            (
                "hard covers soft",
                vec![url(1, "a", true), url(2, "a", false)],
                vec![2],
            ),
            (
                "soft does not cover hard",
                vec![url(1, "a", false), url(2, "a", true)],
                vec![1, 2],
            ),
            (
                "both schemes cover each",
                vec![
                    url(1, "http://a/", false),
                    url(2, "https://a/", true),
                    url(3, "*://a/", false),
                    url(4, "https://a/", false),
                ],
                vec![3, 4],
            ),
            (
                "both schemes softly cover soft ones only",
                vec![
                    url(1, "http://a/", false),
                    url(2, "https://a/", true),
                    url(3, "*://a/", true),
                ],
                vec![1, 3],
            ),
            (
                "one scheme does not cover both",
                vec![url(1, "*://a/", false), url(2, "http://a/", false)],
                vec![1, 2],
            ),
            (
                "everything covers all",
                vec![
                    url(1, "a", false),
                    purge(2, PurgeScope::All, false),
                    url(3, "a", false),
                ],
                vec![2, 3],
            ),
            (
                "softly everything does not",
                vec![url(1, "a", false), purge(2, PurgeScope::All, true)],
                vec![1, 2],
            ),
            (
                "newest file",
                vec![file(1), file(2), url(3, "a", false)],
                vec![2, 3],
            ),
            (
                "running orders",
                vec![
                    push(1, "ams", 200),
                    push(2, "ams", 200),
                    push(3, "nyc", 50),
                    push(4, "sin", 101),
                ],
                vec![2, 4],
            ),
            (
                "the newest entry",
                vec![url(1, "a", false), push(2, "ams", 50), push(3, "ams", 50)],
                vec![1, 3],
            ),
            (
                "each drain, newest",
                vec![
                    drain(1, "a", true),
                    drain(2, "b", true),
                    drain(3, "a", false),
                    url(4, "a", false),
                ],
                vec![2, 3, 4],
            ),
            (
                "a drain of a node is none of a cluster",
                vec![drain(1, "a", true), {
                    let target = DrainTarget::Cluster("a".into());
                    Entry {
                        change: Change::Drain(Drain {
                            target,
                            drained: false,
                        }),
                        ..drain(2, "a", false)
                    }
                }],
                vec![1, 2],
            ),
            (
                "a drain survives a purge of everything",
                vec![drain(1, "a", true), purge(2, PurgeScope::All, false)],
                vec![1, 2],
            ),
            (
                "a file survives a purge of everything",
                vec![file(1), purge(2, PurgeScope::All, false)],
                vec![1, 2],
            ),
        ];
        for (name, entries, expected) in table {
            let kept: Vec<u64> = fold(entries, 100).iter().map(|e| e.revision).collect();
            assert_eq!(kept, expected, "{name}");
        }
    }

    #[test]
    fn too_many_purges_become_one_of_everything() {
        let count = PURGES_MAX as u64 + 1;
        let kept = fold(
            (1..=count)
                .map(|n| url(n, &n.to_string(), false))
                .chain([file(count + 1)])
                .collect(),
            0,
        );
        let first = kept.first().expect("some");
        assert_eq!(
            first.change,
            Change::Purge(Purge {
                scope: PurgeScope::All,
                soft: false
            })
        );
        assert_eq!(first.revision + kept.len() as u64 - 1, count + 1);
        assert!(kept.len() < PURGES_MAX);
        // Lists count by what they name.
        let list = |n: u64| {
            PurgeScope::Any(
                (0..256)
                    .map(|k| PurgeScope::Tag(format!("{n}-{k}")))
                    .collect(),
            )
        };
        let lists = PURGES_MAX as u64 / 256 + 1;
        let kept = fold((1..=lists).map(|n| purge(n, list(n), false)).collect(), 0);
        assert_eq!(
            kept.first().expect("some").change,
            Change::Purge(Purge {
                scope: PurgeScope::All,
                soft: false
            })
        );
        assert_eq!(kept.len() as u64, lists / 2 + 1);
    }

    #[test]
    fn purges_of_long_names_are_bounded_by_their_bytes() {
        let long = |n: u64, bytes: usize| url(n, &format!("{n:0bytes$}"), false);
        let bytes = |entries: &[Entry]| -> usize {
            entries
                .iter()
                .map(|e| {
                    if let Change::Purge(purge) = &e.change {
                        text_bytes(&purge.scope)
                    } else {
                        0
                    }
                })
                .sum()
        };
        let each = 24 << 10;
        let most = (PURGES_BYTES_MAX / each) as u64;
        let everything = Change::Purge(Purge {
            scope: PurgeScope::All,
            soft: false,
        });
        // As many as fit, one more, and a journal of before there was a bound.
        for (count, is_bounded) in [(most, false), (most + 1, true), (3 * most, true)] {
            let entries: Vec<Entry> = [file(1)]
                .into_iter()
                .chain((2..=count + 1).map(|n| long(n, each)))
                .collect();
            let kept = fold(entries.clone(), 0);
            assert_eq!(kept != entries, is_bounded, "{count}");
            assert!(bytes(&kept) <= PURGES_BYTES_MAX, "{count}");
            if is_bounded {
                assert!(
                    bytes(&kept) <= PURGES_BYTES_MAX / 2
                        && bytes(&kept) + each > PURGES_BYTES_MAX / 2,
                    "{count}"
                );
                assert_eq!(
                    (&kept[0], &kept[1].change),
                    (&file(1), &everything),
                    "{count}"
                );
                assert_eq!(
                    kept[2..],
                    entries[entries.len() - (kept.len() - 2)..],
                    "{count}: the newest stay as they are"
                );
                assert_eq!(
                    kept[1].revision + 1,
                    kept[2].revision,
                    "{count}: and it covers all before them"
                );
            }
        }
    }

    #[test]
    fn a_storm_of_purges_stays_purges_of_what_they_name() {
        let entries: Vec<Entry> = (1..=140_000)
            .map(|n| url(n, &n.to_string(), false))
            .collect();
        assert_eq!(fold(entries.clone(), 0), entries);
    }

    /// The state of a reader after its entries.
    #[derive(Debug, PartialEq)]
    struct Meaning {
        /// Of each URL, the newest hard purge, and the newest soft one after it.
        purged: [(u64, u64); 3],
        file: Option<String>,
        /// What each cluster is to do.
        orders: [Option<u64>; 2],
        /// Of each node, whether and since when its drain is known.
        drained: [Option<(u64, bool)>; 2],
        challenges: Option<Challenges>,
        at: u64,
    }

    fn meaning(entries: &[Entry], after: u64) -> Meaning {
        let (mut purged, mut file, mut orders, mut at) = ([(0, 0); 3], None, [None; 2], after);
        let (mut drained, mut challenges) = ([None; 2], None);
        for entry in entries.iter().filter(|e| e.revision > after) {
            at = entry.revision;
            match &entry.change {
                Change::Purge(Purge { scope, soft }) => {
                    let covered = match scope {
                        PurgeScope::Url(url) => {
                            url.parse().expect("a number")
                                ..url.parse::<usize>().expect("a number") + 1
                        }
                        _ => 0..3,
                    };
                    for mark in &mut purged[covered] {
                        let (hard, stale) = mark;
                        // A hard purge covers what a soft one before it covers.
                        if *soft {
                            *stale = entry.revision
                        } else {
                            (*hard, *stale) = (entry.revision, 0)
                        }
                    }
                }
                Change::FleetFile { text } => file = Some(text.clone()),
                Change::Challenges(set) => challenges = Some(set.clone()),
                Change::Drain(drain) => {
                    drained[drain.target.name().parse::<usize>().expect("a number")] =
                        Some((entry.revision, drain.drained))
                }
                Change::Push(order) => {
                    orders[order.cluster.parse::<usize>().expect("a number")] =
                        (order.not_after_unix_ms > 100).then_some(entry.revision)
                }
            }
        }
        Meaning {
            purged,
            file,
            orders,
            drained,
            challenges,
            at,
        }
    }

    fn change() -> impl Strategy<Value = Entry> {
        let scope = prop_oneof![3 => (0..3u8).prop_map(|n| PurgeScope::Url(n.to_string())), 1 => Just(PurgeScope::All)];
        prop_oneof![
            6 => (scope, any::<bool>()).prop_map(|(scope, soft)| purge(0, scope, soft)),
            1 => Just(file(0)),
            1 => (0..3u8).prop_map(|value| challenges(0, &value.to_string())),
            2 => (0..2u8, any::<bool>()).prop_map(|(node, drained)| drain(0, &node.to_string(), drained)),
            2 => (0..2u8, prop_oneof![Just(50), Just(200)]).prop_map(|(cluster, until)| push(0, &cluster.to_string(), until)),
        ]
    }

    proptest! {
        #[test]
        fn a_reader_from_anywhere_learns_the_same(changes in proptest::collection::vec(change(), 1..24), after in 0..24u64) {
            let mut entries = changes;
            for (revision, entry) in (1..).zip(&mut entries) {
                entry.revision = revision;
                if let Change::FleetFile { text } = &mut entry.change {
                    *text = revision.to_string();
                }
            }
            let after = after.min(entries.len() as u64);
            let folded = fold(entries.clone(), 100);
            prop_assert_eq!(meaning(&folded, after), meaning(&entries, after));
        }
    }
}
