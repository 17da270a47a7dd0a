"""Hits and misses in plain HTTP/1.1, beside HAProxy's cache, nginx's, Varnish and Traffic Server. Part of bench.py.

The figure is how much a server does in a second of its own CPU time. All of them have one thread on one core; origin and load have the other. Files of
the origin and nginx's cache are in /dev/shm, except in `disk-hit`.
"""
import os, pathlib, random, re, selectors, shutil, socket, subprocess, sys, tempfile, time

from https import Contender, report, rounds
from lab import *

MIB = 1 << 20
SIZES = {"1k": 1 << 10, "4k": 4 << 10, "16k": 16 << 10, "64k": 64 << 10, "1m": MIB, "16m": 16 * MIB}
ZIPF_URLS, DISK_URLS = 10_000, 2_000
GROWN = 1_000_000
NGINX = """
daemon off; user root; worker_processes 1; pid {base}/pid; error_log {base}/errors crit; worker_rlimit_nofile 16000;
events {{ worker_connections 8000; multi_accept on; }}
http {{
  access_log off; server_tokens off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 300s;
  types {{}} default_type application/octet-stream;
  open_file_cache max=200000 inactive=600s; open_file_cache_valid 600s; open_file_cache_min_uses 1;
  client_body_temp_path {base}/b; proxy_temp_path {base}/p; fastcgi_temp_path {base}/f; uwsgi_temp_path {base}/u; scgi_temp_path {base}/s;
  {inner} }}
"""
# wrk asks for base1 to baseN by Zipf's law with exponent 0.9, each run in the same order.
ZIPF = """
local base, count, reqs, order, sum, at = "%s", %d, {}, {}, 0, 0
function init(args)
  math.randomseed(42)
  local below = {}
  for i = 1, count do sum = sum + 1 / i ^ 0.9; below[i] = sum; reqs[i] = wrk.format("GET", base .. i) end
  for k = 1, 65536 do
    local u, low, high = math.random() * sum, 1, count
    while low < high do local m = math.floor((low + high) / 2) if below[m] < u then low = m + 1 else high = m end end
    order[k] = reqs[(low * 7919) %% count + 1]
  end
end
function request() at = at %% 65536 + 1 return order[at] end
"""
EVERY = """
local base, count, at = "%s", %d, 0
function request() at = (at + 1) * 16807 %% 2147483647 return wrk.format("GET", base .. (at %% count + 1)) end
"""
FRESH = """
local base, at = "", 0
function init(args) base = "/4k/" .. args[1] .. "-" end
function request() at = at + 1 return wrk.format("GET", base .. at) end
"""


