//! Gets the keys of TLS session tickets of the node's cluster from control, so that each edge resumes
//! the sessions of the others.
//!
//! Control is asked often, and answers 304 while nothing has changed. While it does not answer, the
//! node goes on with the keys that it has, and with keys of its own once those are over. Keys cross
//! the network by `https` or within one machine only: by plain HTTP anyone on the way could decrypt
//! sessions of TLS 1.2.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, ETAG, HeaderValue, IF_NONE_MATCH};
use http::{Request, StatusCode};
use nearcast_fleet::client::Client;
use nearcast_fleet::clock::{now_unix_ms, now_unix_s};
use nearcast_fleet::config::Fleet;
use nearcast_fleet::node_key;
use nearcast_fleet::random::Random;
use nearcast_fleet::ticket_keys::{ClusterKeys, PATH};
use nearcast_net::tls::{TicketKey, Tickets};
use tokio::sync::watch;

/// Pause between two requests to control, before jitter: a key is announced an hour before it
/// begins.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// Pause after a failure, which doubles up to [`ASK_EVERY`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Share of a pause by which it is shortened at random.
const JITTER: f64 = 0.2;
/// Time-out of a request.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// The keys that the node has from control.
#[derive(Default)]
struct Held {
    cluster: String,
    keys: Vec<TicketKey>,
    /// Tag of control's last answer.
    tag: Option<HeaderValue>,
}

impl Held {
    /// Takes an answer of control. Keys that it lacks stay until they end, since control forgets its
    /// keys when it is started again.
    fn take(&mut self, cluster: &str, revoked_before_unix_s: u64, keys: Vec<TicketKey>) {
        if self.cluster != cluster {
            self.keys.clear();
            self.cluster = cluster.to_owned();
        }
        self.keys.retain(|held| {
            held.begins_unix_s >= revoked_before_unix_s
                && keys.iter().all(|key| key.name != held.name)
        });
        self.keys.extend(keys);
    }

    /// The keys that are not over.
    fn at(&mut self, now_unix_s: u64) -> Vec<TicketKey> {
        self.keys.retain(|key| now_unix_s < key.ends_unix_s);
        if self.keys.is_empty() {
            // The next answer must bring keys, not 304.
            self.tag = None;
        }
        self.keys.clone()
    }
}

/// Why there are no keys from control.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Missing {
    #[error(
        "control is reached by plain HTTP, which would show the keys to the network: give control a certificate (cert and key in [control])"
    )]
    Unencrypted,
    #[error("{0}")]
    Failed(String),
}

/// Keeps the keys of `tickets` up to date until the node ends.
pub(crate) async fn follow(
    name: String,
    fleet: watch::Receiver<Arc<Fleet>>,
    tickets: Arc<Tickets>,
) {
    let client = Client::following(fleet.clone());
    let mut held = Held::default();
    let mut jitter = Random::new(now_unix_ms() ^ u64::from(std::process::id()));
    let mut retry = RETRY_FIRST;
    let mut last: Option<Result<(), Missing>> = None;
    loop {
        let current = fleet.borrow().clone();
        if current.control.is_some() {
            let outcome = ask(&client, &name, &current, &mut held).await;
            retry = match outcome {
                Ok(()) => RETRY_FIRST,
                Err(_) => (retry * 2).min(ASK_EVERY),
            };
            if last.as_ref() != Some(&outcome) {
                note(&outcome);
            }
            last = Some(outcome);
            tickets.set(held.at(now_unix_s()));
        }

        let pause = match last {
            Some(Err(_)) => retry,
            _ => ASK_EVERY,
        };
        let pause = pause.mul_f64(1.0 - JITTER * jitter.unit());
        tokio::time::sleep(pause).await;
    }
}

fn note(outcome: &Result<(), Missing>) {
    match outcome {
        Ok(()) => tracing::info!("session-ticket keys come from control: the cluster shares them"),
        Err(reason) => {
            tracing::warn!(%reason, "no session-ticket keys from control; clients may need full TLS handshakes at other nodes")
        }
    }
}

