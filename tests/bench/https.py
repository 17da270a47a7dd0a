"""TLS, HTTP/2, the access log and compression, beside HAProxy's cache and nginx's, all with one certificate of P-256. Part of bench.py.

The figure is how much a server does in a second of its own CPU time; references are listed beside the peers and do not count as one.
"""
import json, pathlib, random, re, statistics, subprocess, sys, time

from lab import *

HOST = "www.bench.test"
CLIENTS = pathlib.Path(__file__).with_name("clients.py")
MIB = 1 << 20
IDLE = 1000  # connections
WARM = 50  # connections before the memory is first read
TEXT_BYTES = 60 << 10
# Sizes of what the origin and h2o serve, by path.
SIZES = {"": 1024, "1k": 1024, "4k": 4096, "1m": MIB}

ORIGIN = """
import http.server, pathlib, sys
files = pathlib.Path(sys.argv[2])
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        name = self.path.strip("/") or "index.html"
        body = (files / name).read_bytes()
        self.send_response(200)
        kind = "text/html" if name == "text" else "application/octet-stream"
        for n, v in (("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "max-age=86400"), ("ETag", '"one"')):
            self.send_header(n, v)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""


def text_of(size):
    """Text with words and links, as a page has them: it compresses about as a page does."""
    chance = random.Random(7)
    vocabulary = ["".join(chance.choice("etaoinshrdlu") for _ in range(chance.randint(2, 9))) for _ in range(900)]
    text = ""
    while len(text) < size:
        word = chance.choice(vocabulary)
        text += f'<a href="/{word}">{chance.choice(vocabulary)}</a> ' if chance.random() < 0.1 else word + " "
    return text[:size].encode()


class Lab:
    """The origin, its files, the certificate, and servers in front of it."""

    def __init__(self, options, work):
        self.options, self.work, self.contenders, self.started = options, work, [], 0
        files = work / "files"
        files.mkdir()
        for name, size in SIZES.items():
            (files / (name or "index.html")).write_bytes(random.Random(1).randbytes(size))
        (files / "text").write_bytes(text_of(TEXT_BYTES))
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj",
                        f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}", "-keyout", work / "key.pem", "-out", work / "cert.pem"],
                       stderr=subprocess.DEVNULL, check=True)
        (work / "both.pem").write_text((work / "cert.pem").read_text() + (work / "key.pem").read_text())
        for path in [files, *files.iterdir(), *work.glob("*.pem")]:
            path.chmod(0o755 if path.is_dir() else 0o644)  # servers that are started as root read them as other users
        self.origin = free_port()
        start("origin", ["python3", "-c", ORIGIN, self.origin, files], work, core=LOAD_CORE)

    def add(self, name, process, plain, tls):
        """Waits until a server has stored everything under both schemes, then counts it in."""
        for scheme, port in (("https", tls), ("http", plain)):
            for path, size in SIZES.items():
                wait_for(f"{name} to serve /{path} by {scheme}", lambda: len(self.fetch(scheme, port, f"/{path}")) == size, process)
                self.fetch(scheme, port, f"/{path}")
        self.contenders.append(Contender(name, process, plain, tls))
        return self.contenders[-1]

    def fetch(self, scheme, port, path, *more):
        """By curl, with the very URL that h2load asks for, as it is part of keys."""
        version = "--http2" if scheme == "https" else "--http1.1"
        argv = ["curl", "-s", "-k", version, "-m", "3", "--connect-to", f"{HOST}::127.0.0.1:{port}", f"{scheme}://{HOST}{path}", *more]
        return subprocess.run(argv, capture_output=True).stdout

    def directory(self, name):
        """A new one for a server."""
        self.started += 1
        made = self.work / f"{name}-{self.started}"
        made.mkdir()
        made.chmod(0o755)
        return made

    def haproxy(self):
        plain, tls, base = free_port(), free_port(), self.directory("haproxy")
        (base / "haproxy.cfg").write_text(f"""
global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 60s
cache store
  total-max-size 64
  max-object-size 2000000
  max-age 86400
frontend web
  bind 127.0.0.1:{plain}
  bind 127.0.0.1:{tls} ssl crt {self.work}/both.pem alpn h2,http/1.1
  http-request cache-use store
  http-response cache-store store
  default_backend origin
backend origin
  server origin 127.0.0.1:{self.origin}
""")
        return self.add("HAProxy", start("haproxy", ["haproxy", "-db", "-f", base / "haproxy.cfg"], self.work), plain, tls)

    def nginx(self):
        plain, tls, base = free_port(), free_port(), self.directory("nginx")
        (base / "nginx.conf").write_text(f"""
