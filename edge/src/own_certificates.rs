//! The certificates of an edge without control, which orders them itself: where it looks before an
//! order, how it answers the authority, and what its operator is told.
//!
//! An authority asks at port 443 (`tls-alpn-01`, RFC 8737) or 80 (`http-01`, RFC 8555 section 8.3).
//! This node cannot know which of them reaches it, so after a failure the other one comes first. Owns
//! no orders and no renewal times ([`nearcast_acme`]), and no handshakes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use nearcast_acme::lookup::{
    HostAddresses, Judgement, LeadBy, LookupError, Resolver, http_leads_here,
};
use nearcast_acme::{Authority, Challenge, ChallengeKind, Event, Keeper, Solver, Status, Wanted};
use nearcast_fleet::change::HttpChallenge;
use nearcast_fleet::config::{Acme, Fleet, Node};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_net::shutdown::Shutdown;
use nearcast_net::tls;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::certificates::Certificates;
use crate::challenges::Challenges;
use crate::edge::Edge;
use crate::kernel;

/// Directory of accounts and certificates, in that of the node.
const DIRECTORY: &str = "acme";
/// The file that a running edge has locked, in the directory of the node.
const LOCK: &str = "lock";
/// Directory of the certificates in that one, a file (certificate, chain, key) for each host.
const CERTIFICATES: &str = "certificates";
/// Messages of the keeper that may wait.
const EVENTS_MAX: usize = 64;
/// How often a name without an address is looked at again: its operator may be about to write it.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How often it is looked whether an order has ended, and how many times.
const ENDS_LOOK: Duration = Duration::from_millis(50);
const ENDS_AFTER_MAX: usize = 100;
/// Ports at which authorities ask.
const HTTPS_PORT: u16 = 443;
const HTTP_PORT: u16 = 80;
/// Addresses by which the system chooses the source of a route to the Internet (RFC 5737, RFC 3849).
/// Nothing is sent to them.
const SOMEWHERE: [&str; 2] = ["198.51.100.1:9", "[2001:db8::1]:9"];

/// The certificates that a node of this fleet orders itself; `None` where control does.
pub(crate) fn ordered_by_node(fleet: &Fleet) -> Option<&Acme> {
    fleet.acme.as_ref().filter(|_| fleet.control.is_none())
}

fn hosts(acme: &Acme) -> impl Iterator<Item = &String> {
    acme.certificates.iter().flat_map(|one| &one.hosts)
}

/// The files of certificates that are there. Blocks.
pub(crate) fn files(acme: &Acme, directory: &Path) -> Vec<PathBuf> {
    let certificates = directory.join(DIRECTORY).join(CERTIFICATES);
    let files = hosts(acme).map(|host| certificates.join(format!("{host}.pem")));
    files.filter(|file| file.exists()).collect()
}

/// The challenge that each host's last order answered.
type Used = Arc<Mutex<HashMap<String, ChallengeKind>>>;

/// Orders and renews the certificates of a node.
pub(crate) struct OwnCertificates {
    keeper: Arc<Keeper<OwnSolver>>,
    names: Arc<Names>,
    events: mpsc::Receiver<Event>,
    acme: Acme,
    directory: PathBuf,
    certificates: Arc<Certificates>,
    kinds: Vec<ChallengeKind>,
    /// The challenges by which hosts got their last certificates.
    proven: HashMap<String, ChallengeKind>,
    /// Hosts whose last order failed.
    failing: HashSet<String>,
    used: Used,
    /// What follows a host in its URL.
    port: String,
    /// Held, never read.
    _lock: File,
}

