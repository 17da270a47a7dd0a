"""Each MUST of RFC 9114, RFC 9204 (QPACK) and RFC 9218 that a server can break, tried with streams made by hand.

  http3_conformance.py ADDRESS PORT

The server has `/` (a short cached page), `/large` (256 KiB), `/echo` (answers uploads with their body), and `/held` (its head
never comes). Prints a line of JSON for each case: its section, its name, and what is wrong, or null. Requests that must not
reach an origin have a path that begins with `/bad`.
"""
import json, sys, time

from http3_frames import *

ADDRESS = (sys.argv[1], int(sys.argv[2]))
CASES = []


def case(section, name):
    def add(run):
        CASES.append((section, name, run))
        return run
    return add


def hexed(code):
    return "nothing" if code is None else f"{code:#x}"


def works(one):
    """The connection still serves requests."""
    got = one.answer(one.request())
    return None if got == 200 else f"the next request got {got}"


def connection_error(section, name, code, sent, **more):
    """What is sent ends the connection with this code."""
    @case(section, name)
    def run():
        one = Peer(ADDRESS, **more)
        sent(one)
        got = one.error()
        return None if got == code else f"ended by {hexed(got)} ({one.reason}) in place of {code:#x}"


def control_error(section, name, code, data):
    connection_error(section, name, code, lambda one: one.send(one.uni[CONTROL], data))


def stream_error(section, name, code, data, end=True):
    """What is sent ends the stream with this code, and the connection goes on."""
    @case(section, name)
    def run():
        one = Peer(ADDRESS)
        stream = one.raw(data, end)
        got = one.answer(stream)
        return works(one) if got == f"reset {code:#x}" else f"got {got} in place of a reset by {code:#x}"


def malformed(section, name, fields, body=None):
    """A malformed request resets its stream (4.1.2), and the connection serves the next one."""
    data = head(fields) + (b"" if body is None else frame(DATA, body))
    stream_error(section, name, MESSAGE, data)


def refused(section, name, fields, statuses=(400,), body=None):
    """A request that is answered with an error (4.1.2 permits that for malformed ones)."""
    @case(section, name)
    def run():
        one = Peer(ADDRESS)
        got = one.answer(one.request(fields, body))
        return works(one) if got in statuses else f"got {got} in place of {statuses}"


def well_formed(section, name, data, status=200, body=None, end=True):
    @case(section, name)
    def run():
        one = Peer(ADDRESS)
        stream = one.raw(data, end)
        got = one.answer(stream)
        if got != status:
            return f"got {got}"
        if body is not None and one.body(stream) != body:
            return f"a body of {len(one.body(stream))} bytes"
        return works(one)


def harmless(section, name, sent, **more):
    """What is sent has no effect."""
    @case(section, name)
    def run():
        one = Peer(ADDRESS, **more)
        sent(one)
        return works(one) or works(one)


# 3.2, 6.2.1, 7.2.4 What the server sends
@case("6.2.1", "the server's control stream begins with SETTINGS")
def run():
    one = Peer(ADDRESS)
    data = one.until(lambda: one.from_server(CONTROL))
    got = frames(data or b"")
    return None if got and got[0][0] == SETTINGS else f"{data}"


@case("7.2.4", "the server waits for no SETTINGS to send its own, nor to answer")
def run():
    one = Peer(ADDRESS, control=False)
    return works(one) or (None if one.until(lambda: one.from_server(CONTROL)) else "no SETTINGS")


@case("7.2.4.1", "the server's settings name a limit for field sections, none of HTTP/2 and none twice")
def run():
    one = Peer(ADDRESS)
    payload = frames(one.until(lambda: one.from_server(CONTROL)))[0][1]
    found = []
    while payload:
        setting, payload = take_varint(payload)
        _, payload = take_varint(payload)
        found.append(setting)
    is_good = 6 in found and not {2, 3, 4, 5} & set(found) and len(found) == len(set(found))
    return None if is_good else f"{found}"


@case("9204 3.2.3", "the server offers no dynamic table")
def run():
    one = Peer(ADDRESS)
    payload = frames(one.until(lambda: one.from_server(CONTROL)))[0][1]
    while payload:
        setting, payload = take_varint(payload)
        value, payload = take_varint(payload)
        if setting in (1, 7) and value:
            return f"setting {setting} is {value}"
    return None


