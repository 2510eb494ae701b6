"""What the kernel knows of a connection that the event loop does not."""

import asyncio
import os
import select
import socket
import struct
import sys
from contextlib import suppress

if sys.platform != "win32":
    import fcntl
    import termios


def has_news(transport: asyncio.Transport) -> bool:
    """Tell whether something waits to be read: bytes, an end or a reset.

    None of them is good news of a connection on which nothing was asked.
    """
    if sys.platform == "win32":
        return False  # it would take longer to ask
    news = select.poll()
    try:
        news.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(news.poll(0))
    except (OSError, ValueError):
        return True  # it is closed


def unconfirmed(transport: asyncio.Transport) -> int:
    """Return how many of the bytes that were sent the peer's kernel has not got, as far as known.

    It says so with the end itself. A program that had read a request and closed then has all of
    it confirmed; one that closed with a request unread would have reset.
    """
    sock = transport.get_extra_info("socket")
    return transport.get_write_buffer_size() + (unacknowledged(sock) if sock is not None else 0)


def unacknowledged(sock: socket.socket) -> int:
    """Return how many bytes are with the kernel and not yet with the peer; 0 if it cannot say."""
    if sys.platform == "win32":
        return 0
    try:
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    except (OSError, ValueError):
        return 0
    size: int = struct.unpack("i", answer)[0]
    return size


def unread(transport: asyncio.Transport, most: int) -> bytes:
    """Return what has come over a connection that is being closed and was not read; once.

    Of TLS nothing: nobody is left to decipher it.
    """
    data = b""
    sock = transport.get_extra_info("socket")
    if sock is None or transport.get_extra_info("sslcontext") is not None:
        return data
    with suppress(OSError):  # there is nothing, or nothing any more
        while len(data) < most and (more := os.read(sock.fileno(), most - len(data))):
            data += more
    return data