async fn ask(client: &Client, name: &str, fleet: &Fleet, held: &mut Held) -> Result<(), Missing> {
    let failed = |reason: String| Missing::Failed(reason);
    let url = fleet.control.as_ref().map_or("", |control| &control.url);
    if !is_private(url) {
        return Err(Missing::Unencrypted);
    }
    let key = node_key::own_of(fleet, name)
        .and_then(|key| HeaderValue::try_from(format!("Bearer {}", key.0)).ok())
        .ok_or_else(|| failed("this node has no key of its own".to_owned()))?;
    let mut request = Request::get(format!("{url}{PATH}"))
        .body(Bytes::new())
        .map_err(|e| failed(e.to_string()))?;
    request.headers_mut().insert(AUTHORIZATION, key);
    if let Some(tag) = &held.tag {
        request.headers_mut().insert(IF_NONE_MATCH, tag.clone());
    }

    let answered = client.send(request, ANSWER_TIME_MAX).await;
    let response = answered.map_err(|e| failed(e.to_string()))?;
    match response.status() {
        StatusCode::NOT_MODIFIED => Ok(()),
        StatusCode::OK => {
            let answer = ClusterKeys::parse(response.body()).map_err(|e| failed(e.to_string()))?;
            let keys = answer.keys().map_err(|e| failed(e.to_string()))?;
            held.take(&answer.cluster, answer.revoked_before_unix_s, keys);
            held.tag = response.headers().get(ETAG).cloned();
            Ok(())
        }
        // Its body is not logged: it might be from another server and contain anything.
        status => Err(failed(format!("control answered with status {status}"))),
    }
}

/// Whether what is sent to a URL can be read by nobody on the way.
pub(crate) fn is_private(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else {
        return false;
    };
    let host = uri.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    uri.scheme_str() == Some("https")
        || host.eq_ignore_ascii_case("localhost")
        || address.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8, begins: u64) -> TicketKey {
        TicketKey {
            name: [number; 16],
            secret: [number; 32],
            begins_unix_s: begins,
            ends_unix_s: begins + 100,
        }
    }

    fn names(keys: &[TicketKey]) -> Vec<u8> {
        keys.iter().map(|key| key.name[0]).collect()
    }

    #[test]
    fn keys_stay_until_they_end_or_are_revoked() {
        let mut held = Held::default();
        held.take("ams", 0, vec![key(1, 1000), key(2, 1050)]);
        assert_eq!(names(&held.at(1000)), [1, 2]);
        // Control was started again and knows the earlier keys no more.
        held.take("ams", 0, vec![key(3, 1060)]);
        assert_eq!(names(&held.at(1060)), [1, 2, 3]);
        assert_eq!(names(&held.at(1100)), [2, 3]);
        held.take("ams", 0, vec![key(3, 1060)]);
        assert_eq!(names(&held.at(1100)), [2, 3], "none twice");
        held.take("ams", 1055, vec![key(4, 1100)]);
        assert_eq!(names(&held.at(1100)), [3, 4], "the others are revoked");
        // Those announced are revoked with the others; what comes with the answer is in force,
        // although it begins earlier.
        for _ in 0..2 {
            held.take("ams", 1151, vec![key(6, 1100)]);
            assert_eq!(names(&held.at(1100)), [6]);
        }
        held.take("nyc", 0, vec![key(5, 1100)]);
        assert_eq!(names(&held.at(1100)), [5], "another cluster");
        held.tag = Some(HeaderValue::from_static("\"t\""));
        assert!(held.at(1200).is_empty());
        assert_eq!(held.tag, None);
    }

    #[test]
    fn keys_cross_no_network_in_the_clear() {
        for (url, expected) in [
            ("https://control.example:7700", true),
            ("http://127.0.0.1:7700", true),
            ("http://[::1]:7700", true),
            ("http://localhost:7700", true),
            ("http://10.0.0.5:7700", false),
            ("http://localhost.example:7700", false),
            ("http://control:7700", false),
            ("", false),
        ] {
            assert_eq!(is_private(url), expected, "{url}");
        }
    }
}
