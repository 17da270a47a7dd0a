//! Whether a disk answers: the rules by which it is left and used again.
//!
//! A disk is *left* when what asks it has waited too long in total, or when it fails. The rules, each
//! with the numbers of [`Patience`]:
//!
//! - Reads: no read has had a prompt answer for a second while at least one was under way. Waiting adds
//!   up: a disk whose every answer takes most of a second is left as well, and one bad sector among
//!   reads that answer is not enough. Half of the threads waiting for longer than that is enough.
//! - Writes, syncs and names: one that has been under way for a second. There is one writer, so nothing
//!   else answers meanwhile.
//! - Work in the background, for which nobody waits (writing back, reserving and punching space): the
//!   same with more patience. Removing the files of an older version may take a minute.
//! - An error of a write, or three errors of reads in a row.
//!
//! A disk without room is not left: [`Health::has_room`] is false for a while, and reads go on. After
//! the same pauses it is asked how much room there is.
//!
//! A disk that was left is probed after 1 s, 2 s, 4 s and so on up to a minute. It is used again when
//! the probe succeeds and the operations that hung have ended.
//!
//! Knows no threads and no clock: time is an argument.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Open,
    Name,
    Remove,
    Read,
    Write,
    Sync,
    Allocate,
    Background,
}

impl Operation {
    fn verb(self) -> &'static str {
        match self {
            Self::Open => "opening",
            Self::Name => "naming",
            Self::Remove => "removing",
            Self::Read => "reading",
            Self::Write => "writing",
            Self::Sync => "syncing",
            Self::Allocate => "reserving space of",
            Self::Background => "writing back",
        }
    }
}

/// How long operations may wait.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Waiting in total until the disk is left.
    pub answer: Duration,
    /// A read that takes longer is no prompt answer.
    pub prompt: Duration,
    /// For work in the background.
    pub background: Duration,
    /// For removing files.
    pub removal: Duration,
    /// The first pause before a probe; it doubles after each.
    pub probe_first: Duration,
    /// The longest pause.
    pub probe_longest: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(1),
            prompt: Duration::from_millis(500),
            background: Duration::from_secs(5),
            removal: Duration::from_secs(60),
            probe_first: Duration::from_secs(1),
            probe_longest: Duration::from_secs(60),
        }
    }
}

impl Patience {
    fn with(&self, operation: Operation) -> Duration {
        match operation {
            Operation::Allocate | Operation::Background => self.background,
            Operation::Remove => self.removal,
            _ => self.answer,
        }
    }
}

/// Errors of reads in a row after which the disk is left. One is a bad sector.
const READ_ERRORS_MAX: u32 = 3;

/// The state of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskState {
    /// What it holds is being found; it answers nothing yet.
    Opening,
    /// It answers.
    On,
    /// It answers, but has no room for new bytes.
    Full,
    /// It is not used until a probe succeeds.
    Left(LeftReason),
    /// What it holds is not of this version; nothing is read or written.
    Refused(Arc<str>),
}

impl DiskState {
    /// The labels of all states.
    pub const LABELS: [&'static str; 5] = ["opening", "on", "full", "left", "refused"];

    /// The state in one word.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::On => "on",
            Self::Full => "full",
            Self::Left(_) => "left",
            Self::Refused(_) => "refused",
        }
    }
}

/// Why a disk was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeftReason {
    /// It did not answer for that long.
    NoAnswer {
        /// What was waited for.
        what: Arc<str>,
        /// For how long.
        waited: Duration,
    },
    /// It answered with an error.
    Failed {
        /// What failed.
        what: Arc<str>,
        /// The error.
        error: Arc<str>,
    },
}

impl fmt::Display for DiskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left(reason) => write!(f, "left: {reason}"),
            Self::Refused(reason) => write!(f, "refused: {reason}"),
            Self::Opening | Self::On | Self::Full => f.write_str(self.label()),
        }
    }
}

