//! The fleet file's parser against files in use, wrong files, and any text at all.

mod former_names;
mod page;
mod properties;
mod wrong;

use std::net::IpAddr;
use std::time::Duration;

use super::catalogue::SETTINGS;
use super::*;
use crate::clock::FleetClock;
use crate::config::*;
use crate::units::Bytes;

fn fleet_of(text: &str) -> Fleet {
    parse(text, Path::new("/etc/nearcast")).unwrap_or_else(|m| panic!("{}", describe("text", &m)))
}

/// The smallest file there is.
const SMALLEST: &str = r#"[fleet]
zone = "cdn.example.org"

[[cluster]]
name = "ams"
place = { latitude = 52.37, longitude = 4.90 }

[[cluster.node]]
name = "ams-1"
address = "192.0.2.1"

[[site]]
name = "www"
hosts = ["www.example.org"]
origin = "http://origin.example.org"
"#;

#[test]
fn the_smallest_file_is_filled_with_defaults() {
    let fleet = fleet_of(SMALLEST);
    assert_eq!(fleet.state_dir, Path::new("/var/lib/nearcast"));
    assert_eq!(fleet.hostmaster, "hostmaster@cdn.example.org");
    assert_eq!(
        (fleet.control, fleet.clock, fleet.report_interval),
        (None, FleetClock::REAL, Duration::from_secs(2))
    );
    let cluster = &fleet.clusters[0];
    assert_eq!(
        (
            cluster.label.as_str(),
            cluster.time_zone.as_str(),
            cluster.weight
        ),
        ("ams", "UTC", 1)
    );
    assert_eq!(cluster.push_share, Bytes(1 << 29));
    let node = &cluster.nodes[0];
    assert_eq!(
        (node.listen[0].to_string(), node.service.to_string()),
        ("192.0.2.1:80".into(), "192.0.2.1:80".into())
    );
    assert_eq!(
        (node.memory, node.disk, node.admin.map(|a| a.port())),
        (Bytes(64 << 20), Bytes(1 << 30), Some(9100))
    );
    let site = &fleet.sites[0];
    assert_eq!(
        (site.policy, site.ttl, &site.clusters[..]),
        (SelectionPolicy::Geo, Duration::from_secs(20), &[0][..])
    );
    assert_eq!(site.cache, CachePolicy::default());
}

#[test]
fn the_deployed_file_is_read() {
    let text = include_str!("../../../../deploy/fleet.toml").replace(
        "node_key_file = \"/keys/node.key\"\nnode_keys = \"own\"",
        "node_key = \"sixteen characters\"",
    );
    let fleet = fleet_of(&text);
    assert_eq!(fleet.zone_name_servers, [2]);
    assert_eq!(fleet.name_servers[2].host, "ns1.cdn.test");
    assert_eq!(fleet.zones[0].name, "");
    assert_eq!(
        fleet.zones[0].records[0],
        Record {
            owner: "test".into(),
            ttl: 300,
            rtype: "NS".into(),
            data: "ns.nic.test.".into()
        }
    );
    assert_eq!(fleet.zones[2].records[2].owner, "demo.test");
    assert_eq!(
        fleet.control.as_ref().map(|c| c.url.as_str()),
        Some("http://172.30.53.5:7700")
    );
    assert_eq!(fleet.clusters.len(), 3);
    assert_eq!(fleet.clusters[1].place.longitude, -74.01);
    assert_eq!(fleet.clusters[0].fill_rate_bits, 200_000_000);
    assert_eq!(fleet.sites[1].policy, SelectionPolicy::Rtt);
    assert_eq!(
        fleet
            .edge("sin-2")
            .map(|(c, n)| (c.name.as_str(), n.threads)),
        Some(("sin", Some(1)))
    );
}

/// What `tests/e2e/lab/fleet.rs` writes.
const LAB: &str = r#"[fleet]
zone = "cdn.test"
node_key = "a key that only this test knows"
state_dir = "state"
report_interval = "200ms"

[control]
listen = "127.9.0.70:7700"
admin = "127.9.0.70:9100"

[[origin_node]]
name = "origin"
listen = "127.9.0.80:8000"
admin = "127.9.0.80:9100"
root = "content"

[[name_server]]
name = "ns1"
listen = "127.9.0.53:5300"
admin = "127.9.0.53:9100"

[[cluster]]
name = "ams"
place = { latitude = 52.37, longitude = 4.9 }
time_zone = "Europe/Amsterdam"
off_peak = "02:00-06:00"
fill_rate = "400Mbit/s"

