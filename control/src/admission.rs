//! Limits on connections to the API: a share for nodes, one for operators, one for strangers.
//!
//! A stranger is a connection without a valid credential so far. Every connection begins as one, and
//! becomes a node's or an operator's when a request on it carries a valid key or token. So clients
//! without a credential share only the places of strangers, and cannot take those of nodes or
//! operators; nor can nodes take those of operators.
//!
//! A new connection always gets a stranger's place: when all are taken, the connection that has been
//! idle longest is evicted, of the address that holds the most. A node's connection is likewise evicted
//! for that of a node whose address holds fewer, so that one key cannot take the places of all nodes.
//! Connections over loopback have places of their own.

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
/// Share of all connections for strangers, for connections over loopback, and for operators, each.
/// Nodes have the rest.
const SHARE_PART: usize = 8;
const SHARE_MIN: usize = 16;
const SHARE_MAX: usize = 1024;
/// Part of the strangers' places that one address may hold.
const ADDRESS_PART: usize = 4;
/// Concurrent event streams: from other hosts, over loopback, and of one address.
const STREAMS_MAX: usize = 192;
const STREAMS_LOOPBACK_MAX: usize = 64;
const STREAMS_ADDRESS_MAX: usize = 16;

/// The class of a connection, by the credential that its requests carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Stranger,
    Node,
    Operator,
}

impl Class {
    pub(crate) const ALL: [Self; 3] = [Self::Stranger, Self::Node, Self::Operator];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Node => "node",
            Self::Operator => "operator",
        }
    }
}

/// Limits of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Not over loopback, and as many again over loopback.
    pub(crate) strangers: usize,
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
            strangers: share,
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
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    /// Counts requests and new connections, to order them by age.
    ticks: u64,
    /// By loopback or not, then by the tick of the last request, or of the accept.
    strangers: [BTreeMap<u64, Holder>; 2],
    /// Number of strangers of each owner.
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

/// The holder of a place that may be evicted.
#[derive(Debug)]
struct Holder {
    owner: Owner,
    evicted: Arc<Notify>,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            places: Mutex::default(),
        })
    }

    /// The limits.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// A place for a new connection. Another connection may be evicted for it.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Arc<Seat> {
        let (owner, is_loopback) = (Owner::of(address), Owner::is_loopback(address));
        let evicted = Arc::new(Notify::new());
        let mut places = self.places.lock();
        let held = places.held.get(&owner).copied().unwrap_or(0);
        let strangers = &places.strangers[usize::from(is_loopback)];
        let goes = if !is_loopback && held >= self.limits.of_address {
            strangers
                .iter()
                .find(|(_, s)| s.owner == owner)
                .map(|(tick, _)| *tick)
        } else if strangers.len() >= self.limits.strangers {
            let most = places
                .held
                .iter()
                .filter(|(o, _)| o.0.is_loopback() == is_loopback)
                .max_by_key(|(_, n)| **n)
                .map(|(o, _)| *o);
            let of_most = |s: &Holder| is_loopback || most == Some(s.owner);
            strangers
                .iter()
                .find(|(_, s)| of_most(s))
                .or_else(|| strangers.iter().next())
                .map(|(tick, _)| *tick)
        } else {
            None
        };
        if let Some(tick) = goes {
            places.remove(is_loopback, tick).evicted.notify_one();
        }
        let tick = places.tick();
        places.strangers[usize::from(is_loopback)].insert(
            tick,
            Holder {
                owner,
                evicted: evicted.clone(),
            },
        );
        *places.held.entry(owner).or_insert(0) += 1;
        drop(places);
        Arc::new(Seat {
            admission: self.clone(),
            owner,
            is_loopback,
            evicted,
            place: Mutex::new(Place::Stranger(tick)),
        })
    }

    /// Connections by class.
    pub(crate) fn counts(&self) -> [(Class, usize); 3] {
        let places = self.places.lock();
        let of = |class| match class {
            Class::Stranger => places.strangers.iter().map(BTreeMap::len).sum(),
            Class::Node => places.nodes.len(),
            Class::Operator => places.operators,
        };
        Class::ALL.map(|class| (class, of(class)))
    }
}

