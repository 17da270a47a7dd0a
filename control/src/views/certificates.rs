//! Certificates that control orders, without their secrets.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The certificates that the fleet file orders.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificatesView {
    /// Whether the fleet file has `[acme]`.
    pub acme: bool,
    /// What keeps all certificates, or an authority, from being used.
    pub problem: Option<String>,
    /// In the order of the file, those of sites after those with sections of their own.
    pub certificates: Vec<CertificateView>,
}

/// A certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateView {
    /// Its first host.
    pub name: String,
    pub hosts: Vec<String>,
    /// `dns` or `http`.
    pub challenge: String,
    /// The authority of the certificate in force.
    pub authority: Option<String>,
    pub not_before_unix_s: Option<i64>,
    pub not_after_unix_s: Option<i64>,
    /// When the next order is due.
    pub next_order_unix_s: Option<i64>,
    /// Whether an order is under way.
    pub ordering: bool,
    /// Orders that failed since the last success.
    pub failures: u32,
    pub last_error: Option<CertificateErrorView>,
}

/// Why an order failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateErrorView {
    pub unix_s: i64,
    /// The authority that was asked; none if the order ended before that.
    pub authority: Option<String>,
    pub reason: String,
}

/// A request to order a certificate now.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RenewRequest {
    /// Name of the certificate: its first host.
    pub name: String,
}

/// An order that begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RenewView {
    pub name: String,
}
