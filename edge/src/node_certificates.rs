//! Gets the certificates that control has ordered for the sites of the node's cluster, and keeps them
//! in a directory of the node: `certificates/`, one file (PEM: certificate, chain, key) for each,
//! readable for the node's user alone.
//!
//! Control holds a request until there is something new, so that a certificate is in force within
//! seconds. While control does not answer, the node goes on with what it has, also after a restart.
//! Keys cross the network encrypted for this node, by `https` or within one machine only. A file that
//! cannot be written leaves the former one in force and is tried again.
//!
//! Knows no handshakes; [`crate::certificates`] reads the files.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{AUTHORIZATION, ETAG, HeaderValue, IF_NONE_MATCH};
use http::{Request, Response, StatusCode};
use nearcast_fleet::client::Client;
use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::config::{Fleet, Secret};
use nearcast_fleet::node_certificates::{
    self as wire, BOXES_MAX, CertificateList, EXCHANGE_FIELD, Exchange, OpenedCertificate, PATH,
    SealedCertificates,
};
use nearcast_fleet::node_key;
use nearcast_fleet::random::Random;
use tokio::sync::watch;

use crate::certificates::Certificates;
use crate::ticket_keys::is_private;

/// Time for which control may hold a request when there is nothing new.
const WAIT: Duration = Duration::from_secs(20);
/// Time-out of a request, beyond that.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// Least pause between two requests.
const PAUSE: Duration = Duration::from_millis(200);
/// Pause after a failure, which doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Share of a pause by which it is shortened at random.
const JITTER: f64 = 0.2;
/// How long a certificate that control no longer has stays in force: control may have lost its
/// directory, and orders take time.
const GONE_KEPT: Duration = Duration::from_secs(7 * 86_400);
/// The directory, in that of the node.
const DIRECTORY: &str = "certificates";
/// Ending of the files.
const ENDING: &str = ".pem";
/// Longest name that is a file's; longer ones are replaced by a hash.
const FILE_NAME_MAX: usize = 200;

/// The files of the node, by name.
#[derive(Debug, Default)]
pub(crate) struct Held {
    directory: PathBuf,
    files: BTreeMap<String, HeldFile>,
}

#[derive(Debug)]
struct HeldFile {
    digest: String,
    /// Since when control does not have it.
    gone: Option<SystemTime>,
}

impl Held {
    /// Finds the files of an earlier run in a node's directory. Blocks.
    pub(crate) fn open(node_directory: &Path) -> Self {
        let directory = node_directory.join(DIRECTORY);
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || !name.ends_with(ENDING) {
                continue;
            }
            // A file that cannot be read is fetched again.
            let digest = std::fs::read_to_string(entry.path())
                .map_or_else(|_| String::new(), |pem| wire::digest(&pem));
            files.insert(name, HeldFile { digest, gone: None });
        }
        Self { directory, files }
    }

    /// The files.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.files
            .keys()
            .map(|name| self.directory.join(name))
            .collect()
    }

    /// Digests of the certificates of a list that are not here.
    fn lacks(&self, list: &CertificateList) -> Vec<String> {
        let is_here = |name: &str, digest: &str| {
            self.files
                .get(&file_name(name))
                .is_some_and(|file| file.digest == digest)
        };
        list.certificates
            .iter()
            .filter(|one| !is_here(&one.name, &one.digest))
            .map(|one| one.digest.clone())
            .collect()
    }

    fn write(&mut self, one: &OpenedCertificate) -> io::Result<()> {
        let name = file_name(&one.name);
        make_directory(&self.directory)?;
        write_file(&self.directory, &name, one.pem.as_bytes())?;
        let digest = wire::digest(&one.pem);
        self.files.insert(name, HeldFile { digest, gone: None });
        Ok(())
    }

    /// Removes the files that control has not had for long. Gives whether any was.
    fn sweep(&mut self, list: &CertificateList, now: SystemTime) -> bool {
        let listed: std::collections::HashSet<String> = list
            .certificates
            .iter()
            .map(|one| file_name(&one.name))
            .collect();
        let directory = &self.directory;
        let before = self.files.len();
        self.files.retain(|name, file| {
            if listed.contains(name) {
                file.gone = None;
                return true;
            }
            let since = *file.gone.get_or_insert(now);
            // The clock may have been set back.
            let is_kept = now
                .duration_since(since)
                .map_or(true, |gone| gone < GONE_KEPT);
            is_kept || std::fs::remove_file(directory.join(name)).is_err()
        });
        self.files.len() != before
    }
}

