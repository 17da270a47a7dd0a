//! Where a client is: places by address prefix, from the built-in country table or a MaxMind-format
//! database.
//!
//! Whatever the source, the whole of it is compiled into [`Ranges`] once, off the query path: a
//! look-up in the database's own tree costs microseconds and decodes a record, one in the runs
//! costs some tens of nanoseconds and gives a number. Layers, first that knows wins:
//!
//! 1. the demonstration's prefixes (the documentation networks of RFC 5737);
//! 2. the database of `steering.geo_db`, if there is one;
//! 3. the country of the address's /24 (IPv4) or /48 (IPv6) in the registries' allocations, at the
//!   point where that country's people live.
//!
//! The IPv4 countries are listed when the program is built (`build.rs`). IPv6 countries are looked
//! up as asked, since their /48s are too many to list; their scope is then /48.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use maxminddb::{LookupResult, Reader, WithinOptions};
use nearcast_fleet::failure::{Failure, FailureKind};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::countries::{self, COUNTRIES};
use super::ranges::{Builder, Ranges};

/// Longest IPv4 and IPv6 prefixes that the built-in table tells apart.
pub(super) const GRAIN_V4: u8 = 24;
pub(super) const GRAIN_V6: u8 = 48;
/// Larger databases are refused.
const DATABASE_BYTES_MAX: u64 = 2 << 30;
/// Networks, those without data included, for each node of a database's search tree; a sound one
/// has hardly more than one.
const NETWORKS_A_NODE_MAX: u64 = 3;
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
        if self.country == [0; 2] {
            ""
        } else {
            std::str::from_utf8(&self.country).unwrap_or("")
        }
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
    /// The same by country alone, as [`country_value`] writes it: far fewer runs, which stay in the
    /// processor's caches. Counting needs no more.
    countries_v4: Ranges<u32>,
    countries_v6: Ranges<u64>,
    /// For reports: `built-in`, or what the database says of itself.
    pub(super) description: String,
    /// Records of the database that are not what they should be, and were left out or read in part.
    pub(super) odd_records: u64,
}

fn country_number(code: &str) -> u32 {
    <[u8; 2]>::try_from(code.as_bytes())
        .ok()
        .and_then(countries::index)
        .map_or(UNKNOWN, |i| FIRST_COUNTRY + i as u32)
}

fn built_in_v6(address: Ipv6Addr) -> u32 {
    let grain = u128::from(address) >> 80 << 80;
    iptocc::country_code(Ipv6Addr::from(grain)).map_or(UNKNOWN, country_number)
}

/// A place without a country, in the maps by country.
const NO_COUNTRY: u32 = 1;

/// The country of a place as one number: 0 for no place, [`NO_COUNTRY`], or the letters.
fn country_value(place: Option<&ClientPlace>) -> u32 {
    place.map_or(0, |p| {
        u32::from(u16::from_be_bytes(p.country)).max(NO_COUNTRY)
    })
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
    let number = |run: &[u8]| {
        countries::index([run[4], run[5]]).map_or(UNKNOWN, |i| FIRST_COUNTRY + i as u32)
    };
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
    let countries = COUNTRIES
        .iter()
        .map(|(country, latitude, longitude)| (*country, *latitude, *longitude, Source::Country));
    let demo = DEMO
        .iter()
        .map(|(_, country, latitude, longitude)| (*country, *latitude, *longitude, Source::Demo));
    std::iter::once(None)
        .chain(
            countries
                .chain(demo)
                .map(|(country, latitude, longitude, source)| {
                    Some(ClientPlace {
                        country,
                        latitude,
                        longitude,
                        source,
                    })
                }),
        )
        .collect()
}

impl Atlas {
    /// Without a database. Compiled once a process; later calls give the same value.
    pub(super) fn built_in() -> Arc<Self> {
        static ATLAS: OnceLock<Arc<Atlas>> = OnceLock::new();
        Arc::clone(ATLAS.get_or_init(|| {
            Arc::new(Self::new(
                fixed_places(),
                demo_v4().over(&built_in_v4()),
                Builder::new().finish(),
                "built-in".into(),
            ))
        }))
    }

