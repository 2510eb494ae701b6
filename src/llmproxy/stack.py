"""THE ORDER of the layers: one list, outermost first, one reason per line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import ismethod

from starlette.middleware.cors import CORSMiddleware

from llmproxy.admin.keys import AdminKey
from llmproxy.context import SCOPE_KEY
from llmproxy.logs import AccessLog, HostLog
from llmproxy.metrics import Metrics
from llmproxy.middleware.body import BodyMiddleware
from llmproxy.middleware.disconnect import DisconnectMiddleware
from llmproxy.middleware.entrance import METHODS, EntranceMiddleware, path_below_mount
from llmproxy.middleware.errors import ErrorsMiddleware
from llmproxy.middleware.observe import ObserveMiddleware
from llmproxy.middleware.replay import ReplayMiddleware
from llmproxy.middleware.usage import UsageMiddleware
from llmproxy.protocol.endpoints import Paths
from llmproxy.protocol.trust import TrustedProxies
from llmproxy.types import ASGIApp, Receive, Scope, Send

Layer = Callable[[ASGIApp], ASGIApp]

MIB = 1024 * 1024
EXPOSED = [
    *("x-request-id", "x-llmproxy-upstream", "x-llmproxy-attempts", "x-llmproxy-budget"),
    *("retry-after", "retry-after-ms", "x-should-retry"),
    *(
        f"x-ratelimit-{what}-{unit}"
        for what in ("limit", "remaining", "reset")
        for unit in ("requests", "tokens")
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one name in the chain stands for."""

    layer: Layer | None = None
    gate: Layer | None = None  # stands before the body: what it refuses is never read
    usage: bool = False  # wants to know what a request has used


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What the frame needs; the defaults serve a layer that is used on its own."""

    metrics: Metrics = field(default_factory=Metrics)
    access_log: AccessLog = field(default_factory=HostLog)
    trusted_proxies: TrustedProxies = field(default_factory=TrustedProxies)
    paths: Paths = field(default_factory=lambda: Paths(()))
    pages: Mapping[bytes, ASGIApp] = field(default_factory=dict)
    admin_key: AdminKey = field(default_factory=lambda: AdminKey(None))
    keys_decide: bool = False  # the auth layer tells who may manage the engines
    mark: bytes = b"llmproxy-layer"
    cors_origins: tuple[str, ...] = ()
    max_body: int = 32 * MIB
    max_upload: int = 512 * MIB
    body_timeout: float = 60.0
    total_timeout: float = 0.0


def order(frame: Frame, gates: Sequence[Layer] = (), *, usage: bool = True) -> list[Layer]:
    """Return the layers of the frame, outermost first, with those that stand before the body."""
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
            keys_decide=frame.keys_decide,
            mark=frame.mark,
        ),
        # Who is calling is known before a stranger's body fills our memory.
        *gates,
        # Takes the body out, so that only the disconnect is left to receive.
        lambda app: BodyMiddleware(
            app,
            max_body=frame.max_body,
            max_upload=frame.max_upload,
            within=frame.body_timeout,
            total=frame.total_timeout,
        ),
        # Around everything that may wait for long: whoever leaves is noticed in all of it.
        DisconnectMiddleware,
        # Outside of those who ask it what was used, also when they ask because all has ended.
        *([UsageMiddleware] if usage else []),
    ]


def build(frame: Frame, parts: Sequence[Part], end: ASGIApp) -> ASGIApp:
    """Put the frame around the parts, and the parts around the end of the chain."""
    gates = [part.gate for part in parts if part.gate is not None]
    layers = [part.layer for part in parts if part.layer is not None]
    usage = any(part.usage for part in parts)
    app = end
    for layer in reversed([*order(frame, gates, usage=usage), *layers]):
        app = layer(callable_of(app))
    return app


def callable_of(app: ASGIApp) -> ASGIApp:
    """Return what to call of an app: its method, for to call the object takes longer."""
    method = app.__call__  # type: ignore[operator]  # mypy takes it for a bare function
    return method if ismethod(method) else app


def alone(
    part: Part, app: ASGIApp, frame: Frame | None = None, *, end: ASGIApp | None = None
) -> ASGIApp:
    """Return one part for use in a foreign app, with the frame it needs around it.

    Where a layer further out has brought the frame along already, that one is shared. What
    is not addressed to an engine goes to the app untouched; the rest to `end`, if there is one.
    """
    frame = frame or Frame()
    inner = shared = _inside(part, end or ReplayMiddleware(app))
    if part.gate is not None:
        shared = part.gate(inner)
    framed = build(frame, [Part(gate=part.gate)], inner)

    async def standing_alone(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or frame.paths.find(path_below_mount(scope)) is None:
            await app(scope, receive, send)
        elif SCOPE_KEY in scope:
            await shared(scope, receive, send)
        else:
            await framed(scope, receive, send)

    return standing_alone


def _inside(part: Part, inner: ASGIApp) -> ASGIApp:
    """Return what stands behind the body."""
    if part.layer is not None:
        inner = part.layer(inner)
    return UsageMiddleware(inner) if part.usage else inner


def _cors(origins: tuple[str, ...]) -> Layer:
    return lambda app: CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=sorted(METHODS),
        allow_headers=["*"],
        expose_headers=EXPOSED,
    )
