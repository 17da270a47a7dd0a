//! The demo's child processes: started together, watched, ended together.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_net::shutdown::{self, Shutdown, ShutdownTrigger};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// How long children may take to end before they are killed.
const END_MAX: Duration = Duration::from_secs(5);

/// A child that has ended by itself or was killed.
#[derive(Debug)]
pub(super) struct Ended {
    /// Its node name.
    pub(super) name: String,
    /// Which command it was.
    pub(super) role: String,
    /// Its exit status.
    pub(super) status: ExitStatus,
}

/// All children. Dropping it kills them.
pub(super) struct Children {
    program: PathBuf,
    fleet: PathBuf,
    logs: PathBuf,
    log_filter: Option<String>,
    pids: Vec<(String, u32)>,
    watchers: JoinSet<()>,
    trigger: ShutdownTrigger,
    shutdown: Shutdown,
    ended_tx: mpsc::UnboundedSender<Ended>,
    ended: mpsc::UnboundedReceiver<Ended>,
}

impl Children {
    /// None yet; they will run this same program.
    pub(super) fn new(dir: &Path, fleet: &Path, log_filter: Option<&str>) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|e| {
            Failure::new(
                FailureKind::System,
                format!("cannot find this program's own file: {e}; is /proc mounted?"),
            )
        })?;
        let logs = dir.join("logs");
        std::fs::create_dir(&logs).map_err(|e| {
            Failure::new(
                FailureKind::CannotCreate,
                format!("cannot make {}: {e}", logs.display()),
            )
        })?;
        let (trigger, shutdown) = shutdown::channel();
        let (ended_tx, ended) = mpsc::unbounded_channel();
        let log_filter = log_filter.map(str::to_owned);
        Ok(Self {
            program,
            fleet: fleet.to_owned(),
            logs,
            log_filter,
            pids: Vec::new(),
            watchers: JoinSet::new(),
            trigger,
            shutdown,
            ended_tx,
            ended,
        })
    }

    /// Starts one child. Its log goes to a file, and what it prints on stderr to us when `piped`.
    pub(super) fn start(
        &mut self,
        name: &str,
        arguments: &[&str],
        piped: bool,
    ) -> Result<Option<tokio::process::ChildStderr>, Failure> {
        let path = self.log_path(name);
        let log = File::create(&path).map_err(|e| {
            Failure::new(
                FailureKind::CannotCreate,
                format!("cannot make {}: {e}", path.display()),
            )
        })?;
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .arg("--fleet")
            .arg(&self.fleet)
            .arg("--end-with-parent");
        if let Some(filter) = &self.log_filter {
            command.args(["--log", filter]);
        }
        // Ten processes share one machine here: glibc's allocator keeps fewer pools and gives freed
        // memory back.
        command.envs([
            ("MALLOC_ARENA_MAX", "2"),
            ("MALLOC_MMAP_THRESHOLD_", "131072"),
            ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ]);
        // A group of its own: Ctrl-C at the terminal reaches the demo alone, which ends its
        // children in order.
        command
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        command.stderr(if piped {
            Stdio::piped()
        } else {
            Stdio::from(log)
        });
        let mut child = command.spawn().map_err(|e| {
            Failure::new(
                FailureKind::System,
                format!("cannot start {name}: {e} ({})", self.program.display()),
            )
        })?;
        let stderr = child.stderr.take();
        // The child ends when the other side of its stdin is gone, however that happens.
        let stdin = child.stdin.take();
        let pid = child.id().unwrap_or_default();
        self.pids.push((name.to_owned(), pid));
        let role = arguments.first().map_or(String::new(), ToString::to_string);
        let watcher = Watcher {
            name: name.to_owned(),
            role,
            child,
            stdin,
            ended: self.ended_tx.clone(),
        };
        self.watchers.spawn(watcher.run(self.shutdown.clone()));
        Ok(stderr)
    }

    /// Where a child's log is.
    pub(super) fn log_path(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Process id of the child of that name.
    pub(super) fn pid(&self, name: &str) -> Option<u32> {
        self.pids
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, pid)| *pid)
    }

    /// The next child that ends without a request.
    pub(super) async fn next_ended(&mut self) -> Ended {
        match self.ended.recv().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }

    /// Ends all children: requests their end, without draining, since no clients are left; waits;
    /// kills the rest.
    pub(super) async fn end(mut self) {
        self.trigger.shut_down();
        while self.watchers.join_next().await.is_some() {}
    }
}

struct Watcher {
    name: String,
    role: String,
    child: Child,
    /// Closing it makes the child end at once.
    stdin: Option<ChildStdin>,
    ended: mpsc::UnboundedSender<Ended>,
}

impl Watcher {
    async fn run(mut self, mut shutdown: Shutdown) {
        tokio::select! {
            status = self.child.wait() => {
                if let Ok(status) = status {
                    // The receiver is gone only when the demo ends.
                    let _ = self.ended.send(Ended { name: self.name, role: self.role, status });
                }
                return;
            }
            () = shutdown.requested() => {}
        }
        drop(self.stdin.take());
        if tokio::time::timeout(END_MAX, self.child.wait())
            .await
            .is_err()
        {
            // An error means that it has ended meanwhile.
            let _ = self.child.kill().await;
        }
    }
}
