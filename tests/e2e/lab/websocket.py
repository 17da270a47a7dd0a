"""A WebSocket server and client of the standard library alone (RFC 6455), for tests of what lies between them.

  websocket.py serve ADDRESS PORT           echoes messages until it is killed
  websocket.py talk ADDRESS PORT HOST [CA]  opens one, sends messages of every length form, closes, prints what happened;
                                            over TLS where a file of authorities is named
"""
import base64, hashlib, os, socket, ssl, struct, sys, threading

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, CLOSE = 1, 8


def accept_of(key):
    return base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()


def read_head(reader):
    lines = []
    while (line := reader.readline()) not in (b"\r\n", b""):
        lines.append(line.strip())
    fields = dict(line.split(b": ", 1) for line in lines[1:])
    return lines[0].decode(), {name.lower().decode(): value for name, value in fields.items()}


def write_frame(writer, opcode, payload, mask):
    length = len(payload)
    short = length if length < 126 else 126 if length < 1 << 16 else 127
    head = bytes([0x80 | opcode, (0x80 if mask else 0) | short])
    head += struct.pack("!H", length) if short == 126 else struct.pack("!Q", length) if short == 127 else b""
    if mask:
        key = os.urandom(4)
        payload = bytes(b ^ key[i % 4] for i, b in enumerate(payload))
        head += key
    writer.write(head + payload)
    writer.flush()


def read_frame(reader):
    first, second = reader.read(2)
    length = second & 0x7F
    if length > 125:
        length = struct.unpack("!H", reader.read(2))[0] if length == 126 else struct.unpack("!Q", reader.read(8))[0]
    key = reader.read(4) if second & 0x80 else None
    payload = reader.read(length)
    return first & 0x0F, bytes(b ^ key[i % 4] for i, b in enumerate(payload)) if key else payload


def echo(connection):
    with connection, connection.makefile("rwb") as stream:
        _, fields = read_head(stream)
        if fields.get("upgrade", b"").lower() != b"websocket":
            stream.write(b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\nContent-Length: 0\r\n\r\n")
            return
        key = accept_of(fields["sec-websocket-key"])
        stream.write(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {key}\r\n\r\n".encode())
        stream.flush()
        while True:
            opcode, payload = read_frame(stream)
            write_frame(stream, opcode, payload, mask=False)
            if opcode == CLOSE:
                return


def serve(address, port):
    listener = socket.create_server((address, int(port)))
    print("listening", flush=True)
    while True:
        threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()


def talk(address, port, host, ca=None):
    connection = socket.create_connection((address, int(port)), timeout=20)
    if ca:
        connection = ssl.create_default_context(cafile=ca).wrap_socket(connection, server_hostname=host)
    stream = connection.makefile("rwb")
    key = base64.b64encode(os.urandom(16))
    stream.write(b"GET /socket HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n" % (host.encode(), key))
    stream.flush()
    status, fields = read_head(stream)
    assert status.startswith("HTTP/1.1 101"), status
    assert fields["sec-websocket-accept"].decode() == accept_of(key), fields
    for length in (5, 300, 70_000):
        message = os.urandom(length)
        write_frame(stream, TEXT, message, mask=True)
        assert read_frame(stream) == (TEXT, message), length
    write_frame(stream, CLOSE, struct.pack("!H", 1000), mask=True)
    assert read_frame(stream) == (CLOSE, struct.pack("!H", 1000))
    assert stream.read() == b"", "the connection ends behind the closing handshake"
    print("talked", fields.get("cache-status", b"").decode())


{"serve": serve, "talk": talk}[sys.argv[1]](*sys.argv[2:])
