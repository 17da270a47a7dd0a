use super::*;

const HOUR: u64 = 3_600_000;

fn sample(prefix: &str, count: u32, mean_us: u32) -> RttSample {
    RttSample {
        prefix: prefix.parse().unwrap(),
        count,
        min_us: mean_us / 2,
        mean_us,
    }
}

/// Clusters with one node each, whose name is the cluster's.
fn topology(names: &[&str]) -> Topology {
    Topology {
        clusters: names
            .iter()
            .map(|name| ((*name).to_owned(), (0.0, 0.0)))
            .collect(),
        nodes: names
            .iter()
            .enumerate()
            .map(|(i, name)| ((*name).to_owned(), i))
            .collect(),
    }
}

fn table() -> RttTable {
    RttTable::new(topology(&["ams", "nyc"]))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn smooths_and_keeps_the_least() {
    let mut table = table();
    let client = ip("198.51.100.7");
    assert!(table.add("ams", &sample("198.51.100.0/24", 1, 10_000), 1_000, HOUR));
    assert_eq!(
        table.measured(client, 0).unwrap().smoothed_us,
        10_000.0,
        "the first value counts whole"
    );
    table.add("ams", &sample("198.51.100.0/24", 1, 20_000), 2_000, HOUR);
    let cell = table.measured(client, 0).unwrap();
    assert!((cell.smoothed_us - 12_000.0).abs() < 1.0, "{cell:?}");
    assert_eq!((cell.min_us, cell.samples, cell.at_ms), (5_000, 2, 2_000));
    table.add(
        "ams",
        &sample("198.51.100.0/24", 1_000, 30_000),
        3_000,
        HOUR,
    );
    let heavy = table.measured(client, 0).unwrap().smoothed_us;
    assert!(
        (29_000.0..30_000.0).contains(&heavy),
        "many connections weigh more, but not everything: {heavy}"
    );
    assert_eq!(table.measured(client, 1), None);
    assert_eq!(table.measured(ip("198.51.101.7"), 0), None);
}

#[test]
fn old_values_do_not_count_and_do_not_last() {
    let mut table = table();
    let client = ip("198.51.100.7");
    table.add("ams", &sample("198.51.100.0/24", 8, 10_000), 0, 1_000);
    table.add("nyc", &sample("198.51.100.0/24", 8, 40_000), 600, 1_000);
    for (now, expected, prefixes) in [
        (1_000, Some([10_000, 40_000]), 1),
        (1_001, Some([UNMEASURED, 40_000]), 1),
        (1_600, Some([UNMEASURED, 40_000]), 1),
        (1_601, None, 0),
    ] {
        let map = table.compile(now, 1_000, None);
        assert_eq!(
            map.find(client),
            expected.as_ref().map(|r| &r[..]),
            "at {now}"
        );
        assert_eq!(map.prefixes, prefixes, "at {now}");
    }
    table.add("ams", &sample("198.51.100.0/24", 1, 99_000), 5_000, 1_000);
    let cell = table.measured(client, 0).unwrap();
    assert_eq!(
        (cell.smoothed_us, cell.min_us, cell.samples),
        (99_000.0, 49_500, 1),
        "a value after a gap starts anew"
    );
}

#[test]
fn only_plausible_samples_are_taken() {
    for (case, taken) in [
        (sample("198.51.100.0/24", 1, 1), true),
        (sample("198.51.100.128/25", 1, 1), true),
        (sample("198.51.100.0/23", 1, 1), false),
        (sample("2001:db8::/48", 1, 1), true),
        (sample("2001:db8::/47", 1, 1), false),
        (sample("198.51.100.0/24", 0, 1), false),
        (sample("198.51.100.0/24", 1, 0), false),
        (sample("198.51.100.0/24", 1, RTT_US_MAX), true),
        (sample("198.51.100.0/24", 1, RTT_US_MAX + 1), false),
    ] {
        assert_eq!(table().add("ams", &case, 0, HOUR), taken, "{case:?}");
    }
    assert!(
        !table().add("lon", &sample("198.51.100.0/24", 1, 1), 0, HOUR),
        "no such node"
    );
}

#[test]
fn neighbours_stand_in_when_there_are_enough() {
    let mut table = table();
    // Two /24s of 203.0.112.0/20 for ams, one for nyc.
    table.add("ams", &sample("203.0.112.0/24", 1, 10_000), 0, HOUR);
    table.add("ams", &sample("203.0.113.0/24", 3, 30_000), 0, HOUR);
    table.add("nyc", &sample("203.0.112.0/24", 1, 70_000), 0, HOUR);
    table.add("ams", &sample("2001:db8:100::/48", 1, 10_000), 0, HOUR);
    table.add("ams", &sample("2001:db8:1ff::/48", 1, 20_000), 0, HOUR);
    let map = table.compile(0, HOUR, None);
    assert_eq!(map.prefixes, 4);
    for (client, expected) in [
        ("203.0.112.9", Some([10_000, 70_000])),
        ("203.0.113.9", Some([30_000, UNMEASURED])),
        ("203.0.127.9", Some([25_000, UNMEASURED])), // weighted by connections
        ("203.0.128.9", None),
        ("2001:db8:1aa::1", Some([15_000, UNMEASURED])),
        ("2001:db8:200::1", None),
    ] {
        assert_eq!(
            map.find(ip(client)),
            expected.as_ref().map(|r| &r[..]),
            "{client}"
        );
    }
}

#[test]
fn the_least_recent_make_room() {
    let mut table = table();
    table.limit = 32;
    for i in 0..100_u8 {
        table.add(
            "ams",
            &sample(&format!("10.0.{i}.0/24"), 1, 1_000),
            u64::from(i),
            HOUR,
        );
        assert!(table.entries.len() <= 32);
    }
    assert!(table.measured(ip("10.0.99.1"), 0).is_some());
    assert!(table.measured(ip("10.0.75.1"), 0).is_some());
    assert!(table.measured(ip("10.0.60.1"), 0).is_none());
}

#[test]
fn clusters_that_stay_keep_their_values() {
    let mut table = table();
    table.add("ams", &sample("198.51.100.0/24", 1, 1_000), 0, HOUR);
    table.add("nyc", &sample("198.51.100.0/24", 1, 2_000), 0, HOUR);
    table.set_topology(topology(&["sin", "nyc", "ams"]));
    let map = table.compile(0, HOUR, None);
    assert_eq!(
        map.find(ip("198.51.100.1")),
        Some(&[UNMEASURED, 2_000, 1_000][..])
    );
    table.set_topology(topology(&["sin"]));
    assert_eq!(table.compile(0, HOUR, None).find(ip("198.51.100.1")), None);
}

#[test]
fn a_full_map_finds_everything_and_nothing_else() {
    let mut table = table();
    for i in 0..4_000_u32 {
        let prefix = IpNet::new(IpAddr::from((i << 16).to_be_bytes()), 24).unwrap();
        table.add(
            "ams",
            &RttSample {
                prefix,
                count: 1,
                min_us: 1,
                mean_us: i + 1,
            },
            0,
            HOUR,
        );
    }
    let map = table.compile(0, HOUR, None);
    for i in 0..4_000_u32 {
        assert_eq!(
            map.find(IpAddr::from((i << 16 | 5).to_be_bytes())),
            Some(&[i + 1, UNMEASURED][..])
        );
        assert_eq!(
            map.find(IpAddr::from((i << 16 | 0x8000).to_be_bytes())),
            None
        );
    }
    assert_eq!(RttMap::default().find(ip("192.0.2.1")), None);
}
