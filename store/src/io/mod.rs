//! Files of the disk tier: what the store asks of a disk, and who answers.
//!
//! The disk tier sees files through two traits, [`Files`] (a directory) and [`DiskFile`] (one file).
//!
//! - [`real`]: the files of a directory of this machine.
//!
//! # Why not `O_DIRECT`
//!
//! Files are read and written through the page cache. A slice that left the memory tier a moment ago
//! is often still there, and is then read on the worker's own thread without waiting
//! ([`DiskFile::read_now`]) or sent from the file by `sendfile`; with direct I/O each of these reads
//! would wait for the device. The reason to prefer direct I/O is dirty memory without a bound, which
//! ends in long stalls of `fdatasync`. So dirty pages are bounded otherwise: the writer starts the
//! writing of each window when it is complete ([`DiskFile::start_writeback`]) and waits for the
//! window before it ([`DiskFile::wait_writeback`]). File systems that refuse direct I/O (tmpfs, some
//! overlays) need no second path.

mod health;
mod pool;
mod real;
#[cfg(any(test, feature = "testing"))]
pub mod simulated;

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

pub use health::{DiskState, LeftReason, Patience};
pub use pool::{DiskPool, PoolFigures, Unavailable, is_left};
pub use real::RealFiles;

/// The files of one directory. Names have no separators.
///
/// All methods block, and may block for as long as the disk likes.
pub trait Files: Debug + Send + Sync {
    /// Makes the directory where it does not exist, and takes it for this process until the value is
    /// dropped. An error of the kind [`io::ErrorKind::WouldBlock`] where another process has it.
    fn lock(&self) -> io::Result<()>;

    /// Opens a file for reading and writing. An error of the kind [`io::ErrorKind::NotFound`] where
    /// there is none.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file for reading and writing, and makes an empty one where there is none. The content
    /// of one that exists stays. The name is durable after [`sync`](Self::sync).
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Removes a file, or a directory with all that is in it. No error where there is none.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Gives a file another name, in place of the file that has it. Durable after
    /// [`sync`](Self::sync).
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// The names of all files and directories, without those that the implementation keeps for
    /// itself.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes the names durable: created, renamed and removed files.
    fn sync(&self) -> io::Result<()>;

    /// Bytes that the file system has left for this process.
    fn room(&self) -> io::Result<u64>;

    /// Writes a small file, syncs it and reads it back from the device: an error if the disk does not
    /// do that.
    fn probe(&self) -> io::Result<()>;
}

/// One open file. Offsets and lengths are in bytes.
///
/// All methods but [`read_now`](Self::read_now) block, and may block for as long as the disk likes.
pub trait DiskFile: Debug + Send + Sync {
    /// Fills the buffer. An error of the kind [`io::ErrorKind::UnexpectedEof`] where the file ends
    /// before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Fills the buffer if that needs no waiting for the device. `false` otherwise, and at an error.
    fn read_now(&self, buffer: &mut [u8], offset: u64) -> bool;

    /// Writes all of the bytes. They are durable after [`sync_data`](Self::sync_data); until then
    /// any part of them may be lost at a power cut.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Sets the length. What lies behind the old length reads as zeros.
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// Reserves space for a range, so that writes to it need none, and extends the file to its end.
    /// Where the file system cannot reserve, zeros are written.
    fn allocate(&self, range: Range<u64>) -> io::Result<()>;

    /// Gives the space of a range back. It reads as zeros, and the length stays. Space that cannot
    /// be given back is no error: then the bytes stay.
    fn punch(&self, range: Range<u64>) -> io::Result<()>;

    /// Makes the bytes of the file, and the length that they need, durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Starts the writing of a range to the device, without waiting for its end. Makes nothing
    /// durable.
    fn start_writeback(&self, range: Range<u64>) -> io::Result<()>;

    /// Waits until a range has been written to the device. Makes nothing durable.
    fn wait_writeback(&self, range: Range<u64>) -> io::Result<()>;

    /// The length.
    fn length(&self) -> io::Result<u64>;

    /// The space that the file takes on the disk.
    fn space(&self) -> io::Result<u64>;

    /// The descriptor, for `sendfile`; `None` where there is none.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}
