"""Values for people to read, without what is secret."""

from pydantic import SecretStr

from llmproxy.metering.prices import Price, price_text
from llmproxy.rate_limit.budgets import budget_text
from llmproxy.rate_limit.limits import limit_text
from llmproxy.records import Budget, Limit, Upstream
from llmproxy.routing.aliases import Alias, alias_text
from llmproxy.routing.choosing import Choosing, choosing_text
from llmproxy.routing.fallbacks import Chain, chain_text
from llmproxy.routing.rules import Rule, rule_text
from llmproxy.settings.faults import MASK
from llmproxy.settings.upstreams import described


def as_size(count: int) -> str:
    """Return a number of bytes in the largest unit that divides it."""
    for power, letter in ((4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if count % 1024**power == 0:
            return f"{count // 1024**power}{letter}iB"
    return str(count)


def as_text(value: object) -> str:
    """Return a value the way it would be set, secrets masked."""
    match value:
        case None:
            return ""
        case SecretStr():
            return MASK
        case Upstream():
            return described(value)
        case Limit():
            return limit_text(value)
        case Budget():
            return budget_text(value)
        case Price():
            return price_text(value)
        case Choosing():
            return choosing_text(value)
        case Alias():
            return alias_text(value)
        case Chain():
            return chain_text(value)
        case Rule():
            return rule_text(value)
        case tuple():
            return ",".join(as_text(item) for item in value)
        case float():
            return f"{value:.12g}"
        case _:
            return str(value)
