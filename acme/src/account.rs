//! Accounts at authorities: registered when they are first used, kept in the directory, registered
//! again if the authority has lost them.
//!
//! Follows RFC 8555 section 7.3. An opened account is used for an hour, then the authority's
//! directory is read again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use instant_acme::{Account, AccountCredentials, Error, ExternalAccountKey, NewAccount};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::dir::{self, Dir};
use crate::fault::{self, Fault, OrderError};
use crate::{Authority, Limits, text};

/// How long an opened account is used.
const OPENED_KEPT: Duration = Duration::from_secs(3600);
/// How often a request is repeated because the authority did not take its nonce, after the library
/// has repeated it twice.
pub(crate) const NONCE_REPEATS: u32 = 3;

/// Awaits a call, and again while the authority refuses its nonce (RFC 8555 section 6.5).
macro_rules! despite_nonces {
    ($call:expr) => {{
        let mut left = $crate::account::NONCE_REPEATS;
        loop {
            match $call.await {
                Err(error) if left > 0 && $crate::account::is_bad_nonce(&error) => left -= 1,
                outcome => break outcome,
            }
        }
    }};
}
pub(crate) use despite_nonces;

pub(crate) fn is_bad_nonce(error: &Error) -> bool {
    fault::problem(error).is_some_and(|problem| text::kind(problem) == "badNonce")
}

/// An account as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// Addresses that the authority knows.
    contact: Vec<String>,
    /// Identifier of the account elsewhere that it belongs to.
    external_account: Option<String>,
    credentials: AccountCredentials,
}

/// An account that can be used.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) account: Account,
    pub(crate) client: Client,
}

struct Opened {
    authority: Authority,
    contact: Vec<String>,
    at: Instant,
    session: Session,
}

/// The place of one account; those who open the same one wait for each other.
type Slot = Arc<tokio::sync::Mutex<Option<Opened>>>;

/// The accounts of a keeper.
pub(crate) struct Accounts {
    dir: Arc<Dir>,
    limits: Limits,
    /// By URL of the authority's directory.
    slots: Mutex<HashMap<String, Slot>>,
}

impl Accounts {
    pub(crate) fn new(dir: Arc<Dir>, limits: Limits) -> Self {
        Self {
            dir,
            limits,
            slots: Mutex::default(),
        }
    }

    fn slot(&self, authority: &Authority) -> Slot {
        let mut slots = self.slots.lock();
        slots
            .entry(authority.directory.clone())
            .or_default()
            .clone()
    }

    /// Whether an account is kept; nothing is asked for without one.
    pub(crate) fn is_kept(&self, authority: &Authority) -> bool {
        self.dir.account_file(&authority.directory).exists()
    }

    /// Opens the account, registers it if there is none. `is_new` reads the authority's directory
    /// again.
    pub(crate) async fn open(
        &self,
        authority: &Authority,
        contact: &[String],
        is_new: bool,
    ) -> Result<Session, OrderError> {
        let slot = self.slot(authority);
        let mut slot = slot.lock().await;
        if !is_new
            && let Some(opened) = &*slot
            && opened.authority == *authority
            && opened.contact == contact
            && opened.at.elapsed() < OPENED_KEPT
        {
            return Ok(opened.session.clone());
        }

        *slot = None;
        let session = self.open_anew(authority, contact).await?;
        *slot = Some(Opened {
            authority: authority.clone(),
            contact: contact.to_vec(),
            at: Instant::now(),
            session: session.clone(),
        });
        Ok(session)
    }

    /// Forgets what was opened: the authority's directory is read again.
    pub(crate) async fn close(&self, authority: &Authority) {
        *self.slot(authority).lock().await = None;
    }

    /// Sets an account aside that the authority says it does not have.
    pub(crate) async fn lost(&self, authority: &Authority, account: &str) {
        let slot = self.slot(authority);
        let mut slot = slot.lock().await;
        // Another order may have registered a new one meanwhile.
        let is_same = slot
            .as_ref()
            .is_none_or(|opened| opened.session.account.id() == account);
        if is_same {
            *slot = None;
            self.dir
                .set_account_aside(&authority.directory, "is not known to the authority");
        }
    }

    async fn open_anew(
        &self,
        authority: &Authority,
        contact: &[String],
    ) -> Result<Session, OrderError> {
        let (dir, limits) = (self.dir.clone(), self.limits.clone());
        let (client, kept) = {
            let authority = authority.clone();
            tokio::task::spawn_blocking(move || {
                let client = Client::new(&authority, &limits).map_err(|error| {
                    OrderError::of_call(&authority, &Error::Other(Box::new(error)))
                })?;
                let kept: Option<Kept> = dir
                    .account(&authority.directory)
                    .map_err(|error| OrderError::ours(error.to_string()))?;
                Ok((client, kept))
            })
            .await
            .map_err(|error| OrderError::ours(error.to_string()))??
        };
        let external = authority.external_account.as_ref().map(|(id, _)| id);
        match kept {
            Some(kept) if kept.external_account.as_ref() == external => {
                self.restore(authority, contact, client, kept).await
            }
            _ => self.register(authority, contact, client).await,
        }
    }

