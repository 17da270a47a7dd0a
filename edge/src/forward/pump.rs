//! Moves a body from the origin into a fill: resumed after a cut, and around the slices that other
//! fills bring.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::IF_RANGE;
use tokio::time::Instant;

use super::origin_request::OriginRequest;
use super::pacer::Pacer;
use super::permit::{FillPermit, UNREAD_MAX};
use super::representation::bytes_to_skip;
use super::wanted::range_field;
use crate::body::{Content, FillWriter};
use crate::origin::{OriginBody, OriginError};
use crate::stored::response::StoredResponse;
use nearcast_http_rules::finish::Abandoned;
use nearcast_http_rules::not_stored::NotStored;
use nearcast_http_rules::request_fields;
use nearcast_store::SLICE_BYTES;

/// How long a fill has no reader before it counts as abandoned: clients that waited for its head
/// together with the one that left look it up in the index first.
const ABANDONED_AFTER: Duration = Duration::from_millis(100);
/// How often one fill is resumed without progress.
const RESUMES_MAX: u32 = 3;
/// How often a fill checks whether the disk has caught up, and how often in a row.
const DISK_PAUSE: Duration = Duration::from_millis(10);
const DISK_PAUSES_MAX: u32 = 100;

const SLICE: u64 = SLICE_BYTES as u64;

/// One fill and the request that feeds it.
pub(super) struct Pump {
    origin: OriginRequest,
    writer: FillWriter,
    /// The response that the fill is for, when that is stored.
    response: Option<Arc<StoredResponse>>,
    /// Bytes of the body before the wanted ones.
    skip: u64,
    /// Where the body ends, even when a seek takes over the end of its fill.
    goal: Option<u64>,
    /// Where the fill began.
    first: u64,
    /// Since when the fill has no reader, and how far it was then.
    unread: Option<(Instant, u64)>,
    permit: FillPermit,
    /// Pauses for the disk since it had room.
    disk_pauses: u32,
}

impl Pump {
    pub(super) fn new(
        origin: OriginRequest,
        mut writer: FillWriter,
        response: Option<Arc<StoredResponse>>,
        skip: u64,
    ) -> Self {
        let (first, goal) = (writer.at(), writer.fill().end());
        let fills = &origin.worker.edge.forwards.fills;
        let permit = fills.permit();
        writer.join(fills.windows());
        Self {
            origin,
            writer,
            response,
            skip,
            goal,
            first,
            unread: None,
            permit,
            disk_pauses: 0,
        }
    }

    pub(super) async fn run(mut self, mut body: OriginBody) {
        let mut fruitless_resumes = 0;
        loop {
            let before = self.writer.at();
            let error = match self.drain(&mut body).await {
                Ok(()) if !self.continue_after_seek() => return self.finish(),
                Ok(()) => OriginError::Incomplete,
                Err(OriginError::GivenUp) => return self.fail(OriginError::GivenUp),
                Err(error) => {
                    self.origin.note_failure(error);
                    error
                }
            };
            // The rest of this body is not read.
            drop(body);
            let received = self.writer.at() - before;
            fruitless_resumes = if received > 0 {
                0
            } else {
                fruitless_resumes + 1
            };

            // A body that ends after less than a slice is retried within the budget, like one that
            // does not start.
            if fruitless_resumes > RESUMES_MAX
                || received < SLICE && !self.origin.target.take_retry()
            {
                return self.fail(error);
            }
            match self.resume().await {
                Ok(next) => body = next,
                Err(OriginError::Unfit) => {
                    // The stored representation cannot be completed: the next client gets the current
                    // one.
                    if let Some(response) = self.response.take() {
                        self.origin.worker.edge.unpublish(&response);
                    }
                    return self.fail(error);
                }
                Err(_) => return self.fail(error),
            }
        }
    }

