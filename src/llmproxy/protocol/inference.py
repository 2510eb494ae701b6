"""From a body to what the proxy needs to know of it. The bytes themselves stay untouched.

Rule 1: what is read here is what every engine reads. orjson keeps the last of two equal keys
        and other parsers the first; Go's, and so Ollama's, takes `Model` for `model`. A body
        whose model depends on who reads it is refused.
Rule 2: where engines differ, what counts is the reading that writes most: the largest of the
        limits that any of them knows, and no limit where one of them may see none.
Rule 3: a number that makes no sense is left to the engine, and counts here as not said.
"""

import codecs
import itertools
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import msgspec

from llmproxy import codec
from llmproxy.errors import InvalidJson, InvalidRequest
from llmproxy.protocol.top_fields import fields_of
from llmproxy.records import Ending, InferenceRequest

# orjson builds every value and holds the interpreter while it does: 33 ms for 1 MiB of
# token ids. Looking at the fields at the top alone skips the rest, 1 ms for the same.
LARGE = 64 * 1024  # bytes
_LONGEST_VALUE = 4096  # bytes of a field in a large body; only a model's name may be longer
_CHECKED = 256 * 1024  # bytes at a time; the memory for so much is at hand
_CHECKS = 8  # in one step: 1.5 ms
_LONGEST_NUMBER = 4300  # digits that Python, and with it pydantic, reads out of a text
_MOST = 2**63 - 1  # further no engine counts
_FIRST = 256  # prompts that are counted without looking at those behind them
_MOST_PROMPTS = 2**18  # in one request: counting them takes 30 ms

# What one engine or another takes for the limit of an answer, and which of them every engine
# heeds that has the path: alone, the others may limit nothing.
_LIMITS = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n_predict",
    "max_new_tokens",
)
_EVERY_LIMIT = (*_LIMITS, "num_predict")  # the last among Ollama's options
_HEEDED = {
    Ending.CHAT: ("max_tokens", "max_completion_tokens"),
    Ending.MESSAGES: ("max_tokens",),
    Ending.RESPONSES: ("max_output_tokens",),
    Ending.NDJSON: ("num_predict",),
    Ending.UNKNOWN: _EVERY_LIMIT,
}
_NDJSON, _RESPONSES = Ending.NDJSON, Ending.RESPONSES  # to look one up takes 30 ns
_PROMPTS = ("prompt", "prompt_embeds")  # of each, a list of them is answered one by one
_WANTED = frozenset(
    {
        *("model", "stream", "stream_options", "n", "best_of", "options", "store"),
        *(*_LIMITS, *_PROMPTS),
    }
)
# All 31 ways to write `model` with capitals.
_OTHER_SPELLINGS = frozenset(
    map("".join, itertools.product(*((char, char.upper()) for char in "model")))
) - {"model"}
_LOOKED_AT = _WANTED | _OTHER_SPELLINGS
# What is seldom said, to be looked for in one step.
_SELDOM = _OTHER_SPELLINGS | {*_PROMPTS, *_LIMITS[2:], "best_of", "options"}


class _Passed(msgspec.Struct, array_like=True, gc=False):
    """A list of which nothing is looked at."""