[[cluster.node]]
name = "ams-1"
address = "127.9.0.11"
listen = "127.9.0.11:8080"
admin = "127.9.0.11:9100"
memory = "16MiB"
disk = "64MiB"
threads = 1
[[cluster.node]]
name = "ams-2"
address = "127.9.0.12"
listen = "127.9.0.12:8080"
admin = "127.9.0.12:9100"
memory = "16MiB"
disk = "64MiB"
threads = 1

[[site]]
name = "www"
hosts = ["www.demo.test"]
origin = "http://127.9.0.80:8000"
steering = "geo"
ttl = "5s"

[[zone]]
name = "demo.test"
records = ["www CNAME www.cdn.test.", "@ MX 10 mail", "mail A 192.0.2.25", "@ TXT \"v=spf1 mx -all\""]
"#;

/// A file that has every setting.
const EVERYTHING: &str = r#"[fleet]
zone = "cdn.test"
hostmaster = "dns@demo.test"
state_dir = "state"
user = "cdn:www-data"
node_key = "a key that only this test knows"
node_keys = "shared"
report_interval = "1s"
name_servers = ["ns2"]
admin_hosts = ["*.Nodes.demo.test"]
admin_cert = "keys/node.pem"
admin_key = "/keys/node.key"
ca = "keys/ca.pem"
drain_max = "2m"
dns_withdrawal = "15s"
finish_max = "10m"

[clock]
speed = 360
anchor_real = 2026-01-01T00:00:00Z
anchor_fleet = 1767229200.5

[clients]
head_max = "32KiB"
fields_max = 200
head_timeout = "5s"
idle_timeout = "1m"
write_timeout = "20s"
connections_max = 5000
trusted_proxies = "10.0.0.0/8"
handshake_timeout = "4s"
http2 = false
http2_streams_max = 50
http3 = false
http3_streams_max = 60

[tls]
default_host = "WWW.demo.test."
version_min = "1.3"

[[certificate]]
cert = "tls/www.pem"
key = "/etc/ssl/www.key"

[[certificate]]
hosts = ["*.Demo.test.", "demo.test"]
challenge = "dns"

[acme]
terms_agreed = true
contact = ["ops@demo.test", "mailto:tls@demo.test"]
resolver = "192.0.2.99:53"
challenge = "http"

[[acme.authority]]
name = "own"
directory = "https://Acme.demo.test:14000/dir"
ca = "keys/acme.pem"
eab_key_id = "kid-1"
eab_hmac_key_file = "/keys/eab.key"
profile = "shortlived"

[[acme.authority]]
name = "letsencrypt"

[access_log]
path = "/var/log/cdn/access.log"
format = "combined"
sample = "10%"
client = "truncated"
rotate_at = "1GiB"
kept = 12

[control]
name = "brain"
listen = "0.0.0.0:7700"
url = "https://control.demo.test:7700/"
cert = "control.pem"
key = "control.key"
hosts = ["Console.demo.test", "*"]
steering_origins = ["https://WWW.demo.test:443", "http://127.0.0.1:8080/"]
admin = "127.0.0.1:9170"

[control.push]
enabled = true
half_life = "12h"
expected_requests_min = 0.5

[steering]
geo_db = "/geo/city.mmdb"
rtt_max_age = "5m"
rtt_explore = "2.5%"
ramp = "45s"
rtt_bound = false

[steering.health]
path = "/health"
interval = "1s"
timeout = "900ms"
timeout_min = "100ms"
fall = 3
rise = 1
jitter = "20%"

[[origin_node]]
name = "origin"
listen = "127.0.0.1:8000"
admin = "127.0.0.1:9180"
root = "content"
key_generation = 4

[[origin_node.rule]]
pattern = "img/**"
cache_control = "max-age=3600, public"

[[name_server]]
name = "ns1"
listen = ["127.0.0.1:5300", "[::1]:5300"]

[[name_server]]
name = "ns2"
key_generation = 5
host = "NS2.demo.test."
listen = "0.0.0.0:53"
addresses = ["192.0.2.53", "2001:db8::53"]
admin = "0.0.0.0:9153"
admin_url = "https://192.0.2.53:9153"

[[cluster]]
name = "ams"
label = "Amsterdam"
place = { latitude = 52.37, longitude = 4.9 }
time_zone = "Europe/Amsterdam"
off_peak = "22:30-05:00"
fill_rate = "1.5Gbit/s"
push_share = "25%"
weight = 3
key_generation = 2

[[cluster.node]]
name = "ams-1"
addresses = ["192.0.2.1", "2001:db8::1"]
listen = ["0.0.0.0:8080", "[::]:8080", "0.0.0.0:8081"]
listen_tls = ["0.0.0.0:8443", "[::]:8443"]
proxy_protocol = "0.0.0.0:8081"
service = "10.0.0.1:8080"
admin = "10.0.0.1:9100"
memory = "8MiB"
disk = "32MiB"
threads = 2
capacity = "1Gbit/s"
key_generation = 3

