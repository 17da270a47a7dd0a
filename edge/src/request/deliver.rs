//! A stored response made into the response to one client: its form, conditions, ranges and body.
//! Slices that are missing are fetched while the body is read.
//!
//! Follows RFC 9110 sections 13 (conditions) and 14 (ranges).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, Method, Response, StatusCode};
use nearcast_http_rules::compress::{self, Form};
use nearcast_http_rules::conditional::{self, Precondition};
use nearcast_http_rules::forward::{self, ClientFields};
use nearcast_http_rules::range::{self, ByteRange, ContentRange, Multipart, Part};
use nearcast_http_rules::status::{ForwardReason, Outcome};

use super::answer::{Answered, plain};
use super::check::Request;
use super::form::{Begun, begin, choose_form, set_form};
use super::to_origin::origin_request;
use crate::body::{BeginAgain, Content, Fill, Next, Reader, repeat};
use crate::client_body::{BodyCut, ClientBody, Pieces};
use crate::compress::{ReadyCoder, coded_pieces};
use crate::forward::{OriginRequest, refill};
use crate::origin::OriginError;
use crate::stored::response::StoredResponse;
use nearcast_fleet::config::Coding;
use nearcast_fleet::report::CacheStatus;
use nearcast_store::Pool;

/// How often one body fetches missing slices without a byte in between.
const REFILLS_MAX: u32 = 3;
/// Times that a body which a client has a part of waits for a connection to the origin, each as long
/// as the site lets requests wait.
const CONNECTION_WAITS_MAX: u32 = 10;
/// Pause between two of them: where the queue for connections is full, asking fails at once.
const CONNECTION_PAUSE: Duration = Duration::from_millis(500);
/// How long a coded form that is to be made again waits for an encoder, before it asks again.
const CODER_PAUSE: Duration = Duration::from_millis(50);

/// Why a stored response was not delivered.
pub(super) enum Undelivered {
    /// It has changed since the look-up.
    LookUpAgain,
    Failed(OriginError),
}

/// Answers a request with a stored response of that age in seconds.
pub(super) async fn deliver(
    request: &Request,
    stored: &Arc<StoredResponse>,
    outcome: Outcome,
    age: u64,
) -> Result<Answered, Undelivered> {
    deliver_from(request, stored, outcome, Some(age), None).await
}

/// Answers a request with a response that the origin is sending.
pub(super) async fn deliver_fill(
    request: &Request,
    stored: &Arc<StoredResponse>,
    outcome: Outcome,
    fill: Arc<Fill>,
) -> Result<Answered, Undelivered> {
    let mut reader = stored.content.reader(0, None);
    reader.attach(fill);
    deliver_from(request, stored, outcome, None, Some(reader)).await
}

/// The part of a stored response that answers a request.
#[derive(Debug, PartialEq, Eq)]
enum Delivery {
    NotModified,
    PreconditionFailed,
    /// Its fields, for a HEAD or a response without a body.
    Head,
    Body(Part),
}

/// The form of a stored response that a client gets, and its body.
struct Shown {
    form: Form,
    content: Arc<Content>,
}

impl Shown {
    fn is_coded(&self) -> bool {
        matches!(self.form, Form::Coded(_))
    }
}

/// Decides which part of a form of a stored response answers a request. `stored` are the fields of
/// that form; `length` is that of the whole, where it is known.
fn choose_delivery(
    method: &Method,
    fields: &HeaderMap,
    status: StatusCode,
    stored: &HeaderMap,
    is_coded: bool,
    length: Option<u64>,
) -> Delivery {
    let is_range_valid = match conditional::evaluate(method, fields, status, stored) {
        Precondition::Proceed { is_range_valid } => is_range_valid,
        Precondition::NotModified => return Delivery::NotModified,
        Precondition::Failed => return Delivery::PreconditionFailed,
    };
    if method == Method::HEAD || status == StatusCode::NO_CONTENT {
        return Delivery::Head;
    }
    let is_range_valid = is_range_valid && (!is_coded || compress::may_have_range(fields));
    let specs = match is_range_valid && status == StatusCode::OK {
        true => range::requested(method, fields),
        false => None,
    };
    Delivery::Body(match (specs, length) {
        (Some(specs), Some(length)) => range::resolve(&specs, length),
        _ => Part::Whole,
    })
}

