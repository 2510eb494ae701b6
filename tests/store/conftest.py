"""Stores of every kind, each of them empty."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmproxy.store import redis, redis_client
from llmproxy.store.interface import Store
from llmproxy.store.memory import MemoryStore
from llmproxy.store.redis import RedisStore
from llmproxy.store.sqlite import SqliteStore
from llmproxy.store.urls import place
from tests.support.redis_server import RedisServer

# Seconds that a machine may be too busy to run a server that is not away at all.
BUSY = 10.0


@pytest.fixture
def redis_url(fresh_redis: RedisServer) -> str:
    """Where an empty Redis is."""
    return f"redis+unix://{fresh_redis.socket}"


@pytest.fixture
async def redis_store(redis_url: str) -> AsyncIterator[RedisStore]:
    """A store in a Redis that is empty."""
    store = RedisStore(place(redis_url), patience=BUSY)
    yield store
    await store.aclose()


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Store]:
    """One store of each kind: what a test says holds for all of them."""
    made: Store
    if request.param == "memory":
        made = MemoryStore()
    elif request.param == "sqlite":
        made = SqliteStore(tmp_path / "store.db")
    else:
        made = RedisStore(place(request.getfixturevalue("redis_url")), patience=BUSY)
        monkeypatch.setattr(redis, "ANSWER", BUSY)
        monkeypatch.setattr(redis_client, "CONNECT", BUSY)
    await made.start()
    yield made
    await made.aclose()


@pytest.fixture(params=["sqlite", "redis"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store is that several processes use at once."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/store.db"
    return str(request.getfixturevalue("redis_url"))
