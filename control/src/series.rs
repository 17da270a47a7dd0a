//! Counts over time: by second for the last hour, by minute for a day, by quarter of an hour for 30
//! days; of the fleet, of each cluster and of each site; of each node by second for two minutes.
//!
//! Reports carry totals; what came in is the difference of two, spread evenly over the time between
//! them, so that a slow report interval draws no saw teeth. A cell that no report covers is
//! unknown, which is not zero. Bounded by the cells a key and by [`KEYS_MAX`] and [`NODES_MAX`].
//! Pure: the time comes in.
//!
//! [`Series::changed`] gives what has changed as blocks of bytes and [`Series::load`] takes them in
//! again; a block replaces the cells that it names, so that a later one may repeat an earlier one.

use std::collections::{BTreeMap, VecDeque};

use nearcast_fleet::report::{CacheStatus, SiteTotals};

use crate::view;

/// Counts of requests: one for each cache status, and one for the words of a newer version.
const STATUSES: usize = CacheStatus::ALL.len() + 1;
/// Index of the requests with a status that this version does not have.
const OTHER: usize = CacheStatus::ALL.len();

/// The words of the statuses, in the order of their counts.
fn status_words() -> impl Iterator<Item = &'static str> {
    let known = CacheStatus::ALL.into_iter().map(CacheStatus::as_str);
    known.chain(["other"])
}

/// An hour.
pub(crate) const SECONDS_KEPT: u64 = 3600;
/// Seconds kept of a single node.
pub(crate) const NODE_SECONDS_KEPT: u64 = 120;
/// The longest time that is kept at all, seconds.
pub(crate) const TIME_KEPT: u64 = 30 * 86_400;
/// Clusters and sites that are counted apart; more count in the total alone.
const KEYS_MAX: usize = 128;
/// Nodes that are counted apart.
const NODES_MAX: usize = 4096;
/// A difference between reports further apart than this is spread over this time.
const SPREAD_MAX_MS: u64 = 60_000;
/// Seconds in a cell of the two coarser resolutions, and cells that are kept.
const COARSE: [(u64, usize); 2] = [(60, 1440), (900, 2880)];
/// Cells that lie further ahead are of a clock that was wrong.
const AHEAD_MAX: u64 = 60;
/// Numbers in [`Counts`], as they are written.
const VALUES: usize = 18;

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Counts {
    /// By status.
    pub(crate) requests: [f64; STATUSES],
    pub(crate) errors: f64,
    /// Body bytes, `local` left out.
    pub(crate) response_bytes: f64,
    pub(crate) origin_bytes: f64,
    pub(crate) origin_requests: f64,
    /// Body bytes that push orders fetched, from the origin and from neighbours: in no ratio.
    pub(crate) push_origin_bytes: f64,
    pub(crate) push_peer_bytes: f64,
    pub(crate) pushed_hits: f64,
    pub(crate) pushed_hit_bytes: f64,
}

impl Counts {
    /// What came between two totals of the same process; a total that is behind (reports can
    /// overtake one another) brought nothing.
    pub(crate) fn between(before: Option<&SiteTotals>, after: &SiteTotals) -> Self {
        let empty = SiteTotals::default();
        let before = before.unwrap_or(&empty);
        let less = |a: u64, b: u64| a.saturating_sub(b) as f64;
        let of = |map: &BTreeMap<String, u64>, status: &str| map.get(status).copied().unwrap_or(0);
        let mut counts = Self {
            errors: less(after.errors, before.errors),
            origin_bytes: less(after.origin_bytes, before.origin_bytes),
            origin_requests: less(after.origin_requests, before.origin_requests),
            push_origin_bytes: less(after.push_origin_bytes, before.push_origin_bytes),
            push_peer_bytes: less(after.push_peer_bytes, before.push_peer_bytes),
            pushed_hits: less(after.pushed_hits, before.pushed_hits),
            pushed_hit_bytes: less(after.pushed_hit_bytes, before.pushed_hit_bytes),
            ..Self::default()
        };
        for (status, total) in &after.requests {
            let index = CacheStatus::of_word(status).map_or(OTHER, |status| status as usize);
            counts.requests[index] += less(*total, of(&before.requests, status));
        }
        for (status, total) in after
            .bytes
            .iter()
            .filter(|(status, _)| *status != CacheStatus::Local.as_str())
        {
            counts.response_bytes += less(*total, of(&before.bytes, status));
        }
        counts
    }

