//! A file of framed records: an identity, then records with their length and checksums.
//!
//! Owns the bytes on disk and their recovery after a crash; knows nothing of the content of
//! records. Layout, little endian:
//!
//! ```text
//! header:  magic (8)  id (16)  CRC-32 of both (4)
//! record:  length (4)  CRC-32 of the length (4)  CRC-32 of the payload (4)  payload
//! ```
//!
//! The length has a checksum of its own, so that a damaged length differs from a record whose end
//! was never written: only the latter may be cut off.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::random;

const HEADER_BYTES: usize = 28;
const FRAME_BYTES: usize = 12;
/// Extension of a file that is being written to replace another.
const FRESH: &str = "new";

/// Position of a record in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordPosition {
    /// Offset of the record's frame.
    pub offset: u64,
    /// Length of the payload.
    pub bytes: usize,
}

/// Why a file of records cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FramedError {
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A record that others follow is damaged.
    #[error("{} is damaged at byte {offset}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Offset of the damage.
        offset: u64,
        /// Description of the damage.
        reason: String,
    },
    /// The record is larger than the file's records may be.
    #[error("a record of {bytes} bytes is too large (limit {limit})")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

/// An open file of records.
#[derive(Debug)]
pub struct FramedLog {
    file: File,
    path: PathBuf,
    magic: [u8; 8],
    id: [u8; 16],
    /// Length of the file up to the end of its last whole record.
    end: u64,
    payload_bytes_max: usize,
    /// A failed append could not be removed yet: the file may have bytes beyond `end`.
    has_failed_append: bool,
    /// The file has replaced another, and its directory is not synced yet.
    directory_unsynced: bool,
    #[cfg(test)]
    fail_after: Option<usize>,
}

