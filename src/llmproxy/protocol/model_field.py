"""Puts another model's name into a body, if it can be without writing the body anew.

Every place where a `model` stands is tried and what comes out is read again: only the body that
now asks for the other model is used. The same words deeper inside are somebody else's.
"""

import re

from llmproxy import codec
from llmproxy.errors import RequestError
from llmproxy.protocol.inference import read_inference

# Inside a JSON string a quote is escaped, so whatever matches is a key, at some depth.
_MODEL = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*("(?:[^"\\]|\\.)*")', re.DOTALL)
_MOST_PLACES = 8  # that are tried; a body with more of them is not worth the reading


def with_model(body: bytes, model: str) -> bytes:
    """Return the body with this model in it, its other bytes untouched where that can be."""
    if read_inference(body).model == model:
        return body
    name = codec.dumps(model)
    for number, place in enumerate(_MODEL.finditer(body)):
        if number == _MOST_PLACES:
            break
        candidate = body[: place.start(1)] + name + body[place.end(1) :]
        try:
            if read_inference(candidate).model == model:
                return candidate
        except RequestError:
            continue
    # None, or hidden among many others: then it is written anew.
    return codec.dumps({**codec.loads(body), "model": model})
