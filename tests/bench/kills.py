"""Whether an edge's store survives being killed: kill -9 during mixed reads, ranges and unsafe methods, again and again, on one state directory.

  cargo build --release && python3 tests/bench/kills.py [--kills 1000] [--seed 1] [--binary PATH] [--clock]

The origin's bodies name their URL and version, so that every byte of every answer is checked. A POST raises the version before the origin answers;
once its answer has arrived, no older version may be served, by any later run. Before each kill the URLs that were stored a second earlier and not
changed since are noted; the next run is asked for them once, a second after its start. `--clock` starts each run of the edge with a
clock that is off by up to two days, with libfaketime (Debian: faketime). Loopback alone, standard library only.

Prints kills, requests, wrong answers, stale answers and the share that was still there; exits 1 when any answer was wrong or stale, or less than 99 % (`--least`)
was there. With `--clock` responses may expire, so the share is printed only.
"""
import argparse, bisect, collections, http.client, http.server, os, pathlib, random, re, shutil, signal, socket, subprocess, sys, tempfile, threading, time

REPO = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "release/nearcast"
URLS = 400
THREADS = 6
# How long a new run may read what the one before it left, in seconds.
SETTLE = 1.0
SHOWN = 10


def size_of(number):
    """From 100 bytes to 900 kB: most bodies are one slice, some are several."""
    choice = random.Random(f"size {number}")
    return int(100 * 3 ** choice.uniform(0, 5)) if choice.random() < 0.9 else choice.randrange(200_000, 900_000)


