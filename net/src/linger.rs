//! The end of a connection whose client may still be sending. To close it with unread input would
//! reset it, and a reset can overtake the last response (RFC 9112 section 9.6): so, after this side
//! has ended, the input is read and dropped for a while.

use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::{Instant, timeout_at};

use crate::shutdown::Shutdown;

/// A client that sends nothing for so long has stopped, or waits for the response no longer.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How long a client may send, whatever its rate, and the least rate of one that sends for longer,
/// about 1 Mbit/s. So a client that reads only after its upload of 100 MiB has 13 minutes for it, and
/// one that sends a byte now and then has half a minute.
const UPLOAD_MIN: Duration = Duration::from_secs(30);
const UPLOAD_BYTES_PER_SECOND: u64 = 128 << 10;
/// No upload is waited for longer.
const UPLOAD_MAX: Duration = Duration::from_secs(15 * 60);
/// A client that was told of a fault of its own may be hostile: it has less.
const FAULT_MAX: Duration = Duration::from_secs(2);
const FAULT_BYTES_MAX: u64 = 256 << 10;
/// One whose handshake was refused counts as a handshake for so long.
const ALERT_MAX: Duration = Duration::from_millis(500);
const ALERT_BYTES_MAX: u64 = 16 << 10;
/// How long it lasts when the node drains.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Bytes of one read.
const READ_BYTES: usize = 16 << 10;

/// What a client has received last, which says how long it may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// A response, perhaps to an upload that is not complete.
    Response,
    /// An error that ends the connection.
    Fault,
    /// The alert that ends a TLS handshake.
    Alert,
}

impl After {
    /// How long the client may go on, of which so many bytes have come.
    fn limit(self, received: u64) -> Duration {
        match self {
            Self::Response => {
                let earned = Duration::from_secs(received / UPLOAD_BYTES_PER_SECOND);
                UPLOAD_MIN.max(earned).min(UPLOAD_MAX)
            }
            Self::Fault if received < FAULT_BYTES_MAX => FAULT_MAX,
            Self::Alert if received < ALERT_BYTES_MAX => ALERT_MAX,
            Self::Fault | Self::Alert => Duration::ZERO,
        }
    }
}

/// How long a client may go on, as its bytes come.
#[derive(Debug)]
pub struct Lingering {
    after: After,
    began: Instant,
    received: u64,
}

impl Lingering {
    /// The client has received the last of what it is sent.
    pub fn begin(after: After) -> Self {
        Self {
            after,
            began: Instant::now(),
            received: 0,
        }
    }

    /// When the next bytes must have come; `None` where no more are read.
    pub fn deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        let limit = self.began + self.after.limit(self.received);
        (now < limit).then_some(limit.min(now + SILENCE_MAX))
    }

    /// So many more bytes have come.
    pub fn note(&mut self, bytes: usize) {
        self.received += bytes as u64;
    }
}

/// Reads and drops what still comes, until the client ends its side or one of the limits is reached;
/// and for a moment only once the node drains, of which `ending` tells.
pub async fn drain_input(
    input: &mut (impl AsyncRead + Unpin),
    after: After,
    ending: Option<Shutdown>,
) {
    let mut drained = pin!(async {
        match ending {
            Some(mut ending) => ending.requested().await,
            None => std::future::pending().await,
        }
        tokio::time::sleep(DRAIN_MAX).await;
    });
    let mut scratch = vec![0; READ_BYTES];
    let mut lingering = Lingering::begin(after);
    while let Some(deadline) = lingering.deadline() {
        let read = tokio::select! {
            biased;
            () = &mut drained => return,
            read = timeout_at(deadline, input.read(&mut scratch)) => read,
        };
        match read {
            Ok(Ok(length @ 1..)) => lingering.note(length),
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, duplex};

    use super::*;
    use crate::shutdown;

    /// For how many seconds a client's input is read that sends so many bytes every so many
    /// seconds, and how many bytes of it in all.
    async fn lasted(after: After, bytes: usize, every_s: u64, most_s: u64) -> (u64, u64) {
        let (client, mut input) = duplex(READ_BYTES);
        let (_trigger, ending) = shutdown::channel();
        let began = Instant::now();
        let sending = async move {
            let (mut client, mut sent) = (client, 0);
            let piece = vec![0; bytes];
            while began.elapsed().as_secs() < most_s && client.write_all(&piece).await.is_ok() {
                sent += bytes as u64;
                tokio::time::sleep(Duration::from_secs(every_s)).await;
            }
            sent
        };
        let mut sending = pin!(sending);
        let mut draining = pin!(drain_input(&mut input, after, Some(ending)));
        tokio::select! {
            biased;
            sent = &mut sending => {
                draining.await;
                (began.elapsed().as_secs(), sent)
            }
            () = &mut draining => (began.elapsed().as_secs(), 0),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_is_read_while_it_has_its_rate_and_no_longer() {
        // A client that reads its response only after an upload of 100 MiB, sent with 2 Mbit/s.
        let (took, sent) = lasted(After::Response, 256 << 10, 1, 400).await;
        assert_eq!((took, sent), (400, 400 * (256 << 10)));
        // One that holds the connection with a byte now and then, or with nothing.
        assert_eq!(lasted(After::Response, 1, 4, 1000).await, (30, 0));
        assert_eq!(lasted(After::Response, 1, 6, 1000).await, (5, 0));
        // One that never ends.
        let never = lasted(After::Response, 1 << 20, 1, 10_000).await;
        assert_eq!(never, (UPLOAD_MAX.as_secs(), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_at_fault_is_read_for_a_moment() {
        assert_eq!(lasted(After::Fault, 1, 1, 1000).await, (2, 0));
        assert_eq!(lasted(After::Alert, 1, 1, 1000).await, (0, 0));
        assert_eq!(lasted(After::Fault, 1 << 20, 1, 1000).await.0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_of_the_node_waits_for_no_upload() {
        let (mut client, mut input) = duplex(READ_BYTES);
        let (trigger, ending) = shutdown::channel();
        let began = Instant::now();
        let draining = tokio::spawn(async move {
            drain_input(&mut input, After::Response, Some(ending)).await;
            began.elapsed()
        });
        for second in 0..10 {
            if second == 3 {
                trigger.shut_down();
            }
            let _ = client.write_all(&[0; 1024]).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let took = draining.await.expect("no panic");
        assert_eq!(took.as_secs(), 3 + DRAIN_MAX.as_secs());
    }
}
