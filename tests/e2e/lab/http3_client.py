"""A client of HTTP/3, in cases.

    http3_client.py CASE ADDRESS PORT [ARGUMENT...]

`exchange` speaks by aioquic's own HTTP/3, the others by hand. Ends with 0 if the server behaves as the case says, else with what
it did instead. Cases that need something done in the middle print a line and wait for one.
"""
import sys, time

from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived

from http3_frames import *

LARGE = b"x" * (256 << 10)


def expect(condition, message):
    if not condition:
        sys.exit(str(message))


class Browser(Peer):
    """A client whose HTTP/3 is aioquic's."""

    def __init__(self, server):
        self.http, self.heads_of, self.body_of, self.done = None, {}, {}, set()
        super().__init__(server, control=False)
        self.http = H3Connection(self.quic)
        self.flush()

    def take(self, event):
        super().take(event)
        for event in self.http.handle_event(event) if self.http else ():
            if isinstance(event, HeadersReceived):
                self.heads_of.setdefault(event.stream_id, []).append({n.decode(): v.decode() for n, v in event.headers})
            elif isinstance(event, DataReceived):
                self.body_of.setdefault(event.stream_id, bytearray()).extend(event.data)
            if getattr(event, "stream_ended", False):
                self.done.add(event.stream_id)

    def ask(self, path, method="GET", more=(), body=None):
        stream = self.quic.get_next_available_stream_id()
        fields = [(n.encode(), v.encode()) for n, v in request(path, method, more)]
        self.http.send_headers(stream, fields, end_stream=body is None)
        if body is not None:
            self.http.send_data(stream, body, end_stream=True)
        self.flush()
        return stream

    def got(self, stream):
        self.until(lambda: stream in self.done)
        expect(stream in self.done, f"no answer: closed {self.closed}, resets {self.resets}")
        heads = self.heads_of[stream]
        return heads[-1], self.body_of.get(stream, b""), heads[:-1]


def case_exchange(server):
    """What a browser does: pages, films, forms."""
    one = Browser(server)
    fields, body, _ = one.got(one.ask("/"))
    expect(fields[":status"] == "200" and body == b"a page", f"{fields} {body}")
    fields, body, _ = one.got(one.ask("/"))
    expect("hit" in fields["cache-status"] and "age" in fields, fields)
    expect(fields["via"].startswith("1.1 "), fields)
    fields, body, _ = one.got(one.ask("/large"))
    expect(body == LARGE, f"{len(body)} bytes")
    fields, body, _ = one.got(one.ask("/large", more=[("range", "bytes=5-9")]))
    expect(fields[":status"] == "206" and fields["content-range"] == f"bytes 5-9/{len(LARGE)}" and body == b"xxxxx", f"{fields}")
    fields, body, _ = one.got(one.ask("/tagged"))
    tag = fields["etag"]
    fields, body, _ = one.got(one.ask("/tagged", more=[("if-none-match", tag)]))
    expect(fields[":status"] == "304" and body == b"", f"{fields} {body}")
    for method in ("POST", "PUT"):
        upload = bytes(range(256)) * 8192
        fields, body, _ = one.got(one.ask("/echo", method, [("content-type", "x/y")], upload))
        expect(fields[":status"] == "200" and body == upload, f"{fields} {len(body)}")
    fields, body, _ = one.got(one.ask("/fields", more=[("cookie", "a=b"), ("cookie", "c=d"), ("x-own", "1")]))
    lines = body.decode().lower().split("\n")
    expect("cookie: a=b; c=d" in lines and any(line.startswith("via: 3.0 ") for line in lines), lines)
    fields, body, interim = one.got(one.ask("/hints"))
    expect([head[":status"] for head in interim] == ["103"] and interim[0]["link"] == "</style.css>; rel=preload", f"{interim}")
    expect(fields[":status"] == "200", fields)
    # Of no known length.
    fields, body, _ = one.got(one.ask("/chunked"))
    expect(body == LARGE and "content-length" not in fields, f"{fields} {len(body)}")
    # Many at once.
    streams = [one.ask(f"/large?{number % 7}") for number in range(60)]
    for stream in streams:
        fields, body, _ = one.got(stream)
        expect(fields[":status"] == "200" and body == LARGE, f"{fields} {len(body)}")
    expect(one.closed is None, one.reason)


def case_cut(server):
    """A body that its origin cuts is reset, so that the part is not taken for the whole."""
    one = Peer(server)
    for path in ("/cut", "/cut-chunked"):
        got = one.answer(one.request(request(path)))
        expect(got == f"reset {INTERNAL:#x}", f"{path}: {got}")
    expect(one.answer(one.request()) == 200, "the connection does not go on")


def narrow(server, **more):
    """A client that takes little at a time, so that the server has to choose what to send. It has both already."""
    first = Peer(server)
    for path in ("/film", "/part"):
        expect(first.answer(first.request(request(path))) == 200, f"no {path}")
    first.close()
    return Peer(server, max_data=96 << 10, max_stream_data=16 << 20, **more)


