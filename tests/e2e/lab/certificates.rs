//! Certificates, and openssl as a TLS client.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::fleet::Plan;
use super::process::run;

/// Type of a key, as `openssl req` names it.
pub const ECDSA: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
pub const RSA: [&str; 2] = ["-newkey", "rsa:2048"];

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Pair {
    /// Makes a self-signed certificate for names such as `DNS:a.test,IP:192.0.2.1`.
    pub fn make(directory: &Path, name: &str, kind: &[&str], names: &str) -> Self {
        let pair = Self {
            cert: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
        };
        let (cert, key) = (pair.cert.to_string_lossy(), pair.key.to_string_lossy());
        let subject = format!("/CN={name}");
        let names = format!("subjectAltName={names}");
        let rest = [
            "-nodes", "-days", "30", "-subj", &subject, "-addext", &names, "-out", &cert,
            "-keyout", &key,
        ];
        run("openssl", [&["req", "-x509"], kind, &rest].concat());
        pair
    }

    /// Its section of a fleet file.
    pub fn section(&self) -> String {
        format!(
            "[[certificate]]\ncert = {:?}\nkey = {:?}\n",
            self.cert, self.key
        )
    }

    pub fn cert(&self) -> &str {
        self.cert.to_str().expect("a path of ASCII")
    }
}

/// What `openssl s_client` says about a connection, with `input` on its standard input; it may fail.
pub fn s_client(to: SocketAddr, arguments: &[&str], input: &str) -> String {
    let to = to.to_string();
    let mut child = Command::new("timeout")
        .args(["20", "openssl", "s_client", "-connect", &to])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl runs; tests/run installs it");
    // It may have ended by itself.
    let _ = child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(input.as_bytes());
    let output = child.wait_with_output().expect("openssl ends");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A certification authority of a test.
pub struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    /// Writes its certificate.
    pub fn new(ca: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "authority of a test");
        let key = KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("a certificate");
        std::fs::write(ca, cert.pem()).expect("written");
        Self(Issuer::new(params, key))
    }

    /// Writes a certificate for the fleet's addresses and host, `node.pem`, and its key, `node.key`.
    pub fn write(&self, plan: &Plan, directory: &Path) {
        let hosts = [53, 70, 80, 11, 12, 21, 22].map(|n| plan.block.host(n).to_string());
        let names: Vec<String> = hosts
            .into_iter()
            .chain(["www.demo.test".to_owned()])
            .collect();
        self.write_for(&names, directory);
    }

    /// The same for these names and addresses.
    pub fn write_for(&self, names: &[String], directory: &Path) {
        let params = CertificateParams::new(names).expect("names");
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.0).expect("a certificate");
        std::fs::write(directory.join("node.key"), key.serialize_pem()).expect("written");
        std::fs::write(directory.join("node.pem"), cert.pem()).expect("written");
    }
}
