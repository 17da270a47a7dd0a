//! What a keeper knows: its certificates, and which authority can be asked for which of them.
//!
//! Time is an argument of every decision.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::entry::Entry;
use crate::fault::{Fault, OrderError};
use crate::pace::{Pace, Validations};
use crate::{Authority, LastError, now_unix_s};

/// An authority that failed is left alone for this time, and for twice as long each further time ...
const PAUSE_MIN: Duration = Duration::from_secs(30);
/// ... up to this.
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// After this many certificates in a row that an authority refused because of a rate limit, it is
/// left alone: the limit is the account's.
const LIMITED_IN_A_ROW: u32 = 3;

/// All of it.
pub(crate) struct State {
    pub(crate) entries: BTreeMap<String, Entry>,
    /// Names of what is wanted, in its order.
    pub(crate) order: Vec<String>,
    pub(crate) authorities: Vec<Arc<Authority>>,
    pub(crate) contact: Vec<String>,
    pub(crate) pace: Pace,
    pub(crate) validations: Validations,
    /// Authorities that are left alone (by directory), or for one certificate only (by its name).
    pub(crate) pauses: HashMap<(String, Option<String>), Pause>,
    /// Tasks that run: orders and questions.
    pub(crate) ordering: usize,
    pub(crate) asking: usize,
    pub(crate) tidy_at: Instant,
}

#[derive(Debug, Clone)]
pub(crate) struct Pause {
    pub(crate) until: Instant,
    pub(crate) failures: u32,
    /// Certificates in a row that were refused because of a rate limit.
    pub(crate) limited: u32,
    pub(crate) error: LastError,
}

impl State {
    /// When the next order of a certificate can begin; `None` while one is under way, and without
    /// authorities.
    pub(crate) fn next_order(
        &self,
        name: &str,
        entry: &Entry,
        now_unix_s: i64,
        now: Instant,
    ) -> Option<i64> {
        if entry.is_ordering {
            return None;
        }
        self.order_after(name, entry, now_unix_s, now)
    }

    /// As [`Self::next_order`], also while an order is under way: when the one after it can begin.
    pub(crate) fn order_after(
        &self,
        name: &str,
        entry: &Entry,
        now_unix_s: i64,
        now: Instant,
    ) -> Option<i64> {
        if entry.wanted.is_none() || self.authorities.is_empty() {
            return None;
        }
        let unix_s = |at: Instant| {
            // Rounded up: a wait that is over by the one clock is over by the other.
            let wait = at.saturating_duration_since(now);
            now_unix_s + wait.as_secs() as i64 + i64::from(wait.subsec_nanos() > 0)
        };
        let mut next = now_unix_s;
        if !entry.is_asked_for {
            next = next.max(entry.due_unix_s(&self.authorities));
        }
        if !entry.is_forced {
            next = next.max(entry.not_before.map_or(next, unix_s));
        }
        if let Err(free_at) = self.candidates(name, entry, now) {
            next = next.max(unix_s(free_at));
        }
        Some(next)
    }

    /// The authorities that can be asked for a certificate, in their order. `Err` is when one can.
    pub(crate) fn candidates(
        &self,
        name: &str,
        entry: &Entry,
        now: Instant,
    ) -> Result<Vec<Arc<Authority>>, Instant> {
        let hosts = entry
            .wanted
            .as_ref()
            .map_or(&[][..], |wanted| &wanted.hosts);
        let count = self.authorities.len().max(1);
        let mut candidates = Vec::new();
        let mut free_at: Option<Instant> = None;
        let in_turn = self.authorities.iter().cycle().skip(entry.rotation % count);
        for authority in in_turn.take(self.authorities.len()) {
            let mut at = self.validations.free_at(&authority.directory, hosts, now);
            if !entry.is_forced {
                let pauses = self.pauses_of(&authority.directory, name);
                at = pauses.map(|pause| pause.until).fold(at, Instant::max);
            }
            match at > now {
                true => free_at = Some(free_at.map_or(at, |free_at| free_at.min(at))),
                false => candidates.push(authority.clone()),
            }
        }
        match candidates.is_empty() {
            true => Err(free_at.unwrap_or(now)),
            false => Ok(candidates),
        }
    }

