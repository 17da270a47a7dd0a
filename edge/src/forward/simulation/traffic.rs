//! The traffic of the simulation: kinds of requests, and what the origin answers.

use http::{HeaderMap, Method};
use nearcast_fleet::config::CachePolicy;

use crate::forward::collapse::Requester;
use crate::forward::wanted::WantedSlices;
use crate::origin::OriginError;
use crate::stored::index::Index;
use nearcast_http_rules::range;
use nearcast_http_rules::request_fields::{UnkeyedFields, is_oversized};
use nearcast_http_rules::testing::map;

/// A kind of request, with what the simulation knows about it apart from [`Requester`].
pub(super) struct Kind {
    pub(super) fields: HeaderMap,
    pub(super) requester: Requester,
    pub(super) wanted: Option<WantedSlices>,
    pub(super) language: Option<&'static str>,
    /// Requests of different groups never share.
    pub(super) group: u8,
    pub(super) is_special: bool,
    pub(super) is_oversized: bool,
}

impl Kind {
    pub(super) fn all(policy: &CachePolicy) -> Vec<Self> {
        let long = format!("user-agent: {}", "a".repeat(5000));
        let table: [(&[&str], Option<&'static str>); 13] = [
            (&[], None),
            (&[], None),
            (&[], None),
            (&["accept-language: de"], Some("de")),
            (&["accept-language: en"], Some("en")),
            (&["cookie: a=1"], None),
            (&["cookie: a=2"], None),
            (&["authorization: a"], None),
            (&["range: bytes=0-9"], None),
            (&["range: bytes=600000-600009"], None),
            (&["range: bytes=600000-600009, 5-9"], None),
            (&["x-unusual: 1"], None),
            (&[&long], None),
        ];
        let index = Index::new();
        table
            .into_iter()
            .map(|(lines, language)| {
                let fields = map(lines);
                let unusual = UnkeyedFields::of(&fields, policy);
                let is_oversized = is_oversized(&fields);
                Self {
                    requester: Requester::of(&index, &fields, &unusual, &HeaderMap::new()),
                    wanted: range::requested(&Method::GET, &fields)
                        .and_then(|specs| WantedSlices::of(&specs, false)),
                    language,
                    group: u8::from(!unusual.is_empty()),
                    is_special: is_oversized
                        || fields.contains_key("cookie")
                        || fields.contains_key("authorization"),
                    is_oversized,
                    fields,
                }
            })
            .collect()
    }

    /// Whether an error to `self` is one to `other` as well.
    pub(super) fn is_alike(&self, other: &Self) -> bool {
        let own = |kind: &Self| {
            ["cookie", "authorization", "range"].map(|name| kind.fields.get(name).cloned())
        };
        own(self) == own(other) && !self.is_oversized && !other.is_oversized
    }

    /// What a key is remembered by after a response to such a request that may not be shared.
    pub(super) fn memory(&self, key: u64) -> Memory {
        let has_credentials = self.is_special && !self.is_oversized;
        (key, self.group, has_credentials, self.is_oversized)
    }
}

/// Key, group, credentials, oversized.
pub(super) type Memory = (u64, u8, bool, bool);
/// Key and group.
pub(super) type FlightKey = (u64, u8);

/// What the origin answers.
#[derive(Clone)]
pub(super) enum Reply {
    Head(u16, &'static [&'static str], Option<u64>),
    Fail(OriginError),
}

const FRESH: Reply = Reply::Head(
    200,
    &["cache-control: max-age=20", "etag: \"v\""],
    Some(1000),
);

pub(super) const REPLIES: [Reply; 20] = [
    FRESH,
    FRESH,
    FRESH,
    FRESH,
    Reply::Head(
        200,
        &["cache-control: max-age=20", "vary: accept-language"],
        Some(1000),
    ),
    Reply::Head(
        200,
        &["cache-control: max-age=20", "vary: accept-language"],
        None,
    ),
    Reply::Head(
        200,
        &["cache-control: max-age=0", "etag: \"v\""],
        Some(1000),
    ),
    Reply::Head(200, &["cache-control: no-cache", "etag: \"v\""], Some(1000)),
    Reply::Head(200, &["cache-control: no-store"], Some(1000)),
    Reply::Head(
        200,
        &["cache-control: max-age=20", "set-cookie: a=b"],
        Some(1000),
    ),
    Reply::Head(503, &[], Some(1000)),
    Reply::Head(500, &["cache-control: no-store"], Some(1000)),
    Reply::Head(
        206,
        &[
            "cache-control: max-age=20",
            "etag: \"v\"",
            "content-range: bytes 524288-786431/3000000",
        ],
        Some(262_144),
    ),
    Reply::Head(
        206,
        &[
            "cache-control: max-age=20",
            "content-range: bytes 524288-786431/3000000",
        ],
        Some(262_144),
    ),
    Reply::Head(416, &["content-range: bytes */1000"], Some(0)),
    Reply::Fail(OriginError::Refused),
    Reply::Fail(OriginError::FirstByteTimeout),
    Reply::Fail(OriginError::Terminated),
    Reply::Fail(OriginError::Protocol),
    Reply::Fail(OriginError::GivenUp),
];
