"""The stream of another server that goes on with one that broke. Pure: bytes in, bytes out.

Rule 1: a text that differs by one character is not a continuation; the stream ends in its error.
Rule 2: the caller sees one stream: the first one's id and time, one role, and usage that counts
        what was generated for the text it has.
Rule 3: it is never hidden: a comment stands where the other server took over.
"""

from typing import Any

from llmproxy import codec
from llmproxy.errors import UpstreamBroken
from llmproxy.routing.continuing import Way
from llmproxy.routing.delivered import (
    BLANK,
    DONE,
    CannotContinue,
    Delivered,
    data_of,
    parsed,
    text_of,
)
from llmproxy.routing.kept import says_failure
from llmproxy.routing.tally import Tally

COMMENT = b": continued by another server\n\n"
MOST_EVENT = 64 * 1024  # bytes of one event of the second stream


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
        for match in BLANK.finditer(data):
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
        return self._event(left) if data_of(left) == DONE else b""

    def _event(self, lines: bytes) -> bytes:
        data = data_of(lines)
        if data is None:
            return b""  # its own comments say nothing to the caller
        if data == DONE:
            if not self.has_caught_up:
                raise CannotContinue("differs")
            return b"data: [DONE]\n\n"
        event = parsed(data)
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
        piece = text_of(choice, chat=chat, finished=True)
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
        return len(text_of(choice, chat=self._delivered.chat, finished=True))
