//! The fleet file's parser against files in use, wrong files, and any text at all.

use super::*;

fn fleet_of(text: &str) -> Fleet {
    parse(text, Path::new("/etc/nearcast")).unwrap_or_else(|m| panic!("{}", describe("text", &m)))
}

/// The smallest file there is.
const SMALLEST: &str = r#"[fleet]
zone = "cdn.example.org"

[[cluster]]
name = "ams"
place = { latitude = 52.37, longitude = 4.90 }

[[cluster.node]]
name = "ams-1"
address = "192.0.2.1"

[[site]]
name = "www"
hosts = ["www.example.org"]
origin = "http://origin.example.org"
"#;

#[test]
fn the_smallest_file_is_filled_with_defaults() {
    let fleet = fleet_of(SMALLEST);
    assert_eq!(fleet.state_dir, Path::new("/var/lib/nearcast"));
    assert_eq!(fleet.hostmaster, "hostmaster@cdn.example.org");
    assert_eq!((fleet.control, fleet.clock, fleet.report_interval), (None, FleetClock::REAL, Duration::from_secs(2)));
    let cluster = &fleet.clusters[0];
    assert_eq!((cluster.label.as_str(), cluster.time_zone.as_str(), cluster.weight), ("ams", "UTC", 1));
    assert_eq!(cluster.push_share, Bytes(1 << 29));
    let node = &cluster.nodes[0];
    assert_eq!((node.listen[0].to_string(), node.service.to_string()), ("192.0.2.1:80".into(), "192.0.2.1:80".into()));
    assert_eq!((node.memory, node.disk, node.admin.map(|a| a.port())), (Bytes(64 << 20), Bytes(1 << 30), Some(9100)));
    let site = &fleet.sites[0];
    assert_eq!((site.policy, site.ttl, &site.clusters[..]), (SelectionPolicy::Geo, Duration::from_secs(20), &[0][..]));
    assert_eq!(site.cache, CachePolicy::default());
}

#[test]
fn the_deployed_file_is_read() {
    let text =
        include_str!("../../../deploy/fleet.toml").replace("node_key_file = \"/keys/node.key\"", "node_key = \"sixteen characters\"");
    let fleet = fleet_of(&text);
    assert_eq!(fleet.zone_name_servers, [2]);
    assert_eq!(fleet.name_servers[2].host, "ns1.cdn.test");
    assert_eq!(fleet.zones[0].name, "");
    assert_eq!(fleet.zones[0].records[0], Record { owner: "test".into(), ttl: 300, rtype: "NS".into(), data: "ns.nic.test.".into() });
    assert_eq!(fleet.zones[2].records[2].owner, "demo.test");
    assert_eq!(fleet.control.as_ref().map(|c| c.url.as_str()), Some("http://172.30.53.5:7700"));
    assert_eq!(fleet.clusters.len(), 3);
    assert_eq!(fleet.clusters[1].place.longitude, -74.01);
    assert_eq!(fleet.clusters[0].fill_rate_bits, 200_000_000);
    assert_eq!(fleet.sites[1].policy, SelectionPolicy::Rtt);
    assert_eq!(fleet.edge("sin-2").map(|(c, n)| (c.name.as_str(), n.threads)), Some(("sin", Some(1))));
}
