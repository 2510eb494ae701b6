"""Fixtures for the whole suite: the production loop, no blocking calls, nothing unhandled."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import trustme
import uvloop
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import settings

from tests.support.clock import ClockLoop
from tests.support.redis_server import NoRedisServer, RedisServer, redis_running
from tests.support.tls import Authority

# The same examples in every run, and no clock on any of them: a busy machine is no finding.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")

STUCK = 80.0  # seconds; below the suite's own limit, which ends the whole run

_unhandled: list[dict[str, Any]] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "clock: the test moves the clock itself, see support/clock")


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every coroutine on the loop that runs in production."""
    if item.get_closest_marker("clock") is not None:
        return {"clock": lambda: _watched(ClockLoop())}
    return {"uvloop": lambda: _impatient(_watched(uvloop.new_event_loop()))}


def _watched(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    def note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        _unhandled.append(context)
        loop.default_exception_handler(context)

    loop.set_exception_handler(note)
    return loop


def _impatient(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """End a test that is stuck by cancelling it, so that it alone fails and says where."""

    def give_up() -> None:
        for task in asyncio.all_tasks(loop):
            task.print_stack()
            task.cancel(f"stuck for {STUCK:g} s")

    loop.call_later(STUCK, give_up)
    return loop


@pytest.fixture(autouse=True)
def nothing_unhandled() -> Iterator[list[dict[str, Any]]]:
    """An exception that nobody took from a task or a callback fails the test."""
    _unhandled.clear()
    yield _unhandled
    assert not _unhandled


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """Any blocking call made from a coroutine of ours fails the test."""
    with blockbuster_ctx("llmproxy") as guard:
        yield guard


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that signs for the servers of this run."""
    return Authority(trustme.CA(), tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The redis-server of this run; whoever asks for it alone finds what others left in it."""
    try:
        with redis_running() as server:
            yield server
    except NoRedisServer as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture
def fresh_redis(redis_server: RedisServer) -> RedisServer:
    """The same server, running and empty."""
    redis_server.clear()
    return redis_server
