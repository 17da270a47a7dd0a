//! The life of one request, in order: method, path, file, representation, preconditions and range,
//! response.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ALLOW,
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, LOCATION,
    VARY,
};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri};
use nearcast_fleet::config::OriginRule;
use nearcast_http_rules::range::{ByteRange, ContentRange};

use crate::body::FileBody;
use crate::conditions::{self, Decision};
use crate::fields::put;
use crate::metrics::Metrics;
use crate::path::{self, Found, PathError};
use crate::representation::Representation;
use crate::rules;

/// Longest request target in bytes; a longer one gets 414.
const TARGET_BYTES_MAX: usize = 8 * 1024;
/// How long caches may serve an error.
const ERROR_CACHE_CONTROL: &str = "max-age=2";

/// Resource Timing, section 4.5.
const TIMING_ALLOW_ORIGIN: HeaderName = HeaderName::from_static("timing-allow-origin");

/// What every request is answered from.
#[derive(Debug)]
pub(crate) struct Handler {
    /// The root, canonical.
    pub(crate) root: PathBuf,
    /// The rules of the fleet file; they change with it.
    pub(crate) rules: tokio::sync::watch::Receiver<Arc<Vec<OriginRule>>>,
    /// Counters.
    pub(crate) metrics: Metrics,
}

/// The parts of a request that decide its response.
struct Received {
    method: Method,
    target: Uri,
    fields: HeaderMap,
    now: SystemTime,
}

impl Received {
    fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }
}

/// Answers one request. A request body is never read; the connection then ends with the response.
pub(crate) async fn handle<B>(handler: Arc<Handler>, request: Request<B>) -> Response<FileBody> {
    let received = Received {
        method: request.method().clone(),
        target: request.uri().clone(),
        fields: request.headers().clone(),
        now: SystemTime::now(),
    };
    let date = httpdate::fmt_http_date(received.now);

    // Finding and opening files blocks.
    let answering = handler.clone();
    let answered = tokio::task::spawn_blocking(move || answering.answer(&received)).await;
    let mut response = answered.unwrap_or_else(|_| {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        handler.error(status, "The origin failed.", false)
    });

    handler.metrics.answered(response.status());
    put(response.headers_mut(), DATE, &date);
    response
}

impl Handler {
    fn answer(&self, request: &Received) -> Response<FileBody> {
        let is_head = request.is_head();
        if !matches!(request.method, Method::GET | Method::HEAD) {
            return self.other_method(&request.method);
        }
        let target = request.target.path_and_query();
        if target.is_some_and(|target| target.as_str().len() > TARGET_BYTES_MAX) {
            let said = "The address is too long.";
            return self.error(StatusCode::URI_TOO_LONG, said, is_head);
        }

        let path = match path::decode(request.target.path()) {
            Ok(path) => path,
            Err(PathError::Hidden) => return self.not_found(is_head),
            Err(invalid @ PathError::Invalid(_)) => {
                let said = format!("The address is not valid: {invalid}.");
                return self.error(StatusCode::BAD_REQUEST, &said, is_head);
            }
        };
        match path::find(&self.root, &path) {
            Found::File(file, path) => self.file(&file, &path, request),
            Found::Directory => self.redirect_to_directory(&request.target),
            Found::Nothing => self.not_found(is_head),
        }
    }

    fn other_method(&self, method: &Method) -> Response<FileBody> {
        let mut response = match *method {
            Method::OPTIONS => self.empty(StatusCode::NO_CONTENT),
            _ => {
                let said = "This server answers GET and HEAD.";
                self.error(StatusCode::METHOD_NOT_ALLOWED, said, false)
            }
        };
        put(response.headers_mut(), ALLOW, "GET, HEAD, OPTIONS");
        response
    }

