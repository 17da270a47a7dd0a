//! The task that follows the journal: asks control, stores what it answers and hands it out.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::copy::JournalCopy;
use super::fleet_file::apply_fleet_file;
use super::position::{self, JournalAnswer, Position};
use crate::change::Entry;
use crate::client::{Client, ClientError};
use crate::clock::now_unix_ms;
use crate::config::{Control, Fleet, Secret};
use crate::file::FurtherCheck;
use crate::fold::fold;
use crate::framed::FramedError;
use crate::node_key;
use crate::random;
use crate::shutdown::Shutdown;

/// How long control may hold a request for which it has nothing new.
const WAIT: Duration = Duration::from_secs(20);

/// How much longer than that an answer may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// Pauses between attempts while control is away: from the first to the last, doubling, a random
/// half taken off.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Failures in a row before one is told: with the pauses above, two seconds or a little more.
const FAILURES_TOLD: u32 = 5;

/// As much of a refusal's text is told.
const REASON_CHARS_MAX: usize = 400;

/// Entries that wait beside those while the role does not read yet: more than the 262,144 purges
/// that a folded journal keeps.
const ENTRIES_AHEAD_MAX: usize = 300_000;

/// How far a node is in following the journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FollowState {
    /// Revision of the newest entry handed out.
    pub revision: u64,
    /// Whether the end of control's journal has been reached since this process started. Until then
    /// a stored response from an earlier run may be covered by a purge that is not known yet.
    pub caught_up: bool,
    /// Whether control answered when it was asked last, were it with a refusal.
    pub control_reachable: bool,
    /// Whether all that the node's own copy of the journal had was handed out.
    pub recalled: bool,
    /// Whether an exchange with control has ended since then, well or not.
    pub asked: bool,
}

/// The task that follows the journal.
pub(super) struct Follower {
    pub(super) name: String,
    pub(super) client: Client,
    pub(super) position: Position,
    /// Always there, except while it is being written.
    pub(super) copy: Option<JournalCopy>,
    /// Entries that could not be written to the copy yet. They hold all the same: a purge does not
    /// wait for disk space.
    pub(super) unsaved: Vec<Entry>,
    pub(super) fleet_tx: watch::Sender<Arc<Fleet>>,
    pub(super) check: FurtherCheck,
    /// See [`Prepared::refused`].
    pub(super) refused: Option<u64>,
    pub(super) entries_tx: mpsc::Sender<Entry>,
    pub(super) state_tx: watch::Sender<FollowState>,
}

