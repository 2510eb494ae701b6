"""The grammar of LLMPROXY_UPSTREAMS."""

from pathlib import Path

import pytest

from llmproxy.records import Upstream
from llmproxy.settings import Settings, SettingsError
from llmproxy.settings.upstreams import read_upstreams
from tests.support.tls import Authority


def one(text: object, **environ: str) -> Upstream:
    [upstream] = read_upstreams(text, environ)
    return upstream


@pytest.mark.parametrize(
    ("url", "place", "root", "api"),
    [
        pytest.param("http://gpu1:8000", ("http", "gpu1", 8000), "", "/v1", id="host_and_port"),
        pytest.param("http://gpu1", ("http", "gpu1", 80), "", "/v1", id="default_port"),
        pytest.param("https://gpu1", ("https", "gpu1", 443), "", "/v1", id="default_tls_port"),
        pytest.param("HTTP://GPU1:8000/", ("http", "gpu1", 8000), "", "/v1", id="upper_case"),
        pytest.param("http://[::1]:8000", ("http", "::1", 8000), "", "/v1", id="ipv6"),
        pytest.param("http://gpu_1:8000", ("http", "gpu_1", 8000), "", "/v1", id="compose_name"),
        pytest.param("http://h/v1", ("http", "h", 80), "", "/v1", id="base_url"),
        pytest.param("http://h/v1/", ("http", "h", 80), "", "/v1", id="base_url_with_slash"),
        pytest.param("http://h/api/v2", ("http", "h", 80), "/api", "/api/v2", id="other_version"),
        pytest.param(
            "https://h/openai/v1", ("https", "h", 443), "/openai", "/openai/v1", id="below_openai"
        ),
        pytest.param(
            "https://h/v1beta/openai", ("https", "h", 443), "", "/v1beta/openai", id="gemini_style"
        ),
        pytest.param("http://h/team/a", ("http", "h", 80), "/team/a", "/team/a/v1", id="prefix"),
        pytest.param(
            "http://h/v1x/y", ("http", "h", 80), "/v1x/y", "/v1x/y/v1", id="not_at_the_end"
        ),
        pytest.param("vllm://gpu1", ("http", "gpu1", 8000), "", "/v1", id="vllm"),
        pytest.param("vllm://gpu1:443", ("https", "gpu1", 443), "", "/v1", id="preset_on_443"),
        pytest.param("ollama://", ("http", "127.0.0.1", 11434), "", "/v1", id="local_preset"),
        pytest.param("openai://", ("https", "api.openai.com", 443), "", "/v1", id="hosted_preset"),
        pytest.param(
            "azure://res", ("https", "res.openai.azure.com", 443), "", "/openai/v1", id="azure"
        ),
        pytest.param(
            "azure://ai.example", ("https", "ai.example", 443), "", "/openai/v1", id="azure_domain"
        ),
        pytest.param(
            "bedrock://us-east-1",
            ("https", "bedrock-runtime.us-east-1.amazonaws.com", 443),
            "",
            "/openai/v1",
            id="bedrock_region",
        ),
        pytest.param("sglang://h/llm", ("http", "h", 30000), "/llm", "/llm/v1", id="preset_prefix"),
    ],
)
def test_a_url_says_where_and_below_what(
    url: str, place: tuple[str, str, int], root: str, api: str
) -> None:
    """A path that ends in a version stands in the place of /v1; any other is a prefix."""
    upstream = one(url)

    assert (upstream.scheme, upstream.host, upstream.port) == place
    assert (upstream.root, upstream.api) == (root, api)


@pytest.mark.parametrize("text", ["unix:/run/vllm.sock", "unix:///run/vllm.sock"])
def test_a_socket_may_be_written_in_two_ways(text: str) -> None:
    """With and without the two slashes of a URL."""
    upstream = one(text)

    assert (upstream.scheme, upstream.path, upstream.api) == ("unix", "/run/vllm.sock", "/v1")


def test_names_are_given_or_counted() -> None:
    """An unnamed upstream is called by its position, so adding a name to one renames no other."""
    upstreams = read_upstreams("http://a, big=http://b ,http://c,", {})

    assert [upstream.name for upstream in upstreams] == ["upstream-1", "big", "upstream-3"]


def test_options_follow_the_url() -> None:
    """A list in an option uses |."""
    upstream = one(
        "big=http://gpu1:8000;models=a|b/c;weight=3;key=sk-9;max_inflight=8;tags=eu|fast"
    )

    assert upstream.models == ("a", "b/c")
    assert upstream.weight == 3
    assert upstream.credentials == ((b"authorization", b"Bearer sk-9"),)
    assert upstream.max_inflight == 8
    assert upstream.tags == {"eu", "fast"}


