"""A stream of which the bytes are kept, on its way to the client.

It was begun by this very attempt, so that nothing is left to do for a piece of it but to keep it.
"""

from llmproxy.errors import UpstreamBroken
from llmproxy.routing.kept import KeptStream
from llmproxy.types import Writer

FAILED = "The model server reported an error in mid-stream."


class Keeping(Writer):
    """Keeps each piece and writes it.

    What is `plain` to `kept` may be put there and written to `behind` without asking here.
    """

    __slots__ = ("behind", "kept")

    def __init__(self, kept: KeptStream, behind: Writer) -> None:
        self.kept = kept
        self.behind = behind

    def write(self, body: bytes) -> bool:
        going = self.kept.through(body)
        more = self.behind.write(going) if going else True
        if self.kept.failed:
            raise UpstreamBroken(FAILED)
        return more

    async def room(self) -> None:
        await self.behind.room()
