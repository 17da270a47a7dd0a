//! The form of a stored response that a request gets: as the origin sent it, or with a content
//! coding. Begins the coded forms that are not there yet.
//!
//! The rules are those of [`nearcast_http_rules::compress`].

use std::sync::Arc;

use http::header::{ETAG, RANGE};
use http::{HeaderMap, Method, Response};
use nearcast_fleet::config::Coding;
use nearcast_http_rules::compress::{self, Accepted, Form, FormId};

use super::check::Request;
use crate::body::{BeginCoded, Content, FillWriter};
use crate::client_body::{ClientBody, Pieces};
use crate::compress::{Job, ReadyCoder, coded_pieces};
use crate::stored::response::StoredResponse;

/// The form that a request gets, as far as its fields and what is stored decide on it.
pub(super) fn choose_form(request: &Request, stored: &StoredResponse) -> Form {
    let policy = &request.site.compression;
    // Other nodes store what the origin sent.
    if request.is_peer
        || !stored.is_compressible(policy)
        || !compress::is_fit_length(stored.content.length(), &policy.policy)
    {
        return Form::Only;
    }
    let accepted = Accepted::of_request(&request.fields);
    let Some(coding) = accepted.preferred(&policy.policy.codings) else {
        return Form::Identity;
    };

    let number = compress::number(coding);
    let content = &stored.content;
    if content.is_coded_refused(number) {
        return Form::Identity;
    }
    if accepted.accepts_identity() && request.method == Method::GET {
        // A part of a form that is not whole would cost all of the body, and has no length.
        let is_costly_part = || {
            request.fields.contains_key(RANGE)
                && content
                    .usable_coded(number)
                    .is_none_or(|form| form.length().is_none())
        };
        if compress::names_identity(&request.fields, &stored.fields()) || is_costly_part() {
            return Form::Identity;
        }
    }
    Form::Coded(coding)
}

/// The fields of a form, from those of the identity form. `coded` is the coded form, once there is
/// one.
pub(super) fn set_form(
    fields: &mut HeaderMap,
    form: Form,
    coded: Option<&Content>,
    request: &HeaderMap,
) {
    match form {
        Form::Only => {}
        Form::Identity => compress::add_vary(fields),
        Form::Coded(coding) => {
            let known = compress::known_form(request, fields.get(ETAG), coding);
            let id = coded.map(|form| FormId(form.form_id()));
            let length = coded.and_then(Content::length);
            compress::set_coded(fields, coding, id, length);
            if let Some(tag) = known {
                fields.insert(ETAG, tag);
            }
        }
    }
}

/// What [`begin`] finds.
pub(super) enum Begun {
    /// A form that is there, or that another request has begun.
    Found(Arc<Content>),
    /// A form that this request begins: it has to give the body to it.
    New(Box<NewForm>),
    /// The form without a coding goes out: too much is being coded, or the body is not shorter.
    Identity,
}

/// A coded form whose body is to be read.
pub(super) struct NewForm {
    pub(super) content: Arc<Content>,
    coder: ReadyCoder,
    writer: FillWriter,
    coding: Coding,
}

/// Finds a coded form, or begins it.
pub(super) fn begin(request: &Request, stored: &StoredResponse, coding: Coding) -> Begun {
    let number = compress::number(coding);
    if let Some(form) = stored.content.usable_coded(number) {
        return Begun::Found(form);
    }
    let level = request.site.compression.policy.level;
    let permit = request.worker.edge.compressions.enter(coding);
    let coder = permit.and_then(|p| ReadyCoder::new(p, level, stored.content.length()));
    let Some(coder) = coder else {
        return Begun::Identity;
    };
    match stored.content.begin_coded(number) {
        BeginCoded::Begun(form) => Begun::Found(form),
        BeginCoded::Refused => Begun::Identity,
        BeginCoded::New(writer) => Begun::New(Box::new(NewForm {
            content: writer.content().clone(),
            coder,
            writer,
            coding,
        })),
    }
}

impl NewForm {
    /// Codes the body, whose pieces these are, as a task of its own.
    pub(super) fn start(mut self, request: &Request, stored: &StoredResponse, pieces: Pieces) {
        self.writer
            .join(request.worker.edge.forwards.fills.windows());
        self.content.set_recipe(self.coder.recipe().clone());
        let job = Job::new(stored.content.clone(), self.coding, self.writer);
        tokio::spawn(job.run(self.coder.read(pieces)));
    }

    /// Gives the form up: the body cannot be read.
    pub(super) fn give_up(self, stored: &StoredResponse) {
        drop(Job::new(stored.content.clone(), self.coding, self.writer));
    }
}

/// A response that goes to one client and is stored nowhere, in the form that its request gets.
/// `pieces` are those of its body; none where it has no body.
pub(super) fn passed_form(
    request: &Request,
    response: &mut Response<()>,
    length: Option<u64>,
    pieces: Option<Pieces>,
) -> ClientBody {
    let policy = &request.site.compression.policy;
    let (status, fields) = (response.status(), response.headers_mut());
    let form = match request.is_peer {
        true => Form::Only,
        false => compress::form_of_uncached(&request.fields, status, fields, length, policy),
    };
    let body = |pieces: Option<Pieces>| match pieces {
        Some(pieces) => ClientBody::stream(pieces, length),
        None => ClientBody::empty(),
    };
    match form {
        Form::Only => body(pieces),
        Form::Identity => {
            compress::add_vary(fields);
            body(pieces)
        }
        Form::Coded(coding) => {
            let Some(pieces) = pieces else {
                compress::set_coded_once(fields, coding);
                return ClientBody::empty();
            };
            let permit = request.worker.edge.compressions.enter_once(coding);
            match permit.and_then(|permit| ReadyCoder::new(permit, policy.level, length)) {
                Some(coder) => {
                    compress::set_coded_once(fields, coding);
                    ClientBody::stream(coded_pieces(coder.read(pieces)), None)
                }
                None => {
                    compress::add_vary(fields);
                    ClientBody::stream(pieces, length)
                }
            }
        }
    }
}
