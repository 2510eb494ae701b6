"""What stops the start, by name, and all of it at once."""

from hashlib import sha256
from pathlib import Path

import pytest

from llmproxy.settings import Settings, SettingsError, load
from llmproxy.settings.variables import IN_THIS_VERSION, LATER, PREFIX
from tests.support.tls import Authority


def faults_of(environ: dict[str, str], arguments: dict[str, object] | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(Settings, environ, arguments)
    lines = str(caught.value).split("\n")
    assert len(lines) == len(caught.value.faults)
    return lines


@pytest.mark.parametrize(
    ("variable", "value", "cure"),
    [
        pytest.param("PORT", "30x", "whole number", id="letters_in_a_number"),
        pytest.param("PORT", "65536", "from 0 to 65535", id="port_too_high"),
        pytest.param("PORT", "-1", "from 0", id="negative_port"),
        pytest.param("PORT", "", "whole number", id="empty_port"),
        pytest.param("PORT", "٤٠٠٠", "whole number", id="digits_that_are_not_ascii"),
        pytest.param("PORT", "4_000", "whole number", id="python_spelling_of_a_number"),
        pytest.param("WORKERS", "0", "from 1", id="no_worker"),
        pytest.param("TIMEOUT_IDLE", "nan", "number of seconds", id="nan"),
        pytest.param("TIMEOUT_IDLE", "inf", "number of seconds", id="infinity"),
        pytest.param("TIMEOUT_IDLE", "-1", "number of seconds", id="negative_seconds"),
        pytest.param("TIMEOUT_IDLE", "30s", "such as 30", id="seconds_with_a_unit"),
        pytest.param("TIMEOUT_IDLE", "1e3", "such as 30", id="exponent"),
        pytest.param("TIMEOUT_TOTAL", "99999999999", "31536000", id="longer_than_a_year"),
        pytest.param("TIMEOUT_KEEPALIVE", "0", "from 1", id="no_time_between_requests"),
        pytest.param("MAX_BODY", "0", "from 1 byte", id="no_body_allowed"),
        pytest.param("MAX_BODY", "32 floppies", "such as 32MiB", id="unknown_unit"),
        pytest.param("MAX_BODY", "1.5", "such as 32MiB", id="half_a_byte"),
        pytest.param("MAX_UPLOAD", "2TiB", "1TiB", id="size_too_large"),
        pytest.param("HOST", "127.0.0.1:80", "LLMPROXY_PORT", id="port_in_the_host"),
        pytest.param("HOST", "unix:relative", "whole path", id="relative_socket"),
        pytest.param("HOST", "unix:/" + "x" * 120, "107 bytes", id="socket_path_too_long"),
        pytest.param("TLS_CERT", "/nowhere/cert.pem", "no such file", id="missing_file"),
        pytest.param("AUTH", "none", "off, or one of keys, jwt, hmac", id="unknown_auth"),
        pytest.param("MIDDLEWARE", "metering", "not in this version", id="built_in_layer"),
        pytest.param("MIDDLEWARE", "rate_limit,rate_limit", "a layer twice", id="layer_twice"),
        pytest.param("STORE", "mysql://db", "memory, sqlite:///", id="unknown_store"),
        pytest.param("STORE", "sqlite://file", "three slashes", id="relative_file"),
        pytest.param("STORE_DOWN", "open", "closed, soft", id="never_open"),
        pytest.param("LIMITS", "60 per min", "60 req/min", id="no_limit"),
        pytest.param("LIMITS", "0 req/min", "above 0", id="limit_of_nothing"),
        pytest.param("BUDGET", "10 eur/day", "10 usd/day", id="no_budget"),
        pytest.param("PRICES", "llama=cheap", "gpt-4o=2.5:10", id="no_price"),
        pytest.param("CHARGE_CANCELLED", "all", "counted, reported, none", id="unknown_charge"),
        pytest.param("MAX_INFLIGHT", "-1", "whole number", id="negative_places"),
        pytest.param("JWT_ISSUER", "example.org", "begins with https://", id="issuer_no_url"),
        pytest.param("JWT_JWKS", "/nowhere", "no such file", id="missing_key_set"),
        pytest.param("JWT_ALGORITHMS", "none", "RS256", id="no_algorithm"),
        pytest.param("JWT_CLAIMS", "nickname=sub", "fields of a", id="unknown_field"),
        pytest.param("MIDDLEWARE", "routing,auth", "routing behind auth", id="routing_outside"),
        pytest.param("MIDDLEWARE", "rate_limits", "package.module:Class", id="no_layer"),
        pytest.param("MIDDLEWARE", "no.such:Layer", "cannot be imported", id="missing_module"),
        pytest.param("MIDDLEWARE", "json:Layer", "cannot be imported", id="missing_class"),
        pytest.param("MIDDLEWARE", "llmproxy.types:__doc__", "must be a class", id="no_class"),
        pytest.param("CORS_ORIGINS", "https://a.example/x", "without a path", id="origin_and_path"),
        pytest.param("CORS_ORIGINS", "*,https://a.example", "stand alone", id="all_and_one"),
        pytest.param("LOG_LEVEL", "loud", "debug, info", id="unknown_level"),
        pytest.param("LOG_FORMAT", "xml", "json, console", id="unknown_format"),
        pytest.param("TRUSTED_PROXIES", "10.0.0.1/8", "lies in 10.0.0.0/8", id="host_bits"),
        pytest.param("TRUSTED_PROXIES", "proxy.local", "10.0.0.0/8", id="name_for_a_network"),
        pytest.param("CONFIG", "/nowhere.toml", "cannot be read", id="missing_config"),
        pytest.param("UPSTREAMS", "[1, 2", "not valid JSON", id="half_a_list"),
    ],
)
def test_a_bad_value_is_refused_by_name(variable: str, value: str, cure: str) -> None:
    """The message has the variable, what was given and what is allowed."""
    [line] = faults_of({PREFIX + variable: value})

    assert line.startswith(PREFIX + variable)
    assert repr(value)[1:20] in line
    assert cure in line


@pytest.mark.parametrize("name", LATER)
def test_what_is_not_built_yet_is_refused_by_name(name: str) -> None:
    """Nobody believes in a limit that does not exist."""
    [line] = faults_of({PREFIX + name: "x"})

    assert line.startswith(PREFIX + name)
    assert "not in this version" in line


@pytest.mark.parametrize(
    ("written", "meant"),
    [("UPSTREAM", "UPSTREAMS"), ("PROT", "PORT"), ("TIMEOUT_CONECT", "TIMEOUT_CONNECT")],
)
def test_a_misspelt_name_is_refused_with_the_nearest_one(written: str, meant: str) -> None:
    """A setting that does nothing is worse than none."""
    [line] = faults_of({PREFIX + written: "1"})

    assert f"did you mean {PREFIX}{meant}?" in line


def test_all_faults_are_told_at_once() -> None:
    """One start, one list: whatever is wrong, wherever it stands, and contradictions too."""
    lines = faults_of(
        {
            "LLMPROXY_PORT": "x",
            "LLMPROXY_HOST": "0.0.0.0",
            "LLMPROXY_CACHE": "off",
            "LLMPROXY_UPSTREAMZ": "http://a",
            "LLMPROXY_UPSTREAMS": "ftp://a,b=http://b;weight=0;color=red,b=http://c",
            "LLMPROXY_MAX_BODY": "-1",
        },
        {"log_level": "loud"},
    )

    starts = [line.partition("=")[0].partition(":")[0] for line in lines]
    assert sorted(starts) == [
        "LLMPROXY_AUTH",
        "LLMPROXY_CACHE",
        "LLMPROXY_LOG_LEVEL",
        "LLMPROXY_MAX_BODY",
        "LLMPROXY_PORT",
        "LLMPROXY_UPSTREAMS",
        "LLMPROXY_UPSTREAMS",
        "LLMPROXY_UPSTREAMS",
        "LLMPROXY_UPSTREAMZ",
    ]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "proxy.example", "::ffff:10.0.0.1"])
