"""Puts `stream_options.include_usage` into a body, without writing the body anew.

Rule 1: bytes are put in or a literal is replaced; all others stay as they came.
Rule 2: where the option stands already, what comes out is read again. Only a body that now says
        what it should is used: the same words deeper inside, in a tool or a schema, are
        somebody else's.
"""

import re
from collections.abc import Iterator
from itertools import islice

from llmproxy.errors import RequestError
from llmproxy.protocol.inference import LARGE, read_inference
from llmproxy.protocol.splice import Pieces, spliced, tries
from llmproxy.records import InferenceRequest

_OPTION = b'"stream_options":{"include_usage":true}'
_OPTION_FIRST = _OPTION + b","

# Inside a JSON string a quote is escaped, so whatever matches is a key, at some depth.
_OPTIONS = re.compile(rb'"stream_options"[ \t\r\n]*:[ \t\r\n]*(null|\{[ \t\r\n]*(\})?)')
_REFUSED = re.compile(rb'"include_usage"[ \t\r\n]*:[ \t\r\n]*(false|null)')

_MOST_PLACES = 4  # that are tried; a body with more of them is not worth the reading
_MOST_TRIES = 21  # all of them, with as many refusals in each
_LONGEST = 4096  # bytes of the options
_MOST_REFUSALS = 256


def with_usage(body: bytes, asked: InferenceRequest) -> Pieces | None:
    """Return the body with the option in it; None when there is no sure way to put it there.

    It is the body of what is `asked`: an object with a stream in it, and so not an empty one.
    """
    if not asked.has_options:
        inside = body.index(b"{") + 1
        rest = body[inside:] if len(body) <= LARGE else memoryview(body)[inside:]
        return body[:inside], _OPTION_FIRST, rest
    for candidate in islice(_candidates(body), tries(body, _MOST_TRIES)):
        try:
            if read_inference(candidate, is_text=True).include_usage is True:
                return (candidate,)
        except RequestError:
            continue
    return None


def _candidates(body: bytes) -> Iterator[bytes]:
    for place in _first(_OPTIONS.finditer(body)):
        if place[1] == b"null":
            yield spliced(body, place.start(), place.end(), _OPTION)
            continue
        for refused in _first(_REFUSED.finditer(body, place.end(), place.end() + _LONGEST)):
            yield spliced(body, refused.start(1), refused.end(), b"true")
        inside = body.index(b"{", place.start(1)) + 1
        yield spliced(body, inside, inside, b'"include_usage":true' + (b"" if place[2] else b","))


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
