"""Which of several servers gets a request."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.routing import policies
from llmproxy.routing.policies import RoundRobin, bounded_hash, burden_of, most_for


@dataclass
class Seen:
    """A server as a policy sees it."""

    name: str
    weight: float = 1.0
    inflight: int = 0
    others: int = 0
    waiting: int = 0
    kv_use: float = 0.0
    latency: float = 0.0

    @property
    def burden(self) -> float:
        return burden_of(self)


Policy = Callable[[Sequence[Seen]], Seen]

POLICIES: dict[str, Policy] = {
    "least_load": policies.least_load,
    "p2c": policies.p2c,
    "weighted": policies.weighted,
    "latency": policies.latency,
    "round_robin": RoundRobin(),
    "bounded_hash": lambda servers: bounded_hash(servers, b"key"),
}

servers = st.lists(
    st.builds(
        Seen,
        name=st.sampled_from("abcdefgh"),
        weight=st.floats(0.001, 1000),
        inflight=st.integers(0, 1000),
        others=st.integers(0, 1000),
        waiting=st.integers(0, 1000),
        kv_use=st.floats(0, 1),
        latency=st.floats(0, 1000),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda server: server.name,
)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
@given(given=servers)
def test_every_policy_chooses_one_of_those_it_is_given(policy: Policy, given: list[Seen]) -> None:
    """Whatever is known of the servers."""
    assert policy(given) in given


def shares(policy: Policy, given: Sequence[Seen], turns: int = 3000) -> Counter[str]:
    """Return how often each server is chosen."""
    return Counter(policy(given).name for _ in range(turns))


@pytest.mark.parametrize("policy", [policies.weighted, RoundRobin()], ids=["weighted", "turns"])
def test_weights_are_shares(policy: Policy) -> None:
    """A server of three times the weight gets three times the requests."""
    random.seed(1)
    got = shares(policy, [Seen("a", weight=3), Seen("b", weight=1)])

    assert got["a"] / got["b"] == pytest.approx(3, rel=0.15)


def test_taking_turns_is_smooth() -> None:
    """The heavier one does not get all its turns in a row."""
    policy = RoundRobin()
    given = [Seen("a", weight=2), Seen("b", weight=1)]

    assert "".join(policy(given).name for _ in range(6)) == "abaaba"


def test_a_server_that_is_gone_is_forgotten() -> None:
    """The memory of turns does not grow with every name there ever was."""
    policy = RoundRobin()
    for number in range(1000):
        policy([Seen(f"pod-{number}"), Seen("b")])

    assert len(policy._current) < 100


@pytest.mark.parametrize(
    ("busy", "idle"),
    [
        pytest.param(Seen("busy", inflight=5), Seen("idle", inflight=4), id="in_flight"),
        pytest.param(Seen("busy", waiting=3), Seen("idle", inflight=2), id="queue_of_the_engine"),
        pytest.param(Seen("busy", others=3), Seen("idle", inflight=2), id="other_processes"),
        pytest.param(Seen("busy", kv_use=0.95), Seen("idle"), id="kv_cache"),
        pytest.param(Seen("busy", inflight=3), Seen("idle", inflight=6, weight=4), id="size"),
    ],
)
def test_least_load_never_takes_the_busier_of_two(busy: Seen, idle: Seen) -> None:
    """Of two servers both are looked at, so the choice is certain."""
    assert burden_of(busy) > burden_of(idle)
    assert shares(policies.least_load, [busy, idle], 50) == {"idle": 50}


def test_latency_takes_the_faster_of_two_until_it_has_too_much() -> None:
    """What is in flight there will be served first."""
    fast, slow = Seen("fast", latency=0.1), Seen("slow", latency=0.4)

    assert shares(policies.latency, [fast, slow], 20) == {"fast": 20}
    fast.inflight = 5
    assert shares(policies.latency, [fast, slow], 20) == {"slow": 20}


def test_a_key_stays_where_it_is_when_another_server_goes() -> None:
    """Only the keys of the one that left move."""
    given = [Seen(name) for name in "abcde"]
    keys = [str(number).encode() for number in range(500)]
    before = {key: bounded_hash(given, key).name for key in keys}

    after = {key: bounded_hash(given[:-1], key).name for key in keys}

    assert all(after[key] == home for key, home in before.items() if home != "e")
    assert all(count > 50 for count in Counter(before.values()).values())


def test_a_key_moves_on_while_its_server_has_too_much() -> None:
    """Being at home is worth a bounded wait."""
    given = [Seen(name) for name in "abc"]
    home = bounded_hash(given, b"key")
    home.inflight = 100

    assert bounded_hash(given, b"key") is not home
    assert most_for(given) < 100


@pytest.mark.parametrize("choose", [policies.least_load, policies.p2c, policies.latency])
def test_every_two_servers_are_compared_as_often(choose: Callable[..., Seen]) -> None:
    """One draw decides on both of them: of four, the best stands in every second pair."""
    servers = [Seen(str(number), inflight=number, latency=1.0) for number in range(4)]
    draws = 1200
    found = Counter(choose(servers, lambda at=at: (at + 0.5) / draws).name for at in range(draws))

    assert found == {"0": draws // 2, "1": draws // 3, "2": draws // 6}