@pytest.mark.parametrize("url", ["http://a", "vllm://a", "sglang://a", "unix:/a"])
def test_an_engine_may_be_told_the_class_of_a_caller(url: str) -> None:
    """If it is one that schedules by classes, or may be."""
    assert one(f"{url};priority=on").priority
    assert not one(f"{url};priority=off").priority
    assert not one(url).priority
    assert one([{"url": url, "priority": True}]).priority


@pytest.mark.parametrize(
    "text",
    [
        '[{"name": "a", "url": "http://x", "key": "k,1;2", "models": ["m"]}]',
        '{"a": {"url": "http://x", "key": "k,1;2", "models": "m"}}',
        [{"name": "a", "url": "http://x", "key": "k,1;2", "models": ("m",)}],
        {"a": {"url": "http://x", "key": "k,1;2", "models": ["m"]}},
    ],
    ids=["json_list", "json_table", "python_list", "python_table"],
)
def test_json_and_python_are_taken_too(text: object) -> None:
    """There a value may hold what the short form cannot."""
    upstream = one(text)

    assert (upstream.name, upstream.models) == ("a", ("m",))
    assert upstream.credentials == ((b"authorization", b"Bearer k,1;2"),)


def test_a_key_is_read_from_where_it_lies(tmp_path: Path) -> None:
    """From a variable or a file; the blank line that editors add is no part of it."""
    path = tmp_path / "key"
    path.write_text("sk-file\n")

    assert one("http://a;key=env:K", K="sk-env").credentials[0][1] == b"Bearer sk-env"
    assert one(f"http://a;key=file:{path}").credentials[0][1] == b"Bearer sk-file"


def test_each_preset_sends_the_key_in_its_own_header() -> None:
    """Azure and Anthropic do not take a bearer."""
    assert one("azure://r;key=k").credentials == ((b"api-key", b"k"),)
    assert one("anthropic://;key=k").credentials == (
        (b"x-api-key", b"k"),
        (b"anthropic-version", b"2023-06-01"),
    )
    assert one("gemini://;key=k").credentials == ((b"authorization", b"Bearer k"),)


def test_certificates_belong_to_tls(authority: Authority) -> None:
    """Naming one makes a preset speak TLS."""
    cert = authority.client_file("client.example")

    upstream = one(f"vllm://gpu1:8000;ca={authority.file};cert={cert}")

    assert (upstream.scheme, upstream.port) == ("https", 8000)
    assert (upstream.ca, upstream.cert) == (authority.file, cert)


