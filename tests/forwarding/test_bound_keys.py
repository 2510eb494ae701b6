"""What a key may ask for, on the whole way of a request."""

import pytest

from llmproxy.types import Header
from tests.auth.making import bearer
from tests.support.client import request_bytes
from tests.support.rig import proxied
from tests.support.upstream import json_answer, scripted

KEY = "Kq3-vT9x-4Lw8-ZZ12"


async def test_a_key_is_held_to_its_models_in_every_request_of_a_connection() -> None:
    """Also where the head is the one that was let in before, and only the body is another."""
    headers = [bearer(KEY), (b"content-type", b"application/json")]
    async with (
        scripted(json_answer({})) as engine,
        proxied(engine.upstream, middleware="auth", keys=f"ada:{KEY};models=llama") as proxy,
        proxy.client() as client,
    ):
        answers = []
        for model in ("llama", "qwen-", "llama", "llama", "qwen-"):
            client.send(request_bytes(headers=headers, body=b'{"model":"%b"}' % model.encode()))
            answers.append((await client.answer()).status)

    assert answers == [200, 403, 200, 200, 403]
    assert len(engine.requests) == 3


OUTER = (b"content-type", b"multipart/form-data; boundary=outer")
INNER = (b"content-type", b"multipart/form-data; boundary=inner")


def model(name: bytes, boundary: bytes) -> bytes:
    return b'--%b\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n' % (boundary, name)


# At the one boundary it names the one model, at the other one the other.
TWO_FORMS = (
    model(b"llama", b"outer")
    + b'--outer\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    + model(b"qwen", b"inner")
    + b"--inner--\r\n\r\n--outer--\r\n"
)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([OUTER], 200),
        ([INNER], 403),
        ([INNER, OUTER], 400),
        ([OUTER, INNER], 400),
        ([OUTER, (b"content-encoding", b"gzip")], 403),
    ],
    ids=["one", "the_other", "the_first_hides", "the_second_hides", "encoded"],
)
async def test_a_form_that_can_be_taken_apart_in_two_ways(
    headers: list[Header], status: int
) -> None:
    """A key for one model must not get another one by showing us what the engine will not see."""
    async with (
        scripted(json_answer({})) as engine,
        proxied(engine.upstream, middleware="auth", keys=f"ada:{KEY};models=llama") as proxy,
    ):
        answer = await proxy.ask(
            request_bytes(
                b"/v1/audio/transcriptions", headers=[bearer(KEY), *headers], body=TWO_FORMS
            )
        )

    assert answer.status == status
    assert len(engine.requests) == (status == 200)