    /// All numbers, in the order in which they are written: new ones go to the end.
    fn values(&self) -> [f64; VALUES] {
        let Self {
            requests: r,
            errors,
            response_bytes,
            origin_bytes,
            origin_requests,
            push_origin_bytes,
            push_peer_bytes,
            pushed_hits,
            pushed_hit_bytes,
        } = *self;
        let [a, b, c, d, e, f, g, h, i, j] = r;
        let own = [
            errors,
            response_bytes,
            origin_bytes,
            origin_requests,
            pushed_hits,
            pushed_hit_bytes,
            push_origin_bytes,
            push_peer_bytes,
        ];
        let [k, l, m, n, o, p, q, r0] = own;
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r0]
    }

    fn of_values(values: [f64; VALUES]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r] = values;
        let [
            errors,
            response_bytes,
            origin_bytes,
            origin_requests,
            pushed_hits,
            pushed_hit_bytes,
            push_origin_bytes,
            push_peer_bytes,
        ] = [k, l, m, n, o, p, q, r];
        let requests = [a, b, c, d, e, f, g, h, i, j];
        Self {
            requests,
            errors,
            response_bytes,
            origin_bytes,
            origin_requests,
            push_origin_bytes,
            push_peer_bytes,
            pushed_hits,
            pushed_hit_bytes,
        }
    }

    /// Requests that were not `local`.
    pub(crate) fn counted(&self) -> f64 {
        self.requests.iter().sum::<f64>() - self.requests[CacheStatus::Local as usize]
    }

    /// Requests that were hits.
    pub(crate) fn hits(&self) -> f64 {
        let hits = CacheStatus::ALL
            .into_iter()
            .filter(|status| status.is_hit());
        hits.map(|status| self.requests[status as usize]).sum()
    }

    pub(crate) fn add(&mut self, other: &Self, share: f64) {
        for (a, b) in self.requests.iter_mut().zip(other.requests) {
            *a += b * share;
        }
        self.errors += other.errors * share;
        self.response_bytes += other.response_bytes * share;
        self.origin_bytes += other.origin_bytes * share;
        self.origin_requests += other.origin_requests * share;
        self.push_origin_bytes += other.push_origin_bytes * share;
        self.push_peer_bytes += other.push_peer_bytes * share;
        self.pushed_hits += other.pushed_hits * share;
        self.pushed_hit_bytes += other.pushed_hit_bytes * share;
    }

    /// As an answer, over that many seconds.
    pub(crate) fn rates(&self, seconds: u64) -> view::Rates {
        let whole = |n: f64| n.round().max(0.0) as u64;
        let ratio = |part: f64, of: f64| (of >= 0.5).then(|| (part / of).clamp(0.0, 1.0));
        let a_second = |n: f64| n / seconds.max(1) as f64;
        view::Rates {
            seconds,
            requests: status_words()
                .zip(self.requests)
                .filter(|(_, n)| *n >= 0.5)
                .map(|(s, n)| (s.to_owned(), whole(n)))
                .collect(),
            counted: whole(self.counted()),
            hits: whole(self.hits()),
            errors: whole(self.errors),
            requests_per_second: a_second(self.counted()),
            response_bytes: whole(self.response_bytes),
            origin_bytes: whole(self.origin_bytes),
            origin_requests: whole(self.origin_requests),
            push_origin_bytes: whole(self.push_origin_bytes),
            push_peer_bytes: whole(self.push_peer_bytes),
            egress_bits_per_second: a_second(self.response_bytes * 8.0),
            object_hit_ratio: ratio(self.hits(), self.counted()),
            byte_hit_ratio: ratio(self.response_bytes - self.origin_bytes, self.response_bytes),
            pushed_hits: whole(self.pushed_hits),
            pushed_hit_bytes: whole(self.pushed_hit_bytes),
            pushed_hit_ratio: ratio(self.pushed_hits, self.counted()),
        }
    }
}

/// Lifts totals to those of an earlier report of the same process, where that one has more.
pub(crate) fn lift(totals: &mut SiteTotals, earlier: &SiteTotals) {
    let lift_all = |to: &mut BTreeMap<String, u64>, from: &BTreeMap<String, u64>| {
        for (status, total) in from {
            let to = to.entry(status.clone()).or_insert(0);
            *to = (*to).max(*total);
        }
    };
    lift_all(&mut totals.requests, &earlier.requests);
    lift_all(&mut totals.bytes, &earlier.bytes);
    totals.errors = totals.errors.max(earlier.errors);
    totals.origin_bytes = totals.origin_bytes.max(earlier.origin_bytes);
    totals.origin_requests = totals.origin_requests.max(earlier.origin_requests);
    totals.push_origin_bytes = totals.push_origin_bytes.max(earlier.push_origin_bytes);
    totals.push_peer_bytes = totals.push_peer_bytes.max(earlier.push_peer_bytes);
    totals.pushed_hits = totals.pushed_hits.max(earlier.pushed_hits);
    totals.pushed_hit_bytes = totals.pushed_hit_bytes.max(earlier.pushed_hit_bytes);
}

