//! The locations that need no database: the countries of the registries' allocations and the
//! demonstration's prefixes.

use std::net::Ipv6Addr;
use std::sync::{Arc, OnceLock};

use super::{Atlas, Location, LocationSource, UNKNOWN};
use crate::places::DEMO_PLACES;
use crate::steer::countries::{self, COUNTRIES};
use crate::steer::ranges::{Builder, Ranges};

/// Numbers of the countries' locations: from 1; the demonstration's follow them.
const FIRST_COUNTRY: u32 = 1;
const FIRST_DEMO: u32 = FIRST_COUNTRY + COUNTRIES.len() as u32;

fn country_number(code: &str) -> u32 {
    <[u8; 2]>::try_from(code.as_bytes())
        .ok()
        .and_then(countries::index)
        .map_or(UNKNOWN, |i| FIRST_COUNTRY + i as u32)
}

pub(super) fn built_in_v6(address: Ipv6Addr) -> u32 {
    let grain = u128::from(address) >> 80 << 80;
    iptocc::country_code(Ipv6Addr::from(grain)).map_or(UNKNOWN, country_number)
}

/// The registries' countries by /24, as the build script compiled them.
pub(super) fn built_in_v4() -> Ranges<u32> {
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

pub(super) fn demo_v4() -> Ranges<u32> {
    let mut builder = Builder::new();
    for (i, place) in DEMO_PLACES.iter().enumerate() {
        let first = u32::from(place.network);
        builder.push(first, first | 0xff, FIRST_DEMO + i as u32);
    }
    builder.finish()
}

pub(super) fn fixed_places() -> Vec<Option<Location>> {
    let countries = COUNTRIES.iter().map(|(country, latitude, longitude)| {
        (*country, *latitude, *longitude, LocationSource::Country)
    });
    let demo =
        (DEMO_PLACES.iter()).map(|p| (p.country, p.latitude, p.longitude, LocationSource::Demo));
    std::iter::once(None)
        .chain(
            countries
                .chain(demo)
                .map(|(country, latitude, longitude, source)| {
                    Some(Location {
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
    /// The atlas without a database. Compiled once in a process; later calls give the same value.
    pub(in crate::steer) fn built_in() -> Arc<Self> {
        static ATLAS: OnceLock<Arc<Atlas>> = OnceLock::new();
        ATLAS
            .get_or_init(|| {
                Arc::new(Self::new(
                    fixed_places(),
                    demo_v4().over(&built_in_v4()),
                    Builder::new().finish(),
                    "built-in".into(),
                ))
            })
            .clone()
    }
}