@case("4.2", "names of fields are in lower case, and there is none of a connection")
def run():
    one = Peer(ADDRESS)
    for path in ("/", "/echo"):
        stream = one.request(request(path))
        one.answer(stream)
        for name, _ in one.heads(stream)[-1]:
            if name != name.lower() or name in ("connection", "keep-alive", "transfer-encoding", "upgrade", "proxy-connection"):
                return f"{path}: {name}"
    return None


# 4.1 Requests
well_formed("4.1", "a request", head(request()), body=b"a page")
well_formed("4.1", "an upload in several frames", head(request("/echo", "POST")) + frame(DATA, b"ab") + frame(DATA) + frame(DATA, b"cd"), body=b"abcd")
well_formed("4.1", "an upload with its length", head(request("/echo", "PUT", [("content-length", "4")])) + frame(DATA, b"abcd"), body=b"abcd")
well_formed("4.1", "an upload with trailers", head(request("/echo", "POST")) + frame(DATA, b"ab") + head([("x-sum", "1")]), body=b"ab")
well_formed("4.1", "trailers without a body", head(request("/", "GET")) + head([("x-sum", "1")]), body=b"a page")


@case("4.1", "a HEAD has the length and no body")
def run():
    one = Peer(ADDRESS)
    stream = one.request(request("/", "HEAD"))
    got = one.answer(stream)
    is_good = got == 200 and one.fields(stream)["content-length"] == "6" and one.body(stream) == b""
    return works(one) if is_good else f"got {got}"


well_formed("9", "unknown frames everywhere", frame(UNKNOWN, b"x") + head(request("/echo", "POST")) + frame(0x40 * 31 + 0x21, b"y" * 300) + frame(DATA, b"ab") + frame(UNKNOWN) + head([("x", "y")]) + frame(UNKNOWN), body=b"ab")
well_formed("9", "frames of extensions that are not spoken", frame(0x41, b"x") + head(request()) + frame(0x41, b"y"))
well_formed("7.1", "longer forms of integers", varint(HEADERS, 8) + varint(len(section(request())), 8) + section(request()))
stream_error("4.1", "a stream without a request", INCOMPLETE, b"")
stream_error("4.1", "a stream with an unknown frame alone", INCOMPLETE, frame(UNKNOWN, b"x"))
connection_error("4.1", "DATA before HEADERS", UNEXPECTED, lambda one: one.raw(frame(DATA, b"x") + head(request("/bad-data-first"))))
connection_error("4.1", "DATA after trailers", UNEXPECTED, lambda one: one.raw(head(request("/echo", "POST")) + frame(DATA, b"x") + head([("a", "b")]) + frame(DATA, b"y")))
connection_error("4.1", "HEADERS after trailers", UNEXPECTED, lambda one: one.raw(head(request("/echo", "POST")) + frame(DATA, b"x") + head([("a", "b")]) + head([("a", "b")])))

# Behind trailers, whoever answers: the origin, with a stated length or without, the cache, and the edge without reading the body.
TRAILERS = head([("a", "b")])
for what, data in (("an upload", head(request("/echo", "POST")) + frame(DATA, b"x")), ("an upload with its length", head(request("/echo", "POST", [("content-length", "1")])) + frame(DATA, b"x")),
                   ("an upload of nothing", head(request("/echo", "POST", [("content-length", "0")]))), ("a hit", head(request())), ("a hit with length 0", head(request("/", more=[("content-length", "0")]))),
                   ("a HEAD", head(request("/", "HEAD"))), ("a body that is not read", head(request("/", "PURGE", [("content-length", "1")])) + frame(DATA, b"x"))):
    for name, more in (("DATA", frame(DATA, b"y")), ("DATA without bytes", frame(DATA)), ("HEADERS", TRAILERS), ("SETTINGS", frame(SETTINGS)), ("GOAWAY", frame(GOAWAY, b"\0")), ("PING of HTTP/2", frame(6, b"\0"))):
        connection_error("4.1", f"{name} after trailers of {what}", UNEXPECTED, lambda one, data=data + TRAILERS + more: one.raw(data))
    if "not read" not in what:
        well_formed("9", f"an unknown frame after trailers of {what}", data + TRAILERS + frame(UNKNOWN, b"y"))


