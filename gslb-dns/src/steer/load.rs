//! The load of nodes: the bits a second that they report to send, against their capacity.
//!
//! A node is full from [`FULL_PERCENT`] on and open again below [`OPEN_PERCENT`]; that is for
//! display. [`super::share`] decides, in proportion, how many clients a full cluster gives away. A
//! node without a capacity is never full, and reports that stop coming soon no longer count.

/// Full from here on.
pub(super) const FULL_PERCENT: u64 = 95;
/// Open again below.
pub(super) const OPEN_PERCENT: u64 = 85;
/// The highest load that is believed, in multiples of the capacity: a node that reports more must
/// not decide for its whole cluster.
const LOAD_MAX: u64 = 2;
/// Reports older than so many report intervals do not count.
pub(super) const STALE_AFTER_INTERVALS: u32 = 5;

/// The load of one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct NodeLoad {
    /// Response bits a second, as last reported.
    pub(super) egress_bits: u64,
    /// Client connections, as last reported.
    pub(super) connections: u64,
    /// When that was, milliseconds after the Unix epoch; 0 for never.
    pub(super) at_ms: u64,
    /// Whether the load has reached the capacity.
    pub(super) full: bool,
}

impl NodeLoad {
    /// Records a report; says whether `full` changed.
    pub(super) fn observe(
        &mut self,
        egress_bits: u64,
        connections: u64,
        capacity_bits: Option<u64>,
        now_ms: u64,
    ) -> bool {
        let was = self.full;
        let egress_bits = match capacity_bits {
            None | Some(0) => egress_bits,
            Some(capacity) => egress_bits.min(capacity.saturating_mul(LOAD_MAX)),
        };
        (self.egress_bits, self.connections, self.at_ms) = (egress_bits, connections, now_ms);
        self.full = match capacity_bits {
            None | Some(0) => false,
            Some(capacity) => {
                let limit = if was { OPEN_PERCENT } else { FULL_PERCENT };
                u128::from(egress_bits) * 100 >= u128::from(capacity) * u128::from(limit)
            }
        };
        was != self.full
    }

    /// Drops a report that is too old; says whether `full` changed.
    pub(super) fn expire(&mut self, now_ms: u64, stale_after_ms: u64) -> bool {
        if self.at_ms == 0 || now_ms.saturating_sub(self.at_ms) <= stale_after_ms {
            return false;
        }
        let was = self.full;
        *self = Self::default();
        was
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_and_open_again_with_hysteresis() {
        let mut load = NodeLoad::default();
        let capacity = Some(1_000);
        for (step, (egress, full)) in [
            (940, false),
            (949, false),
            (950, true),
            (900, true),
            (850, true),
            (849, false),
            (940, false),
            (2_000, true),
            (0, false),
        ]
        .into_iter()
        .enumerate()
        {
            let was = load.full;
            assert_eq!(
                load.observe(egress, 1, capacity, 1),
                was != full,
                "step {step} says whether it changed"
            );
            assert_eq!(load.full, full, "step {step}: {egress}");
        }
    }

    #[test]
    fn without_a_capacity_never_full() {
        for capacity in [None, Some(0)] {
            let mut load = NodeLoad::default();
            assert!(!load.observe(u64::MAX, 1, capacity, 1));
            assert!(!load.full);
        }
        let mut largest = NodeLoad::default();
        largest.observe(u64::MAX, 1, Some(u64::MAX), 1);
        assert!(largest.full, "no overflow");
    }

    #[test]
    fn old_reports_do_not_hold_a_node_full() {
        let mut load = NodeLoad::default();
        assert!(!load.expire(1_000_000, 10), "nothing was ever reported");
        load.observe(100, 1, Some(100), 1_000);
        assert!(!load.expire(11_000, 10_000));
        assert!(load.full);
        assert!(load.expire(11_001, 10_000));
        assert_eq!(load, NodeLoad::default());
    }

    #[test]
    fn nobody_sends_many_times_what_it_can() {
        for (capacity, egress, kept) in [
            (Some(1_000), 1_999, 1_999),
            (Some(1_000), u64::MAX, 2_000),
            (None, 7_000, 7_000),
            (Some(u64::MAX), u64::MAX, u64::MAX),
        ] {
            let mut load = NodeLoad::default();
            load.observe(egress, 1, capacity, 1);
            assert_eq!(load.egress_bits, kept, "{capacity:?} {egress}");
        }
    }
}
