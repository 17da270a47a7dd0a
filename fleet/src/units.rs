//! Quantities with units, as a fleet file writes them: `"30s"`, `"512MiB"`, `"1Gbit/s"`.

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Bytes(pub u64);
