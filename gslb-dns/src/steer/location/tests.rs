use maxminddb::Reader;
use mmdb_writer::{Value, Writer};
use nearcast_fleet::failure::FailureKind;

use super::metadata::{Loose, LooseMetadata, METADATA_MARKER, metadata};
use super::*;
use crate::places::DEMO_PLACES;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn shown(atlas: &Atlas, address: &str) -> Option<(String, i32, i32, LocationSource, u8)> {
    let (number, scope) = atlas.find(ip(address));
    assert_eq!(atlas.number(ip(address)), number);
    let place = atlas.location(number);
    assert_eq!(
        atlas.country(ip(address)),
        place.map(|p| p.country).filter(|c| *c != [0; 2]),
        "{address}"
    );
    let p = place?;
    Some((
        p.country_str().to_owned(),
        p.latitude.round() as i32,
        p.longitude.round() as i32,
        p.source,
        scope,
    ))
}

fn bytes(records: &[(&str, Value)]) -> Vec<u8> {
    let mut writer = Writer::new("Test-City");
    for (network, value) in records {
        writer
            .insert_value(network.parse::<ipnet::IpNet>().unwrap(), value.clone())
            .unwrap();
    }
    writer.to_bytes().unwrap()
}

fn city(code: &str, latitude: Value, longitude: Value) -> Value {
    let location = Value::map([
        ("latitude", latitude),
        ("longitude", longitude),
        ("time_zone", Value::from("X")),
    ]);
    let names = Value::map([("en", Value::from("somewhere"))]);
    let country = Value::map([
        ("names", names.clone()),
        ("iso_code", Value::from(code)),
        ("geoname_id", Value::from(7_u32)),
    ]);
    Value::map([
        ("city", Value::map([("names", names)])),
        ("country", country),
        ("location", location),
    ])
}

#[test]
fn the_built_in_table_knows_the_demonstration_and_countries() {
    let atlas = Atlas::built_in();
    assert_eq!(atlas.description, "built-in");
    for (address, expected) in [
        (
            "198.51.100.1",
            Some(("NL".to_owned(), 52, 5, LocationSource::Demo, 24)),
        ),
        (
            "203.0.113.255",
            Some(("US".to_owned(), 41, -74, LocationSource::Demo, 24)),
        ),
        (
            "192.0.2.0",
            Some(("SG".to_owned(), 1, 104, LocationSource::Demo, 24)),
        ),
        (
            "198.18.56.7",
            Some(("JP".to_owned(), 36, 140, LocationSource::Demo, 24)),
        ),
        ("10.1.2.3", None),
        ("127.0.0.1", None),
        ("224.0.0.1", None),
        ("::1", None),
        ("fe80::1", None),
    ] {
        assert_eq!(shown(&atlas, address), expected, "{address}");
    }
    // Large, old allocations.
    for (address, country) in [
        ("8.8.8.8", "US"),
        ("193.0.6.139", "NL"),
        ("2001:200::1", "JP"),
        ("133.11.0.1", "JP"),
    ] {
        let (found, _, _, source, scope) = shown(&atlas, address).unwrap();
        assert_eq!(
            (found.as_str(), source),
            (country, LocationSource::Country),
            "{address}"
        );
        assert!(
            scope >= 3
                && scope
                    <= if address.contains(':') {
                        GRAIN_V6
                    } else {
                        GRAIN_V4
                    },
            "{address} /{scope}"
        );
    }
}

#[test]
fn the_compiled_countries_are_those_of_the_registries() {
    let atlas = Atlas::built_in();
    // Steps of a prime number of /24s meet every part of the space.
    for first in (0..=u32::MAX - 0xff).step_by(4_099 * 256) {
        let address = IpAddr::from(first.to_be_bytes());
        let expected = iptocc::country_code(address).map(|c| c.as_bytes().to_vec());
        if !DEMO_PLACES
            .iter()
            .any(|place| u32::from(place.network) == first)
        {
            assert_eq!(
                atlas.country(address).map(|c| c.to_vec()),
                expected,
                "{address}"
            );
        }
    }
}

