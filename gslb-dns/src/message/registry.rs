//! Numbers and names of the IANA registries for DNS.

/// Record types by number.
pub mod rtype {
    #![allow(
        missing_docs,
        reason = "each constant is the type mnemonic of the IANA registry"
    )]
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const HINFO: u16 = 13;
    pub const MX: u16 = 15;
    pub const TXT: u16 = 16;
    pub const RP: u16 = 17;
    pub const AFSDB: u16 = 18;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const NAPTR: u16 = 35;
    pub const DNAME: u16 = 39;
    pub const OPT: u16 = 41;
    pub const DS: u16 = 43;
    pub const SSHFP: u16 = 44;
    pub const DNSKEY: u16 = 48;
    pub const TLSA: u16 = 52;
    pub const SMIMEA: u16 = 53;
    pub const CDS: u16 = 59;
    pub const CDNSKEY: u16 = 60;
    pub const OPENPGPKEY: u16 = 61;
    pub const SVCB: u16 = 64;
    pub const HTTPS: u16 = 65;
    pub const SPF: u16 = 99;
    pub const TKEY: u16 = 249;
    pub const TSIG: u16 = 250;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;
    pub const URI: u16 = 256;
    pub const CAA: u16 = 257;
}

/// Types with a mnemonic.
pub(crate) const MNEMONICS: &[(&str, u16)] = &[
    ("A", rtype::A),
    ("NS", rtype::NS),
    ("CNAME", rtype::CNAME),
    ("SOA", rtype::SOA),
    ("PTR", rtype::PTR),
    ("HINFO", rtype::HINFO),
    ("MX", rtype::MX),
    ("TXT", rtype::TXT),
    ("RP", rtype::RP),
    ("AFSDB", rtype::AFSDB),
    ("AAAA", rtype::AAAA),
    ("SRV", rtype::SRV),
    ("NAPTR", rtype::NAPTR),
    ("DNAME", rtype::DNAME),
    ("DS", rtype::DS),
    ("SSHFP", rtype::SSHFP),
    ("DNSKEY", rtype::DNSKEY),
    ("TLSA", rtype::TLSA),
    ("SMIMEA", rtype::SMIMEA),
    ("CDS", rtype::CDS),
    ("CDNSKEY", rtype::CDNSKEY),
    ("OPENPGPKEY", rtype::OPENPGPKEY),
    ("SVCB", rtype::SVCB),
    ("HTTPS", rtype::HTTPS),
    ("SPF", rtype::SPF),
    ("ANY", rtype::ANY),
    ("AXFR", rtype::AXFR),
    ("IXFR", rtype::IXFR),
    ("URI", rtype::URI),
    ("CAA", rtype::CAA),
];

/// The number of a type mnemonic, `TYPE<number>` included.
pub fn type_number(mnemonic: &str) -> Option<u16> {
    let known = MNEMONICS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(mnemonic))
        .map(|(_, number)| *number);
    known.or_else(|| {
        mnemonic
            .strip_prefix("TYPE")
            .or_else(|| mnemonic.strip_prefix("type"))?
            .parse()
            .ok()
    })
}

/// The mnemonic of a type number, when it has one here.
pub fn type_mnemonic(number: u16) -> Option<&'static str> {
    MNEMONICS
        .iter()
        .find(|(_, n)| *n == number)
        .map(|(name, _)| *name)
}

/// A type's mnemonic, `TYPE<number>` where it has none here (RFC 3597 section 5).
pub fn type_shown(number: u16) -> String {
    type_mnemonic(number).map_or_else(
        || {
            if number == rtype::ANY {
                "ANY".to_owned()
            } else {
                format!("TYPE{number}")
            }
        },
        str::to_owned,
    )
}

/// Response codes, the extended ones included.
pub mod rcode {
    #![allow(
        missing_docs,
        reason = "each constant is the name of the IANA registry"
    )]
    pub const NOERROR: u16 = 0;
    pub const FORMERR: u16 = 1;
    pub const SERVFAIL: u16 = 2;
    pub const NXDOMAIN: u16 = 3;
    pub const NOTIMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const YXDOMAIN: u16 = 6;
    pub const NOTAUTH: u16 = 9;
    pub const BADVERS: u16 = 16;
    /// In TSIG records alone.
    pub const BADKEY: u16 = 17;
    pub const BADCOOKIE: u16 = 23;
}

/// Classes.
pub mod class {
    #![allow(
        missing_docs,
        reason = "each constant is the name of the IANA registry"
    )]
    pub const IN: u16 = 1;
    pub const CH: u16 = 3;
    pub const ANY: u16 = 255;
}

/// EDNS option codes.
pub mod option {
    #![allow(
        missing_docs,
        reason = "each constant is the name of the IANA registry"
    )]
    pub const NSID: u16 = 3;
    pub const ECS: u16 = 8;
    pub const COOKIE: u16 = 10;
    pub const KEEPALIVE: u16 = 11;
    pub const EDE: u16 = 15;
    pub const ZONEVERSION: u16 = 19;
}

/// Header flag bits.
pub mod flag {
    #![allow(
        missing_docs,
        reason = "each constant is the name of RFC 1035 or RFC 4035"
    )]
    pub const QR: u16 = 0x8000;
    pub const AA: u16 = 0x0400;
    pub const TC: u16 = 0x0200;
    pub const RD: u16 = 0x0100;
    pub const CD: u16 = 0x0010;
    pub const OPCODE: u16 = 0x7800;
}
