"""The admin API as an OpenAPI 3.1 document. Written by hand; tests hold it to what is served."""

from typing import Any

from llmproxy.admin.audit import KEPT
from llmproxy.records import Role

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
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
    return _object({"object": {"const": "list"}, "data": {"type": "array", "items": _ref(name)}})


def _ref(name: str) -> Schema:
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
        "fingerprint": _said(_TEXT, "tells one key of a name from another"),
        "state": {"enum": ["active", "ending", "replaced", "expired", "revoked"]},
        "created": _MOMENT,
        "until": _said(_MOMENT, "from when it is refused"),
    }
)

_KEY: dict[str, Schema] = {
    "name": _TEXT,
    "id": _said(_TEXT, "what limits and books are kept under"),
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
    "note": _TEXT,
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
    "key": _said(_TEXT, "the key itself; it is shown this once and kept nowhere"),
    "lasting": _said(_YES_OR_NO, "whether it outlives the process"),
}

_STANDING = _object(
    {
        "text": _said(_TEXT, "as it is configured"),
        "kind": {"enum": ["limit", "hard", "soft", "cut"]},
        "unit": {"enum": ["req", "tok", "concurrent", "usd"]},
        "amount": _NUMBER,
        "used": _said(_NUMBER, "what is held for requests under way included"),
        "left": _said(_NUMBER, "negative when more was used than allowed"),
        "resets_in": _said({"type": ["number", "null"]}, "seconds; null = it never does"),
    }
)

_SCHEMAS: dict[str, Schema] = {
    "NewKey": _object(_NEW_KEY, optional=tuple(name for name in _NEW_KEY if name != "name")),
    "Key": _object(_KEY),
    "Keys": _list_of("Key"),
    "IssuedKey": _object(_ISSUED),
    "Rotation": _object(
        {"overlap": _said({"type": ["string", "number"]}, "such as 1h, or seconds; 1h if not set")},
        optional=("overlap",),
    ),
    "RotatedKey": _object({**_ISSUED, "overlap": _said(_NUMBER, "seconds")}),
    "RevokedKey": _object({"name": _TEXT, "state": {"const": "revoked"}}),
    "Caller": _object(
        {
            "name": _TEXT,
            "id": _TEXT,
            "source": {"enum": ["configured", "issued"]},
            "team": _MAYBE_TEXT,
            "limits": {"type": "array", "items": _STANDING},
            "budgets": {"type": "array", "items": _STANDING},
        }
    ),
    "Usage": _list_of("Caller"),
    "AuditEntry": _object(
        {
            "id": _said(_TEXT, "of the change; what became of it may be told by a second entry"),
            "time": _MOMENT,
            "actor": _TEXT,
            "actor_id": _TEXT,
            "address": _MAYBE_TEXT,
            "action": {"enum": ["create", "rotate", "revoke"]},
            "key": _said(_TEXT, "the name of the key"),
            "changed": {"type": "object", "additionalProperties": {"type": "string"}},
            "result": _said(
                {"enum": ["refused", "unfinished"]},
                "refused: nothing was changed; unfinished: perhaps only a part was",
            ),
        },
        optional=("result",),
    ),
    "Audit": _list_of("AuditEntry"),
    "OpenApi": {"type": "object"},
    "Error": _object(
        {"error": _object({"message": _TEXT, "type": _TEXT, "param": _MAYBE_TEXT, "code": _TEXT})}
    ),
}

_REFUSALS = {
    "400": "something is wrong with what was asked for",
    "401": "not the admin key, and not a key with the role admin",
    "403": "a key that may not call this path",
    "404": "there is no such key",
    "408": "the body did not arrive in time",
    "409": "the name is taken, or the key belongs to the configuration",
    "413": "the body is larger than 64 KiB",
    "415": "the body is compressed",
    "503": "the store cannot be asked now",
}
_ALWAYS = ("401", "403", "503")
_WITH_BODY = ("400", "408", "413", "415")
_NAME = {"name": "name", "in": "path", "required": True, "schema": _TEXT}


def document(server: str) -> dict[str, Any]:
    """Return the document, for an API that is found below this path."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llmproxy admin API",
            "version": "1",
            "description": "Answers 404 unless LLMPROXY_ADMIN_KEY is set.",
        },
        "servers": [{"url": server}],
        "security": [{"bearer": []}, {"header": []}],
        "paths": {
            "/admin/keys": {
                "get": _operation("listKeys", "All keys, without secrets", "Keys"),
                "post": _operation(
                    "createKey", "Issue a key", "IssuedKey", "409", status="201", body="NewKey"
                ),
            },
            "/admin/keys/{name}": {
                "parameters": [_NAME],
                "get": _operation("getKey", "One key, without its secret", "Key", "404"),
                "delete": _operation(
                    "revokeKey",
                    "Refuse a key, in every worker within 5 seconds",
                    "RevokedKey",
                    *("404", "409", *_WITH_BODY),
                ),
            },
            "/admin/keys/{name}/rotate": {
                "parameters": [_NAME],
                "post": _operation(
                    "rotateKey",
                    "Issue a new key under the same name; the old one works on for a while",
                    "RotatedKey",
                    *("404", "409"),
                    body="Rotation",
                    needed=False,
                ),
            },
            "/admin/usage": {
                "get": _operation("getUsage", "How the limits and budgets stand", "Usage")
            },
            "/admin/audit": {
                "get": {
                    **_operation(
                        "getAudit",
                        f"The last changes, oldest first; {KEPT} are kept",
                        "Audit",
                        "400",
                    ),
                    "parameters": [
                        {
                            "name": "last",
                            "in": "query",
                            "schema": {
                                "type": "integer",
                                "minimum": 1,
                                "maximum": 1000,
                                "default": 100,
                            },
                        }
                    ],
                }
            },
            "/admin/openapi.json": {
                "get": _operation("getOpenApi", "This document", "OpenApi"),
            },
        },
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(
    name: str,
    summary: str,
    answer: str,
    *refusals: str,
    status: str = "200",
    body: str | None = None,
    needed: bool = True,
) -> dict[str, Any]:
    refused = {*_ALWAYS, *refusals, *(_WITH_BODY if body is not None else ())}
    operation: dict[str, Any] = {"operationId": name, "summary": summary}
    if body is not None:
        operation["requestBody"] = {"required": needed, "content": _json(body)}
    operation["responses"] = {
        status: {"description": "done", "content": _json(answer)},
        **{
            each: {"description": _REFUSALS[each], "content": _json("Error")}
            for each in sorted(refused)
        },
    }
    return operation


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(name)}}
