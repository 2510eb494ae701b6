"""Puts `stream_options.include_usage` into a body, without writing the body anew.

Rule 1: bytes are put in or a literal is replaced; all others stay as they came.
Rule 2: where the words stand already, or could in escapes, what comes out is read again. Only a
        body that now says what it should is used: the same words deeper inside, in a tool or a
        schema, are somebody else's.
"""

import re
from collections.abc import Iterator

from llmproxy.errors import RequestError
from llmproxy.protocol.inference import read_inference

_OPTION = b'"stream_options":{"include_usage":true}'

# Inside a JSON string a quote is escaped, so whatever matches is a key, at some depth.
_OPTIONS = re.compile(rb'"stream_options"[ \t\r\n]*:[ \t\r\n]*(null|\{[ \t\r\n]*(\})?)')
_REFUSED = re.compile(rb'"include_usage"[ \t\r\n]*:[ \t\r\n]*(false|null)')

_MOST_PLACES = 4  # that are tried; a body with more of them is not worth the reading
_MOST_REFUSALS = 256


def with_usage(body: bytes) -> bytes | None:
    """Return the body with the option in it; None when there is no sure way to put it there.

    The body is that of a request which asks for a stream: an object, and not an empty one.
    """
    if body.rfind(b'"stream_options"') < 0 and body.rfind(b"\\u00") < 0:
        return _at_the_front(body)
    for candidate in _candidates(body):
        try:
            if read_inference(candidate).include_usage is True:
                return candidate
        except RequestError:
            continue
    return None


def _candidates(body: bytes) -> Iterator[bytes]:
    for place in _first(_OPTIONS.finditer(body)):
        if place[1] == b"null":
            yield body[: place.start()] + _OPTION + body[place.end() :]
            continue
        for refused in _first(_REFUSED.finditer(body, place.end())):
            yield body[: refused.start(1)] + b"true" + body[refused.end() :]
        inside = body.index(b"{", place.start(1)) + 1
        comma = b"" if place[2] else b","
        yield b'%b"include_usage":true%b%b' % (body[:inside], comma, body[inside:])
    yield _at_the_front(body)  # all of them were deeper; one behind it would win, and be noticed


def _at_the_front(body: bytes) -> bytes:
    inside = body.index(b"{") + 1
    return b"%b%b,%b" % (body[:inside], _OPTION, body[inside:])


def _first(found: Iterator[re.Match[bytes]]) -> Iterator[re.Match[bytes]]:
    for _, match in zip(range(_MOST_PLACES), found, strict=False):
        yield match


class Refusals:
    """The models whose servers do not take the option.

    Kept by model and not by server: the body is written before a server is chosen. Bounded, and
    forgotten after a while, for a server may be replaced by a newer one.
    """

    def __init__(self, forget_after: float = 3600.0) -> None:
        self._forget_after = forget_after  # seconds
        self._until: dict[str | None, float] = {}

    def add(self, model: str | None, now: float) -> None:
        """Remember that the option was refused."""
        self._until.pop(model, None)
        if len(self._until) >= _MOST_REFUSALS:
            del self._until[next(iter(self._until))]
        self._until[model] = now + self._forget_after

    def include(self, model: str | None, now: float) -> bool:
        """Tell whether the option was refused lately."""
        until = self._until.get(model)
        if until is None:
            return False
        if until > now:
            return True
        del self._until[model]
        return False


_NAMED = re.compile(
    rb"stream_options|include_usage|extra[ _](?:fields|inputs|forbidden)|unknown (?:field|param)"
    rb"|unrecognized|unexpected (?:field|keyword)|additional properties",
    re.IGNORECASE,
)


def refuses(status: int, body: bytes) -> bool:
    """Tell whether this may be the answer of a server that does not take the option."""
    return status in (400, 422) and _NAMED.search(body) is not None
