"""Each micro benchmark does what it is measured for. Times are nobody's business here."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.micro.__main__ import main
from benchmarks.micro.measuring import QUICK, WorkNotDoneError, measure
from benchmarks.micro.messages import (
    ANSWER,
    ANSWER_BYTES,
    CHUNK,
    LAST_CHUNK,
    QUESTION,
    STREAM_HEADERS,
    in_chunks,
    request_bytes,
)
from benchmarks.micro.registry import Benchmark, Preparation, Work, calls, matching
from benchmarks.micro.stand_ins import Answering, ReadyTransport, Sink, ready_stream
from benchmarks.micro.subjects import PLACES, frame, relay, server, whole
from llmproxy.middleware.observe import ObserveMiddleware
from llmproxy.stack import Frame, order
from llmproxy.types import Receive, Scope, Send

ALL = matching()
PLACE_NAMES = {place.__name__.rpartition(".")[2] for place in PLACES}


@pytest.mark.parametrize("chosen", ALL, ids=[each.name for each in ALL])
async def test_so_many_calls_come_out_at_the_far_end(chosen: Benchmark) -> None:
    """With what is measured and without it, once and again."""
    async with chosen.prepare() as work:
        for count in (1, 3):
            assert await work.run(count) == count
            if work.without is not None:
                assert await work.without(count) == count


def test_every_place_and_every_layer_has_a_benchmark() -> None:
    """A layer that is added to the frame cannot be forgotten here."""
    names = {each.name for each in ALL}

    assert {name.partition(".")[0] for name in names} == PLACE_NAMES
    for layer in order(Frame()):
        assert {f"frame.{frame.name_of(layer)}", f"frame.{frame.name_of(layer)}, chunk"} <= names


async def test_a_benchmark_that_does_nothing_is_found_out() -> None:
    """A figure for work that was not done would be the best of all."""

    async def idle() -> Preparation:
        async def run(count: int) -> int:
            return 0

        yield Work(run)

    nothing = benchmark_of(idle)

    with pytest.raises(WorkNotDoneError, match="0 of 3"):
        await measure(nothing, QUICK)


async def test_a_call_with_the_wrong_result_is_found_out() -> None:
    """What the function returned is looked at, not only that it did."""

    async def wrong() -> Preparation:
        yield calls(lambda result: result == 3, len, b"four")

    with pytest.raises(WorkNotDoneError):
        await measure(benchmark_of(wrong), QUICK)


async def test_the_relays_chunks_go_through_send() -> None:
    """The very objects that were read are the ones that are sent, and the stream is ended."""
    sink = Sink()

    await relay.pass_on(ready_stream(5, STREAM_HEADERS), sink)

    assert (sink.heads, sink.chunks, sink.bodies, sink.ends) == (1, 5, 6, 1)


async def test_a_sink_does_not_count_what_is_only_like_a_chunk() -> None:
    """A layer that copied its chunks would not pass for one that hands them on."""

    async def copying(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        copy = bytes(bytearray(CHUNK))
        await send({"type": "http.response.body", "body": copy, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    assert await frame.stream_through(copying, Answering((), b""))(1) == 0


async def test_the_frame_is_the_whole_frame() -> None:
    """A request through it is observed, written down, and asked of the server."""
    made = frame.a_frame()
    transport = ReadyTransport(STREAM_HEADERS, last=LAST_CHUNK, chunk=CHUNK)
    app = frame.chain(transport, made)

    assert isinstance(app, ObserveMiddleware)
    assert await frame.stream_through(app, transport, b'{"stream":true}')(4) == 4
    assert transport.asked == 1
    assert made.access_log.lines == 1  # type: ignore[attr-defined]
    assert b'llmproxy_upstream_attempts_total{result="ok",upstream="gpu1"} 1.0' in (
        made.metrics.render()
    )


async def test_a_connection_writes_what_the_app_has_sent() -> None:
    """From the bytes of a request to those of a whole answer, twice on one connection."""
    protocol, wire = server.connected(Answering((), ANSWER))

    for number in (1, 2):
        protocol.data_received(request_bytes())
        await server.written(wire, number)

        assert wire.last.startswith(b"HTTP/1.1 200 OK\r\n")
        assert in_chunks(ANSWER) in wire.last


async def test_the_whole_way_ends_with_the_engines_bytes() -> None:
    """Both connections and the frame in between: each chunk is one write to the client."""
    with whole.proxy() as (protocol, client, engine):
        engine.first = ANSWER_BYTES
        protocol.data_received(request_bytes())
        await server.written(client, 1)

        assert client.last.endswith(b"\r\n\r\n" + ANSWER)
        assert b"x-llmproxy-upstream: gpu1" in client.last
        assert engine.last.endswith(b"\r\n\r\n" + QUESTION)


def test_the_command_writes_what_it_can_compare(tmp_path: Path) -> None:
    """`--quick` over everything, its JSON, and the same given back with --compare."""
    kept = tmp_path / "micro.json"

    said = command("--quick", "--json", str(kept))

    names = [figure["name"] for figure in json.loads(kept.read_text())["figures"]]
    assert names == [each.name for each in ALL]
    assert f"{len(ALL)} benchmarks run" in said

    assert "2 benchmarks run" in command("--quick", "--compare", str(kept), "protocol.kind_of")


def command(*arguments: str) -> str:
    """Run it, and return what it prints.

    In a process of its own: the garbage of a whole test run is looked through for each figure.
    """
    program = [sys.executable, "-m", "benchmarks.micro", *arguments]
    return subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing is called so"], "no benchmark has 'nothing is called so' in its name"),
        (["--compare", __file__], "is not what --json has written"),
    ],
)
def test_wrong_arguments_end_it_before_it_begins(arguments: list[str], said: str) -> None:
    """Not after a minute of measuring."""
    with pytest.raises(SystemExit, match=said):
        main(arguments)


def benchmark_of(prepare: Callable[[], Preparation]) -> Benchmark:
    """Return a benchmark that nobody else can find."""
    return Benchmark("test.one", "call", asynccontextmanager(prepare))
