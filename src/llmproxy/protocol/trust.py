"""Whose word is believed about where a request comes from."""

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

from llmproxy.headers import find_all
from llmproxy.types import Header

UNIX = "unix"
_WITH_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)(?=:))(?::[0-9]{1,5})?")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class TrustedProxies:
    """The networks, and `unix`, from which `X-Forwarded-*` is believed."""

    def __init__(self, trusted: Iterable[Network | str] = ()) -> None:
        trusted = tuple(trusted)
        self._unix = UNIX in trusted
        self._networks = [network for network in trusted if not isinstance(network, str)]
        self.include = lru_cache(maxsize=4096)(self._include)

    def client(self, peer: str | None, headers: list[Header]) -> str | None:
        """Return the address of the caller behind the proxies that we trust."""
        if not self.include(peer):
            return peer
        chain = b",".join(find_all(headers, b"x-forwarded-for"))
        address = peer
        for entry in reversed(chain.split(b",")):
            text = _address(entry.strip().decode("ascii", "replace"))
            if text is None:
                break
            address = text
            if not self.include(text):
                break
        return address

    def _include(self, peer: str | None) -> bool:
        if not peer:
            return self._unix
        if not self._networks:
            return False
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return any((mapped or address) in network for network in self._networks)


def _address(entry: str) -> str | None:
    """Return the address of an entry; some proxies write it as they would a URL, with its port."""
    found = _WITH_PORT.fullmatch(entry)
    text = (found[1] or found[2]) if found is not None else entry
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return None
    return text
