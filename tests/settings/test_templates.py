"""The grammar of LLMPROXY_UPSTREAMS where it says how servers are found."""

import importlib.util
from pathlib import Path

import pytest

from llmproxy.records import Upstream
from llmproxy.settings import Settings, SettingsError
from llmproxy.settings.faults import Refused
from llmproxy.settings.upstreams import described, has_key, read_server_file, read_upstreams, url_of


def template(text: str) -> Upstream:
    [upstream] = read_upstreams(text, {})
    return upstream


@pytest.mark.parametrize(
    ("text", "place", "server_name", "api"),
    [
        ("dns+http://gpu:8000", ("http", "gpu", 8000), "gpu", "/v1"),
        ("dns+http://gpu", ("http", "gpu", 80), "gpu", "/v1"),
        ("dns+https://gpu.example/llm", ("https", "gpu.example", 443), "gpu.example", "/llm/v1"),
        ("DNS+vLLM://GPU", ("http", "gpu", 8000), "gpu", "/v1"),
        ("dns+vllm://gpu:443", ("https", "gpu", 443), "gpu", "/v1"),
        ("srv+http://_llm._tcp.ex.com", ("http", "_llm._tcp.ex.com", 0), "ex.com", "/v1"),
        ("srv+https://_llm._tcp.ex.com/v2", ("https", "_llm._tcp.ex.com", 0), "ex.com", "/v2"),
        ("srv+http://llm.service.consul", ("http", "llm.service.consul", 0), "llm.service.consul",
         "/v1"),
        ("consul+vllm://agent/llm", ("http", "agent", 8500), "", "/v1"),
        ("consul+https://10.0.0.1:8501/llm/", ("https", "10.0.0.1", 8501), "", "/v1"),
        ("consul+http://[::1]/llm", ("http", "::1", 8500), "", "/v1"),
    ],
)  # fmt: skip
def test_a_template_says_where_to_look(
    text: str, place: tuple[str, str, int], server_name: str, api: str
) -> None:
    """And what each server that is found there is like."""
    found = template(text)

    assert found.found_by == text.partition("+")[0].lower()
    assert (found.scheme, found.host, found.port) == place
    assert (found.server_name, found.api) == (server_name, api)
    assert found.path == ("llm" if found.found_by == "consul" else "")


def test_a_preset_says_what_is_found() -> None:
    """As it does for a server that is named."""
    found, named = template("dns+vllm://gpu"), template("vllm://gpu")

    for field in ("preset", "health", "native", "management", "metrics", "any_model"):
        assert getattr(found, field) == getattr(named, field)


def test_the_key_of_a_consul_template_is_for_consul() -> None:
    """No server gets it, and nobody is shown it."""
    found = template("pool=consul+http://agent/llm;key=c4n4ry")

    assert found.credentials == ((b"x-consul-token", b"c4n4ry"),)
    assert has_key(found)
    assert described(found) == "pool=consul+http://agent:8500/llm;key=***"


