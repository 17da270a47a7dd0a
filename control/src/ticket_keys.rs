//! Keys of TLS session tickets, one ring for each cluster: the edges of a cluster resume one
//! another's sessions.
//!
//! A key encrypts for [`ENCRYPTS_S`] and decrypts for [`DECRYPTS_S`] more. The next one is announced
//! [`ANNOUNCED_S`] before it begins, so that every edge has it by then. When a node leaves its
//! cluster or its key is revoked, all keys of the cluster are replaced.
//!
//! The rings are in memory only: whoever copies control's disk must not be able to decrypt recorded
//! sessions of TLS 1.2. A restart of control therefore begins new rings; edges go on decrypting with
//! the keys that they have. Pure but for random numbers: the time is an argument.

use std::collections::BTreeMap;

use nearcast_fleet::config::{Cluster, Fleet};
use nearcast_fleet::ticket_keys::ClusterKeys;
use nearcast_net::tls::TicketKey;
use parking_lot::Mutex;

/// Time for which a key encrypts, in seconds.
const ENCRYPTS_S: u64 = 8 * 3600;
/// Time for which it then decrypts still: as long as a ticket is valid.
const DECRYPTS_S: u64 = 24 * 3600;
/// Time between the announcement of a key and its beginning.
const ANNOUNCED_S: u64 = 3600;

/// The rings of all clusters, by name.
#[derive(Debug, Default)]
pub(crate) struct TicketRings(Mutex<BTreeMap<String, Ring>>);

/// The keys of one cluster, oldest first.
#[derive(Debug, Default)]
struct Ring {
    /// The key generation of each node that may have the keys.
    members: BTreeMap<String, u32>,
    revoked_before_unix_s: u64,
    keys: Vec<TicketKey>,
}

impl TicketRings {
    /// The keys of a cluster at a time, and a tag (RFC 9110 section 8.8.3) that changes with them.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub(crate) fn of(
        &self,
        fleet: &Fleet,
        cluster: &Cluster,
        now_unix_s: u64,
    ) -> Result<(ClusterKeys, String), getrandom::Error> {
        let generation = |name: &str| fleet.keys.generations.get(name).copied().unwrap_or(1);
        let members = cluster
            .nodes
            .iter()
            .map(|n| (n.name.clone(), generation(&n.name)));
        let mut rings = self.0.lock();
        rings.retain(|name, _| fleet.clusters.iter().any(|c| c.name == *name));
        let ring = rings.entry(cluster.name.clone()).or_default();
        ring.turn(members.collect(), now_unix_s, random_key)?;
        let keys = ClusterKeys::new(&cluster.name, ring.revoked_before_unix_s, &ring.keys);
        Ok((keys, ring.tag()))
    }
}

impl Ring {
    /// Brings the ring up to a time.
    fn turn<E>(
        &mut self,
        members: BTreeMap<String, u32>,
        now: u64,
        mut random: impl FnMut(u64) -> Result<TicketKey, E>,
    ) -> Result<(), E> {
        let is_kept = |(name, generation): (&String, &u32)| members.get(name) == Some(generation);
        if !self.members.iter().all(is_kept) {
            self.keys.clear();
            // Also those that were only announced, and perhaps by a control that has been started
            // again since: the ring does not know them. The new keys may begin earlier; edges keep
            // what they are sent.
            self.revoked_before_unix_s = now + ANNOUNCED_S + 1;
        }
        self.members = members;
        self.keys.retain(|key| now < key.ends_unix_s);

        let due = self.keys.last().map(|key| key.begins_unix_s + ENCRYPTS_S);
        match due {
            Some(due) if now + ANNOUNCED_S < due => {}
            Some(due) => self.keys.push(random(due.max(now))?),
            None => self.keys.push(random(now)?),
        }
        // The clock was set back.
        if self.keys.iter().all(|key| key.begins_unix_s > now) {
            self.keys.insert(0, random(now)?);
        }
        Ok(())
    }

    /// Names are no secrets: they are in every ticket. Keys leave the ring one by one.
    fn tag(&self) -> String {
        let newest = self.keys.last().map_or([0; 16], |key| key.name);
        let name: String = newest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("\"{name}-{}\"", self.keys.len())
    }
}

