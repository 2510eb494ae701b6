"""The end of a stream of several answers: of one that was asked for more than one choice.

Rule 1: the stream is whole when each answer has said that it is finished. Where the body ends
        as it should, only those that have begun are looked for: some engines know no `n`.
Rule 2: each event is read as it passes, for only its `index` tells whose it is. Streams of one
        answer, and that is nearly all, do not pay for it.
Rule 3: an event has said something once its empty line is there.
Rule 4: what is kept is bounded. What is too long to be read has said nothing.
"""

from llmproxy import codec
from llmproxy.protocol.stream_tail import Halt, StreamTail
from llmproxy.records import Ending

MOST_LINE = 64 * 1024  # bytes
MOST_ANSWERS = 1 << 16  # two bits for each


class SeveralAnswers(StreamTail):
    """The last bytes of one stream, and which of its answers are finished."""

    __slots__ = ("_begun", "_cr", "_expected", "_finished", "_line", "_saying", "_too_long")

    def __init__(self, expected: int, *, counted: bool = False) -> None:
        super().__init__(Ending.CHAT, counted=counted)
        self._expected = expected
        self.forget()

    def forget(self) -> None:
        """Forget what was noted, for it went to nobody: the client is between two events."""
        super().forget()
        self._begun = self._finished = 0  # a bit for each answer,
        self._saying = 0  # and those that an event finishes which has not ended yet
        self._line = bytearray()  # that has not ended yet
        self._cr = False  # the one before it ended so; an LF that follows belongs to that
        self._too_long = False

    def note(self, chunk: bytes) -> None:
        """Take notice of a chunk that goes to the client."""
        super().note(chunk)
        if chunk:
            rest_of_end = self._cr and chunk.startswith(b"\n")
            self._cr = chunk.endswith(b"\r")
            chunk = chunk[rest_of_end:]
        lines = chunk.splitlines()  # at LF, CR and CRLF, and nowhere else
        rest = b"" if chunk.endswith((b"\n", b"\r")) or not lines else lines.pop()
        if lines:
            if self._line or self._too_long:
                self._go_on(lines[0])
                lines[0] = bytes(self._line)
                self._line, self._too_long = bytearray(), False
            for line in lines:
                self._read(line)
        self._go_on(rest)

    def _go_on(self, part: bytes) -> None:
        if not self._too_long:
            self._line += part
            if len(self._line) > MOST_LINE:
                self._line, self._too_long = bytearray(), True

    def _read(self, line: bytes) -> None:
        """Learn from one line which answers it is about."""
        if not line:
            self._finished |= self._saying
            self._saying = 0
        if not line.startswith(b"data:"):
            return
        try:
            said = codec.loads(line[5:])
        except codec.NotJson:
            return
        choices = said.get("choices") if isinstance(said, dict) else None
        for choice in choices if isinstance(choices, list) else ():
            index = choice.get("index", 0) if isinstance(choice, dict) else None
            if type(index) is int and 0 <= index < MOST_ANSWERS:
                self._begun |= 1 << index
                reason = choice.get("finish_reason")
                if reason and isinstance(reason, str):
                    self._saying |= 1 << index

    def _answered(self, kept: bytes, halt: Halt) -> bool:
        enough = 1 if halt is Halt.END else self._expected
        return self._finished == self._begun and self._finished.bit_count() >= enough
