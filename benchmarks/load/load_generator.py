"""Puts one workload on one subject and measures it, from a process of its own.

    python -m benchmarks.load.load_generator --port 8080 --workload '{"streams": 10, ...}'

During the run it only notes when which bytes came; they are read and verified afterwards, so
that checking costs nothing while it could disturb. One wrong byte voids the run.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, cast

import uvloop

from benchmarks.load import wire
from benchmarks.load.measurement import Measurement, Quantiles
from benchmarks.load.process_tree import ProcessTree, cpu_ns, waited_ns
from benchmarks.load.workloads import Streams, Unary, Workload

SETTLE = 0.15  # what a subject still does after the last byte (closing, logging) is its cost too
STREAM_PATIENCE = 60.0  # beyond the script; a subject that needs longer has not finished
UNARY_PATIENCE = 120.0
SHORTEST_STEADY_NS = 300_000_000

now = time.monotonic_ns


@dataclass(frozen=True, slots=True)
class Ledger:
    """Who pays: the processes whose clocks are read before and after."""

    subject: ProcessTree
    server: int

    def read(self) -> "Reading":
        own = os.getpid()
        server = cpu_ns(self.server) if self.server else 0
        return Reading(self.subject.cpu_ns(), server, cpu_ns(own), waited_ns(own))


class Reading(NamedTuple):
    """All clocks at one moment, in ns."""

    subject_cpu_ns: int
    server_cpu_ns: int
    generator_cpu_ns: int
    generator_waited_ns: int

    def since(self, earlier: "Reading") -> "Reading":
        return Reading(*(now - then for now, then in zip(self, earlier, strict=True)))


class StreamClient(asyncio.Protocol):
    """One connection with one stream: notes each read and its time."""

    def __init__(self, load: "StreamLoad", number: int) -> None:
        self.number = number
        self.asked_at = 0
        self.reads: list[tuple[int, bytes]] = []
        self._load = load
        self._begun = False
        self._ended = False
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by descent
        script = self._load.script
        self.asked_at = now()
        self._transport.write(
            wire.request(self.number, chunks=script.chunks, gap_ms=script.gap_ms, stream=True)
        )

    def data_received(self, data: bytes) -> None:
        self.reads.append((now(), data))
        if len(self.reads) == 1 and not data.startswith(b"HTTP/1.1 200"):
            self._transport.close()  # a refusal, which the check will report
        if not self._begun and b"data:" in data:
            self._begun = True
            self._load.begun()
        self._tail = data if len(data) > 4 else self._tail[-5:] + data
        if self._tail.endswith(wire.LAST_CHUNK):
            self._transport.close()
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._load.ended()


class StreamLoad:
    """Streams that open one after the other and are then all open at once."""

    def __init__(self, script: Streams, ledger: Ledger, *, weigh: bool) -> None:
        self.script = script
        self._ledger = ledger
        self._weigh = weigh
        self._to_begin = self._to_end = script.streams
        self._all_open = asyncio.Event()
        self._all_ended = asyncio.Event()
        self._opened: tuple[int, int] | None = None  # time, and CPU of the subject until then
        self._first_end: tuple[int, int] | None = None

    def begun(self) -> None:
        self._to_begin -= 1
        if not self._to_begin:
            self._opened = self._mark()
            self._all_open.set()

    def ended(self) -> None:
        if self._first_end is None:
            self._first_end = self._mark()
        self._to_end -= 1
        if not self._to_end:
            self._all_open.set()  # or never, but then nobody need wait for it any more
            self._all_ended.set()

    def _mark(self) -> tuple[int, int]:
        return now(), self._ledger.subject.cpu_ns()

    async def run(self, port: int) -> Measurement:
        script = self.script
        first = random.randrange(10_000_000, 90_000_000)  # a cache must not know our questions
        clients = [StreamClient(self, first + i) for i in range(script.streams)]
        before, started = self._ledger.read(), now()
        opened = await _open(clients, port, script.ramp_ms)
        memory = 0
        if self._weigh:
            await self._all_open.wait()
            memory = await asyncio.to_thread(self._ledger.subject.memory)
        await self._all_ended.wait()
        wall = now() - started
        await asyncio.sleep(SETTLE)
        used = self._ledger.read().since(before)
        del opened

        times = [check(client, script) for client in clients]
        steady_cpu_ns, steady_units = self._steady_part(times)
        return Measurement(
            units=script.units,
            script_ns=int(script.script_seconds * 1e9),
            wall_ns=wall,
            subject_cpu_ns=used.subject_cpu_ns,
            server_cpu_ns=used.server_cpu_ns,
            generator_cpu_ns=used.generator_cpu_ns,
            generator_waited_ns=used.generator_waited_ns,
            quantiles={
                "first_token": Quantiles.of(
                    [t.arrived[0] - c.asked_at for c, t in zip(clients, times, strict=True)]
                ),
                "transit": Quantiles.of(
                    [a - s for t in times for a, s in zip(t.arrived, t.sent, strict=True)]
                ),
                "gap": Quantiles.of([abs(d) for t in times for d in _stretches(t)]),
            },
            steady_cpu_ns=steady_cpu_ns,
            steady_units=steady_units,
            memory=memory if steady_units else 0,
        )

    def _steady_part(self, times: list[wire.StreamTimes]) -> tuple[int, int]:
        """CPU and chunks between the moment all streams were open and the first one's end."""
        if self._opened is None or self._first_end is None:
            return 0, 0
        (start, cpu_before), (end, cpu_after) = self._opened, self._first_end
        if end - start < SHORTEST_STEADY_NS:
            return 0, 0
        chunks = sum(start <= arrived < end for t in times for arrived in t.arrived)
        return cpu_after - cpu_before, chunks


