//! A seeded simulation of collapsing: many clients, one scheduler, no sockets.
//!
//! One seed decides a whole schedule: which clients come, when each of them takes its next step,
//! which of them leave, what the origin answers, and when purges and time pass in between. The
//! clients decide by the rules that serve requests ([`decide`](nearcast_http_rules::decide)), join by
//! [`Forwards`], and the responses are decided by [`head`]. After each step the simulation checks
//! what has to hold in every state, and at the end that nothing is left.
//!
//! `NEARCAST_SCHEDULES` sets how many schedules run (10,000 otherwise) and `NEARCAST_SEED` the first
//! seed (0 otherwise): a failure prints its seed, and `NEARCAST_SEED=<seed> NEARCAST_SCHEDULES=1`
//! repeats it.

mod schedule;
mod traffic;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use nearcast_fleet::config::CachePolicy;
use nearcast_fleet::random::Random;
use tokio::sync::oneshot;

use self::schedule::{Task, pause};
use self::traffic::{FlightKey, Kind, Memory, REPLIES, Reply};
use super::collapse::{Follower, FollowerStep, ForwardResult, Forwards, Join, Leader, Turns};
use super::head::{self, Expected, HeadAction, OriginHead};
use crate::clock::Clock;
use crate::origin::OriginError;
use nearcast_http_rules::decide::{Decision, Sharing, Stored, Terms, decide};
use nearcast_http_rules::freshness::{Exchange, Freshness};
use nearcast_http_rules::not_stored::NotStored;
use nearcast_http_rules::status::ForwardReason;
use nearcast_http_rules::testing::{NOW_MS, map};

/// Clients of one schedule at most.
const CLIENTS_MAX: usize = 12;
/// Different URLs of one schedule.
const KEYS: usize = 2;
/// How long requests for a key do not wait after a response that may not be shared.
const NOT_SHAREABLE_MS: u64 = 60_000;

/// A stored response.
struct Entry {
    number: u64,
    /// The language that it varies on, where it does.
    language: Option<Option<&'static str>>,
    freshness: Freshness,
    requested_ms: u64,
    revision: u64,
}

/// A forward request that others may follow.
#[derive(Default)]
struct Flight {
    kind: usize,
    end: Option<End>,
}

/// How a forward request ended for its followers.
#[derive(Debug, Clone, PartialEq)]
enum End {
    Stored,
    Error(StatusCode, NotStored),
    Failed(OriginError),
    Other,
    Dropped,
}

impl End {
    fn of(result: &ForwardResult) -> Self {
        match result {
            ForwardResult::Stored => Self::Stored,
            ForwardResult::ErrorResponse { status, cause, .. } => Self::Error(*status, *cause),
            ForwardResult::Failed(error) => Self::Failed(*error),
            _ => Self::Other,
        }
    }
}

/// What the simulation knows of the state, beside the machine that it tests.
#[derive(Default)]
struct State {
    stored: HashMap<u64, Vec<Rc<Entry>>>,
    entries: u64,
    revision: u64,
    purged: HashMap<u64, u64>,
    flights: Vec<Flight>,
    leaders: HashMap<FlightKey, usize>,
    /// Followers that wait, by the forward request that they wait for.
    followers: HashMap<usize, u64>,
    memories: HashMap<Memory, u64>,
    /// How many more forward requests may lead for a key: one, and one for each reason why the next
    /// one is needed.
    lead_budget: HashMap<FlightKey, u64>,
    asked: Vec<oneshot::Sender<Reply>>,
    spawned: Vec<Task>,
    counts: Counts,
}

/// What happened, by name: so that a schedule shows what it was, and all together that nothing is
/// left out.
type Counts = BTreeMap<&'static str, u64>;

struct World {
    clock: Clock,
    forwards: Arc<Forwards>,
    policy: Rc<CachePolicy>,
    kinds: Rc<Vec<Kind>>,
    state: RefCell<State>,
}

impl World {
    fn count(&self, what: &'static str) {
        *self.state.borrow_mut().counts.entry(what).or_default() += 1;
    }

