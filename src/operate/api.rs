//! A client of control's API: one exchange, its response as JSON, its errors as failures with an
//! exit code.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use nearcast_fleet::client::{Client, ClientError};
use nearcast_fleet::config::{Fleet, Secret};
use nearcast_fleet::failure::{Failure, FailureKind};
use serde_json::Value;

use crate::find;

/// How long control may take for a response for which it need not wait.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// Control's API.
pub(crate) struct Api {
    base: String,
    client: Client,
}

impl Api {
    /// The API of that fleet's control role.
    pub(crate) fn of(fleet: &Fleet) -> Result<Self, Failure> {
        Ok(Self {
            base: find::control(fleet)?.url.clone(),
            client: Client::new(fleet.ca.clone()),
        })
    }

    /// `GET`; `path` begins with `/v1/`.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.exchange(
            Method::GET,
            path,
            None,
            Bytes::new(),
            "application/json",
            ANSWER_MAX,
        )
        .await
    }

    /// `GET` with the operator's token.
    pub(crate) async fn get_with(&self, path: &str, token: &Secret) -> Result<Value, Failure> {
        self.exchange(
            Method::GET,
            path,
            Some(token),
            Bytes::new(),
            "application/json",
            ANSWER_MAX,
        )
        .await
    }

    /// `POST` of JSON with the operator's token; `wait` is how long control was asked to wait
    /// before it answers.
    pub(crate) async fn post(
        &self,
        path: &str,
        token: &Secret,
        body: &Value,
        wait: Duration,
    ) -> Result<Value, Failure> {
        let body = Bytes::from(body.to_string());
        self.exchange(
            Method::POST,
            path,
            Some(token),
            body,
            "application/json",
            ANSWER_MAX + wait,
        )
        .await
    }

    /// `PUT` of a fleet file's text with the operator's token.
    pub(crate) async fn put_text(
        &self,
        path: &str,
        token: &Secret,
        text: String,
    ) -> Result<Value, Failure> {
        self.exchange(
            Method::PUT,
            path,
            Some(token),
            Bytes::from(text),
            "application/toml",
            ANSWER_MAX,
        )
        .await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        token: Option<&Secret>,
        body: Bytes,
        content_type: &str,
        limit: Duration,
    ) -> Result<Value, Failure> {
        let url = format!("{}{path}", self.base);
        let mut request = Request::builder()
            .method(method)
            .uri(&url)
            .header(CONTENT_TYPE, content_type);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.0));
        }
        let request = request.body(body).map_err(|e| {
            Failure::new(
                FailureKind::Usage,
                format!("cannot ask {url}: {e}; see control.url in the fleet file and the token"),
            )
        })?;
        let response = self
            .client
            .send(request, limit)
            .await
            .map_err(|e| unanswered(&e))?;
        answer(&response)
    }
}

fn unanswered(error: &ClientError) -> Failure {
    let hint = match error {
        ClientError::Url(_) => {
            return Failure::new(
                FailureKind::Usage,
                format!("control.url in the fleet file is wrong: {error}"),
            );
        }
        ClientError::Connect { .. } => {
            "start it (`nearcast control`); content is served without it meanwhile"
        }
        // These have hints of their own.
        ClientError::Tls { .. } | ClientError::Authorities { .. } => {
            return Failure::new(FailureKind::Unavailable, error.to_string());
        }
        _ => "look at its log",
    };
    Failure::new(
        FailureKind::Unavailable,
        format!("control does not answer: {error}; {hint}"),
    )
}

/// The JSON of a successful response, or the failure of an error response.
fn answer(response: &Response<Bytes>) -> Result<Value, Failure> {
    let value: Option<Value> = serde_json::from_slice(response.body()).ok();
    let status = response.status();
    if status.is_success() {
        let hint = "is control.url in the fleet file the address of Nearcast's control role?";
        return value.ok_or_else(|| {
            Failure::new(
                FailureKind::Unavailable,
                format!("control's answer is not JSON; {hint}"),
            )
        });
    }
    let said = value
        .as_ref()
        .and_then(|v| v["error"]["message"].as_str())
        .unwrap_or("no reason given")
        .to_owned();
    let kind = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => FailureKind::Refused,
        StatusCode::INSUFFICIENT_STORAGE => FailureKind::Io,
        StatusCode::INTERNAL_SERVER_ERROR => FailureKind::Internal,
        status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
            FailureKind::Usage
        }
        _ => FailureKind::Unavailable,
    };
    let message = match kind {
        FailureKind::Refused => format!("control refused the token: {said}; see --token"),
        _ => format!("control refused this ({status}): {said}"),
    };
    let mistakes = value
        .iter()
        .flat_map(|v| list(&v["error"]["mistakes"]))
        .map(mistake_line);
    Err(Failure::new(
        kind,
        mistakes.fold(message, |all, line| all + "\n" + &line),
    ))
}

fn mistake_line(mistake: &Value) -> String {
    format!(
        "{}:{}: {}; {}",
        mistake["line"],
        mistake["column"],
        string(&mistake["problem"]),
        string(&mistake["hint"])
    )
}

/// A number of an answer; 0 where it is absent.
pub(crate) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

/// A string of an answer; empty where it is absent.
pub(crate) fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The members of a list of an answer; none where it is absent.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_become_failures_with_their_exit_codes() {
        let error = |code: &str, words: &str| {
            format!("{{\"error\":{{\"code\":\"{code}\",\"message\":\"{words}\"}}}}")
        };
        let invalid = r#"{"error":{"code":"invalid","message":"1 mistake","mistakes":[{"line":3,"column":1,"problem":"p","hint":"m"}]}}"#;
        let table: [(u16, String, FailureKind, &str); 7] = [
            (
                401,
                error("unauthorized", "wrong token"),
                FailureKind::Refused,
                "wrong token",
            ),
            (
                403,
                error("forbidden", "no"),
                FailureKind::Refused,
                "--token",
            ),
            (
                404,
                error("not_found", "no cluster x"),
                FailureKind::Usage,
                "no cluster x",
            ),
            (422, invalid.to_owned(), FailureKind::Usage, "\n3:1: p; m"),
            (
                503,
                error("too_busy", "later"),
                FailureKind::Unavailable,
                "later",
            ),
            (
                507,
                error("storage", "disk full"),
                FailureKind::Io,
                "disk full",
            ),
            (502, "<html>".to_owned(), FailureKind::Unavailable, "502"),
        ];
        for (status, body, kind, words) in table {
            let response = Response::builder()
                .status(status)
                .body(Bytes::from(body))
                .expect("a response");
            let failure = answer(&response).expect_err("refused");
            assert_eq!(failure.kind, kind, "{status}");
            assert!(failure.message.contains(words), "{failure}");
        }
        let good = Response::new(Bytes::from_static(b"{\"a\":1}"));
        assert_eq!(answer(&good).expect("good")["a"], 1);
        assert!(answer(&Response::new(Bytes::from_static(b"hello"))).is_err());
    }
}
