"""How many tokens a request is expected to take, and how many are believed."""

from math import isfinite
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from llmproxy.protocol.endpoints import CHAT, MODELS, OTHER, UNDERSTOOD
from llmproxy.rate_limit.estimate import (
    FIRST_GUESS,
    LONGEST_OUTPUT,
    LONGEST_PROMPT,
    Estimate,
    Estimator,
)
from llmproxy.rate_limit.limits import MOST
from llmproxy.records import Endpoint, InferenceRequest, Usage

EMBEDDINGS = UNDERSTOOD[b"/v1/embeddings"]

# Whatever JSON can hold in the place of a number.
ANYTHING: Any = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=25),
    st.integers(0, 10**30).map(str),
    st.lists(st.integers(), max_size=2),
)


class Counted:
    """So many tokens of an answer were seen."""

    finished = True

    def __init__(self, tokens: int) -> None:
        self.tokens_so_far = tokens


def asking(**fields: Any) -> InferenceRequest:
    return InferenceRequest(**{"model": "llama", "prompt_bytes": 400, **fields})


def estimate(**fields: Any) -> Estimate:
    return Estimator().estimate("me", CHAT, asking(**fields))


@given(ANYTHING, ANYTHING, st.integers(0, 2**40))
def test_whatever_is_asked_for_is_reserved(tokens: Any, choices: Any, size: int) -> None:
    """Never negative, never beyond counting, and an answer is never taken to be free."""
    made = estimate(max_tokens=tokens, choices=choices, prompt_bytes=size)

    for amount in (made.prompt, made.dense, made.output, made.longest):
        assert isfinite(amount)
        assert 0 <= amount <= MOST * 2
    assert made.output >= 1
    assert made.prompt <= made.dense
    assert made.longest >= made.output


@pytest.mark.parametrize(
    ("said", "output"),
    [
        (100, 100), (1, 1), (10**9, 10**9), (2**64, MOST), (2.0**64, MOST), ("9" * 30, MOST),
        (None, FIRST_GUESS), (-1, FIRST_GUESS), (0, FIRST_GUESS), (True, FIRST_GUESS),
        ("5", FIRST_GUESS), ("5000", 5000), (5.0, FIRST_GUESS), ([5], FIRST_GUESS),
    ],
)  # fmt: skip
def test_only_a_plain_number_lowers_what_is_reserved(said: Any, output: float) -> None:
    """Engines read `true`, `-1` and `"5"` in different ways: then the larger one is reserved."""
    assert estimate(max_tokens=said).output == output


def test_choices_are_paid_for() -> None:
    """`n` answers are `n` times as long, whether their length was set or not."""
    assert estimate(max_tokens=100, choices=8).output == 800
    assert estimate(choices=8).output == 8 * FIRST_GUESS
    assert estimate(max_tokens=10**9, choices=10**9).output == MOST
    assert estimate(max_tokens=100, choices="8").output == 800


def test_who_writes_nothing_reserves_no_output() -> None:
    """Embeddings read; a list of models, and what we do not know, takes no tokens at all."""
    estimator = Estimator()

    assert estimator.estimate("me", EMBEDDINGS, asking(max_tokens=9)).output == 0
    assert estimator.estimate("me", EMBEDDINGS, asking()).prompt == 100
    assert estimator.estimate("me", MODELS, asking()).dense == 0
    assert estimator.estimate("me", OTHER, asking()).output == 0


def test_an_engines_own_paths_are_taken_to_write() -> None:
    """They are no way around a limit; asking how the engine is costs nothing."""
    native = Endpoint("native", native=True)
    estimator = Estimator()

    assert estimator.estimate("me", native, asking()).output == FIRST_GUESS
    assert estimator.estimate("me", native, asking(prompt_bytes=0)).output == 0