    fn look_up(&self, key: u64, kind: &Kind) -> Result<Rc<Entry>, ForwardReason> {
        let state = self.state.borrow();
        let purged = state.purged.get(&key).copied().unwrap_or(0);
        let mut usable = state
            .stored
            .get(&key)
            .into_iter()
            .flatten()
            .filter(|entry| entry.revision >= purged)
            .peekable();
        if usable.peek().is_none() {
            return Err(ForwardReason::UriMiss);
        }
        usable
            .find(|entry| {
                entry
                    .language
                    .is_none_or(|language| language == kind.language)
            })
            .cloned()
            .ok_or(ForwardReason::VaryMiss)
    }

    /// Stores a response, unless a purge has come since it was requested.
    fn store(&self, key: u64, entry: Entry) -> bool {
        let mut state = self.state.borrow_mut();
        if entry.revision < state.purged.get(&key).copied().unwrap_or(0) {
            return false;
        }
        if entry.language.is_some() || !entry.freshness.is_fresh(self.clock.unix_ms()) {
            // Other variants have to be requested, and so has what cannot be used again.
            for group in [0, 1] {
                *state.lead_budget.entry((key, group)).or_insert(1) += CLIENTS_MAX as u64;
            }
        }
        let entry = Rc::new(entry);
        let stored = state.stored.entry(key).or_default();
        stored.retain(|other| other.language.is_some() && other.language != entry.language);
        stored.insert(0, entry);
        true
    }

    fn purge(&self, key: u64) {
        let mut state = self.state.borrow_mut();
        state.revision += 1;
        let revision = state.revision;
        state.purged.insert(key, revision);
        for group in [0, 1] {
            *state.lead_budget.entry((key, group)).or_insert(1) += 1;
        }
    }

    /// Whether the machine has to remember that requests of this kind do not wait.
    fn is_remembered(&self, key: u64, kind: &Kind) -> bool {
        let now = self.clock.unix_ms();
        let state = self.state.borrow();
        state
            .memories
            .get(&kind.memory(key))
            .is_some_and(|until| *until > now)
    }

    /// The origin's answer, when the scheduler gives it.
    async fn ask_origin(&self) -> Option<Reply> {
        let (reply_tx, reply) = oneshot::channel();
        self.state.borrow_mut().asked.push(reply_tx);
        self.count("origin requests");
        reply.await.ok()
    }

    fn begin_flight(&self, key: u64, kind: usize) -> usize {
        let group = self.kinds[kind].group;
        let mut state = self.state.borrow_mut();
        let number = state.flights.len();
        state.flights.push(Flight { kind, end: None });
        let other = state.leaders.insert((key, group), number);
        assert!(
            other.is_none(),
            "a second leader of key {key}, group {group}"
        );
        number
    }

    fn end_flight(&self, key: u64, number: usize, end: End, memory: Option<bool>) {
        let now = self.clock.unix_ms();
        let mut state = self.state.borrow_mut();
        let kind = &self.kinds[state.flights[number].kind];
        state.flights[number].end = Some(end.clone());
        state.leaders.remove(&(key, kind.group));
        if end != End::Stored {
            *state.lead_budget.entry((key, kind.group)).or_insert(1) += 1;
        }
        match memory {
            Some(true) => drop(
                state
                    .memories
                    .insert(kind.memory(key), now + NOT_SHAREABLE_MS),
            ),
            Some(false) => drop(state.memories.remove(&kind.memory(key))),
            None => {}
        }
    }

