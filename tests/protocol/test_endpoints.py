"""Which paths are open, and which could be read in two ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.protocol.endpoints import NATIVE, UNDERSTOOD, Paths, is_normal
from llmproxy.records import Ending, Upstream

OLLAMA = Upstream(
    "ollama",
    "http",
    "localhost",
    11434,
    native=frozenset({"/api/chat", "/api/tags"}),
    management=("/api/delete",),
)
VLLM = Upstream("vllm", "http", "localhost", 8000, management=("/v1/load_lora_adapter",))
PATHS = Paths([OLLAMA, VLLM])


@pytest.mark.parametrize("path", UNDERSTOOD, ids=bytes.decode)
def test_an_understood_path_is_found(path: bytes) -> None:
    """Byte for byte, and normal enough to be passed on."""
    assert PATHS.find(path) is UNDERSTOOD[path]
    assert is_normal(path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        pytest.param(b"/v1/models/llama-3.3-70b", "models", id="one_model"),
        pytest.param(b"/v1/models/meta-llama%2FLlama-3.3-70B", "models", id="slash_in_an_id"),
        pytest.param(b"/v1/models/meta-llama%2fLlama-3.3-70B", "models", id="small_slash_in_an_id"),
        pytest.param(b"/v1/models/meta-llama/Llama-3.3-70B", "models", id="plain_slash_in_an_id"),
        pytest.param(b"/v1/files", "other", id="unknown"),
        pytest.param(b"/v1/files/file-abc/content", "other", id="unknown_and_deep"),
        pytest.param(b"/v1/files/a%20b", "other", id="escaped_space"),
        pytest.param(b"/v1/files/%E6%97%A5", "other", id="escaped_kanji"),
        pytest.param(b"/v1/files/a:b@c,d", "other", id="marks"),
        pytest.param(b"/v1/files/a..b", "other", id="dots_in_a_name"),
        pytest.param(b"/api/tags", "native", id="native"),
        pytest.param(b"/api/chat", "chat", id="native_and_understood"),
        pytest.param(b"/api/delete", "management", id="management"),
        pytest.param(b"/api/delete/all", "management", id="below_management"),
        pytest.param(b"/v1/load_lora_adapter", "management", id="management_under_v1"),
    ],
)
def test_an_open_path(path: bytes, name: str) -> None:
    """What is not understood under /v1/ is passed through; native paths as their preset says."""
    found = PATHS.find(path)

    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/",
        b"*",
        b"/v1",
        b"/v1/",
        b"v1/models",
        b"/V1/models",
        b"/v2/models",
        b"/admin",
        b"/v1/../admin",
        b"/v1/./models",
        b"/v1/models/..",
        b"/v1/models/.",
        b"/v1/models/../files",
        b"//v1/models",
        b"/v1//models",
        b"/v1/models/",
        b"/v1/chat/completions/",
        b"/v1/%2e%2e/admin",
        b"/v1/%2E%2E/admin",
        b"/v1/.%2e/admin",
        b"/v1/%2e/models",
        b"/v1%2fmodels",
        b"/v1%2Fmodels",
        b"/v1/chat%2fcompletions",
        b"/v1/models/..%2fadmin",
        b"/v1/models/a%2f..%2f..%2fadmin",
        b"/v1/models/%2fadmin",
        b"/v1/models/a%2f",
        b"/v1/models/a%2f%2fb",
        b"/v1/%5cadmin",
        b"/v1/..%5cadmin",
        b"/v1/\\admin",
        b"/v1/a%00b",
        b"/v1/a%0d%0ahost:b",
        b"/v1/a%0Ab",
        b"/v1/a%7fb",
        b"/v1/a\x00b",
        b"/v1/a b",
        b"/v1/a\tb",
        b"/v1/%c0%af",
        b"/v1/%c0%ae%c0%ae/admin",
        b"/v1/%e0%80%af",
        b"/v1/%ed%a0%80",
        b"/v1/%ff",
        b"/v1/\xc3\xa9",
        b"/v1/models;x",
        b"/v1/models;x=y/z",
        b"/v1/%3bx",
        b"/v1/a%3fb",
        b"/v1/a%23b",
        b"/v1/a%252fb",
        b"/v1/a%25",
        b"/v1/a%",
        b"/v1/a%2",
        b"/v1/a%zz",
        b"/v1/a?b",
        b"/v1/a#b",
        b"/v1/a|b",
        b'/v1/a"b',
        b"/v1/a<b",
        b"/v1/a[b]",
        b"/v1/a{b}",
        b"/v1/a^b",
        b"/v1/a`b",
        b"http://elsewhere/v1/models",
        b"/api/chat/",
        b"/api/chatter",
        b"/api/%63hat",
        b"/api/delete/../tags",
        b"/api/deleted",
        b"/api/show",
        b"/generate",
    ],
    ids=ascii,
)
def test_a_closed_path(path: bytes) -> None:
    """Nothing is served where two servers could disagree, or where nobody said there is."""
    assert PATHS.find(path) is None


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/%63hat/completions",
        b"/v1/chat/completion%73",
        b"/v1/%6coad_lora_adapter",
        b"/v1/%6Dodels/a",
        b"/v1/files/%7Ea",
        b"/v1/files/a%2Db",
    ],
    ids=bytes.decode,
)
def test_a_letter_in_disguise_is_refused(path: bytes) -> None:
    """An escape of what needs none would pass by us as one path and arrive as another."""
    assert PATHS.find(path) is None
    assert not is_normal(path)


def test_native_paths_are_open_only_where_an_engine_has_them() -> None:
    """Ollama's paths do not exist in front of vLLM."""
    assert Paths([VLLM]).find(b"/api/chat") is None
    assert Paths([VLLM]).find(b"/api/delete") is None


