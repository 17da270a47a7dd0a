//! Forecasts a cluster's requests of the next day.
//!
//! Tomorrow is expected to be like the decayed past: the cluster's daily requests are the sum of
//! its rates over the 24 local hours (so observations of evenings alone do not make a day of
//! evenings), and each URL gets its share of the decayed counts. Pure.

use std::sync::Arc;

use crate::popularity::ClusterPopularity;

/// A local hour that was observed for less than this many seconds gets the rate of all hours
/// together. Weights do not count here: they express the age of an observation, not its duration,
/// and are rescaled by a common factor now and then.
const HOUR_OBSERVED_MIN_SECONDS: f64 = 300.0;

/// The forecast of one URL.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    /// Site name.
    pub site: Arc<str>,
    /// Absolute URL as clients request it.
    pub url: Arc<str>,
    /// Complete length in bytes; `None` while no edge has stored it.
    pub size: Option<u64>,
    /// Requests in the next day.
    pub requests: f64,
    /// Body bytes of these requests.
    pub bytes: f64,
}

/// The forecast of a cluster's next day.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Forecast {
    /// Requests of all URLs, including those that are no longer remembered.
    pub requests: f64,
    /// Body bytes of these requests.
    pub bytes: f64,
    /// Requests by local hour of day.
    pub hours: [f64; 24],
    /// Every remembered URL, in no particular order.
    pub items: Vec<Expected>,
}

/// Forecasts the next day from the accumulated counts; all zero without any.
pub fn next_day(popularity: &ClusterPopularity) -> Forecast {
    let hours = hour_profile(popularity);
    let requests: f64 = hours.iter().sum();
    if requests <= 0.0 || popularity.requests <= 0.0 {
        return Forecast {
            hours,
            ..Forecast::default()
        };
    }
    let a_day = requests / popularity.requests;
    let items = popularity.urls.iter().map(|(url, record)| Expected {
        site: record.site.clone(),
        url: url.clone(),
        size: (record.size > 0).then_some(record.size),
        requests: record.requests * a_day,
        bytes: record.bytes * a_day,
    });
    Forecast {
        requests,
        bytes: popularity.bytes * a_day,
        hours,
        items: items.collect(),
    }
}

