//! A control role in this process, and its client.

use bytes::Bytes;
use http::Method;
use http::Request;
use http::Response;
use nearcast_fleet::client::Client;
use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::config::Secret;
use nearcast_fleet::failure::Failure;
use nearcast_fleet::file;
use nearcast_fleet::testing::fleet_at;
use nearcast_net::shutdown;
use nearcast_net::shutdown::ShutdownTrigger;
use serde_json::Value;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) use nearcast_fleet::testing::NODE_KEY as KEY;

/// An address that no other test and no other process uses.
pub(crate) fn address() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    format!(
        "127.{}.{}.1",
        64 + std::process::id() % 128,
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

pub(crate) fn fleet_text(ip: &str, more: &str) -> String {
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
pub(crate) struct Lab {
    pub(crate) dir: Arc<tempfile::TempDir>,
    pub(crate) ip: String,
    pub(crate) text: String,
    pub(crate) token: Secret,
    pub(crate) fleet: watch::Receiver<Arc<Fleet>>,
    pub(crate) disk: watch::Sender<String>,
    pub(crate) trigger: ShutdownTrigger,
    pub(crate) role: JoinHandle<Result<(), Failure>>,
    pub(crate) client: Client,
}

impl Lab {
    pub(crate) async fn start() -> Self {
        let ip = address();
        let text = fleet_text(&ip, "");
        Self::start_with(Arc::new(tempfile::tempdir().unwrap()), ip, text).await
    }

    pub(crate) async fn start_with(dir: Arc<tempfile::TempDir>, ip: String, text: String) -> Self {
        let Spawned {
            fleet,
            disk,
            role,
            trigger,
        } = spawn(dir.path(), &text);
        let client = Client::new(None);
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

    pub(crate) async fn stop(self) -> (Arc<tempfile::TempDir>, String, String) {
        self.trigger.shut_down();
        tokio::time::timeout(SOON, self.role)
            .await
            .expect("it drains")
            .unwrap()
            .unwrap();
        (self.dir, self.ip, self.text)
    }

    pub(crate) async fn restart(self) -> Self {
        let (dir, ip, text) = self.stop().await;
        Self::start_with(dir, ip, text).await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}:7700{path}", self.ip)
    }

    pub(crate) async fn ask(
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

    pub(crate) async fn get(&self, path: &str) -> Value {
        let response = self.client.get(&self.url(path), SOON).await.unwrap();
        assert_eq!(response.status(), 200, "{path}: {response:?}");
        serde_json::from_slice(response.body()).unwrap()
    }

    pub(crate) async fn get_with(&self, path: &str, secret: &str) -> Response<Bytes> {
        self.ask(Method::GET, path, Some(secret), "application/json", "")
            .await
    }

    /// Waits until a metric has a value.
    pub(crate) async fn metric(&self, name: &str) {
        let deadline = tokio::time::Instant::now() + SOON;
        let url = format!("http://{}:9170/metrics", self.ip);
        loop {
            let response = self.client.get(&url, SOON).await.unwrap();
            if String::from_utf8_lossy(response.body()).contains(name) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "no {name}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn post(&self, path: &str, secret: &str, body: Value) -> Response<Bytes> {
        self.ask(
            Method::POST,
            path,
            Some(secret),
            "application/json",
            body.to_string(),
        )
        .await
    }

    pub(crate) async fn report(&self, role: &str, body: Value) {
        let response = self.post(&format!("/v1/reports/{role}"), KEY, body).await;
        assert_eq!(response.status(), 200, "{response:?}");
    }

    pub(crate) async fn edge(&self, node: &str, revision: u64, more: Value) {
        let mut report = json!({
            "node": node, "started_unix_ms": now_unix_ms() + 1, "revision": revision, "draining": false, "sites": {}, "connections": 3,
            "memory_bytes": 1, "disk_bytes": 2, "pushed_bytes": 0, "popularity": [], "fills": [], "purges": []
        });
        for (name, value) in more.as_object().unwrap() {
            report[name] = value.clone();
        }
        self.report("edge", report).await;
    }

    /// Changes the fleet file on disk and waits until it is in force.
    pub(crate) async fn read_again(&mut self, text: &str) {
        self.fleet.mark_unchanged();
        self.disk.send_replace(text.to_owned());
        tokio::time::timeout(SOON, self.fleet.changed())
            .await
            .expect("it is taken on")
            .unwrap();
    }

    /// Waits for an event of that kind.
    pub(crate) async fn event(&self, kind: &str) -> Value {
        self.event_where(kind, |e| e["kind"] == kind).await
    }

    /// Waits for an event with these words.
    pub(crate) async fn message(&self, words: &str) -> Value {
        self.event_where(words, |e| e["message"].as_str().unwrap().contains(words))
            .await
    }

    pub(crate) async fn event_where(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
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

pub(crate) struct Spawned {
    pub(crate) fleet: watch::Receiver<Arc<Fleet>>,
    pub(crate) disk: watch::Sender<String>,
    pub(crate) role: JoinHandle<Result<(), Failure>>,
    pub(crate) trigger: ShutdownTrigger,
}

pub(crate) fn spawn(dir: &Path, text: &str) -> Spawned {
    let (tx, rx) = watch::channel(Arc::new(fleet_at(text, dir)));
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

/// A check that finds more mistakes than the parser.
pub(crate) fn no_nonsense(_: &Fleet, text: &str) -> Vec<file::Mistake> {
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

pub(crate) fn body(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body()).unwrap_or_else(|e| panic!("{e}: {response:?}"))
}
