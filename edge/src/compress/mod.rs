//! Compression of bodies: how much of it runs at once, the encoders, and the tasks that feed them.
//!
//! - [`encoder`]: one body in one coding.
//! - [`coder`]: takes pieces of a body and gives the pieces of its coded form.
//! - [`recipe`]: what makes a coded form once more, byte for byte.
//! - [`job`]: writes the coded form of a stored body into the store, once for all clients.
//!
//! Encoding runs on blocking threads, as many at once as there are cores, so that it delays no
//! connection for long. Where too many bodies are being coded or wait for a thread, further
//! responses go out without a coding. Which responses may be coded, and by which coding, is decided
//! in `http-rules`.

mod coder;
mod encoder;
mod job;
mod recipe;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

use nearcast_fleet::config::{Coding, CompressionPolicy};
use nearcast_http_rules::compress::{self, CODINGS};
use tokio::sync::Semaphore;

pub(crate) use coder::{ReadyCoder, coded_pieces};
pub(crate) use job::Job;
pub(crate) use recipe::Recipe;

use crate::metrics::Reading;

/// Bodies that may be coded at once. An encoder takes up to 5 MiB, from level 5 on up to 10 MiB.
const OPEN_MAX: usize = 32;
/// Bodies among them that are coded for one client: a slow origin may hold them for hours.
const OPEN_ONCE_MAX: usize = OPEN_MAX / 2;
/// Steps of encoders that may wait for a thread, for each of the threads.
const WAITING_MAX: usize = 4;

/// A site's policy of compression, with a number that no other policy has, so that what follows from
/// it can be remembered.
#[derive(Debug)]
pub(crate) struct SiteCompression {
    pub(crate) policy: CompressionPolicy,
    pub(crate) number: u32,
}

impl SiteCompression {
    pub(crate) fn new(policy: CompressionPolicy) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Self {
            policy,
            number: NEXT.fetch_add(1, Relaxed),
        }
    }
}

/// How the compression of one body ended, or why it did not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CodingResult {
    Whole,
    /// The coded body is not shorter: later requests get the body as it is.
    Larger,
    /// The body ended early, or nobody read it any more.
    Failed,
    /// Too many bodies were being coded.
    Busy,
}

impl CodingResult {
    const ALL: [Self; 4] = [Self::Whole, Self::Larger, Self::Failed, Self::Busy];

    fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Larger => "larger",
            Self::Failed => "failed",
            Self::Busy => "busy",
        }
    }
}

/// Counters of one coding.
#[derive(Debug, Default)]
struct Counts {
    results: [AtomicU64; CodingResult::ALL.len()],
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// All compression of one node.
#[derive(Debug)]
pub(crate) struct Compressions {
    threads: Arc<Semaphore>,
    waiting: AtomicUsize,
    waiting_max: usize,
    open: AtomicUsize,
    open_once: AtomicUsize,
    counts: [Counts; CODINGS.len()],
}

impl Compressions {
    /// For a node with that many cores.
    pub(crate) fn new(cores: usize) -> Arc<Self> {
        Arc::new(Self {
            threads: Arc::new(Semaphore::new(cores.max(1))),
            waiting: AtomicUsize::new(0),
            waiting_max: WAITING_MAX * cores.max(1),
            open: AtomicUsize::new(0),
            open_once: AtomicUsize::new(0),
            counts: Default::default(),
        })
    }

    /// A permit to code one body for all clients; `None` under pressure, which is counted.
    pub(crate) fn enter(self: &Arc<Self>, coding: Coding) -> Option<CodingPermit> {
        self.enter_as(coding, false)
    }

    /// A permit to code one body for one client.
    pub(crate) fn enter_once(self: &Arc<Self>, coding: Coding) -> Option<CodingPermit> {
        self.enter_as(coding, true)
    }

