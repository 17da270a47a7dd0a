"""HTTP/3 beside our own HTTP/2 and TLS over TCP, a flood of QUIC Initials, and many hosts. Part of bench.py.

The loads are the programs of `testing/src/bin`: Debian has none that speaks HTTP/3.
"""
import json, re, statistics, subprocess, sys, time

from https import CLIENTS, HOST, MIB, Lab, h2load, report, rounds
from lab import *

LOAD = NEARCAST.with_name("http3-load")
FLOOD = NEARCAST.with_name("quic-flood")
HOSTS = 1000  # as the loads have it: a # in a host's name stands for a number below it
FLOOD_FACTOR = 10  # Initials for each handshake that a core could do
FLOOD_BYTES_MAX = 64 << 20  # of memory that a flood may take
STEADY = 8  # connections that go on during a flood


class Named:
    """A measurement of a server under a name of its own."""

    def __init__(self, name, contender):
        self.name, self.of = name, contender


def http3(options, contender, mode, *more, host=HOST, seconds=None):
    """What http3-load prints, and the server's CPU time."""
    seconds = seconds or options.seconds
    argv = [LOAD, mode, "--to", f"127.0.0.1:{contender.tls}", "--host", host, "--seconds", seconds, *more]
    out, used = contender.used(lambda: load(argv, seconds))
    try:
        found = json.loads(out)
        assert found["requests"] > 0 and found["errors"] == 0, found
    except (ValueError, AssertionError) as error:
        sys.exit(f"bench: HTTP/3 failed ({error}); run {' '.join(map(str, argv))}")
    return found, used


def tcp_handshakes(options, contender, kind, host=HOST):
    argv = ["python3", CLIENTS, "handshakes", contender.tls, host, options.seconds, kind]
    out, used = contender.used(lambda: load(argv, options.seconds))
    if not out.strip().isdigit():
        sys.exit(f"bench: handshakes with {contender.name} failed; run {' '.join(map(str, argv))}")
    return int(out) / used


def quic_handshakes(options, contender, kind, host=HOST):
    found, used = http3(options, contender, "handshakes", "--connections", 4, *(["--resume"] if kind == "resumed" else []), host=host)
    # The first of each sequence has no session to resume.
    assert found["full"] >= found["requests"] if kind == "full" else found["full"] <= 8, found
    return found["requests"] / used


def both(lab):
    """The same server under both names."""
    ours = lab.nearcast()
    return [Named("HTTP/2", ours), Named("HTTP/3", ours)]


def small(options, work):
    lab = Lab(options, work)

    def measure(contender):
        if contender.name == "HTTP/2":
            done, _, used = h2load(options, contender.of, "/4k", 16, 32)
            return done / used
        found, used = http3(options, contender.of, "requests", "--path", "/4k", "--connections", 16, "--streams", 32)
        assert found["bytes"] == found["requests"] * 4096, found
        return found["requests"] / used
    samples = rounds(options, both(lab), measure)
    report("4 KiB over HTTP/3, 16 connections of 32 streams", "requests a CPU second", samples, ["HTTP/2"], 0.5)


def large(options, work):
    lab = Lab(options, work)

    def measure(contender):
        if contender.name == "HTTP/2":
            _, sent, used = h2load(options, contender.of, "/1m", 16, 1, "-w22", "-W24")
            return sent / MIB / used
        found, used = http3(options, contender.of, "requests", "--path", "/1m", "--connections", 16)
        assert found["bytes"] == found["requests"] * MIB, found
        return found["bytes"] / MIB / used
    samples = rounds(options, both(lab), measure)
    report("1 MiB over HTTP/3, 16 connections", "MiB a CPU second", samples, ["HTTP/2"], 0.4)


def handshakes(options, work):
    lab = Lab(options, work)
    ours = lab.nearcast()
    for kind in ("full", "resumed"):
        def measure(contender):
            of = tcp_handshakes if contender.name == "TLS on TCP" else quic_handshakes
            return of(options, contender.of, kind)
        samples = rounds(options, [Named("TLS on TCP", ours), Named("QUIC", ours)], measure)
        report(f"Handshakes of QUIC, {kind}, P-256", "handshakes a CPU second", samples, ["TLS on TCP"], 0.6)


def results(contender, metric):
    """A metric of a server by its label `result`."""
    text = subprocess.run(["curl", "-s", "-m", "5", f"http://127.0.0.1:{contender.admin}/metrics"], capture_output=True, text=True).stdout
    return {result: int(count) for result, count in re.findall(rf'^{metric}{{result="(\S+)"}} (\d+)', text, re.M)}