class Lab:
    """The origin and the servers in front of it. `/SIZE/ANYTHING` is a response of that size, fresh for a day."""

    def __init__(self, options, work):
        self.options, self.work, self.contenders = options, work, []
        self.shared = pathlib.Path(tempfile.mkdtemp(prefix="nearcast-bench-", dir="/dev/shm"))
        self.shared.chmod(0o755)
        files, base = self.shared / "files", self.directory("origin")
        files.mkdir()
        for name, size in SIZES.items():
            (files / name).write_bytes(random.Random(1).randbytes(size))
        self.origin = free_port()
        rewrites = "".join(f"location /{name}/ {{ rewrite ^ /{name} break; }}" for name in SIZES)
        (base / "nginx.conf").write_text(NGINX.format(base=base, inner=f"""
  server {{ listen 127.0.0.1:{self.origin} backlog=4096; root {files}; add_header Cache-Control "public, max-age=86400"; {rewrites}
    location = /asked {{ stub_status; }} }}"""))
        start("origin", ["nginx", "-p", base, "-c", base / "nginx.conf", "-e", base / "errors"], work, core=LOAD_CORE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in STARTED[::-1]:
            end(process)
        STARTED.clear()
        shutil.rmtree(self.shared, ignore_errors=True)

    def directory(self, name):
        made = self.work / name
        made.mkdir()
        made.chmod(0o755)
        return made

    def add(self, name, port, argv, **more):
        process = start(name, argv, self.work, **more)
        wait_for(f"{name} to serve", lambda: len(fetch(port, "/1k/x")) == SIZES["1k"], process)
        self.contenders.append(Contender(name, process, port, None))
        return self.contenders[-1]

    def haproxy(self, megabytes=1000):
        port, base = free_port(), self.directory("haproxy")
        (base / "haproxy.cfg").write_text(f"""
global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
cache store
  total-max-size {megabytes}
  max-object-size 33554432
  max-age 86400
frontend web
  bind 127.0.0.1:{port} backlog 4096
  http-request cache-use store
  http-response cache-store store
  default_backend origin
backend origin
  http-reuse always
  server origin 127.0.0.1:{self.origin}
""")
        return self.add("HAProxy", port, ["haproxy", "-db", "-f", base / "haproxy.cfg"])

    def nginx(self, on_disk=False):
        port, base = free_port(), self.directory("nginx")
        cache = base / "cache" if on_disk else self.shared / "nginx"
        (base / "nginx.conf").write_text(NGINX.format(base=base, inner=f"""
  proxy_cache_path {cache} levels=1:2 keys_zone=c:256m max_size=20g inactive=1d use_temp_path=off;
  upstream origin {{ server 127.0.0.1:{self.origin}; keepalive 256; }}
  server {{ listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_cache c; proxy_cache_valid 200 1d; }} }}"""))
        return self.add("nginx", port, ["nginx", "-p", base, "-c", base / "nginx.conf", "-e", base / "errors"])

    def varnish(self):
        port, base = free_port(), self.directory("varnish")
        (base / "vcl").write_text(f'vcl 4.1;\nbackend default {{ .host = "127.0.0.1"; .port = "{self.origin}"; .max_connections = 2000; }}\n')
        return self.add("Varnish", port, ["varnishd", "-F", "-n", base / "n", "-j", "none", "-f", base / "vcl", "-a", f"127.0.0.1:{port}", "-T", "none",
                                          "-s", "malloc,6G", "-p", "thread_pools=1", "-p", "thread_pool_min=250", "-p", "thread_pool_max=2000",
                                          "-p", "listen_depth=4096"])

    def traffic_server(self, ram=3 << 30):
        port, base = free_port(), self.directory("trafficserver")
        for name in ("var", "run", "log", "cache", "share"):
            (base / name).mkdir()
        shutil.copytree("/etc/trafficserver", base / "etc")
        values = {
            "exec_thread.autoconfig": 0, "exec_thread.limit": 1, "accept_threads": 0, "task_threads": 1, "cache.threads_per_disk": 2,
            "cache.ram_cache.size": ram, "cache.ram_cache_cutoff": 64 * MIB, "cache.max_doc_size": 0, "cache.enable_read_while_writer": 1,
            "http.cache.max_open_read_retries": 50, "http.cache.open_write_fail_action": 5, "http.wait_for_cache": 1,
            "http.insert_response_via_str": 0, "log.logging_enabled": 0, "url_remap.pristine_host_hdr": 0, "net.connections_throttle": 16000,
            "net.listen_backlog": 4096, "http.keep_alive_no_activity_timeout_in": 300, "diags.debug.enabled": 0,
        }
        (base / "etc/records.config").write_text(
            f"CONFIG proxy.config.http.server_ports STRING {port}:ip-in=127.0.0.1\nCONFIG proxy.config.admin.user_id STRING #-1\n"
            + "".join(f"CONFIG proxy.config.{name} INT {value}\n" for name, value in values.items()))
        (base / "etc/remap.config").write_text(f"map / http://127.0.0.1:{self.origin}/\n")
        (base / "etc/storage.config").write_text(f"{base}/cache 2G\n")
        (base / "etc/plugin.config").write_text("")
        places = {"prefix": base, "exec_prefix": base, "bindir": "/usr/bin", "sbindir": "/usr/sbin", "sysconfdir": base / "etc",
                  "datadir": base / "share", "includedir": "/usr/include", "libdir": "/usr/lib/trafficserver",
                  "libexecdir": "/usr/lib/trafficserver/modules", "localstatedir": base / "var", "runtimedir": base / "run", "logdir": base / "log",
                  "cachedir": base / "cache"}
        (base / "runroot.yaml").write_text("".join(f"{name}: {place}\n" for name, place in places.items()))
        return self.add("Traffic Server", port, ["traffic_server", f"--run-root={base}/runroot.yaml"],
                        env=os.environ | {"LD_LIBRARY_PATH": "/usr/lib/trafficserver"})

    def nearcast(self, *arguments, name="Nearcast"):
        port, base = free_port(), self.directory(name.replace(" ", "-"))
        return self.add(name, port, [NEARCAST, "edge", "--listen", f"127.0.0.1:{port}", "--origin", f"http://127.0.0.1:{self.origin}", "--state-dir",
                                     base / "state", "--user", "root", "--log", "warn", *arguments])

    def all(self):
        self.haproxy(), self.nginx(), self.varnish(), self.traffic_server(), self.nearcast("--memory", "1GiB")

    def store(self, paths, passes=3):
        """Has every server store these: some admit a response with its second request, or later."""
        for contender in self.contenders:
            for _ in range(passes):
                ask_all(contender.plain, paths)

    def asked(self):
        """Requests that the origin has had."""
        return int(re.search(rb"\n\s*\d+ \d+ (\d+)", fetch(self.origin, "/asked")).group(1))

    def wrk(self, contender, path, connections, *more, lua=None, arguments=(), misses=False):
        """Requests, bytes, and the server's CPU time; none of them may have failed, and none have missed unless all do."""
        argv = ["wrk", "-t1", f"-c{connections}", f"-d{self.options.seconds}s", "--timeout", "8s", *more]
        if lua:
            script = self.work / "load.lua"
            script.write_text(lua)
            argv += ["-s", script]
        argv += [f"http://127.0.0.1:{contender.plain}{path}", *(["--", *arguments] if arguments else [])]
        asked = self.asked()
        out, used = contender.used(lambda: load(argv, self.options.seconds))
        asked = self.asked() - asked - 1
        requests, size, unit = re.search(r"(\d+) requests in [^,]+, ([\d.]+)([KMGT]?)B read", out).groups()
        assert "Non-2xx" not in out and "Socket errors" not in out, f"{contender.name}: {out}"
        requests = int(requests)
        if misses and asked < requests * 0.99 or not misses and asked > requests * 0.01:
            sys.exit(f"bench: {contender.name} asked the origin {asked} times for {requests} requests")
        return requests, float(size) * {"": 1, "K": 1 << 10, "M": MIB, "G": 1 << 30, "T": 1 << 40}[unit], used

    def requests(self, title, bar, path, connections, *more, reference=(), **kw):
        """Compares requests a CPU second."""
        def measure(contender):
            count, _, used = self.wrk(contender, path, connections, *more, **kw)
            return count / used
        self.compare(title, "requests a CPU second", measure, bar, reference)

    def compare(self, title, unit, measure, bar, reference=()):
        samples = rounds(self.options, self.contenders, measure)
        peers = [name for name in samples if name not in reference and name != self.contenders[-1].name]
        report(title, unit, samples, peers, bar)


def fetch(port, path):
    return subprocess.run(["curl", "-s", "-m", "8", f"http://127.0.0.1:{port}{path}"], capture_output=True).stdout


def ask_all(port, paths, connections=16):
    """Each path once over a few connections."""
    left, selector, buffer = iter(paths), selectors.DefaultSelector(), bytearray(1 << 18)
    due = {}

    def ask(connection):
        path = next(left, None)
        if path is None:
            selector.unregister(connection)
            connection.close()
            return
        due[connection] = None
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())

    for _ in range(connections):
        connection = socket.create_connection(("127.0.0.1", port), 8)
        selector.register(connection, selectors.EVENT_READ)
        ask(connection)
    while selector.get_map():
        ready = selector.select(20)
        if not ready:
            sys.exit(f"bench: port {port} does not answer")
        for key, _ in ready:
            connection = key.fileobj
            length = connection.recv_into(buffer)
            if due[connection] is None:
                head, _, body = bytes(buffer[:length]).partition(b"\r\n\r\n")
                stated = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
                if b" 200 " not in head[:16] or not stated:
                    sys.exit(f"bench: port {port} answers {head[:200]}")
                due[connection] = int(stated.group(1)) - len(body)
            else:
                due[connection] -= length
            if due[connection] == 0:
                ask(connection)
            elif length == 0:
                sys.exit(f"bench: port {port} has cut a response")


