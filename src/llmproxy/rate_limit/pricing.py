"""What a budget in money is charged for.

Rule: a model without a price costs as much as the dearest one. To let it through for nothing would
      be a hole in every budget.
"""

import logging
from typing import Protocol

from llmproxy import clock
from llmproxy.rate_limit.reservation import Price, Reservation

MOST_UNPRICED = 100  # models that are warned of: callers may ask for any name
LONGEST_NAME = 80  # characters of one in the log

log = logging.getLogger("llmproxy")


class Prices(Protocol):
    """What tokens cost."""

    def price(self, model: str | None, at: float) -> Price | None:
        """Return what holds for a model at a time; None = no price."""

    def dearest(self, at: float) -> Price | None:
        """Return the highest price that holds at a time."""


class Pricing:
    """Finds the price of each model that is charged."""

    def __init__(self, prices: Prices | None) -> None:
        self._prices = prices
        self._unpriced: set[str] = set()

    def price(self, model: str | None) -> Price | None:
        """Return what a model costs now; None where nothing has a price."""
        if self._prices is None:
            return None
        now = clock.wall()
        price = self._prices.price(model, now)
        if price is not None:
            return price
        self._warn_of((model or "")[:LONGEST_NAME])
        return self._prices.dearest(now)

    def of_answer(self, reservation: Reservation, model: str | None) -> Price | None:
        """Return the price of the model that answers; None = the one that was asked for."""
        if model is None or model == reservation.asked.model or not reservation.plan.costs:
            return reservation.price
        return self.price(model)

    def _warn_of(self, name: str) -> None:
        if len(self._unpriced) < MOST_UNPRICED and name not in self._unpriced:
            self._unpriced.add(name)
            log.warning("a model without a price is charged like the dearest: %r", name)
