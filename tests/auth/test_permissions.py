"""What a caller who is known may do."""

import ipaddress

import pytest

from llmproxy.auth.permissions import (
    check_address,
    check_length,
    check_model,
    check_route,
)
from llmproxy.errors import AddressNotAllowed, InvalidRequest, ModelNotAllowed, RouteNotAllowed
from llmproxy.protocol.endpoints import CHAT, MODELS, OTHER
from llmproxy.records import Endpoint, InferenceRequest, Principal, Role

ANYBODY = Principal("i", "n")
CHAT_PATH = b"/v1/chat/completions"
MANAGEMENT = Endpoint("management", management=True)


@pytest.mark.parametrize(
    ("client", "allowed"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("2001:db8::1", True),
        ("192.0.2.7", False),
        ("2001:db9::1", False),
        (None, False),
        ("", False),
        ("unix", False),
    ],
)
def test_a_key_may_be_bound_to_networks(client: str | None, allowed: bool) -> None:
    """Somebody whose address nobody knows is not in any."""
    nets = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32"))
    check_address(ANYBODY, client)

    if allowed:
        check_address(Principal("i", "n", networks=nets), client)
    else:
        with pytest.raises(AddressNotAllowed):
            check_address(Principal("i", "n", networks=nets), client)


@pytest.mark.parametrize(
    ("routes", "allowed"),
    [
        ((), True),
        (("chat",), True),
        (("/v1/chat/*",), True),
        (("embeddings", "/v1/*"), True),
        (("embeddings",), False),
        (("/v1/chat",), False),
        (("CHAT",), False),
    ],
)
def test_a_key_may_be_bound_to_routes(routes: tuple[str, ...], allowed: bool) -> None:
    """By the name of an endpoint or by a glob of paths."""
    who = Principal("i", "n", routes=routes)

    if allowed:
        check_route(who, CHAT, CHAT_PATH)
    else:
        with pytest.raises(RouteNotAllowed):
            check_route(who, CHAT, CHAT_PATH)


@pytest.mark.parametrize("role", list(Role))
def test_management_is_for_admins(role: Role) -> None:
    """A viewer only looks."""
    who = Principal("i", "n", role=role)

    if role is Role.ADMIN:
        check_route(who, MANAGEMENT, b"/api/delete")
    else:
        with pytest.raises(RouteNotAllowed):
            check_route(who, MANAGEMENT, b"/api/delete")


@pytest.mark.parametrize(
    ("path", "model", "body", "allowed"),
    [
        (CHAT_PATH, "llama-3", b"{}", True),
        (CHAT_PATH, "phi", b"{}", True),
        (CHAT_PATH, "qwen", b"{}", False),
        (CHAT_PATH, "LLAMA-3", b"{}", False),
        (CHAT_PATH, "phi-4", b"{}", False),
        (CHAT_PATH, None, b"{}", False),
        (CHAT_PATH, None, object(), False),
        (b"/v1/audio/transcriptions", "phi", object(), True),
        (b"/v1/models", None, b"", True),
        (b"/v1/models/phi", None, b"", True),
        (b"/v1/models/meta%2Fphi", None, b"", False),
        (b"/v1/models/llama-a%2Fb", None, b"", True),
        (b"/v1/models/qwen", None, b"", False),
    ],
)
def test_a_key_may_be_bound_to_models(
    path: bytes, model: str | None, body: object, allowed: bool
) -> None:
    """By globs. Who names none is refused where a model would work: the server would choose."""
    who = Principal("i", "n", models=("llama-*", "phi"))
    asked = InferenceRequest(model=model)
    check_model(ANYBODY, path, asked, body)

    if allowed:
        check_model(who, path, asked, body)
    else:
        with pytest.raises(ModelNotAllowed) as refused:
            check_model(who, path, asked, body)
        assert "qwen" not in refused.value.detail


@pytest.mark.parametrize(
    ("endpoint", "most", "choices", "allowed"),
    [
        (CHAT, 100, 1, True),
        (CHAT, 101, 1, False),
        (CHAT, 50, 2, True),
        (CHAT, 51, 2, False),
        (CHAT, None, 1, False),
        (CHAT, -1, 1, False),
        (OTHER, None, 1, True),
        (MODELS, None, 1, True),
    ],
)
def test_an_answer_may_be_bounded(
    endpoint: Endpoint, most: int | None, choices: int, allowed: bool
) -> None:
    """All choices together; who says nothing could have an answer of any length."""
    who = Principal("i", "n", max_tokens=100)
    asked = InferenceRequest(model="m", max_tokens=most, choices=choices)
    check_length(ANYBODY, endpoint, asked)

    if allowed:
        check_length(who, endpoint, asked)
    else:
        with pytest.raises(InvalidRequest) as refused:
            check_length(who, endpoint, asked)
        assert refused.value.param == "max_tokens"
