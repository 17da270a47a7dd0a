//! Maps locations to clusters: for each list of clusters that some site uses, the order of its
//! clusters at each location, and the runs of addresses that share an order.
//!
//! Runs are joined by order, not by location: two locations with the same order get the same answer
//! in any state, so a scope may span both.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use nearcast_fleet::config::{Fleet, Place};

use super::location::{Atlas, GRAIN_V6, key_v6};
use super::ranges::Ranges;

/// Mean radius of the Earth.
const EARTH_KM: f64 = 6_371.0;

/// Great-circle distance in kilometres by the haversine formula; arguments in degrees.
pub(super) fn distance_km(a: (f64, f64), b: (f64, f64)) -> f64 {
    let (a_lat, b_lat) = (a.0.to_radians(), b.0.to_radians());
    let half = |x: f64| (x / 2.0).sin().powi(2);
    let h = half(b_lat - a_lat) + a_lat.cos() * b_lat.cos() * half((b.1 - a.1).to_radians());
    2.0 * EARTH_KM * h.clamp(0.0, 1.0).sqrt().asin()
}

/// An order of clusters.
#[derive(Debug, PartialEq, Eq, Hash, Clone)]
pub(super) struct Order {
    /// Indexes into `Fleet::clusters`, best first.
    pub(super) clusters: Box<[u16]>,
    /// Whether it is by distance from a location. Without one the order is by weight, heaviest
    /// first, then as in the file.
    pub(super) placed: bool,
}

/// The plan for one list of clusters.
#[derive(Debug)]
pub(super) struct Orders {
    orders: Vec<Order>,
    /// By location number.
    of_location: Vec<u32>,
    v4: Ranges<u32>,
    /// Order number plus one; 0 where the built-in countries decide.
    v6: Ranges<u64>,
}

/// The plan for a fleet and an atlas. Immutable.
#[derive(Debug)]
pub(super) struct Plan {
    /// The locations of addresses.
    pub(super) atlas: Arc<Atlas>,
    lists: Vec<(Vec<usize>, Orders)>,
    of_site: Vec<usize>,
    positions: Vec<(Place, u32)>,
}

impl Plan {
    /// Computes the plan; takes a while with a large database.
    pub(super) fn new(fleet: &Fleet, atlas: Arc<Atlas>) -> Self {
        let positions = fleet.clusters.iter().map(|c| (c.place, c.weight)).collect();
        let mut plan = Self {
            atlas,
            lists: Vec::new(),
            of_site: Vec::new(),
            positions,
        };
        let mut known: HashMap<&[usize], usize> = HashMap::new();
        for site in &fleet.sites {
            let list = *known.entry(&site.clusters).or_insert_with(|| {
                plan.lists.push((
                    site.clusters.clone(),
                    Orders::new(&site.clusters, &plan.positions, &plan.atlas),
                ));
                plan.lists.len() - 1
            });
            plan.of_site.push(list);
        }
        plan
    }

    /// Whether the plan is valid for this fleet too.
    pub(super) fn fits(&self, fleet: &Fleet, atlas: &Arc<Atlas>) -> bool {
        Arc::ptr_eq(&self.atlas, atlas)
            && self
                .positions
                .iter()
                .copied()
                .eq(fleet.clusters.iter().map(|c| (c.place, c.weight)))
            && self.of_site.len() == fleet.sites.len()
            && fleet
                .sites
                .iter()
                .zip(&self.of_site)
                .all(|(site, list)| self.lists[*list].0 == site.clusters)
    }

    /// The order for an address at a site, and the length of the prefix in which it is the same
    /// throughout.
    pub(super) fn find(&self, site: usize, address: IpAddr) -> Option<(&Order, u8)> {
        let orders = &self.lists[*self.of_site.get(site)?].1;
        let (number, scope) = match address {
            IpAddr::V4(ip) => orders.v4.find(u32::from(ip)),
            IpAddr::V6(ip) => match orders.v6.find(key_v6(ip)) {
                (0, gap) => (
                    orders.of_location[self.atlas.number(address) as usize],
                    gap.max(GRAIN_V6),
                ),
                (number, scope) => (number - 1, scope),
            },
        };
        Some((&orders.orders[number as usize], scope))
    }

    /// The order of a site without a location.
    pub(super) fn unplaced(&self, site: usize) -> Option<&Order> {
        self.lists[*self.of_site.get(site)?].1.orders.first()
    }
}

