//! The fleet's clock.

use jiff::Timestamp;
use nearcast_fleet::clock::FleetClock;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The fleet's clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Clock {
    /// Fleet seconds a real second.
    pub speed: f64,
    pub fleet_unix_ms: i64,
    /// UTC.
    pub fleet_time: String,
}

/// The fleet's clock at a real time.
pub(crate) fn clock(clock: &FleetClock, now_unix_ms: u64) -> Clock {
    let seconds = clock.fleet_seconds(now_unix_ms as f64 / 1000.0);
    Clock {
        speed: clock.speed,
        fleet_unix_ms: (seconds * 1000.0).round() as i64,
        fleet_time: Timestamp::from_second(seconds.floor() as i64)
            .map(|t| t.to_string())
            .unwrap_or_default(),
    }
}