impl FramedLog {
    /// Opens or creates the file and calls `each` with every record in order. An unfinished last
    /// record is cut off.
    ///
    /// # Errors
    /// [`FramedError::Damaged`], [`FramedError::Io`].
    pub fn open(
        path: &Path,
        magic: &[u8; 8],
        payload_bytes_max: usize,
        each: impl FnMut(RecordPosition, &[u8]),
    ) -> Result<Self, FramedError> {
        let io = |source| FramedError::Io {
            path: path.to_owned(),
            source,
        };
        if !path.exists() {
            create(path, magic).map_err(io)?;
        }
        // A crash may have left a replacement that was not finished.
        match std::fs::remove_file(path.with_extension(FRESH)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        Self::open_as(path, magic, payload_bytes_max, each)
    }

    /// [`FramedLog::open`] for state without which a node must still start: a damaged file is
    /// renamed with the suffix `.damaged`, in place of an earlier one, and a new file is begun.
    /// `each` gets every whole record, also those after the damage; the new file has none of them.
    /// Returns a description of the damage, if there was any.
    ///
    /// # Errors
    /// [`FramedError::Io`].
    pub fn open_or_set_aside(
        path: &Path,
        magic: &[u8; 8],
        payload_bytes_max: usize,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(Self, Option<String>), FramedError> {
        let io = |source| FramedError::Io {
            path: path.to_owned(),
            source,
        };
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some(read.map_err(io)?),
        };
        let damage = bytes
            .as_ref()
            .and_then(|bytes| Self::scan(bytes, path, magic, payload_bytes_max, |_, _| ()).err());
        let (Some(bytes), Some(damage)) = (bytes, damage) else {
            return Self::open(path, magic, payload_bytes_max, |_, payload| each(payload))
                .map(|log| (log, None));
        };
        let mut offset = if bytes.starts_with(magic) {
            HEADER_BYTES
        } else {
            bytes.len()
        };

        while offset < bytes.len() {
            match record_at(&bytes, offset, payload_bytes_max) {
                RecordScan::Whole(payload) => {
                    each(payload);
                    offset += FRAME_BYTES + payload.len();
                }
                _ => offset += 1,
            }
        }

        let mut aside = path.as_os_str().to_owned();
        aside.push(".damaged");
        std::fs::rename(path, &aside).map_err(io)?;
        let log = Self::open(path, magic, payload_bytes_max, |_, _| ())?;
        Ok((
            log,
            Some(format!(
                "{damage}; it is set aside as {}",
                Path::new(&aside).display()
            )),
        ))
    }

    /// Calls `each` with every record of a file without changing it, also when another process has
    /// it open.
    pub(crate) fn peek(
        path: &Path,
        magic: &[u8; 8],
        payload_bytes_max: usize,
        each: impl FnMut(RecordPosition, &[u8]),
    ) -> Result<(), FramedError> {
        let bytes = std::fs::read(path).map_err(|source| FramedError::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::scan(&bytes, path, magic, payload_bytes_max, each).map(drop)
    }

    /// Identity of a file, and the end of its last whole record.
    fn scan(
        bytes: &[u8],
        path: &Path,
        magic: &[u8; 8],
        payload_bytes_max: usize,
        mut each: impl FnMut(RecordPosition, &[u8]),
    ) -> Result<([u8; 16], u64), FramedError> {
        let damaged = |offset: usize, reason: &str| FramedError::Damaged {
            path: path.to_owned(),
            offset: offset as u64,
            reason: reason.into(),
        };

        let id = read_header(bytes, magic).map_err(|reason| damaged(0, reason))?;
        let mut offset = HEADER_BYTES;
        while offset < bytes.len() {
            match record_at(bytes, offset, payload_bytes_max) {
                RecordScan::Whole(payload) => {
                    each(
                        RecordPosition {
                            offset: offset as u64,
                            bytes: payload.len(),
                        },
                        payload,
                    );
                    offset += FRAME_BYTES + payload.len();
                }
                RecordScan::Unfinished => break,
                RecordScan::Bad(reason) => {
                    // A write that a crash cut short looks damaged as well, but no whole record
                    // follows it.
                    let followed = (offset + 1..bytes.len()).any(|at| {
                        matches!(
                            record_at(bytes, at, payload_bytes_max),
                            RecordScan::Whole(_)
                        )
                    });
                    if followed {
                        return Err(damaged(offset, reason));
                    }
                    break;
                }
            }
        }
        Ok((id, offset.min(bytes.len()) as u64))
    }

    fn open_as(
        path: &Path,
        magic: &[u8; 8],
        payload_bytes_max: usize,
        each: impl FnMut(RecordPosition, &[u8]),
    ) -> Result<Self, FramedError> {
        let io = |source| FramedError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(io)?;

        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let (id, end) = Self::scan(&bytes, path, magic, payload_bytes_max, each)?;
        if end < bytes.len() as u64 {
            tracing::warn!(path = %path.display(), offset = end, bytes = bytes.len() as u64 - end, "cutting off a record that was never finished");
            file.set_len(end)
                .and_then(|()| file.sync_data())
                .map_err(io)?;
        }

        Ok(Self {
            file,
            path: path.to_owned(),
            magic: *magic,
            id,
            end,
            payload_bytes_max,
            has_failed_append: false,
            directory_unsynced: false,
            #[cfg(test)]
            fail_after: None,
        })
    }

    /// Identity of the file in hexadecimal digits.
    pub(crate) fn id(&self) -> String {
        self.id.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Length of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Replaces the file with one of these records and the same identity, and calls `each` with
    /// every record of it. A crash leaves the old file or the new one, whole; after an error the
    /// old one stays in use. Blocking.
    ///
    /// # Errors
    /// [`FramedError::Io`].
    pub fn rewrite(
        &mut self,
        payloads: impl Iterator<Item = Vec<u8>>,
        each: impl FnMut(RecordPosition, &[u8]),
    ) -> Result<(), FramedError> {
        let io = |source| FramedError::Io {
            path: self.path.clone(),
            source,
        };
        let fresh = self.path.with_extension(FRESH);
        let outcome = write_fresh(&fresh, &self.magic, self.id, payloads)
            .map_err(io)
            // Opened before the rename, so that nothing can fail between rename and use.
            .and_then(|()| Self::open_as(&fresh, &self.magic, self.payload_bytes_max, each))
            .and_then(|log| {
                std::fs::rename(&fresh, &self.path)
                    .map_err(io)
                    .map(|()| log)
            });

        match outcome {
            Ok(log) => {
                *self = Self {
                    path: std::mem::take(&mut self.path),
                    directory_unsynced: true,
                    ..log
                };
                if let Err(error) = self.sync_directory() {
                    tracing::error!(path = %self.path.display(), %error, "the directory of a new file cannot be synced yet; nothing is appended before it is");
                }
                Ok(())
            }
            Err(error) => {
                // It may occupy the space that the old file needs.
                let _ = std::fs::remove_file(&fresh);
                Err(error)
            }
        }
    }

    /// Appends a record; it is on disk when this returns, and not in the file after an error.
    /// Blocking.
    ///
    /// # Errors
    /// [`FramedError::TooLarge`]; [`FramedError::Io`], for example a full disk.
    pub fn append(&mut self, payload: &[u8]) -> Result<RecordPosition, FramedError> {
        if payload.len() > self.payload_bytes_max {
            return Err(FramedError::TooLarge {
                bytes: payload.len(),
                limit: self.payload_bytes_max,
            });
        }

        let outcome = self
            .sync_directory()
            .and_then(|()| self.truncate_failed_append())
            .and_then(|()| {
                self.has_failed_append = true;
                self.write(&frame(payload))?;
                self.file.sync_data()
            });

        match outcome {
            Ok(()) => {
                self.has_failed_append = false;
                let place = RecordPosition {
                    offset: self.end,
                    bytes: payload.len(),
                };
                self.end += (FRAME_BYTES + payload.len()) as u64;
                Ok(place)
            }
            Err(source) => {
                if let Err(error) = self.truncate_failed_append() {
                    tracing::error!(path = %self.path.display(), %error, "a failed append cannot be taken back yet; trying again at the next one");
                }
                Err(FramedError::Io {
                    path: self.path.clone(),
                    source,
                })
            }
        }
    }

    /// Reads a payload. Damage since the record was written or last read is an error, so that a
    /// damaged payload never gets a new, valid checksum.
    pub(crate) fn read(&self, place: RecordPosition) -> io::Result<Vec<u8>> {
        let mut record = vec![0; FRAME_BYTES + place.bytes];
        self.file.read_exact_at(&mut record, place.offset)?;
        match record_at(&record, 0, self.payload_bytes_max) {
            RecordScan::Whole(payload) if payload.len() == place.bytes => {
                Ok(record.split_off(FRAME_BYTES))
            }
            RecordScan::Bad(reason) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("damaged at byte {}: {reason}", place.offset),
            )),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("damaged at byte {}: the length is another", place.offset),
            )),
        }
    }

    /// Syncs the directory after a replacement, so that a crash finds this file under its name.
    fn sync_directory(&mut self) -> io::Result<()> {
        if self.directory_unsynced {
            sync_directory_of(&self.path)?;
            self.directory_unsynced = false;
        }
        Ok(())
    }

    /// Removes the bytes of a failed append.
    fn truncate_failed_append(&mut self) -> io::Result<()> {
        if self.has_failed_append {
            self.file.set_len(self.end)?;
            self.file.sync_data()?;
            self.has_failed_append = false;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        if let Some(kept) = self.fail_after.take() {
            self.file
                .write_all_at(&bytes[..kept.min(bytes.len())], self.end)?;
            return Err(io::Error::from_raw_os_error(28));
        }
        self.file.write_all_at(bytes, self.end)
    }

    /// Makes the next append write this many bytes and then find the disk full.
    #[cfg(test)]
    pub(crate) fn fail_next_write_after(&mut self, bytes: usize) {
        self.fail_after = Some(bytes);
    }
}

