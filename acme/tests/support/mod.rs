//! What the tests of this crate share: a keeper with its directory and events, a solver whose answers
//! a name server and a web server give, and certificates for servers.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nearcast_acme::{
    Authority, Challenge, ChallengeKind, Event, Issued, Keeper, Limits, Solver, Status, Wanted,
};
use nearcast_net::shutdown::{self, ShutdownTrigger};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

/// The longest wait for what is to happen, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until something is so.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Answers challenges from memory.
#[derive(Clone, Default)]
pub(crate) struct TestSolver {
    pub(crate) inner: Arc<Answers>,
}

#[derive(Default)]
pub(crate) struct Answers {
    /// What is shown now.
    pub(crate) shown: Mutex<Vec<Challenge>>,
    /// How many challenges were shown so far.
    pub(crate) count: AtomicUsize,
    /// Another client's answer, which is shown in place of ours.
    pub(crate) taken_by: Mutex<Option<String>>,
    /// Why an order is bound to fail.
    pub(crate) precheck: Mutex<Option<String>>,
    pub(crate) prechecks: AtomicUsize,
    /// Why answers cannot be shown.
    pub(crate) fails: Mutex<Option<String>>,
}

impl Answers {
    /// The TXT records of a name.
    pub(crate) fn txt(&self, qname: &str) -> Vec<String> {
        let qname = qname.trim_end_matches('.').to_ascii_lowercase();
        let shown = self.shown.lock();
        let values = shown.iter().filter_map(|challenge| match challenge {
            Challenge::Dns01 { host, value } if qname == format!("_acme-challenge.{host}") => {
                Some(value.clone())
            }
            _ => None,
        });
        match (&*self.taken_by.lock(), values.collect::<Vec<_>>()) {
            (Some(other), values) if !values.is_empty() => vec![other.clone()],
            (_, values) => values,
        }
    }

    /// The file of a token.
    pub(crate) fn file(&self, wanted: &str) -> Option<String> {
        let shown = self.shown.lock();
        let found = shown.iter().find_map(|challenge| match challenge {
            Challenge::Http01 {
                token,
                key_authorization,
                ..
            } if token == wanted => Some(key_authorization.clone()),
            _ => None,
        });
        match &*self.taken_by.lock() {
            Some(other) => found.map(|_| other.clone()),
            None => found,
        }
    }
}

impl Solver for TestSolver {
    async fn precheck(&self, _wanted: &Wanted) -> Result<(), String> {
        self.inner.prechecks.fetch_add(1, Ordering::SeqCst);
        match &*self.inner.precheck.lock() {
            Some(reason) => Err(reason.clone()),
            None => Ok(()),
        }
    }

    async fn present(&self, challenges: Vec<Challenge>) -> Result<(), String> {
        self.inner
            .count
            .fetch_add(challenges.len(), Ordering::SeqCst);
        self.inner.shown.lock().extend(challenges);
        match &*self.inner.fails.lock() {
            Some(reason) => Err(reason.clone()),
            None => Ok(()),
        }
    }

    async fn withdraw(&self, challenges: Vec<Challenge>) {
        let mut shown = self.inner.shown.lock();
        shown.retain(|one| !challenges.contains(one));
    }
}

/// A keeper that works.
pub(crate) struct Running {
    pub(crate) keeper: Arc<Keeper<TestSolver>>,
    pub(crate) solver: TestSolver,
    pub(crate) events: Arc<Mutex<Vec<Event>>>,
    trigger: ShutdownTrigger,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Starts a keeper with a directory.
    pub(crate) fn start(dir: &Path, limits: Limits) -> Self {
        Self::start_with(dir, limits, TestSolver::default())
    }

    /// As [`Self::start`], with a solver that others answer for already.
    pub(crate) fn start_with(dir: &Path, limits: Limits, solver: TestSolver) -> Self {
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let heard = events.clone();
        let listener = Arc::new(move |event| heard.lock().push(event));
        let keeper = Keeper::open_with(dir.to_owned(), solver.clone(), listener, limits).unwrap();
        let keeper = Arc::new(keeper);
        let (trigger, shutdown) = shutdown::channel();
        let task = tokio::spawn(keeper.clone().run(shutdown));
        Self {
            keeper,
            solver,
            events,
            trigger,
            task,
        }
    }

