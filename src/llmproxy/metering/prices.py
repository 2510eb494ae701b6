"""What a model's tokens cost, and since when.

`gpt-4o=2.5:10:1.25;since=2026-01-01` is in, out and in from the engine's cache, in US dollars
per million tokens. A model may have several prices with different dates, and may be a glob: the
exact name wins, then the glob with most letters of its own. `file:PATH` names a TOML or JSON
file with the same in it.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from llmproxy import codec
from llmproxy.records import Usage

_PER = 1_000_000  # tokens that a price is for
_DEAREST = 1e6  # dollars; more is a slip of the pen
_REMEMBERED = 1024  # models whose prices need not be looked for again
LONGEST_NAME = 200  # characters of a model
_LARGEST_FILE = 4 * 1024 * 1024  # bytes

_NUMBER = r"[0-9]{1,7}(?:\.[0-9]{1,12})?"
_COSTS = re.compile(rf"({_NUMBER})\s*:\s*({_NUMBER})(?:\s*:\s*({_NUMBER}))?")

HOW_PRICES_LOOK = (
    "must look like `gpt-4o=2.5:10` or `gpt-4o=2.5:10:1.25;since=2026-01-01`: in, out and cached,"
    " in US dollars per million tokens, 1000000 at most; or be file:PATH"
)


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a model from a day on, per million tokens."""

    model: str  # a name or a glob
    prompt: float
    completion: float
    cached: float | None = None  # None = as any other part of the prompt
    since: date = date.min  # that day begins at midnight UTC

    @property
    def both(self) -> float:
        """What a token in and a token out cost together, times as many as a price is for."""
        return self.prompt + self.completion

    def cost(self, usage: Usage) -> float:
        """Return what a usage costs in US dollars; never less than nothing."""
        prompt = max(usage.prompt, 0)
        cached = min(max(usage.cached, 0), prompt) if self.cached is not None else 0
        total = (prompt - cached) * self.prompt + max(usage.completion, 0) * self.completion
        return (total + cached * (self.cached or 0.0)) / _PER

    def most(self, prompt: float, completion: float) -> float:
        """Return the most that so many tokens may cost, wherever they come from."""
        return (prompt * max(self.prompt, self.cached or 0.0) + completion * self.completion) / _PER