[cluster.node.clients]
fields_max = 100
idle_timeout = "15s"
connections_max = 800
trusted_proxies = ["192.0.2.200", "fd00::/8"]

[[cluster]]
name = "nyc"
place = { latitude = 40, longitude = -74 }
push_share = "16MiB"

[[cluster.node]]
name = "nyc-1"
address = "192.0.2.2"
listen = "0.0.0.0:8080"
disk = "32MiB"

[[site]]
name = "www"
hosts = ["WWW.demo.test.", "*"]
origin = "https://Origin.demo.test:8443/"
origin_host = "www.demo.test"
origin_ca = "ca.pem"
origin_cert = "/keys/edge.pem"
origin_key = "keys/edge.key"
origin_http2 = false
steering = "round-robin"
ttl = "5s"
clusters = ["nyc"]

[site.cache]
default_ttl = "1m"
heuristic = false
stale_while_revalidate = "30s"
stale_if_error = "1d"
obey_client = true
body_max = "1GiB"
forward_fields = ["X-App-Version", "cookie"]
key_fields = "x-tenant"
store_set_cookie = true
serve_unsynced = false
finish_rest_max = "4MiB"
finish_share_min = "25%"

[site.compression]
codings = ["gzip", "br"]
level = 6
size_min = "1KiB"
size_max = "4MiB"
types = ["Text/*", "application/x-own"]

[site.limits]
connect_timeout = "500ms"
first_byte_timeout = "10m"
between_bytes_timeout = "2h"
request_body_timeout = "90s"
request_body_max = "unlimited"
head_max = "256KiB"
fields_max = 1000
connections_max = 8
queue_max = 0
queue_timeout = "2s"
upgrades_max = 16
upgrade_idle_timeout = "1h"

[site.https]
acme = false
redirect = true
hsts = "730d"
hsts_subdomains = true
hsts_preload = true
dns_record = false

[[zone]]
name = "Demo.test"
ttl = "1h"
name_servers = ["ns1", "ns2"]
records = ["www 60 A 192.0.2.80", "www 60 A 192.0.2.81"]
"#;

#[test]
fn the_labs_file_is_read() {
    let fleet = fleet_of(LAB);
    assert_eq!(fleet.state_dir, Path::new("/etc/nearcast/state"));
    assert_eq!(fleet.origins[0].root, Path::new("/etc/nearcast/content"));
    assert_eq!(
        fleet.name_servers[0].addresses,
        ["127.9.0.53".parse::<IpAddr>().expect("an address")]
    );
    assert_eq!(fleet.name_servers[0].admin_url, "http://127.9.0.53:9100");
    assert_eq!(
        fleet.control.map(|c| c.url),
        Some("http://127.9.0.70:7700".into())
    );
}

#[test]
fn urls_are_https_where_listeners_have_certificates() {
    let with = |section: &str, settings: &str| {
        let header = format!("{section}\n");
        fleet_of(&LAB.replacen(&header, &format!("{header}{settings}\n"), 1))
    };
    let fleet = with("[control]", "cert = \"c.pem\"\nkey = \"c.key\"");
    let url = |fleet: &Fleet| fleet.control.as_ref().map(|c| c.url.clone());
    assert_eq!(url(&fleet), Some("https://127.9.0.70:7700".into()));
    assert_eq!(fleet.name_servers[0].admin_url, "http://127.9.0.53:9100");
    let fleet = with("[fleet]", "admin_cert = \"c.pem\"\nadmin_key = \"c.key\"");
    assert_eq!(url(&fleet), Some("http://127.9.0.70:7700".into()));
    assert_eq!(fleet.name_servers[0].admin_url, "https://127.9.0.53:9100");
}

