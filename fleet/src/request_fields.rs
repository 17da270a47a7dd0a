//! The names of request fields that mean something to a shared cache: which never reach an origin,
//! and which every client sends. The lists here are the only ones: forwarding, storing, collapsing,
//! the sharing of errors and the fleet file all go by them.
//!
//! Follows RFC 9111 section 7.1 (cache poisoning) and RFC 3875 section 4.1.18 (how gateways name
//! fields).

/// Fields by which gateways and applications are told another host, path, method or scheme than the
/// request has, or who the client is. They are dropped from every request, in every spelling (see
/// [`is_removed`]). What an origin is to learn of these the edge says itself, in `X-Forwarded-For`
/// and `X-Forwarded-Proto`.
const REMOVED: [&str; 83] = [
    // Who the client is.
    "ali-cdn-real-ip",
    "auth-user",
    "cdn-real-ip",
    "cdn-src-ip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-ipcountry",
    "cf-pseudo-ipv4",
    "cf-visitor",
    "client-ip",
    "do-connecting-ip",
    "fastly-client-ip",
    "fastly-ff",
    "fastly-ssl",
    "fastly-temp-xff",
    "fly-client-ip",
    "forwarded",
    "forwarded-for",
    "http-client-ip",
    "incap-client-ip",
    "real-ip",
    "remote-addr",
    "remote-user",
    "ssl-client-cert",
    "true-client-ip",
    "wl-proxy-client-ip",
    "x-appengine-user-ip",
    "x-arr-clientcert",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-cdn-src-ip",
    "x-client-cert",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-custom-ip-authorization",
    "x-nf-client-connection-ip",
    "x-originating-ip",
    "x-proxy-user",
    "x-proxyuser-ip",
    "x-real-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-remote-user",
    "x-sucuri-clientip",
    "x-true-client-ip",
    // What the request is.
    "base-url",
    "disguised-host",
    "front-end-https",
    "http-host",
    "http-url",
    "proxy",
    "proxy-host",
    "proxy-url",
    "request-uri",
    "script-name",
    "surrogate-capability",
    "x-arr-ssl",
    "x-backend-host",
    "x-forwarded",
    "x-forwarder-for",
    "x-host",
    "x-http-destinationurl",
    "x-http-host",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-http-path-override",
    "x-https",
    "x-https-on",
    "x-matched-path",
    "x-method-override",
    "x-now-route-matches",
    "x-origin-host",
    "x-proto",
    "x-proxy-url",
    "x-real-host",
    "x-request-uri",
    "x-scheme",
    "x-script-name",
    "x-sendfile-type",
    "x-server-name",
    "x-url-scheme",
    "x-waws-unencoded-url",
];

/// Families of such fields, whose members differ from gateway to gateway.
const REMOVED_PREFIXES: [&str; 20] = [
    "cf-access-",
    "cloudfront-",
    "http-x-",
    "ssl-client-",
    "x-accel-",
    "x-amzn-oidc-",
    "x-auth-request-",
    "x-authenticated-",
    "x-envoy-",
    "x-forward-",
    "x-forwarded-",
    "x-goog-authenticated-",
    "x-invoke-",
    "x-middleware-",
    "x-ms-client-principal",
    "x-original-",
    "x-override-",
    "x-rewrite-",
    "x-ssl-client-",
    "x-webauth-",
];

/// Fields that most clients send to most URLs, and those that the edge makes itself. What is in
/// them is taken for nothing that a well-kept origin makes an answer for one client of, unless its
/// `Vary` says so. Exact names; sorted.
const ORDINARY: [&str; 45] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "cdn-loop",
    "cmcd-object",
    "cmcd-request",
    "cmcd-session",
    "cmcd-status",
    "content-length",
    "dnt",
    "expect",
    "from",
    "host",
    "icy-metadata",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "nearcast-peer",
    "origin",
    "pragma",
    "priority",
    "purpose",
    "range",
    "referer",
    "save-data",
    "sec-ch-ua",
    "sec-ch-ua-mobile",
    "sec-ch-ua-platform",
    "sec-fetch-dest",
    "sec-fetch-mode",
    "sec-fetch-site",
    "sec-fetch-storage-access",
    "sec-fetch-user",
    "sec-gpc",
    "sec-purpose",
    "traceparent",
    "tracestate",
    "upgrade-insecure-requests",
    "user-agent",
    "via",
    "x-playback-session-id",
];

