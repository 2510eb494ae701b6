"""Issued keys as the store keeps them: versioned JSON, and no key in it."""

import ipaddress
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from llmproxy import codec
from llmproxy.records import Budget, Limit, Principal, Role
from llmproxy.store.interface import Unavailable

VERSION = 1


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """One issued key; after a rotation its caller has two for a while."""

    principal: Principal
    fingerprint: str
    created: float  # seconds since 1970, like all of these
    note: str = ""
    revoked: float | None = None
    replaced_until: float | None = None  # there is a newer one, and this works until then
    signing: bytes | None = field(default=None, repr=False)
    unsigned: bool = False

    @property
    def until(self) -> float:
        """The moment from which it is refused."""
        ends = (self.revoked, self.replaced_until, self.principal.expires)
        return min((end for end in ends if end is not None), default=math.inf)


def write(key: IssuedKey) -> bytes:
    """Return the document of a key."""
    who = key.principal
    return codec.dumps(
        {
            "v": VERSION,
            "id": who.id,
            "name": who.name,
            "team": who.team,
            "tier": who.tier,
            "tags": sorted(who.tags),
            "role": who.role.value,
            "models": who.models,
            "routes": who.routes,
            "networks": [str(network) for network in who.networks],
            "limits": [asdict(limit) for limit in who.limits],
            "budgets": [asdict(budget) for budget in who.budgets],
            "weight": who.weight,
            "priority": who.priority,
            "max_tokens": who.max_tokens,
            "expires": who.expires,
            "fingerprint": key.fingerprint,
            "created": key.created,
            "note": key.note,
            "revoked": key.revoked,
            "replaced_until": key.replaced_until,
            "signing": key.signing.hex() if key.signing is not None else None,
            "unsigned": key.unsigned,
        }
    )


def read(document: bytes) -> IssuedKey:
    """Return the key of a document.

    One that cannot be read, because a later version wrote it say, is as good as a store that
    does not answer: who is calling is not known, and that is not the caller's fault.
    """
    try:
        told: dict[str, Any] = codec.loads(document)
        if told["v"] != VERSION:
            raise Unavailable("a key was written by another version")
        principal = Principal(
            id=told["id"],
            name=told["name"],
            team=told["team"],
            tier=told["tier"],
            tags=frozenset(told["tags"]),
            role=Role(told["role"]),
            models=tuple(told["models"]),
            routes=tuple(told["routes"]),
            networks=tuple(ipaddress.ip_network(network) for network in told["networks"]),
            limits=tuple(Limit(**limit) for limit in told["limits"]),
            budgets=tuple(Budget(**budget) for budget in told["budgets"]),
            weight=told["weight"],
            priority=told["priority"],
            max_tokens=told["max_tokens"],
            expires=told["expires"],
        )
        return IssuedKey(
            principal,
            told["fingerprint"],
            told["created"],
            told["note"],
            told["revoked"],
            told["replaced_until"],
            bytes.fromhex(told["signing"]) if told["signing"] is not None else None,
            told["unsigned"],
        )
    except (KeyError, TypeError, ValueError):
        raise Unavailable("a key in the store cannot be read") from None
