//! What a few lying nodes can do to steering by time: seeded fleets of honest nodes, and what
//! changes when some of them lie.

use nearcast_fleet::random::Random;

use super::super::fixture::{self, cluster, node, site};
use super::super::location::Location;
use super::super::plan::distance_km;
use super::*;

const NOW: u64 = 1_000_000;
/// Prefixes that everything is about: as many as one report names.
const PREFIXES: usize = 4_000;

/// Amsterdam, New York, Singapore and, where `is_alone`, a cluster of one node in São Paulo; three
/// nodes in each of the others.
fn fleet(is_alone: bool) -> Fleet {
    let nodes = |name: &str, net: u8, count: u8| {
        (1..=count)
            .map(|n| node(&format!("{name}-{n}"), &[&format!("127.0.{net}.{n}")]))
            .collect()
    };
    let mut clusters = vec![
        cluster("ams", 52.37, 4.9, 1, nodes("ams", 10, 3)),
        cluster("nyc", 40.71, -74.01, 1, nodes("nyc", 20, 3)),
        cluster("sin", 1.35, 103.82, 1, nodes("sin", 30, 3)),
    ];
    if is_alone {
        clusters.push(cluster("gru", -23.55, -46.63, 1, nodes("gru", 40, 1)));
    }
    let all: Vec<usize> = (0..clusters.len()).collect();
    let mut fleet = Fleet {
        clusters,
        sites: vec![site("rtt", SelectionPolicy::Rtt, &all)],
        ..fixture::fleet()
    };
    fleet.steering.rtt_bound = true;
    fleet
}

/// A client network: what each cluster would measure to it, in microseconds.
struct Network {
    prefix: ipnet::IpNet,
    times: Vec<u32>,
    nearest: usize,
}

/// Networks all over the earth, as the built-in table places them. Their way is somewhat longer
/// than light's, and their last mile takes some milliseconds, seldom many.
fn networks(fleet: &Fleet, random: &mut Random) -> Vec<Network> {
    let atlas = location::Atlas::built_in();
    let mut found = Vec::new();
    while found.len() < PREFIXES {
        let address = IpAddr::from(((random.bits() as u32) & 0xffff_ff00).to_be_bytes());
        let Some(place) = atlas
            .location(atlas.find(address).0)
            .map(Location::position)
        else {
            continue;
        };
        let last_mile = 1_000.0 - 8_000.0 * (1.0 - random.unit()).ln();
        let km: Vec<f64> = fleet
            .clusters
            .iter()
            .map(|c| distance_km(place, (c.place.latitude, c.place.longitude)))
            .collect();
        let times = km
            .iter()
            .map(|km| (last_mile + km * 10.0 * (1.2 + 0.4 * random.unit())) as u32)
            .collect();
        let nearest = (0..km.len())
            .min_by(|a, b| km[*a].total_cmp(&km[*b]))
            .expect("clusters");
        found.push(Network {
            prefix: ipnet::IpNet::new(address, 24).expect("a prefix"),
            times,
            nearest,
        });
    }
    found
}

fn sample(network: &Network, us: u32) -> RttSample {
    RttSample {
        prefix: network.prefix,
        count: 8,
        min_us: us.max(1),
        mean_us: us.max(1),
    }
}

/// What honest nodes report: those of the nearest cluster most of its networks, the others a few of
/// all.
fn honest(
    fleet: &Fleet,
    networks: &[Network],
    liars: &[&str],
    random: &mut Random,
) -> Vec<RttReport> {
    let mut reports = Vec::new();
    for (index, cluster) in fleet.clusters.iter().enumerate() {
        for node in &cluster.nodes {
            let mut samples = Vec::new();
            for network in networks {
                let seen = if network.nearest == index { 0.8 } else { 0.05 };
                let us = f64::from(network.times[index]) * (0.95 + 0.1 * random.unit());
                if random.unit() < seen {
                    samples.push(sample(network, us as u32));
                }
            }
            if !liars.contains(&node.name.as_str()) {
                reports.push(RttReport {
                    node: node.name.clone(),
                    samples,
                    ..RttReport::default()
                });
            }
        }
    }
    reports
}

