"""What the clients of a trial ask. Pure: the same seed asks the same.

Texts are random words, so that two prompts have in common exactly what they are meant to.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import orjson

from benchmarks.routing.kv_cache import TOKEN

SYSTEM = 4096  # tokens of a system prompt
QUESTION = 128
ANSWER = 128
SYSTEMS = 64
TURNS = 4  # of a conversation
ALONE = 4096 + QUESTION  # tokens of a prompt that has nothing in common with any other
SHORT, LONG = 512, 3584  # tokens of a prompt where they differ

Talk = Iterator["Question"]
"""One conversation, from one question to the next."""


@dataclass(slots=True)
class Question:
    """One request; `answered` is for the next turn to know."""

    messages: list[dict[str, str]]
    session: str = ""
    answer: str = ""

    def body(self) -> bytes:
        return orjson.dumps(
            {
                "model": "bench",
                "messages": self.messages,
                "max_tokens": ANSWER,
                "temperature": 0,
                "stream": True,
            }
        )


def words(draw: random.Random, tokens: int) -> str:
    """Return a text that nobody else has."""
    return draw.randbytes(tokens * TOKEN // 2).hex()


def shared(draw: random.Random, systems: list[str]) -> Talk:
    """Yield the turns of a conversation; the first system prompts are in it most (Zipf)."""
    session = draw.randbytes(8).hex()
    weights = list(accumulate(1 / rank for rank in range(1, len(systems) + 1)))
    messages = [_message("system", draw.choices(systems, cum_weights=weights)[0])]
    for _ in range(TURNS):
        messages = [*messages, _message("user", words(draw, QUESTION))]
        question = Question(messages, session)
        yield question
        messages = [*messages, _message("assistant", question.answer)]


def one_system(draw: random.Random, systems: list[str]) -> Talk:
    """Yield a question under the one system prompt that all have."""
    yield Question([_message("system", systems[0]), _message("user", words(draw, QUESTION))])


def unshared(draw: random.Random, systems: list[str]) -> Talk:
    """Yield a prompt that has nothing in common with any other."""
    yield Question([_message("user", words(draw, ALONE))])


def small_head(draw: random.Random, systems: list[str]) -> Talk:
    """Yield a prompt that has an eighth in common with all others."""
    head = systems[0][: SYSTEM // 8 * TOKEN]
    yield Question([_message("system", head), _message("user", words(draw, ALONE - SYSTEM // 8))])


def mixed_sizes(draw: random.Random, systems: list[str]) -> Talk:
    """Yield a prompt of any size that has nothing in common with any other."""
    yield Question([_message("user", words(draw, draw.randint(SHORT, LONG)))])


KINDS: dict[str, Callable[[random.Random, list[str]], Talk]] = {
    each.__name__: each for each in (shared, unshared, one_system, small_head, mixed_sizes)
}


def system_prompts(draw: random.Random) -> list[str]:
    return [words(draw, SYSTEM) for _ in range(SYSTEMS)]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
