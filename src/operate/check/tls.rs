//! Settings that TLS makes useless, or that are useless without it.

use nearcast_fleet::config::{Fleet, Node, Site};
use nearcast_fleet::file::Mistake;

use super::{Position, START, Strings, warning};

/// Warnings of settings that have no effect or break what they are for, because of who serves
/// `https` and who does not.
pub(super) fn warnings(fleet: &Fleet, text: &str) -> Vec<Mistake> {
    let places = Places::new(text);
    let mut found = unshown(fleet, &places);
    found.extend(services(fleet, &places));
    found.extend(sites(fleet, &places));
    found
}

/// Whether clients can reach an edge by `https`: at a listener of its own, or at a proxy that states
/// the scheme.
fn serves_https(node: &Node) -> bool {
    !node.listen_tls.is_empty() || !node.trusted_proxies.is_empty()
}

/// Certificates and settings of TLS that no listener uses.
fn unshown(fleet: &Fleet, places: &Places<'_>) -> Vec<Mistake> {
    if fleet.edges().any(|(_, node)| !node.listen_tls.is_empty()) {
        return Vec::new();
    }
    let settings = ["default_host", "version_min"]
        .into_iter()
        .filter_map(|key| {
            let place = places.setting(places.section("[tls]")?, key)?;
            Some((place, format!("tls.{key}: no edge has a listener for TLS")))
        });
    let certificate = fleet.tls.certificates.first().map(|_| {
        let place = places.section("[[certificate]]").map(|line| (line + 1, 1));
        let problem = "certificate: no edge shows it, because none has a listener for TLS";
        (place.unwrap_or(START), problem.to_owned())
    });
    settings
        .chain(certificate)
        .map(|(place, problem)| {
            let hint = "name listeners in listen_tls (without it there is one on port 443 where there is a certificate), or take this out";
            warning(place, problem, hint)
        })
        .collect()
}

/// Addresses for health checks and other edges, which speak plain HTTP, at listeners for TLS.
fn services(fleet: &Fleet, places: &Places<'_>) -> Vec<Mistake> {
    let of_node = |(n, (_, node)): (usize, (_, &Node))| {
        let is_service = |listener: &&std::net::SocketAddr| {
            listener.port() == node.service.port()
                && (listener.ip() == node.service.ip() || listener.ip().is_unspecified())
        };
        let at = node.listen_tls.iter().find(is_service)?;
        let section = places.nodes.get(n).copied();
        let place = section.and_then(|line| places.setting(line, "service"));
        Some(warning(
            place
                .or_else(|| places.strings.first(&node.name))
                .unwrap_or(START),
            format!(
                "service of {}: name servers and other edges ask {} by plain HTTP, and {at} is a listener for TLS: they take the edge for dead",
                node.name, node.service
            ),
            "write an address of listen",
        ))
    };
    fleet.edges().enumerate().filter_map(of_node).collect()
}

/// Sites that promise `https` where clients cannot have it.
fn sites(fleet: &Fleet, places: &Places<'_>) -> Vec<Mistake> {
    let of_site = |(n, site): (usize, &Site)| {
        let (key, promise) = match (site.https.redirect, &site.https.hsts) {
            (true, _) => ("redirect", "clients are redirected to https, which"),
            (false, Some(hsts)) if !hsts.max_age.is_zero() => (
                "hsts",
                "Strict-Transport-Security is for responses over https, which",
            ),
            _ => return None,
        };
        let edges = site.clusters.iter().flat_map(|c| &fleet.clusters[*c].nodes);
        let mut without = edges.clone().filter(|node| !serves_https(node)).peekable();
        let first = &without.peek()?.name;
        let (count, all) = (without.clone().count(), edges.count());
        let who = match (count == all, count) {
            (true, _) => "no edge of the site serves".to_owned(),
            (false, 1) => format!("{first} does not serve"),
            (false, _) => format!("{first} and {} more do not serve", count - 1),
        };
        let section = places.sites.get(n).copied();
        let place = section.and_then(|line| places.setting(line, key));
        Some(warning(
            place
                .or_else(|| places.strings.first(&site.name))
                .unwrap_or(START),
            format!("https.{key} of {}: {promise} {who}", site.name),
            "give the edges a certificate and listen_tls, or name the proxy that ends TLS in trusted_proxies (a proxy that is not trusted is redirected for ever); or take this out",
        ))
    };
    fleet.sites.iter().enumerate().filter_map(of_site).collect()
}

/// Where sections and their settings are written. Lines are counted from 0.
struct Places<'t> {
    lines: Vec<&'t str>,
    /// The headers `[[site]]`, in file order, as the fleet has its sites.
    sites: Vec<usize>,
    /// The headers `[[cluster.node]]`.
    nodes: Vec<usize>,
    strings: Strings,
}

impl<'t> Places<'t> {
    fn new(text: &'t str) -> Self {
        let lines: Vec<&str> = text.lines().collect();
        let all = |header: &str| {
            let is_header = |(n, line): (usize, &&str)| is_header(line, header).then_some(n);
            lines.iter().enumerate().filter_map(is_header).collect()
        };
        Self {
            sites: all("[[site]]"),
            nodes: all("[[cluster.node]]"),
            strings: Strings::new(text),
            lines,
        }
    }

    /// The line of the first section with this header.
    fn section(&self, header: &str) -> Option<usize> {
        self.lines.iter().position(|line| is_header(line, header))
    }

