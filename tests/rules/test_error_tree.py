"""The tree of errors is the one that is drawn, and each leaf can be told by its code."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from llmproxy import errors
from llmproxy.errors import CapacityError, Outcome, ProxyError

LINE = re.compile(r"^(?P<indent> *)[*+-] (?P<name>\w+)(?: +(?P<status>\d{3})\b)?")


def descendants(kind: type[ProxyError]) -> Iterator[type[ProxyError]]:
    """Yield every kind of error below one, as far as the package defines it."""
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from descendants(child)


def drawn() -> dict[str, tuple[str | None, int | None]]:
    """The tree of the docstring: parent and status by name."""
    found: dict[str, tuple[str | None, int | None]] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        indent, name = len(match["indent"]), match["name"]
        while above and above[-1][0] >= indent:
            above.pop()
        status = int(match["status"]) if match["status"] else None
        found[name] = (above[-1][1] if above else None, status)
        above.append((indent, name))
    return found


ALL = list(descendants(ProxyError))
# What can be raised has a code of its own or its parent's, and so a status.
RAISED = [kind for kind in ALL if hasattr(kind, "code")]
ABSTRACT = [ProxyError, *(kind for kind in ALL if not hasattr(kind, "code"))]


def test_the_tree_is_the_one_that_is_drawn() -> None:
    """Names, parents and statuses: nothing is missing, nothing is too much."""
    real: dict[str, tuple[str | None, int | None]] = {"ProxyError": (None, None)}
    for kind in ALL:
        inherited = "status" not in vars(kind)
        status = getattr(kind, "status", None)
        real[kind.__name__] = (kind.__base__.__name__ if kind.__base__ else None, status)
        if inherited and drawn().get(kind.__name__, (None, None))[1] is None:
            real[kind.__name__] = (real[kind.__name__][0], None)

    assert drawn() == real


def test_codes_are_unique() -> None:
    """A caller who is told a code has been told which error it was."""
    codes = [kind.code for kind in RAISED]

    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_a_code_is_one_word(kind: type[ProxyError]) -> None:
    """In small letters, as OpenAI's are; with a status that fits and an outcome."""
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)
    assert 400 <= kind.status <= 599
    assert kind.outcome in Outcome
    assert kind.__doc__


@pytest.mark.parametrize("kind", ABSTRACT, ids=lambda kind: kind.__name__)
def test_what_is_no_leaf_cannot_be_raised(kind: type[ProxyError]) -> None:
    """It would have neither a status nor a code."""
    arguments: dict[str, Any] = {"retry_after": 1} if issubclass(kind, CapacityError) else {}

    with pytest.raises(TypeError, match="abstract"):
        kind("no", **arguments)


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_an_error_carries_what_it_was_given(kind: type[ProxyError]) -> None:
    """The detail is its text; a 503 says when to come back."""
    arguments: dict[str, Any] = {"retry_after": 7} if issubclass(kind, CapacityError) else {}

    error = kind("Said to the caller.", **arguments)

    assert error.detail == str(error) == "Said to the caller."
    if issubclass(kind, CapacityError):
        assert (b"retry-after", b"7") in error.headers
