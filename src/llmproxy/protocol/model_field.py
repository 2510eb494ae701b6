"""Puts another model's name into a body, if it can be without writing the body anew.

Every place where a `model` stands is tried and what comes out is read again: only the body that
now asks for the other model is used. The same words deeper inside are somebody else's.
"""

import re
from collections.abc import Iterator
from itertools import islice

from llmproxy import codec
from llmproxy.errors import RequestError
from llmproxy.protocol.inference import read_inference
from llmproxy.protocol.splice import spliced, tries
from llmproxy.protocol.top_fields import with_field

# Inside a JSON string a quote is escaped, so whatever matches is a key, at some depth.
_MODEL = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*("(?:[^"\\]|\\.)*")', re.DOTALL)
_MOST_PLACES = 8  # that are tried; a body with more of them is not worth the reading


def with_model(body: bytes, model: str) -> bytes:
    """Return the body with this model in it, its other bytes untouched where that can be.

    It is one that was read, and asks for another model or for none.
    """
    name = codec.dumps(model)
    for candidate in islice(_candidates(body, name), tries(body, _MOST_PLACES)):
        try:
            if read_inference(candidate, is_text=True).model == model:
                return candidate
        except RequestError:
            continue
    return with_field(body, "model", name)  # it is hidden among many others, or there is none


def _candidates(body: bytes, name: bytes) -> Iterator[bytes]:
    for place in _MODEL.finditer(body):
        yield spliced(body, place.start(1), place.end(1), name)
