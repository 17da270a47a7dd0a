//! A disk under watch: the files of a directory, threads for reads that wait, and the disk's state.
//!
//! Every operation on the pool's [`files`](DiskPool::files) is known to the watch from its begin to
//! its end. When the disk hangs or fails ([`health`](super::health) has the rules) it is *left*:
//! everything that waits for a read is answered at once, each further operation fails at once with
//! an error that [`is_left`] recognises, and a probe asks the disk now and then. Operations that hang
//! stay where they are, in threads that nobody waits for; when they end, their callers get the result.
//!
//! Reads and other short work that a request waits for run on the pool's threads ([`DiskPool::run`]),
//! a bounded number with a bounded queue. The writer and the recovery have threads of their own and
//! use the same files; no request waits for those.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::{DerefMut, Range};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};

use super::health::{Change, DiskState, Health, Operation, Patience, Probe};
use super::{DiskFile, Files};

/// Threads for reads. They start when reads wait; a disk with a queue of its own needs several.
const THREADS_MAX: usize = 16;

/// Reads that wait for a thread. More are refused: their requests go to the origin.
const QUEUE_MAX: usize = 1024;

/// A thread that has had nothing to do for that long ends.
const THREAD_IDLE: Duration = Duration::from_secs(30);

/// A disk with so much room is not full. If that is not enough for the next write, it is full again
/// for longer.
const ROOM_MIN: u64 = 1 << 20;

/// The disk cannot answer now: it was left, all threads are busy, or it took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the disk does not answer")]
pub struct Unavailable;

/// Whether an error of a file says that the disk is left and was not asked.
pub fn is_left(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<Unavailable>())
}

/// Numbers of a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolFigures {
    /// How many times the disk was left.
    pub times_left: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Threads for reads.
    pub threads: usize,
    /// Reads that wait for a thread.
    pub queued: usize,
}

/// The files of one directory under watch.
pub struct DiskPool {
    shared: Arc<Shared>,
    files: Arc<dyn Files>,
}

struct Shared {
    /// In log lines.
    name: String,
    files: Arc<dyn Files>,
    patience: Patience,
    is_left: AtomicBool,
    is_closed: AtomicBool,
    watched: Mutex<Watched>,
    /// For the watching thread and for [`DiskPool::wait_until_used`].
    changed: Condvar,
    /// For requests that wait when the disk is left.
    left: Notify,
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Debug)]
struct Watched {
    health: Health,
    /// When the watching thread wakes by itself.
    wakes_at: Option<Instant>,
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Instant, Job)>,
    threads: usize,
    idle: usize,
}