@pytest.mark.parametrize(
    "text",
    [
        "pool=dns+http://gpu:8000/v1;weight=2",
        "pool=srv+https://_llm._tcp.ex.com/v1",
        "pool=consul+http://agent:8500/llm",
    ],
)
def test_a_template_is_described_in_its_own_grammar(text: str) -> None:
    """What is described can be set again."""
    assert described(template(text)) == text


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("etcd+http://a", "unknown way to find servers etcd+"),
        ("dns+ftp://a", "unknown scheme ftp://"),
        ("dns+openai://a", "openai:// is one service"),
        ("dns+azure://a", "azure:// is one service"),
        ("dns+http://", "must name a host"),
        ("dns+vllm://", "must name a host"),
        ("dns+vllm://:8000", "must name a host"),
        ("dns+http://10.0.0.1", "this is an address"),
        ("dns+http://[::1]", "this is an address"),
        ("srv+http://0x7f.1", "this is an address"),
        ("dns+http://metadata.google.internal", "never called"),
        ("consul+http://169.254.169.254/llm", "never called"),
        ("srv+http://_llm._tcp.a:80", "stands in its records"),
        ("consul+http://agent", "the name of a service"),
        ("consul+http://agent/a/b", "the name of a service"),
        ("consul+http://agent/llm?tag=a", "query"),
        ("consul+http://agent/l%20m", "the name of a service"),
        ("dns+http://gpu;proxy=http://p", "servers that are looked for"),
        ("dns+http://gpu;ca=/etc/hosts", "`ca`"),
        ("file:", "must be file:"),
        ("file:/no/such/file", "cannot be read"),
        ("file:/dev/null;weight=2", "options stand in the file"),
    ],
)
def test_what_cannot_be_looked_for_is_refused(text: str, cure: str) -> None:
    """At the start, with the reason."""
    with pytest.raises(SettingsError, match=cure.replace("+", r"\+")):
        Settings(upstreams=text)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and not when the first name is to be looked up."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "dns" else find_spec(name)
    )

    with pytest.raises(SettingsError, match=r"pip install 'llmproxy\[srv\]'"):
        Settings(upstreams="srv+http://_llm._tcp.a")


def listed(text: str, **environ: str) -> tuple[Upstream, ...]:
    return read_server_file(Upstream("pool", "", "", 0), text.encode(), environ)


@pytest.mark.parametrize(
    "text",
    [
        "big=http://a:1;weight=2\nvllm://b\n",
        "\ufeff# servers\r\n\r\nbig=http://a:1;weight=2,\r\n  # the other\r\n  vllm://b\r\n",
        "big=http://a:1;weight=2, vllm://b",
        '[{"name": "big", "url": "http://a:1", "weight": 2}, "vllm://b"]',
    ],
)
def test_a_file_lists_servers(text: str) -> None:
    """One in a line or between commas, or as JSON; lines that begin with # are left out."""
    big, other = listed(text)

    assert (big.name, big.host, big.port, big.weight) == ("big", "a", 1, 2)
    assert (other.host, other.preset) == ("b", "vllm")


def test_a_listed_server_keeps_its_name_when_another_comes() -> None:
    """Its place in the file is not what it is called by, nor is its address."""
    [alone] = listed("http://secret-host")
    _, again = listed("http://other\nhttp://secret-host")

    assert alone == again
    assert alone.name.startswith("pool-") and "secret" not in alone.name


def test_a_listed_server_may_take_its_key_from_the_environment() -> None:
    """As one in the variable may."""
    [found] = listed("http://a;key=env:K", K="k")

    assert found.credentials == ((b"authorization", b"Bearer k"),)


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("http://a\nhttp://a", "two upstreams"),
        ("http://a\ngpu1:8000;key=c4n4ry", "upstream 2: must be a URL"),
        ("[", "not valid JSON"),
        ("dns+http://a", "a file lists servers"),
        ("file:/etc/other", "a file lists servers"),
        ("http://169.254.169.254", "never called"),
    ],
)
def test_a_broken_file_is_refused_as_a_whole(text: str, cure: str) -> None:
    """With the reason, which shows nothing of what the file holds."""
    with pytest.raises(Refused, match=cure.replace("+", r"\+")) as refused:
        listed(text)

    assert "c4n4ry" not in str(refused.value)


def test_a_comment_alone_lists_no_server() -> None:
    """That is how one says that there is none."""
    assert listed("# none today") == ()


def test_a_file_is_read_at_the_start(tmp_path: Path) -> None:
    """So that a broken one stops it; the path may be written in two ways."""
    path = tmp_path / "servers"
    path.write_text("http://a")

    assert url_of(template(f"file:{path}")) == url_of(template(f"file://{path}")) == f"file:{path}"
    path.write_text("gpu:8000;key=c4n4ry")
    with pytest.raises(SettingsError, match="upstream 1: must be a URL") as refused:
        Settings(upstreams=f"pool=file:{path}")
    assert "c4n4ry" not in str(refused.value)
