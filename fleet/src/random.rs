//! Random numbers: a small generator that a seed repeats, and entropy from the operating system.

/// The increment of SplitMix64: the golden ratio in 64 bits.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A generator whose numbers a seed repeats (SplitMix64). Good enough for choices, jitter and tests;
/// its numbers can be predicted, so it never makes secrets.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        let number = mix(self.0);
        self.0 = self.0.wrapping_add(GAMMA);
        number
    }

    /// The next number of [0, 1).
    pub fn unit(&mut self) -> f64 {
        unit(self.bits())
    }

    /// The next number of [0, `count`); `count` is not 0.
    pub fn below(&mut self, count: usize) -> usize {
        ((self.unit() * count as f64) as usize).min(count - 1)
    }

    /// `true` with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Seconds until the next event of a Poisson process with `rate` events a second.
    pub fn until_next(&mut self, rate: f64) -> f64 {
        -(1.0 - self.unit()).ln() / rate
    }
}

/// Mixes the bits of a number, so that similar numbers give unrelated ones (the output function of
/// SplitMix64).
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(GAMMA);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number of [0, 1) from 64 random bits.
pub fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// Random bytes from the operating system, fit for secrets.
///
/// # Errors
/// The operating system provides none.
pub fn entropy<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(std::io::Error::other(format!(
            "the operating system provides no random bytes: {error}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_splitmix64() {
        // The reference implementation's first numbers for the seed 1234567.
        let mut random = Random::new(1_234_567);
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(expected.map(|_| random.bits()), expected);
        assert_eq!(mix(1_234_567), expected[0]);
    }

    #[test]
    fn draws_stay_in_their_ranges() {
        let mut random = Random::new(7);
        assert_eq!((unit(0), unit(u64::MAX) < 1.0), (0.0, true));
        assert!((0..1000).all(|_| (0.0..1.0).contains(&random.unit())));
        assert!((0..1000).all(|_| random.below(3) < 3));
        assert!((0..1000).all(|_| random.chance(1.0) && !random.chance(0.0)));
        let mean = (0..20_000).map(|_| random.until_next(4.0)).sum::<f64>() / 20_000.0;
        assert!((mean - 0.25).abs() < 0.01, "{mean}");
    }

    #[test]
    fn entropy_differs_each_time() {
        let (one, other): ([u8; 16], [u8; 16]) =
            (entropy().expect("bytes"), entropy().expect("bytes"));
        assert_ne!(one, other);
    }
}
