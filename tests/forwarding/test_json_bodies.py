"""JSON is read once, judged, and forwarded as the bytes that came."""

import asyncio
import gzip
import json

import pytest

from tests.support.client import RawClient, request_bytes
from tests.support.rig import proxied
from tests.support.upstream import ScriptedServer, json_answer, scripted

ECHO = json_answer({"ok": True})


async def refusal(request: bytes, **settings: object) -> tuple[int, str, ScriptedServer]:
    """Return status and code of what a caller is told, and the engine, which saw nothing."""
    async with scripted(ECHO) as engine, proxied(engine.upstream, **settings) as proxy:
        answer = await proxy.ask(request)
        line = await proxy.log.line()
    code = json.loads(answer.body)["error"]["code"]
    assert line["code"] == code
    assert line["outcome"] == "rejected"
    return answer.status, code, engine


def chunked(pieces: list[bytes], *, last: bool = True) -> bytes:
    head = request_bytes(headers=[(b"transfer-encoding", b"chunked")], body=b"")
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head + framed + (b"0\r\n\r\n" if last else b"")


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "m", "temperature": 1.0, "top_p": 1, "x": 1e2, "y": -0.0}',
        b'{"z":1,"a":2,"model":"m","unknown_field":{"k":[null,true]}}',
        b'{"model":"m","messages":[{"content":"\\u00e9\\ud83d\\ude00\\/ \xc3\xa9"}]}',
        b'{ "model" :\t"m" ,\r\n "stream" : false }\n',
        '{"model":"m","text":"naïve 😀"}'.encode(),
        b'{"model":"m","tools":[{"model":"a"},{"model":"b"}]}',
        b'{"max_tokens":18446744073709551616,"n":-1,"best_of":"5","model":"m"}',
        b'{"model":"m","prompt":"data: [DONE]\\n\\n\\r\\n0\\r\\n\\r\\n"}',
        b'{"model":"m","x":' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"model":"m","pad":"' + b"x" * 300_000 + b'"}',
    ],
    ids=[
        *("numbers", "order", "escapes", "spaces", "unicode", "models_of_tools", "odd_limits"),
        *("framing_in_a_prompt", "deep", "large"),
    ],
)
async def test_the_engine_gets_the_very_bytes(body: bytes) -> None:
    """What we do not change is not written anew: key order, numbers and escapes mean something."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(request_bytes(body=body))

    assert answer.status == 200
    assert engine.requests[0].body == body
    assert engine.requests[0].header(b"content-length") == b"%d" % len(body)


async def test_a_body_in_many_pieces_is_put_together() -> None:
    """However the caller cuts it, the engine gets one counted body."""
    pieces = [b'{"mo', b'del":', b'"m"', b"}"]

    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(chunked(pieces))

    assert answer.status == 200
    assert engine.requests[0].body == b"".join(pieces)
    assert engine.requests[0].header(b"transfer-encoding") is None


async def test_json_needs_no_content_type() -> None:
    """Where only JSON can be asked, it is read as JSON whatever it is called."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        await proxy.ask(
            request_bytes(
                headers=[(b"content-type", b"application/x-www-form-urlencoded")],
                body=b'{"model":"m1"}',
            )
        )
        line = await proxy.log.line()

    assert line["model"] == "m1"
    assert engine.requests[0].header(b"content-type") == b"application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b'{"model":', "invalid_json"),
        (b'{"model":"m"} x', "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        (b'{"x":NaN}', "invalid_json"),
        (b'{"x":"\xff"}', "invalid_json"),
        (b'{"x":"\\ud800"}', "invalid_json"),
        ('{"model":"m"}'.encode("utf-16"), "invalid_json"),
        (b'{"x":' + b"[" * 100_000, "invalid_json"),
        (b'{"x":"' + b"a" * 100_000, "invalid_json"),
        (b"null", "invalid_request"),
        (b"[]", "invalid_request"),
        (b'"text"', "invalid_request"),
        (b'{"model":7}', "invalid_request"),
        (b'{"model":["m"]}', "invalid_request"),
        (b'{"model":"a","model":"m"}', "invalid_request"),
        (b'{"model":"a","mod\\u0065l":"m"}', "invalid_request"),
        (b'{"model":"a","Model":"m"}', "invalid_request"),
    ],
    ids=[
        *("empty", "truncated", "trailing", "bom", "nan", "bad_utf8", "lone_surrogate", "utf16"),
        *("nested", "large_truncated", "null", "list", "string", "number_as_model"),
        *("list_as_model", "two_models", "escaped_second_model", "model_with_a_capital"),
    ],
)
async def test_what_is_no_json_object_is_refused(body: bytes, code: str) -> None:
    """The caller is told, and no engine is bothered."""
    status, told, engine = await refusal(request_bytes(body=body))

    assert (status, told) == (400, code)
    assert engine.accepted == 0


