//! The demo's certificates: a local authority whose root clients may be given, and a certificate
//! for each of the demo's zones, which the authority signs.
//!
//! The authority's private key is never written: it is dropped when both certificates are signed.
//! Its root is limited to names below `test` (RFC 2606 section 2) and to loopback addresses
//! (critical name constraints, RFC 5280 section 4.2.1.10), so a root that somebody has added to a
//! trust store cannot vouch for a site of the Internet. Each run of the demo makes new ones, as its
//! directory ends with it.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use nearcast_fleet::failure::{Failure, FailureKind};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints,
};

use super::file::{CLUSTERS, EDGES_PER_CLUSTER};
use crate::kernel;
use crate::privileges::Account;

/// The authority's root, in the directory of the certificates. It is written last, so a directory
/// with it is complete.
pub(crate) const ROOT: &str = "ca.pem";
/// Directory of the certificates in the demo's own.
pub(super) const DIRECTORY: &str = "certificates";
/// Name of the files of the certificate for the customer's zone (`.pem` and `.key`).
const CUSTOMER: &str = "demo.test";
/// Name of the files of the certificate for the CDN's own zone, and for the edges' addresses.
const OWN: &str = "cdn.test";

/// Days for which root and certificates are valid. Browsers take at most 825 from an authority
/// that a user has added.
const VALID_DAYS: i64 = 365;
/// Age at which [`write_unless_recent`] makes new ones: a month before they end.
const RENEW_AFTER_SECONDS: i64 = 24 * 3600 * (VALID_DAYS - 30);

/// The texts of all files, by name; the root's is the last one.
struct Set {
    files: Vec<(String, String)>,
}

/// Writes a new authority's root and the certificates that it signs into a directory, which is made
/// unless it is there. Keys can be read by the user that nodes run as, and by nobody else.
///
/// # Errors
/// A file cannot be written.
pub(super) fn write(directory: &Path, now: Timestamp) -> Result<(), Failure> {
    let set = make(now).map_err(|e| {
        Failure::new(
            FailureKind::System,
            format!("cannot make the demo's certificates: {e}"),
        )
    })?;
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory);
    made.map_err(|e| cannot_write(directory, &e))?;
    for (name, text) in &set.files {
        let path = directory.join(name);
        write_file(&path, text).map_err(|e| cannot_write(&path, &e))?;
    }
    Ok(())
}

/// As [`write`], unless the directory has a set that is valid for a month and more. Says whether it
/// wrote.
///
/// # Errors
/// A file cannot be written.
pub(super) fn write_unless_recent(directory: &Path, now: Timestamp) -> Result<bool, Failure> {
    let made = fs::metadata(directory.join(ROOT)).and_then(|about| about.modified());
    let made = made.ok().and_then(|made| Timestamp::try_from(made).ok());
    // A time in the future says nothing about the age.
    let is_recent =
        |made: &Timestamp| (0..RENEW_AFTER_SECONDS).contains(&(now.as_second() - made.as_second()));
    if made.is_some_and(|made| is_recent(&made)) {
        return Ok(false);
    }
    write(directory, now).map(|()| true)
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    let message = format!("cannot write {}: {error}", path.display());
    Failure::new(FailureKind::CannotCreate, message)
}

/// A new authority and its certificates. Both are valid from the day in which the last hour began,
/// so that a client whose clock is slow takes them.
fn make(now: Timestamp) -> Result<Set, rcgen::Error> {
    let day = (now - 1.hour()).to_zoned_datetime(TimeZone::UTC).date();
    let root = CertifiedIssuer::self_signed(root(day), KeyPair::generate()?)?;
    let zone = |name: &str| [name.to_owned(), format!("*.{name}")];
    let addresses = CLUSTERS
        .iter()
        .flat_map(|c| (1..=EDGES_PER_CLUSTER).map(|n| c.edge(n).to_string()));
    let of_own = zone(OWN).into_iter().chain(addresses).collect();

    let mut files = Vec::new();
    for (name, hosts) in [(CUSTOMER, zone(CUSTOMER).to_vec()), (OWN, of_own)] {
        let key = KeyPair::generate()?;
        let certificate = leaf(name, hosts, day)?.signed_by(&key, &root)?;
        files.push((format!("{name}.key"), key.serialize_pem()));
        files.push((format!("{name}.pem"), certificate.pem()));
    }
    files.push((ROOT.to_owned(), root.pem()));
    Ok(Set { files })
}

fn root(day: Date) -> CertificateParams {
    let mut root = CertificateParams::default();
    // The day tells the roots of two runs apart in a trust store.
    root.distinguished_name = named(&format!("Nearcast demo authority of {day}"));
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    root.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![
            GeneralSubtree::DnsName("test".to_owned()),
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([127, 0, 0, 0], 8)),
        ],
        excluded_subtrees: Vec::new(),
    });
    validity(&mut root, day);
    root
}

