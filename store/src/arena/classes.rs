//! The lengths of slots, and how many pages hold slots of one length.
//!
//! Up to 4 KiB lengths are 64 bytes apart; above, 32 of them lie between a power of two and the
//! next, so that a slot is at most 3 % longer than what is in it.

/// Bytes of a page.
pub(super) const PAGE_BYTES: usize = 4096;
/// Distance of small lengths.
const SMALL_STEP: usize = 64;
/// Largest small length.
const SMALL_MAX: usize = 4096;
const SMALL_CLASSES: usize = SMALL_MAX / SMALL_STEP;
/// Lengths in one octave above.
const STEPS: usize = 32;
const OCTAVES: usize = 7;
/// Number of classes.
pub(super) const CLASSES: usize = SMALL_CLASSES + OCTAVES * STEPS;
/// Largest length of a slot.
pub(super) const SLOT_BYTES_MAX: usize = SMALL_MAX << OCTAVES;
/// Largest number of slots in a span.
pub(super) const SLOTS_MAX: usize = 256;

/// Least and most pages of a span of several slots.
const SPAN_PAGES_MIN: usize = 4;
const SPAN_PAGES_MAX: usize = 64;

/// One length of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) slot_bytes: usize,
    /// Pages of a span.
    pub(super) pages: usize,
    /// Slots of a span.
    pub(super) slots: usize,
}

/// The class of the shortest slots that hold `length` bytes; `None` if there is none.
pub(super) fn class_of(length: usize) -> Option<usize> {
    if length <= SMALL_MAX {
        return Some(length.div_ceil(SMALL_STEP).max(1) - 1);
    }
    if length > SLOT_BYTES_MAX {
        return None;
    }
    let octave = (length - 1).ilog2() as usize - SMALL_MAX.ilog2() as usize;
    let base = SMALL_MAX << octave;
    let step = base / STEPS;
    Some(SMALL_CLASSES + octave * STEPS + (length - base).div_ceil(step) - 1)
}

fn slot_bytes(class: usize) -> usize {
    match class.checked_sub(SMALL_CLASSES) {
        None => (class + 1) * SMALL_STEP,
        Some(above) => {
            let base = SMALL_MAX << (above / STEPS);
            base + (above % STEPS + 1) * (base / STEPS)
        }
    }
}

/// The shape of a class: the fewest pages of which at most a 64th stays unused, or the best number.
pub(super) fn shape(class: usize) -> Shape {
    let slot_bytes = slot_bytes(class);
    let unused = |pages: usize| (pages * PAGE_BYTES) % slot_bytes;
    let fewest = if slot_bytes <= SMALL_MAX {
        SPAN_PAGES_MIN
    } else {
        slot_bytes.div_ceil(PAGE_BYTES)
    };
    let most = SPAN_PAGES_MAX
        .min(slot_bytes * SLOTS_MAX / PAGE_BYTES)
        .max(fewest);
    let pages = (fewest..=most)
        .find(|pages| unused(*pages) * 64 <= pages * PAGE_BYTES)
        .or_else(|| (fewest..=most).min_by_key(|pages| unused(*pages) * 4096 / pages))
        .unwrap_or(fewest);
    Shape {
        slot_bytes,
        pages,
        slots: pages * PAGE_BYTES / slot_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measures::SLICE_BYTES;

    #[test]
    fn a_length_gets_the_shortest_slot_that_holds_it() {
        for length in (0..=SLOT_BYTES_MAX).step_by(7).chain([SLICE_BYTES]) {
            let class = class_of(length).expect("not too long");
            let bytes = slot_bytes(class);
            assert!(bytes >= length, "{length} in {bytes}");
            assert!(
                class == 0 || slot_bytes(class - 1) < length || length == 0,
                "{length} in {bytes}"
            );
            let waste = bytes - length;
            assert!(
                class == 0 || waste < 64 || waste * 32 <= length + 32,
                "{length} in {bytes}"
            );
        }
        assert_eq!(class_of(SLOT_BYTES_MAX + 1), None);
    }

    #[test]
    fn spans_are_short_and_full() {
        for class in 0..CLASSES {
            let shape = shape(class);
            assert!((1..=SLOTS_MAX).contains(&shape.slots), "{shape:?}");
            let unused = shape.pages * PAGE_BYTES - shape.slots * shape.slot_bytes;
            assert!(unused * 30 <= shape.pages * PAGE_BYTES, "{shape:?}");
            assert!(shape.pages <= SPAN_PAGES_MAX.max(shape.slot_bytes / PAGE_BYTES));
        }
        let whole = shape(class_of(SLICE_BYTES).expect("not too long"));
        assert_eq!((whole.slots, whole.pages), (1, SLICE_BYTES / PAGE_BYTES));
    }
}
