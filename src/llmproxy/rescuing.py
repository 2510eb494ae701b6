"""A stream that broke is finished by another server, or ends in its failure.

Reads:  body, endpoint, outgoing, tail
Writes: rescues
Raises: what the stream broke with
"""

from contextlib import suppress

from llmproxy import clock
from llmproxy.context import RequestContext
from llmproxy.errors import UpstreamError, UpstreamTimeout, present
from llmproxy.means import Rescue
from llmproxy.metrics import Metrics
from llmproxy.outgoing import with_class
from llmproxy.routing.course import Attempt, Course
from llmproxy.routing.rescue import (
    CannotContinue,
    Continuation,
    NotThisWay,
    continuing_body,
    read_delivered,
    ways,
)
from llmproxy.trial import Trial

Failure = UpstreamError | CannotContinue
"""Why an attempt came to nothing."""

EARLY = 0.1  # seconds; a clock is set by the time at which the event loop last looked


class Rescuer:
    """Has others go on with one stream."""

    _asked: Attempt | None = None  # who goes on with it
    _counted = False

    def __init__(
        self,
        broken: Attempt,
        failure: UpstreamError,
        *,
        trial: Trial,
        ctx: RequestContext,
        course: Course,
        deadline: float,
        rescue: Rescue,
        metrics: Metrics,
    ) -> None:
        self._broken = broken
        self._failure = failure
        self.trial = trial
        self.ctx = ctx
        self.course = course
        self._deadline = deadline
        self._rescue = rescue
        self._metrics = metrics
        self._ways: list[tuple[Continuation, bytes]] = []  # to ask it that were not tried yet
        self._tail, self._said, self._behind = ctx.tail, trial.failed, trial.holds_back

    async def after(self, attempt: Attempt, failure: Failure | None) -> Attempt:
        """Return the attempt to go on after one that could not, the first being that which broke.

        When there is none, the client has everything that came, and the failure is raised.
        """
        try:
            following = self._next(attempt, failure)
        except CannotContinue as why:
            self._count(str(why))
        else:
            if following is not None:
                return following
            self._count("nobody")
        await self._catch_up()
        raise self._failure

    def succeeded(self) -> None:
        """Note that the stream was finished."""
        self.ctx.rescues += 1
        self._count("rescued")

    def close(self) -> None:
        """Note that the request is over."""
        if not self._counted:
            self._count("cancelled")

    def _next(self, attempt: Attempt, failure: Failure | None) -> Attempt | None:
        """Return who is to go on, and how; None when nobody can."""
        if attempt is not self._broken:
            self._judge(attempt, failure)
        while not self._ways:
            if self._asked is not None:
                self.course.history.shut_out(self._asked.server.name)
            fallback = self._rescue == "fallback"
            self._asked = self.course.rescuer(self._broken, fallback=fallback)
            if self._asked is None:
                return None
            self._ways = self._continuing(self._asked)
        assert self._asked is not None
        way, self._asked.body = self._ways.pop(0)
        self.trial.again(way)
        return self._asked

    def _judge(self, attempt: Attempt, failure: Failure | None) -> None:
        """Take notice of somebody who did not go on."""
        if isinstance(failure, CannotContinue):
            raise failure
        if failure is not None:
            if isinstance(failure, UpstreamTimeout) and is_over(self._deadline):
                if not self.trial.answered:
                    attempt.weighs_nothing()
                raise CannotContinue("deadline")
            self.course.broke(attempt, failure, begun=self.trial.answered)
            self._ways = []
        elif (refusal := self.trial.refusal) is not None:
            # It does not continue a text; asked from the beginning it may come to the same.
            self.course.refused(attempt, refusal.complaint, refusal.retry_after)

    def _continuing(self, attempt: Attempt) -> list[tuple[Continuation, bytes]]:
        """Return how a server can be asked to go on, and with what, the better way first."""
        ctx, found = self.ctx, []
        chat = present(ctx.endpoint, "endpoint").name == "chat"
        body = ctx.outgoing if ctx.outgoing is not None else ctx.body
        assert isinstance(body, bytes)
        server = attempt.server
        preset = server.upstream.preset
        try:
            delivered = read_delivered(self.trial.delivered(), chat=chat)
            for way in ways(preset, chat=chat):
                with suppress(NotThisWay):
                    asked = continuing_body(body, delivered, way, preset, attempt.model)
                    asked = with_class(asked, server, ctx)
                    found.append((Continuation(delivered, way), asked))
        except BaseException:
            attempt.weighs_nothing()
            raise
        if not found:
            attempt.weighs_nothing()
        return found

    async def _catch_up(self) -> None:
        """Give the client what was held back for the sake of another server."""
        tail = self.ctx.tail
        behind = self._behind or tail is not self._tail  # or somebody else was asked since
        if behind and tail is not None:
            tail.forget()
            if self._said:
                await self.trial.tell(self._said)
                tail.note(self._said)

    def _count(self, result: str) -> None:
        self._counted = True
        self._metrics.rescue(result)


def is_over(deadline: float) -> bool:
    """Tell whether a clock that rings now is that of the caller, and not the server's."""
    return clock.now() >= deadline - EARLY
