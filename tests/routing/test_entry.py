"""Waiting for a place to go on with a stream that broke."""

import asyncio
from math import inf

import pytest

from llmproxy.errors import UpstreamBroken
from llmproxy.records import Upstream
from llmproxy.routing.course import Attempt, Course, Full
from llmproxy.routing.entry import gone_on
from llmproxy.routing.places import LOOK_EVERY, Places
from llmproxy.routing.retry import History, RetryBudget
from llmproxy.routing.server import Server
from tests.support.calls import NoTransport
from tests.support.outside import until


def server(name: str) -> Server:
    """Return one that takes one request at a time."""
    return Server(Upstream(name, "http", "127.0.0.1", 1, max_inflight=1), NoTransport())


def broken(*servers: Server) -> tuple[Course, Attempt]:
    """Return the way of a request on which the first server broke."""
    way = Course(
        models=("m",),
        candidates=lambda model: servers,
        choose=lambda those: those[0],
        history=History(most=3, replay_safe=True),
        budget=RetryBudget(lambda: 0.0),
        now=lambda: 0.0,
    )
    attempt = way.first()
    way.broke(attempt, UpstreamBroken(""))
    return way, attempt


async def nothing() -> None:
    """Be done while somebody waits."""


async def test_who_has_a_place_to_go_on_passes_the_turn_on() -> None:
    """Whoever waits behind it may find another place, and should not have to look by itself."""
    places, full = Places(most=2, within=0), server("b")
    way, attempt = broken(server("a"), full)
    full.inflight = 1
    going = asyncio.create_task(
        gone_on(way, places, attempt, fallback=False, deadline=inf, meanwhile=nothing)
    )
    await until(lambda: places.waiting == 1, "they wait")
    behind = asyncio.create_task(places.wait("m", until=inf))
    await until(lambda: places.waiting == 2, "they wait")

    full.inflight = 0
    places.freed()
    async with asyncio.timeout(LOOK_EVERY / 2):
        following = await going
        await behind
    assert following is not None and following.server is full


def test_who_broke_is_not_waited_for() -> None:
    """It would not be asked again, whatever place it had."""
    one = server("a")
    way, attempt = broken(one)
    one.inflight = 1
    assert way.rescuer(attempt, fallback=False) is None

    other = server("b")
    way, attempt = broken(server("a"), other)
    other.inflight = 1
    with pytest.raises(Full):
        way.rescuer(attempt, fallback=False)
    other.inflight = 0
    following = way.rescuer(attempt, fallback=False)
    assert following is not None and following.server is other
