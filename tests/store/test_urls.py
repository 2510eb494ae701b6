"""The grammar of a store's URL."""

import asyncio
from pathlib import Path

import pytest

from llmproxy.store.memory import MemoryStore
from llmproxy.store.opening import open_store, store_url
from llmproxy.store.redis import RedisStore
from llmproxy.store.sqlite import SqliteStore
from llmproxy.store.urls import Place, place


@pytest.mark.parametrize(
    ("url", "found"),
    [
        pytest.param("memory", Place("memory"), id="memory"),
        pytest.param("sqlite:///a/b%20c.db", Place("sqlite", path="/a/b c.db"), id="sqlite"),
        pytest.param("redis://cache", Place("redis", hosts=(("cache", 6379),)), id="redis"),
        pytest.param(
            "redis://me:p%40ss@[::1]:7000/3",
            Place("redis", hosts=(("::1", 7000),), db=3, user="me", password="p@ss"),
            id="login",
        ),
        pytest.param(
            "rediss://:word@cache?ca=/ca.pem&cert=/me.pem&db=2",
            Place(
                "rediss",
                hosts=(("cache", 6379),),
                db=2,
                tls=True,
                ca="/ca.pem",
                cert="/me.pem",
                password="word",
            ),
            id="tls",
        ),
        pytest.param(
            "redis+unix:///run/redis.sock?db=1",
            Place("redis+unix", path="/run/redis.sock", db=1),
            id="socket",
        ),
        pytest.param(
            "redis+sentinel://a,b:1/main/4?tls=true&sentinel_password=x",
            Place(
                "redis+sentinel",
                hosts=(("a", 26379), ("b", 1)),
                service="main",
                db=4,
                tls=True,
                sentinel_password="x",
            ),
            id="sentinel",
        ),
        pytest.param(
            "redis+cluster://a:7000,b",
            Place("redis+cluster", hosts=(("a", 7000), ("b", 6379))),
            id="cluster",
        ),
    ],
)
def test_a_url_says_where_and_how(url: str, found: Place) -> None:
    """Each part of it means one thing."""
    assert place(url) == found
    assert store_url(f" {url} ") == url


@pytest.mark.parametrize(
    "given",
    [
        None,
        5,
        ["memory"],
        "",
        "disk",
        "redis",
        "redis://",
        "http://hunter2",
        "sqlite://hunter2.db",
        "sqlite:///",
        "sqlite://me:hunter2@/a/b",
        "redis://hunter2@host",
        "redis://:hunter2@host:port",
        "redis://:hunter2@host:0",
        "redis://:hunter2@host:70000",
        "redis://:hunter2@host/zero",
        "redis://:hunter2@host/1?db=2",
        "redis://:hunter2@host?password=hunter2",
        "redis://:hunter2@host?ca=/ca.pem",
        "redis://:hunter2@a,b",
        "redis://:hunter2@ho st",
        "redis://:hunter2@host#1",
        "rediss://:hunter2@host?ca=ca.pem",
        "redis+unix://:hunter2@host/run/redis.sock",
        "redis+sentinel://:hunter2@host",
        "redis+cluster://:hunter2@host/1",
        "redis+cluster://:hunter2@host?tls=perhaps",
        "redis+cluster://:hunter2@host?tls=true&tls=true",
    ],
)
def test_what_cannot_be_a_store_is_refused_without_repeating_it(given: object) -> None:
    """The message says what is allowed, and nothing of what may be a password."""
    with pytest.raises(ValueError) as refused:
        store_url(given)

    assert "hunter2" not in str(refused.value)
    assert len(str(refused.value)) > 20


def test_a_password_is_not_shown() -> None:
    """Not even to who prints a place."""
    where = place("redis+sentinel://u:hunter2@h/main?sentinel_password=hunter2")

    assert "hunter2" not in repr(where)


async def test_a_url_opens_a_store() -> None:
    """Without a connection: there is none before it is needed."""
    kinds = {
        "memory": MemoryStore,
        "sqlite:///nowhere/at/all.db": SqliteStore,
        "redis://nowhere.invalid": RedisStore,
        "redis+sentinel://nowhere.invalid/main": RedisStore,
        "redis+cluster://nowhere.invalid": RedisStore,
    }
    for url, kind in kinds.items():
        store = open_store(url)
        assert type(store) is kind
        assert store.shared == (url != "memory")
        await store.aclose()


async def test_a_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """It has digests of keys in it."""
    store = SqliteStore(tmp_path / "store.db")
    await store.put("a", b"b")
    await store.aclose()

    assert (tmp_path / "store.db").stat().st_mode & 0o777 == 0o600
    assert not await asyncio.to_thread(lambda: list(tmp_path.glob("*-wal")))
