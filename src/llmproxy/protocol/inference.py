"""From a body to what the proxy needs to know of it. The bytes themselves stay untouched.

Rule 1: what is read here is what every engine reads. orjson keeps the last of two equal keys
        and other parsers the first; Go's, and so Ollama's, takes `Model` for `model`. A body
        whose model depends on who reads it is refused.
Rule 2: a number that makes no sense is left to the engine, and counts here as not said.
"""

import codecs
import itertools
import re
from collections.abc import Iterable

import msgspec

from llmproxy import codec
from llmproxy.errors import InvalidJson, InvalidRequest
from llmproxy.protocol.top_fields import fields_of
from llmproxy.records import InferenceRequest

# orjson builds every value and holds the interpreter while it does: 33 ms for 1 MiB of
# token ids. Looking at the fields at the top alone skips the rest, 1 ms for the same.
LARGE = 64 * 1024  # bytes
_LONGEST_VALUE = 4096  # bytes of a field in a large body; only a model's name may be longer
_CHECKED = 256 * 1024  # bytes at a time; the memory for so much is at hand
_MOST = 2**31 - 1  # what engines take for a count

_WANTED = frozenset(
    {
        *("model", "stream", "stream_options", "n", "best_of", "options", "store", "prompt"),
        *("max_tokens", "max_completion_tokens", "max_output_tokens"),
    }
)
# All 31 ways to write `model` with capitals.
_OTHER_SPELLINGS = frozenset(
    map("".join, itertools.product(*((char, char.upper()) for char in "model")))
) - {"model"}
_LOOKED_AT = _WANTED | _OTHER_SPELLINGS

_PROMPTS = (str, list, msgspec.Raw)
# As many as are counted in a large body: a list of a MiB may have 350,000, each 64 bytes.
_FIRST_PROMPTS = msgspec.json.Decoder(
    msgspec.defstruct(
        "_FIRST_PROMPTS",
        [(f"_{number}", msgspec.Raw, msgspec.Raw()) for number in range(256)],
        array_like=True,
    )
)
_SEVERAL_PROMPTS = re.compile(rb'\[[ \t\r\n]*["\[]')
_new = tuple.__new__  # 0.2 us faster than a call of the class
_ERRORS = (codec.NotJson, msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def read_inference(body: bytes) -> InferenceRequest:
    """Return what is asked for; raise when the body is not a JSON object."""
    size = len(body)
    try:
        if size > LARGE:
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
    if not _OTHER_SPELLINGS.isdisjoint(fields):
        raise InvalidRequest("`model` must be written in lower case.", param="model")
    get = fields.get
    model = get("model")
    if model is not None and type(model) is not str:
        raise InvalidRequest("`model` must be a string.", param="model")
    said = get("stream_options")
    n, best_of, prompt = get("n"), get("best_of"), get("prompt")
    most, newer, options = get("max_tokens"), get("max_completion_tokens"), get("options")
    if (
        newer is options is None and "max_output_tokens" not in fields
    ):  # the way it nearly always is
        most = most if type(most) is int and 0 < most <= _MOST else None
    else:
        most = _most(most, newer, get("max_output_tokens"), options)
    choices = answers = 1
    if not (n is best_of is None and type(prompt) is not list):
        answers = _count(n) or 1
        choices = max(answers, _count(best_of) or 1)
        prompts = _prompts(prompt)
        answers, choices = min(answers * prompts, _MOST), min(choices * prompts, _MOST)
    return _new(
        InferenceRequest,
        (
            model,
            get("stream") is True,
            None if said is None else _include_usage(said),
            most,
            choices,
            size,
            get("store") is False,
            said is not None or "stream_options" in fields,
            answers,
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


def _prompts(prompt: object) -> int:
    """Return how many prompts there are: a list of numbers is one, in tokens."""
    if type(prompt) is not list or not prompt or type(prompt[0]) not in _PROMPTS:
        return 1
    return len(prompt)


def _large(body: bytes) -> dict[str, object]:
    if not body.isascii():
        _check_text(body)  # for strings that are skipped are not checked
    found = fields_of(body)
    _refuse_two_models(found)
    return {
        name: _value(raw) if name != "prompt" else _first_prompts(raw)
        for name, raw in found
        if name in _LOOKED_AT
    }


def _check_text(body: bytes) -> None:
    """Raise when the bytes are not UTF-8. Not as one text, which may have twice their size."""
    view, size, at = memoryview(body), len(body), 0
    while at < size:
        end = at + _CHECKED
        at += codecs.utf_8_decode(view[at:end], "strict", end >= size)[1]


def _first_prompts(raw: msgspec.Raw) -> list[msgspec.Raw]:
    """Return what is counted and not read; nothing of one prompt."""
    if not _SEVERAL_PROMPTS.match(raw):
        return []
    return [each for each in msgspec.structs.astuple(_FIRST_PROMPTS.decode(raw)) if each]


def _value(raw: msgspec.Raw) -> object:
    data = bytes(raw)
    if len(data) > _LONGEST_VALUE and not data.startswith(b'"'):
        return ()  # nothing that we would take, and not to be built
    return codec.loads(data)


def _refuse_two_models(found: Iterable[tuple[str, object]]) -> None:
    """Refuse a second `model` at the top, however it is spelled; deeper ones are data."""
    if sum(name == "model" for name, _ in found) > 1:
        raise InvalidRequest("`model` is given more than once.", param="model")
