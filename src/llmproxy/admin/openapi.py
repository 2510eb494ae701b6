"""The admin API as an OpenAPI 3.1 document. Written by hand; tests hold it to what is served."""

from typing import Any

from llmproxy.admin.audit import KEPT
from llmproxy.admin.schemas import SCHEMAS, TEXT, ref

_REFUSALS = {
    "400": "something is wrong with what was asked for",
    "401": "not the admin key, and not a key with the role admin",
    "403": "a key that may not call this path",
    "404": "there is nothing of this name",
    "408": "the body did not arrive in time",
    "409": "the name is taken, or the key belongs to the configuration",
    "413": "the body is larger than 64 KiB",
    "415": "the body is compressed",
    "503": "the store cannot be asked now",
}
_ALWAYS = ("401", "403", "503")
_WITH_BODY = ("400", "408", "413", "415")
_NAME = {"name": "name", "in": "path", "required": True, "schema": TEXT}


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
            "/admin/upstreams": {
                "get": _operation("listUpstreams", "All upstreams and their state", "Upstreams")
            },
            "/admin/upstreams/{name}": {
                "parameters": [_NAME],
                "get": _operation("getUpstream", "One upstream and its state", "Upstream", "404"),
                "patch": _operation(
                    "changeUpstream",
                    "Drain an upstream, or use it again, in every worker within 5 seconds",
                    "Upstream",
                    "404",
                    body="UpstreamChange",
                ),
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
            "schemas": SCHEMAS,
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
    return {"application/json": {"schema": ref(name)}}
