"""Modelled engines on sockets, all in one process.

    python -m benchmarks.routing.fleet --engines 8 --slow 1 --pace 4

It prints the ports they listen on. Each speaks vLLM's dialect: chat, `/v1/models`, `/health` and
`/metrics`; `/work` tells what it has done so far. The first token of an answer is an event of its
own and the rest follows as one at the end: where a request goes, not what a chunk costs, is
measured here.
"""

import argparse
import asyncio
import gc
from dataclasses import asdict
from typing import cast

import orjson
import uvloop

from benchmarks.load.wire import DONE, LAST_CHUNK, framed
from benchmarks.routing.engine import Build, Engine, Sequence, Step
from benchmarks.routing.kv_cache import TOKEN

MODEL = "bench"
CHAT = b"/v1/chat/completions"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
HEAD = b"HTTP/1.1 %d OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
METRICS = (
    b'vllm:num_requests_running{engine="0",model_name="bench"} %d.0\n'
    b'vllm:num_requests_waiting{engine="0",model_name="bench"} %d.0\n'
    b'vllm:kv_cache_usage_perc{engine="0",model_name="bench"} %f\n'
)
MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm"}]}


class Driver:
    """Drives one engine by the clock of the machine, so many times as fast."""

    def __init__(self, engine: Engine, pace: float) -> None:
        self.engine = engine
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._askers: dict[Sequence, Connection] = {}
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, sequence: Sequence, asker: "Connection") -> None:
        self._askers[sequence] = asker
        self._go_on()
        self.engine.ask(sequence, self._now())
        self._set()

    def _now(self) -> float:
        return self._loop.time() * self._pace

    def _go_on(self) -> None:
        for event in self.engine.until(self._now()):
            if event.step is Step.FIRST_TOKEN:
                self._askers[event.sequence].begin(event.sequence)
            else:
                self._askers.pop(event.sequence).end(event.sequence)

    def _set(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self.engine.due()
        self._timer = None if due is None else self._loop.call_at(due / self._pace, self._tick)

    def _tick(self) -> None:
        self._go_on()
        self._set()


class Connection(asyncio.Protocol):
    """One keep-alive connection: a request, its answer, the next request.

    Nobody hangs up in these trials before he has his answer.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._held += data
        head, ended, rest = self._held.partition(b"\r\n\r\n")
        if not ended:
            return
        fields = head.lower().partition(b"content-length:")[2]
        length = int(fields.partition(b"\r\n")[0] or 0)
        if len(rest) >= length:
            self._held = rest[length:]
            self._answer(head.split(b" ", 2)[1], rest[:length])

    def begin(self, sequence: Sequence) -> None:
        self._transport.write(STREAM_HEAD + framed(_event(sequence.answer[:TOKEN])))

    def end(self, sequence: Sequence) -> None:
        rest = _event(sequence.answer[TOKEN:], last=True)
        self._transport.write(framed(rest) + framed(DONE) + LAST_CHUNK)

    def _answer(self, target: bytes, body: bytes) -> None:
        engine = self._driver.engine
        match target:
            case b"/v1/chat/completions":
                self._driver.ask(_sequence(body), self)
            case b"/v1/models":
                self._send(orjson.dumps(MODELS))
            case b"/health":
                self._send(b"")
            case b"/metrics":
                page = METRICS % (engine.running, engine.waiting, engine.kv_use)
                self._send(page, b"text/plain; version=0.0.4")
            case b"/work":
                self._send(orjson.dumps(asdict(engine.work)))
            case _:
                self._send(b'{"error":{"message":"not found"}}', status=404)

    def _send(self, body: bytes, kind: bytes = b"application/json", status: int = 200) -> None:
        self._transport.write(HEAD % (status, kind, len(body)) + body)


def _sequence(body: bytes) -> Sequence:
    """Return what a chat comes to: the text that its template makes, and an answer."""
    asked = orjson.loads(body)
    told = "".join(f"<|{each['role']}|>{each['content']}" for each in asked["messages"])
    prompt = f"{told}<|assistant|>".encode()
    # Its own words, as no other prompt would be answered.
    word = b"%015x " % (hash(prompt) & 0xFFFFFFFFFFFFFFF)
    size = asked["max_tokens"] * TOKEN
    return Sequence(prompt, (word * (size // len(word) + 1))[:size])


def _event(text: bytes, *, last: bool = False) -> bytes:
    choice = {
        "index": 0,
        "delta": {"content": text.decode()},
        "finish_reason": "stop" if last else None,
    }
    event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": MODEL}
    return b"data: %b\n\n" % orjson.dumps({**event, "choices": [choice]})


async def serve(engines: int, slow: int, times: float, pace: float) -> None:
    loop = asyncio.get_running_loop()
    ports: list[str] = []
    for number in range(engines):
        build = Build() if number >= slow else Build().slower(times)
        driver = Driver(Engine(build), pace)
        server = await loop.create_server(
            lambda driver=driver: Connection(driver),  # type: ignore[misc]
            "127.0.0.1",
            0,
            backlog=1024,
        )
        ports.append(str(server.sockets[0].getsockname()[1]))
    print(*ports, flush=True)
    gc.freeze()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--engines", type=int, default=8)
    add("--slow", type=int, default=0, help="so many of them are slower")
    add("--times", type=float, default=4.0, help="than the others")
    add("--pace", type=float, default=1.0, help="seconds of the model in one of the clock")
    given = parser.parse_args()
    uvloop.run(serve(given.engines, given.slow, given.times, given.pace))


if __name__ == "__main__":
    main()
