//! Batched UDP: many datagrams a system call, answered from the address they were sent to.
//!
//! The only module of this crate with unsafe code. Knows sockets and buffers, and the longest
//! query.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;

use crate::message::QUERY_BYTES_MAX;

/// Datagrams a system call.
pub(crate) const BATCH: usize = 64;
/// Bytes read of a datagram: enough to see that it is too long for a query.
const DATAGRAM_BYTES_MAX: usize = QUERY_BYTES_MAX + 1;
/// Words of ancillary data a datagram: room for one packet-information message of either family.
const CONTROL_WORDS: usize = 8;

/// Buffers of one worker, made once.
pub(crate) struct Batch {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<[u64; CONTROL_WORDS]>,
    input: Vec<u8>,
    /// Headers that the kernel has written to since they were last reset.
    used: usize,
    /// Headers for sending, reused.
    outgoing: Vec<libc::mmsghdr>,
    outgoing_vectors: Vec<libc::iovec>,
}

/// An answer: which datagram it answers, and where it is in the output buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reply {
    /// Index of the datagram in the batch.
    pub(crate) to: usize,
    /// First byte.
    pub(crate) start: usize,
    /// Byte after the last.
    pub(crate) end: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// New buffers.
    pub(crate) fn new() -> Self {
        // SAFETY: these are plain C structures for which all zeros is a valid value.
        let (header, name): (libc::mmsghdr, libc::sockaddr_storage) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        let vector = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let mut batch = Self {
            headers: vec![header; BATCH],
            vectors: vec![vector; BATCH],
            names: vec![name; BATCH],
            controls: vec![[0; CONTROL_WORDS]; BATCH],
            input: vec![0; BATCH * DATAGRAM_BYTES_MAX],
            used: BATCH,
            outgoing: vec![header; BATCH],
            outgoing_vectors: vec![vector; BATCH],
        };

        // None of the vectors ever grows, so these pointers stay valid as long as the batch lives,
        // even when it is moved.
        for (i, chunk) in batch.input.chunks_exact_mut(DATAGRAM_BYTES_MAX).enumerate() {
            batch.vectors[i] = libc::iovec {
                iov_base: chunk.as_mut_ptr().cast(),
                iov_len: DATAGRAM_BYTES_MAX,
            };
            let header = &mut batch.headers[i].msg_hdr;
            header.msg_name = (&raw mut batch.names[i]).cast();
            header.msg_iov = &raw mut batch.vectors[i];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut batch.controls[i]).cast();
        }

        batch
    }

    /// Waits for one datagram (or the socket's read time-out) and takes all that have arrived.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        for header in &mut self.headers[..self.used] {
            header.msg_hdr.msg_namelen =
                mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_controllen = mem::size_of::<[u64; CONTROL_WORDS]>() as _;
            header.msg_hdr.msg_flags = 0;
        }

        self.used = 0;
        // SAFETY: every header points at a name, one vector and ancillary data of the lengths it
        // states, all owned by `self` and not moved or read elsewhere during the call; the count is
        // the length of `headers`.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_WAITFORONE as _,
                std::ptr::null_mut(),
            )
        };

        match usize::try_from(got) {
            Ok(count) => {
                // The kernel may have written to the one after the last, on which it failed.
                self.used = (count + 1).min(BATCH);
                Ok(count)
            }
            Err(_) => {
                self.used = 1;
                Err(io::Error::last_os_error())
            }
        }
    }

    /// The `i`-th datagram received and its sender; `None` when the sender cannot be answered.
    pub(crate) fn datagram(&self, i: usize) -> Option<(SocketAddr, &[u8])> {
        let header = self.headers.get(i)?;
        let from = socket_address(&self.names[i])?;
        let bytes = self.input[i * DATAGRAM_BYTES_MAX..(i + 1) * DATAGRAM_BYTES_MAX]
            .get(..header.msg_len as usize)?;
        Some((from, bytes))
    }

    /// Sends answers to datagrams of the last batch. An answer that cannot be sent is dropped: its
    /// client retries.
    pub(crate) fn send(
        &mut self,
        socket: &UdpSocket,
        output: &[u8],
        replies: &[Reply],
    ) -> io::Result<()> {
        let replies = &replies[..replies.len().min(BATCH)];
        for (k, reply) in replies.iter().enumerate() {
            let bytes = output.get(reply.start..reply.end).unwrap_or_default();
            self.outgoing_vectors[k] = libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            };
            let source = self.source_control(reply.to);
            let received = &self.headers[reply.to].msg_hdr;
            let header = &mut self.outgoing[k].msg_hdr;
            header.msg_name = received.msg_name;
            header.msg_namelen = received.msg_namelen;
            header.msg_iov = &raw mut self.outgoing_vectors[k];
            header.msg_iovlen = 1;
            header.msg_control = if source == 0 {
                std::ptr::null_mut()
            } else {
                received.msg_control
            };
            header.msg_controllen = source as _;
            header.msg_flags = 0;
        }

        let mut sent = 0;
        let mut result = Ok(());
        while sent < replies.len() {
            // SAFETY: as in `receive`; the vectors point into `output`, which outlives the call and
            // is only read.
            let n = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    self.outgoing.as_mut_ptr().add(sent),
                    (replies.len() - sent) as u32,
                    0,
                )
            };
            match usize::try_from(n) {
                Ok(n) => sent += n.max(1),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        // The error belongs to the first answer that was not sent.
                        sent += 1;
                        result = Err(error);
                    }
                }
            }
        }

        result
    }

    /// Turns the packet information received with a datagram into the one that sends from the
    /// address the datagram was sent to; gives its length, 0 when there is none (a socket bound to
    /// one address needs none).
    fn source_control(&mut self, i: usize) -> usize {
        let header = &self.headers[i].msg_hdr;
        if header.msg_controllen == 0 {
            return 0;
        }
        // SAFETY: `msg_control` points at this batch's ancillary data, of which the kernel has
        // filled `msg_controllen` bytes; the CMSG functions stay inside it, and the data of each
        // message is of the type its level and type say.
        unsafe {
            let mut message = libc::CMSG_FIRSTHDR(header);
            while !message.is_null() {
                match ((*message).cmsg_level, (*message).cmsg_type) {
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        let data = libc::CMSG_DATA(message).cast::<libc::in_pktinfo>();
                        let mut info = data.read_unaligned();
                        // Routing decides the interface; the address queried becomes the source.
                        info.ipi_ifindex = 0;
                        data.write_unaligned(info);
                        return header.msg_controllen;
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        let data = libc::CMSG_DATA(message).cast::<libc::in6_pktinfo>();
                        let mut info = data.read_unaligned();
                        if !Ipv6Addr::from(info.ipi6_addr.s6_addr).is_unicast_link_local() {
                            info.ipi6_ifindex = 0;
                        }
                        data.write_unaligned(info);
                        return header.msg_controllen;
                    }
                    _ => message = libc::CMSG_NXTHDR(header, message),
                }
            }
        }

        0
    }
}

