"""Learn what a request has used.

The tap is only set up here: it is told of the answer by observe, which sees what the client
gets. Where a stream would not say what it has counted, the model server is asked to, and what
it says is taken out again: a caller gets the stream that it would have got without us. As each
piece of such a stream is looked at here, the tap is told of it here, and is spared its own look.

Around the layers that have to do with the cost of a request, for they ask the tap. When a
server refuses the option they run once more, for another attempt is made; that happens once an
hour and model.

Reads:  body, endpoint, inference, settle, tap
Writes: outgoing, tap
Raises: (nothing)
"""

from collections.abc import Awaitable

from llmproxy import clock
from llmproxy.context import SCOPE_KEY, RequestContext, get_context
from llmproxy.errors import missing, present
from llmproxy.gathered import joined
from llmproxy.protocol.response_head import Kind, kind_of
from llmproxy.protocol.splice import Pieces
from llmproxy.protocol.usage_chunk import UsageChunk, end_of_answers
from llmproxy.protocol.usage_option import Refusals, refuses, with_usage
from llmproxy.protocol.usage_tap import METERED, UsageTap
from llmproxy.protocol.usage_trace import CR, LF, Trace
from llmproxy.records import Ending, InferenceRequest
from llmproxy.turns import STEP
from llmproxy.types import ASGIApp, Message, Receive, Scope, Send, Writer, writer_of

LONGEST_REFUSAL = 64 * 1024  # bytes; FastAPI repeats the whole request in one


class UsageMiddleware:
    """Set up the tap, and see to it that streams tell what they have counted."""

    def __init__(self, app: ASGIApp, *, refusals: Refusals | None = None) -> None:
        self.app = app
        self.refusals = refusals if refusals is not None else Refusals()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # No coroutine where there is nothing to do afterwards.
        app = self.app
        if scope["type"] != "http":
            return app(scope, receive, send)

        ctx: RequestContext = scope.get(SCOPE_KEY) or get_context(scope)  # a call costs 0.1 us
        endpoint = ctx.endpoint
        if endpoint is None:
            raise missing("endpoint")
        metered = endpoint.name in METERED and scope["method"] == "POST"
        if metered and ctx.tap is None:  # else another layer of this app has it in hand
            asked = ctx.inference
            if asked is None:
                raise missing("inference")
            tap = ctx.tap = UsageTap(endpoint, asked)
            if asked.stream:
                outgoing = self._with_option(ctx, asked)
                if outgoing is not None:
                    return self._stream(ctx, tap, outgoing, scope, receive, send)
        return app(scope, receive, send)

    async def _stream(
        self,
        ctx: RequestContext,
        tap: UsageTap,
        outgoing: Pieces,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Pass on a stream that is made to tell, without what it tells."""
        large = len(outgoing[-1]) > STEP
        ctx.outgoing = await joined(outgoing) if large else b"".join(outgoing)
        writer = writer_of(send)
        answer = _Answer(send, tap) if writer is None else _Written(send, tap, writer)
        await self.app(scope, receive, answer.send)
        if not answer.refused:
            await answer.release()
            return

        ctx.outgoing = None
        settle = ctx.settle
        if settle is not None:
            settle(ctx, None, False)  # or it would be held beside the other attempt's
        status = 0

        async def send_noting_the_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await self.app(scope, receive, send_noting_the_status)
        if status < 400:  # it was the option, and not something of the caller's
            self.refusals.add(present(ctx.inference, "inference").model, clock.now())

    def _with_option(self, ctx: RequestContext, asked: InferenceRequest) -> Pieces | None:
        """Return the body of a stream with the option in it, where that is needed and possible."""
        wanted = (
            asked.include_usage is not True
            and present(ctx.endpoint, "endpoint").ending is Ending.CHAT
            and isinstance(ctx.body, bytes)
            and not self.refusals.include(asked.model, clock.now())
        )
        return with_usage(ctx.body, asked) if wanted and isinstance(ctx.body, bytes) else None


class _Answer:
    """An answer to a request that had the option put in."""

    __slots__ = ("_chunk", "_held", "_passing", "_send", "_size", "_tap", "_trace", "refused")

    def __init__(self, send: Send, tap: UsageTap) -> None:
        self._send = send
        self._tap = tap
        self._passing = False  # there is nothing to take out of it
        self._chunk: UsageChunk | None = None
        self._trace: Trace | None = None
        self._held: list[Message] = []  # what may be the refusal of the option
        self._size = 0
        self.refused = False

    def send(self, message: Message) -> Awaitable[None]:
        """Send what goes to the client. No coroutine, because that would cost 0.1 us a chunk."""
        if self._passing:
            return self._send(message)
        trace = self._trace
        if trace is None:
            return self._begin(message)
        body = message.get("body", b"")
        more = message.get("more_body", False)
        if more and type(body) is bytes and trace.counts(body):
            return self._send(message)
        going = self._passed(body if type(body) is bytes else bytes(body), last=not more)
        if going is body:
            return self._send(message)
        return self._send({**message, "body": going}) if going or not more else _nothing()

    def _passed(self, body: bytes, *, last: bool = False) -> bytes:
        """Return what of a piece goes to the client; the tap is told of just that."""
        chunk, trace = self._chunk, self._trace
        assert chunk is not None and trace is not None
        going = chunk.passed(body)
        if last:
            going += chunk.rest()
        trace.recall()
        if going:
            trace.note(going)
        trace.usual = end_of_answers(going) if chunk.plain else b""
        return going

    async def release(self) -> None:
        """Send what was held back, for it was no refusal of the option."""
        self._passing = True
        held, self._held = self._held, []
        for message in held:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        """Send the head of an answer, or hold it back as long as it may be asked for again."""
        if message["type"] == "http.response.start":
            if message["status"] in (400, 422):
                self._held.append(message)
            elif message["status"] == 200 and kind_of(message.get("headers", [])) is Kind.EVENTS:
                self._chunk = UsageChunk(self._tap.report)
                self._trace = self._tap.watch()
                # It becomes shorter than it may have been said to be.
                kept = [each for each in message["headers"] if each[0] != b"content-length"]
                await self._send({**message, "headers": kept})
            else:
                self._passing = True
                await self._send(message)
            return
        self._held.append(message)
        self._size += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if whole and refuses(
            self._held[0]["status"], b"".join(each.get("body", b"") for each in self._held)
        ):
            self.refused = True
        elif whole or self._size > LONGEST_REFUSAL:
            await self.release()


class _Written(_Answer, Writer):
    """The same under our own server, which takes a piece of a body at once."""

    __slots__ = ("_writer",)

    def __init__(self, send: Send, tap: UsageTap, writer: Writer) -> None:
        super().__init__(send, tap)
        self._writer = writer

    def write(self, body: bytes) -> bool:
        """Send a piece that is not the last; its head has been sent, or is held back."""
        trace = self._trace
        if trace is not None:
            # As `counts` has it, too; to call it would be a fifth of all this costs a chunk.
            event = body.removesuffix(trace.usual)
            if event is not body and LF not in event and CR not in event:
                trace.events += 1
                trace.latest = body
                return self._writer.write(body)
            body = self._passed(body)
            return self._writer.write(body) if body else True
        if self._passing:
            return self._writer.write(body)
        self._held.append({"type": "http.response.body", "body": body, "more_body": True})
        self._size += len(body)
        return self._size <= LONGEST_REFUSAL

    async def room(self) -> None:
        if not self._passing and self._size > LONGEST_REFUSAL:
            await self.release()
        await self._writer.room()


async def _nothing() -> None:
    """Send nothing: all of a chunk was taken out or is held back."""