fn random_key(begins_unix_s: u64) -> Result<TicketKey, getrandom::Error> {
    let (mut name, mut secret) = ([0; 16], [0; 32]);
    getrandom::fill(&mut name)?;
    getrandom::fill(&mut secret)?;
    Ok(TicketKey {
        name,
        secret,
        begins_unix_s,
        ends_unix_s: begins_unix_s + ENCRYPTS_S + DECRYPTS_S,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearcast_fleet::testing::FleetText;

    fn members(of: &[(&str, u32)]) -> BTreeMap<String, u32> {
        of.iter()
            .map(|(name, n)| ((*name).to_owned(), *n))
            .collect()
    }

    #[test]
    fn a_key_is_announced_before_it_begins_and_kept_while_tickets_are_valid() {
        let hour = 3600;
        let mut ring = Ring::default();
        let nodes = members(&[("ams-1", 1), ("ams-2", 1)]);
        // Hours at which an edge asks, and the hours at which the keys begin that it gets.
        for (asked, expected) in [
            (100, &[100][..]),
            (106, &[100]),
            (107, &[100, 108]),
            (114, &[100, 108]),
            (115, &[100, 108, 116]),
            (123, &[100, 108, 116, 124]),
            (131, &[100, 108, 116, 124, 132]),
            (132, &[108, 116, 124, 132]),
            // Nobody asked for two days.
            (190, &[190]),
        ] {
            ring.turn(nodes.clone(), asked * hour, random_key)
                .expect("random bytes");
            let begins: Vec<u64> = ring.keys.iter().map(|k| k.begins_unix_s / hour).collect();
            assert_eq!(begins, expected, "at {asked}");
            assert!(ring.keys.iter().any(|k| k.begins_unix_s <= asked * hour));
            assert!(
                ring.keys
                    .iter()
                    .all(|k| k.ends_unix_s - k.begins_unix_s == 32 * hour)
            );
        }
        // The clock is set back by a day.
        ring.turn(nodes, 166 * hour, random_key)
            .expect("random bytes");
        assert_eq!(ring.keys[0].begins_unix_s, 166 * hour);
        assert_eq!(ring.revoked_before_unix_s, 0);
    }

    #[test]
    fn a_node_that_leaves_takes_no_usable_key_with_it() {
        let before = members(&[("ams-1", 1), ("ams-2", 1)]);
        for (after, is_renewed) in [
            (members(&[("ams-1", 1), ("ams-2", 1)]), false),
            (members(&[("ams-1", 1), ("ams-2", 1), ("ams-3", 1)]), false),
            (members(&[("ams-1", 1)]), true),
            (members(&[("ams-1", 2), ("ams-2", 1)]), true),
        ] {
            let mut ring = Ring::default();
            ring.turn(before.clone(), 1000, random_key)
                .expect("random bytes");
            let (first, tag) = (ring.keys.clone(), ring.tag());
            ring.turn(after.clone(), 2000, random_key)
                .expect("random bytes");
            assert_eq!(ring.keys != first, is_renewed, "{after:?}");
            assert_eq!(ring.tag() != tag, is_renewed, "{after:?}");
            assert_eq!(ring.revoked_before_unix_s > 2000, is_renewed, "{after:?}");
        }
    }

    #[test]
    fn a_key_that_is_only_announced_is_revoked_too() {
        // An hour before the next key begins, and at the last moment.
        for asked in [1000 + ENCRYPTS_S - ANNOUNCED_S, 999 + ENCRYPTS_S] {
            let mut ring = Ring::default();
            for now in [1000, asked] {
                ring.turn(members(&[("ams-1", 1), ("ams-2", 1)]), now, random_key)
                    .expect("random bytes");
            }
            let known = ring.keys.clone();
            assert_eq!(known.len(), 2);
            assert!(known[1].begins_unix_s > asked, "announced only");
            // A node leaves, at the ring that announced the key or at one of a later start of control.
            let later = Ring {
                members: ring.members.clone(),
                ..Ring::default()
            };
            for mut ring in [ring, later] {
                ring.turn(members(&[("ams-2", 1)]), asked, random_key)
                    .expect("random bytes");
                let revoked = |key: &TicketKey| key.begins_unix_s < ring.revoked_before_unix_s;
                assert!(known.iter().all(revoked));
                assert!(ring.keys.iter().all(|key| !known.contains(key)));
                assert!(ring.keys[0].begins_unix_s <= asked, "in use at once");
            }
        }
    }

    #[test]
    fn every_cluster_has_keys_of_its_own() {
        let fleet = FleetText::new()
            .cluster("ams", &["192.0.2.1", "192.0.2.2"])
            .cluster("nyc", &["192.0.2.3"])
            .fleet();
        let rings = TicketRings::default();
        let of = |n: usize| {
            rings
                .of(&fleet, &fleet.clusters[n], 1000)
                .expect("random bytes")
        };
        assert!(of(0) == of(0));
        assert!(of(0).0.keys() != of(1).0.keys());
        assert_ne!(of(0).1, of(1).1);
    }
}
