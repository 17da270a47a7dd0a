//! Fleets for tests, from the text of a fleet file. Only tests use this module: in other crates by
//! the feature `testing`.

use std::fmt::Write as _;
use std::path::Path;

use crate::config::Fleet;
use crate::file;

/// The node key of these fleets.
pub const NODE_KEY: &str = "a key that only this test knows";

/// The fleet of a fleet file's text; relative paths start at `/`.
///
/// # Panics
/// The text has mistakes; the message lists them.
#[track_caller]
pub fn fleet(text: &str) -> Fleet {
    fleet_at(text, Path::new("/"))
}

/// The fleet of a fleet file's text; relative paths start at `base`.
///
/// # Panics
/// The text has mistakes; the message lists them.
#[track_caller]
pub fn fleet_at(text: &str, base: &Path) -> Fleet {
    match file::parse(text, base) {
        Ok(fleet) => fleet,
        Err(mistakes) => panic!("{}\n{text}", file::describe("fleet", &mistakes)),
    }
}

/// The text of a fleet file, section by section. Sections come in the order of the calls.
#[derive(Debug, Clone)]
pub struct FleetText {
    /// Lines of `[fleet]`.
    head: String,
    /// Sections after it.
    sections: String,
}

impl Default for FleetText {
    fn default() -> Self {
        Self::new()
    }
}

impl FleetText {
    /// A fleet with the zone `cdn.test` and [`NODE_KEY`], without nodes.
    pub fn new() -> Self {
        Self {
            head: format!("zone = \"cdn.test\"\nnode_key = \"{NODE_KEY}\"\n"),
            sections: String::new(),
        }
    }

    /// Sets one setting of `[fleet]`, written as in TOML.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        let start = format!("{key} = ");
        let others = self.head.lines().filter(|line| !line.starts_with(&start));
        let mut head: String = others.map(|line| format!("{line}\n")).collect();
        let _ = writeln!(head, "{key} = {value}");
        self.head = head;
        self
    }

    /// Adds lines to `[fleet]`.
    pub fn text_in_fleet(mut self, lines: &str) -> Self {
        self.head.push_str(lines);
        self.head.push('\n');
        self
    }

    /// Adds text at the end: lines of the section before, or sections.
    pub fn text_after(mut self, text: &str) -> Self {
        self.sections.push_str(text);
        self.sections.push('\n');
        self
    }

    /// Adds `[control]` with its API at this address and port.
    pub fn control(self, listen: &str) -> Self {
        self.text_after(&format!("[control]\nlisten = \"{listen}\""))
    }

    /// Adds a name server that answers at this address and port.
    pub fn name_server(self, name: &str, listen: &str) -> Self {
        self.text_after(&format!(
            "[[name_server]]\nname = \"{name}\"\nlisten = \"{listen}\""
        ))
    }

    /// Adds an origin node that serves a directory.
    pub fn origin_node(self, name: &str, listen: &str, root: &str) -> Self {
        self.text_after(&format!(
            "[[origin_node]]\nname = \"{name}\"\nlisten = \"{listen}\"\nroot = \"{root}\""
        ))
    }

    /// Adds a cluster at latitude and longitude 1 with an edge for each address: `NAME-1`, `NAME-2`
    /// and so on.
    pub fn cluster(mut self, name: &str, addresses: &[&str]) -> Self {
        self = self.cluster_head(name, "");
        for (number, address) in (1..).zip(addresses) {
            self = self.node(&format!("{name}-{number}"), address, "");
        }
        self
    }

    /// Begins a cluster at latitude and longitude 1, with further lines.
    pub fn cluster_head(self, name: &str, lines: &str) -> Self {
        let place = "place = { latitude = 1, longitude = 1 }";
        self.text_after(&format!("[[cluster]]\nname = \"{name}\"\n{place}\n{lines}"))
    }

    /// Adds an edge to the cluster before, with further lines.
    pub fn node(self, name: &str, address: &str, lines: &str) -> Self {
        self.text_after(&format!(
            "[[cluster.node]]\nname = \"{name}\"\naddress = \"{address}\"\n{lines}"
        ))
    }

    /// Adds a site, with further lines such as `hosts = ["www.demo.test"]`.
    pub fn site(self, name: &str, origin: &str, lines: &str) -> Self {
        self.text_after(&format!(
            "[[site]]\nname = \"{name}\"\norigin = \"{origin}\"\n{lines}"
        ))
    }

    /// The text.
    pub fn text(&self) -> String {
        format!("[fleet]\n{}{}", self.head, self.sections)
    }

    /// The fleet; relative paths start at `/`.
    ///
    /// # Panics
    /// The text has mistakes; the message lists them.
    #[track_caller]
    pub fn fleet(&self) -> Fleet {
        fleet(&self.text())
    }

    /// The fleet; relative paths start at `base`.
    ///
    /// # Panics
    /// The text has mistakes; the message lists them.
    #[track_caller]
    pub fn fleet_at(&self, base: &Path) -> Fleet {
        fleet_at(&self.text(), base)
    }
}
