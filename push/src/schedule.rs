//! The time of pushes: a cluster's local off-peak hours on the fleet's clock.
//!
//! A window is a span of local time of day. It is placed on each local date by the rules of the
//! time zone: a start or end in an hour that the clocks skip moves on by the skipped hour, and one
//! in a repeated hour means the first (the rule of RFC 5545, jiff's `compatible`). A window that is
//! skipped entirely does not happen that day. The fleet clock then gives the real time. Pure: the
//! real time is an argument.

use jiff::Timestamp;
use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use nearcast_fleet::clock::FleetClock;
use nearcast_fleet::config::DailyWindow;

/// One off-peak window of one cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// Local date on which it starts, `2026-06-01`.
    pub date: String,
    /// Fleet seconds after the Unix epoch at which it starts.
    pub start_fleet: f64,
    /// Fleet seconds after the Unix epoch at which it ends.
    pub end_fleet: f64,
    /// Real milliseconds after the Unix epoch at which it starts.
    pub start_unix_ms: u64,
    /// Real milliseconds after the Unix epoch at which it ends.
    pub end_unix_ms: u64,
}

impl Window {
    /// Whether it is open at that real time.
    pub fn is_open(&self, now_unix_ms: u64) -> bool {
        (self.start_unix_ms..self.end_unix_ms).contains(&now_unix_ms)
    }

    /// Real seconds left of it, all of it before it starts.
    pub fn seconds_left(&self, now_unix_ms: u64) -> f64 {
        self.end_unix_ms
            .saturating_sub(now_unix_ms.max(self.start_unix_ms)) as f64
            / 1000.0
    }
}

/// The window that is open at `now_unix_ms` (real milliseconds after the Unix epoch), or the next
/// one. `None` when the window has no length or the fleet's time is beyond the calendar.
pub fn window(
    clock: &FleetClock,
    zone: &TimeZone,
    daily: DailyWindow,
    now_unix_ms: u64,
) -> Option<Window> {
    if daily.minutes() == 0 {
        return None;
    }
    let now_fleet = clock.fleet_seconds(now_unix_ms as f64 / 1000.0);
    let local = Timestamp::from_second(now_fleet.floor() as i64)
        .ok()?
        .to_zoned_datetime(zone.clone());
    // Yesterday's window may extend over midnight; after a skipped one the next day's follows.
    let mut date = local.date().yesterday().ok()?;
    for _ in 0..5 {
        if let Some(window) = on_date(clock, zone, daily, date)
            && window.end_unix_ms > now_unix_ms
        {
            return Some(window);
        }
        date = date.tomorrow().ok()?;
    }
    None
}

/// Windows that began and ended after `since_unix_ms` and up to `now_unix_ms`, oldest first, the
/// newest `most` of them: those that control missed.
pub fn passed(
    clock: &FleetClock,
    zone: &TimeZone,
    daily: DailyWindow,
    since_unix_ms: u64,
    now_unix_ms: u64,
    most: usize,
) -> std::collections::VecDeque<Window> {
    let mut passed = std::collections::VecDeque::new();
    // The time of `most` windows and one more day; earlier windows are ignored.
    let reach = clock
        .real_duration(std::time::Duration::from_secs((most as u64 + 2) * 86_400))
        .as_millis() as u64;
    let mut at = since_unix_ms.max(now_unix_ms.saturating_sub(reach));
    while let Some(next) = window(clock, zone, daily, at).filter(|w| w.end_unix_ms <= now_unix_ms) {
        at = next.end_unix_ms;
        if next.start_unix_ms > since_unix_ms {
            passed.push_back(next);
        }
        if passed.len() > most {
            passed.pop_front();
        }
    }
    passed
}

/// Local time of a zone at a real time on the fleet's clock, `2026-06-01T14:05:09`, for people.
pub fn local_time(clock: &FleetClock, zone: &TimeZone, now_unix_ms: u64) -> Option<String> {
    local_time_of(zone, clock.fleet_seconds(now_unix_ms as f64 / 1000.0))
}

