"""One request on its way over the servers: its attempts, and what the client gets of them.

Rule 1: as long as no byte of an answer is out, another attempt may take its place.
Rule 2: what an engine said goes before what we say: when all attempts fail, its first error is
        passed on, and a refusal that is final at once.
Rule 3: a stream that broke is finished by another server or ends in its failure.

Reads:  body, endpoint, fields, inference, outgoing, principal, tail
Writes: attempt, rescues
Raises: whatever the last attempt came to
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from llmproxy import clock
from llmproxy.context import RequestContext
from llmproxy.errors import ProxyError, UpstreamError, UpstreamTimeout, present
from llmproxy.metrics import Metrics
from llmproxy.protocol.engine_errors import Complaint
from llmproxy.protocol.model_field import with_model
from llmproxy.protocol.priority_field import with_priority
from llmproxy.protocol.request_options import class_of
from llmproxy.routing.course import Attempt, Course, Turn
from llmproxy.routing.kept import KeptStream
from llmproxy.routing.load_watch import wants_header
from llmproxy.routing.places import Places
from llmproxy.routing.rescue import (
    CannotContinue,
    Continuation,
    continuing_body,
    read_delivered,
    ways,
)
from llmproxy.trial import Refusal, Trial, WrittenTrial
from llmproxy.types import Header, Send, writer_of

Ask = Callable[[Send], Awaitable[None]]
Rescue = Literal["off", "same_model", "fallback"]

NO_MORE: tuple[Header, ...] = ((b"x-should-retry", b"false"),)
_SCHEDULED = frozenset({"chat", "completions", "responses", "messages"})
_ANSWERS = (Complaint.FINAL, Complaint.OPTION, Complaint.TOO_LONG)


class Journey:
    """The attempts of one request, made."""

    def __init__(
        self,
        ask: Ask,
        send: Send,
        ctx: RequestContext,
        course: Course,
        *,
        kept: KeptStream | None,
        rescue: Rescue,
        first_token: float,
        deadline: float,
        places: Places,
        metrics: Metrics,
    ) -> None:
        """`ask` makes the attempt that the context names, and sends its answer to a `send`."""
        self.ask = ask
        self.ctx = ctx
        self.course = course
        self.kept = kept
        self.rescue = rescue
        self.first_token = first_token
        self.deadline = deadline
        self.places = places
        self.metrics = metrics
        self.stream = present(ctx.inference, "inference").stream
        hold = course.history.replay_safe
        writer = writer_of(send)
        self.trial = (
            Trial(send, kept, hold=hold, begins=self._begins)
            if writer is None
            else WrittenTrial(send, kept, hold=hold, begins=self._begins, writer=writer)
        )
        self._turn: Turn | None = None
        self._asked_at = 0.0
        self.paused = 0.0  # seconds between attempts

    async def run(self, turn: Turn) -> None:
        """Make attempts until one is answered, or there is none left."""
        course, trial = self.course, self.trial
        told: Refusal | None = None
        failed: ProxyError | None = None
        while True:
            limited = self._limit(turn)
            failure = await self._attempt(turn, self._body(turn), limited)
            if failure is not None:
                failed = failed or failure
                if trial.begun:
                    await self._go_on(turn, failure)
                    return
                following = self._after(turn, failure, limited)
            elif trial.refusal is not None:
                refusal = trial.refusal
                complaint = refusal.complaint
                following = course.after_answer(turn, complaint, refusal.retry_after)
                if told is None or complaint in _ANSWERS:
                    told = refusal
            else:
                return
            if following is None or not await self._pause(following):
                break
            turn = following
            trial.again()
        extra = NO_MORE if course.history.made > 1 else ()
        if told is not None:
            await trial.deliver(told, extra)
            return
        assert failed is not None
        failed.headers += extra
        raise failed

    async def _attempt(self, turn: Turn, body: bytes | None, limit: float) -> UpstreamError | None:
        """Make one attempt; return why it came to nothing, if it did."""
        server = turn.server
        self._turn = turn
        self._asked_at = now = clock.now()
        asks_load = not self.stream and wants_header(server, now)
        self.ctx.attempt = Attempt(server, body, limit, asks_load)
        server.inflight += 1
        try:
            await self.ask(self.trial.send)
        except UpstreamError as failure:
            return failure
        except BaseException:
            self.course.weighs_nothing(turn)
            raise
        finally:
            server.inflight -= 1
            self.places.freed(server)
        return None

    def _begins(self, status: int) -> None:
        """Take notice of the first byte of an answer."""
        assert self._turn is not None
        if self.stream and status == 200:
            self._turn.server.first_token(clock.now() - self._asked_at)
        self.course.answered(self._turn, well=status < 500 or status == 501)

    def _limit(self, turn: Turn) -> float:
        """Return the seconds after which a first token is looked for elsewhere; 0 = never."""
        if self.first_token and self.stream and self.course.has_another(turn):
            return self.first_token
        return 0.0

    def _after(self, turn: Turn, failure: UpstreamError, limited: float) -> Turn | None:
        if isinstance(failure, UpstreamTimeout):
            if clock.now() >= self.deadline:  # the caller's time was up, and that is all
                self.course.weighs_nothing(turn)
                return None
            if limited:
                return self.course.slow(turn, limited)
        following = self.course.after_failure(turn, failure)
        body = self.ctx.body
        spent = body is not None and not isinstance(body, bytes) and body.started
        if following is not None and spent:  # it cannot be read again
            self.course.weighs_nothing(following)
            return None
        return following

    async def _pause(self, following: Turn) -> bool:
        """Wait until it is time for an attempt; tell whether there is time for it at all."""
        if clock.now() + following.pause >= self.deadline:
            self.course.weighs_nothing(following)
            return False
        if following.pause:
            try:
                await asyncio.sleep(following.pause)
            except BaseException:
                self.course.weighs_nothing(following)
                raise
            self.paused += following.pause
        return True

    def _body(self, turn: Turn) -> bytes | None:
        """Return the body for a server, where it is not the caller's own."""
        ctx = self.ctx
        body = ctx.outgoing if ctx.outgoing is not None else ctx.body
        asked = present(ctx.inference, "inference")
        if not isinstance(body, bytes):
            return None
        going = body
        if turn.model is not None and turn.model != asked.model:
            going = with_model(going, turn.model)
        upstream = turn.server.upstream
        if upstream.priority and present(ctx.endpoint, "endpoint").name in _SCHEDULED:
            most = ctx.principal.priority if ctx.principal is not None else 0
            going = with_priority(going, class_of(ctx.fields, most), upstream.preset)
        return going if going is not body else ctx.outgoing

    async def _go_on(self, turn: Turn, failure: UpstreamError) -> None:
        """Have another server finish what this one has begun, or end in its failure."""
        if clock.now() >= self.deadline:
            raise failure
        self.course.broke(turn, failure)
        if self.kept is None:
            raise failure
        tail = self.ctx.tail
        result = "cancelled"
        try:
            result = "rescued" if await self._rescued(turn) else "nobody"
        except CannotContinue as why:
            result = str(why)
        finally:
            self.metrics.rescue(result)
        if result == "rescued":
            self.ctx.rescues += 1
            return
        if tail is not None and self.ctx.tail is tail:  # nobody else has said anything since
            tail.note(await self.trial.tell_failure())
        raise failure

    async def _rescued(self, turn: Turn) -> bool:
        """Ask one server after the other to go on; tell whether one has finished the stream."""
        fallback = self.rescue == "fallback"
        while (found := self.course.rescuer(turn, fallback=fallback)) is not None:
            if await self._continued(found):
                return True
            self.course.history.shut.add(found.server.name)
        return False

    async def _continued(self, turn: Turn) -> bool:
        ctx, trial = self.ctx, self.trial
        chat = present(ctx.endpoint, "endpoint").name == "chat"
        delivered = read_delivered(trial.delivered(), chat=chat)
        body = ctx.outgoing if ctx.outgoing is not None else ctx.body
        assert isinstance(body, bytes)
        preset = turn.server.upstream.preset
        for way in ways(preset, chat=chat):
            asked = continuing_body(body, delivered, way, preset, turn.model)
            trial.again(Continuation(delivered, way))
            failure = await self._attempt(turn, asked, 0.0)
            if failure is not None:
                self.course.broke(turn, failure)
                return False
            if trial.refusal is None:
                return True
            # It does not continue a text; asked from the beginning it may come to the same.
        return False
