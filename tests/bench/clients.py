"""Clients of the measurements that no Debian program is: TLS handshakes, and connections that stay idle. Standard library only.

    clients.py handshakes PORT HOST SECONDS full|resumed   sequential TLS 1.3 handshakes of four processes; prints how many.
                                                           A # in HOST stands for a number below 1000, another each time
    clients.py idle PORT HOST N                            N connections of HTTP/2 with one answered request each; prints `ready` and
                                                           keeps them until standard input ends
"""
import multiprocessing, random, socket, ssl, struct, sys, time

PROCESSES = 4
READ = 1 << 16


def context(alpn):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE  # the load's own work is no part of the figure
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.set_alpn_protocols([alpn])
    return made


def handshake(of, port, host, session=None):
    """One connection up to the server's tickets, which it sends when it has checked the client's Finished."""
    stream = socket.create_connection(("127.0.0.1", port), 10)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = of.wrap_bio(incoming, outgoing, server_hostname=host, session=session)

    def more():
        data = stream.recv(READ)
        if not data:
            sys.exit("clients: the server closed a connection in its handshake")
        incoming.write(data)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            stream.sendall(outgoing.read())
            more()
    stream.sendall(outgoing.read())
    while not (tls.session and tls.session.has_ticket and (session is None or tls.session.id != session.id)):
        more()
        try:
            tls.read(1)
        except ssl.SSLWantReadError:
            pass
    return stream, tls


def count_handshakes(port, host, seconds, resume, results):
    of, numbers = context("http/1.1"), random.Random()

    def name():
        return host.replace("#", str(numbers.randrange(1000)))
    stream, first = handshake(of, port, name())
    stream.close()
    session, done, until = first.session if resume else None, 0, time.monotonic() + seconds
    while time.monotonic() < until:
        stream, tls = handshake(of, port, name(), session)
        stream.close()
        if tls.session_reused != resume:
            results.put(f"a handshake that was to be {'resumed' if resume else 'full'} was not")
            return
        if resume:
            session = tls.session
        done += 1
    results.put(done)


def handshakes(port, host, seconds, kind):
    results = multiprocessing.Queue()
    arguments = (int(port), host, float(seconds), kind == "resumed", results)
    children = [multiprocessing.Process(target=count_handshakes, args=arguments) for _ in range(PROCESSES)]
    for child in children:
        child.start()
    counts = [results.get(timeout=float(seconds) + 30) for _ in children]
    for child in children:
        child.join()
    wrong = [count for count in counts if not isinstance(count, int)]
    if wrong:
        sys.exit(f"clients: {wrong[0]}")
    print(sum(counts) + PROCESSES)


def frame(kind, flags, stream, payload=b""):
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def idle(port, host, number):
    """The preface, empty SETTINGS, and one GET for / (RFC 9113); reads up to END_STREAM."""
    of = context("h2")
    name = host.encode()
    fields = b"\x82\x87\x84" + b"\x01" + bytes([len(name)]) + name  # GET, https, /, :authority (RFC 7541 appendix A)
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(1, 5, 1, fields)
    kept = []
    for _ in range(int(number)):
        stream = of.wrap_socket(socket.create_connection(("127.0.0.1", int(port)), 10), server_hostname=host)
        stream.sendall(hello)
        buffer, ended = b"", False
        while not ended:
            data = stream.recv(READ)
            if not data:
                sys.exit("clients: the server closed a connection before it answered")
            buffer += data
            while len(buffer) >= 9 and len(buffer) >= 9 + int.from_bytes(buffer[:3], "big"):
                kind, flags, of_stream = struct.unpack("!BBI", buffer[3:9])
                buffer = buffer[9 + int.from_bytes(buffer[:3], "big"):]
                if kind == 4 and not flags & 1:
                    stream.sendall(frame(4, 1, 0))
                if kind in (3, 7):
                    sys.exit(f"clients: a frame of type {kind} for a plain GET")
                ended = ended or (kind in (0, 1) and flags & 1 == 1 and of_stream == 1)
        kept.append(stream)
    print("ready", flush=True)
    sys.stdin.read()


{"handshakes": handshakes, "idle": idle}[sys.argv[1]](*sys.argv[2:])
