//! Session tickets (RFC 5077, RFC 8446 section 4.6.1) that a server does not store: each is sealed
//! with a key that all nodes of a cluster can have.
//!
//! A ticket is the key's name (16 bytes), a random salt (32 bytes) and the session, sealed with
//! AES-256-GCM. HMAC-SHA256 of the salt under the key's secret is the ticket's own key: so no
//! number of tickets wears a shared key out, as random nonces of 96 bits would.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{aead, hmac};
use rustls::pki_types::UnixTime;
use rustls::server::ProducesTickets;

const NAME_BYTES: usize = 16;
const SALT_BYTES: usize = 32;
/// The longest session in a ticket. One has a server name, a protocol name and secrets.
const SESSION_BYTES_MAX: usize = 2048;
/// The most keys that are held.
const KEYS_MAX: usize = 16;
/// How long a client may use a ticket, where its key does not end before: RFC 8446 allows 7 days.
const LIFETIME_MAX_S: u64 = 24 * 3600;
/// How long a key of the process's own encrypts, and how long it decrypts after that.
const OWN_ENCRYPTS_S: u64 = 12 * 3600;

/// A key for tickets.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKey {
    /// Its public name, by which a ticket names it.
    pub name: [u8; NAME_BYTES],
    /// The secret.
    pub secret: [u8; 32],
    /// When it begins to encrypt, in seconds after the Unix epoch.
    pub begins_unix_s: u64,
    /// When it decrypts no more.
    pub ends_unix_s: u64,
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKey")
            .field("begins_unix_s", &self.begins_unix_s)
            .field("ends_unix_s", &self.ends_unix_s)
            .finish_non_exhaustive()
    }
}

impl TicketKey {
    fn random(now: u64) -> Option<Self> {
        let (mut name, mut secret) = ([0; NAME_BYTES], [0; 32]);
        let random = SystemRandom::new();
        random.fill(&mut name).ok()?;
        random.fill(&mut secret).ok()?;
        Some(Self {
            name,
            secret,
            begins_unix_s: now,
            ends_unix_s: now + 2 * OWN_ENCRYPTS_S,
        })
    }

    /// Whether it decrypts. One that has not begun does: another node's clock may be ahead.
    pub(crate) fn decrypts_at(&self, now: u64) -> bool {
        now < self.ends_unix_s
    }

    pub(crate) fn encrypts_at(&self, now: u64) -> bool {
        self.begins_unix_s <= now && self.decrypts_at(now)
    }

    /// The key of the ticket with this salt.
    fn ticket_key(&self, salt: &[u8]) -> Option<aead::LessSafeKey> {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &self.secret);
        let derived = hmac::sign(&secret, salt);
        aead::UnboundKey::new(&aead::AES_256_GCM, derived.as_ref())
            .ok()
            .map(aead::LessSafeKey::new)
    }
}

/// The nonce of every ticket: each has a key of its own.
fn nonce() -> aead::Nonce {
    aead::Nonce::assume_unique_for_key([0; aead::NONCE_LEN])
}

/// The keys that are held, the newest first.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) keys: Vec<TicketKey>,
    /// Whether the process made them itself.
    are_own: bool,
}

/// The keys of a process's session tickets: those that it was given, or else random ones of its own,
/// which it replaces in time.
#[derive(Debug)]
pub struct Tickets {
    keys: ArcSwap<Keys>,
}

impl Default for Tickets {
    fn default() -> Self {
        Self {
            keys: ArcSwap::from_pointee(Keys {
                keys: Vec::new(),
                are_own: true,
            }),
        }
    }
}

impl Tickets {
    /// Replaces the keys: the newest that has begun encrypts, and all that have not ended decrypt.
    /// Without keys the process makes its own. More than 16 keys are cut to the newest.
    pub fn set(&self, mut keys: Vec<TicketKey>) {
        keys.sort_by_key(|key| std::cmp::Reverse(key.begins_unix_s));
        keys.truncate(KEYS_MAX);
        if keys.is_empty() && self.keys.load().are_own {
            return;
        }
        let are_own = keys.is_empty();
        self.keys.store(Arc::new(Keys { keys, are_own }));
    }

    /// All keys, with one that encrypts where the process makes its own.
    pub(crate) fn held(&self, now: u64) -> Arc<Keys> {
        let _made = self.current(now);
        self.keys.load_full()
    }

    /// The key that encrypts. Where the given keys have all ended, or none has begun, there is
    /// none, and sessions are not resumed: a key that others do not have would not help them.
    fn current(&self, now: u64) -> Option<TicketKey> {
        let keys = self.keys.load();
        let newest = keys.keys.iter().find(|key| key.encrypts_at(now));
        let is_due = |key: &TicketKey| now >= key.begins_unix_s + OWN_ENCRYPTS_S;
        if !keys.are_own || newest.is_some_and(|key| !is_due(key)) {
            return newest.cloned();
        }
        let made = TicketKey::random(now)?;
        // Another thread may have replaced them meanwhile: then its keys hold.
        self.keys.rcu(|keys| {
            let is_made = keys
                .keys
                .iter()
                .any(|key| key.encrypts_at(now) && !is_due(key));
            if !keys.are_own || is_made {
                return keys.clone();
            }
            let kept = keys.keys.iter().filter(|key| key.decrypts_at(now));
            Arc::new(Keys {
                keys: std::iter::once(made.clone()).chain(kept.cloned()).collect(),
                are_own: true,
            })
        });
        let keys = self.keys.load();
        keys.keys.iter().find(|key| key.encrypts_at(now)).cloned()
    }

