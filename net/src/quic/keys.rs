//! Keys of tokens and stateless resets, derived from the keys of session tickets: so all workers
//! have the same ones, and all nodes of a cluster, and they change with them. A process without such
//! keys has random ones of its own.
//!
//! HKDF-SHA256 (RFC 5869) extracts from a ticket key's secret, and expands with a label for each
//! use: none of the keys tells anything of another, or of the ticket key.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use quinn::crypto::{CryptoError, HmacKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{hkdf, hmac};

use super::cid;
use super::token::UsedTokens;
use crate::tls::{Keys, TicketKey, Tickets};

/// Bytes of a key's name in connection IDs.
pub(super) const KEY_ID_BYTES: usize = 2;
const SALT: &[u8] = b"nearcast quic 1";
const ID_LABEL: &[u8] = b"key id";
const TOKEN_LABEL: &[u8] = b"token";
const RESET_LABEL: &[u8] = b"stateless reset";
/// Bytes of an HMAC-SHA256.
const HMAC_BYTES: usize = 32;

/// What is derived from one ticket key.
pub(super) struct Derived {
    /// Its name in connection IDs.
    pub(super) id: [u8; KEY_ID_BYTES],
    /// Tokens are encrypted with keys that are derived from it.
    pub(super) token: hkdf::Prk,
    reset: hmac::Key,
    of: TicketKey,
}

impl Derived {
    fn new(of: &TicketKey) -> Self {
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(&of.secret);
        let expand = |label: &[u8]| {
            let mut key = [0; 32];
            extracted
                .expand(&[label], hkdf::HKDF_SHA256)
                .and_then(|expanded| expanded.fill(&mut key))
                .expect("HKDF gives 32 bytes");
            key
        };
        let id = expand(ID_LABEL);
        Self {
            id: [id[0], id[1]],
            token: hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &expand(TOKEN_LABEL)),
            reset: hmac::Key::new(hmac::HMAC_SHA256, &expand(RESET_LABEL)),
            of: of.clone(),
        }
    }
}

/// All that is derived from one set of ticket keys, the newest first.
struct Set {
    from: Arc<Keys>,
    keys: Vec<Arc<Derived>>,
}

/// The keys of the QUIC servers of a process, and the tokens that were used.
pub struct QuicKeys {
    tickets: Arc<Tickets>,
    derived: ArcSwapOption<Set>,
    /// Random; in use where no ticket key is.
    own: Arc<Derived>,
    pub(super) used: Mutex<UsedTokens>,
}

impl fmt::Debug for QuicKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicKeys").finish_non_exhaustive()
    }
}

impl QuicKeys {
    /// Keys that follow those of session tickets.
    ///
    /// # Panics
    /// If the system has no random bytes.
    pub fn new(tickets: Arc<Tickets>) -> Self {
        let mut secret = [0; 32];
        SystemRandom::new()
            .fill(&mut secret)
            .expect("the system has random bytes");
        Self {
            tickets,
            derived: ArcSwapOption::empty(),
            own: Arc::new(Derived::new(&TicketKey {
                name: [0; 16],
                secret,
                begins_unix_s: 0,
                ends_unix_s: u64::MAX,
            })),
            used: Mutex::default(),
        }
    }

    fn set(&self, now: u64) -> Arc<Set> {
        let from = self.tickets.held(now);
        if let Some(set) = self.derived.load_full()
            && Arc::ptr_eq(&set.from, &from)
        {
            return set;
        }
        // Two workers may do it at a time, with the same result.
        let keys = from.keys.iter().map(|key| Arc::new(Derived::new(key)));
        let set = Arc::new(Set {
            keys: keys.collect(),
            from,
        });
        self.derived.store(Some(set.clone()));
        set
    }

    /// The key for new tokens and connection IDs.
    pub(super) fn current(&self, now: u64) -> Arc<Derived> {
        let set = self.set(now);
        let newest = set.keys.iter().find(|key| key.of.encrypts_at(now));
        newest.unwrap_or(&self.own).clone()
    }

    /// The `most` newest keys that are not over, and the process's own.
    pub(super) fn accepted(&self, now: u64, most: usize) -> impl Iterator<Item = Arc<Derived>> {
        let set = self.set(now);
        let live = set.keys.iter().filter(|key| key.of.decrypts_at(now));
        let live: Vec<_> = live.take(most).chain([&self.own]).cloned().collect();
        live.into_iter()
    }

    /// The key with this name in connection IDs.
    pub(super) fn find(&self, id: [u8; KEY_ID_BYTES], now: u64) -> Option<Arc<Derived>> {
        let set = self.set(now);
        let mut live = set.keys.iter().filter(|key| key.of.decrypts_at(now));
        live.find(|key| key.id == id)
            .or((self.own.id == id).then_some(&self.own))
            .cloned()
    }
}

/// Makes the stateless reset token of a connection ID (RFC 9000 section 10.3.2): the HMAC of the ID,
/// with the key that the ID names.
pub(super) struct ResetKey(pub(super) Arc<QuicKeys>);

