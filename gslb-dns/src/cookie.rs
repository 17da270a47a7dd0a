//! DNS cookies (RFC 7873) in the interoperable form of RFC 9018: SipHash-2-4 over client cookie,
//! time and address.
//!
//! Pure: secrets and time are arguments. Two secrets are valid at a time, so that a change of the
//! secret invalidates no cookie that is in use.

use std::net::IpAddr;

/// Cookies older than this are not accepted (RFC 9018 section 4.3).
const AGE_MAX_SECONDS: i32 = 3600;
/// Cookies with a time further in the future than this are not accepted.
const AHEAD_MAX_SECONDS: i32 = 300;
/// A valid cookie older than this is replaced by a new one.
const RENEW_AFTER_SECONDS: i32 = 1800;

/// A secret of 128 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
struct CookieSecret([u8; 16]);

impl std::fmt::Debug for CookieSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CookieSecret(..)")
    }
}

/// The key that daily secrets are derived from. Every name server that has the key has the same
/// secret on the same day, without exchanging anything, and accepts the cookies of the others (RFC
/// 9018 section 3; required where several servers share one anycast address).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CookieKey([u8; 32]);

impl std::fmt::Debug for CookieKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CookieKey(..)")
    }
}

/// Separates this use of the node key from any other.
const KEY_CONTEXT: &str = "nearcast 2026-11-27 DNS server cookie secrets";
/// How long a secret makes cookies (RFC 9018 section 5 asks for a change at least every 36 days).
const PERIOD_SECONDS: u32 = 24 * 3600;

impl CookieKey {
    /// Derived from the fleet's node key: the same on every name server that has it. Neither it nor
    /// any cookie reveals the node key.
    pub fn of_fleet(node_key: &str) -> Self {
        Self(blake3::derive_key(KEY_CONTEXT, node_key.as_bytes()))
    }

    /// From random bytes, for a name server without a node key.
    pub fn of_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret of the day that a time is in (Unix seconds).
    fn secret(&self, unix_seconds: u32) -> CookieSecret {
        let mut secret = [0; 16];
        secret.copy_from_slice(
            &blake3::keyed_hash(&self.0, &(unix_seconds / PERIOD_SECONDS).to_be_bytes()).as_bytes()
                [..16],
        );
        CookieSecret(secret)
    }
}

/// The valid secrets. A cookie holds the time it was made at, which says which day's secret
/// verifies it: that of the current day or of the day before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CookieSecrets {
    key: CookieKey,
    /// The key before the last change of key.
    former: Option<CookieKey>,
    /// Secrets of `key` by day, for the days around the one that this was made on.
    days: [(u32, CookieSecret); 3],
}

impl CookieSecrets {
    /// Secrets of a key, computed ahead for the days around `now` (Unix seconds). Cookies of a
    /// former key remain valid.
    pub fn new(key: CookieKey, former: Option<CookieKey>, now: u32) -> Self {
        let days = [
            now.saturating_sub(PERIOD_SECONDS),
            now,
            now.saturating_add(PERIOD_SECONDS),
        ];
        Self {
            key,
            former,
            days: days.map(|at| (at / PERIOD_SECONDS, key.secret(at))),
        }
    }

    /// The secrets for another day or another key. After a change of key, cookies of the old one
    /// remain valid.
    pub fn renewed(&self, key: CookieKey, now: u32) -> Self {
        let former = if key == self.key {
            self.former
        } else {
            Some(self.key)
        };
        Self::new(key, former, now)
    }

    fn at(&self, unix_seconds: u32) -> CookieSecret {
        let day = unix_seconds / PERIOD_SECONDS;
        self.days
            .iter()
            .find(|(d, _)| *d == day)
            .map_or_else(|| self.key.secret(unix_seconds), |(_, secret)| *secret)
    }
}

/// The result of checking a server cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CookieCheck {
    /// Made by this fleet for that client, and not expired.
    Valid {
        /// Whether the same cookie can be sent back.
        is_recent: bool,
    },
    /// Anything else.
    Invalid,
}

/// Makes the server cookie for a client at a time (Unix seconds).
pub fn make(secrets: &CookieSecrets, client_cookie: [u8; 8], client: IpAddr, now: u32) -> [u8; 16] {
    make_with(&secrets.at(now), client_cookie, client, now)
}

