//! Plans as an answer of the API.

use std::collections::HashMap;

use nearcast_fleet::config::{Cluster, Fleet};
use nearcast_push::forecast::Expected;
use nearcast_push::plan::{Exclusion, Limit, Planned};
use nearcast_push::schedule::{self, Window};

use crate::fleet_state::nodes::time_zone;
use crate::push::learned::{LearnedPopularity, PlannedCluster, policy};
use crate::push::planner::{budget, rate_bytes, window_of};
use crate::views;

/// Excluded items that are shown for each cluster.
const EXCLUDED_ITEMS_MAX: usize = 20;

/// Plans for the next window of one cluster or all, with the best `items_most` items each. Takes
/// milliseconds to tenths of a second, so run it off the async threads.
pub(crate) fn plans(
    popularity: &LearnedPopularity,
    fleet: &Fleet,
    only: Option<&str>,
    items_most: usize,
    now_unix_ms: u64,
) -> views::PlanView {
    let clusters = fleet
        .clusters
        .iter()
        .filter(|c| only.is_none_or(|name| c.name == name));
    views::PlanView {
        now_unix_ms,
        enabled: policy(fleet).is_some(),
        clock: views::clock(&fleet.clock, now_unix_ms),
        clusters: clusters
            .map(|c| cluster_plan(popularity, fleet, c, items_most, now_unix_ms))
            .collect(),
    }
}

fn cluster_plan(
    popularity: &LearnedPopularity,
    fleet: &Fleet,
    cluster: &Cluster,
    items_most: usize,
    now_unix_ms: u64,
) -> views::ClusterPlan {
    let window = window_of(fleet, cluster, now_unix_ms);
    let seconds = window.as_ref().map_or(0.0, |w| w.seconds_left(now_unix_ms));
    let budget = budget(fleet, cluster, seconds);
    let PlannedCluster {
        plan,
        forecast_requests,
        forecast_bytes,
        hours,
        urls,
    } = popularity.plan(fleet, cluster, &budget);
    let gap = plan.gap();
    let mut excluded = plan.excluded;
    excluded.sort_by(|(a, _), (b, _)| {
        b.requests
            .total_cmp(&a.requests)
            .then_with(|| a.url.cmp(&b.url))
    });

    views::ClusterPlan {
        cluster: cluster.name.clone(),
        label: cluster.label.clone(),
        time_zone: cluster.time_zone.clone(),
        local_time: schedule::local_time(&fleet.clock, &time_zone(cluster), now_unix_ms)
            .unwrap_or_default(),
        off_peak: views::daily_window(cluster.off_peak),
        window: window.map(|w| window_view(cluster, &w, now_unix_ms)),
        budget: views::BudgetView {
            share_bytes: budget.share_bytes,
            fill_bytes: budget.fill_bytes,
            rate_bytes: rate_bytes(cluster),
            nodes: budget.nodes,
        },
        forecast: views::ForecastView {
            requests: forecast_requests,
            bytes: forecast_bytes,
            urls,
            hours: hours.to_vec(),
        },
        items_total: plan.items.len(),
        stored_bytes: plan.stored_bytes,
        fetched_bytes: plan.fetched_bytes,
        capacity_bytes: plan.capacity_bytes,
        limit: match plan.limit {
            Limit::DiskShare => "disk_share",
            Limit::FillBudget => "fill_budget",
        }
        .to_owned(),
        expected_requests: plan.expected_requests,
        expected_bytes: plan.expected_bytes,
        upper_bound_bytes: plan.upper_bound_bytes,
        gap,
        items: plan
            .items
            .iter()
            .take(items_most)
            .map(planned_item)
            .collect(),
        excluded: excluded_counts(&excluded),
        excluded_items: excluded
            .iter()
            .take(EXCLUDED_ITEMS_MAX)
            .map(|(e, reason)| excluded_item(e, *reason))
            .collect(),
    }
}

/// Numbers of excluded URLs by reason, the most frequent first.
fn excluded_counts(excluded: &[(Expected, Exclusion)]) -> Vec<views::ExcludedCount> {
    let mut counts: HashMap<Exclusion, views::ExcludedCount> = HashMap::new();
    for (item, reason) in excluded {
        let count = counts
            .entry(*reason)
            .or_insert_with(|| views::ExcludedCount {
                reason: reason.name().to_owned(),
                count: 0,
                expected_requests: 0.0,
                expected_bytes: 0.0,
            });
        count.count += 1;
        count.expected_requests += item.requests;
        count.expected_bytes += item.bytes;
    }

    let mut counts: Vec<_> = counts.into_values().collect();
    counts.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.reason.cmp(&b.reason)));
    counts
}

fn planned_item(item: &Planned) -> views::PlanItem {
    views::PlanItem {
        site: item.site.to_string(),
        url: item.url.to_string(),
        bytes: item.size,
        expected_requests: item.requests,
        expected_bytes: item.bytes,
        reason: None,
    }
}

fn excluded_item(item: &Expected, reason: Exclusion) -> views::PlanItem {
    views::PlanItem {
        site: item.site.to_string(),
        url: item.url.to_string(),
        bytes: item.size.unwrap_or(0),
        expected_requests: item.requests,
        expected_bytes: if item.bytes.is_finite() {
            item.bytes
        } else {
            0.0
        },
        reason: Some(reason.name().to_owned()),
    }
}

fn window_view(cluster: &Cluster, window: &Window, now_unix_ms: u64) -> views::WindowView {
    let local = |fleet_seconds| {
        schedule::local_time_of(&time_zone(cluster), fleet_seconds).unwrap_or_default()
    };
    views::WindowView {
        date: window.date.clone(),
        open: window.is_open(now_unix_ms),
        start_unix_ms: window.start_unix_ms,
        end_unix_ms: window.end_unix_ms,
        start_fleet_unix_ms: (window.start_fleet * 1000.0) as i64,
        end_fleet_unix_ms: (window.end_fleet * 1000.0) as i64,
        start_local: local(window.start_fleet),
        end_local: local(window.end_fleet),
    }
}
