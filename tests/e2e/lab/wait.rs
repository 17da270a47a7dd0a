//! Waiting for a condition instead of sleeping for a guess.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(20);

/// Looks at a condition until it holds and gives its value.
///
/// # Panics
/// When it does not hold within `limit`; says what was waited for and why it did not hold at last.
pub fn until<T, E: Display>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<T, E>,
) -> T {
    let start = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(why) if start.elapsed() > limit => panic!("waited {limit:?} for {what}: {why}"),
            Err(_) => std::thread::park_timeout(STEP),
        }
    }
}
