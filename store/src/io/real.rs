//! Files of a directory of this machine.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{DiskFile, Files};
use crate::kernel;

/// The file by which a process takes the directory.
const LOCK: &str = "lock";

/// The file that [`Files::probe`] writes.
const PROBE: &str = "probe";
const PROBE_BYTES: usize = 512;

/// Zeros that are written at once where space cannot be reserved.
const ZEROS_BYTES: u64 = 256 << 10;

/// The files of one directory.
#[derive(Debug)]
pub struct RealFiles {
    directory: PathBuf,
    lock: Mutex<Option<File>>,
}

impl RealFiles {
    /// The files of a directory, which need not exist. Touches no disk.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            lock: Mutex::new(None),
        }
    }

    fn open_with(&self, name: &str, options: &mut OpenOptions) -> io::Result<Arc<dyn DiskFile>> {
        let file = options
            .read(true)
            .write(true)
            .open(self.directory.join(name))?;
        Ok(Arc::new(RealFile(file)))
    }
}

impl Files for RealFiles {
    fn lock(&self) -> io::Result<()> {
        let mut lock = self.lock.lock();
        // An earlier try took it, and failed afterwards.
        if lock.is_some() {
            return Ok(());
        }
        std::fs::create_dir_all(&self.directory)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.directory.join(LOCK))?;
        kernel::lock(&file)?;
        *lock = Some(file);
        Ok(())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.open_with(name, &mut OpenOptions::new())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.open_with(name, OpenOptions::new().create(true))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.directory.join(name);
        let removed = match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.directory.join(from), self.directory.join(to))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            // A name that is no text is none of the store's.
            if let Ok(name) = entry?.file_name().into_string()
                && name != LOCK
                && name != PROBE
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn room(&self) -> io::Result<u64> {
        kernel::room(&File::open(&self.directory)?)
    }

    fn probe(&self) -> io::Result<()> {
        // Each probe writes other bytes, so that an old page cannot answer for the disk.
        let stamp = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let mut written = [0; PROBE_BYTES];
        written[..16].copy_from_slice(&stamp.to_le_bytes());
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(self.directory.join(PROBE))?;

        file.write_all_at(&written, 0)?;
        file.sync_data()?;
        kernel::drop_cached(&file)?;

        let mut read = [0; PROBE_BYTES];
        file.read_exact_at(&mut read, 0)?;
        if read == written {
            Ok(())
        } else {
            Err(io::Error::other("the disk read other bytes than it wrote"))
        }
    }
}

/// One open file.
#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn read_now(&self, buffer: &mut [u8], offset: u64) -> bool {
        kernel::read_cached(&self.0, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        match kernel::allocate(&self.0, &range) {
            Err(error) if is_not_supported(&error) => self.write_zeros(range),
            other => other,
        }
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        match kernel::punch(&self.0, &range) {
            Err(error) if is_not_supported(&error) => Ok(()),
            other => other,
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn start_writeback(&self, range: Range<u64>) -> io::Result<()> {
        kernel::start_writeback(&self.0, &range)
    }

    fn wait_writeback(&self, range: Range<u64>) -> io::Result<()> {
        kernel::wait_writeback(&self.0, &range)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn space(&self) -> io::Result<u64> {
        // The unit of st_blocks is 512 bytes on every file system of Linux.
        Ok(self.0.metadata()?.blocks() * 512)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

impl RealFile {
    /// Zeros where the file has no bytes yet; those that it has stay.
    fn write_zeros(&self, range: Range<u64>) -> io::Result<()> {
        let zeros = vec![0; ZEROS_BYTES as usize];
        let mut at = range.start.max(self.length()?);
        while at < range.end {
            let length = ZEROS_BYTES.min(range.end - at);
            self.0.write_all_at(&zeros[..length as usize], at)?;
            at += length;
        }
        Ok(())
    }
}

fn is_not_supported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> (tempfile::TempDir, RealFiles) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let files = RealFiles::new(directory.path().join("store"));
        files.lock().expect("a new directory is free");
        (directory, files)
    }

    #[test]
    fn a_directory_is_of_one_process() {
        let (directory, files) = files();
        let other = RealFiles::new(directory.path().join("store"));
        let refused = other.lock().expect_err("it is taken").kind();
        assert_eq!(refused, io::ErrorKind::WouldBlock);
        files.lock().expect("it is its own already");
        drop(files);
        other.lock().expect("it is free again");
    }

    #[test]
    fn names_are_made_listed_changed_and_removed() {
        let (directory, files) = files();
        assert_eq!(
            files.open("a").expect_err("there is none").kind(),
            io::ErrorKind::NotFound
        );
        let file = files.create("a").expect("a new file");
        file.write_at(b"kept", 0).expect("room");
        files.create("a").expect("it exists, and stays");
        files.probe().expect("a disk that works");
        std::fs::create_dir(directory.path().join("store/old")).expect("room");
        std::fs::write(directory.path().join("store/old/x"), b"x").expect("room");
        let mut names = files.list().expect("a directory");
        names.sort();
        assert_eq!(names, ["a", "old"]);

        files
            .remove("old")
            .expect("a directory goes with its files");
        files.remove("old").expect("nothing is no error");
        files.rename("a", "b").expect("another name");
        files.sync().expect("a directory can be synced");
        let mut bytes = [0; 4];
        files
            .open("b")
            .expect("it is there")
            .read_at(&mut bytes, 0)
            .expect("four bytes");
        assert_eq!(&bytes, b"kept");
        assert_eq!(files.list().expect("a directory"), ["b"]);
        assert!(files.room().expect("a file system") > 0);
    }

    #[test]
    fn space_is_reserved_and_given_back() {
        let (_directory, files) = files();
        let file = files.create("a").expect("a new file");
        file.allocate(0..1 << 20).expect("room");
        assert_eq!(file.length().expect("a file"), 1 << 20);
        assert!(file.space().expect("a file") >= 1 << 20);

        file.write_at(&[7; 8192], 0).expect("room");
        file.start_writeback(0..8192).expect("a file");
        file.wait_writeback(0..8192).expect("a file");
        file.sync_data().expect("a file");
        file.allocate(0..1 << 20).expect("bytes stay");
        let mut bytes = [0; 8192];
        file.read_at(&mut bytes, 0).expect("they are there");
        assert_eq!(bytes, [7; 8192]);

        let before = file.space().expect("a file");
        file.punch(0..1 << 19).expect("no error");
        assert_eq!(file.length().expect("a file"), 1 << 20);
        if file.space().expect("a file") < before {
            file.read_at(&mut bytes, 0).expect("zeros");
            assert_eq!(bytes, [0; 8192]);
        }
        let end = file
            .read_at(&mut bytes, (1 << 20) - 1)
            .expect_err("it ends")
            .kind();
        assert_eq!(end, io::ErrorKind::UnexpectedEof);
        file.set_len(10).expect("shorter");
        assert_eq!(file.length().expect("a file"), 10);
    }
}
