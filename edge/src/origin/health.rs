//! The state of one origin: its circuit breaker, its retry budget and the version of HTTP that it has
//! selected. Shared by all workers, and by
//! all sites with the same settings for connections and time-outs to it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::breaker::{Breaker, Change, Permission, Sign};
use super::budget::RetryBudget;
use super::{Address, OriginError};
use crate::metrics::OriginGauges;

/// How long an origin is not offered HTTP/2 that has answered with HTTP_1_1_REQUIRED.
const HTTP1_REQUIRED_FOR: Duration = Duration::from_secs(600);

/// The version of HTTP that an origin has selected when it was offered HTTP/2 last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Selected {
    Http1,
    Http2,
}

/// The state of one origin.
#[derive(Debug)]
pub(super) struct Health {
    address: Address,
    breaker: Mutex<Breaker>,
    budget: Mutex<RetryBudget>,
    /// `None` before the first offer of HTTP/2.
    selected: Mutex<Option<Selected>>,
    /// When it asked for HTTP/1.1 in place of HTTP/2.
    http1_required: Mutex<Option<Instant>>,
    /// Gauges of the sites that have this origin.
    sites: Mutex<Vec<Weak<OriginGauges>>>,
}

impl Health {
    pub(super) fn new(address: Address) -> Arc<Self> {
        let budget = Mutex::new(RetryBudget::new(Instant::now()));
        Arc::new(Self {
            address,
            breaker: Mutex::new(Breaker::new()),
            budget,
            selected: Mutex::default(),
            http1_required: Mutex::default(),
            sites: Mutex::default(),
        })
    }

    /// Shows this state in the gauges of a site from now on.
    pub(super) fn show_in(&self, site: &Arc<OriginGauges>) {
        let is_open = self.breaker.lock().is_open();
        let mut sites = self.sites.lock();
        if !sites
            .iter()
            .any(|other| std::ptr::eq(other.as_ptr(), Arc::as_ptr(site)))
        {
            sites.push(Arc::downgrade(site));
        }
        site.set_breaker(is_open);
    }

    /// Stops showing this state in the gauges of a site.
    pub(super) fn hide_from(&self, site: &Arc<OriginGauges>) {
        let mut sites = self.sites.lock();
        sites.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(site)));
    }

    /// Permission to send a request, with or without a body.
    ///
    /// # Errors
    /// [`OriginError::Unavailable`] while the origin is known not to answer.
    pub(super) fn ask(self: &Arc<Self>, has_body: bool) -> Result<Attempt, OriginError> {
        let permission = self.breaker.lock().ask(has_body, Instant::now());
        match permission {
            Permission::Refused { wait } => Err(OriginError::Unavailable {
                retry_after: wait.as_secs().max(1) as u32,
            }),
            permission => {
                self.budget.lock().note_request();
                Ok(Attempt {
                    health: self.clone(),
                    is_probe: permission == Permission::Probe,
                    is_over: false,
                })
            }
        }
    }

    /// `None` while the origin answers, as far as is known; else whether a probe is due.
    pub(super) fn failing(&self, now: Instant) -> Option<bool> {
        let breaker = self.breaker.lock();
        breaker.is_open().then(|| breaker.is_probe_due(now))
    }

    pub(super) fn take_retry(&self) -> bool {
        self.budget.lock().take_retry(Instant::now())
    }

    pub(super) fn note_selected(&self, selected: Selected) {
        *self.selected.lock() = Some(selected);
    }

    /// Whether it selected HTTP/1.1 when it was offered HTTP/2 last.
    pub(super) fn selected_http1(&self) -> bool {
        *self.selected.lock() == Some(Selected::Http1)
    }

    /// Notes that it answered with HTTP_1_1_REQUIRED (RFC 9113 section 7).
    pub(super) fn note_http1_required(&self, now: Instant) {
        *self.http1_required.lock() = Some(now);
    }

    /// Whether HTTP/2 must not be offered for now.
    pub(super) fn needs_http1(&self, now: Instant) -> bool {
        let required = *self.http1_required.lock();
        required.is_some_and(|at| now.saturating_duration_since(at) < HTTP1_REQUIRED_FOR)
    }

    fn end(&self, is_probe: bool, sign: Sign, url: u64, patience: Duration) {
        let change = self
            .breaker
            .lock()
            .end(is_probe, sign, url, patience, Instant::now());
        let Some(change) = change else { return };
        let Address { host, port, .. } = &self.address;
        match change {
            Change::Opened => tracing::warn!(
                origin = host,
                port,
                "an origin answers nothing for several URLs; it is asked rarely until it does, and stale responses are served where that is allowed"
            ),
            Change::Closed => tracing::warn!(origin = host, port, "an origin answers again"),
        }
        let sites = self.sites.lock();
        for site in sites.iter().filter_map(Weak::upgrade) {
            site.breaker_changed(change == Change::Opened);
        }
    }
}

/// A request under way. Dropped before its end, it changes nothing.
#[derive(Debug)]
pub(super) struct Attempt {
    health: Arc<Health>,
    is_probe: bool,
    is_over: bool,
}

impl Attempt {
    pub(super) fn end(mut self, sign: Sign, url: u64, patience: Duration) {
        self.is_over = true;
        self.health.end(self.is_probe, sign, url, patience);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.is_over && self.is_probe {
            self.health.end(true, Sign::None, 0, Duration::ZERO);
        }
    }
}
