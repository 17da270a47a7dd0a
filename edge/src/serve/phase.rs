//! What one client's connection is doing: written by the code that reads and answers requests, read
//! by the socket under it and by the search for idle connections.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const REQUEST: u8 = 2;

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The first byte of a request.
    Idle,
    /// The rest of a request's head.
    Head,
    /// The response to a request.
    Response,
}

/// What a connection is doing.
#[derive(Debug, Default)]
pub(crate) struct Phase {
    waiting: AtomicU8,
    is_last: AtomicBool,
    /// The HTTP library has a request whose response is not complete.
    is_answering: AtomicBool,
    /// The socket holds the library's reads back until that response is complete.
    has_held: AtomicBool,
    pub(crate) idle_since: IdleSince,
}

impl Phase {
    /// A request head was read whole.
    pub(crate) fn request_began(&self) {
        self.waiting.store(REQUEST, Relaxed);
    }

    /// Its response is complete.
    pub(crate) fn request_ended(&self) {
        self.waiting.store(IDLE, Relaxed);
    }

    /// The first byte of a head was read, or is now expected.
    pub(super) fn head_began(&self) {
        self.waiting.store(HEAD, Relaxed);
    }

    pub(super) fn waiting(&self) -> Waiting {
        match self.waiting.load(Relaxed) {
            IDLE => Waiting::Idle,
            HEAD => Waiting::Head,
            _ => Waiting::Response,
        }
    }

    /// Whether the connection has to end with the response to this request.
    pub(super) fn is_last(&self) -> bool {
        self.is_last.load(Relaxed)
    }

    pub(super) fn set_last(&self) {
        self.is_last.store(true, Relaxed);
    }

    pub(super) fn is_answering(&self) -> bool {
        self.is_answering.load(Relaxed)
    }

    pub(super) fn answering_began(&self) {
        self.is_answering.store(true, Relaxed);
    }

    /// The HTTP library has the whole response.
    pub(super) fn answering_ended(&self) {
        self.is_answering.store(false, Relaxed);
    }

    pub(super) fn hold(&self) {
        self.has_held.store(true, Relaxed);
    }

    /// Whether reads were held back for a response that is complete by now: nothing else wakes the
    /// reader.
    pub(super) fn take_held(&self) -> bool {
        !self.is_answering() && self.has_held.swap(false, Relaxed)
    }
}

/// A connection that is not idle.
const BUSY: u64 = u64::MAX;

/// Since when a connection is idle, in milliseconds after its node started.
#[derive(Debug)]
pub(crate) struct IdleSince(AtomicU64);

impl Default for IdleSince {
    fn default() -> Self {
        Self(AtomicU64::new(BUSY))
    }
}

impl IdleSince {
    pub(super) fn note_busy(&self) {
        self.0.store(BUSY, Relaxed);
    }

    pub(super) fn note_idle(&self, now_ms: u64) {
        self.0.store(now_ms, Relaxed);
    }

    /// `None` while the connection is not idle.
    pub(super) fn get(&self) -> Option<u64> {
        Some(self.0.load(Relaxed)).filter(|since| *since != BUSY)
    }
}
