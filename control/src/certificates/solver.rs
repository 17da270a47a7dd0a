//! Answers the challenges of authorities by the journal: every change brings all that are open to
//! every name server and edge.

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nearcast_acme::lookup::{self, Judgement, OurZone, Resolver};
use nearcast_acme::{Challenge, ChallengeKind, Solver, Wanted};
use nearcast_fleet::change::{Challenges, Change, DnsChallenge, HttpChallenge};
use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::wanted_certificates::challenged_host;
use tokio::time::Instant;

use crate::state::State;

/// Longest wait for nodes that report but do not answer a challenge yet, beyond the intervals of
/// their reports.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// Report intervals of that wait.
const WAIT_INTERVALS: u32 = 3;

/// Time between two looks at what nodes have reported.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Names of one certificate that are asked for before an order.
const ASKED_MAX: usize = 100;

/// The challenges that are open.
#[derive(Debug, Default)]
pub(crate) struct OpenChallenges(Vec<Challenge>);

impl OpenChallenges {
    /// As they are in the journal.
    fn change(&self) -> Challenges {
        let mut change = Challenges::default();
        for challenge in &self.0 {
            match challenge {
                Challenge::Dns01 { host, value } => change.dns.push(DnsChallenge {
                    host: host.clone(),
                    value: value.clone(),
                }),
                Challenge::Http01 {
                    host,
                    token,
                    key_authorization,
                } => change.http.push(HttpChallenge {
                    host: host.clone(),
                    token: token.clone(),
                    key_authorization: key_authorization.clone(),
                }),
                // No certificate of a fleet is wanted by it.
                Challenge::TlsAlpn01 { .. } => {}
            }
        }
        change
    }
}

/// How far the nodes that have to answer a challenge are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// They answer it.
    pub(crate) seen: Vec<String>,
    /// They report, and do not answer it yet.
    pub(crate) missing: Vec<String>,
    /// They do not report.
    pub(crate) silent: Vec<String>,
}

/// Answers challenges for a fleet.
pub(crate) struct FleetSolver(Weak<State>);

impl FleetSolver {
    pub(super) fn new(state: &Arc<State>) -> Self {
        Self(Arc::downgrade(state))
    }

    fn state(&self) -> Result<Arc<State>, String> {
        self.0.upgrade().ok_or_else(|| "control ends".to_owned())
    }
}

impl Solver for FleetSolver {
    async fn precheck(&self, wanted: &Wanted) -> Result<(), String> {
        let fleet = self.state()?.fleet();
        let server = fleet.acme.as_ref().and_then(|acme| acme.resolver);
        let Ok(resolver) = Resolver::or_of_system(server) else {
            return Ok(());
        };
        let by_dns = wanted.challenges.first() == Some(&ChallengeKind::Dns01);
        let zones = our_zones(&fleet);
        let addresses = our_addresses(&fleet);
        let asked = wanted.hosts.iter().take(ASKED_MAX).map(|host| async {
            let host = challenged_host(host);
            let judgement = match by_dns {
                true => {
                    let found = resolver.challenge_answerer(host).await;
                    lookup::dns_leads_here(host, &found, &zones)
                }
                false => {
                    let alias = fleet.steered_name_of_host(host);
                    resolver
                        .http_judgement(host, &addresses, alias.as_deref())
                        .await
                }
            };
            if let Judgement::Unknown(reason) = &judgement {
                tracing::debug!(host, reason, "where a host leads cannot be found out");
            }
            // Clients, and authorities, may reach the edges by proxies with other addresses.
            judgement
                .refusal()
                .filter(|_| by_dns || !is_behind_proxies(&fleet))
        });
        let refusals = futures_util::future::join_all(asked).await;
        match refusals.into_iter().flatten().next() {
            Some(refusal) => Err(refusal),
            None => Ok(()),
        }
    }

    async fn present(&self, challenges: Vec<Challenge>) -> Result<(), String> {
        let state = self.state()?;
        let by_dns = challenges
            .iter()
            .any(|one| matches!(one, Challenge::Dns01 { .. }));
        let by_http = challenges
            .iter()
            .any(|one| matches!(one, Challenge::Http01 { .. }));
        let revision = {
            let mut open = state.certificates.open.lock().await;
            let before = open.0.len();
            open.0.extend(challenges);
            match append(&state, &open).await {
                Ok(revision) => revision,
                Err(error) => {
                    open.0.truncate(before);
                    return Err(error);
                }
            }
        };
        if by_dns {
            wait(&state, revision, "name server", |fleet, now| {
                state.fleet_state().dns_challenges(fleet, revision, now)
            })
            .await?;
        }
        if by_http {
            wait(&state, revision, "edge", |fleet, now| {
                state.fleet_state().http_challenges(fleet, revision, now)
            })
            .await?;
        }
        Ok(())
    }

    async fn withdraw(&self, challenges: Vec<Challenge>) {
        let Ok(state) = self.state() else {
            return;
        };
        let mut open = state.certificates.open.lock().await;
        // One of each: two orders may have the same challenge.
        for one in &challenges {
            if let Some(at) = open.0.iter().position(|other| other == one) {
                open.0.swap_remove(at);
            }
        }
        if let Err(reason) = append(&state, &open).await {
            tracing::warn!(reason, "challenges are answered on until the next order");
        }
    }
}

