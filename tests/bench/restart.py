"""Whether clients notice a planned restart: requests a second through DNS, each on a new connection and tried once, while one edge is told to
end, ends and is started again. Two edges, two name servers, loopback alone, standard library only.

  cargo build --release && python3 tests/bench/restart.py [--rate 1000] [--ttl 5] [--rounds 3] [--binary PATH]

Clients resolve as stubs behind caching resolvers do: each of several resolvers asks one of the name servers and uses the answer for its TTL.
Prints requests, failures by kind, and how long the edge took to end; exits 1 when any request failed.
"""
import argparse, asyncio, collections, pathlib, random, signal, struct, subprocess, sys, tempfile, time, urllib.request

REPO = pathlib.Path(__file__).resolve().parents[2]
NET = "127.241.0"
RESOLVERS = 8


def fleet(ttl):
    text = f"""[fleet]
zone = "cdn.test"
node_key = "a key that only this bench knows"
state_dir = "state"
report_interval = "500ms"
[control]
listen = "{NET}.70:7700"
admin = "{NET}.70:9100"
[[origin_node]]
name = "origin"
listen = "{NET}.80:8000"
admin = "{NET}.80:9100"
root = "content"
"""
    for n in (1, 2):
        text += f'[[name_server]]\nname = "ns{n}"\nlisten = "{NET}.{50 + n}:5300"\nadmin = "{NET}.{50 + n}:9100"\n'
    text += '[[cluster]]\nname = "ams"\nplace = { latitude = 52.37, longitude = 4.9 }\n'
    for n in (1, 2):
        ip = f"{NET}.{10 + n}"
        text += f'[[cluster.node]]\nname = "ams-{n}"\naddress = "{ip}"\nlisten = "{ip}:8080"\nadmin = "{ip}:9100"\nmemory = "16MiB"\ndisk = "0"\nthreads = 1\n'
    return text + f'[[site]]\nname = "www"\nhosts = ["www.demo.test"]\norigin = "http://{NET}.80:8000"\nttl = "{ttl}s"\n'


class Query(asyncio.DatagramProtocol):
    def __init__(self):
        self.answer = asyncio.get_running_loop().create_future()

    def datagram_received(self, data, _):
        if not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, error):
        if not self.answer.done():
            self.answer.set_exception(error)


async def look_up(server):
    """Addresses and TTL of www.cdn.test."""
    name = b"".join(bytes([len(label)]) + label for label in (b"www", b"cdn", b"test")) + b"\0"
    message = struct.pack("!6H", random.getrandbits(16), 0, 1, 0, 0, 0) + name + struct.pack("!2H", 1, 1)
    transport, query = await asyncio.get_running_loop().create_datagram_endpoint(Query, remote_addr=(server, 5300))
    try:
        transport.sendto(message)
        answer = await asyncio.wait_for(query.answer, 1)
    finally:
        transport.close()
    count, at, found, ttl = struct.unpack("!H", answer[6:8])[0], len(message), [], 0
    for _ in range(count):
        while answer[at] not in (0,) and answer[at] < 0xC0:
            at += 1 + answer[at]
        at += 2 if answer[at] >= 0xC0 else 1
        kind, _, ttl, length = struct.unpack("!2HIH", answer[at : at + 10])
        at += 10
        if kind == 1:
            found.append(".".join(map(str, answer[at : at + 4])))
        at += length
    return found, ttl


class Resolver:
    def __init__(self, number):
        self.number, self.addresses, self.until = number, [], 0

    async def resolve(self):
        # One look-up at a time; whoever comes meanwhile waits for it, as at a resolver.
        if time.monotonic() >= self.until:
            servers = [f"{NET}.51", f"{NET}.52"]
            for turn in range(4):
                try:
                    self.addresses, ttl = await look_up(servers[(self.number + turn) % 2])
                    self.until = time.monotonic() + ttl
                    break
                except (OSError, asyncio.TimeoutError):
                    continue
        return random.choice(self.addresses)


async def ask(resolver, counts):
    try:
        address = await resolver.resolve()
        reader, writer = await asyncio.open_connection(address, 8080)
        writer.write(b"GET / HTTP/1.1\r\nHost: www.demo.test\r\nConnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        good = answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"hello\n")
        counts[(address, "good" if good else f"answer {answer[:30]!r}")] += 1
    except Exception as error:
        counts[("", type(error).__name__)] += 1


def ready(ip):
    deadline = time.monotonic() + 60
    while True:
        try:
            return urllib.request.urlopen(f"http://{ip}:9100/ready", timeout=2).read()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


async def main():
    options = argparse.ArgumentParser()
    options.add_argument("--rate", type=int, default=1000)
    options.add_argument("--ttl", type=int, default=5)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--binary", default=str(REPO / "target/release/nearcast"))
    options = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="nearcast-restart-") as work:
        work = pathlib.Path(work)
        (work / "content").mkdir()
        (work / "content/index.html").write_text("hello\n")
        (work / "nearcast.toml").write_text(fleet(options.ttl))
        nodes = {}

        def start(role, name):
            log = open(work / f"{name}.log", "ab")
            nodes[name] = subprocess.Popen([options.binary, role, "--node", name, "--fleet", "nearcast.toml"], cwd=work, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        try:
            for role, name, last in [("control", "control", 70), ("origin", "origin", 80), ("edge", "ams-1", 11), ("edge", "ams-2", 12), ("gslb-dns", "ns1", 51), ("gslb-dns", "ns2", 52)]:
                start(role, name)
                ready(f"{NET}.{last}")
            counts, resolvers, tasks, over = collections.Counter(), [Resolver(n) for n in range(RESOLVERS)], set(), False

            async def load():
                due = time.monotonic()
                while not over:
                    task = asyncio.create_task(ask(random.choice(resolvers), counts))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    due += 1 / options.rate
                    await asyncio.sleep(max(0, due - time.monotonic()))

            loading, begun = asyncio.create_task(load()), time.monotonic()
            for number in range(options.rounds):
                await asyncio.sleep(options.ttl + 1)
                name, last = ("ams-1", 11) if number % 2 == 0 else ("ams-2", 12)
                told = time.monotonic()
                nodes[name].send_signal(signal.SIGTERM)
                await asyncio.to_thread(nodes[name].wait, 300)
                print(f"{name} ended {time.monotonic() - told:.1f} s after it was told to")
                start("edge", name)
                await asyncio.to_thread(ready, f"{NET}.{last}")
                await asyncio.sleep(options.ttl + 2)
            over = True
            await loading
            await asyncio.gather(*tasks)
            total = sum(counts.values())
            print(f"{total} requests, {total / (time.monotonic() - begun):.0f} a second")
            for (address, what), count in sorted(counts.items()):
                print(f"  {address or '-':15} {what}: {count}")
            return 1 if any(what != "good" for _, what in counts) else 0
        finally:
            for node in nodes.values():
                if node.poll() is None:
                    node.kill()
                    node.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
