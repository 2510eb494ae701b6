"""Streams as engines write them, one kind for each protocol, and a reader that judges them.

The reader knows nothing of the proxy: it tells from the bytes alone what a careful client
library would have made of them.
"""

import json
import re
from dataclasses import dataclass

from tests.support.client import request_bytes
from tests.support.upstream import chat_events


@dataclass(frozen=True, slots=True)
class Dialect:
    """One kind of stream."""

    name: str
    path: bytes
    content_type: bytes
    events: tuple[bytes, ...]  # what comes before the end
    terminal: tuple[bytes, ...]  # what says that it is complete
    preset: str = "http"  # the kind of upstream that serves the path

    @property
    def request(self) -> bytes:
        """What a client asks for it."""
        return request_bytes(self.path, body=b'{"model":"m","stream":true}')

    @property
    def whole(self) -> bytes:
        """The whole stream."""
        return b"".join(self.events + self.terminal)


def _event(value: object, kind: str = "") -> bytes:
    name = f"event: {kind}\n".encode() if kind else b""
    return name + b"data: %b\n\n" % json.dumps(value, ensure_ascii=False).encode()


def _typed(kind: str, **fields: object) -> bytes:
    return _event({"type": kind, **fields}, kind)


_CHAT = chat_events(["Hel", "lö", " wörld"])

CHAT = Dialect(
    "chat",
    b"/v1/chat/completions",
    b"text/event-stream",
    events=tuple(_CHAT[:3]),
    terminal=tuple(_CHAT[3:]),
)
COMPLETIONS = Dialect(
    "completions",
    b"/v1/completions",
    b"text/event-stream; charset=utf-8",
    events=tuple(
        _event({"choices": [{"text": text, "finish_reason": None}]}) for text in ("Hel", "lö", "!")
    ),
    terminal=(
        _event({"choices": [{"text": "", "finish_reason": "length"}]}),
        b"data: [DONE]\n\n",
    ),
)
MESSAGES = Dialect(
    "messages",
    b"/v1/messages",
    b"text/event-stream",
    events=(
        _typed("message_start", message={"id": "msg_1", "stop_reason": None}),
        _typed("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hellö"}),
        _typed("ping"),
    ),
    terminal=(
        _typed("message_delta", delta={"stop_reason": "end_turn"}),
        _typed("message_stop"),
    ),
)
RESPONSES = Dialect(
    "responses",
    b"/v1/responses",
    b"text/event-stream",
    events=(
        _typed("response.created", response={"status": "in_progress"}),
        _typed("response.output_text.delta", delta="Hel"),
        _typed("response.output_text.delta", delta="lö"),
    ),
    terminal=(_typed("response.completed", response={"status": "completed"}),),
)
NDJSON = Dialect(
    "ndjson",
    b"/api/chat",
    b"application/x-ndjson",
    events=tuple(
        json.dumps({"message": {"content": text}, "done": False}, ensure_ascii=False).encode()
        + b"\n"
        for text in ("Hel", "lö", "!")
    ),
    terminal=(b'{"message":{"content":""},"done":true,"done_reason":"stop"}\n',),
    preset="ollama",
)
OTHER = Dialect(
    "other",
    b"/v1/threads/1/runs",
    b"text/event-stream",
    events=(_event({"n": 1}), _event({"n": 2}), _event({"n": 3})),
    terminal=(_event("bye"),),
)

KNOWN = (CHAT, COMPLETIONS, MESSAGES, RESPONSES, NDJSON)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a client library makes of a stream."""

    complete: bool  # it has said that it is finished
    error: dict[str, object] | None  # it has said that it will not be


def judge(dialect: Dialect, stream: bytes) -> Verdict:
    """Read a stream as its protocol says."""
    complete = False
    error: dict[str, object] | None = None
    for kind, data in _read(dialect, stream):
        if data == "[DONE]":
            complete = True
            continue
        value = json.loads(data)
        if kind == "error" or "error" in value:
            error = value
        elif _ends(value):
            complete = True
    return Verdict(complete, error)


def _ends(value: dict[str, object]) -> bool:
    choices = value.get("choices")
    if isinstance(choices, list) and any(choice.get("finish_reason") for choice in choices):
        return True
    return value.get("done") is True or value.get("type") in (
        "message_stop",
        "response.completed",
        "response.incomplete",
        "response.failed",
    )


def _read(dialect: Dialect, stream: bytes) -> list[tuple[str, str]]:
    if dialect.content_type == b"application/x-ndjson":
        return [
            ("", line)
            for line in stream.decode(errors="replace").split("\n")[:-1]
            if _is_whole(line)
        ]
    found: list[tuple[str, str]] = []
    kind, data = "", list[str]()
    for line in re.split(r"\r\n|\n|\r", stream.decode(errors="replace"))[:-1]:
        if not line:
            text = "\n".join(data)
            # A client that meets half an event raises or skips it; it has learnt nothing.
            if data and (text == "[DONE]" or _is_whole(text)):
                found.append((kind, text))
            kind, data = "", []
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif line.startswith("event:"):
            kind = line.removeprefix("event:").strip()
    return found


def _is_whole(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