def test_others_are_let_in_only_on_purpose(host: str) -> None:
    """Without keys a bind that others can reach needs to be asked for in so many words."""
    [line] = faults_of({"LLMPROXY_HOST": host})

    assert "LLMPROXY_AUTH=off" in line
    assert Settings.load({"LLMPROXY_HOST": host, "LLMPROXY_AUTH": "off"}).auth == "off"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "unix:/run/x.sock"]
)
def test_nobody_else_gets_in_over_loopback(host: str) -> None:
    """On the own machine, and over a socket, nothing has to be said."""
    settings = Settings.load({"LLMPROXY_HOST": host})

    assert settings.on_loopback
    assert settings.auth == "off"


@pytest.mark.parametrize(
    "key",
    [
        *("", "   ", "\t", "two words", "schlüssel", "line\nbreak"),
        *("changeme", "CHANGE-ME", "secret", "Password", "admin", "12345678", "xxxxxxxx"),
        *("sk-1234", "sk-1234567890", "sk-xxxx", "your-api-key", "YOUR_ADMIN_KEY_HERE"),
        *("<key>", "${KEY}", "{{key}}"),
    ],
)
def test_a_key_that_anybody_could_guess_opens_nothing(key: str) -> None:
    """Empty, blank and sample keys stop the start; the message says how to make a good one."""
    [line] = faults_of({"LLMPROXY_ADMIN_KEY": key})

    assert line.startswith("LLMPROXY_ADMIN_KEY")
    assert "secrets.token_urlsafe" in line


