#!/usr/bin/env python3
"""A network of hosts with delays of their own: one TUN device in each host's namespace, packets forwarded through a heap
ordered by due time. Standard library only.

    delay.py NAMESPACE=ADDRESS ... -- FROM:TO:MILLISECONDS ...

Every namespace exists already. Each gets a device `lab0` with its address and a default route through it. The given
delays are one way and hold in both directions; pairs that are not named have none. Prints `ready` when packets flow;
ends at the end of its input.
"""

import fcntl, heapq, os, select, socket, struct, subprocess, sys, time

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x0001 | 0x1000
MTU = 1400
QUEUE_MAX = 100_000  # packets under way; more are dropped, as a router's queue would


def tun(name):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_NO_PI))
    return fd


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


def main():
    split = sys.argv.index("--")
    hosts = dict(word.split("=") for word in sys.argv[1:split])
    delays = {}
    for word in sys.argv[split + 1 :]:
        one, other, milliseconds = word.split(":")
        delays[one, other] = delays[other, one] = float(milliseconds) / 1000
    by_fd, by_address = {}, {}
    for number, (namespace, address) in enumerate(hosts.items()):
        device = "labtun%d-%d" % (os.getpid() % 100000, number)
        device = device[:15]
        fd = tun(device)
        ip("link", "set", device, "netns", namespace, "name", "lab0")
        inside = ["-n", namespace]
        ip(*inside, "link", "set", "lo", "up")
        ip(*inside, "address", "add", address + "/32", "dev", "lab0")
        ip(*inside, "link", "set", "lab0", "mtu", str(MTU), "up")
        ip(*inside, "route", "add", "default", "dev", "lab0")
        by_fd[fd] = namespace
        by_address[socket.inet_aton(address)] = (fd, namespace)
    poll = select.poll()
    for fd in [*by_fd, 0]:
        poll.register(fd, select.POLLIN)
    print("ready", flush=True)
    queue, order = [], 0
    while True:
        wait = None if not queue else max(0.0, (queue[0][0] - time.monotonic()) * 1000)
        for fd, _ in poll.poll(wait):
            if fd == 0:
                if not os.read(0, 4096):
                    return
                continue
            for _ in range(64):
                try:
                    packet = os.read(fd, MTU + 100)
                except BlockingIOError:
                    break
                if packet[0] >> 4 != 4 or packet[16:20] not in by_address or len(queue) >= QUEUE_MAX:
                    continue
                target, namespace = by_address[packet[16:20]]
                due = time.monotonic() + delays.get((by_fd[fd], namespace), 0.0)
                order += 1
                heapq.heappush(queue, (due, order, target, packet))
        now = time.monotonic()
        while queue and queue[0][0] <= now:
            _, _, target, packet = heapq.heappop(queue)
            try:
                os.write(target, packet)
            except (BlockingIOError, OSError):
                pass  # the host is gone or its queue is full: a lost packet


main()
