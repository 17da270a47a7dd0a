//! What is kept of each request: its line in the access log, and its record for traces.
//!
//! - [`line`]: the forms of a line. [`sink`]: the file or pipe, its rotation and its failures.
//!   [`writer`]: the thread that writes. [`recent`]: the newest requests by their ids.
//!
//! A worker formats lines into a buffer of its own; the writer's thread takes the buffers a few
//! times a second. No request waits for it: lines that find their worker's buffer full are lost and
//! counted. Knows no protocol and no rule of caching.

mod line;
mod recent;
mod sink;
mod writer;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Version;
use nearcast_fleet::trace::TraceRecord;
use nearcast_http_rules::status::Outcome;
use parking_lot::Mutex;

use self::line::{LineFormat, Lines};
use self::recent::Recent;
pub(crate) use self::writer::{AccessLog, follow_fleet};
use crate::request_id::{RequestId, RequestIds};

/// Bytes of lines that one worker keeps for the writer; further lines are lost.
const BUFFER_BYTES_MAX: usize = 8 << 20;
/// Bytes of lines at which a worker wakes the writer.
const BATCH_BYTES: usize = 128 << 10;

/// How a response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Complete,
    /// The client closed its connection, or took nothing for too long.
    ClientLeft,
    /// The origin or this node could not finish it.
    Cut,
}

impl Ending {
    /// The word of the log; `None` for a complete response.
    fn word(self) -> Option<&'static str> {
        match self {
            Self::Complete => None,
            Self::ClientLeft => Some("client-left"),
            Self::Cut => Some("cut"),
        }
    }
}

/// All that is logged of one request.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) id: &'a RequestId,
    /// When its head was read, milliseconds after the Unix epoch.
    pub(crate) began_ms: u64,
    pub(crate) client: IpAddr,
    /// Another node of the cluster sent it.
    pub(crate) is_peer: bool,
    /// Empty where it names none.
    pub(crate) host: &'a [u8],
    /// Empty where its head could not be read.
    pub(crate) method: &'a str,
    /// With the query; empty where the head could not be read.
    pub(crate) path: &'a str,
    pub(crate) version: Version,
    /// Version of TLS.
    pub(crate) tls: Option<&'static str>,
    pub(crate) referer: &'a [u8],
    pub(crate) user_agent: &'a [u8],
    /// Empty where it has none.
    pub(crate) site: &'a str,
    pub(crate) status: u16,
    /// Bytes of the body that were handed to the connection.
    pub(crate) bytes: u64,
    pub(crate) outcome: &'a Outcome,
    pub(crate) first_byte: Duration,
    pub(crate) total: Duration,
    /// How long it waited for the origin.
    pub(crate) origin: Option<Duration>,
    pub(crate) ending: Ending,
}

/// The words for a version of HTTP.
fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 | Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}

/// One worker's part: ids, newest requests, and lines that were not written yet.
#[derive(Default)]
pub(crate) struct WorkerLog {
    inner: Mutex<Inner>,
    /// Lines that found the buffer full.
    lost: AtomicU64,
    writer: Mutex<Option<std::thread::Thread>>,
}

#[derive(Default)]
struct Inner {
    ids: RequestIds,
    recent: Recent,
    /// `None` while there is no access log.
    format: Option<Arc<LineFormat>>,
    lines: Lines,
    /// The writer was woken for these lines.
    is_writer_awake: bool,
}

impl WorkerLog {
    /// An id for a request of this worker.
    pub(crate) fn next_id(&self) -> RequestId {
        self.inner.lock().ids.next()
    }

    /// Whether lines have the fields `Referer` and `User-Agent`.
    pub(crate) fn is_on(&self) -> bool {
        self.inner.lock().format.is_some()
    }

    /// Notes a request that has an id.
    pub(crate) fn note(&self, entry: &Entry<'_>) {
        self.inner.lock().note(self, entry);
    }

    /// Notes a request of the fast path, which has no id before. `entry` is told whether there is a
    /// log of requests, which needs more fields than a trace.
    pub(crate) fn note_new<'a>(&self, entry: impl FnOnce(bool) -> EntryOfHit<'a>) {
        let mut inner = self.inner.lock();
        let id = inner.ids.next();
        let hit = entry(inner.format.is_some());
        inner.note(self, &hit.with_id(&id));
    }

    /// The records of an id, newest first.
    pub(crate) fn find(&self, id: &[u8], found: &mut Vec<TraceRecord>) {
        self.inner.lock().recent.find(id, found);
    }

    fn wake_writer(&self) {
        if let Some(writer) = &*self.writer.lock() {
            writer.unpark();
        }
    }

    /// Takes the lines; leaves an empty buffer in their place.
    fn take(&self, taken: &mut Lines) {
        taken.clear();
        let mut inner = self.inner.lock();
        std::mem::swap(&mut inner.lines, taken);
        inner.is_writer_awake = false;
    }
}

impl Inner {
    fn note(&mut self, log: &WorkerLog, entry: &Entry<'_>) {
        self.recent.note(entry);
        let Some(format) = &self.format else { return };
        if !format.is_sampled(entry.id) {
            return;
        }
        if self.lines.bytes() >= BUFFER_BYTES_MAX {
            log.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.lines.write(format, entry);
        if self.lines.bytes() >= BATCH_BYTES && !self.is_writer_awake {
            self.is_writer_awake = true;
            log.wake_writer();
        }
    }
}

/// An [`Entry`] of the fast path, before it has an id: a complete response from memory to a GET.
pub(crate) struct EntryOfHit<'a> {
    pub(crate) began_ms: u64,
    pub(crate) client: IpAddr,
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) version: Version,
    pub(crate) tls: Option<&'static str>,
    pub(crate) referer: &'a [u8],
    pub(crate) user_agent: &'a [u8],
    pub(crate) site: &'a str,
    pub(crate) status: u16,
    pub(crate) bytes: u64,
    pub(crate) outcome: &'a Outcome,
    pub(crate) took: Duration,
}

impl<'a> EntryOfHit<'a> {
    fn with_id(self, id: &'a RequestId) -> Entry<'a> {
        Entry {
            id,
            began_ms: self.began_ms,
            client: self.client,
            is_peer: false,
            host: self.host.as_bytes(),
            method: "GET",
            path: self.path,
            version: self.version,
            tls: self.tls,
            referer: self.referer,
            user_agent: self.user_agent,
            site: self.site,
            status: self.status,
            bytes: self.bytes,
            outcome: self.outcome,
            first_byte: self.took,
            total: self.took,
            origin: None,
            ending: Ending::Complete,
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// The entry of a plain hit.
    pub(crate) fn entry<'a>(id: &'a RequestId, outcome: &'a Outcome) -> Entry<'a> {
        EntryOfHit {
            began_ms: 1_764_295_486_123,
            client: IpAddr::from([192, 0, 2, 77]),
            host: "www.example.org",
            path: "/a?b=c",
            version: Version::HTTP_11,
            tls: None,
            referer: b"",
            user_agent: b"curl/8",
            site: "www",
            status: 200,
            bytes: 1024,
            outcome,
            took: Duration::from_micros(17),
        }
        .with_id(id)
    }
}
