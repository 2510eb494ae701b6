"""JSON in and out. The only file that knows which library does it."""

from typing import Any

import orjson

NotJson = orjson.JSONDecodeError


def loads(data: bytes | str) -> Any:
    """Parse JSON; raise `NotJson` for anything that RFC 8259 does not allow."""
    return orjson.loads(data)


def dumps(value: object) -> bytes:
    """Write JSON on one line; what JSON has no form for is written as text."""
    try:
        return orjson.dumps(value, default=str)
    except TypeError:  # a key that is no text; to be ready for one costs as much as all the rest
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)


def dumps_pretty(value: object) -> bytes:
    """Write JSON for people to read."""
    return orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
