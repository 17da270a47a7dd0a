//! Counts over time: by second for the last hour, by minute for a day, by quarter of an hour for 30
//! days; for the fleet, each cluster and each site, and by second for two minutes for each node.
//!
//! Reports carry totals. The difference of two totals is spread evenly over the time between them, so
//! that a long report interval does not draw saw teeth. A cell that no report covers is unknown,
//! which is not zero. Memory is bounded by the cells of a key and by [`KEYS_MAX`] and [`NODES_MAX`].
//! Pure: the time is an argument.
//!
//! [`Series::changed`] returns changed cells as blocks of bytes, and [`Series::load`] loads them
//! again. A block replaces the cells that it names, so blocks may overlap.

mod block;
mod counts;
mod resolution;
mod ring;

use std::collections::BTreeMap;

use crate::fleet_state::series::block::{BlockHead, Kind, decode_cell};
use crate::fleet_state::series::counts::status_words;
use crate::fleet_state::series::resolution::COARSE;
use crate::fleet_state::series::ring::{Cell, CoarseCell, Ring};
use crate::views;

pub(crate) use counts::{Counts, keep_monotonic};
pub(crate) use resolution::{NODE_SECONDS_KEPT, SECONDS_KEPT, Span, TIME_KEPT};
pub(crate) use ring::Key;

/// Clusters and sites that are counted apart. Further ones count only in the total.
const KEYS_MAX: usize = 128;
/// Nodes that are counted apart.
const NODES_MAX: usize = 4096;
/// Longest time over which a difference is spread.
const SPREAD_MAX_MS: u64 = 60_000;
/// Cells further in the future come from a clock that was wrong.
const AHEAD_MAX: u64 = 60;

/// The rings of all keys.
#[derive(Debug, Default)]
pub(crate) struct Series {
    rings: BTreeMap<Key, Ring>,
}

impl Series {
    /// Adds the counts between two real times (milliseconds after the epoch). Counts of zero make the
    /// cells known, too.
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

    /// The ring of a key, created when the limits allow one more.
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

    /// The sum of the known cells of the `seconds` before second `end`.
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

    /// One value for each cell; `None` where nothing is known.
    pub(crate) fn line(&self, key: &Key, span: Span) -> views::Line {
        let mut line = views::Line::default();
        let round = |n: f64| (n * 1000.0).round() / 1000.0;
        for number in span.cells() {
            let cell = self
                .rings
                .get(key)
                .and_then(|r| r.counts(number, span.step));
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
            .map(|number| ring.counts(number, span.step))
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

    /// Drops clusters, sites and nodes for which `keep` is false.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Key) -> bool) {
        self.rings.retain(|key, _| *key == Key::Total || keep(key));
    }

    /// The seconds that have changed since the last call, one block for each key.
    pub(crate) fn changed(&mut self) -> Vec<Vec<u8>> {
        let mut blocks = Vec::new();
        for (key, ring) in &mut self.rings {
            let Some(from) = ring.changed.take() else {
                continue;
            };
            let first = from.max(ring.seconds.first);
            let cells = (first..ring.seconds.first + ring.seconds.cells.len() as u64)
                .map(|second| ring.seconds.cell(second));
            blocks.push(block::encode(
                key,
                Kind::Seconds,
                first,
                cells.map(|c| (u16::from(c.is_known), c.counts.values())),
            ));
        }
        blocks
    }

    /// All cells, as blocks.
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
                blocks.push(block::encode(key, kind, row.first, cells));
            }
            let cells = ring
                .seconds
                .cells
                .iter()
                .map(|c| (u16::from(c.is_known), c.counts.values()));
            blocks.push(block::encode(
                key,
                Kind::SecondsAlone,
                ring.seconds.first,
                cells,
            ));
        }
        blocks
    }

    /// Loads a sequence of blocks. An invalid block ends it; earlier ones stay loaded.
    pub(crate) fn load(&mut self, mut bytes: &[u8], now_second: u64) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            self.load_block(&mut bytes, now_second)
                .ok_or("a block of the series is invalid")?;
        }
        Ok(())
    }

    fn load_block(&mut self, bytes: &mut &[u8], now_second: u64) -> Option<()> {
        let BlockHead {
            kind,
            key,
            first,
            count,
        } = BlockHead::decode(bytes)?;
        let step = kind.step();

        for number in first..first.checked_add(u64::from(count))? {
            let (seconds, values) = decode_cell(bytes)?;
            let second = number.checked_mul(step)?;
            if second > now_second + AHEAD_MAX || second + TIME_KEPT < now_second {
                continue;
            }
            let Some(ring) = self.ring(key.clone()) else {
                continue;
            };
            let cell = Cell {
                is_known: seconds > 0,
                counts: Counts::of_values(values),
            };
            match kind {
                Kind::Seconds => ring.set(number, cell, false),
                Kind::SecondsAlone => {
                    if let Some(slot) = ring.seconds.cell_mut(number, SECONDS_KEPT as usize) {
                        *slot = cell;
                    }
                }
                Kind::Minutes | Kind::Quarters => {
                    let index = kind.coarse()?;
                    if let Some(slot) = ring.coarse[index].cell_mut(number, COARSE[index].1) {
                        *slot = CoarseCell {
                            seconds: seconds.min(step as u16),
                            values: values.map(|v| v as f32),
                        };
                    }
                }
            }
            ring.changed = None;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearcast_fleet::report::SiteTotals;

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
        keep_monotonic(&mut overtaken, &totals(10, 2, 100, 20));
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
        // A rewrite holds the same.
        let mut again = Series::default();
        again.load(&read.all().concat(), now).unwrap();
        let span = Span::before(T + 4800, 86_400);
        assert!(again.line(&Key::Total, span) == s.line(&Key::Total, span));
        // A prefix restores a part, and invalid bytes end the load.
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
