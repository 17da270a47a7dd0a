//! The certificates of a listener: the one for each server name, and the files that they come from,
//! which are read again when they change.
//!
//! Certificates of one name stand side by side: a client gets one that it supports, one that is
//! valid now before one that is not, an exact name before a wildcard, ECDSA before RSA. A pair of
//! files that is broken leaves its former certificate in force.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets};
use rustls::sign::SingleCertAndKey;
use rustls::{ServerConfig, version};

use super::files::FileError;
use super::identity::Identity;
use crate::stamp::Stamp;

/// Session tickets that a client of TLS 1.3 gets. Each is a message of its own; browsers open few
/// connections that resume.
const TICKETS_SENT: usize = 1;

/// The files of a certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PairFiles {
    /// The certificate and the chain behind it (PEM).
    pub cert: PathBuf,
    /// The private key (PEM).
    pub key: PathBuf,
}

/// What a listener's handshakes have in common.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Host whose certificate is shown to clients that name no host; `None` refuses them.
    pub default_host: Option<String>,
    /// Whether TLS 1.2 is accepted beside TLS 1.3.
    pub allows_1_2: bool,
    /// Protocols for ALPN, the preferred one first.
    pub alpn: Vec<Vec<u8>>,
    /// Encrypts session tickets; `None` resumes no session.
    pub tickets: Option<Arc<super::Tickets>>,
}

impl ServerOptions {
    /// The configuration of handshakes that show this certificate. There is no early data (0-RTT),
    /// and no session is stored: tickets hold them.
    pub(super) fn config(&self, identity: &Identity) -> Arc<ServerConfig> {
        let versions: &[_] = match self.allows_1_2 {
            true => &[&version::TLS13, &version::TLS12],
            false => &[&version::TLS13],
        };
        let resolver = SingleCertAndKey::from(identity.certified.clone());
        let mut config = ServerConfig::builder_with_provider(super::provider())
            .with_protocol_versions(versions)
            .expect("the provider supports both versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = self.alpn.clone();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        match &self.tickets {
            Some(tickets) => {
                config.ticketer = tickets.clone() as Arc<dyn ProducesTickets>;
                config.send_tls13_tickets = TICKETS_SENT;
            }
            None => config.send_tls13_tickets = 0,
        }
        config.max_early_data_size = 0;
        Arc::new(config)
    }
}

/// A certificate that is in force.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub(super) identity: Arc<Identity>,
    pub(super) config: Arc<ServerConfig>,
}

/// Why a client gets no certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoCertificate {
    /// It names no host, and there is no default.
    NoName,
    /// No certificate covers the host that it names.
    UnknownName,
}

/// The certificates in force, by name.
#[derive(Debug, Default)]
struct ByName {
    /// Each list in order of preference.
    exact: HashMap<Box<str>, Vec<Shown>>,
    wildcard: HashMap<Box<str>, Vec<Shown>>,
    by_address: HashMap<IpAddr, Vec<Shown>>,
    default: Vec<Shown>,
    allows_1_2: bool,
}

impl ByName {
    fn new(mut shown: Vec<Shown>, options: &ServerOptions) -> Self {
        // The sort keeps the order of the file among equals.
        shown.sort_by_key(|shown| shown.identity.rank());
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        let mut by_address = HashMap::new();
        for one in &shown {
            for host in one.identity.hosts() {
                let list: &mut Vec<_> = exact.entry(host.into()).or_default();
                list.push(one.clone());
            }
            for parent in one.identity.wildcards() {
                let list: &mut Vec<_> = wildcard.entry(parent.into()).or_default();
                list.push(one.clone());
            }
            for address in one.identity.addresses() {
                let list: &mut Vec<_> = by_address.entry(*address).or_default();
                list.push(one.clone());
            }
        }
        let mut made = Self {
            exact,
            wildcard,
            by_address,
            default: Vec::new(),
            allows_1_2: options.allows_1_2,
        };
        let default = options.default_host.as_ref().and_then(|host| {
            let of_address = || {
                made.by_address
                    .get(&host.parse().ok()?)
                    .map(|list| [&list[..], &[]])
            };
            made.named(host).or_else(of_address)
        });
        made.default = default.unwrap_or_default().concat();
        made
    }

    /// The certificates with that exact name, and those with a wildcard for it; `None` where there
    /// is neither.
    fn named(&self, host: &str) -> Option<[&[Shown]; 2]> {
        let of_parent = || {
            let (label, parent) = host.split_once('.')?;
            self.wildcard.get(parent).filter(|_| !label.is_empty())
        };
        let found = [self.exact.get(host), of_parent()];
        found
            .iter()
            .any(Option::is_some)
            .then(|| found.map(|list| list.map_or(&[][..], |list| &list[..])))
    }

