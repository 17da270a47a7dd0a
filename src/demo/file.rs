//! The demo's fleet file. People read it: it is written as an example is.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use jiff::civil::Time;
use jiff::{Timestamp, ToSpan as _};

/// Where the name server answers.
pub(super) const DNS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5300);
/// Where console and API are.
pub(super) const CONSOLE_URL: &str = "http://127.0.0.1:7700/";
/// Port of the edges.
pub(super) const EDGE_PORT: u16 = 8080;

/// A place of the demo.
pub(super) struct Place {
    /// Cluster name.
    pub(super) name: &'static str,
    /// For people.
    pub(super) label: &'static str,
    /// The part of the world whose clients it is nearest to.
    pub(super) region: &'static str,
    /// Where those clients live.
    pub(super) clients: &'static str,
    /// One of them.
    pub(super) client: Ipv4Addr,
    latitude: f64,
    longitude: f64,
    time_zone: &'static str,
    third_byte: u8,
}

/// File in the demo's directory with the fleet's key.
pub(super) const KEY: &str = "fleet.key";

/// Where the demo has clusters.
pub(super) const PLACES: [Place; 3] = [
    Place {
        name: "ams",
        label: "Amsterdam",
        region: "Europe",
        clients: "198.51.100.0/24",
        client: Ipv4Addr::new(198, 51, 100, 9),
        latitude: 52.37,
        longitude: 4.90,
        time_zone: "Europe/Amsterdam",
        third_byte: 10,
    },
    Place {
        name: "nyc",
        label: "New York",
        region: "the Americas",
        clients: "203.0.113.0/24",
        client: Ipv4Addr::new(203, 0, 113, 9),
        latitude: 40.71,
        longitude: -74.01,
        time_zone: "America/New_York",
        third_byte: 20,
    },
    Place {
        name: "sin",
        label: "Singapore",
        region: "Asia",
        clients: "192.0.2.0/24",
        client: Ipv4Addr::new(192, 0, 2, 9),
        latitude: 1.35,
        longitude: 103.82,
        time_zone: "Asia/Singapore",
        third_byte: 30,
    },
];

/// Edges in each place.
pub(super) const EDGES_PER_PLACE: u8 = 2;

impl Place {
    /// Address of one of its edges, counted from 1.
    pub(super) fn edge(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 0, self.third_byte, number)
    }
}

/// The place whose night comes first.
const FIRST_NIGHT: usize = 2;

/// The fleet's time at the start: ten in the evening of that day in one place, so that everyone
/// there still watches and the night's push is near; in the other places it is day.
fn evening(real: Timestamp) -> Timestamp {
    let there = real
        .in_tz(PLACES[FIRST_NIGHT].time_zone)
        .expect("the zone is built in");
    let evening = there.with().time(Time::constant(22, 0, 0, 0)).build();
    evening.map_or(real, |z| z.timestamp())
}

