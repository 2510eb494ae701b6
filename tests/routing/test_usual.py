"""The first attempt of nearly every request: only its model decides who is asked."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from llmproxy.protocol.endpoints import CHAT
from llmproxy.records import Endpoint, Upstream
from llmproxy.routing.aliases import Aliases, aliases
from llmproxy.routing.choosing import Choosing, choosing
from llmproxy.routing.fallbacks import Fallbacks
from llmproxy.routing.registry import Registry
from llmproxy.routing.retry import BUDGET_LEAST
from llmproxy.routing.router import Router
from llmproxy.routing.rules import Rules, rules
from llmproxy.routing.server import Server
from tests.support.calls import NoTransport

NOW = 1000.0


def router(
    *names: str,
    policy: Choosing | None = None,
    alias: str = "",
    rule: str = "",
    max_inflight: int = 0,
    priority: bool = False,
) -> Router:
    """Return a router over servers of these names, which have the model `m`."""
    registry = Registry(lambda upstream: Server(upstream, NoTransport(), now=lambda: NOW))
    said = upstreams(*names, max_inflight=max_inflight, priority=priority)
    registry.replace("configured", said)
    return Router(
        registry,
        choosing=policy or choosing("round_robin"),
        aliases=Aliases(aliases(alias) if alias else ()),
        fallbacks=Fallbacks(),
        rules=Rules(rules(rule) if rule else ()),
        retries=2,
        now=lambda: NOW,
    )


def upstreams(*names: str, max_inflight: int = 0, priority: bool = False) -> Sequence[Upstream]:
    """Return what is said of servers."""
    bare = Upstream("", "http", "127.0.0.1", 1, models=("m",))
    return [
        replace(bare, name=name, max_inflight=max_inflight, priority=priority) for name in names
    ]


@pytest.fixture(autouse=True)
def nobody_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without what other tests have said of other servers."""
    monkeypatch.setattr(Server, "some_rest_until", 0.0)


def asked(way: Router, times: int = 6, model: str | None = "m") -> set[str]:
    """Return who is asked by so many requests."""
    found = [way.usual(CHAT, model) for _ in range(times)]
    return {attempt.server.name for attempt in found if attempt is not None}


def test_who_has_the_model_is_asked() -> None:
    """All of them, for that model; nobody for one that nobody has."""
    way = router("a", "b", "c")

    assert asked(way) == {"a", "b", "c"}
    assert asked(way, model="other") == set()
    first = way.usual(CHAT, "m")
    assert first is not None
    assert (first.model, first.probe, first.body, first.pause) == ("m", False, None, 0.0)


def test_what_changes_about_a_server_counts_for_the_next_request() -> None:
    """Who can answer is found once, and again after each change."""
    way = router("a", "b", "c")
    a, _, c = way.registry.servers
    assert asked(way) == {"a", "b", "c"}

    a.up = False
    assert asked(way) == {"b", "c"}
    way.registry.drain("b", on=True)
    assert asked(way) == {"c"}
    a.up = True
    assert asked(way) == {"a", "c"}
    c.rests(until=NOW + 1)
    assert asked(way) == {"a"}
    c.busy_until = NOW
    assert asked(way) == {"a", "c"}


async def test_who_comes_or_leaves_counts_for_the_next_request() -> None:
    """Who has left is asked no more."""
    way = router("a")
    assert asked(way) == {"a"}

    way.registry.replace("another", upstreams("b", "c"))
    assert asked(way) == {"a", "b", "c"}
    way.registry.replace("another", upstreams("c"))
    assert asked(way) == {"a", "c"}


async def test_nobody_is_asked_once_all_are_closed() -> None:
    """What was known of them is not kept."""
    way = router("a", "b")
    assert asked(way) == {"a", "b"}

    await way.registry.aclose()
    assert asked(way) == set()


def test_a_server_gets_no_more_than_it_may_have() -> None:
    """The others get it; when all have that much, the request has to wait."""
    way = router("a", "b", max_inflight=1)
    a, b = way.registry.servers

    a.inflight = 1
    assert asked(way) == {"b"}
    b.inflight = 1
    assert way.usual(CHAT, "m") is None


def test_one_attempt_finds_out_about_a_server_that_failed() -> None:
    """Others are kept away from it until that has come to something."""
    way = router("a")
    (a,) = way.registry.servers
    for _ in range(5):
        a.breaker.failed(probe=False, refused=True)
    assert way.usual(CHAT, "m") is None

    a.breaker._opened_at -= 60
    probe = way.usual(CHAT, "m")
    assert probe is not None and probe.probe
    assert way.usual(CHAT, "m") is None
    probe.answered(200)
    again = way.usual(CHAT, "m")
    assert again is not None and not again.probe


def test_when_all_are_down_all_are_asked() -> None:
    """By their probes: what those say may be wrong, and nobody else could answer."""
    way = router("a", "b")
    a, b = way.registry.servers

    a.up = False
    assert asked(way) == {"b"}
    b.up = False
    assert asked(way) == {"a", "b"}


def test_an_open_breaker_keeps_requests_away_from_one_of_several() -> None:
    """At once, without a new list of who could answer."""
    way = router("a", "b", "c")
    assert asked(way) == {"a", "b", "c"}
    for _ in range(5):
        way.registry.servers[1].breaker.failed(probe=False, refused=True)

    assert asked(way) == {"a", "c"}


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(lambda: router("a", "b", alias="m=x"), id="alias"),
        pytest.param(lambda: router("a", "b", rule="long:1=x"), id="rule"),
        pytest.param(lambda: router("a", "b", policy=choosing("prefix")), id="prefix"),
        pytest.param(lambda: router("a", "b", policy=choosing("session")), id="session"),
        pytest.param(lambda: router("a", "b", priority=True), id="class_in_the_body"),
    ],
)
def test_where_more_than_the_model_matters_it_is_looked_at_closely(way: object) -> None:
    """The short way would not see it."""
    assert callable(way)
    assert way().usual(CHAT, "m") is None


def test_an_alias_for_another_model_changes_nothing() -> None:
    """It concerns its own name only."""
    assert asked(router("a", "b", alias="fast=m")) == {"a", "b"}


@pytest.mark.parametrize(
    "endpoint", [Endpoint("native", native=True), Endpoint("native", management=True)], ids=str
)
def test_an_address_that_only_some_engines_have_is_looked_at_closely(endpoint: Endpoint) -> None:
    """The path matters then."""
    assert router("a", "b").usual(endpoint, "m") is None


def test_each_request_allows_a_share_of_a_retry() -> None:
    """What goes the short way is part of the traffic too."""
    way = router("a", "b")
    for _ in range(100 * BUDGET_LEAST):
        way.usual(CHAT, "m")

    allowed = sum(way._budget.retry() for _ in range(1000 * BUDGET_LEAST))
    assert allowed == 20 * BUDGET_LEAST


@pytest.mark.parametrize("policy", ["least_load", "p2c", "weighted", "latency", "round_robin"])
def test_each_policy_chooses_among_those_who_are_ready(policy: str) -> None:
    """And nobody else; each of them has its turn."""
    way = router("a", "b", "c", "d", policy=choosing(policy))
    way.registry.servers[2].rests(until=NOW + 1)
    found = Counter(
        attempt.server.name
        for attempt in (way.usual(CHAT, "m") for _ in range(300))
        if attempt is not None
    )

    assert found.keys() == {"a", "b", "d"}
    assert min(found.values()) > 50