impl fmt::Debug for DiskPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskPool")
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl DiskPool {
    /// Watches over files. `name` says in log lines which disk this is. Touches no disk.
    pub fn new(name: String, files: Arc<dyn Files>, patience: Patience) -> Self {
        let shared = Arc::new(Shared {
            name,
            files,
            patience,
            is_left: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            watched: Mutex::new(Watched {
                health: Health::new(patience, THREADS_MAX / 2),
                wakes_at: None,
            }),
            changed: Condvar::new(),
            left: Notify::new(),
            queue: Mutex::default(),
            work: Condvar::new(),
        });
        let watching = shared.clone();
        let thread = std::thread::Builder::new().name("disk-watch".into());
        if let Err(error) = thread.spawn(move || watching.watch()) {
            tracing::error!(%error, "no thread can watch the store's disk; a disk that hangs is not noticed");
        }
        Self {
            files: Arc::new(WatchedFiles(shared.clone())),
            shared,
        }
    }

    /// The files. Each operation is under watch, and fails at once while the disk is left.
    pub fn files(&self) -> &Arc<dyn Files> {
        &self.files
    }

    /// The state of the disk.
    pub fn state(&self) -> DiskState {
        self.shared.watched.lock().health.state()
    }

    /// Whether the disk is used: it is not left.
    pub fn is_used(&self) -> bool {
        !self.shared.is_left.load(Ordering::Relaxed)
    }

    /// Whether a write of new bytes is worth a try: the disk is used, and had room, or it is time to
    /// ask it again.
    pub fn has_room(&self) -> bool {
        self.shared.watched.lock().health.has_room(Instant::now())
    }

    /// Numbers of the pool.
    pub fn figures(&self) -> PoolFigures {
        let (times_left, errors) = {
            let watched = self.shared.watched.lock();
            (watched.health.times_left, watched.health.errors)
        };
        let queue = self.shared.queue.lock();
        PoolFigures {
            times_left,
            errors,
            threads: queue.threads,
            queued: queue.jobs.len(),
        }
    }

    /// Waits until the disk is used, however long that takes. `false` when the pool is closed.
    /// Blocking.
    pub fn wait_until_used(&self) -> bool {
        let mut watched = self.shared.watched.lock();
        while watched.health.is_left() && !self.shared.is_closed() {
            self.shared.changed.wait(&mut watched);
        }
        !self.shared.is_closed()
    }

    /// Ends the threads that do not hang, and all waiting. Further reads are not answered; files
    /// stay usable.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Fills a buffer from a file: at once if the page cache has the bytes, otherwise on a thread of
    /// the pool. `None` where the file could not be read.
    pub async fn read<B>(
        &self,
        file: &Arc<dyn DiskFile>,
        offset: u64,
        mut buffer: B,
    ) -> Result<Option<B>, Unavailable>
    where
        B: DerefMut<Target = [u8]> + Send + 'static,
    {
        if !self.is_used() {
            return Err(Unavailable);
        }
        if file.read_now(&mut buffer, offset) {
            return Ok(Some(buffer));
        }
        let file = file.clone();
        let read = move || file.read_at(&mut buffer, offset).map(|()| buffer);
        match self.run(read).await? {
            Ok(buffer) => Ok(Some(buffer)),
            Err(error) if is_left(&error) => Err(Unavailable),
            Err(_) => Ok(None),
        }
    }

    /// Runs work that reads on a thread of the pool, and waits for its end: not longer than the
    /// patience for an answer, and not after the disk was left. Work whose waiter has gone goes on,
    /// or does not begin.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        let left = self.shared.left.notified();
        tokio::pin!(left);
        left.as_mut().enable();
        if !self.is_used() {
            return Err(Unavailable);
        }

        let (done, mut answer) = oneshot::channel();
        self.shared.submit(Box::new(move || {
            if !done.is_closed() {
                let _ = done.send(work());
            }
        }))?;
        let patience = tokio::time::sleep(self.shared.patience.answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer.map_err(|_| Unavailable),
            () = left => Err(Unavailable),
            () = patience => Err(Unavailable),
        }
    }
}

impl Drop for DiskPool {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    fn close(&self) {
        // Under the locks, so that no thread misses it between its look and its wait.
        {
            let _watched = self.watched.lock();
            self.is_closed.store(true, Ordering::Relaxed);
            self.changed.notify_all();
        }
        self.queue.lock().jobs.clear();
        self.work.notify_all();
    }

    /// Gives work to a thread.
    fn submit(self: &Arc<Self>, job: Job) -> Result<(), Unavailable> {
        let mut queue = self.queue.lock();
        if queue.jobs.len() >= QUEUE_MAX || self.is_closed() {
            return Err(Unavailable);
        }
        if queue.idle <= queue.jobs.len() && queue.threads < THREADS_MAX {
            let shared = self.clone();
            let thread = std::thread::Builder::new().name("disk-read".into());
            match thread.spawn(move || shared.work()) {
                Ok(_) => queue.threads += 1,
                Err(_) if queue.threads == 0 => return Err(Unavailable),
                Err(_) => {}
            }
        }
        queue.jobs.push_back((Instant::now(), job));
        self.work.notify_one();
        Ok(())
    }

    /// A thread of the pool.
    fn work(&self) {
        let mut queue = self.queue.lock();
        while !self.is_closed() {
            let Some((queued, job)) = queue.jobs.pop_front() else {
                queue.idle += 1;
                let timed_out = self.work.wait_for(&mut queue, THREAD_IDLE).timed_out();
                queue.idle -= 1;
                if timed_out && queue.jobs.is_empty() {
                    break;
                }
                continue;
            };
            // What has waited for too long has no waiter any more.
            let is_due = queued.elapsed() < self.patience.answer && self.is_used();
            parking_lot::MutexGuard::unlocked(&mut queue, || {
                if is_due {
                    job();
                } else {
                    drop(job);
                }
            });
        }
        queue.threads -= 1;
    }

    fn is_used(&self) -> bool {
        !self.is_left.load(Ordering::Relaxed)
    }

