//! The certificates that a fleet file wants to be ordered: which names, and how the authority is
//! shown that they are ours.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::config::{Acme, AcmeChallenge, Fleet};

/// A certificate that control orders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedCertificate {
    /// Its names, lower case: hosts and wildcards. The first one names it.
    pub hosts: Vec<String>,
    /// How the authority is shown that they are ours.
    pub challenge: AcmeChallenge,
}

/// The certificates that control orders: those with a section of their own, then one for each host
/// of a site that none of them covers. Empty without `[acme]`.
///
/// The challenge that a section asks for is used. Otherwise it is `dns` for wildcards, and where
/// this fleet's name servers answer for the challenges of all names; `http` elsewhere.
pub fn wanted_certificates(fleet: &Fleet) -> Vec<WantedCertificate> {
    let Some(acme) = &fleet.acme else {
        return Vec::new();
    };
    let served = ServedNames::of(fleet);
    let mut wanted: Vec<WantedCertificate> = acme
        .certificates
        .iter()
        .map(|one| WantedCertificate {
            challenge: one
                .challenge
                .unwrap_or_else(|| usual_challenge(&served, acme, &one.hosts)),
            hosts: one.hosts.clone(),
        })
        .collect();

    // Exact names and the parents of wildcards, as there may be thousands of hosts.
    let ordered: HashSet<String> = wanted.iter().flat_map(|w| w.hosts.clone()).collect();
    let is_ordered = |host: &str| {
        ordered.contains(host)
            || host
                .split_once('.')
                .is_some_and(|(_, parent)| ordered.contains(&format!("*.{parent}")))
    };
    let sites = fleet
        .sites
        .iter()
        .filter(|site| !site.https.brings_certificates);
    for host in sites.flat_map(|site| &site.hosts) {
        if uncertifiable(host).is_none() && !is_ordered(host) {
            let hosts = vec![host.clone()];
            wanted.push(WantedCertificate {
                challenge: usual_challenge(&served, acme, &hosts),
                hosts,
            });
        }
    }
    wanted
}

/// Whether a name of a certificate stands for a host: it is the host, or the wildcard above it
/// (RFC 6125 section 6.4.3). A wildcard covers itself.
pub fn covers(name: &str, host: &str) -> bool {
    name == host
        || name
            .strip_prefix("*.")
            .is_some_and(|parent| host.split_once('.').is_some_and(|(_, rest)| rest == parent))
}

/// The hosts that one cluster serves, to find the certificates that its edges show.
#[derive(Debug)]
pub struct ClusterHosts<'f> {
    hosts: HashSet<&'f str>,
    /// Names one label above them.
    parents: HashSet<&'f str>,
    steered: Vec<String>,
    /// A site of the cluster serves any host.
    has_any: bool,
}

impl<'f> ClusterHosts<'f> {
    /// Of the cluster with this number.
    pub fn of(fleet: &'f Fleet, cluster: usize) -> Self {
        let sites = || {
            fleet
                .sites
                .iter()
                .filter(|site| site.clusters.contains(&cluster))
        };
        let hosts: HashSet<&str> = sites()
            .flat_map(|site| site.hosts.iter().map(String::as_str))
            .collect();
        Self {
            parents: hosts
                .iter()
                .filter_map(|host| Some(host.split_once('.')?.1))
                .collect(),
            has_any: hosts.contains("*"),
            steered: sites().map(|site| fleet.steered_name(site)).collect(),
            hosts,
        }
    }

    /// Whether a certificate with these names is shown by the cluster's edges.
    pub fn show(&self, names: &[String]) -> bool {
        self.has_any
            || names.iter().any(|name| {
                self.hosts.contains(name.as_str())
                    || name
                        .strip_prefix("*.")
                        .is_some_and(|parent| self.parents.contains(parent))
                    || self.steered.iter().any(|host| covers(name, host))
            })
    }
}

/// The host of a challenge: a wildcard is proven at the name that it is below (RFC 8555 section
/// 7.1.3).
pub fn challenged_host(name: &str) -> &str {
    name.strip_prefix("*.").unwrap_or(name)
}

