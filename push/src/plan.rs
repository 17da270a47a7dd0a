//! Chooses the content of a forecast to fetch: the most expected bytes that fit, with a bound for
//! the distance from the optimum.
//!
//! A stored response occupies its length, rounded up by the store, on every node of the cluster, as
//! content is replicated. The fill budget is charged that times the number of nodes, slightly more
//! than is sent. Both costs are proportional, so one of the two limits binds and the choice is a
//! knapsack with one capacity. It is filled greedily by density: expected bytes a stored byte. The
//! same order with the first misfit taken in part is the fractional optimum (Dantzig 1957), which
//! no whole choice can exceed. Every plan states its gap to that optimum.
//!
//! Every candidate that is not chosen has an [`Exclusion`]. Pure.

use std::cmp::Ordering;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::forecast::Expected;

/// The limits of a plan.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Bytes of pushed content that certainly fit a node, as stored: its disk share less the
    /// store's own needs.
    pub share_bytes: u64,
    /// Bytes that the whole cluster may fetch: fill rate times window.
    pub fill_bytes: u64,
    /// Nodes of the cluster; each stores a copy.
    pub nodes: u64,
    /// Least expected requests a day for an item.
    pub expected_requests_min: f64,
    /// Most items of a plan.
    pub items_max: usize,
    /// Stored bytes of a body of some length; never less than the length.
    pub stored_bytes: fn(u64) -> u64,
}

/// The limit that binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The share of each node's disk.
    DiskShare,
    /// The fill budget.
    FillBudget,
}

/// Why a candidate is not in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exclusion {
    /// The cluster does not serve its site (any more).
    NotServedHere,
    /// Too few requests are expected.
    TooFewRequests,
    /// No edge ever stored it, so its length is unknown; most often it cannot be stored.
    SizeUnknown,
    /// It alone is larger than the disk share.
    LargerThanDiskShare,
    /// It alone is larger than the fill budget.
    LargerThanFillBudget,
    /// Denser items fill the disk share.
    DiskShareFull,
    /// Denser items use the fill budget.
    FillBudgetSpent,
    /// The plan has the most items already.
    ItemLimit,
}

impl Exclusion {
    /// Its name in API answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotServedHere => "not_served_here",
            Self::TooFewRequests => "too_few_requests",
            Self::SizeUnknown => "size_unknown",
            Self::LargerThanDiskShare => "larger_than_disk_share",
            Self::LargerThanFillBudget => "larger_than_fill_budget",
            Self::DiskShareFull => "disk_share_full",
            Self::FillBudgetSpent => "fill_budget_spent",
            Self::ItemLimit => "item_limit",
        }
    }
}

/// One response to fetch.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Site name.
    pub site: Arc<str>,
    /// Absolute URL.
    pub url: Arc<str>,
    /// Length.
    pub size: u64,
    /// Stored length.
    pub stored: u64,
    /// Requests expected in the next day.
    pub requests: f64,
    /// Body bytes of these requests.
    pub bytes: f64,
}

/// The chosen items and the quality of the choice.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Densest first.
    pub items: Vec<Planned>,
    /// Bytes they occupy on each node.
    pub stored_bytes: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
    /// Bytes the cluster fetches when it has none of them: `body_bytes` times its nodes.
    pub fetched_bytes: u64,
    /// Capacity of a node: the lesser of disk share and fill budget a node.
    pub capacity_bytes: u64,
    /// The lesser of the two.
    pub limit: Limit,
    /// Requests expected for the items in the next day.
    pub expected_requests: f64,
    /// Body bytes of these requests: the value of the plan.
    pub expected_bytes: f64,
    /// Upper bound for the value of any choice of the eligible candidates within the capacity.
    pub upper_bound_bytes: f64,
    /// The candidates that were not chosen.
    pub excluded: Vec<(Expected, Exclusion)>,
}

impl Plan {
    /// Largest possible distance from the optimum, as a share (0..=1) of it.
    pub fn gap(&self) -> f64 {
        if self.upper_bound_bytes > 0.0 {
            (1.0 - self.expected_bytes / self.upper_bound_bytes).max(0.0)
        } else {
            0.0
        }
    }
}

