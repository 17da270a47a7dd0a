//! A scripted origin: answers by a test's script, and records the requests.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// A request as the origin saw it; field names in lower case.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Method.
    pub method: String,
    /// Request target.
    pub target: String,
    /// Fields; the last one where a name came twice.
    pub fields: HashMap<String, String>,
    /// Body.
    pub body: Vec<u8>,
}

impl Seen {
    /// First and last byte of a plain range request.
    pub fn range(&self) -> Option<(usize, Option<usize>)> {
        let (first, last) = self
            .fields
            .get("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    }

    /// First and last byte of a plain range request for a body of that length.
    fn range_of(&self, length: usize) -> Option<(usize, usize)> {
        if let Some(last) = self
            .fields
            .get("range")
            .and_then(|r| r.strip_prefix("bytes=-")?.parse::<usize>().ok())
        {
            return Some((length.saturating_sub(last), length - 1));
        }
        let (first, last) = self.range()?;
        Some((first, last.unwrap_or(length - 1).min(length - 1)))
    }
}

/// Holds replies back until the test opens it.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Opens it for good.
    pub fn open(&self) {
        *self.0.0.lock() = true;
        self.0.1.notify_all();
    }

    /// Waits for it, at most a minute: a test that fails must end.
    pub fn wait(&self) {
        let mut is_open = self.0.0.lock();
        let limit = Duration::from_secs(60);
        let _ = self
            .0
            .1
            .wait_while_for(&mut is_open, |is_open| !*is_open, limit);
    }
}

/// An answer of the origin.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Fields without `Content-Length` and `Transfer-Encoding`, which are added.
    pub fields: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
    /// Number of even pieces in which the body is sent.
    pub pieces: usize,
    /// Pause before each piece.
    pub pause: Duration,
    /// Bytes after which the connection is cut.
    pub cut: Option<usize>,
    /// `Transfer-Encoding: chunked` in place of a length.
    pub chunked: bool,
    /// Bytes before the response, such as an interim response.
    pub interim: &'static str,
    /// A gate between them and the response.
    pub held_head: Option<Gate>,
    /// A gate before the byte at this place of the body.
    pub held: Option<(usize, Gate)>,
}

impl Reply {
    /// A 200 with a body and, unless it is empty, `Cache-Control`.
    pub fn ok(body: impl Into<Vec<u8>>, cache_control: &str) -> Self {
        let fields = if cache_control.is_empty() {
            vec![]
        } else {
            vec![("Cache-Control".into(), cache_control.into())]
        };
        Self {
            status: 200,
            fields,
            body: body.into(),
            pieces: 1,
            pause: Duration::ZERO,
            cut: None,
            chunked: false,
            interim: "",
            held_head: None,
            held: None,
        }
    }

    /// A status without a body.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::ok("", "")
        }
    }

    /// The same with one more field.
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// The same in that many pieces, with a pause before each.
    pub fn slow(mut self, pieces: usize, pause_ms: u64) -> Self {
        self.pieces = pieces;
        self.pause = Duration::from_millis(pause_ms);
        self
    }

    /// The same with the connection cut after that many bytes of the body.
    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    /// The same with the bytes from there on held back until the gate is open.
    pub fn held_at(mut self, bytes: usize, gate: &Gate) -> Self {
        self.held = Some((bytes, gate.clone()));
        self
    }

    /// The same with chunked transfer coding.
    pub fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    /// The same as an origin that knows ranges and `If-Range` would answer it.
    pub fn ranged(self, seen: &Seen) -> Self {
        let is_validator = |wanted: &String| {
            self.fields
                .iter()
                .any(|(n, v)| matches!(&**n, "ETag" | "Last-Modified") && v == wanted)
        };
        if seen
            .fields
            .get("if-range")
            .is_some_and(|wanted| !is_validator(wanted))
        {
            return self;
        }
        let length = self.body.len();
        if let Some(set) = seen
            .fields
            .get("range")
            .and_then(|r| r.strip_prefix("bytes="))
            .filter(|set| set.contains(','))
        {
            return self.multipart(set);
        }
        let Some((first, last)) = seen.range_of(length) else {
            return self;
        };
        if first >= length {
            return Self {
                status: 416,
                body: vec![],
                ..self
            }
            .field("Content-Range", &format!("bytes */{length}"));
        }
        let body = self.body[first..=last].to_vec();
        Self {
            status: 206,
            body,
            ..self
        }
        .field("Content-Range", &format!("bytes {first}-{last}/{length}"))
    }

    /// Those of several ranges that are inside, as parts.
    fn multipart(self, set: &str) -> Self {
        let length = self.body.len();
        let mut parts = Vec::new();
        for member in set.split(',') {
            let fields = HashMap::from([("range".to_owned(), format!("bytes={}", member.trim()))]);
            let Some((first, last)) = (Seen {
                fields,
                ..Seen::default()
            })
            .range_of(length)
            .filter(|(first, _)| *first < length) else {
                continue;
            };
            let head =
                format!("\r\n--part\r\nContent-Range: bytes {first}-{last}/{length}\r\n\r\n");
            parts.extend_from_slice(head.as_bytes());
            parts.extend_from_slice(&self.body[first..=last]);
        }
        if parts.is_empty() {
            return Self {
                status: 416,
                body: vec![],
                ..self
            }
            .field("Content-Range", &format!("bytes */{length}"));
        }
        parts.extend_from_slice(b"\r\n--part--\r\n");
        Self {
            status: 206,
            body: parts,
            ..self
        }
        .field("Content-Type", "multipart/byteranges; boundary=part")
    }
}

