"""The clients of a trial: they ask through the proxy, wait, and note how long that took."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

from benchmarks.load.wire import DONE
from benchmarks.routing.traffic import Question, Talk

HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"x-session-id: %b\r\ncontent-length: %d\r\n\r\n"
)
LINE = 1 << 20  # bytes of a line at most

NewTalk = Callable[[], Talk]


class WrongAnswer(Exception):
    """An answer that was not what a server says."""


@dataclass(slots=True)
class Seen:
    """What the clients saw: when each request was asked, begun and answered."""

    times: list[tuple[float, float, float]] = field(default_factory=list)

    def answered(self, since: float, until: float) -> int:
        """How many answers ended in a time."""
        return sum(since <= end < until for _, _, end in self.times)

    def first_tokens(self, since: float, until: float) -> list[float]:
        """Seconds to the first token of those that were asked in a time."""
        return [first - asked for asked, first, _ in self.times if since <= asked < until]


class Client:
    """One connection that is kept."""

    def __init__(self, port: int, seen: Seen) -> None:
        self._port = port
        self._seen = seen
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, question: Question) -> None:
        """Ask, and note in the question what was answered."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=LINE)
        reader, writer = self._streams
        body = question.body()
        asked = time.monotonic()
        writer.write(HEAD % (question.session.encode(), len(body)) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise WrongAnswer(head.decode("latin-1"))
        chunk = await _chunk(reader)
        first = time.monotonic()
        stream = b""
        while chunk:
            stream += chunk
            chunk = await _chunk(reader)
        self._seen.times.append((asked, first, time.monotonic()))
        if not stream.endswith(DONE):
            raise WrongAnswer(stream[-200:].decode("latin-1"))
        question.answer = _text_in(stream)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    size = int(await reader.readuntil(b"\r\n"), 16)
    return (await reader.readexactly(size + 2))[:-2]


def _text_in(stream: bytes) -> str:
    events = stream.removesuffix(DONE).split(b"\n\n")
    said = [orjson.loads(event.removeprefix(b"data: ")) for event in events if event]
    return "".join(each["choices"][0]["delta"]["content"] for each in said)


async def closed_loop(port: int, clients: int, seconds: float, talk: NewTalk) -> Seen:
    """Have so many clients ask without a pause, one conversation after the other."""
    seen = Seen()
    until = time.monotonic() + seconds

    async def one() -> None:
        client = Client(port, seen)
        while True:
            for question in talk():
                await client.ask(question)
                if time.monotonic() >= until:
                    client.close()
                    return

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(one())
    return seen


async def open_loop(
    port: int, rate: float, seconds: float, talk: NewTalk, draw: random.Random
) -> Seen:
    """Ask when the time has come (Poisson), however many are still waiting."""
    seen = Seen()
    idle: list[Client] = []

    async def one() -> None:
        client = idle.pop() if idle else Client(port, seen)
        for question in talk():
            await client.ask(question)
        idle.append(client)

    began = due = time.monotonic()
    async with asyncio.TaskGroup() as group:
        while (due := due + draw.expovariate(rate)) < began + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(one())
    for client in idle:
        client.close()
    return seen