@pytest.mark.parametrize("written", ["as_it_is", "digest", "file"])
def test_a_caller_may_not_have_the_admin_key(written: str, tmp_path: Path) -> None:
    """It would be the admin; both variables are named, and the key is not shown."""
    key = "Zk3v8Qp1LmX7wRt5"
    file = tmp_path / "keys"
    file.write_text(f"green:{key}")
    theirs = {
        "as_it_is": f"red:another-7wRt5Zk3,green:{key}",
        "digest": f"green:sha256:{sha256(key.encode()).hexdigest()}",
        "file": f"file:{file}",
    }[written]

    [line] = faults_of({"LLMPROXY_ADMIN_KEY": key, "LLMPROXY_KEYS": theirs})

    assert line.startswith("LLMPROXY_KEYS")
    assert "LLMPROXY_ADMIN_KEY" in line
    assert key not in line


@pytest.mark.parametrize("key", ["k8Zr-Fq2b", "correct-horse-battery", "a" * 31 + "b", "sk-9f3b71"])
def test_a_key_of_ones_own_is_taken(key: str) -> None:
    """How long it is, is the operator's business."""
    settings = Settings.load({"LLMPROXY_ADMIN_KEY": key})

    assert settings.admin_key is not None
    assert settings.admin_key.get_secret_value() == key


def test_a_certificate_needs_its_key(authority: Authority, tmp_path: Path) -> None:
    """Half of a pair, or two halves of different pairs, would fail at the first connection."""
    pair = authority.client_file("server.example")
    other = authority.client_file("other.example")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")

    assert "set together" in faults_of({"LLMPROXY_TLS_CERT": pair})[0]
    assert "set together" in faults_of({"LLMPROXY_TLS_KEY": pair})[0]
    mixed = faults_of({"LLMPROXY_TLS_CERT": pair, "LLMPROXY_TLS_KEY": other})
    assert "does not belong" in mixed[0]
    useless = faults_of({"LLMPROXY_TLS_CERT": str(garbage), "LLMPROXY_TLS_KEY": pair})
    assert "no certificate" in useless[0]
    assert Settings(tls_cert=pair, tls_key=pair).tls_cert == pair


KEY = {"LLMPROXY_KEYS": "ada:Kq3-vT9x-4Lw8-ZZ12"}