/// Makes the answer. Without an age the response comes from the origin now, and `filling` reads it.
async fn deliver_from(
    request: &Request,
    stored: &Arc<StoredResponse>,
    mut outcome: Outcome,
    age: Option<u64>,
    mut filling: Option<Reader>,
) -> Result<Answered, Undelivered> {
    let mut shown = Shown {
        form: choose_form(request, stored),
        content: stored.content.clone(),
    };
    let mut decided = decide(request, stored, age, shown.form, None);
    if let Form::Coded(coding) = shown.form {
        let number = compress::number(coding);
        let coded = match decided.1 {
            Delivery::NotModified => stored.content.usable_coded(number),
            _ => coded_content(request, stored, coding, &mut outcome, &mut filling).await?,
        };
        let is_head = request.method == Method::HEAD;
        if coded.is_none() && !is_head && decided.1 != Delivery::NotModified {
            shown.form = Form::Identity;
        }
        decided = decide(request, stored, age, shown.form, coded.as_deref());
        if let Some(coded) = coded {
            shown.content = coded;
            filling = None;
        }
    }

    let (fields, delivery) = decided;
    // The length of a coded body that is not there is unknown.
    let length = match shown.is_coded() && Arc::ptr_eq(&shown.content, &stored.content) {
        true => None,
        false => shown.content.length(),
    };
    let mut response = Response::new(ClientBody::empty());
    *response.status_mut() = stored.status;
    *response.headers_mut() = fields;
    let fields = response.headers_mut();
    match delivery {
        Delivery::NotModified => {
            *fields = conditional::not_modified_fields(std::mem::take(fields));
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        Delivery::PreconditionFailed => {
            response = plain(
                StatusCode::PRECONDITION_FAILED,
                "the stored representation does not meet the conditions\n",
            );
        }
        Delivery::Head => {
            if stored.status != StatusCode::NO_CONTENT
                && let Some(length) = length
            {
                fields.insert(CONTENT_LENGTH, length.into());
            }
        }
        Delivery::Body(part) => {
            let (status, body) =
                deliver_part(request, stored, &shown, part, fields, &mut outcome, filling).await?;
            stored.content.body.touch();
            shown.content.body.touch();
            *response.status_mut() = status;
            *response.body_mut() = body;
        }
    }
    Ok(Answered {
        response,
        outcome,
        stored: Some(stored.clone()),
    })
}

/// The fields of a form of a stored response, and the part of it that answers a request. `coded` is
/// the coded form, once there is one.
fn decide(
    request: &Request,
    stored: &StoredResponse,
    age: Option<u64>,
    form: Form,
    coded: Option<&Content>,
) -> (HeaderMap, Delivery) {
    let is_coded = matches!(form, Form::Coded(_));
    let identity_length = stored.content.length();
    let is_rangeable = stored.status == StatusCode::OK && identity_length.is_some();
    let via = request.worker.edge.via.received(stored.version);
    let mut fields = forward::stored(stored.fields(), age, is_rangeable, via);
    set_form(&mut fields, form, coded, &request.fields);

    let delivery = choose_delivery(
        &request.method,
        &request.fields,
        stored.status,
        &fields,
        is_coded,
        match is_coded {
            true => coded.and_then(Content::length),
            false => identity_length,
        },
    );
    (fields, delivery)
}

/// The coded form of a stored response, which is begun where it is not there. `None` where the
/// client gets another one. A form whose body is short and stored is waited for, so that its length
/// is known.
async fn coded_content(
    request: &Request,
    stored: &Arc<StoredResponse>,
    coding: Coding,
    outcome: &mut Outcome,
    filling: &mut Option<Reader>,
) -> Result<Option<Arc<Content>>, Undelivered> {
    let number = compress::number(coding);
    let is_at_hand = stored.content.whole_in_memory().is_some();
    // A HEAD fetches no body.
    if request.method == Method::HEAD && !is_at_hand {
        return Ok(stored.content.usable_coded(number));
    }
    let coded = match begin(request, stored, coding) {
        Begun::Identity => return Ok(None),
        Begun::Found(coded) => coded,
        Begun::New(new) => {
            let coded = new.content.clone();
            let reader = filling
                .take()
                .unwrap_or_else(|| stored.content.reader(0, stored.content.length()));
            let identity = Shown {
                form: Form::Identity,
                content: stored.content.clone(),
            };
            match read(request, stored, &identity, reader, outcome).await {
                Ok(pieces) => new.start(request, stored, pieces),
                Err(undelivered) => {
                    new.give_up(stored);
                    return Err(undelivered);
                }
            }
            coded
        }
    };
    if is_at_hand && (!coded.fills_ended().await || stored.content.is_coded_refused(number)) {
        return Ok(None);
    }
    Ok(Some(coded))
}

/// Sets the fields of one part of a form of a stored response, and gives its status and body.
async fn deliver_part(
    request: &Request,
    stored: &Arc<StoredResponse>,
    shown: &Shown,
    part: Part,
    fields: &mut HeaderMap,
    outcome: &mut Outcome,
    filling: Option<Reader>,
) -> Result<(StatusCode, ClientBody), Undelivered> {
    let content = &shown.content;
    let length = content.length();
    match part {
        Part::Unsatisfiable => {
            let unsatisfied = ContentRange::Unsatisfied(length.unwrap_or(0));
            fields.insert(CONTENT_RANGE, unsatisfied.to_value());
            fields.remove(CONTENT_TYPE);
            Ok((StatusCode::RANGE_NOT_SATISFIABLE, ClientBody::empty()))
        }
        Part::Whole => {
            if let Some(length) = length {
                fields.insert(CONTENT_LENGTH, length.into());
            }
            let body = match content.whole_in_memory() {
                Some(bytes) => ClientBody::whole(bytes),
                None => {
                    let reader = filling.unwrap_or_else(|| content.reader(0, length));
                    let pieces = read(request, stored, shown, reader, outcome).await?;
                    ClientBody::stream(pieces, length)
                }
            };
            Ok((stored.status, body))
        }
        Part::Ranges(ranges) if ranges.len() == 1 => {
            let range = ranges[0];
            let content_range = ContentRange::Bytes {
                range,
                complete: length,
            };
            fields.insert(CONTENT_RANGE, content_range.to_value());
            fields.insert(CONTENT_LENGTH, range.length().into());
            let reader = content.reader(range.first, Some(range.end()));
            let pieces = read(request, stored, shown, reader, outcome).await?;
            let body = ClientBody::stream(pieces, Some(range.length()));
            Ok((StatusCode::PARTIAL_CONTENT, body))
        }
        Part::Ranges(ranges) => {
            let is_missing =
                |range: &ByteRange| !content.is_filling() && !content.has(range.first, range.end());
            if !content.has_validator() && ranges.iter().any(is_missing) {
                if !shown.is_coded() {
                    request.worker.edge.unpublish(stored);
                }
                return Err(Undelivered::LookUpAgain);
            }
            let boundary = format!(
                "nearcast{:016x}{:016x}",
                content.body.id.0, request.began_ms
            );
            let own = stored.fields();
            let frame = Multipart::new(
                &boundary,
                own.get(CONTENT_TYPE),
                ranges,
                length.unwrap_or(0),
            );
            fields.insert(CONTENT_TYPE, frame.content_type());
            fields.insert(CONTENT_LENGTH, frame.content_length().into());
            let pieces = multipart(request, stored, shown, &frame, outcome);
            let body = ClientBody::stream(pieces, Some(frame.content_length()));
            Ok((StatusCode::PARTIAL_CONTENT, body))
        }
    }
}

/// The body of a range, as a stream. If no fill is under way, its first piece is read before the
/// head is sent, so that an origin that fails gives an error and no response that is cut.
async fn read(
    request: &Request,
    stored: &Arc<StoredResponse>,
    shown: &Shown,
    reader: Reader,
    outcome: &mut Outcome,
) -> Result<Pieces, Undelivered> {
    let is_first_hand = outcome.label == CacheStatus::Miss;
    let content = &shown.content;
    let mut reading = Reading::new(request, stored, shown, reader, outcome);
    reading.reader.attach_running();
    let (at, end) = reading.reader.range();
    if !content.is_filling() || !content.has_or_awaits(at) {
        let is_whole = end.is_none_or(|end| content.has(at, end));
        // It is made anew as a whole.
        if !is_whole && shown.is_coded() && !content.is_repeatable(at) {
            return Err(Undelivered::LookUpAgain);
        }
        if !is_whole && !is_first_hand && !shown.is_coded() {
            if !stored.content.has_validator() {
                request.worker.edge.unpublish(stored);
                return Err(Undelivered::LookUpAgain);
            }
            outcome.label = CacheStatus::Partial;
            outcome.forward = Some(ForwardReason::Partial);
        }
        match reading.next().await {
            Ok(first) => reading.first = first,
            Err(OriginError::Unfit) => return Err(Undelivered::LookUpAgain),
            Err(error) => return Err(Undelivered::Failed(error)),
        }
    }
    Ok(pieces(reading))
}

fn pieces(reading: Reading) -> Pieces {
    Box::pin(stream::unfold(Some(reading), |reading| async {
        let mut reading = reading?;
        match reading.next().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(BodyCut(error.to_string())), None)),
        }
    }))
}

