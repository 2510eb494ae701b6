"""The attempts of one request, made.

Rule 1: nearly every request is answered by the first server that is asked, and only its model
        matters for which that is: nothing is made for the others.
Rule 2: a server has the request from before it is asked until that is over, however it ends.
Rule 3: an attempt that ended without an answer, and not by a fault of the server, says nothing
        about it.
Rule 4: for a client that has gone nobody is asked any more, also before its request is ended.

Reads:  endpoint, fields, inference
Writes: attempt
Raises: ClientGone, or whatever the last attempt came to
"""

from llmproxy import clock
from llmproxy.context import RequestContext
from llmproxy.errors import ClientGone, UpstreamError
from llmproxy.first_token import FirstToken
from llmproxy.journey import Journey
from llmproxy.means import Means
from llmproxy.protocol.request_options import TIMEOUT, timeout_of
from llmproxy.rescuing import Failure
from llmproxy.routing.course import Attempt
from llmproxy.routing.delivered import CannotContinue
from llmproxy.routing.load_watch import wants_header
from llmproxy.trial import Trial
from llmproxy.types import ASGIApp, Receive, Scope, Send, watched, writer_of
from llmproxy.wishes import wish_of
from llmproxy.written_trial import WrittenTrial


async def travel(
    means: Means, app: ASGIApp, scope: Scope, receive: Receive, send: Send, ctx: RequestContext
) -> None:
    """Have a request answered: make attempts until one is, or there is none left.

    `app` asks the server that the context names.
    """
    if TIMEOUT in ctx.fields:
        timeout_of(ctx.fields)  # refused before anybody is asked
    asked, endpoint, places = ctx.inference, ctx.endpoint, means.places
    assert asked is not None
    assert endpoint is not None
    writer = writer_of(send)
    trial = Trial(send) if writer is None else WrittenTrial(send, writer)
    limited = False
    if asked.stream:
        trial.kept = means.keeps(ctx)
        limited = means.first_token > 0
    attempt: Attempt | None = None
    journey: Journey | None = None
    try:
        if not places.waiting and not limited:
            attempt = means.router.usual(endpoint, asked.model)
        if attempt is None:
            journey = Journey(means, trial, ctx, wish_of(scope, ctx))
            attempt = await journey.first()
        while True:
            server = attempt.server
            failure: Failure | None = None
            server.inflight += 1
            try:
                if asked.stream:
                    attempt.asked_at = clock.now()
                elif server.tells_load:
                    attempt.asks_load = wants_header(server, clock.now())
                ctx.attempt = trial.attempt = attempt
                if attempt.first_byte:
                    trial.first_token = FirstToken(attempt)
                    await trial.first_token.within(app(scope, receive, trial.send))
                else:
                    await app(scope, receive, trial.send)
            except (UpstreamError, CannotContinue) as exc:
                failure = exc
                # It may be told at the end. The frames that it came through hold all of the
                # request.
                failure.__traceback__ = failure.__cause__ = failure.__context__ = None
            except BaseException:
                if not trial.answered:
                    attempt.weighs_nothing()
                raise
            finally:
                server.inflight -= 1
                if server.most:
                    places.freed()
            if failure is None and trial.refusal is None:
                if journey is not None:
                    journey.succeeded()
                return
            exchange = watched(scope)
            if exchange is not None and exchange.gone:
                if not trial.answered:
                    attempt.weighs_nothing()
                raise ClientGone("The client left before its answer was complete.")
            if journey is None:
                journey = Journey(means, trial, ctx, wish_of(scope, ctx), attempt)
            attempt = await journey.after(attempt, failure)
            if attempt is None:
                return
    finally:
        if journey is not None:
            journey.close()
        if trial.kept is not None:
            trial.kept.close()
