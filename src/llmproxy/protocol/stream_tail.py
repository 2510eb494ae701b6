"""Tells from its last bytes whether a stream is finished, and how it can be ended.

Rule 1: the bytes are looked at, never changed, and never parsed while they flow: the last
        line of an NDJSON stream is read once, when nothing more comes.
Rule 2: what is kept is bounded, whatever the size of a chunk or of an event.
Rule 3: nothing that comes behind a model server's own error makes a success of it.
"""

import re
from enum import Enum, auto

from llmproxy import codec
from llmproxy.records import Ending

KEEP = 2048  # bytes; the last events of every engine we know fit several times
MOST_CHUNKS = 4  # kept apart before they are folded into one; 8 cost 0.1 us less and 1 KB more

# An event ends with an empty line, and a line with LF, CR or CRLF. CR LF CR may be the
# first half of CR LF CR LF, so it does not count yet.
_BOUNDARIES = (b"\n\n", b"\n\r\n", b"\r\r")

_DONE = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\]")
# Inside a JSON string a quote is escaped, so none of these can come out of a model's mouth.
_FINISHED = {
    Ending.CHAT: re.compile(rb'"finish_reason"\s*:\s*"'),
    Ending.MESSAGES: re.compile(rb'"type"\s*:\s*"message_stop"'),
    # These two end in an event that carries the whole answer or its tokens, longer than
    # what is kept: they are looked for in each chunk as it passes.
    Ending.RESPONSES: re.compile(rb'"type"\s*:\s*"response\.(?:completed|incomplete|failed)"'),
    Ending.NDJSON: re.compile(rb'"done"\s*:\s*true'),
}
_LONG_LAST_EVENT = {Ending.RESPONSES, Ending.NDJSON}
_OVERLAP = 48  # bytes; the longest match that a cut could hide
# What a client library takes for an error; an `error` that is null is none.
_ERROR_EVENT = re.compile(
    rb'(?:^|[\r\n])(?:event: ?error(?=[\r\n]|\Z)|data: ?\{\s*"error"\s*:\s*[{"])[^\r\n]*'
)
# And the form of vLLM before 2025, which no library understands.
_FAILED = re.compile(rb'%b|(?:^|[\r\n])data: ?\{\s*"object"\s*:\s*"error"' % _ERROR_EVENT.pattern)
_BLANK = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n")
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_ERROR_LINE = re.compile(rb'(?:^|\n)\{\s*"error"\s*:[^\n]*\n?\Z')


class Halt(Enum):
    """Why nothing more comes of a stream."""

    END = auto()  # the body has ended as it should
    SILENCE = auto()  # the connection is there
    BREAK = auto()  # it is not