def late(one):
    """The frames come one by one."""
    stream = one.raw(head(request()), end=False)
    for more in (TRAILERS, frame(DATA, b"y")):
        one.until(lambda: stream in one.ended, 0.3)
        one.send(stream, more)


connection_error("4.1", "DATA long after trailers of a hit", UNEXPECTED, late)

for kind, name in ((SETTINGS, "SETTINGS"), (CANCEL_PUSH, "CANCEL_PUSH"), (GOAWAY, "GOAWAY"), (MAX_PUSH_ID, "MAX_PUSH_ID"), (PUSH_PROMISE, "PUSH_PROMISE"),
                   (PRIORITY_UPDATE, "PRIORITY_UPDATE"), (PRIORITY_UPDATE_PUSH, "PRIORITY_UPDATE for a push"), (2, "PRIORITY of HTTP/2"), (6, "PING of HTTP/2"),
                   (8, "WINDOW_UPDATE of HTTP/2"), (9, "CONTINUATION of HTTP/2")):
    connection_error("7.2", f"{name} before a request", UNEXPECTED, lambda one, kind=kind: one.raw(frame(kind, b"\0") + head(request("/bad-first"))))
    connection_error("7.2", f"{name} within a request", UNEXPECTED, lambda one, kind=kind: one.raw(head(request("/echo", "POST")) + frame(kind, b"\0"), end=False))

# 4.1.1
@case("4.1.1", "a request that is cancelled ends, and the connection goes on")
def run():
    one = Peer(ADDRESS)
    stream = one.request(request("/held"))
    one.until(lambda: False, 0.3)
    one.stop(stream)
    return works(one)


@case("4.1.1", "an upload that is cancelled ends, and the connection goes on")
def run():
    one = Peer(ADDRESS)
    stream = one.request(request("/echo", "POST"), b"abc", end=False)
    one.until(lambda: False, 0.3)
    one.reset(stream)
    got = one.answer(stream)
    return works(one) if got.startswith("reset") else f"got {got}"


# 4.1.2 Lengths
malformed("4.1.2", "less than Content-Length", request("/bad-length", "POST", [("content-length", "9")]), b"abc")
malformed("4.1.2", "more than Content-Length", request("/bad-length", "POST", [("content-length", "2")]), b"abc")
for method in ("GET", "HEAD", "POST", "PURGE"):
    malformed("4.1.2", f"Content-Length and no body of a {method}", request("/bad-length", method, [("content-length", "2")]))
    malformed("4.1.2", f"Content-Length and an empty body of a {method}", request("/bad-length", method, [("content-length", "2")]), b"")
    stream_error("4.1.2", f"Content-Length and trailers alone of a {method}", MESSAGE, head(request("/bad-length", method, [("content-length", "2")])) + TRAILERS)
    malformed("4.1.2", f"a body with Content-Length 0 of a {method}", request("/bad-length", method, [("content-length", "0")]), b"abc")
    stream_error("4.1.2", f"more than Content-Length in a frame of its own of a {method}", MESSAGE, head(request("/bad-length", method, [("content-length", "2")])) + frame(DATA, b"ab") + frame(DATA, b"c"))
    stream_error("4.1.2", f"less than Content-Length before trailers of a {method}", MESSAGE, head(request("/bad-length", method, [("content-length", "3")])) + frame(DATA, b"ab") + TRAILERS)
stream_error("4.3", "a pseudo-header field in trailers without a body", MESSAGE, head(request()) + head([(":path", "/")]))
well_formed("4.1.2", "Content-Length 0", head(request("/", "GET", [("content-length", "0")])))
refused("4.1.2", "two Content-Lengths", request("/bad-length", "POST", [("content-length", "3"), ("content-length", "4")]), body=b"abc")
refused("4.1.2", "Content-Length that is no number", request("/bad-length", "POST", [("content-length", "3x")]), body=b"abc")

# 4.2, 4.3 Fields
GET = request("/bad-field")
for name, value in (("connection", "close"), ("keep-alive", "timeout=5"), ("proxy-connection", "keep-alive"), ("transfer-encoding", "chunked"), ("upgrade", "h2c"),
                    ("te", "gzip"), ("te", "trailers, gzip")):
    malformed("4.2", f"{name}: {value}", GET + [(name, value)])
