//! One order at one authority: from its begin to a verified certificate (RFC 8555 section 7.4).
//!
//! Steps in [`steps`]: order, authorizations, challenges, wait, finalize, download, verify. An order
//! whose end was missed is taken up again by the next one. Whatever
//! the end, challenges are withdrawn, and authorizations of a failed order that nobody will use are
//! deactivated.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use instant_acme::{
    AuthorizationState, AuthorizationStatus, CertificateIdentifier, ChallengeHandle, ChallengeType,
    Error, Identifier, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};

use crate::account::{Accounts, Session, despite_nonces};
use crate::certificate::{self, CLOCK_TOLERANCE_S, Facts, Unfit};
use crate::fault::{self, Fault, OrderError};
use crate::{Authority, Challenge, ChallengeKind, Limits, Solver, Wanted, text};

/// The most bytes of a chain in PEM form.
const CHAIN_BYTES_MAX: usize = 128 << 10;
/// The longest token of a challenge.
const TOKEN_MAX: usize = 256;
/// The most failed names that a reason lists.
const FAILED_LISTED_MAX: usize = 4;
/// Waits before a request is repeated that was not answered while the authority works: what was
/// signed by then would be lost.
const REPEATED_AFTER_S: [u64; 5] = [1, 2, 4, 8, 16];

/// Repeats a call that was not answered.
macro_rules! patiently {
    ($call:expr) => {{
        let mut waits = REPEATED_AFTER_S.iter();
        loop {
            match $call {
                Err(error) if fault::is_passing(&error) => match waits.next() {
                    Some(wait) => tokio::time::sleep(Duration::from_secs(*wait)).await,
                    None => break Err(error),
                },
                outcome => break outcome,
            }
        }
    }};
}

/// What an order needs.
pub(crate) struct Job<'a, S> {
    pub(crate) accounts: &'a Accounts,
    pub(crate) solver: &'a S,
    pub(crate) limits: &'a Limits,
    pub(crate) authority: &'a Authority,
    pub(crate) contact: &'a [String],
    pub(crate) wanted: &'a Wanted,
    /// The certificate that it renews, if this authority issued that (RFC 9773 section 5).
    pub(crate) replaces: Option<CertificateIdentifier<'static>>,
}

/// A certificate that was issued.
pub(crate) struct Signed {
    /// Certificate, chain, then private key (PEM).
    pub(crate) pem: String,
    pub(crate) facts: Facts,
}

/// An order whose certificate the authority may have signed, without that it could be downloaded.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unfinished {
    directory: String,
    /// URLs of the account and the order.
    account: String,
    order: String,
    hosts: Vec<String>,
    /// The private key (PEM).
    key: String,
}

impl fmt::Debug for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unfinished")
            .field("order", &self.order)
            .finish_non_exhaustive()
    }
}

/// What has to be cleaned up, and what is left.
#[derive(Default)]
struct Progress {
    order: Option<Order>,
    presented: Vec<Challenge>,
    unfinished: Option<Unfinished>,
}

/// Obtains a certificate, unless `stop` completes before. Takes up what is unfinished, and returns
/// what is so then.
pub(crate) async fn obtain<S: Solver>(
    job: &Job<'_, S>,
    unfinished: Option<Unfinished>,
    stop: impl Future<Output = ()>,
) -> (Result<Signed, OrderError>, Option<Unfinished>) {
    let mut progress = Progress {
        unfinished,
        ..Progress::default()
    };
    let work = tokio::time::timeout(job.limits.order_time, with_account(job, &mut progress));
    let outcome = tokio::select! {
        biased;
        () = stop => Err(OrderError {
            fault: Fault::Stopped,
            reason: "the order was stopped".to_owned(),
        }),
        outcome = work => outcome.unwrap_or_else(|_| {
            let time = text::span(job.limits.order_time.as_secs());
            Err(OrderError::of_authority(job.authority, &format!("the order was not done after {time}")))
        }),
    };
    let unfinished = progress.unfinished.take();
    clean_up(job, progress, outcome.is_err()).await;
    (outcome, unfinished)
}

