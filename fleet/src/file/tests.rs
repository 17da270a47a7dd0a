//! The fleet file's parser against files in use, wrong files, and any text at all.

use super::*;

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
    let text = include_str!("../../../deploy/fleet.toml").replace(
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

[control]
name = "brain"
listen = "0.0.0.0:7700"
url = "http://control.demo.test:7700/"
hosts = ["Console.demo.test", "*"]
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
admin_url = "http://192.0.2.53:9153"

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
listen = ["0.0.0.0:8080", "[::]:8080"]
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
finish_rest = "4MiB"
finish_share = "25%"

[site.limits]
connect = "500ms"
first_byte = "10m"
between_bytes = "2h"
request_pause = "90s"
request_body = "unlimited"
head = "256KiB"
fields = 1000
connections = 8
waiting = 0
connection_wait = "2s"
upgrades = 16
upgrade_idle = "1h"

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
    let control = fleet.control.expect("there");
    assert_eq!(control.hosts, ["console.demo.test", "*"]);
    assert_eq!(
        (control.name.as_str(), control.url.as_str()),
        ("brain", "http://control.demo.test:7700")
    );
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
        ("ns2.demo.test", "http://192.0.2.53:9153", 2)
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
    let node = &ams.nodes[0];
    assert_eq!(
        (
            node.addresses.len(),
            node.listen.len(),
            node.service.to_string()
        ),
        (2, 2, "10.0.0.1:8080".into())
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
    let site = &fleet.sites[0];
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
/// it, its column; and words of the problem and of the mend.
type Case = (
    &'static str,
    &'static str,
    &'static str,
    usize,
    &'static str,
    &'static str,
);

const WRONG: &[Case] = &[
    // Syntax.
    (
        "zone = \"cdn.test\"\n",
        "zone = \"cdn.test\n",
        "zone = \"cdn.test",
        17,
        "invalid basic string",
        "TOML",
    ),
    ("[control]\n", "[control\n", "[control", 9, "", "TOML"),
    // Users.
    (
        "state_dir = \"state\"",
        "user = \"near cast\"",
        "near cast",
        8,
        "fleet.user: \"near cast\" is no user",
        "\"nearcast\"",
    ),
    (
        "state_dir = \"state\"",
        "user = \"a:\"",
        "\"a:\"",
        8,
        "is no user",
        "with a group",
    ),
    (
        "state_dir = \"state\"",
        "user = 5",
        "user = 5",
        8,
        "this is a whole number",
        "write a string",
    ),
    // Keys.
    (
        "off_peak = \"02:00",
        "offpeak = \"02:00",
        "offpeak",
        1,
        "cluster[0].offpeak: there is no such setting",
        "did you mean off_peak?",
    ),
    (
        "[[site]]",
        "[[sites]]",
        "[[sites]]",
        3,
        "sites: there is no such setting",
        "did you mean site?",
    ),
    (
        "ttl = \"5s\"",
        "xyzzy = 1",
        "xyzzy",
        1,
        "site[0].xyzzy",
        "the settings here are name, hosts",
    ),
    // Names of our own.
    (
        "[control]\n",
        "[control]\nhosts = [\"a.test:7700\"]\n",
        "hosts = [\"a.test:7700\"]",
        10,
        "\"a.test:7700\" is no host name",
        "without a port",
    ),
    (
        "zone = \"cdn.test\"\n",
        "zone = \"cdn.test\"\nadmin_hosts = [\"a.*.test\"]\n",
        "admin_hosts",
        16,
        "\"a.*.test\" is no host name",
        "*.NAME",
    ),
    // Request fields.
    (
        "ttl = \"5s\"",
        "cache.forward_fields = [\"x-a\", \"x:y\"]",
        "cache.forward_fields",
        32,
        "\"x:y\" is no name of a field",
        "without a colon",
    ),
    (
        "ttl = \"5s\"",
        "cache.forward_fields = [\"x-a\", \"X-A\"]",
        "cache.forward_fields",
        32,
        "x-a is there twice",
        "remove one",
    ),
    (
        "ttl = \"5s\"",
        "cache.forward_fields = [\"x-a\", \"Authorization\"]",
        "cache.forward_fields",
        32,
        "shared only where they say so",
        "RFC 9111",
    ),
    (
        "ttl = \"5s\"",
        "cache.key_fields = \"sec-@\"",
        "cache.key_fields",
        20,
        "is no name of a field",
        "wildcard",
    ),
    (
        "ttl = \"5s\"",
        "cache.key_fields = \"X-Forwarded-Host\"",
        "cache.key_fields",
        20,
        "the edge drops, or makes or reads itself",
        "remove it",
    ),
    (
        "ttl = \"5s\"",
        "cache.key_fields = \"\"",
        "cache.key_fields",
        20,
        "is no name of a field",
        "x-app-version",
    ),
    (
        "ttl = \"5s\"",
        "cache.serve_unsynced = \"no\"",
        "cache.serve_unsynced",
        24,
        "this is a string",
        "true or false",
    ),
    (
        "ttl = \"5s\"",
        "cache.finish_rest = 5",
        "cache.finish_rest",
        21,
        "this is a number",
        "\"512MiB\"",
    ),
    (
        "ttl = \"5s\"",
        "cache.finish_share = \"101%\"",
        "cache.finish_share",
        22,
        "out of range",
        "100%",
    ),
    (
        "ttl = \"5s\"",
        "cache.finish_share = \"half\"",
        "cache.finish_share",
        22,
        "half",
        "10%",
    ),
    (
        "ttl = \"5s\"",
        "cache.store_set_cookie = \"yes\"",
        "cache.store_set_cookie",
        26,
        "this is a string",
        "true or false",
    ),
    (
        "zone = \"cdn.test\"\n",
        "",
        "[fleet]",
        1,
        "fleet.zone: this setting is required",
        "add zone = ",
    ),
    (
        "origin = \"http://127.9.0.80:8000\"\n",
        "",
        "[[site]]",
        1,
        "site[0].origin: this setting is required",
        "add origin = ",
    ),
    (
        "place = { latitude = 52.37, longitude = 4.9 }\n",
        "",
        "[[cluster]]",
        1,
        "cluster[0].place: this setting is required",
        "latitude",
    ),
    (
        "latitude = 52.37, ",
        "",
        "place = { longitude",
        9,
        "cluster[0].place.latitude: this setting is required",
        "add latitude",
    ),
    (
        "node_key = \"a key that only this test knows\"\n",
        "",
        "[fleet]",
        1,
        "fleet.node_key: this setting is required",
        "/dev/urandom",
    ),
    (
        "address = \"127.9.0.12\"\n",
        "",
        "[[cluster.node]]\nname = \"ams-2\"",
        1,
        "cluster[0].node[1].address: this setting is required",
        "add address",
    ),
    (
        "listen = \"127.9.0.53:5300\"\n",
        "",
        "[[name_server]]",
        1,
        "name_server[0].listen: this setting is required",
        "add listen",
    ),
    // Types.
    (
        "threads = 1\n[[",
        "threads = \"1\"\n[[",
        "threads = \"1\"",
        11,
        "this is a string",
        "write a whole number from 1 to 1024",
    ),
    (
        "ttl = \"5s\"",
        "ttl = 5",
        "ttl = 5",
        7,
        "site[0].ttl: this is a number",
        "\"30s\", quotes and unit included",
    ),
    (
        "hosts = [\"www.demo.test\"]",
        "hosts = [80]",
        "hosts = [80]",
        10,
        "site[0].hosts[0]: this is a whole number",
        "write a string",
    ),
    (
        "hosts = [\"www.demo.test\"]",
        "hosts = true",
        "hosts = true",
        9,
        "site[0].hosts: this is true or false",
        "a string or a list of strings",
    ),
    (
        "place = { latitude = 52.37, longitude = 4.9 }",
        "place = \"here\"",
        "place = \"here\"",
        9,
        "this is a string",
        "a section [cluster.place]",
    ),
    (
        "[[zone]]",
        "[zone]",
        "[zone]",
        1,
        "zone: this is a section",
        "sections [[zone]]",
    ),
    (
        "ttl = \"5s\"",
        "[site.cache]\nheuristic = \"yes\"",
        "heuristic",
        13,
        "site[0].cache.heuristic: this is a string",
        "write true or false",
    ),
    // Units and ranges.
    (
        "ttl = \"5s\"",
        "ttl = \"5 fortnights\"",
        "fortnights",
        7,
        "\"fortnights\" is no unit",
        "ms, s, m, h, d",
    ),
    (
        "ttl = \"5s\"",
        "ttl = \"5\"",
        "ttl = \"5\"",
        7,
        "\"5\" has no unit",
        "\"30s\"",
    ),
    (
        "ttl = \"5s\"",
        "ttl = \"2d\"",
        "ttl = \"2d\"",
        7,
        "2d is out of range",
        "from 1s to 86400s",
    ),
    (
        "memory = \"16MiB\"\ndisk = \"64MiB\"\nthreads = 1\n[[",
        "memory = \"1KiB\"\n[[",
        "1KiB",
        10,
        "1KiB is out of range",
        "from 1MiB",
    ),
    (
        "fill_rate = \"400Mbit/s\"",
        "fill_rate = \"400Mbps\"",
        "Mbps",
        13,
        "\"Mbps\" is no unit",
        "Mbit/s",
    ),
    (
        "latitude = 52.37",
        "latitude = 152.37",
        "152.37",
        22,
        "152.37 is out of range",
        "from -90 to 90",
    ),
    (
        "report_interval = \"200ms\"",
        "report_interval = \"1ms\"",
        "\"1ms\"",
        19,
        "1ms is out of range",
        "from 200ms to 60s",
    ),
    (
        "report_interval = \"200ms\"",
        "drain_max = \"2d\"",
        "\"2d\"",
        13,
        "2d is out of range",
        "to 86400s",
    ),
    (
        "report_interval = \"200ms\"",
        "finish_max = \"30\"",
        "\"30\"",
        14,
        "\"30\" has no unit",
        "\"30s\"",
    ),
    (
        "report_interval = \"200ms\"\n",
        "report_interval = \"200ms\"\n[steering]\nramp = \"2h\"\n",
        "ramp = \"2h\"",
        8,
        "steering.ramp: 2h is out of range",
        "to 3600s",
    ),
    (
        "report_interval = \"200ms\"\n",
        "report_interval = \"200ms\"\n[steering.health]\ntimeout_min = \"1ms\"\n",
        "timeout_min = \"1ms\"",
        15,
        "steering.health.timeout_min: 1ms is out of range",
        "from 10ms to 60s",
    ),
    (
        "report_interval = \"200ms\"\n",
        "report_interval = \"200ms\"\n[clients]\nidle_timeout = \"2h\"\n",
        "\"2h\"",
        16,
        "clients.idle_timeout: 2h is out of range",
        "from 1s to 3600s",
    ),
    (
        "threads = 1\n[[",
        "threads = 1\n[cluster.node.clients]\nhead_max = \"1MiB\"\n[[",
        "\"1MiB\"",
        12,
        "cluster[0].node[0].clients.head_max: 1MiB is out of range",
        "from 4KiB to 256KiB",
    ),
    (
        "off_peak = \"02:00-06:00\"",
        "off_peak = \"2-6\"",
        "2-6",
        12,
        "no span of time of day",
        "HH:MM-HH:MM",
    ),
    (
        "off_peak = \"02:00-06:00\"",
        "off_peak = \"25:00-06:00\"",
        "25:00",
        12,
        "no span of time of day",
        "HH:MM-HH:MM",
    ),
    (
        "off_peak = \"02:00-06:00\"",
        "off_peak = \"02:00-02:00\"",
        "02:00-02:00",
        12,
        "starts when it ends",
        "two different times",
    ),
    (
        "off_peak = \"02:00-06:00\"",
        "off_peak = \"00:00-00:00\"",
        "00:00-00:00",
        12,
        "starts when it ends",
        "\"00:00-24:00\" for the whole day",
    ),
    (
        "off_peak = \"02:00-06:00\"",
        "off_peak = \"24:00-24:00\"",
        "24:00-24:00",
        12,
        "starts when it ends",
        "\"00:00-24:00\" for the whole day",
    ),
    (
        "off_peak = \"02:00-06:00\"",
        "off_peak = \"00:00-24:01\"",
        "00:00-24:01",
        12,
        "no span of time of day",
        "HH:MM-HH:MM",
    ),
    (
        "fill_rate = \"400Mbit/s\"",
        "push_share = \"150%\"",
        "150%",
        14,
        "150% is out of range",
        "0% to 100%",
    ),
    (
        "fill_rate = \"400Mbit/s\"",
        "push_share = \"1GiB\"",
        "1GiB",
        14,
        "more than the smallest disk",
        "write less",
    ),
    // Names, addresses, URLs.
    (
        "zone = \"cdn.test\"\n",
        "zone = \"cdn..test\"\n",
        "cdn..test",
        8,
        "not a zone name: it has an empty label",
        "example.org",
    ),
    (
        "name = \"ams-2\"",
        "name = \"AMS 2\"",
        "AMS 2",
        8,
        "cannot be a name",
        "lower-case letters",
    ),
    (
        "name = \"ams-2\"",
        "name = \"../etc\"",
        "../etc",
        8,
        "cannot be a name",
        "lower-case letters",
    ),
    (
        "name = \"ams-2\"",
        "name = \"ams-1\"",
        "name = \"ams-1\"\naddress = \"127.9.0.12\"",
        8,
        "the name of another node, in line 30",
        "a name of its own",
    ),
    (
        "name = \"ns1\"",
        "name = \"origin\"",
        "name = \"origin\"\nlisten = \"127.9.0.53",
        8,
        "the name of another node, in line 12",
        "a name of its own",
    ),
    (
        "address = \"127.9.0.12\"",
        "address = \"127.9.0.11\"",
        "address = \"127.9.0.11\"\nlisten = \"127.9.0.12",
        11,
        "an address of ams-1 already",
        "of its own",
    ),
    (
        "address = \"127.9.0.12\"",
        "address = \"127.9.0.12:80\"",
        "127.9.0.12:80\"",
        11,
        "is not an IP address",
        "leave the port out",
    ),
    (
        "address = \"127.9.0.12\"",
        "address = \"0.0.0.0\"",
        "0.0.0.0",
        11,
        "reaches no node",
        "clients are given",
    ),
    (
        "listen = \"127.9.0.12:8080\"",
        "listen = \"127.9.0.12\"",
        "listen = \"127.9.0.12\"",
        10,
        "not an address with a port",
        "add a port",
    ),
    (
        "listen = \"127.9.0.12:8080\"",
        "listen = \"edge.test:8080\"",
        "edge.test",
        10,
        "not an address with a port",
        "and not a name",
    ),
    (
        "listen = \"127.9.0.53:5300\"",
        "listen = \"127.9.0.53\"",
        "\"127.9.0.53\"",
        10,
        "not an address with a port",
        "\"127.9.0.53:53\"",
    ),
    (
        "admin = \"127.9.0.53:9100\"",
        "admin = \"127.9.0.53\"",
        "admin = \"127.9.0.53\"",
        9,
        "not an address with a port",
        "\"127.9.0.53:9100\"",
    ),
    (
        "listen = \"127.9.0.12:8080\"",
        "listen = []",
        "listen = []",
        10,
        "the list is empty",
        "at least one",
    ),
    (
        "listen = \"127.9.0.12:8080\"",
        "listen = \"127.9.0.11:8080\"",
        "listen = \"127.9.0.11:8080\"\nadmin = \"127.9.0.12",
        10,
        "taken by listen of ams-1",
        "choose another",
    ),
    (
        "admin = \"127.9.0.12:9100\"",
        "admin = \"127.9.0.12:8080\"",
        "admin = \"127.9.0.12:8080\"",
        9,
        "taken by listen of ams-2",
        "choose another",
    ),
    (
        "admin = \"127.9.0.12:9100\"",
        "service = \"0.0.0.0:1\"\nadmin = \"127.9.0.12:9100\"",
        "service",
        11,
        "0.0.0.0:1 reaches no node",
        "write the address and port",
    ),
    (
        "listen = \"127.9.0.70:7700\"",
        "listen = \"0.0.0.0:7700\"",
        "[control]",
        1,
        "control.url: this setting is required",
        "http://host:7700",
    ),
    (
        "listen = \"127.9.0.53:5300\"",
        "listen = \"0.0.0.0:53\"",
        "[[name_server]]",
        1,
        "name_server[0].addresses: this setting is required",
        "resolvers",
    ),
    (
        "origin = \"http://127.9.0.80:8000\"",
        "origin = \"gopher://x\"",
        "gopher",
        10,
        "its scheme",
        "http://host[:port] or https://host[:port]",
    ),
    (
        "origin = \"http://127.9.0.80:8000\"",
        "origin = \"http://x/path\"",
        "http://x/path",
        10,
        "it has a path",
        "nothing more",
    ),
    (
        "ttl = \"5s\"",
        "origin_ca = \"ca.pem\"",
        "origin_ca",
        13,
        "without TLS",
        "https://",
    ),
    (
        "origin = \"http://127.9.0.80:8000\"",
        "origin = \"https://127.9.0.80\"\norigin_cert = \"edge.pem\"",
        "[[site]]",
        1,
        "site[0].origin_key: this setting is required",
        "its key",
    ),
    (
        "origin = \"http://127.9.0.80:8000\"",
        "origin = \"https://127.9.0.80\"\norigin_key = \"edge.key\"",
        "[[site]]",
        1,
        "site[0].origin_cert: this setting is required",
        "its certificate",
    ),
    (
        "ttl = \"5s\"",
        "limits.first_byte = \"60\"",
        "limits.first_byte",
        21,
        "has no unit",
        "30s",
    ),
    (
        "ttl = \"5s\"",
        "limits.between_bytes = 0",
        "limits.between",
        24,
        "0 is out of range",
        "from 1s to 86400s",
    ),
    (
        "ttl = \"5s\"",
        "limits.request_body = \"none\"",
        "limits.request",
        23,
        "does not begin with a number",
        "512MiB",
    ),
    (
        "ttl = \"5s\"",
        "limits.head = \"2MiB\"",
        "limits.head",
        15,
        "2MiB is out of range",
        "from 4KiB to 1MiB",
    ),
    (
        "ttl = \"5s\"",
        "limits.fields = 5",
        "limits.fields",
        17,
        "5 is out of range",
        "from 16 to 10000",
    ),
    (
        "ttl = \"5s\"",
        "limits.connections = 0",
        "limits.connections",
        22,
        "0 is out of range",
        "from 1 to 65536",
    ),
    (
        "ttl = \"5s\"",
        "limits.idle = \"5s\"",
        "limits.idle",
        8,
        "no such setting",
        "connect, first_byte",
    ),
    (
        "ttl = \"5s\"",
        "origin_host = \"http://x\"",
        "origin_host",
        15,
        "is no host",
        "host:port",
    ),
    (
        "hosts = [\"www.demo.test\"]",
        "hosts = [\"http://www.demo.test\"]",
        "http://www",
        10,
        "not a host name",
        "without scheme",
    ),
    (
        "hosts = [\"www.demo.test\"]",
        "hosts = [\"a.test\", \"*.demo.test\"]",
        "*.demo",
        20,
        "is no host name",
        "\"*\" alone",
    ),
    (
        "hosts = [\"www.demo.test\"]",
        "hosts = [\"a.test\", \"A.test.\"]",
        "A.test.",
        20,
        "a.test is there twice",
        "remove one",
    ),
    (
        "name = \"www\"",
        "name = \"ns1\"",
        "name = \"ns1\"\nhosts",
        8,
        "is the host of the name server ns1",
        "another name",
    ),
    (
        "node_key = \"a key that only this test knows\"",
        "node_key = \"short\"",
        "short",
        12,
        "fewer than 16 characters",
        "/dev/urandom",
    ),
    (
        "node_key = \"a key that only this test knows\"",
        "node_key_file = \"/nowhere/key\"",
        "/nowhere",
        17,
        "cannot read /nowhere/key",
        "/dev/urandom",
    ),
    (
        "node_key = \"a key that only this test knows\"",
        "node_key = \"at least sixteen characters, kept secret\"",
        "at least",
        12,
        "the key is an example of the documentation",
        "nearcast key --new",
    ),
    (
        "a key that only this test knows",
        "aaaaaaaaaaaaaaaa",
        "aaaaaaa",
        12,
        "the key has fewer than six different characters",
        "nearcast key",
    ),
    (
        "a key that only this test knows",
        "passwordpassword",
        "passwordp",
        12,
        "the key is made of common words",
        "nearcast key",
    ),
    (
        "a key that only this test knows",
        "nck1.ams-1.1.x.y",
        "nck1",
        12,
        "this is one node's own key",
        "node_key_file",
    ),
    (
        "node_key = \"a key that only this test knows\"",
        "node_keys = \"own\"\nnode_key = \"a key that only this test knows\"",
        "node_key = ",
        12,
        "none may hold the fleet's key",
        "node_key_file",
    ),
    (
        "report_interval",
        "node_keys = \"mine\"\nreport_interval",
        "node_keys",
        13,
        "\"mine\" is no way to show keys",
        "\"own\"",
    ),
    (
        "name = \"ams\"",
        "key_generation = 0\nname = \"ams\"",
        "key_generation",
        18,
        "out of range",
        "1",
    ),
    (
        "ttl = \"5s\"\n",
        "purge_token = \"changemechangeme\"\n",
        "changeme",
        15,
        "the token is made of common words",
        "nearcast key --new",
    ),
    (
        "node_key = \"a key",
        "node_key_file = \"x\"\nnode_key = \"a key",
        "node_key_file",
        17,
        "in node_key already",
        "keep one",
    ),
    (
        "ttl = \"5s\"\n",
        "purge_from = [\"10.0.0.0/33\"]\n",
        "10.0.0.0",
        15,
        "site[0].purge_from[0]: \"10.0.0.0/33\" is no address",
        "10.0.0.0/8",
    ),
    (
        "ttl = \"5s\"\n",
        "purge_from = \"a.test\"\n",
        "a.test",
        14,
        "is no address or prefix",
        "192.0.2.7",
    ),
    (
        "ttl = \"5s\"\n",
        "purge_from = \"0.0.0.0/0\"\n",
        "0.0.0.0",
        14,
        "is every address",
        "purge_token",
    ),
    (
        "ttl = \"5s\"\n",
        "purge_from = [\"::/0\"]\n",
        "::/0",
        15,
        "is every address",
        "purge_token",
    ),
    (
        "ttl = \"5s\"\n",
        "purge_token = \"a key that only this test knows\"\n",
        "purge_token",
        15,
        "the token is the node key",
        "make another one",
    ),
    (
        "ttl = \"5s\"",
        "cache.forward_fields = \"x-*\"",
        "cache.forward_fields",
        24,
        "is no name of a field",
        "wildcard",
    ),
    (
        "ttl = \"5s\"",
        "cache.key_fields = \"x_real_ip\"",
        "cache.key_fields",
        20,
        "the edge drops, or makes or reads itself",
        "remove it",
    ),
    (
        "ttl = \"5s\"\n",
        "purge_token = \"short\"\n",
        "short",
        15,
        "the token has fewer than 16 characters",
        "/dev/urandom",
    ),
    (
        "ttl = \"5s\"\n",
        "purge_token_file = \"/nowhere/t\"\n",
        "/nowhere",
        20,
        "cannot read /nowhere/t",
        "put the token there",
    ),
    (
        "ttl = \"5s\"\n",
        "purge_token = \"sixteen characters\"\npurge_token_file = \"t\"\n",
        "purge_token_file",
        20,
        "the token is in purge_token already",
        "keep one",
    ),
    (
        "[control]\n",
        "[clock]\nspeed = 2\nanchor_real = 0\n[control]\n",
        "[clock]",
        1,
        "clock.anchor_fleet: this setting is required",
        "an instant",
    ),
    (
        "[control]\n",
        "[clock]\nanchor_fleet = 0\nanchor_real = \"today\"\n[control]\n",
        "today",
        15,
        "this is no instant",
        "2026-01-01T00:00:00Z",
    ),
    (
        "state_dir = \"state\"",
        "hostmaster = \"nobody\"",
        "nobody",
        14,
        "not a mail address",
        "hostmaster@",
    ),
    // References.
    (
        "time_zone = \"Europe/Amsterdam\"",
        "time_zone = \"Europe/Amsterdm\"",
        "Amsterdm",
        13,
        "there is no time zone",
        "\"Europe/Amsterdam\"",
    ),
    (
        "steering = \"geo\"",
        "steering = \"nearest\"",
        "nearest",
        12,
        "there is no steering \"nearest\"",
        "\"geo\", \"rtt\", \"weighted\", \"round-robin\"",
    ),
    (
        "ttl = \"5s\"",
        "clusters = [\"ams\", \"asm\"]",
        "asm",
        20,
        "there is no cluster \"asm\"",
        "did you mean \"ams\"?",
    ),
    (
        "ttl = \"5s\"",
        "clusters = [\"ams\", \"ams\"]",
        "clusters",
        20,
        "there twice",
        "remove one",
    ),
    (
        "ttl = \"5s\"",
        "clusters = []",
        "clusters",
        12,
        "the list is empty",
        "at least one cluster",
    ),
    (
        "records = [\"www",
        "name_servers = [\"ns2\"]\nrecords = [\"www",
        "ns2",
        17,
        "there is no name server \"ns2\"",
        "\"ns1\"",
    ),
    (
        "name = \"www\"",
        "name = \"first\"\norigin = \"http://x\"\nhosts = [\"www.cdn.test\"]\n[[site]]\nname = \"www\"",
        "[\"www.cdn.test\"]",
        10,
        "www.cdn.test is a host of the site www already",
        "one site",
    ),
    // Zones.
    (
        "name = \"demo.test\"\n",
        "name = \"cdn.test\"\nrecords = [\"WWW A 192.0.2.1\"]\n[[zone]]\nname = \"demo.test\"\n",
        "\"WWW A",
        12,
        "www.cdn.test is the steered name of the site www",
        "remove it",
    ),
    (
        "records = [",
        "records = [[\"x\"], ",
        "[\"x\"]",
        12,
        "zone[0].records[0]: this is a list",
        "write a string",
    ),
    (
        "[[origin_node]]",
        "[origin_node]",
        "[origin_node]",
        1,
        "origin_node: this is a section",
        "[[origin_node]]",
    ),
    (
        "\"www CNAME www.cdn.test.\"",
        "\"www CNMAE www.cdn.test.\"",
        "CNMAE",
        12,
        "is not a record type",
        "did you mean CNAME?",
    ),
    (
        "\"mail A 192.0.2.25\"",
        "\"mail A 192.0.2\"",
        "192.0.2\"",
        55,
        "not an IPv4 address",
        "192.0.2.1",
    ),
    (
        "\"mail A 192.0.2.25\"",
        "\"www A 192.0.2.25\"",
        "www A",
        55,
        "has a CNAME record and others",
        "keep one",
    ),
    (
        "\"mail A 192.0.2.25\"",
        "\"mail.cdn.test. A 192.0.2.25\"",
        "mail.cdn.test.",
        55,
        "outside the zone demo.test",
        "below the zone",
    ),
    (
        "\"@ MX 10 mail\"",
        "\"@ MX mail\"",
        "MX mail",
        39,
        "a preference and a host name",
        "@ MX 10 mail",
    ),
    (
        "\"mail A 192.0.2.25\"",
        "\"mail A 192.0.2.25\", \"mail A 192.0.2.25\"",
        "mail A",
        76,
        "this A record twice",
        "remove one",
    ),
    (
        "\"mail A 192.0.2.25\"",
        "\"mail A 192.0.2.25\", \"mail 5 A 192.0.2.26\"",
        "mail A",
        76,
        "different TTLs, 300 s and 5 s",
        "same TTL",
    ),
    (
        "\n[[zone]]",
        "\n[[zone]]\nname = \"demo.test\"\n[[zone]]",
        "name = \"demo.test\"\nrecords",
        8,
        "another zone's name, in line 54",
        "one [[zone]]",
    ),
];

#[test]
fn a_wrong_file_is_told_where_and_what_to_write() {
    let mut failures = String::new();
    for (n, (old, new, place, column, problem, mend)) in WRONG.iter().enumerate() {
        assert!(LAB.contains(old), "case {n}: {old:?} is not in the file");
        let text = LAB.replacen(old, new, 1);
        let at = text
            .find(place)
            .unwrap_or_else(|| panic!("case {n}: {place:?} is not in the file"));
        let line = text[..at].matches('\n').count() + 1;
        match &parse(&text, Path::new("/etc/nearcast"))
            .err()
            .unwrap_or_default()[..]
        {
            [m] if (m.line, m.column) == (line, *column)
                && m.problem.contains(problem)
                && m.mend.contains(mend) => {}
            other => {
                failures += &format!(
                    "case {n}, {new:?}: not one mistake at {line}:{column} but\n{}\n",
                    describe("file", other)
                )
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn all_mistakes_come_at_once_in_file_order() {
    let text = LAB
        .replace("steering = \"geo\"", "steering = \"nearest\"")
        .replace(
            "time_zone = \"Europe/Amsterdam\"",
            "time_zone = \"Asia/Atlantis\"",
        )
        .replacen("off_peak = ", "offpeak = ", 1)
        .replace("ttl = \"5s\"", "ttl = \"5 fortnights\"");
    let mistakes = parse(&text, Path::new("/")).expect_err("wrong");
    assert_eq!(mistakes.len(), 4, "{}", describe("file", &mistakes));
    assert!(mistakes.is_sorted_by_key(|m| (m.line, m.column)));
}

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
    assert!(mistakes[0].mend.contains("add admin"), "{mistakes:?}");
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
    let of = |origin: &str, cache| {
        standalone_edge(
            listen.clone(),
            origin,
            "/tmp/x".into(),
            Bytes(1 << 20),
            Bytes(0),
            cache,
        )
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

/// Every setting is read: with a value of a wrong type in place of any of [`EVERYTHING`]'s, there
/// is a mistake.
#[test]
fn every_setting_is_checked() {
    for (section, keys) in SETTINGS {
        for key in keys.iter().filter(|_| !section.is_empty()) {
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

/// The page for people, `docs/fleet-file.md`, against the code.
mod page {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const PAGE: &str = include_str!("../../../docs/fleet-file.md");

    /// Every section, with what is required.
    const BASE: &str = r#"[fleet]
zone = "cdn.test"
node_key = "a key that only this test knows"
[clock]
[clients]
[control]
[control.push]
[steering]
[steering.health]
[[origin_node]]
name = "origin"
listen = "127.0.0.1:8000"
root = "content"
[[origin_node.rule]]
pattern = "**"
cache_control = "no-store"
[[name_server]]
name = "ns1"
listen = "127.0.0.1:5300"
[[cluster]]
name = "ams"
place = { latitude = 1, longitude = 1 }
[[cluster.node]]
name = "ams-1"
address = "192.0.2.1"
[cluster.node.clients]
[[site]]
name = "www"
origin = "http://192.0.2.80"
[site.cache]
[site.limits]
[[zone]]
name = "demo.test"
"#;

    /// Settings in the page's tables: by section, each with its default as written.
    fn tables() -> BTreeMap<String, Vec<(String, String)>> {
        let mut tables: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        let mut section = None;
        for line in PAGE.lines() {
            if line.starts_with('#') {
                let header = line
                    .split_once('`')
                    .and_then(|(_, rest)| rest.split_once('`'))
                    .map(|(header, _)| header);
                section = header.map(|h| h.trim_matches(['[', ']']).to_owned());
            }
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            if let (Some(section), [_, key, default, ..]) = (&section, &cells[..])
                && let Some(key) = key.strip_prefix('`').and_then(|k| k.strip_suffix('`'))
            {
                tables
                    .entry(section.clone())
                    .or_default()
                    .push((key.to_owned(), (*default).to_owned()));
            }
        }
        tables
    }

    #[test]
    fn it_has_every_setting_and_no_other() {
        let tables = tables();
        for (section, keys) in SETTINGS.iter().filter(|(s, _)| !s.is_empty()) {
            if *section == "cluster.place" {
                assert!(
                    keys.iter()
                        .all(|key| PAGE.contains(&format!("`{key}` in degrees")))
                );
                continue;
            }
            let listed: BTreeSet<&str> = tables
                .get(*section)
                .into_iter()
                .flatten()
                .map(|(key, _)| key.as_str())
                .collect();
            assert_eq!(listed, keys.iter().copied().collect(), "[{section}]");
        }
        for section in tables.keys() {
            assert!(
                SETTINGS.iter().any(|(s, _)| s == section),
                "there is no section [{section}]"
            );
        }
    }

    #[test]
    fn its_defaults_are_those_of_the_code() {
        let base = fleet_of(BASE);
        let mut checked = 0;
        for (section, rows) in tables() {
            let header = [format!("[{section}]\n"), format!("[[{section}]]\n")]
                .into_iter()
                .find(|h| BASE.contains(h))
                .expect("every section");
            for (key, default) in rows {
                let Some(literal) = default.strip_prefix('`').and_then(|d| d.strip_suffix('`'))
                else {
                    continue;
                };
                if !literal.starts_with(|c: char| c == '"' || c.is_ascii_digit())
                    && !["true", "false"].contains(&literal)
                {
                    continue;
                }
                let text = BASE.replacen(&header, &format!("{header}{key} = {literal}\n"), 1);
                assert_eq!(fleet_of(&text), base, "{section}.{key} = {literal}");
                checked += 1;
            }
        }
        assert!(
            checked >= 30,
            "only {checked} defaults were found in the page"
        );
    }

    #[test]
    fn what_it_says_is_required_is() {
        for (section, rows) in tables() {
            for (key, _) in rows.iter().filter(|(_, default)| default == "required") {
                let header = BASE.find(&format!("[{section}]")).expect("every section");
                // A section below this one, or a line of it.
                let lines = if key == "node" {
                    ("\n[[cluster.node]]", 4)
                } else {
                    (&*format!("\n{key} = "), 1)
                };
                let at = header
                    + BASE[header..]
                        .find(lines.0)
                        .expect("what is required is there")
                    + 1;
                let rest: String = BASE[at..].split_inclusive('\n').skip(lines.1).collect();
                let mistakes = parse(&format!("{}{rest}", &BASE[..at]), Path::new("/"))
                    .err()
                    .unwrap_or_default();
                assert!(
                    mistakes.iter().any(|m| m
                        .problem
                        .ends_with(&format!("{key}: this setting is required"))),
                    "{section}.{key}"
                );
            }
        }
    }

    #[test]
    fn its_examples_are_good() {
        let blocks: Vec<&str> = PAGE
            .split("```toml\n")
            .skip(1)
            .filter_map(|b| b.split_once("```"))
            .map(|(block, _)| block)
            .collect();
        let [smallest, grown, apart, zone] = &blocks[..] else {
            panic!("four examples")
        };
        assert!(smallest.lines().count() < 20);
        assert_eq!(*smallest, SMALLEST);
        let with = grown.replacen("[fleet]\n", "", 1).replace(
            "node_key_file = \"/etc/nearcast/node.key\"",
            "node_key = \"a key that only this test knows\"",
        );
        let (key, rest) = with
            .split_once("\n\n")
            .expect("the key's line, then sections");
        let whole = format!(
            "{}\n{rest}\n{zone}",
            smallest.replacen("[fleet]\n", &format!("[fleet]\n{key}\n"), 1)
        );
        let fleet = fleet_of(&whole);
        assert_eq!(
            (
                fleet.name_servers.len(),
                fleet.zones.len(),
                fleet.control.is_some()
            ),
            (1, 1, true)
        );
        let on_several = format!(
            "{}\n{apart}",
            smallest.replacen("[fleet]\n", &format!("[fleet]\n{key}\n"), 1)
        );
        let fleet = fleet_of(&on_several);
        assert_eq!(
            fleet.control.map(|c| c.url),
            Some("http://10.0.0.5:7700".to_owned())
        );
        assert_eq!(fleet.name_servers[0].admin_url, "http://10.0.0.53:9153");
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = parse(&text, Path::new("/"));
        }

        #[test]
        fn no_cut_or_spliced_file_panics(at in any::<prop::sample::Index>(), length in 0usize..40, insert in "[\\[\\]{}\"=.,a-z0-9 \n]{0,20}") {
            let at = at.index(EVERYTHING.len());
            let end = (at + length).min(EVERYTHING.len());
            let text = format!("{}{insert}{}", &EVERYTHING[..at], &EVERYTHING[end..]);
            if let Err(mistakes) = parse(&text, Path::new("/")) {
                prop_assert!(!mistakes.is_empty());
                let lines = text.lines().count().max(1);
                for mistake in mistakes {
                    prop_assert!((1..=lines + 1).contains(&mistake.line) && mistake.column >= 1, "{mistake:?}");
                    prop_assert!(!mistake.problem.contains('\n') && !mistake.mend.contains('\n'), "{mistake:?}");
                }
            }
        }

        #[test]
        fn any_strings_are_checked_without_panic(value in ".{0,40}") {
            let value = toml::Value::String(value).to_string();
            for (section, keys) in SETTINGS.iter().filter(|(s, _)| !s.is_empty()) {
                for key in *keys {
                    let _ = parse(&with_setting(section, key, &value), Path::new("/"));
                }
            }
        }
    }
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
