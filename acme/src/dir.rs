//! The directory of accounts, keys and certificates.
//!
//! ```text
//! accounts/<host of the authority>-<hash of its directory's URL>.json
//! certificates/<name>.pem     four lines about it, then certificate, chain and private key
//! certificates/<name>.json    failures, back-off, advice, a renewal asked for, an unfinished order's key
//! ```
//!
//! Directories have mode 0700, files 0600. Each file is replaced as a whole and is on disk before its
//! certificate is used, so a copy of the directory taken at any time is a backup: a keeper that
//! starts with it orders nothing. `<name>.json` may be lost; back-off then begins anew. A file that
//! cannot be understood is renamed to `<file>.damaged`.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Issued;
use crate::certificate::{self, Facts};

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The longest name of a file before its extension; longer ones end in a hash.
const STEM_MAX: usize = 200;
/// Ends the name of a file that is being written.
const UNFINISHED: &str = "new";
/// First line of a file with a certificate.
const FIRST_LINE: &str = "Nearcast-Certificate: 1";

/// A certificate with what is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) issued: Arc<Issued>,
    /// URL of the authority's directory.
    pub(crate) directory: String,
    pub(crate) facts: Facts,
}

/// The directory.
#[derive(Debug)]
pub(crate) struct Dir {
    accounts: PathBuf,
    certificates: PathBuf,
}

impl Dir {
    /// Makes what is missing.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let dir = Self {
            accounts: root.join("accounts"),
            certificates: root.join("certificates"),
        };
        for path in [root, &dir.accounts, &dir.certificates] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|error| at(path, "make", &error))?;
        }
        for path in [&dir.accounts, &dir.certificates] {
            fs::set_permissions(path, Permissions::from_mode(0o700))
                .map_err(|error| at(path, "protect", &error))?;
        }
        Ok(dir)
    }

    /// All certificates, in order of their file names. Removes files that were not finished.
    pub(crate) fn certificates(&self) -> io::Result<Vec<Held>> {
        let cannot_read = |error| at(&self.certificates, "read", &error);
        let mut paths = Vec::new();
        for file in fs::read_dir(&self.certificates).map_err(cannot_read)? {
            let path = file.map_err(cannot_read)?.path();
            match path.extension().and_then(|end| end.to_str()) {
                Some("pem") => paths.push(path),
                Some(UNFINISHED) => drop(fs::remove_file(&path)),
                _ => {}
            }
        }
        paths.sort_unstable();

        let mut found = Vec::new();
        for path in paths {
            let Some(text) = read(&path)? else { continue };
            match parse(&text) {
                Ok(held) if self.pem(&held.issued.hosts[0]) == path => found.push(held),
                Ok(held) => set_aside(&path, &format!("is that of {}", held.issued.hosts[0])),
                Err(problem) => set_aside(&path, &problem),
            }
        }
        Ok(found)
    }

    /// Writes a certificate; the one before it is replaced.
    pub(crate) fn store(&self, held: &Held) -> io::Result<()> {
        let path = self.pem(&held.issued.hosts[0]);
        write_whole(&path, write(held).as_bytes())
    }

    /// Removes a certificate and what is noted of it.
    pub(crate) fn remove(&self, name: &str) {
        for path in [self.pem(name), self.note(name)] {
            let _ = fs::remove_file(path);
        }
    }

    /// What is noted of a certificate.
    pub(crate) fn noted<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        read_json(&self.note(name))
    }

    /// Notes something of a certificate.
    pub(crate) fn note_down(&self, name: &str, note: &impl Serialize) -> io::Result<()> {
        write_json(&self.note(name), note)
    }

    /// The account at an authority, by the URL of its directory.
    pub(crate) fn account<T: DeserializeOwned>(&self, directory: &str) -> io::Result<Option<T>> {
        read_json(&self.account_file(directory))
    }

    /// Writes the account at an authority.
    pub(crate) fn store_account(
        &self,
        directory: &str,
        account: &impl Serialize,
    ) -> io::Result<()> {
        write_json(&self.account_file(directory), account)
    }

    /// Sets an account aside that the authority does not know.
    pub(crate) fn set_account_aside(&self, directory: &str, problem: &str) {
        set_aside(&self.account_file(directory), problem);
    }

    fn pem(&self, name: &str) -> PathBuf {
        self.certificates.join(format!("{}.pem", stem(name)))
    }

    fn note(&self, name: &str) -> PathBuf {
        self.certificates.join(format!("{}.json", stem(name)))
    }

    pub(crate) fn account_file(&self, directory: &str) -> PathBuf {
        let uri = directory.parse::<http::Uri>().ok();
        let host = uri
            .as_ref()
            .and_then(http::Uri::host)
            .unwrap_or("authority");
        let hash = hash(directory);
        self.accounts.join(format!("{}-{hash}.json", stem(host)))
    }
}

/// Runs work on files where it keeps nothing else waiting.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(io::Error::other(error)),
    }
}

