"""Measurements of what is stored. Run by tests/bench/run; standard library only."""
import re, socket, subprocess, threading, time

from lab import *

COUNT = 100_000
BODY = b"x" * 1024
FIELDS = (b"HTTP/1.1 200 OK\r\nContent-Type: text/css\r\nContent-Length: 1024\r\nCache-Control: max-age=86400\r\nETag: \"one\"\r\n"
          b"Last-Modified: Wed, 01 Jan 2025 00:00:00 GMT\r\nServer: origin\r\nDate: %s\r\n\r\n")


def serve(listener):
    """An origin that answers every request with the same response."""
    def talk(connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        left = b""
        while True:
            got = connection.recv(65536)
            if not got:
                return
            left += got
            heads = left.split(b"\r\n\r\n")
            left = heads.pop()
            date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()).encode()
            connection.sendall((FIELDS % date + BODY) * len(heads))
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=talk, args=(connection,), daemon=True).start()


def fetch_all(port, count):
    """Requests every URL once, in order. Returns how many came from the cache."""
    stream = socket.create_connection(("127.0.0.1", port))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reader = stream.makefile("rb")
    hits = 0
    for number in range(count):
        stream.sendall(b"GET /item?n=%d HTTP/1.1\r\nHost: www.test\r\n\r\n" % number)
        length, is_hit = 0, False
        while (line := reader.readline().lower()) not in (b"\r\n", b""):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
            is_hit |= line.startswith(b"cache-status:") and b"; hit" in line
            is_hit |= line.startswith(b"x-varnish:") and len(line.split()) == 3
        assert len(reader.read(length)) == 1024
        hits += is_hit
    return hits


def memory(options, work):
    """Resident memory of 100,000 responses of 1 KiB, fetched twice, beside Varnish."""
    listener = socket.create_server(("127.0.0.1", free_port()), backlog=512)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    origin_port, varnish_port, ours_port = listener.getsockname()[1], free_port(), free_port()
    (work / "default.vcl").write_text(f'vcl 4.1;\nbackend default {{ .host = "127.0.0.1"; .port = "{origin_port}"; }}\n')
    varnish = start("varnish", ["varnishd", "-F", "-n", work / "varnish", "-a", f"127.0.0.1:{varnish_port}", "-f", work / "default.vcl",
                                "-s", "malloc,1G", "-p", "default_ttl=86400"], work, core=None)
    ours = start("nearcast", [NEARCAST, "edge", "--listen", f"127.0.0.1:{ours_port}", "--origin", f"http://127.0.0.1:{origin_port}",
                              "--memory", "1GiB", "--disk", "0", "--state-dir", work / "state"], work, core=None)
    print(f"\nMemory of {COUNT:,} responses of 1 KiB, each fetched twice")
    for name, process, port in [("Varnish", varnish, varnish_port), ("Nearcast", ours, ours_port)]:
        wait_for(f"{name} to serve", lambda: subprocess.run(["curl", "-s", "-m", "3", f"http://127.0.0.1:{port}/first"],
                                                            capture_output=True).stdout == BODY, process)
        fetch_all(port, 500)
        before = memory_bytes(process.pid)[0]
        fetch_all(port, COUNT)
        hits = fetch_all(port, COUNT)
        after = memory_bytes(process.pid)[0]
        assert hits >= COUNT * 0.99, f"{name}: {hits} of {COUNT} are hits"
        print(f"  {name:10} {(after - before) / (COUNT - 500):8,.0f} B a response ({before / 2**20:.1f} -> {after / 2**20:.1f} MiB)")


SETS = {"memory": memory}
