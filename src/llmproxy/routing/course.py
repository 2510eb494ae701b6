"""The way of one request over the servers: whom to ask first, and whom after a failure.

Knows what happened so far and decides what comes next; who asks is another's business.
"""

from collections.abc import Callable, Sequence

from llmproxy import clock
from llmproxy.errors import (
    ModelNotFound,
    NoUpstream,
    ProxyError,
    UpstreamError,
)
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

LONGEST_NAME = 128  # characters of a model that an error repeats
BUSY_FOR = 1.0  # seconds that a server is passed over which says it is busy and not for how long
LONGEST_BUSY = 60.0


class Attempt:
    """One attempt: who is asked, for which model, and with what."""

    # What nearly every attempt leaves as it is costs it nothing here.
    pause = 0.0  # seconds to wait before
    body: bytes | None = None  # None: the request's own
    first_byte = 0.0  # seconds that it may take, if less than usual; 0 = as usual
    asks_load = False  # the server is to say in its answer how busy it is
    is_late: Callable[[], bool] | None = None  # whether it was ended as its first token was late
    asked_at = 0.0  # when, where it matters how soon a first token comes; 0 = it does not

    def __init__(self, server: Server, model: str | None, *, probe: bool) -> None:
        """`probe`: it finds out whether a server that failed is well again."""
        self.server = server
        self.model = model
        self.probe = probe

    def answered(self, status: int) -> None:
        """Note that an answer has begun, which is when a server that failed is known to be well."""
        if self.asked_at and status == 200:
            self.server.first_token(clock.now() - self.asked_at)
        if status < 500 or status == 501:
            self.server.breaker.succeeded(probe=self.probe)
        else:
            self.server.breaker.failed(probe=self.probe)

    def weighs_nothing(self) -> None:
        """Note an attempt that tells nothing of the server: the caller left, or was wrong."""
        self.server.breaker.weighs_nothing(probe=self.probe)


class Full(Exception):
    """Every server that could answer has as many requests as it may have."""

    def __init__(self, model: str | None) -> None:
        super().__init__()
        self.model = model


class Unknown(Exception):
    """No server is known to have the model."""

    def __init__(self, model: str | None) -> None:
        super().__init__()
        self.model = model

    def refusal(self) -> ProxyError:
        """Return what its caller is told."""
        if self.model is None:
            return NoUpstream("No model server is there that could answer this request.")
        return ModelNotFound(
            f"The model `{self.model[:LONGEST_NAME]}` is on none of the model servers.",
            param="model",
        )