/// Runs the steps; once more with a new account if the authority does not know ours.
async fn with_account<S: Solver>(
    job: &Job<'_, S>,
    progress: &mut Progress,
) -> Result<Signed, OrderError> {
    let mut session = open(job).await?;
    let mut outcome = steps(job, &session, progress).await;
    if matches!(&outcome, Err(error) if error.fault == Fault::AccountLost) {
        tracing::warn!(
            authority = job.authority.name,
            "the authority has lost the account"
        );
        let account = session.account.id();
        job.accounts.lost(job.authority, account).await;
        session = open(job).await?;
        outcome = steps(job, &session, progress).await;
    }
    if matches!(&outcome, Err(error) if error.fault.may_be_mended_by_another()) {
        // Its directory may have changed.
        job.accounts.close(job.authority).await;
    }
    outcome
}

/// Opens the account, and compares the clocks: a certificate that this machine would take for
/// invalid is better not ordered.
async fn open<S>(job: &Job<'_, S>) -> Result<Session, OrderError> {
    let ahead = |session: &Session| {
        let now = (crate::now_unix_s(), Instant::now());
        let ahead = session.client.ahead_s(now.0, now.1);
        ahead.filter(|ahead| ahead.abs() > CLOCK_TOLERANCE_S)
    };
    let mut session = job.accounts.open(job.authority, job.contact, false).await?;
    if ahead(&session).is_some() {
        // The machine may have slept since the authority said its time.
        session = job.accounts.open(job.authority, job.contact, true).await?;
    }
    let Some(ahead) = ahead(&session) else {
        return Ok(session);
    };
    let direction = if ahead > 0 { "ahead of" } else { "behind" };
    let span = text::span(ahead.unsigned_abs());
    let now = text::time(crate::now_unix_s());
    let reason = format!(
        "this machine's clock may be wrong: it says {now}, {span} {direction} the authority's; nothing was ordered"
    );
    Err(OrderError {
        fault: Fault::Clock,
        reason: fault::about(job.authority, &reason),
    })
}

async fn steps<S: Solver>(
    job: &Job<'_, S>,
    session: &Session,
    progress: &mut Progress,
) -> Result<Signed, OrderError> {
    let policy = RetryPolicy::new()
        .initial_delay(Duration::from_millis(500))
        .backoff(1.5)
        .timeout(job.limits.wait_time);
    let (order, key) = match resume(job, session, progress).await? {
        Some(resumed) => resumed,
        None => {
            let order = progress.order.insert(begin(job, session).await?);
            validate(job, order, &policy, &mut progress.presented).await?;
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
                .map_err(|error| OrderError::ours(format!("no key could be made: {error}")))?;
            progress.unfinished = Some(Unfinished {
                directory: job.authority.directory.clone(),
                account: session.account.id().to_owned(),
                order: order.url().to_owned(),
                hosts: job.wanted.hosts.clone(),
                key: key.serialize_pem(),
            });
            (order, key)
        }
    };

    let chain = match download(job, order, &policy, &key).await {
        Ok(chain) => chain,
        Err(error) => {
            // What the authority may sign yet is asked for again.
            if !fault::is_passing(&error) && !matches!(error, Error::Timeout(_)) {
                progress.unfinished = None;
            }
            return Err(OrderError::of_call(job.authority, &error));
        }
    };
    progress.unfinished = None;
    let chain = certificates_only(&chain);
    if chain.len() > CHAIN_BYTES_MAX {
        let reason = format!("sent a chain of more than {CHAIN_BYTES_MAX} bytes");
        return Err(OrderError::of_authority(job.authority, &reason));
    }
    let key = key.serialize_pem();
    let now = crate::now_unix_s();
    match certificate::verify(&chain, &key, &job.wanted.hosts, now) {
        Ok(facts) => Ok(Signed {
            pem: chain + &key,
            facts,
        }),
        Err(unfit) => Err(OrderError {
            fault: match unfit {
                Unfit::Wrong(_) => Fault::Authority { retry_after: None },
                Unfit::Clock { .. } => Fault::Clock,
            },
            reason: fault::about(job.authority, &unfit.to_string()),
        }),
    }
}