#[test]
fn a_database_comes_before_countries_and_after_the_demonstration() {
    let db = bytes(&[
        (
            "81.2.69.0/24",
            city("GB", Value::from(51.5_f64), Value::from(-0.1_f64)),
        ),
        (
            "81.2.70.0/23",
            city("GB", Value::from(53.5_f32), Value::from(-2.2_f32)),
        ),
        (
            "81.2.72.128/25",
            city("FR", Value::from("48.9"), Value::from(2_u32)),
        ),
        (
            "81.2.80.0/24",
            city("DE", Value::from(0.0_f64), Value::from(0.0_f64)),
        ),
        (
            "81.2.81.0/24",
            city("", Value::from(10.0_f64), Value::from(20.0_f64)),
        ),
        (
            "81.2.82.0/24",
            Value::map([
                ("country_code", Value::from("it")),
                ("asn", Value::from(5_u32)),
            ]),
        ),
        ("81.2.83.0/24", Value::map([("asn", Value::from(5_u32))])),
        (
            "81.2.84.0/24",
            city("ES", Value::from(91.0_f64), Value::from(0.0_f64)),
        ),
        (
            "2a02:c7c::/32",
            city("GB", Value::from(51.5_f64), Value::from(-0.1_f64)),
        ),
        (
            "2a02:c7d:8000::/65",
            city("GB", Value::from(57.0_f64), Value::from(-4.0_f64)),
        ),
        (
            "2a02:c7d:8000:0:8000::/65",
            city("GB", Value::from(60.0_f64), Value::from(-1.0_f64)),
        ),
    ]);
    let atlas = Atlas::compile(&db).unwrap();
    assert!(
        atlas.description.starts_with("Test-City, built "),
        "{}",
        atlas.description
    );
    let row = |country: &str, latitude, longitude, source, scope| {
        Some((country.to_owned(), latitude, longitude, source, scope))
    };
    use LocationSource::{Database, DatabaseCountry, Demo};
    for (address, expected) in [
        ("81.2.69.160", row("GB", 52, 0, Database, 24)),
        ("81.2.71.1", row("GB", 54, -2, Database, 23)),
        ("81.2.72.200", row("FR", 49, 2, Database, 25)),
        ("81.2.80.1", row("DE", 51, 10, DatabaseCountry, 24)),
        ("81.2.81.1", row("", 10, 20, Database, 24)),
        ("81.2.82.1", row("IT", 43, 12, DatabaseCountry, 24)),
        ("81.2.84.1", row("ES", 40, -3, DatabaseCountry, 24)),
        ("198.51.100.1", row("NL", 52, 5, Demo, 24)),
        ("2a02:c7c:1::1", row("GB", 52, 0, Database, 32)),
        ("2a02:c7d:8000::1", row("GB", 57, -4, Database, 64)),
        ("2a02:c7d:8000:0:8000::1", row("GB", 57, -4, Database, 64)),
    ] {
        assert_eq!(shown(&atlas, address), expected, "{address}");
    }
    for gap in [
        "81.2.83.1",
        "81.2.72.1",
        "8.8.8.8",
        "2001:200::1",
        "2a02:c7d::1",
    ] {
        let (_, _, _, source, scope) = shown(&atlas, gap).unwrap();
        assert_eq!(source, LocationSource::Country, "{gap}");
        assert!(scope >= 8, "{gap}");
    }
    assert_eq!(
        shown(&atlas, "81.2.72.1").unwrap().4,
        25,
        "the other half is elsewhere"
    );
}

/// A database of those records, later ones in front of earlier ones, with the ways to IPv4
/// addresses that some have.
fn layered(version: mmdb_writer::IpVersion, aliases: bool, records: &[(&str, Value)]) -> Vec<u8> {
    let aliasing = if aliases {
        mmdb_writer::Ipv4Aliasing::Enabled
    } else {
        mmdb_writer::Ipv4Aliasing::Disabled
    };
    let mut writer = Writer::builder("Test")
        .ip_version(version)
        .ipv4_aliasing(aliasing)
        .build();
    for (network, value) in records {
        writer
            .insert_value(network.parse::<ipnet::IpNet>().unwrap(), value.clone())
            .unwrap();
    }
    writer.to_bytes().unwrap()
}

fn country(code: &str) -> Value {
    Value::map([("country", Value::map([("iso_code", Value::from(code))]))])
}

