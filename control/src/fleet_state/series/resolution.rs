//! The resolutions of the time series, and the cells of an answer.

/// Seconds that are kept one by one: an hour.
pub(crate) const SECONDS_KEPT: u64 = 3600;
/// The same for a node.
pub(crate) const NODE_SECONDS_KEPT: u64 = 120;
/// The longest time that is kept at all, in seconds.
pub(crate) const TIME_KEPT: u64 = 30 * 86_400;
/// The two coarser resolutions: seconds in a cell, and cells that are kept.
pub(super) const COARSE: [(u64, usize); 2] = [(60, 1440), (900, 2880)];

/// Seconds in a cell of the finest resolution that reaches back this many seconds.
pub(super) fn step(seconds: u64) -> u64 {
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
    /// The last `seconds` before second `end`, in the finest resolution that is kept of them.
    pub(crate) fn before(end: u64, seconds: u64) -> Self {
        let step = step(seconds);
        let points = seconds.div_ceil(step);
        Self {
            step,
            first: end.div_ceil(step).saturating_sub(points),
            points,
        }
    }

    /// Those of its cells that begin at `unix_ms` or later. Step and end stay the same.
    pub(crate) fn since(self, unix_ms: u64) -> Self {
        let end = self.first + self.points;
        let first = unix_ms.div_ceil(self.step * 1000).clamp(self.first, end);
        Self {
            first,
            points: end - first,
            ..self
        }
    }

    /// Numbers of the cells.
    pub(super) fn cells(self) -> std::ops::Range<u64> {
        self.first..self.first + self.points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_since_a_time_keeps_its_end_and_its_step() {
        let whole = Span::before(1000, 300);
        for (unix_ms, first, points) in [
            (0, 700, 300),
            (700_000, 700, 300),
            (990_000, 990, 10),
            (989_001, 990, 10),
            (1_000_000, 1000, 0),
            (u64::MAX, 1000, 0),
        ] {
            let part = whole.since(unix_ms);
            assert_eq!(
                (part.step, part.first, part.points),
                (1, first, points),
                "{unix_ms}"
            );
        }
        let day = Span::before(90_000, 86_400);
        let newest = day.since(89_940_000);
        assert_eq!((newest.step, newest.points), (60, 1));
    }
}
