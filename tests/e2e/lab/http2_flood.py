"""Floods of HTTP/2 frames, and connections that hold what they can without doing anything.

  http2_flood.py ADDRESS PORT KIND SECONDS CONNECTIONS

Floods for that long, on new connections whenever the server ends one. Prints JSON: how many connections were opened, and
how they were ended by code ("closed" without a GOAWAY that says more).
"""
import collections, json, select, sys, threading, time

from http2_frames import *

ADDRESS, KIND, SECONDS, CONNECTIONS = (sys.argv[1], int(sys.argv[2])), sys.argv[3], float(sys.argv[4]), int(sys.argv[5])
END = time.monotonic() + SECONDS
CANCELLED = struct.pack("!I", CANCEL)
GET, HELD, UPLOAD = block(request("/")), block(request("/held")), block(request("/held", "POST"))


def streams(first=1):
    while True:
        yield first
        first += 2


def repeated(make, count=200):
    """Pieces that are the same again and again."""
    piece = make * count
    while True:
        yield piece


def with_streams(make, count=100):
    numbers = streams()
    while True:
        yield b"".join(make(next(numbers)) for _ in range(count))


def get(stream, payload=GET, end=True):
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, payload)


def after(first, pieces):
    yield first
    yield from pieces


def resized(stream):
    """The table is resized in each block, and has to be emptied and filled again."""
    sizes = b"\x20" + integer(4096, 5, 0x20)
    fields = b"".join(b"\x40" + text(f"x-{n}") + text("y" * 200) for n in range(10))
    return get(stream, sizes + GET + fields)


def bomb(stream):
    """One large field of the table, many times."""
    return get(stream, GET + b"\x40" + text("x-a") + text("y" * 3900) + b"\xbe" * 4000)


