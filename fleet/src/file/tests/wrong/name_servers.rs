//! Wrong values: `[steering]` and `[[name_server]]`.

use super::Case;

pub(super) const CASES: &[Case] = &[
    // Request fields.
    (
        "listen = \"127.9.0.53:5300\"\n",
        "",
        "[[name_server]]",
        1,
        "name_server[0].listen: this setting is required",
        "add listen",
    ),
    // Units and ranges.
    (
        "report_interval = \"200ms\"\n",
        "report_interval = \"200ms\"\n[steering]\nramp = \"2h\"\n",
        "ramp = \"2h\"",
        8,
        "steering.ramp: 2h is out of range",
        "to 3600s",
    ),
    (
        "report_interval = \"200ms\"\n",
        "report_interval = \"200ms\"\n[steering.health]\ntimeout_min = \"1ms\"\n",
        "timeout_min = \"1ms\"",
        15,
        "steering.health.timeout_min: 1ms is out of range",
        "from 10ms to 60s",
    ),
    // Names, addresses, URLs.
    (
        "name = \"ns1\"",
        "name = \"origin\"",
        "name = \"origin\"\nlisten = \"127.9.0.53",
        8,
        "the name of another node, in line 12",
        "a name of its own",
    ),
    (
        "listen = \"127.9.0.53:5300\"",
        "listen = \"127.9.0.53\"",
        "\"127.9.0.53\"",
        10,
        "not an address with a port",
        "\"127.9.0.53:53\"",
    ),
    (
        "admin = \"127.9.0.53:9100\"",
        "admin = \"127.9.0.53\"",
        "admin = \"127.9.0.53\"",
        9,
        "not an address with a port",
        "\"127.9.0.53:9100\"",
    ),
    (
        "listen = \"127.9.0.53:5300\"",
        "listen = \"0.0.0.0:53\"",
        "[[name_server]]",
        1,
        "name_server[0].addresses: this setting is required",
        "resolvers",
    ),
];
