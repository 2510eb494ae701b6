"""Measures the text in an answer, where nobody has counted its tokens."""

from collections.abc import Iterator

_TEXTS = frozenset(  # where an answer has its text, and what stands around it
    {
        *("choices", "delta", "message", "output", "response", "function", "input"),
        *("content", "text", "generated_text", "reasoning_content", "reasoning", "thinking"),
        *("refusal", "tool_calls", "function_call", "name", "arguments"),
    }
)


def length_of_text(value: object) -> int:
    """Return the bytes of text in an answer or in an event of one."""
    return sum(len(text.encode()) for text in _texts(value))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            if name in _TEXTS:
                yield from _texts(each)
