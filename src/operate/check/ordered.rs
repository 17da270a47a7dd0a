//! What keeps control from ordering certificates, and edges from getting them, as far as the fleet
//! file shows it.

use std::path::Path;

use nearcast_fleet::config::{Acme, AcmeChallenge, Fleet, Node};
use nearcast_fleet::file::Mistake;
use nearcast_fleet::wanted_certificates::{covers, uncertifiable, wanted_certificates};
use nearcast_net::tls::ClientRoots;

use super::{START, Strings, is_loopback, place_of, warning};
use crate::text::plural;

/// The port at which authorities ask for the files of challenges (RFC 8555 section 8.3).
const HTTP_PORT: u16 = 80;

/// Warnings of hosts without a certificate, of keys that cannot reach edges, and of files and
/// listeners that are missing. Reads the files of `[[acme.authority]]`.
pub(super) fn warnings(fleet: &Fleet, text: &str) -> Vec<Mistake> {
    let Some(acme) = &fleet.acme else {
        return Vec::new();
    };
    let strings = Strings::new(text);
    let mut found = uncertified(fleet, &strings);
    found.extend(readable_keys(fleet, text));
    found.extend(files(acme, text));
    found.extend(unanswered(fleet, &strings));
    found
}

/// Hosts that no certificate is ordered for. Where there are certificates of files too, those may
/// cover them.
fn uncertified(fleet: &Fleet, strings: &Strings) -> Vec<Mistake> {
    if !fleet.tls.certificates.is_empty() {
        return Vec::new();
    }
    let ordered: Vec<String> = fleet
        .acme
        .iter()
        .flat_map(|acme| &acme.certificates)
        .flat_map(|one| one.hosts.iter().cloned())
        .collect();
    let sites = fleet
        .sites
        .iter()
        .filter(|site| !site.https.brings_certificates);
    let warn = |host: &String| {
        let reason = uncertifiable(host)?;
        // A name with _ may be below a wildcard.
        if ordered.iter().any(|name| covers(name, host)) {
            return None;
        }
        let hint = match host.as_str() {
            "*" => {
                "list the hosts that are to have https, or name their certificates in [[certificate]]"
            }
            _ => {
                "clients cannot reach it over https; name a certificate of files for it in [[certificate]], or leave it if it is served over http alone"
            }
        };
        Some(warning(
            strings.first(host).unwrap_or(START),
            format!("control orders no certificate for the host {host:?}: {reason}"),
            hint,
        ))
    };
    sites
        .flat_map(|site| &site.hosts)
        .filter_map(warn)
        .collect()
}

/// Edges take no private keys by plain HTTP over a network.
fn readable_keys(fleet: &Fleet, text: &str) -> Option<Mistake> {
    let url = &fleet.control.as_ref()?.url;
    let is_https = url
        .get(..8)
        .is_some_and(|s| s.eq_ignore_ascii_case("https://"));
    if is_https || is_loopback(url) {
        return None;
    }
    Some(warning(
        place_of(text, |line| line.find("[control]")),
        format!(
            "control orders certificates, and edges ask it at {url}: by plain HTTP they take no private keys, so they show no certificate"
        ),
        "name cert and key in [control], and the authority of that certificate as ca in [fleet]; see docs/fleet-file.md",
    ))
}

/// Files of authorities that this machine does not have, or that cannot be used.
fn files(acme: &Acme, text: &str) -> Vec<Mistake> {
    let mut found = Vec::new();
    let mut warn = |path: &Path, setting: &str, authority: &str, problem: String| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        found.push(warning(
            place_of(text, |line| line.find(&*file)),
            format!("acme.authority.{setting} of {authority}: {problem}"),
            "control asks this authority only where it can read the file; leave it if control is on another machine, or as another user, and the file is there",
        ));
    };
    for authority in &acme.authorities {
        if let Some(ca) = &authority.ca
            && let Err(error) = ClientRoots::load(Some(ca))
        {
            warn(ca, "ca", &authority.name, error.to_string());
        }
        if let Some(account) = &authority.external_account
            && let Err(error) = std::fs::read(&account.hmac_key_file)
        {
            let path = &account.hmac_key_file;
            let problem = format!("cannot read {}: {error}", path.display());
            warn(path, "eab_hmac_key_file", &authority.name, problem);
        }
    }
    found
}