/// A `multipart/byteranges` body.
fn multipart(
    request: &Request,
    stored: &Arc<StoredResponse>,
    shown: &Shown,
    frame: &Multipart,
    outcome: &Outcome,
) -> Pieces {
    let mut parts: Vec<MultipartPiece> = Vec::new();
    for (number, ByteRange { first, last }) in frame.ranges().iter().enumerate() {
        parts.push(MultipartPiece::Text(frame.head(number).into()));
        let reader = shown.content.reader(*first, Some(last + 1));
        let reading = Reading::new(request, stored, shown, reader, outcome);
        parts.push(MultipartPiece::Range(Box::new(reading)));
    }
    parts.push(MultipartPiece::Text(frame.tail().into()));
    parts.reverse();

    Box::pin(stream::unfold(parts, |mut parts| async {
        loop {
            match parts.pop()? {
                MultipartPiece::Text(text) => return Some((Ok(text), parts)),
                MultipartPiece::Range(mut reading) => match reading.next().await {
                    Ok(Some(piece)) => {
                        parts.push(MultipartPiece::Range(reading));
                        return Some((Ok(piece), parts));
                    }
                    Ok(None) => {}
                    Err(error) => return Some((Err(BodyCut(error.to_string())), Vec::new())),
                },
            }
        }
    }))
}

