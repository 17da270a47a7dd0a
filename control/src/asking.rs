//! How often pages may ask where DNS sends their viewer: an allowance for each address, and a limit of
//! concurrent questions to name servers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// Requests that one address may make at once, and then each second.
const BURST: f64 = 40.0;
const PER_SECOND: f64 = 10.0;
/// Addresses whose requests are counted at a time.
const ADDRESSES_MAX: usize = 4096;
/// Concurrent questions to name servers.
const QUESTIONS_MAX: usize = 32;

/// The limits of `/v1/steer`.
#[derive(Debug)]
pub(crate) struct Asking {
    pub(crate) questions: Semaphore,
    /// By address: requests left, at a time.
    left: Mutex<HashMap<IpAddr, (f64, Instant)>>,
}

impl Default for Asking {
    fn default() -> Self {
        Self {
            questions: Semaphore::new(QUESTIONS_MAX),
            left: Mutex::default(),
        }
    }
}

impl Asking {
    /// Counts a request; false when its address has made too many.
    pub(crate) fn admit(&self, address: IpAddr, now: Instant) -> bool {
        let refilled = |(left, at): (f64, Instant)| {
            let passed = now.saturating_duration_since(at).as_secs_f64();
            (left + passed * PER_SECOND).min(BURST)
        };
        let mut all = self.left.lock();
        if all.len() >= ADDRESSES_MAX && !all.contains_key(&address) {
            // Who has a full allowance again need not be remembered.
            all.retain(|_, entry| refilled(*entry) < BURST);
            if all.len() >= ADDRESSES_MAX {
                return false;
            }
        }
        let entry = all.entry(address).or_insert((BURST, now));
        let left = refilled(*entry);
        let is_admitted = left >= 1.0;
        *entry = (if is_admitted { left - 1.0 } else { left }, now);
        is_admitted
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_address_has_a_burst_and_a_rate() {
        let (asking, begun) = (Asking::default(), Instant::now());
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|a| a.parse().unwrap());
        let burst = (0..100).filter(|_| asking.admit(one, begun)).count();
        assert_eq!(burst, BURST as usize);
        assert!(asking.admit(other, begun), "it has an allowance of its own");
        let later = begun + Duration::from_secs(1);
        let more = (0..100).filter(|_| asking.admit(one, later)).count();
        assert_eq!(more, PER_SECOND as usize);

        let many = (0..ADDRESSES_MAX as u32).map(|n| IpAddr::V4(Ipv4Addr::from(n)));
        let full = many.filter(|a| asking.admit(*a, later)).count();
        assert_eq!(
            full,
            ADDRESSES_MAX - 1,
            "one has not got its allowance back"
        );
        let newcomer = "198.51.100.1".parse().unwrap();
        assert!(!asking.admit(newcomer, later));
        assert!(asking.admit(newcomer, later + Duration::from_secs(60)));
    }
}