well_formed("4.2", "te: trailers", head(request("/", more=[("te", "trailers")])))
for name in ("X-Upper", "x y", "x\x00", "x\xe9", "", "x:y", "x\n"):
    malformed("10.3", f"a field with the name {name!r}", GET + [(name, "a")])
for value in ("a\nb", "a\rb", "a\0b", "a\x7fb", "a\x01"):
    malformed("10.3", f"a field with the value {value!r}", GET + [("x-a", value)])
for value in (" a", "a ", "\ta"):
    refused("10.3", f"a field with the value {value!r}", GET + [("x-a", value)])
well_formed("4.2.1", "cookies in several lines", head(request("/", more=[("cookie", "a=b"), ("cookie", "c=d")])))

pseudo = dict(GET)
for name in pseudo:
    rest = [field for field in GET if field[0] != name]
    if name == ":authority":
        refused("4.3.1", "no host", rest)
    else:
        malformed("4.3.1", f"no {name}", rest)
    malformed("4.3", f"{name} twice", [*GET, (name, pseudo[name])])
    malformed("4.3", f"{name} after a field", [*rest, ("accept", "*/*"), (name, pseudo[name])])
    malformed("4.3.1", f"an empty {name}", [*rest, (name, "")])
for name, value in ((":status", "200"), (":protocol", "websocket"), (":unknown", "x"), (":", "x"), (":Path", "/")):
    malformed("4.3", f"{name} in a request", [*GET, (name, value)])
malformed("4.3.1", "a malformed path", request("/bad path"))
malformed("4.3.1", "a malformed host", request("/bad", authority="a b"))
malformed("4.3.1", "a malformed method", request("/bad", method="G(T"))
refused("4.3.1", "another host in Host", request("/bad", more=[("host", "other.test")]))
refused("4.3.1", "two hosts in Host", request("/bad", more=[("host", NAME), ("host", NAME)]))
refused("4.3.1", "a user in the authority", request("/bad", authority="me@" + NAME))
refused("4.3.1", "the scheme http", request("/bad", scheme="http"))
refused("4.3.1", "a path without a slash", [(":method", "GET"), (":scheme", "https"), (":authority", NAME), (":path", "bad")], statuses=(400, "reset 0x10e"))
refused("4.3.1", "the path * of a GET", request("*"))
well_formed("4.3.1", "Host that is the authority", head(request("/", more=[("host", NAME)])))
well_formed("4.3.1", "Host without an authority", head([f for f in request("/") if f[0] != ":authority"] + [("host", NAME)]))
well_formed("4.3.1", "another order of pseudo-header fields", head(list(reversed(request("/")))))
refused("7.4 of RFC 9110", "a host that the certificate does not cover", request("/bad", authority="other.example"), statuses=(421,))
refused("4.4", "CONNECT", [(":method", "CONNECT"), (":authority", NAME + ":443")], statuses=(501,))
malformed("4.4", "CONNECT with a path", [(":method", "CONNECT"), (":authority", NAME), (":path", "/bad")])
malformed("4.4", "CONNECT without a host", [(":method", "CONNECT")])
stream_error("4.3", "a pseudo-header field in trailers", MESSAGE, head(request("/bad-trailers", "POST")) + frame(DATA, b"x") + head([(":path", "/")]))
stream_error("4.2", "a malformed name in trailers", MESSAGE, head(request("/bad-trailers", "POST")) + frame(DATA, b"x") + head([("Upper", "x")]))

# 4.2.2 Sizes
refused("4.2.2", "a field of 40 KiB", request("/bad-large", more=[("x-a", "y" * 40_000)]), statuses=(431,))
refused("4.2.2", "200 fields", request("/bad-many", more=[(f"x-{n}", "y") for n in range(200)]), statuses=(431,))
refused("4.2.2", "a field just above the limit", request("/bad-large", more=[("x-a", "y" * 12_300)]), statuses=(431,))
well_formed("4.2.2", "a field below the limit", head(request("/", more=[("x-a", "y" * 12_000)])))


