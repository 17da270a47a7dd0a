//! Spill over time: the server's own steering, driven by simulated resolvers, clients and edges.
//! Seeded; nothing here waits.

use super::*;

/// Seconds.
const TTL: u64 = 20;
/// Milliseconds between two steps.
const STEP_MS: u64 = 1_000;
/// Bits a second of one cluster.
const CAPACITY: f64 = 4e6;

/// What a resolver was answered, and until when it keeps that.
#[derive(Clone)]
struct RetainedShare {
    network: u32,
    length: u8,
    ends_ms: u64,
    /// Numbers of nodes.
    given: Arc<[usize]>,
}

/// A client network, its demand in bits a second, and the answer that it uses.
struct Client {
    address: IpAddr,
    demand: f64,
    uses: Option<RetainedShare>,
}

/// A resolver that sends its clients' subnets, with its cache.
struct Resolver {
    clients: Vec<Client>,
    cache: Vec<RetainedShare>,
}

/// A node: address, name, cluster, capacity in bits a second, and bits sent since its last report.
struct Edge {
    address: IpAddr,
    name: String,
    cluster: usize,
    capacity: f64,
    sent: f64,
}

fn bits(address: IpAddr, length: u8) -> u32 {
    let IpAddr::V4(ip) = address else {
        panic!("only IPv4 here")
    };
    u32::from(ip) & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

/// A world of three clusters with clients at home in each.
struct World {
    steering: Steering,
    resolvers: Vec<Resolver>,
    /// The one that sends no subnet, as its only client.
    plain: Client,
    edges: Vec<Edge>,
    random: u64,
    now_ms: u64,
    /// All demand is multiplied by this.
    scale: f64,
    /// Whether resolvers send subnets.
    subnets: bool,
}

const BEGINS_MS: u64 = 1_000_000;

impl World {
    /// Demand at home of each cluster and of the resolver without subnets, as parts of a cluster's
    /// capacity.
    fn new(seed: u64, demand: [f64; 3], plain: f64) -> Self {
        let mut fleet = fixture::fleet();
        fleet.steering.ramp = Duration::from_secs(30);
        // Two nodes that are alike, two of which one carries three times as much, and four.
        let parts: [&[f64]; 3] = [&[0.5, 0.5], &[0.25, 0.75], &[0.25; 4]];
        let mut edges = Vec::new();
        for (number, cluster) in fleet.clusters.iter_mut().enumerate() {
            cluster.nodes.clear();
            for (i, part) in parts[number].iter().enumerate() {
                let address = IpAddr::from([127, 0, number as u8 * 10 + 10, i as u8 + 1]);
                let name = format!("{}-{}", cluster.name, i + 1);
                let node = fixture::node(&name, &[&address.to_string()]);
                cluster.nodes.push(Node {
                    capacity_bits: Some((part * CAPACITY) as u64),
                    ..node
                });
                edges.push(Edge {
                    address,
                    name,
                    cluster: number,
                    capacity: part * CAPACITY,
                    sent: 0.0,
                });
            }
        }
        let steering = mapped_on(
            fleet,
            &[
                ("10.0.0.0/12", 52.0, 5.0),
                ("10.16.0.0/12", 41.0, -74.0),
                ("10.32.0.0/12", 1.0, 103.0),
            ],
        );
        let mut world = Self {
            steering,
            resolvers: Vec::new(),
            plain: Client {
                address: [10, 0, 255, 1].into(),
                demand: plain * CAPACITY,
                uses: None,
            },
            edges,
            random: seed,
            now_ms: BEGINS_MS,
            scale: 1.0,
            subnets: true,
        };
        for (cluster, demand) in demand.into_iter().enumerate() {
            // Clients whose demand differs by up to three times, ten behind each resolver.
            let weights: Vec<f64> = (0..3_000).map(|_| 0.5 + world.chance()).collect();
            let sum: f64 = weights.iter().sum();
            for (resolver, weights) in weights.chunks(10).enumerate() {
                let client = |(i, weight): (usize, &f64)| {
                    let number = resolver * 10 + i;
                    let address = [
                        10,
                        (cluster * 16 + number / 256) as u8,
                        (number % 256) as u8,
                        0,
                    ];
                    Client {
                        address: address.into(),
                        demand: demand * CAPACITY * weight / sum,
                        uses: None,
                    }
                };
                world.resolvers.push(Resolver {
                    clients: weights.iter().enumerate().map(client).collect(),
                    cache: Vec::new(),
                });
            }
        }
        world
    }

    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(1);
        mix(self.random)
    }

    fn chance(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// What steering answers now. The first answers are of all ages.
    fn ask(&mut self, client: &ClientPrefix) -> RetainedShare {
        let random = self.draw();
        let age_ms = if self.now_ms == BEGINS_MS {
            self.draw() % (TTL * 1_000)
        } else {
            0
        };
        let choice = self
            .steering
            .snapshot()
            .select(GEO, client, Family::V4, random);
        let number = |address: &IpAddr| {
            self.edges
                .iter()
                .position(|e| e.address == *address)
                .unwrap()
        };
        RetainedShare {
            network: bits(client.address, choice.scope_prefix),
            length: choice.scope_prefix,
            ends_ms: self.now_ms + u64::from(choice.ttl) * 1_000 - age_ms,
            given: choice.addresses.iter().map(number).collect(),
        }
    }

    /// One step of everything. Gives each node's load, bits a second.
    fn step(&mut self) -> Vec<f64> {
        let mut loads = vec![0.0; self.edges.len()];
        let now_ms = self.now_ms;
        let is_old =
            |kept: &Option<RetainedShare>| kept.as_ref().is_none_or(|k| k.ends_ms <= now_ms);
        let mut resolvers = std::mem::take(&mut self.resolvers);
        for Resolver { clients, cache } in &mut resolvers {
            cache.retain(|kept| kept.ends_ms > now_ms);
            for client in clients {
                if is_old(&client.uses) {
                    let covering = cache
                        .iter()
                        .filter(|kept| bits(client.address, kept.length) == kept.network);
                    let longest = covering.max_by_key(|kept| kept.length).cloned();
                    client.uses = longest.or_else(|| {
                        let mut asked = ClientPrefix {
                            address: client.address,
                            source_prefix: 24,
                            from_ecs: true,
                        };
                        if !self.subnets {
                            // One answer for all of the resolver's clients, whose network it is in.
                            asked.from_ecs = false;
                        }
                        let mut answer = self.ask(&asked);
                        if !self.subnets {
                            (answer.network, answer.length) = (0, 0);
                        }
                        cache.push(answer);
                        cache.last().cloned()
                    });
                }
                // Half of the clients take the first address, the others any.
                let given = &client.uses.as_ref().unwrap().given;
                let half = client.demand * self.scale / 2.0;
                loads[given[0]] += half;
                given
                    .iter()
                    .for_each(|n| loads[*n] += half / given.len() as f64);
            }
        }
        self.resolvers = resolvers;
        if is_old(&self.plain.uses) {
            self.plain.uses = Some(self.ask(&ClientPrefix::host(self.plain.address)));
        }
        // It gives the addresses of its one answer in turn.
        let given = &self.plain.uses.as_ref().unwrap().given;
        given
            .iter()
            .for_each(|n| loads[*n] += self.plain.demand * self.scale / given.len() as f64);
        self.now_ms += STEP_MS;
        // Each node reports every two seconds, half of them in between the others.
        for (number, (edge, load)) in self.edges.iter_mut().zip(&loads).enumerate() {
            edge.sent += load * STEP_MS as f64 / 1_000.0;
            if self.now_ms / STEP_MS % 2 == number as u64 % 2 {
                let egress_bits = std::mem::take(&mut edge.sent) / 2.0;
                self.steering
                    .take_report(&report(&edge.name, egress_bits as u64, &[]), self.now_ms)
                    .unwrap();
            }
        }
        self.steering.tick(self.now_ms);
        loads
    }

    /// Runs for some seconds. Gives the loads of each cluster over time and the largest of a node,
    /// all as parts of a capacity, the latter of its cluster's mean.
    fn run(&mut self, seconds: u64) -> (Vec<[f64; 3]>, f64) {
        let mut clusters = Vec::new();
        let mut fullest: f64 = 0.0;
        for _ in 0..seconds * 1_000 / STEP_MS {
            let loads = self.step();
            let mut sums = [0.0; 3];
            self.edges
                .iter()
                .zip(&loads)
                .for_each(|(edge, load)| sums[edge.cluster] += load / CAPACITY);
            for (edge, load) in self.edges.iter().zip(&loads) {
                fullest = fullest.max(load / edge.capacity / sums[edge.cluster]);
            }
            clusters.push(sums);
        }
        (clusters, fullest)
    }
}

fn range(series: &[[f64; 3]], cluster: usize) -> (f64, f64) {
    let values = series.iter().map(|s| s[cluster]);
    (
        values.clone().fold(f64::MAX, f64::min),
        values.fold(0.0, f64::max),
    )
}

const SEEDS: [u64; 3] = [1, 7_001, 90_001];

#[test]
fn a_surplus_spills_in_proportion_and_does_not_swing() {
    for seed in SEEDS {
        // 1.2 of what Amsterdam can carry, three tenths of it behind one resolver without client
        // subnets.
        let mut world = World::new(seed, [0.84, 0.3, 0.2], 0.36);
        world.scale = 0.75;
        let (calm, _) = world.run(120);
        let settled = calm.last().unwrap();
        assert!(
            (settled[0] - 0.9).abs() < 0.01,
            "seed {seed}: below its target it keeps all: {settled:?}"
        );
        world.scale = 1.0;
        let (_, _) = world.run(2 * TTL);
        let (steady, fullest) = world.run(10 * TTL);
        let (least, most) = range(&steady, 0);
        assert!(
            most <= 1.0,
            "seed {seed}: {most} of capacity after two TTLs"
        );
        assert!(
            most - least <= 0.05,
            "seed {seed}: swings between {least} and {most}"
        );
        assert!(
            least >= 0.90,
            "seed {seed}: no more than the surplus goes: {least}"
        );
        assert!(
            fullest <= 1.1,
            "seed {seed}: a node carries {fullest} of its cluster's mean"
        );
        let (_, next) = range(&steady, 1);
        let (_, far) = range(&steady, 2);
        assert!(
            next > 0.5 && (far - 0.2).abs() < 0.01,
            "seed {seed}: to the nearest that has room: {next}, {far}"
        );
        world.scale = 0.7;
        let (_, _) = world.run(15 * TTL);
        let (home, _) = world.run(TTL);
        assert!(
            (range(&home, 0).0 - 0.84).abs() < 0.01,
            "seed {seed}: everybody is back when there is room"
        );
    }
}

#[test]
fn when_there_is_more_than_all_can_carry_all_are_equally_full() {
    for seed in SEEDS {
        // 3.6 of three, three tenths of it behind one resolver without client subnets.
        let mut world = World::new(seed, [1.32, 0.8, 0.4], 1.08);
        let (_, _) = world.run(15 * TTL);
        let (steady, fullest) = world.run(10 * TTL);
        for cluster in 0..3 {
            let (least, most) = range(&steady, cluster);
            assert!(
                least >= 1.14 && most <= 1.26,
                "seed {seed}, cluster {cluster}: between {least} and {most}"
            );
            assert!(
                most - least <= 0.06,
                "seed {seed}, cluster {cluster}: swings between {least} and {most}"
            );
        }
        assert!(
            fullest <= 1.1,
            "seed {seed}: a node carries {fullest} of its cluster's mean"
        );
    }
}

#[test]
fn a_full_cluster_gives_on_what_comes_from_another() {
    for seed in SEEDS {
        // Amsterdam gives to New York more than it has room for; the rest goes on to Singapore.
        let mut world = World::new(seed, [1.5, 0.7, 0.1], 0.0);
        let (_, _) = world.run(10 * TTL);
        let (steady, _) = world.run(5 * TTL);
        for (cluster, expected) in [0.95, 0.95, 0.4].into_iter().enumerate() {
            let (least, most) = range(&steady, cluster);
            assert!(
                (least - expected).abs() < 0.05 && (most - expected).abs() < 0.05,
                "seed {seed}, {cluster}: {least} to {most}"
            );
        }
    }
}

#[test]
fn without_any_subnet_resolvers_move_as_clients_do() {
    for seed in SEEDS {
        let mut world = World::new(seed, [1.2, 0.3, 0.2], 0.0);
        world.subnets = false;
        let (_, _) = world.run(12 * TTL);
        let (steady, _) = world.run(10 * TTL);
        let (least, most) = range(&steady, 0);
        assert!(
            most <= 1.0 && least >= 0.9,
            "seed {seed}: between {least} and {most}"
        );
    }
}

#[test]
fn resolvers_without_subnets_take_part_where_there_is_nobody_else() {
    // Nothing can move but the answers of one resolver: over time it brings each cluster what fits.
    let mut world = World::new(3, [0.01, 0.01, 0.01], 1.3);
    let (_, _) = world.run(12 * TTL);
    let (series, _) = world.run(30 * TTL);
    let mean = series.iter().map(|s| s[0]).sum::<f64>() / series.len() as f64;
    assert!((0.5..=1.1).contains(&mean), "{mean}");
    assert!(range(&series, 1).1 > 1.0, "the others have their turns");
}