/// Local time of a zone at a time of the fleet's clock (seconds after the Unix epoch). Times of a
/// window are formatted from these exact values: on a fast clock a millisecond of real time is a
/// large part of a second.
pub fn local_time_of(zone: &TimeZone, fleet_seconds: f64) -> Option<String> {
    let local = Timestamp::from_second(fleet_seconds.floor() as i64)
        .ok()?
        .to_zoned_datetime(zone.clone());
    Some(local.datetime().to_string())
}

/// Local hour of day (0..=23) of a zone at a real time on the fleet's clock; 0 where the time is
/// beyond the calendar.
pub fn local_hour(clock: &FleetClock, zone: &TimeZone, now_unix_ms: u64) -> u8 {
    let fleet = clock.fleet_seconds(now_unix_ms as f64 / 1000.0);
    Timestamp::from_second(fleet.floor() as i64).map_or(0, |t| {
        t.to_zoned_datetime(zone.clone()).hour().unsigned_abs()
    })
}

fn on_date(clock: &FleetClock, zone: &TimeZone, daily: DailyWindow, date: Date) -> Option<Window> {
    let end_date = if daily.end_minute <= daily.start_minute {
        date.tomorrow().ok()?
    } else {
        date
    };
    let start_fleet = instant(zone, date, daily.start_minute)?;
    let end_fleet = instant(zone, end_date, daily.end_minute)?;
    let window = Window {
        date: date.to_string(),
        start_fleet,
        end_fleet,
        start_unix_ms: real_millis(clock, start_fleet),
        end_unix_ms: real_millis(clock, end_fleet),
    };
    (window.end_unix_ms > window.start_unix_ms).then_some(window)
}

/// Fleet seconds after the Unix epoch of a local minute of a date; minute 1,440 is the next
/// midnight.
fn instant(zone: &TimeZone, date: Date, minute: u16) -> Option<f64> {
    let date = if minute >= 1440 {
        date.tomorrow().ok()?
    } else {
        date
    };
    let minute = minute % 1440;
    let time = Time::new(
        i8::try_from(minute / 60).ok()?,
        i8::try_from(minute % 60).ok()?,
        0,
        0,
    )
    .ok()?;
    let zoned = date
        .to_datetime(time)
        .to_zoned_datetime(zone.clone())
        .ok()?;
    Some(zoned.timestamp().as_second() as f64)
}

fn real_millis(clock: &FleetClock, fleet_seconds: f64) -> u64 {
    let real = clock.anchor_real + (fleet_seconds - clock.anchor_fleet) / clock.speed;
    (real * 1000.0).round().max(0.0) as u64
}

/// Whether an order should be issued for a cluster now.
#[derive(Debug, Clone, PartialEq)]
pub enum Due {
    /// Its window is open and has no order yet.
    Now(Window),
    /// Its window is open and has its order.
    Issued(Window),
    /// Its window opens later.
    Later(Window),
    /// It has no window.
    Never,
}