impl OwnCertificates {
    /// Locks the directory of the node, and opens that of accounts and certificates in it. Blocks.
    ///
    /// # Errors
    /// One cannot be made or read, or another process has the lock.
    pub(crate) fn open(
        edge: &Edge,
        acme: &Acme,
        node: &Node,
        directory: PathBuf,
    ) -> Result<Self, Failure> {
        let lock = lock(&directory)?;
        let resolver = Resolver::or_of_system(acme.resolver).map_err(|error| {
            Failure::new(
                FailureKind::NoInput,
                format!("cannot read the system's list of resolvers: {error}"),
            )
        })?;
        let names = Arc::new(Names {
            named: acme.resolver,
            resolver,
            listen: node
                .listen_tls
                .iter()
                .chain(&node.listen)
                .copied()
                .collect(),
            unready: Mutex::default(),
        });
        let used = Used::default();
        let solver = OwnSolver {
            names: names.clone(),
            open: Mutex::default(),
            used: used.clone(),
            http: edge.challenges.clone(),
            tls: edge.certificates.side().challenges().clone(),
        };
        let (noted, events) = mpsc::channel(EVENTS_MAX);
        // Words for the log only: where too many wait, the newest are left out.
        let listener = move |event| drop(noted.try_send(event));
        let root = directory.join(DIRECTORY);
        let keeper = Keeper::open(root.clone(), solver, Arc::new(listener));
        let keeper = keeper.map_err(|error| unusable(&root, &error))?;
        match check_writable(&root) {
            // What is there is shown meanwhile.
            Err(error) if is_full(&error) => {
                tracing::warn!("{error}: no certificate is ordered until it can be kept");
            }
            checked => checked.map_err(|error| unusable(&root, &error))?,
        }

        let made = Self {
            keeper: Arc::new(keeper),
            names,
            events,
            kinds: kinds(node),
            port: port_in_url(node),
            _lock: lock,
            acme: acme.clone(),
            directory,
            certificates: edge.certificates.clone(),
            proven: HashMap::new(),
            failing: HashSet::new(),
            used,
        };
        made.want();
        made.announce();
        Ok(made)
    }

    /// Works until the node ends.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        let keeper = self.keeper.clone();
        let names = self.names.clone();
        let mut issued = keeper.issued();
        issued.mark_changed();
        let follow = async {
            loop {
                tokio::select! {
                    changed = issued.changed() => match changed {
                        Ok(()) => self.show().await,
                        Err(_) => return,
                    },
                    event = self.events.recv() => match event {
                        Some(event) => {
                            if let Some(name) = self.note(event) {
                                self.order_again(&name).await;
                            }
                        }
                        None => return,
                    },
                }
            }
        };
        tokio::select! {
            () = keeper.clone().run(shutdown) => {}
            () = follow => {}
            () = watch(&names, &keeper) => {}
        }
    }

    fn want(&self) {
        let wanted = hosts(&self.acme).map(|host| {
            let mut challenges = self.kinds.clone();
            // What the authority has reached before it will reach again.
            let proven = self.proven.get(host);
            challenges.sort_by_key(|kind| Some(kind) != proven);
            Wanted {
                hosts: vec![host.clone()],
                challenges,
            }
        });
        let authorities = self.acme.authorities.iter().map(|authority| Authority {
            name: authority.name.clone(),
            directory: authority.directory.clone(),
            ca: authority.ca.clone(),
            external_account: None,
            profile: authority.profile.clone(),
        });
        self.keeper.want(
            wanted.collect(),
            authorities.collect(),
            self.acme.contact.clone(),
        );
    }

    fn announce(&self) {
        let here = files(&self.acme, &self.directory);
        let is_here = |host: &&String| {
            let name = format!("{host}.pem");
            here.iter().any(|file| file.ends_with(&name))
        };
        let (kept, missing): (Vec<&String>, Vec<&String>) = hosts(&self.acme).partition(is_here);
        for host in kept {
            tracing::info!(
                "https://{host}{} has a certificate of an earlier run",
                self.port
            );
        }
        let Some(authority) = self
            .acme
            .authorities
            .first()
            .filter(|_| !missing.is_empty())
        else {
            return;
        };
        let (name, directory) = (&authority.name, &authority.directory);
        tracing::info!(
            "getting certificates from {name} accepts its terms of service, which {directory} names"
        );
        for host in missing {
            tracing::info!(
                "waiting for a certificate of {host} from {name}; until then https is refused and http redirects there"
            );
        }
    }

    /// Shows the certificates that are in the directory now.
    async fn show(&self) {
        let (acme, directory) = (self.acme.clone(), self.directory.clone());
        // An error means that the runtime ends.
        if let Ok(files) = tokio::task::spawn_blocking(move || files(&acme, &directory)).await {
            self.certificates.set_ordered(files);
        }
    }

    /// Says what has happened. Gives the name of a certificate that is to be ordered again.
    fn note(&mut self, event: Event) -> Option<String> {
        match event {
            Event::Obtained {
                name,
                authority,
                not_after_unix_s,
                is_renewal,
            } => {
                self.failing.remove(&name);
                let used = self.used.lock().remove(&name);
                if let Some(kind) = used
                    && self.proven.insert(name.clone(), kind) != Some(kind)
                {
                    self.want();
                }
                let what = if is_renewal { "renewed" } else { "obtained" };
                let end = date(not_after_unix_s);
                tracing::info!(
                    "https://{name}{} is served: {what} a certificate of {authority}, valid until {end}",
                    self.port
                );
            }
            Event::Failed {
                name,
                reason,
                next_unix_s,
                ..
            } => {
                // Another challenge helps where one was shown, and not against an authority that is down.
                let was_shown = self.used.lock().remove(&name).is_some();
                let is_first = was_shown && self.failing.insert(name.clone());
                let is_now = is_first && self.kinds.len() > 1;
                let when = match is_now {
                    true => "by another challenge now".to_owned(),
                    false => format!("at {}", date(next_unix_s)),
                };
                tracing::warn!("no new certificate of {name}: {reason}; it is tried again {when}");
                return is_now.then_some(name);
            }
            Event::Advised {
                name,
                authority,
                renew_unix_s,
                explanation_url,
            } => {
                let when = date(renew_unix_s);
                let page = explanation_url.unwrap_or_default();
                tracing::info!(page, "{authority} advises to renew {name} at {when}");
            }
        }
        None
    }

    /// Orders a certificate again, when the order that failed has ended.
    async fn order_again(&self, name: &str) {
        for _ in 0..ENDS_AFTER_MAX {
            let statuses = self.keeper.statuses();
            let is_ordering = |status: &Status| status.is_ordering && status.hosts[0] == name;
            if !statuses.iter().any(is_ordering) {
                break;
            }
            tokio::time::sleep(ENDS_LOOK).await;
        }
        self.keeper.renew_now(name).await;
    }
}

