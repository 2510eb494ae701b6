"""Which model is asked when another cannot answer: `big=medium|small, context:big=long`.

The first kind is for failures, the second for prompts that are too long for the model.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from llmproxy.routing.named_models import model_name, named_models

_CONTEXT = "context:"


@dataclass(frozen=True, slots=True)
class Chain:
    """The models behind one model."""

    model: str
    others: tuple[str, ...]
    context: bool = False  # for a prompt that is too long


class Fallbacks:
    """All chains."""

    def __init__(self, chains: Iterable[Chain] = ()) -> None:
        chains = tuple(chains)
        self._on_failure = {each.model: each.others for each in chains if not each.context}
        self._when_long = {each.model: each.others for each in chains if each.context}

    def on_failure(self, model: str | None) -> tuple[str, ...]:
        """Return the models to ask after this one has failed."""
        return self._on_failure.get(model, ()) if model is not None else ()

    def when_too_long(self, model: str | None) -> tuple[str, ...]:
        """Return the models to ask when the prompt is too long for this one."""
        return self._when_long.get(model, ()) if model is not None else ()


def fallbacks(given: object) -> tuple[Chain, ...]:
    """Read chains; raise `ValueError` saying what is allowed."""
    found = []
    for entry in named_models(given):
        if entry.options:
            raise ValueError("a chain of fallbacks has no options")
        context = entry.name.startswith(_CONTEXT)
        found.append(Chain(model_name(entry.name.removeprefix(_CONTEXT)), entry.models, context))
    for context in (False, True):
        chains = {each.model: each.others for each in found if each.context is context}
        if len(chains) != sum(each.context is context for each in found):
            raise ValueError("the same model has two chains")
        # Two models may stand in for each other: a request goes along one chain, its own.
        for model, others in chains.items():
            if model in others:
                raise ValueError(f"the chain of {model!r} leads back to itself")
    return tuple(found)


def chain_text(chain: Chain) -> str:
    """Return a chain as it may be written."""
    return f"{_CONTEXT if chain.context else ''}{chain.model}={'|'.join(chain.others)}"