async def test_a_missing_model_is_the_engines_to_judge() -> None:
    """Where one model is served, many clients name none."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(request_bytes(body=b'{"messages":[]}'))

    assert answer.status == 200


async def test_a_compressed_body_is_refused() -> None:
    """A bomb cannot be told from a prompt without inflating it."""
    status, code, engine = await refusal(
        request_bytes(headers=[(b"content-encoding", b"gzip")], body=gzip.compress(b"{}"))
    )

    assert (status, code) == (415, "unsupported_encoding")
    assert engine.accepted == 0


async def test_identity_is_no_compression() -> None:
    """Saying that nothing was done to the body is harmless."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(request_bytes(headers=[(b"content-encoding", b"identity")]))

    assert answer.status == 200


async def test_a_declared_body_over_the_limit_is_refused_unread() -> None:
    """Who announces too much is answered before the first byte of it."""
    head = request_bytes(body=None, headers=[(b"content-length", b"101")])

    status, code, engine = await refusal(head, max_body=100)

    assert (status, code) == (413, "request_too_large")
    assert engine.accepted == 0


async def test_an_undeclared_body_is_refused_at_the_limit() -> None:
    """Nothing is kept beyond it, and the end of the body is not waited for."""
    status, code, engine = await refusal(
        chunked([b'{"x":"', b"a" * 60, b"a" * 60], last=False), max_body=100
    )

    assert (status, code) == (413, "request_too_large")
    assert engine.accepted == 0


async def test_a_body_of_exactly_the_limit_passes() -> None:
    """The limit is the largest that is allowed, not the smallest that is refused."""
    body = b'{"model":"' + b"m" * 88 + b'"}'
    assert len(body) == 100

    async with scripted(ECHO) as engine, proxied(engine.upstream, max_body=100) as proxy:
        counted = await proxy.ask(request_bytes(body=body))
        cut = await proxy.ask(chunked([body[:50], body[50:]]))

    assert counted.status == cut.status == 200


async def test_a_body_that_never_ends_is_given_up() -> None:
    """The clock is that of the whole body: bytes that drip do not renew it."""
    async with (
        scripted(ECHO) as engine,
        proxied(engine.upstream, timeout_body=0.3) as proxy,
        proxy.client() as client,
    ):
        client.send(request_bytes(body=None, headers=[(b"content-length", b"1000")]))
        drip = asyncio.create_task(dripping(client))
        answer = await client.answer()
        drip.cancel()

    assert answer.status == 408
    assert json.loads(answer.body)["error"]["code"] == "request_timeout"
    assert engine.accepted == 0


async def dripping(client: RawClient) -> None:
    while True:
        client.send(b"x")
        await asyncio.sleep(0.05)


async def test_a_body_that_stays_short_reaches_nobody() -> None:
    """A caller who leaves in the middle of its body has asked for nothing."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        async with proxy.client() as client:
            client.send(request_bytes(body=None, headers=[(b"content-length", b"1000")]) + b'{"x"')
        line = await proxy.log.line()

    assert line["outcome"] == "client_gone"
    assert line["status"] == 499
    assert engine.accepted == 0


async def test_json_for_a_path_that_is_only_passed_on_is_not_judged() -> None:
    """Of what we do not understand the engine is the judge."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(request_bytes(b"/v1/batches", body=b"not json"))

    assert answer.status == 200
    assert engine.requests[0].body == b"not json"


async def test_a_refusal_leaves_the_connection_usable() -> None:
    """A client library that keeps its connection may ask again on it."""
    async with (
        scripted(ECHO) as engine,
        proxied(engine.upstream) as proxy,
        proxy.client() as client,
    ):
        client.send(request_bytes(body=b"["))
        refused = await client.answer()
        client.send(request_bytes())
        answer = await client.answer()

    assert refused.status == 400
    assert answer.status == 200


async def test_an_error_has_the_shape_that_every_sdk_knows() -> None:
    """message, type, param, code, the content type, and the id under which it is logged."""
    async with scripted(ECHO) as engine, proxied(engine.upstream) as proxy:
        answer = await proxy.ask(request_bytes(body=b'{"model":7}'))
        line = await proxy.log.line()

    assert answer.header(b"content-type") == b"application/json"
    assert answer.header(b"x-request-id") == line["request_id"].encode()
    assert json.loads(answer.body) == {
        "error": {
            "message": "`model` must be a string.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "invalid_request",
        }
    }