    /// Continues after the slices that a seek has taken over. `false` when nothing is left.
    fn continue_after_seek(&mut self) -> bool {
        let (Some(end), Some(goal)) = (self.writer.fill().end(), self.goal) else {
            return false;
        };
        let content = self.writer.content().clone();
        let Some(fill) = (end < goal)
            .then(|| content.begin_fill_of_next_missing(end, goal))
            .flatten()
        else {
            return false;
        };
        let mut next = FillWriter::new(content, fill, self.writer.is_disk_only());
        next.join(self.origin.worker.edge.forwards.fills.windows());
        std::mem::replace(&mut self.writer, next).finish();
        true
    }

    /// Moves the body into the fill, up to the end of one of them.
    async fn drain(&mut self, body: &mut OriginBody) -> Result<(), OriginError> {
        while let Some(mut bytes) = self.next_or_flush(body).await? {
            self.origin.note_received(bytes.len()).await;
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len() as u64);
                self.skip -= skipped;
                bytes = bytes.split_off(skipped as usize);
            }
            self.writer.write(bytes);
            let end = self.writer.fill().end();
            if end.is_some_and(|end| self.writer.at() >= end)
                && end != self.writer.content().length()
            {
                // The origin has sent more than the requested part.
                return Ok(());
            }
            self.check_size();
            if !self.writer.pace().await {
                return Err(OriginError::Incomplete);
            }
            self.wait_for_disk().await;
        }
        match self
            .writer
            .fill()
            .end()
            .is_some_and(|end| self.writer.at() < end)
        {
            true => Err(OriginError::Incomplete),
            false => Ok(()),
        }
    }

    /// The next bytes. Those before them are shown to the readers meanwhile, where they have waited
    /// for more.
    async fn next_or_flush(&mut self, body: &mut OriginBody) -> Result<Option<Bytes>, OriginError> {
        if let Some(due) = self.writer.due() {
            let next = tokio::time::timeout_at(due, self.next(body)).await;
            if let Ok(next) = next {
                return next;
            }
            self.writer.flush();
        }
        self.next(body).await
    }

    /// The next bytes. The fills of a push order are few and need no readers: they end with the order.
    async fn next(&mut self, body: &mut OriginBody) -> Result<Option<Bytes>, OriginError> {
        let Self {
            origin,
            writer,
            goal,
            first,
            unread,
            permit,
            ..
        } = self;
        let content = writer.content();
        if let Some(pacer) = &origin.pacer {
            return tokio::select! {
                biased;
                () = order_ended(pacer, content) => Err(OriginError::GivenUp),
                next = body.next() => next,
            };
        }
        let progress = Abandoned {
            first: *first,
            end: *goal,
            left_at: writer.at(),
            at: writer.at(),
        };
        tokio::select! {
            biased;
            () = permit.revoked(content) => Err(OriginError::GivenUp),
            () = abandoned(content, origin, progress, unread) => {
                origin.site.counters.fill_abandoned(origin.worker.number);
                Err(OriginError::GivenUp)
            }
            next = body.next() => next,
        }
    }

    /// Stops storing a body of unknown length that turns out to be too large.
    fn check_size(&mut self) {
        let at = self.writer.at();
        if at > self.origin.body_bytes_max()
            && self.writer.content().length().is_none()
            && !self.writer.is_relay()
        {
            if let Some(response) = self.response.take() {
                self.origin.worker.edge.unpublish(&response);
                self.origin.site.note_not_stored(
                    self.origin.worker.number,
                    response.url(),
                    NotStored::TooLarge,
                );
            }
            self.writer.relay();
        }
    }

    /// Waits for the disk for a while, so that a slow disk slows the fill instead of losing slices.
    /// One that takes nothing slows it once, and not for each piece.
    async fn wait_for_disk(&mut self) {
        while !self.writer.can_store(2 * SLICE) {
            if self.disk_pauses == DISK_PAUSES_MAX {
                return;
            }
            self.disk_pauses += 1;
            tokio::time::sleep(DISK_PAUSE).await;
        }
        self.disk_pauses = 0;
    }

    /// The request for the rest of the body. For a stored response it has none of the fields of the
    /// client that began the fill, since the rest is for all clients.
    fn shared_request(&self) -> OriginRequest {
        let mut origin = self.origin.clone();
        if let Some(response) = &self.response {
            let vary = response.vary_names();
            origin.fields = Arc::new(request_fields::shared(
                &origin.fields,
                &origin.site.cache,
                &vary,
            ));
        }
        origin
    }

    /// Requests the rest of the same representation.
    async fn resume(&mut self) -> Result<OriginBody, OriginError> {
        let content = self.writer.content();
        let validator = content
            .validator()
            .filter(|_| !self.writer.is_relay())
            .ok_or(OriginError::Incomplete)?;
        let at = self.writer.at();
        let mut extra = range_field(at, self.writer.fill().end());
        extra.insert(IF_RANGE, validator.value().clone());
        let response = self.shared_request().send(extra).await?;
        self.skip = bytes_to_skip(content, &response, at)?;
        Ok(response.into_body())
    }

    /// Ends a complete fill, and stores the response's head.
    fn finish(self) {
        let Self {
            origin,
            writer,
            response,
            goal,
            ..
        } = self;
        let edge = origin.worker.edge.clone();
        let content = writer.content().clone();
        if goal.is_none() {
            content.learn_length(writer.at());
        }
        let is_part = goal.is_some() && goal != content.length();
        writer.finish();
        if let Some(response) = response
            && !is_part
        {
            edge.store.account_head(&content.body, response.bytes());
            response.write_head();
        }
    }

    /// Ends a fill early. Its whole slices stay where further ones can be joined to them.
    fn fail(self, error: OriginError) {
        let Self {
            origin,
            writer,
            response,
            ..
        } = self;
        tracing::debug!(site = %origin.site.name, path = %origin.path, %error, "a fill ended early");
        let content = writer.content().clone();
        // Further requests can complete a representation with a validator and a known length.
        let is_resumable = content.has_validator() && content.length().is_some();
        if let Some(response) = response {
            if is_resumable {
                response.write_head();
            } else {
                origin.worker.edge.unpublish(&response);
                origin.site.note_not_stored(
                    origin.worker.number,
                    response.url(),
                    NotStored::Incomplete,
                );
            }
        }
        writer.fail(error);
    }
}

