//! The fleet file in force as an answer, without its secrets.

use std::time::Duration;

use jiff::Timestamp;
use nearcast_fleet::clock::FleetClock;
use nearcast_fleet::config::{DailyWindow, Fleet, SelectionPolicy};

use crate::view;

/// The fleet. `revision` is the fleet file's.
pub(crate) fn fleet(fleet: &Fleet, revision: u64, now_unix_ms: u64) -> view::FleetView {
    let texts =
        |list: &[std::net::SocketAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let ips = |list: &[std::net::IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let millis = |d: Duration| d.as_millis() as u64;
    let control = fleet.control.as_ref();
    let health = &fleet.steering.health;
    view::FleetView {
        zone: fleet.zone.clone(),
        hostmaster: fleet.hostmaster.clone(),
        revision,
        report_interval_ms: millis(fleet.report_interval),
        clock: clock(&fleet.clock, now_unix_ms),
        control: view::ControlView {
            name: control.map(|c| c.name.clone()).unwrap_or_default(),
            listen: control.map(|c| c.listen.to_string()).unwrap_or_default(),
            url: control.map(|c| c.url.clone()).unwrap_or_default(),
        },
        push: control
            .and_then(|c| c.push.as_ref())
            .map(|p| view::PushPolicyView {
                half_life_seconds: p.half_life.as_secs_f64(),
                expected_requests_min: p.expected_requests_min,
            }),
        steering: view::SteeringView {
            geo_db: fleet.steering.geo_db.is_some(),
            rtt_max_age_seconds: fleet.steering.rtt_max_age.as_secs_f64(),
            rtt_explore: fleet.steering.rtt_explore,
            health: view::HealthCheckView {
                path: health.path.clone(),
                interval_ms: millis(health.interval),
                timeout_ms: millis(health.timeout),
                fall: health.fall,
                rise: health.rise,
            },
        },
        origins: fleet
            .origins
            .iter()
            .map(|o| view::OriginView {
                name: o.name.clone(),
                listen: o.listen.to_string(),
            })
            .collect(),
        name_servers: fleet
            .name_servers
            .iter()
            .map(|n| view::NameServerView {
                name: n.name.clone(),
                host: n.host.clone(),
                listen: texts(&n.listen),
                addresses: ips(&n.addresses),
                admin_url: n.admin_url.clone(),
            })
            .collect(),
        clusters: fleet
            .clusters
            .iter()
            .map(|c| view::ClusterView {
                name: c.name.clone(),
                label: c.label.clone(),
                latitude: c.place.latitude,
                longitude: c.place.longitude,
                time_zone: c.time_zone.clone(),
                off_peak: daily(c.off_peak),
                fill_rate_bits: c.fill_rate_bits,
                push_share_bytes: c.push_share.0,
                weight: c.weight,
                nodes: c
                    .nodes
                    .iter()
                    .map(|n| view::NodeView {
                        name: n.name.clone(),
                        addresses: ips(&n.addresses),
                        listen: texts(&n.listen),
                        service: n.service.to_string(),
                        memory_bytes: n.memory.0,
                        disk_bytes: n.disk.0,
                        capacity_bits: n.capacity_bits,
                    })
                    .collect(),
            })
            .collect(),
        sites: fleet
            .sites
            .iter()
            .map(|s| view::SiteView {
                name: s.name.clone(),
                hosts: s.hosts.clone(),
                steered_name: fleet.steered_name(s),
                origin: s.origin.clone(),
                policy: policy(s.policy).to_owned(),
                ttl_seconds: s.ttl.as_secs_f64(),
                clusters: s
                    .clusters
                    .iter()
                    .filter_map(|c| fleet.clusters.get(*c))
                    .map(|c| c.name.clone())
                    .collect(),
            })
            .collect(),
        zones: fleet
            .zones
            .iter()
            .map(|z| view::ZoneView {
                name: z.name.clone(),
                ttl_seconds: z.ttl.as_secs_f64(),
                records: z.records.len(),
                name_servers: z
                    .name_servers
                    .iter()
                    .filter_map(|n| fleet.name_servers.get(*n))
                    .map(|n| n.name.clone())
                    .collect(),
            })
            .collect(),
    }
}

/// The fleet's clock at a real time.
pub(crate) fn clock(clock: &FleetClock, now_unix_ms: u64) -> view::Clock {
    let seconds = clock.fleet_seconds(now_unix_ms as f64 / 1000.0);
    view::Clock {
        speed: clock.speed,
        fleet_unix_ms: (seconds * 1000.0).round() as i64,
        fleet_time: Timestamp::from_second(seconds.floor() as i64)
            .map(|t| t.to_string())
            .unwrap_or_default(),
    }
}

/// The policy as the fleet file writes it.
pub(crate) fn policy(policy: SelectionPolicy) -> &'static str {
    match policy {
        SelectionPolicy::Geo => "geo",
        SelectionPolicy::Rtt => "rtt",
        SelectionPolicy::Weighted => "weighted",
        SelectionPolicy::RoundRobin => "round-robin",
    }
}

/// `02:00-06:00`.
pub(crate) fn daily(window: DailyWindow) -> String {
    let text = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
    format!("{}-{}", text(window.start_minute), text(window.end_minute))
}
