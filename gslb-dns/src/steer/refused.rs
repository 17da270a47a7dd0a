//! Refused node keys: counted, and logged once a minute for each node and reason. Pure but for the
//! log.

use std::collections::BTreeMap;

use nearcast_fleet::node_key::KeyRefused;

/// Time between two log lines for one node and reason.
const LOG_INTERVAL_MS: u64 = 60_000;
/// Most nodes and reasons that are logged separately.
const LOGGED_MAX: usize = 1024;

/// The counts and log times of refused keys.
#[derive(Debug, Default)]
pub(super) struct RefusedKeys {
    counts: BTreeMap<&'static str, u64>,
    /// Time of the last log line, and refusals since.
    logged: BTreeMap<(String, &'static str), (u64, u64)>,
}

impl RefusedKeys {
    /// Records one; says whether it was logged.
    pub(super) fn note(&mut self, refused: &KeyRefused, now_ms: u64) -> bool {
        *self.counts.entry(refused.label()).or_default() += 1;
        let mut key = (
            refused.node().unwrap_or("unknown").to_owned(),
            refused.label(),
        );
        if self.logged.len() >= LOGGED_MAX && !self.logged.contains_key(&key) {
            key.0 = "others".to_owned();
        }
        let (logged_ms, since) = self.logged.entry(key.clone()).or_default();
        if *logged_ms > 0 && now_ms.saturating_sub(*logged_ms) < LOG_INTERVAL_MS {
            *since += 1;
            return false;
        }
        tracing::warn!(node = key.0, reason = %refused, more = *since, "a report of round-trip times is refused");
        (*logged_ms, *since) = (now_ms, 0);
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