@case("4.2.2", "a frame that announces a gigabyte of fields is refused at once")
def run():
    one = Peer(ADDRESS)
    stream = one.raw(varint(HEADERS) + varint(1 << 30) + b"\0\0", end=False)
    got = one.answer(stream)
    return works(one) if got == 431 else f"got {got}"


# 6.2 Unidirectional streams
connection_error("6.2.1", "a second control stream", STREAM_CREATION, lambda one: one.open(CONTROL, frame(SETTINGS)))
connection_error("9204 4.2", "a second encoder stream", STREAM_CREATION, lambda one: (one.open(ENCODER), one.open(ENCODER)))
connection_error("9204 4.2", "a second decoder stream", STREAM_CREATION, lambda one: (one.open(DECODER), one.open(DECODER)))
connection_error("6.2.2", "a client's push stream", STREAM_CREATION, lambda one: one.open(PUSH, varint(0)))
for kind, name in ((CONTROL, "control"), (ENCODER, "encoder"), (DECODER, "decoder")):
    def ended(one, kind=kind):
        if kind != CONTROL:
            one.open(kind)
        one.send(one.uni[kind], b"", True)
    connection_error("6.2.1", f"the end of the {name} stream", CRITICAL, ended)

    def reset(one, kind=kind):
        if kind != CONTROL:
            one.open(kind)
        works(one)
        one.reset(one.uni[kind])
    connection_error("6.2.1", f"a reset of the {name} stream", CRITICAL, reset)


def stopped(one):
    one.until(lambda: one.from_server(CONTROL))
    one.stop(next(stream for stream, data in one.data.items() if stream % 4 == 3 and data[:1] == b"\0"))


connection_error("6.2.1", "the server's control stream is stopped", CRITICAL, stopped)
harmless("6.2", "streams of unknown kinds", lambda one: [one.open(UNKNOWN + 31 * n, b"x" * 100) for n in range(3)])
harmless("6.2", "a stream that ends before its kind", lambda one: one.send(one.quic.get_next_available_stream_id(is_unidirectional=True), b"\x40", True))


@case("6.2", "streams of unknown kinds are not read")
def run():
    one = Peer(ADDRESS)
    stream = one.open(0x54, b"x")
    one.until(lambda: stream in one.stops)
    return works(one) if stream in one.stops else "it is not stopped"


# 7.2.4 SETTINGS
for kind, name in ((DATA, "DATA"), (HEADERS, "HEADERS"), (GOAWAY, "GOAWAY"), (UNKNOWN, "an unknown frame"), (PRIORITY_UPDATE, "PRIORITY_UPDATE")):
    connection_error("6.2.1", f"{name} in place of SETTINGS", MISSING_SETTINGS, lambda one, kind=kind: one.open(CONTROL, frame(kind, b"\0\0")), control=False)
control_error("7.2.4", "a second SETTINGS", UNEXPECTED, frame(SETTINGS))
for setting in (2, 3, 4, 5):
    connection_error("7.2.4.1", f"setting {setting}, which only HTTP/2 has", SETTINGS_ERROR, lambda one, setting=setting: one.open(CONTROL, frame(SETTINGS, varint(setting) + varint(1))), control=False)
connection_error("7.2.4", "a setting that comes twice", SETTINGS_ERROR, lambda one: one.open(CONTROL, frame(SETTINGS, b"\6\1\6\1")), control=False)
connection_error("7.1", "SETTINGS that are cut", FRAME, lambda one: one.open(CONTROL, frame(SETTINGS, b"\6")), control=False)
harmless("7.2.4", "known and unknown settings", lambda one: one.open(CONTROL, frame(SETTINGS, b"\1\0\7\0\6\x44\0\x33\1" + varint(0x4D44) + b"\1")), control=False)
harmless("6.2.1", "a control stream a byte at a time", lambda one: [one.send(one.open(CONTROL) if n == 0 else one.uni[CONTROL], bytes([b])) for n, b in enumerate(frame(SETTINGS, b"\6\x44\0") + frame(UNKNOWN, b"xy"))], control=False)

