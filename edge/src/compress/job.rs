//! Writes the coded form of a stored body into the store, once for all clients.

use std::sync::Arc;
use std::time::Duration;

use nearcast_fleet::config::Coding;
use nearcast_http_rules::compress;
use tokio::time::Instant;

use super::CodingResult;
use super::coder::{Coded, Coder};
use crate::body::{Content, FillWriter};
use crate::origin::OriginError;

/// How long a coded form whose body is still on its way has no reader before its job ends: clients
/// that found it are about to read it.
const ABANDONED_AFTER: Duration = Duration::from_millis(100);

/// The task that makes one coded form. Dropping it unfinished fails the form.
pub(crate) struct Job {
    identity: Arc<Content>,
    coding: Coding,
    writer: Option<FillWriter>,
    unread_since: Option<Instant>,
}

impl Job {
    /// A job that writes a form that [`Content::begin_coded`] has begun.
    pub(crate) fn new(identity: Arc<Content>, coding: Coding, writer: FillWriter) -> Self {
        Self {
            identity,
            coding,
            writer: Some(writer),
            unread_since: None,
        }
    }

    /// Codes the body to its end.
    pub(crate) async fn run(mut self, mut coder: Coder) {
        let written = self.write(&mut coder).await;
        let Some(writer) = self.writer.take() else {
            return;
        };
        let form = writer.content().clone();
        match written {
            Ok(()) => {
                let (taken, given) = coder.bytes();
                form.learn_length(given);
                let is_larger = given >= taken;
                // First, so that those who wait for the end see it.
                if is_larger {
                    let number = compress::number(self.coding);
                    self.identity.refuse_coded(number, &form);
                }
                writer.finish();
                coder.count(match is_larger {
                    true => CodingResult::Larger,
                    false => CodingResult::Whole,
                });
            }
            Err(error) => {
                self.remove(&form);
                writer.fail(error);
                coder.count(CodingResult::Failed);
            }
        }
    }

    async fn write(&mut self, coder: &mut Coder) -> Result<(), OriginError> {
        loop {
            let coded = coder.next().await;
            let Some(writer) = &mut self.writer else {
                return Err(OriginError::Terminated);
            };
            match coded {
                Coded::Bytes(bytes) => {
                    // The body is for its present readers alone, and so is its coded form.
                    if self.identity.is_discarded() && !writer.is_relay() {
                        writer.relay();
                    }
                    writer.write(bytes);
                    writer.flush();
                    if !writer.pace().await {
                        return Err(OriginError::GivenUp);
                    }
                }
                Coded::Idle => {}
                Coded::End => return Ok(()),
                Coded::Cut(_) => return Err(OriginError::Incomplete),
            }
            if self.is_abandoned() {
                return Err(OriginError::GivenUp);
            }
        }
    }

    /// Whether the body is still on its way and nobody reads its coded form. The job is a reader of
    /// the body, so it must not keep a fill running that nobody else wants. What is stored is coded
    /// to its end.
    fn is_abandoned(&mut self) -> bool {
        let is_read = self
            .writer
            .as_ref()
            .is_some_and(|writer| writer.content().is_read());
        if is_read || !self.identity.is_filling() {
            self.unread_since = None;
            return false;
        }
        let since = self.unread_since.get_or_insert_with(Instant::now);
        since.elapsed() >= ABANDONED_AFTER
    }

    fn remove(&self, form: &Arc<Content>) {
        self.identity
            .remove_coded(compress::number(self.coding), form);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.remove(&writer.content().clone());
            writer.fail(OriginError::Incomplete);
        }
    }
}