    /// The certificates for a server name. A client that names none connects to an address, and
    /// gets a certificate of that where there is one.
    fn candidates(
        &self,
        name: Option<&str>,
        local: IpAddr,
    ) -> Result<[&[Shown]; 2], NoCertificate> {
        let Some(name) = name else {
            return match self.by_address.get(&local) {
                Some(found) => Ok([found, &[]]),
                None if self.default.is_empty() => Err(NoCertificate::NoName),
                None => Ok([&self.default, &[]]),
            };
        };
        let lower;
        let mut name = name.strip_suffix('.').unwrap_or(name);
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            lower = name.to_ascii_lowercase();
            name = &lower;
        }
        self.named(name).ok_or(NoCertificate::UnknownName)
    }

    /// Of the certificates for a server name the best one that `suits` the client. Validity is looked
    /// at now: a certificate expires without any change of its files.
    fn choose(
        &self,
        name: Option<&str>,
        local: IpAddr,
        now_unix_s: i64,
        suits: impl Fn(&Identity) -> bool,
    ) -> Result<Shown, NoCertificate> {
        let candidates = self.candidates(name, local)?;
        let candidates = || candidates.into_iter().flatten();
        let mut suitable = candidates().filter(|shown| suits(&shown.identity));
        let first = suitable.next();
        let is_valid = |shown: &&Shown| shown.identity.is_valid_at(now_unix_s);
        let found = match first {
            Some(first) if is_valid(&first) => Some(first),
            _ => suitable.find(is_valid).or(first),
        };
        // Where none suits, the handshake with the first one fails with the right alert.
        let found = found.or_else(|| candidates().next());
        found.cloned().ok_or(NoCertificate::UnknownName)
    }
}

fn stamps_of(files: &PairFiles) -> [Option<Stamp>; 2] {
    [&files.cert, &files.key].map(|path| Stamp::of(path))
}

/// One pair of files, and what was read from them.
#[derive(Debug)]
struct Slot {
    files: PairFiles,
    stamp: [Option<Stamp>; 2],
    shown: Option<Shown>,
    /// Why the files cannot be used as they are now.
    problem: Option<String>,
    /// What clients were last found to object to.
    warned: Option<&'static str>,
}

/// What happened to a pair of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Its certificate is in force.
    Loaded {
        /// The files.
        files: PairFiles,
        /// Names that it covers.
        names: Vec<String>,
        /// What clients will object to.
        warning: Option<&'static str>,
    },
    /// Time has passed, and clients object to the certificate in force, or will soon.
    Aged {
        /// The files.
        files: PairFiles,
        /// Names that it covers.
        names: Vec<String>,
        /// What they object to.
        warning: &'static str,
    },
    /// It cannot be used.
    Failed {
        /// The files.
        files: PairFiles,
        /// Names of the former certificate, which stays in force; empty if there is none.
        names: Vec<String>,
        /// Why, with the file's name.
        problem: String,
    },
}

/// A certificate in force, as it is reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateState {
    /// The files.
    pub files: PairFiles,
    /// Names that it covers; empty if none is in force.
    pub names: Vec<String>,
    /// When it expires, in seconds after the Unix epoch.
    pub not_after_unix_s: Option<i64>,
    /// Whether the files as they are now cannot be used.
    pub is_broken: bool,
}

#[derive(Debug)]
struct Held {
    options: ServerOptions,
    slots: Vec<Slot>,
}

/// The certificates of the listeners of one process.
#[derive(Debug)]
pub struct Store {
    held: Mutex<Held>,
    current: ArcSwap<ByName>,
}

impl Store {
    /// Reads the files. Those that cannot be used are among the events. Blocks.
    pub fn open(files: Vec<PairFiles>, options: ServerOptions) -> (Self, Vec<Event>) {
        let held = Held {
            options: options.clone(),
            slots: Vec::new(),
        };
        let store = Self {
            held: Mutex::new(held),
            current: ArcSwap::default(),
        };
        let events = store.replace(files, options);
        (store, events)
    }

    /// Replaces the files and the options. Pairs that were there keep their certificate. Blocks.
    pub fn replace(&self, files: Vec<PairFiles>, options: ServerOptions) -> Vec<Event> {
        let mut held = self.held.lock();
        let mut former = std::mem::take(&mut held.slots);
        let (mut slots, mut events) = (Vec::new(), Vec::new());
        for files in files {
            if slots.iter().any(|slot: &Slot| slot.files == files) {
                continue;
            }
            let slot = match former.iter().position(|slot| slot.files == files) {
                Some(at) => former.swap_remove(at),
                None => {
                    let mut slot = Slot {
                        files,
                        stamp: [None, None],
                        shown: None,
                        problem: None,
                        warned: None,
                    };
                    events.extend(slot.read(&options));
                    slot
                }
            };
            slots.push(slot);
        }
        for shown in slots.iter_mut().filter_map(|slot| slot.shown.as_mut()) {
            shown.config = options.config(&shown.identity);
        }
        *held = Held { options, slots };
        self.publish(&held);
        events
    }