def test_what_is_usual_is_learnt_for_each_key_and_model() -> None:
    """Nobody has to send `max_tokens` to be treated fairly."""
    estimator = Estimator()
    for _ in range(50):
        estimator.learn("brief", asking(), 20)
        estimator.learn("wordy", asking(), 3000)

    assert 20 <= estimator.usual("brief", "llama") < 40
    assert 3000 <= estimator.usual("wordy", "llama") < 4000
    assert estimator.usual("brief", "another") == FIRST_GUESS


def test_what_is_learnt_of_several_choices_is_the_length_of_one() -> None:
    """So that the next request may ask for another number of them."""
    estimator = Estimator()
    for _ in range(50):
        estimator.learn("me", asking(choices=4), 400)

    assert 100 <= estimator.usual("me", "llama") < 150


@given(st.lists(st.integers(0, 200_000), min_size=60, max_size=60))
def test_what_is_learnt_stays_within_what_was_seen(lengths: list[int]) -> None:
    """Whatever comes in whatever order, the guess does not run away."""
    estimator = Estimator()
    for length in lengths:
        estimator.learn("me", asking(), length)

    assert 1 <= estimator.usual("me", "llama") <= 3 * max(*lengths, 1)


def test_what_is_learnt_is_bounded() -> None:
    """The least recently used is forgotten: callers may ask for any model."""
    estimator = Estimator(most=10)
    estimator.learn("me", asking(model="kept"), 7)
    for number in range(100):
        estimator.learn("me", asking(model=f"model-{number}"), 7)
        estimator.learn("me", asking(model="kept"), 7)

    assert estimator.usual("me", "kept") < FIRST_GUESS
    assert estimator.usual("me", "model-0") == FIRST_GUESS
    assert len(estimator._habits) == 10


@given(
    st.builds(
        Usage,
        *[st.integers(-(10**13), 10**13)] * 4,
    ),
    st.one_of(st.none(), st.integers(1, 10**6)),
    st.integers(0, 10**6),
)
def test_no_report_is_believed_beyond_what_is_possible(
    reported: Usage, limit: int | None, counted: int
) -> None:
    """Never below zero, never beyond what was reserved or can have been."""
    made = estimate(max_tokens=limit)
    charged = made.believed(reported, Counted(counted))

    assert 0 <= charged.prompt <= LONGEST_PROMPT
    assert 0 <= charged.completion <= max(made.longest, counted)
    assert charged.prompt <= max(reported.prompt, 0)
    assert charged.completion <= max(reported.completion, 0)


def test_an_absurd_report_is_charged_as_it_was_reserved() -> None:
    """10^12 tokens were never written, and whoever says so takes nobody's budget with it."""
    absurd = Usage(prompt=10**12, completion=10**12)

    assert estimate(max_tokens=50).believed(absurd) == Usage(prompt=100, completion=50)
    assert estimate().believed(absurd) == Usage(prompt=100, completion=FIRST_GUESS)


def test_a_model_server_that_ignores_the_limit_is_charged_by_what_was_seen() -> None:
    """Nobody gets a long answer for a short one's price."""
    made = estimate(max_tokens=5)

    assert made.believed(Usage(10, 4096), Counted(4000)).completion == 4000
    assert made.believed(Usage(10, 4096), Counted(0)).completion == 5


def test_the_truth_is_charged_where_the_guess_was_short() -> None:
    """A picture behind a URL is a long prompt in a short body; a guess is no limit."""
    truth = Usage(prompt=2000, completion=9000, cached=500, reasoning=8000)

    assert estimate().believed(truth) is truth
    assert estimate().believed(replace(truth, completion=LONGEST_OUTPUT)).completion == 131_072
    assert estimate().believed(replace(truth, prompt=1_000_000)).prompt == 1_000_000


def test_parts_are_never_more_than_the_whole() -> None:
    """What is cut takes its parts with it."""
    charged = estimate(max_tokens=5).believed(Usage(-3, 100, cached=50, reasoning=90))

    assert charged == Usage(0, 5, cached=0, reasoning=5)
