//! System calls without a safe wrapper: TCP_INFO, a read that does not wait for the disk, the limit
//! of open files, an advisory lock of a file, and the end of reading from a connection.
//!
//! The only module of the edge with unsafe code. Each function makes one system call and checks its
//! result.
#![allow(unsafe_code)] // No dependency offers a safe wrapper of these calls.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

/// The round-trip time of a TCP connection: the smallest that the kernel has measured, else its
/// smoothed estimate.
///
/// Right after accept it is the time of the handshake, in which no process takes part.
pub(crate) fn round_trip(socket: &impl AsFd) -> Option<Duration> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the duration of the call, and pointer and length describe
    // one writable `tcp_info`, of which the kernel fills at most `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if result != 0 {
        return None;
    }
    // SAFETY: `tcp_info` is plain integers, for which all zeroes is a valid value; the kernel wrote
    // a prefix of it.
    let info = unsafe { info.assume_init() };
    let micros = match info.tcpi_min_rtt {
        0 | u32::MAX => info.tcpi_rtt,
        least => least,
    };
    (micros > 0).then(|| Duration::from_micros(u64::from(micros)))
}

/// Fills `buffer` from `offset` of a file if all of these bytes are in the page cache. `false` if
/// they are not, or at an error.
pub(crate) fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> bool {
    let vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let Ok(offset) = libc::off_t::try_from(offset) else {
        return false;
    };
    // SAFETY: the descriptor is open for the duration of the call, and the one vector describes a
    // buffer that is exclusively ours and writable for its whole length.
    let read = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            &raw const vector,
            1,
            offset,
            libc::RWF_NOWAIT,
        )
    };
    usize::try_from(read).is_ok_and(|n| n == buffer.len())
}

/// Takes an exclusive lock that ends with the file's last descriptor; `WouldBlock` when another
/// process holds it.
pub(crate) fn lock(file: &File) -> io::Result<()> {
    // SAFETY: flock takes a descriptor, which `file` keeps open over the call, and no pointer.
    let result = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many files this process may have open; 1024, the usual limit, if the system call fails.
pub(crate) fn open_files_max() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit that outlives the call, which keeps no pointer to it.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    if result == 0 {
        usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
    } else {
        1024
    }
}

/// Ends reading from a socket: its reader finds the end of the stream behind the bytes that have
/// been received. The caller knows that the socket is open; on any other file it does nothing.
pub(crate) fn end_reading(socket: RawFd) {
    // SAFETY: shutdown takes two integers and touches no memory of ours; a number that is no socket
    // is an error, which changes nothing.
    unsafe { libc::shutdown(socket, libc::SHUT_RD) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_loopback_connection_has_a_short_round_trip() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let _client = std::net::TcpStream::connect(listener.local_addr().expect("bound"))
            .expect("somebody listens");
        let (accepted, _) = listener.accept().expect("a connection waits");
        let measured = round_trip(&accepted).expect("TCP has TCP_INFO");
        assert!(measured < Duration::from_secs(1), "{measured:?}");
    }

    #[test]
    fn fresh_pages_are_read_without_waiting_and_short_files_are_not() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(b"0123456789").expect("room for ten bytes");
        let mut buffer = [0u8; 4];
        if read_cached(&file, &mut buffer, 3) {
            assert_eq!(&buffer, b"3456");
        }
        assert!(!read_cached(&file, &mut buffer, 8), "six bytes are missing");
    }
}