/// Other names that must not come in another spelling, as a gateway would take them for these.
const OTHER_KNOWN: [&str; 15] = [
    "access-control-request-headers",
    "access-control-request-method",
    "authorization",
    "connection",
    "content-encoding",
    "content-type",
    "cookie",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Names that the edge reads, makes or ends itself, whatever a client says in them.
const OWN: [&str; 21] = [
    "cdn-loop",
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "nearcast-peer",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// Whether a field never reaches an origin: one that rewrites the request or names the client, in
/// whatever spelling, and any other known field in another spelling than its own. `name` is in
/// lower case.
///
/// Gateways in the manner of CGI make variables of fields: every character but letters and digits
/// becomes `_`, so that `X_Forwarded_Host` and `X.Forwarded.Host` are read as `X-Forwarded-Host`.
pub fn is_removed(name: &str) -> bool {
    let mut folded = [0; FOLDED_BYTES_MAX];
    // Longer than every known name: only a prefix can be known.
    let length = name.len().min(FOLDED_BYTES_MAX);
    let mut is_odd = false;
    for (to, from) in folded.iter_mut().zip(name.bytes()) {
        let is_kept = from.is_ascii_alphanumeric() || from == b'-';
        is_odd |= !is_kept;
        *to = if is_kept { from } else { b'-' };
    }
    let folded = std::str::from_utf8(&folded[..length]).unwrap_or_default();
    if REMOVED_PREFIXES
        .iter()
        .any(|prefix| folded.starts_with(prefix))
    {
        return true;
    }
    let is_whole = length == name.len();
    let is_listed = |list: &[&str]| list.binary_search(&folded).is_ok();
    is_whole
        && (REMOVED.contains(&folded)
            || is_odd && (is_listed(&ORDINARY) || is_listed(&OTHER_KNOWN)))
}

/// Enough for every name above.
const FOLDED_BYTES_MAX: usize = 40;

/// Whether nearly every request has a field of this name, or the edge makes it itself.
pub fn is_ordinary(name: &str) -> bool {
    ORDINARY.binary_search(&name).is_ok()
}

/// Whether no client's value of a field reaches the origin as it came: the edge drops it, ends it
/// or makes its own.
pub fn is_edges_own(name: &str) -> bool {
    OWN.binary_search(&name).is_ok() || is_removed(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_as_they_are_searched() {
        assert!(ORDINARY.is_sorted() && OTHER_KNOWN.is_sorted() && OWN.is_sorted());
        for known in REMOVED.iter().chain(&ORDINARY).chain(&OTHER_KNOWN) {
            assert!(
                known.len() < FOLDED_BYTES_MAX
                    && known
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{known}"
            );
        }
        for removed in REMOVED {
            assert!(
                !ORDINARY.contains(&removed) && !OTHER_KNOWN.contains(&removed),
                "{removed}"
            );
        }
    }

    #[test]
    fn fields_that_rewrite_a_request_or_name_the_client_never_pass_in_any_spelling() {
        let rewriting = [
            "x-forwarded-host",
            "x-forwarded-prefix",
            "x-forwarded-anything",
            "x-original-host",
            "x-original-url",
            "x-rewrite-url",
            "x-host",
            "x-http-method-override",
            "true-client-ip",
            "cf-connecting-ip",
            "x-real-ip",
            "forwarded",
            "x-forwarded-for",
            "x-middleware-subrequest",
            "proxy",
            "client-ip",
            "front-end-https",
        ];
        for plain in rewriting {
            for spelling in [
                plain.to_owned(),
                plain.to_uppercase(),
                plain.replace('-', "_"),
                plain.replacen('-', "_", 1),
                plain.replace('-', "."),
            ] {
                assert!(is_removed(&spelling.to_lowercase()), "{spelling}");
            }
        }
        // What a gateway would take for a field of another name that the edge or the protocol
        // relies on.
        for spelling in [
            "content_length",
            "transfer_encoding",
            "if_none_match",
            "cdn_loop",
            "user_agent",
            "accept.encoding",
            "proxy_connection",
            "sec+fetch-mode",
        ] {
            assert!(is_removed(spelling), "{spelling}");
        }
        for passes in [
            "x-api-key",
            "x_api_key",
            "rsc",
            "accept",
            "user-agent",
            "authorization",
            "x-requested-with",
            "hostname",
            "x-forwardedhost",
            "content-type",
        ] {
            assert!(!is_removed(passes), "{passes}");
        }
        assert!(is_removed(&format!("x_forwarded_{}", "y".repeat(300))));
        assert!(!is_removed(&format!("x-real-ip-{}", "y".repeat(300))));
    }

    #[test]
    fn a_name_that_a_gateway_reads_as_a_removed_one_is_removed() {
        for removed in REMOVED {
            for odd in "_.+~!#$%&'*^`|".chars() {
                let spelling = removed.replace('-', &odd.to_string());
                assert!(
                    is_removed(&spelling) && is_edges_own(&spelling),
                    "{spelling}"
                );
            }
        }
        for known in ORDINARY.iter().chain(&OWN) {
            assert!(!is_removed(known), "{known}");
        }
    }
}
