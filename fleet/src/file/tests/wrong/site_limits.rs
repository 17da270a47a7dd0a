//! Wrong values: `[site.limits]`.

use super::Case;

pub(super) const CASES: &[Case] = &[
    (
        "ttl = \"5s\"",
        "limits.first_byte_timeout = \"60\"",
        "limits.first_byte_timeout",
        29,
        "has no unit",
        "30s",
    ),
    (
        "ttl = \"5s\"",
        "limits.between_bytes_timeout = 0",
        "limits.between",
        32,
        "0 is out of range",
        "from 1s to 86400s",
    ),
    (
        "ttl = \"5s\"",
        "limits.request_body_max = \"none\"",
        "limits.request",
        27,
        "does not begin with a number",
        "512MiB",
    ),
    (
        "ttl = \"5s\"",
        "limits.head_max = \"2MiB\"",
        "limits.head_max",
        19,
        "2MiB is out of range",
        "from 4KiB to 1MiB",
    ),
    (
        "ttl = \"5s\"",
        "limits.fields_max = 5",
        "limits.fields_max",
        21,
        "5 is out of range",
        "from 16 to 10000",
    ),
    (
        "ttl = \"5s\"",
        "limits.connections_max = 0",
        "limits.connections_max",
        26,
        "0 is out of range",
        "from 1 to 65536",
    ),
    (
        "ttl = \"5s\"",
        "limits.idle = \"5s\"",
        "limits.idle",
        8,
        "no such setting",
        "connect_timeout, first_byte_timeout",
    ),
];