/// Requests expected in each local hour of day.
fn hour_profile(popularity: &ClusterPopularity) -> [f64; 24] {
    let observed: f64 = popularity.hours.iter().map(|h| h.observed).sum();
    let seconds: f64 = popularity.hours.iter().map(|h| h.seconds).sum();
    // A first report has no observed time; it counts as the shortest time that matters, and so do
    // the first seconds.
    let mean = if observed > 0.0 {
        popularity.requests / observed * (seconds / HOUR_OBSERVED_MIN_SECONDS).min(1.0)
    } else {
        popularity.requests / HOUR_OBSERVED_MIN_SECONDS
    };
    popularity.hours.map(|hour| {
        // Weights that decayed to zero have no ratio.
        let is_enough = hour.seconds >= HOUR_OBSERVED_MIN_SECONDS && hour.observed.is_normal();
        let rate = if is_enough {
            hour.requests / hour.observed
        } else {
            mean
        };
        rate * 3600.0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::popularity::{Limits, Popularity};
    use jiff::tz::TimeZone;
    use nearcast_fleet::report::UrlCount;

    const DAY: f64 = 86_400.0;
    const MINUTE: f64 = 60.0;

    fn count(url: &str, requests: u64, bytes: u64) -> UrlCount {
        UrlCount {
            site: "www".into(),
            url: url.into(),
            requests,
            bytes,
            size: bytes / requests.max(1),
        }
    }

    fn days(days: u32, half_life: f64, counts: impl Fn(u32) -> Vec<UrlCount>) -> Forecast {
        let mut p = Popularity::new(Limits {
            half_life_seconds: half_life,
            urls_max: 1000,
        });
        for minute in 0..days * 24 * 60 {
            p.fold(
                "ams",
                &TimeZone::UTC,
                f64::from(minute) * MINUTE,
                &counts(minute),
            );
        }
        next_day(p.cluster("ams").unwrap())
    }

    fn of<'a>(forecast: &'a Forecast, url: &str) -> &'a Expected {
        forecast.items.iter().find(|i| &*i.url == url).unwrap()
    }

    #[test]
    fn a_steady_rate_is_expected_to_go_on() {
        for (observed_days, half_life) in [(1, DAY), (3, DAY), (5, DAY / 4.0), (2, 30.0 * DAY)] {
            let f = days(observed_days, half_life, |_| {
                vec![count("http://a/", 2, 20), count("http://b/", 1, 500)]
            });
            let table = [
                (f.requests, 4320.0),
                (f.bytes, 748_800.0),
                (of(&f, "http://a/").requests, 2880.0),
                (of(&f, "http://b/").bytes, 720_000.0),
            ];
            for (got, expected) in table {
                assert!(
                    (got / expected - 1.0).abs() < 0.02,
                    "{observed_days} days, half-life {half_life}: {got}, expected {expected}"
                );
            }
            assert!((f.hours.iter().sum::<f64>() - f.requests).abs() < 1e-6);
        }
    }

    #[test]
    fn evenings_alone_are_not_a_day_of_evenings() {
        // 100 requests a minute from 20 to 22 hours, 1 otherwise.
        let f = days(4, DAY, |minute| {
            let hour = minute / 60 % 24;
            vec![count(
                "http://a/",
                if (20..22).contains(&hour) { 100 } else { 1 },
                1000,
            )]
        });
        let expected = 22.0 * 60.0 + 2.0 * 6000.0;
        assert!(
            (f.requests / expected - 1.0).abs() < 0.02,
            "{} requests, expected {expected}",
            f.requests
        );
        assert!((f.hours[20] / 6000.0 - 1.0).abs() < 0.05, "{}", f.hours[20]);
        assert!((f.hours[4] / 60.0 - 1.0).abs() < 0.05, "{}", f.hours[4]);
    }

    #[test]
    fn hours_never_seen_have_the_rate_of_the_others() {
        let f = days(1, 10.0 * DAY, |minute| {
            if minute < 6 * 60 {
                vec![count("http://a/", 1, 10)]
            } else {
                Vec::new()
            }
        });
        assert!(
            f.requests < 400.0,
            "18 silent hours were seen: {}",
            f.requests
        );
        let mut p = Popularity::new(Limits {
            half_life_seconds: DAY,
            urls_max: 10,
        });
        for minute in 0..6 * 60 {
            p.fold(
                "ams",
                &TimeZone::UTC,
                f64::from(minute) * MINUTE,
                &[count("http://a/", 1, 10)],
            );
        }
        let f = next_day(p.cluster("ams").unwrap());
        assert!(
            (f.requests / 1440.0 - 1.0).abs() < 0.05,
            "18 hours were not seen at all: {}",
            f.requests
        );
    }

    #[test]
    fn nothing_folded_expects_nothing() {
        let mut p = Popularity::new(Limits {
            half_life_seconds: DAY,
            urls_max: 10,
        });
        p.fold("ams", &TimeZone::UTC, 0.0, &[]);
        assert_eq!(next_day(p.cluster("ams").unwrap()), Forecast::default());
        assert_eq!(next_day(&ClusterPopularity::default()), Forecast::default());
    }

    #[test]
    fn setting_the_same_limits_changes_nothing() {
        // 100 requests a minute from 20 to 22 hours, 1 otherwise: 13,320 a day.
        for half_life_seconds in [DAY, DAY / 4.0, DAY / 12.0, 3600.0, 60.0] {
            let limits = Limits {
                half_life_seconds,
                urls_max: 1000,
            };
            let mut p = Popularity::new(limits);
            for minute in 0..5 * 24 * 60u32 {
                let requests = if (20..22).contains(&(minute / 60 % 24)) {
                    100
                } else {
                    1
                };
                p.fold(
                    "ams",
                    &TimeZone::UTC,
                    f64::from(minute) * MINUTE,
                    &[count("http://a/", requests, 1000)],
                );
            }
            let before = next_day(p.cluster("ams").unwrap()).requests;
            p.set_limits(limits);
            let after = next_day(p.cluster("ams").unwrap()).requests;
            assert!(
                (after / before - 1.0).abs() < 1e-6,
                "half-life {half_life_seconds}: {before} requests, then {after}"
            );
            // Where an hour's own weights tell anything after a day, the day is told right.
            let is_right = (before / 13_320.0 - 1.0).abs() < 0.02;
            assert!(
                is_right || half_life_seconds < 3600.0,
                "half-life {half_life_seconds}: {before} of 13320 requests"
            );
        }
    }

    #[test]
    fn some_seconds_of_an_hour_tell_as_little_on_an_old_landmark_as_on_a_young_one() {
        for days in [1u32, 5, 20, 39] {
            let mut p = Popularity::new(Limits {
                half_life_seconds: DAY,
                urls_max: 1000,
            });
            for minute in (0..days * 24 * 60).filter(|minute| minute / 60 % 24 < 12) {
                p.fold(
                    "ams",
                    &TimeZone::UTC,
                    f64::from(minute) * MINUTE,
                    &[count("http://a/", 1, 1000)],
                );
            }
            let mut seen = p.cluster("ams").unwrap().clone();
            seen.hours[12] = crate::popularity::HourRecord {
                requests: 1e6,
                observed: 1e6,
                seconds: 5.0,
            };
            let mean = seen.requests / seen.hours.iter().map(|h| h.observed).sum::<f64>() * 3600.0;
            let hour = next_day(&seen).hours[12];
            assert!(
                (hour / mean - 1.0).abs() < 1e-9,
                "{days} days: {hour} in an hour of which five seconds were seen, mean {mean}"
            );
        }
    }

    #[test]
    fn an_outage_of_control_is_time_that_was_counted() {
        for (outage_minutes, others) in [(10, 0), (6 * 60, 0), (6 * 60, 2), (18 * 60, 2)] {
            let mut p = Popularity::new(Limits {
                half_life_seconds: 3.0 * DAY,
                urls_max: 1000,
            });
            let last = 4 * 24 * 60u32;
            for minute in 0..last - outage_minutes {
                for _ in 0..=others {
                    p.fold(
                        "ams",
                        &TimeZone::UTC,
                        f64::from(minute) * MINUTE,
                        &[count("http://a/", 1, 10)],
                    );
                }
            }
            // Each edge brings with its next report what it counted meanwhile.
            for node in 0..=others {
                let at = f64::from(last) * MINUTE + f64::from(node);
                p.fold(
                    "ams",
                    &TimeZone::UTC,
                    at,
                    &[count("http://a/", u64::from(outage_minutes), 10)],
                );
            }
            let (requests, truth) = (
                next_day(p.cluster("ams").unwrap()).requests,
                1440.0 * f64::from(others + 1),
            );
            assert!(
                (requests / truth - 1.0).abs() < 0.1,
                "{outage_minutes} minutes: {requests} requests a day, in truth {truth}"
            );
        }
    }

    #[test]
    fn an_unknown_size_is_said_to_be_unknown() {
        let mut p = Popularity::new(Limits {
            half_life_seconds: DAY,
            urls_max: 10,
        });
        p.fold(
            "ams",
            &TimeZone::UTC,
            0.0,
            &[UrlCount {
                site: "www".into(),
                url: "http://a/".into(),
                requests: 1,
                bytes: 9,
                size: 0,
            }],
        );
        assert_eq!(next_day(p.cluster("ams").unwrap()).items[0].size, None);
    }
}
