//! The health of edges: the results of checks by endpoint, and the addresses that may be in answers
//! because of them.
//!
//! Each listener of each address is an endpoint with a health of its own ([`Node::checked_at`]). An
//! address is in answers while all its endpoints are up, and a node is up while one of its
//! addresses is.
//!
//! An endpoint counts as up until its first check has ended, which takes moments: a name server
//! that starts must not answer that everything is down. The first result decides alone. After it,
//! `fall` failures in a row take an endpoint out and `rise` successes bring it back. With a 503 the
//! node itself rejects clients, so it takes the endpoint out at once.
//!
//! A name server without a route to an address (because it has no IPv6, for example) knows nothing
//! about it, so that address follows the node's other addresses. A node is down if there is no
//! route to any of its addresses.
//!
//! The checks themselves are in [`super::check`]; they send their results to the one owner of this
//! state.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nearcast_fleet::config::{HealthCheck, Node};

/// Endpoints named in one reason.
const REASONS_MAX: usize = 3;

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CheckOutcome {
    /// A success status, after so many microseconds.
    Passed(u64),
    /// No response, or a wrong one.
    Failed(String),
    /// The node itself rejects clients.
    Refusing(String),
    /// This name server has no route to the address.
    NoRoute,
}

/// The health of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    at: SocketAddr,
    /// Whether it serves.
    up: bool,
    /// Why, for people.
    reason: String,
    /// Time of the last check in microseconds; 0 when it failed.
    check_us: u64,
    /// Whether there is a route to it.
    has_route: bool,
    /// Whether any check has ended.
    checked: bool,
    /// Consecutive results that contradict `up`.
    against: u32,
}

/// The health of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HealthState {
    /// Whether one of its addresses, at least, may be in answers.
    pub(super) up: bool,
    /// Since when, milliseconds after the Unix epoch.
    pub(super) since_ms: u64,
    /// The reason, for people; names the endpoints that differ from the others.
    pub(super) reason: String,
    /// Time of the slowest endpoint's last check in microseconds; 0 when none passed.
    pub(super) check_us: u64,
    endpoints: Vec<Endpoint>,
    /// The node's addresses, whether each may be in answers, and the endpoints that decide it.
    addresses: Vec<(IpAddr, bool, Vec<usize>)>,
}

impl Endpoint {
    fn unknown(at: SocketAddr, up: bool) -> Self {
        Self {
            at,
            up,
            reason: "not checked yet".into(),
            check_us: 0,
            has_route: true,
            checked: false,
            against: 0,
        }
    }

    fn observe(&mut self, outcome: CheckOutcome, rules: &HealthCheck) {
        self.has_route = outcome != CheckOutcome::NoRoute;
        let (good, at_once, reason, check_us) = match outcome {
            CheckOutcome::Passed(us) => (true, false, "ok".to_owned(), us),
            CheckOutcome::Failed(reason) => (false, false, reason, 0),
            CheckOutcome::Refusing(reason) => (false, true, reason, 0),
            CheckOutcome::NoRoute => (false, false, "no route from this name server".to_owned(), 0),
        };
        self.check_us = check_us;
        let first = !std::mem::replace(&mut self.checked, true);
        if good == self.up {
            self.against = 0;
            self.reason = reason;
            return;
        }
        self.against = self.against.saturating_add(1);
        let needed = match (first || at_once, good) {
            (true, _) => 1,
            (_, true) => rules.rise.max(1),
            (_, false) => rules.fall.max(1),
        };
        if self.against >= needed {
            (self.up, self.against, self.reason) = (good, 0, reason);
        } else if !good {
            self.reason = format!("{reason} ({} of {needed} failures)", self.against);
        }
    }
}

impl HealthState {
    /// Before the first check.
    pub(super) fn unknown(node: &Node, now_ms: u64) -> Self {
        let mut health = Self {
            up: true,
            since_ms: now_ms,
            reason: String::new(),
            check_us: 0,
            endpoints: Vec::new(),
            addresses: Vec::new(),
        };
        health.adapt(node, now_ms);
        health
    }

