//! Randomness that a seed repeats (SplitMix64).

/// A generator. Good enough to draw clients with; not for secrets.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    /// The sequence of that seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to, not including, 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// From 0 up to, not including, `count`, which is not 0.
    pub(super) fn below(&mut self, count: usize) -> usize {
        ((self.unit() * count as f64) as usize).min(count - 1)
    }

    /// Whether something of that probability happens.
    pub(super) fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// The time until the next of events that come at `rate`.
    pub(super) fn until_next(&mut self, rate: f64) -> f64 {
        -(1.0 - self.unit()).ln() / rate
    }
}

/// Draws ranks from 0 with probability in proportion to 1 / (rank + 1)^exponent.
#[derive(Debug, Clone)]
pub(super) struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    /// Over `count` ranks, at least one.
    pub(super) fn new(count: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let cumulative = (0..count.max(1))
            .map(|rank| {
                sum += ((rank + 1) as f64).powf(-exponent);
                sum
            })
            .collect();
        Self { cumulative }
    }

    /// A rank.
    pub(super) fn draw(&self, random: &mut Random) -> usize {
        let all = self.cumulative.last().copied().unwrap_or(1.0);
        let at = random.unit() * all;
        self.cumulative
            .partition_point(|sum| *sum <= at)
            .min(self.cumulative.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_their_distributions() {
        let mut random = Random::new(7);
        let n = 20_000;
        let zipf = Zipf::new(24, 0.9);
        let mut counts = [0u32; 24];
        for _ in 0..n {
            counts[zipf.draw(&mut random)] += 1;
        }
        let all: f64 = (1..=24).map(|r| f64::from(r).powf(-0.9)).sum();
        for rank in [0usize, 1, 9, 23] {
            let expected = f64::from(n) * ((rank + 1) as f64).powf(-0.9) / all;
            let off = (f64::from(counts[rank]) - expected).abs();
            assert!(
                off < 5.0 * expected.sqrt(),
                "rank {rank}: {} for {expected}",
                counts[rank]
            );
        }
        let mean = (0..n).map(|_| random.until_next(4.0)).sum::<f64>() / f64::from(n);
        assert!((mean - 0.25).abs() < 0.01, "{mean}");
        assert!((0..1000).all(|_| random.below(3) < 3));
    }
}
