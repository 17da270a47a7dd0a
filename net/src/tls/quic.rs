//! The handshake of one QUIC connection (RFC 9001): TLS 1.3 with the certificates of a [`Store`], as
//! over TCP, and nothing that TCP's handshakes have besides.
//!
//! The QUIC library takes its configuration before it has read the ClientHello, so each connection
//! has one of its own, which chooses the certificate when the ClientHello is read and keeps the
//! choice. It shares all else with the others: making one takes about two microseconds, whatever the
//! number of certificates.
//!
//! There is no early data (0-RTT): a copy of it could be replayed (RFC 8446 section 8).

use std::any::Any;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use quinn::crypto::{self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey};
use quinn_proto::crypto::UnsupportedVersion;
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side, TransportError, TransportErrorCode};
use rustls::quic::{KeyChange, Secrets, ServerConnection, Version};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, Error, HandshakeKind, ServerConfig};

use super::Tickets;
use super::handshake::{Refusal, refusal_of};
use super::identity::Identity;
use super::store::{NoCertificate, Store};

/// Version 1 of QUIC (RFC 9000 section 15), the only one here.
const VERSION_1: u32 = 1;
/// Session tickets that a client gets.
const TICKETS_SENT: usize = 1;

/// The server's side of the handshakes of QUIC connections.
pub struct QuicSide {
    store: Arc<Store>,
    config: ServerConfig,
    /// Keys of Initial packets and the tag of Retry packets, which depend on no certificate.
    initial: crypto::rustls::QuicServerConfig,
}

impl fmt::Debug for QuicSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicSide").finish_non_exhaustive()
    }
}

impl QuicSide {
    /// With these certificates, the session tickets of the listeners for TCP, and the protocols of
    /// ALPN, of which a client of QUIC must offer one (RFC 9001 section 8.1).
    pub fn new(store: Arc<Store>, tickets: Arc<Tickets>, alpn: Vec<Vec<u8>>) -> Self {
        let mut config = ServerConfig::builder_with_provider(super::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider supports TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(NoIdentity));
        config.alpn_protocols = alpn;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = tickets;
        config.send_tls13_tickets = TICKETS_SENT;
        config.max_early_data_size = 0;
        let initial = config
            .clone()
            .try_into()
            .expect("the provider has the suite of Initial packets");
        Self {
            store,
            config,
            initial,
        }
    }

    /// The handshake of a connection to the address `local`.
    pub fn handshake(self: &Arc<Self>, local: IpAddr) -> Arc<QuicHandshake> {
        Arc::new(QuicHandshake {
            side: self.clone(),
            local,
            chosen: Mutex::new(None),
            refusal: OnceLock::new(),
        })
    }
}

/// In place of the certificates of a connection.
#[derive(Debug)]
struct NoIdentity;

impl ResolvesServerCert for NoIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// The handshake of one connection, as the QUIC library takes it for the connection's configuration.
#[derive(Debug)]
pub struct QuicHandshake {
    side: Arc<QuicSide>,
    local: IpAddr,
    /// The newest choice: a client may be asked for another ClientHello.
    chosen: Mutex<Option<Result<Arc<Identity>, NoCertificate>>>,
    refusal: OnceLock<Refusal>,
}

impl QuicHandshake {
    /// Why TLS ended the handshake; `None` where it did not.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refusal.get().copied()
    }

    fn initial_keys_of(&self, version: u32, id: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        crypto::ServerConfig::initial_keys(&self.side.initial, version, id)
    }
}

impl ResolvesServerCert for QuicHandshake {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let chosen = self.side.store.choose(&hello, self.local);
        let chosen = chosen.map(|shown| shown.identity);
        let certified = chosen.as_ref().ok().map(|found| found.certified.clone());
        *self.chosen.lock() = Some(chosen);
        certified
    }
}

impl crypto::ServerConfig for QuicHandshake {
    fn initial_keys(&self, version: u32, id: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.initial_keys_of(version, id)
    }

