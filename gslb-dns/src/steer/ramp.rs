//! Nodes that return to the answers start with a share of their clients that grows over
//! `steering.ramp`.
//!
//! The share begins at [`LEAST`], or higher where the node was out for less than the ramp: an
//! outage takes away as much as a ramp of its length gives, since resolvers do not forget the node
//! at once either. A node that was never seen out has its whole share, so a name server that has
//! just started delays nobody.

use std::collections::HashMap;
use std::time::Duration;

/// The share that a node returns with, at least.
const LEAST: f64 = 0.1;

/// When a node entered or left the answers, and its share at that time.
#[derive(Debug, Clone, Copy)]
struct Transition {
    is_in: bool,
    since_ms: u64,
    from: f64,
}

impl Transition {
    /// The share at a time: the one the node takes, or the one it would return with.
    fn share(self, ramp: Duration, now_ms: u64) -> f64 {
        let passed = now_ms.saturating_sub(self.since_ms) as f64 / ramp.as_millis().max(1) as f64;
        let share = if self.is_in {
            self.from + passed * (1.0 - LEAST)
        } else {
            self.from - passed
        };
        if ramp.is_zero() {
            1.0
        } else {
            share.clamp(LEAST, 1.0)
        }
    }
}

/// The transitions of all nodes that were seen out, by name.
#[derive(Debug, Default)]
pub(super) struct Ramps(HashMap<String, Transition>);

impl Ramps {
    /// Records whether a node is in the answers; gives the share of its clients that it takes.
    pub(super) fn share(&mut self, node: &str, is_in: bool, ramp: Duration, now_ms: u64) -> f64 {
        match self.0.get_mut(node) {
            None if is_in => return 1.0,
            None => drop(self.0.insert(
                node.to_owned(),
                Transition {
                    is_in,
                    since_ms: now_ms,
                    from: 1.0,
                },
            )),
            Some(turn) if turn.is_in != is_in => {
                *turn = Transition {
                    is_in,
                    since_ms: now_ms,
                    from: turn.share(ramp, now_ms),
                }
            }
            Some(turn) if is_in && turn.share(ramp, now_ms) >= 1.0 => drop(self.0.remove(node)),
            Some(_) => {}
        }
        match self.0.get(node) {
            Some(turn) if is_in => turn.share(ramp, now_ms),
            _ => 1.0,
        }
    }

    /// Keeps only these nodes.
    pub(super) fn retain(&mut self, keeps: impl Fn(&str) -> bool) {
        self.0.retain(|node, _| keeps(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_grow_from_what_the_outage_left() {
        let ramp = Duration::from_secs(30);
        // Moments in seconds, whether the node is in, and the share.
        type Case = (&'static str, &'static [(u64, bool, f64)]);
        let table: [Case; 5] = [
            ("never out", &[(0, true, 1.0), (100, true, 1.0)]),
            (
                "long out",
                &[
                    (0, false, 1.0),
                    (60, true, 0.1),
                    (70, true, 0.4),
                    (75, true, 0.55),
                    (90, true, 1.0),
                    (91, true, 1.0),
                ],
            ),
            (
                "out from the start",
                &[(0, false, 1.0), (1_000, false, 1.0), (1_000, true, 0.1)],
            ),
            (
                "a short outage",
                &[
                    (0, true, 1.0),
                    (1, false, 1.0),
                    (7, true, 0.8),
                    (9, true, 0.86),
                    (60, true, 1.0),
                ],
            ),
            (
                "out again while it returns",
                &[
                    (0, false, 1.0),
                    (60, true, 0.1),
                    (80, true, 0.7),
                    (80, false, 1.0),
                    (86, true, 0.5),
                ],
            ),
        ];
        for (name, steps) in table {
            let mut ramps = Ramps::default();
            for (second, is_in, share) in steps {
                let got = ramps.share("ams-1", *is_in, ramp, second * 1_000);
                assert!((got - share).abs() < 1e-9, "{name}, second {second}: {got}");
            }
        }
    }

    #[test]
    fn without_a_ramp_all_return_at_once() {
        let mut ramps = Ramps::default();
        ramps.share("ams-1", false, Duration::ZERO, 0);
        assert_eq!(ramps.share("ams-1", true, Duration::ZERO, 1), 1.0);
        ramps.share("ams-1", false, Duration::from_secs(30), 2);
        ramps.retain(|_| false);
        assert_eq!(
            ramps.share("ams-1", true, Duration::from_secs(30), 90_000),
            1.0,
            "another node of that name"
        );
    }
}
