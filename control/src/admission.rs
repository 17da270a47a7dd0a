//! Limits on connections to the API: a share for nodes, one for operators, one for anonymous clients.
//!
//! A connection is anonymous until a request on it carries a valid key or token; then it belongs to
//! a node or to an operator. Clients without a credential therefore share only the anonymous slots,
//! and cannot take those of nodes or operators; nor can nodes take those of operators.
//!
//! A new connection always gets an anonymous slot: when all are taken, the anonymous connection that
//! has been idle longest is evicted, of the address that holds the most. A node's connection is
//! likewise evicted for that of a node whose address holds fewer, so that one key cannot take the
//! slots of all nodes. Connections over loopback have slots of their own.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Open files reserved for the disk, requests to name servers, and the admin listener: this part of
/// all, and at least this many.
const RESERVE_PART: usize = 8;
const RESERVE_MIN: usize = 64;
/// Most connections, whatever the limit of open files.
const ALL_MAX: usize = 65_536;
/// Share of all connections for anonymous clients, for those over loopback, and for operators, each.
/// Nodes have the rest.
const SHARE_PART: usize = 8;
const SHARE_MIN: usize = 16;
const SHARE_MAX: usize = 1024;
/// Part of the anonymous slots that one address may hold.
const ADDRESS_PART: usize = 4;
/// Concurrent event streams: from other hosts, over loopback, and of one address.
const STREAMS_MAX: usize = 192;
const STREAMS_LOOPBACK_MAX: usize = 64;
const STREAMS_ADDRESS_MAX: usize = 16;

/// The class of a connection, by the credential that its requests carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Anonymous,
    Node,
    Operator,
}

impl Class {
    pub(crate) const ALL: [Self; 3] = [Self::Anonymous, Self::Node, Self::Operator];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Node => "node",
            Self::Operator => "operator",
        }
    }
}

/// Limits of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Not over loopback, and as many again over loopback.
    pub(crate) anonymous: usize,
    pub(crate) of_address: usize,
    pub(crate) operators: usize,
    pub(crate) nodes: usize,
}

impl Limits {
    /// The limits that a number of open files allows.
    pub(crate) fn of_files(files: usize) -> Self {
        let all = files
            .saturating_sub((files / RESERVE_PART).max(RESERVE_MIN))
            .min(ALL_MAX);
        let share = (all / SHARE_PART).clamp(SHARE_MIN, SHARE_MAX);
        Self {
            anonymous: share,
            of_address: share / ADDRESS_PART,
            operators: share,
            nodes: all.saturating_sub(3 * share).max(SHARE_MIN),
        }
    }
}

/// The owner of a connection: an IPv4 address or an IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Owner(IpAddr);

impl Owner {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) => Self(IpAddr::V6(Ipv6Addr::from(u128::from(v6) >> 64 << 64))),
            v4 => Self(v4),
        }
    }

    /// Must be checked before [`Owner::of`], which maps `::1` to a /64.
    fn is_loopback(address: IpAddr) -> bool {
        address.to_canonical().is_loopback()
    }
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    /// Counts requests and new connections, to order them by age.
    ticks: u64,
    /// By loopback or not, then by the tick of the last request, or of the accept.
    anonymous: [BTreeMap<u64, Holder>; 2],
    /// Number of anonymous connections of each owner.
    held: HashMap<Owner, usize>,
    /// By the tick of the last request.
    nodes: BTreeMap<u64, Holder>,
    /// Number of nodes' connections of each owner.
    held_by_nodes: HashMap<Owner, usize>,
    operators: usize,
    streams: HashMap<Owner, usize>,
    /// By loopback or not.
    streams_all: [usize; 2],
}

