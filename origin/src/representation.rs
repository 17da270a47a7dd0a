//! A representation of a file: the plain file or a precompressed variant, opened, with its
//! validators.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{DATE, ETAG, LAST_MODIFIED};

use crate::coding::{self, Coding};
use crate::fields::put;
use crate::path;

/// One representation of a file that a request selects.
pub(crate) struct Representation {
    /// The bytes.
    pub(crate) file: File,
    /// Number of bytes.
    pub(crate) bytes: u64,
    /// When the bytes last changed, in whole seconds, as HTTP dates express it.
    modified: SystemTime,
    /// Strong entity tag, with its quotes.
    etag: String,
    /// The content coding; `None` for the plain file.
    pub(crate) coding: Option<Coding>,
    /// Whether other representations exist, so that the response varies on `Accept-Encoding`.
    pub(crate) has_variants: bool,
}

impl Representation {
    /// Opens the representation that a request wants most. A variant must be below the root like
    /// any other file, also when it is a symbolic link. Blocking.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn open(root: &Path, plain: &Path, request: &HeaderMap) -> io::Result<Self> {
        let has_variants = coding::CODINGS
            .iter()
            .any(|coding| variant(root, plain, coding).is_some());
        if !has_variants {
            return Self::open_file(plain, None, has_variants);
        }

        for coding in coding::accepted(request) {
            let Some(path) = variant(root, plain, &coding) else {
                continue;
            };
            match Self::open_file(&path, Some(coding), has_variants) {
                // The variant was removed after it was found.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                opened => return opened,
            }
        }
        Self::open_file(plain, None, has_variants)
    }

    fn open_file(path: &Path, coding: Option<Coding>, has_variants: bool) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(ErrorKind::NotFound.into());
        }
        Ok(Self {
            bytes: metadata.len(),
            modified: whole_seconds(metadata.modified()?),
            etag: entity_tag(&metadata, coding.map_or("", |coding| coding.name)),
            file,
            coding,
            has_variants,
        })
    }

    /// The fields by which preconditions compare the representation, in a response of this time.
    pub(crate) fn validators(&self, now: SystemTime) -> HeaderMap {
        let mut fields = HeaderMap::new();
        put(&mut fields, ETAG, &self.etag);
        put(
            &mut fields,
            LAST_MODIFIED,
            &httpdate::fmt_http_date(self.modified),
        );
        put(&mut fields, DATE, &httpdate::fmt_http_date(now));
        fields
    }
}

/// The file of a variant, if there is one.
fn variant(root: &Path, plain: &Path, coding: &Coding) -> Option<PathBuf> {
    let mut name = plain.as_os_str().to_owned();
    name.push(coding.suffix);
    path::real_file(root, &PathBuf::from(name))
}

/// A strong tag: a digest of metadata that changes whenever the bytes change. These are the inode,
/// the length, and the times of content and inode in nanoseconds. The kernel alone sets the time of
/// the inode, so a tool that restores an old modification time still makes a new tag. Another hard
/// link changes it too, which costs a cache one validation.
fn entity_tag(metadata: &Metadata, coding: &str) -> String {
    let facts = format!(
        "{}.{}.{}.{}.{}.{}.{coding}",
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    );
    format!("\"{}\"", &blake3::hash(facts.as_bytes()).to_hex()[..20])
}

/// The time without its fraction of a second; 1970 for one before.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}