impl fmt::Display for LeftReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer { what, waited } => {
                write!(f, "no answer for {:.1} s ({what})", waited.as_secs_f64())
            }
            Self::Failed { what, error } => write!(f, "{what}: {error}"),
        }
    }
}

/// What the holder of a [`Health`] has to say or do after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// The disk is left.
    Left(LeftReason),
    /// It is used again.
    Returned,
    /// It has no room.
    Full,
    /// It has room again.
    HasRoom,
}

/// What to ask the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// Whether it writes and reads.
    Works,
    /// Whether it has room.
    Room,
}

/// An operation under way.
#[derive(Debug)]
struct UnderWay {
    number: u64,
    operation: Operation,
    file: Arc<str>,
    began: Instant,
}

/// A pause that doubles.
#[derive(Debug, Clone, Copy)]
struct Pause {
    length: Duration,
    ends: Instant,
}

impl Pause {
    /// The first pause, or the next after one that ended a short while ago.
    fn after(former: Option<Self>, now: Instant, patience: &Patience) -> Self {
        let length = match former {
            Some(former) if now < former.ends + patience.probe_longest => {
                (former.length * 2).min(patience.probe_longest)
            }
            _ => patience.probe_first,
        };
        Self {
            length,
            ends: now + length,
        }
    }
}

/// The operations of one disk that are under way, and what follows from them.
#[derive(Debug)]
pub(super) struct Health {
    patience: Patience,
    /// Reads that may hang until the disk is left.
    hung_reads_max: usize,
    under_way: Vec<UnderWay>,
    next_number: u64,
    /// Since when reads wait for a prompt answer.
    reads_wait_since: Option<Instant>,
    /// What they waited before, since the last prompt answer.
    reads_waited: Duration,
    read_errors: u32,
    left: Option<LeftReason>,
    probe: Option<Pause>,
    is_probing: bool,
    full: Option<(Arc<str>, Pause)>,
    former_full: Option<Pause>,
    /// How many times the disk was left.
    pub(super) times_left: u64,
    /// Operations that failed.
    pub(super) errors: u64,
}

impl Health {
    pub(super) fn new(patience: Patience, hung_reads_max: usize) -> Self {
        Self {
            patience,
            hung_reads_max,
            under_way: Vec::new(),
            next_number: 0,
            reads_wait_since: None,
            reads_waited: Duration::ZERO,
            read_errors: 0,
            left: None,
            probe: None,
            is_probing: false,
            full: None,
            former_full: None,
            times_left: 0,
            errors: 0,
        }
    }

    pub(super) fn state(&self) -> DiskState {
        match (&self.left, &self.full) {
            (Some(reason), _) => DiskState::Left(reason.clone()),
            (None, Some(_)) => DiskState::Full,
            (None, None) => DiskState::On,
        }
    }

    pub(super) fn is_left(&self) -> bool {
        self.left.is_some()
    }

