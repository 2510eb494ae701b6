"""The grammar of limits: `60 req/min, 100000 tok/min, 8 concurrent, 500 req/hour per team=blue`.

An entry is an amount, a unit and a time, or an amount and `concurrent`; for whom it counts may
follow. Entries are separated by commas, or by `|` inside an option of a key. What a text means
can be written back as a text that means the same.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence

from llmproxy.records import Budget, Limit, Per

MOST = 1e15  # of anything; beyond it a float can no longer count in ones
_DAY = 86_400
_YEAR = 365 * _DAY
_PERIODS = {"sec": 1, "s": 1, "min": 60, "m": 60, "hour": 3600, "h": 3600, "day": _DAY, "d": _DAY}
_NAMES = ((_DAY, "day"), (3600, "hour"), (60, "min"), (1, "sec"))
_PER: dict[str, Per] = {"key": "key", "team": "team", "tier": "tier", "model": "model", "ip": "ip"}

AMOUNT = r"(?P<amount>[0-9]{1,16}(?:\.[0-9]{1,6})?(?:e[0-9]{1,2})?)"
FOR = r"(?:\s+per\s+(?P<per>[a-z]+)(?:\s*=\s*(?P<of>\S(?:.{0,198}\S)?))?)?"
_ENTRY = re.compile(
    AMOUNT
    + r"\s*(?:(?P<unit>req|tok)\s*/\s*(?P<count>[0-9]{1,9})?\s*(?P<period>[a-z]+)|concurrent)"
    + FOR,
    re.IGNORECASE,
)

HOW_LIMITS_LOOK = (
    "must look like `60 req/min`, `100000 tok/min`, `10 req/5min` or `8 concurrent`, with"
    " `per key`, `per team`, `per tier`, `per model` or `per ip` behind it (or `per team=blue`);"
    " times are sec, min, hour and day"
)


def limits(given: object) -> tuple[Limit, ...]:
    """Read limits; raise `ValueError` saying what is allowed."""
    found = []
    for number, text in entries(given):
        match = _ENTRY.fullmatch(text)
        seconds = _seconds(match) if match is not None else None
        if match is None or seconds is None:
            raise ValueError(f"entry {number} {HOW_LIMITS_LOOK}")
        amount = read_amount(match, number, whole=True)
        per, of = read_for(match, number)
        unit = (match["unit"] or "concurrent").lower()
        if unit == "req":
            found.append(Limit(amount, "req", seconds, per, of))
        elif unit == "tok":
            found.append(Limit(amount, "tok", seconds, per, of))
        else:
            found.append(Limit(amount, "concurrent", 0.0, per, of))
    refuse_twice([(limit.unit, limit.period, limit.per, limit.of) for limit in found])
    return tuple(found)


def limit_text(limit: Limit) -> str:
    """Return a limit as it may be written, the same for every way to write it."""
    amount = amount_text(limit.amount)
    if limit.unit == "concurrent":
        return f"{amount} concurrent{for_text(limit)}"
    length, name = next(each for each in _NAMES if limit.period % each[0] == 0)
    count = round(limit.period / length)
    return f"{amount} {limit.unit}/{count if count > 1 else ''}{name}{for_text(limit)}"


def entries(given: object) -> Iterator[tuple[int, str]]:
    """Return the entries of a text or of a list of texts, each with its number."""
    if given is None:
        return
    texts: Iterable[object] = [given] if isinstance(given, str) else ()
    if isinstance(given, list | tuple):
        texts = given
    elif not isinstance(given, str):
        raise ValueError("must be text, or a list of texts")
    number = 0
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"entry {number + 1} must be text")
        for piece in re.split(r"[,|]", text):
            if piece.strip():
                number += 1
                yield number, " ".join(piece.split())


def read_amount(match: re.Match[str], number: int, *, whole: bool) -> float:
    """Return the amount of an entry: more than nothing, and not more than can be counted."""
    amount = float(match["amount"])
    if whole and amount != int(amount):
        raise ValueError(f"entry {number} must have a whole number")
    if not 0 < amount <= MOST:
        raise ValueError(f"entry {number} must have an amount above 0, {MOST:g} at most")
    return amount


def read_for(match: re.Match[str], number: int) -> tuple[Per, str | None]:
    """Return for whom an entry counts."""
    word, of = (match["per"] or "key").lower(), match["of"]
    per = _PER.get(word)
    if per is None:
        raise ValueError(f"entry {number} must count per {', '.join(_PER)}")
    if of is not None and per == "key":
        raise ValueError(f"entry {number}: what one key may have is an option of that key")
    if of is not None and not of.isprintable():
        raise ValueError(f"entry {number} must have printable text behind `=`")
    if of is not None and per == "ip":
        try:
            of = address_subject(of.removesuffix("/64") if ":" in of else of)
        except ValueError:
            raise ValueError(f"entry {number} must have an address behind `ip=`") from None
    return per, of


def address_subject(address: str) -> str:
    """Return what a client address is counted under.

    Whoever has an IPv6 address has 2^64 of them, so they count as one; raise `ValueError` for
    what is no address.
    """
    read = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(read, ipaddress.IPv6Address):
        if read.ipv4_mapped is not None:
            return str(read.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(read) >> 64 << 64, 64)))
    return str(read)


def amount_text(amount: float) -> str:
    """Return an amount without an exponent."""
    return f"{amount:.6f}".rstrip("0").rstrip(".")


def for_text(given: Limit | Budget) -> str:
    """Return for whom something counts, as it may be written."""
    return f" per {given.per}" + (f"={given.of}" if given.of is not None else "")


def refuse_twice(named: Sequence[object]) -> None:
    """Refuse two entries that differ in nothing but their amount."""
    for place, name in enumerate(named):
        if name in named[:place]:
            raise ValueError(f"entry {place + 1} sets what an earlier one has set")


def _seconds(match: re.Match[str]) -> float | None:
    """Return the time of an entry in seconds; 0 for what is held, None when it is no time."""
    if match["unit"] is None:
        return 0.0
    length = _PERIODS.get(match["period"].lower())
    seconds = int(match["count"] or 1) * length if length is not None else 0
    return float(seconds) if 0 < seconds <= _YEAR else None
