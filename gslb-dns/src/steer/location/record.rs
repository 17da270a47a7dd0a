//! Reads the location out of a database's record, in the shapes that the common databases use.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Location, LocationSource, UNKNOWN};
use crate::steer::countries::{self, COUNTRIES};

/// The members of a database record that are read; each may be missing, and other members are
/// skipped.
#[derive(Debug, Default)]
pub(super) struct Record {
    country: Country,
    country_code: Country,
    registered_country: Country,
    represented_country: Country,
    traits: Country,
    location: Position,
    /// The position, where its coordinates are members of the record itself.
    own: Position,
    /// Whether a member has a type that cannot be read.
    pub(super) is_malformed: bool,
}

impl Record {
    /// A record whose encoding cannot be read.
    pub(super) fn unreadable() -> Self {
        RecordReader.unusable()
    }

    pub(super) fn location_number(
        self,
        places: &mut Vec<Option<Location>>,
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

        // Databases write 0, 0 for "not known", and that point is in the sea.
        let position = position.filter(|position| *position != (0.0, 0.0));
        let (latitude, longitude, source) = match (position, country.and_then(countries::index)) {
            (Some((latitude, longitude)), _) => {
                (latitude as f32, longitude as f32, LocationSource::Database)
            }
            (None, Some(i)) => (
                COUNTRIES[i].1,
                COUNTRIES[i].2,
                LocationSource::DatabaseCountry,
            ),
            (None, None) => return UNKNOWN,
        };
        let country = country.unwrap_or_default();

        *by_place
            .entry((country, latitude.to_bits(), longitude.to_bits()))
            .or_insert_with(|| {
                places.push(Some(Location {
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

/// Reads a value of any type: a [`ReadKind`] takes the types that it can use, and all others are
/// malformed. Only a broken encoding is an error.
pub(super) struct OfAnyKind<R>(pub(super) R);

pub(super) trait ReadKind<'de>: Sized {
    type Value;
    /// A value of a type that cannot be used.
    fn unusable(self) -> Self::Value;
    fn text(self, _text: &str) -> Self::Value {
        self.unusable()
    }
    fn number(self, _number: f64) -> Self::Value {
        self.unusable()
    }
    fn map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(self.unusable())
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
        Ok(self.0.unusable())
    }
    fn visit_bytes<E>(self, _: &[u8]) -> Result<R::Value, E> {
        Ok(self.0.unusable())
    }
    fn visit_unit<E>(self) -> Result<R::Value, E> {
        Ok(self.0.unusable())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<R::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(self.0.unusable())
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<R::Value, A::Error> {
        self.0.map(map)
    }
}

struct RecordReader;

impl<'de> ReadKind<'de> for RecordReader {
    type Value = Record;

    fn unusable(self) -> Record {
        Record {
            is_malformed: true,
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
                // Most members of `traits` are not about locations.
                "traits" => {
                    record.traits = Country {
                        is_malformed: false,
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

        record.is_malformed = countries.iter().any(|c| c.is_malformed)
            || record.location.is_wrong()
            || record.own.is_wrong();
        Ok(record)
    }
}

/// A country code: as a string, or as `iso_code` of a map.
#[derive(Debug, Default, Clone, Copy)]
struct Country {
    code: Option<[u8; 2]>,
    /// Whether its type cannot name a country.
    is_malformed: bool,
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

    fn unusable(self) -> Country {
        Country {
            code: None,
            is_malformed: true,
        }
    }

    /// A country's name, or an empty text, is not a code, but not malformed either.
    fn text(self, text: &str) -> Country {
        Country {
            code: country_of(text),
            is_malformed: false,
        }
    }

    fn map<A: MapAccess<'de>>(self, mut map: A) -> Result<Country, A::Error> {
        let mut country = Country::default();
        while let Some(key) = map.next_key::<&str>()? {
            match key {
                "iso_code" | "country_code" | "code" | "country" => {
                    let Code(found) = map.next_value()?;
                    country.code = country.code.or(found.code);
                    country.is_malformed |= found.is_malformed;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(country)
    }
}

/// A country code inside a map: a text, or malformed.
struct Code(Country);

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CodeReader;
        impl ReadKind<'_> for CodeReader {
            type Value = Code;
            fn unusable(self) -> Code {
                Code(CountryReader.unusable())
            }
            fn text(self, text: &str) -> Code {
                Code(CountryReader.text(text))
            }
        }
        deserializer.deserialize_any(OfAnyKind(CodeReader))
    }
}

/// A position, possibly incomplete. Degrees north and east.
#[derive(Debug, Default, Clone, Copy)]
struct Position {
    latitude: Option<f64>,
    longitude: Option<f64>,
    /// Whether a coordinate has a type that cannot be read.
    is_malformed: bool,
}

impl Position {
    /// Both numbers, each on the globe.
    fn whole(&self) -> Option<(f64, f64)> {
        let position = self.latitude.zip(self.longitude)?;
        // A coordinate that is not a number is outside every range.
        ((-90.0..=90.0).contains(&position.0) && (-180.0..=180.0).contains(&position.1))
            .then_some(position)
    }

    /// Whether it is present and cannot be used.
    fn is_wrong(&self) -> bool {
        self.is_malformed
            || ((self.latitude.is_some() || self.longitude.is_some()) && self.whole().is_none())
    }

    /// Reads the value of a map's member if its name is that of a coordinate.
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
            None => self.is_malformed = true,
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

    fn unusable(self) -> Position {
        Position {
            is_malformed: true,
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
                is_malformed: false,
            },
            None => Position {
                is_malformed: !text.trim().is_empty(),
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

/// A number in any type: some databases use float32, some float64, some integers or strings.
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

    fn unusable(self) -> Number {
        Number(None)
    }
    fn number(self, number: f64) -> Number {
        Number(Some(number))
    }
    fn text(self, text: &str) -> Number {
        Number(text.trim().parse().ok())
    }
}
