//! Quantities with units in fleet files and on the command line: `"30s"`, `"512MiB"`, `"1Gbit/s"`,
//! `"10%"`.
//!
//! A quantity is a number, possibly with a fraction, and a unit; spaces between the two are
//! allowed. A bare `0` needs no unit. The arithmetic is that of integers, so values are exact.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Bytes(pub u64);

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The text does not begin with a number.
    #[error("{text:?} does not begin with a number; write for example {example:?}")]
    Number {
        /// The text.
        text: String,
        /// An example.
        example: &'static str,
    },
    /// The unit is missing.
    #[error("{text:?} has no unit; write one of {units}, for example {example:?}")]
    NoUnit {
        /// The text.
        text: String,
        /// The known units.
        units: &'static str,
        /// An example.
        example: &'static str,
    },
    /// The unit is unknown.
    #[error("{unit:?} is not a unit here; write one of {units}, for example {example:?}")]
    Unit {
        /// The unit as written.
        unit: String,
        /// The known units.
        units: &'static str,
        /// An example.
        example: &'static str,
    },
    /// The number is too large.
    #[error("{text:?} is too large")]
    TooLarge {
        /// The text.
        text: String,
    },
}

/// The units of one kind of quantity, each with its size in the base unit.
struct Kind {
    units: &'static [(&'static str, u64)],
    list: &'static str,
    example: &'static str,
}

/// Base unit: a millisecond.
const DURATION: Kind = Kind {
    units: &[
        ("ms", 1),
        ("s", 1000),
        ("m", 60_000),
        ("h", 3_600_000),
        ("d", 86_400_000),
    ],
    list: "ms, s, m, h, d",
    example: "30s",
};

/// Base unit: a byte.
const BYTES: Kind = Kind {
    units: &[
        ("B", 1),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ],
    list: "B, KiB, MiB, GiB, TiB, kB, MB, GB, TB",
    example: "512MiB",
};

/// Base unit: a bit a second.
const RATE: Kind = Kind {
    units: &[
        ("bit/s", 1),
        ("kbit/s", 1000),
        ("Mbit/s", 1_000_000),
        ("Gbit/s", 1_000_000_000),
        ("Tbit/s", 1_000_000_000_000),
    ],
    list: "bit/s, kbit/s, Mbit/s, Gbit/s, Tbit/s",
    example: "100Mbit/s",
};

/// Base unit: a millionth.
const PERCENT: Kind = Kind {
    units: &[("%", 10_000)],
    list: "%",
    example: "10%",
};

/// Parses a duration: `ms`, `s`, `m`, `h`, `d`; whole milliseconds.
///
/// # Errors
/// [`UnitError`].
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    quantity(text, &DURATION).map(Duration::from_millis)
}

/// Parses a size in bytes: `B`, `KiB` to `TiB` (powers of 1024), `kB` to `TB` (powers of 1000).
///
/// # Errors
/// [`UnitError`].
pub fn bytes(text: &str) -> Result<Bytes, UnitError> {
    quantity(text, &BYTES).map(Bytes)
}

/// Parses a rate into bits a second: `bit/s`, `kbit/s` to `Tbit/s` (powers of 1000).
///
/// # Errors
/// [`UnitError`].
pub fn rate(text: &str) -> Result<u64, UnitError> {
    quantity(text, &RATE)
}

/// Parses a percentage into a share: `"10%"` is 0.1.
///
/// # Errors
/// [`UnitError`].
pub fn percent(text: &str) -> Result<f64, UnitError> {
    quantity(text, &PERCENT).map(|millionths| millionths as f64 / 1e6)
}

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        bytes(text)
    }
}

impl Bytes {
    /// Rounded for people to about three digits: `1.5 GiB`, `340 KiB`, `12 B`.
    pub fn rounded(self) -> String {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let (mut value, mut unit) = (self.0 as f64, 0);
        while value >= 1023.5 && unit + 1 < units.len() {
            value /= 1024.0;
            unit += 1;
        }
        let digits = usize::from(unit > 0 && value < 99.95);
        format!("{value:.digits$} {}", units[unit])
    }
}

