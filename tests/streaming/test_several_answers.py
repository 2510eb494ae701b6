"""A stream of several answers is whole when each of them is."""

import json

import pytest

from tests.streaming.test_matrix import (
    FAULTS,
    IDLE,
    Broken,
    Fault,
    everything,
    fin_between_chunks,
    last_chunk,
    reset,
    silence,
)
from tests.support.client import request_bytes
from tests.support.rig import proxied
from tests.support.streams import CHAT, COMPLETIONS, Dialect, judge
from tests.support.upstream import scripted

DONE = b"data: [DONE]\n\n"

TWO_CHOICES = {"model": "m", "stream": True, "n": 2}
TWO_PROMPTS = {"model": "m", "stream": True, "prompt": ["x", "y"]}


def said(dialect: Dialect, index: int, text: str, reason: str | None = None) -> bytes:
    """Return one event of one of the answers."""
    words = {"delta": {"content": text}} if dialect is CHAT else {"text": text}
    choice = {"index": index, **words, "finish_reason": reason}
    return b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode()


def half_of(dialect: Dialect) -> bytes:
    """Return two answers of which one is finished and the other in mid-text."""
    return b"".join(
        (
            said(dialect, 0, "Hel"),
            said(dialect, 1, "Good"),
            said(dialect, 1, "", "stop"),
            said(dialect, 0, "lo, w"),
        )
    )


ASKED = [
    pytest.param(CHAT, TWO_CHOICES, id="choices"),
    pytest.param(COMPLETIONS, TWO_CHOICES, id="choices_of_a_completion"),
    pytest.param(COMPLETIONS, TWO_PROMPTS, id="prompts"),
]


def request(dialect: Dialect, asked: dict[str, object]) -> bytes:
    return request_bytes(dialect.path, body=json.dumps(asked).encode())


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize(("dialect", "asked"), ASKED)
async def test_one_answer_of_two_is_not_the_whole(
    dialect: Dialect, asked: dict[str, object], fault: Fault
) -> None:
    """However the stream ends: the answer that is in mid-text never looks finished."""
    broken = Broken(dialect, half_of(dialect), fault)
    async with (
        scripted(broken) as engine,
        proxied(engine.upstream, timeout_idle=IDLE) as proxy,
    ):
        async with proxy.client() as client:
            client.send(request(dialect, asked))
            await client.head()
            body = await everything(client, broken)
        line = await proxy.log.line()

    assert body.startswith(half_of(dialect))
    assert judge(dialect, body).error is not None
    assert not client.complete
    assert line["outcome"] == "stream_broken"


@pytest.mark.parametrize("fault", [reset, fin_between_chunks, last_chunk, silence])
@pytest.mark.parametrize(("dialect", "asked"), ASKED)
async def test_two_answers_of_two_are_the_whole(
    dialect: Dialect, asked: dict[str, object], fault: Fault
) -> None:
    """Each has said that it is finished; how the connection ends after that is nobody's loss."""
    whole = half_of(dialect) + said(dialect, 0, "orld", "length")
    broken = Broken(dialect, whole, fault)
    async with (
        scripted(broken) as engine,
        proxied(engine.upstream, timeout_idle=IDLE, keepalive_comments=IDLE / 4) as proxy,
    ):
        async with proxy.client() as client:
            client.send(request(dialect, asked))
            await client.head()
            body = await everything(client, broken)
        line = await proxy.log.line()

    assert body == whole
    assert client.complete
    assert line["outcome"] == "completed"


async def test_an_engine_that_makes_one_answer_of_two_is_believed() -> None:
    """Some do not know `n`. What ends properly, and has nothing begun, is all there is."""
    alone = CHAT.events[0] + said(CHAT, 0, "", "stop")
    broken = Broken(CHAT, alone, last_chunk)
    async with scripted(broken) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.send(request(CHAT, TWO_CHOICES))
            await client.head()
            body = await everything(client, broken)
        line = await proxy.log.line()

    assert body == alone
    assert client.complete
    assert line["outcome"] == "completed"


async def test_done_speaks_for_all_answers() -> None:
    """The engine's own last word, in a body that ends as it should."""
    broken = Broken(CHAT, half_of(CHAT) + DONE, last_chunk)
    async with (
        scripted(broken) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(request(CHAT, TWO_CHOICES))
        await client.head()
        body = await everything(client, broken)

    assert body == half_of(CHAT) + DONE
    assert client.complete


USAGE_ASKED = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
FINISHED = b"".join(CHAT.events) + said(CHAT, 0, "", "stop")
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":3}}\n\n'


@pytest.mark.parametrize("fault", [reset, fin_between_chunks, silence])
async def test_a_break_before_the_count_that_was_asked_for_is_told(fault: Fault) -> None:
    """The text is whole, what the caller has asked for beside it is not."""
    broken = Broken(CHAT, FINISHED, fault)
    async with (
        scripted(broken) as engine,
        proxied(engine.upstream, timeout_idle=IDLE, keepalive_comments=IDLE / 4) as proxy,
    ):
        async with proxy.client() as client:
            client.send(request(CHAT, USAGE_ASKED))
            await client.head()
            body = await everything(client, broken)
        line = await proxy.log.line()

    assert body.startswith(FINISHED)
    assert judge(CHAT, body).error is not None
    assert not client.complete
    assert line["outcome"] == "stream_broken"


@pytest.mark.parametrize(
    ("asked", "stream", "fault"),
    [
        pytest.param(USAGE_ASKED, FINISHED, last_chunk, id="a_clean_end"),
        pytest.param(USAGE_ASKED, FINISHED + USAGE, reset, id="the_count_is_there"),
        pytest.param(USAGE_ASKED, FINISHED + USAGE, silence, id="the_count_is_there_and_silence"),
        pytest.param({"model": "m", "stream": True}, FINISHED, reset, id="not_asked_for"),
        pytest.param({"model": "m", "stream": True}, FINISHED, silence, id="nor_waited_for"),
    ],
)
async def test_what_nobody_misses_is_no_break(
    asked: dict[str, object], stream: bytes, fault: Fault
) -> None:
    """A count that only we have asked for, or that has come, or that the engine does not know."""
    broken = Broken(CHAT, stream, fault)
    async with (
        scripted(broken) as engine,
        proxied(
            engine.upstream, timeout_idle=20 * IDLE, keepalive_comments=IDLE, limits="1000 tok/min"
        ) as proxy,
    ):
        async with proxy.client() as client:
            client.send(request(CHAT, asked))
            await client.head()
            body = await everything(client, broken)
        line = await proxy.log.line()

    assert body == stream
    assert client.complete
    assert line["outcome"] == "completed"