    /// One operation on a file, under watch.
    fn operate<T>(
        &self,
        operation: Operation,
        file: &Arc<str>,
        operate: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let number = {
            let mut watched = self.watched.lock();
            if watched.health.is_left() {
                return Err(io::Error::other(Unavailable));
            }
            let now = Instant::now();
            let number = watched.health.begin(operation, file, now);
            let due = watched.health.check_at(now);
            if due.is_some_and(|due| watched.wakes_at.is_none_or(|wakes| due < wakes)) {
                self.changed.notify_all();
            }
            number
        };

        let result = operate();

        let mut watched = self.watched.lock();
        let now = Instant::now();
        let change = watched.health.end(number, result.as_ref().err(), now);
        self.apply(&mut watched, change);
        result
    }

    /// Says a change once, and does what follows from it.
    fn apply(&self, watched: &mut Watched, change: Option<Change>) {
        let Some(change) = change else { return };
        let disk = &self.name;
        self.is_left
            .store(watched.health.is_left(), Ordering::Relaxed);
        match change {
            Change::Left(reason) => {
                tracing::warn!(%disk, %reason, "the store's disk is not used until it answers again");
                self.queue.lock().jobs.clear();
                self.left.notify_waiters();
            }
            Change::Returned => {
                tracing::info!(%disk, "the store's disk answers and is used again");
            }
            Change::Full => {
                tracing::warn!(%disk, "the store's disk has no room; what is new stays in memory only");
            }
            Change::HasRoom => tracing::info!(%disk, "the store's disk has room again"),
        }
        self.changed.notify_all();
    }

    /// The thread that watches. It sleeps while nothing is under way.
    fn watch(self: Arc<Self>) {
        let mut watched = self.watched.lock();
        while !self.is_closed() {
            let now = Instant::now();
            let change = watched.health.check(now);
            self.apply(&mut watched, change);
            if let Some(probe) = watched.health.begin_probe(now) {
                self.probe(probe);
            }
            let check_at = if watched.health.is_left() {
                None
            } else {
                watched.health.check_at(now)
            };
            let wakes_at = check_at.into_iter().chain(watched.health.probe_at()).min();
            watched.wakes_at = wakes_at;
            match wakes_at {
                Some(at) => {
                    self.changed.wait_until(&mut watched, at);
                }
                None => self.changed.wait(&mut watched),
            }
        }
    }

    /// Asks the disk on a thread of its own, which may hang. There is at most one.
    fn probe(self: &Arc<Self>, probe: Probe) {
        let shared = self.clone();
        let probe = move || {
            let (works, room) = match probe {
                Probe::Works => (shared.files.probe(), None),
                Probe::Room => (Ok(()), shared.files.room().ok()),
            };
            let mut watched = shared.watched.lock();
            let now = Instant::now();
            let change = match probe {
                Probe::Works => watched.health.end_probe(works.as_ref().err(), now),
                Probe::Room => {
                    let has_room = room.is_some_and(|room| room >= ROOM_MIN);
                    watched.health.end_room_probe(has_room, now)
                }
            };
            shared.apply(&mut watched, change);
            // The next one is due later.
            shared.changed.notify_all();
        };
        let thread = std::thread::Builder::new().name("disk-probe".into());
        if let Err(error) = thread.spawn(probe) {
            tracing::error!(%error, "no thread can probe the store's disk; it stays unused");
        }
    }
}

/// Files under watch.
#[derive(Debug)]
struct WatchedFiles(Arc<Shared>);

impl WatchedFiles {
    fn operate<T>(
        &self,
        operation: Operation,
        name: &str,
        operate: impl FnOnce(&dyn Files) -> io::Result<T>,
    ) -> io::Result<T> {
        let files = &*self.0.files;
        self.0.operate(operation, &name.into(), || operate(files))
    }

    fn watched(&self, name: &str, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(WatchedFile {
            name: name.into(),
            file,
            shared: self.0.clone(),
        })
    }
}

/// The directory, in log lines.
const DIRECTORY: &str = "the directory";

