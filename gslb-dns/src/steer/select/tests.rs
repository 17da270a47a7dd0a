use super::*;
use Availability::{Down as D, Full as F, NoAddress as X, Open as O};

/// Three clusters a thousand kilometres apart eastwards on the equator, with that availability;
/// weights 1, 3 and 4.
fn clusters(availabilities: [Availability; 3]) -> Vec<ClusterState> {
    let one = |(i, availability): (usize, Availability)| {
        let all = vec![IpAddr::from([192, 0, 2, i as u8])];
        let when = |yes: bool| if yes { all.clone() } else { Vec::new() };
        let pool = Pool {
            all: when(availability != X),
            up: when(matches!(availability, F | O)),
            weights: Vec::new(),
        };
        // One that is full is so full that it takes nobody.
        let part = if availability == F { 0 } else { WHOLE };
        ClusterState {
            v4: pool,
            weight: [1, 3, 4][i],
            position: (0.0, i as f64 * 8.993),
            full: availability == F,
            by_prefix: part,
            by_chance: part,
            salt: mix(i as u64),
            ..ClusterState::default()
        }
    };
    availabilities.into_iter().enumerate().map(one).collect()
}

fn inputs(policy: SelectionPolicy, clusters: &[ClusterState]) -> Inputs<'_> {
    Inputs {
        policy,
        clusters,
        order: &[0, 1, 2],
        placed: true,
        here: Some((0.0, 0.0)),
        rtt: None,
        family: Family::V4,
        explore_below: 0,
        turn: 0,
        random: 0,
        is_shared: clusters.iter().any(|c| !c.takes_all()),
        grain: 7,
        has_subnet: true,
    }
}

#[test]
fn standings_give_the_first_that_may_be_given() {
    let table = [
        ([O, O, O], Some(0), Reason::Geo),
        ([D, O, O], Some(1), Reason::Failover),
        ([F, O, O], Some(1), Reason::Spill),
        ([F, D, O], Some(2), Reason::Spill),
        ([D, F, O], Some(2), Reason::Failover),
        ([O, D, F], Some(0), Reason::Geo),
        ([X, O, O], Some(1), Reason::Geo),
        ([X, D, O], Some(2), Reason::Failover),
        ([D, F, F], Some(1), Reason::AllFull),
        ([F, F, D], Some(0), Reason::AllFull),
        ([D, D, D], Some(0), Reason::AllDown),
        ([X, D, D], Some(1), Reason::AllDown),
        ([X, X, X], None, Reason::NoAddress),
    ];
    for (availabilities, cluster, reason) in table {
        let clusters = clusters(availabilities);
        assert_eq!(
            decide(&inputs(SelectionPolicy::Geo, &clusters)),
            Decision { cluster, reason },
            "{availabilities:?}"
        );
        let unplaced = Inputs {
            placed: false,
            here: None,
            ..inputs(SelectionPolicy::Geo, &clusters)
        };
        let reason = if reason == Reason::Geo {
            Reason::Unplaced
        } else {
            reason
        };
        assert_eq!(
            decide(&unplaced),
            Decision { cluster, reason },
            "{availabilities:?} without a place"
        );
    }
}

#[test]
fn the_family_asked_for_counts() {
    let mut clusters = clusters([O, O, O]);
    let v6 = vec!["2001:db8::1".parse().unwrap()];
    clusters[2].v6 = Pool {
        all: v6.clone(),
        up: v6,
        weights: Vec::new(),
    };
    let asked = Inputs {
        family: Family::V6,
        ..inputs(SelectionPolicy::Geo, &clusters)
    };
    assert_eq!(
        decide(&asked),
        Decision {
            cluster: Some(2),
            reason: Reason::Geo
        }
    );
}

#[test]
fn serving_prefers_nodes_that_are_up() {
    let address = |last| IpAddr::from([192, 0, 2, last]);
    let mut state = ClusterState::default();
    assert!(state.serving(Family::V4).0.is_empty());
    state.v4.all = vec![address(1), address(2), address(3)];
    assert_eq!(state.serving(Family::V4).0.len(), 3);
    state.v4.up = vec![address(2), address(3)];
    assert_eq!(state.serving(Family::V4).0, [address(2), address(3)]);
}

