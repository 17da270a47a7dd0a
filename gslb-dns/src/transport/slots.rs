//! Limits of TCP connections: a number for each client, and one for all, in which the connection that
//! has been idle longest makes way for a new one.

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
    /// Counts a connection; `None` when the client has enough.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr) -> Option<ClientSlot> {
        let client = client_key(client);
        let mut open = self.0.lock();
        let count = open.entry(client).or_insert(0);
        if *count >= CONNECTIONS_PER_CLIENT_MAX {
            return None;
        }
        *count += 1;
        Some(ClientSlot {
            clients: Arc::clone(self),
            client,
        })
    }
}

/// IPv6 clients have a whole network of addresses each: a /56 counts as one client.
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

/// ConnectionSlots for connections. When there is none, the one that has waited longest for its client gives
/// way (RFC 7766 section 6.2.3): for a query, or for answers to be taken. So who only holds
/// connections open locks nobody out.
pub(super) struct ConnectionSlots {
    pub(super) slots: Arc<Semaphore>,
    waiting: Mutex<WaitQueue>,
}

/// Connections that wait for their clients, by when they began to. One that is served is not among
/// them.
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

    /// A slot for a new connection, now or once another has given way; `None` when there is
    /// neither. Each that waits has asked one connection of its own, which ends as soon as it runs:
    /// that bounds how many wait, and how long.
    pub(super) fn enter(
        &self,
    ) -> Option<impl Future<Output = Option<OwnedSemaphorePermit>> + Send + 'static> {
        let free = Arc::clone(&self.slots).try_acquire_owned().ok();
        if free.is_none() && !self.make_room() {
            return None;
        }
        let slots = Arc::clone(&self.slots);
        Some(async move {
            match free {
                Some(slot) => Some(slot),
                None => slots.acquire_owned().await.ok(),
            }
        })
    }

    /// Asks the connection that has waited longest to give way; `false` when none waits that was
    /// not asked yet.
    pub(super) fn make_room(&self) -> bool {
        let mut waiting = self.waiting();
        let Some((_, give_way)) = waiting.by_age.pop_first() else {
            return false;
        };
        // Under the lock, so that who has left `by_age` knows whether it was asked.
        give_way.notify_one();
        true
    }

    /// Does what a connection waits for; `None` when it was asked to give way meanwhile. Then it
    /// must end.
    pub(super) async fn wait<T>(
        &self,
        give_way: &Arc<Notify>,
        awaited: impl Future<Output = T>,
    ) -> Option<T> {
        let turn = self.begin(give_way);
        let mut asked = std::pin::pin!(give_way.notified());
        tokio::select! {
            biased;
            () = &mut asked => None,
            done = awaited => {
                drop(turn);
                // It may have been asked after the look above.
                (!asked.as_mut().enable()).then_some(done)
            }
        }
    }

    fn begin(&self, give_way: &Arc<Notify>) -> WaitEntry<'_> {
        let mut waiting = self.waiting();
        let number = waiting.begun;
        waiting.begun += 1;
        waiting.by_age.insert(number, Arc::clone(give_way));
        WaitEntry {
            slots: self,
            number,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, WaitQueue> {
        self.waiting.lock()
    }
}

/// A place among those that wait, until it is dropped.
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
        give_way: &'a Arc<Notify>,
    ) -> std::pin::Pin<Box<impl Future<Output = Option<()>> + 'a>> {
        Box::pin(slots.wait(give_way, std::future::pending()))
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
            look(&mut Box::pin(slots.wait(&b, std::future::ready(5)))).await,
            Some(Some(5))
        );
        drop(wait_b);
        let mut wait_b = endless(&slots, &b);
        assert_eq!(look(&mut wait_b).await, None);

        let mut third = Box::pin(slots.enter().expect("the first gives way"));
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
        let _fifth = slots.enter().expect("the second gives way");
        assert!(slots.enter().is_none(), "both were asked");
        assert_eq!(look(&mut wait_b).await, Some(None));
    }

    #[tokio::test]
    async fn who_was_refused_leaves_nothing_behind() {
        let slots = ConnectionSlots::new(1);
        let give_way = Arc::default();
        let slot = look(&mut Box::pin(slots.enter().expect("room")))
            .await
            .flatten()
            .expect("at once");
        assert!(slots.enter().is_none(), "it is being served");
        assert_eq!(
            look(&mut endless(&slots, &give_way)).await,
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
        let give_way = Arc::default();
        let asked_meanwhile = slots.wait(&give_way, async { slots.make_room() });
        assert_eq!(asked_meanwhile.await, None);
        assert!(!slots.make_room(), "it waits no more");
    }
}
