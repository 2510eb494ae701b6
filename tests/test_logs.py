"""The access log: one line per request, in batches, and never in anybody's way."""

import asyncio
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from llmproxy.logs import MOST_LINES, PERIOD, BatchLog, HostLog, Line, console_line, json_line

LINE: dict[str, Any] = {
    "time": 1_800_000_000.5,
    "event": "request",
    "request_id": "r-1",
    "client": "192.0.2.7",
    "method": "POST",
    "path": "/v1/chat/completions",
    "endpoint": "chat",
    "model": "llama",
    "stream": True,
    "status": 200,
    "outcome": "completed",
    "upstream": "gpu1",
    "attempts": 1,
    "duration_ms": 1234.567,
    "first_token_ms": 99.6,
    "overhead_ms": 0.2,
    "bytes": 4711,
}
HOSTILE = 'a\r\n{"event":"forged"}\x1b[31m\x00\u2028\x85\t\'"\\'


@contextmanager
def pipe(flags: int = 0) -> Iterator[tuple[int, int]]:
    ends = os.pipe2(flags)
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def numbered(line: Line) -> bytes:
    return b"%d\n" % line["n"]


def everything(reading: int) -> bytes:
    """Return what is in a pipe."""
    os.set_blocking(reading, False)
    found = b""
    try:
        while part := os.read(reading, 1 << 20):
            found += part
    except BlockingIOError:
        pass
    return found


def test_every_line_arrives_in_its_order() -> None:
    """None is lost, none is doubled, also of those that come while others are written."""
    with pipe() as (reading, writing):
        log = BatchLog(writing, numbered)
        for number in range(2000):
            log.write({"n": number})
            if number % 500 == 0:
                time.sleep(0.03)
        log.close()
        written = everything(reading)

    assert written == b"".join(b"%d\n" % number for number in range(2000))


def test_lines_are_written_together() -> None:
    """Many requests are a few writes, ten in a second and not one for each."""
    with pipe(os.O_DIRECT) as (reading, writing):  # what is written apart is read apart
        began = time.monotonic()
        log = BatchLog(writing, numbered)
        for number in range(50):
            log.write({"n": number})
            time.sleep(0.002)
        log.close()
        took = time.monotonic() - began
        os.set_blocking(reading, False)
        writes = []
        with suppress(BlockingIOError):
            while True:
                writes.append(os.read(reading, 4096))

    assert b"".join(writes).count(b"\n") == 50
    assert len(writes) <= took / PERIOD + 2


async def test_a_reader_that_stands_still_blocks_nobody() -> None:
    """The pipe is full, the log waits, the event loop does not."""
    with pipe() as (reading, writing):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        log = BatchLog(writing, lambda line: b"x" * 8192 + b"\n")
        log.write({})
        await asyncio.sleep(0.2)  # the thread is in its write now, and will not come back
        began = time.perf_counter()
        for _ in range(1000):
            log.write({})
        took = time.perf_counter() - began
        drained = await asyncio.to_thread(drain, reading, log)

    assert took < 1
    assert drained == 1001


def drain(reading: int, log: BatchLog) -> int:
    """Read all lines that come while the log is closed; return how many there were."""
    os.set_blocking(reading, False)
    log._stop.set()
    lines = 0
    while log._thread.is_alive():
        try:
            lines += os.read(reading, 1 << 20).count(b"\n")
        except BlockingIOError:
            time.sleep(0.001)
    return lines + everything(reading).count(b"\n")


def test_what_cannot_be_kept_is_counted() -> None:
    """Memory is bounded; the log says how much of it is missing."""
    with pipe() as (reading, writing):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        log = BatchLog(writing, lambda line: b"y" * 99 + b"\n")
        log.write({})
        for _ in range(100):
            log.write({})
        time.sleep(0.2)  # more than the pipe holds: the thread stands in its write
        for _ in range(MOST_LINES + 7):
            log.write({})
        kept = len(log._lines)
        written = drain_bytes(reading, log)

    assert kept == MOST_LINES
    assert b'{"event":"log_lines_dropped","count":7}\n' in written


def drain_bytes(reading: int, log: BatchLog) -> bytes:
    os.set_blocking(reading, False)
    log._stop.set()
    found = bytearray()
    while log._thread.is_alive():
        try:
            found += os.read(reading, 1 << 20)
        except BlockingIOError:
            time.sleep(0.001)
    return bytes(found) + everything(reading)


def test_a_log_whose_reader_has_gone_is_no_error() -> None:
    """The proxy outlives whatever reads its log."""
    reading, writing = os.pipe()
    log = BatchLog(writing, numbered)
    os.close(reading)
    log.write({"n": 1})
    log.close()
    os.close(writing)

    assert not log._thread.is_alive()


def test_a_json_line_is_one_object() -> None:
    """Values keep their types."""
    line = json_line(LINE)

    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == LINE


@pytest.mark.parametrize("form", [json_line, console_line], ids=["json", "console"])
@pytest.mark.parametrize("field", ["path", "model", "request_id", "method"])
def test_a_line_stays_one_line(form: Any, field: str) -> None:
    """Whatever a caller writes into its path or model forges no line and colours no terminal."""
    line = form({**LINE, field: HOSTILE})

    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert not set(line[:-1]) & set(range(0x20))


def test_a_json_line_gives_hostile_text_back() -> None:
    """Escaped, not mangled."""
    assert json.loads(json_line({**LINE, "path": HOSTILE}))["path"] == HOSTILE


def test_the_console_form_is_for_people() -> None:
    """Time, status, what was asked, how it went, how long it took, and by whom."""
    at = time.strftime("%H:%M:%S", time.localtime(LINE["time"])).encode()

    assert console_line(LINE) == at + (
        b" 200 POST /v1/chat/completions completed 1235 ms first token 100 ms"
        b" 4711 B gpu1 llama r-1\n"
    )


def test_the_console_form_leaves_out_what_is_unknown() -> None:
    """No None and no doubled spaces."""
    line = console_line(
        {
            **LINE,
            "first_token_ms": None,
            "upstream": None,
            "model": None,
            "code": "not_found",
            "status": 404,
            "outcome": "rejected",
        }
    )

    assert b"None" not in line
    assert b"  " not in line
    assert b" 404 POST /v1/chat/completions rejected 1235 ms 4711 B not_found r-1\n" in line


def test_inside_a_host_the_lines_go_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    """The host decides about level, form and place; all fields are at its hand."""
    log = HostLog()
    with caplog.at_level(logging.INFO, "llmproxy.access"):
        log.write(LINE)

    (record,) = caplog.records
    assert record.name == "llmproxy.access"
    assert record.__dict__["request"] == LINE


def test_a_host_that_wants_no_lines_pays_for_none(caplog: pytest.LogCaptureFixture) -> None:
    """The line is not even built."""
    with caplog.at_level(logging.WARNING, "llmproxy.access"):
        quiet = HostLog().enabled
    with caplog.at_level(logging.INFO, "llmproxy.access"):
        wanted = HostLog().enabled

    assert not quiet
    assert wanted
