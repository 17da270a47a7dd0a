//! Completes the metadata of databases that lack members which only describe them.

use std::net::Ipv4Addr;

use maxminddb::Reader;
use serde::Deserialize;
use serde::de::Deserializer;

use super::record::{OfAnyKind, ReadKind};

/// Marks the beginning of the metadata (MaxMind DB format 2.0).
pub(super) const METADATA_MARKER: &[u8] = b"\xab\xcd\xefMaxMind.com";
/// Longest text kept of incomplete metadata; each char has up to four bytes.
const METADATA_CHARS_MAX: usize = 50;

/// Metadata as some writers leave it: only the members that the search tree needs are required.
#[derive(Deserialize)]
pub(super) struct LooseMetadata {
    pub(super) node_count: u32,
    pub(super) record_size: u16,
    pub(super) ip_version: u16,
    #[serde(default)]
    pub(super) database_type: Option<Loose>,
    #[serde(default)]
    pub(super) build_epoch: Option<Loose>,
}

/// A text, a number, or neither.
#[derive(Default)]
pub(super) struct Loose {
    pub(super) text: Option<String>,
    pub(super) number: Option<f64>,
}

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LooseReader;
        impl ReadKind<'_> for LooseReader {
            type Value = Loose;
            fn unusable(self) -> Loose {
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

/// The database with complete metadata: its reader rejects metadata that lack members which only
/// describe the database.
pub(super) fn with_full_metadata(bytes: &[u8]) -> Option<Vec<u8>> {
    let at = bytes
        .windows(METADATA_MARKER.len())
        .rposition(|w| w == METADATA_MARKER)?;
    // Metadata are encoded like a record, so they are read as the record of a database of one node.
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

/// The marker and the metadata, encoded: a map with every member that the format requires.
pub(super) fn metadata(loose: &LooseMetadata) -> Vec<u8> {
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