impl fmt::Display for Bytes {
    /// Exact: in the largest power of 1024 that leaves no fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match units
            .iter()
            .find(|(_, shift)| self.0 > 0 && self.0.is_multiple_of(1 << shift))
        {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

fn quantity(text: &str, kind: &Kind) -> Result<u64, UnitError> {
    let too_large = || UnitError::TooLarge { text: text.into() };
    let trimmed = text.trim();
    let number_end = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = (&trimmed[..number_end], trimmed[number_end..].trim_start());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || number.ends_with('.') {
        return Err(UnitError::Number {
            text: text.into(),
            example: kind.example,
        });
    }

    let size = match kind.units.iter().find(|(name, _)| *name == unit) {
        Some((_, size)) => u128::from(*size),
        None if unit.is_empty() && number.bytes().all(|b| b == b'0' || b == b'.') => 1,
        None if unit.is_empty() => {
            return Err(UnitError::NoUnit {
                text: text.into(),
                units: kind.list,
                example: kind.example,
            });
        }
        None => {
            return Err(UnitError::Unit {
                unit: unit.into(),
                units: kind.list,
                example: kind.example,
            });
        }
    };

    if fraction.len() > 9 {
        return Err(UnitError::Number {
            text: text.into(),
            example: kind.example,
        });
    }

    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let scale = 10u128.pow(fraction.len() as u32);
    let fraction: u128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().expect("at most nine digits")
    };

    u64::try_from(u128::from(whole) * size + fraction * size / scale).map_err(|_| too_large())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rounded_bytes_read_well() {
        let mebi = 1 << 20;
        let table = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (340 * 1024, "340 KiB"),
            (3 * mebi / 2, "1.5 MiB"),
            (mebi - 1, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, expected) in table {
            assert_eq!(Bytes(bytes).rounded(), expected, "{bytes}");
        }
    }

    #[test]
    fn quantities_are_read_as_written() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("250ms", 250),
            ("20s", 20_000),
            ("1.5s", 1500),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
            (" 3 s ", 3000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for (text, expected) in [
            ("0", 0),
            ("10B", 10),
            ("64KiB", 65_536),
            ("512MiB", 512 << 20),
            ("1GiB", 1 << 30),
            ("2TiB", 2 << 40),
            ("1kB", 1000),
            ("1.5GB", 1_500_000_000),
        ] {
            assert_eq!(bytes(text), Ok(Bytes(expected)), "{text}");
        }
        for (text, expected) in [
            ("9600bit/s", 9600),
            ("64kbit/s", 64_000),
            ("200Mbit/s", 200_000_000),
            ("2.5Gbit/s", 2_500_000_000),
        ] {
            assert_eq!(rate(text), Ok(expected), "{text}");
        }
        for (text, expected) in [("0%", 0.0), ("1%", 0.01), ("12.5%", 0.125), ("100%", 1.0)] {
            assert_eq!(percent(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_told_what_would_be() {
        for (text, words) in [
            ("20", "has no unit"),
            (
                "5 fortnights",
                "\"fortnights\" is not a unit here; write one of ms, s, m, h, d",
            ),
            ("s", "does not begin with a number"),
            ("", "does not begin with a number"),
            ("-5s", "does not begin with a number"),
            ("1.2.3s", "does not begin with a number"),
            ("1.s", "does not begin with a number"),
            ("5S", "\"S\" is not a unit here"),
            ("999999999999999999999s", "too large"),
            ("18446744073709551615d", "too large"),
        ] {
            let error = duration(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        for text in ["1gb", "1G", "1 mib", "MiB", "1KB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        for text in ["1Mbps", "1Mbit", "1MB/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn shown_bytes_read_back(n in any::<u64>()) {
            prop_assert_eq!(Bytes(n).to_string().parse(), Ok(Bytes(n)));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = (duration(&text), bytes(&text), rate(&text), percent(&text));
        }
    }
}
