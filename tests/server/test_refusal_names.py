"""A refusal has a name by which it can be asked for, whoever says no."""

import logging
import re

import pytest

from llmproxy.types import Receive, Scope, Send
from tests.server.apps import GET, asking
from tests.support.calls import settle
from tests.support.client import request_bytes
from tests.support.rig import proxied
from tests.support.upstream import json_answer, scripted

NAME = re.compile(rb"[0-9a-f]{32}")
TWO_HOSTS = b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"


async def test_the_name_of_a_head_that_nobody_read_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At the level that is chosen for looking closely; each has another."""
    async with scripted(json_answer({})) as engine, proxied(engine.upstream) as proxy:
        with caplog.at_level(logging.DEBUG, "llmproxy.server"):
            answers = [await proxy.ask(TWO_HOSTS) for _ in range(2)]

    names = [answer.header(b"x-request-id") for answer in answers]
    logged = [getattr(record, "request_id", "").encode() for record in caplog.records]
    assert len(set(names)) == 2
    assert all(name is not None and NAME.fullmatch(name) for name in names)
    assert [name for name in logged if name] == names


async def test_a_request_that_has_a_name_keeps_it() -> None:
    """One that breaks half way through its body is found in the log of requests by it."""
    headers = [(b"transfer-encoding", b"chunked"), (b"x-request-id", b"mine-1")]
    async with (
        scripted(json_answer({})) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(request_bytes(headers=headers, body=b"5\r\nhello\r\n"))
        await settle()
        client.send(b"nonsense\r\n")
        answer = await client.answer()
        line = await proxy.log.line()

    assert answer.status == 400
    assert answer.header(b"x-request-id") == b"mine-1"
    assert line["request_id"] == "mine-1"


async def test_an_app_that_says_nothing_is_given_one_too() -> None:
    """The server answers in its place."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        return

    async with asking(app) as client:
        client.send(GET)
        answer = await client.answer(to=b"GET")

    assert answer.status == 500
    assert NAME.fullmatch(answer.header(b"x-request-id") or b"")