daemon off; user root; worker_processes 1; pid {base}/pid; error_log {base}/errors crit; worker_rlimit_nofile 16000;
events {{ worker_connections 8000; }}
http {{
  access_log off; server_tokens off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; keepalive_timeout 300s;
  open_file_cache max=1000 inactive=600s; open_file_cache_valid 600s; open_file_cache_min_uses 1;
  client_body_temp_path {base}/b; proxy_temp_path {base}/p; fastcgi_temp_path {base}/f; uwsgi_temp_path {base}/u; scgi_temp_path {base}/s;
  ssl_certificate {self.work}/cert.pem; ssl_certificate_key {self.work}/key.pem; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:s:4m;
  proxy_cache_path {base}/cache levels=1:2 keys_zone=c:16m max_size=1g inactive=1d use_temp_path=off;
  server {{ listen 127.0.0.1:{plain} backlog=4096; listen 127.0.0.1:{tls} ssl http2 backlog=4096; http2_max_concurrent_streams 256;
    location / {{ proxy_pass http://127.0.0.1:{self.origin}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_cache c; proxy_cache_valid 200 1d; }} }} }}
""")
        argv = ["nginx", "-p", base, "-c", base / "nginx.conf", "-e", base / "errors"]
        return self.add("nginx", start("nginx", argv, self.work), plain, tls)

    def h2o(self):
        """Static files: no cache, but the fastest HTTP/2 server of Debian."""
        plain, tls, base = free_port(), free_port(), self.directory("h2o")
        (base / "h2o.conf").write_text(f"""
num-threads: 1
max-connections: 8000
error-log: {base}/errors
user: root
listen: {{ host: 127.0.0.1, port: {plain} }}
listen: {{ host: 127.0.0.1, port: {tls}, ssl: {{ certificate-file: {self.work}/cert.pem, key-file: {self.work}/key.pem }} }}
hosts:
  default:
    paths:
      /: {{ file.dir: {self.work}/files }}
""")
        return self.add("h2o static", start("h2o", ["h2o", "-m", "worker", "-c", base / "h2o.conf"], self.work), plain, tls)

    def nearcast(self, name="Nearcast", sections="", site="", hosts=()):
        """With more hosts than the usual one; `sections` have their certificates then."""
        plain, tls, admin, base = free_port(), free_port(), free_port(), self.directory("nearcast")
        (base / "nearcast.toml").write_text(f"""
[fleet]
zone = "cdn.test"
node_key = "a key for one benchmark"
state_dir = "{base}/state"
user = "root"
{sections}
[[certificate]]
cert = "{self.work}/cert.pem"
key = "{self.work}/key.pem"
[[name_server]]
name = "ns1"
listen = "127.0.0.1:{free_port()}"
[[cluster]]
name = "bench"
place = {{ latitude = 52.37, longitude = 4.90 }}
[[cluster.node]]
name = "bench-1"
address = "127.0.0.1"
listen = "127.0.0.1:{plain}"
listen_tls = "127.0.0.1:{tls}"
admin = "127.0.0.1:{admin}"
memory = "64MiB"
disk = "0"
threads = 1
[[site]]
name = "www"
hosts = {json.dumps([HOST, *hosts])}
origin = "http://127.0.0.1:{self.origin}"
ttl = "20s"
{site}
""")
        argv = [NEARCAST, "edge", "--fleet", base / "nearcast.toml", "--node", "bench-1", "--log", "warn"]
        process, begun = start(base.name, argv, self.work), time.monotonic()
        wait_for(f"{name} to serve", lambda: len(self.fetch("https", tls, "/")) == SIZES[""], process)
        seconds = time.monotonic() - begun
        added = self.add(name, process, plain, tls)
        added.start_seconds, added.admin = seconds, admin
        for scheme, port in (("https", tls), ("http", plain)):
            for path in SIZES:
                wait_for(f"a hit of /{path} by {scheme}", lambda: self.is_hit(scheme, port, f"/{path}"), process)
        return added

    def is_hit(self, scheme, port, path, *more):
        return b"; hit" in self.fetch(scheme, port, path, "-D", "-", "-o", "/dev/null", *more)


class Contender:
    def __init__(self, name, process, plain, tls):
        self.name, self.process, self.plain, self.tls = name, process, plain, tls

    def used(self, act):
        """What an action gives, and the server's CPU time meanwhile."""
        before = cpu_seconds(self.process.pid)
        found = act()
        return found, cpu_seconds(self.process.pid) - before


def h2load(options, contender, path, clients, streams, *more, tls=True):
    """Requests that succeeded, bytes of their bodies, and the server's CPU time."""
    port, scheme = (contender.tls, "https") if tls else (contender.plain, "http")
    argv = ["h2load", "-t1", f"-c{clients}", f"-m{streams}", f"-D{options.seconds}", f"--connect-to=127.0.0.1:{port}", *more, f"{scheme}://{HOST}{path}"]
    out, used = contender.used(lambda: load(argv, options.seconds))
    total, done, failed = re.search(r"requests: (\d+) total.* (\d+) succeeded, (\d+) failed", out).groups()
    # h2load counts what is under way at the end as neither.
    assert int(failed) == 0 and int(done) > 0, out
    good = int(re.search(r"status codes: (\d+) 2xx", out).group(1))
    assert good >= int(done), out
    if tls:
        assert "TLSv1.3" in out, out
    body = int(re.search(r"\((\d+)\) data", out).group(1))
    return int(done), body, used


def rounds(options, contenders, measure):
    """Samples by name, from interleaved rounds of `measure(contender)` after one that does not count."""
    samples = {contender.name: [] for contender in contenders}
    for number in range(options.rounds + 1):
        for contender in contenders if number % 2 == 0 else contenders[::-1]:
            found = measure(contender)
            if number:
                samples[contender.name].append(found)
    return samples


def report(title, unit, samples, peers, bar, more_is_better=True):
    """The table of the samples, Nearcast's the last ones, and the ratio to the best peer, round by round."""
    medians = {name: statistics.median(values) for name, values in samples.items()}
    ours = list(samples)[-1]
    count = len(samples[ours])
    print(f"\n== {title} ({count} interleaved rounds)")
    print(f"{'':14} {unit:>24} {'least':>10} {'most':>10} {'ours / it':>10}")
    for name, values in samples.items():
        ratio, note = f"{medians[ours] / medians[name]:.2f}", "" if name == ours or name in peers else "  (reference)"
        print(f"{name:14} {medians[name]:24.1f} {min(values):10.1f} {max(values):10.1f} {'' if name == ours else ratio:>10}{note}")
    best = (max if more_is_better else min)(peers, key=lambda name: medians[name])
    ratios = sorted(o / p for o, p in zip(samples[ours], samples[best]))
    ratio = statistics.median(ratios)
    met = ratio >= bar if more_is_better else ratio <= bar
    print(f"{ours} / {best}: {ratio:.2f} (rounds: {ratios[0]:.2f} to {ratios[-1]:.2f}); the bar is {bar:.2f}: " + ("met" if met else "MISSED"))


def http2(options, work):
    lab = Lab(options, work)
    lab.haproxy(), lab.nginx(), lab.h2o(), lab.nearcast()

    def measure(contender):
        done, _, used = h2load(options, contender, "/4k", 16, 32)
        return done / used
    samples = rounds(options, lab.contenders, measure)
    report("4 KiB over TLS 1.3 and HTTP/2, 16 connections of 32 streams", "requests a CPU second", samples, ["HAProxy", "nginx"], 1.2)


def tls(options, work):
    lab = Lab(options, work)
    lab.haproxy(), lab.nginx(), lab.nearcast()

    def measure(contender):
        done, _, used = h2load(options, contender, "/1k", 64, 1, "--h1")
        return done / used
    samples = rounds(options, lab.contenders, measure)
    report("1 KiB over TLS 1.3 and HTTP/1.1, 64 connections", "requests a CPU second", samples, ["HAProxy", "nginx"], 1.15)


def handshakes(options, work):
    lab = Lab(options, work)
    lab.haproxy(), lab.nginx(), lab.nearcast()
    for kind in ("full", "resumed"):
        def measure(contender):
            argv = ["python3", CLIENTS, "handshakes", contender.tls, HOST, options.seconds, kind]
            out, used = contender.used(lambda: load(argv, options.seconds))
            if not out.strip().isdigit():
                sys.exit(f"bench: handshakes with {contender.name} failed; run {' '.join(map(str, argv))}")
            return int(out) / used
        samples = rounds(options, lab.contenders, measure)
        report(f"TLS 1.3 handshakes, {kind}, P-256", "handshakes a CPU second", samples, ["HAProxy", "nginx"], 1.0)


def large(options, work):
    lab = Lab(options, work)
    lab.haproxy(), lab.nginx(), lab.h2o(), lab.nearcast()

    def measure(contender):
        _, sent, used = h2load(options, contender, "/1m", 16, 1, "-w22", "-W24")
        return sent / MIB / used
    samples = rounds(options, lab.contenders, measure)
    report("1 MiB over TLS 1.3 and HTTP/2, 16 connections", "MiB a CPU second", samples, ["HAProxy", "nginx"], 1.0)


def log(options, work):
    lab = Lab(options, work)
    lab.nearcast("without a log")
    logged = lab.nearcast("with a log", sections=f'[access_log]\npath = "{work}/access.log"\nformat = "json"\n')
    written = work / "access.log"

    asked = 0

    def measure(contender):
        nonlocal asked
        done, _, used = h2load(options, contender, "/1k", 64, 1, "--h1", tls=False)
        asked += done if contender is logged else 0
        return done / used
    samples = rounds(options, lab.contenders, measure)
    report("1 KiB in plain HTTP/1.1, the access log (JSON, every request)", "requests a CPU second", samples, ["without a log"], 0.92)
    end(logged.process)  # which writes the rest
    lines = sum(path.read_bytes().count(b"\n") for path in work.glob("access.log*"))
    print(f"{lines} lines in {written.name} and what it was rotated to, of {asked} requests of the rounds and some before them")
    assert lines >= asked, "lines are missing"


def idle(options, work):
    lab = Lab(options, work)

    def hold(contender, number):
        argv = ["taskset", "-c", LOAD_CORE, "python3", CLIENTS, "idle", str(contender.tls), HOST, str(number)]
        client = subprocess.Popen([str(a) for a in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if client.stdout.readline().strip() != "ready":
            sys.exit(f"bench: idle connections to {contender.name} failed; run {' '.join(map(str, argv[3:]))}")
        return client

    def measure(contender):
        client = hold(contender, WARM)
        before, _ = memory_bytes(contender.process.pid)
        more = hold(contender, IDLE)
        time.sleep(2)  # what a server gives back after a moment of idling, it may give back
        after, _ = memory_bytes(contender.process.pid)
        for held in (client, more):
            held.stdin.close()
            held.wait()
        return (after - before) / IDLE / 1024
    # A process may keep what an earlier round has freed, so each round has servers of its own.
    makers, samples = [lab.haproxy, lab.nginx, lab.nearcast], {}
    for _ in range(options.rounds):
        for make in makers:
            contender = make()
            samples.setdefault(contender.name, []).append(measure(contender))
            end(contender.process)
    report(f"An idle connection of HTTP/2 over TLS 1.3 after one request, {IDLE} of them", "KiB resident each", samples, ["nginx"], 1.0, more_is_better=False)


def coding(options, work):
    lab = Lab(options, work)
    ours = lab.nearcast(site='[site.compression]\ncodings = ["zstd", "br", "gzip"]\n')
    accepts = [("plain", ()), ("gzip", ("-H", "accept-encoding: gzip")), ("br", ("-H", "accept-encoding: br")), ("zstd", ("-H", "accept-encoding: zstd"))]
    for name, fields in accepts:
        wait_for(f"a hit in {name}", lambda: lab.is_hit("http", ours.plain, "/text", *fields), ours.process)
    # A request costs about the same whatever it sends, so a byte of a shorter body costs more. What the coding itself costs is seen beside
    # a plain response of the same length.
    short = "plain, as short"
    (work / "files" / "short").write_bytes(random.Random(2).randbytes(len(lab.fetch("http", ours.plain, "/text", *dict(accepts)["gzip"]))))
    wait_for("a hit of /short", lambda: lab.is_hit("http", ours.plain, "/short"), ours.process)
    accepts.insert(1, (short, ()))
    samples = {name: [] for name, _ in accepts}
    for number in range(options.rounds + 1):
        for name, fields in accepts if number % 2 == 0 else accepts[::-1]:
            path = "/short" if name == short else "/text"
            done, sent, used = h2load(options, ours, path, 64, 1, "--h1", *fields, tls=False)
            if number:
                samples[name].append((done / used, sent / done, sent / used / MIB))
    print(f"\n== Text of {TEXT_BYTES >> 10} KiB, compressed once, hits in plain HTTP/1.1, 64 connections ({options.rounds} interleaved rounds)")
    print(f"{'':15} {'bytes each':>12} {'requests a CPU second':>22} {'/ plain':>8} {'MiB a CPU second':>17} {'/ plain':>8}")
    medians = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in samples.items()}
    for name, (rate, each, speed) in medians.items():
        plain = medians["plain"]
        print(f"{name:15} {each:12.0f} {rate:22.1f} {rate / plain[0]:8.2f} {speed:17.1f} {speed / plain[2]:8.2f}")
    least = {name: min(row[2] / medians[name][2] for coded, row in medians.items() if coded not in ("plain", short)) for name in ("plain", short)}
    print(f"bytes sent a CPU second, compressed / plain: {least['plain']:.2f} at least; the bar is 1.00: " + ("met" if least["plain"] >= 1 else "MISSED"))
    print(f"the same / {short}: {least[short]:.2f} at least")


SETS = {"h2": http2, "tls": tls, "handshakes": handshakes, "large": large, "log": log, "idle": idle, "coding": coding}
