"""The first attempt of a request that cannot be made at once.

Rule 1: a full server is waited for; a model that nobody has is looked for once.
Rule 2: who was called and goes on, with a place or without, passes the turn on: nobody else would.
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


def _refusal(router: Router, unknown: Unknown) -> ProxyError:
    """Return what a caller is told for whom there is nobody."""
    servers = router.registry.servers
    if not servers:
        return NoUpstream("No model server is known at the moment.")
    if any(server.draining and server.knows(unknown.model) for server in servers):
        return NoUpstream("Every model server that could answer is taken out of use.")
    return unknown.refusal()
