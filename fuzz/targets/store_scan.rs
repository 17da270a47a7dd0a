//! Any bytes as a region file of the store: it opens, serves only bytes that the file holds, and
//! stores a new body that the next start finds.
//!
//! The first byte selects how the rest becomes the file: as it is, after a good region header, or as
//! records with good checksums, one for each line, and a torn end. A line begins with the kind, the
//! body, the slice and the sequence number of its record.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nearcast_edge::fuzzing::{
    ScannedBody, fuzz_record, fuzz_region_header, reencode_stored_response, scan_store,
};

const REGION: u64 = 1;

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

fn record(line: &[u8]) -> Vec<u8> {
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
    fuzz_record(kind % 4, wide(*body), index, wide(*sequence), payload).unwrap_or_default()
}

fn region(mode: u8, rest: &[u8]) -> Vec<u8> {
    let mut file = fuzz_region_header(REGION);
    match mode % 3 {
        0 => return rest.to_vec(),
        1 => file.extend_from_slice(rest),
        _ => {
            rest.split(|byte| *byte == b'\n')
                .for_each(|line| file.extend(record(line)));
            file.truncate(file.len() - usize::from(mode / 3) % 16);
        }
    }
    file
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
    let pool = DIRECTORY.join("pull");
    let _ = std::fs::remove_dir_all(&*DIRECTORY);
    std::fs::create_dir_all(&pool).expect("a directory");
    std::fs::write(pool.join(format!("region-{REGION:016x}")), &file).expect("written");

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
