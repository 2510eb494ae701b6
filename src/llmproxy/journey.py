"""What comes before and after the attempts of a request, and what the client gets of them.

Rule 1: as long as no byte of an answer is out, another attempt may take its place.
Rule 2: what an engine said goes before what we say: when all attempts fail, its first error is
        passed on, and a refusal that is final at once.

Reads:  body, fields, started_at, tail
Writes: paused
Raises: whatever the last attempt came to
"""

import asyncio

from llmproxy import clock
from llmproxy.context import RequestContext
from llmproxy.errors import ProxyError, UpstreamError, UpstreamTimeout
from llmproxy.means import Means
from llmproxy.outgoing import body_for
from llmproxy.protocol.engine_errors import Complaint
from llmproxy.protocol.request_options import deadline_of
from llmproxy.rescuing import Failure, Rescuer, is_over
from llmproxy.routing.course import Attempt, Course
from llmproxy.routing.delivered import CannotContinue
from llmproxy.routing.entry import entered
from llmproxy.routing.router import Wish
from llmproxy.trial import Refusal, Trial
from llmproxy.turns import STEP, my_turn
from llmproxy.types import Header

NO_MORE: tuple[Header, ...] = ((b"x-should-retry", b"false"),)
_ANSWERS = (Complaint.FINAL, Complaint.OPTION, Complaint.TOO_LONG)


class Journey:
    """The way of a request that needs more than one attempt, or a closer look before the first."""

    _course: Course | None = None
    _told: Refusal | None = None
    _failed: ProxyError | None = None
    _rescuer: Rescuer | None = None

    def __init__(
        self,
        means: Means,
        trial: Trial,
        ctx: RequestContext,
        wish: Wish,
        first: Attempt | None = None,
    ) -> None:
        self.means = means
        self.trial = trial
        self.ctx = ctx
        self.wish = wish
        self.deadline = deadline_of(ctx.started_at, ctx.fields, means.total)
        self._first = first

    @property
    def course(self) -> Course:
        """What comes after the first attempt: most requests never ask."""
        if self._course is None:
            self._course = self.means.router.course(self.wish, self._first)
        return self._course

    async def first(self) -> Attempt:
        """Return the first attempt."""
        means, body = self.means, self.ctx.body
        if isinstance(body, bytes) and len(body) > STEP:
            # With another model's name it is copied, and understood once more. Before a server is
            # chosen: between that and the attempt nobody else may have its place.
            await my_turn()
        attempt = None if means.places.waiting else means.router.first(self.wish)
        if attempt is None:
            attempt = await self._later()
        self._first = attempt
        return self._prepared(attempt)

    async def after(self, attempt: Attempt, failure: Failure | None) -> Attempt | None:
        """Return the attempt after one that came to nothing; None when its refusal was told."""
        if self._rescuer is not None:
            return await self._gone_on(self._rescuer, attempt, failure)
        assert not isinstance(failure, CannotContinue)  # nobody was asked to
        if failure is not None and self.trial.begun:
            self._rescuer = self._rescue(attempt, failure)
            return await self._gone_on(self._rescuer, attempt, failure)
        following = self._following(attempt, failure)
        if following is None or not await self._pause(following):
            await self._give_up()
            return None
        self.trial.again()
        return self._prepared(following)

    def succeeded(self) -> None:
        """Note that an attempt was answered."""
        if self._rescuer is not None:
            self._rescuer.succeeded()

    def close(self) -> None:
        """Note that the request is over."""
        if self._rescuer is not None:
            self._rescuer.close()

    def _prepared(self, attempt: Attempt) -> Attempt:
        """Return an attempt with its body; if its first token is late, it is given up for another.

        What nothing but the model mattered for needs none of this.
        """
        try:
            attempt.body = body_for(attempt, self.ctx)
            first_token = self.means.first_token
            if first_token and self.wish.asked.stream and self.course.has_another(attempt):
                attempt.first_byte = first_token
        except BaseException:
            attempt.weighs_nothing()
            raise
        return attempt

    def _rescue(self, attempt: Attempt, failure: UpstreamError) -> Rescuer:
        """Return who has others go on with a stream that broke, if somebody can."""
        if isinstance(failure, UpstreamTimeout) and is_over(self.deadline):
            self._lost("deadline")
            raise failure
        self.course.broke(attempt, failure)
        if not self.trial.keeps:
            self._lost(self.means.why_not(self.ctx) or "kind")  # it could not be read
            raise failure
        return Rescuer(
            attempt,
            failure,
            trial=self.trial,
            ctx=self.ctx,
            course=self.course,
            deadline=self.deadline,
            means=self.means,
        )

    async def _gone_on(
        self, rescuer: Rescuer, attempt: Attempt, failure: Failure | None
    ) -> Attempt:
        """Return who goes on with a stream that broke."""
        before = rescuer.waited
        try:
            return await rescuer.after(attempt, failure)
        finally:
            self.ctx.paused += rescuer.waited - before

    def _lost(self, why: str) -> None:
        """Count a stream that broke and that nobody is asked to go on with."""
        if self.wish.asked.stream:
            self.means.metrics.rescue(why)

    async def _later(self) -> Attempt:
        """Return the first attempt when it has to be waited for."""
        means, began = self.means, clock.now()
        try:
            self._course, attempt = await entered(
                means.router, means.places, means.refresh, self.wish, self.deadline
            )
        finally:
            self.ctx.paused += clock.now() - began
        return attempt

    def _following(self, attempt: Attempt, failure: UpstreamError | None) -> Attempt | None:
        """Return the attempt after one that came to nothing; None when that was the last."""
        if failure is not None:
            first = self._failed = self._failed or failure
            if isinstance(first, UpstreamTimeout) and isinstance(failure, UpstreamTimeout):
                first.by_caller = failure.by_caller  # whichever of them is told
            return self._after_failure(attempt, failure)
        refusal = self.trial.refusal
        assert refusal is not None
        complaint = refusal.complaint
        if self._told is None or complaint in _ANSWERS:
            self._told = refusal
        return self.course.after_answer(attempt, complaint, refusal.retry_after)

    def _after_failure(self, attempt: Attempt, failure: UpstreamError) -> Attempt | None:
        if isinstance(failure, UpstreamTimeout):
            if is_over(self.deadline):
                attempt.weighs_nothing()
                return None
            if attempt.first_byte:
                return self.course.slow(attempt, attempt.first_byte)
        following = self.course.after_failure(attempt, failure)
        body = self.ctx.body
        spent = body is not None and not isinstance(body, bytes) and body.started
        if following is not None and spent:  # it cannot be read again
            following.weighs_nothing()
            return None
        return following

    async def _pause(self, following: Attempt) -> bool:
        """Wait until it is time for an attempt; tell whether there is time for it at all."""
        if clock.now() + following.pause >= self.deadline:
            following.weighs_nothing()
            return False
        if following.pause:
            try:
                await asyncio.sleep(following.pause)
            except BaseException:
                following.weighs_nothing()
                raise
            self.ctx.paused += following.pause
        return True

    async def _give_up(self) -> None:
        """Have the client get what there is to be told."""
        if self.trial.head_out and self.ctx.tail is not None:
            self.ctx.tail.forget()  # nothing but comments has gone out
        extra = NO_MORE if self.course.history.made > 1 else ()
        if self._told is not None:
            await self.trial.deliver(self._told, extra)
            return
        assert self._failed is not None
        self._failed.headers += extra
        raise self._failed
