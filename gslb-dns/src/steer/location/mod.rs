//! The locations of clients: by address prefix, from the built-in country table or a MaxMind-format
//! database.
//!
//! Every source is compiled into [`Ranges`] once, off the query path: a look-up in the database's
//! own tree costs microseconds and decodes a record, one in the runs costs some tens of nanoseconds
//! and gives a number. The first layer that has a location wins:
//!
//! 1. the demonstration's prefixes (documentation and benchmark networks, see `places`);
//! 2. the database of `steering.geo_db`, if there is one;
//! 3. the country of the address's /24 (IPv4) or /48 (IPv6) in the registries' allocations, at the
//!    point where that country's people live.
//!
//! The IPv4 countries are compiled when the program is built (`build.rs`). IPv6 countries are
//! looked up for each query, since there are too many /48s to list; their scope is then /48.

mod built_in;
mod database;
mod metadata;
mod record;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv6Addr};

use self::built_in::built_in_v6;
use super::ranges::Ranges;

/// Longest IPv4 and IPv6 prefixes that the built-in table tells apart.
pub(super) const GRAIN_V4: u8 = 24;
pub(super) const GRAIN_V6: u8 = 48;
/// Bits of an IPv4-mapped IPv6 address before the IPv4 address.
pub(super) const MAPPED_BITS: u8 = 96;
/// Number of the unknown location.
pub(super) const UNKNOWN: u32 = 0;

/// The source of a location.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LocationSource {
    /// One of the demonstration's prefixes.
    Demo,
    /// The country in the built-in table.
    Country,
    /// The database, which gives a position.
    Database,
    /// The database, which gives the country alone.
    DatabaseCountry,
}

impl LocationSource {
    /// The name in explanations.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Demo => "demonstration prefix",
            Self::Country => "built-in country",
            Self::Database => "database",
            Self::DatabaseCountry => "database country",
        }
    }
}

/// A location of clients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Location {
    /// Country code; zeros where the database gives none.
    pub(super) country: [u8; 2],
    /// Degrees north.
    pub(super) latitude: f32,
    /// Degrees east.
    pub(super) longitude: f32,
    /// Its source.
    pub(super) source: LocationSource,
}

impl Location {
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

/// All locations, and the addresses at each. Immutable.
#[derive(Debug)]
pub(super) struct Atlas {
    /// By number; [`UNKNOWN`] is none.
    pub(super) places: Vec<Option<Location>>,
    pub(super) v4: Ranges<u32>,
    /// The locations of the database; 0 leads to the built-in countries.
    pub(super) v6: Ranges<u64>,
    /// The same by country alone, in the form of [`country_value`]: far fewer runs, which stay in
    /// the processor's caches. Counting needs no more.
    pub(super) countries_v4: Ranges<u32>,
    pub(super) countries_v6: Ranges<u64>,
    /// For reports: `built-in`, or the database's description of itself.
    pub(super) description: String,
    /// Records of the database that are malformed, and were skipped or read in part.
    pub(super) rejected_records: u64,
}

impl Atlas {
    pub(super) fn new(
        places: Vec<Option<Location>>,
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
            rejected_records: 0,
        }
    }

    /// The country of an address.
    pub(super) fn country(&self, address: IpAddr) -> Option<[u8; 2]> {
        let value = match address {
            IpAddr::V4(ip) => self.countries_v4.value(u32::from(ip)),
            IpAddr::V6(ip) => match self.countries_v6.value(key_v6(ip)) {
                0 => country_value(self.location(built_in_v6(ip))),
                value => value,
            },
        };
        (value > NO_COUNTRY).then(|| (value as u16).to_be_bytes())
    }

    /// The number of an address's location.
    pub(super) fn number(&self, address: IpAddr) -> u32 {
        match address {
            IpAddr::V4(ip) => self.v4.value(u32::from(ip)),
            IpAddr::V6(ip) => match self.v6.value(key_v6(ip)) {
                UNKNOWN => built_in_v6(ip),
                number => number,
            },
        }
    }

    /// The number of an address's location, and the length of the prefix that has this location
    /// throughout.
    pub(super) fn find(&self, address: IpAddr) -> (u32, u8) {
        match address {
            IpAddr::V4(ip) => self.v4.find(u32::from(ip)),
            IpAddr::V6(ip) => match self.v6.find(key_v6(ip)) {
                (UNKNOWN, gap) => (built_in_v6(ip), gap.max(GRAIN_V6)),
                found => found,
            },
        }
    }

    /// The location with that number.
    pub(super) fn location(&self, number: u32) -> Option<&Location> {
        self.places.get(number as usize)?.as_ref()
    }

    /// All locations by number.
    pub(super) fn locations(&self) -> &[Option<Location>] {
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

/// A location without a country, in the maps by country.
const NO_COUNTRY: u32 = 1;

/// The country of a location as one number: 0 for no location, [`NO_COUNTRY`], or the letters.
fn country_value(place: Option<&Location>) -> u32 {
    place.map_or(0, |p| {
        u32::from(u16::from_be_bytes(p.country)).max(NO_COUNTRY)
    })
}

/// The first 64 bits.
pub(super) fn key_v6(address: Ipv6Addr) -> u64 {
    (u128::from(address) >> 64) as u64
}
