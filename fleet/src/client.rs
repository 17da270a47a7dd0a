//! A small HTTP/1.1 client for requests between nodes and from the command line to a node.
//!
//! Not the edge's way to origins. Bounded: a time-out for the whole exchange, 64 MiB of response body.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};

use crate::config::Secret;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL is not `http://host[:port]/path`.
    #[error("{0:?} is not a URL of the form http://host:port/path")]
    Url(String),
    /// Nobody answered there.
    #[error("cannot connect to {authority}: {reason}")]
    Connect {
        /// Host and port.
        authority: String,
        /// The system's words.
        reason: String,
    },
    /// It took too long.
    #[error("no whole answer from {authority} within {after:?}")]
    Timeout {
        /// Host and port.
        authority: String,
        /// The limit.
        after: Duration,
    },
    /// The connection broke or the answer was not HTTP.
    #[error("the exchange with {authority} failed: {reason}")]
    Exchange {
        /// Host and port.
        authority: String,
        /// What happened.
        reason: String,
    },
    /// The answer was larger than the limit.
    #[error("the answer of {authority} is larger than {limit} bytes")]
    TooLarge {
        /// Host and port.
        authority: String,
        /// The limit.
        limit: usize,
    },
}

/// A client with kept connections. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Client {}

impl Client {
    /// A new client.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends a request whose URI is absolute and reads the whole response.
    pub async fn send(&self, request: Request<Bytes>, timeout: Duration) -> Result<Response<Bytes>, ClientError> {
        let _ = (request, timeout);
        unreachable!()
    }

    /// `GET`.
    pub async fn get(&self, url: &str, timeout: Duration) -> Result<Response<Bytes>, ClientError> {
        let _ = (url, timeout);
        unreachable!()
    }

    /// `POST` of a JSON body with a bearer token.
    pub async fn post_json<T: serde::Serialize + ?Sized>(
        &self,
        url: &str,
        bearer: Option<&Secret>,
        body: &T,
        timeout: Duration,
    ) -> Result<Response<Bytes>, ClientError> {
        let _ = (url, bearer, body, timeout);
        unreachable!()
    }
}
