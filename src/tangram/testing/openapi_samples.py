"""Make requests from an OpenAPI document: its examples, or the smallest values that fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

import attrs

__all__ = ["SampleRequest", "requests_of", "sample_of"]

METHODS: Final = ("get", "head", "post", "put", "patch", "delete", "options")

DEEPEST: Final = 8
"""Depth at which a recursive schema is cut."""

_FORMATS: Final = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00",
    "uuid": "6f9b2c1e-0d53-4a55-9a0e-3a3f0d1c2b4a",
    "uri": "http://127.0.0.1/",
    "email": "ann@example.org",
}


@attrs.frozen
class SampleRequest:
    """A request that an operation's declaration allows."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any = None
    """A JSON value; None for no body."""


def requests_of(document: Mapping[str, Any]) -> Iterator[SampleRequest]:
    """Yield one request for each operation of an OpenAPI 3.1 document."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield _request(document, path, method, item[method])


def _request(
    document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]
) -> SampleRequest:
    given: dict[str, dict[str, str]] = {"path": {}, "query": {}, "header": {}, "cookie": {}}
    for parameter in operation.get("parameters", ()):
        if parameter.get("required"):
            given[parameter["in"]][parameter["name"]] = _text(_example(document, parameter))
    for name, value in given["path"].items():
        path = path.replace("{" + name + "}", quote(value, safe=""))
    headers = dict(given["header"])
    if given["cookie"]:
        headers["cookie"] = "; ".join(f"{name}={value}" for name, value in given["cookie"].items())
    content = operation.get("requestBody", {}).get("content", {})
    body = _example(document, content["application/json"]) if "application/json" in content else None
    return SampleRequest(method.upper(), path, given["query"], headers, body)


def _example(document: Mapping[str, Any], place: Mapping[str, Any]) -> Any:
    if "example" in place:
        return place["example"]
    for named in dict(place.get("examples", {})).values():
        return named["value"]
    return sample_of(document, place.get("schema", {}))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def sample_of(document: Mapping[str, Any], schema: Mapping[str, Any], depth: int = 0) -> Any:
    """Return a value that a schema allows: its example or default, else the smallest one."""
    if "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return sample_of(document, found, depth)
    for key in ("example", "default", "const"):
        if key in schema:
            return schema[key]
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return sample_of(document, schema[key][0], depth + 1)
    return _least(document, schema, depth)


def _least(document: Mapping[str, Any], schema: Mapping[str, Any], depth: int) -> Any:
    kind = schema.get("type", "string")
    match kind[0] if isinstance(kind, list) else kind:
        case "integer" | "number":
            low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
            return low + 1 if "exclusiveMinimum" in schema else low
        case "boolean":
            return False
        case "array":
            least = schema.get("minItems", 0) if depth < DEEPEST else 0
            return [sample_of(document, schema.get("items", {}), depth + 1)] * least
        case "object":
            wanted = schema.get("required", ()) if depth < DEEPEST else ()
            known = schema.get("properties", {})
            return {name: sample_of(document, known.get(name, {}), depth + 1) for name in wanted}
        case "null":
            return None
        case _:
            return _FORMATS.get(schema.get("format", ""), "x" * max(1, schema.get("minLength", 1)))
