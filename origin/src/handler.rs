//! The life of one request, in order: method, path, file, variant, preconditions and range,
//! response.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ALLOW,
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, LAST_MODIFIED,
    LOCATION, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use nearcast_fleet::config::OriginRule;

use crate::body::FileBody;
use crate::coding::{self, Coding};
use crate::conditions::{self, Validators, Verdict};
use crate::metrics::Metrics;
use crate::path::{self, Found, PathError};
use crate::rules;

/// Bytes of a request target; past it 414.
const TARGET_BYTES_MAX: usize = 8 * 1024;
/// How long errors may be kept by caches.
const ERROR_CACHE_CONTROL: &str = "max-age=2";

/// What every request is answered from.
#[derive(Debug)]
pub(crate) struct Handler {
    /// The root, canonical.
    pub(crate) root: PathBuf,
    /// The fleet file's rules; they change with it.
    pub(crate) rules: tokio::sync::watch::Receiver<Arc<Vec<OriginRule>>>,
    /// Counters.
    pub(crate) metrics: Metrics,
}

/// A file that was opened: what it is and which bytes.
struct Opened {
    file: File,
    bytes: u64,
    modified: SystemTime,
    etag: String,
    coding: Option<Coding>,
    has_variants: bool,
}

/// Answers one request. Its body, if it has one, is never read; the connection then ends with the
/// response.
pub(crate) async fn handle<B>(handler: Arc<Handler>, request: Request<B>) -> Response<FileBody> {
    let (method, target, fields) = (
        request.method().clone(),
        request.uri().clone(),
        request.headers().clone(),
    );
    let answering = handler.clone();
    // Opening files blocks; so does looking them up.
    let answered =
        tokio::task::spawn_blocking(move || answering.answer(&method, &target, &fields)).await;
    let mut response = answered.unwrap_or_else(|_| {
        handler.error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The origin failed.",
            false,
        )
    });
    handler.metrics.answered(response.status());
    if let Ok(now) = HeaderValue::from_str(&httpdate::fmt_http_date(SystemTime::now())) {
        response.headers_mut().insert(DATE, now);
    }
    response
}

impl Handler {
    fn answer(&self, method: &Method, target: &Uri, fields: &HeaderMap) -> Response<FileBody> {
        let is_head = method == Method::HEAD;
        if method != Method::GET && !is_head {
            let mut refused = match *method {
                Method::OPTIONS => self.empty(StatusCode::NO_CONTENT),
                _ => self.error(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "This server answers GET and HEAD.",
                    false,
                ),
            };
            refused
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
            return refused;
        }
        if target
            .path_and_query()
            .is_some_and(|p| p.as_str().len() > TARGET_BYTES_MAX)
        {
            return self.error(
                StatusCode::URI_TOO_LONG,
                "The address is too long.",
                is_head,
            );
        }
        let path = match path::decode(target.path()) {
            Ok(path) => path,
            Err(PathError::Hidden) => return self.not_found(is_head),
            Err(bad @ PathError::Bad(_)) => {
                return self.error(
                    StatusCode::BAD_REQUEST,
                    &format!("That cannot be asked for: {bad}."),
                    is_head,
                );
            }
        };
        match path::find(&self.root, &path) {
            Found::File(real, path) => match open(&self.root, &real, fields) {
                Ok(opened) => self.file(&path, opened, fields, is_head),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    self.not_found(is_head)
                }
                Err(error) => {
                    tracing::warn!(file = %real.display(), %error, "a file cannot be opened");
                    self.error(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "The file cannot be read.",
                        is_head,
                    )
                }
            },
            Found::Directory => self.redirect(target),
            Found::Nothing => self.not_found(is_head),
        }
    }

    fn file(
        &self,
        path: &str,
        opened: Opened,
        fields: &HeaderMap,
        is_head: bool,
    ) -> Response<FileBody> {
        let validators = Validators {
            etag: &opened.etag,
            modified: opened.modified,
            bytes: opened.bytes,
        };
        let verdict = conditions::decide(fields, validators, !is_head);
        let (status, first, length) = match verdict {
            Verdict::Whole => (StatusCode::OK, 0, opened.bytes),
            Verdict::Part { first, last } => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
            Verdict::NotModified => (StatusCode::NOT_MODIFIED, 0, 0),
            Verdict::PreconditionFailed => {
                return self.error(
                    StatusCode::PRECONDITION_FAILED,
                    "The file is not the one you mean.",
                    is_head,
                );
            }
            Verdict::Unsatisfiable => {
                let mut response = self.error(
                    StatusCode::RANGE_NOT_SATISFIABLE,
                    "The file has no such bytes.",
                    is_head,
                );
                put(
                    &mut response,
                    CONTENT_RANGE,
                    &format!("bytes */{}", opened.bytes),
                );
                return response;
            }
        };
        let is_empty = is_head || status == StatusCode::NOT_MODIFIED;
        let sent = self.metrics.response_bytes.clone();
        let body = if is_empty {
            FileBody::text(Bytes::new(), sent)
        } else {
            FileBody::file(opened.file, first, length, sent)
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        put(&mut response, ETAG, &opened.etag);
        put(
            &mut response,
            LAST_MODIFIED,
            &httpdate::fmt_http_date(opened.modified),
        );
        put(
            &mut response,
            CACHE_CONTROL,
            rules::cache_control(path, &self.rules.borrow()),
        );
        if opened.has_variants {
            put(&mut response, VARY, "Accept-Encoding");
        }
        if rules::is_shared(path) {
            put(&mut response, ACCESS_CONTROL_ALLOW_ORIGIN, "*");
            put(
                &mut response,
                ACCESS_CONTROL_EXPOSE_HEADERS,
                "Age, Cache-Status, Content-Range",
            );
        }
        if status == StatusCode::NOT_MODIFIED {
            return response;
        }
        put(&mut response, CONTENT_TYPE, rules::content_type(path));
        put(&mut response, ACCEPT_RANGES, "bytes");
        if let Some(coding) = opened.coding {
            put(&mut response, CONTENT_ENCODING, coding.name);
        }
        if is_head {
            put(
                &mut response,
                http::header::CONTENT_LENGTH,
                &length.to_string(),
            );
        }
        if status == StatusCode::PARTIAL_CONTENT {
            put(
                &mut response,
                CONTENT_RANGE,
                &format!("bytes {first}-{}/{}", first + length - 1, opened.bytes),
            );
        }
        response
    }

    fn redirect(&self, target: &Uri) -> Response<FileBody> {
        let mut response = self.error(
            StatusCode::MOVED_PERMANENTLY,
            "This is a directory; its address ends with a slash.",
            false,
        );
        let query = target.query().map(|q| format!("?{q}")).unwrap_or_default();
        put(
            &mut response,
            LOCATION,
            &format!("{}/{query}", target.path()),
        );
        put(&mut response, CACHE_CONTROL, "max-age=60");
        response
    }

    fn not_found(&self, is_head: bool) -> Response<FileBody> {
        self.error(
            StatusCode::NOT_FOUND,
            "There is nothing at this address.",
            is_head,
        )
    }

    fn empty(&self, status: StatusCode) -> Response<FileBody> {
        let mut response = Response::new(FileBody::text(
            Bytes::new(),
            self.metrics.response_bytes.clone(),
        ));
        *response.status_mut() = status;
        response
    }

    /// A page that says what happened.
    fn error(&self, status: StatusCode, said: &str, is_head: bool) -> Response<FileBody> {
        let title = format!(
            "{} {}",
            status.as_u16(),
            status.canonical_reason().unwrap_or("Error")
        );
        let page = include_str!("error.html")
            .replace("{title}", &title)
            .replace("{said}", said);
        let length = page.len();
        let text = if is_head {
            Bytes::new()
        } else {
            Bytes::from(page)
        };
        let mut response = Response::new(FileBody::text(text, self.metrics.response_bytes.clone()));
        *response.status_mut() = status;
        put(&mut response, CONTENT_TYPE, "text/html; charset=utf-8");
        put(&mut response, CACHE_CONTROL, ERROR_CACHE_CONTROL);
        if is_head {
            put(
                &mut response,
                http::header::CONTENT_LENGTH,
                &length.to_string(),
            );
        }
        response
    }
}