def test_a_native_stream_ends_as_its_engine_ends_it() -> None:
    """Ollama's own chat is NDJSON, its OpenAI one is not."""
    assert NATIVE[b"/api/chat"].ending is Ending.NDJSON
    assert UNDERSTOOD[b"/v1/chat/completions"].ending is Ending.CHAT


def test_management_is_marked() -> None:
    """What changes an engine is told apart from what uses it."""
    deleted, used = PATHS.find(b"/api/delete"), PATHS.find(b"/api/tags")

    assert deleted is not None and deleted.management and deleted.native
    assert used is not None and not used.management


@given(
    st.lists(
        st.sampled_from(
            [b"/", b"v1", b"models", b".", b"..", b"%2e", b"%2F", b"%5c", b"a", b"%41", b"\\", b";"]
        ),
        max_size=12,
    ).map(b"".join)
)
def test_what_is_normal_stays_where_it_is(path: bytes) -> None:
    """Unescaping a normal path, or resolving its dots, does not lead out of its folder."""
    if is_normal(path):
        plain = path.replace(b"%2F", b"/").replace(b"%2e", b".").replace(b"%41", b"A")
        parts = plain.split(b"/")[1:]

        assert b"" not in parts and b"." not in parts and b".." not in parts
        assert b"\\" not in plain and b"%5c" not in plain


@pytest.mark.parametrize("path", [b"/v1/models", b"/v1/models/a", b"/v1/models/a%2Fb"])
@pytest.mark.parametrize(
    ("method", "managed"),
    [
        *(("GET", False), ("HEAD", False)),
        *(("POST", True), ("PUT", True), ("PATCH", True), ("DELETE", True), ("OPTIONS", True)),
    ],
)
def test_to_change_models_is_management(path: bytes, method: str, managed: bool) -> None:
    """Whoever may look at them may not delete one with our credential."""
    found = PATHS.find(path, method)

    assert found is not None
    assert found.management is managed
    assert found.name == ("management" if managed else "models")
