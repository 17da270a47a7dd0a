//! Child processes that end with the test and show their output when it fails.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::wait;

/// The binary under test.
pub fn nearcast() -> Command {
    Command::new(env!("CARGO_BIN_EXE_nearcast"))
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program with its output in `<directory>/<name>.log`.
    pub fn start(name: &str, directory: &Path, mut command: Command) -> Self {
        let log = directory.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("the log can be written");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a log handle can be copied"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|e| panic!("{name} ({:?}) does not start: {e}", command.get_program()));
        Self {
            name: name.to_owned(),
            child,
            log,
        }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its `kill` name (`TERM`, `HUP`, `STOP`).
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(self.pid().to_string())
            .status()
            .expect("kill runs");
        assert!(status.success(), "{} has ended already", self.name);
    }

    /// Kills it at once, as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its exit status if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = self.name.clone();
        wait::until(&format!("{name} to end"), limit, || {
            self.ended().ok_or("it still runs")
        })
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        let mut text = String::new();
        let mut file = File::open(&self.log).expect("the log is there");
        file.rewind()
            .and_then(|()| file.read_to_string(&mut text))
            .expect("the log can be read");
        text
    }

    /// Waits until its output contains `text`.
    pub fn wait_for_output(&mut self, text: &str, limit: Duration) {
        let name = self.name.clone();
        wait::until(&format!("{name} to print {text:?}"), limit, || {
            let output = self.output();
            if output.contains(text) {
                Ok(())
            } else {
                Err(format!("it printed:\n{output}"))
            }
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let output = self.output();
            let tail: Vec<&str> = output.lines().rev().take(40).collect();
            eprintln!("--- last words of {}", self.name);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

/// Whether that process is a run of these tests. Another may have the number of one that has ended.
pub fn is_test(pid: u32) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    program.is_some_and(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("e2e-"))
    })
}

/// Runs a program to its end and gives its standard output.
///
/// # Panics
/// When it cannot be started or fails; shows both its outputs.
pub fn run<I, S>(program: &str, arguments: I) -> String
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program} cannot be run ({e}); tests/run installs it"));
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{program} ended with {}:\n{out}\n{err}",
        output.status
    );
    out.into_owned()
}
