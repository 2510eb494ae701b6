"""The OpenAPI document tells what is served, and nothing else."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from llmproxy.admin.openapi import document
from llmproxy.records import Upstream
from llmproxy.settings.engines import FIELDS
from tests.admin.office import Answered, FailingStore, Office, office
from tests.support.registries import registry_of

DOCUMENT = document("/")
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
METHODS = ("get", "post", "put", "patch", "delete")
OPERATIONS = [
    (method, path, item[method])
    for path, item in DOCUMENT["paths"].items()
    for method in METHODS
    if method in item
]
CONFIGURED = "green:sk-green-8f3KpQz71LmX;limits=5 req/min;budget=10 tok"
BLUE = Upstream("blue", "http", "127.0.0.1", 1)
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/admin/keys"): {"name": "red"},
    ("patch", "/admin/upstreams/{name}"): {"draining": True},
}
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def faults(value: object, schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """Yield what of a value does not fit, for as much of JSON Schema as the document uses."""
    if "$ref" in schema:
        yield from faults(value, SCHEMAS[schema["$ref"].rpartition("/")[2]], where)
        return
    if "const" in schema and value != schema["const"]:
        yield f"{where}: {value!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    kinds = schema.get("type", [])
    if kinds and not any(
        is_a(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)
    ):
        yield f"{where}: {value!r} is no {kinds}"
    if "pattern" in schema and not re.search(schema["pattern"], str(value)):
        yield f"{where}: {value!r} is not of the form"
    if isinstance(value, list) and "items" in schema:
        for place, item in enumerate(value):
            yield from faults(item, schema["items"], f"{where}[{place}]")
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        yield from (
            f"{where}.{name} is missing" for name in schema.get("required", ()) if name not in value
        )
        for name, item in value.items():
            inner = properties.get(name, schema.get("additionalProperties", {}))
            if inner is False:
                yield f"{where}.{name} is not in the document"
            else:
                yield from faults(item, inner, f"{where}.{name}")


def is_a(value: object, kind: str) -> bool:
    if kind in ("number", "integer"):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (kind == "number" or whole)
        )
    return isinstance(value, TYPES[kind])


def misfits(method: str, path: str, answer: Answered) -> list[str]:
    """Return what of an answer the document does not tell."""
    told = DOCUMENT["paths"][path][method]["responses"].get(str(answer.status))
    if told is None:
        return [f"{method} {path} answered {answer.status}"]
    return list(faults(answer.document, told["content"]["application/json"]["schema"]))


def test_every_route_is_in_the_document() -> None:
    """And every path and method of the document is a route."""
    served = {
        (method.lower(), path) for path, pages in office().api.routes.items() for method in pages
    }

    assert {(method, path) for method, path, _ in OPERATIONS} == served


@pytest.mark.parametrize(
    ("method", "path", "operation"), OPERATIONS, ids=lambda each: str(each)[:30]
)
async def test_every_operation_answers(method: str, path: str, operation: dict[str, Any]) -> None:
    """With the status and the form that the document promises."""
    desk = office(configured=CONFIGURED, registry=registry_of(BLUE))
    await desk.ask("POST", "/admin/keys", {"name": "blue", "limits": "5 req/min", "expires": 4e9})
    body = BODIES.get((method, path), {})

    answer = await desk.ask(method.upper(), path.replace("{name}", "blue"), body)

    assert answer.status is not None and answer.status < 300
    assert misfits(method, path, answer) == []


async def refused(desk: Office, method: str, path: str, cause: str) -> Answered:
    real = path.replace("{name}", "blue")
    options: dict[str, Any] = {}
    if cause == "401":
        options["headers"] = []
    elif cause == "404":
        real = path.replace("{name}", "nobody")
    elif cause == "409":
        real = path.replace("{name}", "green")
    elif cause == "400":
        options["body"] = b"{"
        real += "?last=x"
    elif cause == "413":
        options["body"] = b" " * 70_000
    elif cause == "415":
        headers = [(b"x-api-key", b"admin-Zk3v8Qp1"), (b"content-encoding", b"br")]
        options["headers"] = headers
    body = {"name": "green"} if path == "/admin/keys" else BODIES.get((method, path), {})
    return await desk.ask(method.upper(), real, body, **options)


REFUSALS = [
    (method, path, cause)
    for method, path, operation in OPERATIONS
    for cause in operation["responses"]
    # What is left out here, test_keys_api has: a clock, a role, a store.
    if cause not in ("200", "201", "403", "408", "503")
    # A body that nobody looks into cannot be wrong.
    and (method, cause) != ("delete", "400")
]


@pytest.mark.parametrize(("method", "path", "cause"), REFUSALS)
async def test_every_refusal_has_the_form_of_errors(method: str, path: str, cause: str) -> None:
    """And comes for the cause that the document names."""
    desk = office(store=FailingStore(), configured=CONFIGURED, registry=registry_of(BLUE))
    await desk.ask("POST", "/admin/keys", {"name": "blue"})

    answer = await refused(desk, method, path, cause)

    assert str(answer.status) == cause
    assert misfits(method, path, answer) == []


def test_a_new_key_has_the_fields_that_there_are() -> None:
    """Those of configured keys, and a name, a note and the two about signatures."""
    assert {*FIELDS.names, "name", "note", "signing", "unsigned"} == {
        *SCHEMAS["NewKey"]["properties"]
    }
    assert SCHEMAS["NewKey"]["required"] == ["name"]


def test_every_reference_leads_somewhere() -> None:
    """And no schema is there for nothing."""
    used = set(re.findall(r"#/components/schemas/(\w+)", str(DOCUMENT)))

    assert used == SCHEMAS.keys()


def test_every_operation_has_a_name_of_its_own() -> None:
    """Generated clients call their methods by it."""
    names = [operation["operationId"] for _, _, operation in OPERATIONS]

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][A-Za-z]+", name) for name in names)


def test_every_part_of_a_path_is_described() -> None:
    """A client has to know what to put in."""
    for path, item in DOCUMENT["paths"].items():
        described = {each["name"] for each in item.get("parameters", ()) if each["in"] == "path"}
        assert set(re.findall(r"{(\w+)}", path)) == described


async def test_the_document_says_where_it_was_mounted() -> None:
    """A client that is made from it finds the way back."""
    answer = await office().ask("GET", "/llm/admin/openapi.json", root_path="/llm")

    assert answer.document["openapi"].startswith("3.1.")
    assert answer.document["servers"] == [{"url": "/llm"}]


def test_the_checking_of_forms_is_right() -> None:
    """What does not fit is found."""
    schema = SCHEMAS["RevokedKey"]

    assert not list(faults({"name": "a", "state": "revoked"}, schema))
    assert list(faults({"name": "a"}, schema))
    assert list(faults({"name": 1, "state": "revoked"}, schema))
    assert list(faults({"name": "a", "state": "other"}, schema))
    assert list(faults({"name": "a", "state": "revoked", "more": 1}, schema))