fn make_with(secret: &CookieSecret, client_cookie: [u8; 8], client: IpAddr, now: u32) -> [u8; 16] {
    let mut cookie = [0; 16];
    cookie[0] = 1;
    cookie[4..8].copy_from_slice(&now.to_be_bytes());
    let hash = digest(secret, client_cookie, &cookie[..8], client);
    cookie[8..].copy_from_slice(&hash.to_le_bytes());
    cookie
}

/// Checks a server cookie at a time (Unix seconds).
pub fn check(
    secrets: &CookieSecrets,
    client_cookie: [u8; 8],
    cookie: &[u8; 16],
    client: IpAddr,
    now: u32,
) -> CookieCheck {
    let made = u32::from_be_bytes([cookie[4], cookie[5], cookie[6], cookie[7]]);
    // Serial arithmetic (RFC 9018 section 4.3): the difference, not the values, is compared.
    let age = now.wrapping_sub(made) as i32;
    if cookie[..4] != [1, 0, 0, 0] || !(-AHEAD_MAX_SECONDS..=AGE_MAX_SECONDS).contains(&age) {
        return CookieCheck::Invalid;
    }
    let given = u64::from_le_bytes([
        cookie[8], cookie[9], cookie[10], cookie[11], cookie[12], cookie[13], cookie[14],
        cookie[15],
    ]);
    let is_of =
        |secret: &CookieSecret| digest(secret, client_cookie, &cookie[..8], client) ^ given == 0;
    if is_of(&secrets.at(made)) {
        CookieCheck::Valid {
            is_recent: (0..=RENEW_AFTER_SECONDS).contains(&age),
        }
    } else if secrets.former.is_some_and(|key| is_of(&key.secret(made))) {
        CookieCheck::Valid { is_recent: false }
    } else {
        CookieCheck::Invalid
    }
}

