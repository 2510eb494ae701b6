"""What only a call that does as it is told can show of the relay; the rest is in streaming/."""

import asyncio

from llmproxy.records import Clocks, Ending
from llmproxy.relay import COMMENT, FOR_EVER, Relay
from llmproxy.stalls import Stalls
from llmproxy.transport.interface import Silence
from llmproxy.types import Header, Message
from tests.support.builders import make_context


class SilentCall:
    """A stream of which nothing comes but its head."""

    status = 200
    headers: list[Header] = [(b"content-type", b"text/event-stream")]  # noqa: RUF012
    reused = False
    over = False

    async def read(self, within: float) -> bytes:
        await asyncio.sleep(within)
        raise Silence

    def close(self) -> None:
        """Nothing is open."""


async def test_a_comment_that_nobody_takes_is_a_send_like_any_other() -> None:
    """A client that stands still is noticed while we only tell it that we live, too."""
    stalls = Stalls(0.2)
    delivery = stalls.begin(watched=False)

    async def send(message: Message) -> None:
        if message.get("body") == COMMENT:
            await asyncio.Event().wait()

    relay = Relay(make_context(), SilentCall(), send, delivery, Clocks(comment=0.02))
    running = asyncio.create_task(
        relay.run(Ending.CHAT, first_byte_due=FOR_EVER, deadline=FOR_EVER)
    )
    delivery.task = running
    await asyncio.wait([running], timeout=5)
    stalls.close()

    assert running.cancelled()
    assert delivery.stalled
