use proptest::prelude::*;
use tokio::sync::mpsc;

use super::*;
use crate::body::{BodyId, Gone, Pool};

/// Memory of a head, with its body.
const HEAD_BYTES: u32 = 500;

struct Setting {
    tier: MemoryTier,
    budget: Arc<Budget>,
    arena: Arc<Arena>,
    sender: mpsc::UnboundedSender<Gone>,
    gone: mpsc::UnboundedReceiver<Gone>,
    bodies: u64,
}

impl Setting {
    fn new(bytes: u64) -> Self {
        let budget = Budget::new(bytes);
        let arena = Arc::new(Arena::new(budget.clone()));
        let (sender, gone) = mpsc::unbounded_channel();
        Self {
            tier: MemoryTier::new(budget.clone(), arena.clone()),
            budget,
            arena,
            sender,
            gone,
            bodies: 0,
        }
    }

    fn body(&mut self) -> Arc<StoredBody> {
        self.bodies += 1;
        let owner = u128::from(self.bodies) << 64 | u128::from(self.bodies) << 40;
        let body = StoredBody::new(BodyId(self.bodies), owner, Pool::Pull, self.sender.clone());
        body.set_head_bytes(HEAD_BYTES);
        body
    }

    /// A body of one slice.
    fn put(&mut self, bytes: usize) -> Arc<StoredBody> {
        let body = self.body();
        self.tier.insert(&body, 0, Bytes::from(vec![7; bytes]));
        body
    }

    fn gone(&mut self) -> Vec<BodyId> {
        std::iter::from_fn(|| self.gone.try_recv().ok().map(|gone| gone.id)).collect()
    }
}

#[test]
fn the_budget_holds_whatever_comes() {
    for (bytes, length) in [
        (1 << 20, 1 << 10),
        (16 << 20, 1 << 10),
        (16 << 20, 40_000),
        (16 << 20, SLICE_BYTES),
        (2 << 20, 300),
    ] {
        let mut setting = Setting::new(bytes);
        let count = 3 * bytes / (length as u64 + 1000) + 10;
        for number in 0..count {
            setting.put(length - number as usize % 200);
            assert!(setting.budget.taken() <= bytes, "{length}, {number}");
        }
        let taken = setting.budget.taken();
        assert!(taken * 10 >= bytes * 8, "{length}: only {taken} of {bytes}");
        assert!(setting.arena.slack() <= setting.tier.slack_max + (64 << 10));
    }
}

#[test]
fn a_change_of_sizes_leaves_no_memory_behind() {
    let mut setting = Setting::new(16 << 20);
    let mut kept = Vec::new();
    for round in 0..12usize {
        let length = 200 + round * 1300 % 9000;
        for number in 0..(8 << 20) / (length + 1000) {
            let body = setting.put(length);
            // Some are used again and again, so that spans become sparse.
            if number % 50 == 0 {
                kept.push(body);
            }
            kept.iter().for_each(|body| body.count_use());
            if kept.len() > 200 {
                kept.remove(0);
            }
        }
        assert!(setting.budget.excess() == 0);
        let used = setting.budget.taken() - setting.arena.slack();
        assert!(
            round < 2 || used > 13 << 20,
            "{used} bytes in use in round {round}"
        );
    }
}

#[test]
fn a_body_is_gone_with_its_head_and_not_before() {
    let mut setting = Setting::new(64 << 20);
    let body = setting.body();
    setting.tier.hold_head(&body);
    for index in 0..3 {
        setting
            .tier
            .insert(&body, index, Bytes::from(vec![index as u8; SLICE_BYTES]));
    }
    assert!(body.has_slices() && setting.tier.contains(&body, 2));
    assert_eq!(setting.gone(), []);
    assert_eq!(
        setting.tier.get(&body, 1),
        Some(vec![1; SLICE_BYTES].into())
    );
    setting.tier.remove(&body);
    assert_eq!(setting.gone(), [body.id]);
    assert!((0..3).all(|index| !setting.tier.contains(&body, index)));
    assert_eq!(setting.budget.taken_for(Kind::Heads), 0);
    setting.tier.remove(&body);
    assert_eq!(setting.gone(), []);
}

#[test]
fn what_is_used_stays_while_others_pass() {
    let mut setting = Setting::new(4 << 20);
    let used: Vec<_> = (0..50).map(|_| setting.put(2000)).collect();
    for _ in 0..10_000 {
        used.iter().for_each(|body| body.touch());
        setting.put(2000);
    }
    let left = used.iter().filter(|body| body.has_slices()).count();
    assert_eq!(left, 50);
    assert!(setting.tier.evictions() > 8000);
}

