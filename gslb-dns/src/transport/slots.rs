//! Limits of TCP connections: one for each client, and one for all, above which a new connection
//! evicts the one that has been idle longest (RFC 7766 section 6.2.3).

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// TCP connections of one client (an IPv4 address or an IPv6 /56).
pub const CONNECTIONS_PER_CLIENT_MAX: u32 = 128;

/// Open connections by client.
#[derive(Default)]
pub(super) struct ClientConnections(Mutex<HashMap<IpAddr, u32>>);

impl ClientConnections {
    /// Counts a connection; `None` when the client is at its limit.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr) -> Option<ClientSlot> {
        let client = client_key(client);
        let mut open = self.0.lock();
        let count = open.entry(client).or_insert(0);
        if *count >= CONNECTIONS_PER_CLIENT_MAX {
            return None;
        }
        *count += 1;
        Some(ClientSlot {
            clients: self.clone(),
            client,
        })
    }
}

/// An IPv6 client usually has a whole network of addresses, so a /56 counts as one client.
fn client_key(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(a) => IpAddr::V6(std::net::Ipv6Addr::from(u128::from(a) & !(u128::MAX >> 56))),
    }
}

pub(super) struct ClientSlot {
    clients: Arc<ClientConnections>,
    client: IpAddr,
}

impl Drop for ClientSlot {
    fn drop(&mut self) {
        let mut open = self.clients.0.lock();
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// The slots of all connections. When none is free, the connection that has been idle longest is
/// evicted: one that waits for a query, or for its client to read answers. A client that only holds
/// connections open cannot lock others out.
pub(super) struct ConnectionSlots {
    pub(super) slots: Arc<Semaphore>,
    waiting: Mutex<WaitQueue>,
}

/// Idle connections by the order in which their waits began. A connection whose query is being
/// answered is not among them.
#[derive(Default)]
struct WaitQueue {
    begun: u64,
    by_age: BTreeMap<u64, Arc<Notify>>,
}

impl ConnectionSlots {
    pub(super) fn new(connections_max: usize) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(connections_max)),
            waiting: Mutex::default(),
        }
    }

    /// A slot for a new connection, now or once an evicted connection has ended; `None` when there
    /// is neither. Each waiting newcomer has evicted one connection, which ends as soon as it runs:
    /// that bounds how many wait, and how long.
    pub(super) fn enter(
        &self,
    ) -> Option<impl Future<Output = Option<OwnedSemaphorePermit>> + Send + 'static> {
        let free = self.slots.clone().try_acquire_owned().ok();
        if free.is_none() && !self.evict_idlest() {
            return None;
        }
        let slots = self.slots.clone();
        Some(async move {
            match free {
                Some(slot) => Some(slot),
                None => slots.acquire_owned().await.ok(),
            }
        })
    }

    /// Evicts the connection that has been idle longest; `false` when none is idle.
    pub(super) fn evict_idlest(&self) -> bool {
        let mut waiting = self.waiting();
        let Some((_, evicted)) = waiting.by_age.pop_first() else {
            return false;
        };
        // Under the lock, so that a connection that has left `by_age` can see that it was evicted.
        evicted.notify_one();
        true
    }

    /// Awaits the client of a connection; `None` when the connection was evicted meanwhile and must
    /// end.
    pub(super) async fn while_idle<T>(
        &self,
        evicted: &Arc<Notify>,
        awaited: impl Future<Output = T>,
    ) -> Option<T> {
        let entry = self.begin_wait(evicted);
        let mut eviction = std::pin::pin!(evicted.notified());
        tokio::select! {
            biased;
            () = &mut eviction => None,
            done = awaited => {
                drop(entry);
                // The eviction may have come after the poll above.
                (!eviction.as_mut().enable()).then_some(done)
            }
        }
    }

    fn begin_wait(&self, evicted: &Arc<Notify>) -> WaitEntry<'_> {
        let mut waiting = self.waiting();
        let number = waiting.begun;
        waiting.begun += 1;
        waiting.by_age.insert(number, evicted.clone());
        WaitEntry {
            slots: self,
            number,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, WaitQueue> {
        self.waiting.lock()
    }
}

/// An entry of the wait queue, removed when dropped.
struct WaitEntry<'a> {
    slots: &'a ConnectionSlots,
    number: u64,
}

