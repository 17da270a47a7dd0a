//! Bodies of responses: a text of ours, or a stretch of a file, read in pieces as the client takes
//! them.

use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use prometheus::IntCounter;
use tokio::task::JoinHandle;

/// Bytes read at once: all the memory that one response holds.
const PIECE_BYTES: u64 = 64 * 1024;

/// A body.
pub(crate) struct FileBody {
    source: Source,
    left: u64,
    sent: IntCounter,
}

enum Source {
    Text(Bytes),
    File {
        file: Arc<File>,
        at: u64,
        reading: Option<JoinHandle<std::io::Result<Bytes>>>,
    },
}

impl FileBody {
    /// A text, counted in `sent`.
    pub(crate) fn text(text: Bytes, sent: IntCounter) -> Self {
        Self {
            left: text.len() as u64,
            source: Source::Text(text),
            sent,
        }
    }

    /// `bytes` of a file from `first` on.
    pub(crate) fn file(file: File, first: u64, bytes: u64, sent: IntCounter) -> Self {
        Self {
            left: bytes,
            source: Source::File {
                file: Arc::new(file),
                at: first,
                reading: None,
            },
            sent,
        }
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let wanted = self.left.min(PIECE_BYTES);
        let piece = match &mut self.source {
            Source::Text(text) => std::mem::take(text),
            Source::File { file, at, reading } => {
                let task = reading.get_or_insert_with(|| {
                    let (file, at) = (file.clone(), *at);
                    tokio::task::spawn_blocking(move || {
                        let mut piece = vec![0; wanted as usize];
                        // A file that has become shorter ends the connection: what was promised
                        // cannot be kept.
                        file.read_exact_at(&mut piece, at)?;
                        Ok(Bytes::from(piece))
                    })
                });
                let read = std::task::ready!(Pin::new(task).poll(context));
                *reading = None;
                let piece = read.unwrap_or_else(|e| Err(std::io::Error::other(e)))?;
                *at += piece.len() as u64;
                piece
            }
        };
        self.left -= piece.len() as u64;
        self.sent.inc_by(piece.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
