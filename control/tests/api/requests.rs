//! Every request: refusals, host names, bodies, the console.

use bytes::Bytes;
use http::Method;
use http::Request;
use http::StatusCode;
use serde_json::json;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::lab::{KEY, Lab, SOON, address, body, fleet_text};

#[tokio::test]
async fn every_refusal_has_its_status_and_says_why() {
    let lab = Lab::start().await;
    let token = Some(lab.token.0.as_str());
    let purge = r#"{"scope":{"by":"all"}}"#;
    type Row<'a> = (
        Method,
        &'a str,
        Option<&'a str>,
        &'a str,
        Vec<u8>,
        u16,
        &'a str,
    );
    let table: [Row<'_>; 26] = [
        (Method::GET, "/v1/none", None, "", vec![], 404, "not_found"),
        (Method::GET, "/v1", None, "", vec![], 404, "not_found"),
        (Method::GET, "/none.js", None, "", vec![], 404, "not_found"),
        (
            Method::GET,
            "/../Cargo.toml",
            None,
            "",
            vec![],
            404,
            "not_found",
        ),
        (
            Method::POST,
            "/",
            None,
            "",
            vec![],
            405,
            "method_not_allowed",
        ),
        (
            Method::DELETE,
            "/v1/status",
            None,
            "",
            vec![],
            405,
            "method_not_allowed",
        ),
        (
            Method::GET,
            "/v1/status?window=x",
            None,
            "",
            vec![],
            400,
            "bad_request",
        ),
        (
            Method::GET,
            "/v1/plan?cluster=mars",
            None,
            "",
            vec![],
            404,
            "not_found",
        ),
        (
            Method::GET,
            "/v1/purges/77",
            None,
            "",
            vec![],
            404,
            "not_found",
        ),
        (
            Method::GET,
            "/v1/purges/x",
            None,
            "",
            vec![],
            404,
            "not_found",
        ),
        (
            Method::POST,
            "/v1/purges",
            None,
            "application/json",
            purge.into(),
            401,
            "unauthorized",
        ),
        (
            Method::POST,
            "/v1/purges",
            Some("wrong"),
            "application/json",
            purge.into(),
            401,
            "unauthorized",
        ),
        (
            Method::POST,
            "/v1/purges",
            Some(KEY),
            "application/json",
            purge.into(),
            401,
            "unauthorized",
        ),
        (
            Method::POST,
            "/v1/purges",
            token,
            "text/plain",
            purge.into(),
            415,
            "unsupported_media_type",
        ),
        (
            Method::POST,
            "/v1/purges",
            token,
            "application/json",
            b"{".into(),
            400,
            "bad_request",
        ),
        (
            Method::POST,
            "/v1/purges",
            token,
            "application/json",
            b"{}".into(),
            422,
            "invalid",
        ),
        (
            Method::POST,
            "/v1/purges",
            token,
            "application/json",
            br#"{"scope":{"by":"url","value":"/a"}}"#.into(),
            422,
            "invalid",
        ),
        (
            Method::POST,
            "/v1/purges",
            token,
            "application/json",
            br#"{"scope":{"by":"site","value":"mars"}}"#.into(),
            422,
            "invalid",
        ),
        (
            Method::POST,
            "/v1/purges",
            token,
            "application/json",
            vec![b' '; (1 << 20) + 1],
            413,
            "too_large",
        ),
        (
            Method::POST,
            "/v1/pushes",
            token,
            "application/json",
            br#"{"clusters":["mars"]}"#.into(),
            422,
            "invalid",
        ),
        (
            Method::GET,
            "/v1/fleet-file",
            None,
            "",
            vec![],
            401,
            "unauthorized",
        ),
        (
            Method::GET,
            "/v1/journal?after=0",
            token,
            "",
            vec![],
            401,
            "unauthorized",
        ),
        (
            Method::GET,
            "/v1/explain",
            None,
            "",
            vec![],
            400,
            "bad_request",
        ),
        (
            Method::GET,
            "/v1/explain?host=a&client=192.0.2.1",
            None,
            "",
            vec![],
            503,
            "unavailable",
        ),
        (
            Method::POST,
            "/v1/reports/origin",
            Some(KEY),
            "application/json",
            br#"{"node":"x","started_unix_ms":0,"draining":false,"requests":{},"bytes":0}"#.into(),
            404,
            "not_found",
        ),
        (
            Method::PUT,
            "/v1/fleet-file",
            token,
            "text/plain",
            b"\xff".into(),
            400,
            "bad_request",
        ),
    ];
    for (method, path, bearer, content_type, sent, status, code) in table {
        let response = lab
            .ask(method.clone(), path, bearer, content_type, sent)
            .await;
        assert_eq!(
            response.status().as_u16(),
            status,
            "{method} {path}: {response:?}"
        );
        let error = &body(&response)["error"];
        assert_eq!(error["code"], code, "{method} {path}");
        assert!(
            error["message"].as_str().unwrap().len() > 10,
            "{method} {path}: {error}"
        );
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert_eq!(
            response.headers().contains_key("www-authenticate"),
            status == 401
        );
        assert!(
            status != 405 || path == "/" || response.headers().contains_key("allow"),
            "{response:?}"
        );
    }
    assert_eq!(
        lab.get("/v1/status").await["revision"],
        0,
        "nothing was accepted"
    );
    lab.stop().await;
}