class PriceList:
    """All prices. Knows nothing of clocks: whoever asks says for when."""

    def __init__(
        self, prices: tuple[Price, ...] = (), names: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """`names` stand for models that a request may be sent to: it may cost what the dearest
        of them does."""
        self.prices = prices
        self._names = names or {}
        by_model: dict[str, list[Price]] = {}
        for price in prices:
            by_model.setdefault(price.model, []).append(price)
        self._exact = {
            model: tuple(sorted(each, key=lambda price: price.since, reverse=True))
            for model, each in by_model.items()
        }
        globs = [model for model in self._exact if "*" in model or "?" in model]
        globs.sort(key=lambda glob: (-_letters(glob), glob))
        self._globs = [(_compiled(glob), self._exact[glob]) for glob in globs]
        self._found: dict[str, tuple[Price, ...]] = {}

    def price(self, model: str | None, at: float) -> Price | None:
        """Return what holds for a model at a time (seconds since 1970); None = no price."""
        targets = self._names.get(model or "")
        if targets is not None:
            of_each = [self._of_model(each, at) for each in targets]
            return max(filter(None, of_each), key=lambda price: price.both, default=None)
        return self._of_model(model, at)

    def dearest(self, at: float) -> Price | None:
        """Return the highest price of all, for a model of which nobody has said what it costs."""
        of_each = (self.price(price.model, at) for price in self.prices)
        return max(filter(None, of_each), key=lambda price: price.both, default=None)

    def _of_model(self, model: str | None, at: float) -> Price | None:
        candidates = self._candidates(model or "")
        if candidates and candidates[0].since == date.min:
            return candidates[0]
        day = datetime.fromtimestamp(at, UTC).date()
        return next((price for price in candidates if price.since <= day), None)

    def _candidates(self, model: str) -> tuple[Price, ...]:
        found = self._found.get(model)
        if found is None:
            globs = (prices for glob, prices in self._globs if glob.fullmatch(model))
            found = sum(globs, self._exact.get(model, ()))
            if len(model) <= LONGEST_NAME:  # callers may ask for any name
                if len(self._found) >= _REMEMBERED:
                    self._found.clear()
                self._found[model] = found
        return found


def prices(given: object) -> PriceList:
    """Read a price list; raise `ValueError` saying what is allowed."""
    found: list[Price] = []
    for number, (model, costs) in enumerate(_entries(given), 1):
        for each in costs if isinstance(costs, list) else [costs]:
            price = _price(model, each)
            if price is None:
                raise ValueError(f"entry {number} {HOW_PRICES_LOOK}")
            if any((other.model, other.since) == (price.model, price.since) for other in found):
                raise ValueError(f"entry {number} sets a price that an earlier one has set")
            found.append(price)
    return PriceList(tuple(found))


def price_text(price: Price) -> str:
    """Return a price as it may be written, the same for every way to write it."""
    cached = f":{_number_text(price.cached)}" if price.cached is not None else ""
    since = f";since={price.since.isoformat()}" if price.since != date.min else ""
    costs = f"{_number_text(price.prompt)}:{_number_text(price.completion)}"
    return f"{price.model}={costs}{cached}{since}"


def _entries(given: object) -> Iterator[tuple[str, object]]:
    """Return models with what was said of them."""
    if given is None:
        return
    if isinstance(given, str) and given.strip().startswith("file:"):
        given = _file(given.strip().removeprefix("file:"))
    if isinstance(given, Mapping):
        yield from ((str(model).strip(), costs) for model, costs in given.items())
        return
    texts: object = given.split(",") if isinstance(given, str) else given
    if not isinstance(texts, list | tuple):
        raise ValueError("must be text, a list of texts, or a table of models")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError("must be a list of texts only")
        if text.strip():
            # The last `=` of the head: a model's own name may hold one.
            head, _, options = text.partition(";")
            model, _, costs = head.rpartition("=")
            yield model.strip(), f"{costs};{options}" if options.strip() else costs


def _file(path: str) -> object:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise ValueError("the file of prices is too long")
        text = content.decode("utf-8-sig")
    except OSError as exc:
        raise ValueError(f"the file of prices cannot be read: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError("the file of prices is not UTF-8") from None
    lowered = path.lower()
    try:
        if lowered.endswith(".toml"):
            return tomllib.loads(text)
        if lowered.endswith(".json") or text.lstrip().startswith(("[", "{")):
            return codec.loads(text)
    except tomllib.TOMLDecodeError:
        raise ValueError("the file of prices is not valid TOML") from None
    except codec.NotJson:
        raise ValueError("the file of prices is not valid JSON") from None
    lines = (line.strip().rstrip(",") for line in text.splitlines())
    return [line for line in lines if not line.startswith("#")]


def _price(model: str, costs: object) -> Price | None:
    if not model or not model.isprintable() or len(model) > LONGEST_NAME:
        return None
    if isinstance(costs, Mapping):
        return _from_table(model, costs)
    if not isinstance(costs, str):
        return None
    text, _, option = costs.partition(";")
    since = date.min
    if option:
        word, _, value = option.partition("=")
        day = _date(value.strip())
        if word.strip() != "since" or day is None:
            return None
        since = day
    match = _COSTS.fullmatch(text.strip())
    if match is None:
        return None
    return _checked(model, match[1], match[2], match[3], since)


def _from_table(model: str, table: Mapping[object, object]) -> Price | None:
    since = _date(table["since"]) if "since" in table else date.min
    if since is None or not {"in", "out"} <= table.keys() <= {"in", "out", "cached", "since"}:
        return None
    return _checked(model, table["in"], table["out"], table.get("cached"), since)


def _checked(
    model: str, prompt: object, completion: object, cached: object, since: date
) -> Price | None:
    numbers = [_dollars(each) for each in (prompt, completion, 0 if cached is None else cached)]
    if numbers[0] is None or numbers[1] is None or numbers[2] is None:
        return None
    return Price(model, numbers[0], numbers[1], None if cached is None else numbers[2], since)


def _dollars(given: object) -> float | None:
    if isinstance(given, str) and re.fullmatch(_NUMBER, given):
        given = float(given)
    if isinstance(given, bool) or not isinstance(given, int | float):
        return None
    return float(given) if 0 <= given <= _DEAREST else None


def _date(given: object) -> date | None:
    if isinstance(given, datetime):
        return None
    if isinstance(given, date):
        return given
    try:
        return date.fromisoformat(given) if isinstance(given, str) and len(given) == 10 else None
    except ValueError:
        return None


def _letters(glob: str) -> int:
    return len(glob) - glob.count("*") - glob.count("?")


def _compiled(glob: str) -> re.Pattern[str]:
    """Only `*` and `?`: a bracket may be part of a model's name."""
    pieces = {"*": ".*", "?": "."}
    return re.compile("".join(pieces.get(char) or re.escape(char) for char in glob), re.DOTALL)


def _number_text(number: float) -> str:
    return f"{number:.12f}".rstrip("0").rstrip(".") if number else "0"
