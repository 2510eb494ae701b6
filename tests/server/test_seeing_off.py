"""A client that leaves: its server is let go first, and its request is ended in its turn.

Here nobody's turn comes before the test says so.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from llmproxy.server.departures import Departures, Leaver
from llmproxy.types import Receive, Scope, Send, watched
from tests.server.apps import GET, body, start
from tests.server.test_tls_endings import asking_over_tls
from tests.support.calls import eventually, settle
from tests.support.client import RawClient
from tests.support.fleet import Answering, Member, breaking, dropping, event, fleet, speaking
from tests.support.outside import TEXT, at_rest, chat, in_order, said
from tests.support.rig import Rig, proxied
from tests.support.tls import Authority
from tests.support.upstream import Exchange, Request, scripted, taking

UPLOAD = (
    b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
    b"Content-Type: audio/wav\r\n\r\n" + b"x" * 20_000
)


CHUNKED = (
    b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Type: audio/wav\r\n\r\n4\r\nwhat\r\n"
)


class Endless:
    """Begins an answer and wants to be cancelled when the client leaves."""

    cancelled = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = watched(scope)
        assert exchange is not None
        exchange.cancel_when_gone(True)
        await send(start())
        await send(body(b"a", more=True))
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class Waiting(list[Leaver]):
    """Whoever has left and is not seen off."""

    async def come(self, count: int = 1) -> None:
        await eventually(lambda: len(self) == count, f"{count} have left")

    def see_off(self) -> None:
        """Let their turn come."""
        while self:
            self.pop(0).cancel()


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    """Whoever is to be seen off, for which the test has to care."""
    kept = Waiting()

    def add(_: Departures, leaver: Leaver) -> None:
        leaver.let_go()
        kept.append(leaver)

    monkeypatch.setattr(Departures, "add", add)
    return kept


async def nothing(exchange: Exchange, request: Request) -> None:
    await exchange.closed()


async def a_head(exchange: Exchange, request: Request) -> None:
    exchange.begin()
    await exchange.closed()


async def a_token(exchange: Exchange, request: Request) -> None:
    exchange.begin()
    exchange.chunk(event({"content": "The"}))
    await exchange.closed()


async def a_role(exchange: Exchange, request: Request) -> None:
    exchange.begin()
    exchange.chunk(event({"role": "assistant", "content": ""}))
    await exchange.closed()


async def tokens(exchange: Exchange, request: Request) -> None:
    exchange.begin()
    while not exchange.ended:
        exchange.chunk(event({"content": "The"}))
        await asyncio.sleep(0.001)
    await exchange.closed()


PHASES: dict[str, tuple[bytes, Answering]] = {
    "before the head of a stream": (chat(stream=True), nothing),
    "before the head of a whole answer": (chat(), nothing),
    "after the head": (chat(stream=True), a_head),
    "in a silent gap": (chat(stream=True), a_token),
    "between tokens": (chat(stream=True), tokens),
}
LEAVING: dict[str, Callable[[RawClient], None]] = {
    "fin": RawClient.close,
    "rst": RawClient.reset,
    "half_close": RawClient.half_close,
}


async def asked(client: RawClient, member: Member, request: bytes) -> Exchange:
    """Ask, and return the exchange with the server once all has come that will."""
    client.send(request)
    await eventually(lambda: bool(member.asked), "the server was asked")
    if member.answering in (a_token, tokens):
        await client.anything()
    await settle()
    assert member.server is not None
    return next(each for each in member.server.exchanges if member.asked[0] in each.requests)


def attempts(proxy: Rig, result: str) -> float:
    return proxy.sample("upstream_attempts_total", upstream="a", result=result)


@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING)
@pytest.mark.parametrize(("request_", "answering"), PHASES.values(), ids=PHASES)
async def test_the_server_does_not_wait_for_its_turn(
    request_: bytes, answering: Answering, leave: Callable[[RawClient], None], waiting: Waiting
) -> None:
    """Its connection is closed first; then the request ends as the client's doing, and once.

    That the connection is gone is no failure of the server: nobody else is asked.
    """
    async with fleet(answering, speaking(TEXT)) as (proxy, (a, b)):
        async with proxy.client() as client:
            exchange = await asked(client, a, request_)
            leave(client)
            await exchange.closed()
            await settle()
            before = list(proxy.log.lines)
            inflight = proxy.sample("upstream_inflight", upstream="a")
            await waiting.come()
            waiting.see_off()
            line = await proxy.log.line()
        await at_rest(proxy)

        assert before == []
        assert inflight == 1
        assert (line["status"], line["code"], line["attempts"]) == (499, "client_gone", 1)
        assert len(proxy.log.lines) == 1
        assert attempts(proxy, "cancelled") == 1
        assert attempts(proxy, "upstream_broken") == 0
        assert b.asked == []


async def test_for_who_has_left_nobody_else_is_asked(waiting: Waiting) -> None:
    """Its first token is late before its turn has come, and nobody waits for one any more."""
    async with fleet(a_role, speaking(TEXT), first_token_limit=0.3) as (proxy, (a, b)):
        async with proxy.client() as client:
            exchange = await asked(client, a, chat(stream=True))
            client.close()
            await exchange.closed()
            await waiting.come()
            line = await proxy.log.line()
            waiting.see_off()
        await at_rest(proxy)

        assert (line["status"], line["code"], line["attempts"]) == (499, "client_gone", 1)
        assert len(proxy.log.lines) == 1
        assert b.asked == []


async def test_an_upload_ends_with_its_client(waiting: Waiting) -> None:
    """Half of it is out, and the other half will not come: that is no failure of the server."""
    pieces: list[bytes] = []
    async with scripted(taking(pieces)) as server, proxied(server.upstream) as proxy:
        async with proxy.client() as client:
            client.send(UPLOAD)
            await eventually(lambda: bool(pieces), "the server got a piece")
            client.close()
            await (await server.reached()).closed()
            await waiting.come()
            waiting.see_off()
            line = await proxy.log.line()

        assert (line["status"], line["code"], line["attempts"]) == (499, "client_gone", 1)
        assert len(proxy.log.lines) == 1


async def test_who_leaves_in_its_body_is_seen_off_too(waiting: Waiting) -> None:
    """Five hundred requests that end in one turn of the loop would keep everybody else waiting."""
    async with fleet(nothing) as (proxy, (a,)):
        async with proxy.client() as client:
            client.send(chat()[:-1])
            await eventually(lambda: proxy.sample("inflight_requests") == 1, "it is there")
            client.close()
            await waiting.come()
            await settle()
            before = list(proxy.log.lines)
            waiting.see_off()
            line = await proxy.log.line()
        await at_rest(proxy)

        assert before == []
        assert (line["status"], line["code"], a.asked) == (499, "client_gone", [])


async def test_who_is_refused_in_its_upload_may_read_that(waiting: Waiting) -> None:
    """It has not gone: that its request is ended is no reason to close behind it."""
    pieces: list[bytes] = []
    async with (
        scripted(taking(pieces)) as server,
        proxied(server.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(CHUNKED)
        await eventually(lambda: bool(pieces), "the server got a piece")
        client.send(b"nonsense\r\n")
        await (await server.reached()).closed()
        await waiting.come()
        waiting.see_off()
        await proxy.log.line()
        for _ in range(3):
            client.send(b"still sending")
            await settle()
        answer = await client.answer()
        torn_down = client.lost

    assert answer.status == 400
    assert not torn_down


async def test_who_is_refused_before_its_request_runs_is_not_taken_for_stopped() -> None:
    """Its body is malformed in the very read that brings its head: it is cancelled once, and not
    as if somebody else had wanted that, too."""

    async def engine(exchange: Exchange) -> None:
        await exchange.request()

    async with (
        scripted(engine) as server,
        proxied(server.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(CHUNKED + b"nonsense\r\n")
        answer = await client.answer()
        line = await proxy.log.line()

    assert answer.status == 400
    assert (line["status"], line["outcome"]) == (499, "client_gone")


async def test_who_asked_twice_leaves_the_second_server() -> None:
    """It is the one that works for the request, and not the first one asked."""
    async with fleet(dropping, nothing) as (proxy, (a, b)):
        async with proxy.client() as client:
            exchange = await asked(client, b, chat(stream=True))
            client.close()
            await exchange.closed()
            line = await proxy.log.line()
        await at_rest(proxy)

        assert (line["status"], line["attempts"], len(a.asked)) == (499, 2, 1)


async def test_the_second_of_two_servers_does_not_wait(waiting: Waiting) -> None:
    """Nor does the one that goes on with a stream which another has broken off."""
    async with fleet(breaking("The quick", Exchange.reset), nothing) as (proxy, (_, b)):
        async with proxy.client() as client:
            exchange = await asked(client, b, chat(stream=True))
            client.close()
            await exchange.closed()
            await waiting.come()
            waiting.see_off()
            line = await proxy.log.line()
        await at_rest(proxy)

        assert (line["status"], line["attempts"]) == (499, 2)


async def test_nobody_else_gets_the_connection(waiting: Waiting) -> None:
    """Who asks meanwhile is answered, on another one."""
    async with fleet(in_order(nothing, speaking(TEXT))) as (proxy, (a,)):
        async with proxy.client() as client:
            exchange = await asked(client, a, chat(stream=True))
            client.close()
            await waiting.come()
            answer = await proxy.ask(chat())
            waiting.see_off()
            await proxy.log.line(2)
        await at_rest(proxy)

        assert said(answer) == TEXT
        assert len(exchange.requests) == 1
        assert [each["status"] for each in proxy.log.lines] == [200, 499]


async def test_a_place_is_given_up_at_the_end(waiting: Waiting) -> None:
    """Of a server that takes one request at a time, the next is asked when all is settled."""
    alone = Member(in_order(nothing, speaking(TEXT)), options=";max_inflight=1")
    async with fleet(alone) as (proxy, (a,)):
        async with proxy.client() as client:
            exchange = await asked(client, a, chat(stream=True))
            following = asyncio.create_task(proxy.ask(chat()))
            await eventually(lambda: proxy.sample("inflight_requests") == 2, "two are there")
            client.close()
            await exchange.closed()
            await settle()
            before = len(a.asked)
            waiting.see_off()
            answer = await following
        await at_rest(proxy)

        assert (before, len(a.asked)) == (1, 2)
        assert said(answer) == TEXT


async def test_a_whole_answer_is_not_disturbed(waiting: Waiting) -> None:
    """Who leaves with it costs no connection to the server."""
    async with fleet(speaking(TEXT)) as (proxy, (a,)):
        answers = []
        for _ in range(3):
            async with proxy.client() as client:
                client.send(chat(stream=True))
                answers.append(await client.answer())
                client.close()
                await client.gone()
        await at_rest(proxy)
        assert a.server is not None

        assert [said(each) for each in answers] == [TEXT] * 3
        assert a.server.open == a.server.accepted
        assert waiting == []


async def test_its_own_connection_is_closed_in_its_turn(waiting: Waiting) -> None:
    """To close those of hundreds takes as long as to let their servers go, and nobody waits."""
    async with fleet(nothing) as (proxy, (a,)):
        async with proxy.client() as client:
            exchange = await asked(client, a, chat(stream=True))
            client.half_close()
            await exchange.closed()
            await settle()
            before = client.ended
            await waiting.come()
            waiting.see_off()
            await client.closed()

        assert not before


async def test_over_tls_nothing_is_left_half_open(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It knows no half-close, and the event loop complains of who asks for one."""
    app = Endless()
    async with asking_over_tls(app, authority, tmp_path) as client:
        client.send(GET)
        await client.head()
        client.close()
        await eventually(lambda: app.cancelled == 1, "it was cancelled")

    assert caplog.records == []