    fn enter_as(self: &Arc<Self>, coding: Coding, is_once: bool) -> Option<CodingPermit> {
        let is_open = self.waiting.load(Relaxed) < self.waiting_max
            && enter(&self.open, OPEN_MAX)
            && (!is_once || enter(&self.open_once, OPEN_ONCE_MAX) || {
                self.open.fetch_sub(1, Relaxed);
                false
            });
        if !is_open {
            self.count(coding, CodingResult::Busy);
            return None;
        }
        Some(CodingPermit {
            open: Arc::new(OpenCoding {
                compressions: self.clone(),
                is_once,
            }),
            coding,
        })
    }

    fn count(&self, coding: Coding, result: CodingResult) {
        self.counts[compress::number(coding)].results[result as usize].fetch_add(1, Relaxed);
    }

    /// The figures for the metrics.
    pub(crate) fn readings(&self) -> Vec<Reading> {
        let mut results = Vec::new();
        let (mut bytes_in, mut bytes_out) = (Vec::new(), Vec::new());
        for (coding, counts) in CODINGS.into_iter().zip(&self.counts) {
            let name = compress::name(coding);
            for result in CodingResult::ALL {
                let reading = Reading::counter(
                    "nearcast_edge_compressions_total",
                    "Bodies that were compressed, or were not because too many were.",
                    counts.results[result as usize].load(Relaxed) as f64,
                );
                results.push(
                    reading
                        .with_label("coding", name)
                        .with_label("result", result.as_str()),
                );
            }
            let read = Reading::counter(
                "nearcast_edge_compression_read_bytes_total",
                "Bytes of bodies before compression.",
                counts.bytes_in.load(Relaxed) as f64,
            );
            bytes_in.push(read.with_label("coding", name));
            let written = Reading::counter(
                "nearcast_edge_compression_written_bytes_total",
                "Bytes of bodies after compression.",
                counts.bytes_out.load(Relaxed) as f64,
            );
            bytes_out.push(written.with_label("coding", name));
        }
        [results, bytes_in, bytes_out].concat()
    }
}

/// Counts one more if there are fewer than `max`.
fn enter(count: &AtomicUsize, max: usize) -> bool {
    count
        .fetch_update(Relaxed, Relaxed, |open| (open < max).then_some(open + 1))
        .is_ok()
}

/// Counts one body as being coded until it is dropped.
#[derive(Debug)]
struct OpenCoding {
    compressions: Arc<Compressions>,
    is_once: bool,
}

impl Drop for OpenCoding {
    fn drop(&mut self) {
        self.compressions.open.fetch_sub(1, Relaxed);
        if self.is_once {
            self.compressions.open_once.fetch_sub(1, Relaxed);
        }
    }
}

/// The permit to code one body. A step that is on a blocking thread when its reader leaves cannot
/// be ended, so it keeps a share of the permit: the body counts until its encoder is gone.
#[derive(Debug)]
pub(crate) struct CodingPermit {
    open: Arc<OpenCoding>,
    coding: Coding,
}

impl CodingPermit {
    fn count(&self, result: CodingResult) {
        self.open.compressions.count(self.coding, result);
    }

    fn count_bytes(&self, read: usize, written: usize) {
        let counts = &self.open.compressions.counts[compress::number(self.coding)];
        counts.bytes_in.fetch_add(read as u64, Relaxed);
        counts.bytes_out.fetch_add(written as u64, Relaxed);
    }

    /// Runs one step of an encoder on a blocking thread, when one is free. `None` when it panicked.
    /// Dropping the future does not end a step that has begun: it keeps its thread's permit.
    async fn run<T: Send + 'static>(&self, step: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let compressions = &self.open.compressions;
        let waiting = Waiting::begin(&compressions.waiting);
        // The semaphore is never closed.
        let thread = compressions.threads.clone().acquire_owned().await.ok()?;
        drop(waiting);
        let open = self.open.clone();
        let running = tokio::task::spawn_blocking(move || {
            let done = step();
            drop(thread);
            // Dropped behind the result, which has the encoder.
            (done, open)
        });
        Some(running.await.ok()?.0)
    }
}

/// Counts a step as waiting until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests;
