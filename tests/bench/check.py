#!/usr/bin/env python3
"""User CPU time of `nearcast check` on fleet files of 1,000 and of 10,000 sites and zones: `tests/bench/check.py [BINARY]`.

Each figure is the least of five runs. The larger file is to take about ten times as long: twelve at most, and a second on any machine of today.
"""
import os, resource, subprocess, sys, tempfile

binary = sys.argv[1] if len(sys.argv) > 1 else "target/release/nearcast"


def text(count):
    head = (
        '[fleet]\nzone = "cdn.test"\nnode_key = "a key of this bench alone"\n[[name_server]]\nname = "ns1"\nlisten = "127.0.0.1:53"\n'
        '[[cluster]]\nname = "ams"\nplace = { latitude = 52.4, longitude = 4.9 }\n[[cluster.node]]\nname = "ams-1"\naddress = "192.0.2.1"\n'
    )
    pair = (
        '[[site]]\nname = "s%d"\nhosts = ["www.z%d.test", "z%d.test"]\norigin = "http://o.test"\n'
        '[[zone]]\nname = "z%d.test"\nrecords = ["@ MX 10 mail", "mail A 192.0.2.9", "@ TXT \\"v=spf1 mx -all\\""]\n'
    )
    return head + "".join(pair % (n, n, n, n) for n in range(count))


def seconds(path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([binary, "check", path], check=True, stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


with tempfile.TemporaryDirectory() as directory:
    least = {}
    for count in (1_000, 10_000):
        path = os.path.join(directory, "%d.toml" % count)
        with open(path, "w") as file:
            file.write(text(count))
        least[count] = min(seconds(path) for _ in range(5))
        print("%6d sites and zones, %4d KiB: %.3f s of user CPU" % (count, os.path.getsize(path) >> 10, least[count]))
    print("ratio %.1f" % (least[10_000] / least[1_000]))