/// What is counted apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Total,
    Cluster(String),
    Site(String),
    Node(String),
}

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    /// Whether a report covers it.
    is_known: bool,
    counts: Counts,
}

/// A row of cells of some seconds each, up to the newest one.
#[derive(Debug, Default)]
struct Row<T> {
    /// Number of the first cell: its time divided by the length of a cell.
    first: u64,
    cells: VecDeque<T>,
}

impl<T: Copy + Default> Row<T> {
    /// The cell of a number, made if need be; none for one that is older than what is kept.
    fn cell_mut(&mut self, number: u64, kept: usize) -> Option<&mut T> {
        if self.cells.is_empty() {
            self.first = number;
        }
        if number < self.first {
            let missing = self.first - number;
            if missing + self.cells.len() as u64 > kept as u64 {
                return None;
            }
            // Another node's time reaches further back.
            for _ in 0..missing {
                self.cells.push_front(T::default());
            }
            self.first = number;
        }
        if number - self.first >= (self.cells.len() + kept) as u64 {
            // Everything kept is too old.
            self.cells.clear();
            self.first = number;
        }
        while self.first + self.cells.len() as u64 <= number {
            self.cells.push_back(T::default());
        }
        while self.cells.len() > kept {
            self.cells.pop_front();
            self.first += 1;
        }
        self.cells.get_mut((number - self.first) as usize)
    }

    fn cell(&self, number: u64) -> T {
        number
            .checked_sub(self.first)
            .and_then(|i| self.cells.get(i as usize))
            .copied()
            .unwrap_or_default()
    }
}

/// A cell of a coarser resolution.
#[derive(Debug, Clone, Copy, Default)]
struct CoarseCell {
    /// Seconds of it that are known.
    seconds: u16,
    values: [f32; VALUES],
}

#[derive(Debug, Default)]
struct Ring {
    seconds: Row<Cell>,
    /// As in [`COARSE`].
    coarse: [Row<CoarseCell>; COARSE.len()],
    since_start: Counts,
    /// The oldest second that has changed since it was last given to be written.
    changed: Option<u64>,
}

impl Ring {
    fn add(&mut self, second: u64, counts: &Counts, share: f64, is_node: bool) {
        let mut cell = self.seconds.cell(second);
        cell.is_known = true;
        cell.counts.add(counts, share);
        self.set(second, cell, is_node);
    }

    /// Replaces a second.
    fn set(&mut self, second: u64, cell: Cell, is_node: bool) {
        let kept = if is_node {
            NODE_SECONDS_KEPT
        } else {
            SECONDS_KEPT
        };
        let Some(place) = self.seconds.cell_mut(second, kept as usize) else {
            return;
        };
        let before = std::mem::replace(place, cell);
        if is_node {
            return;
        }
        self.changed = Some(self.changed.map_or(second, |oldest| oldest.min(second)));
        for (row, (step, kept)) in self.coarse.iter_mut().zip(COARSE) {
            let Some(coarse) = row.cell_mut(second / step, kept) else {
                continue;
            };
            coarse.seconds = (coarse.seconds + u16::from(cell.is_known))
                .saturating_sub(u16::from(before.is_known));
            for ((sum, new), old) in coarse
                .values
                .iter_mut()
                .zip(cell.counts.values())
                .zip(before.counts.values())
            {
                *sum = (*sum + (new - old) as f32).max(0.0);
            }
        }
    }

    /// What is known of the cell of that number and so many seconds, as if it were known whole.
    fn look(&self, number: u64, step: u64) -> Option<Counts> {
        let Some(index) = COARSE.iter().position(|(s, _)| *s == step) else {
            let cell = self.seconds.cell(number);
            return cell.is_known.then_some(cell.counts);
        };
        let cell = self.coarse[index].cell(number);
        if cell.seconds == 0 {
            return None;
        }
        let whole = step as f64 / f64::from(cell.seconds);
        Some(Counts::of_values(cell.values.map(|v| f64::from(v) * whole)))
    }
}