    /// Whether a write of new bytes is worth a try: the disk is not left, and had room, or it is time
    /// to ask again.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        self.left.is_none()
            && self
                .full
                .as_ref()
                .is_none_or(|(_, pause)| now >= pause.ends)
    }

    /// An operation begins. The number names it to [`end`](Self::end).
    pub(super) fn begin(&mut self, operation: Operation, file: &Arc<str>, now: Instant) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.under_way.push(UnderWay {
            number,
            operation,
            file: file.clone(),
            began: now,
        });
        if operation == Operation::Read {
            self.reads_wait_since.get_or_insert(now);
        }
        number
    }

    /// An operation has ended.
    pub(super) fn end(
        &mut self,
        number: u64,
        error: Option<&io::Error>,
        now: Instant,
    ) -> Option<Change> {
        let at = self.under_way.iter().position(|u| u.number == number)?;
        let ended = self.under_way.swap_remove(at);
        if ended.operation == Operation::Read {
            self.read_ended(now.saturating_duration_since(ended.began), now);
        }
        match error.map(kind_of) {
            None => self.succeeded(&ended, now),
            Some(ErrorKind::OfTheCaller) => None,
            Some(ErrorKind::NoRoom) => self.no_room(&ended, now),
            Some(ErrorKind::OfTheDisk) => self.failed(&ended, error, now),
        }
    }

    fn read_ended(&mut self, took: Duration, now: Instant) {
        let others_wait = self
            .under_way
            .iter()
            .any(|u| u.operation == Operation::Read);
        let since = self.reads_wait_since.take();
        if took <= self.patience.prompt {
            self.reads_waited = Duration::ZERO;
        } else if let Some(since) = since {
            self.reads_waited += now.saturating_duration_since(since);
        }
        if others_wait {
            self.reads_wait_since = Some(now);
        }
    }

    fn succeeded(&mut self, ended: &UnderWay, now: Instant) -> Option<Change> {
        match ended.operation {
            Operation::Read => self.read_errors = 0,
            // A write to another file shows nothing: it may have its room already.
            Operation::Write | Operation::Allocate
                if self
                    .full
                    .as_ref()
                    .is_some_and(|(file, pause)| *file == ended.file && now >= pause.ends) =>
            {
                self.former_full = self.full.take().map(|(_, pause)| pause);
                return Some(Change::HasRoom);
            }
            _ => {}
        }
        None
    }

    fn no_room(&mut self, ended: &UnderWay, now: Instant) -> Option<Change> {
        if self
            .full
            .as_ref()
            .is_some_and(|(_, pause)| now < pause.ends)
        {
            return None;
        }
        let former = self.full.take().map(|(_, pause)| pause);
        let is_new = former.is_none();
        let pause = Pause::after(former.or(self.former_full), now, &self.patience);
        self.full = Some((ended.file.clone(), pause));
        (is_new && self.left.is_none()).then_some(Change::Full)
    }

    fn failed(
        &mut self,
        ended: &UnderWay,
        error: Option<&io::Error>,
        now: Instant,
    ) -> Option<Change> {
        self.errors += 1;
        if ended.operation == Operation::Read {
            self.read_errors += 1;
            if self.read_errors < READ_ERRORS_MAX {
                return None;
            }
        }
        let reason = LeftReason::Failed {
            what: what(ended),
            error: error.map(ToString::to_string).unwrap_or_default().into(),
        };
        self.leave(reason, now)
    }

    fn leave(&mut self, reason: LeftReason, now: Instant) -> Option<Change> {
        if self.left.is_some() {
            return None;
        }
        self.left = Some(reason.clone());
        self.times_left += 1;
        self.read_errors = 0;
        self.probe = Some(Pause::after(self.probe, now, &self.patience));
        Some(Change::Left(reason))
    }

    /// Leaves the disk if it is time to.
    pub(super) fn check(&mut self, now: Instant) -> Option<Change> {
        if self.left.is_some() {
            return None;
        }
        let reads_waited = self.reads_waited(now);
        let hung = self
            .under_way
            .iter()
            .find(|u| u.operation != Operation::Read && self.is_hung(u, now))
            .or_else(|| {
                let is_due = reads_waited >= self.patience.answer
                    || self.hung_reads(now) >= self.hung_reads_max;
                let mut reads = self.under_way.iter();
                is_due.then(|| reads.find(|u| u.operation == Operation::Read))?
            })?;
        let waited = now.saturating_duration_since(hung.began);
        let reason = LeftReason::NoAnswer {
            what: what(hung),
            waited: if hung.operation == Operation::Read {
                waited.max(reads_waited)
            } else {
                waited
            },
        };
        self.leave(reason, now)
    }

    /// When to [`check`](Self::check) next; `None` when nothing is under way.
    pub(super) fn check_at(&self, now: Instant) -> Option<Instant> {
        let others = self
            .under_way
            .iter()
            .filter(|u| u.operation != Operation::Read)
            .map(|u| u.began + self.patience.with(u.operation));
        let reads = self
            .reads_wait_since
            .map(|since| since + self.patience.answer.saturating_sub(self.reads_waited));
        let hung_reads = self
            .under_way
            .iter()
            .filter(|u| u.operation == Operation::Read)
            .map(|u| u.began + self.patience.answer)
            .filter(|at| *at > now);
        others.chain(reads).chain(hung_reads).min()
    }

    /// The probe that is to be made now; then its end is to be told.
    pub(super) fn begin_probe(&mut self, now: Instant) -> Option<Probe> {
        if self.probe_at().is_none_or(|at| now < at) {
            return None;
        }
        self.is_probing = true;
        Some(if self.left.is_some() {
            Probe::Works
        } else {
            Probe::Room
        })
    }

    /// When the next probe is due; `None` when there is none to make, or one is under way.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        if self.is_probing {
            return None;
        }
        if self.left.is_some() {
            self.probe.map(|pause| pause.ends)
        } else {
            self.full.as_ref().map(|(_, pause)| pause.ends)
        }
    }

    /// The disk was asked for its room.
    pub(super) fn end_room_probe(&mut self, has_room: bool, now: Instant) -> Option<Change> {
        self.is_probing = false;
        let (file, pause) = self.full.take()?;
        if has_room {
            self.former_full = Some(pause);
            return self.left.is_none().then_some(Change::HasRoom);
        }
        let pause = if now >= pause.ends {
            Pause::after(Some(pause), now, &self.patience)
        } else {
            pause
        };
        self.full = Some((file, pause));
        None
    }

    /// A probe has ended.
    pub(super) fn end_probe(&mut self, error: Option<&io::Error>, now: Instant) -> Option<Change> {
        self.is_probing = false;
        let writes_hang = self
            .under_way
            .iter()
            .any(|u| u.operation != Operation::Read && self.is_hung(u, now));
        let answers = error.is_none_or(|error| kind_of(error) == ErrorKind::NoRoom);
        if !answers || writes_hang || self.hung_reads(now) >= self.hung_reads_max {
            self.probe = Some(Pause::after(self.probe, now, &self.patience));
            return None;
        }
        // The pause stays: if the disk is left again soon, the next one is longer.
        if let Some(pause) = &mut self.probe {
            pause.ends = now;
        }
        self.left = None;
        self.reads_waited = Duration::ZERO;
        if self.reads_wait_since.is_some() {
            self.reads_wait_since = Some(now);
        }
        Some(Change::Returned)
    }

    fn reads_waited(&self, now: Instant) -> Duration {
        match self.reads_wait_since {
            Some(since) => self.reads_waited + now.saturating_duration_since(since),
            None => Duration::ZERO,
        }
    }

    fn hung_reads(&self, now: Instant) -> usize {
        self.under_way
            .iter()
            .filter(|u| u.operation == Operation::Read && self.is_hung(u, now))
            .count()
    }

    fn is_hung(&self, operation: &UnderWay, now: Instant) -> bool {
        now.saturating_duration_since(operation.began) >= self.patience.with(operation.operation)
    }
}

