"""The forms of what the admin API takes and tells, as JSON Schema."""

from typing import Any

from llmproxy.records import Role

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
_MAYBE_TEXT: Schema = {"type": ["string", "null"]}
_TEXTS: Schema = {"type": "array", "items": {"type": "string"}}
_YES_OR_NO: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_MOMENT: Schema = {"type": ["string", "null"], "format": "date-time"}
_LIST_OR_TEXT: Schema = {
    "type": ["array", "string"],
    "items": {"type": "string"},
    "minItems": 1,
    "description": "a list, or text with | between its entries",
}


def _said(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


def _object(properties: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _list_of(name: str) -> Schema:
    return _object({"object": {"const": "list"}, "data": {"type": "array", "items": ref(name)}})


def ref(name: str) -> Schema:
    """Return where a schema of this name stands in the document."""
    return {"$ref": f"#/components/schemas/{name}"}


_NEW_KEY: dict[str, Schema] = {
    "name": _said(
        {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"}, "told in every log"
    ),
    "team": _MAYBE_TEXT,
    "tier": _MAYBE_TEXT,
    "tags": _LIST_OR_TEXT,
    "role": {"enum": [role.value for role in Role]},
    "models": _said(_LIST_OR_TEXT, "globs of the models it may use; without, all"),
    "routes": _said(_LIST_OR_TEXT, "names of endpoints or globs of paths; without, all"),
    "networks": _said(_LIST_OR_TEXT, "addresses or networks it may be used from; without, all"),
    "limits": _said(_LIST_OR_TEXT, "such as `60 req/min`, `100000 tok/min`, `8 concurrent`"),
    "budget": _said(_LIST_OR_TEXT, "such as `10 usd/day`, `1e6 tok/month`, `soft:5 usd/day`"),
    "weight": _said({"type": ["number", "string"]}, "its share when there is a queue"),
    "priority": _said({"type": ["integer", "string"]}, "the highest class it may ask for"),
    "max_tokens": _said({"type": ["integer", "string"]}, "the most that one answer may have"),
    "expires": _said({"type": ["string", "number"]}, "a date, a date with a time, or seconds"),
    "note": _MAYBE_TEXT,
    "signing": _said(_YES_OR_NO, "requests may be signed with it"),
    "unsigned": _said(_YES_OR_NO, "uploads may be signed without their content"),
}

_SECRET_OF_A_NAME = _object(
    {
        "fingerprint": _said(TEXT, "tells one key of a name from another"),
        "state": {"enum": ["active", "ending", "replaced", "expired", "revoked"]},
        "created": _MOMENT,
        "until": _said(_MOMENT, "from when it is refused"),
    }
)

_KEY: dict[str, Schema] = {
    "name": TEXT,
    "id": _said(TEXT, "what limits and books are kept under"),
    "source": {"enum": ["configured", "issued"]},
    "team": _MAYBE_TEXT,
    "tier": _MAYBE_TEXT,
    "tags": _TEXTS,
    "role": {"enum": [role.value for role in Role]},
    "models": _TEXTS,
    "routes": _TEXTS,
    "networks": _TEXTS,
    "limits": _TEXTS,
    "budget": _TEXTS,
    "weight": _NUMBER,
    "priority": {"type": "integer"},
    "max_tokens": {"type": ["integer", "null"]},
    "expires": _MOMENT,
    "note": TEXT,
    "state": {"enum": ["active", "ending", "replaced", "expired", "revoked"]},
    "created": _MOMENT,
    "signing": _YES_OR_NO,
    "unsigned": _YES_OR_NO,
    "keys": _said(
        {"type": "array", "items": _SECRET_OF_A_NAME}, "those of an issued name, newest first"
    ),
}

_ISSUED: dict[str, Schema] = {
    **_KEY,
    "key": _said(TEXT, "the key itself; it is shown this once and kept nowhere"),
    "lasting": _said(_YES_OR_NO, "whether it outlives the process"),
    "notice": _said(_MAYBE_TEXT, "why nobody is asked for it yet; null = callers are"),
}

_STANDING = _object(
    {
        "text": _said(TEXT, "as it is configured"),
        "kind": {"enum": ["limit", "hard", "soft", "cut"]},
        "unit": {"enum": ["req", "tok", "concurrent", "usd"]},
        "amount": _NUMBER,
        "used": _said(_NUMBER, "what is held for requests under way included"),
        "left": _said(_NUMBER, "negative when more was used than allowed"),
        "resets_in": _said({"type": ["number", "null"]}, "seconds; null = it never does"),
    }
)

_UPSTREAM: dict[str, Schema] = {
    "name": TEXT,
    "preset": TEXT,
    "up": _said(_YES_OR_NO, "as of the last probe"),
    "detail": _said(TEXT, "ok, or what the last probe found wrong"),
    "draining": _said(_YES_OR_NO, "it gets no new requests"),
    "breaker": {"enum": ["closed", "half-open", "open"]},
    "inflight": _said({"type": "integer"}, "requests of this process that are not finished"),
    "models": _said(
        {"type": ["array", "null"], "items": TEXT}, "those it has; null = nobody has said"
    ),
    "load": _said(
        {
            "type": ["object", "null"],
            "properties": {
                "running": {"type": "integer"},
                "waiting": {"type": "integer"},
                "kv_use": _said(_NUMBER, "share of its KV cache in use, 0 to 1"),
            },
            "required": ["running", "waiting", "kv_use"],
            "additionalProperties": False,
        },
        "what the engine says of itself; null = nothing",
    ),
    "weight": {"type": "integer"},
    "max_inflight": _said({"type": "integer"}, "0 = no limit"),
    "tags": _TEXTS,
}

SCHEMAS: dict[str, Schema] = {
    "NewKey": _object(_NEW_KEY, optional=tuple(name for name in _NEW_KEY if name != "name")),
    "Key": _object(_KEY),
    "Keys": _list_of("Key"),
    "IssuedKey": _object(_ISSUED),
    "Rotation": _object(
        {"overlap": _said({"type": ["string", "number"]}, "such as 1h, or seconds; 1h if not set")},
        optional=("overlap",),
    ),
    "RotatedKey": _object({**_ISSUED, "overlap": _said(_NUMBER, "seconds")}),
    "RevokedKey": _object({"name": TEXT, "state": {"const": "revoked"}}),
    "Caller": _object(
        {
            "name": TEXT,
            "id": TEXT,
            "source": {"enum": ["configured", "issued"]},
            "team": _MAYBE_TEXT,
            "limits": {"type": "array", "items": _STANDING},
            "budgets": {"type": "array", "items": _STANDING},
        }
    ),
    "Usage": _list_of("Caller"),
    "Upstream": _object(_UPSTREAM),
    "Upstreams": _list_of("Upstream"),
    "UpstreamChange": _object(
        {"draining": _said(_YES_OR_NO, "true: it gets no new requests, false: it does again")}
    ),
    "AuditEntry": _object(
        {
            "id": _said(TEXT, "of the change; what became of it may be told by a second entry"),
            "time": _MOMENT,
            "actor": TEXT,
            "actor_id": TEXT,
            "address": _MAYBE_TEXT,
            "action": {"enum": ["create", "rotate", "revoke", "drain", "undrain"]},
            "key": _said(TEXT, "the name of the key that was changed"),
            "upstream": _said(TEXT, "the name of the upstream that was changed"),
            "changed": {"type": "object", "additionalProperties": {"type": "string"}},
            "result": _said(
                {"enum": ["refused", "unfinished"]},
                "refused: nothing was changed; unfinished: perhaps only a part was",
            ),
        },
        optional=("key", "upstream", "result"),
    ),
    "Audit": _list_of("AuditEntry"),
    "OpenApi": {"type": "object"},
    "Error": _object(
        {"error": _object({"message": TEXT, "type": TEXT, "param": _MAYBE_TEXT, "code": TEXT})}
    ),
}
