"""An origin that speaks HTTP/2 over TLS with frames of its own making, to misbehave as no library does.

  http2_origin.py ADDRESS PORT CERTIFICATE KEY

It prints a line for each connection and request: `<connection> <method> <path> [<range>]`.
"""
import socket, ssl, struct, sys, threading

from hpack import Decoder, Encoder

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 5, 6, 7, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM = 0, 2, 7
# No identifier, date or tag in a response can contain it.
FORBIDDEN = b"<forbidden>"
BODY = bytes(i % 251 for i in range(60000))


class Connection:
    def __init__(self, number, stream):
        self.number, self.stream = number, stream
        self.encoder, self.decoder = Encoder(), Decoder()
        self.requests = 0

    def read(self, length):
        data = b""
        while len(data) < length:
            more = self.stream.recv(length - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def frame(self, kind, flags, stream_id, payload=b""):
        self.stream.sendall(struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream_id) + payload)

    def headers(self, stream_id, fields, flags=END_HEADERS):
        # Without Huffman coding and without the dynamic table, so that anything can be written.
        block = b"".join(b"\x00" + bytes([len(n)]) + n.encode() + bytes([len(v)]) + v.encode() for n, v in fields)
        self.frame(HEADERS, flags, stream_id, block)

    def answer(self, stream_id, fields, body=b""):
        self.headers(stream_id, [(":status", "200")] + fields, END_HEADERS | (0 if body else END_STREAM))
        for at in range(0, len(body), 16000):
            self.frame(DATA, END_STREAM if at + 16000 >= len(body) else 0, stream_id, body[at:at + 16000])

    def serve(self):
        assert self.read(24) == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        self.frame(SETTINGS, 0, 0)
        while True:
            length = int.from_bytes(self.read(3), "big")
            kind, flags = self.read(2)
            stream_id = int.from_bytes(self.read(4), "big")
            payload = self.read(length)
            if kind == SETTINGS and not flags & ACK:
                self.frame(SETTINGS, ACK, 0)
            elif kind == PING and not flags & ACK:
                self.frame(PING, ACK, 0, payload)
            elif kind == HEADERS:
                # Our client sends no padding and no priority, and all in one frame.
                fields = dict(self.decoder.decode(payload))
                self.requests += 1
                print(self.number, fields[":method"], fields[":path"], fields.get("range", ""), flush=True)
                if not self.respond(stream_id, fields, fields[":path"].split("?")[0]):
                    return

    def respond(self, stream_id, fields, path):
        ok = [("cache-control", "max-age=60")]
        if path == "/fields":
            text = "\n".join(f"{name}: {value}" for name, value in fields.items())
            self.answer(stream_id, [], text.encode())
        elif path == "/refused" and self.requests == 1:
            self.frame(RST_STREAM, 0, stream_id, struct.pack("!I", REFUSED_STREAM))
        elif path == "/goaway" and self.requests == 1:
            # Nothing was processed.
            self.frame(GOAWAY, 0, 0, struct.pack("!II", 0, NO_ERROR))
            return False
        elif path == "/connection-field":
            self.answer(stream_id, ok + [("connection", "close")], FORBIDDEN)
        elif path == "/transfer-encoding":
            self.answer(stream_id, ok + [("transfer-encoding", "chunked")], FORBIDDEN)
        elif path == "/upper-case":
            self.answer(stream_id, ok + [("X-A", "b")], FORBIDDEN)
        elif path == "/padded-value":
            self.answer(stream_id, ok + [("x-a", " b")], FORBIDDEN)
        elif path == "/line-break":
            self.answer(stream_id, ok + [("x-a", "b\r\nset-cookie: c")], FORBIDDEN)
        elif path == "/no-status":
            self.headers(stream_id, ok, END_HEADERS | END_STREAM)
        elif path == "/odd-status":
            self.headers(stream_id, [(":status", "2x0")] + ok, END_HEADERS | END_STREAM)
        elif path == "/two-status":
            self.headers(stream_id, [(":status", "200"), (":status", "201")] + ok, END_HEADERS | END_STREAM)
        elif path == "/late-pseudo":
            self.headers(stream_id, ok + [(":status", "200")], END_HEADERS | END_STREAM)
        elif path == "/two-lengths":
            self.answer(stream_id, ok + [("content-length", "3"), ("content-length", "4")], FORBIDDEN)
        elif path == "/interim-101":
            self.headers(stream_id, [(":status", "101")])
            self.answer(stream_id, ok, FORBIDDEN)
        elif path == "/data-first":
            self.frame(DATA, END_STREAM, stream_id, FORBIDDEN)
        elif path == "/push":
            self.frame(PUSH_PROMISE, END_HEADERS, stream_id, struct.pack("!I", 2) + self.encoder.encode([(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/pushed")]))
        elif path == "/too-long":
            self.answer(stream_id, ok + [("content-length", "2")], FORBIDDEN)
        elif path == "/short":
            self.answer(stream_id, ok + [("content-length", "10")], b"short")
        elif path == "/cut-without-error":
            self.headers(stream_id, [(":status", "200")] + ok)
            self.frame(DATA, 0, stream_id, b"half")
            self.frame(RST_STREAM, 0, stream_id, struct.pack("!I", NO_ERROR))
        elif path == "/resumed":
            validator = ok + [("etag", '"one"')]
            if "range" in fields:
                first = int(fields["range"].removeprefix("bytes=").split("-")[0])
                end = min(int(fields["range"].split("-")[1] or len(BODY) - 1), len(BODY) - 1)
                rest = [("content-range", f"bytes {first}-{end}/{len(BODY)}"), ("content-length", str(end + 1 - first))]
                self.headers(stream_id, [(":status", "206")] + validator + rest)
                for at in range(first, end + 1, 16000):
                    last = min(at + 16000, end + 1)
                    self.frame(DATA, END_STREAM if last == end + 1 else 0, stream_id, BODY[at:last])
            else:
                self.headers(stream_id, [(":status", "200"), ("content-length", str(len(BODY)))] + validator)
                self.frame(DATA, 0, stream_id, BODY[:16000])
                self.frame(RST_STREAM, 0, stream_id, struct.pack("!I", INTERNAL_ERROR))
        elif path == "/early":
            # A complete answer to an upload that is not: the rest is not wanted.
            self.headers(stream_id, [(":status", "413" if "413" in fields[":path"] else "200")])
            self.frame(DATA, END_STREAM, stream_id, b"enough")
            self.frame(RST_STREAM, 0, stream_id, struct.pack("!I", NO_ERROR))
        elif path == "/hints":
            self.headers(stream_id, [(":status", "103"), ("link", "</a>; rel=preload")])
            self.answer(stream_id, [], b"final")
        else:
            self.answer(stream_id, ok, b"fine")
        return True


def connect(number, stream, context):
    try:
        Connection(number, context.wrap_socket(stream, server_side=True)).serve()
    except (EOFError, OSError):
        pass
    finally:
        stream.close()


def main():
    address, port, certificate, key = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    listener = socket.create_server((address, int(port)), backlog=64)
    print("listening", flush=True)
    number = 0
    while True:
        stream, _ = listener.accept()
        number += 1
        threading.Thread(target=connect, args=(number, stream, context), daemon=True).start()


main()
