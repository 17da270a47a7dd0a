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
use nearcast_net::shutdown::Shutdown;

/// How long control may hold a request for which it has nothing new.
const WAIT: Duration = Duration::from_secs(20);

/// How much longer than [`WAIT`] an answer may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// Shortest and longest pause between attempts while control is unreachable. Pauses double, and a
/// random half is taken off.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Consecutive failures before a warning: with the pauses above, about two seconds.
const FAILURES_BEFORE_WARNING: u32 = 5;

/// Longest part of a refusal's text in the log.
const REASON_CHARS_MAX: usize = 400;

/// Most entries that wait in memory until the role reads: more than the 262,144 purges of a folded
/// journal.
const ENTRIES_AHEAD_MAX: usize = 300_000;

/// Progress of a node in following the journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FollowState {
    /// Revision of the newest entry that was handed out.
    pub revision: u64,
    /// Whether the end of control's journal was reached since this process started. Before that, a
    /// purge that is not known yet may cover a response stored by an earlier run.
    pub caught_up: bool,
    /// Whether control answered the last request, even with a refusal.
    pub control_reachable: bool,
    /// Whether all entries of the node's own copy were handed out.
    pub recalled: bool,
    /// Whether an exchange with control has ended since the start, successfully or not.
    pub asked: bool,
}

/// The task that follows the journal.
pub(super) struct Follower {
    pub(super) name: String,
    pub(super) client: Client,
    pub(super) position: Position,
    /// `None` only while it is being written.
    pub(super) copy: Option<JournalCopy>,
    /// Entries that could not be written to the copy yet. They are in force nevertheless: a purge
    /// does not wait for disk space.
    pub(super) unsaved: Vec<Entry>,
    pub(super) fleet_tx: watch::Sender<Arc<Fleet>>,
    pub(super) check: FurtherCheck,
    /// Revision of a fleet file with which this node could not start.
    pub(super) refused: Option<u64>,
    pub(super) entries_tx: mpsc::Sender<Entry>,
    pub(super) state_tx: watch::Sender<FollowState>,
}

/// Why an exchange with control failed.
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
    /// Whether control answered nevertheless.
    pub(super) fn is_of_control(&self) -> bool {
        match self {
            Self::Away(error) => matches!(error, ClientError::TooLarge { .. }),
            Self::Status(..) | Self::Answer(_) => true,
        }
    }
}

impl Follower {
    pub(super) async fn run(mut self, stored: Vec<Entry>, mut shutdown: Shutdown) {
        let state = self.state_tx.clone();
        // A draining node still serves and needs purges. The role ends by dropping the state.
        let ended = async {
            shutdown.requested().await;
            state.closed().await;
        };
        tokio::select! {
            () = self.follow(stored) => {}
            () = ended => {}
        }
    }

