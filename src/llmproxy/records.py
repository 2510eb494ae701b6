"""Values that travel between the parts. Frozen, without behaviour, without I/O."""

import ipaddress
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Literal, Protocol

import msgspec

from llmproxy.types import Header

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Ending(Enum):
    """By what a stream of an endpoint shows that it is finished, and not just over."""

    UNKNOWN = "unknown"  # we cannot tell: the model server's own ending is mirrored
    CHAT = "chat"  # `data: [DONE]`, or a chunk with a finish_reason
    MESSAGES = "messages"  # `message_stop`
    RESPONSES = "responses"  # `response.completed`, `.incomplete` or `.failed`
    NDJSON = "ndjson"  # a line with `"done": true`


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is known about a path before anything is read."""

    name: str  # one word for log and metrics: chat, embeddings, native, other, ...
    ending: Ending = Ending.UNKNOWN
    json_body: bool = False  # its body is JSON whatever the content type says
    management: bool = False  # changes the server itself: needs the admin key
    native: bool = False  # a path of one engine's own API, outside /v1/


class InferenceRequest(msgspec.Struct, frozen=True, gc=False):
    """What a caller asked for, as far as the proxy needs to know it.

    A struct, because one is made for every request: it is made, and its fields are read, in a
    third of the time that a named tuple takes.
    """

    model: str | None = None
    stream: bool = False
    include_usage: bool | None = None  # `stream_options.include_usage`; None = not said
    max_tokens: int | None = None  # the most that one answer may have; None = not said
    choices: int = 1  # that are made: `n` or `best_of`, whichever is more, for each prompt
    prompt_bytes: int = 0  # of the body: an upper bound that costs nothing to know
    unstored: bool = False  # `store: false` was said: the server keeps nothing of it
    has_options: bool = False  # `stream_options` stands there, with whatever in it
    answers: int = 1  # that come back: `n` for each prompt


@dataclass(frozen=True, slots=True)
class Upstream:
    """One model server, as configured."""

    name: str
    scheme: str  # http, https or unix
    host: str  # a name or an address; empty for unix
    port: int
    path: str = ""  # the socket's path for unix
    root: str = ""  # what stands before native paths
    api: str = "/v1"  # what stands in the place of /v1
    preset: str = "http"
    health: str = "/health"  # below root; empty = the list of models has to do
    lists_models: bool = True  # its own documentation has a list of models under `api`
    any_model: bool = True  # it may answer to names that it does not list
    metrics: str = ""  # below root, where it says how busy it is; empty = nowhere
    native: frozenset[str] = frozenset()  # engine paths that are passed through
    management: tuple[str, ...] = ()  # prefixes of engine paths that need the admin key
    credentials: tuple[Header, ...] = field(default=(), repr=False)
    models: tuple[str, ...] = ()
    weight: int = 1
    max_inflight: int = 0  # 0 = no limit
    priority: bool = False  # it schedules by classes, and is told the caller's
    tags: frozenset[str] = frozenset()
    ca: str | None = None
    cert: str | None = None
    proxy: str | None = field(default=None, repr=False)  # may carry a password
    # What says where to look for servers, and what each of them is like: dns, srv, consul or
    # file. Empty: this is a server.
    found_by: str = ""
    found: bool = False  # at such a place: somebody else than the operator may have named it
    server_name: str = ""  # what it is called and its certificate is for; empty = as its host

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        return self._at_port(self.server_name or self.host)

    @property
    def address(self) -> str:
        """Where it is: host and port as they stand in its URL."""
        return self._at_port(self.host)

    def _at_port(self, host: str) -> str:
        if self.scheme == "unix":
            return "localhost"
        host = f"[{host}]" if ":" in host else host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Clocks:
    """How long to wait for what, in seconds; 0 = for ever."""

    connect: float = 3.0
    first_byte: float = 120.0  # first body byte of a stream
    answer: float = 600.0  # first byte of an answer that does not stream
    idle: float = 60.0  # silence between two chunks
    total: float = 0.0  # the whole request
    body: float = 60.0  # the caller's body
    write: float = 60.0  # the caller, to take what we write
    comment: float = 15.0  # silence after which a stream gets a comment


class Upload(Protocol):
    """A request body that is passed on while it comes in. It can be read once."""

    @property
    def length(self) -> int | None:
        """Bytes in all, when the caller has said so."""

    @property
    def started(self) -> bool:
        """Whether any of it was handed out: from then on nothing may be tried again."""

    async def through(self) -> None:
        """Return once the last of it was handed out, or it has failed."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Role(StrEnum):
    """What a principal may do besides calling models."""

    CALLER = "caller"  # nothing
    VIEWER = "viewer"  # read metrics and the details of health
    ADMIN = "admin"  # everything under /admin, and the engines' own management


Unit = Literal["req", "tok", "concurrent", "usd"]
Per = Literal["key", "team", "tier", "model", "ip"]
Window = Literal["hour", "day", "month", "total"]


@dataclass(frozen=True, slots=True)
class Limit:
    """How much of something may be had within a time, or at once."""

    amount: float
    unit: Unit  # req, tok or concurrent
    period: float = 0.0  # seconds; 0 for what is held at once
    per: Per = "key"
    of: str | None = None  # the one team, tier, model or address it is for; None = each


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be spent within a calendar window (UTC)."""

    amount: float
    unit: Unit  # tok or usd
    window: Window
    per: Per = "key"
    of: str | None = None
    kind: Literal["hard", "soft", "cut"] = "hard"  # cut: hard, and it ends a running stream


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling, and what they may have."""

    id: str  # what limits and books are kept under; never a secret
    name: str
    method: Literal["key", "jwt", "hmac", "certificate"] = "key"
    team: str | None = None
    tier: str | None = None
    tags: frozenset[str] = frozenset()
    role: Role = Role.CALLER
    models: tuple[str, ...] = ()  # globs; none = all
    routes: tuple[str, ...] = ()  # names of endpoints, or globs of paths; none = all
    networks: tuple[Network, ...] = ()  # from where; none = anywhere
    limits: tuple[Limit, ...] = ()  # none = the ones configured for every key
    budgets: tuple[Budget, ...] = ()
    weight: float = 1.0  # its share when there is a queue
    priority: int = 0  # the highest class it may ask for; higher goes first
    max_tokens: int | None = None  # the most that one answer may have
    expires: float | None = None  # seconds since 1970
    # Whether what it may do depends on what stands in a body: asked for by every request.
    bound: bool = field(init=False, repr=False, compare=False, default=False)

    def __post_init__(self) -> None:
        bound = self.method == "hmac" or bool(self.models) or self.max_tokens is not None
        object.__setattr__(self, "bound", bound)


class Usage(msgspec.Struct, frozen=True, gc=False):  # for the same reason
    """What one request has used."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0  # of the prompt
    reasoning: int = 0  # of the completion
    estimated: bool = False  # counted by us, because the model server did not say

    @property
    def total(self) -> int:
        return self.prompt + self.completion