/// Takes up an order whose certificate the authority may have signed while it was not reachable.
async fn resume<'p, S>(
    job: &Job<'_, S>,
    session: &Session,
    progress: &'p mut Progress,
) -> Result<Option<(&'p mut Order, KeyPair)>, OrderError> {
    let Some(unfinished) = &progress.unfinished else {
        return Ok(None);
    };
    let is_ours = unfinished.directory == job.authority.directory
        && unfinished.account == session.account.id()
        && unfinished.hosts == job.wanted.hosts;
    let (url, key) = (unfinished.order.clone(), KeyPair::from_pem(&unfinished.key));
    let (true, Ok(key)) = (is_ours, key) else {
        progress.unfinished = None;
        return Ok(None);
    };
    match despite_nonces!(session.account.order(url.clone())) {
        Ok(mut order) => match order.state().status {
            OrderStatus::Ready | OrderStatus::Processing | OrderStatus::Valid => {
                tracing::debug!(url, "an order is taken up again");
                return Ok(Some((progress.order.insert(order), key)));
            }
            OrderStatus::Pending | OrderStatus::Invalid => {}
        },
        Err(error) if fault::is_passing(&error) => {
            return Err(OrderError::of_call(job.authority, &error));
        }
        // It may have expired, or the account was lost.
        Err(_) => {}
    }
    progress.unfinished = None;
    Ok(None)
}

/// Proves to the authority that the names are ours, where it does not know that already.
async fn validate<S: Solver>(
    job: &Job<'_, S>,
    order: &mut Order,
    policy: &RetryPolicy,
    presented: &mut Vec<Challenge>,
) -> Result<(), OrderError> {
    match order.state().status {
        OrderStatus::Pending => {}
        OrderStatus::Ready => return Ok(()),
        _ => return Err(explain(job, order, None).await),
    }
    let chosen = choose(job, order).await?;
    if !chosen.is_empty() {
        let answers: Vec<_> = chosen.iter().map(|one| one.challenge.clone()).collect();
        // Noted before they are shown: what was shown in part is withdrawn as well.
        presented.extend(answers.clone());
        job.solver.present(answers).await.map_err(|reason| {
            OrderError::ours(format!(
                "the answers to the authority's challenges could not be shown: {}",
                text::line(&reason)
            ))
        })?;
        set_ready(job, order, &chosen).await?;
    }
    match patiently!(despite_nonces!(order.poll_ready(policy))) {
        Ok(OrderStatus::Ready) => Ok(()),
        Ok(_) => Err(explain(job, order, None).await),
        Err(error) => Err(explain(job, order, Some(error)).await),
    }
}

/// Requests the certificate for a key, if that was not done yet, and waits for it.
async fn download<S>(
    job: &Job<'_, S>,
    order: &mut Order,
    policy: &RetryPolicy,
    key: &KeyPair,
) -> Result<String, Error> {
    if order.state().status == OrderStatus::Ready {
        let request =
            request(&job.wanted.hosts, key).map_err(|error| Error::Other(error.into()))?;
        despite_nonces!(order.finalize_csr(&request))?;
    }
    patiently!(despite_nonces!(order.poll_certificate(policy)))
}

/// Makes the order, with what it replaces if the authority takes that.
async fn begin<S>(job: &Job<'_, S>, session: &Session) -> Result<Order, OrderError> {
    let identifiers: Vec<Identifier> = job
        .wanted
        .hosts
        .iter()
        .map(|host| match host.parse() {
            Ok(address) => Identifier::Ip(address),
            Err(_) => Identifier::Dns(host.clone()),
        })
        .collect();
    let new_order = || {
        let order = NewOrder::new(&identifiers);
        match &job.authority.profile {
            Some(profile) => order.profile(profile),
            None => order,
        }
    };

    if let Some(replaces) = &job.replaces {
        let order = new_order().replaces(replaces.clone());
        match despite_nonces!(session.account.new_order(&order)) {
            Ok(order) => return Ok(order),
            Err(error) => {
                // It may have been replaced already, or by another account, or the authority has no
                // such orders. An order without it says whether that was the reason.
                let failed = OrderError::of_call(job.authority, &error);
                let is_other = !matches!(failed.fault, Fault::Refused)
                    && !matches!(error, Error::Unsupported(_))
                    && !is_mismatch(&error);
                if is_other {
                    return Err(failed);
                }
                tracing::debug!(reason = failed.reason, "ordered without replaces");
            }
        }
    }
    despite_nonces!(session.account.new_order(&new_order()))
        .map_err(|error| OrderError::of_call(job.authority, &error))
}

