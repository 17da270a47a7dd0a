//! What the directory of the disk tier costs with millions of responses.
//!
//!     cargo run --release -p nearcast-store --example directory -- [ENTRIES] [FOLDER]
//!
//! Prints the memory of an entry as it is charged and as the kernel counts it, the time of
//! insertions and look-ups, and of a checkpoint: to write, to open, to answer the first look-up, to
//! load whole. The checkpoint is written to FOLDER, by default a temporary one, and is read from the
//! page cache.
#![allow(clippy::print_stdout)] // It exists to print.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nearcast_store::Budget;
use nearcast_store::checkpoint::Checkpoints;
use nearcast_store::directory::{Directory, Found, Insertion, Place, SEGMENTS};
use nearcast_store::io::{Files, RealFiles};
use nearcast_store::{Group, Pool};

const STORE: u64 = 1;
const LOOK_UPS: u64 = 1_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let entries = arguments.next().map_or(Ok(10_000_000), |n| n.parse())?;
    let temporary = tempfile::tempdir()?;
    let folder = arguments.next().map(Into::into);
    let folder = folder.unwrap_or_else(|| temporary.path().to_path_buf());

    let budget = Budget::new(u64::MAX);
    let resident_before = resident()?;
    let directory = Directory::new(budget.clone(), u64::MAX);
    let (mut most, mut most_resident) = (0f64, 0f64);
    let start = Instant::now();
    for number in 1..=entries {
        assert_eq!(
            directory.insert(key(number), found(number)),
            Insertion::Added
        );
        if number >= 1_000_000 && number % 250_000 == 0 {
            most = most.max(directory.bytes() as f64 / number as f64);
            let resident = resident()?.saturating_sub(resident_before);
            most_resident = most_resident.max(resident as f64 / number as f64);
        }
    }
    let inserted = start.elapsed();
    let resident = resident()?.saturating_sub(resident_before);
    println!("entries                     {entries}");
    println!(
        "bytes an entry, charged     {:.2}",
        directory.bytes() as f64 / entries as f64
    );
    println!(
        "bytes an entry, resident    {:.2}",
        resident as f64 / entries as f64
    );
    println!("most of both, from 10^6 on  {most:.2} {most_resident:.2}");
    println!(
        "insertion                   {:.0} ns",
        each(inserted, entries)
    );

    let start = Instant::now();
    let found_some = (0..LOOK_UPS).filter(|n| directory.may_contain(key(n * 7919 % entries + 1)));
    assert_eq!(found_some.count() as u64, LOOK_UPS);
    println!(
        "look-up of one that is there {:.0} ns",
        each(start.elapsed(), LOOK_UPS)
    );
    let start = Instant::now();
    let found_some = (1..=LOOK_UPS).filter(|n| directory.may_contain(key(entries + n)));
    let false_answers = found_some.count();
    println!(
        "look-up of an absent one    {:.0} ns",
        each(start.elapsed(), LOOK_UPS)
    );
    println!("of which were found         {false_answers}");

    let files: Arc<dyn Files> = Arc::new(RealFiles::new(folder));
    let (mut checkpoints, _) = Checkpoints::open(files.clone(), STORE, budget.clone())?;
    let start = Instant::now();
    let written = checkpoints.write(1, &[], &[&directory])?;
    println!(
        "checkpoint written          {:.0} ms, {written} bytes",
        milliseconds(start)
    );
    drop(directory);

    let start = Instant::now();
    let (_, checkpoint) = Checkpoints::open(files, STORE, budget.clone())?;
    let checkpoint = checkpoint.ok_or("the checkpoint is not valid")?;
    let directory = Directory::new(budget, u64::MAX);
    directory.defer();
    println!("checkpoint opened           {:.2} ms", milliseconds(start));
    let segment = directory.segment_of(key(1));
    checkpoint.load_segment(0, &directory, segment, |_| true)?;
    assert_eq!(directory.find(key(1)).len(), 1);
    println!("first look-up answered      {:.2} ms", milliseconds(start));
    checkpoint.load(0, &directory, |_| true)?;
    println!("whole checkpoint loaded     {:.0} ms", milliseconds(start));
    assert_eq!(directory.len(), entries);

    let start = Instant::now();
    let removed: u64 = (0..SEGMENTS)
        .map(|segment| directory.retain(segment, |found| found.group.0 != 1))
        .sum();
    println!(
        "a site's {removed} removed      {:.0} ms",
        milliseconds(start)
    );
    Ok(())
}

fn key(number: u64) -> u128 {
    // Two rounds of a bijective mixer: numbers spread like the hashes of names.
    let mix = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let high = mix(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    u128::from(high) << 64 | u128::from(mix(high ^ number))
}

fn found(number: u64) -> Found {
    Found {
        body: number as u16,
        group: Group((number % 10) as u16),
        uses: 0,
        flags: 0,
        place: Place {
            pool: Pool::Pull,
            slot: (number / 4096) as u16,
            offset: (number % 4096) as u32 * 1536,
            length: 1536,
        },
    }
}

fn each(time: Duration, count: u64) -> f64 {
    time.as_nanos() as f64 / count as f64
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// Bytes of memory that the process holds.
fn resident() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next());
    Ok(kibibytes.ok_or("no VmRSS")?.parse::<u64>()? * 1024)
}
