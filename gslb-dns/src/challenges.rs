//! The TXT records by which name servers show an authority that a name is ours (RFC 8555 section
//! 8.4), laid over the zones while an order is open.
//!
//! They come with the journal, not with the fleet file: zones and serials stay as they are. A
//! challenge for `www.example.org` is answered at `_acme-challenge.www.example.org`, and at
//! `www.example.org._acme-challenge.<CDN's zone>`, to which the operator of a zone elsewhere points a
//! CNAME. Knows names and records, no messages.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use nearcast_fleet::change::DnsChallenge;

use crate::message::{NAME_BYTES_MAX, parent, rtype};
use crate::zone::text;
use crate::zone::{NameMatch, RrSet, Zones};

/// Label of the names that authorities ask for.
const LABEL: &str = "_acme-challenge";

/// TTL of the records: an authority that asks again must see a newer value.
const TTL: u32 = 1;

/// Most challenges that are answered at a time. Control has few orders open at once.
const CHALLENGES_MAX: usize = 4096;

/// Most octets of a character string (RFC 1035 section 3.3). Values of challenges have 43.
const VALUE_BYTES_MAX: usize = 255;

/// The names that exist because of open challenges.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ChallengeRecords(HashMap<Box<[u8]>, ChallengeName>);

/// A name that exists because of open challenges.
#[derive(Debug, PartialEq, Eq)]
pub enum ChallengeName {
    /// It has these records.
    Txt(RrSet),
    /// Names below it have some.
    Above,
}

impl ChallengeRecords {
    /// The records of these challenges. `fleet_zone` is the CDN's own zone, without a final dot.
    /// Records of an operator at the same name stay among them.
    pub fn new(challenges: &[DnsChallenge], fleet_zone: &str, zones: &Zones) -> Self {
        let mut records = Self::default();
        for challenge in challenges.iter().take(CHALLENGES_MAX) {
            if challenge.value.len() > VALUE_BYTES_MAX {
                continue;
            }
            let host = &challenge.host;
            for owner in [
                format!("{LABEL}.{host}"),
                format!("{host}.{LABEL}.{fleet_zone}"),
            ] {
                // A name that is too long cannot be asked for either.
                if let Ok(name) = text::name(&owner, &[0])
                    && name.len() <= NAME_BYTES_MAX
                {
                    records.add(name.to_ascii_lowercase(), &challenge.value, zones);
                }
            }
        }
        records
    }

    fn add(&mut self, name: Vec<u8>, value: &str, zones: &Zones) {
        if zones.find(&name) == NameMatch::NotServed {
            return;
        }
        let mut above = parent(&name);
        while let Some(ancestor) = above {
            if matches!(zones.find(ancestor), NameMatch::Exact(_)) {
                break;
            }
            self.0
                .entry(ancestor.into())
                .or_insert(ChallengeName::Above);
            above = parent(ancestor);
        }

        let written = match zones.find(&name) {
            NameMatch::Exact(node) => zones.node(node).set(rtype::TXT),
            _ => None,
        };
        let new = || {
            ChallengeName::Txt(RrSet {
                rtype: rtype::TXT,
                ttl: TTL,
                data: written.map_or_else(Box::default, |set| set.data.clone()),
                additional: Box::default(),
            })
        };
        let entry = match self.0.entry(name.into_boxed_slice()) {
            Entry::Occupied(mut there) => {
                if *there.get() == ChallengeName::Above {
                    there.insert(new());
                }
                there.into_mut()
            }
            Entry::Vacant(free) => free.insert(new()),
        };
        if let ChallengeName::Txt(set) = entry {
            let data = [&[value.len() as u8], value.as_bytes()].concat();
            let data = data.into_boxed_slice();
            if !set.data.contains(&data) {
                set.data = set.data.iter().cloned().chain([data]).collect();
            }
        }
    }

    /// Whether there are none: the usual case.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name (wire form in lower case), if it exists because of challenges.
    pub fn find(&self, name: &[u8]) -> Option<&ChallengeName> {
        self.0.get(name)
    }
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::testing::FleetText;

    use super::*;
    use crate::answer::{Link, Outcome, resolve_with};
    use crate::message::{QName, presentation};

    fn zones() -> Zones {
        let fleet = FleetText::new()
            .name_server("ns1", "127.0.0.1:5300")
            .cluster("ams", &["192.0.2.1"])
            .site("www", "http://127.0.0.1:1", "hosts = [\"www.own.test\"]")
            .text_after(
                "[[zone]]\nname = \"own.test\"\nrecords = [\
                 \"www CNAME www.cdn.test.\", \"there A 192.0.2.9\", \"away NS ns.away.test.\", \
                 \"_acme-challenge.alias CNAME alias.acme.other.test.\", \
                 \"_acme-challenge.old TXT old\", \"*.wild A 192.0.2.7\", \"*.wild TXT wild\"]\n\
                 [[zone]]\nname = \"_acme-challenge.www.other.test\"",
            )
            .fleet();
        Zones::compile(&fleet, "ns1", 1).expect("it compiles")
    }

    fn records(of: &[(&str, &str)], zones: &Zones) -> ChallengeRecords {
        let challenges: Vec<DnsChallenge> = of
            .iter()
            .map(|(host, value)| DnsChallenge {
                host: (*host).to_owned(),
                value: (*value).to_owned(),
            })
            .collect();
        ChallengeRecords::new(&challenges, "cdn.test", zones)
    }