/// Seconds in a cell of the finest resolution that reaches back so many seconds.
pub(crate) fn step(seconds: u64) -> u64 {
    let coarse = COARSE
        .iter()
        .find(|(step, kept)| seconds <= step * *kept as u64)
        .map_or(COARSE[1].0, |(step, _)| *step);
    if seconds <= SECONDS_KEPT { 1 } else { coarse }
}

/// The cells of an answer: `points` of them, `step` seconds each, the last one with second `end` -
/// 1 in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) step: u64,
    /// Number of the first cell.
    pub(crate) first: u64,
    pub(crate) points: u64,
}

impl Span {
    /// The last `seconds` before second `end`, in the finest resolution that there is of them.
    pub(crate) fn before(end: u64, seconds: u64) -> Self {
        let step = step(seconds);
        let points = seconds.div_ceil(step);
        Self {
            step,
            first: end.div_ceil(step).saturating_sub(points),
            points,
        }
    }

    fn cells(self) -> std::ops::Range<u64> {
        self.first..self.first + self.points
    }
}

/// All rings.
#[derive(Debug, Default)]
pub(crate) struct Series {
    rings: BTreeMap<Key, Ring>,
}

impl Series {
    /// Adds what was counted between two real times (milliseconds after the epoch); nothing counted
    /// is known, too.
    pub(crate) fn add(&mut self, key: Key, from_ms: u64, to_ms: u64, counts: &Counts) {
        let is_node = matches!(key, Key::Node(_));
        let Some(ring) = self.ring(key) else { return };
        ring.since_start.add(counts, 1.0);
        let from_ms = from_ms.min(to_ms).max(to_ms.saturating_sub(SPREAD_MAX_MS));
        let span = to_ms - from_ms;
        if span == 0 {
            ring.add(to_ms / 1000, counts, 1.0, is_node);
            return;
        }
        for second in from_ms / 1000..=(to_ms - 1) / 1000 {
            let inside = to_ms.min((second + 1) * 1000) - from_ms.max(second * 1000);
            ring.add(second, counts, inside as f64 / span as f64, is_node);
        }
    }

    /// The ring of a key, made if there may be one more.
    fn ring(&mut self, key: Key) -> Option<&mut Ring> {
        if !self.rings.contains_key(&key) && key != Key::Total {
            let kind = std::mem::discriminant(&key);
            let most = if matches!(key, Key::Node(_)) {
                NODES_MAX
            } else {
                KEYS_MAX
            };
            if self
                .rings
                .keys()
                .filter(|k| std::mem::discriminant(*k) == kind)
                .count()
                >= most
            {
                return None;
            }
        }
        Some(self.rings.entry(key).or_default())
    }

    /// The sum over `seconds` that end before second `end`, of what is known.
    pub(crate) fn recent(&self, key: &Key, end: u64, seconds: u64) -> Counts {
        let mut sum = Counts::default();
        if let Some(ring) = self.rings.get(key) {
            for second in end.saturating_sub(seconds)..end {
                sum.add(&ring.seconds.cell(second).counts, 1.0);
            }
        }
        sum
    }

    /// Everything that was added since this process started.
    pub(crate) fn since_start(&self, key: &Key) -> Counts {
        self.rings
            .get(key)
            .map(|r| r.since_start)
            .unwrap_or_default()
    }

    /// One value a cell; none where nothing is known.
    pub(crate) fn line(&self, key: &Key, span: Span) -> view::Line {
        let mut line = view::Line::default();
        let round = |n: f64| (n * 1000.0).round() / 1000.0;
        for number in span.cells() {
            let cell = self.rings.get(key).and_then(|r| r.look(number, span.step));
            let of = |value: fn(&Counts) -> f64| cell.as_ref().map(|c| round(value(c)));
            let whole = |value: fn(&Counts) -> f64| cell.as_ref().map(|c| value(c).round());
            line.counted.push(of(Counts::counted));
            line.hits.push(of(Counts::hits));
            line.errors.push(of(|c| c.errors));
            line.response_bytes.push(whole(|c| c.response_bytes));
            line.origin_bytes.push(whole(|c| c.origin_bytes));
            line.push_origin_bytes.push(whole(|c| c.push_origin_bytes));
            line.pushed_hits.push(of(|c| c.pushed_hits));
            line.pushed_hit_bytes.push(whole(|c| c.pushed_hit_bytes));
        }
        line
    }

