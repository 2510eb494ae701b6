"""What the kernel is told about a client's socket."""

import socket
import struct
from contextlib import suppress

from llmproxy.server.bounds import Bounds

FOR_EVER = float("inf")
_PROBE_AFTER = 30  # seconds of silence; then the kernel asks whether the peer is still there
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


def set_options(sock: socket.socket, bounds: Bounds) -> None:
    """Bound what the kernel keeps for a client, and have it report one that vanished.

    Of a listening socket: each connection inherits them, which saves seven system calls.
    """
    if sock.family == getattr(socket, "AF_UNIX", None):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, bounds.send_buffer)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        # The kernel counts a peer whose window stays shut as vanished too: it must not be
        # less patient with a reader who stands still than we are.
        patience = max(bounds.user_timeout, bounds.write_timeout)
        if patience < FOR_EVER:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(patience * 1000))


def reset_on_close(sock: socket.socket) -> None:
    """Let the end of the connection be a reset, which nobody takes for the end of an answer."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
