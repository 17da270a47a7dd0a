//! Where a client is: places by address prefix, from the built-in country table or a MaxMind-format database.
//!
//! Whatever the source, the whole of it is compiled into [`Ranges`] once, off the query path: a look-up in the
//! database's own tree costs microseconds and decodes a record, one in the runs costs some tens of nanoseconds and
//! gives a number. Layers, first that knows wins:
//!
//! 1. the demonstration's prefixes (the documentation networks of RFC 5737);
//! 2. the database of `steering.geo_db`, if there is one;
//! 3. the country of the address's /24 (IPv4) or /48 (IPv6) in the registries' allocations, at the point where that
//!    country's people live.
//!
//! The IPv4 countries are listed when the program is built (`build.rs`). IPv6 countries are looked up as asked, since their /48s are too many to list; their scope is then /48.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use maxminddb::{Reader, WithinOptions};
use nearcast_fleet::failure::{Failure, FailureKind};
use serde::Deserialize;

use super::countries::{self, COUNTRIES};
use super::ranges::{Builder, Ranges};

/// Longest IPv4 and IPv6 prefixes that the built-in table tells apart.
pub(super) const GRAIN_V4: u8 = 24;
pub(super) const GRAIN_V6: u8 = 48;
/// Larger databases are refused.
const DATABASE_BYTES_MAX: u64 = 2 << 30;
/// Number of the place of which nothing is known.
pub(super) const UNKNOWN: u32 = 0;

/// What a place was learnt from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// One of the demonstration's prefixes.
    Demo,
    /// The country in the built-in table.
    Country,
    /// The database, which gives a position.
    Database,
    /// The database, which gives the country alone.
    DatabaseCountry,
}

impl Source {
    /// For people and programs.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Demo => "demonstration prefix",
            Self::Country => "built-in country",
            Self::Database => "database",
            Self::DatabaseCountry => "database country",
        }
    }
}

/// A place that clients are at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ClientPlace {
    /// Country code; zeros where the database gives none.
    pub(super) country: [u8; 2],
    /// Degrees north.
    pub(super) latitude: f32,
    /// Degrees east.
    pub(super) longitude: f32,
    /// What it was learnt from.
    pub(super) source: Source,
}

impl ClientPlace {
    /// Degrees north and east.
    pub(super) fn position(&self) -> (f64, f64) {
        (f64::from(self.latitude), f64::from(self.longitude))
    }

    /// The country code, or nothing.
    pub(super) fn country_str(&self) -> &str {
        if self.country == [0; 2] { "" } else { std::str::from_utf8(&self.country).unwrap_or("") }
    }
}

/// Prefixes that the demonstration's clients live in.
const DEMO: [(Ipv4Addr, [u8; 2], f32, f32); 3] = [
    (Ipv4Addr::new(192, 0, 2, 0), *b"SG", 1.352, 103.820),
    (Ipv4Addr::new(198, 51, 100, 0), *b"NL", 52.370, 4.895),
    (Ipv4Addr::new(203, 0, 113, 0), *b"US", 40.713, -74.006),
];
/// Numbers of the countries' places: 1 and following; the demonstration's come after them.
const FIRST_COUNTRY: u32 = 1;
const FIRST_DEMO: u32 = FIRST_COUNTRY + COUNTRIES.len() as u32;

/// All places and which addresses are at them. Immutable.
#[derive(Debug)]
pub(super) struct Atlas {
    /// By number; [`UNKNOWN`] is none.
    places: Vec<Option<ClientPlace>>,
    v4: Ranges<u32>,
    /// What the database says; 0 leads to the built-in countries.
    v6: Ranges<u64>,
    /// The same by country alone, as [`country_value`] writes it: far fewer runs, which stay in the processor's caches. Counting needs no more.
    countries_v4: Ranges<u32>,
    countries_v6: Ranges<u64>,
    /// For reports: `built-in`, or what the database says of itself.
    pub(super) description: String,
}

fn country_number(code: &str) -> u32 {
    <[u8; 2]>::try_from(code.as_bytes()).ok().and_then(countries::index).map_or(UNKNOWN, |i| FIRST_COUNTRY + i as u32)
}

