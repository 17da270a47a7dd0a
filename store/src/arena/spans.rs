//! The spans of one class: runs of pages that are divided into slots of one length.
//!
//! Knows numbers of pages, spans and slots only.

use super::classes::{SLOTS_MAX, Shape};

/// No tag: nobody said where the content of the slot can be moved.
pub(super) const UNTAGGED: u32 = u32::MAX;
/// Partly filled spans that one search for the emptiest one looks at.
const LOOKED_AT_MAX: usize = 64;

#[derive(Debug)]
struct Span {
    page: usize,
    used: [u64; SLOTS_MAX / 64],
    used_slots: u16,
    /// Its place in `open`, or [`CLOSED`].
    open_at: u32,
    /// Tags by slot.
    tags: Box<[u32]>,
}

/// Not among the spans that have a slot to give.
const CLOSED: u32 = u32::MAX;

/// The spans of one class.
#[derive(Debug)]
pub(super) struct Spans {
    shape: Shape,
    spans: Vec<Option<Span>>,
    unused: Vec<u32>,
    /// Spans with a free slot, except those that are being emptied.
    open: Vec<u32>,
    /// Free slots of open spans.
    free_slots: usize,
    /// Where the next search for the emptiest span begins.
    cursor: usize,
}

impl Spans {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            spans: Vec::new(),
            unused: Vec::new(),
            open: Vec::new(),
            free_slots: 0,
            cursor: 0,
        }
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// Number of spans, with those that are no more.
    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Takes a free slot. Returns where its span begins, and its number.
    pub(super) fn take(&mut self) -> Option<(usize, usize)> {
        let number = *self.open.last()?;
        let slots = self.shape.slots;
        let span = self.spans[number as usize].as_mut()?;
        let slot = span.used.iter().enumerate().find_map(|(word, bits)| {
            let bit = bits.trailing_ones() as usize;
            (bit < 64).then_some(word * 64 + bit)
        })?;
        span.used[slot / 64] |= 1 << (slot % 64);
        span.used_slots += 1;
        self.free_slots -= 1;
        let (page, is_full) = (span.page, usize::from(span.used_slots) == slots);
        if is_full {
            self.close(number);
        }
        Some((page, slot))
    }

    /// Adds a span of free slots that begins at that page. Returns its number.
    pub(super) fn add(&mut self, page: usize) -> u32 {
        let span = Span {
            page,
            used: [0; SLOTS_MAX / 64],
            used_slots: 0,
            open_at: CLOSED,
            tags: vec![UNTAGGED; self.shape.slots].into(),
        };
        let number = match self.unused.pop() {
            Some(number) => {
                self.spans[number as usize] = Some(span);
                number
            }
            None => {
                self.spans.push(Some(span));
                (self.spans.len() - 1) as u32
            }
        };
        self.free_slots += self.shape.slots;
        self.open(number);
        number
    }

    /// The page at which a span begins.
    pub(super) fn page(&self, number: u32) -> usize {
        self.span(number).page
    }

    /// Frees a slot. Returns the first page of its span when that has no used slot any more and has
    /// been removed.
    pub(super) fn free(&mut self, number: u32, slot: usize) -> Option<usize> {
        let slots = self.shape.slots;
        let span = self.spans[number as usize]
            .as_mut()
            .expect("a used slot is in a span");
        debug_assert!(
            span.used[slot / 64] & (1 << (slot % 64)) != 0,
            "freed twice"
        );
        span.used[slot / 64] &= !(1 << (slot % 64));
        span.used_slots -= 1;
        span.tags[slot] = UNTAGGED;
        let (was_full, is_empty) = (
            usize::from(span.used_slots) + 1 == slots,
            span.used_slots == 0,
        );
        if span.open_at != CLOSED {
            self.free_slots += 1;
        } else if was_full {
            // A span that is being emptied is not full, so it stays closed.
            self.free_slots += 1;
            self.open(number);
        }
        is_empty.then(|| self.remove(number))
    }

    /// Notes what is in a slot.
    pub(super) fn set_tag(&mut self, number: u32, slot: usize, tag: u32) {
        if let Some(span) = self.spans[number as usize].as_mut() {
            span.tags[slot] = tag;
        }
    }

    /// Closes a span that has few used slots, all tagged, whose content fits into the other open
    /// spans. Returns the tags.
    pub(super) fn drain(&mut self) -> Option<Vec<u32>> {
        let count = self.open.len().min(LOOKED_AT_MAX);
        let cursor = self.cursor;
        self.cursor = self.cursor.wrapping_add(count);
        let number = (0..count)
            .map(|step| self.open[(cursor + step) % self.open.len()])
            .min_by_key(|number| self.span(*number).used_slots)?;
        let span = self.span(number);
        let used = usize::from(span.used_slots);
        // Of a span that is more than three quarters full, moving costs more than it brings.
        let elsewhere = self.free_slots - (self.shape.slots - used);
        if used > elsewhere || used * 4 > self.shape.slots * 3 {
            return None;
        }
        let tags: Vec<u32> = (0..self.shape.slots)
            .filter(|slot| span.used[slot / 64] & (1 << (slot % 64)) != 0)
            .map(|slot| span.tags[slot])
            .collect();
        if tags.contains(&UNTAGGED) {
            return None;
        }
        self.close(number);
        self.free_slots -= self.shape.slots - used;
        Some(tags)
    }

    fn span(&self, number: u32) -> &Span {
        self.spans[number as usize]
            .as_ref()
            .expect("the number of a span")
    }

    fn open(&mut self, number: u32) {
        let at = self.open.len() as u32;
        self.open.push(number);
        if let Some(span) = self.spans[number as usize].as_mut() {
            span.open_at = at;
        }
    }

    fn close(&mut self, number: u32) {
        let Some(span) = self.spans[number as usize].as_mut() else {
            return;
        };
        let at = std::mem::replace(&mut span.open_at, CLOSED) as usize;
        self.open.swap_remove(at);
        if let Some(moved) = self.open.get(at)
            && let Some(span) = self.spans[*moved as usize].as_mut()
        {
            span.open_at = at as u32;
        }
    }

    fn remove(&mut self, number: u32) -> usize {
        if self.span(number).open_at != CLOSED {
            self.close(number);
            self.free_slots -= self.shape.slots;
        }
        let page = self.span(number).page;
        self.spans[number as usize] = None;
        self.unused.push(number);
        page
    }
}
