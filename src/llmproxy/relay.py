"""Passes one answer on: what one read brings from the engine is one write to the client.

The commit point is the first byte of the body. Until it nothing was sent, and the attempt
could be replaced by another; after it an answer is completed truthfully or ends in an error.
A keep-alive comment commits the status and the headers, not the content.

Reads:  first_byte_at, inference, limit_lines, status, upstream
Writes: chunks, first_byte_at, tail
Raises: UpstreamBroken, UpstreamTimeout
"""

from llmproxy import clock
from llmproxy.context import RequestContext
from llmproxy.errors import UpstreamBroken, UpstreamTimeout
from llmproxy.passing import Passage
from llmproxy.protocol.comments import KEEP_ALIVE, is_only_comment
from llmproxy.protocol.response_head import WHOLE, Kind, kind_of, response_headers
from llmproxy.protocol.stream_tail import Halt, StreamTail
from llmproxy.protocol.tails import tail_for
from llmproxy.records import Clocks, Ending
from llmproxy.stalls import Delivery
from llmproxy.time_left import FOR_EVER, NOT_COMPLETE, in_time, is_past, left_until, out_of_time
from llmproxy.transport import Call
from llmproxy.transport.interface import Silence
from llmproxy.types import Message, Send, Writer, writer_of

_BODYLESS = (204, 304)


