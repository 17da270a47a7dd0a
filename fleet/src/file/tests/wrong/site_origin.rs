//! Wrong values: the origin of a `[[site]]`.

use super::Case;

pub(super) const CASES: &[Case] = &[
    // Names, addresses, URLs.
    (
        "origin = \"http://127.9.0.80:8000\"",
        "origin = \"gopher://x\"",
        "gopher",
        10,
        "its scheme",
        "http://host[:port] or https://host[:port]",
    ),
    (
        "origin = \"http://127.9.0.80:8000\"",
        "origin = \"http://x/path\"",
        "http://x/path",
        10,
        "it has a path",
        "nothing more",
    ),
    (
        "ttl = \"5s\"",
        "origin_ca = \"ca.pem\"",
        "origin_ca",
        13,
        "without TLS",
        "https://",
    ),
    (
        "ttl = \"5s\"",
        "origin_host = \"http://x\"",
        "origin_host",
        15,
        "is not a host",
        "host:port",
    ),
    // References.
    (
        "name = \"www\"",
        "name = \"first\"\norigin = \"http://x\"\nhosts = [\"www.cdn.test\"]\n[[site]]\nname = \"www\"",
        "[\"www.cdn.test\"]",
        10,
        "www.cdn.test is a host of the site www already",
        "one site",
    ),
];
