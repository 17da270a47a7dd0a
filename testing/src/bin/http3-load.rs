//! A load of HTTP/3, for the measurements in `tests/bench`.
//!
//! ```text
//! http3-load requests   --to ADDR:PORT --host NAME [options]  as many requests as are answered
//! http3-load handshakes --to ADDR:PORT --host NAME [options]  connections, one after another on each of --connections
//! http3-load steady     --to ADDR:PORT --host NAME [options]  a request every 10 ms on each of --connections
//!
//! A # in NAME stands for a number below 1000, another one for each connection.
//!
//! --path PATH (/)  --connections N (16)  --streams N (1)  --seconds N (3)
//! --ca FILE        certificates that the server's is verified with (PEM); without it, it is not
//! --resume         handshakes: resume the session of the connection before
//! ```
//!
//! It prints one line of JSON: `requests` (or handshakes), `bytes` of bodies, `errors`, `full` (handshakes in
//! which the server showed a certificate), `seconds`, and the latencies `p50_us`, `p99_us` and `max_us`. It has
//! one thread.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program of the command line"
)]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use h3::client::SendRequest;
use h3_quinn::OpenStreams;
use http::Request;
use parking_lot::Mutex;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Endpoint, TransportConfig, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
    WebPkiServerVerifier,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, NamedGroup, RootCertStore, SignatureScheme};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Pause between two requests of a connection of `steady`.
const STEADY_PAUSE: Duration = Duration::from_millis(10);
/// How long the server's session ticket may take after a handshake.
const TICKET_MAX: Duration = Duration::from_secs(5);
/// Bytes of a response on its way, of one and of all of a connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Hosts that a # in their name stands for.
const HOSTS: u64 = 1000;

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// What the command line says.
#[derive(Debug, Clone)]
struct Options {
    mode: String,
    to: SocketAddr,
    host: String,
    path: String,
    connections: usize,
    streams: usize,
    seconds: f64,
    ca: Option<String>,
    resumes: bool,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mode = words.next().unwrap_or_default();
        if !["requests", "handshakes", "steady"].contains(&mode.as_str()) {
            return Err("the first word is requests, handshakes or steady".to_owned());
        }
        let mut options = Self {
            mode,
            to: (Ipv4Addr::LOCALHOST, 443).into(),
            host: "localhost".to_owned(),
            path: "/".to_owned(),
            connections: 16,
            streams: 1,
            seconds: 3.0,
            ca: None,
            resumes: false,
        };
        while let Some(name) = words.next() {
            if name == "--resume" {
                options.resumes = true;
                continue;
            }
            let value = words.next().ok_or(format!("{name} has no value"))?;
            let wrong = || format!("{name} cannot be {value}");
            match name.as_str() {
                "--to" => options.to = value.parse().map_err(|_| wrong())?,
                "--host" => options.host = value,
                "--path" => options.path = value,
                "--connections" => options.connections = value.parse().map_err(|_| wrong())?,
                "--streams" => options.streams = value.parse().map_err(|_| wrong())?,
                "--seconds" => options.seconds = value.parse().map_err(|_| wrong())?,
                "--ca" => options.ca = Some(value),
                _ => return Err(format!("{name} is unknown")),
            }
        }
        Ok(options)
    }

    /// The host of the connection with this number.
    fn host(&self, connection: u64) -> String {
        self.host.replace('#', &(connection % HOSTS).to_string())
    }

    fn end(&self) -> Instant {
        Instant::now() + Duration::from_secs_f64(self.seconds)
    }

    fn request(&self, connection: u64) -> Result<Request<()>, http::Error> {
        Request::get(format!("https://{}{}", self.host(connection), self.path)).body(())
    }
}

/// What was measured.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    first_error: Mutex<Option<String>>,
    latencies_us: Mutex<Vec<u32>>,
}

impl Counts {
    fn add(&self, bytes: u64, latencies_us: &mut Vec<u32>, began: Instant) {
        self.requests.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        latencies_us.push(began.elapsed().as_micros().try_into().unwrap_or(u32::MAX));
    }

