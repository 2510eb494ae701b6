"""Which paths are open, byte for byte, and what becomes of the rest."""

import json

import pytest

from tests.support.client import request_bytes
from tests.support.rig import Connection, proxied
from tests.support.upstream import json_answer, scripted

ECHO = json_answer({"ok": True})
ADMIN_KEY = "admin-Zk3v8Qp1"


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/../admin",
        b"/v1/./models",
        b"//v1/models",
        b"/v1//models",
        b"/v1/",
        b"/v1",
        b"/v1/%2e%2e/admin",
        b"/v1/%2E%2E/admin",
        b"/v1/.%2e/admin",
        b"/v1/files%2f7",
        b"/v1/files%5c7",
        b"/v1/files\\7",
        b"/v1/files/%00",
        b"/v1/files/%0d%0aX-Evil:1",
        b"/v1/files/%c0%ae%c0%ae/x",
        b"/v1/files/%c0%af",
        b"/v1/files/%ff",
        b"/v1/files;x",
        b"/v1/files/%3b",
        b"/v1/files/%3f",
        b"/v1/files/%23",
        b"/v1/files/%252e%252e",
        b"/v1/files/%zz",
        b"/v1/files/%",
        b"/v1/chat/completions/",
        b"/V1/chat/completions",
        b"/v1/models/%2f",
        b"/v1/models/a%2f..%2fb",
        b"/v1/models/a%2f",
        b"/",
        b"/admin",
        b"/favicon.ico",
        b"/v2/chat/completions",
        b"/api/chat",
        b"/health/",
        b"/metrics/x",
    ],
    ids=bytes.decode,
)
async def test_a_path_that_two_servers_could_read_differently_is_not_found(target: bytes) -> None:
    """No engine ever sees it."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(request_bytes(target))

    assert answer.status == 404
    assert json.loads(answer.body)["error"]["code"] == "not_found"
    assert engine.accepted == 0


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/chat/completions",
        b"/v1/files/file-abc123/content",
        b"/v1/fine_tuning/jobs?limit=2&after=%2Fx%00",
        b"/v1/assistants/a~b!c$d'(e)*f+g,h=i:j@k",
        b"/v1/files/na%C3%AFve%20name",
        b"/v1/something/nobody/has/heard/of",
        b"/v1/responses/resp_1/cancel",
        b"/v1/x?a=/../b;c",
    ],
    ids=bytes.decode,
)
async def test_a_path_in_normal_form_goes_on_byte_for_byte(target: bytes) -> None:
    """Escapes and the query are the engine's to read."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(request_bytes(target))

    assert answer.status == 200
    assert engine.requests[0].target == target


@pytest.mark.parametrize(
    "target",
    [b"/v1/models/meta-llama%2FLlama-3.3-70B", b"/v1/models/gpt-4o"],
    ids=bytes.decode,
)
async def test_the_path_of_a_model_goes_on_byte_for_byte(
    target: bytes, connection: Connection
) -> None:
    """Whoever looks at one asks the engine itself, unless routing knows it already."""
    if connection is Connection.ROUTED:
        return
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(request_bytes(target, method=b"GET", body=None))

    assert answer.status == 200
    assert engine.requests[0].target == target


async def test_an_absolute_target_chooses_no_destination(connection: Connection) -> None:
    """We are no forward proxy: the rest of such a target is ignored, or all of it refused."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(
            request_bytes(b"http://169.254.169.254/v1/models", method=b"GET", body=None)
        )

    if connection is not Connection.UVICORN:
        assert answer.status == 400
        assert engine.accepted == 0
    else:
        assert engine.requests[0].target == b"/v1/models"
        assert engine.requests[0].header(b"host") == b"127.0.0.1:%d" % engine.address[1]


async def test_another_base_takes_the_place_of_v1() -> None:
    """What stands behind the host in an upstream's URL is where its API begins."""
    async with scripted(ECHO) as engine, proxied(f"{engine.url}/openai/v1") as proxy:
        await proxy.ask(request_bytes(b"/v1/chat/completions?x=1"))

    assert engine.requests[0].target == b"/openai/v1/chat/completions?x=1"


