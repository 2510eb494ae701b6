"""The grammars of places: where to listen, whom to believe."""

import ipaddress
import re

from llmproxy.settings.faults import refuse
from llmproxy.settings.lists import strings
from llmproxy.transport.never_called import address_of

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_-]{1,63})*\.?"
)
_ORIGIN = re.compile(r"https?://[^/?#@\s]+|[a-z][a-z0-9+.-]*://[A-Za-z0-9.-]+")
UNIX_PATH_LIMIT = 107  # bytes; what sockaddr_un holds on Linux, without its closing NUL


def listen_host(given: object) -> str:
    """Read where to listen: an address, a name, or `unix:/path`."""
    if not isinstance(given, str):
        raise refuse(given, "must be an address, a host name or unix:/path")
    text = given.strip()
    if text.startswith("unix:"):
        return f"unix:{socket_path(text)}"
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if address_of(bare) is None and not _HOST_NAME.fullmatch(bare):
        raise refuse(
            given, "must be an address, a host name or unix:/path; a port goes into LLMPROXY_PORT"
        )
    return bare


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach what listens there."""
    if host.startswith("unix:") or host.lower().rstrip(".") == "localhost":
        return True
    address = address_of(host)
    return address is not None and address.is_loopback


def socket_path(text: str) -> str:
    """Read the path in `unix:/path` or `unix:///path`."""
    path = text.removeprefix("unix:")
    if path.startswith("//"):
        path = path[2:]
    if not path.startswith("/") or path.endswith("/") or not path.isprintable():
        raise refuse(text, "must be unix: and the whole path of a socket, such as unix:/run/x.sock")
    if len(path.encode()) > UNIX_PATH_LIMIT:
        raise refuse(text, f"the path of a socket has {UNIX_PATH_LIMIT} bytes at most")
    return path


def is_host(text: str) -> bool:
    """Tell whether a text can be the host of a URL."""
    return address_of(text) is not None or _HOST_NAME.fullmatch(text) is not None


def trusted_proxies(given: object) -> tuple[Network | str, ...]:
    """Read networks, or `unix` for everybody who comes over a socket."""
    if isinstance(given, list | tuple):
        given = [text if isinstance(text, str) else str(text) for text in given]
    found: list[Network | str] = []
    for text in strings(given):
        if text == "unix":
            found.append(text)
            continue
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError as exc:
            cure = "must be a network such as 10.0.0.0/8, an address, or unix"
            if "host bits" in str(exc):
                cure += f"; this address lies in {ipaddress.ip_network(text, strict=False)}"
            raise refuse(text, cure) from None
    return tuple(found)


def origins(given: object) -> tuple[str, ...]:
    """Read the origins of browsers: `https://chat.example.com`, or `*` alone for all."""
    found = strings(given)
    for text in found:
        if text != "*" and not _ORIGIN.fullmatch(text):
            raise refuse(text, "must be scheme://host[:port] without a path, or * alone for all")
    if "*" in found and len(found) > 1:
        raise refuse(",".join(found), "* stands for all origins; it must stand alone")
    return found