fn decided(fleet: &Fleet, networks: &[Network], reports: &[RttReport]) -> (Vec<usize>, Steering) {
    let steering = Steering::new(
        fixture::served(fleet.clone()),
        location::Atlas::built_in(),
        0,
    );
    for report in reports {
        steering
            .take_report(report, NOW)
            .expect("a node of the fleet");
    }
    steering.tick(NOW + 1);
    let client = |network: &Network| ClientPrefix {
        address: network.prefix.addr(),
        source_prefix: 24,
        from_ecs: true,
    };
    let clusters = networks
        .iter()
        .map(|n| {
            steering
                .snapshot()
                .select(0, &client(n), Family::V4, STEADY)
                .cluster
        })
        .collect();
    (clusters, steering)
}

/// A fleet of which some nodes lie, and what would be given if they said nothing.
struct Trial<'a> {
    fleet: &'a Fleet,
    liars: &'a [&'a str],
    networks: Vec<Network>,
    truth: Vec<RttReport>,
    before: Vec<usize>,
}

impl<'a> Trial<'a> {
    fn new(seed: u64, fleet: &'a Fleet, liars: &'a [&'a str]) -> Self {
        let mut random = Random::new(seed);
        let networks = networks(fleet, &mut random);
        let truth = honest(fleet, &networks, liars, &mut random);
        let (before, _) = decided(fleet, &networks, &truth);
        Self {
            fleet,
            liars,
            networks,
            truth,
            before,
        }
    }

    /// How many networks are given another cluster, and how many of the lies are dropped.
    fn moved(&self, lie: impl Fn(usize, &Network) -> Option<u32>) -> (usize, u64) {
        let lies = self.liars.iter().map(|liar| {
            let is_of =
                |c: &nearcast_fleet::config::Cluster| c.nodes.iter().any(|n| n.name == *liar);
            let cluster = self
                .fleet
                .clusters
                .iter()
                .position(is_of)
                .expect("a node of the fleet");
            let samples = self
                .networks
                .iter()
                .filter_map(|network| Some(sample(network, lie(cluster, network)?)))
                .collect();
            RttReport {
                node: (*liar).to_owned(),
                samples,
                ..RttReport::default()
            }
        });
        let all: Vec<RttReport> = lies.chain(self.truth.iter().cloned()).collect();
        let (after, steering) = decided(self.fleet, &self.networks, &all);
        let dropped = steering
            .state()
            .rtt
            .dropped()
            .filter(|(node, _)| self.liars.contains(node))
            .map(|(_, count)| count)
            .sum();
        (
            self.before
                .iter()
                .zip(&after)
                .filter(|(a, b)| a != b)
                .count(),
            dropped,
        )
    }
}

#[test]
fn a_minority_of_liars_moves_next_to_nobody() {
    let most = PREFIXES / 100;
    let three = ["ams-1", "nyc-2", "sin-3"];
    for seed in [1, 20_261_127] {
        for (is_alone, liars) in [
            (false, &three[..1]),
            (false, &three[..]),
            (true, &["gru-1"][..]),
            (true, &["gru-1", "ams-1"][..]),
        ] {
            let fleet = fleet(is_alone);
            let between = |a: usize, b: usize| {
                let place = |i: usize| {
                    (
                        fleet.clusters[i].place.latitude,
                        fleet.clusters[i].place.longitude,
                    )
                };
                distance_km(place(a), place(b)) * 10.0
            };
            let trial = Trial::new(seed, &fleet, liars);
            let (count, dropped) = trial.moved(|_, _| Some(1));
            assert!(
                count < most,
                "{count} moved by one microsecond: seed {seed}, {liars:?}"
            );
            assert!(dropped > 1_000, "{dropped} dropped: seed {seed}, {liars:?}");
            let (count, _) = trial.moved(|_, _| Some(300_000));
            assert!(
                count < most,
                "{count} moved by long times: seed {seed}, {liars:?}"
            );
            let (count, _) = trial.moved(|cluster, n| {
                (n.nearest == cluster).then_some(2 * n.times[cluster] + 25_000)
            });
            assert!(
                count < most,
                "{count} moved by somewhat longer times: seed {seed}, {liars:?}"
            );
            // No less than light allows beside what the nearest cluster measures.
            let (count, _) = trial.moved(|cluster, n| {
                Some(
                    (between(cluster, n.nearest) - f64::from(n.times[n.nearest])).max(1_000.0)
                        as u32
                        + 100,
                )
            });
            assert!(
                count < most,
                "{count} moved by times at the bound: seed {seed}, {liars:?}"
            );
        }
    }
}

#[test]
fn a_report_about_networks_that_nobody_has_measured_moves_none() {
    let fleet = fleet(false);
    let mut random = Random::new(7);
    let networks = networks(&fleet, &mut random);
    let lies = RttReport {
        node: "sin-1".into(),
        samples: networks.iter().map(|n| sample(n, 1)).collect(),
        ..RttReport::default()
    };
    let (before, _) = decided(&fleet, &networks, &[]);
    let (after, _) = decided(&fleet, &networks, std::slice::from_ref(&lies));
    assert_eq!(before, after);
    let mut laboratory = fleet;
    laboratory.steering.rtt_bound = false;
    let (drawn, _) = decided(&laboratory, &networks, &[lies]);
    assert!(
        before.iter().zip(&drawn).filter(|(a, b)| a != b).count() > PREFIXES / 4,
        "without the bound it draws clients away"
    );
}

#[test]
fn a_place_that_is_wrong_is_mended_by_what_two_clusters_measure() {
    let fleet = fleet(false);
    let mut random = Random::new(3);
    let networks = networks(&fleet, &mut random);
    // They are said to be close to Amsterdam, and are in New York.
    let wrong: Vec<&Network> = networks
        .iter()
        .filter(|n| n.nearest == 0 && n.times[0] < 20_000)
        .take(200)
        .collect();
    let report = |node: &str, us: u32| RttReport {
        node: node.into(),
        samples: wrong.iter().map(|n| sample(n, us)).collect(),
        ..RttReport::default()
    };
    let (_, steering) = decided(
        &fleet,
        &networks,
        &[report("ams-1", 85_000), report("nyc-1", 9_000)],
    );
    for network in &wrong {
        let client = ClientPrefix {
            address: network.prefix.addr(),
            source_prefix: 24,
            from_ecs: true,
        };
        let choice = steering.snapshot().select(0, &client, Family::V4, STEADY);
        assert_eq!(
            (choice.cluster, choice.reason),
            (1, Reason::Rtt),
            "{}",
            network.prefix
        );
    }
}

#[test]
fn one_that_floods_pushes_out_its_own() {
    let fleet = fleet(false);
    let mut table = RttTable::new(Topology::of(&fleet));
    let network = |n: u32| RttSample {
        prefix: ipnet::IpNet::new(IpAddr::from((n << 8).to_be_bytes()), 24).expect("a prefix"),
        count: 1,
        min_us: 1,
        mean_us: 9_000,
    };
    let hour = 3_600_000;
    (0..2_000).for_each(|n| assert!(table.add("ams-1", &network(n), NOW, hour)));
    (10_000..10_000 + 2 * rtt::PREFIXES_MAX as u32)
        .for_each(|n| assert!(table.add("nyc-1", &network(n), NOW + 1, hour)));
    let kept = (0..2_000)
        .filter(|n: &u32| {
            table
                .measured(IpAddr::from((n << 8).to_be_bytes()), 0)
                .is_some()
        })
        .count();
    assert_eq!(kept, 2_000, "what others have measured stays");
}

#[test]
fn nothing_new_is_not_compiled_again() {
    let steering = Steering::new(
        fixture::served(fleet(false)),
        location::Atlas::built_in(),
        0,
    );
    let sample = RttSample {
        prefix: "198.51.100.0/24".parse().expect("a prefix"),
        count: 1,
        min_us: 1,
        mean_us: 9_000,
    };
    let report = RttReport {
        node: "ams-1".into(),
        samples: vec![sample],
        ..RttReport::default()
    };
    steering.take_report(&report, NOW).expect("taken");
    steering.tick(NOW + 1);
    let compiled = steering.state().rtt_map.clone();
    assert_eq!(compiled.prefixes, 1);
    let max_age_ms = steering.state().fleet.steering.rtt_max_age.as_millis() as u64;
    for later in [250, 1_000, 60_000, max_age_ms] {
        steering.tick(NOW + later);
        assert!(
            Arc::ptr_eq(&compiled, &steering.state().rtt_map),
            "nothing is new after {later} ms"
        );
    }
    steering.tick(NOW + max_age_ms + 1);
    assert_eq!(steering.state().rtt_map.prefixes, 0, "too old");
    let empty = steering.state().rtt_map.clone();
    steering.tick(NOW + 10 * max_age_ms);
    assert!(Arc::ptr_eq(&empty, &steering.state().rtt_map));
}
