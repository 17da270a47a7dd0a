//! The reasons not to store a response.

/// Why a response is not stored. `Cache-Status`, the log and the metric use the same word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotStored {
    /// Not a response to GET.
    Method,
    /// Its status is about the request or the connection and not about the resource, or it is an
    /// interim response or a 304.
    Status,
    /// `no-store` in the response.
    NoStore,
    /// `no-store` in the request, where clients are obeyed.
    RequestNoStore,
    /// `private`, with or without a list of fields.
    Private,
    /// The request had credentials and the response does not allow shared use.
    Authorization,
    /// `must-understand` with a status this cache does not know.
    MustUnderstand,
    /// `Vary: *`.
    VaryStar,
    /// `Vary` names more fields than the limit, or one that the edge makes for each request.
    Vary,
    /// It sets a cookie and does not say that it is public.
    SetCookie,
    /// The request had fields that may have caused the response, and neither `Vary` nor the site
    /// names them.
    RequestFields,
    /// The request had a cookie or credentials, and the lifetime would be heuristic or the site's
    /// default.
    Credentials,
    /// It has no lifetime.
    NoLifetime,
    /// It is stale on arrival and has no validator.
    Useless,
    /// A 206 without a strong validator or without a valid `Content-Range`.
    Partial,
    /// It has more tags than the limit, or one that no purge can name.
    Tags,
    /// Its body is larger than the site's `body_max` or the node's store allows.
    TooLarge,
    /// The request had a body.
    RequestBody,
    /// The request's path is ambiguous (dot segments, a backslash, a broken escape).
    AmbiguousPath,
    /// It is an error, and a stored response may be served in its place.
    ErrorBesideStored,
    /// A purge or an unsafe request that came after its request invalidates it.
    Overtaken,
    /// Recent responses to such requests could not be shared, so it was relayed to its client.
    Unshared,
    /// Its body ended early, and the rest cannot be requested.
    Incomplete,
    /// The request asked for a WebSocket, and the origin did not switch protocols.
    Upgrade,
}

impl NotStored {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [Self; 24] = [
        Self::Method,
        Self::Status,
        Self::NoStore,
        Self::RequestNoStore,
        Self::Private,
        Self::Authorization,
        Self::MustUnderstand,
        Self::VaryStar,
        Self::Vary,
        Self::SetCookie,
        Self::RequestFields,
        Self::Credentials,
        Self::NoLifetime,
        Self::Useless,
        Self::Partial,
        Self::Tags,
        Self::TooLarge,
        Self::RequestBody,
        Self::AmbiguousPath,
        Self::ErrorBesideStored,
        Self::Overtaken,
        Self::Unshared,
        Self::Incomplete,
        Self::Upgrade,
    ];

    /// A token (RFC 9110 section 5.6.2), for `detail` in `Cache-Status`, the metric's label and the
    /// log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Status => "status",
            Self::NoStore => "no-store",
            Self::RequestNoStore => "request-no-store",
            Self::Private => "private",
            Self::Authorization => "authorization",
            Self::MustUnderstand => "must-understand",
            Self::VaryStar => "vary-star",
            Self::Vary => "vary",
            Self::SetCookie => "set-cookie",
            Self::RequestFields => "request-field",
            Self::Credentials => "credentials",
            Self::NoLifetime => "no-freshness",
            Self::Useless => "stale-at-once",
            Self::Partial => "partial",
            Self::Tags => "tags",
            Self::TooLarge => "too-large",
            Self::RequestBody => "request-body",
            Self::AmbiguousPath => "ambiguous-path",
            Self::ErrorBesideStored => "error-beside-stored",
            Self::Overtaken => "overtaken",
            Self::Unshared => "unshared",
            Self::Incomplete => "incomplete",
            Self::Upgrade => "upgrade",
        }
    }
}
