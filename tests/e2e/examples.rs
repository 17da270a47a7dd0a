//! Every example of every command's help works as it stands, typed in a directory with the demo's
//! fleet file. Needs root, for a network of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::lab::network::remove_leftovers;
use crate::lab::process::{Process, nearcast, run};
use crate::lab::wait;

/// How long an example may take. A push waits for its clusters.
const EXAMPLE_SECONDS: &str = "180";
const READY: Duration = Duration::from_secs(60);
/// Commands whose first example goes on until it is told to end; what they print when they have
/// begun.
const LASTING: [(&str, &str); 4] = [
    ("control", "the control API listens"),
    ("origin", "serving files"),
    ("edge", "the edge serves"),
    ("gslb-dns", "answering DNS"),
];

/// A network namespace with a loopback of its own, so that the demo's addresses are free; a
/// directory to type in.
struct Place {
    namespace: String,
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        remove_leftovers();
        let namespace = format!("nc{}-examples", std::process::id());
        run("ip", ["netns", "add", &namespace]);
        let place = Self {
            namespace,
            directory: TempDir::with_prefix("nearcast-e2e-")
                .expect("a temporary directory can be made"),
        };
        // The demo of root runs its nodes as another user.
        fs::set_permissions(place.directory.path(), fs::Permissions::from_mode(0o755))
            .expect("it is ours");
        run(
            "ip",
            [
                "netns",
                "exec",
                &place.namespace,
                "ip",
                "link",
                "set",
                "lo",
                "up",
            ],
        );
        for directory in ["public", "content"] {
            fs::create_dir(place.path().join(directory)).expect("a directory can be made");
        }
        place
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A line as a shell takes it, in the directory, with this binary as `nearcast` and temporary
    /// files of its own.
    fn line(&self, line: &str, prefix: &[&str]) -> Command {
        let binary = Path::new(env!("CARGO_BIN_EXE_nearcast"))
            .parent()
            .expect("it is in a directory");
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace])
            .args(prefix)
            .args(["bash", "-o", "pipefail", "-c", line]);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .current_dir(self.path())
            .env("PATH", format!("{}:{path}", binary.display()))
            .env("TMPDIR", self.path());
        for name in ["NEARCAST_FLEET", "NEARCAST_TOKEN", "NEARCAST_USER"] {
            command.env_remove(name);
        }
        command.env("TERM", "xterm");
        command
    }

    fn start(&self, name: &str, line: &str) -> Process {
        let mut command = self.line(&format!("exec {line}"), &[]);
        // An edge that orders certificates keeps them in a directory of the system otherwise.
        command.env("STATE_DIRECTORY", self.path().join("edge-state"));
        Process::start(name, self.path(), command)
    }

    /// Runs an example to its end.
    fn run(&self, line: &str) {
        let output = self
            .line(line, &["timeout", EXAMPLE_SECONDS])
            .output()
            .expect("bash runs");
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(
            output.status.success(),
            "{line} ends with {}:\n{out}\n{err}",
            output.status
        );
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.namespace])
            .status();
    }
}

/// The examples in a command's help, without their comments.
fn examples(command: &str) -> Vec<String> {
    let output = nearcast()
        .args([command, "--help"])
        .output()
        .expect("the binary runs");
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = help
        .lines()
        .skip_while(|line| *line != "Examples:")
        .skip(1)
        .take_while(|line| line.starts_with("  "));
    lines
        .map(|line| {
            line.split("  #")
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned()
        })
        .collect()
}

fn commands() -> Vec<String> {
    let output = nearcast().arg("--help").output().expect("the binary runs");
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    let inner = help
        .lines()
        .filter(|line| line.starts_with("  ") && !line.trim_start().starts_with('-'));
    let mut names: Vec<String> = inner
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    names.retain(|name| {
        name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') && !examples(name).is_empty()
    });
    names
}

