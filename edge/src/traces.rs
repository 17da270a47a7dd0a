//! Answers control's questions about single requests, which it asks for by long poll: a node needs
//! no address that control can reach.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use nearcast_fleet::client::Client;
use nearcast_fleet::config::{Control, Fleet, Secret};
use nearcast_fleet::node_key;
use nearcast_fleet::trace::{TraceAnswer, TraceQuestions, is_id};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::edge::Worker;

/// How long control may hold a poll.
const WAIT: Duration = Duration::from_secs(20);
/// How much longer an answer of control's may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// Pause after a failure. Traces are for people, who ask again.
const PAUSE: Duration = Duration::from_secs(2);
/// Questions that are answered of one poll.
const QUESTIONS_MAX: usize = 64;

/// Answers until it is dropped.
pub(crate) async fn answer(
    name: String,
    workers: Vec<Arc<Worker>>,
    mut fleet: watch::Receiver<Arc<Fleet>>,
) {
    let client = Client::following(fleet.clone());
    let mut after = 0;
    loop {
        let now = fleet.borrow_and_update().clone();
        let Some(control) = &now.control else {
            if fleet.changed().await.is_err() {
                return;
            }
            continue;
        };
        let key = node_key::shown_by(&now, &name).unwrap_or_else(|| Secret(String::new()));
        let began = Instant::now();
        let asked = tokio::select! {
            asked = poll(&client, control, &key, &name, after) => asked,
            // Control may have another address now.
            changed = fleet.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        match asked {
            Ok(asked) => {
                let is_held = asked.newest != after || began.elapsed() >= PAUSE;
                after = asked.newest;
                for question in asked.questions.iter().take(QUESTIONS_MAX) {
                    let mut records = Vec::new();
                    if is_id(question.id.as_bytes()) {
                        for worker in &workers {
                            worker.log.find(question.id.as_bytes(), &mut records);
                        }
                    }
                    let answer = TraceAnswer {
                        node: name.clone(),
                        number: question.number,
                        records,
                    };
                    let url = format!("{}/v1/trace-answers", control.url);
                    let sent = client
                        .post_json(&url, Some(&key), &answer, ANSWER_TIME_MAX)
                        .await;
                    if let Err(reason) = sent.map_err(|e| e.to_string()).and_then(checked) {
                        tracing::debug!(reason, "control did not take the answer to a trace");
                    }
                }
                // Control normally holds a poll without questions; if it does not, a pause prevents a
                // busy loop.
                if !is_held {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Err(reason) => {
                tracing::debug!(reason, "control cannot be asked for traces");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn poll(
    client: &Client,
    control: &Control,
    key: &Secret,
    name: &str,
    after: u64,
) -> Result<TraceQuestions, String> {
    let url = format!(
        "{}/v1/trace-questions?node={name}&after={after}&wait_ms={}",
        control.url,
        WAIT.as_millis()
    );
    let response = client
        .get_with(&url, key, WAIT + ANSWER_TIME_MAX)
        .await
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(checked(response)?.body()).map_err(|error| error.to_string())
}

fn checked(response: Response<Bytes>) -> Result<Response<Bytes>, String> {
    match response.status() {
        status if status.is_success() => Ok(response),
        status => Err(format!("status {status}")),
    }
}
