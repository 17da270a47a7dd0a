//! The fleet's clock: the time of day for popularity, forecasts and off-peak windows.
//!
//! It is the real clock unless the fleet file accelerates it, for a demonstration or a rehearsal of
//! a day's push. Freshness, TTLs and health never use it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A linear map from real time to fleet time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FleetClock {
    /// Real time, seconds after the Unix epoch, at which fleet time was `anchor_fleet`.
    pub anchor_real: f64,
    /// Fleet time, seconds after the Unix epoch, at `anchor_real`.
    pub anchor_fleet: f64,
    /// Fleet seconds a real second; 1 for the real clock.
    pub speed: f64,
}

impl FleetClock {
    /// The real clock.
    pub const REAL: Self = Self {
        anchor_real: 0.0,
        anchor_fleet: 0.0,
        speed: 1.0,
    };

    /// Fleet time at a real time, both in seconds after the Unix epoch.
    pub fn fleet_seconds(&self, real_seconds: f64) -> f64 {
        self.anchor_fleet + (real_seconds - self.anchor_real) * self.speed
    }

    /// Fleet time at `now`, seconds after the Unix epoch.
    pub fn at(&self, now: SystemTime) -> f64 {
        self.fleet_seconds(unix_seconds(now))
    }

    /// Real duration of a span of fleet time.
    pub fn real_duration(&self, fleet: Duration) -> Duration {
        Duration::from_secs_f64(fleet.as_secs_f64() / self.speed)
    }
}

/// A time in seconds after the Unix epoch.
pub fn unix_seconds(t: SystemTime) -> f64 {
    t.duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}

/// The real time now, milliseconds after the Unix epoch.
pub fn now_unix_ms() -> u64 {
    unix_millis(SystemTime::now())
}

/// The real time now, seconds after the Unix epoch.
pub fn now_unix_s() -> u64 {
    now_unix_ms() / 1000
}

/// A time in milliseconds after the Unix epoch.
pub fn unix_millis(t: SystemTime) -> u64 {
    t.duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}
