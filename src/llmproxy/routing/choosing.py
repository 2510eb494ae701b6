"""By which policy a server is chosen: `least_load, llama-70b=prefix, qwen-*=session`.

One entry without a model is for all the others. Of several that fit, the exact name wins, then
the glob with most letters of its own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter

from llmproxy.routing.named_models import model_name, texts
from llmproxy.routing.policies import POLICIES

DEFAULT = "least_load"
_ALL = "*"

HOW_CHOOSING_LOOKS = (
    f"must be one of {', '.join(POLICIES)}, and model=policy for models that are chosen for"
    " otherwise, separated by commas"
)


@dataclass(frozen=True, slots=True)
class Choosing:
    """A policy for every model, and others for some."""

    default: str = DEFAULT
    per_model: tuple[tuple[str, str], ...] = ()  # name or glob, policy

    def policy_for(self, model: str | None) -> str:
        """Return the policy for a model, by the name that the servers know it by."""
        if model is None or not self.per_model:
            return self.default
        fitting = [
            (glob == model, letters_of(glob), policy)
            for glob, policy in self.per_model
            if glob == model or pattern_of(glob).fullmatch(model)
        ]
        return max(fitting, key=itemgetter(0, 1))[2] if fitting else self.default


def choosing(given: object) -> Choosing:
    """Read policies; raise `ValueError` saying what is allowed."""
    default: str | None = None
    per_model: dict[str, str] = {}
    for model, policy in _entries(given):
        if not isinstance(policy, str) or policy not in POLICIES:
            raise ValueError(HOW_CHOOSING_LOOKS)
        if model == _ALL:
            if default is not None:
                raise ValueError("there are two policies for all models")
            default = policy
        elif model in per_model:
            raise ValueError("the same model has two policies")
        else:
            per_model[model] = policy
    return Choosing(default or DEFAULT, tuple(per_model.items()))


def choosing_text(given: Choosing) -> str:
    """Return policies as they may be written."""
    return ",".join([given.default, *(f"{model}={policy}" for model, policy in given.per_model)])


def _entries(given: object) -> list[tuple[str, object]]:
    if isinstance(given, Mapping):
        return [(model_name(model, HOW_CHOOSING_LOOKS), policy) for model, policy in given.items()]
    found: list[tuple[str, object]] = []
    for text in texts(given, HOW_CHOOSING_LOOKS):
        model, equals, policy = text.rpartition("=")
        found.append(
            (model_name(model, HOW_CHOOSING_LOOKS) if equals else _ALL, policy.strip().lower())
        )
    return found


def letters_of(glob: str) -> int:
    """Return how many characters a glob says itself."""
    return len(glob) - glob.count("*") - glob.count("?")


@lru_cache(maxsize=1024)
def pattern_of(glob: str) -> re.Pattern[str]:
    """Return what matches a glob. Only `*` and `?`: a bracket may be part of a model's name."""
    pieces = {"*": ".*", "?": "."}
    return re.compile("".join(pieces.get(char) or re.escape(char) for char in glob), re.DOTALL)
