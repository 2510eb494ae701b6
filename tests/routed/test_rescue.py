"""What a client sees of a stream whose server breaks after it began."""

import asyncio
from collections.abc import Callable

import orjson
import pytest

from llmproxy.protocol.comments import KEEP_ALIVE
from llmproxy.routing.rescue import COMMENT
from tests.support.client import request_bytes
from tests.support.fleet import (
    DONE,
    Answering,
    Member,
    asked_for,
    breaking,
    event,
    failing,
    fleet,
    silent,
    speaking,
    text_of,
)
from tests.support.outside import at_rest, half_open, server_named, until
from tests.support.upstream import Exchange, Request

PATH = b"/v1/chat/completions"
TEXT = "The quick brown fox jumps over the lazy dog"
BEGUN = "The quick brown fox"
ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


def chat(**changed: object) -> bytes:
    """Return a request for a stream."""
    return request_bytes(PATH, body=orjson.dumps({**ASKED, **changed}))


def _reset(exchange: Exchange) -> None:
    exchange.reset()


def _cut(exchange: Exchange) -> None:
    exchange.close()


def _end(exchange: Exchange) -> None:
    exchange.end()


def _half(exchange: Exchange) -> None:
    exchange.chunk(event({"content": " jum"})[:40])
    exchange.close()


def _nonsense(exchange: Exchange) -> None:
    exchange.send(b"zz\r\nthis is no chunk\r\n")


def _says_so(exchange: Exchange) -> None:
    exchange.chunk(b'data: {"error": {"message": "out of memory"}}\n\n')
    exchange.chunk(DONE)
    exchange.end()


def _stalls(exchange: Exchange) -> None:
    pass


BREAKS = [
    pytest.param(_reset, id="reset"),
    pytest.param(_cut, id="cut"),
    pytest.param(_end, id="ended_without_a_finish"),
    pytest.param(_half, id="cut_inside_an_event"),
    pytest.param(_nonsense, id="malformed_chunk"),
    pytest.param(_says_so, id="error_event"),
    pytest.param(_stalls, id="stall"),
]