def behind(preset: str, port: int) -> str:
    return f"{preset}://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("preset", "target"),
    [
        ("ollama", b"/api/chat"),
        ("ollama", b"/api/tags"),
        ("sglang", b"/generate"),
        ("llamacpp", b"/infill"),
        ("vllm", b"/tokenize"),
        ("tgi", b"/generate_stream"),
    ],
)
async def test_native_paths_are_open_with_their_preset(preset: str, target: bytes) -> None:
    """An engine's own inference API passes through when we know whose it is."""
    async with scripted(ECHO) as engine, proxied(behind(preset, engine.address[1])) as proxy:
        answer = await proxy.ask(request_bytes(target))

    assert answer.status == 200
    assert engine.requests[0].target == target


async def test_native_paths_of_another_engine_stay_closed() -> None:
    """Ollama's paths mean nothing to vLLM."""
    async with scripted(ECHO) as engine, proxied(behind("vllm", engine.address[1])) as proxy:
        answer = await proxy.ask(request_bytes(b"/api/generate"))

    assert answer.status == 404
    assert engine.accepted == 0


async def test_native_paths_go_to_the_engine_whose_they_are() -> None:
    """In a mixed fleet the rotation passes over the others."""
    async with scripted(ECHO) as ollama, scripted(ECHO) as vllm:
        first, second = behind("vllm", vllm.address[1]), behind("ollama", ollama.address[1])
        async with proxied(first, second) as proxy:
            for _ in range(3):
                await proxy.ask(request_bytes(b"/api/chat"))

    assert len(ollama.requests) == 3
    assert vllm.requests == []


MANAGEMENT = [
    ("ollama", b"DELETE", b"/api/delete"),
    ("ollama", b"POST", b"/api/pull"),
    ("ollama", b"HEAD", b"/api/blobs/sha256:abc"),
    ("sglang", b"POST", b"/flush_cache"),
    ("sglang", b"GET", b"/server_info"),
    ("vllm", b"POST", b"/v1/load_lora_adapter"),
    ("llamacpp", b"POST", b"/slots/0"),
    ("textgen", b"POST", b"/v1/internal/model/load"),
    ("vllm", b"DELETE", b"/v1/models/ft-abc"),
    ("vllm", b"POST", b"/v1/models"),
]


@pytest.mark.parametrize(("preset", "method", "target"), MANAGEMENT)
async def test_management_needs_the_admin_key(preset: str, method: bytes, target: bytes) -> None:
    """Whoever may ask a model may not change or stop the server; a wrong key is no key."""
    wrong = [(b"authorization", b"Bearer wrong-Zk3v8Qp1")]

    async with (
        scripted(ECHO) as engine,
        proxied(behind(preset, engine.address[1]), admin_key=ADMIN_KEY) as proxy,
    ):
        without = await proxy.ask(request_bytes(target, method=method))
        with_wrong = await proxy.ask(request_bytes(target, method=method, headers=wrong))

    assert without.status == with_wrong.status == 401
    assert engine.accepted == 0


@pytest.mark.parametrize(("preset", "method", "target"), MANAGEMENT)
async def test_the_admin_key_opens_management(preset: str, method: bytes, target: bytes) -> None:
    """And it stays with us."""
    key = [(b"authorization", b"Bearer " + ADMIN_KEY.encode())]

    async with (
        scripted(ECHO) as engine,
        proxied(behind(preset, engine.address[1]), admin_key=ADMIN_KEY) as proxy,
    ):
        answer = await proxy.ask(request_bytes(target, method=method, headers=key))

    assert answer.status == 200
    assert engine.requests[0].target == target
    assert ADMIN_KEY.encode() not in engine.requests[0].raw


async def test_without_an_admin_key_management_stays_closed() -> None:
    """No key configured means that nobody has it, not that everybody has."""
    empty = [(b"authorization", b"Bearer ")]

    async with scripted(ECHO) as engine, proxied(behind("ollama", engine.address[1])) as proxy:
        answer = await proxy.ask(request_bytes(b"/api/pull", headers=empty))

    assert answer.status == 401
    assert engine.accepted == 0


async def test_management_below_v1_is_guarded_behind_a_plain_url() -> None:
    """Nobody said which engine stands there, so every engine's is guarded."""
    async with scripted(ECHO) as engine, proxied(engine.url) as proxy:
        answer = await proxy.ask(request_bytes(b"/v1/load_lora_adapter"))

    assert answer.status == 401
    assert engine.accepted == 0
