//! One edge with a fleet file and without control, in front of a scripted origin.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nearcast_testing::{Origin, Reply, Seen};
use serde_json::Value;

use super::addresses::Block;
use super::certificates::{ECDSA, Pair};
use super::process::{Process, nearcast};
use super::tools::curl;
use super::wait;

const LIMIT: Duration = Duration::from_secs(20);

/// What a test has other than usual.
#[derive(Debug, Default)]
pub struct Settings {
    /// Whole sections, without the edge's own.
    pub sections: String,
    /// Lines of the node.
    pub node: String,
    /// Lines and sections of the site.
    pub site: String,
}

/// An edge that serves `www.test` and `other.test` on port 8080 and, with a certificate for both, on
/// port 8443, and logs every request.
pub struct Edge {
    pub block: Block,
    pub ip: Ipv4Addr,
    pub origin: Origin,
    pub pair: Pair,
    // It shows its log before the directory goes.
    process: Process,
    directory: tempfile::TempDir,
}

impl Edge {
    /// Starts it. `settings` are made for the block of addresses.
    pub fn start(
        settings: impl FnOnce(Block) -> Settings,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let block = Block::take();
        let origin = Origin::start_at(SocketAddr::from((block.host(80), 8000)), script);
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let names = "DNS:www.test,DNS:other.test";
        let pair = Pair::make(directory.path(), "www", &ECDSA, names);
        let settings = settings(block);
        let ip = block.host(10);
        let listeners = match settings.node.contains("listen") {
            true => String::new(),
            false => format!("listen = \"{ip}:8080\"\nlisten_tls = \"{ip}:8443\"\n"),
        };
        let memory = match settings.node.contains("memory") {
            true => "",
            false => "memory = \"16MiB\"\n",
        };
        let mut text = format!(
            "[fleet]\nzone = \"cdn.test\"\nstate_dir = \"state\"\n[access_log]\npath = \"access.log\"\n{}{}\n",
            pair.section(),
            settings.sections
        );
        let _ = write!(
            text,
            "[[cluster]]\nname = \"ams\"\nplace = {{ latitude = 52.37, longitude = 4.9 }}\n\
             [[cluster.node]]\nname = \"ams-1\"\naddress = \"{ip}\"\nadmin = \"{ip}:9100\"\n{listeners}\
             {memory}disk = \"0\"\nthreads = 1\n{}\n\
             [[site]]\nname = \"www\"\nhosts = [\"www.test\", \"other.test\"]\norigin = \"{}\"\n{}\n",
            settings.node,
            origin.url(),
            settings.site
        );
        let file = directory.path().join("nearcast.toml");
        std::fs::write(&file, text).expect("the fleet file can be written");
        let mut command = nearcast();
        command.args(["edge", "--node", "ams-1", "--user", "root", "--fleet"]);
        command.arg(&file);
        let mut process = Process::start("edge", directory.path(), command);
        process.wait_for_output("the edge serves", LIMIT);
        Self {
            block,
            ip,
            origin,
            pair,
            directory,
            process,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Path of a file of its directory.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    /// `curl -i` for a URL of this edge; its certificate is known, and every name leads to it.
    pub fn curl(&self, arguments: &[&str], url: &str) -> String {
        self.curl_at(self.ip, arguments, url)
    }

    /// The same with another address, such as that of a proxy in front.
    pub fn curl_at(&self, to: Ipv4Addr, arguments: &[&str], url: &str) -> String {
        let to = format!("::{to}:");
        let first = ["-i", "--connect-to", &to, "--cacert", self.pair.cert()];
        curl(&[&first, arguments, &[url]].concat())
    }

    /// The value of a series of its metrics.
    pub fn metric(&self, series: &str) -> u64 {
        let metrics = curl(&[&format!("http://{}:9100/metrics", self.ip)]);
        let line = metrics.lines().find_map(|line| line.strip_prefix(series));
        let value = line.unwrap_or_else(|| panic!("no {series}")).trim();
        value.parse().unwrap_or_else(|e| panic!("{e}: {value}"))
    }

    /// The lines of the access log for a path, once there are as many as expected.
    pub fn logged(&self, path: &str, count: usize) -> Vec<Value> {
        let file = self.path("state/ams-1/access.log");
        wait::until(&format!("{count} lines for {path}"), LIMIT, || {
            let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
            let lines = text
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok());
            let lines: Vec<Value> = lines.filter(|line: &Value| line["path"] == path).collect();
            match lines.len() == count {
                true => Ok(lines),
                false => Err(text),
            }
        })
    }

    /// The request for a path that the origin got last.
    pub fn seen(&self, path: &str) -> Seen {
        let seen = self.origin.seen().into_iter().rev();
        let mut seen = seen.filter(|seen| seen.target == path);
        seen.next()
            .unwrap_or_else(|| panic!("no request for {path}"))
    }

    /// Starts another program in its directory, and waits until it takes connections.
    pub fn start_beside(&self, mut command: Command, listens: SocketAddr) -> Process {
        command.current_dir(self.directory.path());
        let name = command.get_program().to_string_lossy().into_owned();
        let mut process = Process::start(&name, self.directory.path(), command);
        wait::until(&format!("{name} to listen"), LIMIT, || {
            if let Some(status) = process.ended() {
                panic!("{name} ended with {status}:\n{}", process.output());
            }
            std::net::TcpStream::connect(listens).map(drop)
        });
        process
    }
}

/// The value of a field of a response as curl shows it; empty where it has none.
pub fn field<'a>(answer: &'a str, name: &str) -> &'a str {
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(found, _)| found.eq_ignore_ascii_case(name));
    found.map_or("", |(_, value)| value.trim())
}

/// The status of a response as curl shows it.
pub fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default().trim()
}