async fn append(state: &State, open: &OpenChallenges) -> Result<u64, String> {
    let change = Change::Challenges(open.change());
    let appended = state.journal.append(change, now_unix_ms(), |_| ()).await;
    appended
        .map(|entry| entry.revision)
        .map_err(|error| format!("the challenge cannot be given to the nodes: {error}"))
}

/// Waits until all nodes that report have a revision. Nodes that do not report are not waited for, as
/// long as others answer.
async fn wait(
    state: &State,
    revision: u64,
    what: &str,
    progress: impl Fn(&Fleet, u64) -> Progress,
) -> Result<(), String> {
    let fleet = state.fleet();
    let deadline = Instant::now() + WAIT_MAX + WAIT_INTERVALS * fleet.report_interval;
    let mut shutdown = state.shutdown.clone();
    loop {
        let now = progress(&state.fleet(), now_unix_ms());
        let is_over = Instant::now() >= deadline;
        match judge(&now, is_over, what) {
            Some(Ok(remark)) => {
                if let Some(remark) = remark {
                    tracing::warn!(revision, "{remark}");
                }
                return Ok(());
            }
            Some(Err(reason)) => return Err(reason),
            None => {}
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.requested() => return Err("control ends".to_owned()),
        }
    }
}

/// Whether an authority can be asked to look, perhaps with a remark, or why not; `None` as long as it
/// is better to wait.
fn judge(now: &Progress, is_over: bool, what: &str) -> Option<Result<Option<String>, String>> {
    let without = |names: &[String]| names.join(", ");
    match (&now.seen[..], &now.missing[..], &now.silent[..]) {
        ([_, ..], [], []) => Some(Ok(None)),
        ([_, ..], [], silent) => Some(Ok(Some(format!(
            "an order goes on without {}, which does not report: an authority that asks there is not answered",
            without(silent)
        )))),
        ([_, ..], missing, _) if is_over => Some(Ok(Some(format!(
            "an order goes on although {} does not answer its challenge yet",
            without(missing)
        )))),
        ([], missing, silent) if is_over => Some(Err(format!(
            "no {what} answers the challenge: {} did not report that it has it; look at its log and at its connection to control",
            without(&[missing, silent].concat())
        ))),
        _ => None,
    }
}

/// The zones that the name servers serve: first that of the CDN, which has the names for challenges of
/// hosts elsewhere.
fn our_zones(fleet: &Fleet) -> Vec<OurZone> {
    let zone = |name: &str, servers: &[usize]| OurZone {
        name: name.to_owned(),
        name_servers: servers
            .iter()
            .filter_map(|&server| Some(fleet.name_servers.get(server)?.host.clone()))
            .collect(),
    };
    let own = zone(&fleet.zone, &fleet.zone_name_servers);
    let others = fleet
        .zones
        .iter()
        .filter(|other| other.name != fleet.zone)
        .map(|other| zone(&other.name, &other.name_servers));
    std::iter::once(own).chain(others).collect()
}

fn our_addresses(fleet: &Fleet) -> Vec<IpAddr> {
    let nodes = fleet.clusters.iter().flat_map(|cluster| &cluster.nodes);
    nodes.flat_map(|node| node.addresses.clone()).collect()
}

fn is_behind_proxies(fleet: &Fleet) -> bool {
    let mut nodes = fleet.clusters.iter().flat_map(|cluster| &cluster.nodes);
    nodes.any(|node| !node.trusted_proxies.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes that have the answers, that lack them and that are silent; whether the time is over; what
    /// is said, `None` while it is waited.
    type Case<'a> = (
        &'a [&'a str],
        &'a [&'a str],
        &'a [&'a str],
        bool,
        Option<Result<&'a str, &'a str>>,
    );

    #[test]
    fn an_order_waits_for_nodes_that_report_and_not_for_those_that_are_down() {
        let names = |of: &[&str]| of.iter().map(|name| (*name).to_owned()).collect();
        let table: [Case<'_>; 8] = [
            (&["ns1", "ns2"], &[], &[], false, Some(Ok(""))),
            (&["ns1"], &["ns2"], &[], false, None),
            (&["ns1"], &["ns2"], &[], true, Some(Ok("although ns2"))),
            (&["ns1"], &[], &["ns2"], false, Some(Ok("without ns2"))),
            (&[], &["ns1"], &["ns2"], false, None),
            (&[], &[], &["ns1"], false, None),
            (&[], &["ns1"], &["ns2"], true, Some(Err("ns1, ns2"))),
            (&[], &[], &[], true, Some(Err("no name server"))),
        ];
        for (seen, missing, silent, is_over, expected) in table {
            let now = Progress {
                seen: names(seen),
                missing: names(missing),
                silent: names(silent),
            };
            let is_as_expected = match (judge(&now, is_over, "name server"), expected) {
                (None, None) => true,
                (Some(Ok(None)), Some(Ok(""))) => true,
                (Some(Ok(Some(said))), Some(Ok(words))) => {
                    !words.is_empty() && said.contains(words)
                }
                (Some(Err(said)), Some(Err(words))) => said.contains(words),
                _ => false,
            };
            assert!(is_as_expected, "{now:?} {is_over}");
        }
    }
}
