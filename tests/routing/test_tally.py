"""What was generated for a text by several servers: their counts, taken together."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.routing.tally import Tally


def usage(prompt: int, completion: int) -> dict[str, Any]:
    """Return what a server says."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 0}


def said(*lengths: int, counts: tuple[int, int] | None = None) -> Tally:
    """Return the tally of a text in pieces; its server has counted with the last one."""
    tally = Tally()
    for number, length in enumerate(lengths, 1):
        last = number == len(lengths)
        tally.note({"usage": usage(*counts)} if counts and last else {"usage": None}, length)
    return tally


def added(before: Tally, rest: Tally, prompt: int, completion: int) -> tuple[int, int, int]:
    """Return what the second server's usage becomes."""
    told = usage(prompt, completion)
    before.add_up(told, rest)
    return told["prompt_tokens"], told["completion_tokens"], told["total_tokens"]


def test_one_token_a_piece_is_taken_as_it_looks() -> None:
    """One more is the end of the text, which has no piece."""
    assert added(said(4, 4, 4), said(4, 4), 9 + 3, 2) == (9, 5, 14)
    assert added(said(4, 4, 4), said(1), 9 + 3, 2) == (9, 5, 14)


def test_several_tokens_a_piece_are_guessed_by_the_rest() -> None:
    """As many characters, as many tokens."""
    assert added(said(12, 12), said(12, 12, 12), 10 + 6, 9) == (10, 15, 25)


def test_what_was_counted_holds() -> None:
    """Whatever the pieces look like."""
    assert added(said(12, 12, counts=(10, 7)), said(12), 10 + 7, 3) == (10, 10, 20)


def test_a_prompt_that_is_known_tells_what_the_beginning_has() -> None:
    """Some count in their first event alone: the rest of the second's prompt is text."""
    before = Tally()
    before.note({"usage": usage(10, 0)}, 0)
    before.note({}, 12)
    before.note({}, 12)
    assert added(before, said(12), 10 + 6, 3) == (10, 9, 19)


@pytest.mark.parametrize("counts", [(0, 0), (10, 0), (0, 5), (10, 1)])
def test_fewer_tokens_than_pieces_are_no_count(counts: tuple[int, int]) -> None:
    """Some engines say zero in every event."""
    assert said(4, 4, counts=counts).prompt is None


def test_what_does_not_count_is_left_alone() -> None:
    """A boolean is no number."""
    told: dict[str, Any] = {"prompt_tokens": True, "completion_tokens": None}
    said(4).add_up(told, said(4))
    assert told == {"prompt_tokens": True, "completion_tokens": None}


numbers = st.integers(0, 2000)


@given(st.lists(numbers), st.lists(numbers), st.integers(1, 10_000), numbers)
def test_nothing_is_lost_between_prompt_and_answer(
    before: list[int], rest: list[int], prompt: int, completion: int
) -> None:
    """Where nobody has counted, the two make together what the second server has said."""
    first = said(*before)
    told = added(first, said(*rest), prompt, completion)
    assert told[0] >= 0
    assert told[1] >= completion + first.pieces
    assert told[2] == told[0] + told[1]
    if first.pieces <= prompt:
        assert told[2] == prompt + completion