/// Writes the file under another name first: a crash leaves no half header.
fn create(path: &Path, magic: &[u8; 8]) -> io::Result<()> {
    let id = random::entropy()?;
    let fresh = path.with_extension(FRESH);
    let outcome = write_fresh(&fresh, magic, id, std::iter::empty())
        .and_then(|()| std::fs::rename(&fresh, path));
    if outcome.is_err() {
        let _ = std::fs::remove_file(&fresh);
        return outcome;
    }
    sync_directory_of(path)
}

fn write_fresh(
    fresh: &Path,
    magic: &[u8; 8],
    id: [u8; 16],
    payloads: impl Iterator<Item = Vec<u8>>,
) -> io::Result<()> {
    // Private: the file may contain the fleet file, and with it the node key.
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(fresh)?;
    let mut file = io::BufWriter::new(file);
    file.write_all(&header(magic, id))?;
    for payload in payloads {
        file.write_all(&frame(&payload))?;
    }
    file.into_inner()?.sync_all()
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(
        path.parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new(".")),
    )?
    .sync_all()
}

fn header(magic: &[u8; 8], id: [u8; 16]) -> Vec<u8> {
    let mut header = magic.to_vec();
    header.extend(id);
    header.extend(crc32fast::hash(&header).to_le_bytes());
    header
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_le_bytes();
    let mut record = Vec::with_capacity(FRAME_BYTES + payload.len());
    record.extend(length);
    record.extend(crc32fast::hash(&length).to_le_bytes());
    record.extend(crc32fast::hash(payload).to_le_bytes());
    record.extend(payload);
    record
}

