"""The short way through the limiter, for limits that this very process counts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.errors import RateLimited
from llmproxy.headers import of_lines
from llmproxy.protocol.endpoints import CHAT, MODELS
from llmproxy.rate_limit.at_once import AtOnce
from llmproxy.rate_limit.budgets import budgets
from llmproxy.rate_limit.estimate import FIRST_GUESS
from llmproxy.rate_limit.limiter import Limiter
from llmproxy.rate_limit.limits import limits
from llmproxy.rate_limit.reservation import Reservation, Ticket
from llmproxy.records import Endpoint, InferenceRequest, Principal, Usage
from llmproxy.store.memory import MemoryStore
from llmproxy.types import Header

ANNA = Principal(id="key_1", name="anna", team="blue")
BERT = Principal(id="key_2", name="bert", team="blue")
TEXT = (
    "5 req/min, 12 req/hour per team, 2000 tok/min, 100000 tok/day per model, 3 concurrent,"
    " 4 concurrent per team"
)
ENDPOINTS = (CHAT, Endpoint("embeddings", json_body=True), MODELS)
CALLS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from([ANNA, BERT]),
            st.sampled_from(ENDPOINTS),
            st.sampled_from(["llama", "gpt"]),
            st.sampled_from([None, 1, 100, 900, 5000, 10**18, "7", -1, True]),
        ),
        st.sampled_from(
            [None, Usage(100, 30), Usage(9, 10**7), Usage(-3, 5), Usage(9, -3), Usage(10**9, 1)]
        ),
    ),
    max_size=40,
)


class Clock:
    """A time that stands still unless it is set."""

    now = 5000.0

    def __call__(self) -> float:
        return self.now


class Seen:
    """An answer of which so much was seen."""

    tokens_so_far = 20
    finished = True


def limiter(
    text: str = TEXT, budget: str = "", *, short: bool, clock: Clock | None = None
) -> Limiter:
    store = MemoryStore(steady=clock or Clock())
    at_once = store if short else None
    return Limiter(store, store, limits=limits(text), budgets=budgets(budget), at_once=at_once)


def settle(
    made: Limiter, held: Reservation | Ticket, usage: Usage | None, seen: Seen | None = None
) -> None:
    """Settle what was reserved at once, whichever way it went."""
    if isinstance(held, Ticket):
        way(made).settle_ticket(held, usage, seen)
    else:
        way(made).settle(held, usage, seen)


def way(made: Limiter) -> AtOnce:
    """Return the way without a coroutine."""
    assert made.at_once is not None
    return made.at_once


@given(calls=CALLS)
async def test_the_short_way_decides_what_the_long_one_does(calls: list[Any]) -> None:
    """Who is let in, what it is told of its limits or why it is not, and what is charged."""
    short, long = limiter(short=True), limiter(short=False)
    held: list[tuple[Reservation | Ticket, Reservation]] = []
    for call in calls:
        if isinstance(call, Usage) or call is None:
            if held:
                ours, theirs = held.pop()
                settle(short, ours, call, Seen())
                await long.settle(theirs, call, Seen())
            continue
        principal, endpoint, model, most = call
        asked = InferenceRequest(model=model, prompt_bytes=400, max_tokens=most)
        refused: list[Header] | None = None
        try:
            theirs = await long.reserve(principal, None, endpoint, asked)
        except RateLimited as error:
            refused = list(error.headers)
        if refused is not None:
            with pytest.raises(RateLimited) as told:
                way(short).reserve(principal, None, endpoint, asked)
            assert list(told.value.headers) == refused
            continue
        ours = way(short).reserve(principal, None, endpoint, asked)
        assert of_lines(ours.head_lines) == of_lines(theirs.head_lines)
        held.append((ours, theirs))


@pytest.mark.parametrize(
    ("text", "budget", "endpoint", "kind"),
    [
        ("5 req/min, 8 concurrent", "", CHAT, Ticket),
        ("100000 tok/min", "", CHAT, Ticket),
        ("100 tok/min", "", CHAT, Reservation),  # asks for more than there ever is
        ("5 req/min", "1000000 tok/day", CHAT, Reservation),
        ("5 req/min", "1000000 tok/day", MODELS, Ticket),  # a list of models takes no tokens
    ],
)
def test_who_goes_the_short_way(
    text: str, budget: str, endpoint: Any, kind: type[Reservation | Ticket]
) -> None:
    """Whoever meets nothing but limits, and does not reach one."""
    asked = InferenceRequest(model="llama", prompt_bytes=80)  # 20 tokens, and who knows how many
    made = limiter(text, budget, short=True)

    assert type(way(made).reserve(ANNA, None, endpoint, asked)) is kind


def test_the_strictest_of_several_limits_is_told() -> None:
    """That is the one with least left, whichever it is now."""
    made = limiter("5 req/min, 6 req/hour per team", short=True)
    asked = InferenceRequest(model="llama")
    told = []
    for who in (ANNA, ANNA, ANNA, BERT, BERT, BERT):
        ticket = way(made).reserve(who, None, CHAT, asked)
        told.append(dict(of_lines(ticket.head_lines))[b"x-ratelimit-limit-requests"])

    assert told == [b"5", b"5", b"5", b"6", b"6", b"6"]


@pytest.mark.parametrize(("most", "learnt"), [(None, True), (30, False)])
def test_what_is_usual_is_learnt_from_answers_of_no_set_length(
    most: int | None, learnt: bool
) -> None:
    """How long one is that its caller has limited tells nothing of the others."""
    made = limiter("1000000 tok/min", short=True)
    limited = InferenceRequest(model="llama", max_tokens=most)
    for _ in range(20):
        settle(made, way(made).reserve(ANNA, None, CHAT, limited), Usage(0, 30), Seen())

    held = way(made).reserve(ANNA, None, CHAT, InferenceRequest(model="llama"))
    assert (held.estimate.tokens < FIRST_GUESS) is learnt


def test_addresses_that_come_once_are_forgotten() -> None:
    """What stands at nothing need not be kept, however many there are."""
    clock = Clock()
    made = limiter("5 req/min per ip", short=True, clock=clock)
    asked = InferenceRequest(model="llama")
    for number in range(5000):
        clock.now += 0.1
        address = f"10.0.{number // 256}.{number % 256}"
        settle(made, way(made).reserve(None, address, CHAT, asked), Usage())

    assert isinstance(made._store, MemoryStore)
    assert len(made._store._counters.rates) < 1000
