//! The certificates that control orders for the fleet: what the fleet file wants, given to the
//! keeper that orders and renews; and what the keeper has, for edges, metrics and operators.
//!
//! The keeper's directory is `acme/` in control's: accounts, keys and certificates. Nothing of it
//! reaches the journal. `solver` answers challenges by the journal.

mod solver;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nearcast_acme::{self as acme, ChallengeKind, Event, Issued, Keeper, Status};
use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::config::{Acme, AcmeChallenge, Fleet};
use nearcast_fleet::node_certificates::{
    CERTIFICATES_MAX, CertificateList, Listed, OpenedCertificate, digest,
};
use nearcast_fleet::wanted_certificates::{ClusterHosts, WantedCertificate, wanted_certificates};
use nearcast_net::shutdown::Shutdown;
use parking_lot::Mutex;
use prometheus::IntGaugeVec;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::solver::FleetSolver;
pub(crate) use self::solver::{OpenChallenges, Progress};
use crate::event::{Level, NewEvent};
use crate::state::State;
use crate::views;

/// Directory of the keeper, in control's.
pub(crate) const DIRECTORY: &str = "acme";

/// How often what cannot be used is looked at again, and metrics are brought up to date.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Largest file with the key of an account elsewhere.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;

/// The certificates of the fleet.
#[derive(Default)]
pub(crate) struct Certificates {
    keeper: OnceLock<Arc<Keeper<FleetSolver>>>,
    /// What keeps certificates from being ordered, beside what the keeper knows.
    problem: Mutex<Option<String>>,
    /// The certificates in force, for edges.
    in_force: watch::Sender<Arc<Vec<InForce>>>,
    /// What the fleet file in force wants, with that file: it is the same for many requests.
    wanted: Mutex<Option<WantedOf>>,
    pub(crate) open: tokio::sync::Mutex<OpenChallenges>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

/// A fleet file, and the certificates that it wants.
type WantedOf = (Arc<Fleet>, Arc<Vec<WantedCertificate>>);

/// A certificate in force, with its digest.
pub(crate) struct InForce {
    issued: Arc<Issued>,
    digest: String,
}

impl InForce {
    fn name(&self) -> &str {
        self.issued.hosts.first().map_or("", String::as_str)
    }
}

impl Certificates {
    /// A receiver of the certificates in force.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Vec<InForce>>> {
        self.in_force.subscribe()
    }

    /// Orders the certificate now that has this name, or else one for this host. `None` where none
    /// can be ordered yet, otherwise the certificate's name if there is one.
    pub(crate) async fn renew(&self, fleet: &Arc<Fleet>, host: &str) -> Option<Option<String>> {
        let keeper = self.keeper.get()?;
        let name = name_for(&self.wanted(fleet), host);
        Some(match name {
            Some(name) if keeper.renew_now(&name).await => Some(name),
            _ => None,
        })
    }

    /// The certificates that a fleet file wants.
    fn wanted(&self, fleet: &Arc<Fleet>) -> Arc<Vec<WantedCertificate>> {
        let mut known = self.wanted.lock();
        match &*known {
            Some((of, wanted)) if Arc::ptr_eq(of, fleet) => wanted.clone(),
            _ => {
                let wanted = Arc::new(wanted_certificates(fleet));
                *known = Some((fleet.clone(), wanted.clone()));
                wanted
            }
        }
    }

    /// What is known of the certificates, without secrets.
    pub(crate) fn view(&self, fleet: &Arc<Fleet>) -> views::CertificatesView {
        let Some(_) = &fleet.acme else {
            return views::CertificatesView::default();
        };
        let statuses = self.keeper.get().map_or_else(Vec::new, |k| k.statuses());
        let statuses: BTreeMap<&str, &Status> = statuses
            .iter()
            .filter_map(|status| Some((status.hosts.first()?.as_str(), status)))
            .collect();
        let view = |wanted: &WantedCertificate| {
            let name = wanted.hosts.first().cloned().unwrap_or_default();
            let status = statuses.get(name.as_str()).copied();
            certificate_view(name, wanted.hosts.clone(), wanted.challenge, status)
        };
        views::CertificatesView {
            acme: true,
            problem: self.problem.lock().clone(),
            certificates: self.wanted(fleet).iter().map(view).collect(),
        }
    }
}