#[test]
fn every_setting_is_taken_as_written() {
    let fleet = fleet_of(EVERYTHING);
    assert_eq!(
        (fleet.hostmaster.as_str(), fleet.user.as_deref()),
        ("dns@demo.test", Some("cdn:www-data"))
    );
    assert_eq!(fleet.zone_name_servers, [1]);
    assert_eq!(
        fleet.node_key,
        Secret("a key that only this test knows".into())
    );
    assert_eq!(
        fleet.clock,
        FleetClock {
            speed: 360.0,
            anchor_real: 1_767_225_600.0,
            anchor_fleet: 1_767_229_200.5
        }
    );
    assert_eq!(fleet.admin_hosts, ["*.nodes.demo.test"]);
    assert_eq!(
        fleet.access_log,
        Some(AccessLog {
            target: LogTarget::File("/var/log/cdn/access.log".into()),
            format: LogFormat::Combined,
            sample: 0.1,
            truncates_clients: true,
            rotate_at: Bytes(1 << 30),
            kept: 12,
        })
    );
    let control = fleet.control.expect("there");
    assert_eq!(control.hosts, ["console.demo.test", "*"]);
    assert_eq!(
        control.steering_origins,
        ["https://www.demo.test", "http://127.0.0.1:8080"]
    );
    assert_eq!(
        (control.name.as_str(), control.url.as_str()),
        ("brain", "https://control.demo.test:7700")
    );
    let pair = |cert: &str, key: &str| {
        Some(CertificateFiles {
            cert: cert.into(),
            key: key.into(),
        })
    };
    assert_eq!(
        control.identity,
        pair("/etc/nearcast/control.pem", "/etc/nearcast/control.key")
    );
    assert_eq!(
        fleet.admin_identity,
        pair("/etc/nearcast/keys/node.pem", "/keys/node.key")
    );
    assert_eq!(fleet.ca, Some("/etc/nearcast/keys/ca.pem".into()));
    assert_eq!(
        control.push,
        Some(PushPolicy {
            half_life: Duration::from_secs(43_200),
            expected_requests_min: 0.5
        })
    );
    let health = HealthCheck {
        path: "/health".into(),
        interval: Duration::from_secs(1),
        timeout: Duration::from_millis(900),
        timeout_min: Duration::from_millis(100),
        fall: 3,
        rise: 1,
        jitter: 0.2,
    };
    let steering = Steering {
        geo_db: Some("/geo/city.mmdb".into()),
        health,
        rtt_max_age: Duration::from_secs(300),
        rtt_explore: 0.025,
        ramp: Duration::from_secs(45),
        rtt_bound: false,
    };
    assert_eq!(fleet.steering, steering);
    let generations = |of: &[(&str, u32)]| {
        of.iter()
            .map(|(name, generation)| ((*name).to_owned(), *generation))
            .collect()
    };
    let nodes = generations(&[("ams-1", 3), ("ns2", 5), ("origin", 4)]);
    assert_eq!(
        fleet.keys,
        KeyPolicy {
            own_only: false,
            generations: nodes,
            cluster_generations: generations(&[("ams", 2)])
        }
    );
    assert_eq!(
        fleet.origins[0].rules,
        [OriginRule {
            pattern: "img/**".into(),
            cache_control: "max-age=3600, public".into()
        }]
    );
    let [ns1, ns2] = &fleet.name_servers[..] else {
        panic!("two")
    };
    assert_eq!(
        (ns1.host.as_str(), ns1.listen.len(), ns1.addresses.len()),
        ("ns1.cdn.test", 2, 2)
    );
    assert_eq!(
        (
            ns2.host.as_str(),
            ns2.admin_url.as_str(),
            ns2.addresses.len()
        ),
        ("ns2.demo.test", "https://192.0.2.53:9153", 2)
    );
    let drain = DrainLimits {
        lame_duck_max: Duration::from_secs(120),
        dns_withdrawal: Duration::from_secs(15),
        finish_max: Duration::from_secs(600),
    };
    assert_eq!(fleet.drain, drain);
    let [ams, nyc] = &fleet.clusters[..] else {
        panic!("two")
    };
    assert_eq!(
        (ams.label.as_str(), ams.weight, ams.fill_rate_bits),
        ("Amsterdam", 3, 1_500_000_000)
    );
    assert_eq!(
        ams.off_peak,
        DailyWindow {
            start_minute: 22 * 60 + 30,
            end_minute: 300
        }
    );
    assert_eq!(
        (ams.push_share, nyc.push_share),
        (Bytes(8 << 20), Bytes(16 << 20))
    );
    let tls = TlsSettings {
        certificates: vec![CertificateFiles {
            cert: "/etc/nearcast/tls/www.pem".into(),
            key: "/etc/ssl/www.key".into(),
        }],
        default_host: Some("www.demo.test".into()),
        version_min: TlsVersion::V1_3,
    };
    assert_eq!(fleet.tls, tls);
    let authority = |name: &str, directory: &str| AcmeAuthority {
        name: name.into(),
        directory: directory.into(),
        ca: None,
        external_account: None,
        profile: None,
    };
    let acme = Acme {
        authorities: vec![
            AcmeAuthority {
                ca: Some("/etc/nearcast/keys/acme.pem".into()),
                external_account: Some(ExternalAccount {
                    key_id: "kid-1".into(),
                    hmac_key_file: "/keys/eab.key".into(),
                }),
                profile: Some("shortlived".into()),
                ..authority("own", "https://Acme.demo.test:14000/dir")
            },
            authority(
                "letsencrypt",
                "https://acme-v02.api.letsencrypt.org/directory",
            ),
        ],
        contact: vec!["mailto:ops@demo.test".into(), "mailto:tls@demo.test".into()],
        resolver: Some("192.0.2.99:53".parse().expect("an address")),
        challenge: Some(AcmeChallenge::Http),
        certificates: vec![OrderedCertificate {
            hosts: vec!["*.demo.test".into(), "demo.test".into()],
            challenge: Some(AcmeChallenge::Dns),
        }],
    };
    assert_eq!(fleet.acme, Some(acme));
    let node = &ams.nodes[0];
    assert_eq!(
        node.listen_tls,
        ["0.0.0.0:8443", "[::]:8443"].map(|l| l.parse().expect("an address"))
    );
    assert_eq!(
        (
            node.addresses.len(),
            node.listen.len(),
            node.service.to_string()
        ),
        (2, 3, "10.0.0.1:8080".into())
    );
    assert_eq!(
        (node.memory, node.disk, node.threads, node.capacity_bits),
        (
            Bytes(8 << 20),
            Bytes(32 << 20),
            Some(2),
            Some(1_000_000_000)
        )
    );
    let clients = ClientLimits {
        head_bytes_max: 32 << 10,
        fields_max: 200,
        head_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(60),
        write_timeout: Duration::from_secs(20),
        connections_max: Some(5000),
        handshake_timeout: Duration::from_secs(4),
        http2: false,
        http2_streams_max: 50,
        http3: false,
        http3_streams_max: 60,
    };
    assert_eq!(
        node.clients,
        ClientLimits {
            fields_max: 100,
            idle_timeout: Duration::from_secs(15),
            connections_max: Some(800),
            ..clients
        }
    );
    assert_eq!(
        nyc.nodes[0].clients, clients,
        "what a node does not say is as for all"
    );
    assert_eq!(
        nyc.nodes[0].service.to_string(),
        "192.0.2.2:8080",
        "a listener on every address is reached by the node's own"
    );
    assert_eq!(
        (&node.proxy_protocol[..], &node.trusted_proxies[..]),
        (
            &["0.0.0.0:8081".parse().expect("an address")][..],
            &["192.0.2.200/32", "fd00::/8"].map(|p| p.parse().expect("a prefix"))[..]
        )
    );
    assert_eq!(
        nyc.nodes[0].trusted_proxies,
        ["10.0.0.0/8".parse().expect("a prefix")]
    );
    let site = &fleet.sites[0];
    assert_eq!(
        site.https,
        HttpsPolicy {
            brings_certificates: true,
            redirect: true,
            hsts: Some(Hsts {
                max_age: Duration::from_secs(730 * 86_400),
                subdomains: true,
                preload: true,
            }),
            dns_record: false,
        }
    );
    assert_eq!(
        (&site.hosts[..], site.origin.as_str()),
        (
            &["www.demo.test".to_owned(), "*".into()][..],
            "https://origin.demo.test:8443"
        )
    );
    assert_eq!(
        (site.origin_host.as_deref(), site.policy, &site.clusters[..]),
        (Some("www.demo.test"), SelectionPolicy::RoundRobin, &[1][..])
    );
    let cache = CachePolicy {
        default_ttl: Some(Duration::from_secs(60)),
        heuristic: false,
        stale_while_revalidate: Duration::from_secs(30),
        stale_if_error: Duration::from_secs(86_400),
        obey_client: true,
        body_bytes_max: Bytes(1 << 30),
        forward_fields: vec!["x-app-version".into(), "cookie".into()],
        key_fields: vec!["x-tenant".into()],
        store_set_cookie: true,
        serve_unsynced: false,
        finish_rest: Bytes(4 << 20),
        finish_share: 0.25,
    };
    assert_eq!(site.cache, cache);
    let compression = CompressionPolicy {
        codings: vec![Coding::Gzip, Coding::Brotli],
        level: 6,
        bytes_min: Bytes(1 << 10),
        bytes_max: Bytes(4 << 20),
        types: vec!["text/*".into(), "application/x-own".into()],
    };
    assert_eq!(site.compression, compression);
    let limits = OriginLimits {
        connect: Duration::from_millis(500),
        first_byte: Duration::from_secs(600),
        between_bytes: Duration::from_secs(7200),
        request_pause: Duration::from_secs(90),
        request_bytes_max: None,
        head_bytes_max: Bytes(256 << 10),
        fields_max: 1000,
        connections_max: 8,
        waiting_max: 0,
        connection_wait: Duration::from_secs(2),
        upgrades_max: 16,
        upgrade_idle: Duration::from_secs(3600),
    };
    assert_eq!(site.origin_policy.limits, limits);
    assert!(!site.origin_policy.http2);
    let identity = (
        "/keys/edge.pem".into(),
        "/etc/nearcast/keys/edge.key".into(),
    );
    assert_eq!(
        site.origin_policy.tls,
        OriginTls {
            ca: Some("/etc/nearcast/ca.pem".into()),
            identity: Some(identity)
        }
    );
    let zone = &fleet.zones[0];
    assert_eq!(
        (zone.name.as_str(), zone.ttl, &zone.name_servers[..]),
        ("demo.test", Duration::from_secs(3600), &[0, 1][..])
    );
    assert_eq!(zone.records.len(), 2);
}

