//! Raw memory: one range of addresses, and pieces of it that look like byte slices.
//!
//! The only module of the arena with unsafe code. It maps, advises and unmaps; which piece is whose
//! is decided by the parent module.
#![allow(unsafe_code)] // No dependency offers a safe wrapper of these calls.

use std::io;
use std::ptr::NonNull;

use parking_lot::Mutex;

/// Bytes of a huge page, to which the range is aligned.
pub(super) const HUGE_BYTES: usize = 2 << 20;
/// The range is made usable in steps of so many bytes.
const STEP_BYTES: usize = 32 << 20;

/// A range of addresses. Memory is behind those pages that were written.
#[derive(Debug)]
pub(super) struct Area {
    /// Of the whole mapping, which begins before the first huge page in it.
    mapping: NonNull<u8>,
    mapped_bytes: usize,
    /// The first huge page of the mapping.
    base: NonNull<u8>,
    bytes: usize,
    /// Bytes from `base` on that may be read and written.
    usable_bytes: Mutex<usize>,
}

// SAFETY: an area is a range of addresses that belongs to nobody's thread. Its methods only make
// system calls on it; the bytes are reached through pieces, each of which is exclusive.
unsafe impl Send for Area {}
// SAFETY: as above; the one field that changes is behind a mutex.
unsafe impl Sync for Area {}

impl Area {
    /// A range of `bytes`, a multiple of [`HUGE_BYTES`]. It takes no memory yet.
    pub(super) fn reserve(bytes: usize) -> io::Result<Self> {
        debug_assert!(bytes.is_multiple_of(HUGE_BYTES) && bytes > 0);
        let mapped_bytes = bytes + HUGE_BYTES;
        // SAFETY: an anonymous mapping at an address that the kernel chooses replaces nothing.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_bytes,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping = NonNull::new(mapping.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let before = mapping.as_ptr().align_offset(HUGE_BYTES);
        debug_assert!(before < HUGE_BYTES);
        // SAFETY: `before` is less than the huge page by which the mapping is longer than `bytes`.
        let base = unsafe { mapping.add(before) };
        Ok(Self {
            mapping,
            mapped_bytes,
            base,
            bytes,
            usable_bytes: Mutex::new(0),
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where an address lies from the begin of the area, if it lies in it.
    pub(super) fn offset_of(&self, address: *const u8) -> Option<usize> {
        let offset = (address as usize).checked_sub(self.base.as_ptr() as usize)?;
        (offset < self.bytes).then_some(offset)
    }

    /// Makes the first `bytes` usable. `false` when the kernel refuses.
    pub(super) fn make_usable(&self, bytes: usize) -> bool {
        let mut usable = self.usable_bytes.lock();
        if bytes <= *usable {
            return true;
        }
        let wanted = bytes.next_multiple_of(STEP_BYTES).min(self.bytes);
        if bytes > wanted {
            return false;
        }
        // SAFETY: the range from `usable` to `wanted` is within the mapping, as `wanted` is at most
        // `bytes`; making it accessible changes no byte.
        let changed = unsafe {
            libc::mprotect(
                self.base.as_ptr().add(*usable).cast(),
                wanted - *usable,
                libc::PROT_READ | libc::PROT_WRITE,
            )
        };
        if changed != 0 {
            return false;
        }
        // Where the system gives huge pages to all, memory is behind those pages only that were
        // written.
        self.advise_huge(*usable, wanted - *usable, false);
        *usable = wanted;
        true
    }

    /// Asks for huge pages behind a range, or for none.
    pub(super) fn advise_huge(&self, offset: usize, bytes: usize, is_huge: bool) {
        let advice = if is_huge {
            libc::MADV_HUGEPAGE
        } else {
            libc::MADV_NOHUGEPAGE
        };
        self.advise(offset, bytes, advice);
    }

    /// Gives back the memory behind a range that no piece covers. The range stays usable.
    pub(super) fn release(&self, offset: usize, bytes: usize) {
        self.advise(offset, bytes, libc::MADV_DONTNEED);
    }

    /// A kernel without huge pages refuses advice about them, which changes nothing else.
    fn advise(&self, offset: usize, bytes: usize, advice: libc::c_int) {
        assert!(offset + bytes <= self.bytes, "beyond the area");
        // SAFETY: the range is within the mapping. The only advice that changes bytes is
        // MADV_DONTNEED, which `release` gives for ranges without pieces.
        unsafe { libc::madvise(self.base.as_ptr().add(offset).cast(), bytes, advice) };
    }

    /// The piece at an offset.
    ///
    /// # Safety
    ///
    /// The range was made usable, no other piece overlaps it while this one lives, it is not
    /// released meanwhile, and the area outlives the piece.
    pub(super) unsafe fn piece(&self, offset: usize, length: u32) -> Piece {
        assert!(offset + length as usize <= self.bytes, "beyond the area");
        Piece {
            // SAFETY: the offset is within the mapping.
            start: unsafe { self.base.add(offset) },
            length,
        }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and all pieces of it have ended, as their maker promised.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapped_bytes) };
    }
}

/// Bytes of an area that belong to whoever has the piece.
#[derive(Debug)]
pub(super) struct Piece {
    start: NonNull<u8>,
    length: u32,
}

// SAFETY: a piece is exclusive, as a boxed slice is.
unsafe impl Send for Piece {}
// SAFETY: shared access to a piece only reads.
unsafe impl Sync for Piece {}

impl Piece {
    pub(super) fn start(&self) -> *const u8 {
        self.start.as_ptr()
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: the bytes are usable and ours alone (see `Area::piece`), and anonymous memory is
        // initialised by the kernel.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length as usize) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_bytes_are_zero_and_others_stay() {
        let area = Area::reserve(2 * HUGE_BYTES).expect("addresses");
        assert!(area.make_usable(HUGE_BYTES));
        // SAFETY: two ranges side by side, released only after the first piece has ended.
        let (mut one, mut two) = unsafe { (area.piece(0, 4096), area.piece(4096, 10)) };
        one.as_mut_slice().fill(1);
        two.as_mut_slice().fill(2);
        assert_eq!(area.offset_of(two.start()), Some(4096));
        area.release(0, 4096);
        // SAFETY: the first piece has ended.
        let one = unsafe { area.piece(0, 4096) };
        assert!(one.as_slice().iter().all(|byte| *byte == 0));
        assert_eq!(two.as_slice(), [2; 10]);
        assert!(!area.make_usable(3 * HUGE_BYTES));
        assert_eq!(area.offset_of([0u8].as_ptr()), None);
    }
}