fn built_in_v6(address: Ipv6Addr) -> u32 {
    let grain = u128::from(address) >> 80 << 80;
    iptocc::country_code(Ipv6Addr::from(grain)).map_or(UNKNOWN, country_number)
}

/// A place without a country, in the maps by country.
const NO_COUNTRY: u32 = 1;

/// The country of a place as one number: 0 for no place, [`NO_COUNTRY`], or the letters.
fn country_value(place: Option<&ClientPlace>) -> u32 {
    place.map_or(0, |p| u32::from(u16::from_be_bytes(p.country)).max(NO_COUNTRY))
}

/// The first 64 bits.
pub(super) fn key_v6(address: Ipv6Addr) -> u64 {
    (u128::from(address) >> 64) as u64
}

/// The registries' countries by /24, as the build script compiled them.
fn built_in_v4() -> Ranges<u32> {
    const RUN: usize = 6;
    static RUNS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/countries_v4.bin"));
    let first = |run: &[u8]| u32::from_le_bytes([run[0], run[1], run[2], run[3]]);
    let number = |run: &[u8]| countries::index([run[4], run[5]]).map_or(UNKNOWN, |i| FIRST_COUNTRY + i as u32);
    let mut builder = Builder::new();
    let mut runs = RUNS.chunks_exact(RUN).peekable();
    while let Some(run) = runs.next() {
        let last = runs.peek().map_or(u32::MAX, |next| first(next) - 1);
        builder.push(first(run), last, number(run));
    }
    builder.finish()
}

fn demo_v4() -> Ranges<u32> {
    let mut builder = Builder::new();
    for (i, (network, ..)) in DEMO.iter().enumerate() {
        let first = u32::from(*network);
        builder.push(first, first | 0xff, FIRST_DEMO + i as u32);
    }
    builder.finish()
}

fn fixed_places() -> Vec<Option<ClientPlace>> {
    let countries = COUNTRIES.iter().map(|(country, latitude, longitude)| (*country, *latitude, *longitude, Source::Country));
    let demo = DEMO.iter().map(|(_, country, latitude, longitude)| (*country, *latitude, *longitude, Source::Demo));
    std::iter::once(None)
        .chain(
            countries.chain(demo).map(|(country, latitude, longitude, source)| Some(ClientPlace { country, latitude, longitude, source })),
        )
        .collect()
}

impl Atlas {
    /// Without a database. Compiled once a process; later calls give the same value.
    pub(super) fn built_in() -> Arc<Self> {
        static ATLAS: OnceLock<Arc<Atlas>> = OnceLock::new();
        Arc::clone(ATLAS.get_or_init(|| {
            Arc::new(Self::new(fixed_places(), demo_v4().over(&built_in_v4()), Builder::new().finish(), "built-in".into()))
        }))
    }

    /// With the database at `path`, which is read whole and let go.
    ///
    /// # Errors
    /// `NoInput` when it cannot be read, `BadData` when it is not a database with countries or positions.
    pub(super) fn load(path: &Path) -> Result<Self, Failure> {
        let unreadable = |e: std::io::Error| {
            let mend = "put the file there, let this user read it, or take geo_db out of [steering]";
            Failure::new(FailureKind::NoInput, format!("cannot read the geo database {}: {e} ({mend})", path.display()))
        };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(unreadable(std::io::ErrorKind::IsADirectory.into()));
        }
        if metadata.len() > DATABASE_BYTES_MAX {
            return Err(bad(path, format!("it is larger than {DATABASE_BYTES_MAX} bytes")));
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        std::io::Read::read_to_end(&mut std::io::Read::take(file, DATABASE_BYTES_MAX + 1), &mut bytes).map_err(unreadable)?;
        Self::compile(bytes).map_err(|reason| bad(path, reason))
    }

