"""What is known about each engine, and what that opens."""

import re

import pytest

from llmproxy.protocol.endpoints import UNDERSTOOD, Paths, is_normal
from llmproxy.protocol.presets import GENERIC, PRESETS
from llmproxy.settings import Settings

CONTRACT = (
    "vllm:// sglang:// tgi:// llamacpp:// ollama:// lmstudio:// localai:// textgen://"
    " openai:// azure:// anthropic:// gemini:// cohere:// bedrock://"
)
PORTS = {"ollama": 11434, "vllm": 8000, "sglang": 30000, "lmstudio": 1234, "llamacpp": 8080}
PORTS |= {"localai": 8080, "tgi": 3000, "textgen": 5000}

every_preset = pytest.mark.parametrize("name", PRESETS)


def paths_of(url: str) -> Paths:
    return Paths(Settings(upstreams=url).upstreams)


def test_every_preset_of_the_contract_is_there() -> None:
    """And no other."""
    assert {f"{name}://" for name in PRESETS} == set(CONTRACT.split())
    assert {name: PRESETS[name].port for name in PORTS} == PORTS


@every_preset
def test_paths_are_in_normal_form(name: str) -> None:
    """Any other could never be asked for."""
    preset = PRESETS[name]
    given = [*preset.native, *preset.management, preset.api, *filter(None, [preset.health])]

    assert [path for path in given if not is_normal(path.encode())] == []


@every_preset
def test_no_native_path_is_a_common_one(name: str) -> None:
    """A path below /v1/ that every engine has is not one engine's own."""
    assert not {path.encode() for path in PRESETS[name].native} & UNDERSTOOD.keys()


@every_preset
def test_what_is_managed_is_not_open(name: str) -> None:
    """Except where a single path below a managed prefix is opened on purpose."""
    preset = PRESETS[name]

    assert not preset.native & set(preset.management)
    below = {p for p in preset.native for m in preset.management if p.startswith(f"{m}/")}
    assert below == (preset.native if name == "textgen" else set())


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("ollama://", "/api/chat"),
        ("ollama://", "/api/tags"),
        ("vllm://", "/tokenize"),
        ("sglang://", "/generate"),
        ("tgi://", "/generate_stream"),
        ("llamacpp://", "/completion"),
        ("lmstudio://", "/api/v0/chat/completions"),
        ("localai://", "/tts"),
        ("textgen://", "/v1/internal/token-count"),
    ],
)
def test_inference_passes(url: str, path: str) -> None:
    """Native paths are open where the engine is named, and nowhere else."""
    endpoint = paths_of(url).find(path.encode())

    assert endpoint is not None
    assert endpoint.native
    assert not endpoint.management
    elsewhere = paths_of("openai://").find(path.encode())
    assert elsewhere is None or not elsewhere.native


@pytest.mark.parametrize(
    ("url", "path"),
    [
        *(("ollama://", f"/api/{verb}") for verb in ("delete", "pull", "push", "create", "copy")),
        ("ollama://", "/api/blobs/sha256:29fdb92e57cf0827ded04ae6461b5931d01fa595843f55d36f5b27"),
        ("sglang://", "/flush_cache"),
        ("sglang://", "/update_weights_from_disk"),
        ("sglang://", "/server_info"),
        ("vllm://", "/sleep"),
        ("vllm://", "/wake_up"),
        ("vllm://", "/reset_prefix_cache"),
        ("vllm://", "/v1/load_lora_adapter"),
        ("llamacpp://", "/slots/0"),
        ("llamacpp://", "/lora-adapters"),
        ("lmstudio://", "/api/v1/models/load"),
        ("localai://", "/models/apply"),
        ("localai://", "/v1/backend/shutdown"),
        ("textgen://", "/v1/internal/model/load"),
        ("openai://", "/v1/organization/admin_api_keys"),
    ],
)
def test_management_needs_the_admin_key(url: str, path: str) -> None:
    """What changes a server is not for callers."""
    endpoint = paths_of(url).find(path.encode())

    assert endpoint is not None
    assert endpoint.management


@every_preset
def test_a_plain_url_guards_what_any_engine_might_have(name: str) -> None:
    """Behind `http://` may stand any of them, and below /v1/ everything passes."""
    managed = [path for path in PRESETS[name].management if path.startswith("/v1/")]
    paths = paths_of("http://gpu1:8000")

    assert not GENERIC.native
    for path in managed:
        endpoint = paths.find(path.encode())
        assert endpoint is not None
        assert endpoint.management


@every_preset
def test_a_preset_makes_an_upstream(name: str) -> None:
    """With the least that has to be said."""
    url = f"{name}://" + ("" if PRESETS[name].host else "us-east-1")

    [upstream] = Settings(upstreams=url).upstreams

    assert upstream.preset == name
    assert upstream.scheme == ("https" if PRESETS[name].tls else "http")
    assert re.fullmatch(r"[a-z0-9.-]+", upstream.host)
    assert upstream.port == PRESETS[name].port
