"""What a key may ask for, on the whole way of a request."""

from tests.auth.making import bearer
from tests.support.client import request_bytes
from tests.support.rig import proxied
from tests.support.upstream import json_answer, scripted


async def test_a_key_is_held_to_its_models_in_every_request_of_a_connection() -> None:
    """Also where the head is the one that was let in before, and only the body is another."""
    key = "Kq3-vT9x-4Lw8-ZZ12"
    headers = [bearer(key), (b"content-type", b"application/json")]
    async with (
        scripted(json_answer({})) as engine,
        proxied(engine.upstream, middleware="auth", keys=f"ada:{key};models=llama") as proxy,
        proxy.client() as client,
    ):
        answers = []
        for model in ("llama", "qwen-", "llama", "llama", "qwen-"):
            client.send(request_bytes(headers=headers, body=b'{"model":"%b"}' % model.encode()))
            answers.append((await client.answer()).status)

    assert answers == [200, 403, 200, 200, 403]
    assert len(engine.requests) == 3
