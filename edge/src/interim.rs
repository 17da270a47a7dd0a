//! Interim responses (1xx) of an origin, on their way to the client whose request made the origin
//! send them.
//!
//! They are passed on as they come and never stored; requests that wait for another's forward
//! request get none, nor does a client of HTTP/1.0. Nobody waits for a client that takes them
//! slowly: a request has room for a few, and what is more is dropped. Follows RFC 9110 section 15.2
//! and RFC 8297.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use http::header::{CONTENT_LENGTH, SET_COOKIE};
use http::{HeaderMap, HeaderName, Request, StatusCode};

use crate::connection::Phase;
use crate::http1::write_head;
use nearcast_http_rules::fields;

/// Interim responses that one request passes on.
const COUNT_MAX: usize = 8;
/// Bytes of one; a larger one is dropped.
const BYTES_MAX: usize = 16 * 1024;

#[derive(Debug, Default)]
struct Queue {
    /// Heads as they go on the wire.
    heads: VecDeque<Vec<u8>>,
    /// How many were taken in.
    count: usize,
}

/// The interim responses on one connection: of one request at a time. Most requests ask no origin;
/// for those there is no queue.
#[derive(Debug, Default)]
pub(crate) struct Interims {
    /// Counts requests; a sender of another request than the newest sends nothing.
    request: AtomicU64,
    /// Whether that request has asked an origin.
    is_asked: AtomicBool,
    queue: OnceLock<Box<Mutex<Queue>>>,
    waker: AtomicWaker,
}

/// Where the interim responses to one request come in.
#[derive(Debug, Clone)]
pub(crate) struct InterimSender {
    connection: Arc<Phase>,
    request: u64,
}

/// Where they come out. What comes in after this was dropped is dropped as well.
#[derive(Debug)]
pub(crate) struct InterimReceiver(Arc<Phase>);

/// For the next request on a connection, after the receiver of the one before was dropped.
pub(crate) fn channel(connection: &Arc<Phase>) -> (InterimSender, InterimReceiver) {
    let request = connection.interims.request.load(Ordering::Acquire);
    (
        InterimSender {
            connection: connection.clone(),
            request,
        },
        InterimReceiver(connection.clone()),
    )
}

impl InterimSender {
    /// Has the interim responses to a forward request sent here.
    pub(crate) fn follow<B>(&self, request: &mut Request<B>) {
        self.ask();
        let sender = self.clone();
        hyper::ext::on_informational(request, move |response| {
            sender.send(response.status(), response.headers())
        });
    }

    fn ask(&self) {
        let interims = &self.connection.interims;
        interims.queue.get_or_init(Box::default);
        interims.is_asked.store(true, Ordering::Release);
    }

    fn send(&self, status: StatusCode, fields: &HeaderMap) {
        if !is_passed_on(status) {
            return;
        }
        let interims = &self.connection.interims;
        let Some(queue) = interims.queue.get() else {
            return;
        };
        let mut queue = queue.lock().expect("no holder of this lock panics");
        // The count goes on before the queue is emptied for the next request.
        if interims.request.load(Ordering::Acquire) != self.request || queue.count >= COUNT_MAX {
            return;
        }
        let mut head = Vec::with_capacity(256);
        write_head(&mut head, status, &passed(fields));
        head.extend_from_slice(b"\r\n");
        if head.len() > BYTES_MAX {
            return;
        }
        queue.count += 1;
        queue.heads.push_back(head);
        drop(queue);
        interims.waker.wake();
    }
}