def incoming(contender):
    """Connections that began at a server by what became of them, and the handshakes that it could not read."""
    return {**results(contender, "nearcast_edge_quic_incoming_total"), "junk": results(contender, "nearcast_edge_tls_handshakes_total")["junk"]}


def initials(options, work):
    lab = Lab(options, work)
    ours = lab.nearcast()
    capacity = quic_handshakes(options, ours, "full")
    rate, seconds = int(capacity * FLOOD_FACTOR), max(options.seconds, 5)
    print(f"\n{capacity:.0f} handshakes a CPU second: the flood has {rate} Initials a second")
    resident, floods, taken = [], [], []

    def measure(contender):
        if contender.name == "in peace":
            found, _ = http3(options, ours, "steady", "--path", "/4k", "--connections", STEADY, seconds=seconds)
            return found["p99_us"]
        before, _ = memory_bytes(ours.process.pid)
        begun = incoming(ours)
        # Made and sent by the load's core; it begins before the requests and ends after them.
        argv = ["taskset", "-c", LOAD_CORE, FLOOD, "--to", f"127.0.0.1:{ours.tls}", "--host", HOST, "--rate", rate, "--seconds", seconds + 3,
                "--pool", 50_000]
        flood = subprocess.Popen([str(a) for a in argv], stdout=subprocess.PIPE, text=True)
        time.sleep(1.5)
        found, _ = http3(options, ours, "steady", "--path", "/4k", "--connections", STEADY, seconds=seconds)
        assert flood.poll() is None, "the flood ended before the requests did"
        during, _ = memory_bytes(ours.process.pid)
        sent = json.loads(flood.communicate(timeout=60)[0])
        resident.append(during - before)
        ended = incoming(ours)
        taken.append({result: count - begun[result] for result, count in ended.items()})
        # A handshake that fails at once is no load: the limits that a flood meets count those under way.
        assert taken[-1].pop("junk") == 0, "the server could not read Initials: the flood is not what it should be"
        assert sum(taken[-1].values()) > 0, "no Initial was taken for the begin of a connection"
        floods.append(sent["packets"] / sent["seconds"])
        return found["p99_us"]
    samples = rounds(options, [Named("in peace", ours), Named("in a flood", ours)], measure)
    report(f"A request of 4 KiB every 10 ms on {STEADY} open connections of HTTP/3, 99th percentile", "microseconds", samples, ["in peace"], 2.0,
           more_is_better=False)
    print(f"Initials sent a second: {min(floods):.0f} to {max(floods):.0f}, {min(floods) / capacity:.1f} times the capacity at least")
    print("what became of the last flood's: " + ", ".join(f"{count} {result}" for result, count in taken[-1].items()))
    print(f"memory that the flood took: at most {max(resident) / MIB:.1f} MiB; the bar is {FLOOD_BYTES_MAX / MIB:.0f}: "
          + ("met" if max(resident) <= FLOOD_BYTES_MAX else "MISSED"))


def hosts(options, work):
    names = [f"h{number}.bench.test" for number in range(HOSTS)]
    sections = ""
    for name in names:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj",
                        f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-keyout", work / f"{name}.key", "-out", work / f"{name}.pem"],
                       stderr=subprocess.DEVNULL, check=True)
        sections += f'[[certificate]]\ncert = "{work}/{name}.pem"\nkey = "{work}/{name}.key"\n'
    lab = Lab(options, work)
    starts = {"one host": [], f"{HOSTS} hosts": []}
    for _ in range(options.rounds):
        for name in starts:
            server = lab.nearcast(name) if name == "one host" else lab.nearcast(name, sections=sections, hosts=names)
            starts[name].append(server.start_seconds)
            end(server.process)
            lab.contenders.clear()
    one, many = lab.nearcast("one host"), lab.nearcast(f"{HOSTS} hosts", sections=sections, hosts=names)
    for what, of in (("TLS 1.3 on TCP", tcp_handshakes), ("QUIC", quic_handshakes)):
        def measure(contender):
            return of(options, contender, "full", HOST if contender is one else "h#.bench.test")
        samples = rounds(options, [one, many], measure)
        report(f"Full handshakes of {what}, {HOSTS} hosts with a certificate each", "handshakes a CPU second", samples, ["one host"], 0.95)
    least, most = (statistics.median(times) for times in starts.values())
    print(f"from the start to the first response: {least:.2f} s with one host, {most:.2f} s with {HOSTS}; the bar is 1 s more: "
          + ("met" if most <= least + 1 else "MISSED"))


SETS = {"h3": small, "h3-large": large, "h3-handshakes": handshakes, "initials": initials, "hosts": hosts}
