//! System calls without a safe wrapper: the program that distributes the packets of sockets with one
//! address, and generic receive offload.
#![allow(unsafe_code)] // No dependency offers a safe wrapper of these calls.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `UDP_GRO` of linux/udp.h, which libc has for some systems only.
const UDP_GRO: libc::c_int = 104;

/// Attaches a classic BPF program to the group of sockets that share the address of `socket`
/// (SO_REUSEPORT). For each packet it gives the number of the socket that gets it, in the order in
/// which they were bound.
///
/// # Errors
/// The system's: no such option, a program that the kernel refuses.
pub(super) fn attach(socket: &impl AsFd, program: &[libc::sock_filter]) -> io::Result<()> {
    let length = libc::c_ushort::try_from(program.len())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut(),
    };
    set(
        socket,
        libc::SOL_SOCKET,
        libc::SO_ATTACH_REUSEPORT_CBPF,
        &program,
    )
}

/// Has each datagram delivered by itself. By default the sockets of the QUIC library get a flow's
/// datagrams joined.
pub(super) fn end_joined_delivery(socket: &impl AsFd) -> io::Result<()> {
    let off: libc::c_int = 0;
    set(socket, libc::SOL_UDP, UDP_GRO, &off)
}

fn set<T>(
    socket: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the descriptor is open for the duration of the call; pointer and length describe one
    // value that outlives the call, which only reads it. The one pointer within such a value, that
    // of a program, is to a slice that the caller borrows, and the kernel copies it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
