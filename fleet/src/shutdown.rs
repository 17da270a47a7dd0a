//! Shutdown as a value that tasks wait on: asked for once, seen by all, and cut short where there
//! is no time to drain.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;

/// How far shutdown has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    /// Drain, then end.
    Asked,
    /// End now: nobody is left to drain for.
    AtOnce,
}

/// The side that asks for shutdown. Dropping it asks too.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<Stage>);

/// The side that waits. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<Stage>);

/// A trigger and the value it acts on.
pub fn channel() -> (ShutdownTrigger, Shutdown) {
    let (tx, rx) = watch::channel(Stage::Running);
    (ShutdownTrigger(tx), Shutdown(rx))
}

impl ShutdownTrigger {
    /// Asks everything that holds the matching [`Shutdown`] to drain and end.
    pub fn shut_down(&self) {
        self.reach(Stage::Asked);
    }

    /// Asks it to end without draining: state is saved, clients are not waited for.
    pub fn end_at_once(&self) {
        self.reach(Stage::AtOnce);
    }

    fn reach(&self, stage: Stage) {
        self.0
            .send_if_modified(|now| stage > std::mem::replace(now, stage.max(*now)));
    }
}

impl Shutdown {
    /// Whether shutdown has been asked for.
    pub fn is_asked(&self) -> bool {
        *self.0.borrow() >= Stage::Asked || self.0.has_changed().is_err()
    }

    /// Waits until shutdown is asked for. Cancel-safe.
    pub async fn asked(&mut self) {
        // An error means that the trigger is gone, which asks as well.
        let _ = self.0.wait_for(|stage| *stage >= Stage::Asked).await;
    }

    /// Waits until there is no time to drain. Cancel-safe.
    pub async fn at_once(&mut self) {
        if self
            .0
            .wait_for(|stage| *stage == Stage::AtOnce)
            .await
            .is_err()
        {
            // The trigger is gone: it asked for no more than an orderly end.
            std::future::pending::<()>().await;
        }
    }

    /// Waits for work to drain, up to `limit`, and no longer than there is time to. Gives whether
    /// the work has ended.
    pub async fn drained(&mut self, limit: Duration, work: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = work => true,
            () = self.at_once() => false,
            () = tokio::time::sleep(limit) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn draining_ends_with_the_work_the_limit_or_at_once() {
        let (trigger, mut shutdown) = channel();
        assert!(!shutdown.is_asked());
        trigger.shut_down();
        assert!(shutdown.is_asked());
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
            "a later request for an orderly end does not take it back"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_trigger_that_is_gone_asks_for_an_orderly_end() {
        let (trigger, mut shutdown) = channel();
        drop(trigger);
        shutdown.asked().await;
        assert!(shutdown.is_asked());
        assert!(
            tokio::time::timeout(Duration::from_secs(60), shutdown.at_once())
                .await
                .is_err()
        );
    }
}