/// Decides from the window and from when the cluster's last scheduled order was accepted (real
/// milliseconds after the Unix epoch): one order a window, also over restarts.
pub fn due(window: Option<Window>, last_order_unix_ms: Option<u64>, now_unix_ms: u64) -> Due {
    match window {
        None => Due::Never,
        Some(window) if !window.is_open(now_unix_ms) => Due::Later(window),
        Some(window) if last_order_unix_ms.is_some_and(|t| t >= window.start_unix_ms) => {
            Due::Issued(window)
        }
        Some(window) => Due::Now(window),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn minutes(text: &str) -> u16 {
        let (hour, minute) = text.split_once(':').unwrap();
        hour.parse::<u16>().unwrap() * 60 + minute.parse::<u16>().unwrap()
    }

    fn daily(text: &str) -> DailyWindow {
        let (start, end) = text.split_once('-').unwrap();
        DailyWindow {
            start_minute: minutes(start),
            end_minute: minutes(end),
        }
    }

    fn millis(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
    }

    fn text(unix_ms: u64) -> String {
        Timestamp::from_millisecond(unix_ms as i64)
            .unwrap()
            .to_string()
    }

    #[test]
    fn the_open_or_next_window_in_real_time() {
        let table = [
            // zone, window, now, start, end
            (
                "UTC",
                "02:00-06:00",
                "2026-06-01T00:00:00Z",
                "2026-06-01T02:00:00Z",
                "2026-06-01T06:00:00Z",
            ),
            (
                "UTC",
                "02:00-06:00",
                "2026-06-01T02:00:00Z",
                "2026-06-01T02:00:00Z",
                "2026-06-01T06:00:00Z",
            ),
            (
                "UTC",
                "02:00-06:00",
                "2026-06-01T05:59:59Z",
                "2026-06-01T02:00:00Z",
                "2026-06-01T06:00:00Z",
            ),
            (
                "UTC",
                "02:00-06:00",
                "2026-06-01T06:00:00Z",
                "2026-06-02T02:00:00Z",
                "2026-06-02T06:00:00Z",
            ),
            (
                "UTC",
                "22:00-04:00",
                "2026-06-01T01:00:00Z",
                "2026-05-31T22:00:00Z",
                "2026-06-01T04:00:00Z",
            ),
            (
                "UTC",
                "22:00-04:00",
                "2026-06-01T05:00:00Z",
                "2026-06-01T22:00:00Z",
                "2026-06-02T04:00:00Z",
            ),
            (
                "UTC",
                "20:00-24:00",
                "2026-06-01T21:00:00Z",
                "2026-06-01T20:00:00Z",
                "2026-06-02T00:00:00Z",
            ),
            (
                "Europe/Amsterdam",
                "02:00-06:00",
                "2026-06-01T00:00:00Z",
                "2026-06-01T00:00:00Z",
                "2026-06-01T04:00:00Z",
            ),
            (
                "America/New_York",
                "02:00-06:00",
                "2026-06-01T00:00:00Z",
                "2026-06-01T06:00:00Z",
                "2026-06-01T10:00:00Z",
            ),
            (
                "Asia/Singapore",
                "02:00-06:00",
                "2026-06-01T00:00:00Z",
                "2026-06-01T18:00:00Z",
                "2026-06-01T22:00:00Z",
            ),
            // Clocks go on at 02:00 to 03:00 on 2026-03-29: the window starts at 03:00 summer time
            // and is an hour shorter.
            (
                "Europe/Amsterdam",
                "02:00-06:00",
                "2026-03-29T00:00:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-29T04:00:00Z",
            ),
            // A window within the skipped hour moves on with it.
            (
                "Europe/Amsterdam",
                "02:10-02:50",
                "2026-03-29T00:00:00Z",
                "2026-03-29T01:10:00Z",
                "2026-03-29T01:50:00Z",
            ),
            // One that the skip swallows happens the next day.
            (
                "Europe/Amsterdam",
                "02:00-03:00",
                "2026-03-29T00:00:00Z",
                "2026-03-30T00:00:00Z",
                "2026-03-30T01:00:00Z",
            ),
            // Clocks go back at 03:00 to 02:00 on 2026-10-25: 02:00 means the first, so the window
            // is an hour longer.
            (
                "Europe/Amsterdam",
                "02:00-06:00",
                "2026-10-24T23:00:00Z",
                "2026-10-25T00:00:00Z",
                "2026-10-25T05:00:00Z",
            ),
            (
                "America/New_York",
                "22:00-01:30",
                "2026-11-01T04:00:00Z",
                "2026-11-01T02:00:00Z",
                "2026-11-01T05:30:00Z",
            ),
        ];
        for (zone, hours, now, start, end) in table {
            let w = window(
                &FleetClock::REAL,
                &TimeZone::get(zone).unwrap(),
                daily(hours),
                millis(now),
            )
            .unwrap();
            assert_eq!(
                (text(w.start_unix_ms), text(w.end_unix_ms)),
                (start.to_owned(), end.to_owned()),
                "{zone} {hours} at {now}"
            );
            assert_eq!(w.is_open(millis(now)), millis(start) <= millis(now));
        }
    }

    #[test]
    fn a_fast_clock_shortens_the_window() {
        // 360 fleet seconds a second from noon UTC: Amsterdam's 02:00 (midnight UTC) is 12 h, 120 s
        // of real time, away.
        let clock = FleetClock {
            anchor_real: 1000.0,
            anchor_fleet: millis("2026-06-01T12:00:00Z") as f64 / 1000.0,
            speed: 360.0,
        };
        let zone = TimeZone::get("Europe/Amsterdam").unwrap();
        let w = window(&clock, &zone, daily("02:00-06:00"), 1_000_000).unwrap();
        assert_eq!(
            (w.start_unix_ms, w.end_unix_ms, w.date.as_str()),
            (1_120_000, 1_160_000, "2026-06-02")
        );
        assert_eq!(
            (
                w.seconds_left(1_000_000),
                w.seconds_left(1_130_000),
                w.seconds_left(2_000_000)
            ),
            (40.0, 30.0, 0.0)
        );
        assert_eq!(
            local_time(&clock, &zone, 1_120_000).unwrap(),
            "2026-06-02T02:00:00"
        );
        assert_eq!(
            (
                local_hour(&clock, &zone, 1_120_000),
                local_hour(&clock, &zone, 1_119_999)
            ),
            (2, 1)
        );
    }

    #[test]
    fn a_window_opens_at_its_minute_on_any_clock() {
        let zone = TimeZone::get("Europe/Amsterdam").unwrap();
        for anchor_real in [1000.0, 1000.001, 1000.4567, 1_780_272_000.123] {
            let clock = FleetClock {
                anchor_real,
                anchor_fleet: millis("2026-06-01T12:00:00Z") as f64 / 1000.0,
                speed: 360.0,
            };
            let window = window(
                &clock,
                &zone,
                daily("02:00-06:00"),
                (anchor_real * 1000.0) as u64,
            )
            .unwrap();
            let local = |fleet| local_time_of(&zone, fleet).unwrap();
            assert_eq!(
                (local(window.start_fleet), local(window.end_fleet)),
                (
                    "2026-06-02T02:00:00".to_owned(),
                    "2026-06-02T06:00:00".to_owned()
                ),
                "{anchor_real}"
            );
        }
    }

    #[test]
    fn one_order_a_window() {
        let w = |start, end| {
            Some(Window {
                date: String::new(),
                start_fleet: 0.0,
                end_fleet: 0.0,
                start_unix_ms: start,
                end_unix_ms: end,
            })
        };
        let name = |due: &Due| match due {
            Due::Now(_) => "now",
            Due::Issued(_) => "issued",
            Due::Later(_) => "later",
            Due::Never => "never",
        };
        let table = [
            (w(100, 200), None, 100, "now"),
            (w(100, 200), None, 199, "now"),
            (w(100, 200), None, 99, "later"),
            (w(100, 200), None, 200, "later"),
            (w(100, 200), Some(99), 150, "now"),
            (w(100, 200), Some(100), 150, "issued"),
            (w(100, 200), Some(150), 150, "issued"),
            (None, None, 150, "never"),
        ];
        for (window, last, now, expected) in table {
            assert_eq!(
                name(&due(window.clone(), last, now)),
                expected,
                "{window:?} {last:?} {now}"
            );
        }
    }

    #[test]
    fn windows_that_nobody_opened_are_found_afterwards() {
        let found = |hours: &str, since: &str, now: &str| -> Vec<String> {
            let passed = passed(
                &FleetClock::REAL,
                &TimeZone::UTC,
                daily(hours),
                millis(since),
                millis(now),
                3,
            );
            passed.iter().map(|w| w.date.clone()).collect()
        };
        let table: [(&str, &str, &str, &[&str]); 8] = [
            (
                "02:00-06:00",
                "2026-06-01T01:00:00Z",
                "2026-06-01T06:00:00Z",
                &["2026-06-01"],
            ),
            (
                "02:00-06:00",
                "2026-06-01T01:00:00Z",
                "2026-06-01T05:59:59Z",
                &[],
            ),
            // It was open when somebody last looked.
            (
                "02:00-06:00",
                "2026-06-01T02:00:00Z",
                "2026-06-01T07:00:00Z",
                &[],
            ),
            (
                "02:00-06:00",
                "2026-06-01T03:00:00Z",
                "2026-06-02T07:00:00Z",
                &["2026-06-02"],
            ),
            (
                "22:00-04:00",
                "2026-06-01T21:00:00Z",
                "2026-06-02T05:00:00Z",
                &["2026-06-01"],
            ),
            (
                "00:00-24:00",
                "2026-06-01T12:00:00Z",
                "2026-06-03T12:00:00Z",
                &["2026-06-02"],
            ),
            (
                "02:00-06:00",
                "2026-06-01T00:00:00Z",
                "2026-06-30T00:00:00Z",
                &["2026-06-27", "2026-06-28", "2026-06-29"],
            ),
            (
                "02:00-06:00",
                "2026-06-02T00:00:00Z",
                "2026-06-01T00:00:00Z",
                &[],
            ),
        ];
        for (hours, since, now, expected) in table {
            assert_eq!(
                found(hours, since, now),
                expected,
                "{hours} from {since} to {now}"
            );
        }
    }

    #[test]
    fn a_window_of_the_whole_day_follows_itself() {
        let whole = DailyWindow {
            start_minute: 0,
            end_minute: 1440,
        };
        let first = window(
            &FleetClock::REAL,
            &TimeZone::UTC,
            whole,
            millis("2026-06-01T12:00:00Z"),
        )
        .unwrap();
        assert_eq!(
            (text(first.start_unix_ms), text(first.end_unix_ms)),
            ("2026-06-01T00:00:00Z".into(), "2026-06-02T00:00:00Z".into())
        );
        let next = window(&FleetClock::REAL, &TimeZone::UTC, whole, first.end_unix_ms).unwrap();
        assert_eq!(
            (next.start_unix_ms, next.date.as_str()),
            (first.end_unix_ms, "2026-06-02")
        );
    }

    #[test]
    fn a_window_without_length_never_comes() {
        assert_eq!(
            window(&FleetClock::REAL, &TimeZone::UTC, daily("02:00-02:00"), 0),
            None
        );
    }

    proptest! {
        #[test]
        fn windows_follow_one_another(
            zone in prop::sample::select(vec!["UTC", "Europe/Amsterdam", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Santiago"]),
            start in 0u16..1440, end in 0u16..1440,
            now in 1_600_000_000_000u64..1_900_000_000_000,
            speed in prop::sample::select(vec![1.0, 360.0, 0.5]),
        ) {
            let clock = FleetClock { anchor_real: 1_700_000_000.0, anchor_fleet: 1_750_000_000.0, speed };
            let zone = TimeZone::get(zone).unwrap();
            let hours = DailyWindow { start_minute: start, end_minute: end };
            prop_assume!(hours.minutes() > 0);
            let first = window(&clock, &zone, hours, now).unwrap();
            prop_assert!(first.end_unix_ms > now && first.end_unix_ms > first.start_unix_ms);
            let next = window(&clock, &zone, hours, first.end_unix_ms).unwrap();
            prop_assert!(next.start_unix_ms >= first.end_unix_ms, "{first:?} then {next:?}");
            // Twice a day and three days apart are both wrong.
            let apart = (next.start_fleet - first.start_fleet) / 3600.0;
            prop_assert!((20.0..=50.0).contains(&apart), "{apart} hours apart");
        }
    }
}
