"""What the attempts of a request send, where pieces of a body can be written at once.

Rule 1: it is the same as what is sent, in the same order: a piece before which something has to be
        sent is left until there is `room`.
"""

from llmproxy.errors import UpstreamBroken
from llmproxy.keeping import FAILED, Keeping
from llmproxy.trial import MOST_HELD, Trial
from llmproxy.types import Header, Send, Writer


class WrittenTrial(Trial, Writer):
    """The same where pieces of a body can be written at once."""

    def __init__(self, send: Send, writer: Writer) -> None:
        self._send = send
        self._writer = writer
        # With the head of a whole answer everything is told that there is to tell.
        self.end = writer.end  # type: ignore[method-assign]

    def write(self, body: bytes) -> bool:
        if self._start is not None:
            self._add(body)
            return self._size <= MOST_HELD
        if self._waits:
            self._unsent += body
            return False
        kept = self._keeping
        if kept is None:
            return self._writer.write(body)
        going = self._through(kept, body)
        more = self._writer.write(going) if going else True
        if kept.failed:
            raise UpstreamBroken(FAILED)
        return more

    def takes_whole(self, status: int) -> bool:
        return status < 400 and not self.head_out and self._writer.takes_whole(status)

    def begin(self, status: int, headers: list[Header], lines: bytes = b"") -> None:
        self.head_out = self.begun = self.answered = True
        self.attempt.answered(status)
        self._writer.begin(status, headers, lines)

    def direct(self) -> Writer:
        if self._start is not None or self._continuation is not None or self._waits:
            return self
        if self._keeping is None:
            return self._writer.direct()
        return Keeping(self._keeping, self._writer.direct()) if self.answered else self

    async def room(self) -> None:
        if self._start is not None and self._size > MOST_HELD:
            await self._let_go()
        if self._unsent:
            body, self._unsent = self._unsent, b""
            await self.send({"type": "http.response.body", "body": body, "more_body": True})
        await self._writer.room()

    @property
    def _waits(self) -> bool:
        """Whether the head is to go out first, or the first token is still to come."""
        return self._head_held is not None or self.first_token is not None