/// Whether the library refused an order because it lacks what it replaces.
fn is_mismatch(error: &Error) -> bool {
    matches!(error, Error::Other(other) if other.to_string().starts_with("replaces field mismatch"))
}

/// A challenge that is going to be answered.
struct Chosen {
    /// URL of its authorization.
    authorization: String,
    kind: ChallengeKind,
    challenge: Challenge,
}

/// Reads all authorizations; those that were read are not read again.
async fn read_authorizations(order: &mut Order) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        authorization?;
    }
    Ok(())
}

/// Chooses a challenge for each authorization that is still open.
async fn choose<S>(job: &Job<'_, S>, order: &mut Order) -> Result<Vec<Chosen>, OrderError> {
    let failed = |error: Error| OrderError::of_call(job.authority, &error);
    let lies = |reason: &str| OrderError::of_authority(job.authority, reason);
    if order.state().authorizations.len() > job.wanted.hosts.len() {
        return Err(lies("it asks for more authorizations than there are names"));
    }
    despite_nonces!(read_authorizations(order)).map_err(failed)?;

    let mut chosen = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(failed)?;
        let name = authorization.identifier().to_string();
        if !is_wanted(&job.wanted.hosts, &name) {
            let reason = format!("it asks for an authorization of {}", text::line(&name));
            return Err(lies(&reason));
        }
        match authorization.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            _ => return Err(not_validated(job, &[Failed::of(&authorization)])),
        }

        let url = authorization.url().to_owned();
        let offers = |kind: ChallengeKind| {
            let kind = library(kind);
            authorization.challenges.iter().any(|c| c.r#type == kind)
        };
        let Some(kind) = job
            .wanted
            .challenges
            .iter()
            .copied()
            .find(|kind| offers(*kind))
        else {
            let (offered, ours) = (
                authorization.challenges.iter().map(|c| word(&c.r#type)),
                job.wanted
                    .challenges
                    .iter()
                    .map(|kind| word(&library(*kind))),
            );
            let list = |words: &mut dyn Iterator<Item = String>| {
                text::line(&words.collect::<Vec<_>>().join(", "))
            };
            let reason = format!(
                "for {name} it offers the challenges {}, but this certificate is to be proved by {}",
                list(&mut { offered }),
                list(&mut { ours })
            );
            return Err(OrderError {
                fault: Fault::Refused,
                reason: fault::about(job.authority, &reason),
            });
        };
        let handle = authorization
            .challenge(library(kind))
            .expect("it is among the challenges");
        let Some(challenge) = answer(kind, &handle) else {
            return Err(lies("it sent a challenge without a token that can be used"));
        };
        chosen.push(Chosen {
            authorization: url,
            kind,
            challenge,
        });
    }
    Ok(chosen)
}

/// Whether an authorization is for one of these hosts.
fn is_wanted(hosts: &[String], name: &str) -> bool {
    hosts.iter().any(|host| {
        host.eq_ignore_ascii_case(name)
            || host
                .parse::<IpAddr>()
                .is_ok_and(|address| name.parse() == Ok(address))
    })
}

/// The answer to a challenge; `None` if its token is none (RFC 8555 section 8.1): it becomes a part
/// of a path.
fn answer(kind: ChallengeKind, handle: &ChallengeHandle<'_>) -> Option<Challenge> {
    let token = &handle.token;
    let is_token = (1..=TOKEN_MAX).contains(&token.len())
        && token
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if !is_token {
        return None;
    }
    let host = match handle.identifier().identifier {
        Identifier::Dns(host) => host.to_ascii_lowercase(),
        Identifier::Ip(address) => address.to_string(),
        _ => return None,
    };
    let authorization = handle.key_authorization();
    Some(match kind {
        ChallengeKind::Dns01 => Challenge::Dns01 {
            host,
            value: authorization.dns_value(),
        },
        ChallengeKind::Http01 => Challenge::Http01 {
            host,
            token: token.clone(),
            key_authorization: authorization.as_str().to_owned(),
        },
        ChallengeKind::TlsAlpn01 => Challenge::TlsAlpn01 {
            host,
            digest: authorization.digest().as_ref().try_into().ok()?,
        },
    })
}

/// Says to the authority that the answers are there.
async fn set_ready<S>(
    job: &Job<'_, S>,
    order: &mut Order,
    chosen: &[Chosen],
) -> Result<(), OrderError> {
    for chosen in chosen {
        match despite_nonces!(set_one_ready(order, chosen)) {
            Ok(()) => {}
            // The challenge has failed already.
            Err(error @ Error::Api(_)) => return Err(explain(job, order, Some(error)).await),
            Err(error) => return Err(OrderError::of_call(job.authority, &error)),
        }
    }
    Ok(())
}

async fn set_one_ready(order: &mut Order, chosen: &Chosen) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.url() == chosen.authorization
            && let Some(mut challenge) = authorization.challenge(library(chosen.kind))
        {
            return challenge.set_ready().await;
        }
    }
    Ok(())
}

