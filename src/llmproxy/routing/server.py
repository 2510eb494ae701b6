"""One model server: the way to it, and what is known of how it is."""

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, ClassVar

from llmproxy import clock
from llmproxy.records import Upstream
from llmproxy.routing.breaker import Breaker
from llmproxy.routing.changes import Changes
from llmproxy.routing.engine_load import EngineLoad
from llmproxy.routing.policies import burden_of
from llmproxy.transport.interface import Transport

NEVER = float("-inf")
SLOW_START = 10.0  # seconds in which a server that has come back gets its full share again
LEAST_SHARE = 0.1  # of its weight, at the beginning of that
HALF_LIFE = 10.0  # seconds after which half of what was measured is forgotten

# Who owns the models of an engine that answers 404 to any other name.
REFUSE_UNKNOWN = frozenset({"vllm", "sglang"})


class Server:
    """An upstream, its transport, and its state. Policies see it as a `Load`."""

    def __init__(
        self,
        upstream: Upstream,
        transport: Transport,
        *,
        now: Callable[[], float] = clock.now,
        breaker: Breaker | None = None,
        most: int | None = None,
    ) -> None:
        """`most` is how many of our requests it gets at once, if not what it is configured to
        take: a worker has its part of that. 0 = no limit.
        """
        self.upstream = upstream
        self.transport = transport
        self.breaker = breaker or Breaker(now)
        self.most = upstream.max_inflight if most is None else most
        self.tells_load = upstream.preset == "vllm"
        """Whether an answer that is no stream says how busy it is, when it is asked to."""

        self.inflight = 0
        self.load: EngineLoad | None = None
        self._documents: Mapping[str, Mapping[str, Any]] | None = None
        self._up = True
        self.detail = "not asked yet"  # "ok", or what the last probe found wrong
        self._draining = False
        self.stopped = False  # with everything else: what it did not finish is our doing
        self.busy_until = 0.0  # it has asked to be left alone until then: see `rests`
        self.back_since = NEVER
        self._now = now
        self._latency = 0.0
        self._measured_at = 0.0

    some_rest_until: ClassVar[float] = 0.0
    """From when on no server, whichever it be, has asked to be left alone."""

    @property
    def up(self) -> bool:
        """Whether it is well, as of the last probe."""
        return self._up

    @up.setter
    def up(self, up: bool) -> None:
        self._up = up
        Changes.made += 1

    @property
    def draining(self) -> bool:
        """Whether the operator has taken it out of use."""
        return self._draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._draining = draining
        Changes.made += 1

    @property
    def documents(self) -> Mapping[str, Mapping[str, Any]] | None:
        """The models that it lists, by id, as it tells them; None: it has not told."""
        return self._documents

    @documents.setter
    def documents(self, documents: Mapping[str, Mapping[str, Any]] | None) -> None:
        self._documents = documents
        Changes.made += 1

    @property
    def name(self) -> str:
        return self.upstream.name

    @property
    def weight(self) -> float:
        """Its weight, less while it is warming up."""
        if self.back_since == NEVER:
            return self.upstream.weight
        age = self._now() - self.back_since
        if age >= SLOW_START:
            self.back_since = NEVER
        return self.upstream.weight * min(1.0, max(LEAST_SHARE, age / SLOW_START))

    @property
    def waiting(self) -> int:
        load = self.load
        return load.waiting if load is not None and load.is_fresh(self._now()) else 0

    @property
    def others(self) -> int:
        load = self.load
        return load.others if load is not None and load.is_fresh(self._now()) else 0

    @property
    def kv_use(self) -> float:
        load = self.load
        return load.kv_use if load is not None and load.is_fresh(self._now()) else 0.0

    @property
    def burden(self) -> float:
        """How busy it is for its size."""
        if self.load is None and self.back_since == NEVER:  # the short way to the same
            return (self.inflight + 1) / self.upstream.weight
        return burden_of(self)

    @property
    def latency(self) -> float:
        """Seconds to a first token: a peak counts at once, and is forgotten by and by."""
        return self._latency * self._faded()

    @property
    def full(self) -> bool:
        """Whether it has as many of our requests as it may get."""
        return 0 < self.most <= self.inflight

    @property
    def busy(self) -> bool:
        """Whether anything is being asked of it: by a request, or by a probe of ours."""
        pool = self.transport.statistics()
        return self.inflight > 0 or pool["open"] > pool["idle"] or pool["waiting"] > 0

    @property
    def models(self) -> tuple[str, ...] | None:
        """The names that it is known to answer to; None: nobody has said."""
        if self.upstream.models:
            return self.upstream.models
        return tuple(self.documents) if self.documents is not None else None

    def knows(self, model: str | None) -> bool | None:
        """Tell whether it has a model; None when nobody can tell before it was asked."""
        if model is None:
            return True
        if self.upstream.models:
            return _has(self.upstream.models, model)
        documents = self.documents
        if documents is None:
            return None
        if model in documents or _has(documents, model):
            return True
        return None if self._takes_any else False

    @property
    def _takes_any(self) -> bool:
        """Whether it may answer to a name that it does not list.

        Behind a plain URL stands one that refuses it only if everything it lists is owned by
        such an engine.
        """
        upstream, documents = self.upstream, self.documents
        if upstream.preset != "http" or not documents:
            return upstream.any_model
        return not all(each.get("owned_by") in REFUSE_UNKNOWN for each in documents.values())

    def first_token(self, seconds: float) -> None:
        """Note how long a first token took."""
        faded = self._faded()
        known = self._latency * faded
        self._latency = seconds if seconds > known else seconds + (known - seconds) * faded
        self._measured_at = self._now()

    def rests(self, until: float) -> None:
        """Note that it has asked to be left alone until then."""
        self.busy_until = max(self.busy_until, until)
        Server.some_rest_until = max(Server.some_rest_until, until)

    def came_back(self) -> None:
        """Note that it serves again: it begins slowly."""
        self.back_since = self._now()

    def _faded(self) -> float:
        factor: float = 0.5 ** ((self._now() - self._measured_at) / HALF_LIFE)
        return factor


def ready_of(servers: Iterable[Server], now: float) -> list[Server]:
    """Return those that may be asked, have a place, and have not said that they are busy."""
    return [
        server
        for server in servers
        if server.busy_until <= now
        and not 0 < server.most <= server.inflight
        and (server.breaker.closed or server.breaker.lets_through())
    ]


def _has(names: Container[str], model: str) -> bool:
    """Tell whether a model is among names, also as Ollama or Gemini write them."""
    return (
        model in names
        or f"{model}{_LATEST}" in names
        or (model.endswith(_LATEST) and model.removesuffix(_LATEST) in names)
        or f"models/{model}" in names
    )


_LATEST = ":latest"
