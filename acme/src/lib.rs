//! Certificates by ACME (RFC 8555): which are due, orders, challenges, and the files that hold
//! accounts, keys and certificates.
//!
//! [`Keeper`] is used by control for a fleet and by an edge without a fleet. It knows nothing of
//! either: a [`Solver`] answers the challenges, and the user says which certificates are wanted.
//!
//! - `keeper` begins what is due; `state` and `entry` say what that is, with `renewal` (when) and
//!   `pace` (how many).
//! - `order` is one order at one authority, from its begin to a verified certificate; `account` the
//!   accounts; `client` the HTTP below both, with its bounds.
//! - `fault` says whose side failed, and `text` bounds the words of others.
//! - `certificate` reads what authorities send; `dir` owns the files.
//!
//! Follows RFC 8555, RFC 8737 (TLS-ALPN-01), RFC 8738 (addresses) and RFC 9773 (renewal
//! information).

mod account;
mod certificate;
mod client;
mod dir;
mod entry;
mod fault;
mod keeper;
pub mod lookup;
mod order;
mod pace;
mod renewal;
mod state;
mod text;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use keeper::Keeper;
use serde::{Deserialize, Serialize};

/// Bounds of a keeper's work. The default fits the authorities of the Web.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Time for a connection to an authority.
    pub connect_time: Duration,
    /// Time for a request to an authority and its whole response.
    pub request_time: Duration,
    /// Time for a step of an order in which the authority works: it validates names or signs.
    pub wait_time: Duration,
    /// Time for an order. What is not done then has failed.
    pub order_time: Duration,
    /// Time to withdraw challenges and to end what is left of a failed order.
    pub cleanup_time: Duration,
    /// After this time a certificate that could not be written is written again.
    pub write_again: Duration,
    /// Most orders at a time.
    pub orders_at_once: usize,
    /// Orders that begin at once; in the long run ten times as many.
    pub order_burst: u32,
    /// After that, one order begins each interval; in the long run one each ten intervals. The
    /// default keeps to the limits of Let's Encrypt: 300 new orders of an account in three hours.
    pub order_interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect_time: Duration::from_secs(10),
            request_time: Duration::from_secs(30),
            wait_time: Duration::from_secs(120),
            order_time: Duration::from_secs(600),
            cleanup_time: Duration::from_secs(20),
            write_again: Duration::from_secs(60),
            orders_at_once: 4,
            order_burst: 20,
            order_interval: Duration::from_secs(4),
        }
    }
}

/// The time, in seconds after the Unix epoch.
fn now_unix_s() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}

/// An authority that issues certificates. Its terms of service are agreed to by configuring it.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    /// Its name here, such as `letsencrypt`; unique among the authorities.
    pub name: String,
    /// URL of its directory.
    pub directory: String,
    /// Authority that its own certificate is verified with (PEM); `None` are those of the Web.
    pub ca: Option<PathBuf>,
    /// Identifier and key (base64url) of the account elsewhere that its account belongs to (RFC 8555 section 7.3.4).
    pub external_account: Option<(String, String)>,
    /// Profile of its certificates; `None` is its default.
    pub profile: Option<String>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let account = self.external_account.as_ref().map(|(id, _)| id);
        f.debug_struct("Authority")
            .field("name", &self.name)
            .field("directory", &self.directory)
            .field("ca", &self.ca)
            .field("external_account", &account)
            .field("profile", &self.profile)
            .finish_non_exhaustive()
    }
}

/// How an authority is shown that a name is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChallengeKind {
    /// `dns-01`.
    Dns01,
    /// `http-01`.
    Http01,
    /// `tls-alpn-01`.
    TlsAlpn01,
}

/// A certificate that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its names, lower case, the first one names it: hosts and wildcards.
    pub hosts: Vec<String>,
    /// The challenges that can be answered for it, the preferred one first. After each failure the next
    /// one is preferred.
    pub challenges: Vec<ChallengeKind>,
}

