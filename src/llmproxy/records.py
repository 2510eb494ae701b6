"""Values that travel between the parts. Frozen, without behaviour, without I/O."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from llmproxy.types import Header


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


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """What a caller asked for, as far as the proxy needs to know it."""

    model: str | None = None
    stream: bool = False


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
    native: frozenset[str] = frozenset()  # engine paths that are passed through
    management: tuple[str, ...] = ()  # prefixes of engine paths that need the admin key
    credentials: tuple[Header, ...] = field(default=(), repr=False)
    models: tuple[str, ...] = ()
    weight: int = 1
    max_inflight: int = 0  # 0 = no limit
    tags: frozenset[str] = frozenset()
    ca: str | None = None
    cert: str | None = None
    proxy: str | None = field(default=None, repr=False)  # may carry a password

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        if self.scheme == "unix":
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
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