/// How many of 10,000 clients are given each cluster, and for what reasons.
fn spread(
    clusters: &[ClusterState],
    by_prefix: bool,
) -> ([i32; 3], std::collections::BTreeSet<Reason>) {
    let mut counts = [0; 3];
    let mut reasons = std::collections::BTreeSet::new();
    for client in 0..10_000_u64 {
        let random = if by_prefix { 0 } else { mix(client ^ 1 << 60) };
        let asked = inputs(SelectionPolicy::Geo, clusters);
        let decision = decide(&Inputs {
            grain: client << 20,
            has_subnet: by_prefix,
            random,
            ..asked
        });
        counts[usize::from(decision.cluster.unwrap())] += 1;
        reasons.insert(decision.reason);
    }
    (counts, reasons)
}

#[test]
fn shares_are_met_and_what_is_left_goes_on_to_the_next() {
    let half = WHOLE / 2;
    let quarter = WHOLE / 4;
    // Standings, shares, and the clients of each in thousands.
    let table = [
        (
            [O, O, O],
            [WHOLE, WHOLE, WHOLE],
            [10, 0, 0],
            vec![Reason::Geo],
        ),
        (
            [F, O, O],
            [half, WHOLE, WHOLE],
            [5, 5, 0],
            vec![Reason::Geo, Reason::Spill],
        ),
        (
            [F, F, O],
            [half, half, WHOLE],
            [5, 2, 3],
            vec![Reason::Geo, Reason::Spill],
        ),
        (
            [F, D, O],
            [half, WHOLE, WHOLE],
            [5, 0, 5],
            vec![Reason::Geo, Reason::Spill],
        ),
        // Those that return, alone or after one that is down.
        (
            [O, O, O],
            [quarter, WHOLE, WHOLE],
            [2, 8, 0],
            vec![Reason::Geo, Reason::Failover],
        ),
        (
            [D, O, O],
            [WHOLE, half, WHOLE],
            [0, 5, 5],
            vec![Reason::Failover],
        ),
        // Shares count by the largest, so that somebody takes every client.
        (
            [O, D, D],
            [quarter, WHOLE, WHOLE],
            [10, 0, 0],
            vec![Reason::Geo],
        ),
        (
            [O, D, O],
            [quarter, WHOLE, quarter],
            [10, 0, 0],
            vec![Reason::Geo],
        ),
        (
            [F, F, F],
            [quarter, half, half],
            [5, 5, 0],
            vec![Reason::AllFull],
        ),
    ];
    for (availabilities, shares, thousands, reasons) in table {
        let mut clusters = clusters(availabilities);
        for (cluster, share) in clusters.iter_mut().zip(shares) {
            (cluster.by_prefix, cluster.by_chance) = (share, share);
        }
        for by_prefix in [true, false] {
            let (counts, why) = spread(&clusters, by_prefix);
            let near = counts
                .iter()
                .zip(thousands)
                .all(|(got, want)| (got - want * 1_000).abs() <= 650);
            assert!(
                near,
                "{availabilities:?} {shares:?} by prefix {by_prefix}: {counts:?}"
            );
            assert!(
                why.iter().eq(&reasons),
                "{availabilities:?} {shares:?}: {why:?}"
            );
        }
    }
}

#[test]
fn most_resolvers_stay_and_those_at_the_edge_of_the_share_are_divided_over_time() {
    let mut clusters = clusters([F, O, O]);
    (clusters[0].by_prefix, clusters[0].by_chance) = (WHOLE, WHOLE / 2);
    let kept = |grain: u64| {
        let asked = |i| Inputs {
            grain,
            has_subnet: false,
            random: mix(i),
            ..inputs(SelectionPolicy::Geo, &clusters)
        };
        (0..200)
            .filter(|i| decide(&asked(*i)).cluster == Some(0))
            .count()
    };
    let counts: Vec<usize> = (0..1_000).map(kept).collect();
    let divided = counts.iter().filter(|n| **n > 0 && **n < 200).count();
    assert!((150..350).contains(&divided), "{divided} of 1,000");
    let sum: usize = counts.iter().sum();
    assert!((92_000..108_000).contains(&sum), "{sum} of 200,000");
}