    fn retry_tag(&self, version: u32, original: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        crypto::ServerConfig::retry_tag(&self.side.initial, version, original, packet)
    }

    fn start_session(
        self: Arc<Self>,
        _version: u32,
        parameters: &TransportParameters,
    ) -> Box<dyn crypto::Session> {
        let mut own = Vec::new();
        parameters.write(&mut own);
        let mut config = self.side.config.clone();
        config.cert_resolver = self.clone();
        let connection = ServerConnection::new(Arc::new(config), Version::V1, own)
            .expect("the configuration has TLS 1.3, suites for QUIC and no early data");
        Box::new(Session {
            connection,
            handshake: self,
            has_data: false,
            next: None,
        })
    }
}

/// What is known of a connection's TLS after its handshake:
/// [`quinn::Connection::handshake_data`] gives it.
#[derive(Debug, Clone)]
pub struct QuicSession {
    /// The host that the client named, in lower case.
    pub server_name: Option<Box<str>>,
    /// The certificate that the client was shown, now or in the session that it resumed.
    pub identity: Arc<Identity>,
    /// Whether a ticket resumed a session.
    pub is_resumed: bool,
}

/// TLS of one connection.
struct Session {
    connection: ServerConnection,
    handshake: Arc<QuicHandshake>,
    has_data: bool,
    next: Option<Secrets>,
}

impl Session {
    fn note(&self, error: &Error) -> TransportError {
        let missing = match *self.handshake.chosen.lock() {
            Some(Err(why)) => Some(why),
            _ => None,
        };
        let (refusal, alert) = match missing {
            Some(NoCertificate::NoName) => {
                (Refusal::NoName, Some(AlertDescription::UnrecognisedName))
            }
            Some(NoCertificate::UnknownName) => (
                Refusal::UnknownName,
                Some(AlertDescription::UnrecognisedName),
            ),
            None => {
                let error = io::Error::new(io::ErrorKind::InvalidData, error.clone());
                (refusal_of(&error), self.connection.alert())
            }
        };
        let _ = self.handshake.refusal.set(refusal);
        TransportError {
            code: alert.map_or(TransportErrorCode::PROTOCOL_VIOLATION, |alert| {
                TransportErrorCode::crypto(alert.into())
            }),
            frame: None,
            reason: refusal.label().to_owned(),
        }
    }
}

fn library_keys(keys: rustls::quic::Keys) -> Keys {
    Keys {
        header: KeyPair {
            local: Box::new(keys.local.header),
            remote: Box::new(keys.remote.header),
        },
        packet: KeyPair {
            local: Box::new(keys.local.packet),
            remote: Box::new(keys.remote.packet),
        },
    }
}

impl crypto::Session for Session {
    fn initial_keys(&self, id: &ConnectionId, _: Side) -> Keys {
        let keys = self.handshake.initial_keys_of(VERSION_1, id);
        keys.unwrap_or_else(|_| unreachable!("the version is supported"))
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        let chosen = self.handshake.chosen.lock();
        let identity = chosen.as_ref()?.as_ref().ok()?.clone();
        Some(Box::new(QuicSession {
            server_name: self.connection.server_name().map(Into::into),
            identity,
            is_resumed: self.connection.handshake_kind() == Some(HandshakeKind::Resumed),
        }))
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        let read = self.connection.read_hs(bytes);
        read.map_err(|error| self.note(&error))?;
        let is_new = !self.has_data && !self.connection.is_handshaking();
        self.has_data |= is_new;
        Ok(is_new)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Some(mut bytes) = self.connection.quic_transport_parameters() else {
            return Ok(None);
        };
        Ok(Some(TransportParameters::read(Side::Server, &mut bytes)?))
    }