/// Chooses the items of a plan. `is_served` returns whether the cluster serves a site.
pub fn plan(candidates: Vec<Expected>, budget: &Budget, is_served: impl Fn(&str) -> bool) -> Plan {
    let fill_a_node = budget.fill_bytes / budget.nodes.max(1);
    let (capacity, limit) = if fill_a_node < budget.share_bytes {
        (fill_a_node, Limit::FillBudget)
    } else {
        (budget.share_bytes, Limit::DiskShare)
    };

    let mut excluded = Vec::new();
    let mut eligible = Vec::new();
    for candidate in candidates {
        match eligibility(&candidate, budget, fill_a_node, &is_served) {
            Ok(planned) => eligible.push(planned),
            Err(reason) => excluded.push((candidate, reason)),
        }
    }

    eligible.sort_unstable_by(denser_first);
    let upper_bound = fractional_optimum(&eligible, capacity);
    let chosen = choose(&eligible, capacity, budget.items_max);
    let full = match limit {
        Limit::DiskShare => Exclusion::DiskShareFull,
        Limit::FillBudget => Exclusion::FillBudgetSpent,
    };
    let stored: u64 = eligible
        .iter()
        .zip(&chosen)
        .filter(|(_, c)| **c)
        .map(|(i, _)| i.stored)
        .sum();

    let mut items = Vec::new();
    for (item, chosen) in eligible.into_iter().zip(chosen) {
        if chosen {
            items.push(item);
        } else {
            let reason = if item.stored <= capacity - stored {
                Exclusion::ItemLimit
            } else {
                full
            };
            excluded.push((back(item), reason));
        }
    }

    let body_bytes: u64 = items.iter().map(|i| i.size).sum();
    Plan {
        stored_bytes: stored,
        body_bytes,
        fetched_bytes: body_bytes.saturating_mul(budget.nodes),
        capacity_bytes: capacity,
        limit,
        expected_requests: items.iter().map(|i| i.requests).sum(),
        expected_bytes: items.iter().map(|i| i.bytes).sum(),
        upper_bound_bytes: upper_bound,
        items,
        excluded,
    }
}

fn eligibility(
    c: &Expected,
    budget: &Budget,
    fill_a_node: u64,
    is_served: &impl Fn(&str) -> bool,
) -> Result<Planned, Exclusion> {
    if !is_served(&c.site) {
        return Err(Exclusion::NotServedHere);
    }
    // Written so that NaN counts as too few.
    let is_worth = c.requests >= budget.expected_requests_min
        && c.bytes > 0.0
        && c.bytes.is_finite()
        && c.requests.is_finite();

    if !is_worth {
        return Err(Exclusion::TooFewRequests);
    }
    let size = c
        .size
        .filter(|size| *size > 0)
        .ok_or(Exclusion::SizeUnknown)?;
    let stored = (budget.stored_bytes)(size);
    if stored > budget.share_bytes {
        return Err(Exclusion::LargerThanDiskShare);
    }
    if stored > fill_a_node {
        return Err(Exclusion::LargerThanFillBudget);
    }
    Ok(Planned {
        site: c.site.clone(),
        url: c.url.clone(),
        size,
        stored,
        requests: c.requests,
        bytes: c.bytes,
    })
}

fn back(item: Planned) -> Expected {
    Expected {
        site: item.site,
        url: item.url,
        size: Some(item.size),
        requests: item.requests,
        bytes: item.bytes,
    }
}

/// Order by expected bytes a stored byte, most first; then by URL, so that plans are deterministic.
fn denser_first(a: &Planned, b: &Planned) -> Ordering {
    let density = |i: &Planned| i.bytes / i.stored as f64;
    density(b)
        .total_cmp(&density(a))
        .then_with(|| a.url.cmp(&b.url))
}