enum MultipartPiece {
    Text(Bytes),
    Range(Box<Reading>),
}

/// A body that is read for one client. Has missing slices fetched, or a coded form made again; most
/// bodies have none.
struct Reading {
    reader: Reader,
    stored: Arc<StoredResponse>,
    request: Request,
    is_coded: bool,
    /// The response is for this client alone.
    is_unshared: bool,
    /// A piece that was read ahead.
    first: Option<Bytes>,
    refills: u32,
    /// Waits for a connection to the origin since the last piece.
    waits: u32,
    has_begun: bool,
    /// The client has a part of the body.
    has_sent: bool,
}

impl Reading {
    fn new(
        request: &Request,
        stored: &Arc<StoredResponse>,
        shown: &Shown,
        reader: Reader,
        outcome: &Outcome,
    ) -> Self {
        Self {
            reader,
            stored: stored.clone(),
            request: request.clone(),
            is_coded: shown.is_coded(),
            is_unshared: outcome.label == CacheStatus::Miss && !outcome.is_stored,
            first: None,
            refills: 0,
            waits: 0,
            has_begun: false,
            has_sent: false,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        if !std::mem::replace(&mut self.has_begun, true)
            && !self.is_coded
            && self.stored.content.is_filling()
        {
            let (at, end) = self.reader.range();
            refill::seek_ahead(&self.origin_request(), &self.stored, at, end);
        }
        loop {
            let next = self.reader.next().await;
            let failure = match next {
                Next::Piece(piece) => {
                    (self.refills, self.waits) = (0, 0);
                    self.has_sent = true;
                    return Ok(Some(piece));
                }
                Next::End => return Ok(None),
                Next::Failed(error) if self.may_wait(error).await => None,
                Next::Failed(error) => Some(error),
                Next::Missing => None,
            };
            self.may_refill(failure)?;
            self.refills += 1;
            if let Err(error) = self.refill().await
                && !self.may_wait(error).await
            {
                return Err(error);
            }
        }
    }

    /// Whether a refill failed only because all connections to the origin were in use, and the client
    /// has a part of the body: that part is of no use without the rest, so the next refill waits
    /// again. Returns after a pause then.
    async fn may_wait(&mut self, error: OriginError) -> bool {
        let is_waiting = error == OriginError::ConnectionLimit
            && self.has_sent
            && self.waits < CONNECTION_WAITS_MAX;
        if is_waiting {
            self.waits += 1;
            self.refills = 0;
            tokio::time::sleep(CONNECTION_PAUSE).await;
        }
        is_waiting
    }

    /// Whether missing slices may be fetched; `failure` is why their fill ended.
    fn may_refill(&self, failure: Option<OriginError>) -> Result<(), OriginError> {
        let has_refills = self.refills < REFILLS_MAX;
        let is_joinable = !self.is_coded && self.stored.content.has_validator();
        if !is_joinable && !self.reader.is_repeatable() {
            return Err(failure.unwrap_or(OriginError::Incomplete));
        }
        // Another node takes the rest from the origin itself, within its own order.
        if self.request.is_peer && is_joinable {
            return Err(OriginError::BetweenBytesTimeout);
        }
        match failure {
            None if has_refills => Ok(()),
            None => Err(OriginError::Incomplete),
            // The origin has another body by now. An encoder that was not flushed where the first
            // one was gives other bytes once.
            Some(OriginError::Unfit) if !self.is_coded => Err(OriginError::Unfit),
            Some(error) => {
                let may_retry =
                    has_refills && (self.is_coded || self.request.target().take_retry());
                may_retry.then_some(()).ok_or(error)
            }
        }
    }

    /// Has the missing bytes at the reader's offset brought, in the way in which they can be.
    async fn refill(&mut self) -> Result<(), OriginError> {
        let (at, end) = self.reader.range();
        if self.is_coded {
            return self.make_again(at).await;
        }
        let (origin, reader) = (self.origin_request(), &mut self.reader);
        if !self.stored.content.has_validator() {
            return refill::fetch_again(&origin, &self.stored, at, reader).await;
        }
        let end = end.unwrap_or(at + 1);
        refill::fetch_missing(&origin, &self.stored, at, end, Pool::Pull, Some(reader)).await
    }

    /// Has the coded form made again for a reader that is behind.
    async fn make_again(&mut self, at: u64) -> Result<(), OriginError> {
        let form = self.reader.content().clone();
        let recipe = form.recipe().filter(|recipe| recipe.is_exact());
        let recipe = recipe.ok_or(OriginError::Incomplete)?;
        let mut writer = match form.begin_again(at) {
            BeginAgain::Found => return Ok(()),
            BeginAgain::Unknown => return Err(OriginError::Incomplete),
            BeginAgain::Busy(fill) => {
                fill.ended().await;
                return Ok(());
            }
            BeginAgain::New(writer) => writer,
        };
        self.reader.attach(writer.fill().clone());
        let edge = self.request.worker.edge.clone();
        writer.join(edge.forwards.fills.windows());

        let identity = &self.stored.content;
        let identity = Self {
            reader: identity.reader(0, identity.length()),
            stored: self.stored.clone(),
            request: self.request.clone(),
            is_coded: false,
            is_unshared: self.is_unshared,
            first: None,
            refills: 0,
            waits: 0,
            has_begun: true,
            has_sent: self.has_sent,
        };
        tokio::spawn(async move {
            let permit = loop {
                match edge.compressions.enter(recipe.coding) {
                    Some(permit) => break permit,
                    None if writer.has_readers() => tokio::time::sleep(CODER_PAUSE).await,
                    None => return writer.fail(OriginError::GivenUp),
                }
            };
            match ReadyCoder::replaying(permit, &recipe) {
                Some(coder) => {
                    let coder = coder.read(pieces(identity));
                    repeat(writer, coded_pieces(coder)).await;
                }
                None => writer.fail(OriginError::Incomplete),
            }
        });
        Ok(())
    }

    /// The request for missing slices, which is made only where there are some.
    fn origin_request(&self) -> OriginRequest {
        let vary = self.stored.vary_names();
        let policy = &self.request.site.cache;
        let which = match self.is_unshared {
            true => ClientFields::Storable,
            false => ClientFields::Shared {
                policy,
                vary: &vary,
            },
        };
        origin_request(&self.request, which)
    }
}

#[cfg(test)]
mod tests {
    use nearcast_http_rules::testing::map;