    /// With the database at `path`, which is read whole and let go.
    ///
    /// # Errors
    /// `NoInput` when it cannot be read, `BadData` when it is not a database with countries or
    /// positions.
    pub(super) fn load(path: &Path) -> Result<Self, Failure> {
        Self::compile(&Self::read(path)?).map_err(|reason| bad(path, reason))
    }

    fn read(path: &Path) -> Result<Vec<u8>, Failure> {
        let unreadable = |e: std::io::Error| {
            let mend =
                "put the file there, let this user read it, or take geo_db out of [steering]";
            Failure::new(
                FailureKind::NoInput,
                format!(
                    "cannot read the geo database {}: {e} ({mend})",
                    path.display()
                ),
            )
        };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(unreadable(std::io::ErrorKind::IsADirectory.into()));
        }
        if metadata.len() > DATABASE_BYTES_MAX {
            return Err(bad(
                path,
                format!("it is larger than {DATABASE_BYTES_MAX} bytes"),
            ));
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        std::io::Read::read_to_end(
            &mut std::io::Read::take(file, DATABASE_BYTES_MAX + 1),
            &mut bytes,
        )
        .map_err(unreadable)?;
        Ok(bytes)
    }

    /// Whether the file at `path` is a database at all; what it has of places is not looked at,
    /// which would take a while.
    ///
    /// # Errors
    /// As [`Atlas::load`].
    pub(super) fn probe(path: &Path) -> Result<(), Failure> {
        open(&Self::read(path)?, |_| ()).map_err(|reason| bad(path, reason))
    }

    /// From the bytes of a database.
    ///
    /// The search tree must be sound, or nothing can be believed. A record in it that cannot be
    /// read is passed over: its networks have the place that the built-in table gives them, and it
    /// is counted in [`Atlas::odd_records`].
    fn compile(bytes: &[u8]) -> Result<Self, String> {
        open(bytes, Self::compile_read)?
    }

    fn compile_read(reader: &Reader<&[u8]>) -> Result<Self, String> {
        // An IPv4 address is looked up below ::/96. When one record covers all of that, every IPv4
        // address is where it says, and the reader would take each other network with that record
        // for a second way to the IPv4 addresses.
        let of_all_v4 = match reader.metadata().ip_version {
            6 => Some(
                reader
                    .lookup(Ipv4Addr::UNSPECIFIED.into())
                    .map_err(|e| e.to_string())?,
            ),
            _ => None,
        };
        let of_all_v4 =
            of_all_v4.filter(|found| found.network().is_ok_and(|network| network.is_ipv6()));
        let options = WithinOptions::default().include_networks_without_data();
        let options = if of_all_v4.is_some() {
            options.include_aliased_networks()
        } else {
            options
        };
        let mut places = fixed_places();
        let mut v4 = Builder::<u32>::new();
        let mut v4_mapped = Builder::<u32>::new();
        let mut v6 = Builder::<u64>::new();
        let mut seen = Seen::default();
        let mut located = 0_u64;
        if let Some(found) = of_all_v4 {
            let number = seen.place_number(&found, &mut places);
            if number != UNKNOWN {
                located += 1;
                v4.push(0, u32::MAX, number);
            }
        }
        // A tree has one end more than nodes. In a damaged file that joins branches again there may
        // be more ends than could ever be read.
        let ends_max = NETWORKS_A_NODE_MAX * u64::from(reader.metadata().node_count);
        for (ends, found) in (0..).zip(reader.networks(options).map_err(|e| e.to_string())?) {
            let found = found.map_err(|e| e.to_string())?;
            if ends > ends_max {
                return Err(
                    "its search tree is no tree: it has more networks than places for them".into(),
                );
            }
            let number = seen.place_number(&found, &mut places);
            if number == UNKNOWN {
                continue;
            }
            located += 1;
            let network = found.network().map_err(|e| e.to_string())?;
            let prefix = u32::from(network.prefix());
            let last_v4 =
                |first: u32, prefix: u32| first | u32::MAX.checked_shr(prefix).unwrap_or(0);
            match network.ip() {
                IpAddr::V4(ip) => v4.push(ip.into(), last_v4(ip.into(), prefix), number),
                IpAddr::V6(ip) => {
                    if let (Some(ip), Some(prefix)) = (
                        ip.to_ipv4_mapped(),
                        prefix.checked_sub(u32::from(super::MAPPED_BITS)),
                    ) {
                        v4_mapped.push(ip.into(), last_v4(ip.into(), prefix), number);
                    }
                    let first = key_v6(ip);
                    // Below a /64 the first record with a place counts for the whole of it.
                    v6.push(
                        first,
                        first | u64::MAX.checked_shr(prefix).unwrap_or(0),
                        number,
                    );
                }
            }
        }
        let odd_records = seen.odd;
        if located == 0 {
            let odd = if odd_records > 0 {
                format!(" ({odd_records} of its records cannot be read)")
            } else {
                String::new()
            };
            return Err(format!(
                "none of its networks has a location or a country{odd}"
            ));
        }
        let metadata = reader.metadata();
        let name = metadata
            .description
            .get("en")
            .or_else(|| metadata.description.values().next())
            .filter(|name| !name.is_empty());
        let name = name.map_or(metadata.database_type.as_str(), String::as_str);
        let description = format!("{name}, built {}", civil_date(metadata.build_epoch));
        let v4 = demo_v4().over(&v4.finish().over(&v4_mapped.finish()).over(&built_in_v4()));
        Ok(Self {
            odd_records,
            ..Self::new(places, v4, v6.finish(), description)
        })
    }