/// The answer to a challenge, to be shown to the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// A TXT record at `_acme-challenge.<host>`.
    Dns01 {
        /// The host, without `*.`.
        host: String,
        /// Content of the record.
        value: String,
    },
    /// A file at `http://<host>/.well-known/acme-challenge/<token>`.
    Http01 {
        /// The host.
        host: String,
        /// Last part of the path.
        token: String,
        /// Content of the file.
        key_authorization: String,
    },
    /// A certificate for handshakes with the protocol `acme-tls/1`.
    TlsAlpn01 {
        /// The host.
        host: String,
        /// SHA-256 of the key authorization, for the extension `acmeIdentifier`.
        digest: [u8; 32],
    },
}

/// Answers challenges, on all machines that an authority may ask.
pub trait Solver: Send + Sync + 'static {
    /// Whether the names lead to this solver's machines, as far as that can be found out before an
    /// order. `Err` is the reason, with a hint, why an order is bound to fail.
    fn precheck(&self, wanted: &Wanted) -> impl Future<Output = Result<(), String>> + Send;

    /// Answers these challenges from now on, beside those that it answers already; returns when all
    /// machines do.
    fn present(
        &self,
        challenges: Vec<Challenge>,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Answers them no longer.
    fn withdraw(&self, challenges: Vec<Challenge>) -> impl Future<Output = ()> + Send;
}

/// A certificate in force.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// Its names as they were wanted; the first one names it.
    pub hosts: Vec<String>,
    /// Certificate, chain, then private key (PEM).
    pub pem: String,
    /// Name of the authority.
    pub authority: String,
    /// Begin and end of its validity, in seconds after the Unix epoch.
    pub not_before_unix_s: i64,
    /// End of its validity.
    pub not_after_unix_s: i64,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("hosts", &self.hosts)
            .field("authority", &self.authority)
            .field("not_before_unix_s", &self.not_before_unix_s)
            .field("not_after_unix_s", &self.not_after_unix_s)
            .finish_non_exhaustive()
    }
}

/// What is known of a wanted certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its names; the first one names it.
    pub hosts: Vec<String>,
    /// Authority of the certificate in force.
    pub authority: Option<String>,
    /// Validity of the certificate in force, in seconds after the Unix epoch.
    pub validity_unix_s: Option<(i64, i64)>,
    /// When the next order is due.
    pub next_unix_s: Option<i64>,
    /// Whether an order is under way.
    pub is_ordering: bool,
    /// Orders that failed since the last success.
    pub failures: u32,
    /// The last error: the authority's or ours, with a hint.
    pub last_error: Option<LastError>,
}

/// Why an order failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// When, in seconds after the Unix epoch.
    pub unix_s: i64,
    /// Authority that was asked; `None` if the order ended before that.
    pub authority: Option<String>,
    /// The reason, one line.
    pub reason: String,
}

/// What a keeper tells its owner as it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A certificate is in force; `is_renewal` where there was one before.
    Obtained {
        /// Name of the certificate.
        name: String,
        /// Authority.
        authority: String,
        /// End of its validity.
        not_after_unix_s: i64,
        /// Whether there was one before.
        is_renewal: bool,
    },
    /// An order failed; the former certificate stays in force.
    Failed {
        /// Name of the certificate.
        name: String,
        /// Authority that was asked.
        authority: Option<String>,
        /// The reason.
        reason: String,
        /// When it is tried again.
        next_unix_s: i64,
    },
    /// The authority has changed when it advises to renew a certificate (RFC 9773), as it does before
    /// it revokes one.
    Advised {
        /// Name of the certificate.
        name: String,
        /// Authority.
        authority: String,
        /// When it will be renewed.
        renew_unix_s: i64,
        /// Page of the authority that says why.
        explanation_url: Option<String>,
    },
}

/// Hears of events.
pub type Listener = Arc<dyn Fn(Event) + Send + Sync>;
