"""A client of QUIC that sends and receives each datagram by itself, and attacks that are made of them.

    quic.py CASE ADDRESS PORT [ARGUMENT...]

Ends with 0 if the server behaves as the case says, else with what it did instead. Cases that need something done in
the middle print a line and wait for one.
"""

import os
import random
import select
import socket
import ssl
import struct
import sys
import time

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, PingAcknowledged

# However slow the machine is.
LIMIT = 30
NAME = os.environ.get("QUIC_NAME", "www.test")
UNRECOGNIZED_NAME = 0x100 + 112
NO_APPLICATION_PROTOCOL = 0x100 + 120
CONNECTION_REFUSED = 2
# Of HTTP/3 (RFC 9114 section 8.1).
NO_ERROR = 0x100


def new_socket(server, source=None):
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM)
    if source:
        made.bind((source, 0))
    made.connect(server)
    made.setblocking(False)
    return made


class Client:
    """One connection. `sent` sees each datagram before it is sent, and may send it in another way."""

    def __init__(self, server, name=NAME, alpn=("h3",), token=b"", ticket=None, source=None):
        self.tokens, self.tickets = [], []
        configuration = QuicConfiguration(is_client=True, alpn_protocols=list(alpn), server_name=name, token=token,
                                          session_ticket=ticket, idle_timeout=10 * LIMIT)
        configuration.verify_mode = ssl.CERT_NONE
        self.server = server
        self.quic = QuicConnection(configuration=configuration, session_ticket_handler=self.tickets.append,
                                   token_handler=self.tokens.append)
        self.socket = new_socket(server, source)
        self.events, self.sent, self.received = [], None, []
        self.pings = 0
        self.quic.connect(server, now=time.time())
        self.flush()

    def flush(self):
        for data, _ in self.quic.datagrams_to_send(now=time.time()):
            if self.sent is None or not self.sent(data):
                self.send(data)

    def send(self, data):
        try:
            self.socket.send(data)
        except (BlockingIOError, ConnectionRefusedError):
            pass

    def step(self, most=0.05):
        """Takes what has come, and sends what that leads to."""
        timer = self.quic.get_timer()
        wait = most if timer is None else max(0, min(most, timer - time.time()))
        readable, _, _ = select.select([self.socket], [], [], wait)
        if readable:
            for _ in range(64):
                try:
                    data = self.socket.recv(65536)
                except (BlockingIOError, ConnectionRefusedError):
                    break
                self.received.append(data)
                self.quic.receive_datagram(data, self.server, now=time.time())
        timer = self.quic.get_timer()
        if timer is not None and time.time() >= timer:
            self.quic.handle_timer(now=time.time())
        while (event := self.quic.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, HandshakeCompleted) and event.alpn_protocol == "h3":
                # The control stream with empty SETTINGS, without which HTTP/3 goes no further.
                self.quic.send_stream_data(self.quic.get_next_available_stream_id(is_unidirectional=True), b"\x00\x04\x00")
        self.flush()

    def until(self, done, limit=LIMIT):
        end = time.time() + limit
        while time.time() < end:
            found = done()
            if found:
                return found
            self.step()
        return done()

    def event(self, kind):
        return next((event for event in self.events if isinstance(event, kind)), None)

    def ended(self):
        """How the connection ended. The library tells it only after a time in which it answers late packets."""
        return self.event(ConnectionTerminated) or self.quic._close_event

    def is_complete(self, limit=LIMIT):
        self.until(lambda: self.event(HandshakeCompleted) or self.ended(), limit)
        return self.event(HandshakeCompleted) is not None and self.ended() is None

    def error(self, limit=LIMIT):
        """The error by which the connection ends."""
        ended = self.until(lambda: self.ended(), limit)
        return ended.error_code if ended else None

    def lives(self, limit=LIMIT):
        """Whether the server acknowledges what is sent now."""
        self.pings += 1
        uid = self.pings
        self.quic.send_ping(uid)
        self.flush()
        acknowledged = lambda: any(isinstance(e, PingAcknowledged) and e.uid == uid for e in self.events)
        self.until(lambda: acknowledged() or self.ended(), limit)
        return acknowledged()

    def has_retried(self):
        return self.quic._retry_source_connection_id is not None

    def close(self):
        self.quic.close()
        self.flush()
        self.socket.close()


