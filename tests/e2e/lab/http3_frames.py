"""HTTP/3 by hand: a connection of QUIC whose streams carry any bytes, and what the server answers on them."""
import os, select, socket, ssl, time

import pylsqpack
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, StopSendingReceived, StreamDataReceived, StreamReset

# However slow the machine is.
LIMIT = 30
NAME = os.environ.get("HTTP3_NAME", "www.demo.test")

DATA, HEADERS, CANCEL_PUSH, SETTINGS, PUSH_PROMISE, GOAWAY, MAX_PUSH_ID = 0, 1, 3, 4, 5, 7, 13
PRIORITY_UPDATE, PRIORITY_UPDATE_PUSH = 0xF0700, 0xF0701
UNKNOWN = 0x21
CONTROL, PUSH, ENCODER, DECODER = 0, 1, 2, 3

NO_ERROR, INTERNAL, STREAM_CREATION, CRITICAL, UNEXPECTED, FRAME = 0x100, 0x102, 0x103, 0x104, 0x105, 0x106
LOAD, ID, SETTINGS_ERROR, MISSING_SETTINGS, REJECTED, CANCELLED, INCOMPLETE, MESSAGE = 0x107, 0x108, 0x109, 0x10A, 0x10B, 0x10C, 0x10D, 0x10E
DECOMPRESSION, ENCODER_ERROR, DECODER_ERROR = 0x200, 0x201, 0x202


def varint(value, size=None):
    for bytes_, prefix in ((1, 0), (2, 1), (4, 2), (8, 3)):
        if (size or bytes_) == bytes_ and value < 1 << (8 * bytes_ - 2):
            return (value | prefix << (8 * bytes_ - 2)).to_bytes(bytes_, "big")
    raise ValueError(value)


def take_varint(data):
    """The integer at the front, and the rest; None where it is not complete."""
    if not data or len(data) < (size := 1 << (data[0] >> 6)):
        return None, data
    return int.from_bytes(data[:size], "big") & (1 << (8 * size - 2)) - 1, data[size:]


def frame(kind, payload=b"", length=None):
    return varint(kind) + varint(len(payload) if length is None else length) + payload


def frames(data):
    """The whole frames in some bytes."""
    data, found = bytes(data), []
    while data:
        kind, rest = take_varint(data)
        length, rest = take_varint(rest) if kind is not None else (None, rest)
        if length is None or len(rest) < length:
            return found
        found.append((kind, rest[:length]))
        data = rest[length:]
    return found


def integer(value, bits, first=0):
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = bytes([first | most]), value - most
    while value >= 128:
        out, value = out + bytes([128 | value & 127]), value >> 7
    return out + bytes([value])


def octets(text):
    return text if isinstance(text, bytes) else text.encode("latin-1")


def literal(name, value):
    name, value = octets(name), octets(value)
    return integer(len(name), 3, 0x20) + name + integer(len(value), 7) + value


def section(fields):
    """Fields without a use of any table."""
    return b"\0\0" + b"".join(literal(*field) for field in fields)


def head(fields):
    return frame(HEADERS, section(fields))


def request(path="/", method="GET", more=(), authority=NAME, scheme="https"):
    return [(":method", method), (":scheme", scheme), (":authority", authority), (":path", path), *more]


