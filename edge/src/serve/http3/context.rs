//! What the parts of one connection share.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::allowances::{Allowances, Kind};
use super::closed::{Closed, ConnectionError};
use super::qpack::{FieldSection, SectionLimits};
use crate::edge::Worker;
use crate::request::check::ClientConnection;
use crate::serve::http2::priority::Priority;

/// Most streams that wait for the client to take what they gave. Each keeps a piece in memory, with
/// the slice that it is a part of. Urgent ones may exceed it.
const HELD_BACK_MAX: usize = 32;
/// Most with the urgent ones, and with hits, which are answered where they are accepted.
const HELD_BACK_URGENT_MAX: usize = 64;
/// No GOAWAY was sent.
const NO_GOAWAY: u64 = u64::MAX;
/// Bytes that are reserved for heads at once.
const HEADS_BYTES: usize = 8 << 10;

/// One connection, for its requests.
pub(super) struct Context {
    pub(super) worker: Arc<Worker>,
    pub(super) client: ClientConnection,
    pub(super) quic: quinn::Connection,
    pub(super) section_limits: SectionLimits,
    /// Bytes of a section as it is sent.
    pub(super) section_bytes_max: u64,
    allowances: Mutex<Allowances>,
    closed: Mutex<Option<Closed>>,
    has_settings: AtomicBool,
    /// The first request that is not answered, as the client is to be told.
    goaway: AtomicU64,
    /// Streams that the client has begun, as far as they were accepted.
    accepted: AtomicU64,
    /// Streams that hold a piece which the client has not taken.
    held_back: AtomicUsize,
    /// The stream that was polled last has to wait until fewer hold a piece.
    is_refused: AtomicBool,
    /// Changes of priorities that were received and not applied.
    updates: Mutex<Vec<(u64, Priority)>>,
    pub(super) buffers: Mutex<Buffers>,
    /// When a stream last gave something to the transport.
    last_write: Mutex<Instant>,
}

/// Buffers for one request after the other.
#[derive(Default)]
pub(super) struct Buffers {
    pub(super) section: FieldSection,
    /// The cache key of a hit.
    pub(super) url: String,
    /// A field section that is being written, and the value of one field.
    pub(super) fields: Vec<u8>,
    pub(super) value: Vec<u8>,
    heads: BytesMut,
}

impl Buffers {
    /// A head in memory that is shared with others: an allocation serves several.
    pub(super) fn head(&mut self, parts: [&[u8]; 4]) -> Bytes {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if self.heads.capacity() < length {
            self.heads = BytesMut::with_capacity(HEADS_BYTES.max(length));
        }
        for part in parts {
            self.heads.extend_from_slice(part);
        }
        self.heads.split().freeze()
    }

    /// Frees what an idle connection does not need.
    pub(super) fn shrink(&mut self) {
        *self = Self::default();
    }
}

impl Context {
    pub(super) fn new(
        worker: Arc<Worker>,
        client: ClientConnection,
        quic: quinn::Connection,
        now: Instant,
    ) -> Arc<Self> {
        let limits = &worker.edge.clients;
        Arc::new(Self {
            section_limits: SectionLimits {
                fields_max: limits.fields_max,
                bytes_max: limits.head_bytes_max,
            },
            section_bytes_max: limits.head_bytes_max.saturating_mul(2) as u64,
            worker,
            client,
            quic,
            allowances: Mutex::new(Allowances::new(now)),
            closed: Mutex::default(),
            has_settings: AtomicBool::new(false),
            goaway: AtomicU64::new(NO_GOAWAY),
            accepted: AtomicU64::new(0),
            held_back: AtomicUsize::new(0),
            is_refused: AtomicBool::new(false),
            updates: Mutex::default(),
            buffers: Mutex::default(),
            last_write: Mutex::new(now),
        })
    }

    /// Closes the connection, unless it is closed already.
    pub(super) fn close(&self, error: impl Into<ConnectionError>) {
        let error = error.into();
        let mut closed = self.closed.lock();
        if closed.is_none() && self.quic.close_reason().is_none() {
            *closed = Some(error.why);
            self.quic.close(error.code, error.why.as_str().as_bytes());
        }
    }

    /// Why this node has closed the connection.
    pub(super) fn closed(&self) -> Option<Closed> {
        *self.closed.lock()
    }

    /// Takes from the allowance of a kind.
    ///
    /// # Errors
    /// The connection has to be closed.
    pub(super) fn spend(&self, kind: Kind, count: u32) -> Result<(), Closed> {
        self.allowances.lock().spend(kind, count, Instant::now())
    }

    /// Takes from the allowance of a kind, and closes the connection where nothing is left.
    pub(super) fn spend_or_close(&self, kind: Kind) {
        if let Err(why) = self.spend(kind, 1) {
            self.close(why);
        }
    }

    pub(super) fn note_data(&self, bytes: u64) {
        self.allowances.lock().note_data(bytes);
    }

    /// A request was answered.
    pub(super) fn note_answered(&self) {
        self.allowances.lock().note_answered();
    }

    pub(super) fn has_settings(&self) -> bool {
        self.has_settings.load(Relaxed)
    }

    pub(super) fn note_settings(&self) {
        self.has_settings.store(true, Relaxed);
    }

    /// The first request that is not answered.
    pub(super) fn goaway(&self) -> Option<u64> {
        Some(self.goaway.load(Relaxed)).filter(|id| *id != NO_GOAWAY)
    }

    pub(super) fn set_goaway(&self, id: u64) {
        self.goaway.store(id, Relaxed);
    }

    pub(super) fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// The client has begun this many streams at least.
    pub(super) fn note_accepted(&self, count: u64) {
        self.accepted.fetch_max(count, Relaxed);
    }

    /// Whether another stream may be accepted.
    pub(super) fn may_accept(&self) -> bool {
        self.held_back.load(Relaxed) < HELD_BACK_URGENT_MAX
    }

    /// Whether a stream may take its next piece. If not, it is polled again when it may.
    pub(super) fn may_take(&self, is_urgent: bool) -> bool {
        let may_take = !self.is_held_back() || is_urgent && self.may_accept();
        if !may_take {
            self.is_refused.store(true, Relaxed);
        }
        may_take
    }

    /// Whether the stream that was polled last may not take its next piece.
    pub(super) fn take_refused(&self) -> bool {
        self.is_refused.swap(false, Relaxed)
    }

    /// Whether so many streams wait for their client that no other may take anything, unless it is
    /// urgent.
    pub(super) fn is_held_back(&self) -> bool {
        self.held_back.load(Relaxed) >= HELD_BACK_MAX
    }

    /// A stream holds a piece as long as this lives.
    pub(super) fn hold(self: &Arc<Self>) -> HeldPiece {
        self.held_back.fetch_add(1, Relaxed);
        HeldPiece(self.clone())
    }

    /// Notes a change of a request's priority.
    pub(super) fn update(&self, stream: u64, priority: Priority) {
        self.updates.lock().push((stream, priority));
    }

    pub(super) fn take_updates(&self) -> Vec<(u64, Priority)> {
        std::mem::take(&mut *self.updates.lock())
    }

    pub(super) fn note_write(&self) {
        *self.last_write.lock() = Instant::now();
    }

    /// When a stream last gave something to the transport.
    pub(super) fn last_write(&self) -> Instant {
        *self.last_write.lock()
    }
}

/// A piece that the client has not taken.
pub(super) struct HeldPiece(Arc<Context>);

impl Drop for HeldPiece {
    fn drop(&mut self) {
        self.0.held_back.fetch_sub(1, Relaxed);
    }
}