/// Most connections at a time: more than any test opens.
const CONNECTIONS_MAX: usize = 512;

/// A running scripted origin. Dropping it closes the listener and every connection, as a dead
/// machine would.
#[derive(Debug)]
pub struct Origin {
    /// Address of its listener.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    open: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<Weak<TcpStream>>>>,
}

impl Origin {
    /// Starts it on a free port of the loopback address.
    pub fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), script)
    }

    /// Starts it on an address.
    ///
    /// # Panics
    /// The address is in use.
    pub fn start_at(
        address: SocketAddr,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("a free address");
        let origin = Self {
            address: listener.local_addr().expect("bound"),
            seen: Arc::default(),
            open: Arc::new(AtomicBool::new(true)),
            connections: Arc::default(),
        };
        let script = Arc::new(script);
        let (seen, open) = (origin.seen.clone(), origin.open.clone());
        let connections = origin.connections.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if !open.load(Ordering::SeqCst) {
                    return;
                }
                let stream = Arc::new(stream);
                let mut connections = connections.lock();
                connections.retain(|stream| stream.strong_count() > 0);
                assert!(
                    connections.len() < CONNECTIONS_MAX,
                    "too many connections at the origin"
                );
                connections.push(Arc::downgrade(&stream));
                let (seen, script, open) = (seen.clone(), script.clone(), open.clone());
                // A client may end its connection early; the test sees the requests before that.
                std::thread::spawn(move || drop(serve(&stream, &seen, &*script, &open)));
            }
        });
        origin
    }

    /// Base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// The number of requests for a target.
    pub fn count(&self, target: &str) -> usize {
        self.seen().iter().filter(|s| s.target == target).count()
    }

    /// Refuses connections from now on and closes the open ones after their next request.
    pub fn stop(&self) {
        self.open.store(false, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop();
        for stream in self.connections.lock().iter().filter_map(Weak::upgrade) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn serve(
    mut stream: &TcpStream,
    all: &Mutex<Vec<Seen>>,
    script: &dyn Fn(&Seen) -> Reply,
    open: &AtomicBool,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || !open.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let mut seen = Seen {
            method: words.next().unwrap_or_default(),
            target: words.next().unwrap_or_default(),
            ..Seen::default()
        };
        loop {
            let mut field = String::new();
            reader.read_line(&mut field)?;
            let Some((name, value)) = field.trim_end().split_once(':') else {
                break;
            };
            seen.fields
                .insert(name.to_lowercase(), value.trim().to_owned());
        }
        if seen.fields.contains_key("transfer-encoding") {
            loop {
                let mut size = String::new();
                reader.read_line(&mut size)?;
                let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
                let mut chunk = vec![0; size + 2];
                reader.read_exact(&mut chunk)?;
                if size == 0 {
                    break;
                }
                seen.body.extend_from_slice(&chunk[..size]);
            }
        } else {
            let length = seen
                .fields
                .get("content-length")
                .and_then(|v| v.parse().ok())
                .unwrap_or(0);
            reader.by_ref().take(length).read_to_end(&mut seen.body)?;
        }
        all.lock().push(seen.clone());
        let reply = script(&seen);
        stream.write_all(reply.interim.as_bytes())?;
        if let Some(gate) = &reply.held_head {
            gate.wait();
        }
        let mut head = format!("HTTP/1.1 {} x\r\n", reply.status);
        for (name, value) in &reply.fields {
            head += &format!("{name}: {value}\r\n");
        }
        if reply.chunked {
            head += "Transfer-Encoding: chunked\r\n";
        } else if reply.status != 304 {
            head += &format!("Content-Length: {}\r\n", reply.body.len());
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if seen.method == "HEAD" || reply.status == 304 {
            continue;
        }
        let mut sent = 0;
        if let Some((at, gate)) = &reply.held {
            write_piece(stream, &reply.body[..*at], reply.chunked)?;
            gate.wait();
            write_piece(stream, &reply.body[*at..], reply.chunked)?;
            if reply.chunked {
                stream.write_all(b"0\r\n\r\n")?;
            }
            continue;
        }
        for piece in reply
            .body
            .chunks(reply.body.len().div_ceil(reply.pieces).max(1))
        {
            std::thread::park_timeout(reply.pause);
            let piece = &piece[..piece.len().min(reply.cut.unwrap_or(usize::MAX) - sent)];
            write_piece(stream, piece, reply.chunked)?;
            sent += piece.len();
            if reply.cut == Some(sent) {
                return stream.shutdown(std::net::Shutdown::Both);
            }
        }
        if reply.chunked {
            stream.write_all(b"0\r\n\r\n")?;
        }
    }
}

fn write_piece(mut stream: &TcpStream, piece: &[u8], chunked: bool) -> std::io::Result<()> {
    if !chunked || piece.is_empty() {
        return stream.write_all(piece);
    }
    stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
    stream.write_all(piece)?;
    stream.write_all(b"\r\n")
}