def hits(options, work):
    with Lab(options, work) as lab:
        lab.all()
        lab.store(["/1k/x"])
        lab.requests("A memory hit of 1 KiB, 64 connections", 1.35, "/1k/x", 64)


def conn(options, work):
    with Lab(options, work) as lab:
        lab.all()
        lab.store(["/1k/x"])
        lab.requests("A memory hit of 1 KiB, one connection a request, 64 at a time", 1.0, "/1k/x", 64, "-H", "Connection: close")


def zipf(options, work):
    with Lab(options, work) as lab:
        lab.all()
        lab.store([f"/16k/{number}" for number in range(1, ZIPF_URLS + 1)], passes=2)
        lab.requests("10,000 responses of 16 KiB, Zipf 0.9, 64 connections", 1.7, "/16k/1", 64, lua=ZIPF % ("/16k/", ZIPF_URLS))


def large_plain(options, work):
    with Lab(options, work) as lab:
        lab.all()
        lab.store(["/1m/x", "/16m/x"])
        for size, connections in (("1m", 16), ("16m", 4)):
            def measure(contender):
                _, read, used = lab.wrk(contender, f"/{size}/x", connections)
                return read * 8 / 1e9 / used
            lab.compare(f"A memory hit of {size[:-1]} MiB in plain HTTP/1.1, {connections} connections", "Gbit a CPU second", measure, 1.0)