/// Each case: what is replaced in [`LAB`] by what; the line of the mistake, found by what it has in
/// it, its column; and words of the problem and of the hint.
type Case = (
    &'static str,
    &'static str,
    &'static str,
    usize,
    &'static str,
    &'static str,
);

#[test]
fn nothing_may_be_pushed() {
    for zero in ["0", "\"0\"", "\"0%\"", "\"0B\""] {
        let text = LAB.replace("fill_rate = \"400Mbit/s\"", &format!("push_share = {zero}"));
        assert_eq!(fleet_of(&text).clusters[0].push_share, Bytes(0), "{zero}");
    }
}

#[test]
fn listeners_may_be_written_short() {
    let text = LAB
        .replace("\"127.9.0.12:8080\"", "[\":8081\", \"localhost:8082\"]")
        .replace("\"127.9.0.80:8000\"", "\"8000\"");
    let fleet = fleet_of(&text);
    let listen: Vec<String> = fleet.clusters[0].nodes[1]
        .listen
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(listen, ["0.0.0.0:8081", "127.0.0.1:8082"]);
    assert_eq!(fleet.origins[0].listen.to_string(), "0.0.0.0:8000");
}

#[test]
fn an_empty_file_says_what_is_needed() {
    let mistakes = parse("", Path::new("/")).expect_err("nothing there");
    let words = describe("file", &mistakes);
    assert!(
        words.contains("file:1:1: fleet: this setting is required")
            && words.contains("[[cluster]]"),
        "{words}"
    );
}