    use super::*;

    #[test]
    fn conditions_come_first_then_the_method_and_then_ranges() {
        let range = |first, last| Delivery::Body(Part::Ranges(vec![ByteRange { first, last }]));
        let get = Method::GET;
        type Row<'a> = (Method, &'a [&'a str], u16, Option<u64>, Delivery);
        let table: [Row<'_>; 13] = [
            (get.clone(), &[], 200, Some(10), Delivery::Body(Part::Whole)),
            (
                Method::HEAD,
                &["range: bytes=0-4"],
                200,
                Some(10),
                Delivery::Head,
            ),
            (get.clone(), &[], 204, Some(0), Delivery::Head),
            (
                get.clone(),
                &["range: bytes=0-4"],
                200,
                Some(10),
                range(0, 4),
            ),
            (
                get.clone(),
                &["range: bytes=20-"],
                200,
                Some(10),
                Delivery::Body(Part::Unsatisfiable),
            ),
            // A length that is not known, or an error, has no ranges.
            (
                get.clone(),
                &["range: bytes=0-4"],
                200,
                None,
                Delivery::Body(Part::Whole),
            ),
            (
                get.clone(),
                &["range: bytes=0-4"],
                404,
                Some(10),
                Delivery::Body(Part::Whole),
            ),
            (
                get.clone(),
                &["if-none-match: \"a\"", "range: bytes=0-4"],
                200,
                Some(10),
                Delivery::NotModified,
            ),
            (
                Method::HEAD,
                &["if-none-match: \"a\""],
                200,
                Some(10),
                Delivery::NotModified,
            ),
            (
                get.clone(),
                &["if-match: \"b\""],
                200,
                Some(10),
                Delivery::PreconditionFailed,
            ),
            (
                get.clone(),
                &["if-range: \"a\"", "range: bytes=0-4"],
                200,
                Some(10),
                range(0, 4),
            ),
            (
                get.clone(),
                &["if-range: \"b\"", "range: bytes=0-4"],
                200,
                Some(10),
                Delivery::Body(Part::Whole),
            ),
            (
                get,
                &["range: lines=0-4"],
                200,
                Some(10),
                Delivery::Body(Part::Whole),
            ),
        ];
        let stored = map(&["etag: \"a\""]);
        for (method, fields, status, length, expected) in table {
            let status = StatusCode::from_u16(status).expect("valid");
            assert_eq!(
                choose_delivery(&method, &map(fields), status, &stored, false, length),
                expected,
                "{method} {fields:?} {status} {length:?}"
            );
        }
    }
}