    fn new(
        places: Vec<Option<ClientPlace>>,
        v4: Ranges<u32>,
        v6: Ranges<u64>,
        description: String,
    ) -> Self {
        let country = |number: u32| country_value(places[number as usize].as_ref());
        Self {
            countries_v4: v4.map(country),
            countries_v6: v6.map(country),
            places,
            v4,
            v6,
            description,
            odd_records: 0,
        }
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

    /// The number of the place of an address, and the longest prefix that is sure to be at that
    /// place throughout.
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
    Failure::new(
        FailureKind::BadData,
        format!(
            "the geo database {} cannot be used: {reason} ({mend})",
            path.display()
        ),
    )
}

/// `2026-11-24` of seconds after the Unix epoch.
fn civil_date(unix_seconds: u64) -> String {
    // Days since 0000-03-01, in eras of 400 years; see Howard Hinnant's description of the calendar
    // arithmetic.
    let days = (unix_seconds / 86_400).min(3_000_000) as i64 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Opens a database for `read`, metadata that lack what nothing needs included.
fn open<T>(bytes: &[u8], read: impl FnOnce(&Reader<&[u8]>) -> T) -> Result<T, String> {
    match Reader::from_source(bytes).map_err(|e| e.to_string()) {
        Ok(reader) => Ok(read(&reader)),
        Err(reason) => {
            let mended = mended_metadata(bytes).ok_or_else(|| reason.clone())?;
            let reader = Reader::from_source(mended.as_slice()).map_err(|_| reason)?;
            Ok(read(&reader))
        }
    }
}

/// What was made of the records that were met so far.
#[derive(Default)]
struct Seen {
    by_offset: HashMap<usize, u32>,
    by_place: HashMap<([u8; 2], u32, u32), u32>,
    /// Records that could not be read, or not all of what they say of the place.
    odd: u64,
}

impl Seen {
    /// The number of the place that a network's record names; a record is read once, however many
    /// networks have it.
    fn place_number<S: AsRef<[u8]>>(
        &mut self,
        found: &LookupResult<'_, S>,
        places: &mut Vec<Option<ClientPlace>>,
    ) -> u32 {
        let Some(offset) = found.offset() else {
            return UNKNOWN;
        };
        if let Some(number) = self.by_offset.get(&offset) {
            return *number;
        }
        // A record that breaks the format is none of ours to judge: others may be sound.
        let record = found.decode::<Record>().ok().flatten().unwrap_or(Record {
            is_odd: true,
            ..Record::default()
        });
        self.odd += u64::from(record.is_odd);
        let number = record.place_number(places, &mut self.by_place);
        self.by_offset.insert(offset, number);
        number
    }
}

/// What is read of a database record; everything may be missing, other fields are skipped.
#[derive(Debug, Default)]
struct Record {
    country: Country,
    country_code: Country,
    registered_country: Country,
    represented_country: Country,
    traits: Country,
    location: Position,
    /// The position as members of the record itself.
    own: Position,
    /// Whether something of it is of a kind that cannot be read.
    is_odd: bool,
}

impl Record {
    fn place_number(
        self,
        places: &mut Vec<Option<ClientPlace>>,
        by_place: &mut HashMap<([u8; 2], u32, u32), u32>,
    ) -> u32 {
        let countries = [
            self.country,
            self.country_code,
            self.registered_country,
            self.represented_country,
            self.traits,
        ];
        let country = countries.iter().find_map(|c| c.code);
        let position = self.location.whole().or(self.own.whole());
        // Databases write 0, 0 for "not known", and nobody lives there.
        let position = position.filter(|position| *position != (0.0, 0.0));
        let (latitude, longitude, source) = match (position, country.and_then(countries::index)) {
            (Some((latitude, longitude)), _) => {
                (latitude as f32, longitude as f32, Source::Database)
            }
            (None, Some(i)) => (COUNTRIES[i].1, COUNTRIES[i].2, Source::DatabaseCountry),
            (None, None) => return UNKNOWN,
        };
        let country = country.unwrap_or_default();
        *by_place
            .entry((country, latitude.to_bits(), longitude.to_bits()))
            .or_insert_with(|| {
                places.push(Some(ClientPlace {
                    country,
                    latitude,
                    longitude,
                    source,
                }));
                (places.len() - 1) as u32
            })
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OfAnyKind(RecordReader))
    }
}

/// Reads a value of whatever kind: a reader takes what it can use of it, and any other kind is odd.
/// Nothing but a broken encoding fails.
struct OfAnyKind<R>(R);

trait ReadKind<'de>: Sized {
    type Value;
    /// A value of a kind that is of no use.
    fn odd(self) -> Self::Value;
    fn text(self, _text: &str) -> Self::Value {
        self.odd()
    }
    fn number(self, _number: f64) -> Self::Value {
        self.odd()
    }
    fn map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(self.odd())
    }
}