# Nearly every list has fewer, and all behind them is passed over.
_FIRST_PROMPTS = msgspec.json.Decoder(
    msgspec.defstruct(
        "_FIRST_PROMPTS",
        [(f"_{number}", msgspec.Raw, msgspec.Raw()) for number in range(_FIRST)],
        array_like=True,
    )
)
_TOKEN_LISTS = msgspec.json.Decoder(list[_Passed])
_VALUES = msgspec.json.Decoder(list[msgspec.Raw])
_BEGINNING = re.compile(rb"\[[ \t\r\n]*(.)", re.DOTALL)
_ERRORS = (codec.NotJson, msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def text_checked(body: bytes) -> Iterator[None]:
    """Raise when a large body is no text; it is looked at a step at a time, before each `next`.

    Of 16 MiB of Japanese it takes as long as all the rest of understanding them.
    """
    try:
        for number, _ in enumerate(_checks(body)):
            if number % _CHECKS == 0:
                yield
    except UnicodeDecodeError as exc:
        raise InvalidJson("The request body is not valid JSON.") from exc


def read_inference(
    body: bytes, ending: Ending = Ending.UNKNOWN, is_text: bool = False
) -> InferenceRequest:
    """Return what is asked for; raise when the body is not a JSON object.

    `ending` is that of the endpoint: it tells which limits are heeded there. Of a large body it
    may have been seen before that it `is_text`.
    """
    size = len(body)
    try:
        if size > LARGE:
            if not is_text:
                deque(_checks(body), maxlen=0)
            fields = _large(body)
        else:
            fields = codec.loads(body)
            # The latter from the end, because that is twice as fast: 0.2 us, and nearly every
            # body is spared the careful look.
            if body.find(b'"model"') != body.rfind(b'"model"') or body.rfind(b"\\u006") >= 0:
                _refuse_two_models(fields_of(body))
    except msgspec.ValidationError:
        raise InvalidRequest("The request body must be a JSON object.") from None
    except _ERRORS as exc:
        raise InvalidJson("The request body is not valid JSON.") from exc
    if type(fields) is not dict:
        raise InvalidRequest("The request body must be a JSON object.")
    seldom = not _SELDOM.isdisjoint(fields)
    if seldom and not _OTHER_SPELLINGS.isdisjoint(fields):
        raise InvalidRequest("`model` must be written in lower case.", param="model")
    get = fields.get
    model = get("model")
    if model is not None and type(model) is not str:
        raise InvalidRequest("`model` must be a string.", param="model")
    said = get("stream_options")
    n, most, newer = get("n"), get("max_tokens"), get("max_completion_tokens")
    choices = answers = 1 if n is None else _count(n) or 1
    if seldom:
        prompts = _prompts(get)
        choices = min(max(answers, _count(get("best_of")) or 1) * prompts, _MOST)
        answers = min(answers * prompts, _MOST)
        most = _limit(get, ending)
    elif newer is None and (most is None or (type(most) is int and 0 < most <= _MOST)):
        if ending is _NDJSON or ending is _RESPONSES:
            most = None  # another name is heeded there
    else:
        most = _limit(get, ending)
    return InferenceRequest(
        model,
        get("stream") is True,
        None if said is None else _include_usage(said),
        most,
        choices,
        size,
        get("store") is False,
        said is not None or "stream_options" in fields,
        answers,
    )


def _include_usage(options: object) -> bool | None:
    said = options.get("include_usage") if isinstance(options, dict) else None
    return said if isinstance(said, bool) else None


def _limit(get: Callable[[str], object], ending: Ending) -> int | None:
    """Return the most tokens that one answer may have; None where there may be no limit."""
    options = get("options")
    if options is _TOO_LONG:
        return None
    predicted = options.get("num_predict") if isinstance(options, dict) else None
    most, heeded, names = 0, False, _HEEDED[ending]
    for name, value in zip(_EVERY_LIMIT, (*map(get, _LIMITS), predicted), strict=True):
        if value is None:
            continue
        count = _count(value)
        if count is None:
            return None  # -1 is without end, for Ollama and llama.cpp
        if count > most:
            most = count
        # A text, or a number that is not whole, one engine reads and another passes over.
        if name in names and (type(value) is int or (type(value) is float and value % 1 == 0)):
            heeded = True
    return most if heeded else None


def _prompts(get: Callable[[str], object]) -> int:
    """Return how many prompts are to be answered."""
    return sum(_entries(get(name)) for name in _PROMPTS) or 1


def _entries(value: object) -> int:
    if type(value) is not list:
        return 0 if value is None else 1
    # One prompt as token ids, and not several.
    return 1 if not value or type(value[0]) in (int, float) else len(value)


def _count(value: object) -> int | None:
    """Return the number that is meant, rounded up; None where none is, or none above 0."""
    if type(value) is int:  # `true` is one in Python
        return min(value, _MOST) if value > 0 else None
    if type(value) is str:
        if len(value) > _LONGEST_NUMBER:
            return None
        try:
            value = float(value)
        except ValueError:
            return None
    # A number above 64 bits is a float in orjson.
    if type(value) is not float or not value > 0:  # NaN fails this too
        return None
    return math.ceil(min(value, _MOST))


def _large(body: bytes) -> dict[str, object]:
    found = fields_of(body)
    _refuse_two_models(found)
    return {
        name: _list_of_prompts(raw) if name in _PROMPTS else _value(raw)
        for name, raw in found
        if name in _LOOKED_AT
    }


def _checks(body: bytes) -> Iterator[None]:
    """Raise when the bytes are not UTF-8, for strings that are skipped are not checked.

    Not as one text, which may have twice their size.
    """
    if body.isascii():
        return
    view, size, at = memoryview(body), len(body), 0
    while at < size:
        yield
        end = at + _CHECKED
        at += codecs.utf_8_decode(view[at:end], "strict", end >= size)[1]


_TOO_LONG = ()  # nothing that we would take, and not to be built


def _value(raw: msgspec.Raw) -> object:
    data = bytes(raw)
    if len(data) > _LONGEST_VALUE and not data.startswith(b'"'):
        if data[0] in b"-0123456789":  # an engine might take it for a small one
            raise InvalidRequest("A number has too many digits.")
        return _TOO_LONG
    return codec.loads(data)


def _list_of_prompts(raw: msgspec.Raw) -> object:
    """Return a list with as many entries as there are prompts; none of them is built."""
    begins = _BEGINNING.match(raw)
    if begins is None or begins[1] in b"-0123456789]":
        # One, or what is none. It may be large, and is not copied to be compared.
        return None if memoryview(raw)[:5].tobytes() == b"null" else _TOO_LONG
    first = [each for each in msgspec.structs.astuple(_FIRST_PROMPTS.decode(raw)) if each]
    if len(first) < _FIRST:
        return first
    data = bytes(raw)
    if begins[1] == b"[" and data.count(b"[") <= _MOST_PROMPTS:
        try:
            return _TOKEN_LISTS.decode(data)  # with any number of token ids
        except msgspec.ValidationError:
            pass  # texts and token ids
    if data.count(b",") > _MOST_PROMPTS:
        raise InvalidRequest("There are too many prompts in `prompt`.", param="prompt")
    return _VALUES.decode(data)


def _refuse_two_models(found: Iterable[tuple[str, object]]) -> None:
    """Refuse a second `model` at the top, however it is spelled; deeper ones are data."""
    if sum(name == "model" for name, _ in found) > 1:
        raise InvalidRequest("`model` is given more than once.", param="model")