/// An authorization that failed.
struct Failed {
    /// The name, with `*.`.
    name: String,
    /// The challenge that failed.
    kind: Option<ChallengeType>,
    problem: Option<Problem>,
    status: AuthorizationStatus,
}

impl Failed {
    fn of(authorization: &AuthorizationState) -> Self {
        let failed = authorization.challenges.iter().find(|c| c.error.is_some());
        Self {
            name: text::line(&authorization.identifier().to_string()),
            kind: failed.map(|challenge| challenge.r#type.clone()),
            problem: failed.and_then(|challenge| challenge.error.clone()),
            status: authorization.status,
        }
    }

    fn reason(&self) -> String {
        let name = &self.name;
        let (Some(kind), Some(problem)) = (&self.kind, &self.problem) else {
            let status = format!("{:?}", self.status).to_ascii_lowercase();
            return format!("its authorization of {name} is {status}, without a reason");
        };
        let host = name.strip_prefix("*.").unwrap_or(name);
        let said = text::of_problem(problem);
        let hint = hint(kind, text::kind(problem), &said, host);
        format!(
            "it could not validate {name} by {}: {said}{hint}",
            word(kind)
        )
    }
}

/// What to look at, by the type of challenge and problem.
fn hint(challenge: &ChallengeType, problem: &str, said: &str, host: &str) -> String {
    let saw_nothing = said.to_ascii_lowercase().contains("no txt");
    match (challenge, problem) {
        (ChallengeType::Dns01, "unauthorized" | "incorrectResponse") if !saw_nothing => format!(
            "; it found another value than ours at _acme-challenge.{host}: another ACME client may answer there, or the name may be delegated elsewhere"
        ),
        (ChallengeType::Dns01, "unauthorized" | "incorrectResponse" | "dns") => format!(
            "; check that _acme-challenge.{host} is delegated to these name servers, and that they answer from the Internet"
        ),
        (ChallengeType::Http01, "unauthorized" | "incorrectResponse") => format!(
            "; it found another answer than ours at http://{host}/.well-known/acme-challenge/: another server may answer for this name, or another ACME client"
        ),
        (ChallengeType::TlsAlpn01, "unauthorized" | "incorrectResponse" | "tls") => format!(
            "; another server may answer for {host} on port 443, or something before it ends TLS"
        ),
        (ChallengeType::Http01, "connection") => {
            format!(
                "; check that {host} leads here and that port 80 can be reached from the Internet"
            )
        }
        (ChallengeType::TlsAlpn01, "connection") => {
            format!(
                "; check that {host} leads here and that port 443 can be reached from the Internet"
            )
        }
        (_, "dns") => format!("; check the DNS records of {host}"),
        (_, "caa") => format!("; the CAA records of {host} name other authorities"),
        _ => String::new(),
    }
}

/// Why an order failed while the authority validated its names: asks for the authorizations.
async fn explain<S>(job: &Job<'_, S>, order: &mut Order, error: Option<Error>) -> OrderError {
    if let Some(error) = &error
        && !matches!(error, Error::Api(_) | Error::Timeout(_))
    {
        return OrderError::of_call(job.authority, error);
    }
    let failed = despite_nonces!(failed_authorizations(order));
    match (failed, error) {
        (Ok(failed), _) if !failed.is_empty() => not_validated(job, &failed),
        (_, Some(error)) => OrderError::of_call(job.authority, &error),
        (Err(error), None) => OrderError::of_call(job.authority, &error),
        (Ok(_), None) => {
            OrderError::of_authority(job.authority, "the order became invalid without a reason")
        }
    }
}

async fn failed_authorizations(order: &mut Order) -> Result<Vec<Failed>, Error> {
    let mut failed = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        let state = authorization.refresh().await?;
        match state.status {
            AuthorizationStatus::Pending | AuthorizationStatus::Valid => {}
            _ => failed.push(Failed::of(state)),
        }
    }
    Ok(failed)
}