#[test]
fn every_example_of_every_command_works() {
    let place = Place::new();
    let commands = commands();
    assert!(commands.len() >= 14, "{commands:?}");

    // The demo's own examples; the last one goes on for the others.
    let mut demos = examples("demo");
    let stay = demos.remove(0);
    for line in &demos {
        let mut demo = place.start("demo", line);
        demo.wait_for_output("Ctrl-C ends it", READY);
        let file = place.path().join(format!(
            "nearcast-demo-{}/nearcast.toml",
            run("id", ["-u"]).trim()
        ));
        fs::copy(&file, place.path().join("nearcast.toml")).expect("the demo's file can be copied");
        // With the key that it names, for a user of little rights to read.
        let key = place.path().join("fleet.key");
        fs::copy(file.with_file_name("fleet.key"), &key).expect("the demo's key can be copied");
        fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).expect("the copy is ours");
        // And the certificates.
        let certificates = place.path().join("certificates");
        fs::create_dir_all(&certificates).expect("made");
        for file in fs::read_dir(file.with_file_name("certificates")).expect("it has some") {
            let file = file.expect("an entry");
            let copy = certificates.join(file.file_name());
            fs::copy(file.path(), &copy).expect("the demo's file can be copied");
            fs::set_permissions(&copy, PermissionsExt::from_mode(0o644)).expect("ours");
        }
        demo.signal("INT");
        assert!(demo.wait(READY).success(), "{line}: {}", demo.output());
        assert!(!file.exists(), "{line} left something behind");
        fs::remove_file(place.path().join("demo.log")).expect("the log is there");
    }

    // Roles, while the demo does not have their addresses, and what their examples ask of them.
    for (command, begun) in LASTING {
        let mut running: Option<Process> = None;
        for line in examples(command) {
            if line.starts_with("nearcast ") {
                if let Some(mut last) = running.take() {
                    last.signal("TERM");
                    last.wait(READY);
                    fs::remove_file(place.path().join(format!("{command}.log")))
                        .expect("the log is there");
                }
                let mut process = place.start(command, &line);
                wait::until(&format!("{line} to begin"), READY, || {
                    if let Some(status) = process.ended() {
                        panic!("{line} ended with {status}:\n{}", process.output());
                    }
                    if process.output().contains(begun) {
                        Ok(())
                    } else {
                        Err(process.output())
                    }
                });
                running = Some(process);
            } else {
                place.run(&line);
            }
        }
        if let Some(mut last) = running {
            last.signal("TERM");
            last.wait(READY);
        }
    }

    let mut demo = place.start("demo", &stay);
    demo.wait_for_output("Ctrl-C ends it", READY);
    // A copy of the running demo's file, as one takes it to change something: it finds control and
    // its token, where there is no other control's beside it.
    fs::remove_dir_all(place.path().join("control")).expect("the example's own control was here");
    let file = place.path().join(format!(
        "nearcast-demo-{}/nearcast.toml",
        run("id", ["-u"]).trim()
    ));
    fs::copy(&file, place.path().join("nearcast.toml")).expect("the demo's file can be copied");
    for command in commands
        .iter()
        .filter(|name| *name != "demo" && LASTING.iter().all(|(lasting, _)| name != lasting))
    {
        for line in examples(command) {
            // Every page that is named is there.
            for url in line.split_whitespace().filter(|word| {
                word.starts_with("http://www.demo.test/") && !word.ends_with("/img/")
            }) {
                place.run(&format!(
                    "curl -sSf -o /dev/null --connect-to www.demo.test:80:127.0.10.1:8080 {url}"
                ));
            }
            if line == "nearcast traffic" || line.starts_with("watch ") {
                let status = place
                    .line(
                        &format!("exec {line}"),
                        &["timeout", "--signal", "INT", "3"],
                    )
                    .output()
                    .expect("timeout runs")
                    .status;
                // 124 says that it still ran; `watch` without a terminal may end before.
                assert!(matches!(status.code(), Some(0 | 124)), "{line}: {status}");
                continue;
            }
            place.run(&line);
        }
    }
    demo.signal("INT");
    assert!(demo.wait(READY).success(), "{}", demo.output());
}