    /// The life of one request.
    async fn client(self: Rc<Self>, key: u64, kind_number: usize) {
        let kind = &self.kinds[kind_number];
        let policy = self.policy.clone();
        let began_ms = self.clock.unix_ms();
        let mut terms = Terms::of(&Method::GET, &kind.fields, &policy, false, began_ms);
        let mut turns = Turns::default();
        let (mut is_alone, mut begun, mut awaited) = (false, 0, 0);
        while turns.begin() {
            begun += 1;
            terms.has_waited = turns.has_waited();
            let found = self.look_up(key, kind);
            let stored = found
                .as_ref()
                .map_err(|reason| *reason)
                .map(|entry| Stored {
                    freshness: entry.freshness,
                    requested_ms: entry.requested_ms,
                    is_soft_purged: false,
                    is_unsynced: false,
                    is_awaited: false,
                });
            let sharing = match decide(&terms, stored) {
                Decision::Serve { .. } => {
                    let entry = found.expect("it is served");
                    let state = self.state.borrow();
                    let purged = state.purged.get(&key).copied().unwrap_or(0);
                    assert!(entry.revision >= purged, "served after its purge: {key}");
                    drop(state);
                    return self.count("served");
                }
                Decision::Forward {
                    sharing, reason, ..
                } => match turns.may_wait(reason == ForwardReason::VaryMiss) {
                    true => sharing,
                    false => Sharing::Unshared,
                },
                other => panic!("unexpected for a plain GET: {other:?}"),
            };
            if kind.wanted.is_some() && self.forwards.is_unjoinable(hash(key), &kind.requester) {
                self.count("passed with its own range");
                let _ = self.ask_origin().await;
                return;
            }
            // Other threads may take steps between a look-up and a join.
            pause().await;

            let is_shared = match sharing {
                Sharing::Unshared => false,
                Sharing::Shared => true,
                Sharing::SharedIfVaried => kind.group == 0,
            };
            let join = match is_shared {
                true => self.forwards.join(hash(key), kind.requester.clone()),
                false => Join::Alone,
            };
            let leader = match join {
                Join::Follower(follower) => {
                    match self.follow(key, kind, follower).await {
                        FollowerStep::LookUpStored => {
                            turns.note_stored();
                            awaited += 1;
                        }
                        FollowerStep::LookUpAgain => {}
                        FollowerStep::ForwardAlone => {
                            turns.forward_alone();
                            is_alone = true;
                        }
                        FollowerStep::ErrorResponse { .. } => return self.count("shared errors"),
                        FollowerStep::Fail(_) => return self.count("shared failures"),
                    }
                    continue;
                }
                Join::Leader(leader) => {
                    let stored = found.as_ref().ok();
                    match self.lead(key, kind_number, leader, stored) {
                        Some(leading) => Some(leading),
                        None => continue,
                    }
                }
                Join::Alone => {
                    let is_due = is_alone || awaited >= 2 || begun > 4;
                    let may_be_alone = match is_shared {
                        true => self.is_remembered(key, kind),
                        false => is_due || terms.has_credentials || kind.group > 0 || found.is_ok(),
                    };
                    assert!(may_be_alone, "alone without a reason: {key}, {sharing:?}");
                    self.count("alone");
                    None
                }
            };

            let leading = Leading {
                world: self.clone(),
                key,
                leader,
            };
            let (done_tx, done) = oneshot::channel();
            let fetch = self
                .clone()
                .fetch(key, kind_number, found.is_ok(), leading, done_tx);
            self.state
                .borrow_mut()
                .spawned
                .push(Task::new(false, fetch));
            let _ = done.await;
            return self.count("forwarded");
        }
        panic!("a request ran out of turns");
    }

    /// Leads, unless another response is stored by now than the one that was looked up.
    fn lead(
        &self,
        key: u64,
        kind_number: usize,
        leader: Leader,
        stored: Option<&Rc<Entry>>,
    ) -> Option<(Leader, usize)> {
        let kind = &self.kinds[kind_number];
        assert!(!self.is_remembered(key, kind), "it had to go alone: {key}");
        let flight = self.begin_flight(key, kind_number);
        let now = self.look_up(key, kind).ok().map(|entry| entry.number);
        if now != stored.map(|entry| entry.number) {
            self.count("resigned");
            self.end_flight(key, flight, End::Other, None);
            leader.resign();
            return None;
        }
        self.spend_lead(key, kind.group);
        Some((leader, flight))
    }

    fn spend_lead(&self, key: u64, group: u8) {
        self.count("led");
        let mut state = self.state.borrow_mut();
        let budget = state.lead_budget.entry((key, group)).or_insert(1);
        assert!(
            *budget > 0,
            "a forward request that nothing called for: {key}"
        );
        *budget -= 1;
    }

