//! The control role over real sockets: what operators, nodes and the console are answered.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use nearcast_fleet::client::Client;
use nearcast_fleet::config::{Fleet, Secret};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file;
use nearcast_fleet::node_key::OwnKey;
use nearcast_fleet::shutdown::{self, ShutdownTrigger};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(20);
const KEY: &str = "a key that only this test knows";

/// An address of this test's own: processes and tests differ in it.
fn address() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    format!(
        "127.{}.{}.1",
        64 + std::process::id() % 128,
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

fn fleet_text(ip: &str, more: &str) -> String {
    format!(
        r#"
[fleet]
zone = "cdn.test"
node_key = "{KEY}"
state_dir = "state"
report_interval = "200ms"

[control]
listen = "{ip}:7700"
admin = "{ip}:9170"

[[name_server]]
name = "ns1"
listen = "{ip}:5300"
admin = "{ip}:9153"

[[cluster]]
name = "ams"
label = "Amsterdam"
place = {{ latitude = 52.37, longitude = 4.9 }}
time_zone = "Europe/Amsterdam"
off_peak = "02:00-06:00"
fill_rate = "80Mbit/s"

[[cluster.node]]
name = "ams-1"
address = "127.0.10.1"
listen = "127.0.10.1:8080"
disk = "32MiB"

[[cluster.node]]
name = "ams-2"
address = "127.0.10.2"
listen = "127.0.10.2:8080"
admin = "127.0.10.2:9100"
disk = "32MiB"

[[site]]
name = "www"
hosts = ["www.demo.test"]
origin = "http://127.0.0.1:8000"
{more}
"#
    )
}

/// A running control role.
struct Lab {
    dir: Arc<tempfile::TempDir>,
    ip: String,
    text: String,
    token: Secret,
    fleet: watch::Receiver<Arc<Fleet>>,
    disk: watch::Sender<String>,
    trigger: ShutdownTrigger,
    role: JoinHandle<Result<(), Failure>>,
    client: Client,
}

impl Lab {
    async fn start() -> Self {
        let ip = address();
        let text = fleet_text(&ip, "");
        Self::start_with(Arc::new(tempfile::tempdir().unwrap()), ip, text).await
    }

    async fn start_with(dir: Arc<tempfile::TempDir>, ip: String, text: String) -> Self {
        let Spawned {
            fleet,
            disk,
            role,
            trigger,
        } = spawn(dir.path(), &text);
        let client = Client::new();
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            match client.get(&format!("http://{ip}:9170/ready"), SOON).await {
                Ok(response) if response.status() == 200 => break,
                _ if role.is_finished() => panic!("{:?}", role.await),
                other => assert!(tokio::time::Instant::now() < deadline, "{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let token =
            Secret(std::fs::read_to_string(dir.path().join("state/control/token")).unwrap());
        Self {
            dir,
            ip,
            text,
            token,
            fleet,
            disk,
            trigger,
            role,
            client,
        }
    }

    async fn stop(self) -> (Arc<tempfile::TempDir>, String, String) {
        self.trigger.shut_down();
        tokio::time::timeout(SOON, self.role)
            .await
            .expect("it drains")
            .unwrap()
            .unwrap();
        (self.dir, self.ip, self.text)
    }

    async fn restart(self) -> Self {
        let (dir, ip, text) = self.stop().await;
        Self::start_with(dir, ip, text).await
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}:7700{path}", self.ip)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        bearer: Option<&str>,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> Response<Bytes> {
        let mut request = Request::builder()
            .method(method)
            .uri(self.url(path))
            .header("content-type", content_type);
        if let Some(secret) = bearer {
            request = request.header("authorization", format!("Bearer {secret}"));
        }
        self.client
            .send(request.body(body.into()).unwrap(), SOON)
            .await
            .unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        let response = self.client.get(&self.url(path), SOON).await.unwrap();
        assert_eq!(response.status(), 200, "{path}: {response:?}");
        serde_json::from_slice(response.body()).unwrap()
    }

    async fn get_with(&self, path: &str, secret: &str) -> Response<Bytes> {
        self.ask(Method::GET, path, Some(secret), "application/json", "")
            .await
    }

    async fn post(&self, path: &str, secret: &str, body: Value) -> Response<Bytes> {
        self.ask(
            Method::POST,
            path,
            Some(secret),
            "application/json",
            body.to_string(),
        )
        .await
    }

    async fn report(&self, role: &str, body: Value) {
        let response = self.post(&format!("/v1/reports/{role}"), KEY, body).await;
        assert_eq!(response.status(), 200, "{response:?}");
    }

    async fn edge(&self, node: &str, revision: u64, more: Value) {
        let mut report = json!({
            "node": node, "started_unix_ms": now_ms() + 1, "revision": revision, "draining": false, "sites": {}, "connections": 3,
            "memory_bytes": 1, "disk_bytes": 2, "pushed_bytes": 0, "popularity": [], "fills": [], "purges": []
        });
        for (name, value) in more.as_object().unwrap() {
            report[name] = value.clone();
        }
        self.report("edge", report).await;
    }

    /// Gives control another text of the file on disk and waits until it is in force.
    async fn read_again(&mut self, text: &str) {
        self.fleet.mark_unchanged();
        self.disk.send_replace(text.to_owned());
        tokio::time::timeout(SOON, self.fleet.changed())
            .await
            .expect("it is taken on")
            .unwrap();
    }

    /// Waits for an event of that kind.
    async fn event(&self, kind: &str) -> Value {
        self.event_where(kind, |e| e["kind"] == kind).await
    }

    /// Waits for an event that says this.
    async fn message(&self, words: &str) -> Value {
        self.event_where(words, |e| e["message"].as_str().unwrap().contains(words))
            .await
    }

    async fn event_where(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let log = self.get("/v1/events/log").await;
            if let Some(event) = log["events"].as_array().unwrap().iter().find(|e| is_it(e)) {
                return event.clone();
            }
            assert!(tokio::time::Instant::now() < deadline, "no {what} in {log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

struct Spawned {
    fleet: watch::Receiver<Arc<Fleet>>,
    disk: watch::Sender<String>,
    role: JoinHandle<Result<(), Failure>>,
    trigger: ShutdownTrigger,
}

fn spawn(dir: &Path, text: &str) -> Spawned {
    let fleet = file::parse(text, dir).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    let (tx, rx) = watch::channel(Arc::new(fleet));
    let (trigger, shutdown) = shutdown::channel();
    let (disk, on_disk) = watch::channel(text.to_owned());
    Spawned {
        fleet: rx,
        disk,
        role: tokio::spawn(nearcast_control::run(
            tx,
            on_disk,
            no_nonsense,
            || Ok(()),
            shutdown,
        )),
        trigger,
    }
}

/// A check that knows more than the parser.
fn no_nonsense(_: &Fleet, text: &str) -> Vec<file::Mistake> {
    let mistake = |line| file::Mistake {
        line,
        column: 3,
        problem: "nonsense".into(),
        hint: "make sense".into(),
    };
    text.lines()
        .position(|l| l.contains("nonsense"))
        .map(|n| mistake(n + 1))
        .into_iter()
        .collect()
}

fn now_ms() -> u64 {
    nearcast_fleet::clock::unix_millis(std::time::SystemTime::now())
}

fn body(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body()).unwrap_or_else(|e| panic!("{e}: {response:?}"))
}

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
async fn a_node_that_has_seen_more_than_the_journal_holds_makes_everything_purged() {
    let lab = Lab::start().await;
    let page = lab
        .ask(
            Method::GET,
            "/v1/journal?after=7&node=ams-1&journal=another",
            Some(KEY),
            "",
            vec![],
        )
        .await;
    assert_eq!(page.status(), StatusCode::OK, "{page:?}");
    let page = body(&page);
    assert_eq!(
        page["revision"], 8,
        "above all that either side has used: {page}"
    );
    assert_eq!(page["entries"][0]["change"]["scope"]["by"], "all", "{page}");
    let purges = lab.get("/v1/purges").await;
    assert_eq!(
        purges["purges"][0]["revision"], 8,
        "and it is shown as any purge: {purges}"
    );
    // A cursor that nobody can have reached would use up the revisions of all that comes.
    for after in [(1 << 52) + 1, u64::MAX] {
        let refused = lab
            .ask(
                Method::GET,
                &format!("/v1/journal?after={after}&node=ams-1"),
                Some(KEY),
                "",
                vec![],
            )
            .await;
        assert_eq!(
            (refused.status(), &body(&refused)["error"]["code"]),
            (StatusCode::BAD_REQUEST, &"bad_request".into()),
            "{after}"
        );
    }
    // Nobody purges again and again by such words, and nobody who is not of the fleet does at all.
    for (node, journal) in [
        ("ams-1", "a-third"),
        ("ams-2", "another"),
        ("ams-2", "a-fourth"),
    ] {
        let page = body(
            &lab.get_with(
                &format!("/v1/journal?after=3&node={node}&journal={journal}"),
                KEY,
            )
            .await,
        );
        assert_eq!(page["revision"], 8, "{page}");
    }
    // One that has seen more of this very journal learns at once that it was set back, before
    // anything comes after its cursor.
    let id = page["journal"].as_str().unwrap();
    let poll = format!("/v1/journal?after=20&wait_ms=30000&node=ams-2&journal={id}");
    let told = body(
        &tokio::time::timeout(SOON, lab.get_with(&poll, KEY))
            .await
            .expect("nothing is waited for"),
    );
    assert_eq!(
        (&told["revision"], &told["entries"]),
        (&json!(8), &json!([])),
        "{told}"
    );
    for path in [
        "/v1/journal?after=9",
        "/v1/journal?after=9&node=stranger",
        "/v1/journal?after=3&journal=x",
    ] {
        assert_eq!(
            lab.get_with(path, KEY).await.status(),
            StatusCode::BAD_REQUEST,
            "{path}"
        );
    }
    let told = lab.event("journal_reconciled").await;
    assert_eq!(
        (&told["node"], &told["revision"]),
        (&json!("ams-1"), &json!(8))
    );
    // A node that is merely behind changes nothing.
    let again = body(
        &lab.ask(
            Method::GET,
            "/v1/journal?after=0&node=ams-1",
            Some(KEY),
            "",
            vec![],
        )
        .await,
    );
    assert_eq!(again["revision"], 8, "{again}");
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
async fn a_purge_answers_when_every_edge_has_confirmed() {
    let lab = Lab::start().await;
    for node in ["ams-1", "ams-2"] {
        lab.edge(node, 0, json!({})).await;
    }
    let purge = async {
        let request = json!({"scope": {"by": "url", "value": "http://www.demo.test/a"}, "soft": true, "wait_ms": 15_000});
        let response = lab.post("/v1/purges", &lab.token.0, request).await;
        assert_eq!(response.status(), 200, "{response:?}");
        body(&response)
    };
    let nodes = async {
        // The long poll is answered by the purge, not by its end.
        let page = body(
            &lab.get_with("/v1/journal?after=0&wait_ms=20000&node=ams-1", KEY)
                .await,
        );
        assert_eq!(
            (&page["revision"], &page["entries"][0]["change"]["kind"]),
            (&json!(1), &json!("purge"))
        );
        assert_eq!(page["entries"][0]["change"]["soft"], true);
        assert_eq!(page["journal"].as_str().unwrap().len(), 32);
        lab.get_with("/v1/journal?after=1&node=ams-1", KEY).await;
        let half = lab.get("/v1/purges/1").await;
        assert_eq!(
            (&half["complete"], &half["missing"], &half["received"]),
            (&json!(false), &json!(["ams-1", "ams-2"]), &json!(["ams-1"]))
        );
        for (node, responses) in [("ams-1", 1), ("ams-2", 2)] {
            let folded = json!([{"revision": 1, "responses": responses, "effective_unix_ms": 5}]);
            lab.edge(node, 1, json!({"purges": folded})).await;
        }
    };
    let begun = std::time::Instant::now();
    let (answer, ()) = tokio::join!(purge, nodes);
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "it waited for its time instead of its edges"
    );
    assert_eq!(
        (
            &answer["complete"],
            &answer["responses"],
            &answer["missing"]
        ),
        (&json!(true), &json!(3), &json!([]))
    );
    assert_eq!(
        answer["nodes"][1],
        json!({"node": "ams-2", "responses": 2, "effective_unix_ms": 5})
    );
    assert_eq!(
        answer["scope"],
        json!({"by": "url", "value": "http://www.demo.test/a"})
    );
    lab.event("purge_complete").await;

    let lab = lab.restart().await;
    let kept = lab.get("/v1/purges").await;
    assert_eq!(
        (&kept["purges"][0]["revision"], &kept["purges"][0]["soft"]),
        (&json!(1), &json!(true)),
        "it outlives control"
    );
    assert_eq!(lab.get("/v1/status").await["revision"], 1);
    lab.stop().await;
}

#[tokio::test]
async fn what_a_purge_names_is_taken_in_any_spelling_or_refused_with_a_reason() {
    let lab = Lab::start().await;
    let purge = async |scopes: Value| {
        lab.post(
            "/v1/purges",
            &lab.token.0,
            json!({"scopes": scopes, "wait_ms": 0}),
        )
        .await
    };
    let one = |by: &str, value: &str| json!([{"by": by, "value": value}]);
    for (by, given, form) in [
        (
            "url",
            "https://WWW.demo.test:443/caf\u{e9} x#y",
            "http://www.demo.test/caf%C3%A9%20x",
        ),
        (
            "url",
            "http://m\u{fc}nchen.test",
            "http://xn--mnchen-3ya.test/",
        ),
        (
            "prefix",
            "http://www.demo.test/v/720*",
            "http://www.demo.test/v/720",
        ),
        (
            "prefix",
            "http://www.demo.test/v/720",
            "http://www.demo.test/v/720",
        ),
        ("host", "WWW.Demo.Test.:80", "www.demo.test"),
        ("tag", " two words \u{e9} ", "two words \u{e9}"),
    ] {
        let response = purge(one(by, given)).await;
        assert_eq!(response.status(), 200, "{given}: {response:?}");
        assert_eq!(body(&response)["scope"], json!({"by": by, "value": form}));
    }
    let long = "x".repeat(1025);
    let before = lab.get("/v1/status").await["revision"].clone();
    for (by, given, words) in [
        ("url", "/news", "http://"),
        ("url", "www.demo.test/news", "http://"),
        ("url", "ftp://www.demo.test/", "no scheme"),
        ("url", "http:///news", "no host"),
        ("url", "http://www.demo.test/100%", "%25"),
        ("url", "http://www.demo.test/a\u{7}", "control character"),
        ("prefix", "http://www.demo.te", "add at least a /"),
        ("prefix", "http://www.demo.test/*/x", "not at its end"),
        ("host", "http://www.demo.test/", "name alone"),
        ("site", "mars", "it has www"),
        ("tag", "", "empty"),
        ("tag", long.as_str(), "at most 1024 bytes"),
    ] {
        // One bad scope refuses the good one beside it.
        for scopes in [
            one(by, given),
            json!([{"by": "tag", "value": "good"}, {"by": by, "value": given}]),
        ] {
            let response = purge(scopes).await;
            assert_eq!(response.status(), 422, "{given}: {response:?}");
            assert!(
                body(&response)["error"]["message"]
                    .as_str()
                    .unwrap()
                    .contains(words),
                "{given}: {response:?}"
            );
        }
    }
    let many: Vec<Value> = (0..257)
        .map(|n| json!({"by": "tag", "value": n.to_string()}))
        .collect();
    for (request, words) in [
        (json!({"scopes": many}), "at most 256"),
        (json!({"scopes": []}), "empty"),
        (
            json!({"scopes": [{"by": "all"}, {"by": "tag", "value": "t"}]}),
            "names nothing else",
        ),
        (
            json!({"scope": {"by": "all"}, "scopes": [{"by": "all"}]}),
            "either",
        ),
        (json!({"soft": true}), "either"),
    ] {
        let response = lab.post("/v1/purges", &lab.token.0, request).await;
        assert_eq!(response.status(), 422, "{response:?}");
        assert!(
            body(&response)["error"]["message"]
                .as_str()
                .unwrap()
                .contains(words),
            "{response:?}"
        );
    }
    assert_eq!(
        lab.get("/v1/status").await["revision"],
        before,
        "nothing of it was written"
    );
    lab.stop().await;
}

#[tokio::test]
async fn several_scopes_are_one_revision_and_outlive_control() {
    let lab = Lab::start().await;
    let scopes: Vec<Value> = (0..20)
        .map(|n| json!({"by": "url", "value": format!("http://www.demo.test/{n}")}))
        .collect();
    let answer = body(
        &lab.post(
            "/v1/purges",
            &lab.token.0,
            json!({"scopes": scopes, "soft": true, "wait_ms": 0}),
        )
        .await,
    );
    assert_eq!(
        (
            &answer["revision"],
            &answer["scopes_total"],
            &answer["scope"]
        ),
        (&json!(1), &json!(20), &scopes[0])
    );
    assert_eq!(answer["scopes"], json!(scopes[..16]));
    let page = body(&lab.get_with("/v1/journal?after=0&node=ams-1", KEY).await);
    assert_eq!(
        page["entries"][0]["change"]["scope"]["value"]
            .as_array()
            .map(Vec::len),
        Some(20),
        "nodes get all: {page}"
    );
    assert!(
        lab.event("purge_accepted").await["message"]
            .as_str()
            .unwrap()
            .contains("and 17 more")
    );
    let lab = lab.restart().await;
    let kept = lab.get("/v1/purges").await;
    assert_eq!(
        (
            &kept["purges"][0]["scopes_total"],
            &kept["purges"][0]["soft"]
        ),
        (&json!(20), &json!(true))
    );
    lab.stop().await;
}

#[tokio::test]
async fn a_purge_that_may_not_be_what_was_meant_says_so() {
    let lab = Lab::start().await;
    for (scope, words) in [
        (
            json!({"by": "url", "value": "http://wwww.demo.test/"}),
            "no site of the fleet has the host wwww.demo.test",
        ),
        (json!({"by": "host", "value": "other.test"}), "no site"),
        (
            json!({"by": "url", "value": "http://www.demo.test/img/*"}),
            "by prefix",
        ),
        (json!({"by": "tag", "value": "a,b"}), "each by itself"),
    ] {
        let answer = body(
            &lab.post(
                "/v1/purges",
                &lab.token.0,
                json!({"scope": scope, "wait_ms": 0}),
            )
            .await,
        );
        let notes = answer["notes"].as_array().unwrap();
        assert!(
            notes.len() == 1 && notes[0].as_str().unwrap().contains(words),
            "{answer}"
        );
    }
    for host in ["www.demo.test", "www.cdn.test"] {
        let scope = json!({"by": "host", "value": host});
        let answer = body(
            &lab.post(
                "/v1/purges",
                &lab.token.0,
                json!({"scope": scope, "wait_ms": 0}),
            )
            .await,
        );
        assert_eq!(answer["notes"], json!([]), "{host}");
    }
    let log = lab.get("/v1/events/log").await;
    let warned = log["events"]
        .as_array()
        .unwrap()
        .iter()
        .any(|e| e["kind"] == "purge_incomplete");
    assert!(!warned, "who does not wait is not warned: {log}");
    lab.stop().await;
}

#[tokio::test]
async fn a_site_s_clients_purge_that_site_alone() {
    let ip = address();
    let other = "[[site]]\nname = \"video\"\nhosts = [\"video.demo.test\"]\norigin = \"http://127.0.0.1:8000\"\n";
    let text = fleet_text(&ip, other);
    let lab = Lab::start_with(Arc::new(tempfile::tempdir().unwrap()), ip, text).await;
    let asked = |node: &str, site: &str, scopes: Value| json!({"node": node, "site": site, "scopes": scopes, "soft": true, "wait_ms": 0});
    let url = |value: &str| json!([{"by": "url", "value": value}]);
    let good = asked(
        "ams-1",
        "www",
        json!([{"by": "url", "value": "http://www.demo.test/a"}, {"by": "tag", "value": "news"}]),
    );
    for secret in [lab.token.0.as_str(), "wrong"] {
        assert_eq!(
            lab.post("/v1/site-purges", secret, good.clone())
                .await
                .status(),
            401,
            "nodes alone"
        );
    }
    for (request, status) in [
        (asked("mars-1", "www", url("http://www.demo.test/a")), 404),
        (asked("ams-1", "mars", url("http://www.demo.test/a")), 404),
        (asked("ams-1", "www", url("http://video.demo.test/a")), 422),
        (asked("ams-1", "www", url("http://other.test/a")), 422),
        (asked("ams-1", "www", url("/a")), 422),
        (asked("ams-1", "www", json!([{"by": "all"}])), 422),
        (
            asked("ams-1", "www", json!([{"by": "site", "value": "www"}])),
            422,
        ),
        (
            asked(
                "ams-1",
                "www",
                json!([{"by": "host", "value": "www.demo.test"}]),
            ),
            422,
        ),
        (
            asked(
                "ams-1",
                "www",
                json!([{"by": "prefix", "value": "http://www.demo.test/"}]),
            ),
            422,
        ),
        (
            asked(
                "ams-1",
                "www",
                json!([{"by": "site_tag", "value": {"site": "video", "tag": "t"}}]),
            ),
            422,
        ),
        (asked("ams-1", "www", json!([])), 422),
    ] {
        assert_eq!(
            lab.post("/v1/site-purges", KEY, request.clone())
                .await
                .status(),
            status,
            "{request}"
        );
    }
    assert_eq!(
        lab.get("/v1/status").await["revision"],
        0,
        "nothing was accepted"
    );
    let answer = body(&lab.post("/v1/site-purges", KEY, good).await);
    let expected = json!([{"by": "url", "value": "http://www.demo.test/a"}, {"by": "site_tag", "value": {"site": "www", "tag": "news"}}]);
    assert_eq!(
        (&answer["revision"], &answer["scopes"], &answer["soft"]),
        (&json!(1), &expected, &json!(true))
    );
    lab.message("asked for at ams-1").await;
    lab.stop().await;
}

#[tokio::test]
async fn a_purge_names_the_edges_that_are_missing() {
    let lab = Lab::start().await;
    lab.edge("ams-1", 0, json!({})).await;
    let response = lab
        .post(
            "/v1/purges",
            &lab.token.0,
            json!({"scope": {"by": "site", "value": "www"}, "wait_ms": 100}),
        )
        .await;
    let answer = body(&response);
    assert_eq!(
        (&answer["complete"], &answer["missing"], &answer["nodes"]),
        (&json!(false), &json!(["ams-1", "ams-2"]), &json!([]))
    );
    lab.event("purge_incomplete").await;
    lab.stop().await;
}

#[tokio::test]
async fn reports_become_status_series_and_selections() {
    let lab = Lab::start().await;
    let sites = |hit: u64, miss: u64| {
        json!({"www": {"requests": {"hit": hit, "miss": miss, "local": 50}, "bytes": {"hit": hit * 1000, "miss": miss * 1000}, "errors": 1,
            "origin_bytes": miss * 1000, "origin_requests": miss, "pushed_hits": hit / 2, "pushed_hit_bytes": hit * 500}})
    };
    let started = now_ms() + 1;
    for (hit, miss) in [(60, 20), (80, 20)] {
        lab.edge(
            "ams-1",
            0,
            json!({"started_unix_ms": started, "sites": sites(hit, miss)}),
        )
        .await;
    }
    lab.report(
        "dns",
        json!({"node": "ns1", "started_unix_ms": started, "revision": 0, "draining": false, "queries": {"NOERROR": 7}, "rtt_prefixes": 2, "geo_source": "built-in",
            "selections": [{"site": "www", "cluster": "ams", "reason": "geo", "country": "NL", "latitude": 52.1, "longitude": 5.3, "count": 9}],
            "health": [{"node": "ams-1", "up": true, "since_unix_ms": 1, "reason": "ok", "check_us": 9},
                       {"node": "ams-2", "up": false, "since_unix_ms": 2, "reason": "connection refused", "check_us": 0}]}),
    )
    .await;
    let deadline = tokio::time::Instant::now() + SOON;
    let status = loop {
        let status = lab.get("/v1/status?window=60").await;
        if status["recent"]["counted"] == 100 {
            break status;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{}",
            status["recent"]
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let recent = &status["recent"];
    assert_eq!(
        (
            &recent["hits"],
            &recent["object_hit_ratio"],
            &recent["byte_hit_ratio"]
        ),
        (&json!(80), &json!(0.8), &json!(0.8))
    );
    assert_eq!(
        (&recent["pushed_hits"], &status["since_start"]["counted"]),
        (&json!(40), &json!(100))
    );
    assert_eq!(status["clusters"][0]["recent"]["counted"], 100);
    assert_eq!(status["sites"][0]["recent"]["requests"]["local"], 50);
    assert_eq!(status["selections"][0]["total"], 9);
    let node = |name: &str| {
        status["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|n| n["name"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(
        (&node("ns1")["role"], &node("ns1")["geo_source"]),
        (&json!("gslb-dns"), &json!("built-in"))
    );
    // Asked for a minute, of which there were some seconds: the rates are over these.
    let window = status["window_seconds"].as_u64().unwrap();
    let run = status["now_unix_ms"].as_u64().unwrap() - status["started_unix_ms"].as_u64().unwrap();
    assert!(
        window >= 1 && window * 1000 <= run.max(1000),
        "{window} s of {run} ms"
    );
    assert_eq!(node("control")["state"], "up");
    assert_eq!(node("ams-1")["health"][0]["by"], "ns1");
    assert_eq!(node("ams-2")["health"][0]["reason"], "connection refused");
    let series = lab.get("/v1/series?seconds=60").await;
    let sum = |path: &Value| {
        path.as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_f64)
            .sum::<f64>()
    };
    assert_eq!(series["points"], 60);
    assert!(
        (sum(&series["total"]["counted"]) - 100.0).abs() < 0.1
            && (sum(&series["clusters"]["ams"]["hits"]) - 80.0).abs() < 0.1,
        "{series}"
    );
    assert_eq!(series["statuses"]["miss"].as_array().unwrap().len(), 60);
    let fleet = lab.get("/v1/fleet").await;
    assert_eq!(
        (
            &fleet["clusters"][0]["nodes"][1]["name"],
            &fleet["sites"][0]["steered_name"]
        ),
        (&json!("ams-2"), &json!("www.cdn.test"))
    );
    assert!(!fleet.to_string().contains(KEY), "no secret in {fleet}");
    // No more reports: silent within the bound.
    lab.event("node_silent").await;
    lab.stop().await;
}

#[tokio::test]
async fn a_push_is_planned_ordered_followed_and_counted() {
    let lab = Lab::start().await;
    let started = now_ms() + 1;
    let skipped = body(&lab.post("/v1/pushes", &lab.token.0, json!({})).await);
    assert_eq!(
        (&skipped["orders"], &skipped["skipped"][0]["cluster"]),
        (&json!([]), &json!("ams")),
        "nothing is known yet"
    );
    let url = |n: u64| json!({"site": "www", "url": format!("http://www.demo.test/{n}"), "requests": 100 * n, "bytes": 100_000 * n, "size": 1000});
    let popularity = json!([url(1), url(2), url(3), {"site": "www", "url": "http://www.demo.test/unknown", "requests": 9, "bytes": 9, "size": 0}]);
    lab.edge(
        "ams-1",
        0,
        json!({"started_unix_ms": started, "popularity": popularity}),
    )
    .await;
    let plan = lab.get("/v1/plan?cluster=ams&items=2").await;
    let ams = &plan["clusters"][0];
    let stored = 3 * nearcast_fleet::disk::stored_bytes(1000);
    assert_eq!(
        (&ams["items_total"], &ams["stored_bytes"], &ams["gap"]),
        (&json!(3), &json!(stored), &json!(0.0))
    );
    assert!(
        stored > 3000
            && ams["budget"]["share_bytes"].as_u64()
                < lab.get("/v1/fleet").await["clusters"][0]["push_share_bytes"].as_u64()
    );
    let urls: Vec<_> = ams["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["url"].as_str().unwrap())
        .collect();
    assert_eq!(
        urls,
        ["http://www.demo.test/3", "http://www.demo.test/2"],
        "most valuable first"
    );
    assert_eq!(
        (&ams["excluded"][0]["reason"], &ams["excluded"][0]["count"]),
        (&json!("size_unknown"), &json!(1))
    );
    assert_eq!(
        ams["window"]["start_local"]
            .as_str()
            .unwrap()
            .split('T')
            .nth(1),
        Some("02:00:00")
    );

    let response = lab
        .post("/v1/pushes", &lab.token.0, json!({"clusters": ["ams"]}))
        .await;
    assert_eq!(response.status(), 202);
    let order = body(&response)["orders"][0].clone();
    assert_eq!(
        (&order["items"], &order["bytes"]),
        (&json!(3), &json!(3000))
    );
    let again = body(&lab.post("/v1/pushes", &lab.token.0, json!({})).await);
    assert!(
        again["skipped"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("still runs"),
        "{again}"
    );
    let page = body(&lab.get_with("/v1/journal?after=0", KEY).await);
    let change = &page["entries"][0]["change"];
    assert_eq!(
        (
            &change["kind"],
            &change["id"],
            &change["items"].as_array().unwrap().len()
        ),
        (&json!("push"), &order["id"], &3)
    );
    assert_eq!(change["rate_bytes"], 10_000_000);

    let fill = |ended: bool| {
        json!([{"order": order["id"], "items": 3, "already_warm": 1, "already_warm_bytes": 1000, "warmed": 2, "origin_bytes": 1000, "peer_bytes": 1000,
            "failed": 0, "reasons": [], "ended": ended, "ended_unix_ms": 5}])
    };
    lab.edge(
        "ams-1",
        1,
        json!({"started_unix_ms": started, "fills": fill(true)}),
    )
    .await;
    let half = lab.get("/v1/pushes").await["orders"][0].clone();
    assert_eq!(
        (&half["state"], &half["progress"], &half["why"]),
        (&json!("running"), &json!(0.5), &json!("asked"))
    );
    let sites = json!({"www": {"requests": {"hit": 10}, "bytes": {"hit": 10_000}, "errors": 0, "origin_bytes": 0, "origin_requests": 0, "pushed_hits": 8, "pushed_hit_bytes": 8000}});
    lab.edge(
        "ams-2",
        1,
        json!({"started_unix_ms": started, "fills": fill(true), "sites": sites}),
    )
    .await;
    let done = lab.get("/v1/pushes").await["orders"][0].clone();
    assert_eq!(
        (
            &done["state"],
            &done["total"]["warmed"],
            &done["total"]["already_warm"]
        ),
        (&json!("ended"), &json!(4), &json!(2))
    );
    assert_eq!(
        (
            &done["earned"]["pushed_hits"],
            &done["earned"]["peak"]["pushed_hit_ratio"]
        ),
        (&json!(8), &json!(0.8))
    );
    lab.event("push_ended").await;

    let lab = lab.restart().await;
    assert_eq!(
        lab.get("/v1/plan").await["clusters"][0]["items_total"],
        3,
        "what was learnt outlives control"
    );
    assert_eq!(lab.get("/v1/pushes").await["orders"][0]["id"], order["id"]);
    lab.stop().await;
}

#[tokio::test]
async fn an_order_is_issued_once_when_the_window_opens() {
    let ip = address();
    // Amsterdam's 02:00 in winter is 01:00 UTC: two real seconds from now, and the window is four
    // hours long.
    let real = now_ms() as f64 / 1000.0;
    let clock = format!(
        "[clock]\nspeed = 60.0\nanchor_real = {real}\nanchor_fleet = \"2026-01-15T00:58:00Z\"\n"
    );
    let text = fleet_text(&ip, &clock);
    let lab = Lab::start_with(Arc::new(tempfile::tempdir().unwrap()), ip, text).await;
    let popularity = json!([{"site": "www", "url": "http://www.demo.test/1", "requests": 50, "bytes": 50_000, "size": 1000}]);
    lab.edge("ams-1", 0, json!({"popularity": popularity}))
        .await;
    let started = lab.event("push_started").await;
    assert!(
        started["order"]
            .as_str()
            .unwrap()
            .starts_with("ams-2026-01-15-"),
        "{started}"
    );
    let order = lab.get("/v1/pushes").await["orders"][0].clone();
    assert_eq!(order["why"], "scheduled");
    let lab = lab.restart().await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(
        lab.get("/v1/pushes").await["orders"]
            .as_array()
            .unwrap()
            .len(),
        1,
        "one a window, also over a restart"
    );
    lab.stop().await;
}

#[tokio::test]
async fn a_window_that_passed_while_control_was_down_is_an_alert_once() {
    let lab = Lab::start().await;
    assert_eq!(
        lab.get("/v1/status").await["clusters"][0]["push_missed"],
        Value::Null
    );
    let (dir, ip, text) = lab.stop().await;
    // When an earlier process last looked: a window of four hours lies in each of these days.
    let looked = dir.path().join("state/control/schedule.json");
    assert!(looked.exists(), "it is written down from the start");
    std::fs::write(
        &looked,
        json!({"looked_unix_ms": now_ms() - 3 * 86_400_000}).to_string(),
    )
    .unwrap();
    let lab = Lab::start_with(dir, ip, text).await;
    let missed = lab.event("push_missed").await;
    assert_eq!(
        (&missed["level"], &missed["cluster"]),
        (&json!("warn"), &json!("ams"))
    );
    let words = missed["message"].as_str().unwrap();
    assert!(
        words.contains("passed without a push, and ") && words.contains("control was not running"),
        "{words}"
    );
    assert_eq!(
        lab.get("/v1/status").await["clusters"][0]["push_missed"],
        missed["message"]
    );
    let line = "nearcast_control_pushes_missed_total{cluster=\"ams\",reason=\"control-down\"} 1";
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let metrics = lab
            .client
            .get(&format!("http://{}:9170/metrics", lab.ip), SOON)
            .await
            .unwrap();
        let metrics = String::from_utf8_lossy(metrics.body()).into_owned();
        if metrics.contains(line) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{metrics}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let lab = lab.restart().await;
    lab.event("control_started").await;
    assert_eq!(
        lab.get("/v1/status").await["clusters"][0]["push_missed"],
        Value::Null,
        "it is told once"
    );
    lab.stop().await;
}

#[tokio::test]
async fn what_pushes_fetch_is_no_part_of_the_byte_hit_ratio() {
    let lab = Lab::start().await;
    let started = now_ms() + 1;
    let sites = |pushed: u64| {
        json!({"www": {"requests": {"hit": 9, "miss": 1}, "bytes": {"hit": 9000, "miss": 1000}, "errors": 0, "origin_bytes": 1000, "origin_requests": 1,
            "push_origin_bytes": pushed, "push_peer_bytes": 2 * pushed, "pushed_hits": 0, "pushed_hit_bytes": 0}})
    };
    lab.edge(
        "ams-1",
        0,
        json!({"started_unix_ms": started, "sites": sites(500_000)}),
    )
    .await;
    let all = lab.get("/v1/status").await["since_start"].clone();
    assert_eq!(
        (&all["byte_hit_ratio"], &all["origin_bytes"]),
        (&json!(0.9), &json!(1000)),
        "{all}"
    );
    assert_eq!(
        (&all["push_origin_bytes"], &all["push_peer_bytes"]),
        (&json!(500_000), &json!(1_000_000))
    );
    lab.edge(
        "ams-1",
        0,
        json!({"started_unix_ms": started, "sites": sites(900_000)}),
    )
    .await;
    let all = lab.get("/v1/status").await["since_start"].clone();
    assert_eq!(
        (&all["byte_hit_ratio"], &all["push_origin_bytes"]),
        (&json!(0.9), &json!(900_000)),
        "{all}"
    );
    lab.stop().await;
}

#[tokio::test]
async fn events_stream_and_go_on_from_the_last_one() {
    let lab = Lab::start().await;
    let mut stream = TcpStream::connect((lab.ip.as_str(), 7700)).await.unwrap();
    stream
        .write_all(b"GET /v1/events HTTP/1.1\r\nHost: control\r\n\r\n")
        .await
        .unwrap();
    let first = read_until(&mut stream, "control_started").await;
    assert!(first.contains("content-type: text/event-stream"), "{first}");
    lab.post(
        "/v1/purges",
        &lab.token.0,
        json!({"scope": {"by": "tag", "value": "news"}, "wait_ms": 0}),
    )
    .await;
    let second = read_until(&mut stream, "purge_accepted").await;
    let id: u64 = second
        .split("id: ")
        .nth(1)
        .unwrap()
        .split('\n')
        .next()
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    drop(stream);
    let mut stream = TcpStream::connect((lab.ip.as_str(), 7700)).await.unwrap();
    let request = format!(
        "GET /v1/events HTTP/1.1\r\nHost: control\r\nLast-Event-ID: {}\r\n\r\n",
        id - 1
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let resumed = read_until(&mut stream, "purge_accepted").await;
    assert!(!resumed.contains("control_started"), "{resumed}");
    // An open stream does not hold up the end.
    let begun = std::time::Instant::now();
    lab.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(5));
}

async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    tokio::time::timeout(SOON, read_whole_event(stream, text))
        .await
        .unwrap_or_else(|_| panic!("no {text} in time"))
}

async fn read_whole_event(stream: &mut TcpStream, text: &str) -> String {
    let mut all = String::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).await.unwrap();
        assert!(read > 0, "the stream ended without {text}: {all}");
        all.push_str(&String::from_utf8_lossy(&buffer[..read]));
        // The event is whole once its blank line is there.
        if all
            .split(text)
            .nth(1)
            .is_some_and(|rest| rest.contains("\n\n"))
        {
            return all;
        }
    }
}

#[tokio::test]
async fn fleet_files_are_checked_recorded_and_taken_on() {
    let mut lab = Lab::start().await;
    let token = lab.token.0.clone();
    let put = async |lab: &Lab, path: &str, text: &str| {
        lab.ask(
            Method::PUT,
            path,
            Some(&token),
            "text/plain",
            text.to_owned(),
        )
        .await
    };
    let shown = lab.get_with("/v1/fleet-file", &token).await;
    assert_eq!(
        (
            shown.headers()["nearcast-revision"].to_str().unwrap(),
            shown.body().as_ref()
        ),
        ("0", lab.text.as_bytes())
    );

    let wrong = put(
        &lab,
        "/v1/fleet-file",
        &lab.text
            .replace("zone = \"cdn.test\"", "zoen = \"cdn.test\"\nhostmaster = 7"),
    )
    .await;
    assert_eq!(wrong.status(), 422);
    let mistakes = body(&wrong)["error"]["mistakes"]
        .as_array()
        .unwrap()
        .clone();
    assert!(
        mistakes.len() >= 2
            && mistakes
                .iter()
                .all(|m| m["line"].as_u64() > Some(0) && m["mend"].is_string()),
        "{mistakes:?}"
    );
    let moved = put(
        &lab,
        "/v1/fleet-file",
        &lab.text
            .replace("127.0.10.2:8080", "127.0.10.2:8081")
            .replace("cdn.test", "cdn.example"),
    )
    .await;
    assert_eq!(moved.status(), 409);
    let elsewhere = lab.text.replace("127.0.10.2:8080", "127.0.10.2:8081");
    let refused = put(&lab, "/v1/fleet-file?check=true", &elsewhere).await;
    let message = body(&refused)["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        refused.status() == 409
            && message.contains("--restart-needed")
            && message.contains("ams-2"),
        "{message}"
    );
    let checked = put(
        &lab,
        "/v1/fleet-file?check=true&restart_needed=true",
        &elsewhere,
    )
    .await;
    assert_eq!(
        body(&checked),
        json!({"revision": 0, "changed": false, "restart": ["ams-2"]})
    );
    let message = body(&moved)["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.contains("fleet.zone") && message.contains("start control again"),
        "{message}"
    );
    let same = put(&lab, "/v1/fleet-file", &lab.text).await;
    assert_eq!(body(&same), json!({"revision": 0, "changed": false}));
    let new_text = lab
        .text
        .replace("label = \"Amsterdam\"", "label = \"Mokum\"");
    let checked = put(&lab, "/v1/fleet-file?check=true", &new_text).await;
    assert_eq!(
        (checked.status(), body(&checked)["changed"].clone()),
        (StatusCode::OK, json!(false))
    );
    assert!(!lab.fleet.has_changed().unwrap());

    assert_eq!(
        body(&put(&lab, "/v1/fleet-file", &new_text).await),
        json!({"revision": 1, "changed": true})
    );
    assert_eq!(lab.fleet.borrow_and_update().clusters[0].label, "Mokum");
    let page = body(&lab.get_with("/v1/journal?after=0", KEY).await);
    assert_eq!(
        page["entries"][0]["change"],
        json!({"kind": "fleet_file", "text": new_text})
    );
    lab.event("fleet_file").await;
    let status = lab.get("/v1/status").await;
    assert_eq!(
        (&status["fleet_revision"], &status["clusters"][0]["label"]),
        (&json!(1), &json!("Mokum"))
    );

    // The file on disk is as it was: the journal's revision is in force.
    let mut lab = lab.restart().await;
    assert_eq!(lab.get("/v1/fleet").await["clusters"][0]["label"], "Mokum");
    // The file on disk was edited since: it becomes a revision.
    lab.text = lab
        .text
        .replace("label = \"Amsterdam\"", "label = \"Damsko\"");
    let lab = lab.restart().await;
    let fleet = lab.get("/v1/fleet").await;
    assert_eq!(
        (&fleet["revision"], &fleet["clusters"][0]["label"]),
        (&json!(2), &json!("Damsko"))
    );
    lab.stop().await;
}

#[tokio::test]
async fn a_fleet_file_that_is_read_again_is_shown_and_recorded() {
    let mut lab = Lab::start().await;
    let token = lab.token.0.clone();
    let labelled = |lab: &Lab, label: &str| {
        lab.text
            .replace("label = \"Amsterdam\"", &format!("label = {label:?}"))
    };
    let shown = async |lab: &Lab| {
        let answer = lab.get_with("/v1/fleet-file", &token).await;
        (
            answer.headers()["nearcast-revision"]
                .to_str()
                .unwrap()
                .to_owned(),
            String::from_utf8(answer.body().to_vec()).unwrap(),
        )
    };
    // Nothing in the journal yet: the file on disk is in force.
    lab.read_again(&labelled(&lab, "Mokum")).await;
    assert_eq!(shown(&lab).await, ("0".to_owned(), labelled(&lab, "Mokum")));
    assert_eq!(lab.get("/v1/fleet").await["clusters"][0]["label"], "Mokum");

    // A file with mistakes, or with what cannot change, is told and changes nothing.
    let wrongs = [
        (
            labelled(&lab, "x").replace("[fleet]", "[fleet]\nzoen = 1"),
            "zoen",
        ),
        (lab.text.replace("cdn.test", "cdn.example"), "fleet.zone"),
        (format!("{}\n# nonsense", lab.text), "make sense"),
    ];
    for (wrong, words) in wrongs {
        lab.disk.send_replace(wrong);
        assert_eq!(lab.message(words).await["kind"], "fleet_file_refused");
    }
    assert_eq!(shown(&lab).await, ("0".to_owned(), labelled(&lab, "Mokum")));

    // A revision of the journal outlives the same file read again, and an edit of it is a revision
    // of its own.
    let put = lab
        .ask(
            Method::PUT,
            "/v1/fleet-file",
            Some(&token),
            "text/plain",
            labelled(&lab, "Damsko"),
        )
        .await;
    assert_eq!(body(&put), json!({"revision": 1, "changed": true}));
    lab.disk.send_replace(labelled(&lab, "Mokum"));
    lab.message("has not changed; revision 1 stays in force")
        .await;
    assert_eq!(
        shown(&lab).await,
        ("1".to_owned(), labelled(&lab, "Damsko"))
    );
    lab.read_again(&labelled(&lab, "Amsterdam-Zuid")).await;
    assert_eq!(
        shown(&lab).await,
        ("2".to_owned(), labelled(&lab, "Amsterdam-Zuid"))
    );
    assert_eq!(lab.get("/v1/status").await["fleet_revision"], 2);
    // A restart with that file on disk takes it for no new edit.
    lab.text = labelled(&lab, "Amsterdam-Zuid");
    let lab = lab.restart().await;
    assert_eq!(lab.get("/v1/status").await["revision"], 2);
    lab.stop().await;
}

#[tokio::test]
async fn a_file_on_disk_that_was_seen_is_no_edit_after_a_later_apply() {
    let mut lab = Lab::start().await;
    let token = lab.token.0.clone();
    let labelled = |lab: &Lab, label: &str| {
        lab.text
            .replace("label = \"Amsterdam\"", &format!("label = {label:?}"))
    };
    let put = async |lab: &Lab, text: String| {
        body(
            &lab.ask(
                Method::PUT,
                "/v1/fleet-file",
                Some(&token),
                "text/plain",
                text,
            )
            .await,
        )
    };
    // One text is applied, then saved on control's disk as well and read again: nothing changes.
    assert_eq!(put(&lab, labelled(&lab, "Mokum")).await["revision"], 1);
    lab.disk.send_replace(labelled(&lab, "Mokum"));
    lab.message("revision 1 stays in force").await;
    // Another one is applied, and the file on disk read again as it was.
    assert_eq!(put(&lab, labelled(&lab, "Damsko")).await["revision"], 2);
    lab.disk.send_replace(labelled(&lab, "Mokum"));
    lab.message("revision 2 stays in force").await;
    // And once more at a start.
    lab.text = labelled(&lab, "Mokum");
    let lab = lab.restart().await;
    let fleet = lab.get("/v1/fleet").await;
    assert_eq!(
        (&fleet["revision"], &fleet["clusters"][0]["label"]),
        (&json!(2), &json!("Damsko"))
    );
    lab.stop().await;
}

#[tokio::test]
async fn what_cannot_start_says_why_and_leaves_nothing() {
    let lab = Lab::start().await;
    let other = tempfile::tempdir().unwrap();
    // The port is in use.
    let second = spawn(other.path(), &lab.text);
    assert_eq!(
        second.role.await.unwrap().unwrap_err().kind,
        FailureKind::Unavailable
    );
    assert!(!other.path().join("state").exists(), "half started");
    // The directory is in use.
    let ip = address();
    let second = spawn(lab.dir.path(), &fleet_text(&ip, ""));
    let failure = second.role.await.unwrap().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unavailable);
    assert!(failure.message.contains("in use"), "{failure}");
    let (dir, ip, text) = lab.stop().await;
    // The journal is damaged.
    let journal = dir.path().join("state/control/journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[..4].fill(0);
    bytes.extend([1; 64]);
    std::fs::write(&journal, bytes).unwrap();
    let second = spawn(dir.path(), &text);
    let failure = second.role.await.unwrap().unwrap_err();
    assert_eq!(failure.kind, FailureKind::BadData, "{failure}");
    // Nothing listens.
    assert!(TcpStream::connect((ip.as_str(), 7700)).await.is_err());
}

#[tokio::test]
async fn a_fleet_file_that_only_another_role_finds_wrong_is_refused() {
    let lab = Lab::start().await;
    let wrong = format!("{}# nonsense", lab.text);
    for path in ["/v1/fleet-file?check=true", "/v1/fleet-file"] {
        let answer = lab
            .ask(
                Method::PUT,
                path,
                Some(&lab.token.0),
                "text/plain",
                wrong.clone(),
            )
            .await;
        assert_eq!(answer.status(), 422);
        let mistake = json!({"line": wrong.lines().count(), "column": 3, "problem": "nonsense", "mend": "make sense"});
        assert_eq!(body(&answer)["error"]["mistakes"], json!([mistake]));
    }
    assert_eq!(lab.get("/v1/status").await["revision"], 0);
    lab.stop().await;
}

/// The fleet with each node's own key, and the fleet's in a file.
fn own_keys_text(ip: &str, dir: &Path) -> String {
    std::fs::write(dir.join("fleet.key"), format!("{KEY}\n")).unwrap();
    fleet_text(ip, "").replace(
        &format!("node_key = \"{KEY}\""),
        "node_key_file = \"fleet.key\"\nnode_keys = \"own\"",
    )
}

#[tokio::test]
async fn each_node_speaks_for_itself_alone_and_a_revoked_key_for_nobody() {
    let (ip, dir) = (address(), Arc::new(tempfile::tempdir().unwrap()));
    let text = own_keys_text(&ip, dir.path());
    let mut lab = Lab::start_with(dir, ip, text.clone()).await;
    let fleet = lab.fleet.borrow().clone();
    let key = |node: &str| {
        OwnKey::derive(&Secret(KEY.into()), &fleet, node)
            .unwrap()
            .shown()
            .0
    };
    let (first, second, dns) = (key("ams-1"), key("ams-2"), key("ns1"));
    let edge = |node: &str| {
        json!({"node": node, "started_unix_ms": 1, "revision": 0, "draining": false, "sites": {}, "connections": 0, "memory_bytes": 0,
            "disk_bytes": 0, "pushed_bytes": 0, "popularity": [], "fills": [], "purges": []})
    };
    let purge = |node: &str| json!({"node": node, "site": "www", "scopes": [{"by": "tag", "value": "t"}], "soft": false, "wait_ms": 0});
    // What is asked, with whose key, and the status.
    let table: [(&str, Value, &str, u16); 11] = [
        ("/v1/reports/edge", edge("ams-1"), &first, 200),
        ("/v1/reports/edge", edge("ams-1"), &second, 403),
        ("/v1/reports/edge", edge("ams-1"), &dns, 403),
        ("/v1/reports/edge", edge("ams-1"), KEY, 401),
        (
            "/v1/reports/edge",
            edge("ams-1"),
            "nck1.ams-1.1.0000000000000000000000000000000000000000000000000000000000000000",
            401,
        ),
        ("/v1/site-purges", purge("ams-2"), &first, 403),
        ("/v1/site-purges", purge("ams-2"), KEY, 401),
        ("/v1/journal?after=0&node=ams-2", Value::Null, &first, 403),
        ("/v1/journal?after=0&node=ams-2", Value::Null, KEY, 401),
        ("/v1/journal?after=0&node=ams-2", Value::Null, &second, 200),
        ("/v1/journal?after=0", Value::Null, &second, 200),
    ];
    for (path, sent, key, status) in table {
        let response = if sent.is_null() {
            lab.get_with(path, key).await
        } else {
            lab.post(path, key, sent).await
        };
        assert_eq!(
            response.status().as_u16(),
            status,
            "{path} {key}: {response:?}"
        );
        if status == 403 {
            let message = body(&response)["error"]["message"]
                .as_str()
                .unwrap()
                .to_owned();
            assert!(message.contains("may not speak for"), "{message}");
        }
    }
    let refused = lab.event("key_refused").await;
    assert_eq!(refused["level"], "warn");
    let nodes = lab.get("/v1/status").await["nodes"].clone();
    let shown = |name: &str| {
        nodes
            .as_array()
            .unwrap()
            .iter()
            .find(|n| n["name"] == name)
            .unwrap()["key"]
            .clone()
    };
    assert_eq!((shown("ams-1"), shown("ns1")), (json!("own"), Value::Null));

    let revoked = text.replace(
        "name = \"ams-1\"\n",
        "name = \"ams-1\"\nkey_generation = 2\n",
    );
    lab.read_again(&revoked).await;
    let response = lab.get_with("/v1/journal?after=0&node=ams-1", &first).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(
        body(&response)["error"]["message"]
            .as_str()
            .unwrap()
            .contains("nearcast key ams-1"),
        "{response:?}"
    );
    let renewed = OwnKey::derive(&Secret(KEY.into()), &lab.fleet.borrow().clone(), "ams-1")
        .unwrap()
        .shown()
        .0;
    assert_eq!(
        lab.get_with("/v1/journal?after=0&node=ams-1", &renewed)
            .await
            .status(),
        StatusCode::OK
    );
    lab.stop().await;
}

#[tokio::test]
async fn nobody_without_a_credential_gets_a_body_read() {
    let lab = Lab::start().await;
    let mut open = Vec::new();
    // More than there were places once; each with half a body that never gets whole.
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
    // All of them are still there, and those who have a credential are served.
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

#[tokio::test]
async fn a_wrong_key_and_a_shared_one_are_shown() {
    let lab = Lab::start().await;
    assert_eq!(
        lab.get_with(
            "/v1/journal?after=0&node=ams-2",
            "another key than the fleet's"
        )
        .await
        .status(),
        StatusCode::UNAUTHORIZED
    );
    let refused = lab.event("key_refused").await;
    assert_eq!(refused["node"], "ams-2");
    let weak = lab.event("weak_key").await;
    assert!(
        weak["message"]
            .as_str()
            .unwrap()
            .contains("node_keys = \"own\""),
        "{weak}"
    );
    lab.get_with("/v1/journal?after=0&node=ams-1", KEY).await;
    let status = lab.get("/v1/status").await;
    let node = status["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|n| n["name"] == "ams-1")
        .unwrap();
    assert_eq!(node["key"], "shared");
    let metrics = lab
        .client
        .get(&format!("http://{}:9170/metrics", lab.ip), SOON)
        .await
        .unwrap();
    let metrics = String::from_utf8_lossy(metrics.body()).into_owned();
    assert!(
        metrics.contains("nearcast_control_keys_refused_total{reason=\"wrong\"} 1"),
        "{metrics}"
    );
    lab.stop().await;
}

#[tokio::test]
async fn a_purge_that_waits_is_answered_however_many_come_after_it() {
    let lab = Lab::start().await;
    lab.edge("ams-1", 0, json!({})).await;
    lab.edge("ams-2", 0, json!({})).await;
    let waits = {
        let (client, url, token) = (lab.client.clone(), lab.url("/v1/purges"), lab.token.clone());
        let purge = json!({"scope": {"by": "tag", "value": "first"}, "wait_ms": 60_000});
        tokio::spawn(async move {
            client
                .post_json(&url, Some(&token), &purge, Duration::from_secs(70))
                .await
                .unwrap()
        })
    };
    lab.event("purge_accepted").await;
    for n in 0..300 {
        lab.post(
            "/v1/purges",
            &lab.token.0,
            json!({"scope": {"by": "tag", "value": n.to_string()}, "wait_ms": 0}),
        )
        .await;
    }
    // The edges are at it: they have nothing to say of the first any more, and are past it.
    lab.get_with("/v1/journal?after=301&node=ams-1", KEY).await;
    for _ in 0..2 {
        lab.edge("ams-1", 301, json!({})).await;
        lab.edge(
            "ams-2",
            301,
            json!({"purges": [{"revision": 1, "responses": 3, "effective_unix_ms": 5}]}),
        )
        .await;
    }
    let answer = tokio::time::timeout(SOON, waits)
        .await
        .expect("it is answered")
        .unwrap();
    let shown = body(&answer);
    assert_eq!(
        (
            answer.status().as_u16(),
            &shown["revision"],
            &shown["complete"],
            &shown["responses"]
        ),
        (200, &json!(1), &json!(true), &json!(3)),
        "{shown}"
    );
    lab.stop().await;
}

#[tokio::test]
async fn the_key_of_the_machine_counts_whatever_the_journal_says() {
    let (ip, dir) = (address(), Arc::new(tempfile::tempdir().unwrap()));
    std::fs::write(dir.path().join("fleet.key"), format!("{KEY}\n")).unwrap();
    let text = fleet_text(&ip, "").replace(
        &format!("node_key = \"{KEY}\""),
        "node_key_file = \"fleet.key\"",
    );
    let lab = Lab::start_with(dir, ip, text.clone()).await;
    let changed = text.replace("label = \"Amsterdam\"", "label = \"A\"");
    let taken = lab
        .ask(
            Method::PUT,
            "/v1/fleet-file",
            Some(&lab.token.0),
            "text/plain",
            changed,
        )
        .await;
    assert_eq!(taken.status(), StatusCode::OK, "{taken:?}");
    let (dir, ip, _) = lab.stop().await;
    // The fleet gets another key; no fleet file changes.
    let other = "a wholly different key of the fleet";
    std::fs::write(dir.path().join("fleet.key"), format!("{other}\n")).unwrap();
    let lab = Lab::start_with(dir, ip, text).await;
    assert_eq!(
        lab.get_with("/v1/journal?after=0&node=ams-1", KEY)
            .await
            .status(),
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        lab.get_with("/v1/journal?after=0&node=ams-1", other)
            .await
            .status(),
        StatusCode::OK
    );
    lab.stop().await;
}

#[tokio::test]
async fn what_was_shown_is_shown_again_after_a_restart() {
    let lab = Lab::start().await;
    let traffic = |hits: u64| {
        json!({"sites": {"www": {"requests": {"hit": hits}, "bytes": {"hit": 100 * hits}, "errors": 0,
        "origin_bytes": 0, "origin_requests": 0, "pushed_hits": 0, "pushed_hit_bytes": 0}}})
    };
    let started = now_ms() + 1;
    for n in 0..12 {
        for node in ["ams-1", "ams-2"] {
            let mut report = traffic(40 * n);
            report["started_unix_ms"] = json!(started);
            lab.edge(node, 0, report).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    lab.post(
        "/v1/purges",
        &lab.token.0,
        json!({"scope": {"by": "tag", "value": "done"}, "wait_ms": 0}),
    )
    .await;
    lab.post(
        "/v1/purges",
        &lab.token.0,
        json!({"scope": {"by": "tag", "value": "half"}, "wait_ms": 0}),
    )
    .await;
    let counted = json!({"purges": [{"revision": 1, "responses": 2, "effective_unix_ms": 77}]});
    lab.edge("ams-1", 2, json!({"purges": [{"revision": 1, "responses": 2, "effective_unix_ms": 77}, {"revision": 2, "responses": 1, "effective_unix_ms": 78}]})).await;
    lab.edge("ams-2", 1, counted).await;
    lab.event("purge_complete").await;
    // Until its seconds have settled.
    let deadline = tokio::time::Instant::now() + SOON;
    let known = |series: &Value| {
        series["total"]["counted"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_f64)
            .sum::<f64>()
    };
    let before = loop {
        let series = lab.get("/v1/series?seconds=60").await;
        if (known(&series) - 880.0).abs() < 1.0 {
            break series;
        }
        assert!(tokio::time::Instant::now() < deadline, "{}", known(&series));
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let (purges, events) = (lab.get("/v1/purges").await, lab.get("/v1/events/log").await);
    assert_eq!(purges["purges"][1]["complete"], true, "{purges}");
    let lab = lab.restart().await;

    let again = lab.get("/v1/purges").await;
    let shown = |purges: &Value| -> Vec<Value> {
        let kept = [
            "revision",
            "accepted_unix_ms",
            "scopes",
            "complete",
            "completed_unix_ms",
            "responses",
            "nodes",
            "missing",
        ];
        purges["purges"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| kept.iter().map(|k| p[*k].clone()).collect())
            .collect()
    };
    assert_eq!(shown(&again), shown(&purges));
    let later = lab.get("/v1/events/log").await;
    let (events, later) = (
        events["events"].as_array().unwrap(),
        later["events"].as_array().unwrap(),
    );
    assert_eq!(later[..events.len()], events[..]);
    assert_eq!(later[events.len()]["kind"], "control_started");
    let ids: Vec<u64> = later.iter().map(|e| e["id"].as_u64().unwrap()).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    // What was known is known, and since then nothing is, which is no zero.
    let series = lab.get("/v1/series?seconds=120").await;
    assert!((known(&series) - 880.0).abs() < 1.0, "{series}");
    let counts = series["total"]["counted"].as_array().unwrap();
    let first = before["start_unix_ms"].as_u64().unwrap();
    let at = |ms: u64| ((ms - series["start_unix_ms"].as_u64().unwrap()) / 1000) as usize;
    for (n, value) in before["total"]["counted"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .filter(|(_, v)| !v.is_null())
    {
        // Single precision is kept.
        let again = counts[at(first) + n].as_f64();
        assert!(
            again.is_some_and(|again| (again - value.as_f64().unwrap()).abs() < 0.005),
            "{again:?} {value}"
        );
    }
    for seconds in [3600, 86_400, 2_592_000] {
        let long = lab.get(&format!("/v1/series?seconds={seconds}")).await;
        let counts = long["total"]["counted"].as_array().unwrap();
        assert_eq!(counts.len() as u64, long["points"].as_u64().unwrap());
        assert!(
            counts[0].is_null() && known(&long) > 800.0,
            "{seconds}: {}",
            known(&long)
        );
    }
    // The half purge goes on where it was, and is told once.
    lab.get_with("/v1/journal?after=2&node=ams-2", KEY).await;
    for _ in 0..2 {
        lab.edge("ams-2", 2, json!({})).await;
    }
    let done = lab.message("purge 2 of tag half covered").await;
    assert_eq!(done["revision"], 2);
    lab.stop().await;
}

#[tokio::test]
async fn what_was_known_of_a_lost_journal_is_not_said_of_its_successor() {
    let lab = Lab::start().await;
    lab.post(
        "/v1/purges",
        &lab.token.0,
        json!({"scope": {"by": "tag", "value": "lost"}, "wait_ms": 0}),
    )
    .await;
    for node in ["ams-1", "ams-2"] {
        lab.edge(
            node,
            1,
            json!({"purges": [{"revision": 1, "responses": 2, "effective_unix_ms": 77}]}),
        )
        .await;
    }
    lab.event("purge_complete").await;
    let (dir, ip, text) = lab.stop().await;
    std::fs::remove_file(dir.path().join("state/control/journal")).unwrap();
    let lab = Lab::start_with(dir, ip, text).await;
    assert_eq!(lab.get("/v1/purges").await["purges"], json!([]));
    lab.post(
        "/v1/purges",
        &lab.token.0,
        json!({"scope": {"by": "tag", "value": "new"}, "wait_ms": 0}),
    )
    .await;
    let lab = lab.restart().await;
    let purges = lab.get("/v1/purges").await;
    assert_eq!(
        (
            &purges["purges"][0]["revision"],
            &purges["purges"][0]["complete"]
        ),
        (&json!(1), &json!(false)),
        "{purges}"
    );
    assert_eq!(purges["purges"][0]["nodes"], json!([]));
    lab.event("purge_complete").await;
    lab.stop().await;
}

#[tokio::test]
async fn damage_of_what_is_kept_is_set_aside_and_keeps_nothing_from_starting() {
    let lab = Lab::start().await;
    for n in 0..3 {
        lab.post(
            "/v1/purges",
            &lab.token.0,
            json!({"scope": {"by": "tag", "value": n.to_string()}, "wait_ms": 0}),
        )
        .await;
        lab.message(&format!("purge {} of", n + 1)).await;
        lab.edge("ams-1", n + 1, json!({})).await;
    }
    let (dir, ip, text) = lab.stop().await;
    let kept = dir.path().join("state/control");
    for name in ["facts", "series"] {
        let mut bytes = std::fs::read(kept.join(name)).unwrap();
        bytes[30] ^= 1;
        // Something whole follows, so that it is no unfinished end.
        let copy = bytes[28..].to_vec();
        bytes.extend(
            copy.iter()
                .enumerate()
                .map(|(n, b)| if n == 2 { b ^ 1 } else { *b }),
        );
        std::fs::write(kept.join(name), bytes).unwrap();
    }
    let lab = Lab::start_with(dir, ip, text).await;
    assert!(kept.join("facts.damaged").exists());
    assert_eq!(
        lab.get("/v1/purges").await["purges"]
            .as_array()
            .unwrap()
            .len(),
        3,
        "the journal has them"
    );
    lab.message("purge 3 of").await;
    lab.stop().await;
}

#[tokio::test]
async fn a_drain_is_kept_shown_and_said_by_whom_it_was_seen() {
    let lab = Lab::start().await;
    let drain = async |body: Value| lab.post("/v1/drains", &lab.token.0, body).await;
    let dns = async |revision: u64| {
        let report = json!({
            "node": "ns1", "started_unix_ms": 1, "revision": revision, "draining": false, "queries": {}, "selections": [], "health": [],
            "rtt_prefixes": 0, "geo_source": "built-in"
        });
        lab.report("dns", report).await;
    };
    // A name server may still begin to report.
    let first = body(&drain(json!({"name": "ams-1", "wait_ms": 0})).await);
    assert_eq!(
        (&first["missing"], &first["complete"], &first["revision"]),
        (&json!(["ns1"]), &json!(false), &json!(1)),
        "{first}"
    );
    dns(0).await;
    lab.edge("ams-1", 1, json!({"drained": true})).await;
    lab.edge("ams-2", 1, json!({})).await;
    let again = body(&drain(json!({"name": "ams-1", "wait_ms": 0})).await);
    assert_eq!(
        (&again["changed"], &again["missing"], &again["complete"]),
        (&json!(false), &json!(["ns1"]), &json!(false)),
        "{again}"
    );
    assert_eq!(
        (&again["since_unix_ms"], &again["nodes"]),
        (&first["since_unix_ms"], &json!(["ams-1"])),
        "{again}"
    );
    let (seen, ()) = tokio::join!(drain(json!({"name": "ams-1", "wait_ms": 15_000})), dns(1));
    assert_eq!(body(&seen)["seen"], json!(["ns1"]));
    assert_eq!(lab.event("drained").await["node"], "ams-1");
    let state = async |name: &str| {
        let status = lab.get("/v1/status").await;
        let node = status["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|n| n["name"] == name)
            .unwrap()
            .clone();
        (
            node["state"].clone(),
            node["drained"].clone(),
            status["clusters"][0]["state"].clone(),
        )
    };
    assert_eq!(
        state("ams-1").await,
        (json!("drained"), json!(true), json!("degraded"))
    );

    type Row = (Value, u16, &'static str);
    let table: [Row; 8] = [
        (json!({"name": "ams-2"}), 409, "last in service for www"),
        (json!({"name": "ams"}), 409, "last in service for www"),
        (json!({"name": "amz-1"}), 404, "did you mean ams-1?"),
        (json!({"name": "ns1"}), 404, "is a name server"),
        (
            json!({"name": "ams", "kind": "node"}),
            404,
            "no edge or cluster",
        ),
        (
            json!({"name": "ams", "kind": "site"}),
            422,
            "node and cluster",
        ),
        (json!({"node": "ams-1"}), 422, "does not fit"),
        (json!({}), 422, "does not fit"),
    ];
    for (request, status, words) in table {
        let response = drain(request.clone()).await;
        let message = body(&response)["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            response.status().as_u16() == status && message.contains(words),
            "{request}: {status} {message}"
        );
    }
    let unknown = lab
        .ask(
            Method::POST,
            "/v1/drains",
            Some(KEY),
            "application/json",
            r#"{"name":"ams-1"}"#,
        )
        .await;
    assert_eq!(unknown.status(), 401, "nodes drain nobody");

    let forced = body(&drain(json!({"name": "ams", "force": true, "wait_ms": 0})).await);
    assert_eq!(
        (&forced["kind"], &forced["sites_without_nodes"]),
        (&json!("cluster"), &json!(["www"])),
        "{forced}"
    );
    let lab = lab.restart().await;
    let drains = lab.get("/v1/drains").await;
    let names: Vec<&Value> = drains["drains"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| &d["name"])
        .collect();
    assert_eq!(names, ["ams-1", "ams"], "also after a restart: {drains}");

    let undrain = async |name: &str| {
        lab.post(
            "/v1/drains",
            &lab.token.0,
            json!({"name": name, "drained": false, "wait_ms": 0}),
        )
        .await
    };
    let refused = undrain("ams-2").await;
    assert!(
        refused.status() == 409
            && body(&refused)["error"]["message"]
                .as_str()
                .unwrap()
                .contains("undrain ams"),
        "{refused:?}"
    );
    let back = body(&undrain("ams").await);
    assert_eq!(
        (&back["changed"], &back["notes"]),
        (&json!(true), &json!(["still drained: ams-1"])),
        "{back}"
    );
    assert_eq!(body(&undrain("ams-1").await)["changed"], json!(true));
    assert_eq!(
        body(&undrain("ams-1").await)["changed"],
        json!(false),
        "twice is once"
    );
    // An edge that followed another journal still takes itself for drained: it is told.
    lab.edge("ams-1", 1, json!({"drained": true})).await;
    assert_eq!(body(&undrain("ams-1").await)["changed"], json!(true));

    // What is no longer in the fleet can be taken back, before another one gets its name.
    let drain = async || {
        lab.post(
            "/v1/drains",
            &lab.token.0,
            json!({"name": "ams-1", "wait_ms": 0}),
        )
        .await
        .status()
    };
    assert_eq!(drain().await, 200);
    let renamed = lab.text.replace("name = \"ams-1\"", "name = \"ams-3\"");
    let renamed = lab
        .ask(
            Method::PUT,
            "/v1/fleet-file",
            Some(&lab.token.0),
            "text/plain",
            renamed,
        )
        .await;
    assert_eq!(renamed.status(), 200, "{renamed:?}");
    assert_eq!(
        drain().await,
        404,
        "nothing new is drained under an unknown name"
    );
    assert_eq!(body(&undrain("ams-1").await)["changed"], json!(true));
    assert_eq!(lab.get("/v1/drains").await["drains"], json!([]));
    assert_eq!(undrain("ams-1").await.status(), 404);
    lab.stop().await;
}
