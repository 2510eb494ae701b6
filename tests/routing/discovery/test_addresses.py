"""Servers behind one name."""

import socket
from collections.abc import Sequence

import pytest

from llmproxy.routing.discovery.addresses import AddressSource
from llmproxy.routing.discovery.source import LookFailed
from llmproxy.transport.addresses import Address, Resolve
from tests.settings.test_templates import template


def knowing(*hosts: str) -> Resolve:
    async def ask(host: str, port: int) -> Sequence[Address]:
        return [(each, port) for each in hosts]

    return ask


def failing(error: Exception) -> Resolve:
    async def ask(host: str, port: int) -> Sequence[Address]:
        raise error

    return ask


async def test_each_address_is_a_server() -> None:
    """Of the template's kind and options, in the same order whatever the resolver's."""
    text = "pool=dns+vllm://gpu.example:8001;models=a|b;weight=2;key=k;tags=eu"
    found = await AddressSource(template(text), ask=knowing("10.0.0.2", "10.0.0.1")).look()
    again = await AddressSource(template(text), ask=knowing("10.0.0.1", "10.0.0.2")).look()

    assert [(each.host, each.port) for each in found] == [("10.0.0.1", 8001), ("10.0.0.2", 8001)]
    assert found == again
    for each in found:
        assert (each.preset, each.models, each.weight) == ("vllm", ("a", "b"), 2)
        assert each.tags == {"eu"}
        assert each.credentials == ((b"authorization", b"Bearer k"),)
        assert (each.found_by, each.authority) == ("", "gpu.example:8001")
        assert "10.0" not in each.name


async def test_a_machine_with_addresses_of_both_kinds_is_one_server() -> None:
    """IPv6 counts where there is no IPv4."""
    both = await AddressSource(template("dns+http://a"), ask=knowing("fd00::1", "10.0.0.1")).look()
    six = await AddressSource(template("dns+http://a"), ask=knowing("fd00::1", "fd00::2")).look()

    assert [each.host for each in both] == ["10.0.0.1"]
    assert [each.host for each in six] == ["fd00::1", "fd00::2"]


async def test_the_system_is_asked() -> None:
    """By the loop, as a transport would."""
    [found] = await AddressSource(template("dns+http://localhost:81")).look()

    assert (found.host, found.port) in (("127.0.0.1", 81), ("::1", 81))


async def test_a_name_that_nobody_has_is_no_server() -> None:
    """The answer is that there is none."""
    gone = failing(socket.gaierror(socket.EAI_NONAME, "unknown"))

    assert not await AddressSource(template("dns+http://gone"), ask=gone).look()


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_AGAIN, "try gpu.example again"),
        socket.gaierror(socket.EAI_FAIL, "gpu.example"),
        OSError("gpu.example"),
        UnicodeError("gpu.example"),
        TimeoutError("gpu.example"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_resolver_that_fails_has_not_answered(error: Exception) -> None:
    """It has not said that there is nothing; and the reason names no host."""
    with pytest.raises(LookFailed) as failed:
        await AddressSource(template("dns+http://gpu.example"), ask=failing(error)).look()

    assert "gpu" not in str(failed.value)
