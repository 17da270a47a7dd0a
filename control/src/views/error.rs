//! The body of every refused request.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of every refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ErrorBody {
    pub error: ErrorView,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ErrorView {
    /// A word for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// All mistakes of a fleet file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mistakes: Vec<Mistake>,
}

/// One mistake in a fleet file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mistake {
    /// 1-based.
    pub line: usize,
    /// 1-based.
    pub column: usize,
    pub problem: String,
    /// How to correct it.
    pub hint: String,
}

impl From<&nearcast_fleet::file::Mistake> for Mistake {
    fn from(m: &nearcast_fleet::file::Mistake) -> Self {
        Self {
            line: m.line,
            column: m.column,
            problem: m.problem.clone(),
            hint: m.hint.clone(),
        }
    }
}