class StreamTail:
    """The last bytes of one stream."""

    __slots__ = ("_counted", "_cut", "_parts", "_seen", "_watched", "ending")

    def __init__(self, ending: Ending, *, counted: bool = False) -> None:
        """`counted`: the caller has asked for what was used, which comes behind the answer."""
        self.ending = ending
        self._counted = counted
        self._parts: list[bytes] = []
        self._watched = _FINISHED[ending] if ending in _LONG_LAST_EVENT else None
        self._seen = False
        self._cut = False  # the first bytes are no longer kept

    def note(self, chunk: bytes) -> None:
        """Take notice of a chunk that goes to the client."""
        if self._watched is not None and not self._seen:
            before = self._parts[-1][-_OVERLAP:] if self._parts else b""
            if len(before) < _OVERLAP:
                before = self.last(_OVERLAP)
            self._seen = self._watched.search(before + chunk) is not None
        parts = self._parts
        parts.append(chunk)
        if len(chunk) > KEEP:
            self._cut = True
            self._parts = [chunk[-KEEP:]]
        elif len(parts) > MOST_CHUNKS:
            kept = b"".join(parts)  # all of them short
            if len(kept) > KEEP:
                self._cut = True
                kept = kept[-KEEP:]
            self._parts = [kept]

    def forget(self) -> None:
        """Forget what was noted, for it went to nobody: the client is between two events."""
        self._parts = []
        self._seen = self._cut = False

    def last(self, size: int) -> bytes:
        """Return the last `size` bytes, or as many as are kept."""
        taken: list[bytes] = []
        missing = size
        for part in reversed(self._parts):
            taken.append(part[-missing:])
            missing -= len(part)
            if missing <= 0:
                break
        return b"".join(reversed(taken))

    def at_boundary(self) -> bool:
        """Tell whether a comment may be put in here without touching an event."""
        if self.ending is Ending.NDJSON:
            return False  # its lines know no comments
        end = self.last(4)
        return not end or end.endswith(_BOUNDARIES)

    def finished(self, halt: Halt = Halt.END) -> bool:
        """Tell whether the stream has said that it is complete.

        Of a stream whose connection broke, `[DONE]` alone does not count: llama-cpp-python
        sends it when it drops an answer for the sake of another request.
        """
        if self.ending is Ending.UNKNOWN:
            return True
        if self.ending is Ending.NDJSON:
            return self._last_line_is_the_last()
        if self._watched is not None:
            return self._seen and self.at_boundary()
        kept = self._kept()
        if self.ending is Ending.MESSAGES:
            return _FINISHED[self.ending].search(self._heard(kept, halt)) is not None
        if _last_failure(kept) is not None:
            return False
        # Found at once where it nearly always stands; the expression tries every byte, 30 us.
        done = b"\ndata: [DONE]" in kept or _DONE.search(kept) is not None
        if done and halt is not Halt.BREAK:
            return True
        if not done and not (kept := self._heard(kept, halt)):
            return False
        lacks_its_count = self._counted and halt is not Halt.END and not done
        return self._answered(kept, halt) and not (lacks_its_count and not _is_counted(kept))

    def _heard(self, kept: bytes, halt: Halt) -> bytes:
        """Return of what is kept that in which a last word counts.

        A reader drops an event that lacks its empty line. At the proper end of the body a whole
        one may lack it that is nothing of the answer: it is a count, or it is a `message_stop`,
        and then it counts, for it says no more than that.
        """
        if self.at_boundary():
            return kept
        last = _last_line(kept) if halt is Halt.END else b""
        if not last:
            return b""
        heard = kept[: max(map(kept.rfind, _BOUNDARIES)) + 1]
        return heard + last if self.ending is Ending.MESSAGES else heard

    def _answered(self, kept: bytes, halt: Halt) -> bool:
        """Tell whether what was asked for has been answered to its end."""
        return _FINISHED[Ending.CHAT].search(kept) is not None

    def before_the_end(self, chunk: bytes) -> bytes:
        """Return what of a chunk may be passed on: nothing behind an error of the model server.

        It is not asked about chunks that end with an event, so that a stream of them costs
        nothing. `[DONE]` is none, so that it is always found here.
        """
        before = self._kept() if len(chunk) <= KEEP else b"."
        skipped = max(0, len(chunk) - KEEP)
        data = before + chunk[skipped:]
        failure = _last_failure(data)
        end = None if failure is None else _BLANK.search(data, failure)
        return chunk if end is None else chunk[: skipped + max(0, end.end() - len(before))]

    def told_of_an_error(self) -> bool:
        """Tell whether the last thing in the stream is the model server's own error."""
        kept = self._kept()
        if self.ending is Ending.NDJSON:
            return _ERROR_LINE.search(kept) is not None
        last_event = kept.replace(b"\r\n", b"\n").rstrip(b"\n").rpartition(b"\n\n")[2]
        return _ERROR_EVENT.search(last_event) is not None

    def _kept(self) -> bytes:
        """Return what is kept, such that its beginning cannot be taken for that of a line."""
        kept = self.last(KEEP)
        return b"." + kept if self._is_cut() else kept

    def _is_cut(self) -> bool:
        return self._cut or sum(map(len, self._parts)) > KEEP

    def _last_line_is_the_last(self) -> bool:
        """Tell whether the last line says `done` itself: a tool's argument may be called so."""
        kept = self._kept().rstrip(b"\r\n")
        _, newline, line = kept.rpartition(b"\n")
        if not newline and self._is_cut():
            # Longer than what is kept, for it ends in the tokens of its context.
            return self._seen and kept.endswith(b"}")
        try:
            said = codec.loads(line)
        except codec.NotJson:
            return False
        return isinstance(said, dict) and said.get("done") is True

    def closing(self) -> bytes:
        """Return what closes an event or a line that was left unfinished."""
        end = self.last(4)
        if self.ending is Ending.NDJSON:
            return b"" if not end or end.endswith(b"\n") else b"\n"
        if not end or end.endswith(_BOUNDARIES):
            return b""
        return b"\n" if end.endswith(b"\n") else b"\n\n"


def _last_line(kept: bytes) -> bytes:
    """Return the last line, if all of it is there: what cannot be read was cut."""
    line = kept.rstrip(b"\r\n").replace(b"\r", b"\n").rpartition(b"\n")[2]
    try:
        codec.loads(line.removeprefix(b"data:"))
    except codec.NotJson:
        return b""
    return line


def _last_failure(kept: bytes) -> int | None:
    """Return where the last event ends in which the model server says that it has failed."""
    # The expression would try every byte; from behind, which is twice as fast.
    if kept.rfind(b'"error"') < 0 and kept.rfind(b"event: error") < 0:
        return None
    return max((found.end() for found in _FAILED.finditer(kept)), default=None)


def _is_counted(kept: bytes) -> bool:
    """Tell whether a count of what was used comes with the last word of an answer, or behind it."""
    last = max((found.end() for found in _FINISHED[Ending.CHAT].finditer(kept)), default=0)
    return _USAGE.search(kept, last) is not None
