//! Limits the answers that one network gets over UDP without a valid cookie.
//!
//! Queries with a forged source address make a name server attack the victim with answers. Past the
//! limit the answer is empty and requests TCP, or a cookie where the client uses cookies (RFC 7873
//! section 5.2.3). Pure: time and the hash seed are arguments. Each worker has a limiter of fixed
//! size.

use std::net::IpAddr;

/// Answers a second that one network (an IPv4 /24 or an IPv6 /56) gets from one worker without a
/// valid cookie. Large public resolvers stay well below it for each of their egress networks.
pub const ANSWERS_PER_SECOND_MAX: u32 = 10_000;
/// Networks counted at a time; two that share a bucket share its limit, which costs them a retry at
/// most.
const BUCKETS: usize = 4096;

/// Counts answers by network.
#[derive(Debug)]
pub struct Limiter {
    buckets: Box<[Bucket]>,
    seed: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    second: u32,
    count: u32,
}

impl Limiter {
    /// A limiter whose buckets are spread by `seed`, so that an attacker cannot choose to share one
    /// with a victim.
    pub fn new(seed: u64) -> Self {
        Self {
            buckets: vec![Bucket::default(); BUCKETS].into_boxed_slice(),
            seed,
        }
    }

    /// Counts one answer to a client at a time (Unix seconds); `false` when its network is over the
    /// limit.
    pub fn admits(&mut self, client: IpAddr, now: u32) -> bool {
        // The kernel accepts these from this machine only, so they are not forged.
        if client.is_loopback() {
            return true;
        }
        let network = network_of(client);
        let spread = (network ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bucket = &mut self.buckets[(spread >> 52) as usize % BUCKETS];
        if bucket.second != now {
            *bucket = Bucket {
                second: now,
                count: 0,
            };
        }
        bucket.count = bucket.count.saturating_add(1);
        bucket.count <= ANSWERS_PER_SECOND_MAX
    }
}

fn network_of(client: IpAddr) -> u64 {
    match client {
        IpAddr::V4(a) => u64::from(u32::from(a) >> 8),
        // The first bit keeps the families apart.
        IpAddr::V6(a) => (u128::from(a) >> 72) as u64 | 1 << 63,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn admitted(limiter: &mut Limiter, client: &str, now: u32, times: u32) -> u32 {
        (0..times)
            .filter(|_| limiter.admits(ip(client), now))
            .count() as u32
    }

    #[test]
    fn a_network_gets_its_share_each_second_and_others_are_not_touched() {
        for (one, same_network, other) in [
            ("192.0.2.1", "192.0.2.200", "192.0.3.1"),
            ("2001:db8::1", "2001:db8:0:ff::2", "2001:db8:1::1"),
        ] {
            let mut limiter = Limiter::new(7);
            let most = ANSWERS_PER_SECOND_MAX;
            assert_eq!(admitted(&mut limiter, one, 100, most + 50), most);
            assert_eq!(
                admitted(&mut limiter, same_network, 100, 5),
                0,
                "{same_network} is of the same network"
            );
            assert_eq!(
                admitted(&mut limiter, other, 100, 5),
                5,
                "{other} is another"
            );
            assert_eq!(admitted(&mut limiter, one, 101, 5), 5, "a second later");
        }
    }

    #[test]
    fn loopback_is_not_limited() {
        let mut limiter = Limiter::new(7);
        let many = ANSWERS_PER_SECOND_MAX + 50;
        assert_eq!(admitted(&mut limiter, "127.0.0.1", 1, many), many);
        assert_eq!(admitted(&mut limiter, "::1", 1, many), many);
    }
}