/// Why an exchange with control brought nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum FollowError {
    #[error("{0}")]
    Away(#[from] ClientError),
    #[error("control answered with status {0}: {1}")]
    Status(u16, String),
    #[error("control's answer is not what it should be: {0}")]
    Answer(#[from] serde_json::Error),
}

impl FollowError {
    /// Whether control answered all the same.
    pub(super) fn is_of_control(&self) -> bool {
        match self {
            Self::Away(error) => matches!(error, ClientError::TooLarge { .. }),
            Self::Status(..) | Self::Answer(_) => true,
        }
    }
}

impl Follower {
    pub(super) async fn run(mut self, kept: Vec<Entry>, mut shutdown: Shutdown) {
        let state = self.state_tx.clone();
        // A node that drains still serves, and must know of purges for as long: the role ends by
        // dropping the state.
        let ended = async {
            shutdown.asked().await;
            state.closed().await;
        };
        tokio::select! {
            () = self.follow(kept) => {}
            () = ended => {}
        }
    }

    async fn follow(&mut self, kept: Vec<Entry>) {
        for entry in kept {
            // In force already, or the very one that this node cannot start with: the role may not
            // have started yet.
            if self.refused != Some(entry.revision)
                && self.fleet_tx.borrow().changed_unix_s != entry.accepted_unix_ms / 1000
            {
                apply_fleet_file(&entry, &self.fleet_tx, self.check);
            }
            self.hand_out(entry).await;
        }
        let given = self.position.given;
        self.state_tx.send_modify(|state| {
            (state.revision, state.recalled) = (state.revision.max(given), true)
        });
        let mut fleet = self.fleet_tx.subscribe();
        let mut failures = 0;
        loop {
            let now = fleet.borrow_and_update().clone();
            let Some(control) = &now.control else {
                self.state_tx.send_modify(|state| {
                    (state.caught_up, state.control_reachable) = (true, false)
                });
                if fleet.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let state = *self.state_tx.borrow();
            // Where the node does not know how it stands, control is to say so at once.
            let wait = if state.caught_up && failures == 0 && state.control_reachable {
                WAIT
            } else {
                Duration::ZERO
            };
            let asked = Instant::now();
            let key = node_key::shown_by(&now, &self.name).unwrap_or_else(|| Secret(String::new()));
            let outcome = tokio::select! {
                outcome = ask(&self.client, control, &key, &self.name, &self.position, wait) => outcome,
                // Control may be elsewhere now; the request is asked again there.
                _ = fleet.changed() => continue,
            };
            self.note(outcome.as_ref().err(), failures);
            match outcome {
                Ok(answer) => {
                    let is_empty = answer.entries.is_empty();
                    self.take(answer).await;
                    failures = 0;
                    // Control holds such an answer back; one that does not must not be asked
                    // without end.
                    let may_wait = wait > Duration::ZERO || !self.state_tx.borrow().caught_up;
                    if is_empty && may_wait && asked.elapsed() < PAUSES.0 {
                        tokio::time::sleep(PAUSES.0).await;
                    }
                }
                Err(_) => {
                    tokio::time::sleep(pause(failures, RandomState::new().hash_one(failures)))
                        .await;
                    failures += 1;
                }
            }
        }
    }

    /// Keeps what an answer brings, applies it and hands it out.
    async fn take(&mut self, answer: JournalAnswer) {
        let before = self.position.clone();
        let is_other = before
            .journal
            .as_ref()
            .is_some_and(|id| *id != answer.journal)
            || answer.revision < before.cursor;
        let (position, entries) = if is_other {
            tracing::error!(
                journal = answer.journal, revision = answer.revision, followed = ?before.journal, cursor = before.cursor,
                "control's journal is not the one that was followed: purging everything and following it from its start"
            );
            self.state_tx.send_modify(|state| state.caught_up = false);
            position::change_journal(&before, &answer, now_unix_ms())
        } else {
            position::advance(&before, &answer)
        };
        if position != before {
            self.position = position;
            self.unsaved.extend(entries.iter().cloned());
            self.save().await;
        }
        for entry in entries {
            apply_fleet_file(&entry, &self.fleet_tx, self.check);
            self.hand_out(entry).await;
        }
        // After it was saved: that may have taken the position back.
        let is_caught_up = self.position.cursor >= answer.revision;
        self.state_tx
            .send_modify(|state| state.caught_up |= is_caught_up);
    }

    /// Writes the position and the entries that are not saved yet. What cannot be written is tried
    /// again with the next answer; after a restart before that, the node asks for it again, as its
    /// saved position is from before it.
    async fn save(&mut self) {
        let Some(mut copy) = self.copy.take() else {
            self.unsaved.clear();
            return;
        };
        let now = now_unix_ms();
        let (position, entries) = (
            self.position.clone(),
            fold(std::mem::take(&mut self.unsaved), now),
        );
        let written = tokio::task::spawn_blocking(move || {
            let outcome = copy.take(position, &entries, now);
            (copy, entries, outcome)
        });
        match written.await {
            Ok((copy, _, Ok(()))) => self.copy = Some(copy),
            Ok((copy, _, Err(FramedError::Damaged { .. }))) => {
                // As a start with a damaged copy: the journal has everything in it, and what is
                // handed out again changes nothing where it is in force already.
                self.position = copy.position.clone();
                self.copy = Some(copy);
                self.state_tx.send_modify(|state| state.caught_up = false);
            }
            Ok((copy, entries, Err(error))) => {
                tracing::error!(%error, entries = entries.len(), "the copy of the journal cannot be written; what came is in force, and will be asked for again after a restart");
                (self.copy, self.unsaved) = (Some(copy), entries);
            }
            Err(error) => {
                tracing::error!(%error, "the copy of the journal cannot be written any more")
            }
        }
    }

    async fn hand_out(&self, entry: Entry) {
        let revision = entry.revision;
        // An error means that the role has no use for entries.
        let _ = self.entries_tx.send(entry).await;
        self.state_tx
            .send_modify(|state| state.revision = state.revision.max(revision));
    }

    fn note(&self, error: Option<&FollowError>, failures: u32) {
        match error {
            // Control may start a moment after its nodes: that is nothing to warn of.
            Some(error) if failures == FAILURES_TOLD => {
                tracing::warn!(%error, "control's journal cannot be followed; trying again")
            }
            Some(error) => {
                tracing::debug!(%error, failures, "control's journal cannot be followed yet")
            }
            None if failures > FAILURES_TOLD => {
                tracing::info!(failures, "control's journal is followed again")
            }
            None => {}
        }
        // A control that refuses is there: only one that is away leaves a node to itself.
        let is_reachable = error.is_none_or(FollowError::is_of_control);
        self.state_tx.send_if_modified(|state| {
            let before = *state;
            (state.control_reachable, state.asked) = (is_reachable, true);
            *state != before
        });
    }
}

/// Asks control for what comes next.
pub(super) async fn ask(
    client: &Client,
    control: &Control,
    key: &Secret,
    name: &str,
    at: &Position,
    wait: Duration,
) -> Result<JournalAnswer, FollowError> {
    let journal = at
        .journal
        .as_deref()
        .map_or_else(String::new, |id| format!("&journal={id}"));
    let url = format!(
        "{}/v1/journal?after={}&wait_ms={}&node={name}{journal}",
        control.url,
        at.cursor,
        wait.as_millis()
    );
    let response = client.get_with(&url, key, wait + ANSWER_TIME_MAX).await?;
    if !response.status().is_success() {
        // Control's reason names the mend.
        let reason = String::from_utf8_lossy(response.body())
            .chars()
            .take(REASON_CHARS_MAX)
            .collect();
        return Err(FollowError::Status(response.status().as_u16(), reason));
    }
    Ok(serde_json::from_slice(response.body())?)
}

/// Passes entries on in order, and keeps those that the role does not read yet, so that the
/// follower goes on.
pub(super) async fn hold(mut from: mpsc::Receiver<Entry>, to: mpsc::Sender<Entry>) {
    let mut held = VecDeque::new();
    let mut may_come = true;
    while may_come || !held.is_empty() {
        tokio::select! {
            biased;
            place = to.reserve(), if !held.is_empty() => match (place, held.pop_front()) {
                (Ok(place), Some(entry)) => place.send(entry),
                // The role has no use for entries.
                _ => return,
            },
            entry = from.recv(), if may_come && held.len() < ENTRIES_AHEAD_MAX => match entry {
                Some(entry) => held.push_back(entry),
                None => may_come = false,
            },
        }
    }
}

/// The pause after that many failures in a row: the doubled first one up to the last, less a random
/// half.
pub(super) fn pause(failures: u32, random: u64) -> Duration {
    let whole = PAUSES.0.saturating_mul(1 << failures.min(16)).min(PAUSES.1);
    whole / 2 + whole.mul_f64(random::unit(random) / 2.0)
}