    async fn restore(
        &self,
        authority: &Authority,
        contact: &[String],
        client: Client,
        mut kept: Kept,
    ) -> Result<Session, OrderError> {
        let builder = Account::builder_with_http(Box::new(client.clone()));
        let account = builder
            .from_credentials(copy(&kept.credentials)?)
            .await
            .map_err(|error| OrderError::of_call(authority, &error))?;
        if kept.contact != contact {
            let addresses: Vec<&str> = contact.iter().map(String::as_str).collect();
            match despite_nonces!(account.update_contacts(&addresses)) {
                Ok(()) => {
                    kept.contact = contact.to_vec();
                    self.keep(authority, kept).await?;
                }
                // The account works with the former addresses; a lost one is seen by the order.
                Err(error) => {
                    let error = OrderError::of_call(authority, &error);
                    tracing::warn!(error = %error.reason, "the contact addresses of the account were not updated");
                }
            }
        }
        Ok(Session { account, client })
    }

    async fn register(
        &self,
        authority: &Authority,
        contact: &[String],
        client: Client,
    ) -> Result<Session, OrderError> {
        let external = match &authority.external_account {
            None => None,
            Some((id, key)) => {
                let key = base64url(key).ok_or_else(|| OrderError {
                    fault: Fault::Refused,
                    reason: fault::about(
                        authority,
                        "the key of the external account is not base64url",
                    ),
                })?;
                Some(ExternalAccountKey::new(id.clone(), &key))
            }
        };
        let addresses: Vec<&str> = contact.iter().map(String::as_str).collect();
        let wanted = NewAccount {
            contact: &addresses,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let created = despite_nonces!(Account::builder_with_http(Box::new(client.clone())).create(
            &wanted,
            authority.directory.clone(),
            external.as_ref(),
        ));
        let (account, credentials) = created.map_err(|error| refused(authority, &error))?;

        // Without its file the account could not be used after a restart.
        let kept = Kept {
            contact: contact.to_vec(),
            external_account: authority
                .external_account
                .as_ref()
                .map(|(id, _)| id.clone()),
            credentials,
        };
        self.keep(authority, kept).await?;
        tracing::info!(authority = authority.name, "registered an account");
        Ok(Session { account, client })
    }

    async fn keep(&self, authority: &Authority, kept: Kept) -> Result<(), OrderError> {
        let (dir, directory) = (self.dir.clone(), authority.directory.clone());
        dir::blocking(move || dir.store_account(&directory, &kept))
            .await
            .map_err(|error| OrderError::ours(format!("the account at the authority: {error}")))
    }
}

/// The error of an authority that refuses an account, with a hint.
fn refused(authority: &Authority, error: &Error) -> OrderError {
    let hint = match fault::problem(error).map(text::kind) {
        Some("externalAccountRequired") => {
            "; get an identifier and a key from the authority, and set its external account"
        }
        Some("unauthorized" | "malformed") if authority.external_account.is_some() => {
            "; check identifier and key of its external account"
        }
        Some("invalidContact" | "unsupportedContact") => "; check the contact addresses",
        _ => "",
    };
    let mut error = OrderError::of_call(authority, error);
    error.reason.push_str(hint);
    error
}

/// The library's credentials cannot be cloned.
fn copy(credentials: &AccountCredentials) -> Result<AccountCredentials, OrderError> {
    serde_json::to_vec(credentials)
        .and_then(|text| serde_json::from_slice(&text))
        .map_err(|_| OrderError::ours("the credentials of the account cannot be used"))
}

/// The bytes of a text in base64url (RFC 4648 section 5), with padding or without.
fn base64url(text: &str) -> Option<Vec<u8>> {
    let text = text.trim().trim_end_matches('=');
    if text.len() % 4 == 1 {
        return None;
    }
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'-' | b'+' => 62,
            b'_' | b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    (!bytes.is_empty()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_external_accounts_are_base64url() {
        for (text, expected) in [
            ("Zg", Some(&b"f"[..])),
            ("Zg==", Some(b"f")),
            ("Zm9v", Some(b"foo")),
            ("Zm9vYg", Some(b"foob")),
            ("-_8\n", Some(&[0xfb, 0xff])),
            ("+/8=", Some(&[0xfb, 0xff])),
            ("", None),
            ("Z", None),
            ("Zm9vY", None),
            ("Zm 9v", None),
            ("Zm9v!", None),
        ] {
            assert_eq!(base64url(text).as_deref(), expected, "{text:?}");
        }
    }
}
