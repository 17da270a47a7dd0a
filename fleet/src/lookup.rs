//! Nodes of a fleet by name, with one error for a name that the fleet file does not have.

use crate::config::{Cluster, Fleet, NameServer, Node, OriginNode};
use crate::failure::{Failure, FailureKind};

/// The fleet file has no node of this name in this role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoSuchNode {
    /// The section that describes such nodes: `[[name_server]]`.
    pub section: &'static str,
    /// The name that was looked for.
    pub name: String,
    /// The names that the fleet file has there.
    pub known: Vec<String>,
}

impl std::fmt::Display for NoSuchNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            section,
            name,
            known,
        } = self;
        if known.is_empty() {
            return write!(
                f,
                "the fleet file has no {section}; add one to run this role"
            );
        }
        let known = known.join(", ");
        write!(
            f,
            "the fleet file has no {section} named {name:?}; it has: {known}"
        )
    }
}

impl std::error::Error for NoSuchNode {}

impl From<NoSuchNode> for Failure {
    fn from(error: NoSuchNode) -> Self {
        Failure::new(FailureKind::Usage, error.to_string())
    }
}

/// The item of this name.
fn named<'f, T>(
    mut items: impl Iterator<Item = T> + Clone,
    section: &'static str,
    name: &str,
    name_of: impl Fn(&T) -> &'f str,
) -> Result<T, NoSuchNode> {
    let known = items.clone();
    let found = items.find(|item| name_of(item) == name);
    found.ok_or_else(|| NoSuchNode {
        section,
        name: name.to_owned(),
        known: known.map(|item| name_of(&item).to_owned()).collect(),
    })
}

impl Fleet {
    /// Every edge with its cluster.
    pub fn edges(&self) -> impl Iterator<Item = (&Cluster, &Node)> + Clone {
        let clusters = self.clusters.iter();
        clusters.flat_map(|cluster| cluster.nodes.iter().map(move |node| (cluster, node)))
    }

    /// Whether requests of clients may have the scheme `https`: an edge has a listener for TLS, or
    /// believes a proxy in front of it that states the scheme, in fields or by the PROXY protocol.
    pub fn has_https_clients(&self) -> bool {
        self.edges().any(|(_, node)| {
            !node.listen_tls.is_empty()
                || !node.trusted_proxies.is_empty()
                || !node.proxy_protocol.is_empty()
        })
    }

    /// The edge of this name, with its cluster.
    pub fn edge(&self, name: &str) -> Option<(&Cluster, &Node)> {
        self.edges().find(|(_, node)| node.name == name)
    }

    /// The edge of this name, with its cluster.
    ///
    /// # Errors
    /// [`NoSuchNode`], which names the edges that there are.
    pub fn edge_or_error(&self, name: &str) -> Result<(&Cluster, &Node), NoSuchNode> {
        named(self.edges(), "[[cluster.node]]", name, |(_, node)| {
            &node.name
        })
    }

    /// The name server of this name.
    pub fn name_server(&self, name: &str) -> Option<&NameServer> {
        self.name_server_or_error(name).ok()
    }

    /// The name server of this name.
    ///
    /// # Errors
    /// [`NoSuchNode`], which names the name servers that there are.
    pub fn name_server_or_error(&self, name: &str) -> Result<&NameServer, NoSuchNode> {
        named(
            self.name_servers.iter(),
            "[[name_server]]",
            name,
            |server| &server.name,
        )
    }

    /// The origin node of this name.
    pub fn origin_node(&self, name: &str) -> Option<&OriginNode> {
        self.origin_node_or_error(name).ok()
    }

    /// The origin node of this name.
    ///
    /// # Errors
    /// [`NoSuchNode`], which names the origin nodes that there are.
    pub fn origin_node_or_error(&self, name: &str) -> Result<&OriginNode, NoSuchNode> {
        named(self.origins.iter(), "[[origin_node]]", name, |origin| {
            &origin.name
        })
    }

    /// Whether the fleet has a node of this name in any role.
    pub fn has_node(&self, name: &str) -> bool {
        self.has_reporting_node(name) || self.control.as_ref().is_some_and(|c| c.name == name)
    }

    /// Whether the fleet has a node of this name in any role but control, which reports to nobody.
    pub(crate) fn has_reporting_node(&self, name: &str) -> bool {
        self.edge(name).is_some()
            || self.name_servers.iter().any(|server| server.name == name)
            || self.origins.iter().any(|origin| origin.name == name)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing;

    #[test]
    fn a_name_is_found_or_the_error_lists_the_names_that_there_are() {
        let fleet = testing::FleetText::new()
            .name_server("ns1", "127.0.0.1:5300")
            .cluster("ams", &["192.0.2.1", "192.0.2.2"])
            .fleet();
        assert_eq!(
            fleet
                .edge_or_error("ams-2")
                .map(|(c, n)| (&*c.name, &*n.name)),
            Ok(("ams", "ams-2"))
        );
        assert_eq!(
            fleet.name_server_or_error("ns1").map(|n| &*n.name),
            Ok("ns1")
        );
        let table = [
            (
                fleet.edge_or_error("x").err(),
                "the fleet file has no [[cluster.node]] named \"x\"; it has: ams-1, ams-2",
            ),
            (
                fleet.name_server_or_error("ams-1").err(),
                "the fleet file has no [[name_server]] named \"ams-1\"; it has: ns1",
            ),
            (
                fleet.origin_node_or_error("x").err(),
                "the fleet file has no [[origin_node]]; add one to run this role",
            ),
        ];
        for (error, expected) in table {
            assert_eq!(error.expect("no such node").to_string(), expected);
        }
        assert!(fleet.has_node("ns1") && fleet.has_reporting_node("ams-1") && !fleet.has_node("x"));
    }
}