impl Places {
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
        let stranger = self.strangers[usize::from(is_loopback)]
            .remove(&tick)
            .expect("it was found here");
        release(&mut self.held, stranger.owner);
        stranger
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

/// A connection's place. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Seat {
    admission: Arc<Admission>,
    owner: Owner,
    is_loopback: bool,
    evicted: Arc<Notify>,
    place: Mutex<Place>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    /// With its tick. The connection may have been evicted.
    Stranger(u64),
    /// As above.
    Node(u64),
    Operator,
}

impl Seat {
    /// Returns when the connection is evicted.
    pub(crate) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Notes a request and its class. Returns false when that class has no free place.
    pub(crate) fn admit(&self, class: Class) -> bool {
        let mut place = self.place.lock();
        let mut places = self.admission.places.lock();
        let tick = match *place {
            Place::Stranger(tick) => tick,
            Place::Node(tick) => {
                if let Some(holder) = places.nodes.remove(&tick) {
                    let tick = places.tick();
                    places.nodes.insert(tick, holder);
                    *place = Place::Node(tick);
                }
                return true;
            }
            Place::Operator => return true,
        };
        let strangers = &mut places.strangers[usize::from(self.is_loopback)];
        if !strangers.contains_key(&tick) {
            // It has been evicted and is closing.
            return true;
        }
        match class {
            Class::Stranger => {
                let stranger = strangers.remove(&tick).expect("it is there");
                let tick = places.tick();
                places.strangers[usize::from(self.is_loopback)].insert(tick, stranger);
                *place = Place::Stranger(tick);
            }
            Class::Node => {
                if places.nodes.len() >= self.admission.limits.nodes {
                    let Some(goes) = places.node_to_evict(self.owner) else {
                        return false;
                    };
                    places.remove_node(goes).evicted.notify_one();
                }
                let holder = places.remove(self.is_loopback, tick);
                *places.held_by_nodes.entry(self.owner).or_insert(0) += 1;
                let tick = places.tick();
                places.nodes.insert(tick, holder);
                *place = Place::Node(tick);
            }
            Class::Operator => {
                if places.operators >= self.admission.limits.operators {
                    return false;
                }
                places.operators += 1;
                places.remove(self.is_loopback, tick);
                *place = Place::Operator;
            }
        }
        true
    }

    /// A place for an event stream; `None` when there are too many in all, or of this address.
    pub(crate) fn stream(self: &Arc<Self>) -> Option<StreamPlace> {
        let mut places = self.admission.places.lock();
        let (all, most) = match self.is_loopback {
            true => (places.streams_all[1], STREAMS_LOOPBACK_MAX),
            false => (places.streams_all[0], STREAMS_MAX),
        };
        let of_owner = places.streams.get(&self.owner).copied().unwrap_or(0);
        if all >= most || (!self.is_loopback && of_owner >= STREAMS_ADDRESS_MAX) {
            return None;
        }
        places.streams_all[usize::from(self.is_loopback)] += 1;
        *places.streams.entry(self.owner).or_insert(0) += 1;
        Some(StreamPlace(self.clone()))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut places = self.admission.places.lock();
        match *self.place.get_mut() {
            Place::Stranger(tick)
                if places.strangers[usize::from(self.is_loopback)].contains_key(&tick) =>
            {
                places.remove(self.is_loopback, tick);
            }
            Place::Node(tick) if places.nodes.contains_key(&tick) => {
                places.remove_node(tick);
            }
            Place::Stranger(_) | Place::Node(_) => {}
            Place::Operator => places.operators -= 1,
        }
    }
}