impl<'de, R: ReadKind<'de>> Visitor<'de> for OfAnyKind<R> {
    type Value = R::Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value of any kind")
    }
    fn visit_str<E>(self, text: &str) -> Result<R::Value, E> {
        Ok(self.0.text(text))
    }
    fn visit_f32<E>(self, v: f32) -> Result<R::Value, E> {
        Ok(self.0.number(f64::from(v)))
    }
    fn visit_f64<E>(self, v: f64) -> Result<R::Value, E> {
        Ok(self.0.number(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<R::Value, E> {
        Ok(self.0.number(v as f64))
    }
    fn visit_i128<E>(self, v: i128) -> Result<R::Value, E> {
        Ok(self.0.number(v as f64))
    }
    fn visit_u64<E>(self, v: u64) -> Result<R::Value, E> {
        Ok(self.0.number(v as f64))
    }
    fn visit_u128<E>(self, v: u128) -> Result<R::Value, E> {
        Ok(self.0.number(v as f64))
    }
    fn visit_bool<E>(self, _: bool) -> Result<R::Value, E> {
        Ok(self.0.odd())
    }
    fn visit_bytes<E>(self, _: &[u8]) -> Result<R::Value, E> {
        Ok(self.0.odd())
    }
    fn visit_unit<E>(self) -> Result<R::Value, E> {
        Ok(self.0.odd())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<R::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(self.0.odd())
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<R::Value, A::Error> {
        self.0.map(map)
    }
}

struct RecordReader;

impl<'de> ReadKind<'de> for RecordReader {
    type Value = Record;

    fn odd(self) -> Record {
        Record {
            is_odd: true,
            ..Record::default()
        }
    }

    fn map<A: MapAccess<'de>>(self, mut map: A) -> Result<Record, A::Error> {
        let mut record = Record::default();
        while let Some(key) = map.next_key::<&str>()? {
            match key {
                "country" => record.country = map.next_value()?,
                "country_code" | "country_iso_code" | "iso_code" => {
                    record.country_code = map.next_value()?
                }
                "registered_country" => record.registered_country = map.next_value()?,
                "represented_country" => record.represented_country = map.next_value()?,
                // Most of it is not about places.
                "traits" => {
                    record.traits = Country {
                        is_odd: false,
                        ..map.next_value()?
                    }
                }
                "location" | "loc" => record.location = map.next_value()?,
                _ => record.own.take(key, &mut map)?,
            }
        }
        let countries = [
            record.country,
            record.country_code,
            record.registered_country,
            record.represented_country,
        ];
        record.is_odd = countries.iter().any(|c| c.is_odd)
            || record.location.is_wrong()
            || record.own.is_wrong();
        Ok(record)
    }
}

/// A country code: as a string, or as `iso_code` of a map.
#[derive(Debug, Default, Clone, Copy)]
struct Country {
    code: Option<[u8; 2]>,
    /// Whether it was of a kind that names no country.
    is_odd: bool,
}

fn country_of(text: &str) -> Option<[u8; 2]> {
    let bytes = <[u8; 2]>::try_from(text.trim().as_bytes()).ok()?;
    let upper = bytes.map(|b| b.to_ascii_uppercase());
    upper.iter().all(u8::is_ascii_uppercase).then_some(upper)
}

impl<'de> Deserialize<'de> for Country {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OfAnyKind(CountryReader))
    }
}