    fn seal(&self, session: &[u8], now: u64) -> Option<Vec<u8>> {
        if session.len() > SESSION_BYTES_MAX {
            return None;
        }
        let key = self.current(now)?;
        let mut salt = [0; SALT_BYTES];
        SystemRandom::new().fill(&mut salt).ok()?;
        let head = NAME_BYTES + SALT_BYTES;
        let mut ticket = Vec::with_capacity(head + session.len() + aead::AES_256_GCM.tag_len());
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(&salt);
        ticket.extend_from_slice(session);
        let tag = key
            .ticket_key(&salt)?
            .seal_in_place_separate_tag(nonce(), aead::Aad::from(key.name), &mut ticket[head..])
            .ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn open(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME_BYTES)?;
        let (salt, sealed) = rest.split_at_checked(SALT_BYTES)?;
        if sealed.len() > SESSION_BYTES_MAX + aead::AES_256_GCM.tag_len() {
            return None;
        }
        let keys = self.keys.load();
        // Names are public: comparing them reveals nothing.
        let key = keys
            .keys
            .iter()
            .find(|key| key.name == name && key.decrypts_at(now))?;
        let mut sealed = sealed.to_vec();
        let length = key
            .ticket_key(salt)?
            .open_in_place(nonce(), aead::Aad::from(key.name), &mut sealed)
            .ok()?
            .len();
        sealed.truncate(length);
        Some(sealed)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        let now = UnixTime::now().as_secs();
        let left = self
            .current(now)
            .map_or(0, |key| key.ends_unix_s.saturating_sub(now));
        left.min(LIFETIME_MAX_S) as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, UnixTime::now().as_secs())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher, UnixTime::now().as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8, begins_unix_s: u64, ends_unix_s: u64) -> TicketKey {
        TicketKey {
            name: [number; NAME_BYTES],
            secret: [number; 32],
            begins_unix_s,
            ends_unix_s,
        }
    }

    #[test]
    fn the_newest_key_that_has_begun_encrypts_and_all_that_have_not_ended_decrypt() {
        let all = [key(1, 0, 300), key(2, 100, 400), key(3, 200, 500)];
        // Time, the key that encrypts, those that decrypt.
        let table: [(u64, Option<u8>, &[u8]); 5] = [
            (50, Some(1), &[1, 2, 3]),
            (100, Some(2), &[1, 2, 3]),
            (299, Some(3), &[1, 2, 3]),
            (300, Some(3), &[2, 3]),
            (500, None, &[]),
        ];
        for (now, encrypts, decrypts) in table {
            let tickets = Tickets::default();
            tickets.set(all.to_vec());
            let sealed = tickets.seal(b"session", now);
            assert_eq!(sealed.as_ref().map(|ticket| ticket[0]), encrypts, "{now}");
            for (number, single) in (1..).zip(&all) {
                let other = Tickets::default();
                other.set(vec![single.clone()]);
                let ticket = other
                    .seal(b"session", single.begins_unix_s)
                    .expect("it encrypts then");
                let opened = tickets.open(&ticket, now);
                let expected = decrypts.contains(&number).then(|| b"session".to_vec());
                assert_eq!(opened, expected, "{now} {number}");
            }
        }
    }

    #[test]
    fn a_changed_cut_or_foreign_ticket_is_no_ticket() {
        let tickets = Tickets::default();
        let ticket = tickets.seal(b"session", 1000).expect("sealed");
        assert_eq!(
            tickets.open(&ticket, 1000).as_deref(),
            Some(&b"session"[..])
        );
        assert_ne!(tickets.seal(b"session", 1000).expect("sealed"), ticket);
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(tickets.open(&changed, 1000), None, "changed at {at}");
            assert_eq!(tickets.open(&ticket[..at], 1000), None, "cut at {at}");
        }
        assert_eq!(Tickets::default().open(&ticket, 1000), None);
        assert_eq!(tickets.open(&[0; 1 << 16], 1000), None);
        assert_eq!(tickets.seal(&[0; SESSION_BYTES_MAX + 1], 1000), None);
    }

    #[test]
    fn keys_of_its_own_are_replaced_in_time_and_give_way_to_given_ones() {
        let tickets = Tickets::default();
        let first = tickets.seal(b"a", 1000).expect("sealed");
        let later = 1000 + OWN_ENCRYPTS_S;
        let second = tickets.seal(b"b", later).expect("sealed");
        assert_ne!(first[..NAME_BYTES], second[..NAME_BYTES]);
        assert_eq!(
            tickets.seal(b"b", later).expect("sealed")[..NAME_BYTES],
            second[..NAME_BYTES]
        );
        assert!(tickets.open(&first, later).is_some());
        assert!(tickets.open(&first, 1000 + 2 * OWN_ENCRYPTS_S).is_none());
        assert!(tickets.open(&second, 1000 + 2 * OWN_ENCRYPTS_S).is_some());

        tickets.set(vec![key(1, 0, u64::MAX)]);
        assert!(tickets.open(&second, later).is_none());
        let given = tickets.seal(b"c", later).expect("sealed");
        assert_eq!(given[..NAME_BYTES], [1; NAME_BYTES]);
        tickets.set(Vec::new());
        let own = tickets.seal(b"d", later).expect("sealed");
        assert_ne!(own[..NAME_BYTES], [1; NAME_BYTES]);
    }
}
