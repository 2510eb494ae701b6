"""How many tokens a request will take, before anybody knows.

Rule 1: what is reserved is never negative, never skipped and never more than a float can count,
        whatever the caller has written into its body.
Rule 2: a caller who names no `max_tokens` is not punished for it: its output is taken to be what
        the same key and model have needed so far.
Rule 3: a model server is believed as far as what it says is possible; beyond that, what was
        reserved or counted is charged.
"""

from collections import OrderedDict
from typing import Protocol

import msgspec
from msgspec.structs import replace

from llmproxy.records import Endpoint, InferenceRequest, Usage

MOST = 10**15  # tokens; beyond it a float can no longer count in ones
USUAL = 4  # bytes of a body per token: English text, JSON around it included
DENSE = 1  # what no text goes below; for what must not be overspent
FIRST_GUESS = 512  # tokens of output, where nothing was learnt yet
LONGEST_OUTPUT = 131_072  # tokens; no model of today writes more in one answer
LONGEST_PROMPT = 2_097_152  # tokens behind a short body, a stored dialogue say; no model takes more
MOST_LEARNT = 4096  # pairs of key and model
_WEIGHT = 1 / 8  # of the newest answer: old habits are forgotten after some twenty

WRITING = frozenset({"chat", "completions", "responses", "messages"})
MAKING = frozenset({"images", "audio"})  # what comes out is not text, and seldom counted
READING = MAKING | {"embeddings", "rerank", "score"}


class Seen(Protocol):
    """What was seen of an answer."""

    @property
    def tokens_so_far(self) -> int:
        """Tokens of output that were counted."""

    @property
    def finished(self) -> bool:
        """Whether it came to its own end."""


class Estimate(msgspec.Struct, frozen=True, gc=False):  # made and read in a third of the time
    """What one request is expected to take."""

    tokens: float  # prompt and output, most likely
    output: float  # of these
    longest: float  # tokens of output that are possible at all
    stated: bool  # the caller has set the output's limit itself
    prompt_bytes: int

    @property
    def prompt(self) -> int:
        """Tokens, most likely."""
        return -(-self.prompt_bytes // USUAL)

    @property
    def dense(self) -> int:
        """Tokens, if the prompt is of the densest kind."""
        return -(-self.prompt_bytes // DENSE)

    @property
    def sure_output(self) -> float:
        """The output that was asked for; nothing if it was left open."""
        return self.output if self.stated else 0.0

    def read(self) -> Usage:
        """Return the cost of a prompt that was read, and of nothing that was written."""
        return Usage(prompt=self.prompt, estimated=True)

    def believed(self, usage: Usage, seen: Seen | None = None) -> Usage:
        """Return what is charged of a usage that was reported."""
        prompt, completion = usage.prompt, usage.completion
        if 0 <= prompt <= LONGEST_PROMPT and 0 <= completion <= self.longest:
            return usage
        possible = 0 <= prompt <= max(LONGEST_PROMPT, self.prompt_bytes)
        counted = seen.tokens_so_far if seen is not None else 0
        prompt = max(prompt, 0) if possible or prompt < 0 else self.prompt
        if completion > self.longest:
            # A limit that the model server did not keep is no reason to give tokens away.
            completion = int(max(self.output, min(counted, completion)))
        completion = max(completion, 0)
        cached = min(max(usage.cached, 0), prompt)
        reasoning = min(max(usage.reasoning, 0), completion)
        return replace(
            usage, prompt=prompt, completion=completion, cached=cached, reasoning=reasoning
        )


class _Habit:
    """How long the answers of one key and model have been."""

    __slots__ = ("mean", "spread")

    def __init__(self, first: float) -> None:
        self.mean = first
        self.spread = first / 2


class Estimator:
    """Knows what is usual."""

    def __init__(self, most: int = MOST_LEARNT) -> None:
        self._most = most
        self._habits: OrderedDict[tuple[str, str | None], _Habit] = OrderedDict()

    def estimate(self, who: str, endpoint: Endpoint, asked: InferenceRequest) -> Estimate:
        """Return what a request will most likely take."""
        name, size = endpoint.name, asked.prompt_bytes
        prompt = -(-size // USUAL)
        # Of an engine's own paths nobody says which of them write: those that are given a body.
        if name not in WRITING and (name != "native" or not size):
            if name not in READING:
                return NOTHING
            return Estimate(prompt, 0, LONGEST_OUTPUT if name in MAKING else 0, False, size)
        said: object = asked.max_tokens  # of whatever type the caller has chosen
        if type(said) is int and 0 < said <= MOST and asked.choices == 1:
            # A float, for that is what rates are counted in: converted once, not at every step.
            return Estimate(prompt + said + 0.0, said, said, True, size)
        count = _count(asked.choices) or 1
        if type(said) is int and said > 0:
            output: float = min(said * count, MOST)
            return Estimate(prompt + output, output, output, True, size)
        # Not a number that every engine reads alike: the larger of the two is reserved.
        limit = _count(said)
        usual = self.usual(who, asked.model)
        output = (usual if usual > limit else limit) * count
        longest: float = LONGEST_OUTPUT * count
        if output > longest or longest > MOST:
            output, longest = min(output, MOST), min(max(output, longest), MOST)
        return Estimate(prompt + output, output, longest, False, size)

    def usual(self, who: str, model: str | None) -> float:
        """Return how long one answer is expected to be: seldom longer, often shorter."""
        habit = self._habits.get((who, model))
        return FIRST_GUESS if habit is None else habit.mean + 2 * habit.spread

    def learn(self, who: str, asked: InferenceRequest, completion: int) -> None:
        """Note how long an answer was."""
        name = (who, asked.model)
        each = max(1.0, completion / (_count(asked.choices) or 1))
        habit = self._habits.get(name)
        if habit is None:
            if len(self._habits) >= self._most:
                self._habits.popitem(last=False)
            self._habits[name] = _Habit(each)
        else:
            surprise = each - habit.mean
            habit.spread += (abs(surprise) - habit.spread) * _WEIGHT
            habit.mean += surprise * _WEIGHT
            self._habits.move_to_end(name)


NOTHING = Estimate(0, 0, LONGEST_OUTPUT, False, 0)


def _count(given: object) -> int:
    """Read a number out of whatever stands in a body; 0 for what is none."""
    if type(given) is int:
        return given if 0 <= given <= MOST else (MOST if given > 0 else 0)
    if isinstance(given, str):
        digits = given.strip()
        if not digits.isascii() or not digits.isdigit():
            return 0
        return int(digits) if len(digits) < 16 else MOST
    if not isinstance(given, float) or not given > 0:  # NaN fails this too
        return 0
    return int(min(given, MOST))
