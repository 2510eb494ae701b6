"""`llmproxy serve` where keys were issued and nobody has said whether they are asked for."""

import asyncio
import sys
from pathlib import Path

import pytest

from llmproxy.auth.issued import IssuedKeys
from llmproxy.cli.open_door import stands_open
from llmproxy.settings import Settings
from llmproxy.store.opening import open_store
from tests.support.ports import free_port
from tests.support.process import running
from tests.support.proxy import serving
from tests.support.redis_server import RedisServer

SERVE = [sys.executable, "-m", "llmproxy", "serve"]
NOBODY = {"LLMPROXY_UPSTREAMS": "http://127.0.0.1:9", "LLMPROXY_ADMIN_KEY": "Zk3v8Qp1LmX7wRt5"}
GREEN = "green:sk-green-8f3KpQz71LmX"


async def issue(url: str, *names: str, revoked: bool = False) -> None:
    store = open_store(url, patience=5)
    try:
        issued = IssuedKeys(store)
        for name in names:
            await issued.create(name)
            if revoked:
                await issued.revoke(name)
    finally:
        await store.aclose()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/keys.db"


def opened(**settings: object) -> bool | None:
    return stands_open(Settings(upstreams="http://127.0.0.1:9", **settings))


async def test_issued_keys_and_no_word_on_auth_stop_the_start(url: str) -> None:
    """Exit code 2, as for every fault of the configuration; it says what to set."""
    await issue(url, "blue")

    async with running(SERVE, {**NOBODY, "LLMPROXY_STORE": url}) as process:
        code = await process.finished()

    assert code == 2
    assert "LLMPROXY_AUTH=keys" in process.stderr
    assert "LLMPROXY_AUTH=off" in process.stderr


def test_a_shared_store_tells_as_well(fresh_redis: RedisServer) -> None:
    """The keys of another host are keys."""
    url = fresh_redis.url
    before = opened(store=url)
    asyncio.run(issue(url, "blue"))

    assert (before, opened(store=url)) == (False, True)


def test_who_has_said_what_to_ask_for_is_obeyed(url: str) -> None:
    """Also where that is nothing. Configured keys say it, too."""
    asyncio.run(issue(url, "blue"))

    assert opened(store=url) is True
    assert opened(store=url, auth="off") is False
    assert opened(store=url, auth="keys") is False
    assert opened(store=url, keys=GREEN) is False
    assert opened() is False


def test_keys_that_open_nothing_are_none(url: str) -> None:
    """Whoever has revoked them all has no door to close."""
    asyncio.run(issue(url, *(f"blue-{number}" for number in range(120)), revoked=True))
    before = opened(store=url)
    asyncio.run(issue(url, "red"))

    assert (before, opened(store=url)) == (False, True)


async def test_a_store_that_is_away_does_not_stop_the_start() -> None:
    """A proxy must come up again in an outage; the log says what could not be looked up."""
    url = f"redis://127.0.0.1:{free_port()}"

    async with serving({**NOBODY, "LLMPROXY_STORE": url}) as proxy:
        await proxy.process.says("whether keys were issued is not known")
