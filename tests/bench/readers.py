"""Many clients that read one response while it comes: last bytes, requests at the origin, memory and CPU time of the edge. Real sockets on
loopback, standard library only.

  cargo build --release && python3 tests/bench/readers.py [--binary PATH] [CASE ...] [--clients N] [--memory 1GiB] [--disk DIR]

  cold     5,000 clients on one cold 50 MiB response from an origin at 20 MB/s: one request, memory at most 64 MiB more than the body
  close    500 clients on a 5 MiB response at 1 MB/s: the last byte within 2 % of the origin's end
  trickle  200 clients on a 1 MiB response that trickles for one second: one request, last byte at about 1.02 s
  slow     200 clients that take 100 MB each at 256 kB/s for some seconds, each of another response, with `--memory 64MiB`: the edge's
           memory stays within it, 48 MiB and 8 kB a connection; `--weak` for responses without a strong validator

`--clients N` sets the number of clients of every case. Exits 1 when a bar is missed.
"""
import argparse, os, pathlib, re, resource, selectors, socket, subprocess, sys, tempfile, threading, time

REPO = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target"))
MIB = 1 << 20
PIECE = 16 * 1024


class Origin:
    """Sends every body at a rate, in small pieces, and notes when each answer ended."""

    def __init__(self, length, rate, tag):
        self.length, self.rate, self.tag = length, rate, tag
        self.requests, self.ends, self.bytes = 0, [], 0
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address = "127.0.0.1:%d" % self.socket.getsockname()[1]
        self.lock = threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.socket.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        pending = b""
        try:
            while True:
                while b"\r\n\r\n" not in pending:
                    more = client.recv(65536)
                    if not more:
                        return
                    pending += more
                head, pending = pending.split(b"\r\n\r\n", 1)
                self.answer(client, head)
        except OSError:
            pass
        finally:
            client.close()

    def answer(self, client, head):
        with self.lock:
            self.requests += 1
        first, last = 0, self.length - 1
        part = re.search(rb"(?im)^range: bytes=(\d+)-(\d*)", head)
        fields = f"Cache-Control: max-age=600\r\nETag: {self.tag}\r\n"
        status = "200 OK"
        if part:
            first, last = int(part[1]), int(part[2] or last)
            status = "206 Partial Content"
            fields += f"Content-Range: bytes {first}-{last}/{self.length}\r\n"
        length = last + 1 - first
        client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{fields}\r\n".encode())
        block, sent, began = bytes(PIECE), 0, time.monotonic()
        while sent < length:
            due = began + sent / self.rate - time.monotonic() if self.rate else 0
            if due > 0:
                time.sleep(due)
            client.sendall(block[: min(PIECE, length - sent)])
            sent += min(PIECE, length - sent)
            with self.lock:
                self.bytes += PIECE
        with self.lock:
            self.ends.append(time.monotonic())


