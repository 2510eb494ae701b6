"""What is done to each chunk of an answer on its way to the client.

Rule 1: nearly every chunk ends with an event, and is noted and passed on. Only one that may hold a
        last word is looked at: nothing goes out behind an error of the engine.
Rule 2: nobody is asked about a chunk that nothing is to be done to: these functions run for every
        chunk of every stream, and what they need is at hand.
"""

from collections.abc import Callable

from llmproxy.errors import UpstreamBroken
from llmproxy.keeping import Keeping
from llmproxy.protocol.stream_tail import StreamTail
from llmproxy.records import Ending
from llmproxy.routing.kept import PLAIN
from llmproxy.types import Writer

PassOn = Callable[[bytes], bool]
"""Passes a chunk on; tells whether the client takes more."""

# How a chunk ends that ends with an event, and so not with `[DONE]`.
EVENT_END, EVENT_END_CRLF = b"}\n\n", b"}\r\n\r\n"


class Passage:
    """The way of one answer's chunks."""

    __slots__ = ("_upstream", "chunks", "failed", "ordinary", "tail")

    def __init__(self, upstream: str | None, tail: StreamTail | None) -> None:
        self._upstream = upstream
        self.tail = tail
        self.ordinary = b""  # how a chunk ends that is only passed on
        if tail is not None and tail.ending is Ending.CHAT:
            self.ordinary = EVENT_END
        self.chunks = 0
        self.failed = False  # the engine has said so, and went on

    def looked_at(self, chunk: bytes) -> bytes:
        """Take notice of a chunk that may hold a last word; return what of it goes on."""
        assert self.tail is not None
        if chunk.endswith(EVENT_END_CRLF):
            self.ordinary = EVENT_END_CRLF
            going = chunk
        else:
            going = self.tail.before_the_end(chunk)
            self.failed = len(going) < len(chunk)
        self.chunks += 1
        self.tail.note(going)
        return going

    def failure(self) -> UpstreamBroken:
        """Return what an engine has come to that said it failed."""
        return UpstreamBroken(f"{self._upstream} reported an error in mid-stream.")

    def into(self, writer: Writer) -> PassOn:
        """Return what passes chunks on to a writer."""
        if isinstance(writer, Keeping) and self.tail is not None:
            return self._kept(writer, self.tail, self._written(writer))
        return self._written(writer)

    def _written(self, writer: Writer) -> PassOn:
        write = writer.write
        note = self.tail.note if self.tail is not None else None

        def pass_on(chunk: bytes) -> bool:
            if chunk.endswith(self.ordinary):
                self.chunks += 1
                if note is not None:
                    note(chunk)
                return write(chunk)
            going = self.looked_at(chunk)
            more = write(going) if going else True
            if self.failed:
                raise self.failure()
            return more

        return pass_on

    def _kept(self, keeping: Keeping, tail: StreamTail, otherwise: PassOn) -> PassOn:
        kept, write = keeping.kept, keeping.behind.write
        keep, note = kept.parts.append, tail.note

        def keep_and_pass_on(chunk: bytes) -> bool:
            left = kept.left - len(chunk)
            if left < 0 or not chunk.endswith(PLAIN):
                return otherwise(chunk)
            kept.left = left
            keep(chunk)
            self.chunks += 1
            note(chunk)
            return write(chunk)

        return keep_and_pass_on