#[test]
fn records_that_cover_whole_families_and_ways_to_ipv4_are_read_as_they_are_looked_up() {
    use mmdb_writer::IpVersion::{V4, V6};
    // The database, then addresses with the country that each is in; `-` is the built-in one's.
    let two = [
        ("5.5.0.0/16", country("US")),
        ("2a02:c7c::/32", country("DE")),
    ];
    let below = |default: &'static str, code| [&[(default, country(code))][..], &two[..]].concat();
    type Row<'a> = (Vec<u8>, &'a [(&'a str, &'a str)]);
    let rows: Vec<Row<'_>> = vec![
        (
            layered(V6, true, &two),
            &[
                ("5.5.5.5", "US"),
                ("2a02:c7c::1", "DE"),
                ("::ffff:5.5.5.5", "-"),
                ("8.8.8.8", "-"),
            ],
        ),
        (
            layered(V6, false, &below("::/0", "FR")),
            &[
                ("5.5.5.5", "US"),
                ("8.8.8.8", "FR"),
                ("2a02:c7c::1", "DE"),
                ("2a03::1", "FR"),
            ],
        ),
        // The default has the record of another network, too.
        (
            layered(V6, false, &below("::/0", "DE")),
            &[
                ("5.5.5.5", "US"),
                ("8.8.8.8", "DE"),
                ("2a02:c7c::1", "DE"),
                ("2a03::1", "DE"),
            ],
        ),
        (
            layered(V6, false, &below("::/64", "FR")),
            &[
                ("5.5.5.5", "US"),
                ("8.8.8.8", "FR"),
                ("2a02:c7c::1", "DE"),
                ("2a03::1", "-"),
            ],
        ),
        // No IPv4 network of its own: one record is that of all of them, and of others that are
        // no IPv4 at all.
        (
            layered(
                V6,
                false,
                &[
                    ("::/64", country("FR")),
                    two[1].clone(),
                    ("2a03::/32", country("FR")),
                ],
            ),
            &[
                ("5.5.5.5", "FR"),
                ("2a02:c7c::1", "DE"),
                ("2a03::1", "FR"),
                ("2a04::1", "-"),
            ],
        ),
        (
            layered(V6, false, &[("::/0", country("FR")), two[1].clone()]),
            &[("8.8.8.8", "FR"), ("2a02:c7c::1", "DE"), ("2a04::1", "FR")],
        ),
        (
            layered(V6, false, &[("::/0", country("FR"))]),
            &[("8.8.8.8", "FR"), ("2a04::1", "FR")],
        ),
        (
            layered(V6, false, &two[1..]),
            &[("8.8.8.8", "-"), ("2a02:c7c::1", "DE")],
        ),
        (
            layered(V6, false, &[("::ffff:5.5.0.0/112", country("US"))]),
            &[("5.5.5.5", "US"), ("8.8.8.8", "-")],
        ),
        (
            layered(V4, false, &two[..1]),
            &[("5.5.5.5", "US"), ("8.8.8.8", "-"), ("2a02:c7c::1", "-")],
        ),
        (
            layered(V4, false, &[("0.0.0.0/0", country("FR")), two[0].clone()]),
            &[("5.5.5.5", "US"), ("8.8.8.8", "FR")],
        ),
    ];
    for (number, (db, expected)) in rows.into_iter().enumerate() {
        let atlas = Atlas::compile(&db).unwrap_or_else(|e| panic!("database {number}: {e}"));
        assert_eq!(atlas.rejected_records, 0, "database {number}");
        for (address, code) in expected {
            let (number_found, scope) = atlas.find(ip(address));
            let found = atlas.location(number_found);
            let from_database = found
                .filter(|p| p.source == LocationSource::DatabaseCountry)
                .map_or("-", Location::country_str);
            assert_eq!(
                from_database, *code,
                "database {number}: {address}, scope /{scope}"
            );
        }
    }
}