struct CountryReader;

impl<'de> ReadKind<'de> for CountryReader {
    type Value = Country;

    fn odd(self) -> Country {
        Country {
            code: None,
            is_odd: true,
        }
    }

    /// A name of a country, or nothing at all, is no code, but nothing odd either.
    fn text(self, text: &str) -> Country {
        Country {
            code: country_of(text),
            is_odd: false,
        }
    }

    fn map<A: MapAccess<'de>>(self, mut map: A) -> Result<Country, A::Error> {
        let mut country = Country::default();
        while let Some(key) = map.next_key::<&str>()? {
            match key {
                "iso_code" | "country_code" | "code" | "country" => {
                    let Code(found) = map.next_value()?;
                    country.code = country.code.or(found.code);
                    country.is_odd |= found.is_odd;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(country)
    }
}

/// A country code inside a map: a text, or it is odd.
struct Code(Country);

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CodeReader;
        impl ReadKind<'_> for CodeReader {
            type Value = Code;
            fn odd(self) -> Code {
                Code(CountryReader.odd())
            }
            fn text(self, text: &str) -> Code {
                Code(CountryReader.text(text))
            }
        }
        deserializer.deserialize_any(OfAnyKind(CodeReader))
    }
}

/// A position, or as much of one as there is. Degrees north and east.
#[derive(Debug, Default, Clone, Copy)]
struct Position {
    latitude: Option<f64>,
    longitude: Option<f64>,
    /// Whether something that should be a position is none.
    is_odd: bool,
}

impl Position {
    /// Both numbers, each on the globe.
    fn whole(&self) -> Option<(f64, f64)> {
        let position = self.latitude.zip(self.longitude)?;
        // What is not a number is in no range.
        ((-90.0..=90.0).contains(&position.0) && (-180.0..=180.0).contains(&position.1))
            .then_some(position)
    }

    /// Whether it is there and cannot be used.
    fn is_wrong(&self) -> bool {
        self.is_odd
            || ((self.latitude.is_some() || self.longitude.is_some()) && self.whole().is_none())
    }

    /// Takes the value of a map's member when its name is one of a coordinate.
    fn take<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let (slot, found) = match key {
            "latitude" | "lat" => (&mut self.latitude, map.next_value::<Number>()?),
            "longitude" | "lon" | "lng" | "long" => {
                (&mut self.longitude, map.next_value::<Number>()?)
            }
            _ => {
                map.next_value::<IgnoredAny>()?;
                return Ok(());
            }
        };
        match found.0 {
            Some(number) => *slot = Some(number),
            None => self.is_odd = true,
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OfAnyKind(PositionReader))
    }
}

struct PositionReader;

impl<'de> ReadKind<'de> for PositionReader {
    type Value = Position;

    fn odd(self) -> Position {
        Position {
            is_odd: true,
            ..Position::default()
        }
    }

    /// `52.37,4.90`, as some databases write it.
    fn text(self, text: &str) -> Position {
        let numbers = text.split_once(',').and_then(|(north, east)| {
            Some((north.trim().parse().ok()?, east.trim().parse().ok()?))
        });
        match numbers {
            Some((latitude, longitude)) => Position {
                latitude: Some(latitude),
                longitude: Some(longitude),
                is_odd: false,
            },
            None => Position {
                is_odd: !text.trim().is_empty(),
                ..Position::default()
            },
        }
    }