/// The holder of a slot that may be evicted.
#[derive(Debug)]
struct Holder {
    owner: Owner,
    evicted: Arc<Notify>,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            slots: Mutex::default(),
        })
    }

    /// The limits.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// A slot for a new connection. Another connection may be evicted for it.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Arc<Slot> {
        let (owner, is_loopback) = (Owner::of(address), Owner::is_loopback(address));
        let evicted = Arc::new(Notify::new());
        let mut slots = self.slots.lock();
        let held = slots.held.get(&owner).copied().unwrap_or(0);
        let anonymous = &slots.anonymous[usize::from(is_loopback)];
        let goes = if !is_loopback && held >= self.limits.of_address {
            anonymous
                .iter()
                .find(|(_, s)| s.owner == owner)
                .map(|(tick, _)| *tick)
        } else if anonymous.len() >= self.limits.anonymous {
            let most = slots
                .held
                .iter()
                .filter(|(o, _)| o.0.is_loopback() == is_loopback)
                .max_by_key(|(_, n)| **n)
                .map(|(o, _)| *o);
            let of_most = |s: &Holder| is_loopback || most == Some(s.owner);
            anonymous
                .iter()
                .find(|(_, s)| of_most(s))
                .or_else(|| anonymous.iter().next())
                .map(|(tick, _)| *tick)
        } else {
            None
        };
        if let Some(tick) = goes {
            slots.remove(is_loopback, tick).evicted.notify_one();
        }
        let tick = slots.tick();
        slots.anonymous[usize::from(is_loopback)].insert(
            tick,
            Holder {
                owner,
                evicted: evicted.clone(),
            },
        );
        *slots.held.entry(owner).or_insert(0) += 1;
        drop(slots);
        Arc::new(Slot {
            admission: self.clone(),
            owner,
            is_loopback,
            evicted,
            kind: Mutex::new(SlotKind::Anonymous(tick)),
        })
    }

    /// Connections by class.
    pub(crate) fn counts(&self) -> [(Class, usize); 3] {
        let slots = self.slots.lock();
        let of = |class| match class {
            Class::Anonymous => slots.anonymous.iter().map(BTreeMap::len).sum(),
            Class::Node => slots.nodes.len(),
            Class::Operator => slots.operators,
        };
        Class::ALL.map(|class| (class, of(class)))
    }
}

impl Slots {
    fn tick(&mut self) -> u64 {
        self.ticks += 1;
        self.ticks
    }

    /// The node's connection to evict for one more of an owner: the longest idle one of the owner that
    /// holds the most. `None` when the newcomer would then hold as many.
    fn node_to_evict(&self, newcomer: Owner) -> Option<u64> {
        let own = self.held_by_nodes.get(&newcomer).copied().unwrap_or(0);
        let (owner, most) = self
            .held_by_nodes
            .iter()
            .max_by_key(|(_, n)| **n)
            .map(|(owner, n)| (*owner, *n))?;
        let goes = match own {
            _ if own == most => newcomer,
            _ if own + 1 < most => owner,
            _ => return None,
        };
        self.nodes
            .iter()
            .find(|(_, holder)| holder.owner == goes)
            .map(|(tick, _)| *tick)
    }

    fn remove_node(&mut self, tick: u64) -> Holder {
        let holder = self.nodes.remove(&tick).expect("it was found here");
        release(&mut self.held_by_nodes, holder.owner);
        holder
    }

    fn remove(&mut self, is_loopback: bool, tick: u64) -> Holder {
        let anonymous = self.anonymous[usize::from(is_loopback)]
            .remove(&tick)
            .expect("it was found here");
        release(&mut self.held, anonymous.owner);
        anonymous
    }
}

fn release(held: &mut HashMap<Owner, usize>, owner: Owner) {
    if let Some(count) = held.get_mut(&owner) {
        *count -= 1;
        if *count == 0 {
            held.remove(&owner);
        }
    }
}

/// A connection's slot. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct Slot {
    admission: Arc<Admission>,
    owner: Owner,
    is_loopback: bool,
    evicted: Arc<Notify>,
    kind: Mutex<SlotKind>,
}

#[derive(Debug, Clone, Copy)]
enum SlotKind {
    /// With its tick. The connection may have been evicted.
    Anonymous(u64),
    /// As above.
    Node(u64),
    Operator,
}

impl Slot {
    /// The address at the other end; of IPv6 its /64.
    pub(crate) fn address(&self) -> IpAddr {
        self.owner.0
    }

    /// Returns when the connection is evicted.
    pub(crate) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Notes a request and its class. Returns false when that class has no free slot.
    pub(crate) fn admit(&self, class: Class) -> bool {
        let mut kind = self.kind.lock();
        let mut slots = self.admission.slots.lock();
        let tick = match *kind {
            SlotKind::Anonymous(tick) => tick,
            SlotKind::Node(tick) => {
                if let Some(holder) = slots.nodes.remove(&tick) {
                    let tick = slots.tick();
                    slots.nodes.insert(tick, holder);
                    *kind = SlotKind::Node(tick);
                }
                return true;
            }
            SlotKind::Operator => return true,
        };
        let anonymous = &mut slots.anonymous[usize::from(self.is_loopback)];
        if !anonymous.contains_key(&tick) {
            // It has been evicted and is closing.
            return true;
        }
        match class {
            Class::Anonymous => {
                let anonymous = anonymous.remove(&tick).expect("it is there");
                let tick = slots.tick();
                slots.anonymous[usize::from(self.is_loopback)].insert(tick, anonymous);
                *kind = SlotKind::Anonymous(tick);
            }
            Class::Node => {
                if slots.nodes.len() >= self.admission.limits.nodes {
                    let Some(goes) = slots.node_to_evict(self.owner) else {
                        return false;
                    };
                    slots.remove_node(goes).evicted.notify_one();
                }
                let holder = slots.remove(self.is_loopback, tick);
                *slots.held_by_nodes.entry(self.owner).or_insert(0) += 1;
                let tick = slots.tick();
                slots.nodes.insert(tick, holder);
                *kind = SlotKind::Node(tick);
            }
            Class::Operator => {
                if slots.operators >= self.admission.limits.operators {
                    return false;
                }
                slots.operators += 1;
                slots.remove(self.is_loopback, tick);
                *kind = SlotKind::Operator;
            }
        }
        true
    }

