//! The request fields that matter to a shared cache: those that never reach an origin, and those
//! that most clients send. These are the only such lists: forwarding, storing, collapsing, the
//! sharing of errors and the checks of the fleet file all use them.
//!
//! Follows RFC 9111 section 7.1 (cache poisoning) and RFC 3875 section 4.1.18 (how gateways name
//! fields).

/// Fields that make gateways and applications see another host, path, method, scheme or client than
/// the request has. They are removed from every request, in every spelling (see [`is_removed`]). The
/// edge sends the true client and scheme itself, in `X-Forwarded-For` and `X-Forwarded-Proto`.
const REMOVED: [&str; 83] = [
    // The client.
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
    // Host, path, method or scheme of the request.
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

/// Prefixes of further such fields, whose names differ between gateways.
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

/// Fields that most clients send to most URLs, and those that the edge makes itself. A correct
/// origin does not make a response specific to one client by them unless `Vary` names them. Exact
/// names, sorted.
const ORDINARY: [&str; 47] = [
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
    "early-data",
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
    "nearcast-scheme",
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

/// Further names that a request must not have in another spelling, since a gateway would read it as
/// this name. Sorted.
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

/// Fields that the edge reads, makes or drops itself, whatever a client sends in them. Sorted.
const OWN: [&str; 22] = [
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
    "nearcast-scheme",
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
/// any spelling, and any other known field in a spelling that is not its own. `name` is in lower
/// case.
///
/// CGI-like gateways turn fields into variables and replace every character except letters and
/// digits by `_`, so they read `X_Forwarded_Host` and `X.Forwarded.Host` as `X-Forwarded-Host`.
pub fn is_removed(name: &str) -> bool {
    let mut folded = [0; FOLDED_BYTES_MAX];
    // A name that is longer than every known one can match a prefix only.
    let length = name.len().min(FOLDED_BYTES_MAX);
    let mut is_respelled = false;
    for (to, from) in folded.iter_mut().zip(name.bytes()) {
        let is_kept = from.is_ascii_alphanumeric() || from == b'-';
        is_respelled |= !is_kept;
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
            || is_respelled && (is_listed(&ORDINARY) || is_listed(&OTHER_KNOWN)))
}

/// Longer than every name above.
const FOLDED_BYTES_MAX: usize = 40;

/// Whether most clients send a field of this name, or the edge makes it itself.
pub fn is_ordinary(name: &str) -> bool {
    ORDINARY.binary_search(&name).is_ok()
}

/// Whether no client's value of a field reaches the origin unchanged: the edge drops it or makes its
/// own.
pub fn is_owned_by_edge(name: &str) -> bool {
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
                    is_removed(&spelling) && is_owned_by_edge(&spelling),
                    "{spelling}"
                );
            }
        }
        for known in ORDINARY.iter().chain(&OWN) {
            assert!(!is_removed(known), "{known}");
        }
    }
}