class Peer:
    """One connection. Without `control` the client's control stream is not opened."""

    def __init__(self, server, control=True, name=NAME, alpn="h3", **more):
        configuration = QuicConfiguration(is_client=True, alpn_protocols=[alpn], server_name=name, idle_timeout=LIMIT, **more)
        configuration.verify_mode = ssl.CERT_NONE
        self.server = server
        self.quic = QuicConnection(configuration=configuration)
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.connect(server)
        self.socket.setblocking(False)
        self.data, self.ended, self.resets, self.stops = {}, set(), {}, {}
        self.order = []
        self.is_ready, self.closed, self.reason = False, None, ""
        self.uni = {}
        self.held = False
        self.quic.connect(server, now=time.time())
        self.flush()
        self.until(lambda: self.is_ready)
        assert self.is_ready and self.closed is None, f"no connection: {self.closed} {self.reason}"
        if control:
            self.open(CONTROL, frame(SETTINGS))

    def open(self, kind, data=b"", end=False):
        """A unidirectional stream of this kind."""
        stream = self.quic.get_next_available_stream_id(is_unidirectional=True)
        self.uni[kind] = stream
        self.send(stream, varint(kind) + data, end)
        return stream

    def send(self, stream, data=b"", end=False):
        if self.closed is None:
            self.quic.send_stream_data(stream, data, end)
            self.flush()

    def request(self, fields=None, body=None, end=True):
        """A request on a new stream."""
        stream = self.quic.get_next_available_stream_id()
        data = head(request() if fields is None else fields)
        if body is not None:
            data += frame(DATA, body)
        self.send(stream, data, end)
        return stream

    def raw(self, data, end=True):
        stream = self.quic.get_next_available_stream_id()
        self.send(stream, data, end)
        return stream

    def reset(self, stream, code=CANCELLED):
        self.quic.reset_stream(stream, code)
        self.flush()

    def stop(self, stream, code=CANCELLED):
        self.quic.stop_stream(stream, code)
        self.flush()

    def flush(self):
        if self.held:
            return
        for data, _ in self.quic.datagrams_to_send(now=time.time()):
            try:
                self.socket.send(data)
            except (BlockingIOError, ConnectionRefusedError):
                pass

    def step(self, most=0.05):
        timer = self.quic.get_timer()
        wait = most if timer is None else max(0, min(most, timer - time.time()))
        readable, _, _ = select.select([self.socket], [], [], wait)
        for _ in range(64 if readable else 0):
            try:
                data = self.socket.recv(65536)
            except (BlockingIOError, ConnectionRefusedError):
                break
            self.quic.receive_datagram(data, self.server, now=time.time())
        timer = self.quic.get_timer()
        if timer is not None and time.time() >= timer:
            self.quic.handle_timer(now=time.time())
        while (event := self.quic.next_event()) is not None:
            self.take(event)
        self.flush()

    def take(self, event):
        if isinstance(event, HandshakeCompleted):
            self.is_ready = True
        elif isinstance(event, ConnectionTerminated):
            self.closed, self.reason = event.error_code, event.reason_phrase
            self.is_ready = True
        elif isinstance(event, StreamDataReceived):
            self.data.setdefault(event.stream_id, bytearray()).extend(event.data)
            self.order.append((event.stream_id, len(event.data)))
            if event.end_stream:
                self.ended.add(event.stream_id)
        elif isinstance(event, StreamReset):
            self.resets[event.stream_id] = event.error_code
        elif isinstance(event, StopSendingReceived):
            self.stops[event.stream_id] = event.error_code

    def until(self, done, limit=LIMIT):
        end = time.time() + limit
        while time.time() < end and self.closed is None:
            found = done()
            if found:
                return found
            self.step()
        return done()

    def error(self, limit=LIMIT):
        """The error code by which the server ends the connection; None where it does not."""
        self.until(lambda: self.closed is not None, limit)
        return self.closed

    def heads(self, stream):
        """The heads on a stream, decoded: a list of fields each."""
        decoder = pylsqpack.Decoder(0, 0)
        found = []
        for number, (kind, payload) in enumerate(frames(self.data.get(stream, b""))):
            if kind == HEADERS:
                _, fields = decoder.feed_header(4 * number, payload)
                found.append([(n.decode(), v.decode("latin-1")) for n, v in fields])
        return found

    def body(self, stream):
        return b"".join(payload for kind, payload in frames(self.data.get(stream, b"")) if kind == DATA)

    def answer(self, stream, limit=LIMIT):
        """What comes of a request: its status, "reset CODE", "closed CODE" or "nothing"."""
        self.until(lambda: stream in self.ended or stream in self.resets, limit)
        if stream in self.ended:
            statuses = [int(dict(fields)[":status"]) for fields in self.heads(stream)]
            return statuses[-1] if statuses else "no head"
        if stream in self.resets:
            return f"reset {self.resets[stream]:#x}"
        return f"closed {self.closed:#x}" if self.closed is not None else "nothing"

    def fields(self, stream):
        return dict(self.heads(stream)[-1])

    def from_server(self, kind):
        """The bytes of the server's stream of this kind, without its kind."""
        for stream, data in self.data.items():
            if stream % 4 == 3:
                found, rest = take_varint(bytes(data))
                if found == kind:
                    return rest
        return None

    def close(self):
        self.quic.close()
        self.flush()
        self.socket.close()