@pytest.mark.parametrize("preset", ["http", "vllm"])
@pytest.mark.parametrize("how", BREAKS)
async def test_another_server_finishes_the_text(
    how: Callable[[Exchange], None], preset: str
) -> None:
    """The client gets one stream, with one text, and a comment where it was gone on with."""
    first = Member(breaking(BEGUN, how))
    # Asked again from the beginning it says all of it; asked to go on, only the rest.
    async with fleet(first, speaking(TEXT), preset=preset, timeout_idle=0.3) as (proxy, (_, b)):
        answer, whole = await proxy.asked(chat())

        assert whole
        assert text_of(answer.body) == TEXT
        assert answer.body.count(COMMENT) == 1
        assert answer.body.endswith(DONE)
        assert answer.body.count(b'"role"') == 1
        assert b"out of memory" not in answer.body
        assert (await proxy.log.line())["rescues"] == 1
        assert proxy.sample("rescues_total", result="rescued") == 1
        asked = asked_for(b.asked[0])
        if preset == "vllm":
            assert asked["messages"][-1] == {"role": "assistant", "content": BEGUN}
            assert asked["continue_final_message"] is True
        else:
            assert asked == ASKED


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "ended"])
@pytest.mark.parametrize("apart", [True, False], ids=["apart", "at_once"])
async def test_a_last_word_without_its_blank_line_is_told_with_it(apart: bool, cut: bool) -> None:
    """The second server closes right behind its `[DONE]`: the stream is finished none the less."""

    async def brief(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(event({"content": TEXT}))
        finish = event({}, "stop")
        for piece in (finish, b"data: [DONE]") if apart else (finish + b"data: [DONE]",):
            exchange.chunk(piece)
            await asyncio.sleep(0.02)
        if cut:
            exchange.close()
        else:
            exchange.end()

    async with fleet(breaking(BEGUN, _reset), brief) as (proxy, _):
        answer, whole = await proxy.asked(chat())

        assert whole
        assert text_of(answer.body) == TEXT
        assert answer.body.endswith(b"}\n\n" + DONE)
        assert answer.body.count(DONE) == 1


async def test_a_text_that_differs_is_no_continuation() -> None:
    """The stream ends in an error, and what the client has is what the first server said."""
    async with fleet(breaking(BEGUN, _reset), speaking("Something else")) as (proxy, _):
        answer, _ = await proxy.asked(chat())

        assert text_of(answer.body) == BEGUN
        assert b'"error"' in answer.body
        assert DONE not in answer.body
        assert proxy.sample("rescues_total", result="differs") == 1


async def test_a_prefill_that_is_refused_is_asked_again_from_the_beginning() -> None:
    """An engine that does not know the option says 400."""
    calls: list[Request] = []

    async def refusing(exchange: Exchange, request: Request) -> None:
        calls.append(request)
        if "continue_final_message" in asked_for(request):
            await failing(b"400 Bad Request")(exchange, request)
        else:
            await speaking(TEXT)(exchange, request)

    async with fleet(breaking(BEGUN, _reset), refusing, preset="vllm") as (proxy, _):
        answer, whole = await proxy.asked(chat())

        assert whole
        assert text_of(answer.body) == TEXT
        assert len(calls) == 2


async def test_it_is_finished_by_the_third_when_the_second_breaks_too() -> None:
    """What the second has added is part of what the third goes on from."""
    second = breaking("The quick brown fox jumps over", _reset)
    async with fleet(breaking(BEGUN, _reset), second, speaking(TEXT), retries=3) as (proxy, _):
        answer, whole = await proxy.asked(chat())

        assert whole
        assert text_of(answer.body) == TEXT
        assert answer.body.count(COMMENT) == 2
        assert (await proxy.log.line())["rescues"] == 2
        assert proxy.sample("rescues_total", result="rescued") == 2


async def test_who_took_over_and_broke_is_not_hidden() -> None:
    """Each break is counted by what became of it; the log counts those who delivered."""
    second = breaking("The quick brown fox jumps over", _reset)
    async with fleet(breaking(BEGUN, _reset), second) as (proxy, _):
        answer, whole = await proxy.asked(chat())

        assert not whole
        assert answer.body.count(COMMENT) == 1
        assert (await proxy.log.line())["rescues"] == 1
        assert proxy.sample("rescues_total", result="rescued") == 1
        assert proxy.sample("rescues_total", result="nobody") == 1


def _held(text: str) -> tuple[Answering, asyncio.Event]:
    """Return what answers the first who asks when it is told to, and everybody else at once."""
    go_on = asyncio.Event()

    async def answer(exchange: Exchange, request: Request) -> None:
        if b"hold" in request.body:
            await go_on.wait()
        await speaking(text)(exchange, request)

    return answer, go_on


async def test_a_full_server_is_waited_for_to_go_on() -> None:
    """As it is before a first attempt; the client gets comments meanwhile."""
    busy, go_on = _held(TEXT)
    full, first = Member(busy, options=";max_inflight=1"), breaking(BEGUN, _reset)
    async with (
        fleet(full, first, keepalive_comments=0.01) as (proxy, (a, b)),
        proxy.client() as client,
    ):
        holding = chat(messages=[{"role": "user", "content": "hold"}])
        held = asyncio.create_task(proxy.ask(holding))
        await until(lambda: a.asked, "the only place is taken")
        client.send(chat())
        await client.until(b"fox")
        waited = await client.until(KEEP_ALIVE)
        assert (len(a.asked), len(b.asked)) == (1, 1)
        go_on.set()
        rest = await client.until(b"[DONE]")
        await held

        assert b"data:" not in waited.partition(b"fox")[2]
        assert COMMENT in rest and b"dog" in rest and b"fox" not in rest
        assert len(a.asked) == 2
        assert proxy.sample("rescues_total", result="rescued") == 1
        await at_rest(proxy)


@pytest.mark.parametrize(
    ("queue_timeout", "timeout", "result"),
    [(1.1, b"60", "nobody"), (60.0, b"0.5", "deadline")],
    ids=["queue", "deadline"],
)
async def test_a_full_server_is_not_waited_for_too_long(
    queue_timeout: float, timeout: bytes, result: str
) -> None:
    """Then the stream ends in what it broke with."""
    busy, go_on = _held(TEXT)
    full, first = Member(busy, options=";max_inflight=1"), breaking(BEGUN, _reset)
    async with fleet(full, first, queue_timeout=queue_timeout, keepalive_comments=0) as (
        proxy,
        (a, _),
    ):
        holding = chat(messages=[{"role": "user", "content": "hold"}])
        held = asyncio.create_task(proxy.ask(holding))
        await until(lambda: a.asked, "the only place is taken")
        asking = request_bytes(
            PATH, body=orjson.dumps(ASKED), headers=[(b"x-llmproxy-timeout", timeout)]
        )
        answer, whole = await proxy.asked(asking)
        go_on.set()
        await held

        assert not whole
        assert text_of(answer.body) == BEGUN
        assert KEEP_ALIVE not in answer.body
        assert proxy.sample("rescues_total", result=result) == 1
        await at_rest(proxy)


async def test_who_took_over_and_was_left_has_rescued() -> None:
    """It was not the rescue that the client did not wait for."""
    second = breaking("The quick brown fox jumps over", _stalls)
    async with fleet(breaking(BEGUN, _reset), second) as (proxy, _):
        async with proxy.client() as client:
            client.send(chat())
            await client.until(b"over")

        assert (await proxy.log.line())["rescues"] == 1
        assert proxy.sample("rescues_total", result="rescued") == 1
        assert proxy.sample("rescues_total", result="cancelled") == 0


async def test_a_client_who_leaves_between_two_servers() -> None:
    """The first break was made good, and of the second nothing came."""
    second = breaking("The quick brown fox jumps over", _reset)
    async with fleet(breaking(BEGUN, _reset), second, silent, retries=3) as (proxy, (_, _, c)):
        async with proxy.client() as client:
            client.send(chat())
            await client.until(b"over")
            await until(lambda: c.asked, "the third was asked")

        assert (await proxy.log.line())["rescues"] == 1
        assert proxy.sample("rescues_total", result="rescued") == 1
        assert proxy.sample("rescues_total", result="cancelled") == 1


async def test_counts_in_every_event_deliver_nothing_twice() -> None:
    """An event in which only a number is new is none, as long as the text is known already."""

    async def another(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        for number, word in enumerate(["The", " quick", " red"], 1):
            counted = {"prompt_tokens": 9, "completion_tokens": number, "total_tokens": 9 + number}
            exchange.chunk(event({"content": word}, usage=counted))
            for _ in range(50):
                await asyncio.sleep(0)
        exchange.end()

    async with fleet(breaking(BEGUN, _reset), another) as (proxy, _):
        answer, _ = await proxy.asked(chat())

        assert COMMENT not in answer.body
        assert (await proxy.log.line())["rescues"] is None
        assert proxy.sample("rescues_total", result="differs") == 1


@pytest.mark.parametrize(
    ("rescuer", "times"),
    [
        pytest.param(failing(b"400 Bad Request"), 2, id="refusing"),  # either way of asking it
        pytest.param(breaking("", _reset), 1, id="breaking"),
    ],
)
async def test_who_cannot_go_on_is_asked_no_more(rescuer: Answering, times: int) -> None:
    """A refusal may be of the way it was asked; who breaks is not asked another way."""
    async with fleet(breaking(BEGUN, _reset), rescuer, preset="vllm", retries=6) as (proxy, those):
        answer = await proxy.ask(chat())

        assert text_of(answer.body) == BEGUN
        assert [len(each.asked) for each in those] == [1, times]
        assert proxy.sample("rescues_total", result="nobody") == 1


async def test_a_fallback_goes_on_only_where_that_is_allowed() -> None:
    """Another model's words are not the first one's."""
    for rescue, text in (("same_model", BEGUN), ("fallback", TEXT)):
        async with fleet(
            Member(breaking(BEGUN, _reset)),
            Member(speaking(TEXT), options=";models=small"),
            fallbacks="m=small",
            rescue=rescue,
        ) as (proxy, _):
            answer, _ = await proxy.asked(chat())
            assert text_of(answer.body) == text


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        pytest.param({"n": 2}, "choices", id="several_choices"),
        pytest.param({"best_of": 2}, "choices", id="best_of"),
        pytest.param({"logprobs": True}, "request", id="logprobs"),
    ],
)
async def test_what_cannot_be_continued_ends_in_its_error(
    changed: dict[str, object], why: str
) -> None:
    """No other server is asked, and that is counted."""
    async with fleet(breaking(BEGUN, _reset), speaking(TEXT)) as (proxy, (_, b)):
        answer, _ = await proxy.asked(chat(**changed))

        assert text_of(answer.body) == BEGUN
        assert b'"upstream_error"' in answer.body
        assert not b.asked
        assert proxy.sample("rescues_total", result=why) == 1