@pytest.mark.parametrize(
    ("environ", "named", "cure"),
    [
        pytest.param({**KEY, "LLMPROXY_AUTH": "off"}, "AUTH", "nobody would be", id="keys_and_off"),
        pytest.param(
            {**KEY, "LLMPROXY_MIDDLEWARE": "rate_limit"}, "AUTH", "layer auth", id="no_auth_layer"
        ),
        pytest.param(
            {"LLMPROXY_AUTH": "jwt", "LLMPROXY_JWT_AUDIENCE": "me"},
            "AUTH",
            "LLMPROXY_JWT_ISSUER",
            id="jwt_of_nobody",
        ),
        pytest.param(
            {"LLMPROXY_AUTH": "jwt", "LLMPROXY_JWT_ISSUER": "https://id.example"},
            "AUTH",
            "LLMPROXY_JWT_AUDIENCE",
            id="jwt_for_anybody",
        ),
        pytest.param(
            {**KEY, "LLMPROXY_AUTH": "keys+hmac", "LLMPROXY_WORKERS": "2"},
            "AUTH",
            "LLMPROXY_STORE=redis://",
            id="signatures_accepted_twice",
        ),
        pytest.param(
            {"LLMPROXY_LIMITS": "1 req/min", "LLMPROXY_MIDDLEWARE": "auth"},
            "LIMITS",
            "layer rate_limit",
            id="limits_that_nobody_keeps",
        ),
        pytest.param(
            {"LLMPROXY_LIMITS": "1 req/min", "LLMPROXY_WORKERS": "2"},
            "LIMITS",
            "LLMPROXY_STORE=redis://",
            id="limits_of_each_worker",
        ),
        pytest.param(
            {"LLMPROXY_BUDGET": "1e6 tok/day", "LLMPROXY_WORKERS": "2"},
            "BUDGET",
            "LLMPROXY_STORE=redis://",
            id="budgets_of_each_worker",
        ),
        pytest.param(
            {"LLMPROXY_KEYS": "ada:Kq3-vT9x-4Lw8-ZZ12;budget=1e6 tok/day", "LLMPROXY_WORKERS": "2"},
            "KEYS",
            "LLMPROXY_STORE=redis://",
            id="budget_of_a_key_and_each_worker",
        ),
        pytest.param(
            {"LLMPROXY_KEYS": "ada:Kq3-vT9x-4Lw8-ZZ12;budget=1 usd/day"},
            "KEYS",
            "LLMPROXY_PRICES",
            id="money_of_a_key_without_prices",
        ),
        pytest.param(
            {"LLMPROXY_BUDGET": "1 usd/day"}, "BUDGET", "LLMPROXY_PRICES", id="money_without_prices"
        ),
    ],
)
def test_what_could_not_be_kept_stops_the_start(
    environ: dict[str, str], named: str, cure: str
) -> None:
    """A limit or a key that would not be asked for is told before anybody relies on it."""
    [line] = faults_of(environ)

    assert line.startswith(PREFIX + named)
    assert cure in line


def test_a_key_that_exists_is_asked_for() -> None:
    """Nobody has to say so besides."""
    assert Settings.load(KEY).auth == "keys"
    assert Settings.load({**KEY, "LLMPROXY_HOST": "0.0.0.0"}).auth == "keys"
    assert Settings.load({}).auth == "off"


@pytest.mark.parametrize("given", ["", " ", ",", "[]", "{}"])
def test_keys_that_came_out_empty_open_nothing(given: str) -> None:
    """Who sets the variable wants callers to be asked, and stands behind nginx on loopback."""
    [line] = faults_of({"LLMPROXY_KEYS": given})

    assert line.startswith("LLMPROXY_AUTH: LLMPROXY_KEYS names no key")
    assert Settings.load({"LLMPROXY_KEYS": given, "LLMPROXY_AUTH": "off"}).auth == "off"
    assert Settings.load({"LLMPROXY_KEYS": given, "LLMPROXY_AUTH": "keys"}).auth == "keys"


@pytest.mark.parametrize(
    "name", ["UPSTREAMS", "LIMITS", "BUDGET", "PRICES", "ALIASES", "RULES", "TRUSTED_PROXIES"]
)
def test_a_list_of_nothing_is_as_good_as_none(name: str) -> None:
    """A file for compose hands on as empty what nobody has set."""
    assert Settings.load({f"LLMPROXY_{name}": ""}) == Settings.load({})


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        pytest.param("ada:changeme", "sample value", id="sample"),
        pytest.param("ada:", "empty", id="empty"),
        pytest.param("ada:short", "less than 8", id="short"),
        pytest.param("ada:env:NOWHERE", "NOWHERE is not set", id="missing_variable"),
        pytest.param("ada:Kq3-vT9x-4Lw8;colour=red", "no option `colour`", id="unknown_option"),
        pytest.param("ada:Kq3-vT9x-4Lw8,bob:Kq3-vT9x-4Lw8", "same key", id="twice"),
        pytest.param("file:/nowhere", "/nowhere", id="missing_file"),
    ],
)
def test_a_key_that_is_none_stops_the_start_and_is_not_shown(given: str, cure: str) -> None:
    """The message has the entry and the cure."""
    [line] = faults_of({"LLMPROXY_KEYS": given})

    assert line.startswith("LLMPROXY_KEYS=***: ")
    assert cure in line
    assert "Kq3" not in line


def test_every_variable_is_known_once() -> None:
    """A name is in this version or it is not."""
    assert len(set(IN_THIS_VERSION) | set(LATER)) == len(IN_THIS_VERSION) + len(LATER)
    assert {f.upper() for f in Settings.model_fields} | {"CONFIG"} == set(IN_THIS_VERSION)