#[test]
fn an_odd_record_costs_nobody_else_their_place() {
    let pair = |a: (&str, Value), b: (&str, Value)| Value::map([a, b]);
    let place =
        |latitude: Value, longitude: Value| pair(("latitude", latitude), ("longitude", longitude));
    let number = |n: f64| Value::from(n);
    let deep = (0..200).fold(Value::from("NL"), |inner, _| {
        Value::map([("country", inner)])
    });
    let wide = Value::map((0..70_000).map(|n| (n.to_string(), Value::from("x"))));
    let location = |location: Value| pair(("country", Value::from("NL")), ("location", location));
    // A record; what is made of it (country, degrees, whether they are the database's own);
    // whether it counts as odd.
    type Made = Option<(&'static str, i32, i32, bool)>;
    let nl: Made = Some(("NL", 52, 5, false));
    let rows: Vec<(&str, Value, Made, bool)> = vec![
        (
            "a place as text",
            location(Value::from("60.3, -4.9")),
            Some(("NL", 60, -5, true)),
            false,
        ),
        (
            "a place in words",
            location(Value::from("Amsterdam")),
            nl,
            true,
        ),
        ("an empty place", location(Value::from("")), nl, false),
        (
            "a place as a list",
            location(Value::array([number(1.0), number(2.0)])),
            nl,
            true,
        ),
        (
            "an empty list",
            location(Value::array(Vec::<Value>::new())),
            nl,
            true,
        ),
        (
            "one of two",
            location(Value::map([("latitude", number(1.0))])),
            nl,
            true,
        ),
        (
            "out of range",
            location(place(number(91.0), number(0.5))),
            nl,
            true,
        ),
        (
            "not a number",
            location(place(number(f64::NAN), number(4.0))),
            nl,
            true,
        ),
        (
            "without end",
            location(place(number(f64::INFINITY), number(4.0))),
            nl,
            true,
        ),
        (
            "nowhere",
            location(place(number(0.0), number(0.0))),
            nl,
            false,
        ),
        (
            "latitude as a map",
            location(place(Value::map([("deg", number(5.0))]), number(4.0))),
            nl,
            true,
        ),
        (
            "false",
            place(Value::from(false), Value::from(false)),
            None,
            true,
        ),
        (
            "wide integers",
            place(Value::from(60_u128), Value::from(-4_i32)),
            Some(("", 60, -4, true)),
            false,
        ),
        (
            "short names",
            pair(("lat", Value::from("60.3")), ("lng", Value::from("-4.9"))),
            Some(("", 60, -5, true)),
            false,
        ),
        (
            "a country as a number",
            pair(
                ("country", Value::from(528_u32)),
                ("location", place(number(60.0), number(4.0))),
            ),
            Some(("", 60, 4, true)),
            true,
        ),
        (
            "a country as a list",
            Value::map([("country", Value::array([Value::from("NL")]))]),
            None,
            true,
        ),
        (
            "no country",
            Value::map([("country", Value::from(false))]),
            None,
            true,
        ),
        (
            "a code as a number",
            Value::map([("country", Value::map([("iso_code", Value::from(528_u32))]))]),
            None,
            true,
        ),
        ("lower case", country("nl"), nl, false),
        (
            "a name",
            Value::map([
                ("country", Value::from("Netherlands")),
                ("country_code", Value::from("NL")),
            ]),
            nl,
            false,
        ),
        (
            "registered",
            Value::map([(
                "registered_country",
                Value::map([("iso_code", Value::from("NL"))]),
            )]),
            nl,
            false,
        ),
        (
            "represented",
            Value::map([(
                "represented_country",
                Value::map([("iso_code", Value::from("NL"))]),
            )]),
            nl,
            false,
        ),
        (
            "traits",
            Value::map([("traits", Value::map([("country", Value::from("NL"))]))]),
            nl,
            false,
        ),
        ("a code of nobody", country("ZZ"), None, false),
        (
            "a code of nobody with a place",
            pair(
                ("country", Value::from("ZZ")),
                ("location", place(number(60.0), number(4.0))),
            ),
            Some(("ZZ", 60, 4, true)),
            false,
        ),
        ("a text", Value::from("NL"), None, true),
        ("a list", Value::array([Value::from("NL")]), None, true),
        ("a number", Value::from(7_u32), None, true),
        ("bytes", Value::from(vec![1_u8, 2]), None, true),
        (
            "empty",
            Value::map(Vec::<(&str, Value)>::new()),
            None,
            false,
        ),
        ("deep", deep, None, true),
        ("wide", wide, None, true),
    ];
    for (name, record, expected, is_malformed) in rows {
        let db = layered(
            mmdb_writer::IpVersion::V6,
            true,
            &[
                ("5.5.0.0/16", country("US")),
                ("9.9.9.0/24", record),
                ("81.2.69.0/24", city("GB", number(51.5), number(-0.1))),
            ],
        );
        let atlas = Atlas::compile(&db).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(atlas.rejected_records, u64::from(is_malformed), "{name}");
        for (address, expected) in [("5.5.5.5", "US"), ("81.2.69.1", "GB")] {
            assert_eq!(shown(&atlas, address).unwrap().0, expected, "{name}");
        }
        let found = shown(&atlas, "9.9.9.9").filter(|(.., source, _)| {
            matches!(
                source,
                LocationSource::Database | LocationSource::DatabaseCountry
            )
        });
        let expected = expected.map(|(code, latitude, longitude, own)| {
            (
                code.to_owned(),
                latitude,
                longitude,
                if own {
                    LocationSource::Database
                } else {
                    LocationSource::DatabaseCountry
                },
                24,
            )
        });
        let expected = expected.map(|e| {
            if e.3 == LocationSource::DatabaseCountry {
                (
                    e.0,
                    found.as_ref().map_or(0, |f| f.1),
                    found.as_ref().map_or(0, |f| f.2),
                    e.3,
                    e.4,
                )
            } else {
                e
            }
        });
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn metadata_need_only_what_the_search_tree_does() {
    let good = bytes(&[("5.5.0.0/16", country("US"))]);
    let at = good
        .windows(METADATA_MARKER.len())
        .rposition(|w| w == METADATA_MARKER)
        .unwrap();
    let reader = Reader::from_source(good.as_slice()).unwrap();
    let loose = LooseMetadata {
        node_count: reader.metadata().node_count,
        record_size: reader.metadata().record_size,
        ip_version: 6,
        database_type: Some(Loose {
            text: Some("A name of more than twenty-eight bytes".to_owned()),
            number: None,
        }),
        build_epoch: Some(Loose {
            text: None,
            number: Some(951_782_400.0),
        }),
    };
    let whole = metadata(&loose);
    // Description and languages are the last two of nine members.
    let cut = whole.windows(9).rposition(|w| w == b"languages").unwrap() - 1;
    let mut without = whole[..cut].to_vec();
    without[METADATA_MARKER.len()] -= 2;
    for (name, metadata) in [
        ("whole", &whole),
        ("without languages and description", &without),
    ] {
        let atlas = Atlas::compile(&[&good[..at], metadata].concat())
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(shown(&atlas, "5.5.5.5").unwrap().0, "US", "{name}");
        assert_eq!(
            atlas.description, "A name of more than twenty-eight bytes, built 2000-02-29",
            "{name}"
        );
    }
    // Without the number of nodes there is no reading it.
    let mut blind = whole.clone();
    let at_name = blind.windows(10).position(|w| w == b"node_count").unwrap();
    blind[at_name] = b'x';
    assert!(Atlas::compile(&[&good[..at], &blind].concat()).is_err());
}

#[test]
fn wrong_content_and_missing_files_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let good = bytes(&[(
        "81.2.69.0/24",
        city("GB", Value::from(51.5_f64), Value::from(0.0_f64)),
    )]);
    assert!(Atlas::load(&write("good", &good)).is_ok());
    let asn = bytes(&[(
        "81.2.69.0/24",
        Value::map([("autonomous_system_number", Value::from(5_u32))]),
    )]);
    let odd = bytes(&[(
        "81.2.69.0/24",
        Value::map([("location", Value::from("London"))]),
    )]);
    let nobody = bytes(&[]);
    let noise: Vec<u8> = (0..4096_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for (path, kind, words) in [
        (
            write("nobody", &nobody),
            FailureKind::BadData,
            "cannot be used",
        ),
        (
            write("noise", &noise),
            FailureKind::BadData,
            "cannot be used",
        ),
        (
            dir.path().join("none"),
            FailureKind::NoInput,
            "cannot read the geo database",
        ),
        (dir.path().to_owned(), FailureKind::NoInput, "directory"),
        (write("empty", b""), FailureKind::BadData, "cannot be used"),
        (
            write("text", b"hello"),
            FailureKind::BadData,
            "cannot be used",
        ),
        (
            write("cut", &good[..good.len() - 40]),
            FailureKind::BadData,
            "cannot be used",
        ),
        (
            write("asn", &asn),
            FailureKind::BadData,
            "has a location or a country",
        ),
        (write("odd", &odd), FailureKind::BadData, "cannot be used"),
    ] {
        let failure = Atlas::load(&path).unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.contains(words), "{failure}");
        assert!(
            failure.message.contains(path.to_str().unwrap()),
            "{failure}"
        );
    }
}

#[test]
fn no_damage_to_a_database_breaks_the_compiler() {
    let good = bytes(&[
        (
            "81.2.69.0/24",
            city("GB", Value::from(51.5_f64), Value::from(-0.1_f64)),
        ),
        (
            "2a02:c7c::/32",
            city("FR", Value::from(48.9_f32), Value::from(2.3_f32)),
        ),
    ]);
    let mut random = nearcast_fleet::random::Random::new(7);
    for _ in 0..400 {
        let mut db = good.clone();
        for _ in 0..=random.bits() % 4 {
            let at = random.bits() as usize % db.len();
            db[at] = random.bits() as u8;
        }
        db.truncate(
            db.len()
                - (random.bits() as usize % db.len())
                    * usize::from(random.bits().is_multiple_of(8)),
        );
        // Whatever it is, it ends, and what was taken can be looked up.
        if let Ok(atlas) = Atlas::compile(&db) {
            let _ = (atlas.find(ip("81.2.69.1")), atlas.find(ip("2a02:c7c::1")));
        }
    }
}
