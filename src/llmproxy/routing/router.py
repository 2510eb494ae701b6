"""The rules by which requests are sent on their way among the servers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmproxy import clock, codec
from llmproxy.protocol.endpoints import serves
from llmproxy.records import Endpoint, InferenceRequest
from llmproxy.routing import policies
from llmproxy.routing.aliases import Aliases
from llmproxy.routing.changes import Changes
from llmproxy.routing.choosing import Choosing
from llmproxy.routing.course import Attempt, Choose, Course
from llmproxy.routing.fallbacks import Fallbacks
from llmproxy.routing.prefix import PrefixMemory
from llmproxy.routing.registry import Registry
from llmproxy.routing.retry import History, RetryBudget, is_replay_safe
from llmproxy.routing.rules import Facts, Rules
from llmproxy.routing.server import Server, ready_of
from llmproxy.routing.session import session_of

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Wish(NamedTuple):
    """A request, as far as it matters where it goes."""

    method: str
    path: bytes
    fields: Mapping[bytes, bytes]
    endpoint: Endpoint
    asked: InferenceRequest
    body: bytes | None  # None for an upload, which can be sent once
    key: str | None  # who is calling
    facts: Callable[[], Facts]  # what rules ask for


@dataclass(frozen=True, slots=True)
class Lane:
    """Who could answer for a model, and how one of them is chosen."""

    servers: Sequence[Server]
    choose: Choose | None  # None: more of a request matters for that, or for what is sent
    well: bool  # each may have any number of requests, as long as none asks to be left alone


class Router:
    """Knows the servers and the rules, and makes a course for each request."""

    def __init__(
        self,
        registry: Registry,
        *,
        choosing: Choosing,
        aliases: Aliases,
        fallbacks: Fallbacks,
        rules: Rules,
        retries: int,
        now: Callable[[], float] = clock.now,
    ) -> None:
        self.registry = registry
        self.aliases = aliases
        self._choosing = choosing
        self._fallbacks = fallbacks
        self._rules = rules
        self._retries = retries
        self._now = now
        self._budget = RetryBudget(now)
        self._turns: dict[str | None, policies.RoundRobin] = {}
        self._prefixes = PrefixMemory()
        self._lanes: dict[str | None, Lane] = {}  # by model
        self._lanes_at = -1  # what `Changes.made` was then

    def usual(self, endpoint: Endpoint, model: str | None) -> Attempt | None:
        """Return the first attempt of a request of which nothing but its model matters.

        That is nearly every one. None: something else does, or no server is ready for it.
        """
        if endpoint.native or endpoint.management:
            return None
        lane = self._lanes.get(model) if self._lanes_at == Changes.made else None
        if lane is None:
            lane = self._lane(model)
        if lane.choose is None:
            return None
        now = self._now()
        ready = lane.servers
        if not lane.well or now < Server.some_rest_until:
            ready = ready_of(ready, now)
            if not ready:
                return None
        self._budget.request(now)
        server = lane.choose(ready)
        return Attempt(server, model, probe=not lane.well and server.breaker.begin())

    def first(self, wish: Wish) -> Attempt | None:
        """Return the first attempt, if there is a server for it that is well and has a place.

        A course is for those that need more.
        """
        model, tags = self._wanted(wish)
        if tags or wish.endpoint.native or wish.endpoint.management:
            able = self.candidates(model, wish, tags)
        else:
            able = self._lane(model).servers
        now = self._now()
        ready = ready_of(able, now)
        if not ready:
            return None
        self._budget.request(now)
        server = self._choose(ready, wish, model)
        return Attempt(server, model, probe=server.breaker.begin())

    def course(self, wish: Wish, first: Attempt | None = None) -> Course:
        """Return the way of one request, of which the first attempt may have been made."""
        model, tags = self._wanted(wish)
        if first is not None:
            model = first.model  # chance may have chosen it
        replay_safe = wish.body is not None and (
            wish.method in SAFE_METHODS or is_replay_safe(wish.endpoint, wish.asked)
        )
        history = History(most=1 + self._retries, replay_safe=replay_safe)
        if first is not None:
            history.asking(first.server.name)
        return Course(
            models=(model, *self._fallbacks.on_failure(model)),
            longer=self._fallbacks.when_too_long(model),
            candidates=lambda wanted: self.candidates(wanted, wish, tags),
            choose=lambda able: self._choose(able, wish, model),
            history=history,
            budget=self._budget,
            now=self._now,
        )

    def candidates(
        self, model: str | None, wish: Wish, tags: frozenset[str] = frozenset()
    ) -> Sequence[Server]:
        """Return the servers that could answer: those that have the model, else those that may.

        Of these the healthy ones, while there are any: a probe that fails everywhere says more
        about the probe than about the servers.
        """
        servers: Sequence[Server] = self.registry.servers
        endpoint = wish.endpoint
        if endpoint.native or endpoint.management:
            servers = [server for server in servers if serves(server.upstream, wish.path)]
        if tags:
            servers = [server for server in servers if not tags.isdisjoint(server.upstream.tags)]
        return _candidates(servers, model)

    def _lane(self, model: str | None) -> Lane:
        """Return the lane of a model, made once until something about a server changes."""
        if self._lanes_at != Changes.made:
            self._lanes_at = Changes.made
            self._lanes.clear()
        lane = self._lanes.get(model)
        if lane is None:
            servers = _candidates(self.registry.servers, model)
            more = (
                self._rules
                or model in self.aliases.names
                or any(server.upstream.priority for server in servers)
            )
            well = all(server.breaker.closed and not server.most for server in servers)
            choose = None if more else self._chooser(model)
            lane = Lane(servers, choose, well and bool(servers))
            if len(self._lanes) < _MOST_ROWS:
                self._lanes[model] = lane
        return lane

    def _wanted(self, wish: Wish) -> tuple[str | None, frozenset[str]]:
        """Return the model that a request is for, and the tags of servers that may get it."""
        tags: frozenset[str] = frozenset()
        model = wish.asked.model
        if self._rules:
            decision = self._rules.decide(wish.facts())
            tags = decision.tags
            model = decision.model or model
        if self.aliases:
            model = self.aliases.resolve(model, self._who(wish))
        return model, tags

    def _who(self, wish: Wish) -> str | None:
        """Return who stays with the target of an alias that it got once."""
        session = wish.fields.get(b"x-session-id")
        return session.decode("latin-1") if session else wish.key

    def _choose(self, able: Sequence[Server], wish: Wish, model: str | None) -> Server:
        if len(able) == 1:
            return able[0]
        if (choose := self._chooser(model)) is not None:
            return choose(able)
        match self._choosing.policy_for(model):
            case "prefix" if wish.body:
                return self._prefixes.choose(able, wish.body)
            case "session" if (session := self._session(wish)) is not None:
                return policies.bounded_hash(able, session)
        return policies.least_load(able)

    def _chooser(self, model: str | None) -> Choose | None:
        """Return what chooses a server by nothing but the servers; None if more has to be known."""
        match self._choosing.policy_for(model):
            case "least_load":
                return policies.least_load
            case "round_robin":
                return self._turns_of(model)
            case "weighted":
                return policies.weighted
            case "p2c":
                return policies.p2c
            case "latency":
                return policies.latency
        return None

    def _turns_of(self, model: str | None) -> policies.RoundRobin:
        # Models that share servers take turns of their own: one row for all of them would
        # send every second model to the same server.
        if (turns := self._turns.get(model)) is None:
            if len(self._turns) >= _MOST_ROWS:
                self._turns.clear()
            turns = self._turns[model] = policies.RoundRobin()
        return turns

    def _session(self, wish: Wish) -> bytes | None:
        session = session_of(wish.fields, None)
        if session is None and wish.body:
            return session_of(wish.fields, _user_in(wish.body))
        return session


_MOST_ROWS = 1024


def _candidates(servers: Sequence[Server], model: str | None) -> Sequence[Server]:
    """Return those that have a model, else those that may; of these the healthy ones."""
    able: list[Server] = []
    perhaps: list[Server] = []
    all_up = True
    for server in servers:
        known = server.knows(model)
        if known is not False and not server.draining:
            (able if known else perhaps).append(server)
            all_up = all_up and server.up
    able = able or perhaps
    return able if all_up else [server for server in able if server.up] or able


def _user_in(body: bytes) -> str | None:
    """Return whom a body says it is sent for."""
    try:
        asked = codec.loads(body)
    except codec.NotJson:
        return None
    if not isinstance(asked, dict):
        return None
    parameters = asked.get("session_params")
    session = parameters.get("session_id") if isinstance(parameters, dict) else None
    name = session or asked.get("user")
    return name if isinstance(name, str) and name else None
