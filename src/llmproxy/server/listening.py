"""The socket that clients connect to. Bound once, by the supervisor, and shared by its workers:
a worker that comes or goes takes no waiting connection with it."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from llmproxy.settings import Settings

BACKLOG = 2048
EVERYBODY = 0o666  # nginx and other fronts run as somebody else


class CannotListen(Exception):
    """The address cannot be bound; the message says which and why."""


@contextmanager
def listening_as(settings: Settings) -> Iterator[socket.socket]:
    """Bind and listen as configured; leave nothing behind."""
    if settings.host.startswith("unix:"):
        path = settings.host.removeprefix("unix:")
        with _at_path(path) as sock:
            ours = _identity(path)
            try:
                yield sock
            finally:
                # Another process may have taken the path over while we drained.
                with suppress(FileNotFoundError):
                    if _identity(path) == ours:
                        os.unlink(path)
    else:
        with _at_port(settings.host, settings.port) as sock:
            yield sock


def _at_port(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as exc:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise CannotListen(f"cannot listen on {where}: {exc.strerror or exc}") from exc
    sock.setblocking(False)
    return sock


def _at_path(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(path)
        os.chmod(path, EVERYBODY)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise CannotListen(f"cannot listen on unix:{path}: {exc.strerror or exc}") from exc
    except CannotListen:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket that an earlier run has left behind, unless somebody answers there."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise CannotListen(f"cannot listen on unix:{path}: it is there and is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.setblocking(False)
            try:
                asking.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)  # nobody holds it open
                return
            except BlockingIOError:
                pass  # somebody does, and is too busy to take us
        raise CannotListen(f"cannot listen on unix:{path}: another process does")


def _identity(path: str) -> tuple[int, int, int]:
    """Return what tells a file from a later one of the same name; numbers alone are used again."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_mtime_ns


def address_of(sock: socket.socket, settings: Settings) -> str:
    """Return where a listening socket can be reached: a URL, or `unix:/path`."""
    if settings.host.startswith("unix:"):
        return settings.host
    host, port = sock.getsockname()[:2]
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
