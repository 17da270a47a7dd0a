//! A flood of QUIC Initial packets with false senders, for the measurements in `tests/bench` and for
//! tests. Loopback only.
//!
//! ```text
//! quic-flood --to 127.x.x.x:PORT --host NAME [--rate PACKETS_PER_SECOND (10000)] [--seconds N (3)] [--pool N (20000)]
//! ```
//!
//! Each packet is the begin of a connection as a client sends it: a ClientHello, protected with the
//! keys of its own random connection ID (RFC 9001 section 5.2), in 1200 bytes, from an address of
//! 127.0.0.0/8. No answer is read. The packets are made first, and sent again in the same order when
//! there are more to be sent than were made. It prints one line of JSON.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program of the command line"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_udp::{Transmit, UdpSocketState};
use rustls::crypto::SecureRandom;
use rustls::pki_types::ServerName;
use rustls::quic::{ClientConnection, Suite, Version};
use rustls::{RootCertStore, Side};

type Fault = Box<dyn std::error::Error>;

/// Bytes of a datagram with an Initial packet (RFC 9000 section 14.1).
const DATAGRAM_BYTES: usize = 1200;
/// Datagrams that the system takes at a time.
const BATCH: usize = 32;
const CID_BYTES: usize = 8;
const TAG_BYTES: usize = 16;
/// First byte, version, the connection IDs with their lengths, no token, and a length of two bytes.
const HEAD_BYTES: usize = 1 + 4 + 2 * (1 + CID_BYTES) + 1 + 2;
const NUMBER_BYTES: usize = 4;
/// Where the sample for header protection begins, and its bytes (RFC 9001 section 5.4.2).
const SAMPLE_AT: usize = HEAD_BYTES + 4;
const SAMPLE_BYTES: usize = 16;

struct Options {
    to: SocketAddrV4,
    host: String,
    rate: u64,
    seconds: f64,
    pool: usize,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            to: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 443),
            host: "localhost".to_owned(),
            rate: 10_000,
            seconds: 3.0,
            pool: 20_000,
        };
        while let Some(name) = words.next() {
            let value = words.next().ok_or(format!("{name} has no value"))?;
            let wrong = || format!("{name} cannot be {value}");
            match name.as_str() {
                "--to" => options.to = value.parse().map_err(|_| wrong())?,
                "--host" => options.host = value,
                "--rate" => options.rate = value.parse().map_err(|_| wrong())?,
                "--seconds" => options.seconds = value.parse().map_err(|_| wrong())?,
                "--pool" => options.pool = value.parse().map_err(|_| wrong())?,
                _ => return Err(format!("{name} is unknown")),
            }
        }
        if !options.to.ip().is_loopback() {
            return Err("--to is an address of this machine, 127.0.0.0/8".to_owned());
        }
        if options.rate == 0 || options.pool < BATCH {
            return Err(format!("--rate is at least 1, --pool at least {BATCH}"));
        }
        Ok(options)
    }
}

/// A ClientHello for a server of HTTP/3, of a client whose connection ID is `own`.
fn client_hello(host: &str, own: &[u8; CID_BYTES]) -> Result<Vec<u8>, Fault> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    // RFC 9000 section 18.2: windows of 1 MiB, 100 streams, and the connection ID. Numbers are as short
    // as they can be: quinn takes no others.
    let window = [0x80, 0x10, 0, 0];
    let values: [(u8, &[u8]); 3] = [(0x04, &window), (0x05, &window), (0x08, &[0x40, 100])];
    let mut parameters = Vec::new();
    for (id, value) in values {
        parameters.extend_from_slice(&[id, value.len() as u8]);
        parameters.extend_from_slice(value);
    }
    parameters.extend_from_slice(&[0x0f, CID_BYTES as u8]);
    parameters.extend_from_slice(own);
    let name = ServerName::try_from(host.to_owned())?;
    let mut hello = Vec::new();
    ClientConnection::new(Arc::new(tls), Version::V1, name, parameters)?.write_hs(&mut hello);
    Ok(hello)
}

/// Makes Initial packets.
struct Maker {
    suite: Suite,
    random: &'static dyn SecureRandom,
    own: [u8; CID_BYTES],
    hello: Vec<u8>,
}