impl InterimReceiver {
    /// The next one as it goes on the wire, if it is there.
    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        let interims = &self.0.interims;
        let queue = interims
            .queue
            .get()
            .filter(|_| interims.is_asked.load(Ordering::Acquire))?;
        queue
            .lock()
            .expect("no holder of this lock panics")
            .heads
            .pop_front()
    }

    /// Waits for the next one. The origin may be asked later, by another task.
    pub(crate) fn poll_next(&self, cx: &Context<'_>) -> Poll<Vec<u8>> {
        self.0.interims.waker.register(cx.waker());
        self.take().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for InterimReceiver {
    fn drop(&mut self) {
        let interims = &self.0.interims;
        interims.request.fetch_add(1, Ordering::AcqRel);
        if interims.is_asked.swap(false, Ordering::AcqRel)
            && let Some(queue) = interims.queue.get()
        {
            *queue.lock().expect("no holder of this lock panics") = Queue::default();
        }
    }
}

/// 100 answers an expectation, which this node meets itself; nobody asks an origin for another
/// protocol (101).
fn is_passed_on(status: StatusCode) -> bool {
    status.is_informational()
        && !matches!(
            status,
            StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS
        )
}

/// The fields that go to the client: not those for one hop, nor what nodes say to one another. An
/// interim response has no body to have a length, and cookies come with the final one.
fn passed(fields: &HeaderMap) -> HeaderMap {
    let mut passed = fields::end_to_end(fields, false);
    passed.remove(CONTENT_LENGTH);
    passed.remove(SET_COOKIE);
    let own: Vec<HeaderName> = passed
        .keys()
        .filter(|name| name.as_str().starts_with("nearcast-"))
        .cloned()
        .collect();
    for name in own {
        passed.remove(name);
    }
    passed
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    use http::HeaderValue;

    use super::*;

    fn link(bytes: usize) -> HeaderMap {
        std::iter::once((
            http::header::LINK,
            HeaderValue::try_from("x".repeat(bytes)).expect("text"),
        ))
        .collect()
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn taken(receiver: &InterimReceiver) -> Vec<String> {
        let mut taken = Vec::new();
        while let Poll::Ready(head) = receiver.poll_next(&Context::from_waker(Waker::noop())) {
            taken.push(String::from_utf8(head).expect("text"));
        }
        taken
    }

    #[test]
    fn what_is_for_this_hop_or_for_nodes_stays_here() {
        let fields = [
            ("link", "</a>; rel=preload"),
            ("connection", "x-hop, close"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("upgrade", "h2c"),
            ("set-cookie", "a=b"),
            ("nearcast-revision", "7"),
            ("x-other", "2"),
        ];
        let fields: HeaderMap = fields
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect();
        let (sender, receiver) = channel(&Arc::default());
        sender.ask();
        for status in [100, 101, 102, 103, 199, 200] {
            sender.send(StatusCode::from_u16(status).expect("valid"), &fields);
        }
        let expected = |line: &str| {
            format!("HTTP/1.1 {line}\r\nlink: </a>; rel=preload\r\nx-other: 2\r\n\r\n")
        };
        assert_eq!(
            taken(&receiver),
            ["102 Processing", "103 Early Hints", "199 "].map(expected)
        );
    }

    #[test]
    fn a_client_has_room_for_a_few_and_nobody_waits_for_it() {
        let connection = Arc::default();
        let (sender, receiver) = channel(&connection);
        let woken = Arc::new(Woken::default());
        assert!(
            receiver
                .poll_next(&Context::from_waker(&woken.clone().into()))
                .is_pending()
        );
        assert!(
            connection.interims.queue.get().is_none(),
            "nothing is made before an origin is asked"
        );
        sender.ask();
        sender.send(StatusCode::EARLY_HINTS, &link(BYTES_MAX));
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        sender.send(StatusCode::EARLY_HINTS, &link(1));
        assert_eq!(
            (woken.0.load(Ordering::Relaxed), taken(&receiver).len()),
            (1, 1),
            "who waited before is woken"
        );
        for _ in 0..2 * COUNT_MAX - 1 {
            sender.send(StatusCode::EARLY_HINTS, &link(1));
        }
        assert_eq!(
            taken(&receiver).len(),
            COUNT_MAX - 1,
            "not the one that is too large"
        );
        sender.send(StatusCode::EARLY_HINTS, &link(1));
        assert!(taken(&receiver).is_empty(), "that was all for this request");
        drop(receiver);
        sender.send(StatusCode::EARLY_HINTS, &link(1));
        let (next, receiver) = channel(&connection);
        assert!(taken(&receiver).is_empty(), "the final response has begun");
        next.ask();
        sender.send(StatusCode::EARLY_HINTS, &link(1));
        assert!(
            taken(&receiver).is_empty(),
            "those of one request do not go to the next"
        );
        next.send(StatusCode::EARLY_HINTS, &link(1));
        assert_eq!(taken(&receiver).len(), 1, "which has room of its own");
    }
}
