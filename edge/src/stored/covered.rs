//! What a purge covers: taken out of the index and off the disk, and counted.
//!
//! The purge is in force before any of this: [`super::generations`] refuses what it covers wherever
//! it is. Here its responses leave, and the report gets their number. That number is exact for URLs,
//! a site and everything. The heads of what lies on disk only are not read to count those of a host,
//! a prefix or a tag: their number is "at least" what is in memory. Because such responses stay on
//! disk, refused, a later purge of their site cannot tell them from others that were written before
//! the earlier purge; it counts those that were written afterwards, and says "at least" as well.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use nearcast_fleet::change::{Purge, PurgeScope};
use nearcast_fleet::scope;
use nearcast_store::{Frontier, Purged, Store};

use super::generations::PurgeState;
use super::load::disk_name;
use super::response::StoredResponse;
use crate::edge::Edge;

/// How many responses a purge covers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Covered {
    pub(crate) responses: u64,
    /// Whether there may be more.
    pub(crate) is_at_least: bool,
}

impl Covered {
    fn add(&mut self, purged: Purged) {
        self.responses += purged.certain;
        self.is_at_least |= purged.uncertain > 0 || purged.is_incomplete;
    }
}

/// Up to where the disk holds responses that an earlier purge may have covered.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Unclear {
    /// Covered by a purge that removes.
    hard: Option<Moment>,
    /// Covered by any.
    any: Option<Moment>,
}

#[derive(Debug, Clone, Copy)]
enum Moment {
    /// The start of this run: the files were not open yet.
    Start,
    At(Frontier),
}

impl Moment {
    fn now(store: &Store) -> Self {
        store.frontier().map_or(Self::Start, Self::At)
    }
}

impl Unclear {
    /// Notes a purge of which not all is known that it covers on disk.
    fn note(&mut self, is_soft: bool, now: Moment) {
        self.any = Some(now);
        if !is_soft {
            self.hard = Some(now);
        }
    }

    /// From where on no earlier purge has covered what is on disk.
    fn certain_from(&self, is_soft: bool, store: &Store) -> Frontier {
        match if is_soft { self.any } else { self.hard } {
            None => Frontier::default(),
            Some(Moment::Start) => store.frontier_at_start(),
            Some(Moment::At(frontier)) => frontier,
        }
    }
}

/// What was on disk when a purge began to hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before(Moment);

impl Before {
    /// To be asked for just before the purge is folded.
    pub(crate) fn now(store: &Store) -> Self {
        Self(Moment::now(store))
    }
}

/// A purge that is not counted, because many follow one another.
pub(crate) fn leave_uncounted(edge: &Edge, purge: &Purge, unclear: &mut Unclear) {
    unclear.note(purge.soft, Moment::now(&edge.store));
}

/// Takes out what a folded purge covers, and counts it. `before` is what it covers on disk; `None`
/// where that is not known, because an earlier run may have folded the purge too. Blocking; purges
/// come here one by one.
pub(crate) fn take_out(
    edge: &Edge,
    purge: &Purge,
    before: Option<Before>,
    unclear: &mut Unclear,
) -> Covered {
    let scopes = Scopes::of(&purge.scope);
    let resident = resident(edge, &scopes);
    let mut covered = Covered::default();
    if purge.soft {
        covered.responses = resident.len() as u64;
    } else {
        for response in &resident {
            if response.retire() {
                covered.responses += 1;
                // Before the index lets it go, so that nothing of it is recorded on disk.
                edge.store.withdraw(&response.content.body);
                edge.unpublish(response);
            }
        }
    }

    match before {
        Some(before) if purge.soft => {
            covered.add(count_on_disk_only(edge, &scopes, before, unclear));
        }
        Some(before) => {
            let frontier = frontier_of(before);
            let certain_from = unclear.certain_from(false, &edge.store);
            for name in &scopes.urls {
                covered.add(edge.store.withdraw_name(&disk_name(name), &certain_from));
            }
            for site in scopes.walks() {
                covered.add(edge.store.purge_on_disk(site, &frontier, &certain_from));
            }
        }
        None => {}
    }

    // A purge whose responses stay on disk: a later one would count them again.
    let stays = purge.soft || scopes.has_others || before.is_none();
    if stays && may_have_more(edge) {
        covered.is_at_least |= scopes.has_others || before.is_none();
        unclear.note(purge.soft, Moment::now(&edge.store));
    }
    covered
}

/// Whether a purge of these scopes names keys only, so that it costs no walk.
pub(crate) fn names_urls_only(scope: &PurgeScope) -> bool {
    let scopes = Scopes::of(scope);
    !scopes.is_all && scopes.sites.is_empty() && !scopes.has_others
}

fn frontier_of(before: Before) -> Frontier {
    match before.0 {
        // The walk will find that the directory is not complete.
        Moment::Start => Frontier::default(),
        Moment::At(frontier) => frontier,
    }
}

/// Whether there is something on disk.
fn may_have_more(edge: &Edge) -> bool {
    let figures = edge.store.disk_figures();
    figures.is_some_and(|figures| figures.heads > 0 || figures.queued_bytes > 0)
        || edge.store.disk_state().is_some() && edge.store.frontier().is_none()
}

/// The scopes of a purge, by how they are found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Scopes {
    is_all: bool,
    sites: BTreeSet<String>,
    /// In canonical form.
    urls: BTreeSet<String>,
    /// Hosts, prefixes and tags.
    has_others: bool,
}