/// An address that the kernel filled in; `None` for port 0, which cannot be answered.
fn socket_address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let address = match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which structure the storage holds, and the storage is large
            // and aligned enough.
            let a = unsafe { &*std::ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            SocketAddr::V4(SocketAddrV4::new(
                Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr)),
                u16::from_be(a.sin_port),
            ))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let a = unsafe { &*std::ptr::from_ref(name).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(a.sin6_addr.s6_addr);
            SocketAddr::V6(SocketAddrV6::new(
                ip,
                u16::from_be(a.sin6_port),
                a.sin6_flowinfo,
                a.sin6_scope_id,
            ))
        }
        _ => return None,
    };
    (address.port() != 0).then_some(address)
}

/// Requests packet information when the socket is bound to all addresses, and turns off path MTU
/// discovery, which an attacker can feed (RFC 9715 section 3.1).
pub(crate) fn prepare(socket: &UdpSocket, address: SocketAddr) -> io::Result<()> {
    let (level, discover, omit, info) = if address.is_ipv4() {
        (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_OMIT,
            libc::IP_PKTINFO,
        )
    } else {
        (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_OMIT,
            libc::IPV6_RECVPKTINFO,
        )
    };
    set(socket, level, discover, omit)?;
    if address.ip().is_unspecified() {
        set(socket, level, info, 1)
    } else {
        Ok(())
    }
}

fn set(
    socket: &UdpSocket,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the value pointer and its length describe one C int that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&value).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(socket: &UdpSocket, level: libc::c_int, option: libc::c_int) -> libc::c_int {
        let mut value: libc::c_int = -1;
        let mut len = mem::size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the value and its length are one C int that lives through the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                level,
                option,
                (&raw mut value).cast(),
                &raw mut len,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        value
    }

    /// RFC 9715 section 3.1, and RFC 5452 section 9.1 for sockets that are bound to all addresses.
    #[test]
    fn answers_do_not_follow_a_forged_path_mtu_and_come_from_the_address_asked() {
        for (address, is_wild) in [
            ("127.0.0.1:0", false),
            ("0.0.0.0:0", true),
            ("[::1]:0", false),
            ("[::]:0", true),
        ] {
            let address: SocketAddr = address.parse().expect("an address");
            let socket = UdpSocket::bind(address).expect("a free port");
            prepare(&socket, address).expect("the options are known");
            let (level, discover, omit, info) = match address {
                SocketAddr::V4(_) => (
                    libc::IPPROTO_IP,
                    libc::IP_MTU_DISCOVER,
                    libc::IP_PMTUDISC_OMIT,
                    libc::IP_PKTINFO,
                ),
                SocketAddr::V6(_) => (
                    libc::IPPROTO_IPV6,
                    libc::IPV6_MTU_DISCOVER,
                    libc::IPV6_PMTUDISC_OMIT,
                    libc::IPV6_RECVPKTINFO,
                ),
            };
            assert_eq!(get(&socket, level, discover), omit, "{address}");
            assert_eq!(get(&socket, level, info) != 0, is_wild, "{address}");
        }
    }
}