# 7.2 Frames on the control stream
for kind, name in ((DATA, "DATA"), (HEADERS, "HEADERS"), (PUSH_PROMISE, "PUSH_PROMISE"), (2, "PRIORITY of HTTP/2"), (6, "PING of HTTP/2"), (8, "WINDOW_UPDATE of HTTP/2"), (9, "CONTINUATION of HTTP/2")):
    control_error("7.2", f"{name} on the control stream", UNEXPECTED, frame(kind, b"\0"))
control_error("7.2.3", "CANCEL_PUSH of what was not promised", ID, frame(CANCEL_PUSH, varint(0)))
control_error("7.2.6", "GOAWAY that goes up", ID, frame(GOAWAY, varint(4)) + frame(GOAWAY, varint(8)))
control_error("7.2.7", "MAX_PUSH_ID that goes down", ID, frame(MAX_PUSH_ID, varint(8)) + frame(MAX_PUSH_ID, varint(4)))
for kind, name in ((GOAWAY, "GOAWAY"), (MAX_PUSH_ID, "MAX_PUSH_ID"), (CANCEL_PUSH, "CANCEL_PUSH")):
    control_error("7.1", f"{name} with bytes behind its number", FRAME, frame(kind, varint(0) + b"\0"))
    control_error("7.1", f"{name} without a number", FRAME, frame(kind))
    control_error("7.1", f"{name} with half a number", FRAME, frame(kind, b"\x40"))
harmless("7.2.6", "GOAWAY and MAX_PUSH_ID", lambda one: one.send(one.uni[CONTROL], frame(GOAWAY, varint(8)) + frame(GOAWAY, varint(4)) + frame(MAX_PUSH_ID, varint(4)) + frame(MAX_PUSH_ID, varint(9))))
harmless("9", "unknown frames on the control stream", lambda one: one.send(one.uni[CONTROL], frame(UNKNOWN, b"x" * 2000) + frame(0x41, b"y")))

# 7.1
connection_error("7.1", "a stream that ends within a frame of the head", FRAME, lambda one: one.raw(head(request("/bad-cut"))[:-3]))
connection_error("7.1", "a stream that ends within a frame of the body", FRAME, lambda one: one.raw(head(request("/bad-cut", "POST")) + frame(DATA, b"abc", 9)))
connection_error("7.1", "a stream that ends within the kind of a frame", FRAME, lambda one: one.raw(head(request("/bad-cut", "POST")) + b"\x40"))
connection_error("7.1", "a stream that ends within an unknown frame", FRAME, lambda one: one.raw(head(request("/bad-cut", "POST")) + frame(UNKNOWN, b"abc", 9)))

# RFC 9204
P = b"\0\0"
for name, payload in (("no prefix", b""), ("half a prefix", b"\0"), ("a required insert", b"\1\0\xd1"), ("a base below nothing", b"\0\x80\xd1"),
                      ("an entry of the dynamic table", P + b"\x80"), ("a name of the dynamic table", P + b"\x40\1x"), ("an entry behind the base", P + b"\x10"),
                      ("a name behind the base", P + b"\0\1x"), ("an entry that does not exist", P + b"\xff\x24"), ("a name that does not exist", P + b"\x5f\x54\1x"),
                      ("a string that is cut", P + b"\x51\5abc"), ("a huge integer", P + b"\xff" + b"\xff" * 10 + b"\1"), ("a bad Huffman code", P + b"\x51\x81\0"),
                      ("the end symbol in a string", P + b"\x51\x84\xff\xff\xff\xff"), ("a long padding", P + b"\x51\x82\x07\xff")):
    connection_error("9204 2.2", f"a section with {name}", DECOMPRESSION, lambda one, payload=payload: one.raw(frame(HEADERS, payload)))
    if payload:
        connection_error("9204 2.2", f"trailers with {name}", DECOMPRESSION, lambda one, payload=payload: one.raw(head(request("/bad", "POST")) + frame(DATA, b"x") + frame(HEADERS, payload)))
well_formed("9204 4.5", "entries of the static table and a base", frame(HEADERS, b"\0\5\xd1\xd7\xc1\x50" + integer(len(NAME), 7) + NAME.encode()))
for name, payload in (("an insertion", b"\xc0\1x"), ("an insertion with a name", b"\x41a\1b"), ("a duplicate", b"\0"), ("a larger table", b"\x3f\x45")):
    connection_error("9204 4.3", f"{name} on the encoder stream", ENCODER_ERROR, lambda one, payload=payload: one.open(ENCODER, payload))
