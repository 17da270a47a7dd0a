//! Wrong values: `[[zone]]`.

use super::Case;

pub(super) const CASES: &[Case] = &[
    // Types.
    (
        "[[zone]]",
        "[zone]",
        "[zone]",
        1,
        "zone: this is a section",
        "sections [[zone]]",
    ),
    // References.
    (
        "records = [\"www",
        "name_servers = [\"ns2\"]\nrecords = [\"www",
        "ns2",
        17,
        "there is no name server \"ns2\"",
        "\"ns1\"",
    ),
    // Zones.
    (
        "name = \"demo.test\"\n",
        "name = \"cdn.test\"\nrecords = [\"WWW A 192.0.2.1\"]\n[[zone]]\nname = \"demo.test\"\n",
        "\"WWW A",
        12,
        "www.cdn.test is the steered name of the site www",
        "remove it",
    ),
    (
        "records = [",
        "records = [[\"x\"], ",
        "[\"x\"]",
        12,
        "zone[0].records[0]: this is a list",
        "write a string",
    ),
    (
        "\"www CNAME www.cdn.test.\"",
        "\"www CNMAE www.cdn.test.\"",
        "CNMAE",
        12,
        "is not a record type",
        "did you mean CNAME?",
    ),
    (
        "\"mail A 192.0.2.25\"",
        "\"mail A 192.0.2\"",
        "192.0.2\"",
        55,
        "not an IPv4 address",
        "192.0.2.1",
    ),
    (
        "\"mail A 192.0.2.25\"",
        "\"www A 192.0.2.25\"",
        "www A",
        55,
        "has a CNAME record and others",
        "keep one",
    ),
    (
        "\"mail A 192.0.2.25\"",
        "\"mail.cdn.test. A 192.0.2.25\"",
        "mail.cdn.test.",
        55,
        "outside the zone demo.test",
        "below the zone",
    ),
    (
        "\"@ MX 10 mail\"",
        "\"@ MX mail\"",
        "MX mail",
        39,
        "a preference and a host name",
        "@ MX 10 mail",
    ),
    (
        "\"mail A 192.0.2.25\"",
        "\"mail A 192.0.2.25\", \"mail A 192.0.2.25\"",
        "mail A",
        76,
        "this A record twice",
        "remove one",
    ),
    (
        "\"mail A 192.0.2.25\"",
        "\"mail A 192.0.2.25\", \"mail 5 A 192.0.2.26\"",
        "mail A",
        76,
        "different TTLs, 300 s and 5 s",
        "same TTL",
    ),
    (
        "\n[[zone]]",
        "\n[[zone]]\nname = \"demo.test\"\n[[zone]]",
        "name = \"demo.test\"\nrecords",
        8,
        "another zone's name, in line 54",
        "one [[zone]]",
    ),
];
