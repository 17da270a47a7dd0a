"""How a server ends an idle HTTP/2 connection over TLS. Arguments: address, port, PEM file of the authority.

Prints `served` after one response, then `goaway CODE` and `closed` (by close_notify) or `cut`.
"""
import ssl, sys

from http2_frames import END_STREAM, GOAWAY, HOST, PREFACE, SETTINGS, Peer, frame, request

address, port, authority = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
context.set_alpn_protocols(["h2"])
peer = Peer((address, int(port)), begin=False)
peer.socket = context.wrap_socket(peer.socket, server_hostname=HOST, suppress_ragged_eofs=False)
peer.send(PREFACE + frame(SETTINGS, 0, 0))
peer.headers(1, request("/", scheme="https"))
if peer.until(lambda f: f[2] == 1 and f[1] & END_STREAM) is None:
    sys.exit(f"no response: {peer.frames}")
print("served", flush=True)

goaway = peer.until(lambda f: f[0] == GOAWAY, seconds=60)
if goaway is None:
    sys.exit(f"no GOAWAY: {peer.frames}")
code = int.from_bytes(goaway[3][4:8], "big")
print(f"goaway {code}", flush=True)
try:
    while peer.socket.recv(4096):
        pass
    print("closed", flush=True)
except ssl.SSLEOFError:
    print("cut", flush=True)