/// The file's text for a demo that starts at `now`.
pub(super) fn text(now: Timestamp, speed: f64) -> String {
    // Whole milliseconds read better; a second ago, so that the anchor is in the past everywhere.
    let real = Timestamp::from_millisecond((now - 1.second()).as_millisecond()).unwrap_or(now);
    let fleet = evening(real);
    let mut text = format!(
        r#"# The demo's fleet, written by `nearcast demo`. Change it and try `nearcast apply` with it, or take it as a start for your own;
# `nearcast check FILE` names every mistake.

[fleet]
zone = "cdn.test" # steered names live here: www.cdn.test, video.cdn.test
state_dir = "." # each node keeps its state in a directory of its name
node_key_file = "{KEY}" # control and name servers hold it; `nearcast key --all` made the nodes' own from it
node_keys = "own" # each node shows its own key, in the file node.key of its state directory
report_interval = "1s"

# The time of day by which pushes are planned runs fast here, so that a night comes soon. Leave this out for the real one.
[clock]
speed = {speed}
anchor_real = {real}
anchor_fleet = {fleet}

# Journal of changes, push planner, API and console.
[control]
listen = "127.0.0.1:7700"
admin = "127.0.0.1:9170"

# A web server with the demo's pages and videos. Your own origin needs no such section: a site's `origin` is any URL.
[[origin_node]]
name = "origin"
listen = "127.0.0.1:8000"
admin = "127.0.0.1:9180"
root = "content"

# All of this is one machine: times between its places are not what light needs. Leave this out for real places.
[steering]
rtt_bound = false

[[name_server]]
name = "ns1"
listen = "{DNS}"
admin = "127.0.0.1:9153"

# Three places with two edges each. Caches are small, so that there is something to choose.
"#
    );
    for place in &PLACES {
        let _ = write!(
            text,
            r#"
[[cluster]]
name = "{}"
label = "{}"
place = {{ latitude = {:.2}, longitude = {:.2} }}
time_zone = "{}"
off_peak = "02:00-06:00" # pushes run in these local hours
fill_rate = "60Mbit/s"
push_share = "50%"
"#,
            place.name, place.label, place.latitude, place.longitude, place.time_zone
        );
        for number in 1..=EDGES_PER_PLACE {
            let ip = place.edge(number);
            let _ = write!(
                text,
                r#"
[[cluster.node]]
name = "{}-{number}"
address = "{ip}"
listen = "{ip}:{EDGE_PORT}"
admin = "{ip}:9100"
memory = "4MiB"
disk = "64MiB"
threads = 1
"#,
                place.name
            );
        }
    }
    text.push_str(
        r#"
# Pages and pictures: each client goes to the nearest cluster.
[[site]]
name = "www"
hosts = ["www.demo.test"]
origin = "http://127.0.0.1:8000"
steering = "geo"
ttl = "20s"

[site.cache]
stale_while_revalidate = "10s"
stale_if_error = "1h"

# Videos, and any other host name: each client goes to the cluster with the shortest measured round trip.
[[site]]
name = "video"
hosts = ["video.demo.test", "*"]
origin = "http://127.0.0.1:8000"
steering = "rtt"
ttl = "20s"

[site.cache]
stale_if_error = "1h"

# The customer's own zone: its names are aliases of steered names, beside everything else a zone has.
[[zone]]
name = "demo.test"
records = [
  "www CNAME www.cdn.test.",
  "video CNAME video.cdn.test.",
  "@ MX 10 mail",
  "mail A 192.0.2.25",
  '@ TXT "v=spf1 mx -all"',
]
"#,
    );
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_file_is_good_all_year_round_and_a_night_is_near() {
        for date in [
            "2026-01-01T00:30:00.5Z",
            "2026-03-29T00:59:59Z",
            "2026-07-14T21:00:00Z",
            "2026-10-25T01:30:00Z",
            "2028-02-29T12:00:00Z",
        ] {
            let now: Timestamp = date.parse().expect("a date");
            let text = text(now, 360.0);
            let key = nearcast_fleet::file::KeySource::Unneeded;
            let fleet = nearcast_fleet::file::parse_with(&text, Path::new("/demo"), key)
                .unwrap_or_else(|mistakes| panic!("{date}: {mistakes:?}\n{text}"));
            assert_eq!(fleet.clusters.len(), 3);
            let real = now.as_millisecond() as f64 / 1000.0;
            // The first window opens within a minute and is over within a minute and a half; none
            // is open at the start.
            let is_night = |cluster: usize, after: f64| {
                let fleet_time =
                    Timestamp::from_second(fleet.clock.fleet_seconds(real + after) as i64)
                        .expect("in range");
                let local = fleet_time
                    .in_tz(&fleet.clusters[cluster].time_zone)
                    .expect("built in");
                fleet.clusters[cluster]
                    .off_peak
                    .contains((local.hour() as u16) * 60 + local.minute() as u16)
            };
            assert!(
                (0..3).all(|c| !is_night(c, 0.0) && !is_night(c, 30.0)),
                "{date}"
            );
            assert!(is_night(FIRST_NIGHT, 55.0), "{date}");
            assert!((0..3).all(|c| !is_night(c, 95.0)), "{date}");
        }
    }
}
