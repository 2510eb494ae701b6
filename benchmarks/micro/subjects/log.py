"""The line that is written down about each request."""

import asyncio
import os
import tempfile
import time

from benchmarks.micro.registry import Preparation, Work, benchmark, calls
from llmproxy.logs import BatchLog, console_line, json_line

PATIENCE = 5.0  # seconds, for a thread that writes ten times in one

LINE = {
    "time": 1_760_000_000.123,
    "event": "request",
    "request_id": "0123456789abcdef0123456789abcdef",
    "engine_request_id": "0123456789abcdef0123456789abcdef",
    "client": "127.0.0.1",
    "method": "POST",
    "path": "/v1/chat/completions",
    "endpoint": "chat",
    "model": "meta-llama/Llama-3.3-70B-Instruct",
    "stream": False,
    "status": 200,
    "outcome": "completed",
    "upstream": "gpu1",
    "attempts": 1,
    "duration_ms": 1234.567,
    "first_token_ms": 1234.0,
    "overhead_ms": 0.321,
    "bytes": 640,
}


@benchmark("log.json_line", "line")
async def json() -> Preparation:
    yield calls(lambda line: line.endswith(b"}\n"), json_line, LINE)


@benchmark("log.console_line", "line")
async def console() -> Preparation:
    yield calls(lambda line: line.endswith(b"\n"), console_line, LINE)


@benchmark("log.line to a file", "line")
async def line_to_a_file() -> Preparation:
    """Formatted, kept, and written by the log's own thread, whose CPU counts too."""
    with tempfile.TemporaryFile() as file:
        # In a thread, for starting and ending one of its own blocks.
        log = await asyncio.to_thread(BatchLog, file.fileno(), json_line)
        size = len(json_line(LINE))
        written = 0

        async def run(count: int) -> int:
            nonlocal written
            for _ in range(count):
                log.write(LINE)
            written += count
            due = time.monotonic() + PATIENCE
            while os.fstat(file.fileno()).st_size < written * size and time.monotonic() < due:
                time.sleep(0.001)  # noqa: ASYNC251  # costs no CPU; the thread writes meanwhile
            return os.fstat(file.fileno()).st_size // size - written + count

        yield Work(run)
        await asyncio.to_thread(log.close)
