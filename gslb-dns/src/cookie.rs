//! DNS cookies (RFC 7873) in the interoperable form of RFC 9018: SipHash-2-4 over client cookie, time and address.
//!
//! Pure: secrets and time are arguments. Two secrets are live, so that a change of secret costs no client anything.

use std::net::IpAddr;

/// Cookies older than this are not accepted (RFC 9018 section 4.3).
const AGE_MAX_SECONDS: i32 = 3600;
/// Cookies from further ahead than this are not accepted.
const AHEAD_MAX_SECONDS: i32 = 300;
/// A valid cookie older than this is replaced by a new one.
const RENEW_AFTER_SECONDS: i32 = 1800;

/// A secret of 128 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CookieSecret(pub [u8; 16]);

impl std::fmt::Debug for CookieSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CookieSecret(..)")
    }
}

/// The live secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CookieSecrets {
    /// Makes new cookies.
    pub current: CookieSecret,
    /// Still accepted.
    pub previous: CookieSecret,
}

/// What a server cookie was worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Made by us for that client, and in time.
    Valid {
        /// Whether the same cookie may be given back.
        is_recent: bool,
    },
    /// Anything else.
    Invalid,
}

/// Makes the server cookie for a client at a time (Unix seconds).
pub fn make(secret: &CookieSecret, client_cookie: [u8; 8], client: IpAddr, now: u32) -> [u8; 16] {
    let mut cookie = [0; 16];
    cookie[0] = 1;
    cookie[4..8].copy_from_slice(&now.to_be_bytes());
    let hash = digest(secret, client_cookie, &cookie[..8], client);
    cookie[8..].copy_from_slice(&hash.to_le_bytes());
    cookie
}

/// Checks a server cookie at a time (Unix seconds), against either secret.
pub fn check(secrets: &CookieSecrets, client_cookie: [u8; 8], cookie: &[u8; 16], client: IpAddr, now: u32) -> Verdict {
    let made = u32::from_be_bytes([cookie[4], cookie[5], cookie[6], cookie[7]]);
    // Serial arithmetic (RFC 9018 section 4.3): the difference, not the values, is compared.
    let age = now.wrapping_sub(made) as i32;
    if cookie[..4] != [1, 0, 0, 0] || !(-AHEAD_MAX_SECONDS..=AGE_MAX_SECONDS).contains(&age) {
        return Verdict::Invalid;
    }
    let given = u64::from_le_bytes([cookie[8], cookie[9], cookie[10], cookie[11], cookie[12], cookie[13], cookie[14], cookie[15]]);
    let is_of = |secret| digest(secret, client_cookie, &cookie[..8], client) ^ given == 0;
    if is_of(&secrets.current) {
        Verdict::Valid { is_recent: (0..=RENEW_AFTER_SECONDS).contains(&age) }
    } else if is_of(&secrets.previous) {
        Verdict::Valid { is_recent: false }
    } else {
        Verdict::Invalid
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

/// SipHash-2-4 (Aumasson and Bernstein, 2012). The standard library's hasher has other rounds behind no stable promise.
fn siphash(key: &[u8; 16], input: &[u8]) -> u64 {
    let word = |b: &[u8]| {
        let mut w = [0; 8];
        w[..b.len()].copy_from_slice(b);
        u64::from_le_bytes(w)
    };
    let (k0, k1) = (word(&key[..8]), word(&key[8..]));
    let mut v = [k0 ^ 0x736f_6d65_7073_6575, k1 ^ 0x646f_7261_6e64_6f6d, k0 ^ 0x6c79_6765_6e65_7261, k1 ^ 0x7465_6462_7974_6573];
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
        let secret = CookieSecret([0xe5, 0xe9, 0x73, 0xe5, 0xa6, 0xb2, 0xa4, 0x3f, 0x48, 0xe7, 0xdc, 0x84, 0x9e, 0x37, 0xbf, 0xcf]);
        let client_cookie = [0x24, 0x64, 0xc4, 0xab, 0xcf, 0x10, 0xc9, 0x57];
        let client: IpAddr = "198.51.100.100".parse().expect("an address");
        let expected = [0x01, 0, 0, 0, 0x5c, 0xf7, 0x9f, 0x11, 0x1f, 0x81, 0x30, 0xc3, 0xee, 0xe2, 0x94, 0x80];
        assert_eq!(make(&secret, client_cookie, client, 1_559_731_985), expected);
        let secrets = CookieSecrets { current: secret, previous: CookieSecret([0; 16]) };
        assert_eq!(check(&secrets, client_cookie, &expected, client, 1_559_731_985), Verdict::Valid { is_recent: true });
    }

    #[test]
    fn a_cookie_holds_for_an_hour_for_one_client_and_over_one_change_of_secret() {
        let (a, b, c) = (CookieSecret([1; 16]), CookieSecret([2; 16]), CookieSecret([3; 16]));
        let client: IpAddr = "2001:db8::1".parse().expect("an address");
        let other: IpAddr = "2001:db8::2".parse().expect("an address");
        let now = 1_800_000_000;
        let cookie = make(&a, [7; 8], client, now);
        let before = CookieSecrets { current: a, previous: c };
        let after = CookieSecrets { current: b, previous: a };
        let gone = CookieSecrets { current: c, previous: b };
        for (secrets, client_cookie, address, at, expected) in [
            (before, [7; 8], client, now, Verdict::Valid { is_recent: true }),
            (before, [7; 8], client, now + 1801, Verdict::Valid { is_recent: false }),
            (before, [7; 8], client, now + 3600, Verdict::Valid { is_recent: false }),
            (before, [7; 8], client, now + 3601, Verdict::Invalid),
            (before, [7; 8], client, now - 300, Verdict::Valid { is_recent: false }),
            (before, [7; 8], client, now - 301, Verdict::Invalid),
            (before, [8; 8], client, now, Verdict::Invalid),
            (before, [7; 8], other, now, Verdict::Invalid),
            (after, [7; 8], client, now, Verdict::Valid { is_recent: false }),
            (gone, [7; 8], client, now, Verdict::Invalid),
        ] {
            assert_eq!(check(&secrets, client_cookie, &cookie, address, at), expected, "at {at}");
        }
    }
}