impl Files for WatchedFiles {
    fn lock(&self) -> io::Result<()> {
        self.operate(Operation::Open, DIRECTORY, |files| files.lock())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.operate(Operation::Open, name, |files| files.open(name))?;
        Ok(self.watched(name, file))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.operate(Operation::Open, name, |files| files.create(name))?;
        Ok(self.watched(name, file))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.operate(Operation::Remove, name, |files| files.remove(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.operate(Operation::Name, to, |files| files.rename(from, to))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.operate(Operation::Open, DIRECTORY, |files| files.list())
    }

    fn sync(&self) -> io::Result<()> {
        self.operate(Operation::Sync, DIRECTORY, |files| files.sync())
    }

    fn room(&self) -> io::Result<u64> {
        self.operate(Operation::Name, DIRECTORY, |files| files.room())
    }

    fn probe(&self) -> io::Result<()> {
        self.operate(Operation::Sync, DIRECTORY, |files| files.probe())
    }
}

/// A file under watch.
#[derive(Debug)]
struct WatchedFile {
    name: Arc<str>,
    file: Arc<dyn DiskFile>,
    shared: Arc<Shared>,
}

impl WatchedFile {
    fn operate<T>(
        &self,
        operation: Operation,
        operate: impl FnOnce(&dyn DiskFile) -> io::Result<T>,
    ) -> io::Result<T> {
        self.shared
            .operate(operation, &self.name, || operate(&*self.file))
    }
}

impl DiskFile for WatchedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.operate(Operation::Read, |file| file.read_at(buffer, offset))
    }

