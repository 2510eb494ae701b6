"""Tells an engine that schedules by priority which class a request is of.

Ours go by "the higher the sooner", as SGLang's do; vLLM takes the lowest number first. What the
caller has written there itself is replaced: a class is given by its key.
"""

from llmproxy import codec

_KEY = b'"priority"'


def with_priority(body: bytes, level: int, preset: str) -> bytes:
    """Return the body with the class in it, its other bytes untouched where that can be."""
    number = level if preset == "sglang" else -level
    if _KEY in body or b"\\u00" in body:  # which may be a letter of it
        asked = codec.loads(body)
        if "priority" in asked:
            return codec.dumps({**asked, "priority": number})
    start = body.index(b"{") + 1
    rest = body[start:]
    comma = b"" if rest.lstrip().startswith(b"}") else b","
    return b"%b%b:%d%b%b" % (body[:start], _KEY, number, comma, rest)