async def test_nobody_else_to_go_on_is_counted() -> None:
    """One server is all there is."""
    async with fleet(breaking(BEGUN, _reset)) as (proxy, _):
        answer, _ = await proxy.asked(chat())

        assert text_of(answer.body) == BEGUN
        assert proxy.sample("rescues_total", result="nobody") == 1


async def test_a_stream_of_another_kind_is_counted() -> None:
    """Only chat and completions are gone on with."""

    async def breaks(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(b'data: {"type": "response.output_text.delta", "delta": "Hi"}\n\n')
        for _ in range(50):
            await asyncio.sleep(0)
        exchange.reset()

    asked = orjson.dumps({"model": "m", "input": "hi", "stream": True})
    async with fleet(breaks, breaks) as (proxy, _):
        await proxy.ask(request_bytes(b"/v1/responses", body=asked))

        assert proxy.sample("rescues_total", result="kind") == 1


async def test_an_answer_that_is_no_stream_is_not_counted() -> None:
    """It breaks too, and there was no rescue to be hoped for."""

    async def breaks(exchange: Exchange, request: Request) -> None:
        exchange.begin(content_type=b"application/json")
        exchange.chunk(b'{"half": 1')
        for _ in range(50):
            await asyncio.sleep(0)
        exchange.reset()

    async with fleet(breaks, breaks) as (proxy, _):
        await proxy.asked(chat(stream=False))

        assert b"llmproxy_rescues_total{" not in proxy.app.metrics.render()


async def test_half_a_tool_call_is_not_continued() -> None:
    """Arguments that two models have written belong to neither."""

    async def calling(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        call = {"index": 0, "id": "1", "function": {"name": "f", "arguments": '{"a'}}
        exchange.chunk(event({"tool_calls": [call]}))
        exchange.reset()

    async with fleet(calling, speaking(TEXT)) as (proxy, (_, b)):
        answer, _ = await proxy.asked(chat())

        assert b'"upstream_error"' in answer.body
        assert not b.asked
        assert proxy.sample("rescues_total", result="more_than_text") == 1


async def test_an_error_event_that_nobody_can_make_good_is_passed_on() -> None:
    """In the engine's own words, once."""
    other = Member(speaking(TEXT), options=";models=x")
    async with fleet(breaking(BEGUN, _says_so), other) as (proxy, _):
        answer, _ = await proxy.asked(chat())

        assert text_of(answer.body) == BEGUN
        assert answer.body.count(b'"error"') == 1
        assert b"out of memory" in answer.body


async def test_an_error_event_before_any_text_is_tried_elsewhere() -> None:
    """Nothing was said yet."""
    async with fleet(breaking("", _says_so), speaking(TEXT)) as (proxy, _):
        answer, whole = await proxy.asked(chat())

        assert whole
        assert text_of(answer.body) == TEXT


async def test_a_caller_who_leaves_is_not_rescued() -> None:
    """Nobody is asked on behalf of somebody who has gone."""
    async with fleet(breaking(BEGUN, _stalls), speaking(TEXT)) as (proxy, (a, b)):
        async with proxy.client() as client:
            client.send(chat())
            await client.until(b"fox")
        assert a.server is not None
        await a.server.reached()
        assert (await proxy.log.line())["outcome"] == "client_gone"
        assert not b.asked


async def test_usage_counts_what_was_generated_for_the_text() -> None:
    """Prompt of the question, completion of the whole answer."""

    async def going_on(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        exchange.chunk(event({"content": " jumps"}))
        usage = {"prompt_tokens": 14, "completion_tokens": 1, "total_tokens": 15}
        exchange.chunk(event({}, "stop", usage=usage))
        exchange.chunk(DONE)
        exchange.end()

    async with fleet(breaking(BEGUN, _reset), going_on, preset="vllm") as (proxy, _):
        answer, _ = await proxy.asked(chat(stream_options={"include_usage": True}))

        assert b'"prompt_tokens":10,"completion_tokens":5,"total_tokens":15' in answer.body


def _several_in_one_event(
    words: list[str], *, prompt: int, counts: bool, how: Callable[[Exchange], None] | None
) -> Answering:
    """Say three words in each event, as speculative decoding does; each word is a token."""

    async def answer(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        for at in range(0, len(words), 3):
            done = min(at + 3, len(words))
            usage = {"prompt_tokens": prompt, "completion_tokens": done} if counts else None
            exchange.chunk(event({"content": "".join(words[at : at + 3])}, usage=usage))
        for _ in range(50):
            await asyncio.sleep(0)
        if how is not None:
            how(exchange)
            return
        usage = {"prompt_tokens": prompt, "completion_tokens": len(words)}
        exchange.chunk(event({}, "stop"))
        exchange.chunk(b"data: %b\n\n" % orjson.dumps({"id": "x", "choices": [], "usage": usage}))
        exchange.chunk(DONE)
        exchange.end()

    return answer


@pytest.mark.parametrize("counts", [False, True])
async def test_usage_adds_up_where_an_event_has_several_tokens(counts: bool) -> None:
    """Counted by the servers where they tell; guessed otherwise, and then marked as that."""
    words = [f" w{number}" for number in range(10, 46)]
    first = _several_in_one_event(words[:18], prompt=10, counts=counts, how=_reset)
    second = _several_in_one_event(words[18:], prompt=10 + 18, counts=False, how=None)
    async with fleet(
        first, second, preset="vllm", middleware="rate_limit,routing", limits="100000 tok/min"
    ) as (proxy, (_, b)):
        asked = chat(max_tokens=40, min_tokens=20, stream_options={"include_usage": True})
        answer, whole = await proxy.asked(asked)
        line = await proxy.log.line()

        assert whole
        assert b'"prompt_tokens":10,"completion_tokens":36' in answer.body
        assert (line["prompt_tokens"], line["completion_tokens"]) == (10, 36)
        assert line["tokens_estimated"] is (None if counts else True)
        going_on = asked_for(b.asked[0])
        known = 18 if counts else 6  # an event is a token at least
        assert going_on["max_tokens"] == 40 - known
        assert going_on["min_tokens"] == 20 - known


async def test_usage_of_who_was_asked_again_is_no_guess() -> None:
    """It has generated all of the text."""
    words = [f" w{number}" for number in range(10, 46)]
    first = _several_in_one_event(words[:18], prompt=10, counts=False, how=_reset)
    second = _several_in_one_event(words, prompt=10, counts=False, how=None)
    async with fleet(first, second, middleware="rate_limit,routing", limits="100000 tok/min") as (
        proxy,
        _,
    ):
        await proxy.asked(chat())
        line = await proxy.log.line()

        assert (line["prompt_tokens"], line["completion_tokens"]) == (10, 36)
        assert line["tokens_estimated"] is None


async def test_nothing_is_kept_when_rescue_is_off() -> None:
    """The stream ends where it broke."""
    async with fleet(breaking(BEGUN, _reset), speaking(TEXT), rescue="off") as (proxy, (_, b)):
        answer, _ = await proxy.asked(chat())

        assert text_of(answer.body) == BEGUN
        assert not b.asked
        assert proxy.sample("rescues_total", result="off") == 1


async def test_a_break_counts_against_the_server() -> None:
    """As much as an error before the first byte."""
    async with fleet(breaking(BEGUN, _reset), breaking(BEGUN, _reset)) as (proxy, _):
        for _ in range(12):
            await asyncio.gather(*(proxy.asked(chat(n=2)) for _ in range(4)))

        assert proxy.sample("breaker_state", upstream="a") == 2


async def test_a_rescuer_that_cannot_be_asked_is_not_shut_out() -> None:
    """It was half open, and nobody found out how it is."""

    async def calling(exchange: Exchange, request: Request) -> None:
        exchange.begin()
        call = {"index": 0, "id": "1", "function": {"name": "f", "arguments": '{"a'}}
        exchange.chunk(event({"tool_calls": [call]}))
        exchange.reset()

    async with fleet(calling, speaking(TEXT)) as (proxy, (a, b)):
        await proxy.ask(request_bytes(b"/v1/models", method=b"GET"))
        half_open(server_named(proxy, "b"))
        await proxy.asked(chat())

        assert (len(a.asked), len(b.asked)) == (1, 0)
        assert server_named(proxy, "b").breaker.lets_through()