class UnaryClient(asyncio.Protocol):
    """One connection that asks, waits for the whole answer, and asks again."""

    def __init__(self, numbers: range) -> None:
        self.answers: list[tuple[int, bytes]] = []  # how long each took, and what it was
        self.numbers = numbers
        self.finished = asyncio.get_running_loop().create_future()
        self._requests: Iterator[bytes] = iter([wire.request(number) for number in numbers])
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by descent
        self._ask(next(self._requests))

    def _ask(self, request: bytes) -> None:
        self._asked_at = now()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._held = self._held + data if self._held else data
        if wire.is_complete(self._held):
            self.answers.append((now() - self._asked_at, self._held))
            self._held = b""
            if (request := next(self._requests, None)) is not None:
                self._ask(request)
            else:
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self.finished.set_result(None)


async def run_unary(script: Unary, ledger: Ledger, port: int) -> Measurement:
    """All connections at once, each as fast as its answers come."""
    first = random.randrange(10_000_000, 90_000_000)
    clients = [
        UnaryClient(range(first + i * script.requests, first + (i + 1) * script.requests))
        for i in range(script.connections)
    ]
    before, started = ledger.read(), now()
    opened = await _open(clients, port, 0)
    await asyncio.gather(*(client.finished for client in clients))
    wall = now() - started
    await asyncio.sleep(SETTLE)
    used = ledger.read().since(before)
    del opened

    for client in clients:
        if len(client.answers) != script.requests:
            raise wire.WrongAnswerError(
                f"a connection was closed after {len(client.answers)} of {script.requests} answers"
            )
        for number, (_, answer) in zip(client.numbers, client.answers, strict=True):
            wire.check_answer(answer, number)
    return Measurement(
        units=script.units,
        wall_ns=wall,
        subject_cpu_ns=used.subject_cpu_ns,
        server_cpu_ns=used.server_cpu_ns,
        generator_cpu_ns=used.generator_cpu_ns,
        generator_waited_ns=used.generator_waited_ns,
        quantiles={"latency": Quantiles.of([took for c in clients for took, _ in c.answers])},
    )


def check(client: StreamClient, script: Streams) -> wire.StreamTimes:
    return wire.check_stream(client.reads, client.number, script.chunks, script.gap_ms)


def _stretches(times: wire.StreamTimes) -> Iterator[int]:
    """How much longer (or shorter) each gap was at the client than at the model server."""
    transits = [a - s for a, s in zip(times.arrived, times.sent, strict=True)]
    return (later - earlier for earlier, later in pairwise(transits))


async def _open(
    clients: list[StreamClient] | list[UnaryClient], port: int, ramp_ms: int
) -> list[asyncio.Task[object]]:
    """Open the connections on schedule; the tasks are kept alive by whoever holds the list."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    opening: list[asyncio.Task[object]] = []
    for place, client in enumerate(clients):
        if (wait := start + place * ramp_ms / 1000 - loop.time()) > 0:
            await asyncio.sleep(wait)
        connecting = loop.create_connection(lambda c=client: c, "127.0.0.1", port)  # type: ignore[misc]
        opening.append(asyncio.ensure_future(connecting))
    for task in opening:
        await task
    return opening


async def measure(workload: Workload, ledger: Ledger, port: int, *, weigh: bool) -> Measurement:
    """Run a workload once; whatever goes wrong makes the measurement void and says why."""
    if isinstance(workload, Streams):
        run = StreamLoad(workload, ledger, weigh=weigh).run(port)
        patience = STREAM_PATIENCE + workload.script_seconds
    else:
        run = run_unary(workload, ledger, port)
        patience = UNARY_PATIENCE
    try:
        async with asyncio.timeout(patience):
            return await run
    except TimeoutError:
        problem = f"not finished after {patience:.0f} s"
    except (wire.WrongAnswerError, ValueError, OSError) as exc:
        problem = f"{type(exc).__name__}: {exc}"
    return Measurement(units=workload.units, problem=problem)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workload", type=json.loads, required=True, help="fields as JSON")
    parser.add_argument("--subject-pid", type=int, default=0)
    parser.add_argument("--server-pid", type=int, default=0)
    parser.add_argument("--weigh", action="store_true", help="read the subject's memory")
    args = parser.parse_args()
    kind = Streams if "streams" in args.workload else Unary
    ledger = Ledger(ProcessTree(args.subject_pid), args.server_pid)
    gc.disable()  # a collection would be seen as a late chunk
    measured = uvloop.run(measure(kind(**args.workload), ledger, args.port, weigh=args.weigh))
    print(json.dumps(measured.to_json()))


if __name__ == "__main__":
    main()