/// The name of a file for a name in a certificate: letters, digits, `-` and `.` as they are, the `*`
/// of a wildcard as `_wildcard`, and all else as its bytes. Two names never share one.
fn stem(name: &str) -> String {
    let (begin, rest) = match name.strip_prefix("*.") {
        Some(rest) => ("_wildcard.", rest),
        None => ("", name),
    };
    let mut stem = begin.to_owned();
    for (n, byte) in rest.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' => stem.push(byte.into()),
            b'.' if n > 0 || !begin.is_empty() => stem.push('.'),
            _ => stem.push_str(&format!("%{byte:02x}")),
        }
    }
    if stem.len() > STEM_MAX {
        stem.truncate(STEM_MAX);
        stem.push('~');
        stem.push_str(&hash(name));
    }
    if stem.is_empty() {
        "%".to_owned()
    } else {
        stem
    }
}

fn hash(text: &str) -> String {
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    let bytes = hash.as_ref()[..8].iter();
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

fn write(held: &Held) -> String {
    let Issued {
        hosts,
        pem,
        authority,
        ..
    } = &*held.issued;
    let hosts = hosts.join(" ");
    let directory = &held.directory;
    format!("{FIRST_LINE}\nHosts: {hosts}\nAuthority: {authority}\nDirectory: {directory}\n{pem}")
}

fn parse(text: &str) -> Result<Held, String> {
    let mut rest = text;
    let mut line = |field: &str| {
        let (line, after) = rest.split_once('\n')?;
        rest = after;
        line.strip_prefix(field)
    };
    let head = (|| {
        line(FIRST_LINE)?;
        Some((line("Hosts: ")?, line("Authority: ")?, line("Directory: ")?))
    })();
    let Some((hosts, authority, directory)) = head else {
        return Err("has not the lines of a certificate's file".to_owned());
    };
    let hosts: Vec<String> = hosts.split_whitespace().map(str::to_owned).collect();
    if hosts.is_empty() {
        return Err("names no host".to_owned());
    }

    let facts = certificate::read(rest, rest).map_err(|problem| format!("has {problem}"))?;
    Ok(Held {
        issued: Arc::new(Issued {
            hosts,
            pem: rest.to_owned(),
            authority: authority.to_owned(),
            not_before_unix_s: facts.not_before_unix_s,
            not_after_unix_s: facts.not_after_unix_s,
        }),
        directory: directory.to_owned(),
        facts,
    })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    match serde_json::from_str(&text) {
        Ok(found) => Ok(Some(found)),
        Err(error) => {
            // The error may quote what it found, and that may be a key.
            let (line, column) = (error.line(), error.column());
            set_aside(path, &format!("is damaged at line {line}, column {column}"));
            Ok(None)
        }
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
    text.push(b'\n');
    write_whole(path, &text)
}

/// The content of a file; `None` if there is none. One that is too large or no text is set aside.
fn read(path: &Path) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    let outcome = File::open(path)
        .and_then(|file| io::Read::take(file, FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(path, "read", &error)),
        Ok(_) => {}
    }
    if bytes.len() as u64 > FILE_BYTES_MAX {
        set_aside(path, "is too large");
        return Ok(None);
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(_) => {
            set_aside(path, "is no text");
            Ok(None)
        }
    }
}

/// Writes a file atomically: readers, also after a crash, see the old or the new content.
fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".");
    new.push(UNFINISHED);
    let new = PathBuf::from(new);
    let written = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&new, path));
    if let Err(error) = written {
        // Half a file is useless, and the disk may be full.
        let _ = fs::remove_file(&new);
        return Err(at(path, "write", &error));
    }
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(|error| at(parent, "write", &error))
}

fn set_aside(path: &Path, problem: &str) {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let outcome = fs::rename(path, &aside);
    let path = path.display();
    match outcome {
        Ok(()) => tracing::warn!("{path} {problem}; it is now {path}.damaged"),
        Err(error) => tracing::warn!(%error, "{path} {problem}, and cannot be renamed"),
    }
}

