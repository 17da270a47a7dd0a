//! The certificates that are wanted, and the work that is due for them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use instant_acme::Error;
use nearcast_net::shutdown::Shutdown;
use parking_lot::Mutex;
use ring::digest;
use tokio::sync::{Notify, watch};

use crate::account::Accounts;
use crate::dir::{self, Dir, Held};
use crate::entry::{Advice, Entry, Note, Unwritten};
use crate::fault::{Fault, OrderError};
use crate::order::{self, Job, Signed};
use crate::pace::{Pace, Validations};
use crate::renewal::{self, FailedAt, Window};
use crate::state::State;
use crate::{
    Authority, Event, Issued, LastError, Limits, Listener, Solver, Status, Wanted, now_unix_s, text,
};

/// The longest time between two looks at what is due: the machine's clock may be set.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// The longest look at DNS before an order. What is not known by then is left to the authority.
const PRECHECK_TIME: Duration = Duration::from_secs(60);
/// The most questions for advice at a time.
const QUESTIONS_AT_ONCE: usize = 4;
/// How long a certificate that is no longer wanted is kept after its end.
const UNWANTED_KEPT_S: i64 = 30 * 86_400;
/// How often it is looked for such certificates.
const TIDY_EVERY: Duration = Duration::from_secs(6 * 3600);

/// Obtains and renews certificates, and keeps them in a directory.
///
/// Its directory has a file for each account (`accounts/`), and for each certificate (`certificates/`):
/// `NAME.pem` with certificate, chain and key, and `NAME.json` with what a restart must not forget,
/// which may be lost. Files are replaced as a whole, so a copy of the directory taken at any time is a
/// backup: a keeper that starts with it orders nothing. Nothing else may write there.
pub struct Keeper<S> {
    solver: S,
    listener: Listener,
    limits: Limits,
    dir: Arc<Dir>,
    accounts: Accounts,
    state: Mutex<State>,
    /// Something has become due, or an order has ended.
    wake: Notify,
    /// Files of one certificate are written one after the other.
    writes: tokio::sync::Mutex<()>,
    issued: watch::Sender<Arc<BTreeMap<String, Arc<Issued>>>>,
}

/// What an order came to.
enum Outcome {
    Signed(Arc<Authority>, Signed),
    Failed {
        at: FailedAt,
        authority: Option<Arc<Authority>>,
        fault: Fault,
        reason: String,
    },
}

impl<S: Solver> Keeper<S> {
    /// Reads what is in the directory (made with mode 0700), which holds accounts, keys and
    /// certificates. Blocks.
    ///
    /// # Errors
    /// The directory cannot be made or read. A damaged file is no error: it is set aside with a
    /// warning.
    pub fn open(dir: PathBuf, solver: S, listener: Listener) -> std::io::Result<Self> {
        Self::open_with(dir, solver, listener, Limits::default())
    }

