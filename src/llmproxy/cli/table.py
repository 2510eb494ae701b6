"""A table for the terminal."""

import shutil
import sys
import unicodedata
from collections.abc import Sequence

GAP = "  "
NOTHING = "-"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return rows in columns; what could move the cursor is shown as an escape.

    Where that is wider than `width`, each row is shown by itself, under what its first cell says.
    """
    lines = [[_plain(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    if width is not None and sum(widths) + len(GAP) * (len(widths) - 1) > width:
        return "\n".join(_by_itself(lines[0], line) for line in lines[1:])
    return "\n".join(GAP.join(map(_padded, line, widths)).rstrip() for line in lines)


def width_of_stdout() -> int | None:
    """Return how many columns the reader's terminal has; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _by_itself(head: Sequence[str], line: Sequence[str]) -> str:
    names = max(map(_width, head[1:]), default=0)
    told = zip(head[1:], line[1:], strict=True)
    said = [f"{GAP}{_padded(name, names)}{GAP}{cell}" for name, cell in told if cell != NOTHING]
    return "\n".join((line[0], *said))


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Return how many columns a terminal takes for it: two for a Chinese character, say."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