/// Why no authority certifies a host of a site; `None` for a name with two labels or more that can be
/// certified.
pub fn uncertifiable(host: &str) -> Option<&'static str> {
    if host.contains('*') {
        Some("it stands for any host")
    } else if host.parse::<IpAddr>().is_ok() {
        Some("it is an address")
    } else if host == "localhost" || host.ends_with(".localhost") {
        Some("it is a name of this machine alone")
    } else if !host.contains('.') {
        Some("authorities certify no top-level names")
    } else if host.contains('_') {
        Some("authorities certify no names with _")
    } else {
        None
    }
}

fn usual_challenge(served: &ServedNames<'_>, acme: &Acme, hosts: &[String]) -> AcmeChallenge {
    let has_wildcard = hosts.iter().any(|host| host.starts_with("*."));
    match acme.challenge {
        Some(challenge) if !has_wildcard => challenge,
        _ if has_wildcard => AcmeChallenge::Dns,
        _ if hosts.iter().all(|host| served.has_challenge(host)) => AcmeChallenge::Dns,
        _ => AcmeChallenge::Http,
    }
}

/// The names that this fleet's name servers are responsible for.
struct ServedNames<'f> {
    /// The apex of each zone, with the names in it that are delegated to others.
    zones: HashMap<&'f str, HashSet<&'f str>>,
}

impl<'f> ServedNames<'f> {
    fn of(fleet: &'f Fleet) -> Self {
        let mut zones: HashMap<&str, HashSet<&str>> = HashMap::new();
        if !fleet.name_servers.is_empty() {
            zones.insert(&fleet.zone, HashSet::new());
            for zone in &fleet.zones {
                let cuts = zone
                    .records
                    .iter()
                    .filter(|record| record.rtype == "NS" && record.owner != zone.name)
                    .map(|record| record.owner.as_str());
                zones.entry(&zone.name).or_default().extend(cuts);
            }
        }
        Self { zones }
    }

