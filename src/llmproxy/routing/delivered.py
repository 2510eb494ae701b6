"""What the caller has of a stream, as far as another server can go on from it.

Rule 1: only what can be continued truthfully is: one choice of text, nothing finished, nothing
        half delivered that is more than text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from llmproxy import codec
from llmproxy.routing.kept import says_failure
from llmproxy.routing.tally import Tally

DONE = b"[DONE]"
BLANK = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINES = re.compile(rb"\r\n|\n|\r")


class CannotContinue(Exception):
    """The stream ends where it broke. The message is one word for metrics."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What the caller has of a stream."""

    text: str
    chat: bool
    about: dict[str, Any]  # id, created, object: what every event says
    tally: Tally = field(default_factory=Tally)


def read_delivered(kept: bytes, *, chat: bool) -> Delivered:
    """Read the events that a caller was given; raise when they cannot be gone on from."""
    text: list[str] = []
    tally = Tally()
    about: dict[str, Any] = {}
    for data in _events_of(kept):
        if data == DONE:
            raise CannotContinue("finished")
        event = parsed(data)
        if says_failure(event):
            raise CannotContinue("error")
        about = about or {key: event[key] for key in _ABOUT if key in event}
        pieces = [text_of(choice, chat=chat) for choice in event.get("choices") or ()]
        text += pieces
        tally.note(event, sum(map(len, pieces)))
    return Delivered("".join(text), chat, about, tally)


_ABOUT = ("id", "created", "object")


def text_of(choice: Any, *, chat: bool, finished: bool = False) -> str:
    """Return the text of a choice; raise when there is more in it than text."""
    if not isinstance(choice, dict) or choice.get("index", 0) != 0 or choice.get("logprobs"):
        raise CannotContinue("choices")
    if choice.get("finish_reason") is not None and not finished:
        raise CannotContinue("finished")
    holder = choice.get("delta") if chat else choice
    if holder is None:
        return ""
    if not isinstance(holder, dict):
        raise CannotContinue("choices")
    # Reasoning and calls of tools cannot be handed to another server as a beginning.
    if any(holder.get(name) for name in _MORE_THAN_TEXT):
        raise CannotContinue("more_than_text")
    piece = holder.get("content" if chat else "text")
    if piece is None:
        return ""
    if not isinstance(piece, str):
        raise CannotContinue("choices")
    return piece


_MORE_THAN_TEXT = (
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "refusal",
    "audio",
)


def _events_of(kept: bytes) -> Iterator[bytes]:
    for lines in BLANK.split(kept):
        data = data_of(lines)
        if data is not None:
            yield data


def data_of(lines: bytes) -> bytes | None:
    """Return the data of an event; None when it has none."""
    found = [
        line[5:].removeprefix(b" ") for line in _LINES.split(lines) if line.startswith(b"data:")
    ]
    return b"\n".join(found) if found else None


def parsed(data: bytes) -> dict[str, Any]:
    try:
        event = codec.loads(data)
    except codec.NotJson:
        raise CannotContinue("event") from None
    if not isinstance(event, dict):
        raise CannotContinue("event")
    return event
