"""The model of an engine: what its cache keeps, and when things happen in it."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.figures import Figure
from benchmarks.routing.engine import Build, Engine, Event, Sequence, Step
from benchmarks.routing.kv_cache import BLOCK, TOKEN, KvCache, keys_of, tokens_in
from benchmarks.routing.scenes import Target
from benchmarks.routing.traffic import ANSWER, KINDS, QUESTION, SYSTEM, TURNS, system_prompts
from benchmarks.routing.trial import Outcome

FULL = TOKEN * BLOCK  # bytes of a block


def text(letter: str, blocks: int) -> bytes:
    return letter.encode() * (FULL * blocks)


def played(engine: Engine) -> list[Event]:
    """Let an engine do everything that it has to do."""
    events: list[Event] = []
    while (due := engine.due()) is not None:
        events += engine.until(due)
    return events


def test_blocks_are_the_same_as_far_as_everything_before_them_is() -> None:
    """And what does not fill one has no name."""
    one, other = keys_of(text("a", 2) + text("b", 1)), keys_of(text("a", 2) + text("c", 1) + b"d")

    assert one[:2] == other[:2] and one[2] != other[2]
    assert len(other) == 3
    assert keys_of(text("b", 1))[0] not in one


def test_what_was_not_used_for_longest_goes_first() -> None:
    """Of one sequence the end goes before its beginning."""
    cache = KvCache(6)
    first, second = keys_of(text("a", 2)), keys_of(text("b", 3))
    for keys in (first, second):
        assert cache.take(keys) == 0
        cache.give_back(keys)
    assert cache.take(first) == 2
    cache.give_back(first)

    assert cache.take(keys_of(text("c", 1))) == 0  # beside the five that are kept
    assert cache.take(second[:2], nameless=0) == 2
    assert second[2] not in cache._kept


def test_blocks_at_work_cannot_be_had() -> None:
    """Who finds no room takes nothing."""
    cache = KvCache(4)
    keys = keys_of(text("a", 3))
    assert cache.take(keys) == 0
    assert cache.use == 1.0

    assert cache.take(keys_of(text("b", 1))) is None
    assert cache.take(keys, nameless=0) == 3  # shared, and no block more
    cache.give_back(keys, nameless=0)
    cache.give_back(keys)
    assert cache.use == 0.0
    assert cache.take(keys_of(text("b", 1))) == 0


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 4)), max_size=40))
def test_a_cache_holds_no_more_than_it_may(asked: list[tuple[str, int]]) -> None:
    """Whatever is taken and given back."""
    cache = KvCache(8)
    held: list[list[int]] = []
    for letter, blocks in asked:
        keys = keys_of(text(letter, blocks))
        if cache.take(keys) is not None:
            held.append(keys)
        if len(held) > 2:
            cache.give_back(held.pop(0))
        assert len(cache) <= 8
    for keys in held:
        cache.give_back(keys)
    assert cache.use == 0.0


def test_prompts_are_read_one_after_the_other() -> None:
    """A prompt that was read before takes no time but for its last token."""
    engine = Engine(Build(prefill=100.0, decode=10.0, sequences=8, cache=10_000))
    prompt, answer = text("a", 2), b"x" * TOKEN * 20
    engine.ask(Sequence(prompt, answer), 5.0)
    engine.ask(Sequence(prompt, answer), 5.5)

    seconds = tokens_in(prompt) / 100.0
    events = played(engine)
    assert [event.step for event in events] == [Step.FIRST_TOKEN] * 2 + [Step.END] * 2
    assert [event.at - 5.0 for event in events] == pytest.approx(
        [seconds, seconds + 0.01, seconds + 2.0, seconds + 2.01]
    )
    assert engine.work.cached == tokens_in(prompt) - 1


def test_a_sequence_waits_for_a_place() -> None:
    """There are so many, and no more; nobody is lost."""
    engine = Engine(Build(prefill=1e6, decode=10.0, sequences=2, cache=10_000))
    for letter in "abcd":
        engine.ask(Sequence(text(letter, 1), b"x" * TOKEN * 10), 0.0)
    engine.until(0.5)
    assert (engine.running, engine.waiting) == (2, 2)

    ends = [event.at for event in played(engine) if event.step is Step.END]
    assert [round(at) for at in ends] == [1, 1, 2, 2]
    assert (engine.running, engine.waiting, engine.kv_use) == (0, 0, 0.0)


@given(st.lists(st.floats(0.0, 0.3), max_size=20), st.randoms(use_true_random=False))
def test_it_does_not_matter_when_one_looks(gaps: list[float], draw: random.Random) -> None:
    """A driver whose timers come late sees what a punctual one sees."""

    def run(looks: list[float]) -> list[tuple[float, Step]]:
        engine = Engine(Build(prefill=1000.0, decode=100.0, sequences=3, cache=1000))
        events: list[Event] = []
        at = 0.0
        for number, gap in enumerate(gaps):
            at += gap
            for look in looks:
                if look < at:
                    events += engine.until(look)
            events += engine.until(at)
            engine.ask(Sequence(text("abc"[number % 3], 1), b"x" * TOKEN * 7), at)
        events += played(engine)
        return [(event.at, event.step) for event in events]

    assert run([]) == run(sorted(draw.uniform(0, 6) for _ in range(30)))


def test_a_conversation_repeats_what_was_said() -> None:
    """Each turn begins with all of the one before, and its answer."""
    draw = random.Random(1)
    before = b""
    turns = 0
    for question in KINDS["shared"](draw, system_prompts(draw)):
        told = "".join(each["content"] for each in question.messages).encode()
        assert told.startswith(before)
        assert tokens_in(told) == SYSTEM + QUESTION + turns * (QUESTION + ANSWER)
        question.answer = "y" * ANSWER * TOKEN
        before = told + question.answer.encode()
        turns += 1
    assert turns == TURNS


def test_prompts_of_unshared_traffic_have_nothing_in_common() -> None:
    """Not a block."""
    draw = random.Random(1)
    systems = system_prompts(draw)
    prompts = [next(KINDS["unshared"](draw, systems)).messages[0]["content"] for _ in range(5)]

    for one, other in pairwise(prompts):
        assert set(keys_of(one.encode())).isdisjoint(keys_of(other.encode()))


def test_a_target_is_held_against_the_median_of_ratios() -> None:
    """Each taken within its round."""

    def outcomes(*pace: float) -> list[Outcome]:
        return [Outcome(each, 1.0, 1.0, 0.5, 1.0, {}) for each in pace]

    target = Target("shared", "prefix", "per_second", least=2.0)
    rounds = {"prefix": outcomes(10, 50, 21), "round_robin": outcomes(5, 30, 10)}

    reached = target.reached(rounds)
    assert reached == Figure(2.0, 50 / 30, 2.1, 3)
    assert target.holds(reached)
    assert not Target("shared", "prefix", "per_second", least=2.01).holds(reached)
    assert target.reached({}) is None