    fn pauses_of(&self, directory: &str, name: &str) -> impl Iterator<Item = &Pause> {
        let of = |name: Option<&str>| {
            self.pauses
                .get(&(directory.to_owned(), name.map(str::to_owned)))
        };
        [of(None), of(Some(name))].into_iter().flatten()
    }

    /// The pause that a certificate waits for.
    pub(crate) fn paused(&self, name: &str, entry: &Entry, now: Instant) -> Option<&Pause> {
        if self.candidates(name, entry, now).is_ok() {
            return None;
        }
        let all = self.authorities.iter();
        all.flat_map(|authority| self.pauses_of(&authority.directory, name))
            .filter(|pause| pause.until > now)
            .min_by_key(|pause| pause.until)
    }

    /// Notes what an order says of its authority.
    pub(crate) fn learn(
        &mut self,
        authority: &Authority,
        name: &str,
        outcome: Result<(), &OrderError>,
    ) {
        let now = Instant::now();
        let directory = authority.directory.clone();
        let Err(error) = outcome else {
            self.pauses.remove(&(directory.clone(), None));
            self.pauses.remove(&(directory, Some(name.to_owned())));
            return;
        };
        let said = LastError {
            unix_s: now_unix_s(),
            authority: Some(authority.name.clone()),
            reason: error.reason.clone(),
        };
        match &error.fault {
            Fault::Authority { retry_after } => {
                let pause = self.pause(&directory, None, said);
                // Orders that ran at the same time failed for the same reason.
                if pause.until <= now {
                    let doublings = pause.failures.min(10);
                    pause.failures += 1;
                    pause.until = now + PAUSE_MIN.saturating_mul(1 << doublings).min(PAUSE_MAX);
                }
                pause.until = pause.until.max(now + retry_after.unwrap_or_default());
            }
            Fault::Limited { retry_after } => {
                let wait = retry_after.unwrap_or(PAUSE_MIN);
                self.pause(&directory, Some(name), said.clone()).until = now + wait;
                let all = self.pause(&directory, None, said);
                all.limited += 1;
                if all.limited >= LIMITED_IN_A_ROW {
                    all.limited = 0;
                    all.until = all.until.max(now + wait.min(PAUSE_MAX));
                }
            }
            Fault::Validation { hosts } => {
                for host in hosts {
                    self.validations.failed(&directory, host, now);
                }
                self.pauses.remove(&(directory, None));
            }
            Fault::Refused | Fault::AccountLost | Fault::Clock | Fault::Ours | Fault::Stopped => {}
        }
    }