class Edge:
    def __init__(self, options, origin):
        self.directory = tempfile.TemporaryDirectory(prefix="nearcast-readers-")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        argv = [options.binary, "edge", "--listen", f"127.0.0.1:{self.port}", "--origin", f"http://{origin.address}", "--memory", options.memory]
        if options.disk:
            argv += ["--disk", options.disk, "--state-dir", self.directory.name]
        self.log = open(pathlib.Path(self.directory.name) / "log", "wb")
        self.process = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, cwd=self.directory.name)
        deadline = time.monotonic() + 20
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    sys.exit("the edge does not start: " + pathlib.Path(self.log.name).read_text()[-2000:])
                time.sleep(0.02)

    def rss(self):
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{self.process.pid}/status").read_text())[1]) * 1024

    def cpu(self):
        return sum(int(pathlib.Path(f"/proc/{self.process.pid}/task/{task}/schedstat").read_text().split()[0]) for task in os.listdir(f"/proc/{self.process.pid}/task")) / 1e9

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def read_all(edge, clients, path, length, rate=None, seconds=600):
    """Reads with that many clients at once; the moments of first and last bytes, and the edge's highest memory."""
    selector, began = selectors.DefaultSelector(), time.monotonic()
    left, firsts, lasts, cut, most = clients, [], [], 0, edge.rss()
    for number in range(clients):
        client = socket.socket()
        if rate:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        client.connect(("127.0.0.1", edge.port))
        client.sendall(f"GET {path(number)} HTTP/1.1\r\nHost: www.test\r\n\r\n".encode())
        client.setblocking(False)
        selector.register(client, selectors.EVENT_READ, [0, None])
    connected, looked = time.monotonic(), 0
    buffer = bytearray(MIB)
    while left and time.monotonic() - began < seconds:
        now = time.monotonic()
        if now > looked + 0.1:
            most, looked = max(most, edge.rss()), now
        for key, _ in selector.select(0.1):
            client, state = key.fileobj, key.data
            most_bytes = len(buffer)
            if rate:
                allowed = int((time.monotonic() - connected) * rate) - state[0]
                if allowed < 4096:
                    continue
                most_bytes = min(allowed, len(buffer))
            try:
                count = client.recv_into(buffer, most_bytes)
            except BlockingIOError:
                continue
            except OSError:
                count = 0
            if state[1] is None and count:
                firsts.append(time.monotonic())
                state[1] = length + bytes(buffer[:count]).index(b"\r\n\r\n") + 4
            state[0] += count
            if not count or state[0] >= state[1]:
                cut += not count
                lasts.append(time.monotonic())
                selector.unregister(client)
                client.close()
                left -= 1
        if rate:
            time.sleep(0.02)
    for key in list(selector.get_map().values()):
        key.fileobj.close()
    return dict(began=began, connected=connected, firsts=firsts, lasts=lasts, cut=cut, left=left, most=max(most, edge.rss()))


def report(name, good, text):
    print(f"{name:8} {'ok  ' if good else 'MISS'} {text}", flush=True)
    return good


def case(name, options):
    tag = 'W/"v"' if options.weak else '"v"'
    clients, length, rate, per_client = {
        "cold": (5000, 50 * MIB, 20e6, None),
        "close": (500, 5 * MIB, 1e6, None),
        "trickle": (200, MIB, MIB, None),
        "slow": (200, 100_000_000, 0, 256e3),
    }[name]
    clients = options.clients or clients
    origin = Origin(length, rate, tag)
    edge = Edge(options, origin)
    try:
        before, cpu = edge.rss(), edge.cpu()
        path = (lambda number: f"/big?{number}") if name == "slow" else (lambda number: "/big")
        read = read_all(edge, clients, path, length, per_client, 20 if name == "slow" else 600)
        cpu = edge.cpu() - cpu
        end = max(origin.ends, default=0)
        more = (read["most"] - before) / MIB
        text = f"{clients} clients, {origin.requests} origin requests, {read['cut']} cut, memory +{more:.0f} MiB, {cpu:.2f} s of CPU"
        if read["lasts"]:
            behind = max(read["lasts"]) - end
            text += f", last byte {max(read['lasts']) - read['began']:.3f} s, {behind:.3f} s behind the origin's"
        whole = not read["cut"] and not read["left"]
        if name == "cold":
            return report(name, whole and origin.requests == 1 and more <= 50 + 64, text)
        if name == "close":
            return report(name, whole and origin.requests == 1 and behind <= 0.02 * length / rate, text)
        if name == "trickle":
            return report(name, whole and origin.requests == 1 and behind <= 0.05, text)
        limit = 64 + 48 + clients * 8 / 1024
        return report(name, not read["cut"] and read["most"] / MIB <= limit, f"{text}, {read['most'] / MIB:.0f} of {limit:.0f} MiB resident")
    finally:
        edge.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", default=["cold", "close", "trickle", "slow"])
    parser.add_argument("--binary", default=TARGET / "release/nearcast")
    parser.add_argument("--clients", type=int)
    parser.add_argument("--memory", help="the memory tier (1GiB; 64MiB for `slow`)")
    parser.add_argument("--disk", help="a size: a disk tier as well")
    parser.add_argument("--weak", action="store_true", help="responses without a strong validator")
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    memory, results = options.memory, []
    for name in options.cases:
        options.memory = memory or ("64MiB" if name == "slow" else "1GiB")
        results.append(case(name, options))
    sys.exit(0 if all(results) else 1)


main()
