"""Which servers the operator has taken out of use."""

import asyncio

import pytest

from llmproxy.records import Upstream
from llmproxy.routing.drains import Drains
from llmproxy.routing.registry import Registry
from llmproxy.store.interface import Unavailable
from llmproxy.store.memory import MemoryStore
from tests.support.calls import eventually
from tests.support.registries import CONFIGURED, registry_of

UPSTREAMS = [Upstream(name, "http", "127.0.0.1", 1) for name in ("a", "b")]


class Store(MemoryStore):
    """Can go away, and can have somebody write in between."""

    away = False
    meanwhile: str | None = None

    async def get(self, name: str) -> bytes | None:
        if self.away:
            raise Unavailable
        found = await super().get(name)
        if self.meanwhile is not None:
            other, self.meanwhile = self.meanwhile, None
            await Drains(self, registry_of(*UPSTREAMS)).put(other, True)
        return found


def draining(registry: Registry) -> list[str]:
    return [server.name for server in registry.servers if server.draining]


async def test_a_drain_reaches_every_worker() -> None:
    """Each looks at what is kept, now and then."""
    store, here, there = Store(), registry_of(*UPSTREAMS), registry_of(*UPSTREAMS)
    await Drains(store, here).put("a", True)
    following = asyncio.create_task(Drains(store, there).follow())

    await eventually(lambda: draining(there) == ["a"], "the other worker has heard of it")
    following.cancel()
    assert draining(here) == ["a"]


async def test_a_drain_outlives_a_restart() -> None:
    """And its server may come later than we."""
    store = Store()
    await Drains(store, registry_of(*UPSTREAMS)).put("b", True)
    fresh = registry_of()
    await Drains(store, fresh).look()
    fresh.replace(CONFIGURED, UPSTREAMS)

    assert draining(fresh) == ["b"]


async def test_a_drain_can_be_ended() -> None:
    """Twice does no harm."""
    store, registry = Store(), registry_of(*UPSTREAMS)
    drains = Drains(store, registry)
    for on in (True, True, False, False):
        await drains.put("a", on)
        assert draining(registry) == (["a"] if on else [])


async def test_two_operators_do_not_undo_each_other() -> None:
    """What was written meanwhile is kept."""
    store, registry = Store(), registry_of(*UPSTREAMS)
    drains = Drains(store, registry)
    await drains.put("a", False)
    store.meanwhile = "b"
    await drains.put("a", True)

    assert draining(registry) == ["a", "b"]


async def test_while_the_store_is_away_what_was_known_goes_on() -> None:
    """And nothing is changed that could not be kept."""
    store, registry = Store(), registry_of(*UPSTREAMS)
    drains = Drains(store, registry)
    await drains.put("a", True)
    store.away = True
    await drains.look()
    for on in (True, False):
        with pytest.raises(Unavailable):
            await drains.put("b" if on else "a", on)

    assert draining(registry) == ["a"]


@pytest.mark.parametrize("kept", [b"", b"nonsense", b"{}", b"[1]", b'"a"'])
async def test_what_is_not_ours_ends_no_drain(kept: bytes) -> None:
    """And is replaced by the next change."""
    store, registry = Store(), registry_of(*UPSTREAMS)
    drains = Drains(store, registry)
    await drains.put("a", True)
    await store.put("drained", kept)
    await drains.look()
    assert draining(registry) == ["a"]

    await drains.put("b", True)
    await drains.look()
    assert draining(registry) == ["a", "b"]
