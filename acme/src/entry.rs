//! One certificate in a keeper: what is wanted, what is in force, and when the next order is due.
//!
//! Decisions take the time, by the wall clock (`now_unix_s`) and by one that only goes forward.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::dir::Held;
use crate::order::Unfinished;
use crate::renewal::{self, FailedAt, Validity, Window};
use crate::{Authority, LastError, Wanted};

/// A certificate.
#[derive(Debug)]
pub(crate) struct Entry {
    /// `None` for one that is no longer wanted.
    pub(crate) wanted: Option<Wanted>,
    /// What is in the directory.
    pub(crate) held: Option<Arc<Held>>,
    /// What was issued and could not be written.
    pub(crate) unwritten: Option<Unwritten>,
    pub(crate) is_ordering: bool,
    /// A renewal was asked for: an order is wanted, whatever is due, until one succeeds.
    pub(crate) is_asked_for: bool,
    /// The next order waits for no back-off.
    pub(crate) is_forced: bool,
    /// What is noted on disk is not true any longer.
    pub(crate) is_note_old: bool,
    /// Orders that failed since the last success.
    pub(crate) failures: u32,
    /// Index of the authority that is asked first.
    pub(crate) rotation: usize,
    /// End of the back-off.
    pub(crate) not_before: Option<Instant>,
    pub(crate) last_error: Option<LastError>,
    pub(crate) advice: Option<Advice>,
    /// When advice is asked for.
    pub(crate) advice_at: Instant,
    pub(crate) is_asking: bool,
    /// An order that may yet give a certificate.
    pub(crate) unfinished: Option<Unfinished>,
    /// Stands for the settings that the failures belong to.
    pub(crate) settings: String,
}

/// A certificate that is not on disk.
#[derive(Debug)]
pub(crate) struct Unwritten {
    pub(crate) held: Arc<Held>,
    pub(crate) write_at: Instant,
    pub(crate) is_writing: bool,
    /// Whether its owner has heard of it.
    pub(crate) is_announced: bool,
}

/// When an authority advises to renew a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Advice {
    /// The certificate's name in questions for advice.
    pub(crate) certificate: String,
    pub(crate) window: Window,
    /// Page of the authority that says why.
    pub(crate) explanation_url: Option<String>,
}

/// What a restart must not forget.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Note {
    failures: u32,
    rotation: usize,
    not_before_unix_s: Option<i64>,
    last_error: Option<LastError>,
    advice: Option<Advice>,
    advice_at_unix_s: Option<i64>,
    unfinished: Option<Unfinished>,
    settings: String,
    /// Where a renewal was asked for: which certificate it replaces. A later one is the success, also
    /// when the process ended before it could note that.
    asked_for: Option<String>,
}

impl Entry {
    pub(crate) fn new(held: Option<Held>, note: Note, now_unix_s: i64, now: Instant) -> Self {
        // A clock that was set must not put anything off for longer than was meant.
        let instant = |unix_s: i64| {
            let wait = u64::try_from(unix_s.saturating_sub(now_unix_s)).unwrap_or(0);
            now + Duration::from_secs(wait).min(renewal::BACK_OFF_MAX)
        };
        let asked_for = note.asked_for.as_deref();
        let is_asked_for = asked_for == Some(&*fingerprint(held.as_ref()));
        Self {
            wanted: None,
            held: held.map(Arc::new),
            unwritten: None,
            is_ordering: false,
            is_asked_for,
            is_forced: false,
            is_note_old: false,
            failures: note.failures,
            rotation: note.rotation,
            not_before: note.not_before_unix_s.map(instant),
            last_error: note.last_error,
            advice: note.advice,
            advice_at: note.advice_at_unix_s.map_or(now, instant),
            is_asking: false,
            unfinished: note.unfinished,
            settings: note.settings,
        }
    }

