"""THE ORDER of the layers: one list, outermost first, one reason per line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.middleware.cors import CORSMiddleware

from llmproxy.admin.keys import AdminKey
from llmproxy.context import SCOPE_KEY
from llmproxy.logs import AccessLog, HostLog
from llmproxy.metrics import Metrics
from llmproxy.middleware.body import BodyMiddleware
from llmproxy.middleware.disconnect import DisconnectMiddleware
from llmproxy.middleware.entrance import EntranceMiddleware, path_below_mount
from llmproxy.middleware.errors import ErrorsMiddleware
from llmproxy.middleware.observe import ObserveMiddleware
from llmproxy.middleware.replay import ReplayMiddleware
from llmproxy.protocol.endpoints import Paths
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.types import ASGIApp, Receive, Scope, Send

Layer = Callable[[ASGIApp], ASGIApp]

MIB = 1024 * 1024
EXPOSED = ["x-request-id", "x-llmproxy-upstream", "x-llmproxy-attempts", "retry-after"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What the frame needs; the defaults serve a layer that is used on its own."""

    metrics: Metrics = field(default_factory=Metrics)
    access_log: AccessLog = field(default_factory=HostLog)
    trusted_proxies: TrustedProxies = field(default_factory=TrustedProxies)
    paths: Paths = field(default_factory=lambda: Paths(()))
    pages: Mapping[bytes, ASGIApp] = field(default_factory=dict)
    admin_key: AdminKey = field(default_factory=lambda: AdminKey(None))
    mark: bytes = b"llmproxy-layer"
    cors_origins: tuple[str, ...] = ()
    max_body: int = 32 * MIB
    max_upload: int = 512 * MIB
    body_timeout: float = 60.0


def order(frame: Frame) -> list[Layer]:
    """Return the layers of the frame, outermost first."""
    return [
        # Sees everything that is sent, so that log and metrics tell what the client saw.
        lambda app: ObserveMiddleware(
            app,
            metrics=frame.metrics,
            access_log=frame.access_log,
            trusted_proxies=frame.trusted_proxies,
        ),
        # Outside of errors: a browser may read an error only if it carries these headers too.
        *([_cors(frame.cors_origins)] if frame.cors_origins else []),
        # Outside of all that raises.
        ErrorsMiddleware,
        # Refuses what is not ours before a byte of the body is read.
        lambda app: EntranceMiddleware(
            app,
            paths=frame.paths,
            pages=frame.pages,
            admin_key=frame.admin_key,
            mark=frame.mark,
        ),
        # Takes the body out, so that only the disconnect is left to receive.
        lambda app: BodyMiddleware(
            app,
            max_body=frame.max_body,
            max_upload=frame.max_upload,
            within=frame.body_timeout,
        ),
        # Around everything that may wait for long: whoever leaves is noticed in all of it.
        DisconnectMiddleware,
    ]


def build(frame: Frame, layers: Sequence[Layer], end: ASGIApp) -> ASGIApp:
    """Put the frame around the layers, and the layers around the end of the chain."""
    app = end
    for layer in reversed([*order(frame), *layers]):
        app = layer(app)
    return app


def alone(layer: Layer, app: ASGIApp, frame: Frame | None = None) -> ASGIApp:
    """Return one layer for use in a foreign app, with the frame it needs around it.

    Where a layer further out has brought the frame along already, that one is shared. What
    is not addressed to an engine goes to the app untouched.
    """
    frame = frame or Frame()
    inner = layer(ReplayMiddleware(app))
    framed = build(frame, [], inner)

    async def standing_alone(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or frame.paths.find(path_below_mount(scope)) is None:
            await app(scope, receive, send)
        elif SCOPE_KEY in scope:
            await inner(scope, receive, send)
        else:
            await framed(scope, receive, send)

    return standing_alone


def _cors(origins: tuple[str, ...]) -> Layer:
    return lambda app: CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED,
    )
