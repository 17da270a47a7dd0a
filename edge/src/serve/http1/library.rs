//! Connections whose requests the HTTP library reads: with a body, of HTTP/1.0, or of a rare form.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::CONNECTION;
use http::{HeaderValue, Request};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nearcast_fleet::config::ClientLimits;
use nearcast_net::shutdown::Shutdown;

use super::{Connection, close_idle, refuse};
use crate::client_body::{BodyCut, ClientBody};
use crate::edge::Worker;
use crate::request::check::ClientConnection;
use crate::request::handler;
use crate::request_body::RequestBody;
use crate::serve::phase::Phase;
use crate::serve::socket::ClientSocket;

/// Serves the connection until it ends; gives it back when a request comes that is not the
/// library's to answer.
pub(super) async fn serve_requests(
    connection: Connection,
    mut ending: Shutdown,
) -> Result<Option<Connection>, Box<dyn std::error::Error + Send + Sync>> {
    let Connection {
        worker,
        mut socket,
        phase,
        client,
        input,
        interims,
        ..
    } = connection;
    socket.hand_over(input);
    let mut served = http1_builder(&worker.edge.clients).serve_connection(
        TokioIo::new(socket),
        service_fn(|request| answer(&worker, &phase, &client, request)),
    );

    let at_end = ending.clone();
    let mut ending = pin!(close_idle(&mut ending).fuse());
    let ended = poll_fn(|cx| {
        loop {
            if let Poll::Ready(ended) = served.poll_without_shutdown(cx) {
                return Poll::Ready(ended);
            }
            // The socket held a read back until the response was complete, and nothing else wakes
            // the library.
            if !phase.take_held() {
                break;
            }
        }
        if ending.as_mut().poll_unpin(cx).is_ready() {
            Pin::new(&mut served).graceful_shutdown();
            return served.poll_without_shutdown(cx);
        }
        Poll::Pending
    })
    .await;
    let mut socket: ClientSocket = served.into_parts().io.into_inner();
    ended?;

    if let Some(input) = socket.take_back() {
        return Ok(Some(Connection {
            worker,
            socket,
            phase,
            client,
            input,
            output: Vec::new(),
            url: String::new(),
            interims,
            is_fresh: false,
            unwritten: None,
        }));
    }
    if let Some(refusal) = socket.take_refusal() {
        refuse((&worker, &client), &mut socket, Vec::new(), &refusal).await?;
    }
    socket.end(at_end).await?;
    Ok(None)
}

fn http1_builder(limits: &ClientLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(limits.fields_max)
        .max_header_size(limits.head_bytes_max);
    builder
}

/// Answers one request of the library's.
fn answer(
    worker: &Arc<Worker>,
    phase: &Arc<Phase>,
    client: &ClientConnection,
    request: Request<Incoming>,
) -> impl Future<Output = Result<http::Response<LibraryBody>, Infallible>> + use<> {
    phase.request_began();
    let is_last = phase.is_last();
    let (edge, phase) = (worker.edge.clone(), phase.clone());
    let ended = phase.clone();
    let served = handler::serve(
        worker.clone(),
        client.clone(),
        None,
        request.map(|body| Some(RequestBody::of_connection(body))),
        move || ended.request_ended(),
    );
    Box::pin(served.map(move |mut response| {
        if is_last || edge.lifecycle.is_leaving() {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(|body| LibraryBody { body, phase }))
    }))
}

/// A body that the library writes, and that notes when it has been taken whole.
struct LibraryBody {
    body: ClientBody,
    phase: Arc<Phase>,
}

impl Drop for LibraryBody {
    fn drop(&mut self) {
        self.phase.answering_ended();
    }
}

impl Body for LibraryBody {
    type Data = Bytes;
    type Error = BodyCut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
