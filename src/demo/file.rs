//! The demo's fleet file. Users read it as an example, so it has comments.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use jiff::civil::Time;
use jiff::{Timestamp, ToSpan as _};

/// Address of the name server.
pub(super) const DNS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5300);
/// URL of the console and the API.
pub(super) const CONSOLE_URL: &str = "http://127.0.0.1:7700/";
/// Port of the edges.
pub(super) const EDGE_PORT: u16 = 8080;
/// Their port for HTTPS.
pub(super) const EDGE_TLS_PORT: u16 = 8443;

/// A cluster of the demo.
pub(super) struct DemoCluster {
    /// Cluster name.
    pub(super) name: &'static str,
    /// Its name in the console.
    pub(super) label: &'static str,
    /// The part of the world to whose clients it is nearest.
    pub(super) region: &'static str,
    /// The prefix of those clients.
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

/// The clusters of the demo.
pub(super) const CLUSTERS: [DemoCluster; 3] = [
    DemoCluster {
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
    DemoCluster {
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
    DemoCluster {
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

/// Edges in each cluster.
pub(super) const EDGES_PER_CLUSTER: u8 = 2;

impl DemoCluster {
    /// The address of one of its edges, counted from 1.
    pub(super) fn edge(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 0, self.third_byte, number)
    }
}

/// The cluster whose night comes first.
const FIRST_NIGHT: usize = 2;

/// The fleet's time at the start: ten in the evening of that day in one cluster, so that demand there
/// is high and the night's push is near; in the other clusters it is day.
fn evening(real: Timestamp) -> Timestamp {
    let there = real
        .in_tz(CLUSTERS[FIRST_NIGHT].time_zone)
        .expect("the zone is built in");
    let evening = there.with().time(Time::constant(22, 0, 0, 0)).build();
    evening.map_or(real, |z| z.timestamp())
}

/// The file's text, with placeholders (`@NAME@`) for the values that differ from run to run.
const TEMPLATE: &str = include_str!("fleet.toml");

/// The file's text for a demo that starts at `now`.
pub(super) fn text(now: Timestamp, speed: f64) -> String {
    // Whole milliseconds are easier to read. A second ago, so that the anchor is in the past for
    // every node.
    let real = Timestamp::from_millisecond((now - 1.second()).as_millisecond()).unwrap_or(now);
    TEMPLATE
        .replace("@KEY@", KEY)
        .replace("@SPEED@", &speed.to_string())
        .replace("@ANCHOR_REAL@", &real.to_string())
        .replace("@ANCHOR_FLEET@", &evening(real).to_string())
        .replace("@DNS@", &DNS.to_string())
        .replace("@ORIGINS@", &origins_text())
        .replace(
            "@CLUSTERS@",
            &CLUSTERS.each_ref().map(cluster_text).concat(),
        )
}

/// The web origins of the demo's pages: the edges by their addresses, and the sites by their names.
fn origins_text() -> String {
    let edges = (CLUSTERS.iter())
        .flat_map(|place| (1..=EDGES_PER_CLUSTER).map(|number| place.edge(number).to_string()));
    let names = ["www.demo.test", "video.demo.test"].map(str::to_owned);
    edges
        .chain(names)
        .map(|host| {
            format!("  \"http://{host}:{EDGE_PORT}\", \"https://{host}:{EDGE_TLS_PORT}\",\n")
        })
        .collect()
}

fn cluster_text(place: &DemoCluster) -> String {
    let mut text = format!(
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
    for number in 1..=EDGES_PER_CLUSTER {
        let ip = place.edge(number);
        let _ = write!(
            text,
            r#"
[[cluster.node]]
name = "{}-{number}"
address = "{ip}"
listen = "{ip}:{EDGE_PORT}"
listen_tls = "{ip}:{EDGE_TLS_PORT}"
admin = "{ip}:9100"
memory = "4MiB"
disk = "64MiB"
threads = 1
"#,
            place.name
        );
    }
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
            let origins = fleet.control.as_ref().map(|c| c.steering_origins.len());
            assert_eq!(origins, Some(16), "{date}");
            let nodes = fleet.clusters.iter().flat_map(|c| &c.nodes);
            assert!(nodes.into_iter().all(|n| n.listen_tls.len() == 1), "{date}");
            let names: Vec<_> = (fleet.tls.certificates.iter())
                .flat_map(|files| [&files.cert, &files.key])
                .map(|path| path.strip_prefix("/demo/certificates").expect("the demo's"))
                .collect();
            let written = [
                "demo.test.pem",
                "demo.test.key",
                "cdn.test.pem",
                "cdn.test.key",
            ];
            assert_eq!(names, written.map(Path::new), "{date}");
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