/// Locks the directory of the node. Two processes would order the same certificates twice, and write
/// the same files.
fn lock(directory: &Path) -> Result<File, Failure> {
    let opened = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .and_then(|()| {
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(directory.join(LOCK))
        });
    let file = opened.map_err(|error| unusable(directory, &error))?;
    match kernel::lock(&file) {
        Ok(()) => Ok(file),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(Failure::new(
            FailureKind::Unavailable,
            format!(
                "{} is in use by another edge; stop that one first, or name another directory with --state-dir",
                directory.display()
            ),
        )),
        Err(error) => Err(unusable(directory, &error)),
    }
}

fn unusable(directory: &Path, error: &std::io::Error) -> Failure {
    let kind = match is_full(error) {
        true => FailureKind::Io,
        false => FailureKind::CannotCreate,
    };
    Failure::new(
        kind,
        format!(
            "cannot keep certificates in {}: {error}; make it a directory of the user that the edge runs as, or name another with --state-dir",
            directory.display()
        ),
    )
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// An order whose certificate could not be kept would be lost, and count against the authority's
/// limits.
fn check_writable(directory: &Path) -> std::io::Result<()> {
    let probe = directory.join(".probe");
    fs::write(&probe, b"-")?;
    fs::remove_file(probe)
}

/// The challenges that the node's listeners can answer, the likeliest first.
fn kinds(node: &Node) -> Vec<ChallengeKind> {
    use ChallengeKind::{Http01, TlsAlpn01};
    let has_port = |listen: &[SocketAddr], port: u16| listen.iter().any(|at| at.port() == port);
    let is_https_reached = has_port(&node.listen_tls, HTTPS_PORT);
    match (node.listen.is_empty(), is_https_reached) {
        (true, _) => vec![TlsAlpn01],
        // Ports may be passed on from others, so neither is ruled out.
        (false, false) if has_port(&node.listen, HTTP_PORT) => vec![Http01, TlsAlpn01],
        (false, _) => vec![TlsAlpn01, Http01],
    }
}

fn port_in_url(node: &Node) -> String {
    let mut ports = node.listen_tls.iter().map(SocketAddr::port);
    match ports.clone().any(|port| port == HTTPS_PORT) {
        true => "/".to_owned(),
        false => ports
            .next()
            .map_or_else(String::new, |port| format!(":{port}/")),
    }
}

fn date(unix_s: i64) -> String {
    let since = Duration::from_secs(unix_s.try_into().unwrap_or_default());
    // The crate of dates ends with the year 9999, which certificates without end name.
    let shown = UNIX_EPOCH + since.min(Duration::from_secs(253_402_300_799));
    httpdate::fmt_http_date(shown)
}

/// Orders the certificates of names that had no address and now have one.
async fn watch(names: &Names, keeper: &Keeper<OwnSolver>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let unready = names.unready.lock().clone();
        for host in unready {
            let found = names.addresses(&host).await;
            if found.is_ok_and(|found| !found.list.is_empty()) {
                names.unready.lock().remove(&host);
                tracing::info!("{host} has an address now");
                keeper.renew_now(&host).await;
            }
        }
    }
}

