//! Tasks that run one step at a time.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// A task of the simulation.
pub(super) struct Task {
    pub(super) future: Pin<Box<dyn Future<Output = ()>>>,
    woken: Arc<Woken>,
    pub(super) is_client: bool,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Task {
    pub(super) fn new(is_client: bool, future: impl Future<Output = ()> + 'static) -> Self {
        Self {
            // No budget: its end would wake a task only when the runtime gets to run.
            future: Box::pin(tokio::task::unconstrained(future)),
            woken: Arc::new(Woken(AtomicBool::new(true))),
            is_client,
        }
    }

    pub(super) fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::Relaxed)
    }

    /// Runs it up to its next pause. Whether it has ended.
    pub(super) fn run(&mut self) -> bool {
        self.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(self.woken.clone());
        let mut context = Context::from_waker(&waker);
        self.future.as_mut().poll(&mut context).is_ready()
    }
}

/// Lets the scheduler run others.
pub(super) async fn pause() {
    let mut has_paused = false;
    std::future::poll_fn(|context| {
        if has_paused {
            return Poll::Ready(());
        }
        has_paused = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}
