"""Names that stand for models: `gpt-4o=llama-3.3-70b, fast=qwen-7b:80|phi-4:20`.

Several targets share the requests by weight (A/B, canary). Who has a key or a session stays
with the target it got: the choice is drawn from its name, not from chance.
"""

import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MOST_WEIGHT = 1_000_000


@dataclass(frozen=True, slots=True)
class Alias:
    """One name and what it stands for."""

    name: str
    targets: tuple[tuple[str, int], ...]  # model, weight


class Aliases:
    """All of them."""

    def __init__(self, aliases: Iterable[Alias] = ()) -> None:
        self._by_name = {alias.name: alias for alias in aliases}

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
        total = sum(weight for _, weight in alias.targets)
        left = _drawn(alias.name, sticky) * total
        for target, weight in alias.targets:
            left -= weight
            if left < 0:
                return target
        return alias.targets[-1][0]


def _drawn(name: str, sticky: str | None) -> float:
    if sticky is None:
        return random.random()
    digest = hashlib.blake2b(sticky.encode(), digest_size=8, key=name.encode()[:64]).digest()
    return int.from_bytes(digest, "big") / 2**64


def aliases(given: object) -> tuple[Alias, ...]:
    """Read aliases; raise `ValueError` saying what is allowed."""
    found: dict[str, Alias] = {}
    for name, targets in pairs(given):
        read = tuple(_target(target) for target in targets)
        if name in found:
            raise ValueError("the same alias is given twice")
        if any(target == name for target, _ in read):
            raise ValueError("an alias stands for itself")
        found[name] = Alias(name, read)
    for alias in found.values():
        if any(target in found for target, _ in alias.targets):
            raise ValueError("an alias stands for another alias: name the model itself")
    return tuple(found.values())


def _target(text: str) -> tuple[str, int]:
    model, colon, weight = text.rpartition(":")
    if colon and model and weight.isascii() and weight.isdigit():
        if not 0 < int(weight) <= MOST_WEIGHT:
            raise ValueError(f"a weight must be from 1 to {MOST_WEIGHT}")
        return model, int(weight)
    return text, 1


def alias_text(alias: Alias) -> str:
    """Return an alias as it may be written."""
    if len(alias.targets) == 1:
        return f"{alias.name}={alias.targets[0][0]}"
    return f"{alias.name}=" + "|".join(f"{model}:{weight}" for model, weight in alias.targets)


HOW_PAIRS_LOOK = "must be name=model[|model...], separated by commas, or JSON"


def pairs(given: object) -> list[tuple[str, tuple[str, ...]]]:
    """Read `name=a|b, ...`, or a table of lists."""
    if given is None:
        return []
    if isinstance(given, str):
        read = []
        for entry in given.split(","):
            if not entry.strip():
                continue
            name, equals, content = entry.partition("=")
            if not equals:
                raise ValueError(HOW_PAIRS_LOOK)
            read.append((name, content.split("|")))
    elif isinstance(given, Mapping):
        read = [
            (str(name), content.split("|") if isinstance(content, str) else content)
            for name, content in given.items()
        ]
    else:
        raise ValueError(HOW_PAIRS_LOOK)
    return [(_name(name), _names(content)) for name, content in read]


def _names(given: object) -> tuple[str, ...]:
    if not isinstance(given, list | tuple) or not given:
        raise ValueError(HOW_PAIRS_LOOK)
    return tuple(_name(each) for each in given)


def _name(given: object) -> str:
    if isinstance(given, str) and 0 < len(given.strip()) <= 256 and given.strip().isprintable():
        return given.strip()
    raise ValueError(HOW_PAIRS_LOOK)