    fn map<A: MapAccess<'de>>(self, mut map: A) -> Result<Position, A::Error> {
        let mut position = Position::default();
        while let Some(key) = map.next_key::<&str>()? {
            position.take(key, &mut map)?;
        }
        Ok(position)
    }
}

/// A number however it is written: some databases use float32, some float64, some integers or
/// strings.
#[derive(Default, Clone, Copy)]
struct Number(Option<f64>);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OfAnyKind(NumberReader))
    }
}

struct NumberReader;

impl<'de> ReadKind<'de> for NumberReader {
    type Value = Number;

    fn odd(self) -> Number {
        Number(None)
    }
    fn number(self, number: f64) -> Number {
        Number(Some(number))
    }
    fn text(self, text: &str) -> Number {
        Number(text.trim().parse().ok())
    }
}

/// Where the metadata of a database begins (MaxMind DB format 2.0).
const METADATA_MARKER: &[u8] = b"\xab\xcd\xefMaxMind.com";

/// Metadata as some writers leave it: only what the search tree cannot be read without must be
/// there.
#[derive(Deserialize)]
struct LooseMetadata {
    node_count: u32,
    record_size: u16,
    ip_version: u16,
    #[serde(default)]
    database_type: Option<Loose>,
    #[serde(default)]
    build_epoch: Option<Loose>,
}

/// A text or a number, or something else.
#[derive(Default)]
struct Loose {
    text: Option<String>,
    number: Option<f64>,
}

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LooseReader;
        impl ReadKind<'_> for LooseReader {
            type Value = Loose;
            fn odd(self) -> Loose {
                Loose::default()
            }
            fn text(self, text: &str) -> Loose {
                Loose {
                    text: Some(text.chars().take(METADATA_CHARS_MAX).collect()),
                    number: None,
                }
            }
            fn number(self, number: f64) -> Loose {
                Loose {
                    text: None,
                    number: Some(number),
                }
            }
        }
        deserializer.deserialize_any(OfAnyKind(LooseReader))
    }
}

/// As much of a text in loose metadata is kept; each char has up to four bytes.
const METADATA_CHARS_MAX: usize = 50;

/// The database with whole metadata in place of what it has, which its reader refuses for want of
/// members that only describe it.
fn mended_metadata(bytes: &[u8]) -> Option<Vec<u8>> {
    let at = bytes
        .windows(METADATA_MARKER.len())
        .rposition(|w| w == METADATA_MARKER)?;
    // Metadata are written like a record, so a database of one node that has them for its record
    // reads them.
    let mut probe = [
        &[0, 0, 17, 0, 0, 17],
        &[0; 16][..],
        &bytes[at + METADATA_MARKER.len()..],
    ]
    .concat();
    probe.extend(metadata(&LooseMetadata {
        node_count: 1,
        record_size: 24,
        ip_version: 4,
        database_type: None,
        build_epoch: None,
    }));
    let reader = Reader::from_source(probe).ok()?;
    let loose: LooseMetadata = reader
        .lookup(Ipv4Addr::UNSPECIFIED.into())
        .ok()?
        .decode()
        .ok()??;
    Some([&bytes[..at], &metadata(&loose)].concat())
}