#[test]
fn a_prefix_stays_where_it_is_while_its_share_grows() {
    let mut clusters = clusters([F, O, O]);
    let given = |clusters: &[ClusterState], client: u64| {
        decide(&Inputs {
            grain: client,
            ..inputs(SelectionPolicy::Geo, clusters)
        })
        .cluster
            == Some(0)
    };
    let mut before = vec![false; 1_000];
    for step in 0..=16 {
        clusters[0].by_prefix = ((u64::from(WHOLE) * step) >> 4) as u32;
        let now: Vec<bool> = (0..1_000).map(|client| given(&clusters, client)).collect();
        assert!(
            before
                .iter()
                .zip(&now)
                .all(|(before, now)| *now || !*before),
            "step {step}"
        );
        before = now;
    }
    assert!(before.iter().all(|kept| *kept));
}

#[test]
fn times_rank_and_distance_stands_in_for_them() {
    const N: u32 = UNMEASURED;
    // Guesses: 20 ms here, 40 ms and 60 ms in the other two.
    type Case = (&'static str, [u32; 3], [Availability; 3], u16, Reason);
    let table: [Case; 12] = [
        (
            "least time",
            [50_000, 10_000, 30_000],
            [O, O, O],
            1,
            Reason::Rtt,
        ),
        (
            "the nearest when it is also quickest",
            [9_000, 30_000, 30_000],
            [O, O, O],
            0,
            Reason::Rtt,
        ),
        (
            "nearly equal times go by distance",
            [10_400, 10_000, 30_000],
            [O, O, O],
            0,
            Reason::Rtt,
        ),
        (
            "but not at any time",
            [10_900, 10_000, 30_000],
            [O, O, O],
            1,
            Reason::Rtt,
        ),
        (
            "one quick measurement draws",
            [N, 15_000, N],
            [O, O, O],
            1,
            Reason::Rtt,
        ),
        (
            "one slow measurement does not",
            [N, N, 200_000],
            [O, O, O],
            0,
            Reason::Geo,
        ),
        (
            "a nearest one known to be slow is left",
            [300_000, N, N],
            [O, O, O],
            1,
            Reason::Geo,
        ),
        (
            "quickest down",
            [50_000, 10_000, 30_000],
            [O, D, O],
            2,
            Reason::Failover,
        ),
        (
            "quickest full",
            [50_000, 10_000, 30_000],
            [O, F, O],
            2,
            Reason::Spill,
        ),
        (
            "quickest of the full ones",
            [50_000, 10_000, 30_000],
            [F, D, F],
            2,
            Reason::AllFull,
        ),
        (
            "quickest of those that are down",
            [50_000, 10_000, 30_000],
            [D, D, D],
            1,
            Reason::AllDown,
        ),
        (
            "no address",
            [50_000, 10_000, 30_000],
            [O, X, O],
            2,
            Reason::Rtt,
        ),
    ];
    for (name, row, availabilities, cluster, reason) in table {
        let clusters = clusters(availabilities);
        let asked = Inputs {
            rtt: Some(&row),
            ..inputs(SelectionPolicy::Rtt, &clusters)
        };
        assert_eq!(
            decide(&asked),
            Decision {
                cluster: Some(cluster),
                reason
            },
            "{name}"
        );
    }
    let clusters = clusters([O, O, O]);
    let plain = inputs(SelectionPolicy::Rtt, &clusters);
    assert_eq!(
        decide(&plain).reason,
        Reason::Geo,
        "nothing measured, place known"
    );
    assert_eq!(
        decide(&Inputs {
            placed: false,
            here: None,
            ..plain
        })
        .reason,
        Reason::Unplaced
    );
    let row = [N, N, 90_000];
    let unplaced = Inputs {
        placed: false,
        here: None,
        rtt: Some(&row),
        ..plain
    };
    assert_eq!(
        decide(&unplaced),
        Decision {
            cluster: Some(2),
            reason: Reason::Rtt
        },
        "without a place what is measured comes first"
    );
}

#[test]
fn a_share_explores_the_second_best() {
    let row = [50_000, 10_000, 30_000];
    let share = u32::MAX / 100;
    let all = clusters([O, O, O]);
    let asked = |random: u64| Inputs {
        rtt: Some(&row),
        explore_below: share,
        random,
        ..inputs(SelectionPolicy::Rtt, &all)
    };
    assert_eq!(
        decide(&asked(0)),
        Decision {
            cluster: Some(2),
            reason: Reason::Explore
        }
    );
    assert_eq!(
        decide(&asked(u64::from(share - 1) << 32)).reason,
        Reason::Explore
    );
    assert_eq!(
        decide(&asked(u64::from(share) << 32)),
        Decision {
            cluster: Some(1),
            reason: Reason::Rtt
        }
    );
    let unmeasured = Inputs {
        rtt: None,
        ..asked(0)
    };
    assert_eq!(
        decide(&unmeasured),
        Decision {
            cluster: Some(1),
            reason: Reason::Explore
        },
        "the second by distance"
    );
    let one_left = clusters([D, O, F]);
    let asked = Inputs {
        clusters: &one_left,
        ..asked(0)
    };
    assert_eq!(
        decide(&asked),
        Decision {
            cluster: Some(1),
            reason: Reason::Rtt
        },
        "never a full one or one that is down"
    );
}

#[test]
fn weights_are_met_among_those_that_are_open() {
    let shares = |availabilities: [Availability; 3], weights: Option<u32>| {
        let mut clusters = clusters(availabilities);
        if let Some(weight) = weights {
            clusters.iter_mut().for_each(|c| c.weight = weight);
        }
        let mut counts = [0; 3];
        let mut reasons = std::collections::BTreeSet::new();
        for step in 0..800_u64 {
            let random = ((step << 32) / 800) << 16;
            let got = decide(&Inputs {
                random,
                ..inputs(SelectionPolicy::Weighted, &clusters)
            });
            counts[usize::from(got.cluster.unwrap())] += 1;
            reasons.insert(got.reason);
        }
        assert_eq!(reasons.len(), 1);
        (counts, reasons.pop_first().unwrap())
    };
    let near =
        |got: [i32; 3], want: [i32; 3]| got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 2);
    for (availabilities, weights, expected, expected_reason) in [
        ([O, O, O], None, [100, 300, 400], Reason::Weighted),
        ([O, D, O], None, [160, 0, 640], Reason::Weighted),
        ([F, O, D], None, [0, 800, 0], Reason::Weighted),
        ([F, F, D], None, [200, 600, 0], Reason::AllFull),
        ([D, D, X], None, [200, 600, 0], Reason::AllDown),
        ([O, O, X], Some(0), [400, 400, 0], Reason::Weighted),
    ] {
        let (counts, reason) = shares(availabilities, weights);
        assert!(near(counts, expected), "{availabilities:?}: {counts:?}");
        assert_eq!(reason, expected_reason, "{availabilities:?}");
    }
    let none = clusters([X, X, X]);
    assert_eq!(
        decide(&inputs(SelectionPolicy::Weighted, &none)),
        Decision {
            cluster: None,
            reason: Reason::NoAddress
        }
    );
}