harmless("9204 4.3.1", "a table of no bytes", lambda one: one.open(ENCODER, b"\x20"))
for name, payload in (("an acknowledgment", b"\x84"), ("an increment", b"\1"), ("an increment of nothing", b"\0")):
    connection_error("9204 4.4", f"{name} on the decoder stream", DECODER_ERROR, lambda one, payload=payload: one.open(DECODER, payload))
harmless("9204 4.4.2", "a cancelled stream", lambda one: one.open(DECODER, b"\x44\x7f\x80\1"))

# RFC 9218
harmless("9218 7.2", "PRIORITY_UPDATE", lambda one: one.send(one.uni[CONTROL], frame(PRIORITY_UPDATE, varint(0) + b"u=1, i") + frame(PRIORITY_UPDATE, varint(40) + b"")))
harmless("9218 4", "PRIORITY_UPDATE that says nothing", lambda one: one.send(one.uni[CONTROL], frame(PRIORITY_UPDATE, varint(0) + b"\xff, u=99")))
control_error("9218 7.2", "PRIORITY_UPDATE of a server's stream", ID, frame(PRIORITY_UPDATE, varint(1) + b"u=1"))
control_error("9218 7.2", "PRIORITY_UPDATE of a unidirectional stream", ID, frame(PRIORITY_UPDATE, varint(2) + b"u=1"))
control_error("9218 7.2", "PRIORITY_UPDATE beyond the limit of streams", ID, frame(PRIORITY_UPDATE, varint(4 * 100_000) + b"u=1"))
control_error("9218 7.2", "PRIORITY_UPDATE of a push", ID, frame(PRIORITY_UPDATE_PUSH, varint(0) + b"u=1"))
control_error("7.1", "PRIORITY_UPDATE without a number", FRAME, frame(PRIORITY_UPDATE))


# Pieces
@case("2.2 of RFC 9000", "a request a byte at a time")
def run():
    one = Peer(ADDRESS)
    data = head(request("/echo", "POST")) + frame(DATA, b"abc") + head([("x", "y")])
    stream = one.raw(data[:1], end=False)
    for at in range(1, len(data)):
        one.send(stream, data[at:at + 1], at + 1 == len(data))
    got = one.answer(stream)
    return None if got == 200 and one.body(stream) == b"abc" else f"got {got} {one.body(stream)}"


@case("4.1", "an end in a packet of its own")
def run():
    one = Peer(ADDRESS)
    stream = one.request(end=False)
    one.until(lambda: stream in one.ended, 0.5)
    one.send(stream, b"", True)
    got = one.answer(stream)
    # A request with a body would not be answered by the cache.
    status = one.fields(stream).get("cache-status", "")
    return None if got == 200 and "hit" in status else f"got {got} {status}"


@case("4.1", "a response before the upload ends has the client stop, without an error")
def run():
    one = Peer(ADDRESS)
    stream = one.raw(head(request("/", "PURGE")) + frame(DATA, b"abc"), end=False)
    got = one.answer(stream)
    one.until(lambda: stream in one.stops)
    code = one.stops.get(stream)
    return works(one) if isinstance(got, int) and code == NO_ERROR else f"got {got}, stopped by {code}"


@case("10.1 of RFC 9110", "100 (Continue) for a client that waits for it")
def run():
    one = Peer(ADDRESS)
    stream = one.request(request("/echo", "POST", [("expect", "100-continue"), ("content-length", "3")]), end=False)
    heads = one.until(lambda: one.heads(stream))
    if not heads or dict(heads[0])[":status"] != "100":
        return f"{heads}"
    one.send(stream, frame(DATA, b"abc"), True)
    got = one.answer(stream)
    return None if got == 200 and one.body(stream) == b"abc" else f"got {got}"


def main():
    only = sys.argv[3:]
    for section_, name, run in CASES:
        if only and not any(word in name for word in only):
            continue
        try:
            wrong = run()
        except Exception as error:  # noqa: BLE001
            wrong = f"{type(error).__name__}: {error}"
        print(json.dumps({"section": section_, "name": name, "wrong": wrong}), flush=True)


main()