    /// Requests by cache status and cell; statuses that never occur are left out.
    pub(crate) fn statuses(&self, span: Span) -> BTreeMap<String, Vec<Option<f64>>> {
        let Some(ring) = self.rings.get(&Key::Total) else {
            return BTreeMap::new();
        };
        let cells: Vec<Option<Counts>> = span
            .cells()
            .map(|number| ring.look(number, span.step))
            .collect();
        let mut lines = BTreeMap::new();
        for (index, status) in status_words().enumerate() {
            let line: Vec<Option<f64>> = cells
                .iter()
                .map(|c| {
                    c.as_ref()
                        .map(|c| (c.requests[index] * 1000.0).round() / 1000.0)
                })
                .collect();
            if line.iter().flatten().any(|n| *n > 0.0) {
                lines.insert(status.to_owned(), line);
            }
        }
        lines
    }

    /// Forgets clusters, sites and nodes for which `keep` is false.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Key) -> bool) {
        self.rings.retain(|key, _| *key == Key::Total || keep(key));
    }

    /// The seconds that have changed since the last call, as a block for each key.
    pub(crate) fn changed(&mut self) -> Vec<Vec<u8>> {
        let mut blocks = Vec::new();
        for (key, ring) in &mut self.rings {
            let Some(from) = ring.changed.take() else {
                continue;
            };
            let first = from.max(ring.seconds.first);
            let cells = (first..ring.seconds.first + ring.seconds.cells.len() as u64)
                .map(|second| ring.seconds.cell(second));
            blocks.push(block(
                key,
                Kind::Seconds,
                first,
                cells.map(|c| (u16::from(c.is_known), c.counts.values())),
            ));
        }
        blocks
    }

    /// Everything that is kept, as blocks.
    pub(crate) fn all(&mut self) -> Vec<Vec<u8>> {
        let mut blocks = Vec::new();
        for (key, ring) in &mut self.rings {
            if matches!(key, Key::Node(_)) {
                continue;
            }
            ring.changed = None;
            for (row, kind) in ring.coarse.iter().zip([Kind::Minutes, Kind::Quarters]) {
                let cells = row
                    .cells
                    .iter()
                    .map(|c| (c.seconds, c.values.map(f64::from)));
                blocks.push(block(key, kind, row.first, cells));
            }
            let cells = ring
                .seconds
                .cells
                .iter()
                .map(|c| (u16::from(c.is_known), c.counts.values()));
            blocks.push(block(key, Kind::SecondsAlone, ring.seconds.first, cells));
        }
        blocks
    }

    /// Takes in blocks that lie one behind the other. What makes no sense ends it; what came before
    /// holds.
    pub(crate) fn load(&mut self, mut bytes: &[u8], now_second: u64) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            self.load_block(&mut bytes, now_second)
                .ok_or("a block of the series makes no sense")?;
        }
        Ok(())
    }

    fn load_block(&mut self, bytes: &mut &[u8], now_second: u64) -> Option<()> {
        let kind = Kind::of(take::<1>(bytes)?[0])?;
        let key_kind = take::<1>(bytes)?[0];
        let name_bytes = usize::from(u16::from_le_bytes(take(bytes)?));
        let (name, rest) = bytes.split_at_checked(name_bytes)?;
        *bytes = rest;
        let name = String::from_utf8(name.to_vec()).ok()?;
        let key = match key_kind {
            0 => Key::Total,
            1 => Key::Cluster(name),
            2 => Key::Site(name),
            _ => return None,
        };
        let first = u64::from_le_bytes(take(bytes)?);
        let count = u32::from_le_bytes(take(bytes)?);
        let step = kind.step();
        for number in first..first.checked_add(u64::from(count))? {
            let seconds = u16::from_le_bytes(take(bytes)?);
            let mut values = [0.0; VALUES];
            if seconds > 0 {
                let mask = u32::from_le_bytes(take(bytes)?);
                for index in (0..32).filter(|index| mask >> index & 1 == 1) {
                    let value = f64::from(f32::from_le_bytes(take(bytes)?));
                    // A newer version may count more.
                    if let Some(place) = values.get_mut(index) {
                        *place = if value.is_finite() {
                            value.max(0.0)
                        } else {
                            0.0
                        };
                    }
                }
            }
            let second = number.checked_mul(step)?;
            if second > now_second + AHEAD_MAX || second + TIME_KEPT < now_second {
                continue;
            }
            let Some(ring) = self.ring(key.clone()) else {
                continue;
            };
            match kind.coarse() {
                Some(index) => {
                    if let Some(cell) = ring.coarse[index].cell_mut(number, COARSE[index].1) {
                        *cell = CoarseCell {
                            seconds: seconds.min(step as u16),
                            values: values.map(|v| v as f32),
                        };
                    }
                }
                None => {
                    let cell = Cell {
                        is_known: seconds > 0,
                        counts: Counts::of_values(values),
                    };
                    if kind == Kind::Seconds {
                        ring.set(number, cell, false);
                    } else if let Some(place) = ring.seconds.cell_mut(number, SECONDS_KEPT as usize)
                    {
                        *place = cell;
                    }
                }
            }
            ring.changed = None;
        }
        Some(())
    }
}

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Seconds, which the coarser cells are to take in.
    Seconds,
    /// Seconds that the coarser cells have taken in.
    SecondsAlone,
    Minutes,
    Quarters,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [
            Self::Seconds,
            Self::SecondsAlone,
            Self::Minutes,
            Self::Quarters,
        ]
        .get(usize::from(byte))
        .copied()
    }

    fn coarse(self) -> Option<usize> {
        match self {
            Self::Seconds | Self::SecondsAlone => None,
            Self::Minutes => Some(0),
            Self::Quarters => Some(1),
        }
    }

    fn step(self) -> u64 {
        self.coarse().map_or(1, |index| COARSE[index].0)
    }
}

