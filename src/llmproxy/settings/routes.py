"""The grammars of routing, as settings read them, and what they cannot say together."""

from collections.abc import Mapping
from typing import Any

from llmproxy.routing.aliases import Alias, aliases
from llmproxy.routing.choosing import Choosing, choosing
from llmproxy.routing.fallbacks import Chain, fallbacks
from llmproxy.routing.rules import Rule, rules
from llmproxy.settings.engines import reader, told

read_aliases = reader(aliases, Alias)
read_fallbacks = reader(fallbacks, Chain)
read_rules = reader(rules, Rule)

LAYER = "routing"


def read_choosing(given: object) -> Choosing:
    """Read the policies; what was made in Python is taken as it is."""
    return given if isinstance(given, Choosing) else told(choosing, given)


def why_not_followed(value: object, given: Mapping[str, Any]) -> list[str]:
    """Return why nobody would do as a value says; empty when somebody will."""
    if value in ((), 0.0, Choosing()) or LAYER in given.get("middleware", (LAYER,)):
        return []
    return [f"needs the layer {LAYER} in LLMPROXY_MIDDLEWARE, or nobody looks at it"]


def why_no_alias(aliases: tuple[Alias, ...], given: Mapping[str, Any]) -> list[str]:
    """Return why an alias could not be followed; empty when all can."""
    if given.get("prices", ("-",)):
        return []
    return [
        f"{alias.name} takes the cheapest, which needs LLMPROXY_PRICES: without, none is cheaper"
        for alias in aliases
        if alias.choose == "cheapest"
    ]


def why_no_chain(chains: tuple[Chain, ...], given: Mapping[str, Any]) -> list[str]:
    """Return why a chain of fallbacks would never begin; empty when all can."""
    names = {alias.name for alias in given.get("aliases", ())}
    return [
        f"{chain.model} is an alias: name the model that it stands for"
        for chain in chains
        if chain.model in names
    ]


def why_too_late(limit: float, given: Mapping[str, Any]) -> list[str]:
    """Return why nobody would be asked after this time; empty when somebody will."""
    silence = given.get("timeout_first_byte", 0.0)
    if not 0 < silence <= limit:
        return []
    return [
        f"must be less than LLMPROXY_TIMEOUT_FIRST_BYTE={silence:g}, which would end the request"
        " before another server is tried"
    ]
