"""Ports for servers that cannot be given a socket that is bound already.

They lie below those that the kernel hands out for outgoing connections (from 32768 on): one of
these could be taken again before the server binds it, or while it is down between two starts.
"""

import random
import socket
from contextlib import suppress

PORTS = range(20_000, 32_000)

_random = random.SystemRandom()  # two runs at once must not walk through the same ports


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listens on."""
    found: list[int] = []
    for port in _random.sample(PORTS, 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("nearly all ports are taken")


def free_port() -> int:
    """Return a port that nobody listens on."""
    return free_ports(1)[0]
