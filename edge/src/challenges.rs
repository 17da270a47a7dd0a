//! The files by which this node shows an authority that a host is served here (RFC 8555 section
//! 8.3): which are open now.
//!
//! Knows neither orders nor HTTP: the journal or the edge's own certificate sets them, and
//! `request/` answers them.

use arc_swap::ArcSwap;
use nearcast_fleet::change::HttpChallenge;

/// The path of these files, before the token.
pub(crate) const PATH: &str = "/.well-known/acme-challenge/";

/// All open challenges. Each [`Challenges::set`] replaces them as a whole.
#[derive(Debug, Default)]
pub(crate) struct Challenges {
    http: ArcSwap<Vec<HttpChallenge>>,
}

impl Challenges {
    /// Replaces all of them.
    pub(crate) fn set(&self, http: Vec<HttpChallenge>) {
        self.http.store(http.into());
    }

    /// The content of the file with this token (the last part of the path) at a host, which is in
    /// any case, with or without a port and a final dot.
    pub(crate) fn find(&self, host: &str, token: &str) -> Option<String> {
        let http = self.http.load();
        if http.is_empty() {
            return None;
        }
        let host = without_port(host);
        let found = http
            .iter()
            .find(|open| open.token == token && open.host.eq_ignore_ascii_case(host))?;
        Some(found.key_authorization.clone())
    }
}

/// A host without port and final dot.
fn without_port(host: &str) -> &str {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        // Addresses of IPv6 stand in brackets before a port.
        Some((name, port)) if is_port(port) && (!name.contains(':') || name.ends_with(']')) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(host: &str, token: &str) -> HttpChallenge {
        HttpChallenge {
            host: host.to_owned(),
            token: token.to_owned(),
            key_authorization: format!("{token}.of-{host}"),
        }
    }

    #[test]
    fn a_challenge_is_answered_for_its_host_and_token_alone() {
        let challenges = Challenges::default();
        assert_eq!(challenges.find("a.test", "one"), None, "there are none yet");
        challenges.set(vec![
            open("a.test", "one"),
            open("b.test", "one"),
            open("[2001:db8::1]", "six"),
        ]);
        for (host, token, expected) in [
            ("a.test", "one", Some("one.of-a.test")),
            ("b.test", "one", Some("one.of-b.test")),
            ("A.Test:80", "one", Some("one.of-a.test")),
            ("a.test.:8080", "one", Some("one.of-a.test")),
            ("[2001:db8::1]:80", "six", Some("six.of-[2001:db8::1]")),
            ("[2001:db8::1]", "six", Some("six.of-[2001:db8::1]")),
            ("c.test", "one", None),
            ("a.test", "two", None),
            ("a.test", "ONE", None),
            ("a.test", "", None),
            ("", "one", None),
            ("a.test:http", "one", None),
        ] {
            let found = challenges.find(host, token);
            assert_eq!(found.as_deref(), expected, "{host} {token}");
        }
        challenges.set(Vec::new());
        assert_eq!(challenges.find("a.test", "one"), None, "withdrawn");
    }
}
