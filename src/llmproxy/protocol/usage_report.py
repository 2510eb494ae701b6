"""What the model servers call the tokens they have counted, and where they say it.

Rule 1: only whole numbers from zero up to what a context could hold are taken. Everything else
        counts as not said, whatever it is.
Rule 2: of what is said twice the last holds, field by field: Anthropic tells the prompt at the
        beginning and the answer at the end.
Rule 3: what Anthropic's first event tells of the answer is how it begins. It is no count of it:
        whoever left before the last event would have had all of it for one token.
"""

import re

from llmproxy import codec
from llmproxy.records import Usage

MOST = 100_000_000  # tokens; the longest context there is has a tenth of it

_PROMPT, _COMPLETION, _CACHED, _REASONING, _TOTAL, _READ, _WRITTEN, _BEGUN = range(8)
_NAMES = {
    "prompt_tokens": _PROMPT,
    "input_tokens": _PROMPT,
    "prompt_eval_count": _PROMPT,  # Ollama
    "tokens_evaluated": _PROMPT,  # llama.cpp's own API
    "input_length": _PROMPT,  # TGI's own API
    "completion_tokens": _COMPLETION,
    "output_tokens": _COMPLETION,
    "eval_count": _COMPLETION,
    "tokens_predicted": _COMPLETION,
    "generated_tokens": _COMPLETION,
    "cached_tokens": _CACHED,
    "prompt_cache_hit_tokens": _CACHED,  # DeepSeek
    "reasoning_tokens": _REASONING,
    "total_tokens": _TOTAL,
    # Anthropic's `input_tokens` are those that came neither out of a cache nor went into one.
    "cache_read_input_tokens": _READ,
    "cache_creation_input_tokens": _WRITTEN,
}
_DETAILS = frozenset(
    {
        *("prompt_tokens_details", "input_tokens_details"),
        *("completion_tokens_details", "output_tokens_details", "billed_units", "tokens"),
    }
)
_ELSEWHERE = ("response", "message", "meta", "meta_info", "details")

# For a line that is too long to be kept whole. Its objects have objects in them, not deeper.
_OBJECT = re.compile(
    rb'"(?:usage|meta_info|details)"\s*:\s*(\{[^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*\})'
)
_NUMBER = re.compile(rb'"((?:prompt_)?eval_count|tokens_(?:predicted|evaluated))"\s*:\s*(\d{1,10})')


class Report:
    """What was said so far. To be given the last word first: what is known, stays."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said: dict[int, int] = {}

    def take(self, value: object) -> None:
        """Look for numbers in an answer or in an event."""
        if not isinstance(value, dict):
            return
        usage = value.get("usage")
        if isinstance(usage, dict):
            self._take(usage)
            return
        self._take(value)
        for name in _ELSEWHERE:
            place = value.get(name)
            if isinstance(place, dict):
                usage = place.get("usage")
                begun = name == "message"
                self._take(usage if isinstance(usage, dict) else place, begun=begun)

    def _take(self, place: dict[str, object], *, begun: bool = False) -> None:
        said = self._said
        for name, number in place.items():
            # A boolean is an int in Python.
            if type(number) is int:
                field = _NAMES.get(name)
                if begun and field == _COMPLETION:
                    field = _BEGUN
                if field is not None and field not in said and 0 <= number <= MOST:
                    said[field] = number
            elif name in _DETAILS and isinstance(number, dict):
                self._take(number)

    def take_fragment(self, data: bytes) -> None:
        """Look for them in a part of one, from its end."""
        for found in reversed(list(_OBJECT.finditer(data))):
            try:
                self.take({"usage": codec.loads(found[1])})
            except codec.NotJson:
                continue
        for found in reversed(list(_NUMBER.finditer(data))):
            self.take({found[1].decode(): int(found[2])})

    @property
    def prompt(self) -> int | None:
        """Tokens of the prompt."""
        get = self._said.get
        said = get(_PROMPT)
        if said is not None:
            return said + get(_READ, 0) + get(_WRITTEN, 0)
        if _TOTAL in self._said:
            return max(0, self._said[_TOTAL] - self._said.get(_COMPLETION, 0))
        return None

    @property
    def completion(self) -> int | None:
        """Tokens of the answer."""
        return self._said.get(_COMPLETION)

    @property
    def begun(self) -> int:
        """Tokens of the answer that were there when it began."""
        return self._said.get(_BEGUN, 0)

    def usage(self, prompt: int, completion: int, *, estimated: bool) -> Usage:
        """Return all of it, around these two."""
        get = self._said.get
        cached, reasoning = get(_READ, get(_CACHED, 0)), get(_REASONING, 0)
        return Usage(prompt, completion, min(cached, prompt), min(reasoning, completion), estimated)