class Relay:
    """One answer on its way from an engine to a client."""

    def __init__(
        self, ctx: RequestContext, call: Call, send: Send, delivery: Delivery, clocks: Clocks
    ) -> None:
        self.ctx = ctx
        self.call = call
        self.send = send
        self.writer = writer_of(send)
        self.delivery = delivery
        self.idle = clocks.idle or FOR_EVER
        self.kind = kind_of(call.headers)
        self.comment = (clocks.comment or FOR_EVER) if self.kind is Kind.EVENTS else FOR_EVER
        self.tail: StreamTail | None = None
        self.begun = False  # the head went out
        self.answered = False  # a first byte came

    async def run(self, ending: Ending, *, first_byte_due: float, deadline: float) -> None:
        """Pass the whole answer on; `first_byte_due` and `deadline` are monotonic times."""
        ctx, call, send, delivery = self.ctx, self.call, self.send, self.delivery
        writer = self.writer
        if self.kind is WHOLE and writer is not None and writer.takes_whole(call.status):
            body = call.at_once()
            if body is not None:
                if not self._send_whole(writer, body):
                    delivery.count += 1
                    delivery.sending = True
                    await writer.room()
                    delivery.sending = False
                return
        tail = self.tail = tail_for(call.status, self.kind, ending, ctx.inference)
        if tail is not None or ctx.status is None:
            ctx.tail = tail  # or an error answer comes behind the head of a stream
        passage = Passage(ctx.upstream, tail)
        read = call.read

        chunk = b""
        if not call.over:
            chunk = await self._first(first_byte_due, deadline)
        if not chunk and not self.begun and tail is not None and not tail.finished():
            # llama-cpp-python does this to a prompt that is too long. Nothing was sent yet,
            # so it can still be told as what it is.
            raise UpstreamBroken(f"{ctx.upstream} ended the stream before it had begun.")
        if ctx.first_byte_at is None and call.status < 400:
            ctx.first_byte_at = clock.now()
        self.answered = True
        await self._begin()

        patience = min(self.idle, self.comment)
        ordinary = passage.ordinary
        unhurried = deadline == FOR_EVER
        at_ease = 0 if patience == FOR_EVER else patience  # as `read` has it
        try:
            while chunk:
                if chunk.endswith(ordinary):
                    passage.chunks += 1  # in line, as in a passage
                    if tail is not None:
                        tail.note(chunk)
                else:
                    chunk = passage.looked_at(chunk)
                    if passage.failed:
                        break
                    ordinary = passage.ordinary
                if call.over:
                    break
                delivery.count += 1
                delivery.sending = True
                # Nothing is given a name that the stream would keep for as long as it lasts.
                if unhurried:
                    await send(_piece(chunk))
                else:
                    await in_time(send(_piece(chunk)), deadline)
                delivery.sending = False
                within = patience
                try:
                    if self.writer is not None:
                        self.writer = self.writer.direct()
                        await self._flow(passage, self.writer, patience, deadline)
                    if unhurried:
                        chunk = await read(at_ease)
                        continue
                    within = min(patience, left_until(deadline))
                    if within <= 0:
                        raise self._timeout(0, deadline)
                    chunk = await read(within)
                except Silence:
                    chunk = await self._sit_out(within, self.idle, deadline)
                except UpstreamBroken:
                    if not self._has_said_all(Halt.BREAK):
                        raise
                    chunk = b""
        finally:
            if call.status < 400:
                ctx.chunks += passage.chunks

        delivery.count += 1
        delivery.sending = True
        whole = not passage.failed and (tail is None or tail.finished())
        if chunk or whole:
            await send({"type": "http.response.body", "body": chunk, "more_body": not whole})
        delivery.sending = False
        if passage.failed:
            raise passage.failure()
        if not whole:
            raise UpstreamBroken(f"{ctx.upstream} ended the stream before it was finished.")

    def _send_whole(self, writer: Writer, body: bytes) -> bool:
        """Pass on an answer of which nothing is left to come; tell whether the client takes it."""
        ctx, call = self.ctx, self.call
        ctx.tail = None
        if call.status < 400:
            ctx.chunks += 1
            if ctx.first_byte_at is None:
                ctx.first_byte_at = clock.now()
        limited = ctx.limit_lines != b""
        writer.begin(call.status, response_headers(call.headers, self.kind, limited))
        return writer.end(body)

    async def _flow(
        self, passage: Passage, writer: Writer, patience: float, deadline: float
    ) -> None:
        """Pass on what comes, without a task that is woken for it; return to what is left."""
        within = 0 if patience == FOR_EVER else patience
        ready = False
        pass_on = passage.into(writer)
        while not ready and (left := left_until(deadline)) > 0:
            ready = await self.call.flow(pass_on, within, left)
            if deadline == FOR_EVER:
                await writer.room()
            else:
                await in_time(writer.room(), deadline)

    async def _first(self, due: float, deadline: float) -> bytes:
        """Return the first bytes that say something: an engine's own comments do not."""
        chunk = await self._next(due, deadline)
        while self.tail is not None and is_only_comment(chunk):
            self.tail.note(chunk)
            await self._say(chunk)
            chunk = b"" if self.call.over else await self._next(due, deadline)
        return chunk

    async def _next(self, due: float, deadline: float) -> bytes:
        limit = due - clock.now() if due != FOR_EVER else FOR_EVER
        within = min(self.comment, limit, left_until(deadline))
        if within <= 0:
            raise self._timeout(0, deadline)
        try:
            return await self.call.read(0 if within == FOR_EVER else within)
        except Silence:
            return await self._sit_out(within, limit, deadline)

    async def _sit_out(self, silent: float, limit: float, deadline: float) -> bytes:
        """Wait on after `silent` seconds of nothing, up to `limit`, with comments meanwhile."""
        tail = self.tail
        while True:
            if self._has_said_all(Halt.SILENCE):
                return b""  # only its connection lingers
            left = min(limit - silent, left_until(deadline))
            if left <= 0:
                raise self._timeout(silent, deadline)
            if self.comment != FOR_EVER and tail is not None and tail.at_boundary():
                await self._say(KEEP_ALIVE)
            step = min(self.comment, left)
            try:
                return await self.call.read(0 if step == FOR_EVER else step)
            except Silence:
                silent += step

    async def _say(self, comment: bytes) -> None:
        """Send what is no answer yet; the head goes out with it."""
        await self._begin()
        self.delivery.count += 1
        self.delivery.sending = True
        await self.send({"type": "http.response.body", "body": comment, "more_body": True})
        self.delivery.sending = False

    def _has_said_all(self, halt: Halt) -> bool:
        """Tell whether the stream was finished by its own last word."""
        tail = self.tail
        if tail is None or tail.ending is Ending.UNKNOWN:
            return False
        return tail.finished(halt)

    def _timeout(self, silent: float, deadline: float) -> UpstreamTimeout:
        failure = UpstreamTimeout if not is_past(deadline) else out_of_time
        if not self.answered:
            return failure(f"{self.ctx.upstream} sent no first byte in time.")
        if silent >= self.idle:
            return failure(f"{self.ctx.upstream} was silent for {self.idle:g} s.")
        return out_of_time(NOT_COMPLETE)

    async def _begin(self) -> None:
        if self.begun:
            return
        self.begun = True
        status, headers = self.call.status, response_headers(self.call.headers, self.kind)
        if status in _BODYLESS:  # a 304 tells what a 200 would have, and uvicorn would wait for it
            headers = [header for header in headers if header[0] != b"content-length"]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})


def _piece(chunk: bytes) -> Message:
    return {"type": "http.response.body", "body": chunk, "more_body": True}
