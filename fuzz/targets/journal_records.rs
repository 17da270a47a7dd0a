//! Any bytes as a journal's file: it opens or is told damaged, never more is read than was written,
//! and it takes another entry.
//!
//! The first byte says how the rest becomes the file: as it is, or as records with good checksums,
//! one a line, and a torn end.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nearcast_fleet::change::{Change, Purge, PurgeScope};
use nearcast_fleet::journal::Journal;

static HEADER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let path = path("new");
    let _ = std::fs::remove_file(&path);
    drop(Journal::open(&path).expect("a new journal"));
    std::fs::read(&path).expect("its header")
});

/// In memory where there is such a file system; every input is written out.
fn path(name: &str) -> PathBuf {
    let memory = std::path::Path::new("/dev/shm");
    let base = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    base.join(format!("nearcast-fuzz-{}-{name}", std::process::id()))
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_le_bytes();
    [
        &length[..],
        &crc32fast::hash(&length).to_le_bytes(),
        &crc32fast::hash(payload).to_le_bytes(),
        payload,
    ]
    .concat()
}

fuzz_target!(|input: &[u8]| {
    let [mode, rest @ ..] = input else { return };
    let file = match mode % 3 {
        0 => rest.to_vec(),
        1 => [&HEADER[..], rest].concat(),
        _ => {
            let records = rest.split(|b| *b == b'\n').map(record);
            let mut file = HEADER.clone();
            records.for_each(|r| file.extend(r));
            file.truncate(file.len() - usize::from(mode / 3) % 16);
            file
        }
    };
    let path = path("journal");
    std::fs::write(&path, &file).expect("written");
    if let Ok(mut journal) = Journal::open(&path) {
        let entries = journal.after(0, usize::MAX);
        assert!(
            entries.windows(2).all(|w| w[0].revision < w[1].revision),
            "{entries:?}"
        );
        assert!(
            entries
                .last()
                .is_none_or(|e| e.revision <= journal.revision())
        );
        if journal.revision() < u64::MAX {
            let change = Change::Purge(Purge {
                scope: PurgeScope::All,
                soft: false,
            });
            let added = journal.append(change, 1).expect("it takes more");
            let again = Journal::open(&path).expect("what was appended to opens");
            assert_eq!(again.after(added.revision - 1, 9), [added]);
        }
    }
});
