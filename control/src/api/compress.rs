//! Compressed responses: gzip for clients that accept it (RFC 9110 8.4.1.3, 12.5.3).
//!
//! A console asks several times a second for JSON that compresses to a fifth or less. Event streams
//! stay as they are, because a compressor would hold events back. Responses to requests with a
//! credential stay as they are, too: a compressed length may disclose a secret beside chosen text.

use std::io::Write as _;

use axum::body::{Body, HttpBody as _, to_bytes};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{self, HeaderMap};
use http::{HeaderValue, StatusCode};
use nearcast_http_rules::coding;

/// Smaller bodies fit into one packet anyway.
const BYTES_MIN: u64 = 860;
/// Larger bodies would keep a core busy for too long; no answer that a console asks for is larger.
const BYTES_MAX: u64 = 4 << 20;

/// Compresses the response of a request if both permit it.
pub(super) async fn pass(request: Request, next: Next) -> Response {
    let is_wanted =
        accepts_gzip(request.headers()) && !request.headers().contains_key(header::AUTHORIZATION);
    let mut response = next.run(request).await;
    if !is_compressible(&response) {
        return response;
    }
    response
        .headers_mut()
        .append(header::VARY, HeaderValue::from_static("accept-encoding"));
    if !is_wanted {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let Ok(plain) = to_bytes(body, BYTES_MAX as usize).await else {
        // Its length is known, so it is complete in memory.
        return Response::from_parts(head, Body::empty());
    };
    let body = match gzip(&plain) {
        Ok(packed) => {
            head.headers
                .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            head.headers.remove(header::CONTENT_LENGTH);
            Body::from(packed)
        }
        Err(_) => Body::from(plain),
    };
    Response::from_parts(head, body)
}

fn gzip(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::new(5));
    encoder.write_all(plain)?;
    encoder.finish()
}

/// Whether a response is text of a known, fitting length that no one has encoded.
fn is_compressible(response: &Response) -> bool {
    let content_type = response
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let is_text = [
        "application/json",
        "text/html",
        "text/javascript",
        "text/css",
        "image/svg+xml",
    ]
    .iter()
    .any(|t| content_type.starts_with(t));
    let length = response.body().size_hint().exact();
    is_text
        && response.status() != StatusCode::PARTIAL_CONTENT
        && !response.headers().contains_key(header::CONTENT_ENCODING)
        && length.is_some_and(|bytes| (BYTES_MIN..=BYTES_MAX).contains(&bytes))
}

/// Whether a client named gzip, or anything, and wants it no less than the plain form.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    !coding::preferred(headers, &["gzip"]).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::routing::get;
    use flate2::read::GzDecoder;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    use std::io::Read as _;

    #[test]
    fn gzip_is_accepted_by_name_or_by_asterisk_and_never_with_a_weight_of_zero() {
        for (field, expected) in [
            ("gzip", true),
            ("GZIP", true),
            ("br, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip; q=0.000", false),
            ("*", true),
            ("*;q=0", false),
            ("gzip;q=0, *", false),
            ("identity", false),
            ("", false),
            ("gzipped", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(field));
            assert_eq!(accepts_gzip(&headers), expected, "{field:?}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    async fn ask(path: &str, fields: &[(&str, &str)]) -> Response {
        let text = |kind: &'static str, body: String| {
            get(move || {
                let body = body.clone();
                async move { ([(header::CONTENT_TYPE, kind)], body) }
            })
        };
        let router = Router::new()
            .route("/json", text("application/json", "[1,2,3]".repeat(1000)))
            .route("/small", text("application/json", "[1]".to_owned()))
            .route("/picture", text("image/png", "x".repeat(9000)))
            .route(
                "/events",
                text("text/event-stream", "data: 1\n\n".repeat(1000)),
            )
            .layer(axum::middleware::from_fn(pass));
        let mut request = Request::get(path);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        TowerToHyperService::new(router)
            .call(request.body(Body::empty()).unwrap())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn text_is_compressed_for_those_who_accept_it_and_show_no_credential() {
        let packed = ask("/json", &[("accept-encoding", "gzip")]).await;
        assert_eq!(packed.headers()[header::CONTENT_ENCODING], "gzip");
        assert_eq!(packed.headers()[header::VARY], "accept-encoding");
        let bytes = to_bytes(packed.into_body(), usize::MAX).await.unwrap();
        assert!(bytes.len() < 200, "{} bytes", bytes.len());
        let mut plain = String::new();
        GzDecoder::new(&bytes[..])
            .read_to_string(&mut plain)
            .unwrap();
        assert_eq!(plain, "[1,2,3]".repeat(1000));

        let plain = ask("/json", &[]).await;
        assert_eq!(plain.headers()[header::VARY], "accept-encoding");
        for response in [
            plain,
            ask(
                "/json",
                &[("accept-encoding", "gzip"), ("authorization", "Bearer x")],
            )
            .await,
            ask("/small", &[("accept-encoding", "gzip")]).await,
            ask("/picture", &[("accept-encoding", "gzip")]).await,
            ask("/events", &[("accept-encoding", "gzip")]).await,
        ] {
            assert!(!response.headers().contains_key(header::CONTENT_ENCODING));
        }
    }
}