/// The marker and metadata in their own format: a map with each member that the format asks for.
fn metadata(loose: &LooseMetadata) -> Vec<u8> {
    /// Type numbers, in the first three bits; those above 7 follow in a byte of their own, less 7.
    const TEXT: u8 = 2 << 5;
    const U16: u8 = 5 << 5;
    const U32: u8 = 6 << 5;
    const MAP: u8 = 7 << 5;
    const EXTENDED: u8 = 0;
    const U64: u8 = 9 - 7;
    const ARRAY: u8 = 11 - 7;
    fn text(out: &mut Vec<u8>, text: &str) {
        // Up to 28 bytes have their length in the first byte, up to 284 in the next.
        match text.len() {
            len @ ..29 => out.push(TEXT | len as u8),
            len => out.extend([TEXT | 29, (len - 29) as u8]),
        }
        out.extend(text.as_bytes());
    }
    let name = loose
        .database_type
        .as_ref()
        .and_then(|t| t.text.as_deref())
        .unwrap_or("a database");
    let built = loose
        .build_epoch
        .as_ref()
        .and_then(|b| b.number)
        .unwrap_or(0.0)
        .clamp(0.0, 1e11) as u64;
    let mut out = [METADATA_MARKER, &[MAP | 9]].concat();
    for (key, number) in [
        ("record_size", loose.record_size),
        ("ip_version", loose.ip_version),
        ("binary_format_major_version", 2),
        ("binary_format_minor_version", 0),
    ] {
        text(&mut out, key);
        out.push(U16 | 2);
        out.extend(number.to_be_bytes());
    }
    text(&mut out, "node_count");
    out.push(U32 | 4);
    out.extend(loose.node_count.to_be_bytes());
    text(&mut out, "build_epoch");
    out.extend([EXTENDED | 8, U64]);
    out.extend(built.to_be_bytes());
    text(&mut out, "database_type");
    text(&mut out, name);
    text(&mut out, "languages");
    out.extend([EXTENDED, ARRAY]);
    text(&mut out, "description");
    out.push(MAP);
    out
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
                Some(("NL".to_owned(), 52, 5, Source::Demo, 24)),
            ),
            (
                "203.0.113.255",
                Some(("US".to_owned(), 41, -74, Source::Demo, 24)),
            ),
            (
                "192.0.2.0",
                Some(("SG".to_owned(), 1, 104, Source::Demo, 24)),
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
                (country, Source::Country),
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
            if !DEMO
                .iter()
                .any(|(network, ..)| u32::from(*network) == first)
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
        for gap in [
            "81.2.83.1",
            "81.2.72.1",
            "8.8.8.8",
            "2001:200::1",
            "2a02:c7d::1",
        ] {
            let (_, _, _, source, scope) = shown(&atlas, gap).unwrap();
            assert_eq!(source, Source::Country, "{gap}");
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
    fn layered(
        version: mmdb_writer::IpVersion,
        aliases: bool,
        records: &[(&str, Value)],
    ) -> Vec<u8> {
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
        let below =
            |default: &'static str, code| [&[(default, country(code))][..], &two[..]].concat();
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
            assert_eq!(atlas.odd_records, 0, "database {number}");
            for (address, code) in expected {
                let (number_found, scope) = atlas.find(ip(address));
                let found = atlas.place(number_found);
                let from_database = found
                    .filter(|p| p.source == Source::DatabaseCountry)
                    .map_or("-", ClientPlace::country_str);
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
        let place = |latitude: Value, longitude: Value| {
            pair(("latitude", latitude), ("longitude", longitude))
        };
        let number = |n: f64| Value::from(n);
        let deep = (0..200).fold(Value::from("NL"), |inner, _| {
            Value::map([("country", inner)])
        });
        let wide = Value::map((0..70_000).map(|n| (n.to_string(), Value::from("x"))));
        let location =
            |location: Value| pair(("country", Value::from("NL")), ("location", location));
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
        for (name, record, expected, is_odd) in rows {
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
            assert_eq!(atlas.odd_records, u64::from(is_odd), "{name}");
            for (address, expected) in [("5.5.5.5", "US"), ("81.2.69.1", "GB")] {
                assert_eq!(shown(&atlas, address).unwrap().0, expected, "{name}");
            }
            let found = shown(&atlas, "9.9.9.9").filter(|(.., source, _)| {
                matches!(source, Source::Database | Source::DatabaseCountry)
            });
            let expected = expected.map(|(code, latitude, longitude, own)| {
                (
                    code.to_owned(),
                    latitude,
                    longitude,
                    if own {
                        Source::Database
                    } else {
                        Source::DatabaseCountry
                    },
                    24,
                )
            });
            let expected = expected.map(|e| {
                if e.3 == Source::DatabaseCountry {
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
        let mut random = super::super::health::Jitter::new(7);
        for _ in 0..400 {
            let mut db = good.clone();
            for _ in 0..=random.next() % 4 {
                let at = random.next() as usize % db.len();
                db[at] = random.next() as u8;
            }
            db.truncate(
                db.len()
                    - (random.next() as usize % db.len())
                        * usize::from(random.next().is_multiple_of(8)),
            );
            // Whatever it is, it ends, and what was taken can be looked up.
            if let Ok(atlas) = Atlas::compile(&db) {
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