    /// Waits for the result of a forward request, and checks what it means for this follower.
    async fn follow(&self, key: u64, kind: &Kind, follower: Follower) -> FollowerStep {
        let flight = self.state.borrow().leaders.get(&(key, kind.group)).copied();
        let flight = flight.expect("a follower has a leader");
        self.count("followed");
        let step = {
            let _waiting = Waiting::begin(self, flight);
            follower.wait().await
        };
        let state = self.state.borrow();
        let Flight { kind: leader, end } = &state.flights[flight];
        let leader = &self.kinds[*leader];
        let end = end.as_ref().expect("a follower waits for the end");
        match &step {
            FollowerStep::LookUpStored => assert_eq!(*end, End::Stored),
            FollowerStep::ErrorResponse { status, cause, .. } => {
                assert_eq!(*end, End::Error(*status, *cause));
                assert!(kind.is_alike(leader), "an error of another's own fields");
            }
            FollowerStep::Fail(error) => {
                assert_eq!(*end, End::Failed(*error));
                assert!(
                    kind.is_alike(leader) || !error.may_be_of_request(),
                    "a failure that may be due to another's own fields: {error:?}"
                );
            }
            FollowerStep::ForwardAlone => assert_ne!(*end, End::Stored),
            FollowerStep::LookUpAgain => {}
        }
        step
    }

    /// A forward request, as its own task.
    async fn fetch(
        self: Rc<Self>,
        key: u64,
        kind_number: usize,
        has_stale: bool,
        mut leading: Leading,
        done: oneshot::Sender<()>,
    ) {
        let kind = &self.kinds[kind_number];
        let mut wanted = kind.wanted;
        let mut tries = 0;
        let result = loop {
            tries += 1;
            assert!(tries <= 2, "a request is made anew once");
            let revision = self.state.borrow().revision;
            let requested_ms = self.clock.unix_ms();
            let Some(reply) = self.ask_origin().await else {
                break ForwardResult::LookUpAgain;
            };
            let (status, lines, length) = match reply {
                Reply::Fail(OriginError::GivenUp) => break ForwardResult::LookUpAgain,
                Reply::Fail(error) => break ForwardResult::Failed(error),
                Reply::Head(status, lines, length) => (status, lines, length),
            };
            let fields = map(lines);
            let exchange = Exchange {
                requested_ms,
                received_ms: self.clock.unix_ms(),
            };
            let head = OriginHead {
                status: StatusCode::from_u16(status).expect("a status"),
                fields: &fields,
                length,
            };
            let expected = Expected {
                client: &kind.fields,
                policy: &self.policy,
                body_bytes_max: 1 << 30,
                wanted,
                has_stale,
                exchange,
            };
            let decision = head::decide(head, &expected);
            if decision.is_unjoinable {
                self.forwards.note_unjoinable(hash(key), &kind.requester);
            }
            let followers = match decision.action {
                HeadAction::Fill(admission) if admission.not_stored.is_none() => {
                    let number = self.state.borrow().entries;
                    self.state.borrow_mut().entries += 1;
                    let entry = Entry {
                        number,
                        language: fields.contains_key("vary").then_some(kind.language),
                        freshness: admission.freshness,
                        requested_ms,
                        revision,
                    };
                    if !self.store(key, entry) {
                        self.count("overtaken by a purge");
                        break ForwardResult::LookUpAgain;
                    }
                    self.forwards.note_shareable(hash(key), &kind.requester);
                    self.state.borrow_mut().memories.remove(&kind.memory(key));
                    break ForwardResult::Stored;
                }
                HeadAction::Fill(admission) => admission.followers,
                HeadAction::PassResponse { followers, .. }
                | HeadAction::PassRequest { followers } => followers,
                HeadAction::RequestAgain(other) => {
                    self.count("requested again");
                    wanted = Some(other);
                    continue;
                }
                HeadAction::Fail(error) => break ForwardResult::Failed(error),
            };
            break followers.result(&kind.requester, None);
        };
        leading.publish(result);
        let _ = done.send(());
    }

