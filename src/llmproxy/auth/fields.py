"""The fields of a key: one grammar for configured keys, issued ones and the claims of a token.

A list is text with `|` or a native list. A message names the field and what is allowed, and
never repeats a value: somebody may have put a secret into the wrong place.
"""

import difflib
import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from llmproxy.records import Budget, Limit, Network, Role

LONGEST_TEXT = 1024  # characters

LimitsGrammar = Callable[[object], tuple[Limit, ...]]
BudgetsGrammar = Callable[[object], tuple[Budget, ...]]

_OPTION = re.compile(r"[a-z_]{1,20}")


class Fields:
    """Reads what may be said about a caller into what a `Principal` is made with."""

    def __init__(self, *, limits: LimitsGrammar, budgets: BudgetsGrammar) -> None:
        self._readers: dict[str, tuple[str, Callable[[object], Any]]] = {
            "team": ("team", text),
            "tier": ("tier", text),
            "tags": ("tags", lambda given: frozenset(texts(given))),
            "role": ("role", role),
            "models": ("models", texts),
            "routes": ("routes", texts),
            "networks": ("networks", networks),
            "limits": ("limits", limits),
            "budget": ("budgets", budgets),
            "weight": ("weight", weight),
            "priority": ("priority", lambda given: whole(given, 0, 100)),
            "max_tokens": ("max_tokens", lambda given: whole(given, 1, 10**9)),
            "expires": ("expires", moment),
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The fields there are."""
        return tuple(self._readers)

    def read(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Return arguments for a `Principal`; raise `ValueError` with all that is wrong."""
        read: dict[str, Any] = {}
        wrong: list[str] = []
        for name, value in given.items():
            if name not in self._readers:
                wrong.append(self._no_such(name))
                continue
            field, reader = self._readers[name]
            try:
                read[field] = reader(value)
            except ValueError as exc:
                wrong.append(f"`{name}` {exc}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return read

    def _no_such(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._readers, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(self._readers)}"
        # Only what looks like a name is repeated: it may be the rest of a secret.
        named = f"`{name}`" if _OPTION.fullmatch(name) else "of this name"
        return f"there is no option {named}; {hint}"


def text(given: object) -> str:
    """Read a name."""
    if isinstance(given, str) and 0 < len(given.strip()) <= LONGEST_TEXT:
        stripped = given.strip()
        if stripped.isprintable():
            return stripped
    raise ValueError(f"must be printable text of at most {LONGEST_TEXT} characters")


def texts(given: object) -> tuple[str, ...]:
    """Read a list of names, of which there must be one: an empty list could mean all or none."""
    parts = given.split("|") if isinstance(given, str) else given
    if isinstance(parts, list | tuple | set | frozenset) and parts:
        with suppress(ValueError):
            return tuple(text(part) for part in parts)
    raise ValueError("must be a list of printable text, not empty and separated by |")


def role(given: object) -> Role:
    """Read a role."""
    try:
        return Role(str(given))
    except ValueError:
        raise ValueError(f"must be one of {', '.join(Role)}") from None


def networks(given: object) -> tuple[Network, ...]:
    """Read addresses and networks."""
    try:
        return tuple(ipaddress.ip_network(part) for part in texts(given))
    except ValueError:
        raise ValueError(
            "must be addresses or networks such as 192.0.2.7|10.0.0.0/8, separated by |"
        ) from None


def weight(given: object) -> float:
    """Read a share."""
    value = _number(given)
    if value is None or not 0.001 <= value <= 1_000_000:
        raise ValueError("must be a number from 0.001 to 1000000")
    return value


def whole(given: object, least: int, most: int) -> int:
    """Read a whole number."""
    value = _number(given)
    if value is None or not least <= value <= most or value != int(value):
        raise ValueError(f"must be a whole number from {least} to {most}")
    return int(value)


def moment(given: object) -> float:
    """Read a point in time: a date (UTC, its beginning), a date with a time, or seconds."""
    if isinstance(given, datetime):
        value: float | None = _utc(given).timestamp()
    elif isinstance(given, str) and "-" in given:
        try:
            value = _utc(datetime.fromisoformat(given.strip())).timestamp()
        except (ValueError, OverflowError):
            value = None
    elif hasattr(given, "isoformat"):  # a date of TOML
        return moment(given.isoformat())
    else:
        value = _number(given)
    if value is None or not 0 < value < 1e11:
        raise ValueError("must be a date such as 2030-01-31 or 2030-01-31T12:00:00Z")
    return value


def _utc(given: datetime) -> datetime:
    return given if given.tzinfo is not None else given.replace(tzinfo=UTC)


def _number(given: object) -> float | None:
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        return None
    try:
        value = float(given)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None
