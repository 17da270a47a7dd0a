//! Whether a fill continues when its last reader leaves before the body is complete.
//!
//! The bytes that were stored stay in both cases, and a later request fetches the rest alone.
//! Without a strong validator that is impossible, and the bytes are lost. HTTP leaves the choice to
//! the cache; RFC 9111 section 3.3 says how an incomplete response may be used.

use nearcast_fleet::config::CachePolicy;

/// A fill without readers. All values are offsets in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abandoned {
    /// First byte of the fill.
    pub first: u64,
    /// Offset after the last byte; `None` while it is unknown.
    pub end: Option<u64>,
    /// Offset of the next byte when the last reader left.
    pub left_at: u64,
    /// Offset of the next byte now.
    pub at: u64,
}

impl Abandoned {
    /// Whether the fill continues under a site's policy. Where the end is unknown it may receive
    /// `finish_rest` more bytes.
    pub fn should_continue(self, policy: &CachePolicy) -> bool {
        let Self {
            first,
            end,
            left_at,
            at,
        } = self;
        let Some(end) = end else {
            return policy.finish_share <= 0.0 || at.saturating_sub(left_at) < policy.finish_rest.0;
        };
        let (whole, come) = (end.saturating_sub(first), at.saturating_sub(first));
        end.saturating_sub(at) <= policy.finish_rest.0
            || come as f64 >= whole as f64 * policy.finish_share
    }
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::units::Bytes;

    use super::*;

    #[test]
    fn a_fill_goes_on_for_little_and_after_much() {
        const MIB: u64 = 1 << 20;
        let default = CachePolicy::default();
        let policy = |rest, share| CachePolicy {
            finish_rest: Bytes(rest),
            finish_share: share,
            ..default.clone()
        };
        let (never, always) = (policy(0, 1.0), policy(0, 0.0));
        // First byte, end, offset when the reader left, offset now; by default, with `never` and
        // with `always`.
        let table = [
            (0, Some(64 * MIB), MIB, MIB, (false, false, true)),
            (0, Some(64 * MIB), 32 * MIB, 32 * MIB, (true, false, true)),
            (
                0,
                Some(64 * MIB),
                32 * MIB - 1,
                32 * MIB - 1,
                (false, false, true),
            ),
            (0, Some(MIB), 0, 0, (true, false, true)),
            (0, Some(MIB + 1), 0, 0, (false, false, true)),
            (0, Some(MIB + 1), 1, 1, (true, false, true)),
            // A part far into a body: the bytes before it do not count.
            (
                500 * MIB,
                Some(600 * MIB),
                501 * MIB,
                501 * MIB,
                (false, false, true),
            ),
            (
                500 * MIB,
                Some(600 * MIB),
                550 * MIB,
                550 * MIB,
                (true, false, true),
            ),
            // The body is complete.
            (0, Some(8 * MIB), 8 * MIB, 8 * MIB, (true, true, true)),
            (0, Some(0), 0, 0, (true, true, true)),
            // Of unknown length: `finish_rest` more bytes, and then no more.
            (0, None, 5 * MIB, 5 * MIB, (true, false, true)),
            (0, None, 5 * MIB, 6 * MIB - 1, (true, false, true)),
            (0, None, 5 * MIB, 6 * MIB, (false, false, true)),
        ];
        for (first, end, left_at, at, expected) in table {
            let abandoned = Abandoned {
                first,
                end,
                left_at,
                at,
            };
            let found = (
                abandoned.should_continue(&default),
                abandoned.should_continue(&never),
                abandoned.should_continue(&always),
            );
            assert_eq!(found, expected, "{abandoned:?}");
        }
    }
}
