//! Wrong values: `[control]`.

use super::Case;

pub(super) const CASES: &[Case] = &[
    // Names of our own.
    (
        "[control]\n",
        "[control]\nhosts = [\"a.test:7700\"]\n",
        "hosts = [\"a.test:7700\"]",
        10,
        "\"a.test:7700\" is not a host name",
        "without a port",
    ),
    (
        "[control]\n",
        "[control]\nsteering_origins = [\"*\"]\n",
        "steering_origins = [\"*\"]",
        21,
        "\"*\" cannot be used: it has no scheme",
        "http://host[:port] or https://host[:port]",
    ),
    (
        "[control]\n",
        "[control]\nsteering_origins = [\"https://www.demo.test/watch\"]\n",
        "steering_origins = [",
        21,
        "it has a path",
        "and nothing more",
    ),
    // Names, addresses, URLs.
    (
        "listen = \"127.9.0.70:7700\"",
        "listen = \"0.0.0.0:7700\"",
        "[control]",
        1,
        "control.url: this setting is required",
        "http://host:7700",
    ),
];
