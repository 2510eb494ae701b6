"""Who a caller is behind the proxies that we trust."""

from ipaddress import ip_network

import pytest

from llmproxy.protocol.trust import TrustedProxies

TRUSTED = TrustedProxies([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])


def client(chain: str, peer: str = "10.0.0.1") -> str | None:
    return TRUSTED.client(peer, [(b"x-forwarded-for", chain.encode())])


@pytest.mark.parametrize(
    ("chain", "address"),
    [
        ("203.0.113.5", "203.0.113.5"),
        ("198.51.100.1, 203.0.113.5", "203.0.113.5"),
        ("203.0.113.5, 10.0.0.7", "203.0.113.5"),
        ("203.0.113.5, nonsense, 10.0.0.7", "10.0.0.7"),
        ("nonsense", "10.0.0.1"),
        ("", "10.0.0.1"),
        ("2001:db8::5, fd00::1", "2001:db8::5"),
    ],
)
def test_the_last_address_that_is_no_proxy_of_ours_counts(chain: str, address: str) -> None:
    """What stands before it is what the caller says of itself."""
    assert client(chain) == address


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("203.0.113.5:4711", "203.0.113.5"),
        ("[2001:db8::5]:443", "2001:db8::5"),
        ("[2001:db8::5]", "2001:db8::5"),
    ],
)
def test_a_port_is_no_part_of_an_address(entry: str, address: str) -> None:
    """Some proxies write one, and all their callers would be the proxy itself."""
    assert client(entry) == address
    assert client(f"{entry}, 10.0.0.7:80") == address


@pytest.mark.parametrize(
    "entry",
    [
        *("203.0.113.5:", "203.0.113.5:x", "203.0.113.5:4711:1", "203.0.113.5:123456"),
        *("[203.0.113.5]:1x", "[2001:db8::5", "2001:db8::5]", "[]", "[]:1", ":1", "203.0.113.05"),
    ],
)
def test_what_is_no_address_names_nobody(entry: str) -> None:
    """Nor does what stands before it."""
    assert client(f"198.51.100.1, {entry}") == "10.0.0.1"


def test_a_peer_that_is_not_trusted_is_the_caller() -> None:
    assert client("203.0.113.5", peer="192.0.2.1") == "192.0.2.1"
