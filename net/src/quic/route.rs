//! Which socket gets a packet: a program in classic BPF that the kernel runs for each one.
//!
//! Each worker has two sockets. Those numbered from 0 get what may begin a connection: Initial and
//! 0-RTT packets, packets of other versions, and what is too short to be one. Those numbered from
//! the number of workers on get the packets of open connections: short headers, and long headers of
//! the other types (RFC 9000 section 17.2). A worker's number is the first byte of the destination
//! connection ID, modulo the number of workers. That holds for the random IDs that clients choose
//! too; the worker that such a packet reached answers with an ID of its own number.

use libc::sock_filter;

/// Offsets in a packet with a long header (RFC 8999 section 5.1).
const VERSION: u32 = 1;
const LONG_ID: u32 = 6;
/// Offset of the connection ID in a packet with a short header.
const SHORT_ID: u32 = 1;
/// Bits of the first byte: of a long header, and of its type.
const IS_LONG: u32 = 0x80;
const TYPE: u32 = 0x30;
/// Handshake and Retry are from this type on.
const HANDSHAKE: u32 = 0x20;
const VERSION_1: u32 = 1;

const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;

/// The program for so many workers, of which there is at least one. A packet that is too short for
/// an instruction gets 0, as the kernel has it.
pub(super) fn program(workers: u32) -> Vec<sock_filter> {
    let workers = workers.max(1);
    let modulo = |value| statement(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, value);
    let add = |value| statement(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K, value);
    let and = |value| statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, value);
    let answer = || statement(libc::BPF_RET | libc::BPF_A, 0);
    vec![
        statement(LOAD_BYTE, 0),
        jump(libc::BPF_JSET, IS_LONG, 4, 0),
        // A short header.
        statement(LOAD_BYTE, SHORT_ID),
        modulo(workers),
        add(workers),
        answer(),
        // A long header.
        and(TYPE),
        jump(libc::BPF_JGE, HANDSHAKE, 0, 6),
        statement(LOAD_WORD, VERSION),
        jump(libc::BPF_JEQ, VERSION_1, 0, 4),
        statement(LOAD_BYTE, LONG_ID),
        modulo(workers),
        add(workers),
        answer(),
        // What may begin a connection.
        statement(LOAD_BYTE, LONG_ID),
        modulo(workers),
        answer(),
    ]
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Skips `if_true` instructions where the comparison with `k` holds, else `if_false`.
fn jump(comparison: u32, k: u32, if_true: u8, if_false: u8) -> sock_filter {
    sock_filter {
        code: (libc::BPF_JMP | comparison | libc::BPF_K) as u16,
        jt: if_true,
        jf: if_false,
        k,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};

    use super::super::kernel;

    /// Sockets of one address in the order in which they were bound.
    fn sockets(count: usize) -> Vec<UdpSocket> {
        let bind = |address: SocketAddr| {
            let socket = socket2::Socket::new(
                socket2::Domain::for_address(address),
                socket2::Type::DGRAM,
                None,
            )?;
            socket.set_reuse_port(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            Ok::<UdpSocket, std::io::Error>(socket.into())
        };
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let address = first.local_addr().expect("bound");
        let mut sockets = vec![first];
        for _ in 1..count {
            sockets.push(bind(address).expect("the port is shared"));
        }
        sockets
    }

    fn long(first: u8, version: u32, id: &[u8]) -> Vec<u8> {
        let mut packet = vec![first];
        packet.extend_from_slice(&version.to_be_bytes());
        packet.push(id.len() as u8);
        packet.extend_from_slice(id);
        packet.extend_from_slice(&[0; 40]);
        packet
    }

    #[test]
    fn each_kind_of_packet_reaches_its_socket_of_the_worker_that_its_id_names() {
        let client = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        for workers in 1..=8u8 {
            let sockets = sockets(2 * usize::from(workers));
            kernel::attach(&sockets[0], &super::program(workers.into())).expect("attached");
            let address = sockets[0].local_addr().expect("bound");
            let reached = |packet: &[u8]| {
                client.send_to(packet, address).expect("sent");
                let mut found = Vec::new();
                for (number, socket) in sockets.iter().enumerate() {
                    while let Ok(length) = socket.recv(&mut [0; 100]) {
                        assert_eq!(length, packet.len());
                        found.push(number);
                    }
                }
                assert_eq!(found.len(), 1, "{packet:?}");
                found[0]
            };
            for byte in 0..=255u8 {
                let id = [byte, 1, 2, 3, 4, 5, 6, 7];
                let own = usize::from(byte % workers);
                let open = usize::from(workers) + own;
                let short = |first: u8| [&[first][..], &id, &[0; 20]].concat();
                let table = [
                    ("a short header", short(0x40), open),
                    ("without the fixed bit", short(0x3f), open),
                    ("all of its bits", short(0x7f), open),
                    ("Initial", long(0xc3, 1, &id), own),
                    ("0-RTT", long(0xd3, 1, &id), own),
                    ("Handshake", long(0xe3, 1, &id), open),
                    ("Retry", long(0xff, 1, &id), open),
                    ("without the fixed bit", long(0xa0, 1, &id), open),
                    ("another version", long(0xe3, 0x6b33_43cf, &id), own),
                    ("version negotiation", long(0xe3, 0, &id), own),
                ];
                for (kind, packet, expected) in table {
                    assert_eq!(reached(&packet), expected, "{kind} {byte} of {workers}");
                }
            }
            for short in [&[][..], &[0x40], &[0xe0, 0, 0, 0], &[0xe0, 0, 0, 0, 1, 8]] {
                assert_eq!(reached(short), 0, "{short:?} of {workers}");
            }
        }
    }
}
