//! Popularity by rank.

use nearcast_fleet::random::Random;

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
    fn draws_follow_their_distribution() {
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
    }
}
