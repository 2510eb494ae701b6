"""What a caller who is known may do. Nothing here asks anybody.

A list that is empty allows everything. Where something is restricted and a request does not
say what it wants, it is refused: the model server would choose for it.
"""

import ipaddress
from fnmatch import fnmatchcase
from functools import lru_cache
from urllib.parse import unquote

from llmproxy.errors import (
    AddressNotAllowed,
    InvalidRequest,
    ModelNotAllowed,
    RouteNotAllowed,
)
from llmproxy.records import Ending, Endpoint, InferenceRequest, Network, Principal, Role

_MODEL_PATH = b"/v1/models/"


def check_address(principal: Principal, client: str | None) -> None:
    """Raise when the caller may not call from where it does."""
    if principal.networks and not _within(client, principal.networks):
        raise AddressNotAllowed("This API key may not be used from this address.")


def check_route(principal: Principal, endpoint: Endpoint, path: bytes) -> None:
    """Raise when the caller may not call this path."""
    if endpoint.management and principal.role is not Role.ADMIN:
        raise RouteNotAllowed("This path needs the admin key.")
    routes = principal.routes
    if routes and endpoint.name not in routes and not _matches(path.decode("latin-1"), routes):
        raise RouteNotAllowed("This API key may not call this path.")


def check_model(
    principal: Principal,
    path: bytes,
    inference: InferenceRequest | None,
    body: object,
) -> None:
    """Raise when the caller may not use the model that the request names."""
    if not principal.models:
        return
    model = inference.model if inference is not None else None
    if model is None and path.startswith(_MODEL_PATH):
        model = unquote(path[len(_MODEL_PATH) :].decode("latin-1"))
    if model is None:
        if body == b"":
            return  # a list, a look at something: no model works
        raise ModelNotAllowed("This API key is for certain models; name one.", param="model")
    if not allows(principal, model):
        raise ModelNotAllowed("This API key may not use this model.", param="model")


def check_length(
    principal: Principal, endpoint: Endpoint, inference: InferenceRequest | None
) -> None:
    """Raise when an answer could get longer than the caller may have it."""
    most = principal.max_tokens
    if most is None or inference is None or endpoint.ending is Ending.UNKNOWN:
        return
    asked = inference.max_tokens
    if asked is None or not 0 <= asked * inference.choices <= most:
        raise InvalidRequest(
            f"This API key needs a `max_tokens` of at most {most} in all.", param="max_tokens"
        )


def allows(principal: Principal, model: str) -> bool:
    """Tell whether the caller may use a model."""
    return not principal.models or _matches(model, principal.models)


def _matches(text: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, glob) for glob in globs)


@lru_cache(maxsize=4096)
def _within(client: str | None, networks: tuple[Network, ...]) -> bool:
    try:
        address = ipaddress.ip_address(client or "")
    except ValueError:
        return False  # a socket, or a proxy that did not say
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in networks)