/// The name of the certificate with this name, or else of the one that has this host among others.
fn name_for(wanted: &[WantedCertificate], host: &str) -> Option<String> {
    let host = host.to_ascii_lowercase();
    let named = wanted.iter().find(|one| one.hosts.first() == Some(&host));
    let found = named.or_else(|| wanted.iter().find(|one| one.hosts.contains(&host)))?;
    found.hosts.first().cloned()
}

fn certificate_view(
    name: String,
    hosts: Vec<String>,
    challenge: AcmeChallenge,
    status: Option<&Status>,
) -> views::CertificateView {
    let validity = status.and_then(|status| status.validity_unix_s);
    let error = status.and_then(|status| status.last_error.as_ref());
    views::CertificateView {
        name,
        hosts,
        challenge: match challenge {
            AcmeChallenge::Dns => "dns",
            AcmeChallenge::Http => "http",
        }
        .to_owned(),
        authority: status.and_then(|status| status.authority.clone()),
        not_before_unix_s: validity.map(|(begin, _)| begin),
        not_after_unix_s: validity.map(|(_, end)| end),
        next_order_unix_s: status.and_then(|status| status.next_unix_s),
        ordering: status.is_some_and(|status| status.is_ordering),
        failures: status.map_or(0, |status| status.failures),
        last_error: error.map(|error| views::CertificateErrorView {
            unix_s: error.unix_s,
            authority: error.authority.clone(),
            reason: error.reason.clone(),
        }),
    }
}

/// The certificates for the edges of a cluster, with a tag (RFC 9110 section 8.8.3) that changes with
/// them.
pub(crate) fn list(
    in_force: &[InForce],
    fleet: &Fleet,
    cluster: usize,
) -> (CertificateList, String) {
    let hosts = ClusterHosts::of(fleet, cluster);
    let certificates: Vec<Listed> = in_force
        .iter()
        .filter(|one| hosts.show(&one.issued.hosts))
        .take(CERTIFICATES_MAX)
        .map(|one| Listed {
            name: one.name().to_owned(),
            digest: one.digest.clone(),
        })
        .collect();
    let name = &fleet.clusters[cluster].name;
    let all: Vec<&str> = certificates
        .iter()
        .flat_map(|one| [one.name.as_str(), one.digest.as_str()])
        .collect();
    let tag = format!(
        "\"{}\"",
        &digest(&format!("{name} {}", all.join(" ")))[..32]
    );
    let list = CertificateList {
        cluster: name.clone(),
        certificates,
    };
    (list, tag)
}

/// Those with these digests, for the edges of a cluster.
pub(crate) fn contents(
    in_force: &[InForce],
    fleet: &Fleet,
    cluster: usize,
    digests: &[&str],
) -> Vec<OpenedCertificate> {
    let hosts = ClusterHosts::of(fleet, cluster);
    in_force
        .iter()
        .filter(|one| digests.contains(&one.digest.as_str()) && hosts.show(&one.issued.hosts))
        .map(|one| OpenedCertificate {
            name: one.name().to_owned(),
            pem: one.issued.pem.clone(),
        })
        .collect()
}

