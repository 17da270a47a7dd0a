//! Capacity of a share of a node's disk: the measures of the edge's store, with which control
//! plans.
//!
//! A share is divided into regions, files of equal size that are written from front to back and
//! reclaimed whole. A body is a sequence of slices, each a record with a header; a further record
//! describes the body. Owns these measures and the sums that follow from them; knows nothing of
//! files.

/// Length of a slice; a body's last one may be shorter.
pub const SLICE_BYTES: usize = 256 * 1024;
/// Length of a record's header.
pub const RECORD_HEADER_BYTES: usize = 64;
/// Records start at multiples of this many bytes.
pub const RECORD_ALIGNMENT: usize = 8;

const REGION_BYTES_MIN: u64 = 1 << 20;
const REGION_BYTES_MAX: u64 = 64 << 20;
/// Approximate number of regions of a share, so that reclaiming one frees a small part of it.
const REGIONS_WANTED: u64 = 16;

/// Planned length of a body's description: its URL and the origin's fields take one to two
/// kilobytes.
const HEAD_BYTES_PLANNED: usize = 4096;

/// Length of the regions of a share.
pub fn region_bytes(share: u64) -> u64 {
    (share / REGIONS_WANTED)
        .clamp(REGION_BYTES_MIN, REGION_BYTES_MAX)
        .min(share / 2)
}

/// Bytes of a record with a payload of this length.
pub fn record_span(payload: usize) -> u64 {
    (RECORD_HEADER_BYTES + payload).next_multiple_of(RECORD_ALIGNMENT) as u64
}

/// Bytes of a stored body of this length: its slices and its description, each with a record
/// header.
pub fn stored_bytes(length: u64) -> u64 {
    let slice = SLICE_BYTES as u64;
    let whole = (length / slice).saturating_mul(record_span(SLICE_BYTES));
    let rest = length % slice;
    let rest = if rest == 0 {
        0
    } else {
        record_span(rest as usize)
    };
    whole
        .saturating_add(rest)
        .saturating_add(record_span(HEAD_BYTES_PLANNED))
}

/// The sum of [`stored_bytes`] that certainly fits a share, however the records fall. Each region
/// may end with a gap that was too small for a slice, and one region is free for the next writes:
/// about 70 % of 16 MiB, 82 % of 32 MiB, 93 % of a gigabyte, 99 % of a hundred.
pub fn usable_bytes(share: u64) -> u64 {
    let region = region_bytes(share);
    let gap = record_span(SLICE_BYTES + HEAD_BYTES_PLANNED) - RECORD_ALIGNMENT as u64;
    let regions = share.checked_div(region).unwrap_or(0);
    regions.saturating_sub(1) * region.saturating_sub(gap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_on_sizes_has_these_figures() {
        let page = include_str!("../../docs/storage.md");
        for (term, figure) in [
            ("record", RECORD_HEADER_BYTES as u64),
            ("regions", REGIONS_WANTED),
        ] {
            let row = format!("| `{term}` | {figure} | ");
            assert!(page.contains(&row), "{row}");
        }
        // What the page's factor promises for bodies of one slice, head included.
        for (share, head, body) in [(1u64 << 30, 600u64, 1024u64), (8 << 30, 800, 100_000)] {
            let region = region_bytes(share);
            let span = record_span((head + body) as usize);
            let held = (share / region - 2) * (region / span);
            assert!(
                held * (64 + head + body) * 8 / 7 >= share * 99 / 100,
                "{share}"
            );
        }
    }

    #[test]
    fn a_body_takes_its_slices_with_their_headers_and_its_description() {
        let (slice, head) = (SLICE_BYTES as u64, 4096 + 64);
        for (length, expected) in [
            (1, 72 + head),
            (8, 72 + head),
            (slice, slice + 64 + head),
            (slice + 1, slice + 64 + 72 + head),
        ] {
            assert_eq!(stored_bytes(length), expected, "{length}");
        }
        assert_eq!(stored_bytes(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_share_holds_less_than_its_bytes_and_a_small_one_nothing() {
        for (share, least, most) in [
            (0, 0, 0),
            (1, 0, 0),
            (256 << 10, 0, 0),
            (8 << 20, 5 << 20, 6 << 20),
            (16 << 20, 11 << 20, 12 << 20),
            (32 << 20, 26 << 20, 27 << 20),
            (1 << 30, 950 << 20, 960 << 20),
            (100 << 30, 99 << 30, 100 << 30),
            (u64::MAX, u64::MAX / 100 * 99, u64::MAX),
        ] {
            let usable = usable_bytes(share);
            assert!((least..=most).contains(&usable), "{usable} of {share}");
        }
    }
}