    /// A slot for an event stream; `None` when there are too many in all, or of this address.
    pub(crate) fn stream(self: &Arc<Self>) -> Option<StreamSlot> {
        let mut slots = self.admission.slots.lock();
        let (all, most) = match self.is_loopback {
            true => (slots.streams_all[1], STREAMS_LOOPBACK_MAX),
            false => (slots.streams_all[0], STREAMS_MAX),
        };
        let of_owner = slots.streams.get(&self.owner).copied().unwrap_or(0);
        if all >= most || (!self.is_loopback && of_owner >= STREAMS_ADDRESS_MAX) {
            return None;
        }
        slots.streams_all[usize::from(self.is_loopback)] += 1;
        *slots.streams.entry(self.owner).or_insert(0) += 1;
        Some(StreamSlot(self.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut slots = self.admission.slots.lock();
        match *self.kind.get_mut() {
            SlotKind::Anonymous(tick)
                if slots.anonymous[usize::from(self.is_loopback)].contains_key(&tick) =>
            {
                slots.remove(self.is_loopback, tick);
            }
            SlotKind::Node(tick) if slots.nodes.contains_key(&tick) => {
                slots.remove_node(tick);
            }
            SlotKind::Anonymous(_) | SlotKind::Node(_) => {}
            SlotKind::Operator => slots.operators -= 1,
        }
    }
}

/// The slot of an event stream. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct StreamSlot(Arc<Slot>);

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let mut slots = self.0.admission.slots.lock();
        slots.streams_all[usize::from(self.0.is_loopback)] -= 1;
        release(&mut slots.streams, self.0.owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn admission() -> Arc<Admission> {
        Admission::new(Limits {
            anonymous: 8,
            of_address: 4,
            operators: 2,
            nodes: 3,
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn is_evicted(slot: &Slot) -> bool {
        slot.evicted().now_or_never().is_some()
    }

    fn counts(admission: &Admission) -> [usize; 3] {
        admission.counts().map(|(_, n)| n)
    }

    #[test]
    fn shares_follow_the_limit_of_files() {
        for (files, anonymous, nodes) in [
            (256, 24, 120),
            (1024, 112, 560),
            (20_000, 1024, 14_428),
            (1 << 20, 1024, 62_464),
            (0, 16, 16),
        ] {
            let limits = Limits::of_files(files);
            assert_eq!(
                (limits.anonymous, limits.operators, limits.nodes),
                (anonymous, anonymous, nodes),
                "{files}"
            );
        }
    }

    #[test]
    fn a_flood_of_anonymous_connections_takes_no_slot_of_others() {
        let a = admission();
        let node = a.enter(ip("192.0.2.1"));
        assert!(node.admit(Class::Node));
        let quiet = a.enter(ip("192.0.2.2"));
        let active = a.enter(ip("192.0.2.2"));
        let mut flood = Vec::new();
        for n in 0..100 {
            assert!(active.admit(Class::Anonymous));
            flood.push(a.enter(ip(&format!("198.51.100.{}", n % 2))));
        }
        assert_eq!(counts(&a), [8, 1, 0]);
        // Only connections of the flood were evicted, since it holds the most.
        assert!(!is_evicted(&node) && !is_evicted(&active) && !is_evicted(&quiet));
        assert_eq!(flood.iter().filter(|s| !is_evicted(s)).count(), 6);
        // A client with the token arrives during the flood.
        let operator = a.enter(ip("203.0.113.9"));
        assert!(!is_evicted(&operator) && operator.admit(Class::Operator));
        for n in 0..100 {
            flood.push(a.enter(ip(&format!("198.51.100.{n}"))));
        }
        assert!(!is_evicted(&operator));
        drop(flood);
        drop((node, quiet, active, operator));
        assert_eq!(counts(&a), [0, 0, 0]);
        assert!(a.slots.lock().held.is_empty());
    }

    #[test]
    fn one_address_has_a_limit_of_its_own_and_its_quietest_goes() {
        let a = admission();
        let slots: Vec<Arc<Slot>> = (0..4)
            .map(|n| a.enter(ip(&format!("2001:db8::{n}"))))
            .collect();
        assert!(slots[0].admit(Class::Anonymous));
        let fifth = a.enter(ip("2001:db8::99"));
        assert_eq!(
            slots.iter().map(|s| is_evicted(s)).collect::<Vec<_>>(),
            [false, true, false, false],
            "a /64 is one"
        );
        assert!(!is_evicted(&fifth));
        // An evicted connection changes nothing any more.
        assert!(slots[1].admit(Class::Node));
        assert_eq!(counts(&a), [4, 0, 0]);
    }

    #[test]
    fn neither_nodes_nor_operators_lock_the_others_out() {
        let a = admission();
        let address = ip("192.0.2.1");
        let nodes: Vec<Arc<Slot>> = (0..3).map(|_| a.enter(address)).collect();
        assert!(nodes.iter().all(|n| n.admit(Class::Node)));
        let operators: Vec<Arc<Slot>> = (0..2).map(|_| a.enter(address)).collect();
        assert!(
            operators
                .iter()
                .all(|o| o.admit(Class::Operator) && o.admit(Class::Node)),
            "it stays what it is"
        );
        assert!(!a.enter(address).admit(Class::Operator));
        assert_eq!(counts(&a)[1..], [3, 2]);
        drop(nodes);
        assert_eq!(counts(&a)[1..], [0, 2]);
    }

    #[test]
    fn one_address_cannot_take_the_places_of_all_nodes() {
        let a = admission();
        let node = |address: &str| {
            let slot = a.enter(ip(address));
            let has_place = slot.admit(Class::Node);
            (slot, has_place)
        };
        let flood: Vec<_> = (0..3).map(|_| node("192.0.2.1").0).collect();
        assert!(
            flood[0].admit(Class::Node),
            "the first is not the quietest any more"
        );
        let (fourth, has_place) = node("192.0.2.1");
        assert!(has_place && is_evicted(&flood[1]), "its own quietest goes");
        let (honest, has_place) = node("192.0.2.2");
        assert!(
            has_place && is_evicted(&flood[2]) && !is_evicted(&flood[0]) && !is_evicted(&fourth)
        );
        // No connection is evicted for an owner that would then hold as many.
        let (second, has_place) = node("192.0.2.2");
        assert!(!has_place && !is_evicted(&honest));
        let (other, has_place) = node("192.0.2.3");
        assert!(has_place && is_evicted(&flood[0]), "each has one now");
        assert!(!node("192.0.2.4").1 && counts(&a)[1] == 3, "full");
        assert!(
            flood[0].admit(Class::Node),
            "what is on its way out changes nothing"
        );
        drop((flood, fourth, honest, second, other));
        assert_eq!(counts(&a), [0, 0, 0]);
        let slots = a.slots.lock();
        assert!(slots.held_by_nodes.is_empty() && slots.held.is_empty());
    }

    #[test]
    fn loopback_has_places_of_its_own() {
        let a = admission();
        let here: Vec<Arc<Slot>> = (0..8).map(|_| a.enter(ip("127.0.0.1"))).collect();
        let flood: Vec<Arc<Slot>> = (0..100)
            .map(|n| a.enter(ip(&format!("198.51.100.{n}"))))
            .collect();
        assert!(here.iter().all(|s| !is_evicted(s)));
        let one_more = a.enter(ip("::1"));
        assert!(is_evicted(&here[0]) && !is_evicted(&one_more));
        drop(flood);
    }

    #[test]
    fn event_streams_are_bounded_by_address() {
        let a = admission();
        let slot = a.enter(ip("192.0.2.1"));
        let streams: Vec<StreamSlot> = std::iter::from_fn(|| slot.stream()).collect();
        assert_eq!(streams.len(), STREAMS_ADDRESS_MAX);
        let others: Vec<StreamSlot> = (0..=255u8)
            .flat_map(|n| {
                let slot = a.enter(ip(&format!("198.51.100.{n}")));
                std::iter::from_fn(move || slot.stream()).take(STREAMS_ADDRESS_MAX)
            })
            .collect();
        assert_eq!(streams.len() + others.len(), STREAMS_MAX);
        assert!(a.enter(ip("127.0.0.1")).stream().is_some());
        drop(streams);
        assert!(slot.stream().is_some());
    }
}
