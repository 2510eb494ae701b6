"""Which models a server has, and which all of them have together."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy import codec
from llmproxy.routing.model_list import (
    LARGEST_DOCUMENT,
    LONGEST_NAME,
    MOST_MODELS,
    documents_in,
    merged,
)
from llmproxy.routing.server import Server
from llmproxy.settings import Settings
from llmproxy.transport.interface import Call, Outgoing


class NoWay:
    """A transport that is not used."""

    async def open(self, outgoing: Outgoing, *, connect: float, answer: float) -> Call:
        raise AssertionError("nothing is asked here")

    async def aclose(self) -> None:
        """Have nothing to close."""

    def statistics(self) -> dict[str, int]:
        return {"open": 0, "idle": 0, "waiting": 0}


def server(url: str = "http://h", *listed: dict[str, Any]) -> Server:
    """Return the server that configuration would make, and what it lists; nothing = not told."""
    (upstream,) = Settings(upstreams=url).upstreams
    made = Server(upstream, NoWay())
    if listed:
        made.documents = documents_in(codec.dumps({"data": listed}))
    return made


def ids(documents: Any) -> list[str]:
    return [document["id"] for document in documents]


LLAMA = {"id": "llama", "object": "model", "created": 1, "owned_by": "vllm", "max_model_len": 8192}
PHI = {"id": "phi", "object": "model", "created": 2, "owned_by": "vllm"}


def test_the_models_of_all_servers_are_listed_once() -> None:
    """As first seen, with all that the engine says of them; aliases behind them."""
    servers = [server("vllm://a", LLAMA), server("vllm://b", {**LLAMA, "created": 7}, PHI)]

    found = merged(servers, ["fast"])

    assert found[:2] == [LLAMA, PHI]
    assert ids(found) == ["llama", "phi", "fast"]
    assert (found[2]["object"], found[2]["owned_by"]) == ("model", "llmproxy")


def test_an_alias_hides_the_model_of_its_name() -> None:
    """It is what a request for that name gets."""
    found = merged([server("vllm://a", LLAMA, PHI)], ["llama"])

    assert ids(found) == ["llama", "phi"]
    assert found[0]["owned_by"] == "llmproxy"


def test_who_gets_no_requests_lists_no_models() -> None:
    """Whether it is down or drained; the caller can ask for the former too."""
    down, drained = server("vllm://a", LLAMA), server("vllm://b", PHI)
    down.up, drained.draining = False, True

    assert merged([down, drained]) == []
    assert ids(merged([down, drained], only_healthy=False)) == ["llama"]


def test_declared_models_are_listed_alone() -> None:
    """Whatever else the engine has, and also when it has not told."""
    told = server("vllm://a;models=llama|mine", LLAMA, PHI)
    untold = server("vllm://a;models=mine")

    assert ids(merged([told])) == ["llama", "mine"]
    assert merged([told])[0]["max_model_len"] == 8192
    assert merged([untold]) == [{"id": "mine", "object": "model", "created": 0, "owned_by": "vllm"}]


def test_every_model_has_what_clients_of_openai_expect() -> None:
    """Ollama's own list has names and no ids."""
    (found,) = merged([server("ollama://a", {"name": "llama3:latest", "size": 5})])

    assert found.keys() >= {"id", "object", "created", "owned_by"}
    assert (found["id"], found["size"]) == ("llama3:latest", 5)


def test_a_list_is_bounded() -> None:
    """In models, in the length of a name, and in what is kept of each."""
    many = [{"id": f"m{number}"} for number in range(MOST_MODELS + 10)]
    large = {"id": "large", "owned_by": "me", "created": 5, "more": "x" * LARGEST_DOCUMENT}
    endless = {"id": "n" * (LONGEST_NAME + 1)}
    found = documents_in(codec.dumps({"data": [large, endless, *many]}))

    assert found is not None
    assert len(found) <= MOST_MODELS
    assert found["large"] == {"id": "large", "owned_by": "me", "created": 5}
    assert endless["id"] not in found


@given(
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["data", "models", "id", "name", "x"]), inner, max_size=4
            )
        ),
        max_leaves=20,
    ).map(codec.dumps)
)
def test_any_answer_is_a_list_or_none(body: bytes) -> None:
    """No engine can make reading its list fail."""
    found = documents_in(body)

    assert found is None or all(isinstance(name, str) for name in found)


def test_what_is_configured_decides() -> None:
    """A server with declared models gets requests for these alone."""
    one = server("vllm://a;models=mine", LLAMA)

    assert one.knows("mine") is True
    assert one.knows("llama") is False


def test_a_request_for_no_model_can_go_anywhere() -> None:
    """A list of files, say."""
    assert server().knows(None) is True


def test_nobody_can_tell_before_it_was_asked() -> None:
    """Neither that it has a model nor that it has not."""
    assert server("vllm://a").knows("llama") is None


@pytest.mark.parametrize("preset", ["vllm", "sglang", "ollama", "localai"])
def test_an_engine_that_refuses_other_names_has_what_it_lists(preset: str) -> None:
    """To send it another would be a request in vain."""
    one = server(f"{preset}://a", LLAMA)

    assert one.knows("llama") is True
    assert one.knows("phi") is False


@pytest.mark.parametrize("preset", ["tgi", "llamacpp", "lmstudio", "textgen"])
def test_an_engine_that_takes_any_name_may_have_it(preset: str) -> None:
    """It answers with the one model that it has loaded."""
    one = server(f"{preset}://a", LLAMA)

    assert one.knows("llama") is True
    assert one.knows("gpt-4o") is None


@pytest.mark.parametrize("url", ["azure://me", "anthropic://", "gemini://"])
def test_a_service_that_does_not_list_all_of_its_names_may_have_it(url: str) -> None:
    """Deployments, aliases, and what stands on a later page."""
    assert server(f"{url};key=k", LLAMA).knows("latest-and-greatest") is None


def test_behind_a_plain_url_its_list_tells_who_it_is() -> None:
    """Who owns the models is what engines tell apart by."""
    foreign = {"id": "gguf", "owned_by": "llamacpp"}

    assert server("http://a", LLAMA, PHI).knows("other") is False
    assert server("http://a", foreign).knows("other") is None
    assert server("http://a", LLAMA, foreign).knows("other") is None
    assert server("http://a", {"id": "untold"}).knows("other") is None


@pytest.mark.parametrize(
    ("url", "listed", "asked"),
    [
        ("ollama://a", "llama3:latest", "llama3"),
        ("ollama://a;models=llama3", "x", "llama3:latest"),
        ("gemini://;key=k", "models/gemini-pro", "gemini-pro"),
    ],
)
def test_some_write_their_names_in_two_ways(url: str, listed: str, asked: str) -> None:
    """The engine takes either."""
    assert server(url, {"id": listed}).knows(asked) is True
    assert server(url, {"id": listed}).knows(f"{asked}-2") is not True
