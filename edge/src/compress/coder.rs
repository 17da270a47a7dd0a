//! Takes the pieces of a body and gives the pieces of its coded form.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};

use super::encoder::Encoder;
use super::recipe::Recipe;
use super::{CodingPermit, CodingResult};
use crate::client_body::{BodyCut, Pieces};
use nearcast_store::SLICE_BYTES;

/// How long the encoder keeps bytes while no more come: a slow origin's bytes reach its clients, and
/// a fast one's are not cut into pieces that compress badly.
const FLUSH_AFTER: Duration = Duration::from_millis(10);
/// How long [`Coder::next`] waits for the body before it gives [`Coded::Idle`].
const IDLE_AFTER: Duration = Duration::from_millis(100);
/// Bytes that one step of the encoder takes.
const STEP_BYTES_MAX: usize = SLICE_BYTES;

/// What [`Coder::next`] gives.
pub(super) enum Coded {
    Bytes(Bytes),
    /// No byte came for a while.
    Idle,
    End,
    /// The body ended early, or the encoder failed.
    Cut(BodyCut),
}

/// An encoder that waits for its body.
pub(crate) struct ReadyCoder {
    permit: CodingPermit,
    encoder: Encoder,
    recipe: Arc<Recipe>,
    is_replay: bool,
}

impl ReadyCoder {
    /// An encoder for a body, whose length is stated where it is known. `None` when there is no
    /// memory for it.
    pub(crate) fn new(permit: CodingPermit, level: u32, length: Option<u64>) -> Option<Self> {
        let encoder = Encoder::new(permit.coding, level, length).ok()?;
        let recipe = Arc::new(Recipe::new(permit.coding, level, length));
        Some(Self {
            permit,
            encoder,
            recipe,
            is_replay: false,
        })
    }

    /// An encoder that gives the bytes of a coded form once more.
    pub(crate) fn replaying(permit: CodingPermit, recipe: &Arc<Recipe>) -> Option<Self> {
        let again = Self::new(permit, recipe.level, recipe.length)?;
        Some(Self {
            recipe: recipe.clone(),
            is_replay: true,
            ..again
        })
    }

    /// How it makes the coded form. It notes there what else it depends on.
    pub(crate) fn recipe(&self) -> &Arc<Recipe> {
        &self.recipe
    }

    /// Begins with the pieces of its body.
    pub(crate) fn read(self, source: Pieces) -> Coder {
        Coder {
            permit: self.permit,
            source,
            end: None,
            encoder: Some(self.encoder),
            recipe: self.recipe,
            is_replay: self.is_replay,
            has_unflushed: false,
            taken: 0,
            given: 0,
        }
    }
}

/// One body that is being coded.
pub(crate) struct Coder {
    permit: CodingPermit,
    source: Pieces,
    /// The end of the source, if it came together with its last piece.
    end: Option<Option<Result<Bytes, BodyCut>>>,
    /// `None` after its end.
    encoder: Option<Encoder>,
    recipe: Arc<Recipe>,
    /// Whether it flushes where the recipe says, rather than when its body pauses.
    is_replay: bool,
    /// Whether the encoder may hold bytes.
    has_unflushed: bool,
    taken: u64,
    given: u64,
}

impl Coder {
    /// Bytes taken so far, and coded bytes given.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.taken, self.given)
    }

    pub(super) fn count(&self, result: CodingResult) {
        self.permit.count(result);
    }

    /// The next coded bytes, or that there are none for now. Must not be dropped unfinished.
    pub(super) async fn next(&mut self) -> Coded {
        while self.encoder.is_some() {
            let wait = match self.has_unflushed {
                true => FLUSH_AFTER,
                false => IDLE_AFTER,
            };
            let next = match self.end.take() {
                Some(end) => Ok(end),
                None => tokio::time::timeout(wait, self.source.next()).await,
            };
            let output = match next {
                Ok(Some(Ok(piece))) => self.push(piece).await,
                Ok(Some(Err(cut))) => {
                    self.encoder = None;
                    return Coded::Cut(cut);
                }
                Ok(None) => self.finish().await,
                Err(_) if self.has_unflushed => self.flush().await,
                Err(_) => return Coded::Idle,
            };
            match output {
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => {
                    self.given += bytes.len() as u64;
                    self.permit.count_bytes(0, bytes.len());
                    return Coded::Bytes(bytes);
                }
                None => {
                    self.encoder = None;
                    return Coded::Cut(BodyCut("the encoder failed".to_owned()));
                }
            }
        }
        Coded::End
    }

    /// Encodes a piece, with those after it that are there already.
    async fn push(&mut self, first: Bytes) -> Option<Bytes> {
        let mut pieces = vec![first];
        let mut bytes = pieces[0].len();
        while bytes < STEP_BYTES_MAX
            && let Some(next) = self.source.next().now_or_never()
        {
            match next {
                Some(Ok(piece)) => {
                    bytes += piece.len();
                    pieces.push(piece);
                }
                end => {
                    self.end = Some(end);
                    break;
                }
            }
        }
        let mut at = self.taken;
        self.taken += bytes as u64;
        self.permit.count_bytes(bytes, 0);
        self.has_unflushed = !self.is_replay;
        let mut flushes = match self.is_replay {
            true => self.recipe.flushes_within(at, self.taken).into_iter(),
            false => Vec::new().into_iter(),
        }
        .peekable();
        self.step(move |encoder| {
            let mut output = Vec::new();
            for mut piece in pieces {
                let end = at + piece.len() as u64;
                while let Some(flush) = flushes.next_if(|flush| *flush <= end) {
                    let before = piece.split_to((flush - at) as usize);
                    at = flush;
                    output.extend_from_slice(&encoder.push(&before)?);
                    output.extend_from_slice(&encoder.flush()?);
                }
                at = end;
                output.extend_from_slice(&encoder.push(&piece)?);
            }
            Ok(output.into())
        })
        .await
    }

    async fn flush(&mut self) -> Option<Bytes> {
        self.has_unflushed = false;
        self.recipe.note_flush(self.taken);
        self.step(Encoder::flush).await
    }

    async fn finish(&mut self) -> Option<Bytes> {
        let encoder = self.encoder.take()?;
        self.permit.run(|| encoder.finish()).await?.ok()
    }

    /// Runs one step of the encoder. `None` when it failed.
    async fn step(
        &mut self,
        step: impl FnOnce(&mut Encoder) -> std::io::Result<Bytes> + Send + 'static,
    ) -> Option<Bytes> {
        let mut encoder = self.encoder.take()?;
        let (encoder, output) = self
            .permit
            .run(move || {
                let output = step(&mut encoder);
                (encoder, output)
            })
            .await?;
        self.encoder = Some(encoder);
        output.ok()
    }
}

/// The coded pieces of a body for one client.
pub(crate) fn coded_pieces(coder: Coder) -> Pieces {
    Box::pin(stream::unfold(Some(coder), |coder| async {
        let mut coder = coder?;
        loop {
            match coder.next().await {
                Coded::Bytes(bytes) => return Some((Ok(bytes), Some(coder))),
                Coded::Idle => {}
                Coded::End => {
                    coder.count(CodingResult::Whole);
                    return None;
                }
                Coded::Cut(cut) => {
                    coder.count(CodingResult::Failed);
                    return Some((Err(cut), None));
                }
            }
        }
    }))
}