#[test]
fn nodes_on_different_machines_may_listen_alike() {
    let second = "\n[[cluster.node]]\nname = \"ams-2\"\naddress = \"192.0.2.2\"\n";
    let text = SMALLEST.replace("\n[[site]]", &format!("{second}\n[[site]]"));
    assert_eq!(fleet_of(&text).clusters[0].nodes.len(), 2);
    // On one machine they may not, even where the setting is a default.
    let text = text
        .replace("\"192.0.2.1\"", "\"127.0.0.2\"")
        .replace("\"192.0.2.2\"", "\"127.0.0.3\"");
    let mistakes = parse(&text, Path::new("/")).expect_err("one port twice");
    assert!(
        mistakes[0]
            .problem
            .contains("127.0.0.1:9100, which is the default, is taken by admin of ams-1"),
        "{mistakes:?}"
    );
    assert!(mistakes[0].hint.contains("add admin"), "{mistakes:?}");
}

#[test]
fn a_column_counts_characters() {
    let text = SMALLEST.replace("name = \"ams\"", "label = \"Åmsterdåm\" # ü\nname = \"ü\"");
    let mistakes = parse(&text, Path::new("/")).expect_err("no name");
    assert_eq!((mistakes[0].line, mistakes[0].column), (6, 8));
    let text = SMALLEST.replace(
        "{ latitude = 52.37, longitude = 4.90 }",
        "{ \"lätitude\" = 1, latitude = 1, longitude = 1, x = 1 }",
    );
    let columns: Vec<usize> = parse(&text, Path::new("/"))
        .expect_err("wrong")
        .iter()
        .map(|m| m.column)
        .collect();
    assert_eq!(columns, [11, 56]);
}

#[test]
fn the_key_can_be_in_a_file() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("node.key"), "sixteen characters\n").expect("write");
    let text = LAB.replace(
        "node_key = \"a key that only this test knows\"",
        "node_key_file = \"node.key\"",
    );
    let fleet = parse(&text, dir.path()).expect("a good file");
    assert_eq!(fleet.node_key, Secret("sixteen characters".into()));
}

#[test]
fn who_may_purge_a_site_is_nobody_unless_it_says() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("token"), "sixteen characters\n").expect("write");
    let policy = |lines: &str| {
        let text = LAB.replace("ttl = \"5s\"\n", lines);
        parse(&text, dir.path())
            .unwrap_or_else(|m| panic!("{lines}: {m:?}"))
            .sites[0]
            .purge
            .clone()
    };
    assert!(policy("").is_off());
    let found = policy(
        "purge_from = [\"192.0.2.7\", \"10.1.2.3/8\", \"2001:db8::/32\"]\npurge_token_file = \"token\"\n",
    );
    assert_eq!(
        found
            .from
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["192.0.2.7/32", "10.0.0.0/8", "2001:db8::/32"]
    );
    assert_eq!(found.token, Some(Secret("sixteen characters".into())));
    assert!(!found.is_off() && !format!("{found:?}").contains("sixteen"));
    assert_eq!(policy("purge_from = \"::1\"\n").from.len(), 1);
}

