"""Where values come from, and which one wins."""

from pathlib import Path

import pytest

import llmproxy
from llmproxy.settings import Settings, SettingsError, load


def write(folder: Path, text: str) -> dict[str, str]:
    """Write a configuration file and return the environment that names it."""
    path = folder / "llmproxy.toml"
    path.write_text(text)
    return {"LLMPROXY_CONFIG": str(path)}


def test_the_later_source_wins(tmp_path: Path) -> None:
    """Defaults, then the file, then the environment, then arguments."""
    environ = write(tmp_path, "port = 1\ntimeout_connect = 1\nmax_body = '1MiB'\n") | {
        "LLMPROXY_PORT": "2",
        "LLMPROXY_TIMEOUT_CONNECT": "2",
    }

    loaded = load(Settings, environ, {"port": 3})

    settings = loaded.settings
    assert (settings.port, settings.timeout_connect, settings.max_body) == (3, 2.0, 1024 * 1024)
    assert settings.timeout_idle == 60.0
    sources = {origin.variable: origin.source for origin in loaded.origins}
    assert sources["LLMPROXY_PORT"] == "argument"
    assert sources["LLMPROXY_TIMEOUT_CONNECT"] == "environment"
    assert sources["LLMPROXY_MAX_BODY"] == f"file {tmp_path / 'llmproxy.toml'}"
    assert sources["LLMPROXY_TIMEOUT_IDLE"] == "default"


def test_what_is_overridden_is_not_complained_about(tmp_path: Path) -> None:
    """Only the value that counts has to be right."""
    environ = write(tmp_path, "port = 'x'\n") | {"LLMPROXY_PORT": "2"}

    assert Settings.load(environ).port == 2


def test_a_table_joins_its_keys(tmp_path: Path) -> None:
    """`[timeout] connect` is `timeout_connect`; lists and tables may be TOML's own."""
    environ = write(
        tmp_path,
        """
        cors_origins = ["https://a.example", "https://b.example"]
        middleware = []
        [timeout]
        connect = 1
        first_byte = 2.5
        [[upstreams]]
        name = "big"
        url = "http://gpu1:8000"
        models = ["a", "b,c"]
        weight = 3
        [[upstreams]]
        url = "http://gpu2:8000"
        """,
    )

    settings = Settings.load(environ)

    assert settings.clocks.connect == 1.0
    assert settings.clocks.first_byte == 2.5
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert [upstream.name for upstream in settings.upstreams] == ["big", "upstream-2"]
    assert settings.upstreams[0].models == ("a", "b,c")
    assert settings.upstreams[0].weight == 3


def test_upstreams_may_be_a_table_by_name(tmp_path: Path) -> None:
    """The key is the name."""
    environ = write(
        tmp_path, "[upstreams]\nbig = 'http://gpu1'\nsmall = {url = 'http://gpu2', weight = 2}\n"
    )

    big, small = Settings.load(environ).upstreams

    assert (big.name, big.host) == ("big", "gpu1")
    assert (small.name, small.host, small.weight) == ("small", "gpu2", 2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("prot = 1", "did you mean port?", id="misspelt"),
        pytest.param("[timeout]\nconect = 1", "did you mean timeout_connect?", id="in_a_table"),
        pytest.param("[colors]\nred = 1", "colors", id="unknown_table"),
        pytest.param("cache = 'off'", "not in this version", id="not_built_yet"),
        pytest.param("[cache]\nttl = 5", "cache_ttl", id="table_not_built_yet"),
        pytest.param("port = true", "LLMPROXY_PORT=True", id="truth_for_a_number"),
        pytest.param("timeout_idle = true", "LLMPROXY_TIMEOUT_IDLE=True", id="truth_for_seconds"),
        pytest.param("port = 4000.5", "LLMPROXY_PORT=4000.5", id="half_a_port"),
        pytest.param("port = [1]", "LLMPROXY_PORT=[1]", id="list_for_a_number"),
        pytest.param("host = 5", "LLMPROXY_HOST=5", id="number_for_a_host"),
        pytest.param("timeout_idle = nan", "LLMPROXY_TIMEOUT_IDLE=nan", id="toml_nan"),
        pytest.param("max_body = 1.5", "LLMPROXY_MAX_BODY=1.5", id="float_for_a_size"),
        pytest.param("log_level = 1979-05-27", "LLMPROXY_LOG_LEVEL", id="date_for_a_word"),
        pytest.param("admin_key = 5", "LLMPROXY_ADMIN_KEY", id="number_for_a_key"),
        pytest.param("upstreams = [5]", "text or a table", id="number_for_an_upstream"),
        pytest.param("upstreams = [{name = 'a'}]", "needs a `url`", id="upstream_without_url"),
        pytest.param("config = 'other.toml'", "LLMPROXY_CONFIG", id="file_that_names_a_file"),
        pytest.param("timeout_idle = 1\n[timeout]\nidle = 2", "twice", id="set_twice"),
    ],
)
def test_a_fault_in_the_file_names_the_file(tmp_path: Path, text: str, named: str) -> None:
    """Unknown keys and bad values alike."""
    environ = write(tmp_path, text)

    with pytest.raises(SettingsError) as caught:
        Settings.load(environ)

    [fault] = caught.value.faults
    assert fault.source == f"file {environ['LLMPROXY_CONFIG']}"
    assert named in str(fault)


