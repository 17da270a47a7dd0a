//! Tokens by which a client shows that it receives at its address (RFC 9000 section 8.1): those of
//! Retry packets, and those that a client got on an earlier connection.
//!
//! The QUIC library writes and reads them; a token contains the address, and a Retry token the
//! port and the first connection ID too. Here are the keys, and the memory of used tokens.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::crypto::{AeadKey, CryptoError, HandshakeTokenKey};
use quinn::{TokenLog, TokenReuseError};
use ring::{aead, hkdf};

use super::keys::QuicKeys;

/// How long a token of a Retry packet is accepted: clients send it back at once.
pub(super) const RETRY_LIFETIME: Duration = Duration::from_secs(10);
/// How long a token for later connections is accepted.
pub(super) const LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// Tokens for later connections that a client gets when its address is validated.
pub(super) const SENT: u32 = 1;
/// Keys that are tried to open a token: the one in use, the one before it and the one after it,
/// which another node may use already.
const KEYS_TRIED_MAX: usize = 3;
/// Used tokens that are remembered of each half of [`LIFETIME`], or of less where there are more.
const USED_MAX: usize = 1 << 16;

/// Encrypts tokens with the newest key, and opens those of others too.
pub(super) struct TokenKey(pub(super) Arc<QuicKeys>);

impl HandshakeTokenKey for TokenKey {
    fn aead_from_hkdf(&self, nonce: &[u8]) -> Box<dyn AeadKey> {
        Box::new(OneToken {
            keys: self.0.clone(),
            nonce: nonce.to_vec(),
        })
    }
}

/// The keys of one token: each is derived with the token's nonce, so each encrypts once.
struct OneToken {
    keys: Arc<QuicKeys>,
    nonce: Vec<u8>,
}

impl OneToken {
    fn key(&self, from: &hkdf::Prk) -> Result<aead::LessSafeKey, CryptoError> {
        let mut key = [0; 32];
        let info = [self.nonce.as_slice()];
        from.expand(&info, hkdf::HKDF_SHA256)
            .and_then(|expanded| expanded.fill(&mut key))?;
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, &key)?;
        Ok(aead::LessSafeKey::new(key))
    }
}

fn zero_nonce() -> aead::Nonce {
    aead::Nonce::assume_unique_for_key([0; aead::NONCE_LEN])
}

impl AeadKey for OneToken {
    fn seal(&self, data: &mut Vec<u8>, additional: &[u8]) -> Result<(), CryptoError> {
        let key = self.keys.current(super::now_unix_s());
        let additional = aead::Aad::from(additional);
        Ok(self
            .key(&key.token)?
            .seal_in_place_append_tag(zero_nonce(), additional, data)?)
    }

    fn open<'a>(&self, data: &'a mut [u8], additional: &[u8]) -> Result<&'a mut [u8], CryptoError> {
        for key in self.keys.accepted(super::now_unix_s(), KEYS_TRIED_MAX) {
            let mut copy = data.to_vec();
            let key = self.key(&key.token)?;
            let additional = aead::Aad::from(additional);
            if let Ok(opened) = key.open_in_place(zero_nonce(), additional, &mut copy) {
                let opened_bytes = opened.len();
                data[..opened_bytes].copy_from_slice(&copy[..opened_bytes]);
                return Ok(&mut data[..opened_bytes]);
            }
        }
        Err(CryptoError)
    }
}

/// The tokens for later connections that were used: each is accepted once by a process, as long as
/// it remembers.
#[derive(Debug, Default)]
pub(super) struct UsedTokens {
    newer: HashSet<u64>,
    older: HashSet<u64>,
    /// When the newer ones began.
    since: Option<SystemTime>,
}

