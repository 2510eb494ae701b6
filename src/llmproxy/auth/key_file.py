"""A file of keys that is watched.

Rule 1: it is taken over as a whole or not at all. One that is broken or gone leaves the keys as
        they are, and the log says what is wrong, once.
Rule 2: nothing here touches the disk on the event loop.
"""

import asyncio
import logging
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from llmproxy import codec
from llmproxy.auth.fields import Fields
from llmproxy.auth.freshness import Freshness
from llmproxy.auth.keys import KeyEntry, read_entries

LARGEST = 16 * 1024 * 1024  # bytes

State = tuple[int, int, int]  # of a file: when it was changed, its size, its inode

log = logging.getLogger("llmproxy")


def load_keys(path: str, *, fields: Fields, environ: Mapping[str, str]) -> tuple[KeyEntry, ...]:
    """Read a file of keys: TOML, JSON, or one entry in a line with `#` before comments.

    Raises `ValueError` with a message that shows nothing of what the file holds.
    """
    return _parsed(_content(path), path, fields, environ)


class KeyFile:
    """Reads the file again when it has changed, for as long as keys are asked for."""

    def __init__(
        self,
        path: str,
        *,
        fields: Fields,
        environ: Mapping[str, str],
        taken: Callable[[tuple[KeyEntry, ...]], None],
    ) -> None:
        self._path = path
        self._fields = fields
        self._environ = environ
        self._taken = taken
        self._state: State | None = None
        self._complaint = ""
        self._freshness = Freshness(self._look)

    async def check(self) -> None:
        """Return when the keys are those of the file, or of 4 seconds ago."""
        await self._freshness.check()

    async def aclose(self) -> None:
        """Stop looking."""
        await self._freshness.aclose()

    async def _look(self) -> None:
        try:
            read = await asyncio.to_thread(self._read)
        except ValueError as exc:
            if str(exc) != self._complaint:
                self._complaint = str(exc)
                log.error("The file of keys was not taken over: %s", exc)
            return
        self._complaint = ""
        if read is not None:
            # Only what was read well is remembered as seen: what is broken is read again.
            self._state, entries = read
            self._taken(entries)

    def _read(self) -> tuple[State, tuple[KeyEntry, ...]] | None:
        try:
            # Before the content: what is written while we read is a change for the next look.
            found = Path(self._path).stat()
        except OSError as exc:
            raise ValueError(f"{self._path!r} cannot be read: {exc.strerror}") from None
        state = (found.st_mtime_ns, found.st_size, found.st_ino)
        if state == self._state:
            return None
        return state, load_keys(self._path, fields=self._fields, environ=self._environ)


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as exc:
        raise ValueError(f"{path!r} cannot be read: {exc.strerror}") from None
    if len(content) > LARGEST:
        raise ValueError(f"{path!r} is larger than {LARGEST} bytes")
    return content


def _parsed(
    content: bytes, path: str, fields: Fields, environ: Mapping[str, str]
) -> tuple[KeyEntry, ...]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path!r} is not UTF-8") from None
    lowered = path.lower()
    try:
        if lowered.endswith(".toml"):
            items = _table(tomllib.loads(text))
        elif lowered.endswith(".json") or text.lstrip().startswith(("[", "{")):
            items = _table(codec.loads(text))
        else:
            lines = (line.strip().rstrip(",") for line in text.splitlines())
            items = [line for line in lines if line and not line.startswith("#")]
    except (tomllib.TOMLDecodeError, codec.NotJson) as exc:
        where = f" (line {exc.lineno})" if isinstance(exc, codec.NotJson) else ""
        raise ValueError(f"{path!r} cannot be understood{where}") from None
    try:
        return read_entries(items, fields=fields, environ=environ)
    except ValueError as exc:
        raise ValueError(f"{path!r}: {exc}") from None


def _table(document: object) -> list[object]:
    """Return the entries of a document: a list, a table by name, either of them under `keys`."""
    if isinstance(document, Mapping) and isinstance(document.get("keys"), list | Mapping):
        document = document["keys"]
    if isinstance(document, Mapping):
        return [
            {"name": name, **(item if isinstance(item, Mapping) else {"key": item})}
            for name, item in document.items()
        ]
    if isinstance(document, list):
        return document
    raise ValueError("must be a list of keys, or a table of them by name")