    pub(crate) async fn stop(self) {
        self.trigger.shut_down();
        self.task.await.unwrap();
    }

    /// The certificate in force of this name.
    pub(crate) fn issued(&self, name: &str) -> Option<Arc<Issued>> {
        self.keeper.issued().borrow().get(name).cloned()
    }

    /// Waits for a certificate.
    pub(crate) async fn obtained(&self, name: &str) -> Arc<Issued> {
        until(&format!("{name}: {:?}", self.keeper.statuses()), || {
            self.issued(name)
        })
        .await
    }

    /// Waits for another certificate than this one.
    pub(crate) async fn obtained_after(&self, name: &str, former: &Issued) -> Arc<Issued> {
        until(&format!("another one of {name}"), || {
            self.issued(name).filter(|issued| issued.pem != former.pem)
        })
        .await
    }

    pub(crate) fn status(&self, name: &str) -> Status {
        let statuses = self.keeper.statuses();
        let status = statuses.iter().find(|status| status.hosts[0] == name);
        status
            .unwrap_or_else(|| panic!("no status of {name}"))
            .clone()
    }

    /// Waits until `count` orders have failed and none is under way; the last reason.
    pub(crate) async fn failed(&self, name: &str, count: usize) -> String {
        until(&format!("{name} fails"), || {
            let status = self.status(name);
            let failed = self.failures(name);
            (failed.len() >= count && !status.is_ordering).then(|| failed[count - 1].clone())
        })
        .await
    }

    /// Reasons of the orders that failed.
    pub(crate) fn failures(&self, wanted: &str) -> Vec<String> {
        let events = self.events.lock();
        let reasons = events.iter().filter_map(|event| match event {
            Event::Failed { name, reason, .. } if name == wanted => Some(reason.clone()),
            _ => None,
        });
        reasons.collect()
    }

    /// How many certificates of this name were obtained.
    pub(crate) fn successes(&self, wanted: &str) -> usize {
        let events = self.events.lock();
        let of_name =
            |event: &&Event| matches!(event, Event::Obtained { name, .. } if name == wanted);
        events.iter().filter(of_name).count()
    }
}

pub(crate) fn wanted(hosts: &[&str], challenges: &[ChallengeKind]) -> Wanted {
    Wanted {
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        challenges: challenges.to_vec(),
    }
}

pub(crate) fn authority(name: &str, directory: String, ca: PathBuf) -> Authority {
    Authority {
        name: name.to_owned(),
        directory,
        ca: Some(ca),
        external_account: None,
        profile: None,
    }
}

/// Bounds for servers of this machine.
pub(crate) fn limits() -> Limits {
    Limits {
        order_burst: 1000,
        order_interval: Duration::from_millis(1),
        ..Limits::default()
    }
}

/// An address that nobody listens on.
pub(crate) fn free_address() -> SocketAddr {
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// The certificate of a server on loopback, its key, and the authority of both, as files.
pub(crate) struct ServerFiles {
    pub(crate) dir: TempDir,
}

impl ServerFiles {
    pub(crate) fn make() -> Self {
        Self::made(|_| {})
    }

    /// As [`Self::make`], with something changed in the server's certificate.
    pub(crate) fn made(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut server = CertificateParams::new(names).unwrap();
        change(&mut server);
        let key = KeyPair::generate().unwrap();
        let server = server.signed_by(&key, &root).unwrap();
        fs::write(dir.path().join("ca.pem"), root.pem()).unwrap();
        fs::write(dir.path().join("server.pem"), server.pem()).unwrap();
        fs::write(dir.path().join("server.key"), key.serialize_pem()).unwrap();
        Self { dir }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub(crate) fn cert(&self) -> PathBuf {
        self.dir.path().join("server.pem")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.dir.path().join("server.key")
    }
}

/// Copies a directory with what is in it.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let to = to.join(file.file_name());
        match file.file_type().unwrap().is_dir() {
            true => copy_dir(&file.path(), &to),
            false => drop(fs::copy(file.path(), to).unwrap()),
        }
    }
}