/// The value of the fractional optimum: whole items in order, then a part of the first that does
/// not fit.
fn fractional_optimum(sorted: &[Planned], capacity: u64) -> f64 {
    let mut left = capacity;
    let mut worth = 0.0;
    for item in sorted {
        if item.stored > left {
            return worth + item.bytes * (left as f64 / item.stored as f64);
        }
        left -= item.stored;
        worth += item.bytes;
    }
    worth
}

/// The better of two greedy choices: by density alone, and with the most valuable item first. It is
/// worth at least half of the optimum for any sizes (unless the item limit ends it early).
fn choose(sorted: &[Planned], capacity: u64, items_max: usize) -> Vec<bool> {
    let by_density = greedy(sorted, capacity, items_max, None);
    let dearest = (0..sorted.len()).max_by(|a, b| sorted[*a].bytes.total_cmp(&sorted[*b].bytes));
    let dearest_first = greedy(sorted, capacity, items_max, dearest);
    let worth = |chosen: &[bool]| -> f64 {
        sorted
            .iter()
            .zip(chosen)
            .filter(|(_, c)| **c)
            .map(|(i, _)| i.bytes)
            .sum()
    };
    if worth(&dearest_first) > worth(&by_density) {
        dearest_first
    } else {
        by_density
    }
}

