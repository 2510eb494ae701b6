"""Going on with a stream that broke, on another server. Pure: bytes in, bytes out.

The other server is asked to continue the very text that the caller has (`Way.PREFILL`), where
it is known to do that; elsewhere it is asked the first question again and must begin with
exactly that text, which is then skipped (`Way.AGAIN`).

Rule 1: only what can be continued truthfully is: one choice of text, nothing finished, nothing
        half delivered that is more than text.
Rule 2: a text that differs by one character is not a continuation; the stream ends in its error.
Rule 3: the caller sees one stream: the first one's id and time, one role, and usage that counts
        what was generated for the text it has.
Rule 4: it is never hidden: a comment stands where the other server took over.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from llmproxy import codec
from llmproxy.errors import UpstreamBroken
from llmproxy.routing.kept import says_failure
from llmproxy.routing.tally import Tally

COMMENT = b": continued by another server\n\n"
MOST_EVENT = 64 * 1024  # bytes of one event of the second stream

# Engines that continue the last message of an assistant, and what they want to be told.
_PREFILL: dict[str, dict[str, object]] = {
    "vllm": {"continue_final_message": True, "add_generation_prompt": False},
    "sglang": {"continue_final_message": True},
    "llamacpp": {},
    "ollama": {},
    "lmstudio": {},
}

_DONE = b"[DONE]"
_BLANK = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINES = re.compile(rb"\r\n|\n|\r")


class Way(Enum):
    """How another server is asked."""

    PREFILL = "prefill"
    AGAIN = "again"


class CannotContinue(Exception):
    """The stream ends where it broke. The message is one word for metrics."""


class NotThisWay(CannotContinue):
    """It cannot be asked for in this way; perhaps it can in another."""


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
        if data == _DONE:
            raise CannotContinue("finished")
        event = _parsed(data)
        if says_failure(event):
            raise CannotContinue("error")
        about = about or {key: event[key] for key in _ABOUT if key in event}
        pieces = [_text_of(choice, chat=chat) for choice in event.get("choices") or ()]
        text += pieces
        tally.note(event, sum(map(len, pieces)))
    return Delivered("".join(text), chat, about, tally)


_ABOUT = ("id", "created", "object")


def ways(preset: str, *, chat: bool) -> tuple[Way, ...]:
    """Return how a server of this kind may be asked, the better way first."""
    if not chat or preset in _PREFILL:
        return (Way.PREFILL, Way.AGAIN)
    return (Way.AGAIN,)


def continuing_body(
    body: bytes, delivered: Delivered, way: Way, preset: str, model: str | None = None
) -> bytes:
    """Return the request that another server gets."""
    try:
        asked = codec.loads(body)
    except codec.NotJson:
        raise CannotContinue("request") from None
    if not isinstance(asked, dict) or not may_be_continued(asked):
        raise CannotContinue("request")
    if model is not None:
        asked["model"] = model
    if way is Way.PREFILL and delivered.text:
        _continue(asked, delivered, preset)
    try:
        return codec.dumps(asked)
    except TypeError:  # nested deeper than it can be written
        raise CannotContinue("request") from None


def may_be_continued(asked: dict[str, Any]) -> bool:
    """Tell whether what was asked for can be continued at all."""
    choices = asked.get("n") or asked.get("best_of") or 1
    if choices != 1 or asked.get("logprobs") or asked.get("top_logprobs") or asked.get("echo"):
        return False
    return "messages" in asked or isinstance(asked.get("prompt"), str)


def _is_held_to_a_grammar(asked: dict[str, Any]) -> bool:
    """Tell whether an engine lets only certain texts through: of a rest it would ask for all."""
    form = asked.get("response_format")
    return (
        any(asked.get(name) is not None for name in _GRAMMARS)
        or (isinstance(form, dict) and form.get("type", "text") != "text")
        or asked.get("tool_choice") not in (None, "auto", "none")
    )


_GRAMMARS = (
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("grammar", "json_schema", "regex", "ebnf", "structural_tag"),
)


def _continue(asked: dict[str, Any], delivered: Delivered, preset: str) -> None:
    if _is_held_to_a_grammar(asked):
        raise NotThisWay("grammar")
    if delivered.chat:
        messages = asked["messages"]
        if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
            raise CannotContinue("request")
        if messages[-1].get("role") == "assistant":
            # The caller has begun the message itself: what it began belongs to it.
            begun = messages[-1].get("content")
            if not isinstance(begun, str):
                raise CannotContinue("request")
            last = {**messages[-1], "content": begun + delivered.text}
            asked["messages"] = [*messages[:-1], last]
        else:
            asked["messages"] = [*messages, {"role": "assistant", "content": delivered.text}]
        asked.update(_PREFILL.get(preset, {}))
    else:
        asked["prompt"] = asked["prompt"] + delivered.text
    tokens = delivered.tally.tokens
    for name in ("max_tokens", "max_completion_tokens"):
        most = asked.get(name)
        if isinstance(most, int) and not isinstance(most, bool):
            if most <= tokens:
                raise CannotContinue("length")
            asked[name] = most - tokens
    if type(least := asked.get("min_tokens")) is int:
        asked["min_tokens"] = max(0, least - tokens)


class Continuation:
    """The second stream, as the caller gets it."""

    def __init__(self, delivered: Delivered, way: Way) -> None:
        self._delivered = delivered
        self._way = way if delivered.text else Way.PREFILL  # nothing to compare with
        self._to_skip = delivered.text if self._way is Way.AGAIN else ""
        self._skipped = 0
        self._left = b""
        self._rest = Tally()  # of what this server has said
        self.announced = False  # the caller was told that another server goes on

    @property
    def has_caught_up(self) -> bool:
        """Whether everything that follows is new to the caller."""
        return self._skipped == len(self._to_skip)

    @property
    def adds_up(self) -> bool:
        """Whether what this server counts is not yet all that was generated."""
        return self._way is Way.PREFILL and bool(self._delivered.text)

    @property
    def guesses(self) -> bool:
        """Whether nobody has counted what the caller had."""
        return self.adds_up and self._delivered.tally.prompt is None

    def feed(self, chunk: bytes) -> bytes:
        """Take what came of the second stream; return what the caller gets of it."""
        data = self._left + chunk if self._left else chunk
        out: list[bytes] = []
        at = 0
        for match in _BLANK.finditer(data):
            if match.group() == b"\r\r" and match.end() == len(data):
                break  # may be the first half of CR LF CR LF
            out.append(self._event(data[at : match.start()]))
            at = match.end()
        self._left = data[at:]
        if len(self._left) > MOST_EVENT:
            raise CannotContinue("event")
        return b"".join(out)

    def rest(self) -> bytes:
        """Return the last word where the second stream ends without a blank line behind it."""
        left, self._left = self._left, b""
        return self._event(left) if _data_of(left) == _DONE else b""

    def _event(self, lines: bytes) -> bytes:
        data = _data_of(lines)
        if data is None:
            return b""  # its own comments say nothing to the caller
        if data == _DONE:
            if not self.has_caught_up:
                raise CannotContinue("differs")
            return b"data: [DONE]\n\n"
        event = _parsed(data)
        if says_failure(event):
            raise UpstreamBroken("The model server reported an error in mid-stream.")
        choices = event.get("choices") or []
        silent = bool(choices)
        for choice in choices:
            silent = not self._advance(choice) and silent
        usage = event.get("usage")
        if silent and not (usage and self.has_caught_up):
            return b""
        event.update(self._delivered.about)
        if self.adds_up:
            self._rest.note(event, sum(map(self._length, choices)))
            if isinstance(usage, dict):
                self._delivered.tally.add_up(usage, self._rest)
        return b"data: " + codec.dumps(event) + b"\n\n"

    def _advance(self, choice: Any) -> bool:
        """Take out of a choice what the caller has; tell whether anything is left to say."""
        chat = self._delivered.chat
        piece = _text_of(choice, chat=chat, finished=True)
        holder = choice.get("delta") if chat else choice
        finishes = choice.get("finish_reason") is not None
        if not self.has_caught_up:
            expected = self._to_skip[self._skipped : self._skipped + len(piece)]
            if piece[: len(expected)] != expected or (
                finishes and self._skipped + len(piece) < len(self._to_skip)
            ):
                raise CannotContinue("differs")
            self._skipped += len(expected)
            piece = piece[len(expected) :]
        if isinstance(holder, dict):
            if chat:
                holder.pop("role", None)
            name = "content" if chat else "text"
            if name in holder or piece:
                holder[name] = piece
        return bool(piece) or finishes

    def _length(self, choice: dict[str, Any]) -> int:
        return len(_text_of(choice, chat=self._delivered.chat, finished=True))


def _text_of(choice: Any, *, chat: bool, finished: bool = False) -> str:
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
    for lines in _BLANK.split(kept):
        data = _data_of(lines)
        if data is not None:
            yield data


def _data_of(lines: bytes) -> bytes | None:
    """Return the data of an event; None when it has none."""
    found = [
        line[5:].removeprefix(b" ") for line in _LINES.split(lines) if line.startswith(b"data:")
    ]
    return b"\n".join(found) if found else None


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        event = codec.loads(data)
    except codec.NotJson:
        raise CannotContinue("event") from None
    if not isinstance(event, dict):
        raise CannotContinue("event")
    return event