    fn write_handshake(&mut self, bytes: &mut Vec<u8>) -> Option<Keys> {
        let keys = match self.connection.write_hs(bytes)? {
            KeyChange::Handshake { keys } => keys,
            KeyChange::OneRtt { keys, next } => {
                self.next = Some(next);
                keys
            }
        };
        Some(library_keys(keys))
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.next.as_mut()?.next_packet_keys();
        Some(KeyPair {
            local: Box::new(keys.local),
            remote: Box::new(keys.remote),
        })
    }

    fn is_valid_retry(&self, _: &ConnectionId, _: &[u8], _: &[u8]) -> bool {
        // Only clients receive Retry packets.
        false
    }

    fn export_keying_material(
        &self,
        _: &mut [u8],
        _: &[u8],
        _: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        // Nothing here asks for it.
        Err(ExportKeyingMaterialError)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::path::Path;

    use quinn::crypto::ServerConfig as _;
    use rustls::client::Resumption;
    use rustls::pki_types::ServerName;
    use rustls::quic::ClientConnection;
    use rustls::{ClientConfig, RootCertStore};

    use super::super::{ClientRoots, PairFiles, ServerOptions, client_config};
    use super::*;

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn make(directory: &Path, host: &str) -> PairFiles {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new([host.to_owned()]).expect("a name");
        let cert = params.self_signed(&key).expect("a certificate");
        let pair = PairFiles {
            cert: directory.join(format!("{host}.pem")),
            key: directory.join(format!("{host}.key")),
        };
        std::fs::write(&pair.cert, cert.pem()).expect("written");
        std::fs::write(&pair.key, key.serialize_pem()).expect("written");
        pair
    }

    fn options(tickets: &Arc<Tickets>, default_host: Option<&str>) -> ServerOptions {
        ServerOptions {
            default_host: default_host.map(str::to_owned),
            allows_1_2: true,
            alpn: vec![b"h2".to_vec()],
            tickets: Some(tickets.clone()),
        }
    }

    fn side(files: Vec<PairFiles>, default_host: Option<&str>) -> Arc<QuicSide> {
        let tickets = Arc::default();
        let (store, _) = Store::open(files, options(&tickets, default_host));
        let alpn = vec![b"h3".to_vec()];
        Arc::new(QuicSide::new(Arc::new(store), tickets, alpn))
    }

    fn client(files: &[&PairFiles], alpn: &str) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for pair in files {
            let found = ClientRoots::load(Some(&pair.cert)).expect("a root").roots;
            roots.roots.extend(found);
        }
        let mut client = client_config(roots, None).expect("no identity");
        client.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        client.resumption = Resumption::in_memory_sessions(8);
        Arc::new(client)
    }

    fn parameters() -> TransportParameters {
        TransportParameters::read(Side::Server, &mut &[][..]).expect("none is needed")
    }