    /// Adopts another revision's settings of the node. Endpoints that remain keep their health; new
    /// ones have the node's health until their first check.
    pub(super) fn adapt(&mut self, node: &Node, now_ms: u64) {
        let mut endpoints: Vec<Endpoint> = Vec::new();
        let addresses = node.addresses.iter().map(|address| {
            let checked_at = node.checked_at(*address).into_iter().map(|at| {
                endpoints
                    .iter()
                    .position(|e| e.at == at)
                    .unwrap_or_else(|| {
                        let known = self.endpoints.iter().find(|e| e.at == at).cloned();
                        endpoints.push(known.unwrap_or_else(|| Endpoint::unknown(at, self.up)));
                        endpoints.len() - 1
                    })
            });
            (*address, true, checked_at.collect())
        });
        self.addresses = addresses.collect();
        self.endpoints = endpoints;
        self.judge(now_ms);
    }

    /// Records the result of a check of one of the endpoints. Gives the addresses that came into
    /// answers (`true`) or left them.
    pub(super) fn observe(
        &mut self,
        at: SocketAddr,
        outcome: CheckOutcome,
        rules: &HealthCheck,
        now_ms: u64,
    ) -> Vec<(IpAddr, bool)> {
        let Some(endpoint) = self.endpoints.iter_mut().find(|e| e.at == at) else {
            return Vec::new();
        };
        endpoint.observe(outcome, rules);
        self.judge(now_ms)
    }

    /// Where the node is checked.
    #[cfg(test)]
    pub(super) fn checked_at(&self) -> Vec<SocketAddr> {
        self.endpoints.iter().map(|e| e.at).collect()
    }

    /// Whether the node serves clients on this address.
    pub(super) fn serves(&self, address: IpAddr) -> bool {
        self.addresses
            .iter()
            .find(|(a, ..)| *a == address)
            .is_none_or(|(_, up, _)| *up)
    }

    /// The node's addresses, and whether each may be in answers.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (IpAddr, bool)> {
        self.addresses
            .iter()
            .map(|(address, up, _)| (*address, *up))
    }

    /// Derives the health of the addresses and of the node from the endpoints. Gives the addresses
    /// that changed.
    fn judge(&mut self, now_ms: u64) -> Vec<(IpAddr, bool)> {
        let Self {
            endpoints,
            addresses,
            ..
        } = self;
        let reached = |of: &[usize]| of.iter().any(|e| endpoints[*e].has_route);
        let serves = |of: &[usize]| {
            of.iter()
                .map(|e| &endpoints[*e])
                .filter(|e| e.has_route)
                .all(|e| e.up)
        };
        let others = match addresses.iter().any(|(.., of)| reached(of)) {
            true => addresses.iter().any(|(.., of)| reached(of) && serves(of)),
            false => endpoints.iter().any(|e| e.up),
        };
        let mut changed = Vec::new();

        for (address, up, of) in addresses.iter_mut() {
            let now_up = if reached(of) { serves(of) } else { others };
            if std::mem::replace(up, now_up) != now_up {
                changed.push((*address, now_up));
            }
        }

        let up = addresses.iter().any(|(_, up, _)| *up);
        if std::mem::replace(&mut self.up, up) != up {
            self.since_ms = now_ms;
        }
        self.check_us = self.endpoints.iter().map(|e| e.check_us).max().unwrap_or(0);
        self.reason = reason_of(&self.endpoints);
        changed
    }
}

/// One reason for all endpoints where they agree; else the reasons of those that are not well, by
/// name.
fn reason_of(endpoints: &[Endpoint]) -> String {
    let Some(first) = endpoints.first() else {
        return String::new();
    };
    if endpoints.iter().all(|e| e.reason == first.reason) {
        return first.reason.clone();
    }
    let unwell: Vec<String> = endpoints
        .iter()
        .filter(|e| e.reason != "ok")
        .map(|e| format!("{}: {}", e.at, e.reason))
        .collect();
    match unwell.len().checked_sub(REASONS_MAX) {
        None | Some(0) => unwell.join("; "),
        Some(more) => format!("{}; and {more} more", unwell[..REASONS_MAX].join("; ")),
    }
}

