"""Three servers, two hundred streams, and a server that is killed in the middle of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import orjson
import pytest

from llmproxy.routing import health
from llmproxy.routing.rescue import COMMENT
from tests.support.client import Answer
from tests.support.fleet import (
    DONE,
    Answering,
    Member,
    asked_for,
    event,
    fleet,
    speaking,
    text_of,
)
from tests.support.outside import TEXT, at_rest, chat, half_open, said, server_named, until
from tests.support.rig import Rig
from tests.support.upstream import Exchange, Request

STREAMS = 200
WHILE_OTHERS_COME = 60.0  # seconds that a stream may stand still until all are where it is
WORDS = 24  # of each text
STOPS = (8, 16)  # words after which every server waits until it may go on
SILENT_BEFORE = 40  # streams that get their first word only after the first stop


def text_for(number: int) -> str:
    """Return what every server says to a prompt."""
    return " ".join(f"{number}:{place}" for place in range(WORDS))


@dataclass
class Engines:
    """What the three servers have in common: the model, and when it pauses."""

    gates: list[asyncio.Event] = field(default_factory=lambda: [asyncio.Event() for _ in STOPS])

    async def answer(self, exchange: Exchange, request: Request) -> None:
        """Say the text of a prompt, after what the caller has of it."""
        asked = asked_for(request)
        number = int(asked["messages"][0]["content"])
        last = asked["messages"][-1]
        begun = last["content"].split(" ") if last["role"] == "assistant" else []
        words = text_for(number).split(" ")
        assert words[: len(begun)] == begun, "asked to go on with another text"
        exchange.begin()
        if number < SILENT_BEFORE and not begun:
            await self.gates[0].wait()
        exchange.chunk(event({"role": "assistant", "content": ""}))
        for place in range(len(begun), WORDS):
            said = event({"content": f" {words[place]}" if place else words[place]})
            if place in STOPS:  # anywhere in an event, or between two
                half = number % len(said)
                if half:
                    exchange.chunk(said[:half])
                    said = said[half:]
                await self.gates[STOPS.index(place)].wait()
            exchange.chunk(said)
            await asyncio.sleep(0)  # the others have their turn
        new = WORDS - len(begun)
        usage = {
            "prompt_tokens": 7 + len(begun),
            "completion_tokens": new,
            "total_tokens": 7 + WORDS,
        }
        exchange.chunk(event({}, "stop"))
        about = {"id": "chat-1", "object": "chat.completion.chunk", "choices": [], "usage": usage}
        exchange.chunk(b"data: %b\n\n" % orjson.dumps(about))
        exchange.chunk(DONE)
        exchange.end()


@dataclass
class Streams:
    """Two hundred clients, and how far each of them is."""

    proxy: Rig
    bodies: list[bytes] = field(default_factory=lambda: [b""] * STREAMS)
    heads: list[Answer | None] = field(default_factory=lambda: [None] * STREAMS)
    whole: list[bool] = field(default_factory=lambda: [False] * STREAMS)

    async def run(self, number: int) -> None:
        """Ask for one stream and read it to its end."""
        request = chat(
            messages=[{"role": "user", "content": str(number)}],
            stream=True,
            max_tokens=1000,
            stream_options={"include_usage": True},
        )
        async with self.proxy.client() as client:
            client.waits = WHILE_OTHERS_COME
            client.send(request)
            self.heads[number] = await client.head()
            async for frame in client.chunks():
                self.bodies[number] += frame
            self.whole[number] = client.complete

    async def have_said(self, word: int, streams: range) -> None:
        """Wait until each of the streams has come to a word."""
        await until(
            lambda: all(f"{n}:{word}".encode() in self.bodies[n] for n in streams),
            f"every stream came to word {word}",
            WHILE_OTHERS_COME,
        )


@asynccontextmanager
async def streams(preset: str) -> AsyncIterator[tuple[Streams, list[Member], Engines]]:
    """Run two hundred streams over three servers; each has come to the first stop."""
    engines = Engines()
    members = [Member(engines.answer) for _ in "abc"]
    async with fleet(*members, preset=preset) as (proxy, _):
        running = Streams(proxy)
        async with asyncio.TaskGroup() as group:
            for number in range(STREAMS):
                group.create_task(running.run(number))
            await running.have_said(STOPS[0] - 1, range(SILENT_BEFORE, STREAMS))
            await until(
                lambda: sum(len(each.asked) for each in members) == STREAMS,
                "the silent ones were asked for, too",
                WHILE_OTHERS_COME,
            )
            yield running, members, engines
        await at_rest(proxy)


def texts_are_canonical(running: Streams) -> None:
    """Check every stream as its client has it."""
    for number, body in enumerate(running.bodies):
        head = running.heads[number]
        assert head is not None
        assert head.status == 200
        assert running.whole[number], body[-300:]
        assert b'"error"' not in body
        assert text_of(body) == text_for(number)
        assert body.count(DONE) == 1
        assert body.count(b'"role"') == 1
        usage = orjson.loads(body.split(b'"usage":')[1].split(b"}")[0] + b"}")
        assert usage == {
            "prompt_tokens": 7,
            "completion_tokens": WORDS,
            "total_tokens": 7 + WORDS,
        }


def begun_on(member: Member) -> int:
    """Return how many streams had their first word from a server."""
    numbers = [int(asked_for(each)["messages"][0]["content"]) for each in member.asked]
    return sum(number >= SILENT_BEFORE for number in numbers)


@pytest.mark.parametrize("preset", ["http", "vllm"])
async def test_one_of_three_is_killed(preset: str) -> None:
    """No error reaches a client, and every stream is finished as if nothing had been."""
    async with streams(preset) as (running, (a, b, c), engines):
        begun, asked = begun_on(a), len(a.asked)
        assert asked > STREAMS / 5
        assert a.server is not None
        await a.server.die()
        for gate in engines.gates:
            gate.set()

    texts_are_canonical(running)
    rescued = running.proxy.sample("rescues_total", result="rescued")
    assert rescued == begun  # all of them, for all of them are eligible
    assert sum(body.count(COMMENT) for body in running.bodies) == begun
    assert sum(line["rescues"] or 0 for line in running.proxy.log.lines) == begun
    assert len(a.asked) == asked
    assert len(b.asked) + len(c.asked) == STREAMS
    assert {line["outcome"] for line in running.proxy.log.lines} == {"completed"}
    assert sum(line["completion_tokens"] or 0 for line in running.proxy.log.lines) in (
        0,  # nobody has asked what was used
        STREAMS * WORDS,
    )


@pytest.mark.parametrize("preset", ["http", "vllm"])
async def test_two_of_three_are_killed_one_after_the_other(preset: str) -> None:
    """The last one finishes what the first began and the second went on with."""
    async with streams(preset) as (running, (a, b, _), engines):
        assert a.server is not None
        assert b.server is not None
        await a.server.die()
        engines.gates[0].set()
        await running.have_said(STOPS[1] - 1, range(STREAMS))
        await b.server.die()
        engines.gates[1].set()

    texts_are_canonical(running)
    assert running.proxy.sample("rescues_total", result="rescued") >= STREAMS / 3
    assert {line["outcome"] for line in running.proxy.log.lines} == {"completed"}


async def test_one_call_finds_out_whether_it_is_back() -> None:
    """The others go elsewhere until that one is answered, and none of them fails."""
    gate = asyncio.Event()

    async def slowly(exchange: Exchange, request: Request) -> None:
        await gate.wait()
        await speaking(TEXT)(exchange, request)

    back = Member(speaking(TEXT))
    async with fleet(back, speaking(TEXT), speaking(TEXT)) as (proxy, members):
        for _ in members:
            assert said(await proxy.ask(chat())) == TEXT
        assert back.server is not None
        await back.server.die()
        answers = await asyncio.gather(*(proxy.ask(chat(stream=True)) for _ in range(20)))
        assert {said(each) for each in answers} == {TEXT}
        server = server_named(proxy, "a")
        assert server.breaker.state == "open"
        asked = len(back.asked)

        await back.server.come_back()
        back.answering = slowly
        server.breaker.close()
        half_open(server)  # as it is when it has rested
        probing = [asyncio.create_task(proxy.ask(chat())) for _ in range(40)]
        await until(
            lambda: sum(each.done() for each in probing) == 39,
            "all but the probe were answered",
        )
        assert len(back.asked) == asked + 1
        gate.set()
        assert {said(await each) for each in probing} == {TEXT}
        assert server.breaker.state == "closed"

        answers = await asyncio.gather(*(proxy.ask(chat()) for _ in range(30)))
        assert {said(each) for each in answers} == {TEXT}
        assert len(back.asked) > asked + 5
        await at_rest(proxy)


async def test_one_that_is_back_begins_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes notice that it is gone and that it is there again; then it gets a small share."""
    for name in ("WELL_EVERY", "ILL_EVERY", "TICK"):
        monkeypatch.setattr(health, name, 0.02)
    calm: Answering = speaking(TEXT)
    async with fleet(calm, calm, calm) as (proxy, members):
        a = members[0]
        assert said(await proxy.ask(chat())) == TEXT
        assert a.server is not None
        await a.server.die()
        server = server_named(proxy, "a")
        await until(lambda: not server.up, "it was noticed that it is gone")
        before = len(a.asked)
        answers = await asyncio.gather(*(proxy.ask(chat()) for _ in range(20)))
        assert {each.header(b"x-llmproxy-attempts") for each in answers} == {b"1"}
        assert len(a.asked) == before

        await a.server.come_back()
        await until(lambda: bool(server.up), "it was noticed that it is back")
        assert server.breaker.state == "closed"
        assert server.weight < 0.5
        for _ in range(30):
            assert said(await proxy.ask(chat())) == TEXT
        assert 0 < len(a.asked) - before < 10
        await at_rest(proxy)
