"""The access log: one line per request, written in batches.

A line through `logging` costs 12 us of the event loop; formatted once, and written ten times
a second by a thread of its own, it costs 2, and a pipe that nobody reads stops the log and
not the proxy.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from llmproxy import codec

Line = Mapping[str, Any]
"""What is known of a request, by name; what is not known is not in it."""

Format = Callable[[Line], bytes]

PERIOD = 0.1  # seconds between two writes; a kill loses as much of the log
MOST_LINES = 100_000  # that wait for the reader of the log; beyond it they are counted, not kept


class AccessLog(Protocol):
    """Where the lines go."""

    @property
    def enabled(self) -> bool:
        """Whether anybody wants them; building a line is not free."""

    def write(self, line: Line) -> None:
        """Take a line; must not wait for anything."""

    def close(self) -> None:
        """Write what is left."""


class HostLog:
    """Hands the lines to `logging`: for an app inside a host that decides about its own log."""

    def __init__(self, name: str = "llmproxy.access") -> None:
        self._log = logging.getLogger(name)

    @property
    def enabled(self) -> bool:
        return self._log.isEnabledFor(logging.INFO)

    def write(self, line: Line) -> None:
        self._log.info("request", extra={"request": dict(line)})

    def close(self) -> None:
        """Nothing is kept back."""


class BatchLog:
    """Writes the lines to a file descriptor, from a thread of its own."""

    enabled = True

    def __init__(self, descriptor: int, form: Format) -> None:
        self._descriptor = descriptor
        self._form = form
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def write(self, line: Line) -> None:
        if len(self._lines) < MOST_LINES:
            # Formatted here and not in the thread: there it would hold the interpreter for
            # a whole batch at a time, and every stream would wait.
            self._lines.append(self._form(line))
        else:
            self._dropped += 1

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._stop.wait(PERIOD):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        dropped, self._dropped = self._dropped, 0
        if dropped:
            lines.append(b'{"event":"log_lines_dropped","count":%d}\n' % dropped)
        data = memoryview(b"".join(lines))
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except OSError:
                return  # the reader of the log has gone, and there is nobody to tell


def json_line(line: Line) -> bytes:
    """One JSON object."""
    return codec.dumps(line) + b"\n"


def console_line(line: Line) -> bytes:
    """One line for people."""
    at = time.strftime("%H:%M:%S", time.localtime(line["time"]))
    first_token = line.get("first_token_ms")
    parts = [
        at,
        str(line["status"]),
        line["method"],
        line["path"],
        line["outcome"],
        f"{line['duration_ms']:.0f} ms",
        f"first token {first_token:.0f} ms" if first_token is not None else "",
        f"{line['bytes']} B",
        line.get("upstream") or "",
        line.get("model") or "",
        line.get("code") or "",
        line["request_id"],
    ]
    # A path or a model may hold anything: one line must stay one line, and plain.
    text = " ".join(part for part in parts if part)
    return text.encode("unicode_escape") + b"\n"