impl Drop for WaitEntry<'_> {
    fn drop(&mut self) {
        self.slots.waiting().by_age.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_ipv6_network_is_one_client() {
        let ip = |t: &str| t.parse::<IpAddr>().expect("an address");
        for (a, b, is_same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("2001:db8::1", "2001:db8:0:ff:1::9", true),
            ("2001:db8::1", "2001:db8:0:100::1", false),
        ] {
            assert_eq!(client_key(ip(a)) == client_key(ip(b)), is_same, "{a} {b}");
        }
    }

    #[test]
    fn slots_of_a_client_are_given_back() {
        let clients = Arc::new(ClientConnections::default());
        let ip = IpAddr::from(Ipv4Addr::LOCALHOST);
        let mut open: Vec<_> = (0..CONNECTIONS_PER_CLIENT_MAX)
            .map(|_| clients.enter(ip).expect("room"))
            .collect();
        assert!(clients.enter(ip).is_none());
        assert!(
            clients.enter(IpAddr::from([127, 0, 0, 2])).is_some(),
            "another client has its own"
        );
        open.pop();
        assert!(clients.enter(ip).is_some());
        open.clear();
        assert!(clients.0.lock().is_empty());
    }

    /// Polls once.
    async fn look<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        tokio::select! {
            biased;
            done = future => Some(done),
            () = std::future::ready(()) => None,
        }
    }

    /// A wait for something that never comes.
    fn endless<'a>(
        slots: &'a ConnectionSlots,
        evicted: &'a Arc<Notify>,
    ) -> std::pin::Pin<Box<impl Future<Output = Option<()>> + 'a>> {
        Box::pin(slots.while_idle(evicted, std::future::pending()))
    }

    #[tokio::test]
    async fn without_room_each_newcomer_takes_the_place_of_who_waited_longest() {
        let slots = ConnectionSlots::new(2);
        let [a, b] = [Arc::default(), Arc::default()];
        let slot_a = look(&mut Box::pin(slots.enter().expect("room")))
            .await
            .flatten()
            .expect("at once");
        let _slot_b = look(&mut Box::pin(slots.enter().expect("room")))
            .await
            .flatten()
            .expect("at once");
        let mut wait_b = endless(&slots, &b);
        assert_eq!(look(&mut wait_b).await, None);
        let mut wait_a = endless(&slots, &a);
        assert_eq!(look(&mut wait_a).await, None);
        // What came ends a wait; the next one is a new wait.
        assert_eq!(
            look(&mut Box::pin(slots.while_idle(&b, std::future::ready(5)))).await,
            Some(Some(5))
        );
        drop(wait_b);
        let mut wait_b = endless(&slots, &b);
        assert_eq!(look(&mut wait_b).await, None);

        let mut third = Box::pin(slots.enter().expect("the first is evicted"));
        assert!(
            look(&mut third).await.is_none(),
            "not before its slot is free"
        );
        assert_eq!(
            (look(&mut wait_a).await, look(&mut wait_b).await),
            (Some(None), None)
        );
        drop(slot_a);
        assert!(look(&mut third).await.flatten().is_some());
        // Nobody is asked twice for one slot.
        let _fourth = slots.enter().expect("the free slot");
        let _fifth = slots.enter().expect("the second is evicted");
        assert!(slots.enter().is_none(), "both were asked");
        assert_eq!(look(&mut wait_b).await, Some(None));
    }

    #[tokio::test]
    async fn who_was_refused_leaves_nothing_behind() {
        let slots = ConnectionSlots::new(1);
        let evicted = Arc::default();
        let slot = look(&mut Box::pin(slots.enter().expect("room")))
            .await
            .flatten()
            .expect("at once");
        assert!(slots.enter().is_none(), "it is being served");
        assert_eq!(
            look(&mut endless(&slots, &evicted)).await,
            None,
            "its next wait goes on"
        );
        assert!(slots.enter().is_none(), "a wait that was given up is none");
        drop(slot);
        assert!(
            look(&mut Box::pin(slots.enter().expect("room")))
                .await
                .flatten()
                .is_some()
        );
    }

    #[tokio::test]
    async fn who_was_asked_ends_though_its_query_came() {
        let slots = ConnectionSlots::new(1);
        let evicted = Arc::default();
        let asked_meanwhile = slots.while_idle(&evicted, async { slots.evict_idlest() });
        assert_eq!(asked_meanwhile.await, None);
        assert!(!slots.evict_idlest(), "it waits no more");
    }
}
