//! Interim responses (1xx) of an origin, on their way to the client whose request made the origin
//! send them.
//!
//! They are passed on as they come and never stored. Requests that wait for another's forward
//! request get none, nor does a client of HTTP/1.0. A slow client delays no origin: the queue of a
//! request holds a few responses, and further ones are dropped. Follows RFC 9110 section 15.2 and
//! RFC 8297.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use http::header::{CONTENT_LENGTH, SET_COOKIE};
use http::{HeaderMap, HeaderName, Request, StatusCode};
use nearcast_http_rules::fields;
use parking_lot::Mutex;

/// Interim responses that one request passes on.
const COUNT_MAX: usize = 8;
/// Bytes of the fields of one; a larger one is dropped.
const BYTES_MAX: usize = 16 * 1024;

/// An interim response: its status and fields.
pub(crate) type Interim = (StatusCode, HeaderMap);

#[derive(Debug, Default)]
struct Queue {
    responses: VecDeque<Interim>,
    /// How many were accepted for this request.
    count: usize,
}

/// The interim responses on one connection, of one request at a time. Most requests ask no origin;
/// they have no queue.
#[derive(Debug, Default)]
pub(crate) struct Interims {
    /// Counts requests; a sender of another request than the newest sends nothing.
    request: AtomicU64,
    /// Whether that request has asked an origin.
    is_asked: AtomicBool,
    queue: OnceLock<Box<Mutex<Queue>>>,
    waker: AtomicWaker,
}

/// Where the interim responses to one request are sent.
#[derive(Debug, Clone)]
pub(crate) struct InterimSender {
    interims: Arc<Interims>,
    request: u64,
}

/// Where they are received. Responses that are sent after this was dropped are dropped as well.
#[derive(Debug)]
pub(crate) struct InterimReceiver(Arc<Interims>);

/// For the next request on a connection, after the receiver of the one before was dropped.
pub(crate) fn channel(interims: &Arc<Interims>) -> (InterimSender, InterimReceiver) {
    let sender = InterimSender {
        interims: interims.clone(),
        request: interims.request.load(Ordering::Acquire),
    };
    (sender, InterimReceiver(interims.clone()))
}

impl InterimSender {
    /// Sends the interim responses to a forward request here.
    pub(crate) fn follow<B>(&self, request: &mut Request<B>) {
        self.expect_responses();
        let sender = self.clone();
        // hyper calls this back for HTTP/1.1; the requests of HTTP/2 are sent without it.
        request.extensions_mut().insert(sender.clone());
        hyper::ext::on_informational(request, move |response| {
            sender.send(response.status(), response.headers())
        });
    }

    fn expect_responses(&self) {
        self.interims.queue.get_or_init(Box::default);
        self.interims.is_asked.store(true, Ordering::Release);
    }

    /// Sends one, if the client may have it.
    pub(crate) fn send(&self, status: StatusCode, fields: &HeaderMap) {
        if !is_passed_on(status) {
            return;
        }
        let Some(queue) = self.interims.queue.get() else {
            return;
        };
        let mut queue = queue.lock();
        // The count is increased before the queue is emptied for the next request.
        let is_over = self.interims.request.load(Ordering::Acquire) != self.request;
        if is_over || queue.count >= COUNT_MAX {
            return;
        }
        let fields = passed(fields);
        let bytes: usize = fields
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + 4)
            .sum();
        if bytes > BYTES_MAX {
            return;
        }
        queue.count += 1;
        queue.responses.push_back((status, fields));
        drop(queue);
        self.interims.waker.wake();
    }
}

impl InterimReceiver {
    /// The next one, if it is there.
    pub(crate) fn take(&self) -> Option<Interim> {
        let is_asked = self.0.is_asked.load(Ordering::Acquire);
        let queue = self.0.queue.get().filter(|_| is_asked)?;
        queue.lock().responses.pop_front()
    }

    /// Waits for the next one. The origin may be asked later, by another task.
    pub(crate) fn poll_next(&self, cx: &Context<'_>) -> Poll<Interim> {
        self.0.waker.register(cx.waker());
        self.take().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for InterimReceiver {
    fn drop(&mut self) {
        self.0.request.fetch_add(1, Ordering::AcqRel);
        if self.0.is_asked.swap(false, Ordering::AcqRel)
            && let Some(queue) = self.0.queue.get()
        {
            *queue.lock() = Queue::default();
        }
    }
}

/// Whether a client gets an interim response. Not 100, since this node meets the expectation
/// itself, nor 101, since no forward request asks for another protocol.
fn is_passed_on(status: StatusCode) -> bool {
    status.is_informational()
        && !matches!(
            status,
            StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS
        )
}

/// The fields that go to the client: no hop-by-hop fields, and none that nodes send to each other.
/// An interim response has no body to have a length, and cookies come with the final one.
fn passed(fields: &HeaderMap) -> HeaderMap {
    let mut passed = fields::end_to_end(fields, true);
    passed.remove(CONTENT_LENGTH);
    passed.remove(SET_COOKIE);
    let of_nodes: Vec<HeaderName> = passed
        .keys()
        .filter(|name| name.as_str().starts_with("nearcast-"))
        .cloned()
        .collect();
    for name in of_nodes {
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
        while let Poll::Ready((status, fields)) =
            receiver.poll_next(&Context::from_waker(Waker::noop()))
        {
            let lines: Vec<String> = fields
                .iter()
                .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
                .collect();
            taken.push(format!("{} {}", status.as_u16(), lines.join(", ")));
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
        sender.expect_responses();
        for status in [100, 101, 102, 103, 199, 200] {
            sender.send(StatusCode::from_u16(status).expect("valid"), &fields);
        }
        let expected = |status: u16| format!("{status} link: </a>; rel=preload, x-other: 2");
        assert_eq!(taken(&receiver), [102, 103, 199].map(expected));
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
            connection.queue.get().is_none(),
            "nothing is made before an origin is asked"
        );
        sender.expect_responses();
        sender.send(StatusCode::EARLY_HINTS, &link(BYTES_MAX));
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        sender.send(StatusCode::EARLY_HINTS, &link(1));
        assert_eq!(
            (woken.0.load(Ordering::Relaxed), taken(&receiver).len()),
            (1, 1),
            "the receiver that waited is woken"
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
        next.expect_responses();
        sender.send(StatusCode::EARLY_HINTS, &link(1));
        assert!(
            taken(&receiver).is_empty(),
            "those of one request do not go to the next"
        );
        next.send(StatusCode::EARLY_HINTS, &link(1));
        assert_eq!(taken(&receiver).len(), 1, "which has room of its own");
    }
}