/// Has certificates ordered for the fleet until shutdown. `directory` is the keeper's.
pub(crate) async fn run(state: Arc<State>, directory: PathBuf, mut shutdown: Shutdown) {
    let mut fleets = state.fleet.subscribe();
    // Of a keeper, once there is one.
    let mut issued: Option<watch::Receiver<_>> = None;
    let mut working = JoinSet::new();
    let mut wants = None;
    loop {
        let fleet = fleets.borrow_and_update().clone();
        if fleet.acme.is_some() && issued.is_none() {
            issued = open(&state, &directory, &shutdown, &mut working).await;
        }
        if let Some(keeper) = state.certificates.keeper.get() {
            want(&state, keeper, &fleet, &mut wants).await;
        }
        publish(&state, &fleet, issued.as_mut());

        let changed = async {
            match &mut issued {
                Some(issued) => drop(issued.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = changed => {}
            _ = fleets.changed() => {}
            () = shutdown.requested() => break,
        }
    }
    while working.join_next().await.is_some() {}
}

type AllIssued = Arc<BTreeMap<String, Arc<Issued>>>;

/// Opens the keeper's directory and lets it work.
async fn open(
    state: &Arc<State>,
    directory: &Path,
    shutdown: &Shutdown,
    working: &mut JoinSet<()>,
) -> Option<watch::Receiver<AllIssued>> {
    let solver = FleetSolver::new(state);
    let listener = {
        let state = Arc::downgrade(state);
        Arc::new(move |event| {
            if let Some(state) = state.upgrade() {
                note(&state, event);
            }
        })
    };
    let path = directory.to_owned();
    let opened = tokio::task::spawn_blocking(move || Keeper::open(path, solver, listener)).await;
    let keeper = match opened.map_err(std::io::Error::other).and_then(|o| o) {
        Ok(keeper) => Arc::new(keeper),
        Err(error) => {
            let problem = format!("cannot use {}: {error}", directory.display());
            set_problem(state, Some(problem));
            return None;
        }
    };
    let issued = keeper.issued();
    working.spawn(keeper.clone().run(shutdown.clone()));
    drop(state.certificates.keeper.set(keeper));
    set_problem(state, None);
    Some(issued)
}

/// Shows a problem, with an event when it is new.
fn set_problem(state: &State, problem: Option<String>) {
    let mut shown = state.certificates.problem.lock();
    if *shown == problem {
        return;
    }
    if let Some(problem) = &problem {
        let event = NewEvent::new("certificate_failed", Level::Warn, problem.clone());
        state.events.add(now_unix_ms(), [event]);
    }
    *shown = problem;
}

/// What a keeper was last told.
type Wants = (Vec<acme::Wanted>, Vec<acme::Authority>, Vec<String>);

/// Tells the keeper what the fleet wants, where that has changed.
async fn want(
    state: &State,
    keeper: &Arc<Keeper<FleetSolver>>,
    fleet: &Arc<Fleet>,
    last: &mut Option<Wants>,
) {
    let of = fleet.clone();
    // Reads the files of keys.
    let Ok((wants, problem)) = tokio::task::spawn_blocking(move || wants_of(&of)).await else {
        return;
    };
    set_problem(state, problem);
    if last.as_ref() != Some(&wants) {
        let (keeper, (wanted, authorities, contact)) = (keeper.clone(), wants.clone());
        let told =
            tokio::task::spawn_blocking(move || keeper.want(wanted, authorities, contact)).await;
        if told.is_ok() {
            *last = Some(wants);
        }
    }
}

fn wants_of(fleet: &Fleet) -> (Wants, Option<String>) {
    let Some(settings) = &fleet.acme else {
        return (Wants::default(), None);
    };
    let wanted = wanted_certificates(fleet)
        .into_iter()
        .map(|one| acme::Wanted {
            hosts: one.hosts,
            challenges: vec![match one.challenge {
                AcmeChallenge::Dns => ChallengeKind::Dns01,
                AcmeChallenge::Http => ChallengeKind::Http01,
            }],
        })
        .collect();
    let (authorities, problem) = authorities_of(settings);
    ((wanted, authorities, settings.contact.clone()), problem)
}

/// The authorities whose files can be read, and why another cannot be asked.
fn authorities_of(settings: &Acme) -> (Vec<acme::Authority>, Option<String>) {
    let mut problem = None;
    let mut authorities = Vec::new();
    for one in &settings.authorities {
        let external_account = match &one.external_account {
            None => None,
            Some(account) => match read_key(&account.hmac_key_file) {
                Ok(key) => Some((account.key_id.clone(), key)),
                Err(reason) => {
                    let path = account.hmac_key_file.display();
                    problem.get_or_insert(format!(
                        "the authority {} is not asked: {path} {reason}; write the key there that it shows (eab_hmac_key_file)",
                        one.name
                    ));
                    continue;
                }
            },
        };
        authorities.push(acme::Authority {
            name: one.name.clone(),
            directory: one.directory.clone(),
            ca: one.ca.clone(),
            external_account,
            profile: one.profile.clone(),
        });
    }
    (authorities, problem)
}

/// The key of an account elsewhere. The reason of an error contains nothing of it.
fn read_key(path: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text))
        .map_err(|error| format!("cannot be read: {error}"))?;
    let key = text.trim().trim_end_matches('=');
    let is_base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    match !key.is_empty() && key.bytes().all(is_base64url) {
        true => Ok(key.to_owned()),
        false => Err("contains no key in base64url".to_owned()),
    }
}