    /// The place of a setting of the section that begins at a line, or of one of its own sections.
    fn setting(&self, header: usize, key: &str) -> Option<Position> {
        let name = self.lines[header].trim().trim_start_matches('[');
        let name = name.split(']').next().unwrap_or_default();
        let is_own = |line: &str| {
            let other = line.trim_start().trim_start_matches('[');
            other
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        let after = self.lines.iter().enumerate().skip(header + 1);
        let mut own =
            after.take_while(|(_, line)| !line.trim_start().starts_with('[') || is_own(line));
        own.find_map(|(n, line)| Some((n + 1, key_in(line, key)? + 1)))
    }
}

fn is_header(line: &str, header: &str) -> bool {
    line.trim_start().starts_with(header)
}

/// Where a line sets a key, in characters from 0.
fn key_in(line: &str, key: &str) -> Option<usize> {
    let is_key = |(at, _): &(usize, &str)| {
        let before = line[..*at].trim_end();
        let is_start = before.is_empty() || before.ends_with(['{', ',', '.']);
        is_start && line[at + key.len()..].trim_start().starts_with('=')
    };
    let (at, _) = line.match_indices(key).find(is_key)?;
    Some(line[..at].chars().count())
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::testing::fleet;

    use super::*;

    const FILE: &str = "[fleet]\nzone = \"cdn.test\"\n\
        [[cluster]]\nname = \"ams\"\nplace = { latitude = 1, longitude = 1 }\n\
        [[cluster.node]]\nname = \"ams-1\"\naddress = \"192.0.2.1\"\n\
        [[cluster.node]]\nname = \"ams-2\"\naddress = \"192.0.2.2\"\nadmin = \"127.0.0.1:9101\"\n\
        [[site]]\nname = \"www\"\norigin = \"http://192.0.2.80\"\n\
        [[site]]\nname = \"shop\"\norigin = \"http://192.0.2.80\"\n[site.https]\n";
    const PAIR: &str = "[[certificate]]\ncert = \"c.pem\"\nkey = \"k.pem\"\n";

    #[test]
    fn what_tls_makes_useless_is_warned_of_at_its_line() {
        let one = "address = \"192.0.2.1\"\n";
        let with_one = |lines: &str| FILE.replace(one, &format!("{one}{lines}"));
        let trusted = "[clients]\ntrusted_proxies = [\"10.0.0.0/8\"]\n";
        let none = "listen_tls = []\n";
        let no_listener = with_one(none).replace("9101\"\n", &format!("9101\"\n{none}"));
        let inline = FILE.replace(
            "[site.https]\n",
            "https = { hsts = \"1d\", redirect = true }\n",
        );
        // Text; the beginning of the line warned of, and words of the warning.
        let table: Vec<(String, &[(&str, &str)])> = vec![
            (FILE.to_owned(), &[]),
            (FILE.to_owned() + PAIR, &[]),
            (
                FILE.to_owned() + "redirect = true\n",
                &[(
                    "redirect",
                    "https.redirect of shop: clients are redirected to https, which no edge of the site serves",
                )],
            ),
            (FILE.to_owned() + "redirect = true\n" + PAIR, &[]),
            (FILE.to_owned() + "redirect = true\n" + trusted, &[]),
            (FILE.to_owned() + "redirect = false\n", &[]),
            (
                FILE.to_owned() + "hsts = \"1d\"\n",
                &[("hsts", "https.hsts of shop")],
            ),
            (FILE.to_owned() + "hsts = \"0s\"\n", &[]),
            (inline, &[("https", "https.redirect of shop")]),
            (
                with_one(none) + "redirect = true\n" + PAIR,
                &[("redirect", "which ams-1 does not serve")],
            ),
            (
                no_listener.clone()
                    + PAIR
                    + "[tls]\nversion_min = \"1.3\"\ndefault_host = \"a.test\"\n",
                &[
                    ("default_host", "tls.default_host: no edge has a listener"),
                    ("version_min", "tls.version_min: no edge has a listener"),
                    ("[[certificate]]", "no edge shows it"),
                ],
            ),
            (
                FILE.to_owned() + "[tls]\nversion_min = \"1.3\"\n",
                &[("version_min", "tls.version_min")],
            ),
            (
                with_one("service = \"192.0.2.1:443\"\n") + PAIR,
                &[(
                    "service",
                    "service of ams-1: name servers and other edges ask 192.0.2.1:443",
                )],
            ),
            (
                with_one(
                    "listen = \"192.0.2.1:8080\"\nlisten_tls = \"0.0.0.0:8443\"\nservice = \"192.0.2.1:8443\"\n",
                ) + PAIR,
                &[("service", "0.0.0.0:8443 is a listener for TLS")],
            ),
            (with_one("service = \"192.0.2.1:80\"\n") + PAIR, &[]),
        ];
        for (text, expected) in table {
            let found = warnings(&fleet(&text), &text);
            assert_eq!(found.len(), expected.len(), "{text}\n{found:?}");
            for (mistake, (line, words)) in found.iter().zip(expected) {
                let at = text.lines().nth(mistake.line - 1).expect("a line");
                assert!(at.starts_with(line), "{at}: {mistake:?}");
                assert!(mistake.problem.contains(words), "{mistake:?}");
                assert!(!mistake.hint.is_empty());
            }
        }
    }

    #[test]
    fn a_key_is_found_in_tables_and_not_in_words() {
        for (line, expected) in [
            ("redirect = true", Some(0)),
            ("  redirect=true", Some(2)),
            ("https = { hsts = \"1d\", redirect = true }", Some(23)),
            ("https.redirect = true", Some(6)),
            ("no_redirect = true", None),
            ("redirects = true", None),
            ("# redirect = true", None),
            ("name = \"redirect\"", None),
        ] {
            assert_eq!(key_in(line, "redirect"), expected, "{line}");
        }
    }
}
