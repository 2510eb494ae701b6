"""Host apps that mount the proxy, as people write them."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from llmproxy.types import ASGIApp


async def hello(request: Request) -> Response:
    """Answer as the host does."""
    return PlainTextResponse("hello from the host")


def mounted(*apps: tuple[str, ASGIApp], middleware: list[Middleware] | None = None) -> Starlette:
    """Return a host with apps under paths, and a page of its own."""
    routes = [Route("/hello", hello), *(Mount(path, app) for path, app in apps)]
    return Starlette(routes=routes, middleware=middleware or [])


class Wrapping(BaseHTTPMiddleware):
    """What half the tutorials show."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-wrapped"] = "yes"
        return response
