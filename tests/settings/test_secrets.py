"""No secret in anything that is shown."""

import json
import pickle
import traceback

import pytest

from llmproxy.settings import Settings, SettingsError, load

CANARY = "c4n4ry"

# Ways to write a secret down, right and wrong.
ENVIRONS = [
    {"LLMPROXY_UPSTREAMS": f"http://a;key={CANARY}"},
    {"LLMPROXY_UPSTREAMS": "http://a;key=env:K", "K": CANARY},
    {"LLMPROXY_UPSTREAMS": f"http://a;key={CANARY} x"},
    {"LLMPROXY_UPSTREAMS": f"http://a;key=a,{CANARY}"},
    {"LLMPROXY_UPSTREAMS": f"http://a;key=a,{CANARY}=x"},
    {"LLMPROXY_UPSTREAMS": f"http://a;key=a;{CANARY}"},
    {"LLMPROXY_UPSTREAMS": f"http://a;key=a;{CANARY}=x"},
    {"LLMPROXY_UPSTREAMS": f"http://a;api_key={CANARY}"},
    {"LLMPROXY_UPSTREAMS": f"http://a;token={CANARY};key=b"},
    {"LLMPROXY_UPSTREAMS": f"http://a;key=x;key={CANARY}"},
    {"LLMPROXY_UPSTREAMS": f"http://u:{CANARY}@a"},
    {"LLMPROXY_UPSTREAMS": f"http://u:{CANARY}/x@a"},
    {"LLMPROXY_UPSTREAMS": f"http://u:#{CANARY}@a"},
    {"LLMPROXY_UPSTREAMS": f"http://{CANARY}@a;weight=x"},
    {"LLMPROXY_UPSTREAMS": f"http://a/?key={CANARY}"},
    {"LLMPROXY_UPSTREAMS": f"http://a/#{CANARY}"},
    {"LLMPROXY_UPSTREAMS": f"u:{CANARY}@a:8000"},
    {"LLMPROXY_UPSTREAMS": f"ftp://u:{CANARY}@a"},
    {"LLMPROXY_UPSTREAMS": f"https://a;proxy=http://u:{CANARY}@p"},
    {"LLMPROXY_UPSTREAMS": f"https://a;proxy=socks5://u:{CANARY}@p"},
    {"LLMPROXY_UPSTREAMS": f'[{{"url": "http://a", "key": "{CANARY}"}}]'},
    {"LLMPROXY_UPSTREAMS": f'[{{"url": "http://a", "key": "{CANARY}"}}, 5]'},
    {"LLMPROXY_UPSTREAMS": f'[{{"url": "http://a", "key": ["{CANARY}"]}}]'},
    {"LLMPROXY_UPSTREAMS": f'[{{"key": "{CANARY}"}}]'},
    {"LLMPROXY_UPSTREAMS": f'[{{"url": "http://a", "key": "{CANARY}"'},
    {"LLMPROXY_UPSTREAMS": f"a=http://a;key={CANARY},a=http://b"},
    {"LLMPROXY_ADMIN_KEY": CANARY},
    {"LLMPROXY_ADMIN_KEY": f"{CANARY} {CANARY}"},
    {"LLMPROXY_ADMIN_KEY": CANARY, "LLMPROXY_PORT": "x"},
    {"LLMPROXY_ADMINKEY": CANARY},
    {"LLMPROXY_KEYS": f"alice:{CANARY}"},
    {"LLMPROXY_STORE": f"redis://:{CANARY}@redis"},
    {"LLMPROXY_UPSTREAM": f"http://a;key={CANARY}"},
]


@pytest.mark.parametrize("environ", ENVIRONS, ids=lambda environ: " ".join(environ.values()))
def test_a_secret_is_never_shown(environ: dict[str, str]) -> None:
    """Not in a message, not in a traceback, not in any form of the settings."""
    shown: list[str] = []
    try:
        loaded = load(Settings, environ)
    except SettingsError as exc:
        shown += [str(exc), repr(exc), repr(exc.faults), "".join(traceback.format_exception(exc))]
    else:
        settings = loaded.settings
        shown += [repr(settings), str(settings), f"{settings.upstreams}", repr(loaded)]
        shown += [str(settings.model_dump()), settings.model_dump_json()]
        shown += [str(origin) for origin in loaded.origins]

    assert shown
    # The test's own source stands in its traceback, but never the value of a variable.
    assert not [text for text in shown if CANARY in text]


@pytest.mark.parametrize(
    ("given", "seen"), [("keys+off", "'keys+off'"), (f"keys+{CANARY}", "***"), ("key", "***")]
)
def test_of_methods_only_our_own_words_are_shown(given: str, seen: str) -> None:
    """Whoever joins what cannot be joined wants to see it; anything else may be a key."""
    with pytest.raises(SettingsError) as caught:
        Settings(auth=given)

    assert f"={seen}: must be off, or one of keys" in str(caught.value)


def test_a_refusal_keeps_nothing_of_what_was_given() -> None:
    """Pydantic's own error holds it, and tools that collect errors look at causes too."""
    with pytest.raises(SettingsError) as caught:
        Settings(admin_key=f"{CANARY} {CANARY}")

    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_what_is_masked_can_still_be_used() -> None:
    """The secret is there for those who need it."""
    settings = Settings(upstreams=f"a=http://a;key={CANARY}", admin_key=CANARY)

    assert settings.upstreams[0].credentials == ((b"authorization", f"Bearer {CANARY}".encode()),)
    assert settings.admin_key is not None
    assert settings.admin_key.get_secret_value() == CANARY


def test_the_rest_of_the_configuration_is_shown() -> None:
    """Masking leaves a form that can be read, and set again."""
    settings = Settings(
        upstreams=f"a=http://gpu1:8000/v1;key={CANARY};models=x|y,unix:/run/x.sock;weight=2"
    )

    assert json.loads(settings.model_dump_json())["upstreams"] == [
        "a=http://gpu1:8000/v1;models=x|y;key=***",
        "upstream-2=unix:/run/x.sock;weight=2",
    ]


def test_settings_can_be_handed_to_another_process() -> None:
    """With everything in them."""
    settings = Settings(upstreams=f"http://a;key={CANARY}", admin_key=CANARY)

    assert pickle.loads(pickle.dumps(settings)) == settings