def body_of(number, version, size):
    line = b"/%d version %d\n" % (number, version)
    return (line * (size // len(line) + 1))[:size]


class Site:
    """What the origin has, and what clients may still be served."""

    def __init__(self):
        self.lock = threading.Lock()
        self.versions = [1] * URLS
        self.acknowledged = [1] * URLS
        self.sizes = [size_of(n) for n in range(URLS)]
        self.requests = 0


class Origin(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    site = None

    def answer(self, status, fields, body=b""):
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        site = self.site
        number = int(self.path[1:])
        with site.lock:
            version = site.versions[number]
            site.requests += 1
        tag = f'"{number}-{version}"'
        # Fresh for longer than the test lasts; a Date of the edge's own clock is not sent.
        fields = [("ETag", tag), ("Cache-Control", "max-age=864000")]
        if self.headers.get("If-None-Match") == tag:
            return self.answer(304, fields)
        body = body_of(number, version, site.sizes[number])
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if ranged and self.headers.get("If-Range", tag) == tag and int(ranged[1]) < len(body):
            first = int(ranged[1])
            last = min(int(ranged[2] or len(body) - 1), len(body) - 1)
            fields.append(("Content-Range", f"bytes {first}-{last}/{len(body)}"))
            return self.answer(206, fields, body[first:last + 1])
        self.answer(200, fields, body)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        number = int(self.path[1:])
        with self.site.lock:
            self.site.versions[number] += 1
            version = self.site.versions[number]
        self.answer(200, [("Cache-Control", "no-store")], b"%d" % version)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        """Connections that the killed edge leaves behind."""


class Checks:
    """Counts and the faults that were found."""

    def __init__(self):
        self.lock = threading.Lock()
        self.counts = collections.Counter()
        self.faults = []

    def add(self, what, number=1):
        with self.lock:
            self.counts[what] += number

    def fault(self, what, text):
        with self.lock:
            self.counts[what] += 1
            if len(self.faults) < SHOWN:
                self.faults.append(f"{what}: {text}")


class Client:
    def __init__(self, address, site, checks):
        self.address, self.site, self.checks = address, site, checks
        self.connection = None
        self.last_statuses = []

    def exchange(self, method, number, fields):
        if self.connection is None:
            self.connection = http.client.HTTPConnection(*self.address, timeout=20)
        try:
            self.connection.request(method, f"/{number}", headers=fields)
            response = self.connection.getresponse()
            return response, response.read()
        except Exception:
            self.connection.close()
            self.connection = None
            raise

    def get(self, number, fields={}):
        """The version that was served, and whether from the store."""
        floor = self.site.acknowledged[number]
        response, body = self.exchange("GET", number, fields)
        self.checks.add("requests")
        if response.status not in (200, 206):
            self.checks.fault("other status", f"{number}: {response.status} {response.headers}")
            return None
        match = re.fullmatch(rf'"{number}-(\d+)"', response.headers.get("ETag") or "")
        if not match:
            self.checks.fault("wrong", f"/{number} has the tag {response.headers.get('ETag')}")
            return None
        version = int(match[1])
        expected = body_of(number, version, self.site.sizes[number])
        if response.status == 206:
            first, last = re.match(r"bytes (\d+)-(\d+)/", response.headers["Content-Range"]).groups()
            expected = expected[int(first):int(last) + 1]
        if body != expected:
            at = next((n for n, pair in enumerate(zip(body, expected)) if pair[0] != pair[1]), min(len(body), len(expected)))
            self.checks.fault("wrong", f"/{number} version {version}: {len(body)} of {len(expected)} bytes, the first other one at {at}")
        elif version < floor or version > self.site.versions[number]:
            self.checks.fault("stale", f"/{number}: version {version} after {floor} was acknowledged; {response.headers.get('Cache-Status')}")
        status = response.headers.get("Cache-Status") or ""
        self.last_statuses.append(re.sub(r"ttl=-?\d+|detail=\S+", "", status.partition(";")[2]).strip(" ;"))
        return version, "; hit" in status

    def post(self, number):
        response, body = self.exchange("POST", number, {"Content-Length": "0"})
        if response.status == 200:
            with self.site.lock:
                self.site.acknowledged[number] = max(self.site.acknowledged[number], int(body))
            self.checks.add("unsafe")


class Run:
    """Clients against one run of the edge, until it is killed."""

    def __init__(self, address, site, checks, seed):
        self.address, self.site, self.checks, self.seed = address, site, checks, seed
        self.is_over = threading.Event()
        self.lock = threading.Lock()
        # When each URL was stored in its present version.
        self.stored = {}
        weights, total = [], 0
        for n in range(URLS):
            total += 1 / (n + 1) ** 0.6
            weights.append(total)
        self.weights = weights
        self.threads = [threading.Thread(target=self.work, args=(n,), daemon=True) for n in range(THREADS)]
        for thread in self.threads:
            thread.start()

    def work(self, thread):
        choice = random.Random(f"{self.seed} {thread}")
        client = Client(self.address, self.site, self.checks)
        while not self.is_over.is_set():
            number = bisect.bisect_left(self.weights, choice.random() * self.weights[-1])
            try:
                self.step(client, choice, number)
            except (OSError, http.client.HTTPException):
                if not self.is_over.is_set():
                    time.sleep(0.01)

    def step(self, client, choice, number):
        kind = choice.random()
        if kind < 0.06:
            with self.lock:
                self.stored.pop(number, None)
            try:
                client.post(number)
            finally:
                with self.lock:
                    self.stored.pop(number, None)
        elif kind < 0.2:
            first = choice.randrange(self.site.sizes[number])
            client.get(number, {"Range": f"bytes={first}-{first + choice.randrange(1, 300_000)}"})
        else:
            begun = self.site.versions[number]
            found = client.get(number)
            if found and found[0] == begun == self.site.versions[number]:
                with self.lock:
                    self.stored.setdefault(number, (found[0], time.monotonic()))

    def end(self):
        """URLs that were stored for a second when the kill came, with their versions."""
        now = time.monotonic()
        self.is_over.set()
        for thread in self.threads:
            thread.join(30)
        return {n: version for n, (version, at) in self.stored.items() if now - at >= 1 and version == self.site.versions[n]}


def start(options, address, origin, directory, choice):
    command = [str(options.binary), "edge", "--listen", "%s:%d" % address, "--origin", origin, "--memory", options.memory, "--disk", options.disk,
               "--state-dir", str(directory / "state")]
    if options.clock:
        command = ["faketime", "-f", "%+ds" % choice.randrange(-172_800, 172_800)] + command
    log = open(directory / "edge.log", "ab")
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    begun = time.monotonic()
    while True:
        try:
            socket.create_connection(address, 1).close()
            return process, time.monotonic() - begun
        except OSError:
            if process.poll() is not None or time.monotonic() - begun > 20:
                sys.exit(f"the edge does not start:\n{(directory / 'edge.log').read_text()[-4000:]}")
            time.sleep(0.002)


def warm(address, site, checks, noted):
    """How many of the noted URLs the new run has. Each is asked for once, as a miss stores it anew."""
    client = Client(address, site, checks)
    time.sleep(SETTLE)
    found = {number: client.get(number) for number in noted}
    kept = sum(found[number] == (version, True) for number, version in noted.items())
    if kept < len(noted):
        statuses = collections.Counter(client.last_statuses[-len(noted):])
        print(f"{kept} of {len(noted)} still there: {dict(statuses)}", flush=True)
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--binary", type=pathlib.Path, default=BINARY)
    parser.add_argument("--memory", default="8MiB")
    parser.add_argument("--disk", default="512MiB")
    parser.add_argument("--address", default="127.242.0.10")
    parser.add_argument("--least", type=float, default=0.99, help="the share of what was stored that has to be there")
    parser.add_argument("--clock", action="store_true")
    options = parser.parse_args()
    if options.clock and not shutil.which("faketime"):
        sys.exit("--clock needs faketime (Debian: apt-get install faketime)")
    print(f"seed {options.seed}", flush=True)
    choice = random.Random(options.seed)
    site, checks = Site(), Checks()
    Origin.site = site
    server = Server((options.address, 0), Origin)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    origin = "http://%s:%d" % server.server_address[:2]
    address = (options.address, 8080)
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        noted, kept, of, slowest = {}, 0, 0, 0.0
        for kill in range(options.kills + 1):
            process, took = start(options, address, origin, directory, choice)
            slowest = max(slowest, took)
            try:
                if noted:
                    kept, of = kept + warm(address, site, checks, noted), of + len(noted)
                if kill == options.kills:
                    break
                run = Run(address, site, checks, f"{options.seed} {kill}")
                time.sleep(choice.uniform(0.1, 3))
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            noted = run.end()
            if kill % 50 == 49:
                print(f"{kill + 1} kills, {dict(checks.counts)}, {kept} of {of} still there", flush=True)
        counts = checks.counts
        print(f"kills {options.kills}, requests {counts['requests']}, unsafe methods {counts['unsafe']}, wrong {counts['wrong']}, "
              f"stale {counts['stale']}, other status {counts['other status']}")
        share = kept / of if of else 1
        print(f"stored a second before a kill and still there: {kept} of {of} ({share:.2%}); "
              f"listening at most {slowest:.3f} s after the start")
        for fault in checks.faults:
            print(fault)
        is_bad = counts["wrong"] or counts["stale"] or (share < options.least and not options.clock)
        if is_bad:
            print((directory / "edge.log").read_text()[-3000:])
        sys.exit(1 if is_bad else 0)


if __name__ == "__main__":
    main()
