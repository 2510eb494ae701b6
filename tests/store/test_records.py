"""Small documents under names, in every kind of store."""

import asyncio

import pytest

from llmproxy.store.interface import Store
from llmproxy.store.memory import MemoryStore
from tests.store.waiting import until

NAMES = ["", "a", "a:b", "a*", "a?[b]\\", "{a}", "é" * 1024, "\udc80", "a\0", "%", "a_b"]


async def test_what_was_kept_is_found(store: Store) -> None:
    """Any bytes under any text."""
    for number, name in enumerate(NAMES):
        await store.put(name, bytes([number, 0, 255]))

    assert [await store.get(name) for name in NAMES] == [
        bytes([number, 0, 255]) for number in range(len(NAMES))
    ]
    assert await store.get("b") is None


async def test_names_are_found_by_how_they_begin(store: Store) -> None:
    """What has a meaning in a pattern has none here."""
    for name in NAMES:
        await store.put(name, b"")

    assert await store.names("") == sorted(NAMES)
    assert await store.names("a") == sorted(name for name in NAMES if name.startswith("a"))
    assert await store.names("a*") == ["a*"]
    assert await store.names("a?[") == ["a?[b]\\"]
    assert await store.names("nobody") == []


async def test_many_names_are_all_found(store: Store) -> None:
    """A list that takes several steps is complete, in order, and has nothing twice."""
    names = [f"key:{number:05}" for number in range(3000)]
    await asyncio.gather(*(store.put(name, b"") for name in [*names, "other"]))

    assert await store.names("key:") == names


async def test_only_the_first_is_added(store: Store) -> None:
    """Of many at once one hears that there was nothing."""
    added = await asyncio.gather(*(store.add("nonce", b"x", within=60) for _ in range(50)))

    assert sum(added) == 1
    assert not await store.add("nonce", b"y")


async def test_only_the_same_is_replaced(store: Store) -> None:
    """Who has read something old changes nothing."""
    await store.put("name", b"one")

    assert await store.replace("name", b"one", b"two")
    assert not await store.replace("name", b"one", b"three")
    assert not await store.replace("nobody", b"", b"three")
    assert await store.get("name") == b"two"


async def test_what_is_deleted_is_gone(store: Store) -> None:
    """And is said to have been there once."""
    await store.put("name", b"one")

    assert await store.delete("name")
    assert not await store.delete("name")
    assert await store.get("name") is None
    assert await store.add("name", b"two")


async def test_a_record_ends_when_it_was_to_end(store: Store) -> None:
    """Nothing of it is left: not its value, not its name, and its place is free."""
    await store.put("short", b"one", within=0.05)
    await store.put("long", b"one", within=60)
    await store.replace("short", b"one", b"two")

    async def is_gone() -> bool:
        return await store.get("short") is None

    await until(is_gone)

    assert await store.names("") == ["long"]
    assert not await store.replace("short", b"two", b"three")
    assert not await store.delete("short")
    assert await store.add("short", b"new")


async def test_the_last_entries_of_a_list_are_kept(store: Store) -> None:
    """Oldest first, and no more than were to be kept."""
    for number in range(7):
        await store.append("log", b"%d" % number, keep=5)
    await store.append("other", b"\x00\xff", keep=5)

    assert await store.entries("log", last=100) == [b"2", b"3", b"4", b"5", b"6"]
    assert await store.entries("log", last=2) == [b"5", b"6"]
    assert await store.entries("other", last=1) == [b"\x00\xff"]
    assert await store.entries("nobody", last=5) == []


async def test_a_large_value_is_kept(store: Store) -> None:
    """A megabyte is no trouble."""
    value = bytes(range(256)) * 4096

    await store.put("large", value)

    assert await store.get("large") == value


@pytest.mark.parametrize("within", [None, 60.0])
async def test_a_value_is_put_in_the_place_of_another(store: Store, within: float | None) -> None:
    """And lives as long as the new one is to live."""
    await store.put("name", b"one", within=0.03)
    await store.put("name", b"two", within=within)
    await asyncio.sleep(0.06)

    assert await store.get("name") == b"two"


async def test_memory_lets_go_of_what_has_ended() -> None:
    """Even when nobody asks for it again."""
    now = 0.0
    store = MemoryStore(steady=lambda: now)
    for _ in range(1000):
        now += 1
        await store.put(f"nonce:{now}", b"", within=5)

    assert len(store._records) < 20