#[test]
fn turns_go_round_those_that_are_open() {
    for (availabilities, expected) in [
        ([O, O, O], [0, 1, 2, 0, 1]),
        ([O, D, O], [0, 2, 0, 2, 0]),
        ([D, O, F], [1, 1, 1, 1, 1]),
    ] {
        let clusters = clusters(availabilities);
        for (turn, cluster) in expected.into_iter().enumerate() {
            let asked = Inputs {
                turn: turn as u64,
                ..inputs(SelectionPolicy::RoundRobin, &clusters)
            };
            assert_eq!(
                decide(&asked),
                Decision {
                    cluster: Some(cluster),
                    reason: Reason::RoundRobin
                },
                "{availabilities:?}"
            );
        }
    }
}

#[test]
fn more_clusters_than_are_ranked_do_no_harm() {
    let one = clusters([O, O, O]).remove(0);
    let many: Vec<ClusterState> = vec![one; RANKED_MAX + 10];
    let order: Vec<u16> = (0..many.len() as u16).collect();
    let mut row = vec![50_000; many.len()];
    row[RANKED_MAX - 1] = 1_000;
    row[RANKED_MAX] = 10;
    let asked = Inputs {
        order: &order,
        rtt: Some(&row),
        ..inputs(SelectionPolicy::Rtt, &many)
    };
    assert_eq!(
        decide(&asked).cluster,
        Some(RANKED_MAX as u16 - 1),
        "the best of the nearest"
    );
}
