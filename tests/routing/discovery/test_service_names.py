"""Servers behind a service name, from a name server on a socket."""

import dns.asyncresolver
import pytest

from llmproxy.records import Upstream
from llmproxy.routing.discovery.service_names import ServiceSource
from llmproxy.routing.discovery.source import LookFailed
from tests.routing.discovery.name_server import name_server
from tests.settings.test_templates import template

NAME = "_llm._tcp.example.com"


async def looked(*records: str, text: str = f"pool=srv+http://{NAME}") -> list[Upstream]:
    async with name_server() as server:
        server.records[NAME] = list(records)
        return list(await ServiceSource(template(text), resolver=server.resolver).look())


async def test_each_record_is_a_server() -> None:
    """Where it says, on the port that it says; called by a mark, and known by the domain."""
    first, second = await looked("0 0 8001 b.example.com.", "0 0 8000 A.example.com.")

    assert (first.host, first.port) == ("a.example.com", 8000)
    assert (second.host, second.port) == ("b.example.com", 8001)
    assert first.name.startswith("pool-") and first.name != second.name
    assert "example" not in first.name
    assert (first.found_by, first.scheme, first.server_name) == ("", "http", "example.com")
    assert first.authority == "example.com:8000"


async def test_only_the_best_priority_counts() -> None:
    """The others are for those who find none of these."""
    found = await looked("20 0 80 spare.example.com.", "10 0 80 a.example.com.")

    assert [each.host for each in found] == ["a.example.com"]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((0, 0), [1, 1]),
        ((50, 50), [1, 1]),
        ((60, 20), [3, 1]),
        ((10, 0), [10, 1]),
        ((7, 3), [7, 3]),
    ],
)
async def test_weights_are_kept_in_proportion(
    weights: tuple[int, int], expected: list[int]
) -> None:
    """A weight of 0 is a little, and equal ones are what a server without any has."""
    records = [f"0 {weight} 80 {host}." for host, weight in zip("ab", weights, strict=True)]

    found = await looked(*records)

    assert [each.weight for each in found] == expected


async def test_the_weight_of_the_template_counts_too() -> None:
    """It says how much each of them has beside other upstreams."""
    [found] = await looked("0 5 80 a.", text=f"pool=srv+http://{NAME};weight=3")

    assert found.weight == 3


async def test_no_record_is_no_server() -> None:
    """No such name, none for it, or one that says that the service is not offered."""
    async with name_server() as server:
        source = ServiceSource(template(f"srv+http://{NAME}"), resolver=server.resolver)
        assert not await source.look()
        server.records[NAME] = []
        assert not await source.look()
        server.records[NAME] = ["0 0 0 ."]
        assert not await source.look()


async def test_a_name_server_that_fails_has_not_answered() -> None:
    """It has not said that there is nothing."""
    async with name_server() as server:
        server.failing = True
        source = ServiceSource(template(f"srv+http://{NAME}"), resolver=server.resolver)
        with pytest.raises(LookFailed, match="cannot be resolved now") as failed:
            await source.look()

    assert "example" not in str(failed.value)
    assert server.asked


async def test_the_name_servers_of_the_machine_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their addresses are read from a file, which holds up nobody."""
    async with name_server() as server:
        server.records[NAME] = ["0 0 80 a."]
        resolver = server.resolver

        def configured() -> dns.asyncresolver.Resolver:
            with open(__file__) as file:  # as it does; on the loop this would fail the test
                assert file.read()
            return resolver

        monkeypatch.setattr(dns.asyncresolver, "Resolver", configured)
        [found] = await ServiceSource(template(f"srv+http://{NAME}")).look()

    assert found.host == "a"
