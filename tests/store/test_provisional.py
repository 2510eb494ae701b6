"""Rates whose amounts are guesses, in the stores of several processes: guesses have owners."""

from collections.abc import AsyncIterator

import pytest

from llmproxy.store.interface import Kind, Meter
from llmproxy.store.queued import QueuedStore
from tests.store.taker import opened

TOKENS = Meter("tokens", Kind.RATE, 1000, 86400 * 365, provisional=True)
SOMEBODY = "0123456789abcdef"


@pytest.fixture
async def store(shared_url: str) -> AsyncIterator[QueuedStore]:
    """A store that others may use as well."""
    made = opened(shared_url, 10)
    yield made
    await made.aclose()


async def left(store: QueuedStore) -> float:
    """Return how many tokens are left; what has drained since the test began is nothing."""
    return round((await store.read([TOKENS]))[0].left, 1)


async def test_whose_guess_is_gone_is_charged_the_truth(store: QueuedStore) -> None:
    """What was given back when its lease had ended is not given back once more."""
    await store.take([(TOKENS, 400)])

    await store.settle([(TOKENS, 300, 20)], SOMEBODY)

    assert await left(store) == 580


async def test_a_guess_is_given_back_once(store: QueuedStore) -> None:
    """Neither twice nor more than there was; what was used is charged each time."""
    owner = (await store.take([(TOKENS, 400)])).owner
    await store.take([(TOKENS, 100)])

    await store.settle([(TOKENS, 400, 0)], owner)
    assert await left(store) == 900
    await store.settle([(TOKENS, 400, 10)], owner)  # of which 100 are there
    assert await left(store) == 990
    await store.settle([(TOKENS, 400, 10)], owner)
    assert await left(store) == 980


async def test_what_was_settled_stays_when_its_owner_leaves(
    store: QueuedStore, shared_url: str
) -> None:
    """Only what is still a guess comes back."""
    other = opened(shared_url, 10)
    owner = (await other.take([(TOKENS, 100)])).owner
    await other.take([(TOKENS, 300)])
    await other.settle([(TOKENS, 100, 25)], owner)
    assert await left(other) == 675

    await other.aclose()

    assert [await left(store) for _ in range(2)] == [975, 975]  # to look at it gives it back


async def test_the_dead_give_back_no_more_than_there_is(
    store: QueuedStore, shared_url: str
) -> None:
    """What has drained meanwhile is nobody's credit."""
    fast = Meter("fast", Kind.RATE, 1e6, 1, provisional=True)
    other = opened(shared_url, 10)
    await other.take([(fast, 1000)])
    await store.read([fast])
    await other.aclose()

    grant = await store.take([(fast, 5e5)])

    assert grant.readings[0].left == 5e5