    pub(crate) fn note(&self, now_unix_s: i64, now: Instant) -> Note {
        let unix_s = |at: Instant| now_unix_s + at.saturating_duration_since(now).as_secs() as i64;
        Note {
            failures: self.failures,
            rotation: self.rotation,
            not_before_unix_s: self.not_before.map(unix_s),
            last_error: self.last_error.clone(),
            advice: self.advice.clone(),
            advice_at_unix_s: Some(unix_s(self.advice_at)),
            unfinished: self.unfinished.clone(),
            settings: self.settings.clone(),
            asked_for: self.is_asked_for.then(|| fingerprint(self.held.as_deref())),
        }
    }

    /// The certificate that was issued last.
    pub(crate) fn newest(&self) -> Option<&Arc<Held>> {
        let unwritten = self.unwritten.as_ref().map(|unwritten| &unwritten.held);
        unwritten.or(self.held.as_ref())
    }

    /// The certificate that is used. One that is not on disk waits while the former one lasts.
    pub(crate) fn in_force(&self, now_unix_s: i64) -> Option<&Arc<Held>> {
        match (&self.held, &self.unwritten) {
            (Some(held), Some(_)) if !validity(held).is_urgent(now_unix_s) => Some(held),
            _ => self.newest(),
        }
    }

    /// When the next order is due, whatever failed before; `i64::MIN` for at once.
    pub(crate) fn due_unix_s(&self, authorities: &[Arc<Authority>]) -> i64 {
        let (Some(wanted), Some(newest)) = (&self.wanted, self.newest()) else {
            return i64::MIN;
        };
        let is_of_ours = authorities.iter().any(|a| a.directory == newest.directory);
        if !newest.facts.covers(&wanted.hosts) || !is_of_ours {
            return i64::MIN;
        }
        let id = newest.facts.id.as_ref().map(ToString::to_string);
        let advice = self.advice.as_ref();
        let advice = advice.filter(|advice| Some(&advice.certificate) == id.as_ref());
        renewal::renew_at(
            validity(newest),
            advice.map(|advice| advice.window),
            newest.facts.fraction,
        )
    }

    /// Its place among those that are due: what a person asked for, then hosts without a certificate,
    /// then what is due for the longest time. Those whose orders fail keep nobody waiting.
    pub(crate) fn place(&self, authorities: &[Arc<Authority>]) -> (bool, bool, bool, i64) {
        (
            !self.is_forced,
            self.failures > 0,
            self.newest().is_some(),
            self.due_unix_s(authorities),
        )
    }

    /// Asks for an order now. One that is under way is that order.
    pub(crate) fn ask_for(&mut self) {
        self.is_asked_for = true;
        if !self.is_ordering {
            self.is_forced = true;
            // Also for a process that starts before the order does.
            self.not_before = None;
        }
    }

    /// Notes that it is no longer wanted.
    pub(crate) fn give_up(&mut self) {
        self.is_note_old |= self.is_asked_for;
        self.wanted = None;
        self.is_asked_for = false;
        self.is_forced = false;
    }

    /// Notes a success.
    pub(crate) fn succeeded(&mut self, now: Instant) {
        self.forget_failures();
        self.is_asked_for = false;
        self.is_forced = false;
        self.advice = None;
        self.advice_at = now;
    }

    /// Begins anew, as when settings have changed.
    pub(crate) fn forget_failures(&mut self) {
        self.failures = 0;
        self.rotation = 0;
        self.not_before = None;
        self.last_error = None;
    }

    /// Notes a failure; how long no order is made.
    pub(crate) fn failed(
        &mut self,
        error: LastError,
        at: FailedAt,
        now_unix_s: i64,
        now: Instant,
        fraction: f64,
    ) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.is_forced = false;
        self.last_error = Some(error);
        let validity = self.newest().map(|held| validity(held));
        let wait = renewal::back_off(self.failures, at, validity, now_unix_s, fraction);
        self.not_before = Some(now + wait);
        wait
    }
}

