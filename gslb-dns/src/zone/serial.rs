//! The serial of the zones: derived from the revision of the fleet file, and never decreasing on
//! this server.
//!
//! The serial is the second in which the revision was made, [`Fleet::changed_unix_s`]. For a
//! revision of the journal that is the time at which control accepted it: the same on every name
//! server, and later for each revision. For a file on disk it is the time of its last change. All
//! zones have this serial, changed or not, as another name server may have started with another
//! revision.
//!
//! Owns the file `soa-serial` in the node's directory.
//!
//! [`Fleet::changed_unix_s`]: nearcast_fleet::config::Fleet::changed_unix_s

use std::path::{Path, PathBuf};

/// The serial served last, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Serial {
    path: PathBuf,
    last: Option<u32>,
    is_logged: bool,
}

impl Serial {
    /// Reads the serial that an earlier run left in the node's directory, if there is one.
    pub(crate) fn open(directory: &Path) -> Self {
        let path = directory.join("soa-serial");
        let last = std::fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        Self {
            path,
            last,
            is_logged: false,
        }
    }

    /// The serial of a revision made in that second, when it is newer than the one served last.
    pub(crate) fn of_revision(&self, changed_unix_s: u64) -> Option<u32> {
        let wanted = wanted(changed_unix_s);
        self.last
            .is_none_or(|last| is_newer(wanted, last))
            .then_some(wanted)
    }

    /// The serial after the one served last, when [`Serial::of_revision`] has none: the same while
    /// the zones are unchanged, else the next.
    pub(crate) fn going_on(&self, changed_unix_s: u64, is_changed: bool) -> u32 {
        let wanted = wanted(changed_unix_s);
        match self.last {
            Some(last) if !is_changed => last,
            last => next_serial(last, wanted),
        }
    }

    /// The serial at start, when the zones served before are unknown: the revision's own, if an
    /// earlier run served no newer one.
    pub(crate) fn at_start(&self, changed_unix_s: u64) -> u32 {
        self.going_on(changed_unix_s, self.last != Some(wanted(changed_unix_s)))
    }

    /// Records that zones with this serial are served. A write error is logged once.
    pub(crate) fn served(&mut self, serial: u32) {
        if self.last.replace(serial) == Some(serial) {
            return;
        }
        let aside = self.path.with_extension("new");
        let written = self
            .path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| {
                std::fs::write(&aside, format!("{serial}\n"))?;
                std::fs::rename(&aside, &self.path)
            });
        if let Err(error) = written
            && !std::mem::replace(&mut self.is_logged, true)
        {
            let path = self.path.display();
            tracing::warn!(%path, %error, "the zones' serial cannot be kept; after a restart with an older fleet file it may go back");
        }
    }
}

/// A serial has 32 bits and wraps around; 0 means no zone.
fn wanted(changed_unix_s: u64) -> u32 {
    (changed_unix_s as u32).max(1)
}

/// The serial after `previous` at a time: the time itself when it is newer in serial arithmetic
/// (RFC 1982), else one more.
pub fn next_serial(previous: Option<u32>, unix_seconds: u32) -> u32 {
    match previous {
        None => unix_seconds,
        Some(p) if is_newer(unix_seconds, p) => unix_seconds,
        Some(p) => p.wrapping_add(1),
    }
}

/// RFC 1982 section 3.2: whether serial `a` is greater than `b`.
pub fn is_newer(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_second_of_the_revision_and_never_goes_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let node = directory.path().join("state/ns1");
        // The revision's second, whether the zones are others than before, and the serial; a start
        // in between changes nothing.
        for (step, (changed_unix_s, is_changed, expected)) in [
            (1_000, true, 1_000),
            (1_000, false, 1_000),
            (1_005, false, 1_005),
            (1_005, true, 1_006),
            (900, false, 1_006),
            (900, true, 1_007),
            (2_000, true, 2_000),
        ]
        .into_iter()
        .enumerate()
        {
            let mut serial = Serial::open(&node);
            let found = serial
                .of_revision(changed_unix_s)
                .unwrap_or_else(|| serial.going_on(changed_unix_s, is_changed));
            assert_eq!(found, expected, "step {step}");
            serial.served(found);
        }
        let serial = Serial::open(&node);
        assert_eq!(
            (
                serial.at_start(2_000),
                serial.at_start(2_001),
                serial.at_start(1_999)
            ),
            (2_000, 2_001, 2_001)
        );
        let new = Serial::open(&directory.path().join("other"));
        assert_eq!(
            (new.at_start(2_000), new.at_start(0), new.of_revision(5)),
            (2_000, 1, Some(5))
        );
    }

    #[test]
    fn what_cannot_be_kept_or_read_does_no_harm() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("soa-serial"), "many\n").expect("written");
        assert_eq!(Serial::open(directory.path()).at_start(7), 7);
        let file = directory.path().join("file");
        std::fs::write(&file, "").expect("written");
        let mut serial = Serial::open(&file.join("ns1"));
        serial.served(7);
        assert_eq!(serial.of_revision(6), None, "it is known while this runs");
    }
}
