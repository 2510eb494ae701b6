"""From a body to what the proxy needs to know of it. The bytes themselves stay untouched.

Rule 1: what is read here is what every engine reads. orjson keeps the last of two equal keys
        and other parsers the first; Go's, and so Ollama's, takes `Model` for `model`. A body
        whose model depends on who reads it is refused.
Rule 2: a number that makes no sense is left to the engine, and counts here as not said.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from llmproxy import codec
from llmproxy.errors import InvalidJson, InvalidRequest
from llmproxy.records import InferenceRequest

# orjson builds every value and holds the interpreter while it does: 33 ms for 1 MiB of
# token ids. A struct of the few fields that matter skips the rest, 1 ms for the same.
LARGE = 64 * 1024  # bytes
_LONGEST_VALUE = 4096  # bytes of a field in a large body; only a model's name may be longer
_MOST = 2**31 - 1  # what engines take for a count

_WANTED = (
    *("model", "stream", "stream_options", "n", "best_of", "options", "store"),
    *("max_tokens", "max_completion_tokens", "max_output_tokens"),
)
# All 31 ways to write `model` with capitals.
_OTHER_SPELLINGS = frozenset(
    map("".join, itertools.product(*((char, char.upper()) for char in "model")))
) - {"model"}

_FIELDS = msgspec.defstruct(
    "_FIELDS",
    [(name, msgspec.Raw, msgspec.Raw()) for name in (*_WANTED, *sorted(_OTHER_SPELLINGS))],
)
_DECODER = msgspec.json.Decoder(_FIELDS)
_KEYS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_new = tuple.__new__  # 0.2 us faster than a call of the class
_ERRORS = (codec.NotJson, msgspec.DecodeError, RecursionError, UnicodeDecodeError)

# Inside a JSON string a quote is escaped, so whatever matches is a key, at some depth.
_MODEL_KEY = re.compile(
    rb'"(?:m|\\u006[dD])(?:o|\\u006[fF])(?:d|\\u0064)(?:e|\\u0065)(?:l|\\u006[cC])"(?=[ \t\r\n]*:)'
)
_MARK = "llmproxy.model."


def read_inference(body: bytes) -> InferenceRequest:
    """Return what is asked for; raise when the body is not a JSON object."""
    size = len(body)
    try:
        fields = _large(body) if size > LARGE else codec.loads(body)
    except msgspec.ValidationError:
        raise InvalidRequest("The request body must be a JSON object.") from None
    except _ERRORS as exc:
        raise InvalidJson("The request body is not valid JSON.") from exc
    if type(fields) is not dict:
        raise InvalidRequest("The request body must be a JSON object.")
    if not _OTHER_SPELLINGS.isdisjoint(fields):
        raise InvalidRequest("`model` must be written in lower case.", param="model")
    # The latter from the end, because that is twice as fast: 0.2 us, and nearly every body is
    # spared the careful look.
    if body.find(b'"model"') != body.rfind(b'"model"') or body.rfind(b"\\u006") >= 0:
        _refuse_two_models(body)
    get = fields.get
    model = get("model")
    if model is not None and type(model) is not str:
        raise InvalidRequest("`model` must be a string.", param="model")
    said = get("stream_options")
    n, best_of = get("n"), get("best_of")
    most, newer, options = get("max_tokens"), get("max_completion_tokens"), get("options")
    if (
        newer is options is None and "max_output_tokens" not in fields
    ):  # the way it nearly always is
        most = most if type(most) is int and 0 < most <= _MOST else None
    else:
        most = _most(most, newer, get("max_output_tokens"), options)
    return _new(
        InferenceRequest,
        (
            model,
            get("stream") is True,
            None if said is None else _include_usage(said),
            most,
            1 if n is best_of is None else max(_count(n) or 1, _count(best_of) or 1),
            size,
            get("store") is False,
        ),
    )


def _include_usage(options: object) -> bool | None:
    said = options.get("include_usage") if isinstance(options, dict) else None
    return said if isinstance(said, bool) else None


def _most(*said: object) -> int | None:
    """Return the most that any of these allows; the last are Ollama's options."""
    options = said[-1]
    predicted = options.get("num_predict") if isinstance(options, dict) else None
    if predicted is not None and _count(predicted) is None:
        return None  # Ollama reads this one alone, and -1 is without end
    counts = [_count(value) for value in (*said[:-1], predicted)]
    return max((count for count in counts if count is not None), default=None)


def _count(value: object) -> int | None:
    # `true` is an int in Python, and a number above 64 bits a float in orjson.
    return value if type(value) is int and 0 < value <= _MOST else None


def _large(body: bytes) -> Any:
    if not body.isascii():
        body.decode()  # skipped strings are not checked by the decoder
    found: Mapping[str, msgspec.Raw] = msgspec.structs.asdict(_DECODER.decode(body))
    return {name: _value(raw) for name, raw in found.items() if raw}


def _value(raw: msgspec.Raw) -> object:
    data = bytes(raw)
    if len(data) > _LONGEST_VALUE and not data.startswith(b'"'):
        return ()  # nothing that we would take, and not to be built
    return codec.loads(data)


def _refuse_two_models(body: bytes) -> None:
    """Refuse a second `model` at the top, however it is spelled; deeper ones are data."""
    # Each gets a name of its own, so that none can hide another.
    numbers = itertools.count()
    marked, found = _MODEL_KEY.subn(lambda _: b'"%b%d"' % (_MARK.encode(), next(numbers)), body)
    if found > 1 and sum(key.startswith(_MARK) for key in _KEYS.decode(marked)) > 1:
        raise InvalidRequest("`model` is given more than once.", param="model")
