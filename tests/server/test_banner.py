"""What `serve` says when it is up."""

import json
import shlex

import pytest

from llmproxy import demo_upstream
from llmproxy.server.banner import DEMO_MODEL, banner, curl_line
from llmproxy.settings import Settings


def test_it_says_what_is_there_and_what_is_not() -> None:
    """Address, upstreams, layers, and what nobody has switched on."""
    settings = Settings(upstreams="big=http://gpu1:8000/v1;key=c4n4ry", middleware="")

    text = banner(settings, "http://127.0.0.1:4000")

    assert "http://127.0.0.1:4000" in text
    assert "big" in text
    assert "http://gpu1:8000/v1" in text
    assert "the frame alone" in text
    assert all(word in text for word in ("auth", "admin API", "TLS", "CORS"))
    assert "curl" not in text
    assert "c4n4ry" not in text


def test_what_is_on_is_not_called_off() -> None:
    """The list is made from the settings."""
    settings = Settings(
        upstreams="http://a",
        admin_key="kF9-2wq",
        cors_origins="*",
        host="unix:/run/x.sock",
        middleware="llmproxy.middleware.errors:ErrorsMiddleware",
    )

    text = banner(settings, "unix:/run/x.sock")

    assert not any(word in text for word in ("admin API", "TLS", "CORS", "kF9-2wq"))
    assert "llmproxy.middleware.errors:ErrorsMiddleware" in text


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://127.0.0.1:4000", "http://127.0.0.1:4000/v1/chat/completions"),
        ("http://0.0.0.0:4000", "http://localhost:4000/v1/chat/completions"),
        ("https://[::]:443", "https://localhost:443/v1/chat/completions"),
        ("http://[::1]:4000", "http://[::1]:4000/v1/chat/completions"),
        ("unix:/run/x.sock", "http://localhost/v1/chat/completions"),
    ],
)
def test_the_curl_line_can_be_pasted(address: str, url: str) -> None:
    """One line, one command, a body that is JSON."""
    line = curl_line(address)

    words = shlex.split(line)
    assert "\n" not in line
    assert words[:2] == ["curl", "-N"]
    assert url in words
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == DEMO_MODEL
    assert body["stream"] is True
    assert ("--unix-socket" in words) == address.startswith("unix:")


def test_the_demo_is_shown_how_to_be_tried() -> None:
    """With the model that it really has."""
    settings = Settings(upstreams="demo=http://127.0.0.1:5000")

    assert curl_line("http://127.0.0.1:4000") in banner(settings, "http://127.0.0.1:4000")
    assert DEMO_MODEL == demo_upstream.MODEL
