"""Paired measurements of Nearcast and its peers. Run by tests/bench/run; standard library only. `https` has those of TLS and HTTP/2, `speed` those
of plain HTTP/1.1 beside four caches.

Every server runs with one thread pinned to one core, the load on the other. Rounds are interleaved: peer, ours, peer, ours. The figure is CPU
time an answer, from the server's own accounting in /proc, because rates on a shared machine are noise. Servers are ended by the pids
that were started here.
"""
import argparse, json, os, pathlib, random, re, shutil, signal, statistics, struct, subprocess, sys, tempfile, time

import http3, https, speed, store
from lab import *

# A memory hit of 1 KiB.

ORIGIN = """
import http.server
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        for n, v in (("Content-Type", "application/octet-stream"), ("Content-Length", "1024"), ("Cache-Control", "max-age=86400"), ("ETag", '"one"')):
            self.send_header(n, v)
        self.end_headers()
        self.wfile.write(b"x" * 1024)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), H).serve_forever()
"""


def http(options, work):
    origin_port, haproxy_port, ours_port = free_port(), free_port(), free_port()
    start("origin", ["python3", "-c", ORIGIN.replace("PORT", str(origin_port))], work, core=LOAD_CORE)
    (work / "haproxy.cfg").write_text(f"""
global
  nbthread 1
  maxconn 4000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
cache store
  total-max-size 64
  max-object-size 1000000
  max-age 86400
frontend web
  bind 127.0.0.1:{haproxy_port}
  http-request cache-use store
  http-response cache-store store
  default_backend origin
backend origin
  server origin 127.0.0.1:{origin_port}
""")
    haproxy = start("haproxy", ["haproxy", "-db", "-f", "haproxy.cfg"], work)
    ours = start("nearcast", [NEARCAST, "edge", "--listen", f"127.0.0.1:{ours_port}", "--origin", f"http://127.0.0.1:{origin_port}",
                              "--state-dir", work / "state"], work)
    contenders = [("HAProxy", haproxy, haproxy_port), ("Nearcast", ours, ours_port)]

    def fetch(port, fields=False):
        return subprocess.run(["curl", "-s", "-m", "3"] + (["-D", "-", "-o", "/dev/null"] if fields else []) + [f"http://127.0.0.1:{port}/b"],
                              capture_output=True, text=True).stdout
    for name, process, port in contenders:
        wait_for(f"{name} to serve", lambda: len(fetch(port)) == 1024, process)
    assert "; hit" in fetch(ours_port, fields=True), fetch(ours_port, fields=True)
    assert "age:" in fetch(haproxy_port, fields=True).lower(), "HAProxy answers from its cache"

    def measure(process, port):
        before = cpu_seconds(process.pid)
        out = load(["wrk", "-t1", "-c32", f"-d{options.seconds}s", f"http://127.0.0.1:{port}/b"], options.seconds)
        used = cpu_seconds(process.pid) - before
        requests = int(re.search(r"(\d+) requests in", out).group(1))
        assert "Non-2xx" not in out and "Socket errors" not in out, out
        return used / requests * 1e6
    for _, process, port in contenders:
        measure(process, port)
    compare("A memory hit of 1 KiB, 32 connections", contenders, measure, options.rounds, 1.0)


# A geo answer by client subnet.

PLACES = {"NL": (52.37, 4.90, "192.0.2.1"), "US": (40.71, -74.01, "192.0.2.2"), "SG": (1.35, 103.82, "192.0.2.3")}
WRITER = r"""
use MaxMind::DB::Writer::Tree;
my %t = (country => 'map', location => 'map', iso_code => 'utf8_string', latitude => 'double', longitude => 'double');
my $tree = MaxMind::DB::Writer::Tree->new(ip_version => 6, record_size => 24, database_type => 'GeoLite2-Country', languages => ['en'],
  description => { en => 'synthetic places for a benchmark' }, map_key_type_callback => sub { $t{$_[0]} }, remove_reserved_networks => 0);
while (<STDIN>) { chomp; my ($n, $c, $la, $lo) = split / /;
  $tree->insert_network($n, { country => { iso_code => $c }, location => { latitude => $la + 0, longitude => $lo + 0 } }); }
open my $f, '>:raw', $ARGV[0]; $tree->write_tree($f);
"""