fn read_header(bytes: &[u8], magic: &[u8; 8]) -> Result<[u8; 16], &'static str> {
    let header = bytes
        .get(..HEADER_BYTES)
        .ok_or("the file is shorter than its header")?;
    if !header.starts_with(magic) {
        return Err("the file does not start as one of ours");
    }
    if word(header, 24) != crc32fast::hash(&header[..24]) {
        return Err("the header's checksum is wrong");
    }
    Ok(header[8..24].try_into().expect("16 bytes"))
}

/// The record at an offset.
enum RecordScan<'a> {
    Whole(&'a [u8]),
    /// The file ends within the record.
    Unfinished,
    Bad(&'static str),
}

fn record_at(bytes: &[u8], offset: usize, payload_bytes_max: usize) -> RecordScan<'_> {
    let rest = &bytes[offset..];
    if rest.len() < FRAME_BYTES {
        return RecordScan::Unfinished;
    }
    if crc32fast::hash(&rest[..4]) != word(rest, 4) {
        return RecordScan::Bad("the checksum of the length is wrong");
    }
    let length = word(rest, 0) as usize;
    if length > payload_bytes_max {
        return RecordScan::Bad("the length is beyond the limit");
    }
    match rest.get(FRAME_BYTES..FRAME_BYTES + length) {
        None => RecordScan::Unfinished,
        Some(payload) if crc32fast::hash(payload) == word(rest, 8) => RecordScan::Whole(payload),
        Some(_) => RecordScan::Bad("the checksum of the payload is wrong"),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: &[u8; 8] = b"NCTEST1\n";

    #[test]
    fn what_is_damaged_is_set_aside_and_the_rest_of_it_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let names = ["one", "two", "three", "four"];
        let mut log = FramedLog::open(&path, MAGIC, 99, |_, _| ()).expect("opens");
        let ends: Vec<u64> = names
            .iter()
            .map(|name| {
                log.append(name.as_bytes())
                    .map(|_| log.bytes())
                    .expect("appends")
            })
            .collect();
        drop(log);
        let whole = std::fs::read(&path).expect("read");
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x41;
            std::fs::write(&path, &bytes).expect("write");
            let mut read = Vec::new();
            let (mut log, damage) = FramedLog::open_or_set_aside(&path, MAGIC, 99, |payload| {
                read.push(String::from_utf8_lossy(payload).into_owned())
            })
            .expect("opens");
            let hit = ends
                .iter()
                .position(|end| (at as u64) < *end)
                .expect("one of them");
            let is_header = at < HEADER_BYTES;
            // What is odd in the last record may be the end of a write that was cut short.
            assert_eq!(damage.is_some(), is_header || hit < 3, "byte {at}");
            if at >= 8 {
                let expected: Vec<&str> = (0..4)
                    .filter(|n| is_header || *n != hit)
                    .map(|n| names[n])
                    .collect();
                assert_eq!(read, expected, "byte {at}");
            }
            let aside = dir.path().join("log.damaged");
            assert_eq!(
                std::fs::read(&aside).ok().filter(|_| damage.is_some()),
                damage.map(|_| bytes),
                "byte {at}"
            );
            log.append(b"more").expect("appends");
            let _ = std::fs::remove_file(aside);
        }
    }
}