fn digest(secret: &CookieSecret, client_cookie: [u8; 8], fixed: &[u8], client: IpAddr) -> u64 {
    let mut input = [0; 32];
    input[..8].copy_from_slice(&client_cookie);
    input[8..16].copy_from_slice(fixed);
    let len = match client {
        IpAddr::V4(a) => {
            input[16..20].copy_from_slice(&a.octets());
            20
        }
        IpAddr::V6(a) => {
            input[16..32].copy_from_slice(&a.octets());
            32
        }
    };
    siphash(&secret.0, &input[..len])
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012). The standard library's hasher guarantees no
/// algorithm.
fn siphash(key: &[u8; 16], input: &[u8]) -> u64 {
    let word = |b: &[u8]| {
        let mut w = [0; 8];
        w[..b.len()].copy_from_slice(b);
        u64::from_le_bytes(w)
    };
    let (k0, k1) = (word(&key[..8]), word(&key[8..]));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let chunks = input.chunks_exact(8);
    let last = word(chunks.remainder()) | (input.len() as u64) << 56;
    for m in chunks.map(word).chain([last]) {
        v[3] ^= m;
        rounds(&mut v, 2);
        v[0] ^= m;
    }
    v[2] ^= 0xff;
    rounds(&mut v, 4);
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn rounds(v: &mut [u64; 4], count: usize) {
    for _ in 0..count {
        v[0] = v[0].wrapping_add(v[1]);
        v[2] = v[2].wrapping_add(v[3]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[3] = v[3].rotate_left(16) ^ v[2];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[1]);
        v[0] = v[0].wrapping_add(v[3]);
        v[1] = v[1].rotate_left(17) ^ v[2];
        v[3] = v[3].rotate_left(21) ^ v[0];
        v[2] = v[2].rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siphash_gives_the_authors_vectors() {
        // From the reference implementation's vectors.h: key 00..0f, input 00.. of that length.
        let key: [u8; 16] = std::array::from_fn(|i| i as u8);
        let input: Vec<u8> = (0..15).collect();
        assert_eq!(siphash(&key, &[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(siphash(&key, &input), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn cookies_match_the_test_vectors_of_the_standard() {
        // RFC 9018 appendix A.1: learning a new server cookie.
        let secret = CookieSecret([
            0xe5, 0xe9, 0x73, 0xe5, 0xa6, 0xb2, 0xa4, 0x3f, 0x48, 0xe7, 0xdc, 0x84, 0x9e, 0x37,
            0xbf, 0xcf,
        ]);
        let client_cookie = [0x24, 0x64, 0xc4, 0xab, 0xcf, 0x10, 0xc9, 0x57];
        let client: IpAddr = "198.51.100.100".parse().expect("an address");
        let expected = [
            0x01, 0, 0, 0, 0x5c, 0xf7, 0x9f, 0x11, 0x1f, 0x81, 0x30, 0xc3, 0xee, 0xe2, 0x94, 0x80,
        ];
        assert_eq!(
            make_with(&secret, client_cookie, client, 1_559_731_985),
            expected
        );
        let mut secrets = CookieSecrets::new(CookieKey::of_bytes([7; 32]), None, 1_559_731_985);
        assert_eq!(
            check(&secrets, client_cookie, &expected, client, 1_559_731_985),
            CookieCheck::Invalid
        );
        secrets.days[1].1 = secret;
        assert_eq!(
            check(&secrets, client_cookie, &expected, client, 1_559_731_985),
            CookieCheck::Valid { is_recent: true }
        );
    }

    #[test]
    fn a_cookie_holds_for_an_hour_for_one_client_and_over_one_change_of_key() {
        let (a, b, c) = (
            CookieKey::of_bytes([1; 32]),
            CookieKey::of_bytes([2; 32]),
            CookieKey::of_bytes([3; 32]),
        );
        let client: IpAddr = "2001:db8::1".parse().expect("an address");
        let other: IpAddr = "2001:db8::2".parse().expect("an address");
        // Ten minutes before a day ends.
        let now = 20_000 * PERIOD_SECONDS - 600;
        let before = CookieSecrets::new(a, None, now);
        let cookie = make(&before, [7; 8], client, now);
        let after = before.renewed(b, now);
        let gone = after.renewed(c, now);
        for (secrets, client_cookie, address, at, expected) in [
            (
                before,
                [7; 8],
                client,
                now,
                CookieCheck::Valid { is_recent: true },
            ),
            (
                before,
                [7; 8],
                client,
                now + 1800,
                CookieCheck::Valid { is_recent: true },
            ),
            (
                before,
                [7; 8],
                client,
                now + 1801,
                CookieCheck::Valid { is_recent: false },
            ),
            (
                before,
                [7; 8],
                client,
                now + 3600,
                CookieCheck::Valid { is_recent: false },
            ),
            (before, [7; 8], client, now + 3601, CookieCheck::Invalid),
            (
                before,
                [7; 8],
                client,
                now - 300,
                CookieCheck::Valid { is_recent: false },
            ),
            (before, [7; 8], client, now - 301, CookieCheck::Invalid),
            (before, [8; 8], client, now, CookieCheck::Invalid),
            (before, [7; 8], other, now, CookieCheck::Invalid),
            (
                after,
                [7; 8],
                client,
                now,
                CookieCheck::Valid { is_recent: false },
            ),
            (gone, [7; 8], client, now, CookieCheck::Invalid),
        ] {
            assert_eq!(
                check(&secrets, client_cookie, &cookie, address, at),
                expected,
                "at {at}"
            );
        }
    }

    #[test]
    fn name_servers_of_one_fleet_have_the_same_secrets_whenever_they_started() {
        let fleet = CookieKey::of_fleet("a key of one fleet");
        let client: IpAddr = "192.0.2.1".parse().expect("an address");
        let now = 20_000 * PERIOD_SECONDS;
        let maker = CookieSecrets::new(fleet, None, now);
        // Across midnight both ways, whose clocks differ by some seconds, and one that has run for
        // a year.
        for (made, started, checked) in [
            (now - 1, now - 1, now),
            (now, now + 3, now - 3),
            (now, now - 365 * PERIOD_SECONDS, now + 3600),
        ] {
            let cookie = make(&maker, [1; 8], client, made);
            let checker = CookieSecrets::new(fleet, None, started);
            assert!(
                matches!(
                    check(&checker, [1; 8], &cookie, client, checked),
                    CookieCheck::Valid { .. }
                ),
                "{made} {started} {checked}"
            );
            let stranger =
                CookieSecrets::new(CookieKey::of_fleet("a key of another"), None, started);
            assert_eq!(
                check(&stranger, [1; 8], &cookie, client, checked),
                CookieCheck::Invalid
            );
        }
        let of_day = |day: u32| fleet.secret(day * PERIOD_SECONDS).0;
        assert_ne!(of_day(20_000), of_day(20_001));
        // Never to change by accident: servers of two versions share an address while a fleet is
        // updated.
        assert_eq!(of_day(20_000)[..4], PINNED);
    }

    const PINNED: [u8; 4] = [121, 156, 73, 72];
}