def test_upstreams_made_in_python_are_taken_as_they_are() -> None:
    """Whoever builds the record knows what they do; only the names have to differ."""
    upstream = Upstream("a", "http", "gpu", 80)

    assert Settings(upstreams=[upstream]).upstreams == (upstream,)
    with pytest.raises(SettingsError, match="two upstreams"):
        Settings(upstreams=(upstream, upstream))


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        pytest.param("gpu1:8000", "must be a URL", id="no_scheme"),
        pytest.param("localhost", "must be a URL", id="only_a_name"),
        pytest.param("ftp://a", "unknown scheme ftp://", id="unknown_scheme"),
        pytest.param("http://", "must name a host", id="no_host"),
        pytest.param("http://u:p@a", "user or a password", id="userinfo"),
        pytest.param("http://u:p/a@b", "user or a password", id="userinfo_with_a_slash"),
        pytest.param("http://a?x=1", "query or a fragment", id="query"),
        pytest.param("http://a/#f", "query or a fragment", id="fragment"),
        pytest.param("http://a:0", "from 1 to 65535", id="port_zero"),
        pytest.param("http://a:99999", "from 1 to 65535", id="port_too_high"),
        pytest.param("http://a:x", "from 1 to 65535", id="port_of_letters"),
        pytest.param("http://a:", "from 1 to 65535", id="empty_port"),
        pytest.param("http://::1:80", "IPv6 addresses need brackets", id="ipv6_without_brackets"),
        pytest.param("http://[gpu]", "neither a name nor", id="name_in_brackets"),
        pytest.param("http://-/", "neither a name nor", id="no_name"),
        pytest.param("http://bücher.example", "printable ASCII", id="not_ascii"),
        pytest.param("http://a b", "printable ASCII", id="space_in_the_host"),
        pytest.param("http://a/../b", "normal form", id="dots_in_the_path"),
        pytest.param("http://a//b", "normal form", id="double_slash"),
        pytest.param("http://a/%2e%2e/b", "normal form", id="escaped_dots"),
        pytest.param("unix:", "whole path", id="no_socket"),
        pytest.param("unix:run/x", "whole path", id="relative_socket"),
        pytest.param("azure://", "my-resource", id="azure_without_host"),
        pytest.param("bedrock://", "us-east-1", id="bedrock_without_region"),
        pytest.param("azure://a_b", "neither a name", id="resource_that_is_none"),
        pytest.param("a b=http://c", "its name", id="space_in_a_name"),
        pytest.param("=http://c", "its name", id="empty_name"),
        pytest.param("x" * 65 + "=http://c", "its name", id="long_name"),
        pytest.param("a=http://b,a=http://c", "two upstreams", id="one_name_twice"),
        pytest.param("http://a,upstream-1=http://b", "two upstreams", id="a_counted_name_twice"),
        pytest.param("http://a;weight=0", "`weight`", id="no_weight"),
        pytest.param("http://a;weight=x", "`weight`", id="weight_of_letters"),
        pytest.param("http://a;max_inflight=-1", "`max_inflight`", id="negative_inflight"),
        pytest.param("vllm://a;priority=high", "`priority` must be on or off", id="no_switch"),
        pytest.param("openai://;priority=on", "means nothing to openai://", id="no_classes"),
        pytest.param("http://a;tags=a b", "`tags`", id="space_in_a_tag"),
        pytest.param("http://a;models=", "`models`", id="no_model"),
        pytest.param("http://a;models=a||b", "`models`", id="empty_model"),
        pytest.param("http://a;weight", "option=value", id="option_without_value"),
        pytest.param("http://a;weight=1;weight=2", "given twice", id="option_twice"),
        pytest.param("http://a;wieght=1", "did you mean `weight`?", id="misspelt_option"),
        pytest.param("http://a;key=", "`key` is not usable", id="empty_key"),
        pytest.param("http://a;key=a b", "`key` is not usable", id="space_in_a_key"),
        pytest.param("http://a;key=env:NOPE", "NOPE, which is not set", id="unset_variable"),
        pytest.param("http://a;key=env:", "name of a variable", id="no_variable"),
        pytest.param("http://a;key=env:EMPTY", "`key` is not usable", id="empty_variable"),
        pytest.param("http://a;key=file:/nowhere", "no such file", id="missing_key_file"),
        pytest.param("https://a;ca=/nowhere", "no such file", id="missing_ca"),
        pytest.param("https://a;cert=/nowhere", "no such file", id="missing_certificate"),
        pytest.param("https://a;ca=/dev/null", "no such file", id="device_for_a_file"),
        pytest.param("http://a;proxy=socks5://b", "`proxy`", id="socks_proxy"),
        pytest.param("unix:/x;proxy=http://b", "`proxy`", id="proxy_to_a_socket"),
        pytest.param([5], "text or a table", id="number"),
        pytest.param([{"url": 5}], "needs a `url`", id="number_for_a_url"),
        pytest.param([{"url": "http://a", "name": 5}], "`name`", id="number_for_a_name"),
        pytest.param([{"url": "http://a", "weight": True}], "`weight`", id="truth_for_a_number"),
        pytest.param([{"url": "http://a", "key": 5}], "`key`", id="number_for_a_key"),
        pytest.param([{"url": "http://a", "models": 5}], "`models`", id="number_for_a_list"),
    ],
)
def test_what_cannot_be_an_upstream_is_refused(text: object, cure: str) -> None:
    """Each with its own reason."""
    with pytest.raises(SettingsError) as caught:
        Settings.load({"EMPTY": ""}, {"upstreams": text})

    [fault] = caught.value.faults
    assert fault.variable == "LLMPROXY_UPSTREAMS"
    assert cure in fault.cure


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "169.254.0.1", "[fe80::1]"),
        *("[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]"),
        *("0xA9FEA9FE", "2852039166", "169.254.43518", "0251.0376.0251.0376"),
        *("metadata.google.internal", "METADATA.google.internal.", "metadata", "instance-data"),
        *("100.100.100.200", "[fd00:ec2::254]", "168.63.129.16"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "vllm"])
def test_metadata_services_are_never_called(scheme: str, host: str) -> None:
    """They hand out the credentials of the machine, however their address is spelled."""
    with pytest.raises(SettingsError, match="metadata services are never called"):
        Settings(upstreams=f"{scheme}://{host}/latest")


@pytest.mark.parametrize("option", ["ca", "cert"])
def test_a_certificate_without_tls_is_a_contradiction(option: str, authority: Authority) -> None:
    """It would never be looked at."""
    file = authority.client_file("client.example")

    with pytest.raises(SettingsError, match="need an https URL"):
        Settings(upstreams=f"http://a;{option}={file}")
