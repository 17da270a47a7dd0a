//! Calls to the kernel that the standard library of the oldest supported compiler lacks: an
//! advisory file lock, the limit of open files.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Takes an exclusive lock that ends with the file's last descriptor; `WouldBlock` when another
/// process holds it.
pub(crate) fn lock(file: &File) -> io::Result<()> {
    // SAFETY: flock takes a descriptor, which `file` keeps open over the call, and no pointer.
    let result = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// How many files this process may have open.
pub(crate) fn open_files_max() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit that outlives the call, which keeps no pointer to it.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0;
    // The least that systems give.
    if known {
        usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
    } else {
        256
    }
}