def query(number, name, subnet):
    """A DNS query for an address with a client subnet of 24 bits."""
    qname = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    ecs = struct.pack("!HHHBB", 8, 7, 1, 24, 0) + bytes(int(x) for x in subnet.split(".")[:3])
    opt = b"\0" + struct.pack("!HHIH", 41, 1232, 0, len(ecs)) + ecs
    return struct.pack("!HHHHHH", number & 0xFFFF, 0, 1, 0, 0, 1) + qname + struct.pack("!HH", 1, 1) + opt


def dns(options, work):
    chance = random.Random(1)
    networks = {}
    while len(networks) < 20000:
        networks[f"{chance.randint(11, 90)}.{chance.randint(0, 255)}.{chance.randint(0, 255)}.0"] = chance.choice(list(PLACES))
    subprocess.run(["perl", "-e", WRITER, work / "places.mmdb"], check=True, text=True,
                   input="".join(f"{n}/24 {c} {PLACES[c][0]} {PLACES[c][1]}\n" for n, c in networks.items()))
    name = "www.cdn.test"
    with open(work / "queries", "wb") as f:
        for number, network in enumerate(chance.sample(list(networks), 20000)):
            message = query(number, name, network)
            f.write(struct.pack("!H", len(message)) + message)
    knot_port, ours_port = free_port(), free_port()
    (work / "run").mkdir()
    (work / "geo.conf").write_text(f"{name}:\n" + "".join(f'  - geo: "{c}"\n    A: {a}\n' for c, (_, _, a) in PLACES.items()))
    (work / "cdn.test.zone").write_text("$TTL 60\n@ SOA ns1 hostmaster 1 3600 600 86400 60\n@ NS ns1\nns1 A 192.0.2.53\nwww A 192.0.2.9\n")
    (work / "knot.conf").write_text(f"""
server:
    rundir: {work}/run
    listen: 127.0.0.1@{knot_port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
    edns-client-subnet: on
database:
    storage: {work}/run
log:
  - target: stderr
    any: warning
mod-geoip:
  - id: places
    config-file: {work}/geo.conf
    ttl: 60
    mode: geodb
    geodb-file: {work}/places.mmdb
    geodb-key: [ country/iso_code ]
zone:
  - domain: cdn.test
    file: {work}/cdn.test.zone
    zonefile-sync: -1
    journal-content: none
    module: mod-geoip/places
""")
    fleet = f"""
[fleet]
zone = "cdn.test"
node_key = "a key for one benchmark"
state_dir = "{work}/state"
[steering]
geo_db = "{work}/places.mmdb"
[steering.health]
interval = "60s"
fall = 1000
[[name_server]]
name = "ns1"
listen = "127.0.0.1:{ours_port}"
admin = "127.0.0.1:{free_port()}"
[[site]]
name = "www"
hosts = ["www.demo.test"]
origin = "http://127.0.0.1:1"
steering = "geo"
ttl = "60s"
"""
    for country, (latitude, longitude, address) in PLACES.items():
        fleet += f"""
[[cluster]]
name = "{country.lower()}"
place = {{ latitude = {latitude}, longitude = {longitude} }}
time_zone = "Etc/UTC"
off_peak = "02:00-06:00"
fill_rate = "1Gbit/s"
[[cluster.node]]
name = "{country.lower()}-1"
address = "{address}"
service = "127.0.0.1:9"
"""
    (work / "nearcast.toml").write_text(fleet)
    knot = start("knot", ["knotd", "-c", "knot.conf"], work)
    ours = start("nearcast", [NEARCAST, "gslb-dns", "--fleet", "nearcast.toml", "--node", "ns1"], work)
    contenders = [("Knot", knot, knot_port), ("Nearcast", ours, ours_port)]

    def ask(port, network):
        return subprocess.run(["dig", "@127.0.0.1", "-p", str(port), name, "A", "+short", "+tries=1", "+time=2", f"+subnet={network}/24"],
                              capture_output=True, text=True).stdout.strip()
    for label, process, port in contenders:
        first = next(iter(networks))
        wait_for(f"{label} to answer", lambda: ask(port, first) == PLACES[networks[first]][2], process)
        for network in chance.sample(list(networks), 60):
            assert ask(port, network) == PLACES[networks[network]][2], f"{label} steers {network} ({networks[network]}) to {ask(port, network)}"

    def measure(process, port):
        before = cpu_seconds(process.pid)
        out = load(["dnsperf", "-B", "-d", work / "queries", "-s", "127.0.0.1", "-p", str(port), "-c", "1", "-T", "1", "-q", "200", "-l", str(options.seconds)],
                   options.seconds)
        used = cpu_seconds(process.pid) - before
        done = int(re.search(r"Queries completed:\s+(\d+)", out).group(1))
        assert int(re.search(r"NOERROR (\d+)", out).group(1)) == done, out
        return used / done * 1e6
    for _, process, port in contenders:
        measure(process, port)
    compare("A geo answer by client subnet, 20,000 subnets", contenders, measure, options.rounds, 2.0)