fn what(operation: &UnderWay) -> Arc<str> {
    format!("{} {}", operation.operation.verb(), operation.file).into()
}

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ErrorKind {
    OfTheCaller,
    NoRoom,
    OfTheDisk,
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ErrorKind::NoRoom
        }
        io::ErrorKind::NotFound
        | io::ErrorKind::AlreadyExists
        | io::ErrorKind::WouldBlock
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::InvalidInput => ErrorKind::OfTheCaller,
        _ => ErrorKind::OfTheDisk,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A health, and a clock of milliseconds.
    struct Lab {
        health: Health,
        start: Instant,
        file: Arc<str>,
    }

    impl Lab {
        fn new() -> Self {
            Self {
                health: Health::new(Patience::default(), 4),
                start: Instant::now(),
                file: "pull.data".into(),
            }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn begin(&mut self, operation: Operation, ms: u64) -> u64 {
            let now = self.at(ms);
            self.health.begin(operation, &self.file, now)
        }

        fn end(&mut self, number: u64, ms: u64) -> Option<Change> {
            let now = self.at(ms);
            self.health.end(number, None, now)
        }

        fn fail(&mut self, operation: Operation, errno: i32, ms: u64) -> Option<Change> {
            let number = self.begin(operation, ms);
            let now = self.at(ms);
            let error = io::Error::from_raw_os_error(errno);
            self.health.end(number, Some(&error), now)
        }

        fn check(&mut self, ms: u64) -> bool {
            let now = self.at(ms);
            self.health.check(now).is_some()
        }

        fn probe(&mut self, ms: u64, works: bool) -> Option<Change> {
            let now = self.at(ms);
            assert_eq!(self.health.begin_probe(now), Some(Probe::Works), "at {ms}");
            let error = io::Error::from_raw_os_error(libc::EIO);
            self.health.end_probe((!works).then_some(&error), now)
        }
    }

    #[test]
    fn a_disk_is_left_after_a_second_of_waiting() {
        // (operation, when it is left)
        let cases = [
            (Operation::Open, 1000),
            (Operation::Name, 1000),
            (Operation::Read, 1000),
            (Operation::Write, 1000),
            (Operation::Sync, 1000),
            (Operation::Allocate, 5000),
            (Operation::Background, 5000),
            (Operation::Remove, 60_000),
        ];
        for (operation, left) in cases {
            let mut lab = Lab::new();
            lab.begin(operation, 0);
            let due = lab.health.check_at(lab.at(0));
            assert_eq!(due, Some(lab.at(left)), "{operation:?}");
            assert!(!lab.check(left - 1), "{operation:?}");
            assert!(lab.check(left), "{operation:?}");
            assert!(!lab.check(left + 1), "said once");
            assert!(matches!(lab.health.state(), DiskState::Left(_)));
        }
    }

    #[test]
    fn waiting_adds_up_until_a_read_has_a_prompt_answer() {
        let mut lab = Lab::new();
        let slow = lab.begin(Operation::Read, 0);
        assert_eq!(lab.end(slow, 600), None);
        let slow = lab.begin(Operation::Read, 5000);
        assert!(!lab.check(5399));
        let prompt = lab.begin(Operation::Read, 5380);
        assert_eq!(lab.end(prompt, 5390), None);
        assert!(!lab.check(5400), "a read was answered promptly");
        assert_eq!(lab.end(slow, 5600), None);
        let slow = lab.begin(Operation::Read, 6000);
        assert_eq!(lab.health.check_at(lab.at(6000)), Some(lab.at(6790)));
        assert!(lab.check(6790), "210 ms and 790 ms");
        let _ = slow;
    }

    #[test]
    fn a_bad_sector_is_not_the_disk_but_many_are() {
        let mut lab = Lab::new();
        for n in 0..3 {
            lab.begin(Operation::Read, n);
        }
        for ms in (0..3000).step_by(100) {
            let read = lab.begin(Operation::Read, ms);
            assert_eq!(lab.end(read, ms + 5), None);
            assert!(!lab.check(ms + 50), "others answer");
        }
        lab.begin(Operation::Read, 3000);
        for ms in (3000..3950).step_by(100) {
            let read = lab.begin(Operation::Read, ms);
            assert_eq!(lab.end(read, ms + 5), None);
        }
        assert!(!lab.check(3999));
        assert!(lab.check(4000), "four hang");
    }

    #[test]
    fn errors() {
        // (operation, error, times, left)
        let cases = [
            (Operation::Write, libc::EIO, 1, true),
            (Operation::Sync, libc::EIO, 1, true),
            (Operation::Open, libc::EACCES, 1, true),
            (Operation::Open, libc::ENOENT, 5, false),
            (Operation::Write, libc::ENOSPC, 5, false),
            (Operation::Write, libc::EROFS, 1, true),
            (Operation::Read, libc::EIO, 2, false),
            (Operation::Read, libc::EIO, 3, true),
        ];
        for (operation, errno, times, left) in cases {
            let mut lab = Lab::new();
            for _ in 0..times {
                lab.fail(operation, errno, 0);
            }
            assert_eq!(lab.health.is_left(), left, "{operation:?} {errno} {times}");
        }
        let mut lab = Lab::new();
        for _ in 0..5 {
            lab.fail(Operation::Read, libc::EIO, 0);
            let read = lab.begin(Operation::Read, 0);
            lab.end(read, 1);
        }
        assert!(!lab.health.is_left(), "others answer");
    }

    #[test]
    fn probes_are_further_and_further_apart() {
        let mut lab = Lab::new();
        lab.fail(Operation::Write, libc::EIO, 0);
        let mut at = 0;
        for pause in [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000] {
            assert_eq!(lab.health.probe_at(), Some(lab.at(at + pause)));
            let now = lab.at(at + pause - 1);
            assert_eq!(lab.health.begin_probe(now), None);
            at += pause;
            assert_eq!(lab.probe(at, false), None);
        }
        assert_eq!(lab.probe(at + 60_000, true), Some(Change::Returned));
        assert_eq!(lab.health.state(), DiskState::On);
    }

    #[test]
    fn a_disk_that_is_left_again_soon_is_left_for_longer() {
        let mut lab = Lab::new();
        lab.fail(Operation::Write, libc::EIO, 0);
        assert_eq!(lab.probe(1000, true), Some(Change::Returned));
        lab.fail(Operation::Write, libc::EIO, 1500);
        assert_eq!(lab.health.probe_at(), Some(lab.at(3500)));
        assert_eq!(lab.probe(3500, true), Some(Change::Returned));
        lab.fail(Operation::Write, libc::EIO, 100_000);
        assert_eq!(lab.health.probe_at(), Some(lab.at(101_000)));
        assert_eq!(lab.health.times_left, 3);
    }

    #[test]
    fn a_disk_is_not_used_again_while_a_write_hangs() {
        let mut lab = Lab::new();
        let hung = lab.begin(Operation::Write, 0);
        assert!(lab.check(1000));
        assert_eq!(lab.probe(2000, true), None);
        assert_eq!(lab.end(hung, 3000), None);
        assert_eq!(lab.probe(4000, true), Some(Change::Returned));
    }

    #[test]
    fn a_full_disk_is_asked_again_after_a_while() {
        let mut lab = Lab::new();
        assert_eq!(
            lab.fail(Operation::Write, libc::ENOSPC, 0),
            Some(Change::Full)
        );
        assert_eq!(lab.health.state(), DiskState::Full);
        assert!(!lab.health.has_room(lab.at(999)));
        assert!(lab.health.has_room(lab.at(1000)));
        assert_eq!(lab.fail(Operation::Write, libc::ENOSPC, 1000), None);
        assert!(!lab.health.has_room(lab.at(2999)));
        assert!(lab.health.has_room(lab.at(3000)));

        let other: Arc<str> = "removals".into();
        let now = lab.at(3000);
        let number = lab.health.begin(Operation::Write, &other, now);
        assert_eq!(lab.end(number, 3000), None, "it has its room already");
        let number = lab.begin(Operation::Write, 3000);
        assert_eq!(lab.end(number, 3001), Some(Change::HasRoom));
        assert_eq!(lab.health.state(), DiskState::On);
    }
    #[test]
    fn a_full_disk_is_asked_for_room() {
        let mut lab = Lab::new();
        lab.fail(Operation::Write, libc::ENOSPC, 0);
        let now = lab.at(1000);
        assert_eq!(lab.health.begin_probe(now), Some(Probe::Room));
        assert_eq!(lab.health.end_room_probe(false, now), None);
        assert_eq!(lab.health.state(), DiskState::Full);
        assert_eq!(lab.health.probe_at(), Some(lab.at(3000)));
        let now = lab.at(3000);
        assert_eq!(lab.health.begin_probe(now), Some(Probe::Room));
        assert_eq!(lab.health.end_room_probe(true, now), Some(Change::HasRoom));
        assert_eq!(lab.health.state(), DiskState::On);
        assert_eq!(lab.health.probe_at(), None);
    }
}