/// The file of a certificate with this name.
fn file_name(name: &str) -> String {
    let stem = match name.strip_prefix("*.") {
        // Hosts with certificates have no underscores.
        Some(parent) => format!("_wildcard.{parent}"),
        None => name.to_owned(),
    };
    match stem.len() <= FILE_NAME_MAX {
        true => stem + ENDING,
        false => format!("_{}{ENDING}", wire::digest(name)),
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file as a whole: readers, also after a crash, see the former content or this one.
fn write_file(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let new = directory.join(format!(".{name}.new"));
    let write = || {
        let _ = std::fs::remove_file(&new);
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&new, directory.join(name))?;
        File::open(directory)?.sync_all()
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&new);
    })
}

/// Why certificates from control are not all here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Missing {
    #[error(
        "control is reached by plain HTTP, which would show the exchange of keys to the network: give control a certificate (cert and key in [control])"
    )]
    Unencrypted,
    #[error("{0}")]
    Failed(String),
    #[error("cannot write {path}: {error}; it is tried again")]
    Unwritable { path: String, error: String },
}

fn failed(reason: impl ToString) -> Missing {
    Missing::Failed(reason.to_string())
}

/// Follows control's certificates until the node ends.
pub(crate) async fn follow(
    name: String,
    mut fleet: watch::Receiver<Arc<Fleet>>,
    held: Held,
    certificates: Arc<Certificates>,
) {
    let client = Client::following(fleet.clone());
    let mut follower = Follower {
        name,
        client,
        held,
        certificates,
        tag: None,
        list: CertificateList::default(),
    };
    let mut jitter = Random::new(now_unix_ms() ^ u64::from(std::process::id()));
    let mut retry = RETRY_FIRST;
    let mut last: Option<Result<(), Missing>> = None;
    loop {
        let current = fleet.borrow_and_update().clone();
        if current.control.is_none() || current.acme.is_none() {
            if fleet.changed().await.is_err() {
                return;
            }
            continue;
        }
        let outcome = tokio::select! {
            outcome = follower.ask(&current) => outcome,
            // What this node shows, or the address of control, may be another now.
            changed = fleet.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let pause = match outcome {
            Ok(()) => {
                retry = RETRY_FIRST;
                PAUSE
            }
            Err(_) => {
                let pause = retry.mul_f64(1.0 - JITTER * jitter.unit());
                retry = (retry * 2).min(RETRY_MAX);
                pause
            }
        };
        if last.as_ref() != Some(&outcome) {
            match &outcome {
                Ok(()) => tracing::info!("certificates come from control"),
                Err(reason) => {
                    tracing::warn!(%reason, "not all certificates come from control; those that are here stay in force");
                }
            }
            last = Some(outcome);
        }
        tokio::time::sleep(pause).await;
    }
}

struct Follower {
    name: String,
    client: Client,
    held: Held,
    certificates: Arc<Certificates>,
    /// Tag of the list, once everything on it is here.
    tag: Option<HeaderValue>,
    list: CertificateList,
}

impl Follower {
    /// Asks for the list, fetches what is missing, and removes what has long been gone.
    async fn ask(&mut self, fleet: &Fleet) -> Result<(), Missing> {
        let url = fleet.control.as_ref().map_or("", |control| &control.url);
        if !is_private(url) {
            return Err(Missing::Unencrypted);
        }
        let own_key = node_key::own_of(fleet, &self.name)
            .ok_or_else(|| failed("this node has no key of its own"))?;
        let wait = WAIT.as_millis();
        let mut request = request(&format!("{url}{PATH}?wait_ms={wait}"), &own_key)?;
        if let Some(tag) = &self.tag {
            request.headers_mut().insert(IF_NONE_MATCH, tag.clone());
        }
        let response = self.send(request, WAIT + ANSWER_TIME_MAX).await?;
        match response.status() {
            StatusCode::NOT_MODIFIED => {}
            StatusCode::OK => {
                self.list = CertificateList::parse(response.body()).map_err(failed)?;
                self.tag = None;
                self.fetch(url, &own_key).await?;
                self.tag = response.headers().get(ETAG).cloned();
            }
            // Its body is not logged: it might be from another server and contain anything.
            status => return Err(failed(format!("control answered with status {status}"))),
        }
        if self.held.sweep(&self.list, SystemTime::now()) {
            self.certificates.set_ordered(self.held.paths());
        }
        Ok(())
    }

    /// Fetches and writes what the list has and this node lacks.
    async fn fetch(&mut self, url: &str, own_key: &Secret) -> Result<(), Missing> {
        let lacks = self.held.lacks(&self.list);
        let mut outcome = Ok(());
        for digests in lacks.chunks(BOXES_MAX) {
            let exchange = Exchange::new().map_err(failed)?;
            let mut request = request(
                &format!("{url}{PATH}?digests={}", digests.join(",")),
                own_key,
            )?;
            let public = HeaderValue::try_from(exchange.public()).map_err(failed)?;
            request.headers_mut().insert(EXCHANGE_FIELD, public);
            let response = self.send(request, ANSWER_TIME_MAX).await?;
            if response.status() != StatusCode::OK {
                let status = response.status();
                return Err(failed(format!("control answered with status {status}")));
            }
            let opened =
                SealedCertificates::open(response.body(), exchange, own_key).map_err(failed)?;
            if let Err(error) = self.write(opened, digests).await {
                outcome = Err(error);
            }
            self.certificates.set_ordered(self.held.paths());
        }
        outcome
    }

    /// Writes certificates, as many as it can.
    async fn write(
        &mut self,
        opened: Vec<OpenedCertificate>,
        digests: &[String],
    ) -> Result<(), Missing> {
        let mut held = std::mem::take(&mut self.held);
        let digests = digests.to_vec();
        let writing = tokio::task::spawn_blocking(move || {
            let mut outcome = Ok(());
            for one in &opened {
                // Control may have renewed it since it made the list: the next one has it.
                if !digests.contains(&wire::digest(&one.pem)) {
                    outcome = Err(failed("control sent another certificate than it has"));
                    continue;
                }
                if let Err(error) = held.write(one) {
                    let path = held.directory.join(file_name(&one.name));
                    outcome = Err(Missing::Unwritable {
                        path: path.display().to_string(),
                        error: error.to_string(),
                    });
                }
            }
            (held, outcome)
        });
        // An error means that the runtime ends.
        let (held, outcome) = writing.await.map_err(failed)?;
        self.held = held;
        outcome
    }

    async fn send(
        &self,
        request: Request<Bytes>,
        time_max: Duration,
    ) -> Result<Response<Bytes>, Missing> {
        self.client.send(request, time_max).await.map_err(failed)
    }
}

fn request(url: &str, own_key: &Secret) -> Result<Request<Bytes>, Missing> {
    let key = HeaderValue::try_from(format!("Bearer {}", own_key.0))
        .map_err(|_| failed("this node's key is no field value"))?;
    let mut request = Request::get(url).body(Bytes::new()).map_err(failed)?;
    request.headers_mut().insert(AUTHORIZATION, key);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nearcast_fleet::node_certificates::Listed;

    use super::*;

    fn one(name: &str, pem: &str) -> OpenedCertificate {
        OpenedCertificate {
            name: name.to_owned(),
            pem: pem.to_owned(),
        }
    }

    fn list(of: &[OpenedCertificate]) -> CertificateList {
        CertificateList {
            cluster: "ams".to_owned(),
            certificates: of
                .iter()
                .map(|one| Listed {
                    name: one.name.clone(),
                    digest: wire::digest(&one.pem),
                })
                .collect(),
        }
    }

    #[test]
    fn files_have_the_names_of_their_hosts() {
        for (name, expected) in [
            ("www.a.test", "www.a.test.pem"),
            ("*.a.test", "_wildcard.a.test.pem"),
        ] {
            assert_eq!(file_name(name), expected);
        }
        let long = format!("{}a.test", "a23456789.".repeat(24));
        let name = file_name(&long);
        assert!(name.starts_with('_') && name.len() < 100, "{name}");
        assert_ne!(name, file_name(&long[1..]));
    }

    #[test]
    fn a_certificate_is_kept_for_its_node_alone_and_found_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let certificates = [one("www.a.test", "first"), one("*.a.test", "second")];
        let mut held = Held::open(dir.path());
        assert!(held.paths().is_empty());
        assert_eq!(held.lacks(&list(&certificates)).len(), 2);
        for certificate in &certificates {
            held.write(certificate).expect("space");
        }
        assert!(held.lacks(&list(&certificates)).is_empty());
        let mode = |path: &Path| {
            let about = std::fs::metadata(path).expect("it is there");
            about.permissions().mode() & 0o777
        };
        assert_eq!(mode(&dir.path().join(DIRECTORY)), 0o700);
        for path in held.paths() {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }

        // A crash left half a file.
        let half = dir.path().join(DIRECTORY).join(".www.a.test.pem.new");
        std::fs::write(&half, "fir").expect("space");
        let mut held = Held::open(dir.path());
        assert_eq!(held.paths().len(), 2);
        assert!(held.lacks(&list(&certificates)).is_empty());
        let renewed = [one("www.a.test", "third"), one("*.a.test", "second")];
        assert_eq!(held.lacks(&list(&renewed)), [wire::digest("third")]);
        held.write(&renewed[0]).expect("space");
        assert!(held.lacks(&list(&renewed)).is_empty() && !half.exists());
    }

    #[test]
    fn what_cannot_be_written_leaves_the_former_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut held = Held::open(dir.path());
        held.write(&one("www.a.test", "first")).expect("space");
        // A directory of the new file's name cannot be replaced by a file.
        let new = dir.path().join(DIRECTORY).join(".www.a.test.pem.new");
        std::fs::create_dir_all(new.join("x")).expect("space");
        let renewed = one("www.a.test", "second");
        assert!(held.write(&renewed).is_err());
        let path = &held.paths()[0];
        assert_eq!(std::fs::read_to_string(path).expect("there"), "first");
        assert_eq!(held.lacks(&list(std::slice::from_ref(&renewed))).len(), 1);
        std::fs::remove_dir_all(&new).expect("there");
        held.write(&renewed).expect("space");
        assert_eq!(std::fs::read_to_string(path).expect("there"), "second");
    }

    #[test]
    fn what_control_no_longer_has_goes_after_a_week() {
        let dir = tempfile::tempdir().expect("a directory");
        let [a, b] = [one("a.test", "a"), one("b.test", "b")];
        let mut held = Held::open(dir.path());
        held.write(&a).expect("space");
        held.write(&b).expect("space");
        let begin = SystemTime::now();
        let both = list(&[a.clone(), b]);
        let left = list(&[a]);
        for (days, now, expected) in [
            (0, &left, 2),
            (6, &left, 2),
            // It came back in between.
            (7, &both, 2),
            (8, &left, 2),
            (14, &left, 2),
            (15, &left, 1),
        ] {
            held.sweep(now, begin + Duration::from_secs(days * 86_400));
            assert_eq!(held.paths().len(), expected, "after {days} days");
        }
        assert_eq!(Held::open(dir.path()).paths().len(), 1);
    }
}
