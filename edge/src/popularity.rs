//! The URLs that clients request most, between two reports: a bounded count by URL.
//!
//! When the table is full, every count is lowered by one and the counts that reach zero are removed
//! (Misra and Gries 1982). So URLs that are requested often are never lost to URLs that are
//! requested once.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use nearcast_fleet::report::UrlCount;

use crate::stored::index::HashedKey;

/// Largest number of URLs in a table.
const URLS_MAX: usize = 16_384;
/// Largest number of URLs in one report.
const REPORTED_MAX: usize = 2_000;

/// Requests of one URL.
#[derive(Debug, Clone)]
struct Counted {
    site: Arc<str>,
    url: Arc<str>,
    requests: u64,
    bytes: u64,
    size: u64,
}

/// Requests and bytes by the hash of the cache key.
#[derive(Debug, Default)]
pub(crate) struct Popularity(HashMap<u128, Counted, BuildHasherDefault<HashedKey>>);

impl Popularity {
    /// Counts one request. `size` is 0 if the complete length is not known.
    pub(crate) fn note(&mut self, hash: u128, site: &Arc<str>, url: &str, bytes: u64, size: u64) {
        if let Some(counted) = self.0.get_mut(&hash) {
            counted.requests += 1;
            counted.bytes += bytes;
            counted.size = counted.size.max(size);
            return;
        }
        self.add(
            hash,
            Counted {
                site: site.clone(),
                url: url.into(),
                requests: 1,
                bytes,
                size,
            },
        );
    }

    /// Adds bytes that were sent after the request was counted.
    pub(crate) fn sent(&mut self, hash: u128, bytes: u64) {
        if let Some(counted) = self.0.get_mut(&hash) {
            counted.bytes += bytes;
        }
    }

    fn add(&mut self, hash: u128, new: Counted) {
        if self.0.len() >= URLS_MAX {
            self.0.retain(|_, counted| {
                counted.requests -= 1;
                counted.requests > 0
            });
        }
        if self.0.len() < URLS_MAX {
            self.0.insert(hash, new);
        }
    }

    /// Adds the counts of another table.
    pub(crate) fn merge(&mut self, other: Self) {
        for (hash, counted) in other.0 {
            match self.0.get_mut(&hash) {
                Some(own) => {
                    own.requests += counted.requests;
                    own.bytes += counted.bytes;
                    own.size = own.size.max(counted.size);
                }
                None => self.add(hash, counted),
            }
        }
    }

    /// The most requested URLs, for a report.
    pub(crate) fn top(&self) -> Vec<UrlCount> {
        let mut counted: Vec<&Counted> = self.0.values().collect();
        counted
            .sort_unstable_by(|a, b| b.requests.cmp(&a.requests).then_with(|| a.url.cmp(&b.url)));
        counted.truncate(REPORTED_MAX);
        let row = |c: &Counted| UrlCount {
            site: c.site.to_string(),
            url: c.url.to_string(),
            requests: c.requests,
            bytes: c.bytes,
            size: c.size,
        };
        counted.into_iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_often_survives_a_flood_of_what_is_not() {
        let mut popularity = Popularity::default();
        let site: Arc<str> = "www".into();
        for _ in 0..10 {
            popularity.note(7, &site, "http://a.test/often", 100, 1000);
        }
        for n in 0..URLS_MAX as u128 * 3 {
            popularity.note(1000 + n, &site, &format!("http://a.test/{n}"), 1, 0);
        }
        assert!(popularity.0.len() <= URLS_MAX);
        let top = popularity.top();
        assert_eq!(
            (top[0].url.as_str(), top[0].bytes, top[0].size),
            ("http://a.test/often", 1000, 1000)
        );
        assert!(top.len() <= REPORTED_MAX);
    }

    #[test]
    fn tables_add_up() {
        let (mut one, mut two) = (Popularity::default(), Popularity::default());
        let (site, url): (Arc<str>, Arc<str>) = ("www".into(), "http://a.test/".into());
        one.note(1, &site, &url, 5, 0);
        two.note(1, &site, &url, 6, 9);
        two.sent(1, 4);
        one.merge(two);
        let expected = UrlCount {
            site: "www".into(),
            url: "http://a.test/".into(),
            requests: 2,
            bytes: 15,
            size: 9,
        };
        assert_eq!(one.top(), vec![expected]);
    }
}