    /// The answer in words: the aliases, then the records or the reason that there are none.
    fn told(zones: &Zones, records: &ChallengeRecords, qname: &str, qtype: u16) -> String {
        let qname = QName::from_wire(&text::name(qname, &[0]).expect("a name")).expect("short");
        let answer = resolve_with(zones, records, &qname, qtype, false);
        let mut words = String::new();
        for link in answer.links.iter().flatten() {
            if let Link::Cname { set, .. } = link {
                words += &format!("CNAME {} ", presentation(&set.data[0]));
            }
        }
        words
            + &match answer.outcome {
                Outcome::Records(_, set) if set.rtype == rtype::TXT => {
                    let texts = set.data.iter().map(|d| String::from_utf8_lossy(&d[1..]));
                    format!("{} {}", set.ttl, texts.collect::<Vec<_>>().join(" "))
                }
                Outcome::Records(..) => "records".to_owned(),
                Outcome::Steered(..) => "steered".to_owned(),
                Outcome::Referral(cut, _) => format!("referral {}", presentation(cut)),
                other => format!("{other:?}"),
            }
    }

    #[test]
    fn challenges_are_answered_where_authorities_ask_and_nothing_else_changes() {
        let zones = zones();
        let open = records(
            &[
                ("www.own.test", "one"),
                ("own.test", "two"),
                ("own.test", "three"),
                ("www.cdn.test", "four"),
                ("a.b.own.test", "five"),
                ("x.wild.own.test", "six"),
                ("x.away.own.test", "seven"),
                ("alias.own.test", "eight"),
                ("old.own.test", "nine"),
                ("www.other.test", "ten"),
                ("there.own.test", "eleven"),
            ],
            &zones,
        );
        const TXT: u16 = rtype::TXT;
        const A: u16 = rtype::A;
        for (qname, qtype, expected) in [
            // Below an alias, at an apex twice, below a steered name, below names that are not there.
            ("_acme-challenge.www.own.test", TXT, "1 one"),
            ("_acme-challenge.own.test", TXT, "1 two three"),
            ("_acme-challenge.www.cdn.test", TXT, "1 four"),
            ("_acme-challenge.a.b.own.test", TXT, "1 five"),
            ("_acme-challenge.x.wild.own.test", TXT, "1 six"),
            ("_acme-challenge.there.own.test", TXT, "1 eleven"),
            // A zone of its own, and a name elsewhere whose operator wrote a CNAME.
            ("_acme-challenge.www.other.test", TXT, "1 ten"),
            ("www.other.test._acme-challenge.cdn.test", TXT, "1 ten"),
            ("own.test._acme-challenge.cdn.test", TXT, "1 two three"),
            // Other types of these names, and the names above them, exist without records.
            ("_acme-challenge.www.own.test", A, "NoData"),
            ("_acme-challenge.www.own.test", rtype::ANY, "1 one"),
            ("b.own.test", A, "NoData"),
            ("a.b.own.test", TXT, "NoData"),
            ("_acme-challenge.cdn.test", TXT, "NoData"),
            ("test._acme-challenge.cdn.test", TXT, "NoData"),
            ("_acme-challenge.www.other.test", A, "NoData"),
            ("_acme-challenge.www.other.test", rtype::SOA, "records"),
            // What an operator wrote stays.
            (
                "_acme-challenge.x.away.own.test",
                TXT,
                "referral away.own.test",
            ),
            (
                "_acme-challenge.alias.own.test",
                TXT,
                "CNAME alias.acme.other.test Incomplete",
            ),
            ("_acme-challenge.old.own.test", TXT, "1 old nine"),
            // Names with a site behind a wildcard are served during an order as before.
            ("x.wild.own.test", A, "records"),
            ("x.wild.own.test", TXT, "300 wild"),
            ("y.x.wild.own.test", A, "records"),
            ("www.cdn.test", A, "steered"),
            ("there.own.test", A, "records"),
            ("c.own.test", A, "NxDomain"),
            ("x._acme-challenge.www.own.test", TXT, "NxDomain"),
            ("_acme-challenge.c.own.test", TXT, "NxDomain"),
            ("_acme-challenge.www.third.test", TXT, "NotServed"),
        ] {
            assert_eq!(
                told(&zones, &open, qname, qtype),
                expected,
                "{qname} {qtype}"
            );
        }

        let none = records(&[], &zones);
        assert!(none.is_empty());
        for (qname, expected) in [
            ("_acme-challenge.www.own.test", "NxDomain"),
            ("_acme-challenge.x.wild.own.test", "300 wild"),
            ("_acme-challenge.old.own.test", "300 old"),
            ("b.own.test", "NxDomain"),
        ] {
            assert_eq!(told(&zones, &none, qname, TXT), expected, "{qname}");
        }
    }

    #[test]
    fn what_cannot_be_a_record_is_left_out() {
        let zones = zones();
        let long_host = format!("{}own.test", "a23456789.".repeat(23));
        let long_value = "v".repeat(256);
        let open = records(
            &[
                (&long_host, "x"),
                ("www.own.test", &long_value),
                ("a..test", "x"),
                ("own.test", "same"),
                ("own.test", "same"),
            ],
            &zones,
        );
        assert_eq!(
            told(&zones, &open, "_acme-challenge.own.test", rtype::TXT),
            "1 same"
        );
        assert_eq!(
            told(&zones, &open, "_acme-challenge.www.own.test", rtype::TXT),
            "NxDomain"
        );
    }
}