/// The place of an event stream. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct StreamPlace(Arc<Seat>);

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut places = self.0.admission.places.lock();
        places.streams_all[usize::from(self.0.is_loopback)] -= 1;
        release(&mut places.streams, self.0.owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn admission() -> Arc<Admission> {
        Admission::new(Limits {
            strangers: 8,
            of_address: 4,
            operators: 2,
            nodes: 3,
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn is_evicted(seat: &Seat) -> bool {
        seat.evicted().now_or_never().is_some()
    }

    fn counts(admission: &Admission) -> [usize; 3] {
        admission.counts().map(|(_, n)| n)
    }

    #[test]
    fn shares_follow_the_limit_of_files() {
        for (files, strangers, nodes) in [
            (256, 24, 120),
            (1024, 112, 560),
            (20_000, 1024, 14_428),
            (1 << 20, 1024, 62_464),
            (0, 16, 16),
        ] {
            let limits = Limits::of_files(files);
            assert_eq!(
                (limits.strangers, limits.operators, limits.nodes),
                (strangers, strangers, nodes),
                "{files}"
            );
        }
    }

    #[test]
    fn a_flood_of_strangers_takes_no_place_of_others() {
        let a = admission();
        let node = a.enter(ip("192.0.2.1"));
        assert!(node.admit(Class::Node));
        let quiet = a.enter(ip("192.0.2.2"));
        let active = a.enter(ip("192.0.2.2"));
        let mut flood = Vec::new();
        for n in 0..100 {
            assert!(active.admit(Class::Stranger));
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
        assert!(a.places.lock().held.is_empty());
    }

    #[test]
    fn one_address_has_a_limit_of_its_own_and_its_quietest_goes() {
        let a = admission();
        let seats: Vec<Arc<Seat>> = (0..4)
            .map(|n| a.enter(ip(&format!("2001:db8::{n}"))))
            .collect();
        assert!(seats[0].admit(Class::Stranger));
        let fifth = a.enter(ip("2001:db8::99"));
        assert_eq!(
            seats.iter().map(|s| is_evicted(s)).collect::<Vec<_>>(),
            [false, true, false, false],
            "a /64 is one"
        );
        assert!(!is_evicted(&fifth));
        // An evicted connection changes nothing any more.
        assert!(seats[1].admit(Class::Node));
        assert_eq!(counts(&a), [4, 0, 0]);
    }

    #[test]
    fn neither_nodes_nor_operators_lock_the_others_out() {
        let a = admission();
        let address = ip("192.0.2.1");
        let nodes: Vec<Arc<Seat>> = (0..3).map(|_| a.enter(address)).collect();
        assert!(nodes.iter().all(|n| n.admit(Class::Node)));
        let operators: Vec<Arc<Seat>> = (0..2).map(|_| a.enter(address)).collect();
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
            let seat = a.enter(ip(address));
            let has_place = seat.admit(Class::Node);
            (seat, has_place)
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
        let places = a.places.lock();
        assert!(places.held_by_nodes.is_empty() && places.held.is_empty());
    }

    #[test]
    fn loopback_has_places_of_its_own() {
        let a = admission();
        let here: Vec<Arc<Seat>> = (0..8).map(|_| a.enter(ip("127.0.0.1"))).collect();
        let flood: Vec<Arc<Seat>> = (0..100)
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
        let seat = a.enter(ip("192.0.2.1"));
        let streams: Vec<StreamPlace> = std::iter::from_fn(|| seat.stream()).collect();
        assert_eq!(streams.len(), STREAMS_ADDRESS_MAX);
        let others: Vec<StreamPlace> = (0..=255u8)
            .flat_map(|n| {
                let seat = a.enter(ip(&format!("198.51.100.{n}")));
                std::iter::from_fn(move || seat.stream()).take(STREAMS_ADDRESS_MAX)
            })
            .collect();
        assert_eq!(streams.len() + others.len(), STREAMS_MAX);
        assert!(a.enter(ip("127.0.0.1")).stream().is_some());
        drop(streams);
        assert!(seat.stream().is_some());
    }
}