impl Scopes {
    fn of(scope: &PurgeScope) -> Self {
        let mut scopes = Self::default();
        for one in scope.each() {
            match one {
                // Control writes no list within a list; it covers everything.
                PurgeScope::All | PurgeScope::Any(_) => scopes.is_all = true,
                PurgeScope::Site(site) => {
                    scopes.sites.insert(site.clone());
                }
                PurgeScope::Url(url) => scopes
                    .urls
                    .extend(scope::key_urls(&scope::journalled_url(url))),
                PurgeScope::Host(_)
                | PurgeScope::Prefix(_)
                | PurgeScope::Tag(_)
                | PurgeScope::SiteTag { .. } => scopes.has_others = true,
            }
        }
        if scopes.is_all {
            scopes = Self {
                is_all: true,
                ..Self::default()
            };
        }
        scopes
    }

    /// The sites whose part of the directory is walked; `None` for all of it.
    fn walks(&self) -> Vec<Option<&str>> {
        if self.is_all {
            vec![None]
        } else {
            self.sites.iter().map(|site| Some(&**site)).collect()
        }
    }

    /// Whether a response is among those that are counted on disk.
    fn names(&self, response: &StoredResponse) -> bool {
        self.is_all
            || self.sites.contains(&*response.site)
            || self.urls.contains(&*scope::canonical_key(response.url()))
    }
}

/// The responses in the index that a folded purge makes unusable, or to be validated.
fn resident(edge: &Edge, scopes: &Scopes) -> Vec<Arc<StoredResponse>> {
    let mut covered = Vec::new();
    let mut look = |response: &Arc<StoredResponse>| {
        let was_soft = response.is_soft();
        match response.purge_state(&edge.generations) {
            PurgeState::Gone => covered.push(response.clone()),
            PurgeState::Soft if !was_soft => covered.push(response.clone()),
            PurgeState::Soft | PurgeState::Clean => {}
        }
    };
    if scopes.is_all || scopes.has_others || !scopes.sites.is_empty() {
        edge.index.for_each(look);
    } else {
        let hashes = scopes.urls.iter().flat_map(|url| edge.index.named(url));
        let variants = hashes.filter_map(|hash| edge.index.variants(hash));
        variants.for_each(|variants| variants.iter().for_each(&mut look));
    }
    covered
}

/// How many responses of these scopes are on disk and not in the index.
fn count_on_disk_only(edge: &Edge, scopes: &Scopes, before: Before, unclear: &Unclear) -> Purged {
    let mut in_both = 0;
    let mut look = |response: &Arc<StoredResponse>| {
        let is_in_both =
            scopes.names(response) && edge.store.is_in_directory(&response.content.body);
        in_both += u64::from(is_in_both);
    };
    let mut sum = Purged::default();
    let mut add = |purged: Purged| {
        sum.certain += purged.certain;
        sum.uncertain += purged.uncertain;
        sum.is_incomplete |= purged.is_incomplete;
    };
    let certain_from = unclear.certain_from(true, &edge.store);
    let names: Vec<Cow<'_, str>> = scopes.urls.iter().map(|url| disk_name(url)).collect();
    if scopes.is_all || !scopes.sites.is_empty() {
        edge.index.for_each(&mut look);
        let frontier = frontier_of(before);
        for site in scopes.walks() {
            add(edge.store.count_on_disk(site, &frontier, &certain_from));
        }
        // A URL may be one of a counted site.
        let mut counts = names
            .iter()
            .map(|name| edge.store.count_name(name, &certain_from));
        let is_on_disk = counts.any(|purged| purged != Purged::default());
        add(Purged {
            is_incomplete: is_on_disk,
            ..Purged::default()
        });
    } else {
        let hashes = scopes.urls.iter().flat_map(|url| edge.index.named(url));
        let variants = hashes.filter_map(|hash| edge.index.variants(hash));
        variants.for_each(|variants| variants.iter().for_each(&mut look));
        let counts = names
            .iter()
            .map(|name| edge.store.count_name(name, &certain_from));
        counts.for_each(add);
    }
    sum.certain = sum.certain.saturating_sub(in_both);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_sorted_by_how_they_are_found() {
        let url = |text: &str| PurgeScope::Url(text.into());
        let any = |list: &[PurgeScope]| PurgeScope::Any(list.to_vec());
        let site = PurgeScope::Site("www".into());
        let tag = PurgeScope::Tag("news".into());
        // The scope, whether it names URLs only, the walks, the names.
        let table = [
            (url("http://a.test/~x"), true, vec![], 1),
            (url("*://a.test/x"), true, vec![], 2),
            (
                any(&[url("http://a.test/"), url("http://a.test/")]),
                true,
                vec![],
                1,
            ),
            (site.clone(), false, vec![Some("www")], 0),
            (
                any(&[site.clone(), site.clone(), tag.clone()]),
                false,
                vec![Some("www")],
                0,
            ),
            (
                any(&[site, url("http://a.test/"), PurgeScope::All]),
                false,
                vec![None],
                0,
            ),
            (PurgeScope::All, false, vec![None], 0),
            (tag, false, vec![], 0),
        ];
        for (scope, urls_only, walks, urls) in table {
            let scopes = Scopes::of(&scope);
            assert_eq!(names_urls_only(&scope), urls_only, "{scope:?}");
            assert_eq!(scopes.walks(), walks, "{scope:?}");
            assert_eq!(scopes.urls.len(), urls, "{scope:?}");
        }
    }
}
