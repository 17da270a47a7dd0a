//! An event before it has an id: its kind, level, message and subject. Also the words that messages
//! share.

/// An event to be added to the event log.
#[derive(Debug, Clone, Default)]
pub(crate) struct NewEvent {
    pub(crate) kind: &'static str,
    pub(crate) level: Level,
    pub(crate) message: String,
    pub(crate) node: Option<String>,
    pub(crate) cluster: Option<String>,
    pub(crate) revision: Option<u64>,
    pub(crate) order: Option<String>,
}

/// The severity of an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Level {
    #[default]
    Info,
    Good,
    Warn,
}

impl Level {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Good => "good",
            Self::Warn => "warn",
        }
    }
}

impl NewEvent {
    pub(crate) fn new(kind: &'static str, level: Level, message: impl Into<String>) -> Self {
        Self {
            kind,
            level,
            message: message.into(),
            ..Self::default()
        }
    }

    pub(crate) fn node(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    pub(crate) fn cluster(mut self, cluster: &str) -> Self {
        self.cluster = Some(cluster.to_owned());
        self
    }

    pub(crate) fn revision(mut self, revision: u64) -> Self {
        self.revision = Some(revision);
        self
    }

    pub(crate) fn order(mut self, order: &str) -> Self {
        self.order = Some(order.to_owned());
        self
    }
}

/// A number with its noun: `1 node`, `2 nodes`.
pub(crate) fn count(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