# The demo.

def demo(options, work):
    print("\n== The demo: first hit through a steered name, and resident memory")
    firsts, samples, runs = [], [], min(options.rounds, 3)
    for run in range(runs):
        begun = time.monotonic()
        process = start("demo", [NEARCAST, "demo"], work, core=None)

        def steered_hit():
            found = subprocess.run(["dig", "@127.0.0.1", "-p", "5300", "www.demo.test", "+short", "+tries=1", "+time=1", "+subnet=203.0.113.0/24"],
                                   capture_output=True, text=True).stdout.split()
            edge = next((a for a in found if a.startswith("127.0.20.")), None)
            if edge is None:
                return False
            head = subprocess.run(["curl", "-s", "-m", "2", "-D", "-", "-o", "/dev/null", "--resolve", f"www.demo.test:8080:{edge}",
                                   "http://www.demo.test:8080/"], capture_output=True, text=True).stdout
            return head.startswith("HTTP/1.1 200") and "; hit" in head
        wait_for("a hit through a steered name", steered_hit, process, limit=60)
        firsts.append(time.monotonic() - begun)
        if run == runs - 1:
            # A whole day of the demo's clock, with its pushes and peaks.
            for _ in range(24):
                time.sleep(10)
                samples.append(memory_bytes(process.pid))
        end(process)
    print(f"start to first hit: {statistics.median(firsts):.2f} s (most {max(firsts):.2f}); the bar is 10 s: " + ("met" if max(firsts) <= 10 else "MISSED"))
    for what, (resident, shared) in [("after a minute", samples[5]), ("after a day of four minutes", samples[-1]), ("at most", max(samples))]:
        print(f"all processes {what}: {resident / 1e6:.0f} MB resident ({shared / 1e6:.0f} MB with shared pages counted once)")
    print("the bar is 400 MB at most: " + ("met" if max(samples)[0] <= 400e6 else "MISSED"))


def traces(options, work):
    """Hit ratios, beside other policies: no servers and no times."""
    status = subprocess.run([REPO / "target/test-venv/bin/python", "-u", REPO / "tests/bench/traces.py"]).returncode
    if status != 0:
        sys.exit("bench: traces failed")


def main():
    parser = argparse.ArgumentParser(prog="tests/bench/run")
    sets = {"http": http, "dns": dns, **https.SETS, **http3.SETS, **speed.SETS, **store.SETS, "demo": demo, "traces": traces}
    parser.add_argument("what", nargs="?", choices=["all", "speed", *sets], default="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("bench: needs two cores, one for the server and one for the load")
    several = {"all": sets, "speed": speed.SETS}
    for part in several.get(options.what, {options.what: sets.get(options.what)}).values():
        work = pathlib.Path(tempfile.mkdtemp(prefix="nearcast-bench-"))
        work.chmod(0o755)
        try:
            part(options, work)
        finally:
            for process in STARTED[::-1]:
                end(process)
            STARTED.clear()
            shutil.rmtree(work, ignore_errors=True)


signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: stopped"))
main()