    /// What holds after every step.
    fn check(&self, tasks: &[Task]) {
        let state = self.state.borrow();
        assert_eq!(self.forwards.len(), state.leaders.len(), "forward requests");
        let of_leader = |flight| state.followers.get(flight).copied().unwrap_or(0);
        let waiting: u64 = state.leaders.values().map(of_leader).sum();
        assert_eq!(self.forwards.waiting() as u64, waiting, "followers");
        let is_stuck = state.asked.is_empty()
            && state.spawned.is_empty()
            && !tasks.is_empty()
            && tasks.iter().all(|task| !task.is_woken());
        assert!(!is_stuck, "{} tasks wait for ever", tasks.len());
    }
}

fn hash(key: u64) -> u128 {
    u128::from(key + 1) << 40
}

/// A follower that waits, counted until it has its result or leaves.
struct Waiting<'a>(&'a World, usize);

impl<'a> Waiting<'a> {
    fn begin(world: &'a World, flight: usize) -> Self {
        let mut state = world.state.borrow_mut();
        *state.followers.entry(flight).or_default() += 1;
        Self(world, flight)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.borrow_mut();
        *state.followers.entry(self.1).or_default() -= 1;
    }
}

/// A leader, whose end is noted even when its task is dropped.
struct Leading {
    world: Rc<World>,
    key: u64,
    leader: Option<(Leader, usize)>,
}

impl Leading {
    fn publish(&mut self, result: ForwardResult) {
        let Some((leader, flight)) = self.leader.take() else {
            return;
        };
        let memory = match &result {
            ForwardResult::NotShareable | ForwardResult::NotShareableByKind => Some(true),
            ForwardResult::Stored => Some(false),
            _ => None,
        };
        self.world
            .end_flight(self.key, flight, End::of(&result), memory);
        leader.publish(result);
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        if let Some((leader, flight)) = self.leader.take() {
            self.world.count("leaders dropped");
            self.world.end_flight(self.key, flight, End::Dropped, None);
            drop(leader);
        }
    }
}

/// What a schedule may contain.
#[derive(Clone, Copy)]
struct Profile {
    /// Kinds of requests, of those that there are.
    kinds: usize,
    /// Answers of the origin, of those that there are.
    replies: usize,
    has_departures: bool,
    has_purges: bool,
    has_time: bool,
}

impl Profile {
    fn of(seed: u64, kinds: usize) -> Self {
        let all = Self {
            kinds,
            replies: REPLIES.len(),
            has_departures: true,
            has_purges: true,
            has_time: true,
        };
        match seed % 4 {
            // Ordinary requests for storable responses: the origin is asked once for each key.
            0 => Self {
                kinds: 3,
                replies: 4,
                has_departures: seed.is_multiple_of(8),
                has_purges: false,
                has_time: false,
            },
            // Errors and responses that are not shared, among ordinary requests.
            1 => Self { kinds: 3, ..all },
            _ => all,
        }
    }

    fn is_plain(&self) -> bool {
        self.kinds == 3 && self.replies == 4
    }
}

/// Prints the seed when a check fails.
struct SeedOnFailure(u64);

impl Drop for SeedOnFailure {
    #[expect(
        clippy::print_stderr,
        reason = "the seed of a failed test is for its reader"
    )]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("NEARCAST_SEED={} NEARCAST_SCHEDULES=1 repeats this", self.0);
        }
    }
}

