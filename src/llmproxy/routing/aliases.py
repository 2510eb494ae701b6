"""Names that stand for models: `gpt-4o=llama-3.3-70b, fast=qwen-7b:80|phi-4:20`.

Several targets share the requests by weight (A/B, canary). Who has a key or a session stays
with the target it got: the choice is drawn from its name, not from chance. With
`;choose=cheapest` all of them go to the target that costs least now.
"""

import hashlib
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from llmproxy.routing.named_models import NamedModels, named_models

MOST_WEIGHT = 1_000_000

Price = Callable[[str], float | None]  # what a model costs now; None = nobody knows


@dataclass(frozen=True, slots=True)
class Alias:
    """One name and what it stands for."""

    name: str
    targets: tuple[tuple[str, int], ...]  # model, weight
    choose: Literal["weight", "cheapest"] = "weight"


class Aliases:
    """All of them."""

    def __init__(self, aliases: Iterable[Alias] = (), price: Price = lambda _: None) -> None:
        """`price` is asked with every request for a `cheapest` alias: prices change by date."""
        self._by_name = {alias.name: alias for alias in aliases}
        self._price = price

    def __bool__(self) -> bool:
        return bool(self._by_name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    def resolve(self, model: str | None, sticky: str | None) -> str | None:
        """Return the model that a name stands for; a name that is none stands for itself."""
        alias = self._by_name.get(model) if model is not None else None
        if alias is None:
            return model
        if len(alias.targets) == 1:
            return alias.targets[0][0]
        if alias.choose == "cheapest":
            return min((target for target, _ in alias.targets), key=self._cost)
        total = sum(weight for _, weight in alias.targets)
        left = _drawn(alias.name, sticky) * total
        for target, weight in alias.targets:
            left -= weight
            if left < 0:
                return target
        return alias.targets[-1][0]

    def _cost(self, model: str) -> float:
        price = self._price(model)
        return math.inf if price is None else price


def _drawn(name: str, sticky: str | None) -> float:
    if sticky is None:
        return random.random()
    digest = hashlib.blake2b(sticky.encode(), digest_size=8, key=name.encode()[:64]).digest()
    return int.from_bytes(digest, "big") / 2**64


def aliases(given: object) -> tuple[Alias, ...]:
    """Read aliases; raise `ValueError` saying what is allowed."""
    found: dict[str, Alias] = {}
    for entry in named_models(given):
        if entry.name in found:
            raise ValueError("the same alias is given twice")
        found[entry.name] = _alias(entry)
    for alias in found.values():
        if any(target == alias.name for target, _ in alias.targets):
            raise ValueError("an alias stands for itself")
        if any(target in found for target, _ in alias.targets):
            raise ValueError("an alias stands for another alias: name the model itself")
    return tuple(found.values())


def _alias(entry: NamedModels) -> Alias:
    choose = entry.options.get("choose", "weight")
    if not entry.options.keys() <= {"choose"} or choose not in ("weight", "cheapest"):
        raise ValueError("the option of an alias is choose=weight or choose=cheapest")
    targets = tuple(_target(target) for target in entry.models)
    if choose == "weight":
        return Alias(entry.name, targets)
    if any(weight != 1 for _, weight in targets):
        raise ValueError("a weight means nothing where the cheapest is chosen")
    return Alias(entry.name, targets, "cheapest")


def _target(text: str) -> tuple[str, int]:
    model, colon, weight = text.rpartition(":")
    if colon and model and weight.isascii() and weight.isdigit():
        if not 0 < int(weight) <= MOST_WEIGHT:
            raise ValueError(f"a weight must be from 1 to {MOST_WEIGHT}")
        return model.strip(), int(weight)
    return text, 1


def alias_text(alias: Alias) -> str:
    """Return an alias as it may be written."""
    if alias.choose == "weight" and len(alias.targets) > 1:
        return f"{alias.name}=" + "|".join(f"{model}:{weight}" for model, weight in alias.targets)
    # `phi:14` would be read as a weight.
    models = (model if _target(model) == (model, 1) else f"{model}:1" for model, _ in alias.targets)
    chosen = ";choose=cheapest" if alias.choose == "cheapest" else ""
    return f"{alias.name}={'|'.join(models)}{chosen}"
