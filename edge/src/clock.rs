//! The time of day, as a value that is handed to the parts that read it.

use nearcast_fleet::clock::now_unix_ms;

/// Reads the time of day. Intervals and deadlines are the runtime's: tests pause those.
#[derive(Debug, Clone, Default)]
pub(crate) enum Clock {
    /// The system's clock.
    #[default]
    System,
    /// A clock that advances with the runtime's, which tests pause.
    #[cfg(test)]
    Runtime {
        /// Milliseconds after the Unix epoch at `start`.
        unix_ms: u64,
        start: tokio::time::Instant,
    },
}

impl Clock {
    /// A clock that advances with the runtime's, from `unix_ms` on.
    #[cfg(test)]
    pub(crate) fn of_runtime(unix_ms: u64) -> Self {
        Self::Runtime {
            unix_ms,
            start: tokio::time::Instant::now(),
        }
    }

    /// Milliseconds after the Unix epoch, now.
    pub(crate) fn unix_ms(&self) -> u64 {
        match self {
            Self::System => now_unix_ms(),
            #[cfg(test)]
            Self::Runtime { unix_ms, start } => unix_ms + start.elapsed().as_millis() as u64,
        }
    }
}
