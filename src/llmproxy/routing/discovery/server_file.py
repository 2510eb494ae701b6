"""Servers that are listed in a file, which somebody writes anew when they change."""

from collections.abc import Sequence

from llmproxy.records import Upstream
from llmproxy.routing.discovery.source import LookFailed, Read
from llmproxy.watched_file import WatchedFile

EVERY = 1.0  # seconds
LARGEST = 1024 * 1024  # bytes


class FileSource:
    """Watches a file. One that is broken or gone leaves what there was."""

    pause = EVERY

    def __init__(self, template: Upstream, *, read: Read) -> None:
        self._listed: Sequence[Upstream] = ()
        self._file = WatchedFile(
            template.path, lambda content: read(template, content), at_most=LARGEST
        )

    async def look(self) -> Sequence[Upstream]:
        try:
            listed = await self._file.look()
        except ValueError as exc:
            raise LookFailed(str(exc)) from None
        if listed is not None:
            self._listed = listed
        return self._listed

    async def aclose(self) -> None:
        """Nothing is held."""