/// Gives edges what is in force, and brings metrics up to date.
fn publish(state: &State, fleet: &Arc<Fleet>, issued: Option<&mut watch::Receiver<AllIssued>>) {
    if let Some(issued) = issued {
        let issued = issued.borrow_and_update().clone();
        state.certificates.in_force.send_if_modified(|held| {
            let is_same = held.len() == issued.len()
                && held
                    .iter()
                    .zip(issued.values())
                    .all(|(held, one)| Arc::ptr_eq(&held.issued, one));
            if is_same {
                return false;
            }
            let former: BTreeMap<*const Issued, &str> = held
                .iter()
                .map(|one| (Arc::as_ptr(&one.issued), one.digest.as_str()))
                .collect();
            let in_force = issued.values().map(|one| InForce {
                digest: former
                    .get(&Arc::as_ptr(one))
                    .map_or_else(|| digest(&one.pem), |known| (*known).to_owned()),
                issued: one.clone(),
            });
            *held = Arc::new(in_force.collect());
            true
        });
    }

    let view = state.certificates.view(fleet);
    let metrics = &state.metrics;
    let set = |gauge: &IntGaugeVec, name: &str, value: Option<i64>| match value {
        Some(value) => gauge.with_label_values(&[name]).set(value),
        None => drop(gauge.remove_label_values(&[name])),
    };
    for one in &view.certificates {
        set(&metrics.certificate_expiry, &one.name, one.not_after_unix_s);
        set(
            &metrics.certificate_next_order,
            &one.name,
            one.next_order_unix_s,
        );
        let failures = Some(i64::from(one.failures));
        set(&metrics.certificate_failures, &one.name, failures);
    }
    let names: HashSet<&str> = view
        .certificates
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    let is_wanted = |name: &str| names.contains(name);
    for gauge in [
        &metrics.certificate_expiry,
        &metrics.certificate_next_order,
        &metrics.certificate_failures,
    ] {
        forget_others(gauge, is_wanted);
    }
}

/// Removes the values of certificates that are no longer wanted.
fn forget_others(gauge: &IntGaugeVec, is_wanted: impl Fn(&str) -> bool) {
    use prometheus::core::Collector as _;
    for family in gauge.collect() {
        for label in family.get_metric().iter().flat_map(|m| m.get_label()) {
            if !is_wanted(label.value()) {
                let _ = gauge.remove_label_values(&[label.value()]);
            }
        }
    }
}

/// Tells of an event.
fn note(state: &State, event: Event) {
    let count = |authority: Option<&str>, result: &str| {
        state
            .metrics
            .acme_orders
            .with_label_values(&[authority.unwrap_or(""), result])
            .inc();
    };
    let new_event = match event {
        Event::Obtained {
            name,
            authority,
            not_after_unix_s,
            is_renewal,
        } => {
            count(Some(&authority), "obtained");
            let what = if is_renewal { "renewed" } else { "obtained" };
            let until = shown_time(not_after_unix_s);
            let message =
                format!("certificate {name} {what} from {authority}, valid until {until}");
            NewEvent::new("certificate_obtained", Level::Good, message)
        }
        Event::Failed {
            name,
            authority,
            reason,
            next_unix_s,
        } => {
            count(authority.as_deref(), "failed");
            let next = shown_time(next_unix_s);
            // Most reasons name the authority themselves.
            let authority = authority.filter(|name| !reason.contains(name.as_str()));
            let from = authority.map_or_else(String::new, |name| format!(" from {name}"));
            let message =
                format!("certificate {name} not obtained{from}: {reason}; next order {next}");
            NewEvent::new("certificate_failed", Level::Warn, message)
        }
        Event::Advised {
            name,
            authority,
            renew_unix_s,
            explanation_url,
        } => {
            let when = shown_time(renew_unix_s);
            let why = explanation_url.map_or_else(String::new, |url| format!("; see {url}"));
            let message = format!("{authority} advises to renew certificate {name} at {when}{why}");
            NewEvent::new("certificate_advised", Level::Warn, message)
        }
    };
    state.events.add(now_unix_ms(), [new_event]);
}