impl Orders {
    fn new(list: &[usize], positions: &[(Place, u32)], atlas: &Atlas) -> Self {
        let mut by_weight = list.to_vec();
        by_weight.sort_by_key(|c| std::cmp::Reverse(positions[*c].1));
        let unplaced = Order {
            clusters: by_weight.iter().map(|c| *c as u16).collect(),
            placed: false,
        };
        let mut numbers = HashMap::from([(unplaced.clone(), 0_u32)]);
        let mut orders = vec![unplaced];
        let mut distances: Vec<(f64, u16)> = Vec::with_capacity(list.len());
        let of_location: Vec<u32> = atlas
            .locations()
            .iter()
            .map(|place| {
                let Some(place) = place else { return 0 };
                let here = place.position();
                distances.clear();
                distances.extend(list.iter().map(|c| {
                    let there = positions[*c].0;
                    (
                        distance_km(here, (there.latitude, there.longitude)),
                        *c as u16,
                    )
                }));
                // The sort is stable: equally distant clusters stay in the order of the file.
                distances.sort_by(|a, b| a.0.total_cmp(&b.0));
                let order = Order {
                    clusters: distances.iter().map(|(_, c)| *c).collect(),
                    placed: true,
                };
                *numbers.entry(order).or_insert_with_key(|order| {
                    orders.push(order.clone());
                    (orders.len() - 1) as u32
                })
            })
            .collect();
        let v4 = atlas.v4().map(|place| of_location[place as usize]);
        let v6 = atlas.v6().map(|place| {
            if place == 0 {
                0
            } else {
                of_location[place as usize] + 1
            }
        });

        Self {
            orders,
            of_location,
            v4,
            v6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steer::fixture::{self, GEO, ONE};

    #[test]
    fn distances_are_great_circles() {
        for (a, b, km) in [
            ((0.0, 0.0), (0.0, 0.0), 0.0),
            ((52.37, 4.90), (40.71, -74.01), 5_861.0),
            ((1.35, 103.82), (52.37, 4.90), 10_510.0),
            ((0.0, 179.5), (0.0, -179.5), 111.2),
            ((90.0, 0.0), (-90.0, 0.0), 20_015.0),
            ((0.0, 0.0), (0.0, 180.0), 20_015.0),
            ((-37.8, 144.9), (-33.9, 151.2), 712.0),
        ] {
            let got = distance_km(a, b);
            assert!(
                (got - km).abs() <= 1.0 + km * 0.003,
                "{a:?} to {b:?}: {got}"
            );
            assert!((distance_km(b, a) - got).abs() < 1e-6);
        }
    }

    #[test]
    fn orders_by_distance_and_without_a_place_by_weight() {
        let fleet = fixture::fleet();
        let plan = Plan::new(&fleet, Atlas::built_in());
        for (address, placed, clusters, scope) in [
            ("198.51.100.9", true, vec![0, 1, 2], 24),
            ("203.0.113.9", true, vec![1, 0, 2], 24),
            ("192.0.2.9", true, vec![2, 0, 1], 24),
            ("10.0.0.1", false, vec![1, 0, 2], 8),
            ("127.0.0.1", false, vec![1, 0, 2], 8),
        ] {
            let (order, found) = plan.find(GEO, address.parse().unwrap()).unwrap();
            assert_eq!(
                (order.placed, order.clusters.to_vec()),
                (placed, clusters),
                "{address}"
            );
            assert_eq!(found, scope, "{address}");
        }
        let (order, scope) = plan.find(GEO, "fd00::1".parse().unwrap()).unwrap();
        assert_eq!((order.placed, scope), (false, GRAIN_V6));
        assert_eq!(
            plan.find(ONE, "198.51.100.9".parse().unwrap())
                .unwrap()
                .0
                .clusters
                .to_vec(),
            [2]
        );
        assert!(plan.find(99, "198.51.100.9".parse().unwrap()).is_none());
    }

    #[test]
    fn fits_until_something_it_depends_on_changes() {
        let fleet = fixture::fleet();
        let atlas = Atlas::built_in();
        let plan = Plan::new(&fleet, atlas.clone());
        type Change = fn(&mut Fleet);
        let table: [(Change, bool); 6] = [
            (|_| {}, true),
            (|f| f.sites[0].ttl *= 2, true),
            (|f| f.clusters[0].place.latitude += 1.0, false),
            (|f| f.clusters[0].weight += 1, false),
            (|f| f.sites[0].clusters.reverse(), false),
            (|f| drop(f.sites.pop()), false),
        ];
        for (number, (change, fits)) in table.into_iter().enumerate() {
            let mut other = fleet.clone();
            change(&mut other);
            assert_eq!(plan.fits(&other, &atlas), fits, "change {number}");
        }
    }
}
