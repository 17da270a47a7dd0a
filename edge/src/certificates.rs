//! The certificates that this node shows to clients: which files the fleet names, reading them again
//! when they change or at SIGHUP, and what is said of it. Those that control has ordered are files as
//! well (`node_certificates.rs`).
//!
//! A pair of files that is broken leaves its former certificate in force, and takes no other host
//! down. Does not know handshakes (`serve/handshake.rs`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nearcast_fleet::config::{ClientLimits, Fleet, TlsVersion};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_net::tls::{
    CertificateState, Event, PairFiles, ServerOptions, ServerSide, Store, Tickets,
};
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;

/// How often the files are looked at.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// The node's certificates, and the keys of its session tickets.
#[derive(Debug)]
pub(crate) struct Certificates {
    side: ServerSide,
    tickets: Arc<Tickets>,
    clients: ClientLimits,
    /// Files that control's certificates were written to: certificate, chain and key in each.
    ordered: Mutex<Vec<PathBuf>>,
    ordered_changed: Notify,
    loaded: AtomicU64,
    failed: AtomicU64,
}

impl Certificates {
    /// Reads the certificates of a fleet for a node with these limits, and those in the files
    /// `ordered`, which came from control. Blocks.
    ///
    /// # Errors
    /// `must_show`, and none of them can be shown.
    pub(crate) fn open(
        fleet: &Fleet,
        clients: ClientLimits,
        must_show: bool,
        ordered: Vec<PathBuf>,
    ) -> Result<Self, Failure> {
        let tickets = Arc::new(Tickets::default());
        let (store, events) =
            Store::open(files(fleet, &ordered), options(fleet, &clients, &tickets));
        // A node whose first certificate is still ordered has to answer challenges.
        if must_show && store.is_empty() && fleet.acme.is_none() {
            let problems = events.iter().filter_map(|event| match event {
                Event::Failed { problem, .. } => Some(problem.as_str()),
                Event::Loaded { .. } | Event::Aged { .. } => None,
            });
            let problems: Vec<_> = problems.collect();
            return Err(Failure::new(
                FailureKind::BadData,
                format!(
                    "no certificate can be shown on the listeners for TLS: {}",
                    problems.join("; ")
                ),
            ));
        }
        let made = Self {
            side: ServerSide::new(Arc::new(store)),
            tickets,
            clients,
            ordered: Mutex::new(ordered),
            ordered_changed: Notify::new(),
            loaded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        };
        made.note(events, true);
        Ok(made)
    }

    pub(crate) fn side(&self) -> &ServerSide {
        &self.side
    }

    /// The keys of session tickets.
    pub(crate) fn tickets(&self) -> &Arc<Tickets> {
        &self.tickets
    }

    pub(crate) fn states(&self) -> Vec<CertificateState> {
        self.side.store().states()
    }

    /// Whether a certificate is one that was ordered by ACME, in place of the operator's own files.
    pub(crate) fn is_ordered(&self, cert: &Path) -> bool {
        self.ordered.lock().iter().any(|path| path == cert)
    }

    /// Pairs of files that were read with success, and those that could not be used.
    pub(crate) fn reads(&self) -> [u64; 2] {
        [&self.loaded, &self.failed].map(|count| count.load(Relaxed))
    }

    /// Sets the files that control's certificates were written to. They are read at once, also those
    /// that were there before and have changed.
    pub(crate) fn set_ordered(&self, files: Vec<PathBuf>) {
        *self.ordered.lock() = files;
        self.ordered_changed.notify_one();
    }