def expect(condition, message):
    if not condition:
        sys.exit(message)


def connected(server, **more):
    client = Client(server, **more)
    expect(client.is_complete(), f"no connection: {client.events}")
    # Connection IDs for other paths have come.
    expect(client.lives(), "a new connection does not answer")
    return client


def first_flight(server, **more):
    """The first datagram of a connection that goes no further."""
    datagrams = []
    held = Client.__new__(Client)
    Client.flush, flush = lambda self: datagrams.extend(d for d, _ in self.quic.datagrams_to_send(now=time.time())), Client.flush
    try:
        held.__init__(server, **more)
    finally:
        Client.flush = flush
    held.socket.close()
    return datagrams


def case_connect(server):
    """A full handshake, and one that a ticket resumes."""
    first = connected(server)
    expect(first.until(lambda: first.tickets), "no ticket")
    first.close()
    second = connected(server, ticket=first.tickets[0])
    expect(second.quic.tls.session_resumed, "the session is not resumed")
    expect(not second.quic.tls.early_data_accepted, "early data is accepted")
    second.close()


def case_migrate(server):
    """A client's port and address change again and again: the connection goes on, also with new connection IDs."""
    for _ in range(4):
        client = connected(server)
        for change in range(16):
            source = f"127.0.0.{2 + change % 50}" if change % 2 else None
            client.socket.close()
            client.socket = new_socket(server, source)
            if change % 4 == 3:
                client.quic.change_connection_id()
            expect(client.lives(), f"it does not go on after change {change} of its address")
        client.close()


def case_copied(server):
    """An attacker sends copies of a client's datagrams from elsewhere, before them or after: the connection goes on at
    the client's address (RFC 9000 section 9.3.3). One that is always first is on the way, and could drop them too."""
    client = connected(server)
    attacker = new_socket(server, "127.0.0.9")

    def copy_first(data):
        client.sent = None
        attacker.send(data)
        client.send(data)
        return True

    def copy_after(data):
        client.send(data)
        attacker.send(data)
        return True

    for sent in (copy_after, copy_first):
        for number in range(10):
            client.sent = sent
            expect(client.lives(), f"it does not go on after copy {number} ({sent})")
    client.sent = None
    expect(answer(attacker) is not None, "the attacker's address was not even challenged")
    began = time.time()
    expect(client.lives() and time.time() - began < 5, "it is slow after the attack")


def long_header(version, first=0xC0, padding=1200):
    packet = bytes([first]) + struct.pack("!I", version) + bytes([8]) + os.urandom(8) + bytes([8]) + os.urandom(8)
    return packet + os.urandom(max(0, padding - len(packet)))


def answer(sock, wait=1.0):
    readable, _, _ = select.select([sock], [], [], wait)
    if not readable:
        return None
    try:
        return sock.recv(65536)
    except ConnectionRefusedError:
        return None


def case_versions(server):
    """Another version of QUIC is answered with those that are served (RFC 9000 section 6), unless its packet is short."""
    for version in (0x6B3343CF, 0xFACEB00C, 0x0A1A2A3A, 0xFF00001D, 2):
        sock = new_socket(server)
        sock.send(packet := long_header(version))
        got = answer(sock, LIMIT)
        expect(got is not None, f"version {version:#x} is not answered")
        expect(got[0] & 0x80 and got[1:5] == bytes(4), f"not a negotiation: {got.hex()}")
        expect(got[6:14] == packet[15:23] and got[15:23] == packet[6:14], "its IDs are not those of the packet")
        offered = struct.unpack(f"!{len(got[23:]) // 4}I", got[23:])
        expect(1 in offered and version not in offered, f"{offered}")
        sock.close()
    sock = new_socket(server)
    sock.send(long_header(0x6B3343CF, padding=1199))
    sock.send(long_header(0))
    expect(answer(sock) is None, "an answer to what may be of a false sender")
    client = Client(server)
    client.quic._version = 1
    expect(client.is_complete(), "a client of version 1 is not served afterwards")


