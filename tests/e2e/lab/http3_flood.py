"""Floods of HTTP/3, by clients that ask for nothing or cancel everything.

  http3_flood.py ADDRESS PORT KIND SECONDS

Floods for that long, on new connections whenever the server ends one. Prints JSON: how many connections were opened, how they
were ended by code, and how many requests of another, harmless connection were answered meanwhile.
"""
import collections, json, sys, time

from http3_frames import *

ADDRESS, KIND, SECONDS = (sys.argv[1], int(sys.argv[2])), sys.argv[3], float(sys.argv[4])
END = time.monotonic() + SECONDS
HELD, GET = head(request("/held")), head(request())


def cancelled(one):
    """A request that is given up at once, by all means there are."""
    stream = one.raw(HELD)
    one.quic.stop_stream(stream, CANCELLED)


def reset(one):
    stream = one.raw(HELD[:20], end=False)
    one.quic.reset_stream(stream, CANCELLED)


def of_control(data):
    return lambda one: one.quic.send_stream_data(one.uni[CONTROL], data)


def upload(data):
    def more(one):
        if not hasattr(one, "upload"):
            one.upload = one.raw(head(request("/held", "POST")), end=False)
        one.quic.send_stream_data(one.upload, data)
    return more


def of_stream(data):
    return lambda one: one.raw(data)


def decoder(data):
    def more(one):
        if DECODER not in one.uni:
            one.open(DECODER)
        one.quic.send_stream_data(one.uni[DECODER], data)
    return more


def uni(one):
    stream = one.quic.get_next_available_stream_id(is_unidirectional=True)
    one.quic.send_stream_data(stream, varint(UNKNOWN), True)


FLOODS = {
    "cancelled": cancelled,
    "reset": reset,
    "unknown-frames": of_control(frame(UNKNOWN) * 20),
    "large-unknown-frames": of_control(frame(UNKNOWN, bytes(4000)) * 4),
    "unknown-frames-of-requests": upload(frame(UNKNOWN) * 20),
    "unknown-streams": uni,
    "goaway": of_control(frame(GOAWAY, varint(0)) * 20),
    "max-push-id": of_control(frame(MAX_PUSH_ID, varint(0)) * 20),
    "priority": of_control(frame(PRIORITY_UPDATE, varint(0) + b"u=1") * 20),
    "empty-data": upload(frame(DATA) * 50),
    "small-data": upload(frame(DATA, b"x") * 50),
    "cancelled-sections": decoder(b"\x44" * 50),
    "malformed": of_stream(head(request() + [("connection", "close")])),
    "refused": of_stream(head(request() + [("x-a", " b")])),
    "incomplete": of_stream(frame(UNKNOWN)),
    "empty": of_stream(b""),
}

opened, ended, answered = 0, collections.Counter(), 0
harmless = Peer(ADDRESS)
while time.monotonic() < END:
    one = Peer(ADDRESS)
    opened += 1
    while one.closed is None and time.monotonic() < END:
        one.held = True
        for _ in range(20):
            try:
                FLOODS[KIND](one)
            except ValueError:
                # The stream is gone.
                break
        one.held = False
        one.flush()
        one.step(0)
        one.data.clear()
        if harmless.answer(harmless.request()) == 200:
            answered += 1
    if one.closed is None:
        one.close()
    else:
        ended[f"{one.closed:#x} {one.reason}"] += 1
print(json.dumps({"opened": opened, "ended": ended, "answered": answered, "lost": harmless.closed}))