    fn fail(&self, error: &impl std::fmt::Display) {
        self.errors.fetch_add(1, Relaxed);
        self.first_error
            .lock()
            .get_or_insert_with(|| error.to_string());
    }

    fn print(&self, full: u64, seconds: f64) {
        let mut latencies = std::mem::take(&mut *self.latencies_us.lock());
        latencies.sort_unstable();
        let at = |share: f64| {
            let index = (latencies.len() as f64 * share) as usize;
            latencies
                .get(index)
                .or(latencies.last())
                .copied()
                .unwrap_or(0)
        };
        println!(
            "{{\"requests\": {}, \"bytes\": {}, \"errors\": {}, \"full\": {full}, \"seconds\": {seconds:.3}, \
             \"p50_us\": {}, \"p99_us\": {}, \"max_us\": {}}}",
            self.requests.load(Relaxed),
            self.bytes.load(Relaxed),
            self.errors.load(Relaxed),
            at(0.5),
            at(0.99),
            at(1.0)
        );
        if let Some(error) = &*self.first_error.lock() {
            eprintln!("http3-load: the first error: {error}");
        }
    }
}

/// Verifies the server's certificate if it is to be verified, and counts how often one was shown.
#[derive(Debug)]
struct Verifier {
    authorities: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
    shown: AtomicU64,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.shown.fetch_add(1, Relaxed);
        match &self.authorities {
            Some(known) => known.verify_server_cert(certificate, others, name, ocsp, now),
            None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC has TLS 1.3".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match &self.authorities {
            Some(known) => known.verify_tls13_signature(message, certificate, signed),
            // The load's own work is no part of the figure.
            None => Ok(HandshakeSignatureValid::assertion()),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The newest session ticket of one server; given to the next connection if that is to resume.
#[derive(Debug, Default)]
struct Tickets {
    resumes: bool,
    newest: Mutex<Option<Tls13ClientSessionValue>>,
    came: Notify,
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        *self.newest.lock() = Some(ticket);
        self.came.notify_one();
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.newest.lock().take().filter(|_| self.resumes)
    }
}

/// Makes connections to one server.
#[derive(Clone)]
struct Client {
    options: Arc<Options>,
    endpoint: Endpoint,
    verifier: Arc<Verifier>,
    /// Connections so far.
    count: Arc<AtomicU64>,
}

impl Client {
    fn new(options: &Arc<Options>) -> Result<Self, Fault> {
        let own: SocketAddr = match options.to {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let authorities = match &options.ca {
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_file_iter(file)? {
                    roots.add(certificate?)?;
                }
                let builder =
                    WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone());
                Some(builder.build()?)
            }
            None => None,
        };
        Ok(Self {
            options: options.clone(),
            endpoint: Endpoint::client(own)?,
            verifier: Arc::new(Verifier {
                authorities,
                provider,
                shown: AtomicU64::new(0),
            }),
            count: Arc::default(),
        })
    }

    fn config(&self, tickets: Arc<Tickets>) -> Result<ClientConfig, Fault> {
        let provider = self.verifier.provider.clone();
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier.clone())
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        tls.resumption = Resumption::store(tickets);
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        let mut transport = TransportConfig::default();
        transport
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
            .receive_window(VarInt::from_u32(CONNECTION_WINDOW));
        config.transport_config(Arc::new(transport));
        Ok(config)
    }

    async fn connect(&self, config: ClientConfig) -> Result<quinn::Connection, Fault> {
        let host = self.options.host(self.count.fetch_add(1, Relaxed));
        let connecting = self.endpoint.connect_with(config, self.options.to, &host)?;
        Ok(connecting.await?)
    }

    /// A connection of HTTP/3, whose driver runs beside it.
    async fn open(&self) -> Result<SendRequest<OpenStreams, Bytes>, Fault> {
        let connection = self.connect(self.config(Arc::default())?).await?;
        let connection = h3_quinn::Connection::new(connection);
        let (mut driver, requests) = h3::client::builder().build(connection).await?;
        tokio::spawn(async move { driver.wait_idle().await });
        Ok(requests)
    }
}

