"""What is wrong with a configuration: all of it at once, and no secret in any of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

MASK = "***"
LONGEST = 80  # characters of a value that are worth repeating

# Near one of these words a text may hold a secret. It is then not repeated at all: where a
# secret begins and ends is known only for a value that could be read.
_DELICATE = re.compile(r"key|token|secret|passw|auth|bearer|sk-|@|\?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?<=:)//.*@", re.DOTALL)
_QUERY = re.compile(r"[?#].*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, and what to do about it."""

    variable: str
    value: str  # as it may be shown: masked, cut, on one line; empty = not shown
    cure: str
    source: str = ""  # the file or the argument it came from; empty = the environment

    def __str__(self) -> str:
        given = f"{self.variable}={self.value}" if self.value else self.variable
        where = f" ({self.source})" if self.source else ""
        return f"{given}{where}: {self.cure}"


class SettingsError(ValueError):
    """The configuration cannot be used. The message has a line for each fault."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class Refused(ValueError):
    """One value was refused; raised by the grammars, which do not know for whom they read."""

    def __init__(self, *complaints: tuple[str, str]) -> None:
        super().__init__("; ".join(cure for _, cure in complaints))
        self.complaints = complaints  # value as it may be shown, cure

    def faults(self, variable: str) -> list[Fault]:
        """Return one fault for each complaint."""
        return [Fault(variable, value, cure) for value, cure in self.complaints]


def refuse(value: object, cure: str) -> Refused:
    """Return the error for a value that may be shown unless it looks like a secret."""
    return Refused((shown(value), cure))


def shown(value: object) -> str:
    """Return a value on one line, cut to a sensible length; nothing of it if it is delicate."""
    text = value if isinstance(value, str) else repr(value)
    return MASK if _DELICATE.search(text) else cut(value)


def cut(value: object) -> str:
    """Return a value on one line, escaped and cut to a sensible length."""
    text = repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def safe_url(url: str) -> str:
    """Return a URL without what may be secret in it: user, password, query, fragment."""
    url = _AUTHORITY.sub(f"//{MASK}@", url)
    return _QUERY.sub(f"?{MASK}", url)
