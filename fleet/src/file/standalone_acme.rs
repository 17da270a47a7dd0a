//! The certificates that an edge without a fleet file orders for itself, from command-line arguments.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::acme::{
    NAMES_MAX, contact_url, default_authority, directory_problem, name_problem, shown_url,
};
use super::names;
use crate::config::{Acme, AcmeAuthority, AcmeChallenge, OrderedCertificate};
use crate::failure::{Failure, FailureKind};

/// Certificates that an edge without a fleet file orders by ACME.
#[derive(Debug, Clone, Default)]
pub struct StandaloneAcme {
    /// Its hosts; each gets a certificate of its own.
    pub hosts: Vec<String>,
    /// URL of the authority's directory; `None` is the default authority's.
    pub directory: Option<String>,
    /// Authority that the directory's own certificate is verified with (PEM).
    pub ca: Option<PathBuf>,
    /// Resolver that is asked where the hosts lead; `None` is that of the system.
    pub resolver: Option<SocketAddr>,
    /// The operator's mail addresses.
    pub contact: Vec<String>,
}

fn refuse<T>(message: String) -> Result<T, Failure> {
    Err(Failure::new(FailureKind::Usage, message))
}

/// The settings of control for the certificates of these arguments; `None` without hosts.
pub(super) fn check(ordered: StandaloneAcme) -> Result<Option<Acme>, Failure> {
    let StandaloneAcme {
        hosts,
        directory,
        ca,
        resolver,
        contact,
    } = ordered;
    if hosts.is_empty() {
        return Ok(None);
    }
    let mut certificates: Vec<OrderedCertificate> = Vec::new();
    for text in &hosts {
        let hosts = vec![check_host(text)?];
        if !certificates.iter().any(|known| known.hosts == hosts) {
            let challenge = Some(AcmeChallenge::Http);
            certificates.push(OrderedCertificate { hosts, challenge });
        }
    }
    if certificates.len() > NAMES_MAX {
        return refuse(format!(
            "there are {} hosts, and an edge without a fleet file gets certificates for at most {NAMES_MAX}; write a fleet file with [acme]",
            certificates.len()
        ));
    }

    let authority = match directory {
        None => default_authority(),
        Some(directory) => {
            if let Some(problem) = directory_problem(&directory) {
                return refuse(format!(
                    "{} is not the directory of an authority: {problem}; write its URL, such as {}",
                    shown_url(&directory),
                    default_authority().directory
                ));
            }
            of_directory(directory)
        }
    };
    let url = |text: &String| match contact_url(text) {
        Some(url) => Ok(url),
        None => refuse(format!(
            "{text:?} is not a mail address; write one such as ops@example.org"
        )),
    };
    Ok(Some(Acme {
        authorities: vec![AcmeAuthority { ca, ..authority }],
        contact: contact.iter().map(url).collect::<Result<_, _>>()?,
        resolver,
        challenge: None,
        certificates,
    }))
}

/// A host in normal form.
fn check_host(text: &str) -> Result<String, Failure> {
    let host = names::normal(text);
    let wildcard = host
        .strip_prefix("*.")
        .filter(|_| name_problem(&host).is_none());
    if let Some(parent) = wildcard {
        return refuse(format!(
            "{text:?} is a wildcard, for which authorities ask name servers; name hosts such as www.{parent}, or write a fleet file with [acme] (docs/certificates.md)"
        ));
    }
    match name_problem(&host) {
        None => Ok(host),
        Some(problem) => refuse(format!(
            "no certificate can name {text:?}: {problem}; write a host such as www.example.org"
        )),
    }
}

/// The authority of another directory, by the host of its URL.
fn of_directory(directory: String) -> AcmeAuthority {
    let default = default_authority();
    let host = directory.split("://").nth(1).unwrap_or_default();
    let host = host.split(['/', '?']).next().unwrap_or_default();
    let name = match directory == default.directory {
        true => default.name.clone(),
        false => host.to_owned(),
    };
    AcmeAuthority {
        name,
        directory,
        ..default
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(hosts: &[&str]) -> StandaloneAcme {
        StandaloneAcme {
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            ..StandaloneAcme::default()
        }
    }

    #[test]
    fn each_host_gets_a_certificate_of_the_default_authority() {
        let acme = check(of(&["WWW.Example.org.", "example.org", "www.example.org"]));
        let acme = acme.expect("good").expect("there are hosts");
        let hosts: Vec<_> = acme.certificates.iter().map(|one| &one.hosts[..]).collect();
        assert_eq!(hosts, [["www.example.org"], ["example.org"]]);
        assert_eq!(acme.authorities, [default_authority()]);
        assert_eq!(check(of(&[])), Ok(None));

        let own = StandaloneAcme {
            directory: Some("https://127.0.0.1:14000/dir".to_owned()),
            ca: Some("ca.pem".into()),
            contact: vec!["ops@example.org".to_owned()],
            ..of(&["a.test"])
        };
        let acme = check(own).expect("good").expect("there is a host");
        assert_eq!(acme.contact, ["mailto:ops@example.org"]);
        let [authority] = &acme.authorities[..] else {
            panic!("{acme:?}")
        };
        assert_eq!(authority.name, "127.0.0.1:14000");
        assert_eq!(authority.ca, Some("ca.pem".into()));
    }

    #[test]
    fn what_no_authority_certifies_is_refused_with_a_hint() {
        let many: Vec<String> = (0..=NAMES_MAX).map(|n| format!("h{n}.test")).collect();
        let directory = |url: &str| StandaloneAcme {
            directory: Some(url.to_owned()),
            ..of(&["a.test"])
        };
        for (arguments, words) in [
            (of(&["192.0.2.1"]), "it is an address"),
            (of(&["2001:db8::1"]), "it is an address"),
            (of(&["*.example.org"]), "name hosts such as www.example.org"),
            (of(&["*.*.example.org"]), "* stands for one label"),
            (of(&["localhost"]), "no top-level names"),
            (of(&["a_b.example.org"]), "no names with _"),
            (of(&[""]), "no top-level names"),
            (of(&["a.test", "b..test"]), "empty label"),
            (of(&["https://a.test/"]), "write a host such as"),
            (
                of(&many.iter().map(String::as_str).collect::<Vec<_>>()),
                "at most 100",
            ),
            (directory("a.test/dir"), "does not begin with https://"),
            (directory("http://a.test/dir"), "without TLS"),
            (
                directory("https://user:secret@a.test/dir"),
                "this URL is not the directory of an authority: a URL with a user name is not taken; ",
            ),
            (
                StandaloneAcme {
                    contact: vec!["nobody".to_owned()],
                    ..of(&["a.test"])
                },
                "not a mail address",
            ),
        ] {
            let refused = check(arguments).expect_err(words);
            assert_eq!(refused.kind, FailureKind::Usage);
            assert!(refused.message.contains(words), "{refused}");
        }
    }
}