impl HmacKey for ResetKey {
    fn sign(&self, id: &[u8], signature: &mut [u8]) {
        let key = cid::key_id(id).and_then(|name| self.0.find(name, super::now_unix_s()));
        // The token of an ID whose key is over is one that its client does not know.
        let key = key.as_ref().unwrap_or(&self.0.own);
        signature.copy_from_slice(hmac::sign(&key.reset, id).as_ref());
    }

    fn signature_len(&self) -> usize {
        HMAC_BYTES
    }

    fn verify(&self, id: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let key = cid::key_id(id).and_then(|name| self.0.find(name, super::now_unix_s()));
        let key = key.ok_or(CryptoError)?;
        hmac::verify(&key.reset, id, signature).map_err(|_| CryptoError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket_key(number: u8, begins_unix_s: u64, ends_unix_s: u64) -> TicketKey {
        TicketKey {
            name: [number; 16],
            secret: [number; 32],
            begins_unix_s,
            ends_unix_s,
        }
    }

    fn with(keys: &[TicketKey]) -> Arc<QuicKeys> {
        let tickets = Arc::<Tickets>::default();
        tickets.set(keys.to_vec());
        Arc::new(QuicKeys::new(tickets))
    }

    fn reset_token(keys: &Arc<QuicKeys>, id: &[u8]) -> Vec<u8> {
        let mut token = vec![0; HMAC_BYTES];
        ResetKey(keys.clone()).sign(id, &mut token);
        token
    }

    fn id_of(keys: &QuicKeys, now: u64) -> [u8; 10] {
        let mut id = [7; 10];
        id[1..3].copy_from_slice(&keys.current(now).id);
        id
    }

    #[test]
    fn the_newest_key_makes_ids_and_all_that_are_not_over_are_found() {
        let all = [
            ticket_key(1, 0, 300),
            ticket_key(2, 100, 400),
            ticket_key(3, 200, 500),
        ];
        let keys = with(&all);
        let of = |number: u8| Derived::new(&ticket_key(number, 0, 0)).id;
        // Time, the key of new ones, and those that are found.
        let table: [(u64, Option<u8>, &[u8]); 5] = [
            (50, Some(1), &[1, 2, 3]),
            (150, Some(2), &[1, 2, 3]),
            (250, Some(3), &[1, 2, 3]),
            (300, Some(3), &[2, 3]),
            (500, None, &[]),
        ];
        for (now, current, found) in table {
            let expected = current.map_or(keys.own.id, of);
            assert_eq!(keys.current(now).id, expected, "{now}");
            for number in 1..=3 {
                let is_found = keys.find(of(number), now).is_some();
                assert_eq!(is_found, found.contains(&number), "{now} {number}");
            }
            assert!(keys.find(keys.own.id, now).is_some(), "{now}");
        }
    }

    #[test]
    fn the_reset_token_of_an_id_outlives_a_rotation_and_a_restart_and_is_the_same_at_each_node() {
        const EVER: u64 = u64::MAX;
        let old = ticket_key(1, 0, EVER);
        let keys = with(std::slice::from_ref(&old));
        let id = id_of(&keys, super::super::now_unix_s());
        let token = reset_token(&keys, &id);

        let new = ticket_key(2, 1, EVER);
        keys.tickets.set(vec![old.clone(), new.clone()]);
        assert_ne!(
            id_of(&keys, super::super::now_unix_s()),
            id,
            "new IDs name the new key"
        );
        assert_eq!(reset_token(&keys, &id), token, "rotated");
        let restarted = with(&[new.clone(), old]);
        assert_eq!(reset_token(&restarted, &id), token, "started again");
        assert!(ResetKey(restarted).verify(&id, &token).is_ok());

        let without = with(&[new]);
        assert_ne!(reset_token(&without, &id), token, "the key is gone");
        let mut other = id;
        other[9] ^= 1;
        assert_ne!(reset_token(&keys, &other), token, "another ID");
    }

    #[test]
    fn without_ticket_keys_a_process_has_keys_of_its_own() {
        let [first, second] = [with(&[]), with(&[])];
        let now = super::super::now_unix_s();
        let id = id_of(&first, now);
        assert_eq!(reset_token(&first, &id), reset_token(&first, &id));
        assert_ne!(reset_token(&first, &id), reset_token(&second, &id));
        // Ticket keys that have all ended are no reason to do without.
        let over = with(&[ticket_key(1, 0, 1)]);
        assert_eq!(over.current(now).id, over.own.id);
    }

    #[test]
    fn each_use_has_a_key_of_its_own_and_none_is_printed() {
        let derived = Derived::new(&ticket_key(5, 0, 1));
        let signed = hmac::sign(&derived.reset, b"x");
        let mut expanded = [0; 32];
        derived
            .token
            .expand(&[b"x"], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut expanded))
            .expect("32 bytes");
        assert_ne!(signed.as_ref(), expanded);
        let shown = format!("{:?}", with(&[ticket_key(5, 0, 1)]));
        assert_eq!(shown, "QuicKeys { .. }");
    }
}
