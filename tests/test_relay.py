"""What only a call that does as it is told can show of the relay; the rest is in streaming/."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from llmproxy.keeping import Keeping
from llmproxy.protocol.comments import KEEP_ALIVE
from llmproxy.protocol.stream_tail import KEEP, MOST_CHUNKS
from llmproxy.records import Clocks, Ending
from llmproxy.relay import Relay
from llmproxy.routing.kept import KeptStream, Room
from llmproxy.stalls import Stalls
from llmproxy.time_left import FOR_EVER
from llmproxy.transport.interface import Silence, Taker
from llmproxy.types import Header, Message, Writer
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

    def at_once(self) -> bytes | None:
        return None

    async def flow(self, sink: Taker, within: float, at_most: float) -> bool:
        return True

    def close(self) -> None:
        """Nothing is open."""


async def test_a_comment_that_nobody_takes_is_a_send_like_any_other() -> None:
    """A client that stands still is noticed while we only tell it that we live, too."""
    stalls = Stalls(0.2)
    delivery = stalls.begin(watched=False)

    async def send(message: Message) -> None:
        if message.get("body") == KEEP_ALIVE:
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


class Dripping(SilentCall):
    """A stream whose pieces are handed on, one at a time."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces
        self.first = True

    async def read(self, within: float) -> bytes:
        if self.first:
            self.first = False
            return b"data: 1\n\n"
        self.over = True
        return b"data: [DONE]\n\n"

    async def flow(self, sink: Taker, within: float, at_most: float) -> bool:
        await asyncio.sleep(0)
        while self.left > 0:
            self.left -= 1
            if not sink(b"data: 2\n\n"):
                return False
        return True


class Narrow(Writer):
    """A client that takes one piece, and the next when it is told to."""

    def __init__(self) -> None:
        self.written = 0
        self.takes_more = asyncio.Event()
        self.waited_for = asyncio.Event()

    async def send(self, message: Message) -> None:
        """Take what is sent in the usual way."""

    def write(self, body: bytes) -> bool:
        self.written += 1
        self.takes_more.clear()
        return False

    async def room(self) -> None:
        self.waited_for.set()
        await self.takes_more.wait()
        self.waited_for.clear()


async def test_nothing_is_written_to_a_client_that_has_no_room() -> None:
    """However slowly the pieces come: each of them would wait in our memory."""
    client = Narrow()
    delivery = Stalls(0).begin(watched=True)
    relay = Relay(make_context(), Dripping(3), client.send, delivery, Clocks())
    running = asyncio.create_task(
        relay.run(Ending.CHAT, first_byte_due=FOR_EVER, deadline=FOR_EVER)
    )
    for number in (1, 2, 3):
        await asyncio.wait_for(client.waited_for.wait(), 5)
        for _ in range(10):
            await asyncio.sleep(0)
        assert client.written == number
        client.takes_more.set()
        client.waited_for.clear()
    client.takes_more.set()
    await asyncio.wait_for(running, 5)


class Whole(SilentCall):
    """An answer that has come with its head."""

    headers: list[Header] = [(b"content-type", b"application/json"), (b"server", b"engine")]  # noqa: RUF012

    def at_once(self) -> bytes | None:
        self.over = True
        return b"{}"

    async def read(self, within: float) -> bytes:
        return b"" if self.over else self.at_once() or b""


class Direct(Narrow):
    """A client that takes a whole answer, and has no room behind it."""

    def takes_whole(self, status: int) -> bool:
        return True

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Message] = []
        self.taken: list[object] = []

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    def begin(self, status: int, headers: list[Header], lines: bytes = b"") -> None:
        self.taken += [status, headers]

    def end(self, body: bytes) -> bool:
        self.taken.append(body)
        return False


class Wrapped(Direct):
    """One who wants each message."""

    def takes_whole(self, status: int) -> bool:
        return False