fn at(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot {what} {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    pub(crate) fn held(hosts: &[&str]) -> Held {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(hosts.clone()).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        let pem = certificate.pem() + &key.serialize_pem();
        let facts = certificate::read(&pem, &pem).unwrap();
        Held {
            issued: Arc::new(Issued {
                hosts,
                pem,
                authority: "ca".to_owned(),
                not_before_unix_s: facts.not_before_unix_s,
                not_after_unix_s: facts.not_after_unix_s,
            }),
            directory: "https://ca.test/dir".to_owned(),
            facts,
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn names_become_safe_and_different_file_names() {
        let long = "a".repeat(250);
        let longer = "a".repeat(251);
        let mut seen = HashSet::new();
        for (name, expected) in [
            ("example.org", Some("example.org")),
            ("*.example.org", Some("_wildcard.example.org")),
            ("_wildcard.example.org", Some("%5fwildcard.example.org")),
            ("2001:db8::1", Some("2001%3adb8%3a%3a1")),
            ("../../etc/passwd", Some("%2e.%2f..%2fetc%2fpasswd")),
            (".", Some("%2e")),
            ("", Some("%")),
            ("%", Some("%25")),
            ("a\0b", Some("a%00b")),
            ("ä.test", Some("%c3%a4.test")),
            ("A.test", Some("%41.test")),
            (&long, None),
            (&longer, None),
        ] {
            let stem = stem(name);
            if let Some(expected) = expected {
                assert_eq!(stem, expected);
            }
            assert!(stem.len() < 230 && !stem.contains('/') && !stem.starts_with('.'));
            assert!(seen.insert(stem), "{name} has a name of its own");
        }
    }

    #[test]
    fn what_is_stored_is_read_again_and_only_its_owner_may() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("acme");
        let dir = Dir::open(&root).unwrap();
        let (one, two) = (held(&["*.b.test", "b.test"]), held(&["a.test"]));
        dir.store(&one).unwrap();
        dir.store(&two).unwrap();
        dir.note_down("a.test", &vec![1, 2]).unwrap();
        dir.store_account("https://ca.test/dir", &"secret").unwrap();

        let dir = Dir::open(&root).unwrap();
        let found = dir.certificates().unwrap();
        let pair = |held: &Held| (held.issued.clone(), held.directory.clone());
        assert_eq!(
            found.iter().map(pair).collect::<Vec<_>>(),
            [pair(&one), pair(&two)]
        );
        assert_eq!(dir.noted("a.test").unwrap(), Some(vec![1, 2]));
        assert_eq!(dir.noted::<()>("b.test").unwrap(), None);
        let account: Option<String> = dir.account("https://ca.test/dir").unwrap();
        assert_eq!(account.as_deref(), Some("secret"));
        assert_eq!(
            dir.account::<String>("https://ca.test/other").unwrap(),
            None
        );

        assert_eq!(mode(&root), 0o700);
        assert_eq!(mode(&dir.accounts), 0o700);
        assert_eq!(mode(&dir.certificates), 0o700);
        assert_eq!(mode(&dir.pem("*.b.test")), 0o600);
        assert_eq!(mode(&dir.note("a.test")), 0o600);
        assert_eq!(mode(&dir.account_file("https://ca.test/dir")), 0o600);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_the_others_are_read() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        dir.store(&held(&["good.test"])).unwrap();
        let whole = write(&held(&["bad.test"]));
        let other_key = write(&held(&["bad.test"]));
        let (certificate, _) = whole.split_once("-----BEGIN PRIVATE").unwrap();
        let (_, key) = other_key.split_once("-----BEGIN PRIVATE").unwrap();
        for damaged in [
            String::new(),
            whole[..whole.len() / 2].to_owned(),
            whole.replace("Hosts: bad.test", "Hosts:"),
            whole.replace("Hosts: bad.test", "Hosts: "),
            whole.replace("Hosts: bad.test", "Hosts: good.test"),
            whole.replace("Authority", "Authorit"),
            format!("{certificate}-----BEGIN PRIVATE{key}"),
            "\0".repeat(5 << 20),
        ] {
            fs::write(dir.pem("bad.test"), &damaged).unwrap();
            let found = dir.certificates().unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].issued.hosts, ["good.test"]);
            assert!(!dir.pem("bad.test").exists());
            let aside = dir.certificates.join("bad.test.pem.damaged");
            assert_eq!(fs::read_to_string(aside).unwrap(), damaged);
        }
        fs::write(dir.pem("bad.test"), [0xff, 0xfe]).unwrap();
        assert_eq!(dir.certificates().unwrap().len(), 1);
        fs::write(dir.note("good.test"), "{").unwrap();
        assert_eq!(dir.noted::<Vec<u8>>("good.test").unwrap(), None);
        assert!(!dir.note("good.test").exists());
    }

    #[test]
    fn an_interrupted_write_leaves_the_former_certificate() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let former = held(&["a.test"]);
        dir.store(&former).unwrap();
        let unfinished = dir.certificates.join("a.test.pem.new");
        fs::write(&unfinished, "half").unwrap();
        let found = dir.certificates().unwrap();
        assert_eq!(found[0].issued, former.issued);
        assert!(!unfinished.exists(), "it is removed");
    }

    #[test]
    fn a_write_that_fails_names_the_file_and_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let former = held(&["a.test"]);
        dir.store(&former).unwrap();
        // A directory in the way fails for root too, whom permissions do not stop.
        let new = dir.certificates.join("a.test.pem.new");
        fs::create_dir(&new).unwrap();
        let error = dir.store(&held(&["a.test"])).unwrap_err().to_string();
        assert!(error.contains("cannot write") && error.contains("a.test.pem"));
        fs::remove_dir(&new).unwrap();
        assert_eq!(dir.certificates().unwrap()[0].issued, former.issued);
    }
}
