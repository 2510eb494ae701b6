"""What comes of a stream before its first token, where another server is asked if that is late.

Rule 1: a role, an empty text, a comment say nothing yet. A text, reasoning, a call of a tool, an
        end or an error do, and so does whatever is not known.
Rule 2: what says nothing is held back: the next server may say it again, and under another name.
"""

import asyncio
from collections.abc import Awaitable

from llmproxy import clock, codec
from llmproxy.errors import UpstreamTimeout
from llmproxy.protocol.usage_text import length_of_text
from llmproxy.routing.course import Attempt
from llmproxy.routing.delivered import BLANK, data_of
from llmproxy.routing.kept import says_failure

MOST = 64 * 1024  # bytes that say nothing

_QUIET = frozenset(
    {
        *("message_start", "content_block_start", "ping"),
        *("response.created", "response.queued", "response.in_progress"),
        *("response.output_item.added", "response.content_part.added"),
    }
)


class FirstToken:
    """Waits for the first token of an attempt."""

    def __init__(self, attempt: Attempt) -> None:
        self._server = attempt.server
        self._due = attempt.asked_at + attempt.first_byte
        self._clock = asyncio.timeout(None)
        attempt.is_late = self._clock.expired
        self.held = b""
        self._unread = b""  # of that: the first half of an event

    async def within(self, asked: Awaitable[None]) -> None:
        """Wait for an attempt; give it up if it says something too late.

        Until something comes at all, whoever reads it has an eye on the time.
        """
        try:
            async with self._clock:
                await asked
        except TimeoutError:
            if not self._clock.expired():
                raise
            name = self._server.upstream.name
            raise UpstreamTimeout(f"{name} sent no first token in time.") from None

    def take(self, piece: bytes, *, last: bool) -> bool:
        """Take what has come; tell whether that, with what is held, is to be passed on."""
        self.held += piece
        *whole, self._unread = BLANK.split(self._unread + piece)
        came = last or len(self.held) > MOST or any(map(says_something, whole))
        left = self._due - clock.now()
        self._clock.reschedule(None if came else asyncio.get_running_loop().time() + left)
        return came


def says_something(event: bytes) -> bool:
    """Tell whether an event is more than preliminaries."""
    data = data_of(event)
    if not data:
        return False
    try:
        said = codec.loads(data)
    except codec.NotJson:
        return True
    if not isinstance(said, dict) or says_failure(said):
        return True
    choices = said.get("choices")
    if not isinstance(choices, list):
        kind = said.get("type")
        return not isinstance(kind, str) or kind not in _QUIET
    return length_of_text(choices) > 0 or any(
        isinstance(choice, dict) and choice.get("finish_reason") is not None for choice in choices
    )
