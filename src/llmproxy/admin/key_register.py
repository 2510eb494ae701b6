"""All keys of a deployment, to be looked at and changed by operators.

Rule 1: every change goes through the audit log.
Rule 2: a new secret is in the answer to the one who asked for it, and nowhere else.
Rule 3: after a change nothing is read that could fail: the secret would be lost with it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import Any

from llmproxy import clock
from llmproxy.admin.audit import Actor, AuditLog
from llmproxy.admin.key_documents import Document, as_text, fields_of, of_configured, of_issued
from llmproxy.admin.times import length
from llmproxy.auth.documents import IssuedKey
from llmproxy.auth.fields import Fields, text
from llmproxy.auth.issued import Contended, Expired, IssuedKeys, NameTaken, NewKey, NoSuchKey
from llmproxy.auth.keys import KeyEntry, usable_name
from llmproxy.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable
from llmproxy.records import Principal
from llmproxy.store.interface import Unavailable

OVERLAP = 3600.0  # seconds; time to tell whoever uses a key of the new one
RETRY_AFTER = 5

_NOT_FOR_ALL = ("name", "note", "signing", "unsigned")  # what Fields.read knows nothing of


class KeyRegister:
    """Issued keys, and configured ones as far as they can be shown."""

    def __init__(
        self,
        issued: IssuedKeys,
        audit: AuditLog,
        *,
        fields: Fields,
        configured: Callable[[], Iterable[KeyEntry]] = tuple,
        objections: Callable[[Mapping[str, Any]], list[str]] = lambda fields: [],
        lasting: bool = True,
        notice: str | None = None,
    ) -> None:
        """`objections` says why a key with such fields could not be held to them here.

        `lasting` tells whether a key is still there when the process is not, `notice` what
        keeps a new key from being asked for.
        """
        self._issued = issued
        self._audit = audit
        self._fields = fields
        self._configured = configured
        self._objections = objections
        self._lasting = lasting
        self._notice = notice

    async def documents(self) -> list[Document]:
        """Return all keys, the configured ones first."""
        by_name: dict[str, list[IssuedKey]] = {}
        with as_errors():
            for key in await self._issued.all_keys():
                by_name.setdefault(key.principal.name, []).append(key)
        shown = [of_configured(entry) for entry in self._configured()]
        return shown + [of_issued(keys) for keys in by_name.values()]

    async def document(self, name: str) -> Document:
        """Return one key."""
        for entry in self._configured():
            if entry.principal.name == name:
                return of_configured(entry)
        self._check(name)
        with as_errors():
            keys = await self._issued.named(name)
        if not keys:
            raise _no_such(name)
        return of_issued(keys)

    async def callers(self) -> list[tuple[str, Principal]]:
        """Return who can have used anything: each caller once, and where its key comes from."""
        found = [("configured", entry.principal) for entry in self._configured()]
        known = {who.id for _, who in found}
        with as_errors():
            for key in await self._issued.all_keys():
                if key.principal.id not in known:
                    known.add(key.principal.id)
                    found.append(("issued", key.principal))
        return found

    async def create(self, actor: Actor, given: Mapping[str, object]) -> Document:
        """Make a key as a document asks for it."""
        given = {name: value for name, value in given.items() if value is not None}
        if "name" not in given:
            raise InvalidRequest("A key needs a `name`.", param="name")
        name, own, fields = self._read(given)
        if any(entry.principal.name == name for entry in self._configured()):
            raise Conflict(f"There is a configured key named {name}.", param="name")
        if wrong := self._objections(fields):
            raise InvalidRequest(f"This key would not be held to its word: {'; '.join(wrong)}.")
        if fields.get("expires", inf) <= clock.wall():
            raise InvalidRequest(
                "`expires` has passed: this key would never work.", param="expires"
            )
        probe = fields_of(Principal(id="", name=name, **fields))
        changed = {each: probe[each] for each in given if each in probe}
        with as_errors():
            async with self._audit.change(actor, "create", name, as_text({**changed, **own})):
                new = await self._issued.create(name, fields, **own)
        return self._made(new)

    async def rotate(self, actor: Actor, name: str, given: Mapping[str, object]) -> Document:
        """Make a new key for a name, and end the one before after an overlap."""
        self._check(name)
        if unknown := given.keys() - {"overlap"}:
            raise InvalidRequest("A rotation has one option: `overlap`.", param=min(unknown)[:40])
        try:
            overlap = length(given.get("overlap", OVERLAP))
        except ValueError as exc:
            raise InvalidRequest(f"`overlap` {exc}.", param="overlap") from None
        with as_errors():
            async with self._audit.change(actor, "rotate", name, {"overlap": f"{overlap:g} s"}):
                new = await self._issued.rotate(name, overlap=overlap)
        return {**self._made(new), "overlap": overlap}

    async def revoke(self, actor: Actor, name: str) -> Document:
        """Refuse every key of a name."""
        self._check(name)
        with as_errors():
            async with self._audit.change(actor, "revoke", name, {}):
                await self._issued.revoke(name)
        return {"name": name, "state": "revoked"}

    def _made(self, new: NewKey) -> Document:
        return {
            **of_issued([new.key]),
            "key": new.secret,
            "lasting": self._lasting,
            "notice": self._notice,
        }

    def _read(self, given: Mapping[str, object]) -> tuple[str, dict[str, Any], dict[str, Any]]:
        wrong: list[str] = []
        own: dict[str, Any] = {}
        name, fields = "", {}
        try:
            name = usable_name(given["name"])
        except ValueError as exc:
            wrong.append(str(exc))
        try:
            fields = self._fields.read(
                {each: value for each, value in given.items() if each not in _NOT_FOR_ALL}
            )
        except ValueError as exc:
            wrong.append(str(exc))
        if given.get("note", "") != "":
            try:
                own["note"] = text(given["note"])
            except ValueError as exc:
                wrong.append(f"`note` {exc}")
        for switch in ("signing", "unsigned"):
            if switch in given:
                own[switch] = given[switch]
                if not isinstance(given[switch], bool):
                    wrong.append(f"`{switch}` must be true or false")
        if wrong:
            message = "; ".join(wrong)
            raise InvalidRequest(message[:1].upper() + message[1:] + ".")
        return name, own, fields

    def _check(self, name: str) -> None:
        """Raise for a name that no issued key can have."""
        if any(entry.principal.name == name for entry in self._configured()):
            raise Conflict(
                f"The key named {name} is configured: it changes where LLMPROXY_KEYS is set.",
                param="name",
            )
        try:
            usable_name(name)
        except ValueError:
            raise NotFound("There is no key of this name.", param="name") from None


@contextmanager
def as_errors() -> Iterator[None]:
    """Turn what the engines raise into what operators are told."""
    try:
        yield
    except Unavailable as exc:
        raise StoreUnavailable(
            "The store cannot be asked now. Try again soon.", retry_after=RETRY_AFTER
        ) from exc
    except (NameTaken, Contended) as exc:
        raise Conflict(str(exc), param="name") from exc
    except Expired as exc:
        raise InvalidRequest(str(exc), param="expires") from exc
    except NoSuchKey as exc:
        raise NotFound(str(exc), param="name") from exc


def _no_such(name: str) -> NotFound:
    return NotFound(f"There is no key named {name}.", param="name")
