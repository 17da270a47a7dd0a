//! Round-trip times of client connections by prefix, between two reports.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use nearcast_fleet::report::RttSample;

/// Largest number of prefixes between two reports; further ones are left out until the next one.
pub(crate) const PREFIXES_MAX: usize = 4096;

/// Round-trip times of one prefix, in microseconds.
#[derive(Debug, Default)]
struct Times {
    count: u32,
    min_us: u32,
    sum_us: u64,
}

/// Round-trip times by client prefix.
#[derive(Debug, Default)]
pub(crate) struct RoundTrips(HashMap<IpNet, Times>);

impl RoundTrips {
    /// Notes the round-trip time of one connection.
    pub(crate) fn note(&mut self, client: IpAddr, round_trip: Duration) {
        let prefix = prefix_of(client);
        if self.0.len() >= PREFIXES_MAX && !self.0.contains_key(&prefix) {
            return;
        }
        let us = u32::try_from(round_trip.as_micros())
            .unwrap_or(u32::MAX)
            .max(1);
        let times = self.0.entry(prefix).or_default();
        times.min_us = if times.count == 0 {
            us
        } else {
            times.min_us.min(us)
        };
        times.count = times.count.saturating_add(1);
        times.sum_us += u64::from(us);
    }

    /// Adds the times of another worker.
    pub(crate) fn merge(&mut self, other: Self) {
        for (prefix, times) in other.0 {
            if self.0.len() >= PREFIXES_MAX && !self.0.contains_key(&prefix) {
                continue;
            }
            let own = self.0.entry(prefix).or_default();
            own.min_us = if own.count == 0 {
                times.min_us
            } else {
                own.min_us.min(times.min_us)
            };
            own.count = own.count.saturating_add(times.count);
            own.sum_us += times.sum_us;
        }
    }

    /// The samples of a report.
    pub(crate) fn samples(&self) -> Vec<RttSample> {
        let sample = |(prefix, times): (&IpNet, &Times)| RttSample {
            prefix: *prefix,
            count: times.count,
            min_us: times.min_us,
            mean_us: u32::try_from(times.sum_us / u64::from(times.count.max(1)))
                .unwrap_or(u32::MAX),
        };
        self.0.iter().map(sample).collect()
    }
}

/// The /24 or /48 of a client, as in an EDNS client subnet (RFC 7871): no more is kept, for privacy.
fn prefix_of(client: IpAddr) -> IpNet {
    let length = if client.is_ipv4() { 24 } else { 48 };
    IpNet::new(client, length)
        .expect("both lengths are valid")
        .trunc()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_by_prefix() {
        let mut noted = RoundTrips::default();
        let mut other = RoundTrips::default();
        for (target, client, us) in [
            (0, "192.0.2.1", 300),
            (0, "192.0.2.200", 100),
            (1, "192.0.2.7", 50),
            (1, "2001:db8:1:2::1", 9000),
            (0, "198.51.100.1", 0),
        ] {
            let to = if target == 0 { &mut noted } else { &mut other };
            to.note(
                client.parse().expect("an address"),
                Duration::from_micros(us),
            );
        }
        noted.merge(other);
        let mut samples = noted.samples();
        samples.sort_by_key(|s| s.prefix);
        let found: Vec<_> = samples
            .iter()
            .map(|s| (s.prefix.to_string(), s.count, s.min_us, s.mean_us))
            .collect();
        let expected = [
            ("192.0.2.0/24", 3, 50, 150),
            ("198.51.100.0/24", 1, 1, 1),
            ("2001:db8:1::/48", 1, 9000, 9000),
        ]
        .map(|(p, c, l, m)| (p.to_owned(), c, l, m));
        assert_eq!(found, expected);
    }

    #[test]
    fn prefixes_are_bounded() {
        let mut noted = RoundTrips::default();
        for n in 0..PREFIXES_MAX as u32 + 100 {
            noted.note(
                IpAddr::from((n << 8).to_be_bytes()),
                Duration::from_millis(1),
            );
        }
        assert_eq!(noted.samples().len(), PREFIXES_MAX);
    }
}