/// Kind, key, number of the first cell, cells: for each how many seconds of it are known (0: that
/// is all of it), which numbers are not zero, and those.
fn block(
    key: &Key,
    kind: Kind,
    first: u64,
    cells: impl Iterator<Item = (u16, [f64; VALUES])>,
) -> Vec<u8> {
    let (key_kind, name) = match key {
        Key::Total => (0, ""),
        Key::Cluster(name) => (1, name.as_str()),
        Key::Site(name) => (2, name.as_str()),
        Key::Node(_) => (u8::MAX, ""),
    };
    let mut bytes = vec![kind as u8, key_kind];
    bytes.extend((name.len() as u16).to_le_bytes());
    bytes.extend(name.as_bytes());
    bytes.extend(first.to_le_bytes());
    let at = bytes.len();
    bytes.extend(0u32.to_le_bytes());
    let mut count = 0u32;
    for (seconds, values) in cells {
        count += 1;
        bytes.extend(seconds.to_le_bytes());
        if seconds > 0 {
            let mask = values
                .iter()
                .enumerate()
                .fold(0u32, |mask, (n, v)| mask | u32::from(*v != 0.0) << n);
            bytes.extend(mask.to_le_bytes());
            bytes.extend(
                values
                    .iter()
                    .filter(|v| **v != 0.0)
                    .flat_map(|v| (*v as f32).to_le_bytes()),
            );
        }
    }
    bytes[at..at + 4].copy_from_slice(&count.to_le_bytes());
    bytes
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(hit: u64, miss: u64, bytes: u64, origin_bytes: u64) -> SiteTotals {
        SiteTotals {
            requests: [("hit".to_owned(), hit), ("miss".to_owned(), miss)].into(),
            bytes: [("hit".to_owned(), bytes), ("local".to_owned(), 5)].into(),
            origin_bytes,
            ..SiteTotals::default()
        }
    }

    #[test]
    fn totals_become_differences() {
        let table = [
            (None, totals(10, 2, 100, 20), (12.0, 10.0, 100.0, 20.0)),
            (
                Some(totals(10, 2, 100, 20)),
                totals(15, 2, 180, 20),
                (5.0, 5.0, 80.0, 0.0),
            ),
            (
                Some(totals(10, 2, 100, 20)),
                totals(9, 3, 100, 5),
                (1.0, 0.0, 0.0, 0.0),
            ),
        ];
        for (before, after, (counted, hits, bytes, origin)) in table {
            let c = Counts::between(before.as_ref(), &after);
            assert_eq!(
                (c.counted(), c.hits(), c.response_bytes, c.origin_bytes),
                (counted, hits, bytes, origin)
            );
        }
        let mut overtaken = totals(9, 3, 90, 30);
        lift(&mut overtaken, &totals(10, 2, 100, 20));
        assert_eq!(overtaken, totals(10, 3, 100, 30));
        let odd = SiteTotals {
            requests: [("new-status".to_owned(), 3), ("local".to_owned(), 9)].into(),
            ..SiteTotals::default()
        };
        let c = Counts::between(None, &odd);
        assert_eq!(
            (c.counted(), c.hits()),
            (3.0, 0.0),
            "unknown statuses count, local ones do not"
        );
    }

    #[test]
    fn ratios_are_null_until_something_is_counted() {
        let nothing = Counts::default().rates(30);
        assert_eq!(
            (
                nothing.object_hit_ratio,
                nothing.byte_hit_ratio,
                nothing.pushed_hit_ratio
            ),
            (None, None, None)
        );
        let some = Counts::between(None, &totals(9, 1, 1000, 100)).rates(10);
        assert_eq!(
            (
                some.object_hit_ratio,
                some.byte_hit_ratio,
                some.requests_per_second
            ),
            (Some(0.9), Some(0.9), 1.0)
        );
        assert_eq!(
            some.requests,
            [("hit".to_owned(), 9), ("miss".to_owned(), 1)].into()
        );
        let more_from_origin = Counts::between(None, &totals(9, 1, 100, 1000)).rates(10);
        assert_eq!(more_from_origin.byte_hit_ratio, Some(0.0));
    }

    #[test]
    fn a_difference_is_spread_over_its_time() {
        let c = Counts::between(None, &totals(10, 0, 1000, 0));
        let table = [
            (10_000, 12_000, vec![(10, 5.0), (11, 5.0), (12, 0.0)]),
            (10_500, 12_500, vec![(10, 2.5), (11, 5.0), (12, 2.5)]),
            (10_200, 10_700, vec![(10, 10.0)]),
            (10_000, 10_000, vec![(10, 10.0)]),
            (
                0,
                100_000,
                vec![(39, 0.0), (40, 10.0 / 60.0), (99, 10.0 / 60.0), (100, 0.0)],
            ),
        ];
        for (from, to, expected) in table {
            let mut s = Series::default();
            s.add(Key::Total, from, to, &c);
            for (second, hits) in expected {
                let got = s.recent(&Key::Total, second + 1, 1).hits();
                assert!(
                    (got - hits).abs() < 1e-9,
                    "{from}..{to}: {got} at {second}, expected {hits}"
                );
            }
            assert!((s.recent(&Key::Total, 200, 200).hits() - 10.0).abs() < 1e-9);
        }
    }

    #[test]
    fn an_hour_is_kept_and_no_more_keys_than_the_limit() {
        let c = Counts::between(None, &totals(1, 0, 0, 0));
        let mut s = Series::default();
        for second in 0..2 * SECONDS_KEPT {
            s.add(Key::Total, second * 1000, second * 1000 + 1000, &c);
        }
        assert_eq!(
            s.recent(&Key::Total, 2 * SECONDS_KEPT, 2 * SECONDS_KEPT)
                .hits(),
            SECONDS_KEPT as f64
        );
        assert_eq!(s.since_start(&Key::Total).hits(), 2.0 * SECONDS_KEPT as f64);
        s.add(Key::Total, 99_999_000, 100_000_000, &c);
        assert_eq!(
            s.rings[&Key::Total].seconds.cells.len(),
            1,
            "a long silence leaves nothing"
        );
        s.add(Key::Total, 1000, 2000, &c);
        assert_eq!(
            s.recent(&Key::Total, 100_000, 100_000).hits(),
            1.0,
            "what is too old is not counted by second"
        );
        for n in 0..2 * KEYS_MAX {
            s.add(Key::Site(n.to_string()), 0, 1000, &c);
        }
        assert_eq!(s.rings.len(), KEYS_MAX + 1);
        s.retain(|k| *k == Key::Site("7".into()));
        assert_eq!(s.rings.len(), 2);
    }

    #[test]
    fn lines_have_one_value_a_second_and_gaps() {
        let c = Counts::between(None, &totals(4, 2, 100, 50));
        let mut s = Series::default();
        s.add(Key::Total, 5000, 7000, &c);
        s.add(Key::Total, 8000, 9000, &Counts::default());
        let span = Span::before(10, 6);
        let line = s.line(&Key::Total, span);
        let known =
            |list: [f64; 2]| vec![None, Some(list[0]), Some(list[1]), None, Some(0.0), None];
        assert_eq!(
            (line.hits, line.counted, line.origin_bytes),
            (known([2.0; 2]), known([3.0; 2]), known([25.0; 2]))
        );
        assert_eq!(
            s.statuses(span),
            [
                ("hit".to_owned(), known([2.0; 2])),
                ("miss".to_owned(), known([1.0; 2]))
            ]
            .into()
        );
        assert_eq!(s.line(&Key::Site("x".into()), span).hits, vec![None; 6]);
    }

    #[test]
    fn spans_have_the_finest_resolution_that_reaches_back() {
        let table = [
            (1, 1, 1),
            (3600, 1, 3600),
            (3601, 60, 61),
            (86_400, 60, 1440),
            (86_401, 900, 97),
            (TIME_KEPT, 900, 2880),
        ];
        for (seconds, step, points) in table {
            let span = Span::before(10_000_001, seconds);
            assert_eq!((span.step, span.points), (step, points), "{seconds}");
            assert!(
                (span.first + span.points) * step >= 10_000_001
                    && (span.first + span.points - 1) * step <= 10_000_001,
                "{span:?}"
            );
        }
    }

    /// Ten requests a second from second `from` to `to`, reported every two seconds.
    fn steady(s: &mut Series, from: u64, to: u64) {
        let c = Counts::between(None, &totals(16, 4, 2000, 400));
        for second in (from..to).step_by(2) {
            s.add(Key::Total, second * 1000, second * 1000 + 2000, &c);
            s.add(
                Key::Site("www".into()),
                second * 1000,
                second * 1000 + 2000,
                &c,
            );
        }
    }

    const T: u64 = 1_780_272_000;

    #[test]
    fn days_are_kept_in_coarser_cells_and_an_unknown_part_is_no_zero() {
        let mut s = Series::default();
        steady(&mut s, T, T + 7200);
        // Half a minute is missing, then two hours.
        steady(&mut s, T + 7230, T + 7260);
        steady(&mut s, T + 14_460, T + 14_520);
        let day = s.line(&Key::Total, Span::before(T + 14_520, 86_400));
        let at = |minute: usize| day.counted[1440 - 242 + minute];
        assert_eq!(
            (
                day.counted[0],
                at(0),
                at(119),
                at(120),
                at(121),
                at(240),
                at(241)
            ),
            (
                None,
                Some(600.0),
                Some(600.0),
                Some(600.0),
                None,
                None,
                Some(600.0)
            )
        );
        let month = s.line(
            &Key::Site("www".into()),
            Span::before(T + 14_520, TIME_KEPT),
        );
        let known: Vec<f64> = month.counted.iter().flatten().copied().collect();
        assert_eq!(
            (month.counted.len(), known),
            (2880, vec![9000.0; 10]),
            "{:?}",
            &month.counted[2860..]
        );
    }

    #[test]
    fn what_is_written_is_read_again_also_in_part_and_twice() {
        let mut s = Series::default();
        steady(&mut s, T, T + 600);
        let now = T + 5000;
        let mut written: Vec<Vec<u8>> = s.all();
        // A late report changes seconds that were written before.
        s.add(
            Key::Total,
            (T + 590) * 1000,
            (T + 610) * 1000,
            &Counts::between(None, &totals(20, 0, 0, 0)),
        );
        written.extend(s.changed());
        assert!(s.changed().is_empty(), "nothing is new");
        steady(&mut s, T + 610, T + 2400);
        written.extend(s.changed());
        steady(&mut s, T + 2400, T + 4800);
        let more = s.changed();
        written.extend(more.clone());
        written.extend(more);
        let mut read = Series::default();
        read.load(&written.concat(), now).unwrap();
        for seconds in [60, 3600, 86_400, TIME_KEPT] {
            let span = Span::before(T + 4800, seconds);
            for key in [Key::Total, Key::Site("www".into())] {
                assert!(
                    read.line(&key, span) == s.line(&key, span),
                    "{key:?} {seconds}"
                );
            }
            assert_eq!(read.statuses(span), s.statuses(span));
        }
        assert!(read.changed().is_empty() && read.since_start(&Key::Total) == Counts::default());
        // Written anew, it is the same.
        let mut again = Series::default();
        again.load(&read.all().concat(), now).unwrap();
        let span = Span::before(T + 4800, 86_400);
        assert!(again.line(&Key::Total, span) == s.line(&Key::Total, span));
        // Half of it is half of it, and odd bytes end it.
        let whole = written.concat();
        for cut in (0..whole.len()).step_by(1009) {
            let _ = Series::default().load(&whole[..cut], now);
        }
        let mut late = Series::default();
        late.load(&whole, T + 40 * 86_400).unwrap();
        assert!(
            late.rings.is_empty(),
            "what is older than 30 days is left out"
        );
        assert!(Series::default().load(&[9; 40], now).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = Series::default().load(&bytes, T);
        }
    }
}
