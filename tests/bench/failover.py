"""How long a dead edge stays in the answers of the name servers: one of two edges is killed (SIGKILL) or frozen (SIGSTOP) at random moments,
and both name servers are polled until its address is in none of their answers. Loopback alone, standard library only.

  cargo build --release && python3 tests/bench/failover.py [--kills 50] [--stops 20] [--binary PATH]

Health checks are those of the fleet file's defaults. A killed edge refuses the checks' connections, a frozen one lets them time out, so the
two are counted apart. `ramp` is 0, so that an edge that is back gets its full share at once and each round starts from the same answers.
Prints the median, the 99th percentile and the longest time in milliseconds, from the signal to the first poll without the edge.
"""
import argparse, asyncio, pathlib, random, signal, statistics, subprocess, sys, tempfile, time

from restart import NET, REPO, fleet, look_up, ready

# Seconds between two polls of one name server.
POLL_EVERY = 0.003
# Seconds after which a round fails.
ROUND_TIME_MAX = 60
# An edge is hit at a random moment of so many seconds, longer than the time between two checks.
MOMENTS = 2.0
SERVERS = [f"{NET}.51", f"{NET}.52"]
NODES = [("control", "control", 70), ("origin", "origin", 80), ("edge", "ams-1", 11), ("edge", "ams-2", 12), ("gslb-dns", "ns1", 51), ("gslb-dns", "ns2", 52)]


async def until_answers(server, address, is_wanted):
    """Polls a name server until the address is, or is not, in its answers; returns the time of that answer."""
    deadline = time.monotonic() + ROUND_TIME_MAX
    while time.monotonic() < deadline:
        begun = time.monotonic()
        try:
            found, _ = await look_up(server)
        except (OSError, asyncio.TimeoutError):
            found = None
        if found is not None and (address in found) == is_wanted:
            return time.monotonic()
        await asyncio.sleep(max(0, POLL_EVERY - (time.monotonic() - begun)))
    raise TimeoutError(f"{server}: {address} is {'not ' if is_wanted else ''}in the answers after {ROUND_TIME_MAX} s")


async def until_all_answer(address, is_wanted):
    """As until_answers, for both name servers; returns the time of the later one."""
    return max(await asyncio.gather(*(until_answers(server, address, is_wanted) for server in SERVERS)))


def report(name, times):
    if times:
        times = sorted(1000 * t for t in times)
        high = times[min(len(times) - 1, int(0.99 * len(times)))]
        print(f"{name}: {len(times)} rounds, median {statistics.median(times):.0f} ms, 99 % {high:.0f} ms, longest {times[-1]:.0f} ms")


async def main():
    options = argparse.ArgumentParser()
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--stops", type=int, default=20)
    options.add_argument("--binary", default=str(REPO / "target/release/nearcast"))
    options = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="nearcast-failover-") as work:
        work = pathlib.Path(work)
        (work / "content").mkdir()
        (work / "content/index.html").write_text("hello\n")
        (work / "nearcast.toml").write_text(fleet(ttl=5) + '[steering]\nramp = "0s"\n')
        nodes = {}

        def start(role, name):
            log = open(work / f"{name}.log", "ab")
            nodes[name] = subprocess.Popen([options.binary, role, "--node", name, "--fleet", "nearcast.toml"], cwd=work, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        async def hit(name, address, how):
            """Sends the signal at a random moment; returns the seconds until both name servers have answered without the edge."""
            await until_all_answer(address, True)
            await asyncio.sleep(random.uniform(0, MOMENTS))
            begun = time.monotonic()
            nodes[name].send_signal(how)
            return await until_all_answer(address, False) - begun

        try:
            for role, name, last in NODES:
                start(role, name)
                await asyncio.to_thread(ready, f"{NET}.{last}")
            killed, stopped = [], []
            for number in range(options.kills + options.stops):
                name, last = ("ams-1", 11) if number % 2 == 0 else ("ams-2", 12)
                address = f"{NET}.{last}"
                if number < options.kills:
                    killed.append(await hit(name, address, signal.SIGKILL))
                    await asyncio.to_thread(nodes[name].wait)
                    start("edge", name)
                    await asyncio.to_thread(ready, address)
                else:
                    stopped.append(await hit(name, address, signal.SIGSTOP))
                    nodes[name].send_signal(signal.SIGCONT)
            report("killed", killed)
            report("stopped", stopped)
            return 0
        finally:
            for node in nodes.values():
                if node.poll() is None:
                    node.kill()
                    node.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
