//! The origins of one site, and the choice of one of them for a request.

use std::sync::Arc;

use nearcast_fleet::config::OriginLimits;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::Target;

/// The origins of one site: at least one.
#[derive(Debug)]
pub(crate) struct SiteOrigins {
    first: Arc<Target>,
    others: Vec<Arc<Target>>,
}

impl SiteOrigins {
    /// The origins of a site that has one.
    pub(crate) fn single(target: Target) -> Self {
        Self {
            first: Arc::new(target),
            others: Vec::new(),
        }
    }

    /// The limits that the site sets for requests to each of its origins.
    pub(crate) fn limits(&self) -> &OriginLimits {
        &self.first.limits
    }

    /// The origin for requests with a key: of those that answer, as far as is known `now`, the one
    /// with the highest hash of key and position (rendezvous hashing), so that a key's slices come
    /// from one origin; of all, where none answers.
    pub(crate) fn pick(&self, now: Instant, key: u128) -> &Arc<Target> {
        if self.others.is_empty() {
            return &self.first;
        }
        let weight = |position: usize| {
            let mut bytes = [0; 24];
            bytes[..16].copy_from_slice(&key.to_le_bytes());
            bytes[16..].copy_from_slice(&(position as u64).to_le_bytes());
            xxh3_64(&bytes)
        };
        self.iter()
            .enumerate()
            .max_by_key(|(position, target)| (target.failing_at(now).is_none(), weight(*position)))
            .map_or(&self.first, |(_, target)| target)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Target>> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::breaker::Sign;
    use std::time::Duration;

    fn peer(last: u8) -> Arc<Target> {
        Arc::new(Target::peer(([127, 0, 0, last], 80).into()))
    }

    #[test]
    fn a_key_keeps_its_origin_while_that_answers() {
        let origins = SiteOrigins {
            first: peer(1),
            others: vec![peer(2), peer(3)],
        };
        let now = Instant::now();
        let mut counts = [0; 3];
        for key in 0..300 {
            let picked = origins.pick(now, key);
            assert!(Arc::ptr_eq(picked, origins.pick(now, key)), "{key}");
            let position = origins.iter().position(|other| Arc::ptr_eq(other, picked));
            counts[position.expect("it is one of them")] += 1;
        }
        assert!(counts.iter().all(|count| *count > 60), "{counts:?}");

        let broken = &origins.others[0];
        for url in 0..3 {
            broken.health.ask(false).expect("it is not known yet").end(
                Sign::Dead,
                url,
                Duration::from_secs(60),
            );
        }
        for key in 0..300 {
            let before = origins.pick(now, key);
            assert!(!Arc::ptr_eq(before, broken), "{key}");
        }
    }

    #[test]
    fn a_site_with_one_origin_has_no_choice() {
        let origins = SiteOrigins::single(Target::peer(([127, 0, 0, 1], 80).into()));
        let now = Instant::now();
        assert!(Arc::ptr_eq(origins.pick(now, 0), origins.pick(now, 1)));
    }
}