class Course:
    """The attempts of one request."""

    __slots__ = (
        "_at", "_budget", "_candidates", "_choose", "_is_longer", "_longer", "_models", "_now",
        "history",
    )  # fmt: skip

    def __init__(
        self,
        *,
        models: Sequence[str | None],
        longer: Sequence[str] = (),
        candidates: Candidates,
        choose: Choose,
        history: History,
        budget: RetryBudget,
        now: Callable[[], float],
    ) -> None:
        self._models = models  # the one asked for, then its fallbacks
        self._longer = longer  # those that take longer prompts
        self._candidates = candidates
        self._choose = choose
        self._budget = budget
        self._now = now
        self.history = history
        self._at = 0  # which of the models
        self._is_longer = False  # they are those that take longer prompts

    @property
    def model(self) -> str | None:
        """The one that is asked for, by the name that the servers know it by."""
        return self._models[0]

    def first(self) -> Attempt:
        """Return the first attempt; raise when nobody can be asked, or not now."""
        found = self._find()
        if self._at and self._is_full(self._models[0]):
            raise Full(self._models[0])  # that is no failure, so it is no case for a fallback
        if found is None:
            raise self._nobody()
        self._budget.request(self._now())
        return self._take(*found)

    def after_failure(self, attempt: Attempt, failure: ProxyError) -> Attempt | None:
        """Return the next attempt after one without an answer; None when that was the last."""
        self._judge(attempt, failure, probe=attempt.probe)
        return self._next(after_failure(self.history, attempt.server.name, failure))

    def after_answer(
        self, attempt: Attempt, complaint: Complaint, retry_after: float | None
    ) -> Attempt | None:
        """Return the next attempt after an error answer; None when it is passed on."""
        self.refused(attempt, complaint, retry_after)
        step = after_answer(self.history, complaint)
        if step is Step.LONGER and self._is_longer:
            self._at = self._models.index(attempt.model) + 1
        elif step is Step.LONGER:
            self._models, self._longer, self._at = self._longer, (), 0
            self._is_longer = True
        return self._next(step, retry_after, attempt.server)

    def refused(self, attempt: Attempt, complaint: Complaint, retry_after: float | None) -> None:
        """Note an error answer."""
        server = attempt.server
        if complaint is Complaint.FAILED:
            server.breaker.failed(probe=attempt.probe)
            return
        server.breaker.weighs_nothing(probe=attempt.probe)
        if complaint is Complaint.BUSY:
            rest = BUSY_FOR if retry_after is None else min(retry_after, LONGEST_BUSY)
            server.rests(until=self._now() + rest)

    def slow(self, attempt: Attempt, seconds: float) -> Attempt | None:
        """Return the next attempt after one whose first token was late by our own measure."""
        attempt.weighs_nothing()
        attempt.server.first_token(seconds)
        self.history.shut_out(attempt.server.name)
        return self._next(Step.AGAIN)

    def broke(self, attempt: Attempt, failure: ProxyError, *, begun: bool = True) -> None:
        """Note an answer that broke: its server is not asked again for this request.

        One that had begun has found out already that its server is well.
        """
        self._judge(attempt, failure, probe=attempt.probe and not begun)
        self.history.shut_out(attempt.server.name)

    def rescuer(self, attempt: Attempt, *, fallback: bool) -> Attempt | None:
        """Return who may go on with a stream that broke; raise when all who may are full.

        It is not counted as a retry: there is at most one for each stream that was being
        served, so that it cannot become more work than a fleet has had already.
        """
        if self.history.left <= 0:
            return None
        at = self._at
        found = self._find()
        if found is not None and (found[1] == attempt.model or fallback):
            return self._take(*found)
        if self._is_full(attempt.model):
            self._at = at
            raise Full(attempt.model)
        return None

    def has_another(self, attempt: Attempt) -> bool:
        """Tell whether somebody else could be asked if this server took too long."""
        return (
            self.history.replay_safe
            and self.history.left > 0
            and any(
                server is not attempt.server
                and self.history.may_ask(server.name)
                and server.breaker.lets_through()
                for model in self._models[self._at :]
                for server in self._candidates(model)
            )
        )

    def _judge(self, attempt: Attempt, failure: ProxyError, *, probe: bool) -> None:
        if isinstance(failure, UpstreamError):
            attempt.server.breaker.failed(probe=probe, refused=failure.unasked)
        else:
            attempt.server.breaker.weighs_nothing(probe=probe)

    def _next(
        self, step: Step | None, retry_after: float | None = None, said_by: Server | None = None
    ) -> Attempt | None:
        """`retry_after` is what `said_by` has asked for, and nobody else."""
        history = self.history
        if step is None or history.left <= 0:
            return None
        # The last attempt belongs to the chain of fallbacks, if there is one that can be asked.
        last = history.left == 1 and not self._is_longer
        spared = last and self._at == 0 and len(self._models) > 1
        if spared:
            self._at = 1
        while True:
            found = self._find()
            if found is None and spared:
                self._at, spared = 0, False
                continue
            if found is None:
                return None
            server = found[0]
            times = history.asked.get(server.name, 0)
            rest = retry_after if server is said_by else None
            pause = pause_before(times, retry_after=rest) if times else 0.0
            if pause is not None:
                break
            history.shut_out(server.name)  # too long to wait for it
        # A server that has been well of late has room for what another could not do. The
        # share of the traffic that retries may be is for when there is none.
        if server.breaker.has_failed and not self._budget.retry():
            return None
        return self._take(*found, pause=pause)

    def _take(self, server: Server, model: str | None, *, pause: float = 0.0) -> Attempt:
        self.history.asking(server.name)
        attempt = Attempt(server, model, probe=server.breaker.begin())
        attempt.pause = pause
        return attempt

    def _find(self) -> tuple[Server, str | None] | None:
        """Return whom to ask now: of this model, else of the next one in the chain."""
        while self._at < len(self._models):
            model = self._models[self._at]
            server = self._server_for(model)
            if server is not None:
                return server, model
            self._at += 1
        return None

    def _server_for(self, model: str | None) -> Server | None:
        """Return the server to ask: one that was not asked yet, rather than one that was."""
        asked = self.history.asked
        may = [
            server
            for server in self._candidates(model)
            if server.breaker.lets_through()
            and not server.full
            and (not asked or self.history.may_ask(server.name))
        ]
        if not may:
            return None
        fresh = [server for server in may if server.name not in asked] if asked else may
        now = self._now()
        idle = [server for server in fresh or may if server.busy_until <= now]
        return self._choose(idle or fresh or may)

    def _is_full(self, model: str | None) -> bool:
        """Tell whether a server would be asked if it had not so much to do."""
        return any(
            server.full and server.breaker.lets_through() and self.history.may_ask(server.name)
            for server in self._candidates(model)
        )

    def _nobody(self) -> Exception:
        """Return why nobody can be asked."""
        known = [server for model in self._models for server in self._candidates(model)]
        if not known:
            return Unknown(self._models[0])
        wait = max(1, round(min(server.breaker.opens_in() for server in known) + 0.5))
        return NoUpstream(
            "Every model server that could answer is failing.",
            headers=[(b"retry-after", b"%d" % wait)],
        )
