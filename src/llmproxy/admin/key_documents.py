"""Keys as operators see them: what they may do and how they stand, and never a secret."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llmproxy import clock
from llmproxy.admin.times import instant
from llmproxy.auth.documents import IssuedKey
from llmproxy.auth.keys import KeyEntry
from llmproxy.rate_limit.budgets import budget_text
from llmproxy.rate_limit.limits import limit_text
from llmproxy.records import Principal

Document = dict[str, Any]


def of_issued(keys: Sequence[IssuedKey]) -> Document:
    """Return the document of a name that keys were issued for, the newest first."""
    newest = keys[0]
    return {
        **_of_name(newest.principal, "issued", newest.note),
        "state": state(newest),
        "created": instant(newest.created),
        "signing": newest.signing is not None,
        "unsigned": newest.unsigned,
        "keys": [
            {
                "fingerprint": key.fingerprint,
                "state": state(key),
                "created": instant(key.created),
                "until": instant(key.until) if key.until != math.inf else None,
            }
            for key in keys
        ],
    }


def of_configured(entry: KeyEntry) -> Document:
    """Return the document of a key that the configuration has."""
    expires = entry.principal.expires
    over = expires is not None and clock.wall() >= expires
    return {
        **_of_name(entry.principal, "configured", entry.note),
        "state": "expired" if over else "active",
        "created": None,
        "signing": entry.signing is not None,
        "unsigned": entry.unsigned,
        "keys": [],
    }


def state(key: IssuedKey) -> str:
    """Return how a key stands, in one word."""
    now = clock.wall()
    if key.revoked is not None:
        return "revoked"
    if key.principal.expires is not None and now >= key.principal.expires:
        return "expired"
    if key.replaced_until is not None:
        return "ending" if now < key.replaced_until else "replaced"
    return "active"


def fields_of(who: Principal) -> Document:
    """Return the fields of a caller as they may be written."""
    return {
        "team": who.team,
        "tier": who.tier,
        "tags": sorted(who.tags),
        "role": who.role.value,
        "models": list(who.models),
        "routes": list(who.routes),
        "networks": [str(network) for network in who.networks],
        "limits": [limit_text(limit) for limit in who.limits],
        "budget": [budget_text(budget) for budget in who.budgets],
        "weight": who.weight,
        "priority": who.priority,
        "max_tokens": who.max_tokens,
        "expires": instant(who.expires),
    }


def as_text(fields: Mapping[str, object]) -> dict[str, str]:
    """Return each value as one text."""
    return {
        name: "|".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in fields.items()
    }


def _of_name(who: Principal, source: str, note: str) -> Document:
    return {"name": who.name, "id": who.id, "source": source, **fields_of(who), "note": note}
