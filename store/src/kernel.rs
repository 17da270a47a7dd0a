//! System calls without a safe wrapper.
//!
//! The only module of the store with unsafe code. Each function makes one system call and checks its
//! result.
#![allow(unsafe_code)] // No dependency offers a safe wrapper of these calls.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Fills `buffer` from `offset` of a file if all of these bytes are in the page cache. `false` if
/// they are not, or at an error.
pub(crate) fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> bool {
    let vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let Ok(offset) = libc::off_t::try_from(offset) else {
        return false;
    };
    // SAFETY: the descriptor is open for the duration of the call, and the one vector describes a
    // buffer that is exclusively ours and writable for its whole length.
    let read = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            &raw const vector,
            1,
            offset,
            libc::RWF_NOWAIT,
        )
    };
    usize::try_from(read).is_ok_and(|n| n == buffer.len())
}

/// Takes the exclusive lock of a file, which lasts until the file is closed. An error of the kind
/// `WouldBlock` if another process has it.
pub(crate) fn lock(file: &File) -> io::Result<()> {
    // SAFETY: takes a descriptor that is open for the duration of the call, and no memory.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })
}

/// Reserves the space of a range, and extends the file to its end.
pub(crate) fn allocate(file: &File, range: &Range<u64>) -> io::Result<()> {
    fallocate(file, 0, range)
}

/// Gives the space of a range back; the length stays.
pub(crate) fn punch(file: &File, range: &Range<u64>) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fallocate(file, mode, range)
}

fn fallocate(file: &File, mode: libc::c_int, range: &Range<u64>) -> io::Result<()> {
    let (offset, length) = offset_and_length(range)?;
    loop {
        // SAFETY: takes a descriptor that is open for the duration of the call, and no memory.
        let result = check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) });
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Starts the writing of a range to the device, without waiting for its end.
pub(crate) fn start_writeback(file: &File, range: &Range<u64>) -> io::Result<()> {
    sync_range(file, libc::SYNC_FILE_RANGE_WRITE, range)
}

/// Waits until a range has been written to the device.
pub(crate) fn wait_writeback(file: &File, range: &Range<u64>) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_range(file, flags, range)
}

fn sync_range(file: &File, flags: libc::c_uint, range: &Range<u64>) -> io::Result<()> {
    let (offset, length) = offset_and_length(range)?;
    // SAFETY: takes a descriptor that is open for the duration of the call, and no memory.
    check(unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, flags) })
}

/// Takes the pages of a file out of the page cache as far as they are written, so that the next read
/// asks the device.
pub(crate) fn drop_cached(file: &File) -> io::Result<()> {
    // SAFETY: takes a descriptor that is open for the duration of the call, and no memory.
    let error = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    if error == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(error))
    }
}

/// Bytes that the file system of a file has left for this process.
pub(crate) fn room(file: &File) -> io::Result<u64> {
    let mut figures = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the descriptor is open for the duration of the call, which writes one `statvfs` to
    // memory that is large enough for it and exclusively ours.
    check(unsafe { libc::fstatvfs(file.as_raw_fd(), figures.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it has filled the structure.
    let figures = unsafe { figures.assume_init() };
    Ok(figures.f_bavail * figures.f_frsize)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn offset_and_length(range: &Range<u64>) -> io::Result<(libc::off_t, libc::off_t)> {
    let too_far = |_| io::Error::from(io::ErrorKind::InvalidInput);
    Ok((
        libc::off_t::try_from(range.start).map_err(too_far)?,
        libc::off_t::try_from(range.end.saturating_sub(range.start)).map_err(too_far)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn fresh_pages_are_read_without_waiting_and_short_files_are_not() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(b"0123456789").expect("room for ten bytes");
        let mut buffer = [0u8; 4];
        if read_cached(&file, &mut buffer, 3) {
            assert_eq!(&buffer, b"3456");
        }
        assert!(!read_cached(&file, &mut buffer, 8), "six bytes are missing");
    }
}