#[test]
fn what_came_last_stays_for_its_first_reader() {
    let mut setting = Setting::new(4 << 20);
    let small: Vec<_> = (0..5000).map(|_| setting.put(300)).collect();
    for _ in 0..30 {
        small.iter().for_each(|body| body.count_use());
        let newest: Vec<_> = (0..20).map(|_| setting.put(20_000)).collect();
        assert!(newest.iter().all(|body| setting.tier.contains(body, 0)));
        assert_eq!(setting.budget.excess(), 0);
    }
}

#[test]
fn bytes_that_are_charged_elsewhere_make_room() {
    let mut setting = Setting::new(8 << 20);
    for _ in 0..3000 {
        setting.put(2000);
    }
    let charge = setting.budget.charge(4 << 20);
    setting.tier.make_room();
    assert_eq!(setting.budget.excess(), 0);
    drop(charge);
}

#[test]
fn slices_in_use_stay_as_they_are_when_their_entry_leaves() {
    let mut setting = Setting::new(1 << 20);
    let body = setting.put(1000);
    let slice = setting.tier.get(&body, 0).expect("it was put");
    for _ in 0..2000 {
        let other = setting.body();
        setting.tier.insert(&other, 0, Bytes::from(vec![1; 1000]));
    }
    assert_eq!(slice, vec![7; 1000]);
}

#[test]
fn an_entry_costs_little_beside_its_bytes() {
    const COUNT: u64 = 100_000;
    let mut setting = Setting::new(1 << 30);
    for _ in 0..COUNT {
        let body = setting.body();
        body.set_head_bytes(0);
        setting.tier.insert(&body, 0, Bytes::from(vec![7; 1024]));
    }
    let each = setting.budget.taken() / COUNT;
    assert!(each < 1024 + 150, "{each} bytes for 1 KiB");
}

/// The figure in the second column of a row of docs/storage.md.
fn documented(term: &str) -> u64 {
    let page = include_str!("../../../docs/storage.md");
    let row = page
        .lines()
        .find(|line| line.starts_with(&format!("| `{term}` | ")))
        .unwrap_or_else(|| panic!("the page has no row {term}"));
    let figure = row.split('|').nth(2).unwrap_or_default().trim();
    figure
        .parse()
        .unwrap_or_else(|e| panic!("{term}: {figure}: {e}"))
}

#[test]
fn the_documented_size_holds_the_responses_and_a_smaller_one_does_not() {
    const COUNT: u64 = 30_000;
    const HEAD: u64 = HEAD_BYTES as u64;
    for length in [100_u64, 1024, 5000, 20_000] {
        let slot = (length + length * 3 / 100).max(length.next_multiple_of(64));
        let memory = COUNT / 5 * (HEAD + documented("entry") + slot) * 16 / 15;
        let evictions = |memory: u64| {
            let mut setting = Setting::new(memory);
            (0..COUNT / 5).for_each(|_| drop(setting.put(length as usize)));
            setting.tier.evictions()
        };
        assert_eq!(evictions(memory), 0, "{length}");
        assert!(evictions(memory * 3 / 4) > 0, "{length}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_charge_is_what_is_there(
        steps in prop::collection::vec((0..10u8, 0..12usize, 0..4u32, 0..5000usize), 1..300),
    ) {
        let mut setting = Setting::new(3 << 20);
        let bodies: Vec<_> = (0..12).map(|_| setting.body()).collect();
        for (kind, body, index, length) in steps {
            let body = &bodies[body];
            match kind {
                0..4 => setting.tier.insert(body, 0, Bytes::from(vec![body.id.0 as u8; length])),
                4..6 => {
                    let slice = vec![body.id.0 as u8; SLICE_BYTES - usize::from(index > 0) * length];
                    setting.tier.insert(body, index, Bytes::from(slice));
                }
                6 => {
                    body.set_head_bytes(length as u32);
                    setting.tier.hold_head(body);
                }
                7 => setting.tier.remove(body),
                8 => body.touch(),
                _ => {
                    let held = setting.tier.get(body, index);
                    prop_assert!(held.is_none_or(|bytes| bytes.iter().all(|byte| *byte == body.id.0 as u8)));
                }
            }
            prop_assert_eq!(setting.budget.excess(), 0);
        }
        for body in &bodies {
            prop_assert!(body.has_slices() || (0..4).all(|index| !setting.tier.contains(body, index)));
            setting.tier.remove(body);
            prop_assert!(!body.has_slices());
        }
        prop_assert_eq!(setting.budget.taken_for(Kind::Heads), 0);
        while setting.arena.trim(u64::MAX) {}
        prop_assert_eq!(setting.budget.taken(), 0);
    }
}
