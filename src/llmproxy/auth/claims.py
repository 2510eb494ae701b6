"""From the claims of a token to a caller: `name=sub,team=org,tier=plan,role=realm.roles`.

On the left stands a field of a key, on the right where it is in the token: a claim of that very
name, or a path with dots into nested ones.

Rule 1: what restricts a caller (models, routes, networks, limits, budget, max_tokens) must be in
        every token once it is mapped. A token without it is refused, for it would be the one
        without a restriction.
Rule 2: a role that is not known, or none, is the least of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmproxy import codec
from llmproxy.auth.fields import LONGEST_TEXT, Fields
from llmproxy.records import Principal, Role

RESTRICTIONS = frozenset({"models", "routes", "networks", "limits", "budget", "max_tokens"})
DEFAULT: Mapping[str, str] = {"name": "sub"}
_RANK = (Role.ADMIN, Role.VIEWER)


class BadClaims(ValueError):
    """The token is genuine and does not tell what it must tell. Shows no value."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Reads callers out of tokens."""

    fields: Fields
    mapping: Mapping[str, str]

    def principal(self, told: Mapping[str, Any]) -> Principal:
        """Return the caller of a token that was found to be genuine."""
        found: dict[str, object] = {}
        for field, place in self.mapping.items():
            value = _at(told, place)
            if value is None:
                if field in RESTRICTIONS or field == "name":
                    raise BadClaims(f"the claim for `{field}` is missing")
                continue
            found[field] = _role(value) if field == "role" else value
        name = found.pop("name")
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_TEXT:
            raise BadClaims("the claim for `name` is no name")
        try:
            read = self.fields.read(found)
        except ValueError as exc:
            raise BadClaims(str(exc)) from None
        read["expires"] = told["exp"]
        return Principal(id=f"jwt:{name}", name=name, method="jwt", **read)


def claims(given: object, *, fields: Fields) -> Claims:
    """Read the mapping; raise `ValueError` with what is allowed."""
    mapping = dict(DEFAULT)
    allowed = {"name", *fields.names} - {"expires"}
    for field, place in _pairs(given):
        if field not in allowed:
            raise ValueError(f"must map fields of a key: {', '.join(sorted(allowed))}")
        if not isinstance(place, str) or not place.strip():
            raise ValueError(f"`{field}` must be mapped to a claim, as in {field}=sub")
        mapping[field] = place.strip()
    return Claims(fields, mapping)


def _pairs(given: object) -> list[tuple[str, object]]:
    if isinstance(given, str) and given.strip().startswith("{"):
        try:
            given = codec.loads(given)
        except codec.NotJson:
            raise ValueError("begins like JSON but is not valid JSON") from None
    if isinstance(given, Mapping):
        return [(str(field), place) for field, place in given.items()]
    if isinstance(given, str):
        given = given.split(",")
    if not isinstance(given, list | tuple):
        raise ValueError("must be written field=claim, separated by commas")
    pairs: list[tuple[str, object]] = []
    for part in given:
        if not isinstance(part, str):
            raise ValueError("must be written field=claim, separated by commas")
        if part.strip():
            field, _, place = part.partition("=")
            pairs.append((field.strip(), place))
    return pairs


def _at(told: Mapping[str, Any], place: str) -> object:
    if place in told:  # names of claims are often URLs, with dots in them
        found: object = told[place]
        return found
    value: Any = told
    for part in place.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _role(value: object) -> Role:
    roles = value if isinstance(value, list) else [value]
    return next((role for role in _RANK if role.value in roles), Role.CALLER)
