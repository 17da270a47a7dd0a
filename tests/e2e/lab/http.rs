//! A scripted origin: answers by a test's script, and records the requests.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// A request as the origin saw it; field names in lower case.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Method.
    pub method: String,
    /// Request target.
    pub target: String,
    /// Fields, the last one where a name came twice.
    pub fields: HashMap<String, String>,
}

/// What to answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status line after `HTTP/1.1 ` (`200 OK`).
    pub status: String,
    /// Fields without `Content-Length`, which is added.
    pub fields: Vec<(String, String)>,
    /// The body, sent in that many even pieces with that pause before each: a slow origin.
    pub body: Vec<u8>,
    /// Pieces of the body.
    pub pieces: usize,
    /// Pause before each piece.
    pub pause: Duration,
    /// Where it is set, the pieces after the first are sent once it is open.
    pub gate: Option<Gate>,
}

impl Reply {
    /// A `200` with a body and `Cache-Control`.
    pub fn ok(body: impl Into<Vec<u8>>, cache_control: &str) -> Self {
        let fields = vec![("Cache-Control".to_owned(), cache_control.to_owned())];
        Self {
            status: "200 OK".to_owned(),
            fields,
            body: body.into(),
            pieces: 1,
            pause: Duration::ZERO,
            gate: None,
        }
    }

    /// The same with one more field.
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same with its body spread over `pieces` pauses.
    pub fn slow(mut self, pieces: usize, pause: Duration) -> Self {
        self.pieces = pieces;
        self.pause = pause;
        self
    }

    /// The same with half of its body held back until `gate` opens.
    pub fn held_in_the_middle(mut self, gate: &Gate) -> Self {
        self.pieces = 2;
        self.gate = Some(gate.clone());
        self
    }
}

/// Holds replies back until a test opens it.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Opens it for good.
    pub fn open(&self) {
        *self.0.0.lock().expect("no test panics while it holds this") = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let is_open = self.0.0.lock().expect("no test panics while it holds this");
        let opened = self.0.1.wait_while(is_open, |is_open| !*is_open);
        drop(opened.expect("no test panics while it holds this"));
    }
}

type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

/// A running scripted origin. Dropping it closes the listener and every connection, as a dead
/// machine would.
pub struct Origin {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    open: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

/// More at once than any test opens.
const CONNECTIONS_MAX: usize = 512;

impl Origin {
    /// Starts answering with `script` on `address`.
    pub fn start(
        address: SocketAddr,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("the block's addresses are free");
        let origin = Self {
            address: listener
                .local_addr()
                .expect("a bound listener has an address"),
            seen: Arc::default(),
            open: Arc::new(AtomicBool::new(true)),
            connections: Arc::default(),
            streams: Arc::default(),
        };
        let script: Arc<Script> = Arc::new(script);
        let (seen, open, connections) = (
            origin.seen.clone(),
            origin.open.clone(),
            origin.connections.clone(),
        );
        let streams = origin.streams.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if !open.load(Ordering::SeqCst) {
                    return;
                }
                assert!(
                    connections.fetch_add(1, Ordering::SeqCst) < CONNECTIONS_MAX,
                    "too many connections at the origin"
                );
                if let Ok(copy) = stream.try_clone() {
                    streams
                        .lock()
                        .expect("no test panics while it holds this")
                        .push(copy);
                }
                let (seen, script, connections) =
                    (seen.clone(), script.clone(), connections.clone());
                std::thread::spawn(move || {
                    // A client that goes away ends its connection; the test sees what was counted.
                    let _ = serve(&stream, &seen, &*script);
                    connections.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        origin
    }

    /// Base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything asked so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen
            .lock()
            .expect("no test panics while it holds this")
            .clone()
    }

    /// How often a target was asked for.
    pub fn count(&self, target: &str) -> usize {
        self.seen().iter().filter(|s| s.target == target).count()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.open.store(false, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address); // wakes the accept loop
        for stream in self
            .streams
            .lock()
            .expect("no test panics while it holds this")
            .drain(..)
        {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn serve(stream: &TcpStream, seen: &Mutex<Vec<Seen>>, script: &Script) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, target) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        let mut fields = HashMap::new();
        loop {
            let mut field = String::new();
            reader.read_line(&mut field)?;
            let Some((name, value)) = field.trim_end().split_once(':') else {
                break;
            };
            fields.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let body_bytes = fields
            .get("content-length")
            .and_then(|v| v.parse().ok())
            .unwrap_or(0);
        std::io::copy(&mut reader.by_ref().take(body_bytes), &mut std::io::sink())?;
        let request = Seen {
            method,
            target,
            fields,
        };
        seen.lock()
            .expect("no test panics while it holds this")
            .push(request.clone());
        answer(stream, &request, &script(&request))?;
    }
}

fn answer(mut stream: &TcpStream, request: &Seen, reply: &Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {}\r\n", reply.status);
    for (name, value) in &reply.fields {
        head += &format!("{name}: {value}\r\n");
    }
    if !reply.status.starts_with("304") {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "HEAD" || reply.body.is_empty() {
        return Ok(());
    }
    let pieces = reply.body.chunks(reply.body.len().div_ceil(reply.pieces));
    for (number, piece) in pieces.enumerate() {
        std::thread::park_timeout(reply.pause);
        if let Some(gate) = reply.gate.as_ref().filter(|_| number > 0) {
            gate.wait();
        }
        stream.write_all(piece)?;
    }
    Ok(())
}
