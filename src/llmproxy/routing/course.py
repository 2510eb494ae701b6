"""The way of one request over the servers: whom to ask first, and whom after a failure.

Knows what happened so far and decides what comes next; who asks is another's business.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmproxy.errors import NoUpstream, ProxyError, UpstreamError, UpstreamUnreachable
from llmproxy.protocol.engine_errors import Complaint
from llmproxy.routing.retry import (
    History,
    RetryBudget,
    Step,
    after_answer,
    after_failure,
    pause_before,
)
from llmproxy.routing.server import Server

Candidates = Callable[[str | None], Sequence[Server]]
Choose = Callable[[Sequence[Server]], Server]

BUSY_FOR = 1.0  # seconds that a server is passed over which says it is busy and not for how long


@dataclass(frozen=True, slots=True)
class Turn:
    """One attempt: who is asked, for which model, and whether it finds out about a server."""

    server: Server
    model: str | None
    probe: bool


class Course:
    """The attempts of one request."""

    def __init__(
        self,
        *,
        models: Sequence[str | None],
        context_models: Sequence[str] = (),
        candidates: Candidates,
        choose: Choose,
        history: History,
        budget: RetryBudget,
        now: Callable[[], float],
    ) -> None:
        self._models = list(models)  # the one asked for, then its fallbacks
        self._context_models = list(context_models)
        self._candidates = candidates
        self._choose = choose
        self._budget = budget
        self._now = now
        self.history = history
        self._at = 0  # which of the models

    def first(self) -> Turn:
        """Return the first attempt; raise when nobody can be asked."""
        self._budget.request()
        turn = self._turn()
        if turn is None:
            raise self._nobody()
        return turn

    def after_failure(self, turn: Turn, failure: ProxyError) -> Turn | None:
        """Return the next attempt after one without an answer; None when that was the last."""
        self._judge(turn, failure)
        step = after_failure(self.history, turn.server.name, failure)
        return self._next(step)

    def after_answer(
        self, turn: Turn, complaint: Complaint, retry_after: float | None
    ) -> tuple[Turn, float] | None:
        """Return the next attempt after an error answer, and how long to wait before it."""
        server = turn.server
        if complaint is Complaint.FAILED:
            server.breaker.failed(probe=turn.probe)
        else:
            server.breaker.weighs_nothing(probe=turn.probe)
            if complaint is Complaint.BUSY:
                self._steer_away(server, retry_after)
        step = after_answer(self.history, complaint)
        if step is Step.CONTEXT:
            if not self._context_models or self.history.left <= 0:
                return None
            self._models = [self._context_models.pop(0)]
            self._at = 0
            turn_after = self._turn()
            return (turn_after, 0.0) if turn_after is not None else None
        other = self._next(step)
        if other is not None and other.server is not server:
            return other, 0.0
        if other is None:
            return None
        pause = pause_before(self.history.asked.get(server.name, 1), retry_after=retry_after)
        return (other, pause) if pause is not None else None

    def succeeded(self, turn: Turn) -> None:
        """Note an attempt that was answered."""
        turn.server.breaker.succeeded(probe=turn.probe)

    def weighs_nothing(self, turn: Turn) -> None:
        """Note an attempt that tells nothing of the server: the caller left, or was wrong."""
        turn.server.breaker.weighs_nothing(probe=turn.probe)

    def rescuer(self, turn: Turn, *, fallback: bool) -> Turn | None:
        """Return who may go on with a stream that broke; never the server that broke it."""
        self.history.shut.add(turn.server.name)
        if self.history.left <= 0 or not self._budget.retry():
            return None
        found = self._turn()
        if found is None or (found.model != turn.model and not fallback):
            return None
        return found

    def _judge(self, turn: Turn, failure: ProxyError) -> None:
        if isinstance(failure, UpstreamError):
            refused = isinstance(failure, UpstreamUnreachable)
            turn.server.breaker.failed(probe=turn.probe, refused=refused)
        else:
            turn.server.breaker.weighs_nothing(probe=turn.probe)

    def _steer_away(self, server: Server, retry_after: float | None) -> None:
        rest = retry_after if retry_after is not None else BUSY_FOR
        server.busy_until = max(server.busy_until, self._now() + min(rest, 60.0))

    def _next(self, step: Step | None) -> Turn | None:
        if step is None or self.history.left <= 0 or not self._budget.retry():
            return None
        # The last attempt belongs to the chain of fallbacks, if there is one.
        if self.history.left == 1 and self._at == 0 and len(self._models) > 1:
            self._at = 1
        return self._turn()

    def _turn(self) -> Turn | None:
        """Return whom to ask now: of this model, else of the next one in the chain."""
        while self._at < len(self._models):
            model = self._models[self._at]
            server = self._server_for(model)
            if server is not None:
                self.history.asking(server.name)
                return Turn(server, model, server.breaker.begin())
            self._at += 1
        return None

    def _server_for(self, model: str | None) -> Server | None:
        """Return the server to ask: one that was not asked yet, rather than one that was."""
        may = [
            server
            for server in self._candidates(model)
            if self.history.may_ask(server.name) and server.breaker.lets_through()
        ]
        if not may:
            return None
        fresh = [server for server in may if server.name not in self.history.asked]
        now = self._now()
        idle = [server for server in fresh or may if server.busy_until <= now and not server.full]
        return self._choose(idle or fresh or may)

    def _nobody(self) -> NoUpstream:
        """Return what to tell a caller whom nobody can serve, and for how long."""
        known = [server for model in self._models for server in self._candidates(model)]
        if not known:
            return NoUpstream("No model server is configured that could answer this request.")
        wait = max(1, round(min(server.breaker.opens_in() for server in known) + 0.5))
        return NoUpstream(
            "Every model server that could answer is failing.",
            headers=[(b"retry-after", str(wait).encode())],
        )
