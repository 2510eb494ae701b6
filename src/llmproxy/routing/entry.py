"""The attempts that cannot be made at once: the first, and one that is to go on with a stream.

Rule 1: a full server is waited for; a model that nobody has is looked for once.
Rule 2: who was called and goes on, with a place or without, passes the turn on: nobody else would.
Rule 3: whoever has begun an answer takes the place that is free; if there is none, it waits behind
        all others.
"""

from collections.abc import Awaitable, Callable

from llmproxy.errors import NoUpstream, ProxyError
from llmproxy.routing.course import Attempt, Course, Full, Unknown
from llmproxy.routing.places import Places
from llmproxy.routing.router import Router, Wish


async def entered(
    router: Router,
    places: Places,
    refresh: Callable[[], Awaitable[None]],
    wish: Wish,
    deadline: float,
) -> tuple[Course, Attempt]:
    """Return the first attempt once a server has a place, or the model was looked for.

    `refresh` has every server asked anew for its models.
    """
    until, refreshed = places.until(deadline), False
    row: str | None = None
    called = False  # out of that row
    while True:
        course = router.course(wish)
        try:
            if not called and places.are_waited_for(course.model):
                raise Full(course.model)
            attempt = course.first()
        except Full as full:
            if called and full.model != row:
                places.pass_on(row)
            await places.wait(full.model, until=until, first=called and full.model == row)
            called, row = True, full.model
            continue
        except Unknown as unknown:
            if called:
                places.pass_on(row)
                called = False
            if refreshed:
                raise _refusal(router, unknown) from None
            await refresh()
            refreshed = True
            continue
        except BaseException:
            if called:
                places.pass_on(row)
            raise
        if called:
            places.pass_on(row)  # there may be more than the one place
        return course, attempt


async def gone_on(
    course: Course,
    places: Places,
    broken: Attempt,
    *,
    fallback: bool,
    deadline: float,
    meanwhile: Callable[[], Awaitable[None]],
) -> Attempt | None:
    """Return who goes on with a stream that broke, once it has a place; None when nobody can."""
    until, called = places.until(deadline), False
    try:
        while True:
            try:
                return course.rescuer(broken, fallback=fallback)
            except Full as full:
                await places.wait(full.model, until=until, first=called, meanwhile=meanwhile)
                called = True
    finally:
        if called:
            places.pass_on(broken.model)


def _refusal(router: Router, unknown: Unknown) -> ProxyError:
    """Return what a caller is told for whom there is nobody."""
    servers = router.registry.servers
    if not servers:
        return NoUpstream("No model server is known at the moment.")
    if any(server.draining and server.knows(unknown.model) for server in servers):
        return NoUpstream("Every model server that could answer is taken out of use.")
    return unknown.refusal()
