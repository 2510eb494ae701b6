"""Every way a request can fail inside the proxy.

* ProxyError
  + RequestError                 the caller must change something
    - InvalidRequest             400
    - InvalidJson                400
    - Unauthenticated            401
    + Forbidden                  403, a good key that does not open this door
      - ModelNotAllowed          403
      - RouteNotAllowed          403
      - AddressNotAllowed        403
    - NotFound                   404
    - ModelNotFound              404, no model server has it
    - MethodNotAllowed           405
    - RequestTimeout             408
    - Conflict                   409
    - RequestTooLarge            413
    - UnsupportedEncoding        415
    - RateLimited                429
    - QuotaSpent                 429
    - LoopDetected               508, the request has come through this proxy before
  + UpstreamError                the model server let us down
    - UpstreamUnreachable        502
    - UpstreamBroken             502
    - UpstreamAuth               502
    - NoUpstream                 503
    - UpstreamTimeout            504
  + CapacityError                we are the ones who cannot take it now
    - Overloaded                 503
    - DeadlineTooShort           504, the caller would not stay until it is its turn
    - Draining                   503
    - StoreUnavailable           503
  + ClientGone                   499, nobody is left to read an answer
  + Stopped                      503, this process ended before the answer was complete
  + InternalError                500, our own bug
    - LayerMissing               500, a layer ran without the one it needs

Only `middleware/errors.py` turns these into bytes. Everyone else raises.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar, TypeVar

from llmproxy.types import Header

T = TypeVar("T")


class Outcome(StrEnum):
    """How a request ended: one word, the same in log and metrics."""

    COMPLETED = "completed"  # answered to the last byte
    REFUSED = "refused"  # the model server's own answer was an error; passed on as it came
    REJECTED = "rejected"  # we answered instead of asking a model server
    UPSTREAM_FAILED = "upstream_failed"  # no answer could be begun
    STREAM_BROKEN = "stream_broken"  # an answer had begun and could not be finished
    CLIENT_GONE = "client_gone"  # the caller left first
    STOPPED = "stopped"  # we were shut down
    FAILED = "failed"  # our own bug


class ProxyError(Exception):
    """Base of the tree; never raised itself.

    `detail` is written for the caller and is safe to send. What must stay private
    travels as `__cause__` (`raise ... from exc`) and reaches only the log.
    """

    status: ClassVar[int]
    code: ClassVar[str]
    kind: ClassVar[str] = "server_error"  # the `type` of OpenAI's error object
    outcome: ClassVar[Outcome]
    retryable: ClassVar[bool] = False  # may another server be tried?
    counts: ClassVar[bool] = True  # is it a request by the caller's limits, if no server was asked?

    def __init__(
        self, detail: str, *, param: str | None = None, headers: Sequence[Header] = ()
    ) -> None:
        if not hasattr(self, "code"):
            raise TypeError(f"{type(self).__name__} is abstract: raise one of its subclasses")
        super().__init__(detail)
        self.detail = detail
        self.param = param
        self.headers = tuple(headers)


class RequestError(ProxyError):
    """The caller must change the request before it can succeed."""

    kind = "invalid_request_error"
    outcome = Outcome.REJECTED


class InvalidRequest(RequestError):
    """Well-formed, but not something that can be asked."""

    status = 400
    code = "invalid_request"


class InvalidJson(RequestError):
    """The body says it is JSON and is not."""

    status = 400
    code = "invalid_json"


class Unauthenticated(RequestError):
    """No key, or not one that opens this door."""

    status = 401
    code = "invalid_api_key"


class Forbidden(RequestError):
    """The key is a good one and does not open this door."""

    kind = "permission_error"
    status = 403


class ModelNotAllowed(Forbidden):
    """The key may not use this model."""

    code = "model_not_allowed"


class RouteNotAllowed(Forbidden):
    """The key may not call this path."""

    code = "route_not_allowed"


class AddressNotAllowed(Forbidden):
    """The key may not be used from where the request comes."""

    code = "ip_not_allowed"


class NotFound(RequestError):
    """Nothing is served at this path."""

    status = 404
    code = "not_found"


class ModelNotFound(RequestError):
    """No model server has this model."""

    status = 404
    code = "model_not_found"


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class RequestTimeout(RequestError):
    """The body took longer to arrive than we wait."""

    status = 408
    code = "request_timeout"


class Conflict(RequestError):
    """What is asked for does not fit to how things are: a name is taken, say."""

    status = 409
    code = "conflict"


class RequestTooLarge(RequestError):
    """The body is larger than configured."""

    status = 413
    code = "request_too_large"


class UnsupportedEncoding(RequestError):
    """The body is compressed; a bomb cannot be told from a prompt without inflating it."""

    status = 415
    code = "unsupported_encoding"


class RateLimited(RequestError):
    """A limit is reached; it opens again by itself."""

    kind = "rate_limit_error"
    status = 429
    code = "rate_limit_exceeded"


class QuotaSpent(RequestError):
    """A budget is spent; asking again soon changes nothing."""

    kind = "insufficient_quota"
    status = 429
    code = "insufficient_quota"


class LoopDetected(RequestError):
    """The request carries our own mark: an upstream of ours is ourselves."""

    status = 508
    code = "loop_detected"


class UpstreamError(ProxyError):
    """A model server could not be used; `retryable` says whether another one may be tried."""

    outcome = Outcome.UPSTREAM_FAILED
    unasked: bool = False  # no connection came about, so the server has not seen the request


class UpstreamUnreachable(UpstreamError):
    """No connection came about, so the server has not seen the request."""

    status = 502
    code = "upstream_unreachable"
    retryable = True
    unasked = True


class UpstreamBroken(UpstreamError):
    """The connection broke, or what came over it was not an HTTP answer."""

    status = 502
    code = "upstream_error"
    retryable = True


class UpstreamAuth(UpstreamError):
    """The server refuses the credential that *we* hold; the caller can do nothing about it."""

    status = 502
    code = "upstream_auth"


class NoUpstream(UpstreamError):
    """No server is left to ask."""

    status = 503
    code = "no_healthy_upstream"
    counts = False


class UpstreamTimeout(UpstreamError):
    """A clock ran out while we waited for the server."""

    status = 504
    code = "upstream_timeout"
    retryable = True
    of_request: bool = False  # it was the one of the whole request, and not one of the server's
    by_caller: bool = False  # who had set that one itself, and so has left


class CapacityError(ProxyError):
    """We cannot take the work now; later or elsewhere it will be taken."""

    outcome = Outcome.REJECTED
    counts = False

    def __init__(self, detail: str, *, retry_after: int) -> None:
        super().__init__(detail, headers=[(b"retry-after", str(retry_after).encode())])


class Overloaded(CapacityError):
    """Every connection and every place in the queue is taken."""

    status = 503
    code = "overloaded"


class DeadlineTooShort(CapacityError):
    """The time that the caller has set is over before a slot would be free."""

    status = 504
    code = "deadline_too_short"


class Draining(CapacityError):
    """This process is about to stop."""

    status = 503
    code = "draining"


class StoreUnavailable(CapacityError):
    """Keys or budgets cannot be looked up now, and nobody is let in on trust."""

    status = 503
    code = "store_unavailable"


class ClientGone(ProxyError):
    """The caller hung up; nobody is left to read an answer."""

    status = 499
    code = "client_gone"
    outcome = Outcome.CLIENT_GONE


class Stopped(ProxyError):
    """This process ends, and an answer that had begun ends with it."""

    status = 503
    code = "stopped"
    outcome = Outcome.STOPPED


class InternalError(ProxyError):
    """A fault of ours. The caller learns that, and nothing else."""

    status = 500
    code = "internal_error"
    outcome = Outcome.FAILED


class LayerMissing(InternalError):
    """A layer ran without the one it needs."""

    code = "layer_missing"


def present(value: T | None, name: str) -> T:
    """Return `value`, or say which layer is missing from the stack."""
    if value is None:
        raise missing(name)
    return value


def missing(name: str) -> LayerMissing:
    """Return the error that says which layer is missing from the stack."""
    return LayerMissing(f"ctx.{name} is not set: is its layer missing from the stack?")