    /// Follows the files and the fleet until the node ends.
    pub(crate) async fn follow(self: Arc<Self>, mut fleet: watch::Receiver<Arc<Fleet>>) {
        let mut hangup = signal(SignalKind::hangup())
            .inspect_err(|error| tracing::warn!(%error, "SIGHUP does not reload certificates"))
            .ok();
        let mut ticks = tokio::time::interval(CHECK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let hung_up = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            let work = tokio::select! {
                _ = ticks.tick() => Work::Check { reads_all: false },
                _ = hung_up => Work::Check { reads_all: true },
                () = self.ordered_changed.notified() => Work::Follow(fleet.borrow().clone()),
                changed = fleet.changed() => match changed {
                    Ok(()) => Work::Follow(fleet.borrow_and_update().clone()),
                    Err(_) => return,
                },
            };
            let this = self.clone();
            // An error means that the runtime ends.
            if tokio::task::spawn_blocking(move || this.work(work))
                .await
                .is_err()
            {
                return;
            }
        }
    }

    fn work(&self, work: Work) {
        let store = self.side.store();
        let events = match work {
            Work::Check { reads_all } => store.check(reads_all),
            Work::Follow(fleet) => {
                let options = options(&fleet, &self.clients, &self.tickets);
                let ordered = self.ordered.lock().clone();
                let mut events = store.replace(files(&fleet, &ordered), options);
                events.extend(store.check(false));
                events
            }
        };
        self.note(events, false);
    }

    fn note(&self, events: Vec<Event>, is_start: bool) {
        for event in events {
            match event {
                Event::Loaded {
                    files,
                    names,
                    warning,
                } => {
                    self.loaded.fetch_add(1, Relaxed);
                    let (cert, hosts) = (files.cert.display(), shown(&names));
                    match warning {
                        Some(warning) => {
                            tracing::warn!(%cert, %hosts, "a certificate is in force that {warning}");
                        }
                        None => tracing::info!(%cert, %hosts, "a certificate is in force"),
                    }
                }
                Event::Aged {
                    files,
                    names,
                    warning,
                } => {
                    let (cert, hosts) = (files.cert.display(), shown(&names));
                    tracing::warn!(%cert, %hosts, "a certificate is in force that {warning}");
                }
                Event::Failed {
                    files,
                    names,
                    problem,
                } => {
                    self.failed.fetch_add(1, Relaxed);
                    let (cert, hosts) = (files.cert.display(), shown(&names));
                    match names.is_empty() {
                        true if is_start => {
                            tracing::error!(%cert, problem, "a certificate cannot be used; its hosts are not served over TLS");
                        }
                        true => {
                            tracing::error!(%cert, problem, "a new certificate cannot be used; its hosts are not served over TLS");
                        }
                        false => {
                            tracing::error!(%cert, %hosts, problem, "a changed certificate cannot be used; the former one stays in force");
                        }
                    }
                }
            }
        }
    }
}

enum Work {
    Check { reads_all: bool },
    Follow(Arc<Fleet>),
}

/// The names of a certificate for the log, of which it may have thousands.
fn shown(names: &[String]) -> String {
    const SHOWN_MAX: usize = 10;
    match names.len().checked_sub(SHOWN_MAX) {
        None | Some(0) => names.join(" "),
        Some(more) => format!("{} and {more} more", names[..SHOWN_MAX].join(" ")),
    }
}

fn files(fleet: &Fleet, ordered: &[PathBuf]) -> Vec<PairFiles> {
    let pairs = fleet.tls.certificates.iter().map(|pair| PairFiles {
        cert: pair.cert.clone(),
        key: pair.key.clone(),
    });
    // What an earlier revision of the file ordered is not shown for ever.
    let ordered = ordered.iter().filter(|_| fleet.acme.is_some());
    let ordered = ordered.map(|path| PairFiles {
        cert: path.clone(),
        key: path.clone(),
    });
    pairs.chain(ordered).collect()
}

fn options(fleet: &Fleet, clients: &ClientLimits, tickets: &Arc<Tickets>) -> ServerOptions {
    ServerOptions {
        default_host: fleet.tls.default_host.clone(),
        allows_1_2: fleet.tls.version_min == TlsVersion::V1_2,
        alpn: crate::serve::handshake::protocols(clients),
        tickets: Some(tickets.clone()),
    }
}
