//! Response bodies: a text, or a range of a file that is read in pieces as the client takes them.

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

/// Bytes per read, which is all the memory that one response uses.
const PIECE_BYTES: u64 = 64 * 1024;

/// The body of a response.
pub(crate) struct FileBody {
    source: Source,
    remaining: u64,
    sent: IntCounter,
}

enum Source {
    Text(Bytes),
    File {
        file: Arc<File>,
        /// Offset of the next read.
        offset: u64,
        reading: Option<JoinHandle<std::io::Result<Bytes>>>,
    },
}

impl FileBody {
    /// A text. `sent` counts its bytes.
    pub(crate) fn text(text: Bytes, sent: IntCounter) -> Self {
        Self {
            remaining: text.len() as u64,
            source: Source::Text(text),
            sent,
        }
    }

    /// `bytes` bytes of a file from offset `first`.
    pub(crate) fn file(file: File, first: u64, bytes: u64, sent: IntCounter) -> Self {
        Self {
            remaining: bytes,
            source: Source::File {
                file: Arc::new(file),
                offset: first,
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
        if self.remaining == 0 {
            return Poll::Ready(None);
        }
        let wanted = self.remaining.min(PIECE_BYTES);
        let piece = match &mut self.source {
            Source::Text(text) => std::mem::take(text),
            Source::File {
                file,
                offset,
                reading,
            } => {
                let task = reading.get_or_insert_with(|| {
                    let (file, offset) = (file.clone(), *offset);
                    tokio::task::spawn_blocking(move || {
                        let mut piece = vec![0; wanted as usize];
                        // If the file became shorter, this error ends the connection: the
                        // promised Content-Length cannot be met.
                        file.read_exact_at(&mut piece, offset)?;
                        Ok(Bytes::from(piece))
                    })
                });
                let read = std::task::ready!(Pin::new(task).poll(context));
                *reading = None;
                let piece = read.unwrap_or_else(|e| Err(std::io::Error::other(e)))?;
                *offset += piece.len() as u64;
                piece
            }
        };

        self.remaining -= piece.len() as u64;
        self.sent.inc_by(piece.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}