pub(crate) fn validity(held: &Held) -> Validity {
    Validity {
        from: held.facts.not_before_unix_s,
        until: held.facts.not_after_unix_s,
    }
}

/// Tells one certificate from another; the same for none.
fn fingerprint(held: Option<&Held>) -> String {
    let pem = held.map_or("", |held| &held.issued.pem);
    let digest = ring::digest::digest(&ring::digest::SHA256, pem.as_bytes());
    let first = &digest.as_ref()[..16];
    first.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::{Issued, certificate};

    const NOW: i64 = 1_800_000_000;
    const DAY: i64 = 86_400;

    fn held(hosts: &[&str], from: i64, until: i64) -> Held {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let mut wanted = CertificateParams::new(hosts.clone()).unwrap();
        wanted.not_before = time::OffsetDateTime::from_unix_timestamp(from).unwrap();
        wanted.not_after = time::OffsetDateTime::from_unix_timestamp(until).unwrap();
        let pem = wanted.self_signed(&key).unwrap().pem() + &key.serialize_pem();
        let facts = certificate::read(&pem, &pem).unwrap();
        Held {
            issued: Arc::new(Issued {
                hosts,
                pem,
                authority: "ca".to_owned(),
                not_before_unix_s: from,
                not_after_unix_s: until,
            }),
            directory: "https://ca.test/dir".to_owned(),
            facts,
        }
    }

    fn authority(directory: &str) -> Arc<Authority> {
        Arc::new(Authority {
            name: "ca".to_owned(),
            directory: directory.to_owned(),
            ca: None,
            external_account: None,
            profile: None,
        })
    }

    fn entry(held: Option<Held>, hosts: &[&str]) -> Entry {
        let mut entry = Entry::new(held, Note::default(), NOW, Instant::now());
        entry.wanted = Some(Wanted {
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            challenges: Vec::new(),
        });
        entry
    }

    #[test]
    fn an_order_is_due_for_what_is_missing_or_old() {
        let ours = [authority("https://ca.test/dir")];
        let fresh = || Some(held(&["a.test"], NOW, NOW + 90 * DAY));
        for (name, held, hosts, authorities, is_due) in [
            ("nothing is there", None, &["a.test"][..], &ours[..], true),
            ("it is there", fresh(), &["a.test"], &ours, false),
            (
                "a name was added",
                fresh(),
                &["a.test", "b.test"],
                &ours,
                true,
            ),
            (
                "it has more names",
                Some(self::held(&["a.test", "b.test"], NOW, NOW + 90 * DAY)),
                &["a.test"],
                &ours,
                false,
            ),
            (
                "of another authority",
                fresh(),
                &["a.test"],
                &[authority("https://other.test/dir")],
                true,
            ),
            (
                "two thirds have passed",
                Some(self::held(&["a.test"], NOW - 61 * DAY, NOW + 29 * DAY)),
                &["a.test"],
                &ours,
                true,
            ),
            (
                "half has passed",
                Some(self::held(&["a.test"], NOW - 45 * DAY, NOW + 45 * DAY)),
                &["a.test"],
                &ours,
                false,
            ),
        ] {
            let due = entry(held, hosts).due_unix_s(authorities);
            assert_eq!(due <= NOW, is_due, "{name}");
        }
    }

    #[test]
    fn hosts_whose_orders_fail_keep_no_renewal_waiting() {
        let ours = [authority("https://ca.test/dir")];
        let old = |days| {
            let held = held(&["a.test"], NOW - days * DAY, NOW + 5 * DAY);
            entry(Some(held), &["a.test"])
        };
        let mut asked_for = old(10);
        asked_for.is_forced = true;
        let mut failing = entry(None, &["a.test"]);
        failing.failures = 3;
        let in_order = [
            asked_for,
            entry(None, &["a.test"]),
            old(90),
            old(60),
            failing,
        ];
        let places: Vec<_> = in_order.iter().map(|entry| entry.place(&ours)).collect();
        assert!(places.is_sorted(), "{places:?}");
    }

    #[test]
    fn advice_holds_for_its_certificate_only() {
        let ours = [authority("https://ca.test/dir")];
        let mut entry = entry(Some(held(&["a.test"], NOW, NOW + 90 * DAY)), &["a.test"]);
        let without = entry.due_unix_s(&ours);
        entry.advice = Some(Advice {
            certificate: "another.one".to_owned(),
            window: Window::checked(NOW - DAY, NOW).unwrap(),
            explanation_url: None,
        });
        assert_eq!(entry.due_unix_s(&ours), without);
    }

    #[test]
    fn what_is_not_on_disk_waits_while_the_former_one_lasts() {
        let held = |from, until| held(&["a.test"], from, until);
        let unwritten = || {
            Some(Unwritten {
                held: Arc::new(held(NOW, NOW + 90 * DAY)),
                write_at: Instant::now(),
                is_writing: false,
                is_announced: false,
            })
        };
        for (name, former, expected_until) in [
            (
                "a third is left",
                Some(held(NOW - 60 * DAY, NOW + 30 * DAY)),
                NOW + 30 * DAY,
            ),
            (
                "a twentieth is left",
                Some(held(NOW - 86 * DAY, NOW + 4 * DAY)),
                NOW + 90 * DAY,
            ),
            (
                "expired",
                Some(held(NOW - 90 * DAY, NOW - 1)),
                NOW + 90 * DAY,
            ),
            ("none", None, NOW + 90 * DAY),
        ] {
            let mut entry = entry(former, &["a.test"]);
            entry.unwritten = unwritten();
            let used = entry.in_force(NOW).unwrap();
            assert_eq!(used.facts.not_after_unix_s, expected_until, "{name}");
            let due = entry.due_unix_s(&[authority("https://ca.test/dir")]);
            assert!(due > NOW, "{name}: it is not ordered again");
        }
    }

    #[test]
    fn a_renewal_that_was_asked_for_is_over_with_the_next_certificate() {
        let now = Instant::now();
        let made = || held(&["a.test"], NOW, NOW + 90 * DAY);
        let [first, second] = [made(), made()];
        assert!(first.issued.pem != second.issued.pem);
        for before in [None, Some(first)] {
            let mut entry = Entry::new(before.clone(), Note::default(), NOW, now);
            assert!(!entry.is_asked_for);
            entry.ask_for();
            let note = serde_json::to_string(&entry.note(NOW, now)).unwrap();
            // The process ended before its next note: with the former certificate, and with the next.
            for (found, is_asked_for) in [(before, true), (Some(second.clone()), false)] {
                let note = serde_json::from_str(&note).unwrap();
                let again = Entry::new(found, note, NOW, now);
                assert_eq!(again.is_asked_for, is_asked_for);
            }
        }
    }

    #[test]
    fn back_off_survives_a_restart_and_a_clock_that_was_set() {
        let now = Instant::now();
        let mut entry = entry(None, &["a.test"]);
        let error = LastError {
            unix_s: NOW,
            authority: None,
            reason: "no".to_owned(),
        };
        for _ in 0..5 {
            entry.failed(error.clone(), FailedAt::Authority, NOW, now, 0.0);
        }
        let note = serde_json::to_string(&entry.note(NOW, now)).unwrap();
        for (restarted_at, wait_s) in [
            (NOW, 960),
            (NOW + 900, 60),
            (NOW + 5 * DAY, 0),
            (NOW - DAY, 86_400),
            (NOW - 300 * DAY, 86_400),
        ] {
            let note = serde_json::from_str(&note).unwrap();
            let again = Entry::new(None, note, restarted_at, now);
            assert_eq!(again.failures, 5);
            assert_eq!(again.last_error, Some(error.clone()));
            let wait = again.not_before.unwrap() - now;
            assert_eq!(wait, Duration::from_secs(wait_s), "{restarted_at}");
        }
    }
}