    /// From the bytes of a database.
    fn compile(bytes: Vec<u8>) -> Result<Self, String> {
        let reader = Reader::from_source(bytes).map_err(|e| e.to_string())?;
        let mut places = fixed_places();
        let mut v4 = Builder::<u32>::new();
        let mut v6 = Builder::<u64>::new();
        let mut by_offset: HashMap<usize, u32> = HashMap::new();
        let mut by_place: HashMap<([u8; 2], u32, u32), u32> = HashMap::new();
        let mut located = 0_u64;
        for found in reader.networks(WithinOptions::default()).map_err(|e| e.to_string())? {
            let found = found.map_err(|e| e.to_string())?;
            let Some(offset) = found.offset() else { continue };
            let number = match by_offset.get(&offset) {
                Some(number) => *number,
                None => {
                    let record: Option<Record> = found.decode().map_err(|e| e.to_string())?;
                    let number = record.map_or(UNKNOWN, |r| r.place_number(&mut places, &mut by_place));
                    by_offset.insert(offset, number);
                    number
                }
            };
            if number == UNKNOWN {
                continue;
            }
            located += 1;
            let network = found.network().map_err(|e| e.to_string())?;
            let prefix = u32::from(network.prefix());
            match network.ip() {
                IpAddr::V4(ip) => {
                    let first = u32::from(ip);
                    v4.push(first, first | u32::MAX.checked_shr(prefix).unwrap_or(0), number);
                }
                IpAddr::V6(ip) => {
                    let first = key_v6(ip);
                    // Below a /64 the first record with a place counts for the whole of it.
                    v6.push(first, first | u64::MAX.checked_shr(prefix).unwrap_or(0), number);
                }
            }
        }
        if located == 0 {
            return Err("none of its networks has a location or a country".into());
        }
        let metadata = reader.metadata();
        let name = metadata.description.get("en").or_else(|| metadata.description.values().next());
        let name = name.map_or(metadata.database_type.as_str(), String::as_str);
        let description = format!("{name}, built {}", civil_date(metadata.build_epoch));
        Ok(Self::new(places, demo_v4().over(&v4.finish().over(&built_in_v4())), v6.finish(), description))
    }

    fn new(places: Vec<Option<ClientPlace>>, v4: Ranges<u32>, v6: Ranges<u64>, description: String) -> Self {
        let country = |number: u32| country_value(places[number as usize].as_ref());
        Self { countries_v4: v4.map(country), countries_v6: v6.map(country), places, v4, v6, description }
    }

    /// The country of an address.
    pub(super) fn country(&self, address: IpAddr) -> Option<[u8; 2]> {
        let value = match address {
            IpAddr::V4(ip) => self.countries_v4.value(u32::from(ip)),
            IpAddr::V6(ip) => match self.countries_v6.value(key_v6(ip)) {
                0 => country_value(self.place(built_in_v6(ip))),
                value => value,
            },
        };
        (value > NO_COUNTRY).then(|| (value as u16).to_be_bytes())
    }

    /// The number of the place of an address.
    pub(super) fn number(&self, address: IpAddr) -> u32 {
        match address {
            IpAddr::V4(ip) => self.v4.value(u32::from(ip)),
            IpAddr::V6(ip) => match self.v6.value(key_v6(ip)) {
                UNKNOWN => built_in_v6(ip),
                number => number,
            },
        }
    }

    /// The number of the place of an address, and the longest prefix that is sure to be at that place throughout.
    pub(super) fn find(&self, address: IpAddr) -> (u32, u8) {
        match address {
            IpAddr::V4(ip) => self.v4.find(u32::from(ip)),
            IpAddr::V6(ip) => match self.v6.find(key_v6(ip)) {
                (UNKNOWN, gap) => (built_in_v6(ip), gap.max(GRAIN_V6)),
                found => found,
            },
        }
    }

    /// The place of that number.
    pub(super) fn place(&self, number: u32) -> Option<&ClientPlace> {
        self.places.get(number as usize)?.as_ref()
    }

    /// All places by number.
    pub(super) fn places(&self) -> &[Option<ClientPlace>] {
        &self.places
    }

    /// IPv4 runs.
    pub(super) fn v4(&self) -> &Ranges<u32> {
        &self.v4
    }

