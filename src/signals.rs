//! Signals of a running command: end (SIGTERM, SIGINT, the end of the parent process), read the
//! fleet file again (SIGHUP).

use std::future::Future;
use std::io::Read as _;

use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_net::shutdown::ShutdownTrigger;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for one kind of signal from now on.
pub(crate) fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|e| {
        Failure::new(
            FailureKind::System,
            format!("cannot listen for signals: {e}"),
        )
    })
}

/// Requests shutdown at the first SIGTERM or SIGINT; ends the process at the second signal. When
/// `with_parent`, the end of stdin ends it at once, without draining: the parent has ended.
pub(crate) fn end_on(trigger: ShutdownTrigger, with_parent: bool) -> Result<(), Failure> {
    let (mut term, mut int) = (
        listen(SignalKind::terminate())?,
        listen(SignalKind::interrupt())?,
    );
    let parent = with_parent.then(stdin_ended);
    tokio::spawn(async move {
        let parent_gone = async {
            match parent {
                Some(gone) => gone.await,
                None => std::future::pending().await,
            }
        };
        let mut parent_gone = std::pin::pin!(parent_gone);
        let mut is_asked = false;
        loop {
            let name = tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = int.recv() => "SIGINT",
                () = parent_gone.as_mut() => break,
            };
            if is_asked {
                tracing::info!("{name} again: ending at once");
                std::process::exit(130);
            }
            is_asked = true;
            tracing::info!("{name}: draining; once more ends at once");
            trigger.shut_down();
        }
        tracing::info!("the parent is gone: ending at once");
        trigger.end_at_once();
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(())
}

/// Completes when stdin has ended. That happens when the process at the other end of the pipe ends,
/// in whatever way.
fn stdin_ended() -> impl Future<Output = ()> {
    let (tx, rx) = tokio::sync::oneshot::channel::<()>();
    // A thread of its own: a blocking read would hold up the end of the runtime.
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut bytes = [0; 64];
        while matches!(stdin.read(&mut bytes), Ok(n) if n > 0) {}
        let _ = tx.send(());
    });
    async {
        let _ = rx.await;
    }
}
