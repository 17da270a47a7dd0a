//! What is known of one origin: shared by all workers, and by all sites that connect to it alike
//! and wait as long for it.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{Breaker, Change, Leave, Sign};
use super::budget::RetryBudget;
use super::{Address, OriginError};
use crate::metrics::OriginGauges;

/// See the module's words.
#[derive(Debug)]
pub(super) struct Health {
    address: Address,
    breaker: Mutex<Breaker>,
    budget: Mutex<RetryBudget>,
    /// The sites whose origin this is.
    sites: Mutex<Vec<Weak<OriginGauges>>>,
}

impl Health {
    pub(super) fn new(address: Address) -> Arc<Self> {
        let budget = Mutex::new(RetryBudget::new(Instant::now()));
        Arc::new(Self {
            address,
            breaker: Mutex::new(Breaker::new()),
            budget,
            sites: Mutex::default(),
        })
    }

    /// Makes a site's figures show this from now on.
    pub(super) fn show_in(&self, site: &Arc<OriginGauges>) {
        let is_open = self
            .breaker
            .lock()
            .expect("no holder of this lock panics")
            .is_open();
        let mut sites = self.sites.lock().expect("no holder of this lock panics");
        if !sites
            .iter()
            .any(|other| std::ptr::eq(other.as_ptr(), Arc::as_ptr(site)))
        {
            sites.push(Arc::downgrade(site));
        }
        site.set_breaker(is_open);
    }

    /// Makes a site's figures show another's.
    pub(super) fn hide_from(&self, site: &Arc<OriginGauges>) {
        let mut sites = self.sites.lock().expect("no holder of this lock panics");
        sites.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(site)));
    }

    /// Leave to send a request, with or without a body.
    ///
    /// # Errors
    /// [`OriginError::Unavailable`] while the origin is known not to answer.
    pub(super) fn ask(self: &Arc<Self>, has_body: bool) -> Result<Attempt, OriginError> {
        let leave = self
            .breaker
            .lock()
            .expect("no holder of this lock panics")
            .ask(has_body, Instant::now());
        match leave {
            Leave::Refused { wait } => Err(OriginError::Unavailable {
                retry_after: wait.as_secs().max(1) as u32,
            }),
            leave => {
                self.budget
                    .lock()
                    .expect("no holder of this lock panics")
                    .note_request();
                Ok(Attempt {
                    health: self.clone(),
                    is_probe: leave == Leave::Probe,
                    is_over: false,
                })
            }
        }
    }

    /// Whether the origin is known not to answer; and then whether it is time for a probe.
    pub(super) fn failing(&self, now: Instant) -> Option<bool> {
        let breaker = self.breaker.lock().expect("no holder of this lock panics");
        breaker.is_open().then(|| breaker.is_probe_due(now))
    }

    pub(super) fn take_retry(&self) -> bool {
        self.budget
            .lock()
            .expect("no holder of this lock panics")
            .take_retry(Instant::now())
    }

    fn end(&self, is_probe: bool, sign: Sign, url: u64, patience: Duration) {
        let change = self
            .breaker
            .lock()
            .expect("no holder of this lock panics")
            .end(is_probe, sign, url, patience, Instant::now());
        let Some(change) = change else { return };
        let Address { host, port, .. } = &self.address;
        match change {
            Change::Opened => tracing::warn!(
                origin = host,
                port,
                "an origin answers nothing for several URLs; it is asked rarely until it does, and stale content is served where that is allowed"
            ),
            Change::Closed => tracing::warn!(origin = host, port, "an origin answers again"),
        }
        let sites = self.sites.lock().expect("no holder of this lock panics");
        for site in sites.iter().filter_map(Weak::upgrade) {
            site.breaker_changed(change == Change::Opened);
        }
    }
}

/// A request under way. Dropped before its end, it says nothing of the origin.
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