/// Where the names lead.
struct Names {
    /// The resolver that was named.
    named: Option<SocketAddr>,
    /// That one, or those that the system had at the start.
    resolver: Resolver,
    listen: Vec<SocketAddr>,
    /// Hosts that had no address when they were last looked at.
    unready: Mutex<BTreeSet<String>>,
}

impl Names {
    /// The addresses of a host. The system may have other resolvers by now, as in another network.
    async fn addresses(&self, host: &str) -> Result<HostAddresses, LookupError> {
        let now = Resolver::or_of_system(self.named);
        let resolver = now.unwrap_or_else(|_| self.resolver.clone());
        resolver.addresses(host).await
    }

    /// Looks where a host leads, and says it.
    async fn look(&self, host: &str) -> Result<(), String> {
        let found = self.addresses(host).await;
        let ours = self.ours(&found);
        let judged = http_leads_here(host, &found, &ours, LeadBy::Addresses);
        let has_none = found.is_ok_and(|found| found.list.is_empty());
        let mut unready = self.unready.lock();
        unready.remove(host);
        match judged {
            Judgement::Here => tracing::info!("{host} leads to this machine"),
            Judgement::Partly(advice) => tracing::warn!("{advice}"),
            Judgement::Elsewhere(advice) if has_none => {
                unready.insert(host.to_owned());
                return Err(advice.to_string());
            }
            // This machine may be behind a router or a proxy that has the address.
            Judgement::Elsewhere(advice) => tracing::warn!(
                "{}; unless that passes ports 443 and 80 on to this machine, {}",
                advice.reason,
                advice.hint
            ),
            Judgement::Unknown(reason) => {
                tracing::warn!("whether {host} leads to this machine cannot be checked: {reason}");
            }
        }
        Ok(())
    }

    /// The addresses of this machine, as far as they are known: those of its listeners, of its routes
    /// to the Internet, and those of the host that are its own.
    fn ours(&self, found: &Result<HostAddresses, LookupError>) -> Vec<IpAddr> {
        let listen = self.listen.iter().map(SocketAddr::ip);
        let mut ours: Vec<IpAddr> = listen.filter(|ip| !ip.is_unspecified()).collect();
        let is_every = self.listen.iter().any(|at| at.ip().is_unspecified());
        if is_every {
            let own = found.iter().flat_map(|found| &found.list).copied();
            ours.extend(own.filter(|address| is_of_this_machine(*address)));
            ours.extend(SOMEWHERE.iter().filter_map(|there| source_towards(there)));
        }
        ours.sort_unstable();
        ours.dedup();
        ours
    }
}

