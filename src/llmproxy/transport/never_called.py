"""Which hosts are never called, whoever names them."""

import ipaddress
import re
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # the last four bytes are an IPv4 address

# Where clouds hand out the credentials of the machine to whoever asks from it.
_METADATA_NAMES = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "metadata.azure.internal"}
    | {"instance-data", "instance-data.ec2.internal", "metadata.tencentyun.com"}
)
_METADATA_ADDRESSES = frozenset(
    {"100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"}
)


def address_of(host: str) -> Address | None:
    """Return the address that a text spells, in any of the ways a resolver understands."""
    try:
        address: Address = ipaddress.ip_address(host)
    except ValueError:
        # 0xA9FEA9FE, 2852039166 and 169.254.43518 are all 169.254.169.254 to getaddrinfo.
        if not re.fullmatch(r"[0-9a-fA-FxX.]+", host) or not host[0].isdigit():
            return None
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        return address.ipv4_mapped or address
    return address


def is_forbidden(host: str) -> bool:
    """Tell whether a host is link-local or hands out a cloud's metadata."""
    host = host.lower().rstrip(".")
    address = address_of(host)
    if address is None:
        return host in _METADATA_NAMES
    return address.is_link_local or str(address) in _METADATA_ADDRESSES


def leads_astray(resolved: str) -> bool:
    """Tell whether a name that others may have chosen must not lead to this address."""
    address = address_of(resolved)
    return is_forbidden(resolved) or (address is not None and address.is_unspecified)
