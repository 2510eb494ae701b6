"""Tells an engine that schedules by priority which class a request is of.

Ours go by "the higher the sooner", as SGLang's do; vLLM takes the lowest number first. What the
caller has written there itself is replaced: a class is given by its key.
"""

import re

from llmproxy.protocol.inference import LARGE
from llmproxy.protocol.splice import spliced
from llmproxy.protocol.top_fields import fields_of, with_field

_NAME = "priority"
_KEY = b'"priority"'
_START = re.compile(rb"\s*\{(\s*\})?")


def with_priority(body: bytes, level: int, preset: str) -> bytes:
    """Return the body with the class in it, its other bytes untouched where that can be."""
    number = b"%d" % (level if preset == "sglang" else -level)
    # In a large body it takes longer to search for the word, or for a letter's number in it.
    suspect = len(body) > LARGE or _KEY in body or b"\\u00" in body
    if suspect and any(name == _NAME for name, _ in fields_of(body)):
        return with_field(body, _NAME, number)
    start = _START.match(body)
    assert start is not None, "the body of a request that was understood"
    inside = body.index(b"{") + 1
    comma = b"" if start[1] else b","
    return spliced(body, inside, inside, b"%b:%b%b" % (_KEY, number, comma))
