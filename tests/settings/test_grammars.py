"""The grammars on arbitrary input: they read what was written, and never crash."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmproxy.settings import Settings, SettingsError, load
from llmproxy.settings.scalars import size
from llmproxy.settings.texts import as_size
from llmproxy.settings.upstreams import described, read_upstreams
from llmproxy.settings.variables import FIELDS, PREFIX

NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
HOSTS = st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z][a-z0-9]{0,10})?", fullmatch=True)
WORDS = st.from_regex(r"[A-Za-z0-9./_-]{1,20}", fullmatch=True)
PATHS = st.sampled_from(["", "/v1", "/team", "/team/v2", "/v1beta/openai"])

UPSTREAM = st.builds(
    "{}={}://{}:{}{};models={};weight={};max_inflight={};priority={}".format,
    NAMES,
    st.sampled_from(["http", "https"]),
    HOSTS.filter(lambda host: host not in ("metadata", "instance-data")),
    st.integers(1, 65535),
    PATHS,
    st.lists(WORDS, min_size=1, max_size=3).map("|".join),
    st.integers(1, 100),
    st.integers(1, 100),
    st.sampled_from(["on", "off"]),
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["url", "name", "key", "models", "weight", "ca", "proxy"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)
PIECES = st.lists(
    st.sampled_from(
        [
            *("http://", "https://", "unix:", "vllm://", "azure://", "env:", "file:"),
            *("key=", "weight=", "models=", "ca=", "proxy=", "gpu1", "/v1", "::1", ":80", "%2e"),
            *'a1-.:/,;=|@?#[]{} "\x00\nü',
        ]
    ),
    max_size=12,
).map("".join)


@given(UPSTREAM)
def test_an_upstream_that_is_described_can_be_read_again(text: str) -> None:
    """`llmproxy config` shows what could be set."""
    [first] = read_upstreams(text, {})
    [second] = read_upstreams(described(first), {})

    assert first == second


@given(st.text(max_size=60) | PIECES | JSON)
@example("http://[")
@example("http://\x00")
@example("[" * 2000)
@example("http://a;key=file:\x00")
@example("unix:/\ud800")
def test_upstreams_are_read_or_refused(text: object) -> None:
    """Nothing that can be typed crashes the start."""
    try:
        settings = Settings(upstreams=text)
    except SettingsError as exc:
        assert exc.faults
        assert str(exc).count("\n") == len(exc.faults) - 1
    else:
        assert all(upstream.name for upstream in settings.upstreams)


@pytest.mark.parametrize("field", sorted(FIELDS - {"config", "upstreams", "middleware"}))
@settings(max_examples=40)  # of each: together they are a thousand, and the grammars are few
@given(value=JSON | st.text(max_size=30))
def test_every_other_value_is_read_or_refused(field: str, value: Any) -> None:
    """Text from the environment, or whatever TOML and Python can hold."""
    try:
        Settings(**{field: value})
    except SettingsError as exc:
        assert all(fault.variable.startswith(PREFIX) for fault in exc.faults)


@given(st.dictionaries(st.text(max_size=12).map(PREFIX.__add__), st.text(max_size=12), max_size=4))
def test_any_environment_is_read_or_refused(environ: dict[str, str]) -> None:
    """Names that nobody thought of included."""
    try:
        load(Settings, environ)
    except SettingsError as exc:
        assert exc.faults


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | PIECES.map(str.encode))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    """A file is not always what its name says."""
    path: Path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text)
    try:
        load(Settings, {"LLMPROXY_CONFIG": str(path)})
    except SettingsError as exc:
        assert all(str(path) in str(fault) for fault in exc.faults)


@given(st.integers(1, 1024**4))
def test_a_size_that_is_shown_can_be_read_again(count: int) -> None:
    """In the largest unit that divides it."""
    assert size(as_size(count)) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("32MiB", 32 * 1024**2), ("512MB", 512_000_000), ("1 kb", 1000)),
        *(("1.5GiB", 1610612736), ("1024", 1024), ("7b", 7), (" 2KiB ", 2048)),
    ],
)
def test_sizes_have_the_usual_units(text: str, count: int) -> None:
    """`i` counts in 1024, without it in 1000."""
    assert size(text) == count