fn leaf(name: &str, hosts: Vec<String>, day: Date) -> Result<CertificateParams, rcgen::Error> {
    let mut leaf = CertificateParams::new(hosts)?;
    leaf.distinguished_name = named(name);
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    validity(&mut leaf, day);
    Ok(leaf)
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn validity(certificate: &mut CertificateParams, day: Date) {
    let at =
        |day: Date| rcgen::date_time_ymd(day.year().into(), day.month() as u8, day.day() as u8);
    certificate.not_before = at(day);
    certificate.not_after = at(day.saturating_add(VALID_DAYS.days()));
}

/// Writes a file; a key (`.key`) for the nodes' user alone. What was there is replaced, never
/// written through.
fn write_file(path: &Path, text: &str) -> std::io::Result<()> {
    let is_key = path.extension().is_some_and(|e| e == "key");
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(if is_key { 0o600 } else { 0o644 })
        .open(path)?;
    if is_key && kernel::user_id() == 0 {
        // Nodes of root's demo run as this user, and read the key again when it changes.
        let owner = Account::default_of_system().uid;
        std::os::unix::fs::fchown(&file, Some(owner), None)?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;

    /// Runs `openssl verify` for a host or address; why it refuses the certificate, if it does.
    fn refusal(directory: &Path, name: &str, option: &str, value: &str) -> Option<String> {
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"])
            .arg(directory.join(ROOT))
            .args([option, value])
            .arg(directory.join(format!("{name}.pem")))
            .output()
            .expect("openssl runs");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        (!output.status.success()).then_some(words)
    }

    #[test]
    fn openssl_accepts_the_certificates_for_their_names_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path(), Timestamp::now()).expect("written");
        for (name, option, value, expected) in [
            (CUSTOMER, "-verify_hostname", "www.demo.test", true),
            (CUSTOMER, "-verify_hostname", "video.demo.test", true),
            (CUSTOMER, "-verify_hostname", "www.cdn.test", false),
            (OWN, "-verify_hostname", "www.cdn.test", true),
            (OWN, "-verify_hostname", "video.cdn.test", true),
            (OWN, "-verify_ip", "127.0.10.1", true),
            (OWN, "-verify_ip", "127.0.30.2", true),
            (OWN, "-verify_ip", "127.0.0.1", false),
            (OWN, "-verify_hostname", "www.demo.test", false),
        ] {
            let refusal = refusal(directory.path(), name, option, value);
            assert_eq!(
                refusal.is_none(),
                expected,
                "{name} for {value}: {refusal:?}"
            );
        }
    }

    #[test]
    fn the_authority_cannot_vouch_for_a_site_of_the_internet() {
        let directory = tempfile::tempdir().expect("a directory");
        let day = Timestamp::now().to_zoned_datetime(TimeZone::UTC).date();
        let root = KeyPair::generate().and_then(|key| CertifiedIssuer::self_signed(root(day), key));
        let root = root.expect("a root");
        let path = |name: &str| directory.path().join(name);
        fs::write(path(ROOT), root.pem()).expect("written");
        let key = KeyPair::generate().expect("a key");
        for (host, option, expected) in [
            ("any.test", "-verify_hostname", true),
            ("www.example.com", "-verify_hostname", false),
            ("nottest", "-verify_hostname", false),
            ("127.9.9.9", "-verify_ip", true),
            ("192.0.2.1", "-verify_ip", false),
        ] {
            let leaf = leaf("a leaf", vec![host.to_owned()], day).expect("good names");
            let leaf = leaf.signed_by(&key, &root).expect("signed");
            fs::write(path("leaf.pem"), leaf.pem()).expect("written");
            match refusal(directory.path(), "leaf", option, host) {
                None => assert!(expected, "{host}"),
                Some(words) => {
                    assert!(!expected, "{host}: {words}");
                    assert!(
                        words.contains("permitted subtree violation"),
                        "{host}: {words}"
                    );
                }
            }
        }
    }

    #[test]
    fn keys_are_for_their_user_alone_and_the_authoritys_key_is_not_written() {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path(), Timestamp::now()).expect("written");
        let mut names = Vec::new();
        for entry in fs::read_dir(directory.path()).expect("there") {
            let entry = entry.expect("readable");
            let name = entry.file_name().into_string().expect("plain names");
            let mode = entry.metadata().expect("there").permissions().mode() & 0o777;
            let expected = if name.ends_with(".key") { 0o600 } else { 0o644 };
            assert_eq!(mode, expected, "{name}");
            names.push(name);
        }
        names.sort_unstable();
        let expected = [
            ROOT,
            "cdn.test.key",
            "cdn.test.pem",
            "demo.test.key",
            "demo.test.pem",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_set_is_kept_until_it_is_about_to_end() {
        let directory = tempfile::tempdir().expect("a directory");
        // The file's time may be that of the kernel's last tick, before this one.
        let now = Timestamp::now() + 1.second();
        let days = |n: i64| now + (24 * n).hours();
        assert!(write_unless_recent(directory.path(), now).expect("written"));
        let root = || fs::read_to_string(directory.path().join(ROOT)).expect("there");
        let first = root();
        for (at, renewed) in [(days(1), false), (days(334), false), (days(336), true)] {
            assert_eq!(
                write_unless_recent(directory.path(), at),
                Ok(renewed),
                "{at}"
            );
            assert_eq!(root() != first, renewed, "{at}");
        }
        // A clock that was set back: the file's time says nothing.
        assert_eq!(write_unless_recent(directory.path(), days(-1)), Ok(true));
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("cdn.test.key")).expect("it is ours");
        let failure = write(directory.path(), Timestamp::now()).expect_err("a directory is there");
        assert_eq!(failure.kind, FailureKind::CannotCreate);
        assert!(failure.message.contains("cdn.test.key"), "{failure}");
        assert!(!directory.path().join(ROOT).exists(), "not complete");
    }
}
