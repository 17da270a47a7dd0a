//! The answer of `/v1/series`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Rates by second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SeriesView {
    /// Length of a step: 1 s up to an hour, 1 min up to a day, 15 min beyond.
    pub step_ms: u64,
    pub points: usize,
    pub start_unix_ms: u64,
    pub fleet_start_unix_ms: i64,
    pub speed: f64,
    pub total: Line,
    pub statuses: BTreeMap<String, Vec<Option<f64>>>,
    pub clusters: BTreeMap<String, Line>,
    pub sites: BTreeMap<String, Line>,
}

/// One value for each step. Null where nothing is known, for example while control or the nodes were
/// down.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    pub counted: Vec<Option<f64>>,
    pub hits: Vec<Option<f64>>,
    pub errors: Vec<Option<f64>>,
    pub response_bytes: Vec<Option<f64>>,
    pub origin_bytes: Vec<Option<f64>>,
    /// Body bytes that push orders fetched from origins.
    pub push_origin_bytes: Vec<Option<f64>>,
    pub pushed_hits: Vec<Option<f64>>,
    pub pushed_hit_bytes: Vec<Option<f64>>,
}