/// Waits until the order of a push fill has ended. A fill that cannot be resumed continues for the
/// clients that read it.
async fn order_ended(pacer: &Pacer, content: &Content) {
    pacer.stopped().await;
    loop {
        // Subscribe before the check, so that no reader that leaves after it is missed.
        let reader_left = content.last_reader_ended();
        if content.has_validator() || !content.is_read() {
            return;
        }
        reader_left.await;
    }
}

/// Waits until a fill that clients began has had no reader for a moment, and is not worth finishing.
/// `unread` is kept from one call to the next.
async fn abandoned(
    content: &Content,
    origin: &OriginRequest,
    progress: Abandoned,
    unread: &mut Option<(Instant, u64)>,
) {
    // Fills that never had a reader are not abandoned.
    if origin.is_background || origin.is_for_push {
        return std::future::pending().await;
    }
    loop {
        // Subscribe before the check, so that no reader that leaves after it is missed.
        let reader_left = content.last_reader_ended();
        if content.is_read() {
            *unread = None;
            reader_left.await;
            continue;
        }
        let (since, left_at) = *unread.get_or_insert((Instant::now(), progress.at));
        if (Abandoned {
            left_at,
            ..progress
        })
        .should_continue(&origin.site.cache)
        {
            return std::future::pending().await;
        }
        // A fill that cannot be resumed waits longer for another reader.
        let after = if content.has_validator() {
            ABANDONED_AFTER
        } else {
            UNREAD_MAX
        };
        tokio::time::sleep_until(since + after).await;
        if !content.is_read() {
            return;
        }
    }
}