fn put(response: &mut Response<FileBody>, name: http::HeaderName, value: &str) {
    // Values are ours or were checked; one that is no field value is left out rather than sent
    // broken.
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// Opens the variant that the client likes best. A variant is a file like others: it may be a link,
/// but none that leads out of the root.
fn open(root: &Path, path: &Path, fields: &HeaderMap) -> std::io::Result<Opened> {
    let beside = |coding: &Coding| {
        let mut name = path.as_os_str().to_owned();
        name.push(coding.suffix);
        path::real_file(root, &PathBuf::from(name))
    };
    let has_variants = coding::CODINGS.iter().any(|c| beside(c).is_some());
    if has_variants {
        for coding in coding::accepted(fields) {
            let Some(variant) = beside(&coding) else {
                continue;
            };
            match open_one(&variant, Some(coding), has_variants) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                opened => return opened,
            }
        }
    }
    open_one(path, None, has_variants)
}

fn open_one(path: &Path, coding: Option<Coding>, has_variants: bool) -> std::io::Result<Opened> {
    let file = File::open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    let etag = etag(&about, coding.map_or("", |c| c.name));
    Ok(Opened {
        bytes: about.len(),
        modified: conditions::whole_seconds(about.modified()?),
        etag,
        file,
        coding,
        has_variants,
    })
}

/// A strong tag: a digest of what changes whenever the bytes do. Inode, length, change of content
/// and of inode in nanoseconds: the last one is set by the kernel alone, so that a tool which puts
/// back an old modification time still makes a new tag.
fn etag(about: &std::fs::Metadata, coding: &str) -> String {
    use std::os::unix::fs::MetadataExt;
    let facts = format!(
        "{}.{}.{}.{}.{}.{coding}",
        about.ino(),
        about.len(),
        about.mtime(),
        about.mtime_nsec(),
        change(about)
    );
    format!("\"{}\"", &blake3::hash(facts.as_bytes()).to_hex()[..20])
}

/// When the inode changed. Making another hard link changes it too, which costs a cache one
/// validation and nothing else.
fn change(about: &std::fs::Metadata) -> String {
    use std::os::unix::fs::MetadataExt;
    format!("{}.{}", about.ctime(), about.ctime_nsec())
}
