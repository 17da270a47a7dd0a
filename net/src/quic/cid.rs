//! Connection IDs that name the worker and the reset key of a connection.
//!
//! An ID is one byte that gives the worker's number modulo the number of workers and is random
//! otherwise; two bytes that name the key of its stateless reset token; seven random bytes. The
//! kernel routes by the first byte ([`super::route`]), and a node that has lost a connection finds
//! the key of its reset token by the name, also after it was started again.
//!
//! RFC 9000 section 5.1 wants IDs of one connection not to be linked by others. Those of one worker
//! share a few bits, so a connection that changes its network is one among those of its worker.

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use ring::rand::{SecureRandom, SystemRandom};

use super::keys::{KEY_ID_BYTES, QuicKeys};

/// The length of an ID.
pub(super) const BYTES: usize = 10;
const KEY_ID: std::ops::Range<usize> = 1..1 + KEY_ID_BYTES;

/// Makes the connection IDs of one worker.
pub(super) struct WorkerIds {
    worker: u8,
    workers: u8,
    keys: Arc<QuicKeys>,
    random: SystemRandom,
}

impl WorkerIds {
    /// Of the worker with this number, among at most 256 workers.
    pub(super) fn new(worker: usize, workers: usize, keys: Arc<QuicKeys>) -> Self {
        let workers = u8::try_from(workers).unwrap_or(u8::MAX).max(1);
        Self {
            worker: u8::try_from(worker).unwrap_or(u8::MAX) % workers,
            workers,
            keys,
            random: SystemRandom::new(),
        }
    }
}

/// A byte with the remainder `worker` after division by `workers`, chosen by a random byte.
fn first_byte(random: u8, worker: u8, workers: u8) -> u8 {
    let base = random - random % workers;
    match base.checked_add(worker) {
        Some(byte) => byte,
        None => worker,
    }
}

/// The name of the key of an ID's reset token.
pub(super) fn key_id(id: &[u8]) -> Option<[u8; KEY_ID_BYTES]> {
    (id.len() == BYTES).then(|| id[KEY_ID].try_into().expect("its length fits"))
}

impl ConnectionIdGenerator for WorkerIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; BYTES];
        self.random
            .fill(&mut id)
            .expect("the system has random bytes");
        id[0] = first_byte(id[0], self.worker, self.workers);
        let key = self.keys.current(super::now_unix_s());
        id[KEY_ID].copy_from_slice(&key.id);
        ConnectionId::new(&id)
    }

    /// Whether it is an ID of this worker whose reset token can be made. A packet of another
    /// worker's connection must not be answered with a reset: that connection lives.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let is_own = id
            .first()
            .is_some_and(|byte| byte % self.workers == self.worker);
        let key = key_id(id).and_then(|name| self.keys.find(name, super::now_unix_s()));
        match is_own && key.is_some() {
            true => Ok(()),
            false => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Tickets;

    fn keys() -> Arc<QuicKeys> {
        Arc::new(QuicKeys::new(Arc::new(Tickets::default())))
    }

    #[test]
    fn the_first_byte_names_the_worker_whatever_is_random() {
        for workers in 1..=super::super::socket::WORKERS_MAX as u8 {
            for worker in 0..workers {
                let mut found = std::collections::BTreeSet::new();
                for random in 0..=255 {
                    let byte = first_byte(random, worker, workers);
                    assert_eq!(byte % workers, worker, "{random} {workers}");
                    found.insert(byte);
                }
                let possible =
                    (256 + usize::from(workers) - 1 - usize::from(worker)) / usize::from(workers);
                assert_eq!(found.len(), possible, "all bytes with that remainder");
            }
        }
    }

    #[test]
    fn ids_differ_and_only_those_of_the_same_worker_and_known_keys_are_taken_for_own() {
        let keys = keys();
        let mut own = WorkerIds::new(1, 3, keys.clone());
        let other = WorkerIds::new(2, 3, keys);
        let foreign = WorkerIds::new(1, 3, self::keys());
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let id = own.generate_cid();
            assert_eq!((id.len(), own.cid_len(), id[0] % 3), (BYTES, BYTES, 1));
            assert!(own.validate(&id).is_ok());
            assert!(other.validate(&id).is_err(), "another worker's");
            assert!(seen.insert(id.to_vec()));
        }
        let id = own.generate_cid();
        assert!(foreign.validate(&id).is_err(), "of a key that is not known");
        assert!(own.validate(&ConnectionId::new(&id[..BYTES - 1])).is_err());
        assert!(own.validate(&ConnectionId::new(&[])).is_err());
    }
}
