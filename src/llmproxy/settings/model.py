"""The settings: one frozen object, and every refusal that concerns more than one value."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    Field,
    PlainValidator,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from llmproxy.metering.prices import Price
from llmproxy.rate_limit.budgets import budgets as read_budgets
from llmproxy.rate_limit.limits import limits as read_limits
from llmproxy.records import Budget, Clocks, Limit, Upstream
from llmproxy.routing.aliases import Alias
from llmproxy.routing.choosing import Choosing
from llmproxy.routing.fallbacks import Chain
from llmproxy.routing.rules import Rule
from llmproxy.settings import addresses, layers, scalars
from llmproxy.settings.contradictions import why_no_auth, why_no_caller, why_not_kept
from llmproxy.settings.engines import (
    KeySource,
    StoreUrl,
    read_claims,
    read_keys,
    read_prices,
    read_store,
    reader,
)
from llmproxy.settings.faults import MASK, Fault, Refused, SettingsError, cut, refuse, shown
from llmproxy.settings.lists import strings
from llmproxy.settings.routes import (
    read_aliases,
    read_choosing,
    read_fallbacks,
    read_rules,
    why_no_alias,
    why_no_chain,
    why_not_followed,
    why_too_late,
)
from llmproxy.settings.texts import as_text
from llmproxy.settings.upstream_options import why_no_certificate
from llmproxy.settings.upstreams import Given, read_upstreams
from llmproxy.settings.variables import unknown, variable_of

T = TypeVar("T")
L = TypeVar("L", Limit, Budget)
MIB = 1024 * 1024


def _optional(read: Callable[[object], T]) -> Callable[[object], T | None]:
    """Return a reader that also takes Python's None for what is not set."""
    return lambda given: None if given is None else read(given)


def _upstreams(given: object) -> tuple[Upstream, ...]:
    # `env:NAME` asks for one variable by name; this is the only look at the environment that
    # settings made in Python take.
    if isinstance(given, Given):
        return read_upstreams(given.value, given.environ)
    return read_upstreams(given, os.environ)


def _admin_key(given: object) -> SecretStr:
    return SecretStr(
        scalars.admin_key(given.get_secret_value() if isinstance(given, SecretStr) else given)
    )


def _auth(given: object) -> str | None:
    if given is None:
        return None  # not said; see _is_off_on_purpose
    word = given.strip().lower() if isinstance(given, str) else ""
    methods = word.split("+")
    if word == "off" or (set(methods) <= set(METHODS) and len(set(methods)) == len(methods)):
        return word
    # Words of ours are shown, although one of them is "keys".
    seen = cut(given) if {*METHODS, "off"}.issuperset(methods) else shown(given)
    cure = f"must be off, or one of {', '.join(METHODS)}, or several joined by +"
    raise Refused((seen, cure))


def _algorithms(given: object) -> tuple[str, ...]:
    if not (named := strings(given)):
        return ()  # those that are safe with public keys

    from llmproxy.auth.tokens import checked_algorithms  # brings an HTTP client along

    try:
        return checked_algorithms(named)
    except ValueError as exc:
        raise refuse(given, str(exc)) from None


def _url(given: object) -> str:
    if isinstance(given, str) and given.strip().startswith(("https://", "http://")):
        return given.strip()
    raise refuse(given, "must be a URL that begins with https://")


def _key_set(given: object) -> str:
    if isinstance(given, str) and given.strip().startswith(("https://", "http://")):
        return given.strip()
    return scalars.existing_file(given)


METHODS = ("keys", "jwt", "hmac")
Seconds = Annotated[float, PlainValidator(scalars.seconds)]
Size = Annotated[int, PlainValidator(scalars.size)]
File = Annotated[str | None, PlainValidator(_optional(scalars.existing_file))]


