//! What a client may send without asking for anything: so much at once, and so much more a second.
//! Useful work earns more. This module only counts.

use tokio::time::Instant;

use super::closed::Closed;

/// The kinds of input that have an allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Frames of the control stream and instructions of QPACK that need no answer.
    Control,
    Priority,
    /// Frames, settings and streams of unknown kinds.
    Unknown,
    /// Requests that the client gives up before their responses are complete.
    Reset,
    /// DATA frames with few bytes or none.
    SmallData,
    /// Requests that are malformed or incomplete.
    Refused,
}

impl Kind {
    const COUNT: usize = 6;
    const ALL: [Self; Self::COUNT] = [
        Self::Control,
        Self::Priority,
        Self::Unknown,
        Self::Reset,
        Self::SmallData,
        Self::Refused,
    ];

    /// The most at once, and more of it a second.
    fn allowance(self) -> (u32, u32) {
        match self {
            Self::Control => (100, 1),
            // Some clients send one with each request, and again when a page changes.
            Self::Priority | Self::Unknown => (300, 10),
            // A page that is left cancels all its requests.
            Self::Reset => (300, 10),
            // An upload that is typed.
            Self::SmallData => (1000, 100),
            Self::Refused => (50, 5),
        }
    }

    fn exceeded(self) -> Closed {
        match self {
            Self::Control => Closed::Control,
            Self::Priority => Closed::Priority,
            Self::Unknown => Closed::Unknown,
            Self::Reset => Closed::Reset,
            Self::SmallData => Closed::SmallData,
            Self::Refused => Closed::Refused,
        }
    }
}

/// What is left of each allowance.
#[derive(Debug)]
pub(super) struct Allowances {
    /// In thousandths.
    left: [u32; Kind::COUNT],
    refilled: Instant,
}

impl Allowances {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            left: Kind::ALL.map(|kind| kind.allowance().0 * 1000),
            refilled: now,
        }
    }

    /// Takes so many from the allowance of a kind.
    ///
    /// # Errors
    /// It is used up: the connection has to be closed.
    pub(super) fn spend(&mut self, kind: Kind, count: u32, now: Instant) -> Result<(), Closed> {
        let cost = count.saturating_mul(1000);
        if self.left[kind as usize] < cost {
            self.refill(now);
        }
        let left = &mut self.left[kind as usize];
        *left = left.checked_sub(cost).ok_or(kind.exceeded())?;
        Ok(())
    }

    /// A request was answered.
    pub(super) fn note_answered(&mut self) {
        for kind in [Kind::Reset, Kind::Refused] {
            self.add(kind, 1000);
        }
        for kind in [Kind::Priority, Kind::Unknown] {
            self.add(kind, 2000);
        }
    }

    /// Bytes of a body were received in one frame.
    pub(super) fn note_data(&mut self, bytes: u64) {
        let earned = (bytes / SMALL_DATA_BYTES).min(1000) as u32;
        self.add(Kind::SmallData, earned * 1000);
    }

    fn refill(&mut self, now: Instant) {
        let elapsed_ms = now.saturating_duration_since(self.refilled).as_millis();
        let elapsed_ms = u32::try_from(elapsed_ms).unwrap_or(u32::MAX);
        self.refilled = now;
        for kind in Kind::ALL {
            self.add(kind, elapsed_ms.saturating_mul(kind.allowance().1));
        }
    }

    fn add(&mut self, kind: Kind, thousandths: u32) {
        let left = &mut self.left[kind as usize];
        *left = left
            .saturating_add(thousandths)
            .min(kind.allowance().0 * 1000);
    }
}

/// DATA frames with fewer bytes count as small.
pub(super) const SMALL_DATA_BYTES: u64 = 64;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_kind_has_an_allowance_that_time_refills() {
        for kind in Kind::ALL {
            let now = Instant::now();
            let mut allowances = Allowances::new(now);
            let (most, per_second) = kind.allowance();
            for _ in 0..most {
                assert_eq!(allowances.spend(kind, 1, now), Ok(()), "{kind:?}");
            }
            assert_eq!(allowances.spend(kind, 1, now), Err(kind.exceeded()));
            let later = now + Duration::from_secs(1);
            assert_eq!(
                allowances.spend(kind, per_second, later),
                Ok(()),
                "{kind:?}"
            );
            assert_eq!(allowances.spend(kind, 1, later), Err(kind.exceeded()));
        }
    }

    #[test]
    fn useful_work_earns_more() {
        let now = Instant::now();
        let mut allowances = Allowances::new(now);
        for _ in 0..10_000 {
            for kind in [Kind::Reset, Kind::Refused] {
                assert_eq!(allowances.spend(kind, 1, now), Ok(()));
            }
            for kind in [Kind::Priority, Kind::Unknown] {
                assert_eq!(allowances.spend(kind, 2, now), Ok(()));
            }
            allowances.note_answered();
            assert_eq!(allowances.spend(Kind::SmallData, 1, now), Ok(()));
            allowances.note_data(SMALL_DATA_BYTES);
        }
    }
}