@pytest.mark.parametrize("content", [b"port =", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path, content: bytes) -> None:
    """The message names the variable and the file, and the other faults stand beside it."""
    path = tmp_path / "llmproxy.toml"
    path.write_bytes(content)

    with pytest.raises(SettingsError) as caught:
        Settings.load({"LLMPROXY_CONFIG": str(path), "LLMPROXY_PORT": "x"})

    assert [fault.variable for fault in caught.value.faults] == ["LLMPROXY_CONFIG", "LLMPROXY_PORT"]


def test_what_kubernetes_injects_is_ignored_with_a_warning() -> None:
    """A Service named llmproxy must not stop the proxy that stands behind it."""
    injected = {
        "LLMPROXY_SERVICE_HOST": "10.0.0.1",
        "LLMPROXY_SERVICE_PORT": "80",
        "LLMPROXY_SERVICE_PORT_HTTP": "80",
        "LLMPROXY_PORT": "tcp://10.0.0.1:80",
        "LLMPROXY_PORT_80_TCP": "tcp://10.0.0.1:80",
        "LLMPROXY_PORT_80_TCP_ADDR": "10.0.0.1",
    }

    loaded = load(Settings, injected)

    assert loaded.settings.port == 4000
    [warning] = loaded.warnings
    assert all(name in warning for name in injected)
    assert "10.0.0.1" not in warning


def test_a_service_that_nobody_enters_without_a_key_is_warned_about() -> None:
    """It would answer every request with 401."""
    loaded = load(Settings, {"LLMPROXY_UPSTREAMS": "gpt=openai://,local=ollama://"})

    [warning] = loaded.warnings
    assert "gpt" in warning
    assert "key" in warning


def test_settings_made_in_python_read_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Settings(...)` is what it was given and the defaults."""
    monkeypatch.setenv("LLMPROXY_PORT", "1")
    monkeypatch.setenv("PORT", "2")
    monkeypatch.setenv("port", "2")
    monkeypatch.setenv("LLMPROXY_NONSENSE", "3")

    settings = llmproxy.Settings(upstreams="http://gpu:8000", middleware=())

    assert settings.port == 4000
    assert settings.upstreams[0].host == "gpu"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        pytest.param({"port": "30x"}, "LLMPROXY_PORT='30x'", id="bad_value"),
        pytest.param({"prot": 1}, "did you mean port?", id="misspelt"),
        pytest.param({"PORT": 1}, "did you mean port?", id="upper_case"),
        pytest.param({"cache": "off"}, "not in this version", id="not_built_yet"),
        pytest.param({"config": "x.toml"}, "Settings.load()", id="a_file"),
        pytest.param({"host": "0.0.0.0"}, "LLMPROXY_AUTH=off", id="open_to_others"),
        pytest.param({"upstreams": 5}, "must be a list", id="number_for_a_list"),
    ],
)
def test_settings_made_in_python_are_refused_alike(values: dict[str, object], named: str) -> None:
    """The same grammars, the same words."""
    with pytest.raises(SettingsError, match=named.replace("(", r"\(").replace(")", r"\)")):
        Settings(**values)


def test_settings_of_this_process_are_read_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Settings.load()` looks at the environment at that moment."""
    monkeypatch.setenv("LLMPROXY_PORT", "4321")

    assert Settings.load().port == 4321


def test_settings_cannot_be_changed() -> None:
    """What was checked once stays as it is."""
    settings = Settings()

    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1
