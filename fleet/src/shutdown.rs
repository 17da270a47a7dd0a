//! Shutdown as a value that tasks wait on: asked for once, seen by all.

use tokio::sync::watch;

/// The side that asks for shutdown. Dropping it asks too.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

/// The side that waits. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// A trigger and the value it acts on.
pub fn channel() -> (ShutdownTrigger, Shutdown) {
    let (tx, rx) = watch::channel(false);
    (ShutdownTrigger(tx), Shutdown(rx))
}

impl ShutdownTrigger {
    /// Asks everything that holds the matching [`Shutdown`] to end.
    pub fn shut_down(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Whether shutdown has been asked for.
    pub fn is_asked(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Waits until shutdown is asked for. Cancel-safe.
    pub async fn asked(&mut self) {
        // An error means that the trigger is gone, which asks as well.
        let _ = self.0.wait_for(|asked| *asked).await;
    }
}
