//! Any bytes as a region of the store: it opens, serves only bytes that the file holds, and
//! stores a new body that the next start finds.
//!
//! The first byte selects how the rest becomes the region: as it is, or as records with good
//! checksums, one for each line, and a torn end. A line begins with the kind, the
//! body, the slice and the sequence number of its record.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nearcast_edge::fuzzing::{
    ScannedBody, fuzz_record, fuzz_store_files, reencode_stored_response, scan_store,
};

/// In memory if there is such a file system, because every input is written to a file.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    base.join(format!("nearcast-fuzz-{}-store", std::process::id()))
});

fn record(line: &[u8], offset: usize) -> Vec<u8> {
    let [kind, body, index, sequence, payload @ ..] = line else {
        return line.to_vec();
    };
    // Small numbers meet often; the largest ones are edge cases.
    let wide = |byte: u8| {
        if byte == u8::MAX {
            u64::MAX
        } else {
            byte.into()
        }
    };
    let index = u32::try_from(wide(*index)).unwrap_or(u32::MAX);
    fuzz_record(kind % 4, wide(*body), index, wide(*sequence), payload, offset).unwrap_or_default()
}

fn region(mode: u8, rest: &[u8]) -> Vec<u8> {
    if mode % 2 == 0 {
        return rest.to_vec();
    }
    let mut region = Vec::new();
    for line in rest.split(|byte| *byte == b'\n') {
        region.extend(record(line, region.len()));
    }
    region.truncate(region.len().saturating_sub(usize::from(mode / 2) % 16));
    region
}

fn holds(file: &[u8], bytes: &[u8]) -> bool {
    bytes.is_empty() || file.windows(bytes.len()).any(|window| window == bytes)
}

fn is_in(bodies: &[ScannedBody], head: &Bytes, slice: &Bytes) -> bool {
    bodies
        .iter()
        .any(|body| body.head == head && body.slices[0].as_ref() == Some(slice))
}

fuzz_target!(|input: &[u8]| {
    let [mode, rest @ ..] = input else { return };
    let file = region(*mode, rest);
    let _ = std::fs::remove_dir_all(&*DIRECTORY);
    fuzz_store_files(&DIRECTORY, &file).expect("written");

    let (head, slice) = (
        Bytes::from_static(b"new head"),
        Bytes::from_static(b"new slice"),
    );
    let found = scan_store(&DIRECTORY, Some((head.clone(), slice.clone())));
    for body in &found {
        let served = body.slices.iter().flatten().chain([&body.head]);
        for bytes in served {
            assert!(holds(&file, bytes), "bytes that the file does not hold");
        }
    }
    let again = scan_store(&DIRECTORY, None);
    assert!(is_in(&again, &head, &slice), "the new body is lost");
    for body in &found {
        assert!(again.contains(body), "a body of before is lost: {body:?}");
    }

    // The head of a body is a stored response; decoding must take any bytes.
    for line in rest.split(|byte| *byte == b'\n') {
        if let Some(encoded) = reencode_stored_response(line) {
            assert_eq!(reencode_stored_response(&encoded), Some(encoded));
        }
    }
});
