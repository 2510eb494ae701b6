"""Asks the admin API of a running proxy, over TCP, TLS or a unix socket."""

import http.client
import json
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from llmproxy.settings import Settings

WITHIN = 15.0  # seconds for each step of an answer
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where to go to reach who listens everywhere


class NotAnAddress(ValueError):
    """The text is no URL of a proxy."""


class Unreachable(Exception):
    """Nobody answers there, or not as a proxy would."""


class Refused(Exception):
    """The proxy has answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Address:
    """Where a proxy is."""

    scheme: str  # http, https or unix
    host: str  # the path of the socket for unix
    port: int = 0
    root: str = ""  # what the proxy is mounted under
    certificate: str | None = None  # a file: trust this one and no other

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix:{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.root}"


def address_of_url(url: str) -> Address:
    """Read what stands behind `--url`."""
    if url.startswith("unix:/"):
        return Address("unix", url.removeprefix("unix:").removeprefix("//"))
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise NotAnAddress("must look like http://127.0.0.1:4000 or unix:/run/llmproxy.sock")
    port = port or (443 if parts.scheme == "https" else 80)
    return Address(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))


def address_of_settings(settings: "Settings") -> Address:
    """Return where the proxy of these settings listens."""
    if settings.host.startswith("unix:"):
        return Address("unix", settings.host.removeprefix("unix:"))
    host = _ANY.get(settings.host, settings.host)
    scheme = "https" if settings.tls_cert is not None else "http"
    return Address(scheme, host, settings.port, certificate=settings.tls_cert)


@dataclass(frozen=True, slots=True)
class AdminClient:
    """Sends one request at a time, each on a connection of its own."""

    address: Address
    key: str = field(repr=False)

    def ask(self, method: str, path: str, document: object = None) -> Any:
        """Return the answer to a request."""
        headers = {"authorization": f"Bearer {self.key}", "accept": "application/json"}
        body = None
        if document is not None:
            headers["content-type"] = "application/json"
            body = json.dumps(document).encode()
        connection = self._connection()
        try:
            connection.request(method, self.address.root + path, body, headers)
            answer = connection.getresponse()
            told = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            raise Unreachable(f"no proxy answers at {self.address}: {reason}") from exc
        finally:
            connection.close()
        try:
            said = json.loads(told)
            if 200 <= answer.status < 300:
                return said
            message = str(said["error"]["message"])
        except (ValueError, KeyError, TypeError):
            raise Unreachable(
                f"what answers at {self.address} is no llmproxy: status {answer.status}"
            ) from None
        raise Refused(answer.status, message)

    def _connection(self) -> http.client.HTTPConnection:
        where = self.address
        if where.scheme == "unix":
            return _UnixConnection(where.host)
        if where.scheme == "http":
            return http.client.HTTPConnection(where.host, where.port, timeout=WITHIN)
        context = ssl.create_default_context(cafile=where.certificate)
        if where.certificate is not None:
            # The very certificate that the proxy on this machine was given, whoever has signed
            # it: its name is the one that others know the proxy by, and not this address.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.check_hostname = False
        return http.client.HTTPSConnection(where.host, where.port, timeout=WITHIN, context=context)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=WITHIN)
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(self.timeout)
        try:
            sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock
