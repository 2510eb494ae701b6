"""The grammars of single values. Each takes what was given and returns what is meant.

Given may be text, from the environment, or a value, from TOML or Python.
"""

import re
from collections.abc import Callable
from pathlib import Path

from llmproxy.auth.samples import is_sample
from llmproxy.settings.faults import MASK, Refused, refuse

_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_COUNT = re.compile(r"[0-9]{1,12}")
_SIZE = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,6}))? ?([A-Za-z]*)")
_UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
YEAR = 365 * 86_400
_LARGEST = 1024**4


def seconds(given: object, *, least: float = 0.0) -> float:
    """Read a number of seconds."""
    value = _number(given)
    if value is None or not least <= value <= YEAR:  # NaN fails this too
        raise refuse(
            given, f"must be a number of seconds from {least:g} to {YEAR}, such as 30 or 0.5"
        )
    return value


def _number(given: object) -> float | None:
    if isinstance(given, str) and _SECONDS.fullmatch(given.strip()):
        return float(given)
    if isinstance(given, int | float) and not isinstance(given, bool):
        try:
            return float(given)
        except OverflowError:
            return None
    return None


def count(least: int, most: int) -> Callable[[object], int]:
    """Return the reader of a whole number."""

    def read(given: object) -> int:
        value = None
        if isinstance(given, str) and _COUNT.fullmatch(given.strip()):
            value = int(given)
        elif isinstance(given, int) and not isinstance(given, bool):
            value = given
        if value is None or not least <= value <= most:
            raise refuse(given, f"must be a whole number from {least} to {most}")
        return value

    return read


def size(given: object) -> int:
    """Read a number of bytes: `32MiB`, `512MB`, `1048576`."""
    value = None
    if isinstance(given, str) and (match := _SIZE.fullmatch(given.strip())):
        whole, fraction, unit = match[1], match[2], match[3].lower()
        if unit in _UNITS and (fraction is None or _UNITS[unit] > 1):
            value = int(float(f"{whole}.{fraction or 0}") * _UNITS[unit])
    elif isinstance(given, int) and not isinstance(given, bool):
        value = given
    if value is None or not 1 <= value <= _LARGEST:
        raise refuse(given, "must be a size from 1 byte to 1TiB, such as 32MiB, 512MB or 1048576")
    return value


def choice(*allowed: str) -> Callable[[object], str]:
    """Return the reader of one word out of several."""

    def read(given: object) -> str:
        word = given.strip().lower() if isinstance(given, str) else None
        if word not in allowed:
            raise refuse(given, f"must be one of {', '.join(allowed)}")
        return word

    return read


def switch(given: object) -> bool:
    """Read on or off; TOML and Python have words of their own for it."""
    word = given.strip().lower() if isinstance(given, str) else given
    if isinstance(word, bool):
        return word
    if word not in ("on", "off"):
        raise refuse(given, "must be on or off")
    return word == "on"


def admin_key(given: object) -> str:
    """Read a key that opens doors: something that nobody can guess or has read in an example."""
    if not isinstance(given, str) or not given.strip():
        raise Refused(("''" if given in ("", None) else MASK, "must not be empty; " + _MAKE_ONE))
    if not is_sendable(given):
        raise Refused((MASK, "must be printable ASCII without spaces; " + _MAKE_ONE))
    if is_sample(given):
        raise Refused((MASK, "is a sample value that everybody knows; " + _MAKE_ONE))
    return given


_MAKE_ONE = "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"


def is_sendable(text: str) -> bool:
    """Tell whether a text can stand in a header as one word."""
    return text.isascii() and text.isprintable() and " " not in text and text != ""


def existing_file(given: object) -> str:
    """Read the path of a file that is there and can be read."""
    if not isinstance(given, str | Path) or not str(given).strip():
        raise refuse(given, "must be the path of a file")
    path = str(given)
    reason = why_unreadable(path)
    if reason is not None:
        raise refuse(path, reason)
    return path


def why_unreadable(path: str) -> str | None:
    """Return why a file cannot be read; None when it can."""
    try:
        if not Path(path).is_file():
            return "there is no such file"
        with open(path, "rb"):
            return None
    except (OSError, ValueError) as exc:
        return f"cannot be read: {getattr(exc, 'strerror', None) or 'not a path'}"