    /// As [`Self::open`], with other bounds.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(
        dir: PathBuf,
        solver: S,
        listener: Listener,
        limits: Limits,
    ) -> std::io::Result<Self> {
        let (now_unix_s, now) = (now_unix_s(), Instant::now());
        let dir = Arc::new(Dir::open(&dir)?);
        let mut entries = BTreeMap::new();
        for held in dir.certificates()? {
            let name = held.issued.hosts[0].clone();
            let note = dir.noted(&name)?.unwrap_or_default();
            entries.insert(name, Entry::new(Some(held), note, now_unix_s, now));
        }
        Ok(Self {
            solver,
            listener,
            accounts: Accounts::new(dir.clone(), limits.clone()),
            dir,
            state: Mutex::new(State {
                entries,
                order: Vec::new(),
                authorities: Vec::new(),
                contact: Vec::new(),
                pace: Pace::new(&limits, now),
                validations: Validations::default(),
                pauses: HashMap::new(),
                ordering: 0,
                asking: 0,
                tidy_at: now + TIDY_EVERY,
            }),
            limits,
            wake: Notify::new(),
            writes: tokio::sync::Mutex::default(),
            issued: watch::channel(Arc::default()).0,
        })
    }

    /// Replaces what is wanted. Certificates that are no longer wanted stay in the directory until
    /// they have expired, and are used again if they are wanted again. Of two with one name the first
    /// one counts. Settings that have changed end the back-off of orders that failed. Blocks for
    /// small files.
    pub fn want(&self, wanted: Vec<Wanted>, authorities: Vec<Authority>, contact: Vec<String>) {
        let (now_unix_s, now) = (now_unix_s(), Instant::now());
        let mut state = self.state.lock();
        let authorities: Vec<_> = authorities.into_iter().map(Arc::new).collect();
        if authorities != state.authorities {
            state.pauses.clear();
        }
        (state.authorities, state.contact) = (authorities, contact);

        let mut names = Vec::new();
        let mut seen = HashSet::new();
        for mut wanted in wanted {
            let mut hosts = HashSet::new();
            wanted.hosts.retain(|host| hosts.insert(host.clone()));
            let Some(name) = wanted.hosts.first().cloned() else {
                continue;
            };
            if !seen.insert(name.clone()) {
                tracing::warn!(
                    name,
                    "two certificates with this first name are wanted; the first one counts"
                );
                continue;
            }
            let settings = fingerprint(&wanted, &state.authorities, &state.contact);
            let entry = state.entries.entry(name.clone()).or_insert_with(|| {
                let note = self.dir.noted::<Note>(&name).unwrap_or_else(|error| {
                    tracing::warn!(%error, "what is noted of a certificate");
                    None
                });
                Entry::new(None, note.unwrap_or_default(), now_unix_s, now)
            });
            if entry.settings != settings {
                entry.forget_failures();
                entry.settings = settings;
            }
            entry.wanted = Some(wanted);
            names.push(name);
        }
        for (name, entry) in &mut state.entries {
            if !seen.contains(name) {
                entry.give_up();
            }
        }
        state.entries.retain(|_, entry| {
            entry.wanted.is_some() || entry.newest().is_some() || entry.is_ordering
        });
        state.order = names;

        self.publish(&state, now_unix_s);
        drop(state);
        self.wake.notify_one();
    }

    /// The wanted certificates that are in force, by name. Changes with each that is obtained.
    pub fn issued(&self) -> watch::Receiver<Arc<BTreeMap<String, Arc<Issued>>>> {
        self.issued.subscribe()
    }

    /// What is known of each wanted certificate, in their order.
    pub fn statuses(&self) -> Vec<Status> {
        let (now_unix_s, now) = (now_unix_s(), Instant::now());
        let state = self.state.lock();
        let status = |name: &String| {
            let entry = state.entries.get(name)?;
            let in_force = entry.in_force(now_unix_s);
            let next = state.next_order(name, entry, now_unix_s, now);
            let waits_for = state.paused(name, entry, now).filter(|_| {
                entry.last_error.is_none() && next.is_some_and(|next| next > now_unix_s)
            });
            let is_due = entry.is_asked_for || entry.due_unix_s(&state.authorities) <= now_unix_s;
            Some(Status {
                hosts: entry.wanted.as_ref()?.hosts.clone(),
                authority: in_force.map(|held| held.issued.authority.clone()),
                validity_unix_s: in_force
                    .map(|held| (held.issued.not_before_unix_s, held.issued.not_after_unix_s)),
                next_unix_s: next,
                is_ordering: entry.is_ordering,
                failures: entry.failures,
                last_error: entry.last_error.clone().or_else(|| {
                    waits_for
                        .filter(|_| is_due)
                        .map(|pause| pause.error.clone())
                }),
            })
        };
        state.order.iter().filter_map(status).collect()
    }

    /// Orders a wanted certificate now, whatever is due and whatever failed before; `false` where
    /// none has this name. If the order fails, others follow as usual until one succeeds, also after a
    /// restart: that is in the directory when this returns. An order that is under way counts as the
    /// one that is asked for. The pace of orders and the limit of failed validations hold.
    pub async fn renew_now(&self, name: &str) -> bool {
        {
            let mut state = self.state.lock();
            let Some(entry) = state.entries.get_mut(name) else {
                return false;
            };
            if entry.wanted.is_none() {
                return false;
            }
            entry.ask_for();
        }
        self.wake.notify_one();
        self.save_note_or_warn(name).await;
        true
    }

    /// Works until the shutdown, then waits until running orders have withdrawn their challenges.
    pub async fn run(self: Arc<Self>, mut shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let next = self.begin_due(&shutdown);
            tokio::select! {
                () = shutdown.requested() => {}
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.wake.notified() => {}
            }
        }

        let ended = async {
            loop {
                let ended = self.wake.notified();
                if self.state.lock().ordering == 0 {
                    return;
                }
                ended.await;
            }
        };
        let limit = self.limits.cleanup_time + Duration::from_secs(1);
        shutdown.drained(limit, ended).await;
    }

    /// Begins what is due; when to look again.
    fn begin_due(self: &Arc<Self>, shutdown: &Shutdown) -> Instant {
        let (now_unix_s, now) = (now_unix_s(), Instant::now());
        let mut next = now + LOOK_EVERY;
        let mut state = self.state.lock();
        let state = &mut *state;
        self.tidy(state, now_unix_s, now);

        let mut due = Vec::new();
        for name in &state.order {
            let Some(entry) = state.entries.get(name).filter(|entry| !entry.is_ordering) else {
                continue;
            };
            match state.next_order(name, entry, now_unix_s, now) {
                Some(at) if at <= now_unix_s => {
                    due.push((entry.place(&state.authorities), name.clone()));
                }
                Some(at) => {
                    let wait = u64::try_from(at - now_unix_s).unwrap_or(0);
                    next = next.min(now + Duration::from_secs(wait).min(LOOK_EVERY));
                }
                None => {}
            }
        }
        for (name, entry) in &mut state.entries {
            if std::mem::take(&mut entry.is_note_old) {
                let (keeper, name) = (self.clone(), name.clone());
                tokio::spawn(async move { keeper.save_note_or_warn(&name).await });
            }
        }
        due.sort();
        for (_, name) in due {
            if state.ordering >= self.limits.orders_at_once {
                break;
            }
            let free_at = state.pace.free_at(now);
            if free_at > now {
                next = next.min(free_at);
                break;
            }
            self.begin_order(state, name, now, shutdown);
        }

        for name in &state.order {
            let Some(entry) = state.entries.get_mut(name) else {
                continue;
            };
            if let Some(unwritten) = &mut entry.unwritten
                && !unwritten.is_writing
            {
                if unwritten.write_at <= now {
                    unwritten.is_writing = true;
                    tokio::spawn(self.clone().write_again(name.clone()));
                } else {
                    next = next.min(unwritten.write_at);
                }
            }
            let asks = entry.newest().is_some() && !entry.is_asking && !entry.is_ordering;
            if asks && entry.advice_at > now {
                next = next.min(entry.advice_at);
            } else if asks && state.asking < QUESTIONS_AT_ONCE {
                entry.is_asking = true;
                state.asking += 1;
                tokio::spawn(self.clone().ask(name.clone()));
            }
        }
        // The former of a certificate that is not on disk may have come to its end.
        if state
            .entries
            .values()
            .any(|entry| entry.unwritten.is_some())
        {
            self.publish(state, now_unix_s);
        }
        next
    }

    fn begin_order(
        self: &Arc<Self>,
        state: &mut State,
        name: String,
        now: Instant,
        shutdown: &Shutdown,
    ) {
        let entry = state.entries.get(&name);
        let Some((entry, mut wanted)) = entry.and_then(|e| Some((e, e.wanted.clone()?))) else {
            return;
        };
        // Which of them the authority reaches is not known: after a failure another one comes first.
        let count = wanted.challenges.len().max(1);
        wanted
            .challenges
            .rotate_left(entry.failures as usize % count);
        let Ok(candidates) = state.candidates(&name, entry, now) else {
            return;
        };
        let former = entry.newest().cloned();
        let contact = state.contact.clone();
        if let Some(entry) = state.entries.get_mut(&name) {
            entry.is_ordering = true;
        }
        state.ordering += 1;

        let (keeper, mut shutdown) = (self.clone(), shutdown.clone());
        // A task of its own, which ends in order also if the one that works is dropped.
        tokio::spawn(async move {
            let work = {
                let keeper = keeper.clone();
                let (name, former) = (name.clone(), former.clone());
                tokio::spawn(async move {
                    let order = Order {
                        name: &name,
                        wanted: &wanted,
                        contact: &contact,
                        former,
                    };
                    keeper.order(&order, candidates, &mut shutdown).await
                })
            };
            let outcome = work.await.unwrap_or_else(|error| Outcome::Failed {
                at: FailedAt::Authority,
                authority: None,
                fault: Fault::Ours,
                reason: format!("the order ended unexpectedly: {error}"),
            });
            keeper.end_order(&name, former.is_some(), outcome).await;
        });
    }

    /// Asks one authority after the other, as long as that may help.
    async fn order(
        &self,
        order: &Order<'_>,
        candidates: Vec<Arc<Authority>>,
        shutdown: &mut Shutdown,
    ) -> Outcome {
        let failed = |at, fault, reason| Outcome::Failed {
            at,
            authority: None,
            fault,
            reason,
        };
        let precheck = tokio::time::timeout(PRECHECK_TIME, self.solver.precheck(order.wanted));
        let precheck = tokio::select! {
            biased;
            () = shutdown.requested() => {
                return failed(FailedAt::Precheck, Fault::Stopped, String::new());
            }
            precheck = precheck => precheck,
        };
        if let Ok(Err(reason)) = precheck {
            return failed(FailedAt::Precheck, Fault::Ours, text::line(&reason));
        }
        // A certificate that could not be written would be ordered in vain.
        if let Err(error) = self.save_note(order.name).await {
            let reason = format!("nothing was ordered: {error}");
            return failed(FailedAt::Precheck, Fault::Ours, reason);
        }

        // What failed before this did not count.
        tokio::select! {
            biased;
            () = shutdown.requested() => {
                return failed(FailedAt::Precheck, Fault::Stopped, String::new());
            }
            () = self.in_turn() => {}
        }
        let mut before = Vec::new();
        let last = candidates.len().saturating_sub(1);
        for (n, authority) in candidates.into_iter().enumerate() {
            let former = order.former.as_ref();
            let job = Job {
                accounts: &self.accounts,
                solver: &self.solver,
                limits: &self.limits,
                authority: &authority,
                contact: order.contact,
                wanted: order.wanted,
                replaces: former
                    .filter(|held| held.directory == authority.directory)
                    .and_then(|held| held.facts.id.clone()),
            };
            let mut stop = shutdown.clone();
            let unfinished = {
                let state = self.state.lock();
                let entry = state.entries.get(order.name);
                entry.and_then(|entry| entry.unfinished.clone())
            };
            let stop = async move { stop.requested().await };
            let (outcome, unfinished) = order::obtain(&job, unfinished, stop).await;
            let mut state = self.state.lock();
            if let Some(entry) = state.entries.get_mut(order.name) {
                entry.unfinished = unfinished;
            }
            state.learn(&authority, order.name, outcome.as_ref().map(|_| ()));
            let error = match outcome {
                Ok(signed) => return Outcome::Signed(authority, signed),
                Err(error) => error,
            };
            if n < last && error.fault.may_be_mended_by_another() {
                tracing::info!(
                    name = order.name,
                    reason = error.reason,
                    "the next authority is asked"
                );
                before.push(error.reason);
                state.pace.take(Instant::now());
                continue;
            }
            let mut reason = error.reason;
            if !before.is_empty() {
                reason = format!("{reason} (before that: {})", before.join("; "));
            }
            return Outcome::Failed {
                at: match error.fault {
                    // Nothing was ordered, and clocks are set soon after a machine has started.
                    Fault::Clock => FailedAt::Precheck,
                    _ => FailedAt::Authority,
                },
                authority: Some(authority),
                fault: error.fault,
                reason,
            };
        }
        // Only without any authority.
        failed(FailedAt::Authority, Fault::Stopped, String::new())
    }

    /// Waits until the pace of orders allows one more, and counts it.
    async fn in_turn(&self) {
        loop {
            let free_at = {
                let now = Instant::now();
                let mut state = self.state.lock();
                let free_at = state.pace.free_at(now);
                if free_at <= now {
                    state.pace.take(now);
                    return;
                }
                free_at
            };
            tokio::time::sleep_until(free_at.into()).await;
        }
    }

    async fn end_order(self: &Arc<Self>, name: &str, is_renewal: bool, outcome: Outcome) {
        match outcome {
            Outcome::Signed(authority, signed) => {
                self.take(name, is_renewal, &authority, signed).await;
            }
            Outcome::Failed {
                at,
                authority,
                fault,
                reason,
            } => self.note_failure(name, at, authority.as_deref(), &fault, reason),
        }
        self.save_note_or_warn(name).await;
        let mut state = self.state.lock();
        state.ordering -= 1;
        if let Some(entry) = state.entries.get_mut(name) {
            entry.is_ordering = false;
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Takes a certificate that was issued: writes it, then publishes it.
    async fn take(
        self: &Arc<Self>,
        name: &str,
        is_renewal: bool,
        authority: &Authority,
        signed: Signed,
    ) {
        let hosts = {
            let state = self.state.lock();
            let entry = state.entries.get(name);
            let wanted = entry.and_then(|entry| entry.wanted.as_ref());
            // Other names may be wanted by now; then it is ordered again.
            wanted.map(|wanted| wanted.hosts.clone())
        };
        let hosts = match hosts {
            Some(hosts) if signed.facts.covers(&hosts) => hosts,
            _ => {
                let others = signed.facts.names.iter().filter(|host| *host != name);
                std::iter::once(name.to_owned())
                    .chain(others.cloned())
                    .collect()
            }
        };
        let held = Arc::new(Held {
            issued: Arc::new(Issued {
                hosts,
                pem: signed.pem,
                authority: authority.name.clone(),
                not_before_unix_s: signed.facts.not_before_unix_s,
                not_after_unix_s: signed.facts.not_after_unix_s,
            }),
            directory: authority.directory.clone(),
            facts: signed.facts,
        });
        let written = self.write(&held).await;

        let (now_unix_s, now) = (now_unix_s(), Instant::now());
        let mut events = Vec::new();
        {
            let mut state = self.state.lock();
            let Some(entry) = state.entries.get_mut(name) else {
                return;
            };
            entry.succeeded(now);
            match written {
                Ok(()) => (entry.held, entry.unwritten) = (Some(held.clone()), None),
                Err(error) => {
                    let former = entry.held.is_some();
                    let reason = format!(
                        "a certificate was issued, but {error}; it is kept in memory and written again until that works{}",
                        if former {
                            "; the former one stays in force meanwhile"
                        } else {
                            ""
                        }
                    );
                    entry.last_error = Some(LastError {
                        unix_s: now_unix_s,
                        authority: None,
                        reason: reason.clone(),
                    });
                    entry.unwritten = Some(Unwritten {
                        held: held.clone(),
                        write_at: now + self.limits.write_again,
                        is_writing: false,
                        is_announced: false,
                    });
                    events.push(Event::Failed {
                        name: name.to_owned(),
                        authority: None,
                        reason,
                        next_unix_s: now_unix_s + self.limits.write_again.as_secs() as i64,
                    });
                }
            }
            let is_in_force = entry
                .in_force(now_unix_s)
                .is_some_and(|used| Arc::ptr_eq(used, &held));
            if is_in_force {
                if let Some(unwritten) = &mut entry.unwritten {
                    unwritten.is_announced = true;
                }
                events.push(obtained(name, &held, is_renewal));
            }
            self.publish(&state, now_unix_s);
        }
        events.into_iter().for_each(|event| (self.listener)(event));
    }

    fn note_failure(
        &self,
        name: &str,
        at: FailedAt,
        authority: Option<&Authority>,
        fault: &Fault,
        reason: String,
    ) {
        if *fault == Fault::Stopped {
            return;
        }
        let (now_unix_s, now) = (now_unix_s(), Instant::now());
        let mut state = self.state.lock();
        let index = authority.and_then(|authority| {
            let mut all = state.authorities.iter();
            all.position(|one| one.directory == authority.directory)
        });
        let Some(entry) = state.entries.get_mut(name) else {
            return;
        };
        if let (Fault::Validation { .. }, Some(index)) = (fault, index) {
            // The reason is most likely ours; the next round tries another one nevertheless.
            entry.rotation = index + 1;
        }
        let error = LastError {
            unix_s: now_unix_s,
            authority: authority.map(|authority| authority.name.clone()),
            reason: reason.clone(),
        };
        let wait = entry.failed(error, at, now_unix_s, now, random_fraction());
        // The order that failed is still noted as under way.
        let next = state
            .entries
            .get(name)
            .and_then(|entry| state.order_after(name, entry, now_unix_s, now))
            .unwrap_or_else(|| now_unix_s + wait.as_secs() as i64);
        drop(state);
        (self.listener)(Event::Failed {
            name: name.to_owned(),
            authority: authority.map(|authority| authority.name.clone()),
            reason,
            next_unix_s: next,
        });
    }

    /// Writes again what could not be written.
    async fn write_again(self: Arc<Self>, name: String) {
        let held = {
            let state = self.state.lock();
            let entry = state.entries.get(&name);
            let unwritten = entry.and_then(|entry| entry.unwritten.as_ref());
            unwritten.map(|unwritten| unwritten.held.clone())
        };
        let Some(held) = held else { return };
        let written = self.write(&held).await;

        let (now_unix_s, now) = (now_unix_s(), Instant::now());
        let mut event = None;
        {
            let mut state = self.state.lock();
            let Some(entry) = state.entries.get_mut(&name) else {
                return;
            };
            let Some(unwritten) = &mut entry.unwritten else {
                return;
            };
            match written {
                // A newer one may have been issued meanwhile.
                Ok(()) if Arc::ptr_eq(&unwritten.held, &held) => {
                    if !unwritten.is_announced {
                        event = Some(obtained(&name, &held, entry.held.is_some()));
                    }
                    (entry.held, entry.unwritten) = (Some(held), None);
                    entry.last_error = None;
                }
                _ => {
                    unwritten.is_writing = false;
                    unwritten.write_at = now + self.limits.write_again;
                }
            }
            self.publish(&state, now_unix_s);
        }
        if let Some(event) = event {
            (self.listener)(event);
        }
        self.wake.notify_one();
    }

    async fn write(&self, held: &Arc<Held>) -> std::io::Result<()> {
        let _turn = self.writes.lock().await;
        let (dir, held) = (self.dir.clone(), held.clone());
        dir::blocking(move || dir.store(&held)).await
    }

    async fn save_note_or_warn(&self, name: &str) {
        if let Err(error) = self.save_note(name).await {
            tracing::warn!(%error, name, "what is noted of a certificate");
        }
    }

    async fn save_note(&self, name: &str) -> std::io::Result<()> {
        let _turn = self.writes.lock().await;
        let (dir, name) = (self.dir.clone(), name.to_owned());
        let note = {
            let state = self.state.lock();
            let Some(entry) = state.entries.get(&name) else {
                return Ok(());
            };
            entry.note(now_unix_s(), Instant::now())
        };
        dir::blocking(move || dir.note_down(&name, &note)).await
    }

    /// Asks the authority when it advises to renew a certificate (RFC 9773 section 4).
    async fn ask(self: Arc<Self>, name: String) {
        let question = {
            let state = self.state.lock();
            let entry = state.entries.get(&name);
            entry.and_then(Entry::newest).cloned().and_then(|held| {
                let mut all = state.authorities.iter();
                let authority = all.find(|a| a.directory == held.directory)?.clone();
                Some((held, authority, state.contact.clone()))
            })
        };
        let (answer, again) = match &question {
            Some((held, authority, contact)) => self.advice(held, authority, contact).await,
            None => (Ok(None), renewal::ADVICE_ABSENT_AGAIN),
        };

        let now = Instant::now();
        let mut event = None;
        {
            let mut state = self.state.lock();
            state.asking -= 1;
            let state = &mut *state;
            if let Some(entry) = state.entries.get_mut(&name) {
                entry.is_asking = false;
                let is_same = match (&question, entry.newest()) {
                    (Some((asked, ..)), Some(newest)) => Arc::ptr_eq(asked, newest),
                    (None, _) => true,
                    _ => false,
                };
                if is_same {
                    entry.advice_at = now + again;
                    if let Ok(advice) = answer {
                        let is_news = advice.as_ref().is_some_and(|advice| {
                            advice.explanation_url.is_some() || entry.advice.is_some()
                        });
                        let is_new = entry.advice != advice && is_news;
                        entry.advice = advice;
                        if is_new
                            && let (Some(advice), Some((_, authority, _))) =
                                (&entry.advice, &question)
                        {
                            event = Some(Event::Advised {
                                name: name.clone(),
                                authority: authority.name.clone(),
                                renew_unix_s: entry.due_unix_s(&state.authorities),
                                explanation_url: advice.explanation_url.clone(),
                            });
                        }
                    }
                }
            }
        }
        if let Some(event) = event {
            (self.listener)(event);
        }
        self.save_note_or_warn(&name).await;
        self.wake.notify_one();
    }

    /// The advice for a certificate, and when to ask again. `Err` where that is not known now.
    async fn advice(
        &self,
        held: &Held,
        authority: &Authority,
        contact: &[String],
    ) -> (Result<Option<Advice>, ()>, Duration) {
        let (Some(id), true) = (&held.facts.id, self.accounts.is_kept(authority)) else {
            return (Ok(None), renewal::ADVICE_ABSENT_AGAIN);
        };
        let session = match self.accounts.open(authority, contact, false).await {
            Ok(session) => session,
            Err(error) => {
                tracing::debug!(reason = error.reason, "no advice");
                return (Err(()), renewal::ADVICE_AGAIN);
            }
        };
        match session.account.renewal_info(id).await {
            Ok((info, again)) => {
                let (start, end) = (info.suggested_window.start, info.suggested_window.end);
                let window = Window::checked(start.unix_timestamp(), end.unix_timestamp());
                if window.is_none() {
                    tracing::warn!(
                        authority = authority.name,
                        "the advised window ends before it begins"
                    );
                }
                let advice = window.map(|window| Advice {
                    certificate: id.to_string(),
                    window,
                    explanation_url: info.explanation_url.as_deref().map(text::line),
                });
                (Ok(advice), again)
            }
            Err(Error::Unsupported(_)) => (Ok(None), renewal::ADVICE_ABSENT_AGAIN),
            Err(error) => {
                let error = OrderError::of_call(authority, &error);
                tracing::debug!(reason = error.reason, "no advice");
                (Err(()), renewal::ADVICE_AGAIN)
            }
        }
    }

    fn publish(&self, state: &State, now_unix_s: i64) {
        let mut issued = BTreeMap::new();
        for name in &state.order {
            let entry = state.entries.get(name);
            if let Some(held) = entry.and_then(|entry| entry.in_force(now_unix_s)) {
                issued.insert(name.clone(), held.issued.clone());
            }
        }
        self.issued.send_if_modified(|now| {
            let is_other = **now != issued;
            if is_other {
                *now = Arc::new(issued);
            }
            is_other
        });
    }

    /// Removes certificates that nobody wants and that have long expired.
    fn tidy(&self, state: &mut State, now_unix_s: i64, now: Instant) {
        if now < state.tidy_at {
            return;
        }
        state.tidy_at = now + TIDY_EVERY;
        state
            .pauses
            .retain(|_, pause| pause.until > now || pause.failures > 0);
        state.entries.retain(|name, entry| {
            let is_wanted = entry.wanted.is_some() || entry.is_ordering || entry.is_asking;
            let last = entry.newest().map(|held| held.facts.not_after_unix_s);
            let is_kept = is_wanted || last.is_some_and(|last| now_unix_s < last + UNWANTED_KEPT_S);
            if !is_kept {
                self.dir.remove(name);
            }
            is_kept
        });
    }
}

/// What an order is about.
struct Order<'a> {
    name: &'a str,
    wanted: &'a Wanted,
    contact: &'a [String],
    /// The certificate before.
    former: Option<Arc<Held>>,
}

fn obtained(name: &str, held: &Held, is_renewal: bool) -> Event {
    Event::Obtained {
        name: name.to_owned(),
        authority: held.issued.authority.clone(),
        not_after_unix_s: held.issued.not_after_unix_s,
        is_renewal,
    }
}

/// Stands for the settings of a certificate: another one means that they have changed.
fn fingerprint(wanted: &Wanted, authorities: &[Arc<Authority>], contact: &[String]) -> String {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut add = |text: &str| {
        hash.update(&(text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    };
    wanted.hosts.iter().for_each(|host| add(host));
    add(&format!("{:?}", wanted.challenges));
    for authority in authorities {
        add(&format!("{authority:?}"));
        if let Some((_, key)) = &authority.external_account {
            add(key);
        }
    }
    contact.iter().for_each(|address| add(address));
    let hash = hash.finish();
    let bytes = hash.as_ref()[..8].iter();
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness the back-off has no jitter.
    let _ = getrandom::fill(&mut bytes);
    f64::from(u32::from_be_bytes(bytes)) / 2f64.powi(32)
}
