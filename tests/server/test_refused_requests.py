"""What nobody may read in two ways is refused, and costs no engine anything."""

import pytest

from llmproxy.server.head_rules import METHODS as SERVED
from tests.server.corpus import BEHIND, FRAMING, Case
from tests.server.corpus_of_heads import HEADS, METHODS, PATHS
from tests.server.good_requests import GOOD
from tests.server.verdicts import still_serves, verdict
from tests.support.proxy import serving
from tests.support.rig import proxied
from tests.support.upstream import json_answer, scripted

REFUSED = [*FRAMING, *HEADS]


@pytest.mark.parametrize("case", [*REFUSED, *PATHS], ids=lambda case: case.id)
async def test_it_is_turned_away(case: Case) -> None:
    """The right status, the end of the connection, no engine touched, and all is well after."""
    async with scripted(json_answer({})) as engine, proxied(engine.upstream) as proxy:
        seen = await verdict(proxy.port, case.raw)
        touched = engine.accepted
        alive = await still_serves(proxy.port)

    assert seen.status in case.statuses
    assert seen.said.count(b"HTTP/1.1 ") == 1
    assert b"\r\nconnection: close\r\n" in seen.said
    assert seen.said.count(b"\r\nx-request-id: ") == 1
    assert b'{"error":{"message":' in seen.said
    assert touched == 0
    assert alive


async def test_a_request_behind_it_is_not_run() -> None:
    """What follows could be read as anything."""
    answers = {}
    async with scripted(json_answer({})) as engine, proxied(engine.upstream) as proxy:
        for case in REFUSED:
            seen = await verdict(proxy.port, case.raw + BEHIND)
            answers[case.id] = seen.said.count(b"HTTP/1.1 ")

    assert set(answers.values()) == {1}, answers
    assert engine.accepted == 0


async def test_a_whole_corpus_in_front_of_a_real_serve() -> None:
    """The same under `llmproxy serve`, one after the other in one process."""
    wrong = {}
    async with (
        scripted(json_answer({})) as engine,
        serving({"LLMPROXY_UPSTREAMS": engine.url}) as proxy,
    ):
        for case in [*REFUSED, *PATHS]:
            seen = await verdict(proxy.port, case.raw)
            if seen.status not in case.statuses or engine.accepted:
                wrong[case.id] = seen.said[:200]
        assert await still_serves(proxy.port)

    assert wrong == {}


@pytest.mark.parametrize("case", METHODS, ids=lambda case: case.id)
async def test_a_method_that_is_known_and_not_served_is_told_what_is(case: Case) -> None:
    """A 405 has an Allow header."""
    async with scripted(json_answer({})) as engine, proxied(engine.upstream) as proxy:
        seen = await verdict(proxy.port, case.raw)

    allow = b"\r\nallow: " + b", ".join(sorted(SERVED)) + b"\r\n"
    assert (seen.status == 405) == (allow in seen.said)


def test_no_two_cases_have_one_name() -> None:
    """A finding can be looked up."""
    names = [case.id for case in [*REFUSED, *PATHS]] + [good.id for good in GOOD]

    assert len(names) == len(set(names))