#[test]
fn load_says_which_file_and_where() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("nearcast.toml");
    let missing = load(&path).expect_err("not there");
    assert_eq!(missing.kind, FailureKind::NoInput);
    assert!(
        missing.message.contains("nearcast.toml")
            && missing.message.contains("a file that is there"),
        "{missing}"
    );
    // `check FILE` has no --fleet.
    assert!(!missing.message.contains("--"), "{missing}");
    std::fs::write(&path, LAB).expect("write");
    let fleet = load(&path).expect("a good file");
    assert_eq!(fleet.state_dir, dir.path().join("state"));
    std::fs::write(&path, LAB.replace("200ms", "1ms").replace("5s", "5x")).expect("write");
    let wrong = load(&path).expect_err("two mistakes");
    assert_eq!(
        (wrong.kind, wrong.message.lines().count()),
        (FailureKind::Usage, 2)
    );
    assert!(
        wrong
            .message
            .lines()
            .all(|l| l.starts_with(&format!("{}:", path.display()))),
        "{wrong}"
    );
    std::fs::write(&path, [0xff, 0xfe]).expect("write");
    assert_eq!(
        load(&path).expect_err("not text").kind,
        FailureKind::BadData
    );
}

#[test]
fn a_fleet_without_a_file() {
    let listen = vec!["127.0.0.1:8080".parse().expect("an address")];
    let sized = |memory: u64, disk: u64| {
        standalone_edge(StandaloneEdge {
            listen: listen.clone(),
            listen_tls: Vec::new(),
            certificates: Vec::new(),
            ordered: crate::file::StandaloneAcme::default(),
            origin: "http://127.0.0.1".to_owned(),
            state_dir: "/tmp/x".into(),
            memory: Bytes(memory),
            disk: Bytes(disk),
            cache: CachePolicy::default(),
        })
    };
    let own_disk = sized(1 << 20, 1 << 30).expect("good").clusters.remove(0);
    assert_eq!(own_disk.push_share, Bytes(0), "nobody pushes to it");
    for too_little in [0, (1 << 20) - 1] {
        let refused = sized(too_little, 0).expect_err("too little");
        assert!(
            refused.kind == FailureKind::Usage && refused.message.contains("1MiB at least"),
            "{refused}"
        );
    }
    let of = |origin: &str, cache| {
        standalone_edge(StandaloneEdge {
            listen: listen.clone(),
            listen_tls: Vec::new(),
            certificates: Vec::new(),
            ordered: crate::file::StandaloneAcme::default(),
            origin: origin.to_owned(),
            state_dir: "/tmp/x".into(),
            memory: Bytes(1 << 20),
            disk: Bytes(0),
            cache,
        })
    };
    let edge = |origin: &str| of(origin, CachePolicy::default());
    let listed = |name: &str| {
        of(
            "http://127.0.0.1",
            CachePolicy {
                forward_fields: vec![name.into()],
                ..CachePolicy::default()
            },
        )
    };
    assert_eq!(
        listed("x-test").expect("good").sites[0]
            .cache
            .forward_fields,
        ["x-test"]
    );
    assert!(
        listed("host")
            .expect_err("the edge's own")
            .to_string()
            .contains("request field \"host\"")
    );
    let fleet = edge("http://127.0.0.1:8000/").expect("good");
    assert_eq!(
        fleet.edge("edge").map(|(c, n)| (c.name.as_str(), n.admin)),
        Some(("local", None))
    );
    let site = fleet.site_of_host("any.thing").expect("any host");
    assert_eq!(
        (site.origin.as_str(), &site.origin_host),
        ("http://127.0.0.1:8000", &None)
    );
    assert_eq!(fleet.node_dir("edge"), Path::new("/tmp/x/edge"));
    let wrong = edge("gopher://x").expect_err("no origin");
    assert!(
        wrong.kind == FailureKind::Usage
            && wrong.message.contains("gopher")
            && wrong.message.lines().count() == 1
    );
    assert_eq!(
        standalone_origin("/nowhere/x".into(), listen[0])
            .expect_err("no directory")
            .kind,
        FailureKind::NoInput
    );
}