/// Whether an interface of this machine has the address: only then a socket can.
fn is_of_this_machine(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// The address that this machine uses towards another.
fn source_towards(there: &str) -> Option<IpAddr> {
    let there: SocketAddr = there.parse().ok()?;
    let any = match there {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(there).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Answers challenges on the listeners of this node.
struct OwnSolver {
    names: Arc<Names>,
    open: Mutex<Vec<Challenge>>,
    used: Used,
    http: Arc<Challenges>,
    tls: Arc<tls::Challenges>,
}

impl OwnSolver {
    /// Publishes the open challenges.
    fn publish(&self, open: &[Challenge]) -> Result<(), String> {
        let (mut http, mut tls) = (Vec::new(), Vec::new());
        for challenge in open {
            match challenge.clone() {
                Challenge::Http01 {
                    host,
                    token,
                    key_authorization,
                } => http.push(HttpChallenge {
                    host,
                    token,
                    key_authorization,
                }),
                Challenge::TlsAlpn01 { host, digest } => tls.push((host, digest)),
                Challenge::Dns01 { host, .. } => {
                    return Err(format!("this edge has no name servers to ask about {host}"));
                }
            }
        }
        self.tls.set(&tls).map_err(|error| error.to_string())?;
        self.http.set(http);
        Ok(())
    }
}

impl Solver for OwnSolver {
    async fn precheck(&self, wanted: &Wanted) -> Result<(), String> {
        for host in &wanted.hosts {
            self.names.look(host).await?;
        }
        Ok(())
    }

    async fn present(&self, challenges: Vec<Challenge>) -> Result<(), String> {
        let mut open = self.open.lock();
        for challenge in &challenges {
            let (host, kind) = match challenge {
                Challenge::Dns01 { host, .. } => (host, ChallengeKind::Dns01),
                Challenge::Http01 { host, .. } => (host, ChallengeKind::Http01),
                Challenge::TlsAlpn01 { host, .. } => (host, ChallengeKind::TlsAlpn01),
            };
            self.used.lock().insert(host.clone(), kind);
        }
        let all = [open.clone(), challenges].concat();
        self.publish(&all)?;
        *open = all;
        Ok(())
    }

    async fn withdraw(&self, challenges: Vec<Challenge>) {
        let mut open = self.open.lock();
        open.retain(|one| !challenges.contains(one));
        if let Err(reason) = self.publish(&open) {
            tracing::warn!(
                reason,
                "challenges of authorities are answered that are over"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::file::{StandaloneAcme, StandaloneEdge, standalone_edge};

    use super::*;

    fn fleet(listen: &[&str], listen_tls: &[&str]) -> Fleet {
        let all = |texts: &[&str]| {
            let parse = |text: &&str| text.parse().expect("an address");
            texts.iter().map(parse).collect()
        };
        let edge = StandaloneEdge {
            listen: all(listen),
            listen_tls: all(listen_tls),
            certificates: Vec::new(),
            ordered: StandaloneAcme {
                hosts: vec!["a.test".to_owned(), "b.test".to_owned()],
                ..StandaloneAcme::default()
            },
            origin: "http://127.0.0.1:8000".to_owned(),
            state_dir: "/tmp/x".into(),
            memory: nearcast_fleet::units::Bytes(1 << 20),
            disk: nearcast_fleet::units::Bytes(0),
            cache: nearcast_fleet::config::CachePolicy::default(),
        };
        standalone_edge(edge).expect("good")
    }

    #[test]
    fn the_challenge_that_listeners_are_likeliest_to_get_comes_first() {
        use ChallengeKind::{Http01, TlsAlpn01};
        for (listen, listen_tls, expected, url) in [
            (
                &["[::]:80"][..],
                &["[::]:443"][..],
                &[TlsAlpn01, Http01][..],
                "/",
            ),
            (&[], &["[::]:443"], &[TlsAlpn01], "/"),
            (&[], &["[::]:8443"], &[TlsAlpn01], ":8443/"),
            (&["[::]:80"], &["[::]:8443"], &[Http01, TlsAlpn01], ":8443/"),
            (
                &["[::]:8080"],
                &["[::]:8443"],
                &[TlsAlpn01, Http01],
                ":8443/",
            ),
        ] {
            let fleet = fleet(listen, listen_tls);
            let (_, node) = fleet.edge("edge").expect("it is there");
            assert_eq!(kinds(node), expected, "{listen:?} {listen_tls:?}");
            assert_eq!(port_in_url(node), url, "{listen_tls:?}");
        }
    }

    #[test]
    fn an_edge_without_control_orders_its_certificates() {
        let own = fleet(&["127.0.0.1:80"], &["127.0.0.1:443"]);
        let acme = ordered_by_node(&own).expect("it has hosts");
        assert_eq!(hosts(acme).collect::<Vec<_>>(), ["a.test", "b.test"]);
        let directory = tempfile::tempdir().expect("a directory");
        let certificates = directory.path().join("acme/certificates");
        fs::create_dir_all(&certificates).expect("made");
        for name in ["b.test.pem", "c.test.pem"] {
            fs::write(certificates.join(name), "").expect("written");
        }
        let expected = [certificates.join("b.test.pem")];
        assert_eq!(
            files(acme, directory.path()),
            expected,
            "of its hosts, and there"
        );
    }

    #[test]
    fn open_challenges_are_answered_until_they_are_withdrawn() {
        let (http, tls) = (Arc::new(Challenges::default()), Arc::default());
        let names = Names {
            named: None,
            resolver: Resolver::at(([127, 0, 0, 1], 53).into()),
            listen: Vec::new(),
            unready: Mutex::default(),
        };
        let solver = OwnSolver {
            names: Arc::new(names),
            open: Mutex::default(),
            used: Used::default(),
            http: http.clone(),
            tls,
        };
        let of = |host: &str| Challenge::Http01 {
            host: host.to_owned(),
            token: "token".to_owned(),
            key_authorization: format!("for {host}"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(async {
            solver.present(vec![of("a.test")]).await.expect("shown");
            solver.present(vec![of("b.test")]).await.expect("shown");
            let found = ["a.test", "b.test"].map(|host| http.find(host, "token"));
            assert_eq!(
                found,
                ["for a.test", "for b.test"].map(|of| Some(of.to_owned()))
            );
            solver.withdraw(vec![of("a.test")]).await;
            assert_eq!(http.find("a.test", "token"), None);
            assert!(http.find("b.test", "token").is_some(), "of another order");

            let dns = Challenge::Dns01 {
                host: "a.test".to_owned(),
                value: "v".to_owned(),
            };
            assert!(
                solver.present(vec![dns]).await.is_err(),
                "there is no name server"
            );
            assert!(http.find("b.test", "token").is_some(), "still open");
        });
        assert_eq!(
            solver.used.lock().get("b.test"),
            Some(&ChallengeKind::Http01)
        );
    }

    #[test]
    fn addresses_of_this_machine_are_known() {
        assert!(is_of_this_machine(IpAddr::from([127, 0, 0, 1])));
        assert!(!is_of_this_machine(IpAddr::from([192, 0, 2, 1])));
        let names = |listen: &str| Names {
            named: None,
            resolver: Resolver::at(([127, 0, 0, 1], 53).into()),
            listen: vec![listen.parse().expect("an address")],
            unready: Mutex::default(),
        };
        let found = |address: [u8; 4]| {
            Ok(HostAddresses {
                chain: Vec::new(),
                list: vec![address.into()],
            })
        };
        let here = found([127, 0, 0, 9]);
        let one = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(names("127.0.0.1:443").ours(&here), [one]);
        let every = names("0.0.0.0:443");
        assert!(every.ours(&here).contains(&IpAddr::from([127, 0, 0, 9])));
        assert!(
            !every
                .ours(&found([192, 0, 2, 1]))
                .contains(&IpAddr::from([192, 0, 2, 1]))
        );
    }

    #[test]
    fn dates_have_bounds() {
        assert_eq!(date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date(-1), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert!(date(i64::MAX).contains("9999"));
    }
}
