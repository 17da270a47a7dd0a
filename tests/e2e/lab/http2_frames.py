"""Frames of HTTP/2 made by hand, for the scripts beside this one (RFC 9113 section 4 and RFC 7541)."""
import socket, struct, time

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK, END_STREAM, END_HEADERS, PADDED, PRIORITY_FLAG = 1, 1, 4, 8, 32
NO_ERROR, PROTOCOL, INTERNAL, FLOW_CONTROL, SETTINGS_TIMEOUT, CLOSED, FRAME_SIZE, REFUSED, CANCEL, COMPRESSION = range(10)
CALM = 11
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_HEADER_LIST = range(1, 7)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HOST = "www.demo.test"


def frame(kind, flags, stream, payload=b"", reserved=False):
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream | (reserved << 31)) + payload


def setting(number, value):
    return struct.pack("!HI", number, value)


def integer(value, bits, first=0):
    """RFC 7541 section 5.1."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = bytes([first | most]), value - most
    while value >= 128:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def text(value):
    value = value if isinstance(value, bytes) else value.encode("latin-1")
    return integer(len(value), 7) + value


def block(fields):
    """A field section without Huffman coding and without the dynamic table, so that anything can be written."""
    return b"".join(b"\x00" + text(name) + text(value) for name, value in fields)


def request(path="/", method="GET", more=(), scheme="http", authority=HOST):
    fields = [(":method", method), (":scheme", scheme), (":authority", authority), (":path", path)]
    return [(name, value) for name, value in fields if value is not None] + list(more)


class Ended(Exception):
    """The server closed the connection."""


class Peer:
    """A connection to the server, and what it has sent."""

    def __init__(self, address, settings=b"", begin=True, timeout=8):
        self.socket = socket.create_connection(address, timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.frames = []
        self.decoder = None
        self.has_ended = False
        if begin:
            self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def send(self, data):
        try:
            self.socket.sendall(data)
        except OSError:
            pass

    def headers(self, stream, fields, end=True, flags=END_HEADERS):
        self.send(frame(HEADERS, flags | (END_STREAM if end else 0), stream, block(fields)))

    def fill(self, length):
        while len(self.buffer) < length:
            try:
                more = self.socket.recv(65536)
            except socket.timeout:
                raise TimeoutError
            except OSError:
                more = b""
            if not more:
                self.has_ended = True
                raise Ended
            self.buffer += more

    def read(self):
        """The next frame: kind, flags, stream, payload. SETTINGS and PING are answered."""
        self.fill(9)
        length = int.from_bytes(self.buffer[:3], "big")
        kind, flags = self.buffer[3], self.buffer[4]
        stream = int.from_bytes(self.buffer[5:9], "big")
        self.fill(9 + length)
        payload, self.buffer = self.buffer[9:9 + length], self.buffer[9 + length:]
        self.frames.append((kind, flags, stream, payload))
        if kind == SETTINGS and not flags & ACK:
            self.send(frame(SETTINGS, ACK, 0))
        if kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        return self.frames[-1]

    def until(self, condition, seconds=8):
        """Reads frames until one fulfils a condition; None when the connection ends or the time does."""
        limit = time.monotonic() + seconds
        while (left := limit - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                found = self.read()
            except (Ended, TimeoutError):
                return None
            if condition(found):
                return found
        return None

    def sync(self, payload=b"in order"):
        """Whether the server answers a PING: everything sent before is processed then."""
        self.send(frame(PING, 0, 0, payload))
        return self.until(lambda f: f[0] == PING and f[1] & ACK and f[3] == payload) is not None

    def settle(self):
        """Waits for the server's SETTINGS and for its confirmation of ours."""
        return self.until(lambda f: f[0] == SETTINGS and f[1] & ACK) is not None

    def goaway(self, seconds=8):
        """The error code by which the server ends the connection; "closed" without a GOAWAY, None if it does not end."""
        found = self.until(lambda f: f[0] == GOAWAY and f[3][4:8] != bytes(4), seconds)
        if found:
            return int.from_bytes(found[3][4:8], "big")
        return "closed" if self.has_ended else None

    def statuses(self, stream):
        """The status codes of a stream, once it has ended or was reset; "reset N" for a reset."""
        def is_end(f):
            return f[2] == stream and (f[0] == RST_STREAM or (f[0] in (DATA, HEADERS) and f[1] & END_STREAM))
        if not self.until(is_end) and not self.has_ended:
            return "nothing"
        return self.outcome(stream)

    def outcome(self, stream):
        import hpack
        found, decoder = [], hpack.Decoder()
        for kind, flags, number, payload in self.frames:
            if kind == HEADERS:
                fields = dict(decoder.decode(payload))
                if number == stream and ":status" in fields:
                    found.append(int(fields[":status"]))
            elif kind == RST_STREAM and number == stream:
                found.append("reset %d" % int.from_bytes(payload, "big"))
            elif kind == GOAWAY and payload[4:8] != bytes(4):
                found.append("goaway %d" % int.from_bytes(payload[4:8], "big"))
        if self.has_ended:
            found.append("closed")
        return found

    def body(self, stream):
        return b"".join(f[3] for f in self.frames if f[0] == DATA and f[2] == stream)