fn not_validated<S>(job: &Job<'_, S>, failed: &[Failed]) -> OrderError {
    let mut reasons: Vec<String> = failed
        .iter()
        .take(FAILED_LISTED_MAX)
        .map(Failed::reason)
        .collect();
    if failed.len() > FAILED_LISTED_MAX {
        reasons.push(format!("{} more", failed.len() - FAILED_LISTED_MAX));
    }
    let host = |failed: &Failed| {
        let name = &failed.name;
        name.strip_prefix("*.").unwrap_or(name).to_owned()
    };
    // An authority may fail while it validates, too.
    let is_ours = failed.iter().any(|failed| {
        let kind = failed.problem.as_ref().map(text::kind);
        !matches!(kind, Some("serverInternal" | "rateLimited"))
    });
    OrderError {
        fault: match is_ours {
            true => Fault::Validation {
                hosts: failed.iter().map(host).collect(),
            },
            false => Fault::Authority { retry_after: None },
        },
        reason: fault::about(job.authority, &reasons.join("; ")),
    }
}

/// The request for a certificate: its names, and nothing else.
fn request(hosts: &[String], key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let mut wanted = CertificateParams::new(hosts)?;
    wanted.distinguished_name = DistinguishedName::new();
    Ok(wanted.serialize_request(key)?.der().to_vec())
}

/// The certificates of a text, without what else is in it.
fn certificates_only(text: &str) -> String {
    let mut is_inside = false;
    let mut kept = String::new();
    for line in text.lines() {
        let line = line.trim_end();
        is_inside |= line == "-----BEGIN CERTIFICATE-----";
        if is_inside {
            kept.push_str(line);
            kept.push('\n');
        }
        is_inside &= line != "-----END CERTIFICATE-----";
    }
    kept
}

fn library(kind: ChallengeKind) -> ChallengeType {
    match kind {
        ChallengeKind::Dns01 => ChallengeType::Dns01,
        ChallengeKind::Http01 => ChallengeType::Http01,
        ChallengeKind::TlsAlpn01 => ChallengeType::TlsAlpn01,
    }
}

/// The type of a challenge as the standard writes it.
fn word(kind: &ChallengeType) -> String {
    match kind {
        ChallengeType::Dns01 => "dns-01".to_owned(),
        ChallengeType::Http01 => "http-01".to_owned(),
        ChallengeType::TlsAlpn01 => "tls-alpn-01".to_owned(),
        ChallengeType::Unknown(other) => text::line(other),
        _ => "another one".to_owned(),
    }
}

/// Withdraws the challenges; of a failed order also deactivates the authorizations that are still
/// open, which count against the account.
async fn clean_up<S: Solver>(job: &Job<'_, S>, progress: Progress, has_failed: bool) {
    let work = async {
        if !progress.presented.is_empty() {
            job.solver.withdraw(progress.presented).await;
        }
        let Some(mut order) = progress.order.filter(|_| has_failed) else {
            return;
        };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let Ok(mut authorization) = authorization else {
                continue;
            };
            if authorization.status == AuthorizationStatus::Pending {
                // It ends by itself after a while, and may have ended meanwhile.
                let _ = despite_nonces!(authorization.deactivate());
            }
        }
    };
    if tokio::time::timeout(job.limits.cleanup_time, work)
        .await
        .is_err()
    {
        tracing::warn!(
            authority = job.authority.name,
            "what was left of an order was not ended in time"
        );
    }
}