#[test]
fn listeners_for_tls_come_with_the_first_certificate() {
    let with = |node: &str, rest: &str| {
        let keyed = SMALLEST.replace(
            "[fleet]",
            "[fleet]\nnode_key = \"a key that only this test knows\"",
        );
        fleet_of(&keyed.replace(
            "address = \"192.0.2.1\"\n",
            &format!("address = \"192.0.2.1\"\n{node}\n{rest}\n"),
        ))
    };
    let certificate = "[[certificate]]\ncert = \"a\"\nkey = \"b\"";
    let acme = "[control]\n[acme]\nterms_agreed = true";
    let table: [(&str, &str, &[&str]); 6] = [
        ("", "", &[]),
        ("", certificate, &["192.0.2.1:443"]),
        ("", acme, &["192.0.2.1:443"]),
        (
            "listen = [\"10.0.0.1:80\", \"10.0.0.1:8080\", \"[::]:80\"]",
            certificate,
            &["10.0.0.1:443", "[::]:443"],
        ),
        ("listen_tls = []", certificate, &[]),
        (
            "listen_tls = \"192.0.2.1:8443\"",
            certificate,
            &["192.0.2.1:8443"],
        ),
    ];
    for (node, rest, expected) in table {
        let fleet = with(node, rest);
        let listen: Vec<String> = fleet.clusters[0].nodes[0]
            .listen_tls
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(listen, expected, "{node} {rest}");
    }
}

/// Every setting is read: with a value of a wrong type in place of any of [`EVERYTHING`]'s, there
/// is a mistake.
#[test]
fn every_setting_is_checked() {
    for (section, settings) in SETTINGS {
        for key in settings.names.iter().filter(|_| !section.is_empty()) {
            if SETTINGS
                .iter()
                .any(|(s, _)| *s == format!("{section}.{key}"))
            {
                continue;
            }
            let text = with_setting(section, key, "[[{}]]");
            let mistakes = parse(&text, Path::new("/")).err().unwrap_or_default();
            assert!(
                mistakes.iter().any(|m| m.problem.contains(key)),
                "{section}.{key} is never read:\n{}",
                describe("file", &mistakes)
            );
        }
    }
}

/// [`EVERYTHING`] with that value for a setting, wherever its section begins first.
fn with_setting(section: &str, key: &str, value: &str) -> String {
    if section == "cluster.place" {
        return EVERYTHING.replacen(
            "{ latitude = 52.37, longitude = 4.9 }",
            &format!("{{ {key} = {value} }}"),
            1,
        );
    }
    let header = [format!("[[{section}]]\n"), format!("[{section}]\n")]
        .into_iter()
        .find(|h| EVERYTHING.contains(h))
        .expect("every section");
    let start = EVERYTHING.find(&header).expect("found above") + header.len();
    let end = EVERYTHING[start..]
        .find("\n[")
        .map_or(EVERYTHING.len(), |at| start + at + 1);
    let others: Vec<&str> = EVERYTHING[start..end]
        .lines()
        .filter(|l| !l.starts_with(&format!("{key} =")))
        .collect();
    format!(
        "{}{}\n{key} = {value}\n{}",
        &EVERYTHING[..start],
        others.join("\n"),
        &EVERYTHING[end..]
    )
}

#[test]
fn a_bare_nought_needs_no_quotes() {
    let text = SMALLEST.replace("address = ", "disk = 0\naddress = ");
    assert_eq!(fleet_of(&text).clusters[0].nodes[0].disk, Bytes(0));
}

#[test]
fn a_span_of_time_of_day_may_end_at_midnight_or_be_the_whole_day() {
    let file = "[fleet]\nzone = \"cdn.test\"\n[[cluster]]\nname = \"a\"\nplace = { latitude = 1.0, longitude = 1.0 }\noff_peak = \"HOURS\"\n\
        [[cluster.node]]\nname = \"a-1\"\naddress = \"127.0.0.1\"\n";
    let table = [
        ("00:00-24:00", (0, 1440), 1440),
        ("22:00-24:00", (1320, 0), 120),
        ("24:00-06:00", (0, 360), 360),
        ("22:30-05:00", (1350, 300), 390),
        ("23:59-00:00", (1439, 0), 1),
        ("00:01-00:00", (1, 0), 1439),
    ];
    for (text, (start_minute, end_minute), minutes) in table {
        let fleet = parse(&file.replace("HOURS", text), Path::new("/")).expect("the file is good");
        let window = fleet.clusters[0].off_peak;
        assert_eq!(
            (window, window.minutes()),
            (
                DailyWindow {
                    start_minute,
                    end_minute
                },
                minutes
            ),
            "{text}"
        );
        let inside = (0..1440).filter(|minute| window.contains(*minute)).count();
        assert_eq!(inside, usize::from(minutes), "{text}");
    }
}