    async fn follow(&mut self, stored: Vec<Entry>) {
        self.hand_out_stored(stored).await;

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

            let wait = self.wait_for_entries(failures);
            let requested = Instant::now();
            let key = node_key::shown_by(&now, &self.name).unwrap_or_else(|| Secret(String::new()));
            let outcome = tokio::select! {
                outcome = ask(&self.client, control, &key, &self.name, &self.position, wait) => outcome,
                // Control may have another address now; the next round asks there.
                _ = fleet.changed() => continue,
            };
            self.note(outcome.as_ref().err(), failures);

            if let Ok(answer) = outcome {
                let is_empty = answer.entries.is_empty();
                self.apply(answer).await;
                failures = 0;
                // Control normally delays an empty answer. If it does not, a pause prevents a busy
                // loop.
                let may_wait = wait > Duration::ZERO || !self.state_tx.borrow().caught_up;
                if is_empty && may_wait && requested.elapsed() < PAUSES.0 {
                    tokio::time::sleep(PAUSES.0).await;
                }
            } else {
                let random = RandomState::new().hash_one(failures);
                tokio::time::sleep(pause(failures, random)).await;
                failures += 1;
            }
        }
    }

    /// Hands out the entries of the node's own copy.
    async fn hand_out_stored(&mut self, stored: Vec<Entry>) {
        for entry in stored {
            // The fleet file is in force already, or it is the one with which this node cannot
            // start: the role may not have started yet.
            if self.refused != Some(entry.revision)
                && self.fleet_tx.borrow().changed_unix_s != entry.accepted_unix_ms / 1000
            {
                apply_fleet_file(&entry, &self.fleet_tx, self.check);
            }
            self.hand_out(entry).await;
        }
        let handed_out = self.position.handed_out;
        self.state_tx.send_modify(|state| {
            (state.revision, state.recalled) = (state.revision.max(handed_out), true)
        });
    }

    /// How long control may hold the next request. A node that does not know its state asks for an
    /// immediate answer.
    fn wait_for_entries(&self, failures: u32) -> Duration {
        let state = *self.state_tx.borrow();
        if state.caught_up && failures == 0 && state.control_reachable {
            WAIT
        } else {
            Duration::ZERO
        }
    }

    /// Stores the entries of an answer, applies them and hands them out.
    async fn apply(&mut self, answer: JournalAnswer) {
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
        // After saving, which may have reset the position.
        let is_caught_up = self.position.cursor >= answer.revision;
        self.state_tx
            .send_modify(|state| state.caught_up |= is_caught_up);
    }

    /// Writes the position and the unsaved entries. Entries that cannot be written are retried with
    /// the next answer. After a restart before that, the node requests them again, as its stored
    /// position precedes them.
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
            let outcome = copy.append(position, &entries, now);
            (copy, entries, outcome)
        });
        match written.await {
            Ok((copy, _, Ok(()))) => self.copy = Some(copy),
            Ok((copy, _, Err(FramedError::Damaged { .. }))) => {
                // As after a start with a damaged copy: the journal has every entry, and entries
                // that are in force already change nothing.
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
        // The role has dropped the receiver when this fails.
        let _ = self.entries_tx.send(entry).await;
        self.state_tx
            .send_modify(|state| state.revision = state.revision.max(revision));
    }

    fn note(&self, error: Option<&FollowError>, failures: u32) {
        match error {
            // Control may start a moment after its nodes, which is no reason for a warning.
            Some(error) if failures == FAILURES_BEFORE_WARNING => {
                tracing::warn!(%error, "control's journal cannot be followed; trying again")
            }
            Some(error) => {
                tracing::debug!(%error, failures, "control's journal cannot be followed yet")
            }
            None if failures > FAILURES_BEFORE_WARNING => {
                tracing::info!(failures, "control's journal is followed again")
            }
            None => {}
        }
        // A control that refuses is reachable.
        let is_reachable = error.is_none_or(FollowError::is_of_control);
        self.state_tx.send_if_modified(|state| {
            let before = *state;
            (state.control_reachable, state.asked) = (is_reachable, true);
            *state != before
        });
    }
}

/// Requests the next entries from control.
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
        // Control's reason contains the hint.
        let reason = String::from_utf8_lossy(response.body())
            .chars()
            .take(REASON_CHARS_MAX)
            .collect();
        return Err(FollowError::Status(response.status().as_u16(), reason));
    }

    Ok(serde_json::from_slice(response.body())?)
}

/// Passes entries on in order and buffers those that the role does not read yet, so that the
/// follower continues.
pub(super) async fn hold(mut from: mpsc::Receiver<Entry>, to: mpsc::Sender<Entry>) {
    let mut held = VecDeque::new();
    let mut may_come = true;
    while may_come || !held.is_empty() {
        tokio::select! {
            biased;
            place = to.reserve(), if !held.is_empty() => match (place, held.pop_front()) {
                (Ok(place), Some(entry)) => place.send(entry),
                // The role has dropped the receiver.
                _ => return,
            },
            entry = from.recv(), if may_come && held.len() < ENTRIES_AHEAD_MAX => match entry {
                Some(entry) => held.push_back(entry),
                None => may_come = false,
            },
        }
    }
}

/// The pause after a number of consecutive failures: the first pause, doubled up to the longest,
/// minus a random half.
pub(super) fn pause(failures: u32, random: u64) -> Duration {
    let whole = PAUSES.0.saturating_mul(1 << failures.min(16)).min(PAUSES.1);
    whole / 2 + whole.mul_f64(random::unit(random) / 2.0)
}
