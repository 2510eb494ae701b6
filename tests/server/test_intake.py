"""A client that sends its request in crumbs is read now and then, and loses nothing by it."""

import asyncio

import pytest

from llmproxy.server.intake import CRUMB, IN_CRUMBS, REST, Intake
from tests.server.apps import asking, hello
from tests.support.clock import pass_time


class Line(asyncio.Transport):
    """A transport that is read, or not."""

    def __init__(self) -> None:
        self.read = True
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert self.read, "paused twice"
        self.read = False

    def resume_reading(self) -> None:
        assert not self.read, "resumed although it was read"
        self.read = True


def intake() -> tuple[Intake, Line]:
    line = Line()
    return Intake(line, asyncio.get_running_loop()), line


async def trickle(taken: Intake, line: Line, seconds: float, *, size: int = 1) -> int:
    """Send ten times a second; returns how many reads that took."""
    reads = 0
    for _ in range(round(seconds * 10)):
        if line.read:
            taken.heard(size)
            reads += 1
        await pass_time(0.1)
    return reads


@pytest.mark.clock
async def test_crumbs_are_read_twice_a_second_at_most() -> None:
    """After half a second of them."""
    taken, line = intake()
    first = await trickle(taken, line, IN_CRUMBS)
    reads = await trickle(taken, line, 10)

    assert first == round(IN_CRUMBS * 10)
    assert 10 <= reads <= 10 / REST + 1


@pytest.mark.clock
async def test_whoever_sends_more_at_a_time_is_read_at_once() -> None:
    """And again after it has sent crumbs for long."""
    taken, line = intake()
    whole = await trickle(taken, line, 5, size=CRUMB)
    await trickle(taken, line, 5)
    taken.wake()
    again = await trickle(taken, line, 5, size=CRUMB)

    assert whole == again == 50


@pytest.mark.clock
async def test_a_client_that_seldom_says_a_word_is_not_made_to_rest() -> None:
    """To pause would cost more than to read it."""
    taken, line = intake()
    for _ in range(5):
        taken.heard(1)
        assert line.read
        await pass_time(1.0)


@pytest.mark.clock
async def test_each_request_begins_anew() -> None:
    """Small requests in two pieces, one after the other, are not one request in crumbs."""
    taken, line = intake()
    for _ in range(50):
        taken.request_begins()
        taken.heard(CRUMB - 1)
        assert line.read
        await pass_time(0.1)


@pytest.mark.clock
async def test_a_rest_and_a_slow_app_are_two_reasons() -> None:
    """Reading goes on when neither is left."""
    taken, line = intake()
    await trickle(taken, line, IN_CRUMBS)
    taken.heard(1)
    taken.pause()
    await pass_time(2 * REST)
    rested = line.read
    held_up = taken.resume()
    resumed = line.read
    taken.heard(1)
    taken.pause()
    taken.resume()
    at_rest = line.read
    await pass_time(2 * REST)

    assert not rested
    assert held_up >= 2 * REST
    assert resumed
    assert not at_rest
    assert line.read


@pytest.mark.clock
async def test_the_last_words_are_read_at_once() -> None:
    """What comes after a refusal is thrown away, and must not lie in the kernel."""
    taken, line = intake()
    await trickle(taken, line, IN_CRUMBS)
    taken.heard(1)
    assert not line.read
    taken.wake()
    awake = line.read
    await pass_time(2 * REST)

    assert awake


@pytest.mark.clock
async def test_nothing_happens_to_a_connection_that_is_gone() -> None:
    """Its timer is gone with it."""
    taken, line = intake()
    await trickle(taken, line, IN_CRUMBS)
    taken.heard(1)
    taken.close()
    line.closed = True
    await pass_time(2 * REST)

    assert not line.read


async def test_a_request_in_crumbs_arrives_whole() -> None:
    """Later than it could, to the byte."""
    app = hello()
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n"
    async with asking(app) as client:
        for byte in head + b"0123456789" * 2:
            client.send(bytes([byte]))
            await asyncio.sleep(0.02)
        answer = await client.answer()

    assert answer.status == 200
    assert app.bodies == [b"0123456789" * 2]
