//! What the budget of a store says, beside what the kernel says of the process. One test, as the
//! figures are of the whole process.

use bytes::Bytes;
use nearcast_store::{Gone, Kind, Pool, SLICE_BYTES, Store, StoreConfig, StoredBody};
use tokio::sync::mpsc::UnboundedReceiver;

const MEMORY: u64 = 64 << 20;

/// Bytes of memory that the process has for itself.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok())
        .expect("the kernel says it")
        << 10
}

/// Page faults of the process so far.
fn faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields = stat.rsplit(')').next().unwrap_or_default();
    // Fields are counted from 1, and the first after the name is the third.
    fields
        .split_whitespace()
        .nth(10 - 3)
        .and_then(|field| field.parse().ok())
        .expect("the tenth field is a number")
}

/// Stores bodies of one slice, and takes note of what is gone as the index would.
fn put(
    (store, gone): (&Store, &mut UnboundedReceiver<Gone>),
    first: u128,
    count: u64,
    length: usize,
) {
    let source = Bytes::from(vec![7; length]);
    for number in 0..u128::from(count) {
        let body = store.new_body((first + number) << 64, Pool::Pull);
        store.account_head(&body, size_of::<StoredBody>() as u32 + 32);
        let slice = store.arena().gather(std::slice::from_ref(&source), length);
        store.put_in_memory(&body, 0, slice);
        while gone.try_recv().is_ok() {}
    }
}

#[test]
fn memory_is_what_the_budget_says_and_is_used_again_without_page_faults() {
    let before = resident();
    let (store, mut gone) = Store::open(&StoreConfig {
        memory_bytes: MEMORY,
        disk: None,
    });
    let budget = store.budget().clone();
    for (round, length) in [1024, 300, 20_000, SLICE_BYTES, 5000, 1024]
        .into_iter()
        .enumerate()
    {
        let first = (round as u128) << 32;
        let count = 2 * MEMORY / (length as u64 + 200);
        put((&store, &mut gone), first, count, length);

        let (grown, taken) = (resident().saturating_sub(before), budget.taken());
        assert!(
            taken <= MEMORY && taken > MEMORY / 10 * 8,
            "{length}: {taken}"
        );
        // The heap keeps what the entries of smaller bodies took before.
        let least = taken - taken / 20;
        assert!(
            grown + (3 << 20) >= least && grown <= taken + taken / 20 + (16 << 20),
            "bodies of {length}: the kernel says {grown}, the budget {taken}: {:?}",
            Kind::ALL.map(|kind| (kind.name(), budget.taken_for(kind)))
        );
    }
    drop((store, gone));

    for length in [1024, 20_000, SLICE_BYTES] {
        let (store, mut gone) = Store::open(&StoreConfig {
            memory_bytes: MEMORY,
            disk: None,
        });
        let each = length as u64 + 200;
        put((&store, &mut gone), 0, 2 * MEMORY / each, length);
        let before = faults();
        let count = MEMORY / 2 / each;
        put((&store, &mut gone), 1 << 32, count, length);
        let pages = count * length.div_ceil(4096) as u64;
        let faulted = faults() - before;
        assert!(
            faulted <= pages / 20 + 64,
            "bodies of {length}: {faulted} page faults for {pages} pages"
        );
    }
}
