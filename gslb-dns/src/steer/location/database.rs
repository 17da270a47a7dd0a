//! Compiles a MaxMind-format database into an [`Atlas`].

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use maxminddb::{LookupResult, Reader, WithinOptions};
use nearcast_fleet::failure::{Failure, FailureKind};

use super::built_in::{built_in_v4, demo_v4, fixed_places};
use super::metadata::with_full_metadata;
use super::record::Record;
use super::{Atlas, Location, MAPPED_BITS, UNKNOWN, key_v6};
use crate::steer::ranges::Builder;

/// Larger databases are refused.
const DATABASE_BYTES_MAX: u64 = 2 << 30;
/// Most networks, with or without data, for each node of a database's search tree; a sound one has
/// hardly more than one.
const NETWORKS_A_NODE_MAX: u64 = 3;

impl Atlas {
    /// Compiles the database at `path`, which is read whole.
    ///
    /// # Errors
    /// `NoInput` when it cannot be read, `BadData` when it is not a database with countries or
    /// positions.
    pub(in crate::steer) fn load(path: &Path) -> Result<Self, Failure> {
        Self::compile(&Self::read(path)?).map_err(|reason| bad(path, reason))
    }

    fn read(path: &Path) -> Result<Vec<u8>, Failure> {
        let unreadable = |e: std::io::Error| {
            let hint =
                "put the file there, let this user read it, or take geo_db out of [steering]";
            Failure::new(
                FailureKind::NoInput,
                format!(
                    "cannot read the geo database {}: {e} ({hint})",
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

    /// Checks whether the file at `path` is a database. Its locations are not read, which would
    /// take a while.
    ///
    /// # Errors
    /// As [`Atlas::load`].
    pub(in crate::steer) fn probe(path: &Path) -> Result<(), Failure> {
        open(&Self::read(path)?, |_| ()).map_err(|reason| bad(path, reason))
    }

    /// Compiles the bytes of a database.
    ///
    /// The search tree must be sound, otherwise no record can be trusted. A malformed record is
    /// skipped: its networks have the location of the built-in table, and it is counted in
    /// [`Atlas::rejected_records`].
    pub(super) fn compile(bytes: &[u8]) -> Result<Self, String> {
        open(bytes, Self::compile_read)?
    }

    fn compile_read(reader: &Reader<&[u8]>) -> Result<Self, String> {
        let of_all_v4 = record_of_all_v4(reader)?;
        let mut options = WithinOptions::default().include_networks_without_data();
        if of_all_v4.is_some() {
            options = options.include_aliased_networks();
        }
        let mut compiler = Compiler::new();
        if let Some(found) = of_all_v4 {
            compiler.add_all_v4(&found);
        }

        // A tree has one leaf more than nodes. In a damaged file whose branches join again there
        // may be more leaves than could ever be read.
        let leaves_max = NETWORKS_A_NODE_MAX * u64::from(reader.metadata().node_count);
        for (leaves, found) in (0..).zip(reader.networks(options).map_err(|e| e.to_string())?) {
            let found = found.map_err(|e| e.to_string())?;
            if leaves > leaves_max {
                return Err(
                    "its search tree is no tree: it has more networks than places for them".into(),
                );
            }
            compiler.add(&found)?;
        }

        compiler.finish(description(reader))
    }
}

/// The record of all IPv4 addresses, if there is one. They are below ::/96; when one record covers
/// all of that, the reader would mistake every other network with that record for an alias of the
/// IPv4 addresses.
fn record_of_all_v4<'r>(
    reader: &'r Reader<&[u8]>,
) -> Result<Option<LookupResult<'r, &'r [u8]>>, String> {
    if reader.metadata().ip_version != 6 {
        return Ok(None);
    }
    let found = reader
        .lookup(Ipv4Addr::UNSPECIFIED.into())
        .map_err(|e| e.to_string())?;
    let covers_all = found.network().is_ok_and(|network| network.is_ipv6());
    Ok(covers_all.then_some(found))
}

/// The database's description of itself, with its date.
fn description(reader: &Reader<&[u8]>) -> String {
    let metadata = reader.metadata();
    let name = metadata
        .description
        .get("en")
        .or_else(|| metadata.description.values().next())
        .filter(|name| !name.is_empty());
    let name = name.map_or(metadata.database_type.as_str(), String::as_str);
    format!("{name}, built {}", date(metadata.build_epoch))
}

/// Collects the networks of a database.
struct Compiler {
    places: Vec<Option<Location>>,
    records: RecordCache,
    v4: Builder<u32>,
    v4_mapped: Builder<u32>,
    v6: Builder<u64>,
    /// Networks with a location.
    located: u64,
}

impl Compiler {
    fn new() -> Self {
        Self {
            places: fixed_places(),
            records: RecordCache::default(),
            v4: Builder::new(),
            v4_mapped: Builder::new(),
            v6: Builder::new(),
            located: 0,
        }
    }

    /// The number of a network's location; `None` when it is unknown.
    fn number<S: AsRef<[u8]>>(&mut self, found: &LookupResult<'_, S>) -> Option<u32> {
        let number = self.records.location_number(found, &mut self.places);
        self.located += u64::from(number != UNKNOWN);
        (number != UNKNOWN).then_some(number)
    }

    fn add_all_v4<S: AsRef<[u8]>>(&mut self, found: &LookupResult<'_, S>) {
        if let Some(number) = self.number(found) {
            self.v4.push(0, u32::MAX, number);
        }
    }

    fn add<S: AsRef<[u8]>>(&mut self, found: &LookupResult<'_, S>) -> Result<(), String> {
        let Some(number) = self.number(found) else {
            return Ok(());
        };
        let network = found.network().map_err(|e| e.to_string())?;
        let prefix = u32::from(network.prefix());
        let last_v4 = |first: u32, prefix: u32| first | u32::MAX.checked_shr(prefix).unwrap_or(0);
        match network.ip() {
            IpAddr::V4(ip) => self.v4.push(ip.into(), last_v4(ip.into(), prefix), number),
            IpAddr::V6(ip) => {
                let mapped = prefix.checked_sub(u32::from(MAPPED_BITS));
                if let (Some(ip), Some(prefix)) = (ip.to_ipv4_mapped(), mapped) {
                    let last = last_v4(ip.into(), prefix);
                    self.v4_mapped.push(ip.into(), last, number);
                }
                // Below a /64 the first record with a location counts for the whole /64.
                let first = key_v6(ip);
                let last = first | u64::MAX.checked_shr(prefix).unwrap_or(0);
                self.v6.push(first, last, number);
            }
        }
        Ok(())
    }

    fn finish(self, description: String) -> Result<Atlas, String> {
        let rejected_records = self.records.malformed;
        if self.located == 0 {
            let rejected = match rejected_records {
                0 => String::new(),
                count => format!(" ({count} of its records cannot be read)"),
            };
            return Err(format!(
                "none of its networks has a location or a country{rejected}"
            ));
        }
        let database = self.v4.finish().over(&self.v4_mapped.finish());
        let v4 = demo_v4().over(&database.over(&built_in_v4()));
        Ok(Atlas {
            rejected_records,
            ..Atlas::new(self.places, v4, self.v6.finish(), description)
        })
    }
}

fn bad(path: &Path, reason: String) -> Failure {
    let hint = "a MaxMind-format database with countries or positions is needed, such as DB-IP City Lite or GeoLite2 City";
    Failure::new(
        FailureKind::BadData,
        format!(
            "the geo database {} cannot be used: {reason} ({hint})",
            path.display()
        ),
    )
}

/// The date of a time in UTC, as `2026-11-24`.
fn date(unix_seconds: u64) -> String {
    let seconds = i64::try_from(unix_seconds).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX);
    time.strftime("%Y-%m-%d").to_string()
}

/// Opens a database for `read`, even if its metadata lack members that only describe it.
fn open<T>(bytes: &[u8], read: impl FnOnce(&Reader<&[u8]>) -> T) -> Result<T, String> {
    match Reader::from_source(bytes).map_err(|e| e.to_string()) {
        Ok(reader) => Ok(read(&reader)),
        Err(reason) => {
            let completed = with_full_metadata(bytes).ok_or_else(|| reason.clone())?;
            let reader = Reader::from_source(completed.as_slice()).map_err(|_| reason)?;
            Ok(read(&reader))
        }
    }
}

/// The locations of the records read so far.
#[derive(Default)]
struct RecordCache {
    by_offset: HashMap<usize, u32>,
    by_place: HashMap<([u8; 2], u32, u32), u32>,
    /// Records that are malformed, wholly or in part.
    malformed: u64,
}

impl RecordCache {
    /// The number of the location of a network's record. Each record is read once, however many
    /// networks have it.
    fn location_number<S: AsRef<[u8]>>(
        &mut self,
        found: &LookupResult<'_, S>,
        places: &mut Vec<Option<Location>>,
    ) -> u32 {
        let Some(offset) = found.offset() else {
            return UNKNOWN;
        };
        if let Some(number) = self.by_offset.get(&offset) {
            return *number;
        }
        // A malformed record does not affect the others.
        let record = found
            .decode::<Record>()
            .ok()
            .flatten()
            .unwrap_or_else(Record::unreadable);
        self.malformed += u64::from(record.is_malformed);
        let number = record.location_number(places, &mut self.by_place);
        self.by_offset.insert(offset, number);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(date(seconds), expected);
        }
        assert!(!date(u64::MAX).is_empty());
    }
}
