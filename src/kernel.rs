//! The few calls to the kernel that the standard library does not make.

#![allow(unsafe_code, reason = "system calls that neither std nor tokio offers")]

use std::fs::File;
use std::os::fd::AsRawFd as _;

/// The effective user.
pub(crate) fn user_id() -> u32 {
    // SAFETY: geteuid takes nothing, touches no memory of ours and cannot fail.
    unsafe { libc::geteuid() }
}

/// Takes an exclusive advisory lock on an open file without waiting; false when another open file holds it. The lock
/// ends with the file, also when the process is killed.
pub(crate) fn try_lock(file: &File) -> std::io::Result<bool> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; flock reads and writes no memory of ours.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    let error = std::io::Error::last_os_error();
    if error.kind() == std::io::ErrorKind::WouldBlock { Ok(false) } else { Err(error) }
}

/// Raises the number of files this process may have open to what the system allows it. An edge has one for each
/// connection.
pub(crate) fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that outlives both calls; they keep no pointer to it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            // A refusal leaves the lower limit, with which the node works too.
            let _ = libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