/// The pause between the beginnings of two checks: the interval, moved by up to `jitter` of itself
/// either way.
pub(super) fn pause(rules: &HealthCheck, random: u64) -> Duration {
    let part = (random >> 11) as f64 / (1_u64 << 53) as f64;
    rules
        .interval
        .mul_f64((1.0 + rules.jitter * (2.0 * part - 1.0)).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steer::fixture;
    use nearcast_fleet::random::Random;

    fn rules() -> HealthCheck {
        HealthCheck {
            path: "/.nearcast/health".into(),
            interval: Duration::from_millis(500),
            timeout: Duration::from_secs(2),
            timeout_min: Duration::from_millis(250),
            fall: 2,
            rise: 3,
            jitter: 0.1,
        }
    }

    fn pass() -> CheckOutcome {
        CheckOutcome::Passed(100)
    }

    fn fail() -> CheckOutcome {
        CheckOutcome::Failed("connection refused".into())
    }

    fn refuse() -> CheckOutcome {
        CheckOutcome::Refusing("status 503".into())
    }

    /// A node that is checked at one place.
    fn single() -> (HealthState, SocketAddr) {
        let node = fixture::node("ams-1", &["192.0.2.1"]);
        (HealthState::unknown(&node, 0), node.service)
    }

    #[test]
    fn falls_rises_and_obeys_a_503_at_once() {
        let table: [(&str, Vec<CheckOutcome>, &[bool]); 6] = [
            (
                "one failure is not enough",
                vec![pass(), fail(), pass(), fail()],
                &[true, true, true, true],
            ),
            (
                "two in a row are",
                vec![pass(), fail(), fail()],
                &[true, true, false],
            ),
            (
                "three successes in a row bring it back",
                vec![fail(), pass(), pass(), fail(), pass(), pass(), pass()],
                &[false, false, false, false, false, false, true],
            ),
            ("the first result decides alone", vec![fail()], &[false]),
            ("503 counts at once", vec![pass(), refuse()], &[true, false]),
            (
                "and needs as many successes",
                vec![refuse(), pass(), pass(), pass()],
                &[false, false, false, true],
            ),
        ];
        for (name, outcomes, expected) in table {
            let (mut health, at) = single();
            assert!(health.up);
            for (i, (outcome, up)) in outcomes.into_iter().zip(expected).enumerate() {
                let was = health.up;
                let changed = !health
                    .observe(at, outcome, &rules(), 10 + i as u64)
                    .is_empty();
                assert_eq!(health.up, *up, "{name}, result {i}");
                assert_eq!(changed, was != *up, "{name}, result {i}");
                if changed {
                    assert_eq!(health.since_ms, 10 + i as u64, "{name}");
                }
            }
        }
    }

    #[test]
    fn reasons_tell_what_happened() {
        let (mut health, at) = single();
        let mut observed = |outcome, now| {
            health.observe(at, outcome, &rules(), now);
            (health.up, health.reason.clone(), health.check_us)
        };
        assert_eq!(observed(CheckOutcome::Passed(7), 1), (true, "ok".into(), 7));
        assert_eq!(
            observed(fail(), 2),
            (true, "connection refused (1 of 2 failures)".into(), 0)
        );
        assert_eq!(observed(fail(), 3), (false, "connection refused".into(), 0));
        assert_eq!(
            observed(CheckOutcome::Passed(9), 4),
            (false, "connection refused".into(), 9),
            "still why it is down"
        );
    }

    const V4: &str = "192.0.2.1:80";
    const V6: &str = "[2001:db8::1]:80";
    const V6_OTHER: &str = "[2001:db8::1]:8080";

    #[test]
    fn each_address_leaves_the_answers_alone() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let node = Node {
            listen: [V4, V6, V6_OTHER].map(at).to_vec(),
            service: at(V4),
            ..fixture::node("ams-1", &["192.0.2.1", "2001:db8::1"])
        };
        let ok = |endpoints: &[&str]| {
            endpoints
                .iter()
                .map(|e| ((*e).to_owned(), pass()))
                .collect::<Vec<_>>()
        };
        let with = |endpoint: &str, outcome: CheckOutcome| (endpoint.to_owned(), outcome);
        let all = ok(&[V4, V6, V6_OTHER]);
        let after =
            |more: Vec<(String, CheckOutcome)>| all.iter().cloned().chain(more).collect::<Vec<_>>();
        type Case = (
            &'static str,
            Vec<(String, CheckOutcome)>,
            [bool; 3],
            &'static str,
        );
        let table: Vec<Case> = vec![
            ("all answer", all.clone(), [true, true, true], "ok"),
            (
                "the first listener alone does not speak for the others",
                after(vec![with(V6, fail()), with(V6, fail())]),
                [true, true, false],
                "[2001:db8::1]:80: connection refused",
            ),
            (
                "nor does another port of the address",
                after(vec![with(V6_OTHER, refuse())]),
                [true, true, false],
                "[2001:db8::1]:8080: status 503",
            ),
            (
                "the first address",
                after(vec![with(V4, refuse())]),
                [true, false, true],
                "192.0.2.1:80: status 503",
            ),
            (
                "the node is down when all its addresses are",
                after(vec![
                    with(V4, refuse()),
                    with(V6, refuse()),
                    with(V6_OTHER, refuse()),
                ]),
                [false, false, false],
                "status 503",
            ),
            (
                "what cannot be reached from here follows the others",
                after(vec![
                    with(V6, CheckOutcome::NoRoute),
                    with(V6_OTHER, CheckOutcome::NoRoute),
                ]),
                [true, true, true],
                "",
            ),
            (
                "down with them",
                after(vec![
                    with(V6, CheckOutcome::NoRoute),
                    with(V6_OTHER, CheckOutcome::NoRoute),
                    with(V4, refuse()),
                ]),
                [false, false, false],
                "",
            ),
            (
                "a route to nothing is a failure of all",
                [V4, V6, V6_OTHER]
                    .iter()
                    .cycle()
                    .take(6)
                    .map(|e| with(e, CheckOutcome::NoRoute))
                    .collect(),
                [false, false, false],
                "no route from this name server",
            ),
        ];
        for (name, outcomes, [up, v4, v6], reason) in table {
            let mut health = HealthState::unknown(&node, 0);
            assert_eq!(health.checked_at(), [V4, V6, V6_OTHER].map(at), "{name}");
            for (endpoint, outcome) in outcomes {
                health.observe(at(&endpoint), outcome, &rules(), 1);
            }
            assert_eq!(
                [
                    health.up,
                    health.serves(node.addresses[0]),
                    health.serves(node.addresses[1])
                ],
                [up, v4, v6],
                "{name}"
            );
            assert!(
                reason.is_empty() || health.reason == reason,
                "{name}: {}",
                health.reason
            );
        }
    }

    #[test]
    fn endpoints_that_stay_keep_their_health_and_new_ones_are_as_the_node() {
        let (mut health, at) = single();
        health.observe(at, refuse(), &rules(), 1);
        let mut node = fixture::node("ams-1", &["192.0.2.1"]);
        health.adapt(&node, 2);
        assert_eq!(
            (health.up, health.since_ms, health.reason.as_str()),
            (false, 1, "status 503")
        );
        node.service = "192.0.2.1:81".parse().unwrap();
        health.adapt(&node, 3);
        assert_eq!(
            (health.up, health.since_ms),
            (false, 1),
            "not before its first check"
        );
        assert_eq!(
            health.observe(node.service, pass(), &rules(), 4),
            [(node.addresses[0], true)],
            "which decides alone"
        );
        assert_eq!((health.up, health.since_ms), (true, 4));
        assert!(
            health.observe(at, refuse(), &rules(), 5).is_empty(),
            "a check that ends late counts no more"
        );
    }

    #[test]
    fn pauses_stay_within_the_jitter() {
        let mut jitter = Random::new(1);
        let pauses: Vec<Duration> = (0..1_000).map(|_| pause(&rules(), jitter.bits())).collect();
        assert!(pauses.iter().all(|p| (450..=550).contains(&p.as_millis())));
        assert!(pauses.iter().min() < pauses.iter().max());
        assert!(
            pause(&rules(), 0) >= Duration::from_millis(450)
                && pause(&rules(), u64::MAX) <= Duration::from_millis(550)
        );
    }
}