def size(one, stream):
    return len(one.data.get(stream, b""))


def urgent(one, first, second):
    """The bytes of the first that come while the second is under way."""
    expect(one.until(lambda: second in one.ended), f"the second does not end: {one.closed} {one.reason}")
    return size(one, first)


def case_priority(server):
    """A more urgent response overtakes."""
    one = narrow(server)
    slow = one.request(request("/film", more=[("priority", "u=5")]))
    one.until(lambda: size(one, slow) > 100_000)
    before = size(one, slow)
    quick = one.request(request("/part", more=[("priority", "u=1")]))
    during = urgent(one, slow, quick) - before
    expect(slow not in one.ended and during < 2 * len(LARGE), f"{during} bytes of the other came first")


def case_order(server):
    """Of equally urgent responses that are useful whole, the first is sent first."""
    one = narrow(server)
    first, second = one.request(request("/film")), one.request(request("/film"))
    expect(one.until(lambda: first in one.ended), "the first does not end")
    expect(size(one, second) < 1 << 20, f"{size(one, second)} bytes of the second came before")


def case_turns(server):
    """Responses that are useful in parts take turns."""
    one = narrow(server)
    streams = [one.request(request("/film", more=[("priority", "i")])) for _ in range(2)]
    expect(one.until(lambda: any(stream in one.ended for stream in streams)), "none ends")
    least = min(size(one, stream) for stream in streams)
    expect(least > 2 << 20, f"{least} bytes of one came while the other was sent")


def case_update(server):
    """PRIORITY_UPDATE changes what is urgent, also before the request comes (RFC 9218 section 7)."""
    one = narrow(server)
    films = [one.request(request("/film", more=[("priority", "u=4")])) for _ in range(2)]
    one.until(lambda: size(one, films[0]) > 100_000)
    one.send(one.uni[CONTROL], frame(PRIORITY_UPDATE, varint(films[1]) + b"u=0"))
    # What was given to the transport before is sent first.
    expect(one.until(lambda: films[1] in one.ended), "it does not end")
    expect(films[0] not in one.ended, "the other was sent first")

    one = narrow(server)
    one.send(one.uni[CONTROL], frame(PRIORITY_UPDATE, varint(4) + b"u=0"))
    one.until(lambda: False, 0.3)
    first, second = one.request(request("/film")), one.request(request("/part", more=[("priority", "u=7")]))
    expect(second == 4, second)
    expect(urgent(one, first, second) < 2 << 20 and first not in one.ended, "the update that came early had no effect")


def case_stalled(server):
    """A client that takes nothing: its responses are given up, and others are served."""
    one = Peer(server, max_data=1 << 20, max_stream_data=64 << 10)
    one.quic._write_stream_limits = lambda *_, **__: None
    streams = [one.request(request("/film")) for _ in range(3)]
    expect(one.until(lambda: all(stream in one.resets for stream in streams)), f"{one.resets}")
    expect(one.answer(one.request()) == 200, "the connection does not go on")


def case_silent(server):
    """A client that sends no SETTINGS, and one that sends half a request."""
    one = Peer(server, control=False)
    expect(one.error() == NO_ERROR and one.reason == "slow", f"{one.closed} {one.reason}")
    one = Peer(server)
    stream = one.raw(head(request())[:9], end=False)
    expect(one.answer(stream) == f"reset {INCOMPLETE:#x}", one.answer(stream))
    one = Peer(server)
    stream = one.request(end=False)
    expect(one.answer(stream) == f"reset {INCOMPLETE:#x}", one.answer(stream))


def case_idle(server):
    one = Peer(server)
    expect(one.answer(one.request()) == 200, "no answer")
    began = time.time()
    expect(one.error() == NO_ERROR and one.reason == "idle", f"{one.closed} {one.reason}")
    expect(time.time() - began > 1, "it is closed too early")


def case_drain(server):
    """Two GOAWAY frames come when the server ends; requests under way are answered, and later ones rejected."""
    one = Peer(server)
    held = one.request(request("/held"))
    expect(one.answer(one.request()) == 200, "no answer")
    print("requested", flush=True)
    ids = lambda: [take_varint(p)[0] for k, p in frames(one.from_server(CONTROL) or b"") if k == GOAWAY]
    expect(one.until(lambda: len(ids()) == 2), f"{ids()}")
    expect(ids() == [(1 << 62) - 4, 8], f"{ids()}")
    late = one.request()
    got = one.answer(late)
    expect(got == f"reset {REJECTED:#x}", got)
    print("goaway", flush=True)
    expect(one.answer(held) == 200, "the request that was under way got no answer")
    expect(one.error() == NO_ERROR, f"{one.closed} {one.reason}")


def main():
    case, address, port, *more = sys.argv[1:]
    globals()[f"case_{case}"]((address, int(port)), *more)


main()