    /// Reads again the pairs whose files have changed, or with `reads_all` each one; an event tells
    /// of each new certificate, of each new reason why one cannot be used, and of each that expires.
    /// Blocks.
    pub fn check(&self, reads_all: bool) -> Vec<Event> {
        self.check_at(reads_all, now_unix_s())
    }

    pub(super) fn check_at(&self, reads_all: bool, now_unix_s: i64) -> Vec<Event> {
        let mut held = self.held.lock();
        let Held { options, slots } = &mut *held;
        let mut events = Vec::new();
        for slot in slots {
            if reads_all || stamps_of(&slot.files) != slot.stamp {
                events.extend(slot.read(options));
            }
            events.extend(slot.age(now_unix_s));
        }
        if events
            .iter()
            .any(|event| matches!(event, Event::Loaded { .. }))
        {
            self.publish(&held);
        }
        events
    }

    fn publish(&self, held: &Held) {
        let shown = held.slots.iter().filter_map(|slot| slot.shown.clone());
        let by_name = ByName::new(shown.collect(), &held.options);
        self.current.store(Arc::new(by_name));
    }

    /// The certificates as they are now, in the order of the files.
    pub fn states(&self) -> Vec<CertificateState> {
        let held = self.held.lock();
        let state = |slot: &Slot| CertificateState {
            files: slot.files.clone(),
            names: slot.names(),
            not_after_unix_s: slot
                .shown
                .as_ref()
                .map(|shown| shown.identity.not_after_unix_s()),
            is_broken: slot.problem.is_some(),
        };
        held.slots.iter().map(state).collect()
    }

    /// Whether any certificate can be shown.
    pub fn is_empty(&self) -> bool {
        let current = self.current.load();
        current.exact.is_empty() && current.wildcard.is_empty() && current.by_address.is_empty()
    }

    /// The certificate for a client that connected to the address `local`, and the configuration of its handshake.
    pub(super) fn choose(
        &self,
        hello: &ClientHello<'_>,
        local: IpAddr,
    ) -> Result<Shown, NoCertificate> {
        let current = self.current.load();
        let allows_1_2 = current.allows_1_2;
        current.choose(hello.server_name(), local, now_unix_s(), |identity| {
            identity.suits(hello.signature_schemes(), hello.cipher_suites(), allows_1_2)
        })
    }

    /// The certificate for a client that supports all of them and names this host.
    #[cfg(test)]
    pub(super) fn choose_at(&self, name: &str, now_unix_s: i64) -> Result<Shown, NoCertificate> {
        let local = IpAddr::from([127, 0, 0, 1]);
        let current = self.current.load();
        current.choose(Some(name), local, now_unix_s, |_| true)
    }
}

impl Slot {
    fn names(&self) -> Vec<String> {
        self.shown
            .as_ref()
            .map_or_else(Vec::new, |shown| shown.identity.names())
    }

    /// What clients have begun to object to since it was last looked at.
    fn age(&mut self, now_unix_s: i64) -> Option<Event> {
        let warning = self.shown.as_ref()?.identity.warning(now_unix_s);
        if self.warned == warning {
            return None;
        }
        self.warned = warning;
        Some(Event::Aged {
            files: self.files.clone(),
            names: self.names(),
            warning: warning?,
        })
    }

    /// Reads the files. `None` if that changes nothing.
    fn read(&mut self, options: &ServerOptions) -> Option<Event> {
        // Before reading: a file that changes meanwhile is read again next time.
        self.stamp = stamps_of(&self.files);
        let loaded: Result<Identity, FileError> = Identity::load(&self.files.cert, &self.files.key);
        match loaded {
            Ok(identity) => {
                let former = self.shown.as_ref().map(|shown| &shown.identity.certified);
                let is_same = former.is_some_and(|former| former.cert == identity.certified.cert);
                if is_same && self.problem.take().is_none() {
                    return None;
                }
                self.problem = None;
                let warning = identity.warning(now_unix_s());
                self.warned = warning;
                self.shown = Some(Shown {
                    config: options.config(&identity),
                    identity: Arc::new(identity),
                });
                Some(Event::Loaded {
                    files: self.files.clone(),
                    names: self.names(),
                    warning,
                })
            }
            Err(error) => {
                let problem = error.to_string();
                if self.problem.as_ref() == Some(&problem) {
                    return None;
                }
                self.problem = Some(problem.clone());
                Some(Event::Failed {
                    files: self.files.clone(),
                    names: self.names(),
                    problem,
                })
            }
        }
    }
}

fn now_unix_s() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}