impl UsedTokens {
    /// Notes a token. `false`: it was used already.
    fn note(&mut self, nonce: u128, now: SystemTime) -> bool {
        let is_over = match self.since {
            Some(since) => now.duration_since(since).unwrap_or_default() >= LIFETIME,
            None => true,
        };
        if is_over || self.newer.len() >= USED_MAX {
            self.older = std::mem::take(&mut self.newer);
            self.since = Some(now);
        }
        // Random, as this node made it.
        let short = nonce as u64;
        !self.older.contains(&short) && self.newer.insert(short)
    }
}

/// The used tokens of these keys, as the QUIC library asks for them.
pub(super) struct UsedTokensOf(pub(super) Arc<QuicKeys>);

impl TokenLog for UsedTokensOf {
    fn check_and_insert(
        &self,
        nonce: u128,
        _issued: SystemTime,
        _lifetime: Duration,
    ) -> Result<(), TokenReuseError> {
        match self.0.used.lock().note(nonce, SystemTime::now()) {
            true => Ok(()),
            false => Err(TokenReuseError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{TicketKey, Tickets};

    fn ticket_key(number: u8, begins_unix_s: u64, ends_unix_s: u64) -> TicketKey {
        TicketKey {
            name: [number; 16],
            secret: [number; 32],
            begins_unix_s,
            ends_unix_s,
        }
    }

    fn with(keys: &[TicketKey]) -> TokenKey {
        let tickets = Arc::<Tickets>::default();
        tickets.set(keys.to_vec());
        TokenKey(Arc::new(QuicKeys::new(tickets)))
    }

    fn seal(key: &TokenKey, nonce: &[u8]) -> Vec<u8> {
        let mut token = b"an address".to_vec();
        let sealed = key.aead_from_hkdf(nonce).seal(&mut token, b"");
        sealed.expect("sealed");
        token
    }

    fn opens(key: &TokenKey, nonce: &[u8], token: &[u8]) -> bool {
        let mut token = token.to_vec();
        let opened = key.aead_from_hkdf(nonce).open(&mut token, b"").is_ok();
        opened && token.starts_with(b"an address")
    }

    #[test]
    fn a_token_opens_at_each_node_with_its_key_also_after_a_rotation_and_nowhere_else() {
        const EVER: u64 = u64::MAX;
        let (old, new) = (ticket_key(1, 0, EVER), ticket_key(2, 1, EVER));
        let before = with(std::slice::from_ref(&old));
        let token = seal(&before, b"nonce");
        let table = [
            ("itself", with(std::slice::from_ref(&old)), true),
            ("rotated", with(&[old.clone(), new.clone()]), true),
            ("the key is gone", with(&[new]), false),
            ("the key is over", with(&[ticket_key(1, 0, 1)]), false),
            ("no keys", with(&[]), false),
        ];
        for (name, key, expected) in table {
            assert_eq!(opens(&key, b"nonce", &token), expected, "{name}");
        }
        assert!(!opens(&before, b"other", &token), "another nonce");
        for at in 0..token.len() {
            let mut changed = token.clone();
            changed[at] ^= 1;
            assert!(!opens(&before, b"nonce", &changed), "changed at {at}");
            assert!(!opens(&before, b"nonce", &token[..at]), "cut at {at}");
        }
        let own = with(&[]);
        let token = seal(&own, b"nonce");
        assert!(opens(&own, b"nonce", &token), "with keys of its own");
    }

    #[test]
    fn a_token_is_used_once_as_long_as_it_is_remembered() {
        let mut used = UsedTokens::default();
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert!(used.note(1, start));
        assert!(!used.note(1, start));
        // It is in the older half for as long again.
        assert!(!used.note(1, start + LIFETIME));
        assert!(used.note(2, start + LIFETIME));
        assert!(used.note(1, start + 2 * LIFETIME));

        let mut used = UsedTokens::default();
        for nonce in 0..10 * USED_MAX as u128 {
            assert!(used.note(nonce, start), "{nonce}");
            assert!(used.newer.len() + used.older.len() <= 2 * USED_MAX);
        }
        assert!(!used.note(10 * USED_MAX as u128 - 1, start));
    }
}
