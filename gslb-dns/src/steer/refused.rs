//! Node keys that were refused: counted, and logged once a minute for each node and reason. Pure
//! but for the log.

use std::collections::BTreeMap;

use nearcast_fleet::node_key::KeyRefused;

/// Time between two lines of one node and reason.
const TOLD_EVERY_MS: u64 = 60_000;
/// Nodes and reasons that are kept apart.
const KEPT_MAX: usize = 1024;

/// What was refused.
#[derive(Debug, Default)]
pub(super) struct RefusedKeys {
    counts: BTreeMap<&'static str, u64>,
    /// When it was last told, and how often it was refused since.
    told: BTreeMap<(String, &'static str), (u64, u64)>,
}

impl RefusedKeys {
    /// Notes one; says whether it was logged.
    pub(super) fn note(&mut self, refused: &KeyRefused, now_ms: u64) -> bool {
        *self.counts.entry(refused.label()).or_default() += 1;
        let mut key = (
            refused.node().unwrap_or("unknown").to_owned(),
            refused.label(),
        );
        if self.told.len() >= KEPT_MAX && !self.told.contains_key(&key) {
            key.0 = "others".to_owned();
        }
        let (told_ms, since) = self.told.entry(key.clone()).or_default();
        if *told_ms > 0 && now_ms.saturating_sub(*told_ms) < TOLD_EVERY_MS {
            *since += 1;
            return false;
        }
        tracing::warn!(node = key.0, reason = %refused, more = *since, "a report of round-trip times is refused");
        (*told_ms, *since) = (now_ms, 0);
        true
    }

    /// By reason.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counts.iter().map(|(reason, count)| (*reason, *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_and_reason_is_told_once_a_minute_and_counted_always() {
        let mut keys = RefusedKeys::default();
        let wrong = KeyRefused::Wrong(Some("ams-1".into()));
        let told: Vec<bool> = [1, 2, 60_000, 60_001]
            .map(|now| keys.note(&wrong, now))
            .into();
        assert_eq!(told, [true, false, false, true]);
        assert!(keys.note(&KeyRefused::Missing, 60_002));
        assert_eq!(
            keys.counts().collect::<Vec<_>>(),
            [("missing", 1), ("wrong", 4)]
        );
    }
}