    /// IPv6 runs; 0 leads to [`Atlas::number`].
    pub(super) fn v6(&self) -> &Ranges<u64> {
        &self.v6
    }
}

fn bad(path: &Path, reason: String) -> Failure {
    let mend = "a MaxMind-format database with countries or positions is needed, such as DB-IP City Lite or GeoLite2 City";
    Failure::new(FailureKind::BadData, format!("the geo database {} cannot be used: {reason} ({mend})", path.display()))
}

/// `2026-11-24` of seconds after the Unix epoch.
fn civil_date(unix_seconds: u64) -> String {
    // Days since 0000-03-01, in eras of 400 years; see Howard Hinnant's description of the calendar arithmetic.
    let days = (unix_seconds / 86_400).min(3_000_000) as i64 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// What is read of a database record; everything may be missing, other fields are skipped.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Record {
    country: Country,
    registered_country: Country,
    country_code: Country,
    location: Location,
    latitude: Number,
    longitude: Number,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Location {
    latitude: Number,
    longitude: Number,
}

impl Record {
    fn place_number(self, places: &mut Vec<Option<ClientPlace>>, by_place: &mut HashMap<([u8; 2], u32, u32), u32>) -> u32 {
        let country = self.country.0.or(self.country_code.0).or(self.registered_country.0);
        let position = match (self.location.latitude.0, self.location.longitude.0, self.latitude.0, self.longitude.0) {
            (Some(latitude), Some(longitude), ..) | (_, _, Some(latitude), Some(longitude)) => Some((latitude, longitude)),
            _ => None,
        };
        // Databases write 0, 0 for "not known", and nobody lives there.
        let position = position
            .filter(|(latitude, longitude)| latitude.abs() <= 90.0 && longitude.abs() <= 180.0 && (*latitude, *longitude) != (0.0, 0.0));
        let (latitude, longitude, source) = match (position, country.and_then(countries::index)) {
            (Some((latitude, longitude)), _) => (latitude as f32, longitude as f32, Source::Database),
            (None, Some(i)) => (COUNTRIES[i].1, COUNTRIES[i].2, Source::DatabaseCountry),
            (None, None) => return UNKNOWN,
        };
        let country = country.unwrap_or_default();
        *by_place.entry((country, latitude.to_bits(), longitude.to_bits())).or_insert_with(|| {
            places.push(Some(ClientPlace { country, latitude, longitude, source }));
            (places.len() - 1) as u32
        })
    }
}

/// A country code: as a string, or as `iso_code` of a map.
#[derive(Default, Clone, Copy)]
struct Country(Option<[u8; 2]>);

fn country_of(text: &str) -> Option<[u8; 2]> {
    let bytes = <[u8; 2]>::try_from(text.as_bytes()).ok()?;
    let upper = bytes.map(|b| b.to_ascii_uppercase());
    upper.iter().all(u8::is_ascii_uppercase).then_some(upper)
}

impl<'de> Deserialize<'de> for Country {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Country;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a country code, or a map with iso_code")
            }
            fn visit_str<E>(self, text: &str) -> Result<Country, E> {
                Ok(Country(country_of(text)))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Country, A::Error> {
                let mut country = Country::default();
                while let Some(key) = map.next_key::<&str>()? {
                    if key == "iso_code" {
                        country.0 = country_of(map.next_value::<&str>()?);
                    } else {
                        map.next_value::<serde::de::IgnoredAny>()?;
                    }
                }
                Ok(country)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A number however it is written: some databases use float32, some float64, some integers or strings.
#[derive(Default, Clone, Copy)]
struct Number(Option<f64>);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Number;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of degrees")
            }
            fn visit_f32<E>(self, v: f32) -> Result<Number, E> {
                Ok(Number(Some(f64::from(v)).filter(|v| v.is_finite())))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Number, E> {
                Ok(Number(Some(v).filter(|v| v.is_finite())))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Number, E> {
                Ok(Number(Some(v as f64)))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Number, E> {
                Ok(Number(Some(v as f64)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Number, E> {
                Ok(Number(text.trim().parse().ok().filter(|v: &f64| v.is_finite())))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmdb_writer::{Value, Writer};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn shown(atlas: &Atlas, address: &str) -> Option<(String, i32, i32, Source, u8)> {
        let (number, scope) = atlas.find(ip(address));
        assert_eq!(atlas.number(ip(address)), number);
        let place = atlas.place(number);
        assert_eq!(atlas.country(ip(address)), place.map(|p| p.country).filter(|c| *c != [0; 2]), "{address}");
        let p = place?;
        Some((p.country_str().to_owned(), p.latitude.round() as i32, p.longitude.round() as i32, p.source, scope))
    }

    fn bytes(records: &[(&str, Value)]) -> Vec<u8> {
        let mut writer = Writer::new("Test-City");
        for (network, value) in records {
            writer.insert_value(network.parse::<ipnet::IpNet>().unwrap(), value.clone()).unwrap();
        }
        writer.to_bytes().unwrap()
    }

    fn city(code: &str, latitude: Value, longitude: Value) -> Value {
        let location = Value::map([("latitude", latitude), ("longitude", longitude), ("time_zone", Value::from("X"))]);
        let names = Value::map([("en", Value::from("somewhere"))]);
        let country = Value::map([("names", names.clone()), ("iso_code", Value::from(code)), ("geoname_id", Value::from(7_u32))]);
        Value::map([("city", Value::map([("names", names)])), ("country", country), ("location", location)])
    }

    #[test]
    fn the_built_in_table_knows_the_demonstration_and_countries() {
        let atlas = Atlas::built_in();
        assert_eq!(atlas.description, "built-in");
        for (address, expected) in [
            ("198.51.100.1", Some(("NL".to_owned(), 52, 5, Source::Demo, 24))),
            ("203.0.113.255", Some(("US".to_owned(), 41, -74, Source::Demo, 24))),
            ("192.0.2.0", Some(("SG".to_owned(), 1, 104, Source::Demo, 24))),
            ("10.1.2.3", None),
            ("127.0.0.1", None),
            ("224.0.0.1", None),
            ("::1", None),
            ("fe80::1", None),
        ] {
            assert_eq!(shown(&atlas, address), expected, "{address}");
        }
        // Large, old allocations.
        for (address, country) in [("8.8.8.8", "US"), ("193.0.6.139", "NL"), ("2001:200::1", "JP"), ("133.11.0.1", "JP")] {
            let (found, _, _, source, scope) = shown(&atlas, address).unwrap();
            assert_eq!((found.as_str(), source), (country, Source::Country), "{address}");
            assert!(scope >= 3 && scope <= if address.contains(':') { GRAIN_V6 } else { GRAIN_V4 }, "{address} /{scope}");
        }
    }

    #[test]
    fn the_compiled_countries_are_those_of_the_registries() {
        let atlas = Atlas::built_in();
        // Steps of a prime number of /24s meet every part of the space.
        for first in (0..=u32::MAX - 0xff).step_by(4_099 * 256) {
            let address = IpAddr::from(first.to_be_bytes());
            let expected = iptocc::country_code(address).map(|c| c.as_bytes().to_vec());
            if !DEMO.iter().any(|(network, ..)| u32::from(*network) == first) {
                assert_eq!(atlas.country(address).map(|c| c.to_vec()), expected, "{address}");
            }
        }
    }

    #[test]
    fn a_database_comes_before_countries_and_after_the_demonstration() {
        let db = bytes(&[
            ("81.2.69.0/24", city("GB", Value::from(51.5_f64), Value::from(-0.1_f64))),
            ("81.2.70.0/23", city("GB", Value::from(53.5_f32), Value::from(-2.2_f32))),
            ("81.2.72.128/25", city("FR", Value::from("48.9"), Value::from(2_u32))),
            ("81.2.80.0/24", city("DE", Value::from(0.0_f64), Value::from(0.0_f64))),
            ("81.2.81.0/24", city("", Value::from(10.0_f64), Value::from(20.0_f64))),
            ("81.2.82.0/24", Value::map([("country_code", Value::from("it")), ("asn", Value::from(5_u32))])),
            ("81.2.83.0/24", Value::map([("asn", Value::from(5_u32))])),
            ("81.2.84.0/24", city("ES", Value::from(91.0_f64), Value::from(0.0_f64))),
            ("2a02:c7c::/32", city("GB", Value::from(51.5_f64), Value::from(-0.1_f64))),
            ("2a02:c7d:8000::/65", city("GB", Value::from(57.0_f64), Value::from(-4.0_f64))),
            ("2a02:c7d:8000:0:8000::/65", city("GB", Value::from(60.0_f64), Value::from(-1.0_f64))),
        ]);
        let atlas = Atlas::compile(db).unwrap();
        assert!(atlas.description.starts_with("Test-City, built "), "{}", atlas.description);
        let row = |country: &str, latitude, longitude, source, scope| Some((country.to_owned(), latitude, longitude, source, scope));
        use Source::{Database, DatabaseCountry, Demo};
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
        for gap in ["81.2.83.1", "81.2.72.1", "8.8.8.8", "2001:200::1", "2a02:c7d::1"] {
            let (_, _, _, source, scope) = shown(&atlas, gap).unwrap();
            assert_eq!(source, Source::Country, "{gap}");
            assert!(scope >= 8, "{gap}");
        }
        assert_eq!(shown(&atlas, "81.2.72.1").unwrap().4, 25, "the other half is elsewhere");
    }

    #[test]
    fn wrong_content_and_missing_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let good = bytes(&[("81.2.69.0/24", city("GB", Value::from(51.5_f64), Value::from(0.0_f64)))]);
        assert!(Atlas::load(&write("good", &good)).is_ok());
        let asn = bytes(&[("81.2.69.0/24", Value::map([("autonomous_system_number", Value::from(5_u32))]))]);
        let odd = bytes(&[("81.2.69.0/24", Value::map([("location", Value::from("London"))]))]);
        for (path, kind, words) in [
            (dir.path().join("none"), FailureKind::NoInput, "cannot read the geo database"),
            (dir.path().to_owned(), FailureKind::NoInput, "directory"),
            (write("empty", b""), FailureKind::BadData, "cannot be used"),
            (write("text", b"hello"), FailureKind::BadData, "cannot be used"),
            (write("cut", &good[..good.len() - 40]), FailureKind::BadData, "cannot be used"),
            (write("asn", &asn), FailureKind::BadData, "has a location or a country"),
            (write("odd", &odd), FailureKind::BadData, "cannot be used"),
        ] {
            let failure = Atlas::load(&path).unwrap_err();
            assert_eq!(failure.kind, kind, "{failure}");
            assert!(failure.message.contains(words), "{failure}");
            assert!(failure.message.contains(path.to_str().unwrap()), "{failure}");
        }
    }

    #[test]
    fn no_damage_to_a_database_breaks_the_compiler() {
        let good = bytes(&[
            ("81.2.69.0/24", city("GB", Value::from(51.5_f64), Value::from(-0.1_f64))),
            ("2a02:c7c::/32", city("FR", Value::from(48.9_f32), Value::from(2.3_f32))),
        ]);
        let mut random = super::super::health::Jitter::new(7);
        for _ in 0..400 {
            let mut db = good.clone();
            for _ in 0..=random.next() % 4 {
                let at = random.next() as usize % db.len();
                db[at] = random.next() as u8;
            }
            db.truncate(db.len() - (random.next() as usize % db.len()) * usize::from(random.next().is_multiple_of(8)));
            // Whatever it is, it ends, and what was taken can be looked up.
            if let Ok(atlas) = Atlas::compile(db) {
                let _ = (atlas.find(ip("81.2.69.1")), atlas.find(ip("2a02:c7c::1")));
            }
        }
    }

    #[test]
    fn dates_are_civil() {
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_767_225_599, "2025-12-31"),
            (1_767_225_600, "2026-01-01"),
        ] {
            assert_eq!(civil_date(seconds), expected);
        }
        assert!(!civil_date(u64::MAX).is_empty());
    }
}