/// Runs the schedule of one seed, and counts what happened in it.
async fn run(seed: u64, policy: &Rc<CachePolicy>, kinds: &Rc<Vec<Kind>>) -> Counts {
    let _seed = SeedOnFailure(seed);
    let profile = Profile::of(seed, kinds.len());
    let clock = Clock::of_runtime(NOW_MS);
    let world = Rc::new(World {
        forwards: Forwards::new(1 << 20, clock.clone()),
        clock,
        policy: policy.clone(),
        kinds: kinds.clone(),
        state: RefCell::default(),
    });
    let mut random = Random::new(seed);
    let mut to_come = 1 + random.below(CLIENTS_MAX);
    let keys = 1 + random.below(KEYS);
    let mut keys_used = [false; KEYS];
    let mut tasks: Vec<Task> = Vec::new();

    while to_come > 0 || !tasks.is_empty() {
        match random.below(100) {
            0..=14 if to_come > 0 => {
                to_come -= 1;
                let (key, kind) = (random.below(keys), random.below(profile.kinds));
                keys_used[key] = true;
                tasks.push(Task::new(true, world.clone().client(key as u64, kind)));
            }
            15..=29 => {
                let mut state = world.state.borrow_mut();
                if !state.asked.is_empty() {
                    let position = random.below(state.asked.len());
                    let asked = state.asked.swap_remove(position);
                    let _ = asked.send(REPLIES[random.below(profile.replies)].clone());
                }
            }
            30..=32 if profile.has_departures && !tasks.is_empty() => {
                let position = random.below(tasks.len());
                // A client leaves often; the task of a forward request hardly ever ends early.
                if tasks[position].is_client || !profile.is_plain() && random.below(4) == 0 {
                    drop(tasks.swap_remove(position));
                }
            }
            33..=34 if profile.has_purges => {
                world.purge(random.below(keys) as u64);
                world.count("purges");
            }
            35 if profile.has_time => {
                let seconds = [1, 5, 30, 59, 61][random.below(5)];
                tokio::time::advance(Duration::from_secs(seconds)).await;
                let mut state = world.state.borrow_mut();
                state.lead_budget.values_mut().for_each(|left| *left += 1);
            }
            _ => {
                let woken: Vec<_> = (0..tasks.len()).filter(|n| tasks[*n].is_woken()).collect();
                if !woken.is_empty() {
                    let position = woken[random.below(woken.len())];
                    if tasks[position].run() {
                        drop(tasks.swap_remove(position));
                    }
                }
            }
        }
        tasks.append(&mut world.state.borrow_mut().spawned);
        world.check(&tasks);
    }

    let state = world.state.take();
    assert!(state.leaders.is_empty() && state.followers.values().all(|waiting| *waiting == 0));
    assert_eq!((world.forwards.len(), world.forwards.waiting()), (0, 0));
    if profile.is_plain() {
        let asked = state.counts.get("origin requests").copied().unwrap_or(0);
        let used = keys_used.iter().filter(|is_used| **is_used).count() as u64;
        // A client may leave before its first step.
        assert!(
            asked <= used && (profile.has_departures || asked == used),
            "{asked} of {used}"
        );
    }
    state.counts
}

#[test]
fn collapsing_holds_under_any_schedule() {
    let number = |name| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse().expect("a number"))
    };
    let first: u64 = number("NEARCAST_SEED").unwrap_or(0);
    let schedules: u64 = number("NEARCAST_SCHEDULES").unwrap_or(10_000);
    let policy = Rc::new(CachePolicy {
        stale_while_revalidate: Duration::ZERO,
        ..CachePolicy::default()
    });
    let kinds = Rc::new(Kind::all(&policy));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let mut counts = Counts::new();
    runtime.block_on(async {
        for seed in first..first + schedules {
            for (what, count) in run(seed, &policy, &kinds).await {
                *counts.entry(what).or_default() += count;
            }
        }
    });
    if schedules >= 1000 {
        for what in [
            "alone",
            "followed",
            "forwarded",
            "leaders dropped",
            "led",
            "overtaken by a purge",
            "passed with its own range",
            "purges",
            "requested again",
            "resigned",
            "served",
            "shared errors",
            "shared failures",
        ] {
            let count = counts.get(what).copied().unwrap_or(0);
            assert!(
                count >= schedules / 1000,
                "{what}: {count} of {schedules} schedules"
            );
        }
    }
}

#[test]
fn the_same_seed_is_the_same_schedule() {
    let policy = Rc::new(CachePolicy::default());
    let kinds = Rc::new(Kind::all(&policy));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        for seed in 0..50 {
            let first = run(seed, &policy, &kinds).await;
            assert_eq!(first, run(seed, &policy, &kinds).await, "{seed}");
        }
    });
}
