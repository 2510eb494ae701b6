"""One request on its way over the servers: its attempts, and what the client gets of them.

Rule 1: as long as no byte of an answer is out, another attempt may take its place.
Rule 2: what an engine said goes before what we say: when all attempts fail, its first error is
        passed on, and a refusal that is final at once.
Rule 3: a stream that broke is finished by another server or ends in its failure.

Reads:  body, endpoint, fields, inference, outgoing, principal, tail
Writes: attempt, paused, rescues
Raises: whatever the last attempt came to
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from llmproxy import clock
from llmproxy.context import RequestContext
from llmproxy.errors import ProxyError, UpstreamError, UpstreamTimeout, present
from llmproxy.metrics import Metrics
from llmproxy.protocol.engine_errors import Complaint
from llmproxy.protocol.model_field import with_model
from llmproxy.protocol.priority_field import with_priority
from llmproxy.protocol.request_options import class_of
from llmproxy.records import Ending
from llmproxy.routing.course import Attempt, Course, Turn
from llmproxy.routing.entry import entered
from llmproxy.routing.kept import KeptStream, Room
from llmproxy.routing.load_watch import wants_header
from llmproxy.routing.places import Places
from llmproxy.routing.rescue import (
    CannotContinue,
    Continuation,
    NotThisWay,
    continuing_body,
    read_delivered,
    ways,
)
from llmproxy.routing.router import Router, Wish
from llmproxy.trial import Refusal, Trial, WrittenTrial
from llmproxy.types import Header, Send, writer_of
from llmproxy.upload import IncomingUpload

Ask = Callable[[Send], Awaitable[None]]
Rescue = Literal["off", "same_model", "fallback"]

NO_MORE: tuple[Header, ...] = ((b"x-should-retry", b"false"),)
EARLY = 0.1  # seconds; a clock is set by the time at which the event loop last looked
_SCHEDULED = frozenset({"chat", "completions", "responses", "messages"})
_ANSWERS = (Complaint.FINAL, Complaint.OPTION, Complaint.TOO_LONG)


@dataclass(frozen=True, slots=True)
class Means:
    """What all journeys have in common."""

    router: Router
    refresh: Callable[[], Awaitable[None]]
    """Has every server asked anew for its models."""

    places: Places
    room: Room
    rescue: Rescue
    first_token: float
    """Seconds after which a stream is tried elsewhere; 0 = never."""

    metrics: Metrics


class Journey:
    """The attempts of one request, made."""

    _course: Course | None = None
    _turn: Turn
    _asked_at: float

    def __init__(
        self,
        means: Means,
        ask: Ask,
        send: Send,
        ctx: RequestContext,
        wish: Wish,
        deadline: float,
    ) -> None:
        """`ask` makes the attempt that the context names, and sends its answer to a `send`."""
        self.means = means
        self.ask = ask
        self.ctx = ctx
        self.wish = wish
        self.deadline = deadline
        asked = ctx.inference
        self.stream = asked is not None and asked.stream
        kept = self._kept() if self.stream else None
        writer = writer_of(send)
        self.trial = (
            Trial(send, kept, begins=self._begins)
            if writer is None
            else WrittenTrial(send, kept, begins=self._begins, writer=writer)
        )

    @property
    def course(self) -> Course:
        """What comes after the first attempt: most requests never ask."""
        if self._course is None:
            self._course = self.means.router.course(self.wish, self._turn)
        return self._course

    async def run(self) -> None:
        """Make attempts until one is answered, or there is none left."""
        trial, means = self.trial, self.means
        told: Refusal | None = None
        failed: ProxyError | None = None
        try:
            turn = None if means.places.waiting else means.router.first(self.wish)
            if turn is None:
                turn = await self._later()
            self._turn = turn
            while True:
                limited = self._limit(turn)
                failure = await self._attempt(turn, limited)
                if failure is not None:
                    failed = failed or failure
                    if trial.begun:
                        await self._go_on(turn, failure)
                        return
                    following = self._after(turn, failure, limited)
                elif trial.refusal is not None:
                    refusal = trial.refusal
                    complaint = refusal.complaint
                    following = self.course.after_answer(turn, complaint, refusal.retry_after)
                    if told is None or complaint in _ANSWERS:
                        told = refusal
                else:
                    return
                if following is None or not await self._pause(following):
                    break
                turn = following
                trial.again()
            if trial.head_out and self.ctx.tail is not None:
                self.ctx.tail.forget()  # nothing but comments has gone out
            extra = NO_MORE if self.course.history.made > 1 else ()
            if told is not None:
                await trial.deliver(told, extra)
                return
            assert failed is not None
            failed.headers += extra
            raise failed
        finally:
            trial.over()

    async def _later(self) -> Turn:
        """Return the first attempt when it has to be waited for."""
        means, began = self.means, clock.now()
        try:
            self._course, turn = await entered(
                means.router, means.places, means.refresh, self.wish, self.deadline
            )
        finally:
            self.ctx.paused += clock.now() - began
        return turn

    def _kept(self) -> KeptStream | None:
        """Return what keeps a stream, if it could be gone on with."""
        ctx, means = self.ctx, self.means
        asked = present(ctx.inference, "inference")
        if means.rescue == "off" or asked.choices != 1:
            return None
        text = present(ctx.endpoint, "endpoint").ending is Ending.CHAT
        if text and isinstance(ctx.body, bytes) and len(means.router.registry.servers) > 1:
            return KeptStream(means.room)
        return None

    async def _attempt(
        self, turn: Turn, limit: float, body: bytes | None = None
    ) -> UpstreamError | None:
        """Make one attempt; return why it came to nothing, if it did."""
        server = turn.server
        self._turn = turn
        self._asked_at = now = clock.now()
        asks_load = not self.stream and wants_header(server, now)
        server.inflight += 1
        try:
            asked = self._body(turn) if body is None else body
            self.ctx.attempt = Attempt(server, asked, limit, asks_load, turn.model)
            await self.ask(self.trial.send)
        except UpstreamError as failure:
            # It may be told at the end. The frames that it came through hold all of the request.
            failure.__traceback__ = failure.__cause__ = failure.__context__ = None
            return failure
        except BaseException:
            if not self.trial.answered:
                turn.weighs_nothing()
            raise
        finally:
            server.inflight -= 1
            if server.most:
                self.means.places.freed()
        return None

    def _begins(self, status: int) -> None:
        """Take notice of the first byte of an answer."""
        if self.stream and status == 200:
            self._turn.server.first_token(clock.now() - self._asked_at)
        self._turn.answered(well=status < 500 or status == 501)

    def _limit(self, turn: Turn) -> float:
        """Return the seconds after which a first token is looked for elsewhere; 0 = never."""
        if self.means.first_token and self.stream and self.course.has_another(turn):
            return self.means.first_token
        return 0.0

    def _after(self, turn: Turn, failure: UpstreamError, limited: float) -> Turn | None:
        if isinstance(failure, UpstreamTimeout):
            if self._is_over():
                turn.weighs_nothing()
                return None
            if limited:
                return self.course.slow(turn, limited)
        following = self.course.after_failure(turn, failure)
        body = self.ctx.body
        spent = body is not None and not isinstance(body, bytes) and body.started
        if following is not None and spent:  # it cannot be read again
            following.weighs_nothing()
            return None
        return following

    def _is_over(self) -> bool:
        """Tell whether a clock that rings now is that of the caller, and not the server's."""
        return clock.now() >= self.deadline - EARLY

    async def _pause(self, following: Turn) -> bool:
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

    def _body(self, turn: Turn) -> bytes | None:
        """Return the body for a server, where it is not the caller's own."""
        ctx = self.ctx
        body = ctx.outgoing if ctx.outgoing is not None else ctx.body
        asked = present(ctx.inference, "inference")
        if not isinstance(body, bytes):
            if isinstance(body, IncomingUpload) and turn.model is not None:
                body.name(turn.model)
            return None
        if not asked.prompt_bytes:
            return ctx.outgoing  # none, or one that could not be read: there is nothing to put in
        going = body
        if turn.model is not None and turn.model != asked.model:
            going = with_model(going, turn.model)
        going = self._with_class(going, turn)
        return going if going is not body else ctx.outgoing

    def _with_class(self, body: bytes, turn: Turn) -> bytes:
        """Return the body with the caller's class in it, where the server goes by that."""
        ctx, upstream = self.ctx, turn.server.upstream
        if not upstream.priority or present(ctx.endpoint, "endpoint").name not in _SCHEDULED:
            return body
        most = ctx.principal.priority if ctx.principal is not None else 0
        return with_priority(body, class_of(ctx.fields, most), upstream.preset)

    async def _go_on(self, turn: Turn, failure: UpstreamError) -> None:
        """Have another server finish what this one has begun, or end in its failure."""
        if isinstance(failure, UpstreamTimeout) and self._is_over():
            raise failure
        self.course.broke(turn, failure)
        if not self.trial.keeps:
            raise failure
        tail, said, behind = self.ctx.tail, self.trial.failed, self.trial.holds_back
        result = "cancelled"
        try:
            result = "rescued" if await self._rescued(turn) else "nobody"
        except CannotContinue as why:
            result = str(why)
        finally:
            self.means.metrics.rescue(result)
        if result == "rescued":
            self.ctx.rescues += 1
            return
        behind = behind or self.ctx.tail is not tail  # or somebody else was asked since
        if behind and (tail := self.ctx.tail) is not None:
            tail.forget()
            if said:
                await self.trial.tell(said)
                tail.note(said)
        raise failure

    async def _rescued(self, turn: Turn) -> bool:
        """Ask one server after the other to go on; tell whether one has finished the stream."""
        fallback = self.means.rescue == "fallback"
        while (found := self.course.rescuer(turn, fallback=fallback)) is not None:
            if await self._continued(found):
                return True
            self.course.history.shut_out(found.server.name)
        return False

    async def _continued(self, turn: Turn) -> bool:
        """Have one server go on; tell whether it has finished the stream."""
        trial = self.trial
        for way, asked in self._continuing(turn):
            trial.again(way)
            failure = await self._attempt(turn, 0.0, asked)
            if failure is not None:
                if isinstance(failure, UpstreamTimeout) and self._is_over():
                    if not trial.answered:
                        turn.weighs_nothing()
                    raise CannotContinue("deadline")
                self.course.broke(turn, failure, begun=trial.answered)
                return False
            if (refusal := trial.refusal) is None:
                return True
            self.course.refused(turn, refusal.complaint, refusal.retry_after)
            # It does not continue a text; asked from the beginning it may come to the same.
        return False

    def _continuing(self, turn: Turn) -> list[tuple[Continuation, bytes]]:
        """Return how a server can be asked to go on, and with what, the better way first."""
        ctx, found = self.ctx, []
        chat = present(ctx.endpoint, "endpoint").name == "chat"
        body = ctx.outgoing if ctx.outgoing is not None else ctx.body
        assert isinstance(body, bytes)
        preset = turn.server.upstream.preset
        try:
            delivered = read_delivered(self.trial.delivered(), chat=chat)
            for way in ways(preset, chat=chat):
                with suppress(NotThisWay):
                    asked = continuing_body(body, delivered, way, preset, turn.model)
                    asked = self._with_class(asked, turn)
                    found.append((Continuation(delivered, way), asked))
        except BaseException:
            turn.weighs_nothing()
            raise
        if not found:
            turn.weighs_nothing()
        return found
