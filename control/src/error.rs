//! Why a request to the API fails, and the answer for it.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use nearcast_fleet::file::Mistake;
use nearcast_fleet::journal::JournalError;
use nearcast_fleet::node_key::KeyRefused;

use crate::journal::AppendError;
use crate::views;

/// A refused or failed request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The request is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// The token is missing or wrong.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// The node key is missing, wrong, or another node's.
    #[error("{0}")]
    Key(KeyRefused),
    /// The page of another web origin asks.
    #[error("{0}")]
    Forbidden(String),
    /// One address asks too often.
    #[error("{0}")]
    TooManyRequests(&'static str),
    /// The path, or an object that the request names, does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The path exists, the method does not.
    #[error("{0}")]
    MethodNotAllowed(String),
    /// The request conflicts with the current state.
    #[error("{0}")]
    Conflict(String),
    /// The body is larger than the limit.
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    /// The body does not have the expected type.
    #[error("{0}")]
    UnsupportedMediaType(String),
    /// The body was understood and is wrong.
    #[error("{message}")]
    Invalid {
        /// What is wrong.
        message: String,
        /// Every mistake of a fleet file.
        mistakes: Vec<Mistake>,
    },
    /// The request's host name is not control's.
    #[error(
        "{0:?} is not a name of control here; use its address, or list the name in hosts of [control]"
    )]
    Misdirected(String),
    /// The body did not arrive in time.
    #[error("the body took longer than {} s", .0.as_secs())]
    TooSlow(std::time::Duration),
    /// A limit on connections, event streams or waiting changes is reached.
    #[error("{0}")]
    TooBusy(&'static str),
    /// A node that control depends on does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// The journal could not be written; nothing was accepted.
    #[error("{0}; nothing was changed")]
    Storage(JournalError),
    /// A defect of control, or the process ends.
    #[error("{0}")]
    Internal(String),
}

impl ApiError {
    /// A request that was understood but is wrong.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid {
            message: message.into(),
            mistakes: Vec::new(),
        }
    }

    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            Self::Unauthorized(_) => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::Key(refused) => match refused.status() {
                StatusCode::FORBIDDEN => (StatusCode::FORBIDDEN, "forbidden"),
                StatusCode::UNAUTHORIZED => (StatusCode::UNAUTHORIZED, "unauthorized"),
                other => (other, "unavailable"),
            },
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden"),
            Self::TooManyRequests(_) => (StatusCode::TOO_MANY_REQUESTS, "too_many_requests"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
            Self::TooLarge(_) | Self::Storage(JournalError::TooLarge { .. }) => {
                (StatusCode::PAYLOAD_TOO_LARGE, "too_large")
            }
            Self::UnsupportedMediaType(_) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type")
            }
            Self::Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            Self::Misdirected(_) => (StatusCode::MISDIRECTED_REQUEST, "misdirected"),
            Self::TooSlow(_) => (StatusCode::REQUEST_TIMEOUT, "timeout"),
            Self::TooBusy(_) => (StatusCode::SERVICE_UNAVAILABLE, "too_busy"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            Self::Storage(_) => (StatusCode::INSUFFICIENT_STORAGE, "storage"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }
}

impl From<AppendError> for ApiError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Busy => Self::TooBusy("too many changes wait for the disk"),
            AppendError::Ended(_) => Self::Internal(error.to_string()),
            AppendError::Storage(error) => Self::Storage(error),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        if status.is_server_error() {
            tracing::warn!(status = status.as_u16(), "{self}");
        }
        let mistakes = match &self {
            Self::Invalid { mistakes, .. } => mistakes.iter().map(views::Mistake::from).collect(),
            _ => Vec::new(),
        };
        let body = views::ErrorBody {
            error: views::ErrorView {
                code: code.to_owned(),
                message: self.to_string(),
                mistakes,
            },
        };
        let mut response = (status, Json(body)).into_response();
        let fields = response.headers_mut();
        match self {
            Self::Unauthorized(_) | Self::Key(_) if status == StatusCode::UNAUTHORIZED => {
                fields.insert(
                    http::header::WWW_AUTHENTICATE,
                    http::HeaderValue::from_static("Bearer realm=\"nearcast\""),
                );
            }
            Self::TooManyRequests(_) => {
                fields.insert(
                    http::header::RETRY_AFTER,
                    http::HeaderValue::from_static("1"),
                );
            }
            Self::TooBusy(_) => {
                fields.insert(
                    http::header::RETRY_AFTER,
                    http::HeaderValue::from_static("5"),
                );
            }
            _ => {}
        }
        response
    }
}
