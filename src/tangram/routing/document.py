"""Write the OpenAPI 3.1 document of the routes in one or several tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from tangram.routing.binding import Param, Plan
from tangram.routing.convert import is_class_like
from tangram.routing.endpoint import Endpoint
from tangram.routing.exceptions import phrase_of
from tangram.routing.params import MISSING
from tangram.routing.responses import JSONResponse, Response
from tangram.routing.schema import Schema, SchemaWriter, decorate, plain_default, title_of
from tangram.routing.table import RouteTable

__all__ = ["openapi"]

_ERROR: Final[Schema] = {
    "title": "ValidationError",
    "type": "object",
    "required": ["loc", "msg", "type"],
    "properties": {
        "loc": {
            "title": "Location",
            "type": "array",
            "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        },
        "msg": {"title": "Message", "type": "string"},
        "type": {"title": "Error Type", "type": "string"},
    },
}
_INVALID: Final[Schema] = {
    "title": "HTTPValidationError",
    "type": "object",
    "properties": {
        "detail": {
            "title": "Detail",
            "type": "array",
            "items": {"$ref": "#/components/schemas/ValidationError"},
        }
    },
}


_DETAIL: Final[Schema] = {"type": "object", "properties": {"detail": {"type": "string"}}}


def openapi(
    tables: RouteTable | Iterable[RouteTable], *, title: str = "tangram", version: str = "0"
) -> dict[str, Any]:
    """Return the OpenAPI document of the routes.

    If several tables have the same method and path, the first is shown: it answers the request.

    Args:
        tables: one table, or several in the order in which they are asked.
        title: the title of the API.
        version: the version of the API.
    """
    writer = SchemaWriter(ref_prefix="#/components/schemas/", unique_items=False)
    paths: dict[str, dict[str, Any]] = {}
    taken: set[str] = set()
    invalid = False
    for table in [tables] if isinstance(tables, RouteTable) else tables:
        for endpoint in table.endpoints:
            if not endpoint.route.include_in_schema:
                continue
            item = paths.setdefault(endpoint.route.template.display, {})
            for method in sorted(endpoint.route.methods):
                if method.lower() in item:
                    continue
                operation = _operation(endpoint, method, writer, taken)
                invalid = invalid or "422" in operation["responses"]
                item[method.lower()] = operation
    schemas = writer.finish()
    if invalid:
        schemas = {**schemas, "ValidationError": _ERROR, "HTTPValidationError": _INVALID}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
    }
    if schemas:
        document["components"] = {"schemas": dict(sorted(schemas.items()))}
    return document


def _operation(endpoint: Endpoint, method: str, writer: SchemaWriter, taken: set[str]) -> dict[str, Any]:
    route, plan = endpoint.route, endpoint.plan
    operation: dict[str, Any] = {
        "tags": list(route.tags),
        "summary": route.summary or title_of(route.name),
        "description": route.description,
        "operationId": _identifier(endpoint, method, taken),
        "deprecated": route.deprecated,
        "parameters": _parameters(plan, writer),
        "requestBody": _body(plan, writer),
    }
    operation = {key: value for key, value in operation.items() if value}
    bound = any(part.params or part.body for part in plan.everything())
    operation["responses"] = _responses(endpoint, writer, bound=bound)
    operation.update(route.openapi_extra)
    return operation


def _identifier(endpoint: Endpoint, method: str, taken: set[str]) -> str:
    words = f"{endpoint.route.name}_{endpoint.route.template.display}_{method.lower()}"
    base = name = endpoint.route.operation_id or re.sub(r"\W+", "_", words)
    number = 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    taken.add(name)
    return name


def _parameters(plan: Plan, writer: SchemaWriter) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for part in reversed(list(plan.everything())):
        for param in part.params:
            if param.marker.include_in_schema:
                found.setdefault((param.source, param.key), _parameter(param, writer))
    return list(found.values())


def _parameter(param: Param, writer: SchemaWriter) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": param.key, "in": param.source}
    entry["required"] = param.required or param.source == "path"
    if param.marker.description:
        entry["description"] = param.marker.description
    if param.marker.deprecated:
        entry["deprecated"] = True
    entry["schema"] = _without_null(_schema(param, writer))
    return entry


def _without_null(schema: Schema) -> Schema:
    """Remove null from the schema of a parameter: text cannot represent it."""
    branches = [branch for branch in schema.get("anyOf", ()) if branch != {"type": "null"}]
    if len(branches) == len(schema.get("anyOf", ())):
        return schema
    if len(branches) > 1:
        return {**schema, "anyOf": branches}
    alone = {key: value for key, value in schema.items() if key != "anyOf"}
    alone.update(branches[0])
    return alone


def _schema(param: Param, writer: SchemaWriter) -> Schema:
    from tangram.routing.constraints import from_metadata

    schema = decorate(writer.write(param.kind), from_metadata(param.metadata), param.metadata)
    if "$ref" not in schema:
        schema = {"title": param.marker.title or title_of(param.name), **schema}
    default = plain_default(param.default) if param.default is not MISSING else MISSING
    if default is not MISSING and default is not None:
        schema["default"] = default
    return schema


def _body(plan: Plan, writer: SchemaWriter) -> dict[str, Any] | None:
    params = {
        param.key if param.source == "member" else "": param
        for part in plan.everything()
        for param in part.body
    }
    if not params:
        return None
    first = next(iter(params.values()))
    # A body of bytes may be empty.
    required = any(param.required for param in params.values()) and not ("" in params and first.kind is bytes)
    if "" in params:
        schema = {} if first.kind is bytes else _schema(first, writer)
        media = first.marker.media_type if first.kind is not bytes else "application/octet-stream"
    else:
        media = "application/json"
        schema = {
            "type": "object",
            "properties": {key: _schema(param, writer) for key, param in params.items()},
        }
        if names := [key for key, param in params.items() if param.required]:
            schema["required"] = names
    return {"required": required, "content": {media: {"schema": schema}}}


def _responses(endpoint: Endpoint, writer: SchemaWriter, *, bound: bool) -> dict[str, Any]:
    route = endpoint.route
    status = str(route.status_code)
    good: dict[str, Any] = {"description": route.response_description}
    if route.status_code not in (204, 304):
        content = _content(endpoint, writer)
        if content:
            good["content"] = content
    responses: dict[str, Any] = {status: good}
    for code, extra in route.responses.items():
        entry = {key: value for key, value in extra.items() if key != "model"}
        if "model" in extra:
            entry["content"] = {"application/json": {"schema": writer.write(extra["model"])}}
        words = phrase_of(int(code)) if str(code).isdecimal() else "Response"
        responses[str(code)] = {"description": words, **responses.get(str(code), {}), **entry}
    for code, words in _body_errors(endpoint).items():
        responses.setdefault(
            code, {"description": words, "content": {"application/json": {"schema": _DETAIL}}}
        )
    if bound and "422" not in responses:
        schema = {"$ref": "#/components/schemas/HTTPValidationError"}
        faults = {"description": "Validation Error", "content": {"application/json": {"schema": schema}}}
        responses["422"] = faults
    return responses


def _body_errors(endpoint: Endpoint) -> dict[str, str]:
    """Return the statuses that a route with a body answers besides its own and 422."""
    params = [param for part in endpoint.plan.everything() for param in part.body]
    if not params:
        return {}
    large = {"413": "The body is larger than allowed"}
    raw = len(params) == 1 and params[0].kind is bytes
    return large if raw else {**large, "415": "The body's content type is not application/json"}


def _content(endpoint: Endpoint, writer: SchemaWriter) -> dict[str, Any]:
    """Return the content of a successful answer, from the handler's return annotation.

    For a response class other than JSON, only the media type is known.
    """
    route, returns = endpoint.route, endpoint.plan.returns
    if route.response_model is not None:
        returns = route.response_model
    kind = returns if isinstance(returns, type) and issubclass(returns, Response) else route.response_class
    if not issubclass(kind, JSONResponse):
        return {kind.media_type: {"schema": {"type": "string"}}} if kind.media_type else {}
    if kind is returns and not is_class_like(returns):
        returns = Any
    try:
        return {"application/json": {"schema": writer.write(returns)}}
    except (NameError, TypeError):
        return {"application/json": {"schema": {}}}  # an annotation that cannot be written as a schema
