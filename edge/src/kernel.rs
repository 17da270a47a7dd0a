//! System calls without a safe wrapper, and one of the C library: accepting, TCP_INFO, the limit
//! of open files, an advisory lock of a file, and the end of reading from a connection.
//!
//! The only module of the edge with unsafe code. Each function makes one call and checks its result.
#![allow(unsafe_code)] // No dependency offers a safe wrapper of these calls.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use socket2::SockAddr;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A listener whose connections the runtime waits for, and [`accept`] takes.
pub(crate) fn wait_at(listener: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
    // SAFETY: a `TcpListener` owns its descriptor and always gives the same one.
    let registered = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
    Ok(registered?)
}

/// The next connection that waits at a listener, without waiting for one. It does not block either,
/// with no system call of its own for that.
pub(crate) fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let accept = |address: *mut socket2::SockAddrStorage, length: *mut libc::socklen_t| {
        // SAFETY: the descriptor is open for the duration of the call; `address` and `length` are
        // valid for writes, and the kernel writes no more than the `length` it is given.
        let file = unsafe { libc::accept4(listener.as_raw_fd(), address.cast(), length, flags) };
        match file {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the kernel has opened the descriptor for this call, so nothing else owns it.
            file => Ok(unsafe { OwnedFd::from_raw_fd(file) }),
        }
    };
    // SAFETY: after a success the storage has an address of the length that the kernel wrote.
    let (stream, address) = unsafe { SockAddr::try_init(accept) }?;
    let address = address
        .as_socket()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok((stream.into(), address))
}

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

/// Has the allocator give the pages of its heap back in which nothing lies.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer and touches only memory that the allocator holds as free, under the
    // allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_connection_has_a_short_round_trip() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let _client = std::net::TcpStream::connect(listener.local_addr().expect("bound"))
            .expect("somebody listens");
        let (accepted, _) = listener.accept().expect("a connection waits");
        let measured = round_trip(&accepted).expect("TCP has TCP_INFO");
        assert!(measured < Duration::from_secs(1), "{measured:?}");
    }
}