    /// Whether `_acme-challenge.<host>` is in a zone that is served here, and not below a delegation
    /// to others.
    fn has_challenge(&self, host: &str) -> bool {
        let name = format!("_acme-challenge.{}", challenged_host(host));
        // From the name up to the root.
        let above = std::iter::successors(Some(name.as_str()), |name| match name.split_once('.') {
            Some((_, parent)) => Some(parent),
            None => (!name.is_empty()).then_some(""),
        });
        let above: Vec<&str> = above.collect();
        let Some(apex) = above.iter().position(|name| self.zones.contains_key(name)) else {
            return false;
        };
        let cuts = &self.zones[above[apex]];
        !above[..apex].iter().any(|name| cuts.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FleetText;

    /// A fleet whose name server serves `cdn.test`, `own.test` without `_acme-challenge.away`, and the
    /// delegated `_acme-challenge.www.other.test`.
    fn fleet(acme: &str, sites: &str, certificates: &str) -> Fleet {
        FleetText::new()
            .control("127.0.0.1:7700")
            .name_server("ns1", "127.0.0.1:5300")
            .text_after(&format!("[acme]\nterms_agreed = true\n{acme}"))
            .text_after(certificates)
            .cluster("ams", &["192.0.2.1"])
            .text_after(sites)
            .text_after(
                "[[zone]]\nname = \"own.test\"\nrecords = [\"away NS ns.away.test.\"]\n\
                 [[zone]]\nname = \"_acme-challenge.www.other.test\"",
            )
            .fleet()
    }

    fn site(name: &str, hosts: &str, lines: &str) -> String {
        format!(
            "[[site]]\nname = \"{name}\"\norigin = \"http://127.0.0.1:1\"\nhosts = [{hosts}]\n{lines}\n"
        )
    }

    fn of(fleet: &Fleet) -> Vec<String> {
        wanted_certificates(fleet)
            .into_iter()
            .map(|w| format!("{:?} {}", w.challenge, w.hosts.join(" ")))
            .collect()
    }

    #[test]
    fn each_host_gets_a_certificate_and_the_challenge_follows_from_its_zone() {
        let sites = site(
            "a",
            r#""www.own.test", "x.away.own.test", "www.other.test", "mail.other.test", "a.cdn.test""#,
            "",
        ) + &site("b", r#""*", "192.0.2.9", "localhost", "a_b.own.test""#, "")
            + &site("c", r#""files.own.test""#, "[site.https]\nacme = false");
        let table: [(&str, &str, &[&str]); 5] = [
            (
                "",
                "",
                &[
                    "Dns www.own.test",
                    "Http x.away.own.test",
                    "Dns www.other.test",
                    "Http mail.other.test",
                    "Dns a.cdn.test",
                ],
            ),
            (
                "challenge = \"dns\"",
                "",
                &[
                    "Dns www.own.test",
                    "Dns x.away.own.test",
                    "Dns www.other.test",
                    "Dns mail.other.test",
                    "Dns a.cdn.test",
                ],
            ),
            (
                "challenge = \"http\"",
                "[[certificate]]\nhosts = [\"*.own.test\", \"www.other.test\"]\nchallenge = \"dns\"",
                &[
                    "Dns *.own.test www.other.test",
                    "Http x.away.own.test",
                    "Http mail.other.test",
                    "Http a.cdn.test",
                ],
            ),
            (
                "",
                "[[certificate]]\nhosts = \"*.other.test\"\n[[certificate]]\nhosts = [\"www.own.test\", \"a.cdn.test\"]\nchallenge = \"http\"",
                &[
                    "Dns *.other.test",
                    "Http www.own.test a.cdn.test",
                    "Http x.away.own.test",
                ],
            ),
            (
                "",
                "[[certificate]]\nhosts = [\"www.own.test\", \"mail.other.test\"]",
                &[
                    "Http www.own.test mail.other.test",
                    "Http x.away.own.test",
                    "Dns www.other.test",
                    "Dns a.cdn.test",
                ],
            ),
        ];
        for (acme, certificates, expected) in table {
            assert_eq!(
                of(&fleet(acme, &sites, certificates)),
                expected,
                "{acme} {certificates}"
            );
        }
        let without = FleetText::new().cluster("ams", &["192.0.2.1"]).fleet();
        assert_eq!(wanted_certificates(&without), []);
    }

    #[test]
    fn the_root_is_a_zone_too() {
        let fleet = FleetText::new()
            .name_server("ns1", "127.0.0.1:5300")
            .cluster("ams", &["192.0.2.1"])
            .text_after(
                "[[zone]]\nname = \".\"\nrecords = [\"test NS ns.nic.test.\", \"ns.nic.test A 192.0.2.9\"]",
            )
            .fleet();
        let served = ServedNames::of(&fleet);
        for (host, expected) in [
            ("www.example", true),
            ("www.a.test", false),
            ("www.cdn.test", true),
        ] {
            assert_eq!(served.has_challenge(host), expected, "{host}");
        }
    }

    #[test]
    fn without_name_servers_edges_answer() {
        let fleet = FleetText::new()
            .control("127.0.0.1:7700")
            .text_after("[acme]\nterms_agreed = true")
            .cluster("ams", &["192.0.2.1"])
            .text_after(&site("a", "\"a.cdn.test\"", ""))
            .fleet();
        assert_eq!(of(&fleet), ["Http a.cdn.test"]);
    }

    #[test]
    fn edges_show_the_certificates_of_their_clusters_sites() {
        let clustered =
            |name, hosts, cluster: &str| site(name, hosts, &format!("clusters = [\"{cluster}\"]"));
        let sites = clustered("a", "\"www.a.test\"", "ams")
            + &clustered("b", "\"www.b.test\"", "nyc")
            + &clustered("c", "\"*\"", "sin");
        let fleet = FleetText::new()
            .cluster("ams", &["192.0.2.1"])
            .cluster("nyc", &["192.0.2.2"])
            .cluster("sin", &["192.0.2.3"])
            .text_after(&sites)
            .fleet();
        for (names, expected) in [
            (&["www.a.test"][..], [true, false, true]),
            (&["*.a.test"], [true, false, true]),
            (&["*.cdn.test"], [true, true, true]),
            (&["b.cdn.test"], [false, true, true]),
            (&["a.test", "www.b.test"], [false, true, true]),
            (&["*.www.a.test"], [false, false, true]),
        ] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let shown = [0, 1, 2].map(|n| ClusterHosts::of(&fleet, n).show(&names));
            assert_eq!(shown, expected, "{names:?}");
        }
    }

    #[test]
    fn a_wildcard_covers_one_label() {
        for (name, host, expected) in [
            ("www.a.test", "www.a.test", true),
            ("*.a.test", "www.a.test", true),
            ("*.a.test", "*.a.test", true),
            ("*.a.test", "a.test", false),
            ("*.a.test", "x.www.a.test", false),
            ("*.a.test", "a", false),
            ("a.test", "www.a.test", false),
        ] {
            assert_eq!(covers(name, host), expected, "{name} {host}");
        }
    }
}
