//! Properties of the wire format: no bytes from outside break the parser, and an independent
//! library reads what we write as what we meant.

use hickory_proto::op::Message;
use hickory_proto::rr::{DNSClass, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use nearcast_gslb_dns::message::{OptRecord, Owner, Query, Section, Writer, rtype};
use proptest::prelude::*;

/// A wire name of a few short labels, so that suffixes are shared often.
fn name() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(
        proptest::sample::select(vec!["a", "b", "www", "Example", "cdn", "x-1"]),
        0..6,
    )
    .prop_map(|labels| {
        let mut wire = Vec::new();
        for label in labels {
            wire.push(label.len() as u8);
            wire.extend_from_slice(label.as_bytes());
        }
        wire.push(0);
        wire
    })
}

#[derive(Debug, Clone)]
struct Sample {
    section: Section,
    owner: Vec<u8>,
    rtype: u16,
    ttl: u32,
    data: Vec<u8>,
}

fn sample() -> impl Strategy<Value = Sample> {
    let data = prop_oneof![
        any::<[u8; 4]>().prop_map(|a| (rtype::A, a.to_vec())),
        any::<[u8; 16]>().prop_map(|a| (rtype::AAAA, a.to_vec())),
        name().prop_map(|n| (rtype::CNAME, n)),
        name().prop_map(|n| (rtype::NS, n)),
        name().prop_map(|n| (rtype::DNAME, n)),
        (any::<[u8; 2]>(), name()).prop_map(|(p, n)| (rtype::MX, [&p[..], &n].concat())),
        (any::<[u8; 6]>(), name()).prop_map(|(p, n)| (rtype::SRV, [&p[..], &n].concat())),
        (name(), name(), any::<[u8; 16]>())
            .prop_map(|(m, r, n)| (rtype::SOA, [&m[..], &r, &[0; 4], &n].concat())),
        proptest::collection::vec(any::<u8>(), 1..40).prop_map(|d| (65_280, d)),
    ];
    let section = proptest::sample::select(vec![
        Section::Answer,
        Section::Authority,
        Section::Additional,
    ]);
    (section, name(), 0..i32::MAX as u32, data).prop_map(|(section, owner, ttl, (rtype, data))| {
        Sample {
            section,
            owner,
            rtype,
            ttl,
            data,
        }
    })
}

/// A record's data without any compression, as the library encodes it.
fn plain(data: &hickory_proto::rr::RData) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_name_encoding(hickory_proto::serialize::binary::NameEncoding::Uncompressed);
    data.emit(&mut encoder).expect("it encodes");
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_break_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Query::parse(&bytes);
    }

    #[test]
    fn no_damage_to_a_good_query_breaks_the_parser(at in 0_usize..80, value: u8, cut in 0_usize..80) {
        let mut bytes = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 3, b'w', b'w', b'w', 3, b'c', b'd', b'n', 4, b't', b'e', b's', b't', 0, 0, 1, 0, 1];
        bytes.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 23, 0, 8, 0, 7, 0, 1, 24, 0, 198, 51, 100, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        let at = at % bytes.len();
        bytes[at] = value;
        bytes.truncate(bytes.len() - cut % bytes.len());
        if let Some(query) = Query::parse(&bytes)
            && !query.is_malformed
            && let Some(question) = query.question
        {
            prop_assert!(question.end <= bytes.len());
            prop_assert!(question.qname.as_bytes().iter().all(|b| !b.is_ascii_uppercase()));
        }
    }

    #[test]
    fn a_client_subnet_is_taken_exactly_or_not_at_all(family in 0_u16..4, source: u8, scope in 0_u8..2, octets in proptest::collection::vec(any::<u8>(), 0..18), fit: bool) {
        let mut data = [&family.to_be_bytes()[..], &[source, scope], &octets].concat();
        if fit {
            data.truncate(4 + usize::from(source).div_ceil(8));
        }
        let mut message = vec![0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, data.len() as u8 + 4, 0, 8, 0, data.len() as u8];
        message.extend_from_slice(&data);
        let query = Query::parse(&message).expect("a query");
        match query.edns.and_then(|e| e.subnet) {
            None => prop_assert!(query.is_malformed),
            Some(subnet) => {
                prop_assert!(!query.is_malformed);
                let mut out = Vec::new();
                let mut writer = Writer::new(&mut out, 1, 0x8000, None);
                writer.opt(&OptRecord { subnet: Some((subnet, 0)), ..OptRecord::default() });
                prop_assert!(out.ends_with(&data), "given back as it was sent");
            }
        }
    }

    #[test]
    fn what_is_written_is_read_as_it_was_meant(qname in name(), samples in proptest::collection::vec(sample(), 0..20), before in 0_usize..40) {
        let mut samples = samples;
        samples.sort_by_key(|s| s.section as u8);
        // Other messages may stand before this one in the buffer.
        let mut out = vec![0xff; before];
        let question = [&qname[..], &[0, 1, 0, 1]].concat();
        let mut writer = Writer::new(&mut out, 0x1234, 0x8400, Some(&question));
        for s in &samples {
            let owner = if s.owner == qname { Owner::Question } else { Owner::Name(&s.owner) };
            writer.record(s.section, owner, s.rtype, 1, s.ttl, &s.data);
        }
        let message = &out[before..];
        prop_assert!(message.len() <= 12 + question.len() + samples.iter().map(|s| s.owner.len() + 10 + s.data.len()).sum::<usize>());
        let parsed = Message::from_vec(message).expect("the message parses");
        prop_assert_eq!(parsed.metadata.id, 0x1234);
        prop_assert_eq!(parsed.queries.len(), 1);
        let records: Vec<_> = parsed.answers.iter().chain(&parsed.authorities).chain(&parsed.additionals).collect();
        prop_assert_eq!(records.len(), samples.len());
        for (record, s) in records.iter().zip(&samples) {
            prop_assert_eq!(record.name.to_bytes().expect("a name").to_ascii_lowercase(), s.owner.to_ascii_lowercase());
            prop_assert_eq!(record.record_type(), RecordType::from(s.rtype));
            prop_assert_eq!(record.dns_class, DNSClass::IN);
            prop_assert_eq!(record.ttl, s.ttl);
            prop_assert_eq!(plain(&record.data).to_ascii_lowercase(), s.data.to_ascii_lowercase());
        }
    }
}