    fn read_now(&self, buffer: &mut [u8], offset: u64) -> bool {
        // It never waits for the device, so the watch need not know it.
        self.shared.is_used() && self.file.read_now(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.operate(Operation::Write, |file| file.write_at(bytes, offset))
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.operate(Operation::Name, |file| file.set_len(length))
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.operate(Operation::Allocate, |file| file.allocate(range))
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.operate(Operation::Background, |file| file.punch(range))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operate(Operation::Sync, |file| file.sync_data())
    }

    fn start_writeback(&self, range: Range<u64>) -> io::Result<()> {
        self.operate(Operation::Background, |file| file.start_writeback(range))
    }

    fn wait_writeback(&self, range: Range<u64>) -> io::Result<()> {
        self.operate(Operation::Background, |file| file.wait_writeback(range))
    }

    fn length(&self) -> io::Result<u64> {
        self.operate(Operation::Name, |file| file.length())
    }

    fn space(&self) -> io::Result<u64> {
        self.operate(Operation::Name, |file| file.space())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        if self.shared.is_used() {
            self.file.descriptor()
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::simulated::{Fault, Kind, SimulatedDisk};

    /// A pool with little patience, and a file with some bytes.
    struct Lab {
        disk: SimulatedDisk,
        pool: Arc<DiskPool>,
        file: Arc<dyn DiskFile>,
    }

    impl Lab {
        fn new() -> Self {
            let disk = SimulatedDisk::new(1);
            let patience = Patience {
                answer: Duration::from_millis(200),
                prompt: Duration::from_millis(150),
                probe_first: Duration::from_millis(20),
                ..Patience::default()
            };
            let pool = DiskPool::new("simulated".into(), disk.files(), patience);
            let file = pool.files().create("a").expect("no fault");
            file.write_at(b"0123456789", 0).expect("no fault");
            Self {
                disk,
                pool: Arc::new(pool),
                file,
            }
        }

        async fn read(&self) -> Result<Option<Vec<u8>>, Unavailable> {
            self.pool.read(&self.file, 2, vec![0; 4]).await
        }

        fn wait(&self, what: &str, is: impl Fn(&DiskState) -> bool) {
            let begun = Instant::now();
            while !is(&self.pool.state()) {
                assert!(
                    begun.elapsed() < Duration::from_secs(20),
                    "{what}: {}",
                    self.pool.state()
                );
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    #[tokio::test]
    async fn reads_come_from_the_page_cache_or_from_a_thread() {
        let lab = Lab::new();
        assert_eq!(lab.read().await, Ok(Some(b"2345".to_vec())));
        assert_eq!(lab.pool.figures().threads, 1);
        lab.disk.set_cached(true);
        assert_eq!(lab.read().await, Ok(Some(b"2345".to_vec())));
        lab.disk.set_cached(false);
        let past = lab.pool.read(&lab.file, 8, vec![0; 4]).await;
        assert_eq!(past, Ok(None), "the file ends");
        assert_eq!(lab.pool.state(), DiskState::On);
    }

    #[tokio::test]
    async fn a_disk_that_hangs_is_left_and_used_again() {
        let lab = Lab::new();
        lab.disk.fault_always(Kind::Read, Fault::Hang);
        assert_eq!(lab.read().await, Err(Unavailable));
        lab.wait("left", |state| matches!(state, DiskState::Left(_)));

        // It is not asked any more.
        let operations = lab.disk.operations();
        assert_eq!(lab.read().await, Err(Unavailable));
        let error = lab.file.write_at(b"x", 0).expect_err("not asked");
        assert!(is_left(&error));
        let probes = lab.disk.operations() - operations;
        assert!(probes <= 3, "one probe, which hangs: {probes}");

        lab.disk.release();
        lab.wait("used", |state| *state == DiskState::On);
        assert!(lab.pool.wait_until_used());
        assert_eq!(lab.read().await, Ok(Some(b"2345".to_vec())));
        assert_eq!(lab.pool.figures().times_left, 1);
    }

    #[tokio::test]
    async fn all_that_waits_is_answered_when_the_disk_is_left() {
        let lab = Lab::new();
        lab.disk.fault_always(Kind::Read, Fault::Hang);
        let waiting: Vec<_> = (0..3 * THREADS_MAX)
            .map(|_| {
                let (pool, file) = (lab.pool.clone(), lab.file.clone());
                tokio::spawn(async move { pool.read(&file, 0, vec![0; 1]).await })
            })
            .collect();
        for read in waiting {
            assert_eq!(read.await.expect("no panic"), Err(Unavailable));
        }
        assert!(lab.pool.figures().threads <= THREADS_MAX);
        lab.wait("left", |state| matches!(state, DiskState::Left(_)));
        lab.disk.release();
    }

    #[test]
    fn a_write_that_hangs_leaves_the_disk_and_ends_when_it_can() {
        let lab = Lab::new();
        lab.disk.fault_always(Kind::Write, Fault::Hang);
        let file = lab.file.clone();
        let write = std::thread::spawn(move || file.write_at(b"late", 0));
        lab.wait("left", |state| matches!(state, DiskState::Left(_)));
        lab.disk.release();
        assert!(lab.pool.wait_until_used());
        write.join().expect("it ends").expect("and was done");
        assert_eq!(&lab.disk.bytes("a")[..4], b"late");
    }

    #[tokio::test]
    async fn a_disk_that_fails_is_left_until_a_probe_succeeds() {
        let lab = Lab::new();
        lab.disk.fault_always(Kind::Write, Fault::Error(libc::EIO));
        let error = lab.file.write_at(b"x", 0).expect_err("a fault");
        assert!(!is_left(&error), "it was asked");
        let state = lab.pool.state();
        assert!(state.to_string().contains("writing a"), "{state}");
        assert_eq!(lab.read().await, Err(Unavailable));
        lab.disk.release();
        lab.wait("used", |state| *state == DiskState::On);
    }

    #[tokio::test]
    async fn a_full_disk_is_read() {
        let lab = Lab::new();
        lab.disk.set_capacity(0);
        lab.file.write_at(b"x", 1 << 20).expect_err("no room");
        assert_eq!(lab.pool.state(), DiskState::Full);
        assert_eq!(lab.read().await, Ok(Some(b"2345".to_vec())));
        lab.disk.set_capacity(u64::MAX);
        while !lab.pool.has_room() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        lab.file.write_at(b"x", 1 << 20).expect("room again");
        assert_eq!(lab.pool.state(), DiskState::On);
    }

    #[tokio::test]
    async fn a_read_that_hangs_alone_delays_its_own_request_only() {
        let lab = Lab::new();
        lab.disk.fault_in("a", 9..10, Fault::Hang);
        let hung = {
            let (pool, file) = (lab.pool.clone(), lab.file.clone());
            tokio::spawn(async move { pool.read(&file, 9, vec![0; 1]).await })
        };
        while !hung.is_finished() {
            assert_eq!(lab.read().await, Ok(Some(b"2345".to_vec())));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(hung.await.expect("no panic"), Err(Unavailable));
        assert_eq!(lab.pool.state(), DiskState::On, "others were answered");
        lab.disk.release();
    }

    #[tokio::test]
    async fn a_closed_pool_answers_nothing() {
        let lab = Lab::new();
        lab.pool.close();
        assert_eq!(lab.read().await, Err(Unavailable));
        assert!(!lab.pool.wait_until_used());
    }
}
