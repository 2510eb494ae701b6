"""A file of keys that is watched.

It is taken over as a whole or not at all. One that is broken or gone leaves the keys as they are,
and the log says what is wrong, once.
"""

import logging
import tomllib
from collections.abc import Callable, Mapping

from llmproxy import codec
from llmproxy.auth.fields import Fields
from llmproxy.auth.freshness import Freshness
from llmproxy.auth.keys import KeyEntry, read_entries
from llmproxy.watched_file import WatchedFile, content_of

LARGEST = 16 * 1024 * 1024  # bytes

log = logging.getLogger("llmproxy")


def load_keys(path: str, *, fields: Fields, environ: Mapping[str, str]) -> tuple[KeyEntry, ...]:
    """Read a file of keys: TOML, JSON, or one entry in a line with `#` before comments.

    Raises `ValueError` with a message that shows nothing of what the file holds.
    """
    return _parsed(content_of(path, LARGEST), path, fields, environ)


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
        self._file = WatchedFile(
            path, lambda content: _parsed(content, path, fields, environ), at_most=LARGEST
        )
        self._taken = taken
        self._complaint = ""
        self._freshness = Freshness(self._look)

    @property
    def fresh(self) -> bool:
        """Whether `check` has nothing to do."""
        return self._freshness.fresh

    async def check(self) -> None:
        """Return when the keys are those of the file, or of 4 seconds ago."""
        await self._freshness.check()

    async def aclose(self) -> None:
        """Stop looking."""
        await self._freshness.aclose()

    async def _look(self) -> None:
        try:
            entries = await self._file.look()
            if entries is not None:
                self._taken(entries)
        except ValueError as exc:
            if str(exc) != self._complaint:
                self._complaint = str(exc)
                log.error("The file of keys was not taken over: %s", exc)
            return
        self._complaint = ""


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
