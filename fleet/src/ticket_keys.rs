//! Keys of TLS session tickets, as control gives them to the edges of a cluster, so that any edge
//! resumes a session that another one began (RFC 5077 section 5.5, RFC 8446 section 2.2).
//!
//! Owns their form on the wire, which both sides share. A secret is never part of a log or of an
//! error.

use nearcast_net::tls::TicketKey;
use serde::{Deserialize, Serialize};

/// Path of control's API that gives an edge the keys of its cluster.
pub const PATH: &str = "/v1/ticket-keys";

/// Most keys of a cluster.
pub const KEYS_MAX: usize = 16;

/// The keys of one cluster.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterKeys {
    /// The cluster.
    pub cluster: String,
    /// Keys that begin earlier are revoked unless they are among these, seconds after the Unix epoch:
    /// a node that had them lost its place in the cluster. It is later than the revocation, so that
    /// keys that were only announced are covered.
    pub revoked_before_unix_s: u64,
    keys: Vec<WireKey>,
}

/// One key; name and secret in hexadecimal.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct WireKey {
    name: String,
    secret: String,
    begins_unix_s: u64,
    ends_unix_s: u64,
}

/// The answer of control cannot be used. The reason contains nothing of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("control's answer has no usable session-ticket keys: {0}")]
pub struct Malformed(&'static str);

impl ClusterKeys {
    /// The message that carries these keys.
    pub fn new<'a>(
        cluster: &str,
        revoked_before_unix_s: u64,
        keys: impl IntoIterator<Item = &'a TicketKey>,
    ) -> Self {
        let wire = |key: &TicketKey| WireKey {
            name: to_hex(&key.name),
            secret: to_hex(&key.secret),
            begins_unix_s: key.begins_unix_s,
            ends_unix_s: key.ends_unix_s,
        };
        Self {
            cluster: cluster.to_owned(),
            revoked_before_unix_s,
            keys: keys.into_iter().map(wire).collect(),
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(text: &[u8]) -> Result<Self, Malformed> {
        let read: Self =
            serde_json::from_slice(text).map_err(|_| Malformed("it is not such JSON"))?;
        read.keys().map(|_| read)
    }

    /// The keys.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn keys(&self) -> Result<Vec<TicketKey>, Malformed> {
        if self.keys.len() > KEYS_MAX {
            return Err(Malformed("there are more than 16"));
        }
        let key = |wire: &WireKey| {
            Some(TicketKey {
                name: from_hex(&wire.name)?,
                secret: from_hex(&wire.secret)?,
                begins_unix_s: wire.begins_unix_s,
                ends_unix_s: wire.ends_unix_s,
            })
        };
        let keys: Option<Vec<_>> = self.keys.iter().map(key).collect();
        keys.ok_or(Malformed("a name or a secret has another length"))
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> TicketKey {
        TicketKey {
            name: [number; 16],
            secret: [0xa0 | number; 32],
            begins_unix_s: 100,
            ends_unix_s: 200,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let keys = [key(1), key(2)];
        let text = serde_json::to_vec(&ClusterKeys::new("ams", 7, &keys)).expect("JSON");
        let read = ClusterKeys::parse(&text).expect("readable");
        assert_eq!(
            (read.cluster.as_str(), read.revoked_before_unix_s),
            ("ams", 7)
        );
        assert!(read.keys().expect("readable") == keys);
    }

    #[test]
    fn other_answers_are_refused_without_a_word_of_them() {
        let good = serde_json::to_string(&ClusterKeys::new("ams", 0, &[key(1)])).expect("JSON");
        let many: Vec<_> = (0..17).map(key).collect();
        let many = serde_json::to_string(&ClusterKeys::new("ams", 0, &many)).expect("JSON");
        for text in [
            "",
            "[]",
            "{\"cluster\":\"ams\"}",
            &good.replace("a1a1", "a1"),
            &good.replace("a1a1", "a1xy"),
            &good.replace("0101", "é01"),
            &many,
        ] {
            let error = ClusterKeys::parse(text.as_bytes()).err().expect(text);
            assert!(!error.to_string().contains("a1a1"), "{error}");
        }
    }
}