FLOODS = {
    "rapid-reset": lambda: with_streams(lambda n: get(n, HELD) + frame(RST_STREAM, 0, n, CANCELLED)),
    "induced-reset": lambda: with_streams(lambda n: get(n, HELD) + frame(WINDOW_UPDATE, 0, n, b"\x7f\xff\xff\xff")),
    "malformed": lambda: with_streams(lambda n: get(n, GET + block([("connection", "close")]))),
    # The connection ends with the first of these.
    "malformed-name": lambda: with_streams(lambda n: get(n, GET + block([("X-A", "b")]))),
    "refused": lambda: with_streams(lambda n: get(n, GET + block([("x-a", " b")]))),
    "continuation": lambda: after(frame(HEADERS, END_STREAM, 1, GET), repeated(frame(CONTINUATION, 0, 1, block([("x-a", "b" * 100)])))),
    "empty-continuation": lambda: after(frame(HEADERS, END_STREAM, 1, GET), repeated(frame(CONTINUATION, 0, 1))),
    "settings": lambda: repeated(frame(SETTINGS, 0, 0)),
    "settings-window": lambda: after(get(1, HELD) + get(3, HELD), repeated(frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW, 1)) + frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW, 70000)))),
    "settings-table": lambda: repeated(frame(SETTINGS, 0, 0, setting(HEADER_TABLE_SIZE, 0)) + frame(SETTINGS, 0, 0, setting(HEADER_TABLE_SIZE, 65536))),
    "large-settings": lambda: repeated(frame(SETTINGS, 0, 0, setting(0xFF, 1) * 2000), 4),
    "ping": lambda: repeated(frame(PING, 0, 0, bytes(8))),
    "empty-data": lambda: after(get(1, UPLOAD, False), repeated(frame(DATA, 0, 1))),
    "padded-data": lambda: after(get(1, UPLOAD, False), repeated(frame(DATA, PADDED, 1, b"\xff" + bytes(255)))),
    "small-data": lambda: after(get(1, UPLOAD, False), repeated(frame(DATA, 0, 1, b"x"))),
    "trailers": lambda: with_streams(lambda n: get(n, UPLOAD, False) + frame(HEADERS, END_HEADERS | END_STREAM, n)),
    "window-update": lambda: after(get(1, HELD), repeated(frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"))),
    "stream-window-update": lambda: after(get(1, HELD), repeated(frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1"))),
    "priority": lambda: after(get(1, HELD), repeated(frame(PRIORITY, 0, 3, bytes(4) + b"\1"))),
    "unknown": lambda: repeated(frame(0x77, 0, 0)),
    "large-unknown": lambda: repeated(frame(0x77, 0, 0, bytes(16000)), 4),
    "table-resize": lambda: with_streams(resized, 20),
    "bomb": lambda: with_streams(bomb, 5),
    "goaway": lambda: repeated(frame(GOAWAY, 0, 0, bytes(8))),
}


def drain(one):
    """Reads what is there, without understanding more than GOAWAY."""
    while select.select([one.socket], [], [], 0)[0]:
        more = one.socket.recv(65536)
        if not more:
            return False
        one.buffer += more
        while len(one.buffer) >= 9 and len(one.buffer) >= 9 + int.from_bytes(one.buffer[:3], "big"):
            length = int.from_bytes(one.buffer[:3], "big")
            if one.buffer[3] == GOAWAY:
                one.code = int.from_bytes(one.buffer[13:17], "big")
            if one.buffer[3] == SETTINGS and not one.buffer[4] & ACK:
                one.send(frame(SETTINGS, ACK, 0))
            one.buffer = one.buffer[9 + length:]
    return True


def flood(one):
    one.code = "closed"
    one.socket.settimeout(1)
    for piece in FLOODS[KIND]():
        if time.monotonic() > END:
            return None
        try:
            one.socket.sendall(piece)
            if not drain(one):
                return one.code
        except TimeoutError:
            # The server takes no more for now, which is its right.
            continue
        except OSError:
            # What it said before it closed may still be there.
            try:
                drain(one)
            except OSError:
                pass
            return one.code


def harmless(one):
    """32 requests at a time, again and again."""
    numbers = streams()
    while time.monotonic() < END:
        batch = [next(numbers) for _ in range(32)]
        one.send(b"".join(get(n) for n in batch))
        left = len(batch)
        while left:
            kind, flags, stream, payload = one.read()
            left -= kind in (DATA, HEADERS) and flags & END_STREAM
        one.send(frame(WINDOW_UPDATE, 0, 0, (32 * 100).to_bytes(4, "big")))
        one.frames.clear()


def large_requests(path):
    return lambda one: one.send(b"".join(get(n, block(request(path))) for n in range(1, 201, 2)))


# Connections that are held: their settings, what they send, and whether they read.
HOLDS = {
    "silence": (None, lambda one: None, True),
    "half-preface": (None, lambda one: one.send(PREFACE[:10]), True),
    "preface-only": (None, lambda one: one.send(PREFACE), True),
    "half-frame": (b"", lambda one: one.send(get(1)[:12]), True),
    "half-block": (b"", lambda one: one.send(frame(HEADERS, END_STREAM, 1, GET)), True),
    "idle": (b"", lambda one: None, True),
    "zero-window": (setting(INITIAL_WINDOW, 0), large_requests("/large"), True),
    "no-connection-window": (setting(INITIAL_WINDOW, 1 << 20), large_requests("/large"), True),
    "slow-read": (setting(INITIAL_WINDOW, 1 << 30), lambda one: (one.send(frame(WINDOW_UPDATE, 0, 0, b"\x7f\0\0\0")), large_requests("/large")(one)), False),
    "no-body": (b"", lambda one: one.send(b"".join(get(n, block(request("/echo", "POST", [("content-length", "1000")])), False) for n in range(1, 201, 2))), True),
    "half-body": (b"", lambda one: one.send(b"".join(get(n, block(request("/echo", "POST", [("content-length", "100000")])), False) + frame(DATA, 0, n, bytes(600)) for n in range(1, 201, 2))), True),
}


def hold(one, sent, reads):
    one.code = "closed"
    sent(one)
    while time.monotonic() < END:
        time.sleep(0.05)
        try:
            if reads:
                if not drain(one):
                    return one.code
            elif one.socket.send(b"") is None:
                return "closed"
        except OSError:
            return one.code
        if not reads:
            # Whether the server has closed it is seen without reading.
            poll = select.poll()
            poll.register(one.socket, select.POLLRDHUP | select.POLLERR)
            if poll.poll(0):
                return "closed"
    return None


opened, codes, lock = [0], collections.Counter(), threading.Lock()


def run():
    while time.monotonic() < END:
        try:
            settings, sent, reads = HOLDS.get(KIND, (b"", None, True))
            one = Peer(ADDRESS, settings or b"", begin=settings is not None)
        except OSError:
            time.sleep(0.01)
            continue
        opened[0] += 1
        try:
            if KIND == "harmless":
                code = harmless(one)
            elif KIND in HOLDS:
                code = hold(one, sent, reads)
            else:
                code = flood(one)
        except (Ended, OSError, TimeoutError):
            code = "closed"
        if code is not None:
            with lock:
                codes[str(code)] += 1
        one.socket.close()
        if KIND in HOLDS and code is not None:
            return


threads = [threading.Thread(target=run) for _ in range(CONNECTIONS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({"opened": opened[0], "ended": codes}))