fn greedy(sorted: &[Planned], capacity: u64, items_max: usize, first: Option<usize>) -> Vec<bool> {
    let mut chosen = vec![false; sorted.len()];
    let (mut left, mut count) = (capacity, 0);
    for index in first.into_iter().chain(0..sorted.len()) {
        if count == items_max {
            break;
        }
        if !chosen[index] && sorted[index].stored <= left {
            chosen[index] = true;
            left -= sorted[index].stored;
            count += 1;
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn expected(name: &str, size: u64, requests: f64) -> Expected {
        Expected {
            site: "www".into(),
            url: format!("http://a/{name}").as_str().into(),
            size: (size > 0).then_some(size),
            requests,
            bytes: requests * size.max(1) as f64,
        }
    }

    fn budget(share_bytes: u64, fill_bytes: u64, nodes: u64) -> Budget {
        Budget {
            share_bytes,
            fill_bytes,
            nodes,
            expected_requests_min: 2.0,
            items_max: 1000,
            stored_bytes: |length| length,
        }
    }

    fn names(plan: &Plan) -> Vec<String> {
        plan.items
            .iter()
            .map(|i| i.url.trim_start_matches("http://a/").to_owned())
            .collect()
    }

    fn reason(plan: &Plan, name: &str) -> Option<Exclusion> {
        plan.excluded
            .iter()
            .find(|(e, _)| e.url.ends_with(&format!("/{name}")))
            .map(|(_, r)| *r)
    }

    #[test]
    fn the_densest_that_fit_are_chosen() {
        let items = vec![
            expected("cold", 10, 3.0),
            expected("hot", 10, 9.0),
            expected("warm", 10, 5.0),
            expected("tiny", 1, 2.5),
        ];
        let table: [(u64, &[&str]); 6] = [
            (0, &[]),
            (10, &["hot"]),
            (11, &["hot", "tiny"]),
            (20, &["hot", "warm"]),
            (21, &["hot", "warm", "tiny"]),
            (100, &["hot", "warm", "cold", "tiny"]),
        ];
        for (share, chosen) in table {
            let plan = plan(items.clone(), &budget(share, u64::MAX, 2), |_| true);
            assert_eq!(names(&plan), chosen, "share {share}");
            assert!(plan.upper_bound_bytes >= plan.expected_bytes);
            assert_eq!(plan.items.len() + plan.excluded.len(), items.len());
        }
    }

    #[test]
    fn what_the_store_adds_to_each_body_is_reckoned_with() {
        let items = vec![
            expected("large", 90, 9.0),
            expected("a", 10, 9.0),
            expected("b", 10, 9.0),
            expected("c", 10, 9.0),
        ];
        let as_stored = |share| Budget {
            stored_bytes: |length| length + 20,
            ..budget(share, 1000, 2)
        };
        let plan_for = |share| plan(items.clone(), &as_stored(share), |_| true);
        assert_eq!(names(&plan_for(109)), ["a", "b", "c"], "large takes 110");
        let whole = plan_for(200);
        assert_eq!(
            names(&whole),
            ["large", "a", "b", "c"],
            "the densest as stored come first"
        );
        assert_eq!(
            (whole.stored_bytes, whole.body_bytes, whole.fetched_bytes),
            (200, 120, 240)
        );
        assert_eq!(names(&plan_for(199)), ["large", "a", "b"]);
        assert_eq!(
            reason(&plan_for(29), "a"),
            Some(Exclusion::LargerThanDiskShare)
        );
    }

    #[test]
    fn every_exclusion_has_its_reason() {
        let mut items = vec![
            expected("few", 10, 1.9),
            expected("unknown", 0, 50.0),
            expected("huge", 101, 50.0),
            expected("hot", 60, 9.0),
            expected("warm", 60, 5.0),
        ];
        items.push(Expected {
            site: "gone".into(),
            ..expected("elsewhere", 10, 9.0)
        });
        items.push(Expected {
            bytes: f64::NAN,
            ..expected("odd", 10, 9.0)
        });
        let by_disk = plan(items.clone(), &budget(100, 10_000, 2), |site| site == "www");
        let by_fill = plan(items.clone(), &budget(1000, 200, 2), |site| site == "www");
        let table = [
            ("few", Exclusion::TooFewRequests, Exclusion::TooFewRequests),
            ("odd", Exclusion::TooFewRequests, Exclusion::TooFewRequests),
            ("unknown", Exclusion::SizeUnknown, Exclusion::SizeUnknown),
            (
                "huge",
                Exclusion::LargerThanDiskShare,
                Exclusion::LargerThanFillBudget,
            ),
            ("warm", Exclusion::DiskShareFull, Exclusion::FillBudgetSpent),
            (
                "elsewhere",
                Exclusion::NotServedHere,
                Exclusion::NotServedHere,
            ),
        ];
        for (name, disk, fill) in table {
            assert_eq!(reason(&by_disk, name), Some(disk), "{name}, disk");
            assert_eq!(reason(&by_fill, name), Some(fill), "{name}, fill");
        }
        assert_eq!(
            (names(&by_disk), by_disk.limit),
            (vec!["hot".to_owned()], Limit::DiskShare)
        );
        assert_eq!(
            (names(&by_fill), by_fill.limit),
            (vec!["hot".to_owned()], Limit::FillBudget)
        );
        assert_eq!(
            (
                by_fill.stored_bytes,
                by_fill.fetched_bytes,
                by_fill.capacity_bytes
            ),
            (60, 120, 100)
        );
        let few = plan(
            items,
            &Budget {
                items_max: 0,
                ..budget(100, 10_000, 2)
            },
            |site| site == "www",
        );
        assert_eq!(reason(&few, "hot"), Some(Exclusion::ItemLimit));
    }

    #[test]
    fn a_large_worthy_item_is_not_lost_to_a_small_dense_one() {
        let items = vec![expected("small", 1, 10.0), expected("large", 100, 9.0)];
        let plan = plan(items, &budget(100, u64::MAX, 1), |_| true);
        assert_eq!(names(&plan), ["large"]);
        assert!(plan.gap() < 0.02, "gap {}", plan.gap());
    }

    #[test]
    fn the_gap_is_nought_when_everything_fits_or_nothing_can() {
        let all = plan(
            vec![expected("a", 10, 3.0)],
            &budget(10, u64::MAX, 1),
            |_| true,
        );
        let none = plan(Vec::new(), &budget(10, u64::MAX, 1), |_| true);
        assert_eq!(
            (all.gap(), none.gap(), none.upper_bound_bytes),
            (0.0, 0.0, 0.0)
        );
    }

    /// The best choice there is, by trying all.
    fn exhaustive(items: &[Expected], budget: &Budget) -> f64 {
        let eligible: Vec<_> = items
            .iter()
            .filter(|i| i.size.is_some() && i.requests >= budget.expected_requests_min)
            .collect();
        let mut best = 0.0_f64;
        for subset in 0u32..1 << eligible.len() {
            let chosen = || {
                eligible
                    .iter()
                    .enumerate()
                    .filter(|(n, _)| subset >> n & 1 == 1)
                    .map(|(_, i)| i)
            };
            let bytes: u64 = chosen().map(|i| i.size.unwrap()).sum();
            if bytes <= budget.share_bytes
                && bytes * budget.nodes <= budget.fill_bytes
                && chosen().count() <= budget.items_max
            {
                best = best.max(chosen().map(|i| i.bytes).sum());
            }
        }
        best
    }

    fn some_items(most: usize) -> impl Strategy<Value = Vec<Expected>> {
        prop::collection::vec((0u64..60, 0.0..30.0f64), 0..most).prop_map(|v| {
            v.iter()
                .enumerate()
                .map(|(n, (size, requests))| expected(&n.to_string(), *size, *requests))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn no_budget_is_exceeded(items in some_items(60), share in 0u64..400, fill in 0u64..900, nodes in 1u64..5, items_max in 0usize..70) {
            let b = Budget { items_max, ..budget(share, fill, nodes) };
            let plan = plan(items.clone(), &b, |_| true);
            let stored: u64 = plan.items.iter().map(|i| i.size).sum();
            prop_assert!(stored <= share && stored * nodes <= fill && plan.items.len() <= items_max);
            prop_assert_eq!(stored, plan.stored_bytes);
            prop_assert_eq!(plan.items.len() + plan.excluded.len(), items.len());
            prop_assert!(plan.items.iter().all(|i| i.requests >= 2.0 && i.size > 0));
            prop_assert!(plan.items.windows(2).all(|w| denser_first(&w[0], &w[1]) != Ordering::Greater));
        }

        #[test]
        fn the_bound_holds_the_exhaustive_optimum(items in some_items(12), share in 0u64..200, fill in 0u64..500, nodes in 1u64..4, items_max in 0usize..14) {
            let b = Budget { items_max, ..budget(share, fill, nodes) };
            let plan = plan(items.clone(), &b, |_| true);
            let best = exhaustive(&items, &b);
            prop_assert!(plan.expected_bytes <= best * (1.0 + 1e-12), "{} is more than the best, {}", plan.expected_bytes, best);
            prop_assert!(best <= plan.upper_bound_bytes * (1.0 + 1e-12), "{} is more than the bound, {}", best, plan.upper_bound_bytes);
            let certified = plan.upper_bound_bytes * (1.0 - plan.gap());
            prop_assert!((certified - plan.expected_bytes).abs() <= 1e-9 * plan.upper_bound_bytes);
            if items_max >= items.len() {
                prop_assert!(plan.expected_bytes * 2.0 >= best * (1.0 - 1e-12), "less than half of the best");
            }
        }

        #[test]
        fn more_room_or_more_candidates_never_lower_the_bound(items in some_items(40), share in 0u64..200, more in 0u64..200) {
            let small = plan(items.clone(), &budget(share, u64::MAX, 1), |_| true);
            let large = plan(items.clone(), &budget(share + more, u64::MAX, 1), |_| true);
            prop_assert!(large.upper_bound_bytes >= small.upper_bound_bytes * (1.0 - 1e-12) || small.items.is_empty());
            let fewer = plan(items.iter().skip(1).cloned().collect(), &budget(share, u64::MAX, 1), |_| true);
            prop_assert!(small.upper_bound_bytes >= fewer.upper_bound_bytes * (1.0 - 1e-12));
        }

        #[test]
        fn a_plan_does_not_depend_on_the_order_of_candidates(items in some_items(30), share in 0u64..300) {
            let mut reversed = items.clone();
            reversed.reverse();
            let (a, b) = (plan(items, &budget(share, u64::MAX, 1), |_| true), plan(reversed, &budget(share, u64::MAX, 1), |_| true));
            prop_assert_eq!(a.items, b.items);
        }
    }
}
