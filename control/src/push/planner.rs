//! What a plan of a cluster must fit: budget, window, and time until which content should be fresh.
//! Pure: the time is an argument.

use std::time::Duration;

use nearcast_fleet::config::{Cluster, Fleet};
use nearcast_push::plan::Budget;
use nearcast_push::schedule::{self, Window};
use nearcast_store::measures as disk;

use crate::fleet_state::nodes::time_zone;
use crate::push::learned::policy;

/// Items in one order.
pub(crate) const ITEMS_MAX: usize = 4096;

/// The budget of a cluster for a push of that many real seconds.
pub(super) fn budget(fleet: &Fleet, cluster: &Cluster, seconds: f64) -> Budget {
    Budget {
        share_bytes: disk::usable_bytes(cluster.push_share.0),
        fill_bytes: (rate_bytes(cluster) as f64 * seconds) as u64,
        nodes: cluster.nodes.len() as u64,
        expected_requests_min: policy(fleet).map_or(2.0, |p| p.expected_requests_min),
        items_max: ITEMS_MAX,
        stored_bytes: disk::stored_bytes,
    }
}

/// Real milliseconds from `from_unix_ms` to the end of the cluster's next busiest hour of day, a day
/// at most: pushed content should stay fresh until then. Of equally busy hours the first counts. A
/// change of the zone's clock in between is ignored.
pub(super) fn peak_ends_after_ms(
    fleet: &Fleet,
    cluster: &Cluster,
    hours: &[f64; 24],
    from_unix_ms: u64,
) -> u64 {
    let busiest = (0..24u64)
        .rev()
        .max_by(|a, b| hours[*a as usize].total_cmp(&hours[*b as usize]))
        .unwrap_or(0);
    let now = u64::from(schedule::local_hour(
        &fleet.clock,
        &time_zone(cluster),
        from_unix_ms,
    ));
    // When the busiest hour ends within this hour, tomorrow's counts.
    let ahead = match (busiest + 1 + 24 - now) % 24 {
        0 => 24,
        hours => hours,
    };
    fleet
        .clock
        .real_duration(Duration::from_secs(ahead * 3600))
        .as_millis() as u64
}

/// Fill rate of a cluster, bytes a second.
pub(super) fn rate_bytes(cluster: &Cluster) -> u64 {
    cluster.fill_rate_bits / 8
}

/// The cluster's open off-peak window, or its next one.
pub(super) fn window_of(fleet: &Fleet, cluster: &Cluster, now_unix_ms: u64) -> Option<Window> {
    schedule::window(
        &fleet.clock,
        &time_zone(cluster),
        cluster.off_peak,
        now_unix_ms,
    )
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::testing::FleetText;

    use super::*;

    #[test]
    fn fresh_until_the_end_of_the_next_busiest_hour() {
        let mut fleet = FleetText::new()
            .cluster_head("ams", "time_zone = \"Europe/Amsterdam\"")
            .node("ams-1", "127.0.0.1", "")
            .fleet();
        let hour = |n: usize| {
            let mut hours = [1.0; 24];
            hours[n] = 9.0;
            hours
        };
        // 2026-06-01T04:00:00Z, 06:00 in Amsterdam.
        let at = 1_780_286_400_000;
        let ahead = |fleet: &Fleet, hours| {
            peak_ends_after_ms(fleet, &fleet.clusters[0], &hours, at) as f64 / 3_600_000.0
        };
        for (busiest, expected) in [(20, 15.0), (6, 1.0), (5, 24.0), (0, 19.0), (23, 18.0)] {
            assert_eq!(ahead(&fleet, hour(busiest)), expected, "{busiest}");
        }
        assert_eq!(ahead(&fleet, [0.0; 24]), 19.0, "the first of equals");
        fleet.clock.anchor_real = at as f64 / 1000.0;
        fleet.clock.anchor_fleet = at as f64 / 1000.0;
        fleet.clock.speed = 360.0;
        assert_eq!(ahead(&fleet, hour(20)), 15.0 / 360.0, "real time");
    }
}