/// A time for people, in UTC.
fn shown_time(unix_s: i64) -> String {
    jiff::Timestamp::from_second(unix_s).map_or_else(
        |_| unix_s.to_string(),
        |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearcast_fleet::config::{AcmeAuthority, ExternalAccount};
    use nearcast_fleet::testing::FleetText;

    fn in_force(hosts: &[&str]) -> InForce {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let pem = format!("PEM of {}", hosts[0]);
        InForce {
            digest: digest(&pem),
            issued: Arc::new(Issued {
                hosts,
                pem,
                authority: "own".to_owned(),
                not_before_unix_s: 0,
                not_after_unix_s: 1,
            }),
        }
    }

    #[test]
    fn an_edge_gets_the_certificates_of_its_cluster_alone() {
        let site = |name: &str, cluster: &str| {
            format!(
                "[[site]]\nname = \"{name}\"\nhosts = [\"www.{name}.test\"]\norigin = \"http://127.0.0.1:1\"\nclusters = [\"{cluster}\"]\n"
            )
        };
        let fleet = FleetText::new()
            .cluster("ams", &["192.0.2.1"])
            .cluster("nyc", &["192.0.2.2"])
            .text_after(&(site("a", "ams") + &site("b", "nyc")))
            .fleet();
        let all = [in_force(&["www.a.test"]), in_force(&["*.b.test", "b.test"])];
        let names = |cluster| {
            let (list, _) = list(&all, &fleet, cluster);
            let names = list.certificates.into_iter().map(|one| one.name);
            names.collect::<Vec<_>>()
        };
        assert_eq!(names(0), ["www.a.test"]);
        assert_eq!(names(1), ["*.b.test"]);
        // Nor by a digest that it has learned elsewhere.
        let digests: Vec<&str> = all.iter().map(|one| one.digest.as_str()).collect();
        let got = contents(&all, &fleet, 0, &digests);
        assert!(got.len() == 1 && got[0].pem == "PEM of www.a.test");
        assert!(contents(&all, &fleet, 0, &digests[1..]).is_empty());

        let tag = |all: &[InForce], cluster| list(all, &fleet, cluster).1;
        assert_ne!(tag(&all, 0), tag(&all, 1));
        assert_eq!(
            tag(&all, 0),
            tag(&all[..1], 0),
            "the other cluster's changed"
        );
        assert_ne!(tag(&all, 1), tag(&all[..1], 1));
    }

    #[test]
    fn any_host_of_a_certificate_finds_it() {
        let of = |hosts: &[&str]| WantedCertificate {
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            challenge: AcmeChallenge::Dns,
        };
        let wanted = [of(&["*.a.test", "a.test", "b.test"]), of(&["b.test"])];
        for (asked, found) in [
            ("*.a.test", Some("*.a.test")),
            ("a.test", Some("*.a.test")),
            ("A.Test", Some("*.a.test")),
            ("b.test", Some("b.test")),
            ("c.test", None),
        ] {
            assert_eq!(name_for(&wanted, asked).as_deref(), found, "{asked}");
        }
    }

    #[test]
    fn an_authority_whose_key_cannot_be_read_is_left_out_and_the_reason_names_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = |name: &str, file: Option<&str>| AcmeAuthority {
            name: name.to_owned(),
            directory: "https://acme.test/".to_owned(),
            ca: None,
            external_account: file.map(|file| ExternalAccount {
                key_id: "kid".to_owned(),
                hmac_key_file: dir.path().join(file),
            }),
            profile: None,
        };
        let of = |authority: AcmeAuthority| {
            let settings = Acme {
                authorities: vec![authority],
                contact: Vec::new(),
                resolver: None,
                challenge: None,
                certificates: Vec::new(),
            };
            let (authorities, problem) = authorities_of(&settings);
            let keys = authorities.into_iter().map(|one| one.external_account);
            (keys.collect::<Vec<_>>(), problem)
        };
        assert_eq!(of(authority("a", None)), (vec![None], None));
        std::fs::write(dir.path().join("good"), "c2VjcmV0LXNlY3JldA==\n").expect("space");
        let account = ("kid".to_owned(), "c2VjcmV0LXNlY3JldA".to_owned());
        assert_eq!(
            of(authority("a", Some("good"))),
            (vec![Some(account)], None)
        );
        std::fs::write(dir.path().join("bad"), "not a key!").expect("space");
        std::fs::write(dir.path().join("empty"), "\n").expect("space");
        for (file, reason) in [
            ("bad", "contains no key"),
            ("empty", "contains no key"),
            ("missing", "cannot be read"),
        ] {
            let (authorities, problem) = of(authority("own", Some(file)));
            let problem = problem.expect(file);
            assert!(authorities.is_empty());
            assert!(
                problem.contains(reason)
                    && problem.contains("authority own")
                    && problem.contains(&format!("{file} "))
                    && !problem.contains("not a key!"),
                "{problem}"
            );
        }
    }
}
