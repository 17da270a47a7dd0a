//! Shutdown as a value that tasks wait for: requested once, seen by all, and cut short where no time
//! is left to drain.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;

/// The stages of a shutdown. Each one only follows an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    /// Drain, then end.
    Requested,
    /// End now, without draining.
    AtOnce,
}

/// The side that requests shutdown. Dropping it requests an orderly one.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<Stage>);

/// The side that waits. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<Stage>);

/// Makes a trigger and the value that it acts on.
pub fn channel() -> (ShutdownTrigger, Shutdown) {
    let (tx, rx) = watch::channel(Stage::Running);
    (ShutdownTrigger(tx), Shutdown(rx))
}

impl ShutdownTrigger {
    /// Requests that every holder of the matching [`Shutdown`] drains and ends.
    pub fn shut_down(&self) {
        self.advance(Stage::Requested);
    }

    /// Requests that they end without draining: they save their state and close connections.
    pub fn end_at_once(&self) {
        self.advance(Stage::AtOnce);
    }

    fn advance(&self, stage: Stage) {
        self.0
            .send_if_modified(|now| stage > std::mem::replace(now, stage.max(*now)));
    }
}

impl Shutdown {
    /// Whether shutdown was requested.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() >= Stage::Requested || self.0.has_changed().is_err()
    }

    /// Waits until shutdown is requested. Cancel-safe.
    pub async fn requested(&mut self) {
        // An error means that the trigger was dropped, which is a request as well.
        let _ = self.0.wait_for(|stage| *stage >= Stage::Requested).await;
    }

    /// Waits until no time is left to drain. Cancel-safe.
    pub async fn at_once(&mut self) {
        if self
            .0
            .wait_for(|stage| *stage == Stage::AtOnce)
            .await
            .is_err()
        {
            // The trigger was dropped: that requests an orderly shutdown only.
            std::future::pending::<()>().await;
        }
    }

    /// Waits for `work` to end, up to `limit`, and not once no time is left. Returns whether it has
    /// ended.
    pub async fn drained(&mut self, limit: Duration, work: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = work => true,
            () = self.at_once() => false,
            () = tokio::time::sleep(limit) => false,
        }
    }

    /// As [`Self::drained`], without work: waits for `time`, or until no time is left.
    pub async fn pause(&mut self, time: Duration) {
        self.drained(time, std::future::pending()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn draining_ends_with_the_work_the_limit_or_at_once() {
        let (trigger, mut shutdown) = channel();
        assert!(!shutdown.is_requested());
        trigger.shut_down();
        assert!(shutdown.is_requested());
        let limit = Duration::from_secs(3600);
        assert!(shutdown.drained(limit, async {}).await);
        assert!(
            !shutdown.drained(limit, std::future::pending()).await,
            "the limit"
        );
        trigger.end_at_once();
        trigger.shut_down();
        let began = tokio::time::Instant::now();
        assert!(!shutdown.drained(limit, std::future::pending()).await);
        assert_eq!(
            began.elapsed(),
            Duration::ZERO,
            "a later request for an orderly end does not revoke it"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_trigger_requests_an_orderly_end() {
        let (trigger, mut shutdown) = channel();
        drop(trigger);
        shutdown.requested().await;
        assert!(shutdown.is_requested());
        assert!(
            tokio::time::timeout(Duration::from_secs(60), shutdown.at_once())
                .await
                .is_err()
        );
    }
}