/// Certificates whose challenge is a file at port 80, where edges do not listen: one warning for
/// each site.
fn unanswered(fleet: &Fleet, strings: &Strings) -> Vec<Mistake> {
    let by_http: Vec<String> = wanted_certificates(fleet)
        .into_iter()
        .filter(|wanted| wanted.challenge == AcmeChallenge::Http)
        .flat_map(|wanted| wanted.hosts)
        .collect();
    let by_http: std::collections::HashSet<&str> = by_http.iter().map(String::as_str).collect();
    let is_deaf = |node: &&Node| {
        // Proxies in front have listeners of their own.
        node.trusted_proxies.is_empty() && !node.listen.iter().any(|at| at.port() == HTTP_PORT)
    };
    let mut found = Vec::new();
    for site in &fleet.sites {
        let mut hosts = site.hosts.iter().filter(|h| by_http.contains(h.as_str()));
        let Some(host) = hosts.next() else { continue };
        let nodes = site.clusters.iter().flat_map(|c| &fleet.clusters[*c].nodes);
        let deaf: Vec<&Node> = nodes.filter(is_deaf).collect();
        let [node, others @ ..] = &deaf[..] else {
            continue;
        };
        let more = |count: usize, what: &str| match count {
            0 => String::new(),
            count => format!(" and {}", plural(count, what)),
        };
        found.push(warning(
            strings.first(host).unwrap_or(START),
            format!(
                "the certificate of {host}{} is ordered by http-01, for which authorities ask port {HTTP_PORT}, and {}{} listens there for no plain HTTP",
                more(hosts.count(), "other host"),
                node.name,
                more(others.len(), "other edge"),
            ),
            "add an address with port 80 to listen of the edges, or choose the challenge dns; leave it if a router passes port 80 on to listen",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::testing::fleet;

    use super::*;

    const FILE: &str = r#"[fleet]
zone = "cdn.test"
node_key = "a key that only this test knows"
[control]
listen = "127.0.0.1:7700"
[acme]
terms_agreed = true
[[cluster]]
name = "ams"
place = { latitude = 1, longitude = 1 }
[[cluster.node]]
name = "ams-1"
address = "192.0.2.1"
[[site]]
name = "www"
hosts = ["www.example.org"]
origin = "http://192.0.2.80"
"#;

    /// Checks that one warning is at the line that begins so, and has these words and those of a
    /// hint; none where `line` is empty.
    fn expect(text: &str, line: &str, words: &str, hint: &str) {
        let found = warnings(&fleet(text), text);
        if line.is_empty() {
            assert_eq!(found, [], "{text}");
            return;
        }
        let [mistake] = &found[..] else {
            panic!("{text}\n{found:?}")
        };
        let at = text.lines().nth(mistake.line - 1).expect("a line");
        assert!(at.starts_with(line), "{at}: {mistake:?}");
        assert!(mistake.problem.contains(words), "{mistake:?}");
        assert!(mistake.hint.contains(hint), "{mistake:?}");
    }

    #[test]
    fn hosts_that_get_no_certificate_are_warned_of() {
        let hosts = |hosts: &str| FILE.replace("[\"www.example.org\"]", hosts);
        let https = "clients cannot reach it over https";
        for (host, words, hint) in [
            ("*", "\"*\": it stands for any host", "list the hosts"),
            ("192.0.2.7", "it is an address", https),
            ("localhost", "a name of this machine", https),
            ("a.localhost", "a name of this machine", https),
            ("intranet", "no top-level names", https),
            ("a_b.example.org", "no names with _", https),
        ] {
            expect(&hosts(&format!("[\"{host}\"]")), "hosts", words, hint);
        }
        expect(FILE, "", "", "");
        let none = hosts("[\"intranet\"]").replace("[acme]\nterms_agreed = true\n", "");
        expect(&none, "", "", "");
        let files = "[[certificate]]\ncert = \"c.pem\"\nkey = \"k.pem\"\n";
        expect(&(hosts("[\"intranet\"]") + files), "", "", "");
        let own = hosts("[\"intranet\"]") + "[site.https]\nacme = false\n";
        expect(&own, "", "", "");
    }

    #[test]
    fn keys_that_edges_do_not_take_are_warned_of() {
        let control = |lines: &str| FILE.replace("listen = \"127.0.0.1:7700\"\n", lines);
        let elsewhere = control("listen = \"192.0.2.5:7700\"\n");
        let words = "edges ask it at http://192.0.2.5:7700";
        expect(
            &elsewhere,
            "[control]",
            words,
            "name cert and key in [control]",
        );
        let pair = "listen = \"192.0.2.5:7700\"\ncert = \"c.pem\"\nkey = \"k.pem\"\n";
        expect(&control(pair), "", "", "");
        let none = elsewhere.replace("[acme]\nterms_agreed = true\n", "");
        expect(&none, "", "", "");
    }

    #[test]
    fn files_of_authorities_that_cannot_be_read_are_warned_of() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("some.pem");
        let of = |lines: &str| {
            let lines = lines.replace("FILE", &file.display().to_string());
            let authority = format!(
                "[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"own\"\n\
                 directory = \"https://ca.test/dir\"\n{lines}\n"
            );
            FILE.replace("[acme]\nterms_agreed = true\n", &authority)
        };
        let (ca, account) = (
            of("ca = \"FILE\""),
            of("eab_key_id = \"k\"\neab_hmac_key_file = \"FILE\""),
        );
        let hint = "if control is on another machine";
        expect(&ca, "ca =", "acme.authority.ca of own: ", hint);
        let words = "acme.authority.eab_hmac_key_file of own: cannot read";
        expect(&account, "eab_hmac_key_file", words, hint);
        std::fs::write(&file, "no certificate").expect("written");
        expect(&ca, "ca =", "acme.authority.ca of own: ", hint);
        expect(&account, "", "", "");
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(["ca.test".to_owned()]).expect("a name");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        std::fs::write(&file, pem).expect("written");
        expect(&ca, "", "", "");
    }

    #[test]
    fn edges_that_do_not_listen_where_authorities_ask_are_warned_of() {
        let node = |lines: &str| {
            let one = "address = \"192.0.2.1\"\n";
            FILE.replace(one, &format!("{one}{lines}"))
        };
        let elsewhere = node("listen = \"192.0.2.1:8080\"\n");
        let words = "of www.example.org is ordered by http-01";
        expect(&elsewhere, "hosts", words, "port 80");
        expect(
            &elsewhere,
            "hosts",
            "and ams-1 listens there for no",
            "challenge dns",
        );
        let both = node("listen = [\"192.0.2.1:8080\", \"192.0.2.1:80\"]\n");
        expect(&both, "", "", "");
        let trusted = "[clients]\ntrusted_proxies = [\"10.0.0.0/8\"]\n";
        expect(&(elsewhere.clone() + trusted), "", "", "");
        let by_dns = elsewhere
            .replace("\"www.example.org\"", "\"www.cdn.test\"")
            .replace(
                "[[cluster]]",
                "[[name_server]]\nname = \"ns1\"\nlisten = \"127.0.0.1:5300\"\n[[cluster]]",
            );
        expect(&by_dns, "", "", "");
    }
}