def mutations(flight, count):
    """Datagrams that are nearly right."""
    for number in range(count):
        data = bytearray(random.choice(flight))
        kind = number % 6
        if kind == 0:
            del data[random.randrange(len(data)):]
        elif kind == 1:
            for _ in range(random.randrange(1, 8)):
                data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        elif kind == 2:
            # Lengths of IDs and tokens.
            data[random.choice([5, 14, 15, 23, 24])] = random.randrange(256)
        elif kind == 3:
            data = bytearray(os.urandom(random.randrange(1, 1500)))
        elif kind == 4:
            data[0] = random.randrange(256)
        else:
            data += bytearray(os.urandom(random.randrange(1, 300)))
        yield bytes(data)


def case_garbage(server):
    """Thousands of broken datagrams, also in the name of an open connection, end nothing."""
    random.seed(20)
    client = connected(server)
    flight = [d for _ in range(20) for d in first_flight(server)]
    own = []
    client.sent = lambda data: own.append(data)
    expect(client.lives(), "it does not go on")
    client.sent = None
    stranger = new_socket(server)
    for number, data in enumerate(mutations(flight + own, 12_000)):
        if not data:
            continue
        try:
            (client.socket if number % 3 == 0 else stranger).send(data)
        except (BlockingIOError, ConnectionRefusedError):
            pass
        if number % 500 == 0:
            expect(client.lives(), f"it does not go on after {number}")
    # Short headers with the connection's own ID, which no key opens.
    peer = client.quic._peer_cid.cid
    for _ in range(2000):
        stranger.send(bytes([0x40 | random.randrange(64)]) + peer + os.urandom(random.randrange(1, 1400)))
    expect(client.lives(), "it does not go on after false packets of its own")
    connected(server)


def case_retry(server, count):
    """While many handshakes are under way, a client has to show its address first. Others' tokens do not do."""
    client = connected(server)
    expect(not client.has_retried(), "a client had to show its address without a need")
    expect(client.until(lambda: client.tokens), "no token for a later connection")
    # Handshakes that go no further.
    held = []
    for _ in range(int(count)):
        for data in first_flight(server):
            held.append(new_socket(server))
            held[-1].send(data)
            # Taken before the next one, as its answer shows.
            answer(held[-1], 5)
    retried = connected(server)
    expect(retried.has_retried(), "a client did not have to show its address")
    remembered = connected(server, token=client.tokens[0])
    expect(not remembered.has_retried(), "the token of an earlier connection does not do")
    twice = connected(server, token=client.tokens[0])
    expect(twice.has_retried(), "a token was taken twice")
    elsewhere = connected(server, token=retried.until(lambda: retried.tokens)[0], source="127.0.0.77")
    expect(elsewhere.has_retried(), "a token was taken from another address")
    junk = connected(server, token=os.urandom(60))
    expect(junk.has_retried(), "a token of nobody was taken")

    # The token of a Retry is that of one address and port.
    thief = Client(server)
    thief.until(thief.has_retried)
    expect(thief.has_retried(), "no Retry")
    thief.socket.close()
    copies = Client(server)
    taken = []
    copies.sent = lambda data: taken.append(data) or True
    copies.until(copies.has_retried)
    expect(taken, "nothing was sent after the Retry")
    other = new_socket(server, "127.0.0.78")
    for data in taken:
        other.send(data)
    got = answer(other, LIMIT)
    expect(got is not None and len(got) < 200, "a stolen token is not refused")
    expect(client.lives(), "an open connection does not go on")