class Settings(BaseSettings):
    """Everything that can be configured.

    `Settings(upstreams="http://gpu1:8000")` takes what it is given and looks nowhere else;
    `Settings.load()` reads the environment and the file that it names.
    """

    # The sources that pydantic-settings brings are left out. They read the environment
    # whenever an object is made, ignore a misspelt variable, and cannot tell afterwards where
    # a value came from. `sources.py` collects the values instead; both ways into this class
    # then have the same grammars and the same refusals.
    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", case_sensitive=True, hide_input_in_errors=True
    )

    upstreams: Annotated[tuple[Upstream, ...], PlainValidator(_upstreams)] = ()
    host: Annotated[str, PlainValidator(addresses.listen_host)] = "127.0.0.1"
    port: Annotated[int, PlainValidator(scalars.count(0, 65535))] = 4000
    workers: Annotated[int, PlainValidator(scalars.count(1, 1024))] = 1
    tls_cert: File = None
    tls_key: File = Field(default=None, validate_default=True)
    admin_key: Annotated[SecretStr | None, PlainValidator(_optional(_admin_key))] = None
    middleware: Annotated[tuple[str, ...], PlainValidator(layers.middleware)] = layers.DEFAULT
    store: Annotated[StoreUrl, PlainValidator(read_store)] = StoreUrl()
    store_down: Annotated[
        Literal["closed", "soft"], PlainValidator(scalars.choice("closed", "soft"))
    ] = "closed"
    prices: Annotated[tuple[Price, ...], PlainValidator(read_prices)] = ()
    keys: Annotated[KeySource, PlainValidator(read_keys)] = KeySource()
    jwt_issuer: Annotated[str | None, PlainValidator(_optional(_url))] = None
    jwt_audience: Annotated[tuple[str, ...], PlainValidator(strings)] = ()
    jwt_algorithms: Annotated[tuple[str, ...], PlainValidator(_algorithms)] = ()
    jwt_jwks: Annotated[str | None, PlainValidator(_optional(_key_set))] = None
    jwt_claims: Annotated[tuple[str, ...], PlainValidator(read_claims)] = ("name=sub",)
    auth: Annotated[str, PlainValidator(_auth)] = Field(default=None, validate_default=True)
    limits: Annotated[tuple[Limit, ...], PlainValidator(reader(read_limits, Limit))] = ()
    budget: Annotated[tuple[Budget, ...], PlainValidator(reader(read_budgets, Budget))] = ()
    charge_cancelled: Annotated[
        Literal["counted", "reported", "none"],
        PlainValidator(scalars.choice("counted", "reported", "none")),
    ] = "counted"
    routing: Annotated[Choosing, PlainValidator(read_choosing)] = Choosing()
    aliases: Annotated[tuple[Alias, ...], PlainValidator(read_aliases)] = ()
    fallbacks: Annotated[tuple[Chain, ...], PlainValidator(read_fallbacks)] = ()
    rules: Annotated[tuple[Rule, ...], PlainValidator(read_rules)] = ()
    retries: Annotated[int, PlainValidator(scalars.count(0, 10))] = 2
    rescue: Annotated[
        Literal["off", "same_model", "fallback"],
        PlainValidator(scalars.choice("off", "same_model", "fallback")),
    ] = "same_model"
    max_inflight: Annotated[int, PlainValidator(scalars.count(0, 1_000_000))] = 0
    queue_size: Annotated[int, PlainValidator(scalars.count(0, 1_000_000))] = 1000
    queue_timeout: Seconds = 30.0
    timeout_connect: Seconds = 3.0
    timeout_first_byte: Seconds = 120.0
    first_token_limit: Seconds = 0.0
    timeout_answer: Seconds = 600.0
    timeout_idle: Seconds = 60.0
    timeout_total: Seconds = 0.0
    timeout_head: Seconds = 10.0
    timeout_body: Seconds = 60.0
    timeout_write: Seconds = 60.0
    timeout_keepalive: Annotated[
        float, PlainValidator(functools.partial(scalars.seconds, least=1.0))
    ] = 75.0
    keepalive_comments: Seconds = 15.0
    max_body: Size = 32 * MIB
    max_upload: Size = 512 * MIB
    max_connections: Annotated[int, PlainValidator(scalars.count(0, 10_000_000))] = 0
    cors_origins: Annotated[tuple[str, ...], PlainValidator(addresses.origins)] = ()
    log_level: Annotated[
        str, PlainValidator(scalars.choice("debug", "info", "warning", "error", "critical"))
    ] = "info"
    log_format: Annotated[str, PlainValidator(scalars.choice("json", "console"))] = "json"
    trusted_proxies: Annotated[
        tuple[addresses.Network | str, ...], PlainValidator(addresses.trusted_proxies)
    ] = ()
    drain_timeout: Seconds = 120.0

    def __init__(self, **values: Any) -> None:
        faults: list[Fault] = []
        try:
            super().__init__(**values)
        except ValidationError as exc:
            faults = _faults(exc)
        # Raised out here: pydantic's error holds what it was given, secrets included, and
        # must not travel along as the context of ours.
        if faults:
            raise SettingsError(faults)

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str] | None = None,
        arguments: Mapping[str, object] | None = None,
    ) -> Self:
        """Return the settings of an environment, by default this process's."""
        from llmproxy.settings.loading import load

        return load(cls, os.environ if environ is None else environ, arguments).settings

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach us."""
        return addresses.is_loopback(self.host)

    @property
    def auth_was_said(self) -> bool:
        """Whether somebody has decided who is asked for what, or it is what it is by itself."""
        return "auth" in self.model_fields_set

    @property
    def chain(self) -> tuple[str, ...]:
        """The layers that have something to do, outermost first."""
        idle = {"auth", "rate_limit"} if self.auth == "off" else set()
        if self.limits or self.budget:
            idle.discard("rate_limit")  # else only a key could have limits of its own
        return tuple(name for name in self.middleware if name not in idle)

    @property
    def clocks(self) -> Clocks:
        """How long to wait for what."""
        return Clocks(
            connect=self.timeout_connect,
            first_byte=self.timeout_first_byte,
            answer=self.timeout_answer,
            idle=self.timeout_idle,
            total=self.timeout_total,
            body=self.timeout_body,
            write=self.timeout_write,
            comment=self.keepalive_comments,
        )

    # Contradictions are found by the later of the fields they are about, which sees those
    # before it that are valid: so they are found although something else is wrong too.

    @field_validator("tls_key", mode="after")
    @classmethod
    def _fits_the_certificate(cls, key: str | None, info: ValidationInfo) -> str | None:
        if "tls_cert" not in info.data:
            return key
        cert = info.data["tls_cert"]
        if (cert is None) != (key is None):
            raise Refused(("", "LLMPROXY_TLS_CERT and LLMPROXY_TLS_KEY must be set together"))
        if cert is not None and (reason := why_no_certificate(cert, key)) is not None:
            raise Refused(("", f"cannot serve TLS with LLMPROXY_TLS_CERT and this key: {reason}"))
        return key

    @field_validator("keys", mode="after")
    @classmethod
    def _are_of_callers(cls, keys: KeySource, info: ValidationInfo) -> KeySource:
        principals = [entry.principal for entry in keys.entries]
        asked: list[Limit | Budget] = []
        for each in principals:
            asked += (*each.limits, *each.budgets)
        wrong = [*why_no_caller(keys, info.data), *why_not_kept(asked, info.data)]
        if wrong:
            raise Refused(*(("", reason) for reason in wrong))
        return keys

    @field_validator("auth", mode="after")
    @classmethod
    def _is_off_on_purpose(cls, auth: str | None, info: ValidationInfo) -> str:
        given, host = info.data, info.data.get("host")
        keys = given.get("keys")
        if auth is None and keys:
            auth = "keys"
        if auth is None and keys is not None and keys.said:
            # A variable that was meant to be filled from another one, most likely.
            raise Refused(
                (
                    "",
                    "LLMPROXY_KEYS names no key, and nobody would be asked for one: name some, or"
                    " say so with LLMPROXY_AUTH=off",
                )
            )
        if auth is None:
            if host is not None and not addresses.is_loopback(host):
                raise Refused(
                    (
                        "",
                        f"LLMPROXY_HOST={host} lets others in and nobody is asked for a key: set"
                        " LLMPROXY_KEYS, or say so with LLMPROXY_AUTH=off, or listen on 127.0.0.1"
                        " or unix:/path",
                    )
                )
            return "off"
        wrong = why_no_auth(auth, given)
        if wrong:
            raise Refused(*(("", reason) for reason in wrong))
        return auth

    @field_validator("limits", "budget", mode="after")
    @classmethod
    def _can_be_kept(cls, asked: tuple[L, ...], info: ValidationInfo) -> tuple[L, ...]:
        if wrong := why_not_kept(asked, info.data):
            raise Refused(*(("", reason) for reason in wrong))
        return asked

    @field_validator("routing", "aliases", "fallbacks", "rules", "first_token_limit", mode="after")
    @classmethod
    def _is_followed(cls, value: T, info: ValidationInfo) -> T:
        wrong = why_not_followed(value, info.data)
        match info.field_name, value:
            case "aliases", tuple():
                wrong += why_no_alias(value, info.data)
            case "fallbacks", tuple():
                wrong += why_no_chain(value, info.data)
            case "first_token_limit", float():
                wrong += why_too_late(value, info.data)
        if wrong:
            raise Refused(*(("", reason) for reason in wrong))
        return value

    @field_serializer("*")
    def _without_secrets(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return [as_text(item) for item in value]
        return value if isinstance(value, str | int | float | None) else as_text(value)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave only what was passed in; see above."""
        return (init_settings,)


def _faults(error: ValidationError) -> list[Fault]:
    faults: list[Fault] = []
    for one in error.errors(include_url=False, include_input=False):
        field = str(one["loc"][0])
        refused = one.get("ctx", {}).get("error")
        if isinstance(refused, Refused):
            faults += refused.faults(variable_of(field))
        elif one["type"] == "extra_forbidden":
            faults.append(unknown(field, as_variable=False))
        else:
            faults.append(Fault(variable_of(field), MASK, "is not valid"))
    return faults
