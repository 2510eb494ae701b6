"""Whom a request asks, and whom after a failure."""

from collections.abc import Callable, Sequence

import pytest

from llmproxy.errors import (
    NoUpstream,
    ProxyError,
    UpstreamAuth,
    UpstreamBroken,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from llmproxy.protocol.engine_errors import Complaint
from llmproxy.records import Upstream
from llmproxy.routing.course import Attempt, Course, Full, Unknown
from llmproxy.routing.retry import BUDGET_LEAST, BUDGET_WINDOW, History, RetryBudget
from llmproxy.routing.server import Server
from tests.support.calls import NoTransport

NOW = 1000.0


def now() -> float:
    return NOW


def servers(*names: str, max_inflight: int = 0) -> list[Server]:
    """Return servers that are all well."""
    upstreams = [
        Upstream(name, "http", "127.0.0.1", 1, max_inflight=max_inflight) for name in names
    ]
    return [Server(each, NoTransport(), now=now) for each in upstreams]


def course(
    able: Sequence[Server],
    *,
    models: Sequence[str | None] = ("m",),
    longer: Sequence[str] = (),
    most: int = 3,
    replay_safe: bool = True,
    budget: RetryBudget | None = None,
    having: Callable[[str | None], Sequence[Server]] | None = None,
) -> Course:
    """Return a course over servers that have every model, in their order."""
    return Course(
        models=models,
        longer=longer,
        candidates=having or (lambda _: able),
        choose=lambda those: those[0],
        history=History(most=most, replay_safe=replay_safe),
        budget=budget or RetryBudget(now),
        now=now,
    )


def names_after(failures: Sequence[ProxyError], way: Course) -> list[str]:
    """Return who is asked, one failure after the other."""
    turn: Attempt | None = way.first()
    asked: list[str] = []
    for failure in failures:
        assert turn is not None
        asked.append(turn.server.name)
        turn = way.after_failure(turn, failure)
        if turn is None:
            return asked
    assert turn is not None
    return [*asked, turn.server.name]


def test_a_server_that_cannot_be_reached_is_passed_over() -> None:
    """It has not seen the request, so anything may be asked of another."""
    way = course(servers("a", "b"), replay_safe=False)

    assert names_after([UpstreamUnreachable("")], way) == ["a", "b"]


def test_what_an_engine_may_have_begun_is_asked_again_only_where_that_changes_nothing() -> None:
    """Nothing is done twice."""
    way = course(servers("a", "b"), replay_safe=False)

    assert names_after([UpstreamBroken("")], way) == ["a"]


def test_a_silent_server_is_not_asked_twice_and_the_request_goes_on_once() -> None:
    """Two servers that are silent are enough."""
    way = course(servers("a", "b", "c"), most=5)

    assert names_after([UpstreamTimeout("")] * 3, way) == ["a", "b"]


def test_a_silent_server_alone_is_not_asked_again() -> None:
    """It has the request already."""
    assert names_after([UpstreamTimeout("")] * 2, course(servers("a"))) == ["a"]


def test_a_request_that_breaks_its_server_meets_two_at_most() -> None:
    """It may be what broke them."""
    way = course(servers("a", "b", "c"), most=5)

    assert names_after([UpstreamBroken("")] * 3, way) == ["a", "b"]


def test_a_broken_connection_to_the_only_server_is_tried_once_more_after_a_pause() -> None:
    """There is nobody else, and a server that restarts drops its connections."""
    way = course(servers("a"))
    again = way.after_failure(way.first(), UpstreamBroken(""))

    assert again is not None
    assert again.server.name == "a"
    assert way.after_failure(again, UpstreamBroken("")) is None


def test_another_server_may_take_our_key() -> None:
    """The same one never will."""
    way = course(servers("a", "b"), most=9)

    assert names_after([UpstreamAuth("")] * 2, way) == ["a", "b"]


def test_no_server_is_asked_more_than_twice_and_others_come_first() -> None:
    """An error answer says less about a server than silence."""
    way = course(servers("a", "b"), most=9)
    turn: Attempt | None = way.first()
    asked = []
    while turn is not None:
        asked.append(turn.server.name)
        turn = way.after_answer(turn, Complaint.FAILED, None)

    assert asked == ["a", "b", "a", "b"]


def test_attempts_are_counted() -> None:
    """However many servers there are."""
    way = course(servers("a", "b", "c", "d"), most=2)

    assert names_after([UpstreamUnreachable("")] * 3, way) == ["a", "b"]


def test_the_last_attempt_belongs_to_the_fallback() -> None:
    """A model whose servers all fail must not use up what another could answer."""
    able = {"big": servers("a", "b", "c"), "small": servers("d")}
    way = course([], models=("big", "small"), having=lambda model: able[str(model)])
    first = way.first()
    second = way.after_answer(first, Complaint.FAILED, None)
    assert second is not None
    last = way.after_answer(second, Complaint.FAILED, None)

    assert last is not None
    assert (last.server.name, last.model) == ("d", "small")


def test_a_model_that_nobody_has_gives_way_to_its_fallback() -> None:
    """At once, without an attempt."""
    able = {"gone": [], "small": servers("d")}
    way = course([], models=("gone", "small"), having=lambda model: able[str(model)])

    assert way.first().model == "small"


def test_a_prompt_that_is_too_long_goes_to_the_longer_model_only() -> None:
    """What does not fit here does not fit on another server of the same model."""
    way = course(servers("a", "b"), longer=("long",))
    turn = way.after_answer(way.first(), Complaint.TOO_LONG, None)

    assert turn is not None
    assert turn.model == "long"
    plain = course(servers("a", "b"))
    assert plain.after_answer(plain.first(), Complaint.TOO_LONG, None) is None


def test_the_chain_for_long_prompts_is_walked_to_its_end() -> None:
    """Also with the last attempt: it is not kept for anybody else."""
    for most, asked in ((2, ["long"]), (3, ["long", "longer"])):
        way = course(servers("a", "b"), longer=("long", "longer"), most=most)
        turn: Attempt | None = way.first()
        models = []
        while turn is not None and (turn := way.after_answer(turn, Complaint.TOO_LONG, None)):
            models.append(turn.model)
        assert models == asked


def test_what_one_server_asks_for_is_not_laid_on_another() -> None:
    """Who is asked again waits for as long as it has said itself."""
    way = course(servers("a", "b"), most=9)
    second = way.after_answer(way.first(), Complaint.FAILED, None)
    assert second is not None
    third = way.after_answer(second, Complaint.BUSY, 3600.0)

    assert third is not None
    assert third.server.name == "a"
    assert third.pause < 1.0


@pytest.mark.parametrize("complaint", [Complaint.FINAL, Complaint.OPTION])
def test_what_is_wrong_with_a_request_is_wrong_everywhere(complaint: Complaint) -> None:
    """A 4xx is asked once, and says nothing about the server."""
    able = servers("a", "b")
    way = course(able)

    assert way.after_answer(way.first(), complaint, None) is None
    assert not able[0].breaker.has_failed


def test_a_busy_server_is_left_alone_for_a_while_and_is_not_broken() -> None:
    """429 and a full queue steer."""
    able = servers("a", "b")
    way = course(able)
    other = way.after_answer(way.first(), Complaint.BUSY, 2.0)

    assert other is not None
    assert other.server.name == "b"
    assert able[0].busy_until == NOW + 2
    assert not able[0].breaker.has_failed
    assert course(able).first().server.name == "b"


def test_the_only_server_gets_the_time_it_asks_for() -> None:
    """Retry-After is waited out where that is not too long."""
    way = course(servers("a"))
    again = way.after_answer(way.first(), Complaint.BUSY, 2.0)
    assert again is not None
    assert 2.0 <= again.pause < 3.0

    way = course(servers("a"))
    assert way.after_answer(way.first(), Complaint.BUSY, 3600.0) is None


def test_a_fallback_is_nearer_than_a_long_wait() -> None:
    """Where the only server of a model asks for more time than there is."""
    able = {"m": servers("a"), "small": servers("b")}
    way = course([], models=("m", "small"), having=lambda model: able[str(model)])
    other = way.after_answer(way.first(), Complaint.BUSY, 3600.0)

    assert other is not None
    assert (other.server.name, other.pause) == ("b", 0.0)


def test_retries_on_failing_servers_are_a_share_of_the_traffic() -> None:
    """So that they cannot keep a fleet down."""
    able, budget = servers("a", "b"), RetryBudget(now)
    for server in able:
        server.breaker.failed(probe=False)
    retries = 0
    for _ in range(40):
        way = course(able, budget=budget)
        turn = way.after_answer(way.first(), Complaint.BUSY, None)
        retries += turn is not None

    assert retries == BUDGET_LEAST


def test_requests_of_long_ago_allow_no_retries() -> None:
    """Nor do they take room for ever."""
    at = 1000.0
    budget = RetryBudget(lambda: at)
    for _ in range(100 * BUDGET_LEAST):
        budget.request(at)
        at += BUDGET_WINDOW / 500
    allowed = sum(budget.retry() for _ in range(1000 * BUDGET_LEAST))
    at += 2 * BUDGET_WINDOW

    assert 8 * BUDGET_LEAST <= allowed <= 11 * BUDGET_LEAST
    assert sum(budget.retry() for _ in range(1000 * BUDGET_LEAST)) == BUDGET_LEAST
    assert not budget._requests


def test_a_server_that_is_well_takes_over_for_one_that_is_not_without_a_budget() -> None:
    """One dead server of several, and every request that it had is answered elsewhere."""
    able, budget = servers("a", "b"), RetryBudget(now)
    for _ in range(40):
        way = course(able, budget=budget)
        turn = way.after_answer(way.first(), Complaint.BUSY, None)
        assert turn is not None
        able[0].busy_until = 0.0


def test_exactly_one_request_finds_out_whether_a_server_is_back() -> None:
    """The others are told when to come again."""
    able = servers("a")
    for _ in range(5):
        able[0].breaker.failed(probe=False, refused=True)
    with pytest.raises(NoUpstream) as told:
        course(able).first()
    assert dict(told.value.headers)[b"retry-after"].isdigit()


def test_full_servers_are_waited_for_and_unknown_models_are_looked_for() -> None:
    """Neither is a failure yet."""
    able = servers("a", max_inflight=1)
    able[0].inflight = 1
    with pytest.raises(Full):
        course(able).first()
    with pytest.raises(Unknown):
        course([]).first()


def test_a_stream_is_gone_on_with_by_another_server_of_its_model() -> None:
    """Of another model only where that is allowed."""
    able = {"m": servers("a", "b"), "small": servers("c")}
    way = course([], models=("m", "small"), having=lambda model: able[str(model)], most=9)
    turn = way.first()
    way.broke(turn, UpstreamBroken(""))
    second = way.rescuer(turn, fallback=False)
    assert second is not None
    assert second.server.name == "b"
    way.broke(second, UpstreamBroken(""))

    assert way.rescuer(second, fallback=False) is None


def test_a_late_first_token_weighs_nothing_but_time() -> None:
    """The measure was ours: a loaded server is slow, not broken."""
    able = servers("a", "b")
    way = course(able)
    turn = way.first()
    assert way.has_another(turn)
    other = way.slow(turn, 2.0)

    assert other is not None
    assert other.server.name == "b"
    assert not able[0].breaker.has_failed
    assert able[0].latency == pytest.approx(2.0)
    assert not way.has_another(other)