def miss(options, work):
    number = 0
    with Lab(options, work) as lab:
        lab.all()

        def measure(contender):
            nonlocal number
            number += 1
            count, _, used = lab.wrk(contender, "/", 32, lua=FRESH, arguments=[f"{number}"], misses=True)
            return count / used
        lab.compare("A miss of 4 KiB that is stored in memory, 32 connections", "requests a CPU second", measure, 0.7)


def disk_hit(options, work):
    with Lab(options, work) as lab:
        lab.nginx(on_disk=True), lab.traffic_server(ram=0), lab.nearcast("--memory", "16MiB", "--disk", "2GiB")
        lab.store([f"/64k/{number}" for number in range(1, DISK_URLS + 1)])
        time.sleep(2)  # what is queued is written
        lab.requests(f"{DISK_URLS:,} responses of 64 KiB from disk, page cache warm, 32 connections", 1.0, "/64k/1", 32, lua=EVERY % ("/64k/", DISK_URLS))


def growth(options, work):
    with Lab(options, work) as lab:
        few, many = lab.nearcast("--memory", "4GiB", name="with 1,000"), lab.nearcast("--memory", "4GiB", name="with 1,000,000")
        for contender, count in ((few, 1000), (many, GROWN)):
            ask_all(contender.plain, (f"/1k/{number}" for number in range(1, count + 1)), connections=64)

        def measure(contender):
            count = 1000 if contender is few else GROWN
            requests, _, used = lab.wrk(contender, "/1k/1", 64, lua=EVERY % ("/1k/", count))
            return requests / used
        lab.compare("A memory hit of 1 KiB, all of a million responses in turn, beside a thousand", "requests a CPU second", measure, 1 / 1.15)


def ask_apart(port, path, count):
    """A path a few times, each on a connection of its own."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port), 20) as connection:
            connection.sendall(request)
            while connection.recv(1 << 16):
                pass


def instructions(options, work):
    """Instructions of user mode a request, which do not depend on what else the machine does."""
    count = 1000
    with Lab(options, work) as lab:
        port, base = free_port(), lab.directory("nearcast")
        counts = base / "counts"
        process = start("callgrind", ["valgrind", "--tool=callgrind", f"--callgrind-out-file={counts}", NEARCAST, "edge", "--listen", f"127.0.0.1:{port}",
                                      "--origin", f"http://127.0.0.1:{lab.origin}", "--state-dir", base / "state", "--user", "root", "--log", "warn",
                                      "--memory", "256MiB"], work)
        wait_for("callgrind to begin", lambda: fetch(port, "/1k/x"), process, limit=120)
        ask_all(port, (f"/4k/before-{number}" for number in range(200)), connections=8)
        kinds = {
            "a hit of 1 KiB": lambda count: ask_all(port, ["/1k/x"] * count, connections=8),
            "a hit of 16 KiB": lambda count: ask_all(port, ["/16k/x"] * count, connections=8),
            "a hit of 1 KiB on a connection of its own": lambda count: ask_apart(port, "/1k/x", count),
            "a miss of 4 KiB": lambda count: ask_all(port, (f"/4k/{count}-{number}" for number in range(count)), connections=8),
        }
        print(f"\n== Instructions of user mode a request ({count} requests of each)")
        for number, (kind, ask) in enumerate(kinds.items(), 1):
            ask(100)
            subprocess.run(["callgrind_control", "-z", str(process.pid)], check=True, capture_output=True)
            ask(count)
            subprocess.run(["callgrind_control", "-d", str(process.pid)], check=True, capture_output=True)
            dumped = base / f"counts.{number}"
            wait_for("the counts", lambda: dumped.exists() and "\ntotals: " in dumped.read_text(), process)
            total = int(re.search(r"^totals: (\d+)", dumped.read_text(), re.M).group(1))
            print(f"{kind:42} {total / count:10,.0f}")


SETS = {"hits": hits, "zipf": zipf, "large-plain": large_plain, "miss": miss, "conn": conn, "disk-hit": disk_hit, "growth": growth, "instructions": instructions}
