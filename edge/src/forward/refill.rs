//! Requests for slices that a stored response lacks.

use std::sync::Arc;

use futures_util::stream;
use http::header::IF_RANGE;
use http::{HeaderMap, StatusCode};
use tokio::sync::oneshot;

use super::origin_request::OriginRequest;
use super::pump::Pump;
use super::representation::bytes_to_skip;
use super::wanted::range_field;
use crate::body::{BeginAgain, FillWriter, Reader, repeat};
use crate::origin::OriginError;
use crate::stored::response::StoredResponse;
use nearcast_store::{Pool, SLICE_BYTES};

const SLICE: u64 = SLICE_BYTES as u64;

/// Requests the slice at `at`, with the missing slices after it up to `end`, and returns once the
/// origin has answered with them. Does nothing while that slice is stored or on its way. A reader
/// that waits for them follows their fill from its begin, so that it is not left behind.
///
/// # Errors
/// [`OriginError::Unfit`] when the origin has another representation by now: the stored response is
/// removed.
pub(crate) async fn fetch_missing(
    origin: &OriginRequest,
    response: &Arc<StoredResponse>,
    at: u64,
    end: u64,
    pool: Pool,
    reader: Option<&mut Reader>,
) -> Result<(), OriginError> {
    let content = response.content.clone();
    let Some(validator) = content.validator() else {
        return Err(OriginError::Unfit);
    };
    // A fill is as slow as its reader and keeps its connection. Where those are scarce, it brings
    // one slice, which no reader holds up.
    let end = match reader.is_some() && origin.target.are_connections_scarce() {
        true => end.min((at / SLICE + 1) * SLICE),
        false => end,
    };
    let Some(fill) = content.begin_fill_of_missing(at, end) else {
        return Ok(());
    };
    let (first, end) = (fill.at(), fill.end());
    if let Some(reader) = reader {
        reader.attach(fill.clone());
    }
    let writer = FillWriter::new(content.clone(), fill, pool == Pool::Pushed);

    // A task of its own, so that the fill goes on when the client leaves.
    let (answered_tx, answered) = oneshot::channel();
    let filling = origin.clone();
    tokio::spawn(async move {
        let mut extra = range_field(first, end);
        extra.insert(IF_RANGE, validator.value().clone());
        let outcome = match filling.send(extra).await {
            Ok(response) => bytes_to_skip(&content, &response, first).map(|skip| (skip, response)),
            Err(error) => Err(error),
        };
        match outcome {
            Ok((skip, response)) => {
                if response.status() == StatusCode::OK {
                    content.note_whole_only();
                }
                let _ = answered_tx.send(Ok(()));
                Pump::new(filling, writer, None, skip)
                    .run(response.into_body())
                    .await;
            }
            Err(error) => {
                writer.fail(error);
                let _ = answered_tx.send(Err(error));
            }
        }
    });

    let answered = answered.await.unwrap_or(Err(OriginError::Terminated));
    if answered == Err(OriginError::Unfit) {
        origin.worker.edge.unpublish(response);
    }
    answered
}

/// Requests the whole body once more for a reader at `at` of a response without a strong validator,
/// and shows readers the slices that are the same as before. Does nothing while that slice is stored
/// or on its way.
///
/// # Errors
/// [`OriginError::Incomplete`] when those bytes have never been received.
pub(crate) async fn fetch_again(
    origin: &OriginRequest,
    response: &Arc<StoredResponse>,
    at: u64,
    reader: &mut Reader,
) -> Result<(), OriginError> {
    let mut writer = match response.content.begin_again(at) {
        BeginAgain::Found => return Ok(()),
        BeginAgain::Unknown => return Err(OriginError::Incomplete),
        BeginAgain::Busy(fill) => {
            fill.ended().await;
            return Ok(());
        }
        BeginAgain::New(writer) => writer,
    };
    reader.attach(writer.fill().clone());
    writer.join(origin.worker.edge.forwards.fills.windows());

    let (origin, status, length) = (origin.clone(), response.status, response.content.length());
    tokio::spawn(async move {
        let sent = match origin.send(HeaderMap::new()).await {
            Ok(sent) => sent,
            Err(error) => return writer.fail(error),
        };
        if sent.status().is_server_error() && sent.status() != status {
            return writer.fail(OriginError::Erred);
        }
        let body = sent.body();
        let is_other = matches!((length, body.length()), (Some(one), Some(other)) if one != other);
        if sent.status() != status || is_other {
            return writer.fail(OriginError::Unfit);
        }
        let pieces = stream::unfold((sent.into_body(), origin), |(mut body, origin)| async {
            match body.next().await {
                Ok(Some(piece)) => {
                    origin.note_received(piece.len()).await;
                    Some((Ok(piece), (body, origin)))
                }
                Ok(None) => None,
                Err(error) => Some((Err(error), (body, origin))),
            }
        });
        repeat(writer, Box::pin(pieces)).await;
    });
    Ok(())
}

/// For a reader far ahead of the fill that it would wait for: requests the slices from `at` up to
/// `end` beside that fill, which leaves them out from then on. If this fails, the reader waits for
/// the fill as before.
pub(crate) fn seek_ahead(
    origin: &OriginRequest,
    response: &Arc<StoredResponse>,
    at: u64,
    end: Option<u64>,
) {
    let content = response.content.clone();
    let (Some(validator), Some(length)) = (content.validator(), content.length()) else {
        return;
    };
    let Some(seek) = content.begin_seek(at) else {
        return;
    };
    let end = end
        .and_then(|end| end.checked_next_multiple_of(SLICE))
        .map_or(length, |end| end.min(length));

    let origin = origin.clone();
    tokio::spawn(async move {
        let mut extra = range_field(seek.first(), Some(end));
        extra.insert(IF_RANGE, validator.value().clone());
        let Ok(response) = origin.send(extra).await else {
            return;
        };
        let skip = match bytes_to_skip(&content, &response, seek.first()) {
            Ok(skip) if response.status() != StatusCode::OK => skip,
            Err(OriginError::Erred) => return,
            // The origin sends no parts of this body, or parts that cannot be recognised: the next
            // seek does not try.
            Ok(_) | Err(_) => return content.note_whole_only(),
        };

        let Some(fill) = seek.take_over(end) else {
            return;
        };
        drop(seek);
        let writer = FillWriter::new(content, fill, false);
        Pump::new(origin, writer, None, skip)
            .run(response.into_body())
            .await;
    });
}