    fn pause(&mut self, directory: &str, name: Option<&str>, error: LastError) -> &mut Pause {
        let key = (directory.to_owned(), name.map(str::to_owned));
        let pause = self.pauses.entry(key).or_insert_with(|| Pause {
            until: Instant::now(),
            failures: 0,
            limited: 0,
            error: error.clone(),
        });
        pause.error = error;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Note;
    use crate::renewal::FailedAt;
    use crate::{Limits, Wanted};

    const NOW: i64 = 1_800_000_000;
    const DAY: i64 = 86_400;

    fn authority(name: &str) -> Arc<Authority> {
        Arc::new(Authority {
            name: name.to_owned(),
            directory: format!("https://{name}.test/dir"),
            ca: None,
            external_account: None,
            profile: None,
        })
    }

    fn state(now: Instant) -> State {
        State {
            entries: BTreeMap::new(),
            order: Vec::new(),
            authorities: ["one", "two", "three"].map(authority).into(),
            contact: Vec::new(),
            pace: Pace::new(&Limits::default(), now),
            validations: Validations::default(),
            pauses: HashMap::new(),
            ordering: 0,
            asking: 0,
            tidy_at: now,
        }
    }

    fn entry(now: Instant) -> Entry {
        let mut entry = Entry::new(None, Note::default(), NOW, now);
        entry.wanted = Some(Wanted {
            hosts: vec!["a.test".to_owned()],
            challenges: Vec::new(),
        });
        entry
    }

    fn failed(fault: Fault) -> OrderError {
        OrderError {
            fault,
            reason: "no".to_owned(),
        }
    }

    fn names(candidates: Result<Vec<Arc<Authority>>, Instant>) -> Vec<String> {
        let candidates = candidates.unwrap_or_default();
        candidates.iter().map(|one| one.name.clone()).collect()
    }

    #[test]
    fn authorities_are_asked_in_turn_unless_they_are_left_alone() {
        let now = Instant::now();
        let (mut state, mut entry) = (state(now), entry(now));
        assert_eq!(
            names(state.candidates("a.test", &entry, now)),
            ["one", "two", "three"]
        );
        entry.rotation = 4;
        assert_eq!(
            names(state.candidates("a.test", &entry, now)),
            ["two", "three", "one"]
        );
        entry.rotation = 0;

        let retry_after = Some(Duration::from_secs(600));
        let (one, two, three) = (authority("one"), authority("two"), authority("three"));
        state.learn(
            &one,
            "b.test",
            Err(&failed(Fault::Authority { retry_after })),
        );
        state.learn(&two, "b.test", Err(&failed(Fault::Limited { retry_after })));
        let soon = Instant::now();
        assert_eq!(
            names(state.candidates("a.test", &entry, soon)),
            ["two", "three"]
        );
        assert_eq!(names(state.candidates("b.test", &entry, soon)), ["three"]);
        state.learn(&three, "a.test", Err(&failed(Fault::Refused)));
        assert_eq!(names(state.candidates("b.test", &entry, soon)), ["three"]);
        entry.is_forced = true;
        assert_eq!(names(state.candidates("b.test", &entry, soon)).len(), 3);
        entry.is_forced = false;

        let later = soon + Duration::from_secs(601);
        assert_eq!(names(state.candidates("b.test", &entry, later)).len(), 3);
        state.learn(&one, "b.test", Ok(()));
        assert_eq!(names(state.candidates("a.test", &entry, soon)).len(), 3);
    }

    #[test]
    fn a_limit_that_many_certificates_meet_is_the_accounts() {
        let now = Instant::now();
        let (mut state, entry) = (state(now), entry(now));
        let one = authority("one");
        let retry_after = Some(Duration::from_secs(600));
        for (n, name) in ["b.test", "c.test", "d.test"].into_iter().enumerate() {
            let soon = Instant::now();
            assert_eq!(
                names(state.candidates("a.test", &entry, soon)).len(),
                3,
                "{n}"
            );
            state.learn(&one, name, Err(&failed(Fault::Limited { retry_after })));
        }
        let soon = Instant::now();
        assert_eq!(
            names(state.candidates("a.test", &entry, soon)),
            ["two", "three"]
        );
    }

    #[test]
    fn orders_that_fail_at_one_time_count_once_and_pauses_grow() {
        let now = Instant::now();
        let mut state = state(now);
        let one = authority("one");
        let fault = failed(Fault::Authority { retry_after: None });
        for _ in 0..4 {
            state.learn(&one, "a.test", Err(&fault));
        }
        let key = (one.directory.clone(), None);
        assert_eq!(state.pauses[&key].failures, 1);
        for expected in [60, 120, 240, 480, 960, 1920, 3600, 3600] {
            // The pause is over.
            state.pauses.get_mut(&key).unwrap().until = Instant::now();
            let before = Instant::now();
            state.learn(&one, "a.test", Err(&fault));
            let wait = state.pauses[&key].until - before;
            assert_eq!(wait.as_secs(), expected);
        }
    }

    #[test]
    fn a_clock_that_is_set_by_a_day_changes_no_back_off() {
        let now = Instant::now();
        let (state, mut entry) = (state(now), entry(now));
        assert_eq!(state.next_order("a.test", &entry, NOW, now), Some(NOW));
        let error = LastError {
            unix_s: NOW,
            authority: None,
            reason: "no".to_owned(),
        };
        entry.failed(error, FailedAt::Authority, NOW, now, 0.0);
        for set_to in [NOW, NOW - DAY, NOW + DAY, 0, i64::MAX / 2] {
            let next = state.next_order("a.test", &entry, set_to, now);
            assert_eq!(next, Some(set_to + 60));
            let later = now + Duration::from_secs(60);
            let next = state.next_order("a.test", &entry, set_to, later);
            assert_eq!(next, Some(set_to));
        }
        entry.is_ordering = true;
        assert_eq!(state.next_order("a.test", &entry, NOW, now), None);
    }
}