impl Maker {
    fn new(host: &str) -> Result<Self, Fault> {
        let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256
            .tls13()
            .and_then(rustls::Tls13CipherSuite::quic_suite)
            .ok_or("no suite for Initial packets")?;
        let own = [0x5a; CID_BYTES];
        Ok(Self {
            suite,
            random: rustls::crypto::ring::default_provider().secure_random,
            own,
            hello: client_hello(host, &own)?,
        })
    }

    /// Appends a packet with a connection ID of its own.
    fn add(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let mut id = [0; CID_BYTES];
        self.random.fill(&mut id).map_err(|_| "no entropy")?;
        let mut packet = Vec::with_capacity(DATAGRAM_BYTES);
        // Initial, with a packet number of four bytes (RFC 9000 section 17.2.2).
        packet.extend_from_slice(&[0xc3, 0, 0, 0, 1, CID_BYTES as u8]);
        packet.extend_from_slice(&id);
        packet.push(CID_BYTES as u8);
        packet.extend_from_slice(&self.own);
        packet.push(0);
        let rest = (DATAGRAM_BYTES - HEAD_BYTES) as u16;
        packet.extend_from_slice(&(0x4000 | rest).to_be_bytes());
        packet.extend_from_slice(&[0; NUMBER_BYTES]);
        // CRYPTO at offset 0 (section 19.6), then PADDING.
        packet.extend_from_slice(&[0x06, 0]);
        packet.extend_from_slice(&(0x4000 | self.hello.len() as u16).to_be_bytes());
        packet.extend_from_slice(&self.hello);
        if packet.len() > DATAGRAM_BYTES - TAG_BYTES {
            return Err("the ClientHello does not fit".into());
        }
        packet.resize(DATAGRAM_BYTES - TAG_BYTES, 0);

        let keys = self.suite.keys(&id, Side::Client, Version::V1).local;
        let (head, payload) = packet.split_at_mut(HEAD_BYTES + NUMBER_BYTES);
        let tag = keys.packet.encrypt_in_place(0, head, payload)?;
        packet.extend_from_slice(tag.as_ref());
        let mut sample = [0; SAMPLE_BYTES];
        sample.copy_from_slice(&packet[SAMPLE_AT..SAMPLE_AT + SAMPLE_BYTES]);
        let (first, others) = packet.split_at_mut(1);
        let number = &mut others[HEAD_BYTES - 1..HEAD_BYTES - 1 + NUMBER_BYTES];
        keys.header
            .encrypt_in_place(&sample, &mut first[0], number)?;
        out.append(&mut packet);
        Ok(())
    }
}

fn run(options: &Options) -> Result<(), Fault> {
    let maker = Maker::new(&options.host)?;
    let mut pool = Vec::with_capacity(options.pool * DATAGRAM_BYTES);
    for _ in 0..options.pool {
        maker.add(&mut pool)?;
    }

    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let state = UdpSocketState::new((&socket).into())?;
    let batch = BATCH.min(state.max_gso_segments());
    let (began, length) = (Instant::now(), Duration::from_secs_f64(options.seconds));
    let (mut sent, mut failed, mut sender) = (0_u64, 0_u64, 0_u32);
    let mut batches = pool.chunks_exact(DATAGRAM_BYTES * batch).cycle();
    while began.elapsed() < length {
        let due = (began.elapsed().as_secs_f64() * options.rate as f64) as u64;
        if sent + failed >= due {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        let Some(contents) = batches.next() else {
            break;
        };
        // An odd factor walks through all of 127.0.0.0/8.
        sender = sender.wrapping_add(0x9e_3779);
        let address = Ipv4Addr::from(127 << 24 | (sender & 0xff_ffff).max(1));
        let transmit = Transmit {
            destination: SocketAddr::V4(options.to),
            ecn: None,
            contents,
            segment_size: Some(DATAGRAM_BYTES).filter(|_| batch > 1),
            src_ip: Some(IpAddr::V4(address)),
        };
        match state.try_send((&socket).into(), &transmit) {
            Ok(()) => sent += batch as u64,
            Err(_) => failed += batch as u64,
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{{\"packets\": {sent}, \"failed\": {failed}, \"seconds\": {seconds:.3}}}");
    Ok(())
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(fault) => {
            eprintln!(
                "quic-flood: {fault}; the head of testing/src/bin/quic-flood.rs has the words"
            );
            return ExitCode::from(64);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quic-flood: {error}");
            ExitCode::FAILURE
        }
    }
}