    /// All that a side has to say; `write` gives whether the keys change after it.
    fn pieces(mut write: impl FnMut(&mut Vec<u8>) -> bool) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        loop {
            let mut piece = Vec::new();
            let is_change = write(&mut piece);
            if piece.is_empty() && !is_change {
                return pieces;
            }
            if !piece.is_empty() {
                pieces.push(piece);
            }
        }
    }

    /// One handshake in memory, for as long as either side has something to say.
    fn shake(
        side: &Arc<QuicSide>,
        client: &Arc<ClientConfig>,
        name: &str,
    ) -> (Arc<QuicHandshake>, Result<QuicSession, TransportError>) {
        let handshake = side.handshake(LOCAL);
        let name = match name.parse::<IpAddr>() {
            Ok(address) => ServerName::IpAddress(address.into()),
            Err(_) => ServerName::try_from(name.to_owned()).expect("a name"),
        };
        let mut client = ClientConnection::new(client.clone(), Version::V1, name, Vec::new())
            .expect("the configuration fits");
        let mut server = handshake.clone().start_session(VERSION_1, &parameters());
        loop {
            // What belongs to different keys comes in different pieces.
            let to_server = pieces(|piece| client.write_hs(piece).is_some());
            for piece in &to_server {
                if let Err(error) = server.read_handshake(piece) {
                    return (handshake, Err(error));
                }
            }
            let to_client = pieces(|piece| server.write_handshake(piece).is_some());
            for piece in &to_client {
                client.read_hs(piece).expect("the client agrees");
            }
            if to_server.is_empty() && to_client.is_empty() {
                break;
            }
        }
        assert!(!server.is_handshaking() && !client.is_handshaking());
        assert!(
            server
                .transport_parameters()
                .is_ok_and(|found| found.is_some())
        );
        let data = server.handshake_data().expect("complete");
        let session = data.downcast::<QuicSession>().expect("of this module");
        (handshake, Ok(*session))
    }

    #[test]
    fn each_connection_knows_the_certificate_that_it_was_shown() {
        let directory = tempfile::tempdir().expect("a directory");
        let [a, b] = ["a.test", "b.test"].map(|host| make(directory.path(), host));
        let side = side(vec![a.clone(), b.clone()], None);
        let client = client(&[&a, &b], "h3");
        for (host, other) in [("a.test", "b.test"), ("b.test", "a.test")] {
            for is_resumed in [false, true] {
                let (handshake, session) = shake(&side, &client, host);
                let session = session.expect("shaken");
                assert_eq!(session.server_name.as_deref(), Some(host));
                assert!(session.identity.covers(host) && !session.identity.covers(other));
                assert_eq!(session.is_resumed, is_resumed, "{host}");
                assert_eq!(handshake.refusal(), None);
            }
        }
    }

    #[test]
    fn a_changed_certificate_is_shown_to_the_next_connection() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = make(directory.path(), "a.test");
        let side = side(vec![first.clone()], None);
        let (_, before) = shake(&side, &client(&[&first], "h3"), "a.test");
        let second = make(directory.path(), "a.test");
        assert_eq!(side.store.check(true).len(), 1);
        let (_, after) = shake(&side, &client(&[&second], "h3"), "a.test");
        let [before, after] = [before, after].map(|session| session.expect("shaken").identity);
        assert!(!Arc::ptr_eq(&before, &after));
    }

    #[test]
    fn a_refused_client_gets_the_alert_that_tells_why() {
        let directory = tempfile::tempdir().expect("a directory");
        let pair = make(directory.path(), "a.test");
        let unrecognised = AlertDescription::UnrecognisedName;
        let no_protocol = AlertDescription::NoApplicationProtocol;
        // Name (an address is none in TLS), protocol, default host; refusal and alert.
        let table = [
            ("b.test", "h3", None, Refusal::UnknownName, unrecognised),
            (
                "b.test",
                "h3",
                Some("a.test"),
                Refusal::UnknownName,
                unrecognised,
            ),
            ("192.0.2.1", "h3", None, Refusal::NoName, unrecognised),
            ("a.test", "h2", None, Refusal::NoProtocol, no_protocol),
        ];
        for (name, alpn, default_host, refusal, alert) in table {
            let side = side(vec![pair.clone()], default_host);
            let (handshake, session) = shake(&side, &client(&[&pair], alpn), name);
            let error = session.expect_err(name);
            assert_eq!(handshake.refusal(), Some(refusal), "{name} {alpn}");
            assert_eq!(
                error.code,
                TransportErrorCode::crypto(alert.into()),
                "{name}"
            );
        }
    }

    #[test]
    fn what_is_no_handshake_is_junk() {
        let directory = tempfile::tempdir().expect("a directory");
        let side = side(vec![make(directory.path(), "a.test")], None);
        for junk in [&[0xff; 100][..], &[1, 0, 0, 2, 0, 0], &[2, 0, 0, 0]] {
            let handshake = side.handshake(LOCAL);
            let mut server = handshake.clone().start_session(VERSION_1, &parameters());
            assert!(server.read_handshake(junk).is_err(), "{junk:?}");
            assert_eq!(handshake.refusal(), Some(Refusal::Junk), "{junk:?}");
        }
    }
}