#[tokio::test]
async fn the_console_is_served_and_locked_in() {
    let lab = Lab::start().await;
    let page = lab.client.get(&lab.url("/"), SOON).await.unwrap();
    assert_eq!(
        (
            page.status(),
            page.headers()["content-type"].to_str().unwrap()
        ),
        (StatusCode::OK, "text/html; charset=utf-8")
    );
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(
        policy.contains("default-src 'none'")
            && policy.contains("script-src 'self'")
            && !policy.contains("unsafe"),
        "{policy}"
    );
    assert!(!page.headers().contains_key("access-control-allow-origin"));
    let metrics = lab
        .client
        .get(&format!("http://{}:9170/metrics", lab.ip), SOON)
        .await
        .unwrap();
    let text = String::from_utf8_lossy(metrics.body()).into_owned();
    assert!(
        text.contains("nearcast_control_requests_total{method=\"GET\",status_class=\"2xx\"}"),
        "{text}"
    );
    lab.stop().await;
}

#[tokio::test]
async fn nobody_without_a_credential_gets_a_body_read() {
    let lab = Lab::start().await;
    let mut open = Vec::new();
    // More connections than an earlier limit, each with half a body that never completes.
    for n in 0..300 {
        let (method, path) = [
            ("POST", "/v1/purges"),
            ("POST", "/v1/pushes"),
            ("PUT", "/v1/fleet-file"),
            ("POST", "/v1/site-purges"),
            ("POST", "/v1/reports/edge"),
            ("POST", "/v1/reports/dns"),
        ][n % 6];
        let mut stream = TcpStream::connect((lab.ip.as_str(), 7700)).await.unwrap();
        let wrong = if n % 2 == 0 {
            ""
        } else {
            "Authorization: Bearer wrong\r\n"
        };
        let length = if n % 3 == 0 {
            "Transfer-Encoding: chunked"
        } else {
            "Content-Length: 100000"
        };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: control\r\n{wrong}Content-Type: application/json\r\n{length}\r\n\r\n5\r\n{{\"a\":"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        open.push((stream, method, path));
    }
    let begun = std::time::Instant::now();
    for (stream, method, path) in &mut open {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 401", "{method} {path}");
    }
    // All of them are still open, and requests with a credential are served.
    let purge = lab
        .post(
            "/v1/purges",
            &lab.token.0,
            json!({"scope": {"by": "all"}, "wait_ms": 0}),
        )
        .await;
    assert_eq!(purge.status(), 200, "{purge:?}");
    lab.edge("ams-1", 1, json!({})).await;
    assert_eq!(lab.get_with("/v1/journal?after=0", KEY).await.status(), 200);
    assert_eq!(lab.get("/v1/status").await["revision"], 1);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    drop(open);
    lab.stop().await;
}

#[tokio::test]
async fn control_answers_by_its_own_names_alone() {
    let ip = address();
    let text =
        fleet_text(&ip, "").replace("[control]\n", "[control]\nhosts = [\"console.example\"]\n");
    let lab = Lab::start_with(Arc::new(tempfile::tempdir().unwrap()), ip, text).await;
    let with_token = format!("Bearer {}", lab.token.0);
    for (host, status) in [
        ("evil.example", 421),
        ("evil.example:7700", 421),
        ("127.0.0.1.evil.example", 421),
        ("console.example", 200),
        ("localhost:7700", 200),
        ("control", 200),
        ("192.0.2.1", 200),
        ("[::1]:7700", 200),
    ] {
        for path in [
            "/v1/status",
            "/v1/events/log",
            "/",
            "/v1/fleet-file",
            "/v1/journal?after=0",
        ] {
            let bearer = if path.starts_with("/v1/journal") {
                format!("Bearer {KEY}")
            } else {
                with_token.clone()
            };
            let request = Request::get(lab.url(path))
                .header("host", host)
                .header("authorization", bearer);
            let answer = lab
                .client
                .send(request.body(Bytes::new()).unwrap(), SOON)
                .await
                .unwrap();
            assert_eq!(answer.status().as_u16(), status, "{host} {path}");
        }
    }
    let request = Request::post(lab.url("/v1/purges"))
        .header("host", "evil.example")
        .header("authorization", with_token);
    let answer = lab
        .client
        .send(
            request
                .body(Bytes::from_static(b"{\"scope\":{\"by\":\"all\"}}"))
                .unwrap(),
            SOON,
        )
        .await
        .unwrap();
    assert_eq!(body(&answer)["error"]["code"], "misdirected");
    assert_eq!(lab.get("/v1/status").await["revision"], 0);
    lab.stop().await;
}
