"""Who pays for a prompt whose answer came too late: its caller, who had set the time itself."""

from pathlib import Path

import pytest

from tests.support.client import request_bytes
from tests.support.rig import proxied
from tests.support.upstream import Exchange, Script, scripted

OWN, LATER = b"0.3", b"30"  # seconds that a caller gives its request
BODY = b'{"model":"llama","max_tokens":10,"messages":[{"role":"user","content":"Hello there."}]}'
LAYERS = "rate_limit,routing"
STREAM = BODY.replace(b"{", b'{"stream":true,', 1)


async def silent(exchange: Exchange) -> None:
    """Read the question, and say nothing."""
    await exchange.request()
    await exchange.closed()


async def only_a_head(exchange: Exchange) -> None:
    """Begin an answer, and say nothing in it."""
    await exchange.request()
    exchange.begin()
    await exchange.closed()


async def only_comments(exchange: Exchange) -> None:
    """Say nothing but that something will come."""
    await exchange.request()
    exchange.begin()
    exchange.chunk(b": soon\n\n")
    await exchange.closed()


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize(
    ("script", "body", "own", "ours", "charged"),
    [
        pytest.param(silent, BODY, OWN, {}, True, id="own"),
        pytest.param(silent, STREAM, OWN, {}, True, id="own_of_a_stream"),
        pytest.param(only_a_head, STREAM, OWN, {}, True, id="own_behind_a_head"),
        pytest.param(only_comments, STREAM, OWN, {"retries": 0}, True, id="own_amid_comments"),
        pytest.param(silent, BODY, OWN, {"timeout_total": 30}, True, id="own_before_ours"),
        pytest.param(silent, BODY, LATER, {"timeout_total": 0.3}, False, id="ours"),
        pytest.param(silent, BODY, None, {"timeout_total": 0.3}, False, id="ours_alone"),
        pytest.param(silent, BODY, LATER, {"timeout_answer": 0.3}, False, id="of_an_answer"),
        pytest.param(silent, STREAM, LATER, {"timeout_first_byte": 0.3}, False, id="of_a_byte"),
        pytest.param(
            only_a_head, STREAM, LATER, {"timeout_first_byte": 0.3}, False, id="behind_a_head"
        ),
    ],
)
async def test_whose_own_time_is_over_is_charged_the_prompt(
    script: Script,
    body: bytes,
    own: bytes | None,
    ours: dict[str, float],
    charged: bool,
    store: str,
    tmp_path: Path,
) -> None:
    """And not one for whom we, or the server, were too slow."""
    url = f"sqlite://{tmp_path}/store.db" if store == "sqlite" else store
    headers = [(b"x-llmproxy-timeout", own)] if own is not None else []
    settings = {"limits": "100000 tok/day", "store": url, "retries": 0, **ours}
    async with scripted(script) as engine, proxied(engine.upstream, **settings) as proxy:
        await proxy.asked(request_bytes(headers=headers, body=body))
        line = await proxy.log.line()

    assert line["code"] == "upstream_timeout"
    assert ("prompt_tokens" in line and line["prompt_tokens"] > 0) is charged


async def test_the_time_may_be_over_for_another_attempt() -> None:
    """The caller is told of the first, and has left all the same."""
    settings = {"limits": "100000 tok/day", "first_token_limit": 0.1, "middleware": LAYERS}
    headers = [(b"x-llmproxy-timeout", b"0.5")]
    async with (
        scripted(silent) as one,
        scripted(silent) as other,
        proxied(f"{one.url},{other.url}", **settings) as proxy,
    ):
        await proxy.asked(request_bytes(headers=headers, body=STREAM))
        line = await proxy.log.line()

    assert (line["code"], line["attempts"]) == ("upstream_timeout", 2)
    assert line["prompt_tokens"] > 0
