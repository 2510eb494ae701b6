"""Turn what went wrong into what the caller is told.

Before the answer has begun that is an error body. After it, a stream is ended by an error
event, and anything else is cut: never may half an answer look like a whole one.

Reads:  status, complete, tail, request_id
Writes: failure
Raises: whatever ended an answer that had begun, so that the server cuts the connection
"""

import asyncio
import logging
from contextlib import suppress

from llmproxy import codec
from llmproxy.cleanup import finish
from llmproxy.context import RequestContext, get_context, settled
from llmproxy.errors import ClientGone, InternalError, ProxyError, Stopped
from llmproxy.protocol.error_body import error_object, last_event
from llmproxy.records import Ending
from llmproxy.types import ASGIApp, Receive, Scope, Send

LAST_WORDS = 1.0  # seconds that a client gets to take the error event

log = logging.getLogger("llmproxy")


class ErrorsMiddleware:
    """The one place where an error becomes bytes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] != "http":
            await app(scope, receive, send)
            return

        ctx = get_context(scope)
        try:
            await app(scope, receive, send)
        except ProxyError as error:
            ctx.failure = error
            await self._tell(ctx, error, send)
        except asyncio.CancelledError:
            stopped = Stopped("The proxy was stopped before the answer was complete.")
            ctx.failure = stopped
            settled(ctx, left=True)
            await finish(self._last_words(ctx, stopped, send), within=LAST_WORDS)
            raise
        except Exception as exc:
            # Its text may hold anything, a prompt or a key: it goes into the log's own field
            # for tracebacks and never to the caller.
            log.exception("failed", extra={"request_id": ctx.request_id})
            ours = InternalError("The proxy failed to handle this request.")
            ours.__cause__ = exc
            ctx.failure = ours
            await self._tell(ctx, ours, send)

    async def _tell(self, ctx: RequestContext, error: ProxyError, send: Send) -> None:
        left = isinstance(error, ClientGone)
        # What it holds is for others now, and who has stopped reading is not waited for.
        settled(ctx, left=left)
        if left or ctx.complete:
            return
        if ctx.status is None:
            await self._answer(error, send)
            return
        with suppress(TimeoutError):  # somebody who has stopped reading
            async with asyncio.timeout(LAST_WORDS):
                await self._last_words(ctx, error, send)
        raise error

    async def _answer(self, error: ProxyError, send: Send) -> None:
        body = codec.dumps(error_object(error))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *error.headers,
        ]
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _last_words(self, ctx: RequestContext, error: ProxyError, send: Send) -> None:
        tail = ctx.tail
        if tail is None or ctx.complete or tail.ending is Ending.UNKNOWN:
            return  # whoever reads this knows no error event: it is cut, and that is all
        if tail.told_of_an_error():
            return
        body = tail.closing() + last_event(error, tail.ending)
        await send({"type": "http.response.body", "body": body, "more_body": True})