def case_unfinished(server, count):
    """Handshakes that are begun, and go no further."""
    for _ in range(int(count)):
        for data in first_flight(server):
            sock = new_socket(server)
            sock.send(data)
            expect(answer(sock, LIMIT) is not None, "no answer to a first datagram")


def case_unknown_name(server):
    error = Client(server, name="other.test").error()
    expect(error == UNRECOGNIZED_NAME, f"an unknown name: {error}")
    error = Client(server, alpn=("h3-29",)).error()
    expect(error == NO_APPLICATION_PROTOCOL, f"an unknown protocol: {error}")
    connected(server)


def case_many(server, count):
    """Opens connections until one is refused; says how many there were, and holds them until a line comes."""
    held = []
    for _ in range(int(count)):
        client = Client(server)
        if not client.is_complete():
            expect(client.ended().error_code == CONNECTION_REFUSED, f"{client.events}")
            break
        held.append(client)
    print(len(held), flush=True)
    sys.stdin.readline()
    lost = [client for client in held if not client.lives()]
    errors = {client.error() for client in lost}
    expect(len(lost) < len(held) and errors <= {NO_ERROR}, f"{len(lost)} of {len(held)} are lost by {errors}")


def case_other_client(server, source):
    """A connection from another address."""
    connected(server, source=source).close()


def case_reset(server):
    """The server loses the connection: it says so to the next packet (RFC 9000 section 10.3)."""
    client = connected(server)
    token = client.quic._peer_cid.stateless_reset_token
    expect(token, "no reset token")
    print("connected", flush=True)
    sys.stdin.readline()
    client.received.clear()
    # Resets are for packets that are longer than they are, as most are.
    cid = client.quic._peer_cid.cid
    end = time.time() + LIMIT
    while time.time() < end:
        client.send(bytes([0x41]) + cid + os.urandom(80))
        got = answer(client.socket, 0.2)
        if got and got.endswith(token):
            expect(len(got) < 91, f"a reset of {len(got)} bytes")
            return
    sys.exit("no reset came")


def case_flood(server, seconds):
    """First packets of false senders come faster than they can be worked off: an open connection goes on."""
    # Before the connection, which must not wait for them.
    flight = [first_flight(server)[0] for _ in range(200)]
    client = connected(server)
    children = []
    end = time.time() + float(seconds)
    for child in range(2):
        pid = os.fork()
        if pid == 0:
            sockets = [new_socket(server, f"127.{10 + child}.{n}.1") for n in range(64)]
            number = 0
            while time.time() < end:
                for _ in range(256):
                    number += 1
                    try:
                        sockets[number % 64].send(flight[number % len(flight)])
                    except (BlockingIOError, ConnectionRefusedError):
                        pass
            os._exit(0)
        children.append(pid)
    lived, slowest = 0, 0
    while time.time() < end:
        began = time.time()
        expect(client.lives(), "an open connection does not go on")
        slowest = max(slowest, time.time() - began)
        lived += 1
    for pid in children:
        os.waitpid(pid, 0)
    new = connected(server)
    print(f"{lived} round trips, the slowest {slowest * 1000:.0f} ms", flush=True)
    expect(lived > 0 and new.lives(), "no new connection after it")


def case_drain(server):
    """The server ends: it closes open connections in an orderly way, and refuses new ones."""
    client = connected(server)
    print("connected", flush=True)
    sys.stdin.readline()
    ended = client.until(lambda: client.ended())
    expect(ended is not None and ended.error_code == NO_ERROR, f"{client.events}")


def case_refused(server):
    error = Client(server).error()
    expect(error == CONNECTION_REFUSED, f"{error}")


def main():
    case, address, port, *more = sys.argv[1:]
    globals()[f"case_{case.replace('-', '_')}"]((address, int(port)), *more)


main()
