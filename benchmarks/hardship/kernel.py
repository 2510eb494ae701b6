"""What the kernel says of memory and sockets. Linux only."""

import os
import re
import resource
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.load.process_tree import PROC, ProcessTree

# linux/netlink.h, linux/inet_diag.h
_NETLINK = struct.Struct("=IHHII")  # size, kind, flags, number, whose
_DIAG = struct.Struct("=BBxxI2x2s36sII")  # family, protocol, states; port; whoever else, whichever
_SOCK_DIAG, _BY_FAMILY, _DUMP = 4, 20, 0x301
_ERROR, _DONE = 2, 3
_SYN_SENT = 2
_ANY = 0xFFFFFFFF

_JIFFIES = os.sysconf("SC_CLK_TCK")


def resident(tree: ProcessTree) -> int:
    """The bytes of RAM that a process and its children hold.

    Not the proportional set: that moves whenever some other Python of this machine comes or goes.
    """
    return sum(parse_rss((PROC / str(pid) / "smaps_rollup").read_text()) for pid in tree.pids())


def parse_rss(smaps_rollup: str) -> int:
    """Bytes of the `Rss:` line."""
    found = re.search(r"^Rss:\s+(\d+) kB$", smaps_rollup, re.MULTILINE)
    if found is None:
        raise ValueError("smaps_rollup without an Rss line")
    return int(found[1]) * 1024


@dataclass(frozen=True, slots=True)
class Queues:
    """What a TCP socket holds: sent and not acknowledged, received and not read."""

    local: int
    remote: int
    unacknowledged: int
    unread: int


def parse_tcp(table: str) -> Iterator[Queues]:
    """Read what stands in /proc/net/tcp."""
    for line in table.splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        unacknowledged, _, unread = queues.partition(":")
        yield Queues(
            int(local.rpartition(":")[2], 16),
            int(remote.rpartition(":")[2], 16),
            int(unacknowledged, 16),
            int(unread, 16),
        )


def in_kernel(port: int) -> int:
    """Bytes that lie in the buffers of all connections from or to a port."""
    table = (PROC / "net" / "tcp").read_text()
    return sum(
        each.unacknowledged + each.unread
        for each in parse_tcp(table)
        if port in (each.local, each.remote)
    )


def connecting(port: int) -> int:
    """How many connections to a port of this machine are being made, and not there yet.

    /proc/net/tcp would tell it too, but takes 60 ms where many connections were closed lately.
    """
    asked = _DIAG.pack(
        socket.AF_INET, socket.IPPROTO_TCP, 1 << _SYN_SENT, port.to_bytes(2, "big"), b"", _ANY, _ANY
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        kernel.send(_NETLINK.pack(_NETLINK.size + len(asked), _BY_FAMILY, _DUMP, 0, 0) + asked)
        found = 0
        while True:
            kinds = list(parse_netlink(kernel.recv(65_536)))
            if _ERROR in kinds:
                raise OSError("the kernel does not tell of its sockets")
            found += kinds.count(_BY_FAMILY)
            if _DONE in kinds:
                return found


def parse_netlink(messages: bytes) -> Iterator[int]:
    """Return the kind of each message."""
    at = 0
    while at < len(messages):
        size, kind, *_ = _NETLINK.unpack_from(messages, at)
        yield kind
        at += (size + 3) & ~3


def waited_ns(tree: ProcessTree) -> int:
    """How long a process and its children could have run, and no core was free for them."""
    return sum(parse_waited((PROC / str(pid) / "schedstat").read_text()) for pid in tree.pids())


def parse_waited(schedstat: str) -> int:
    """Nanoseconds in a queue for a core: the second number."""
    return int(schedstat.split()[1])


def raise_descriptor_limit() -> int:
    """Take as many descriptors as we may, for the processes that we start too."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def all_cores_ns() -> int:
    """CPU time that this machine has spent on anything at all."""
    first = (PROC / "stat").read_text().partition("\n")[0]
    return parse_busy(first) * 1_000_000_000 // _JIFFIES


def parse_busy(line: str) -> int:
    """Jiffies of the `cpu` line of /proc/stat without those of idling and waiting for disks."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, line.split()[1:])
    return user + nice + system + irq + softirq + steal


def own_ns() -> int:
    """CPU time of this process and of all children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return int(sum(each.ru_utime + each.ru_stime for each in used) * 1e9)