async def test_an_answer_that_is_there_goes_out_at_once() -> None:
    """Without a message, with the same head; and whoever sends it waits for room."""
    client, ctx, delivery = Direct(), make_context(status=None), Stalls(0).begin(watched=True)
    relay = Relay(ctx, Whole(), client.send, delivery, Clocks())
    running = asyncio.create_task(
        relay.run(Ending.CHAT, first_byte_due=FOR_EVER, deadline=FOR_EVER)
    )
    await asyncio.wait_for(client.waited_for.wait(), 5)
    assert not running.done()
    assert delivery.sending
    client.takes_more.set()
    await asyncio.wait_for(running, 5)

    assert client.taken == [200, [(b"content-type", b"application/json")], b"{}"]
    assert client.messages == []
    assert ctx.chunks == 1
    assert ctx.first_byte_at is not None


async def test_a_layer_that_wants_messages_gets_them() -> None:
    """Also of an answer that is there as a whole."""
    client = Wrapped()
    delivery = Stalls(0).begin(watched=True)
    relay = Relay(make_context(), Whole(), client.send, delivery, Clocks())
    await asyncio.wait_for(relay.run(Ending.CHAT, first_byte_due=FOR_EVER, deadline=FOR_EVER), 5)

    assert client.taken == []
    assert [message.get("body") for message in client.messages] == [None, b"{}"]


class Pieces(Dripping):
    """A stream that comes in these pieces, all of them handed on."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__(0)
        self.pieces = pieces

    async def flow(self, sink: Taker, within: float, at_most: float) -> bool:
        while self.pieces:
            sink(self.pieces.pop(0))
        return True


class Taking(Direct):
    """A client that takes everything."""

    def write(self, body: bytes) -> bool:
        self.taken.append(body)
        return True

    async def room(self) -> None:
        """There is always room."""


class Begun(Keeping):
    """What stands for a client of which the stream is kept."""

    async def send(self, message: Message) -> None:
        """Take what is sent in the usual way."""


EVENTS = [
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n',
    b": a comment\n\n",
    b'data: {"usage":{}}\r\n\r\n',
    b'data: {"choices":[{"delta":{"content":"\\"error\\""}}]}\n\n',
]


@st.composite
def pieces_of_events(draw: st.DrawFn) -> list[bytes]:
    """Return a stream as it may come: most events whole, some in two pieces."""
    pieces: list[bytes] = []
    for event in draw(st.lists(st.sampled_from(EVENTS), min_size=1)):
        cut = draw(st.sampled_from([0, 0, len(event) // 2, len(event) - 1]))
        pieces += [event[:cut], event[cut:]] if cut else [event]
    return pieces


@given(pieces_of_events())
async def test_a_stream_is_kept_as_the_client_gets_it(pieces: list[bytes]) -> None:
    """Whole events, however they come; what nothing is to be done to is kept without asking."""
    client, kept, ctx = Taking(), KeptStream(Room()), make_context()
    delivery = Stalls(0).begin(watched=True)
    relay = Relay(ctx, Pieces(list(pieces)), Begun(kept, client).send, delivery, Clocks())
    await relay.run(Ending.CHAT, first_byte_due=FOR_EVER, deadline=FOR_EVER)

    passed = [each for each in client.taken if isinstance(each, bytes)]
    assert b"".join(passed) == b"".join(pieces)
    assert all(each.endswith((b"\n\n", b"\r\n\r\n")) for each in passed)
    assert kept.delivered() == b"".join(pieces)
    assert ctx.chunks == len(pieces) + 2
    assert ctx.tail is not None and ctx.tail.finished()
    assert all(piece in ctx.tail.last(KEEP) for piece in pieces[-MOST_CHUNKS:])


async def test_what_is_kept_beside_the_way_is_bounded_too() -> None:
    """What is over the bound passes, and the room is given back."""
    room = Room(most=len(EVENTS[0]) * 5)
    client, kept = Taking(), KeptStream(room)
    delivery = Stalls(0).begin(watched=True)
    call = Pieces([EVENTS[0]] * 10)
    relay = Relay(make_context(), call, Begun(kept, client).send, delivery, Clocks())
    await relay.run(Ending.CHAT, first_byte_due=FOR_EVER, deadline=FOR_EVER)

    assert client.taken == [EVENTS[0]] * 10
    assert not kept.whole
    assert room.used == 0 and not kept.parts