    /// `path` is the file's path below the root, which decides its type and lifetime.
    fn file(&self, file: &Path, path: &str, request: &Received) -> Response<FileBody> {
        match Representation::open(&self.root, file, &request.fields) {
            Ok(representation) => self.representation(path, representation, request),
            Err(error) if error.kind() == ErrorKind::NotFound => self.not_found(request.is_head()),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "cannot open a file");
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                self.error(status, "The file cannot be read.", request.is_head())
            }
        }
    }

    fn representation(
        &self,
        path: &str,
        found: Representation,
        request: &Received,
    ) -> Response<FileBody> {
        let (is_head, bytes) = (request.is_head(), found.bytes);
        let validators = found.validators(request.now);
        let decision = conditions::decide(&request.method, &request.fields, &validators, bytes);

        let part = match decision {
            Decision::Whole => None,
            Decision::Part(range) => Some(range),
            Decision::NotModified => {
                let mut response = self.empty(StatusCode::NOT_MODIFIED);
                response.headers_mut().extend(validators);
                self.put_caching_fields(response.headers_mut(), path, &found);
                return response;
            }
            Decision::PreconditionFailed => {
                let said = "The file does not meet the request's precondition.";
                return self.error(StatusCode::PRECONDITION_FAILED, said, is_head);
            }
            Decision::Unsatisfiable => return self.unsatisfiable(bytes, is_head),
        };

        let mut fields = validators;
        self.put_caching_fields(&mut fields, path, &found);
        put_content_fields(&mut fields, path, &found, part);
        if is_head {
            // HEAD has no ranges, so the length is the file's.
            put(&mut fields, CONTENT_LENGTH, &bytes.to_string());
        }

        let mut response = Response::new(match is_head {
            true => self.text(Bytes::new()),
            false => self.bytes_of(found, part),
        });
        *response.status_mut() = match part {
            Some(_) => StatusCode::PARTIAL_CONTENT,
            None => StatusCode::OK,
        };
        *response.headers_mut() = fields;
        response
    }

    /// The fields of a 200, 206 or 304 that tell caches and scripts how to use it.
    fn put_caching_fields(&self, fields: &mut HeaderMap, path: &str, found: &Representation) {
        put(
            fields,
            CACHE_CONTROL,
            rules::cache_control(path, &self.rules.borrow()),
        );
        if found.has_variants {
            put(fields, VARY, "Accept-Encoding");
        }
        if rules::is_for_other_sites(path) {
            put(fields, ACCESS_CONTROL_ALLOW_ORIGIN, "*");
            put(
                fields,
                ACCESS_CONTROL_EXPOSE_HEADERS,
                "Age, Cache-Status, Content-Range",
            );
            // Sizes and protocols of transfers in a page's performance entries.
            put(fields, TIMING_ALLOW_ORIGIN, "*");
        }
    }

    fn bytes_of(&self, found: Representation, part: Option<ByteRange>) -> FileBody {
        let (first, length) = match part {
            Some(range) => (range.first, range.length()),
            None => (0, found.bytes),
        };
        FileBody::file(
            found.file,
            first,
            length,
            self.metrics.response_bytes.clone(),
        )
    }

    fn unsatisfiable(&self, bytes: u64, is_head: bool) -> Response<FileBody> {
        let said = "The requested range is outside the file.";
        let mut response = self.error(StatusCode::RANGE_NOT_SATISFIABLE, said, is_head);
        response
            .headers_mut()
            .insert(CONTENT_RANGE, ContentRange::Unsatisfied(bytes).to_value());
        response
    }

    fn redirect_to_directory(&self, target: &Uri) -> Response<FileBody> {
        let said = "This is a directory; its address ends with a slash.";
        let mut response = self.error(StatusCode::MOVED_PERMANENTLY, said, false);
        let query = target.query().map(|q| format!("?{q}")).unwrap_or_default();
        let fields = response.headers_mut();
        put(fields, LOCATION, &format!("{}/{query}", target.path()));
        put(fields, CACHE_CONTROL, "max-age=60");
        response
    }

    fn not_found(&self, is_head: bool) -> Response<FileBody> {
        let said = "There is nothing at this address.";
        self.error(StatusCode::NOT_FOUND, said, is_head)
    }

    fn empty(&self, status: StatusCode) -> Response<FileBody> {
        let mut response = Response::new(self.text(Bytes::new()));
        *response.status_mut() = status;
        response
    }

    /// An HTML page for people, whose text is `said`.
    fn error(&self, status: StatusCode, said: &str, is_head: bool) -> Response<FileBody> {
        let reason = status.canonical_reason().unwrap_or("Error");
        let page = include_str!("error.html")
            .replace("{title}", &format!("{} {reason}", status.as_u16()))
            .replace("{said}", said);
        let length = page.len();

        let mut response = Response::new(match is_head {
            true => self.text(Bytes::new()),
            false => self.text(Bytes::from(page)),
        });
        *response.status_mut() = status;
        let fields = response.headers_mut();
        put(fields, CONTENT_TYPE, "text/html; charset=utf-8");
        put(fields, CACHE_CONTROL, ERROR_CACHE_CONTROL);
        if is_head {
            put(fields, CONTENT_LENGTH, &length.to_string());
        }
        response
    }

    fn text(&self, text: Bytes) -> FileBody {
        FileBody::text(text, self.metrics.response_bytes.clone())
    }
}

/// The fields of a 200 or 206 that describe its content.
fn put_content_fields(
    fields: &mut HeaderMap,
    path: &str,
    found: &Representation,
    part: Option<ByteRange>,
) {
    put(fields, CONTENT_TYPE, rules::content_type(path));
    put(fields, ACCEPT_RANGES, "bytes");
    if let Some(coding) = found.coding {
        put(fields, CONTENT_ENCODING, coding.name);
    }
    if let Some(range) = part {
        let content_range = ContentRange::Bytes {
            range,
            complete: Some(found.bytes),
        };
        fields.insert(CONTENT_RANGE, content_range.to_value());
    }
}