/// One request; gives the bytes of its response's body.
async fn exchange(
    requests: &mut SendRequest<OpenStreams, Bytes>,
    request: Request<()>,
) -> Result<u64, Fault> {
    let mut stream = requests.send_request(request).await?;
    stream.finish().await?;
    let response = stream.recv_response().await?;
    let mut bytes = 0;
    while let Some(data) = stream.recv_data().await? {
        bytes += data.remaining() as u64;
    }
    match response.status().is_success() {
        true => Ok(bytes),
        false => Err(format!("status {}", response.status()).into()),
    }
}

/// Requests on one stream after another until `end`, with a pause between them.
async fn request_until(
    mut requests: SendRequest<OpenStreams, Bytes>,
    request: Request<()>,
    end: Instant,
    pause: Option<Duration>,
    counts: Arc<Counts>,
) {
    let mut latencies = Vec::new();
    while Instant::now() < end {
        let began = Instant::now();
        match exchange(&mut requests, request.clone()).await {
            Ok(bytes) => counts.add(bytes, &mut latencies, began),
            Err(error) => {
                counts.fail(&error);
                break;
            }
        }
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
    }
    counts.latencies_us.lock().append(&mut latencies);
}

async fn requests(
    client: &Client,
    pause: Option<Duration>,
    counts: &Arc<Counts>,
) -> Result<(), Fault> {
    let options = &client.options;
    let mut opened = Vec::new();
    for _ in 0..options.connections {
        opened.push(client.open().await?);
    }
    let end = options.end();
    let mut tasks = JoinSet::new();
    for (number, requests) in (0_u64..).zip(opened) {
        for _ in 0..options.streams {
            let request = options.request(number)?;
            tasks.spawn(request_until(
                requests.clone(),
                request,
                end,
                pause,
                counts.clone(),
            ));
        }
    }
    tasks.join_all().await;
    Ok(())
}

/// One connection after another until `end`, each up to its session ticket: the server sends that
/// when the handshake is complete for it too.
async fn handshake_until(client: Client, end: Instant, counts: Arc<Counts>) -> Result<(), Fault> {
    let mut latencies = Vec::new();
    let tickets = Arc::new(Tickets {
        resumes: client.options.resumes,
        ..Tickets::default()
    });
    let config = client.config(tickets.clone())?;
    while Instant::now() < end {
        let began = Instant::now();
        let connected = async {
            let connection = client.connect(config.clone()).await?;
            tokio::time::timeout(TICKET_MAX, tickets.came.notified()).await?;
            connection.close(VarInt::from_u32(0x100), b"");
            Ok::<(), Fault>(())
        };
        match connected.await {
            Ok(()) => counts.add(0, &mut latencies, began),
            Err(error) => counts.fail(&error),
        }
    }
    counts.latencies_us.lock().append(&mut latencies);
    Ok(())
}

async fn handshakes(client: &Client, counts: &Arc<Counts>) -> Result<(), Fault> {
    let end = client.options.end();
    let mut tasks = JoinSet::new();
    for _ in 0..client.options.connections {
        tasks.spawn(handshake_until(client.clone(), end, counts.clone()));
    }
    tasks.join_all().await.into_iter().collect()
}

async fn run(options: Options) -> Result<u64, Fault> {
    let counts = Arc::new(Counts::default());
    let client = Client::new(&Arc::new(options))?;
    let began = Instant::now();
    match client.options.mode.as_str() {
        "requests" => requests(&client, None, &counts).await?,
        "steady" => requests(&client, Some(STEADY_PAUSE), &counts).await?,
        _ => handshakes(&client, &counts).await?,
    }
    let full = client.verifier.shown.load(Relaxed);
    counts.print(full, began.elapsed().as_secs_f64());
    Ok(counts.requests.load(Relaxed))
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(fault) => {
            eprintln!(
                "http3-load: {fault}; the head of testing/src/bin/http3-load.rs has the words"
            );
            return ExitCode::from(64);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime needs no more than this process has");
    match runtime.block_on(run(options)) {
        Ok(0) => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("http3-load: {error}");
            ExitCode::FAILURE
        }
    }
}
