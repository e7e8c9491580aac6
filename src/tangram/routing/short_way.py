"""Generate one function for each endpoint that reads, checks, calls and encodes.

1. It covers handlers that are async functions without dependencies, whose answers are JSON. All other
   endpoints are answered by ``calls``.
2. It answers requests without a fault. For a request with one it returns `NotShort`, and ``calls`` finds
   every fault: so both ways refuse the same requests, with the same words.
3. An endpoint's function is generated at its first request: most servers never use most of their routes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import attrs

from tangram.asgi import Receive, Scope
from tangram.routing.binding import Param, Plan
from tangram.routing.connection import parse_query
from tangram.routing.params import MISSING
from tangram.routing.request import READ_AT_ONCE, Request, decode_json, is_plain_json, read_body
from tangram.routing.responses import JSONResponse, Response, encode_json
from tangram.routing.router import Mount, Route

__all__ = ["NOT_SHORT", "NotShort", "ShortWay", "compile_short"]


@attrs.frozen
class NotShort:
    """The request that ``calls`` has to answer."""

    body: bytes | None = None
    """The body, if it was read."""


NOT_SHORT: Final = NotShort()

ShortWay: TypeAlias = Callable[[tuple[str, ...], Scope, Receive, int], Awaitable[Any]]
"""Called with the path parameters in order, ASGI's scope and ``receive``, and the server's ``max_body``.

Returns the JSON of the answer, a `Response` of the handler, or `NotShort`.
"""


def compile_short(plan: Plan, mount: Mount, route: Route) -> ShortWay | None:
    """Return the function of an endpoint, or None if its requests take the other way."""
    whats = {what for _, what, _ in plan.special}
    if plan.how != "async" or plan.dependencies or "response" in whats:
        return None
    if route.response_class is not JSONResponse or route.status_code in (204, 304) or route.status_code < 200:
        return None
    return _Source(plan, mount, route).function()


class _Source:
    """The lines of one function, and the names that they use."""

    def __init__(self, plan: Plan, mount: Mount, route: Route) -> None:
        self._plan = plan
        self._route = route
        self._names: dict[str, Any] = {
            "MISSING": MISSING,
            "NotShort": NotShort,
            "Request": Request,
            "Response": Response,
            "call": plan.call,
            "content_of": _content_of,
            "encode": encode_json,
            "member_of": _member_of,
            "names": route.template.names,
            "pairs_of": _pairs_of,
            "read_body": read_body,
            "required": _required,
            "resolve": mount.resolve,
        }
        sources = {param.source for param in plan.params}
        self._has_request = bool(sources & {"header", "cookie"}) or any(
            what == "request" for _, what, _ in plan.special
        )
        self._has_query = "query" in sources
        body = plan.body
        self._reads_json = bool(body) and not (len(body) == 1 and body[0].kind is bytes)

    def function(self) -> ShortWay:
        lines = [
            "async def short(values, scope, receive, max_body):",
            *self._limit(),
            *("    body = await read_body(scope, receive, max_body)" for _ in self._plan.body[:1]),
            *([f"    if len(body) > {READ_AT_ONCE}: return NotShort(body)"] if self._reads_json else []),
            "    try:",
            *(f"        {line}" for line in self._reading()),
            "    except Exception:",
            f"        return NotShort({'body' if self._plan.body else ''})",
            f"    result = await call({self._arguments()})",
            "    return result if isinstance(result, Response) else encode(result)",
        ]
        method = ",".join(sorted(self._route.methods))
        code = compile("\n".join(lines), f"<{method} {self._route.template.path}>", "exec")
        exec(code, self._names)  # noqa: S102 - made of names and numbers of this module, no text of a route
        made: ShortWay = self._names["short"]
        return made

    def _limit(self) -> list[str]:
        if self._route.max_body is None:
            return []
        return [f"    max_body = {self._route.max_body:d}"]

    def _reading(self) -> list[str]:
        """Return the lines that make ``a0``, ``a1`` and so on, one for each parameter."""
        lines = ["pass"]
        if self._has_request:
            lines.append(
                "request = Request("
                "scope, receive, max_body=max_body, path_params=dict(zip(names, values, strict=True)))"
            )
            lines += ["request.set_body(body)"] if self._plan.body else []
        if self._has_query:
            lines.append("pairs = pairs_of(scope)")
        number = 0
        for _, what, kind in self._plan.special:
            self._names[f"k{number}"] = kind
            lines.append(f"a{number} = " + ("request" if what == "request" else f"resolve(k{number})"))
            number += 1
        body = self._plan.body
        if self._reads_json:
            lines.append("content = content_of(scope, body)")
        for param in (*self._plan.params, *body):
            lines += self._conversion(number, param)
            number += 1
        return lines

    def _conversion(self, number: int, param: Param) -> list[str]:
        """Return the lines that convert one parameter, or take its default."""
        self._names[f"c{number}"] = param.convert
        if param.source == "path":
            return [f"a{number} = c{number}(values[{self._route.template.names.index(param.key)}])"]
        if param.source == "body" and param.kind is bytes and len(self._plan.body) == 1:
            return [f"a{number} = c{number}(body)"]
        self._names[f"n{number}"] = param.key
        raw = {
            "query": f"pairs.get(n{number}, MISSING)",
            "header": f"request.headers.getlist(n{number}) or MISSING",
            "cookie": f"request.cookies.get(n{number}, MISSING)",
            "body": "content",
            "member": f"member_of(content, n{number})",
        }[param.source]
        last = "[-1]" if param.source in {"query", "header"} and not param.many else ""
        if param.default_factory is not None:
            self._names[f"d{number}"] = param.default_factory
            default = f"d{number}()"
        elif param.default is not MISSING:
            self._names[f"d{number}"] = param.default
            default = f"d{number}"
        else:
            default = "required()"
        return [f"raw = {raw}", f"a{number} = {default} if raw is MISSING else c{number}(raw{last})"]

    def _arguments(self) -> str:
        special = [name for name, _, _ in self._plan.special]
        given = [param.name for param in (*self._plan.params, *self._plan.body)]
        return ", ".join(f"{name}=a{number}" for number, name in enumerate([*special, *given]))


def _required() -> None:
    raise KeyError


def _pairs_of(scope: Scope) -> dict[str, list[str]]:
    """Return the values of each name in the query."""
    pairs: dict[str, list[str]] = {}
    for key, value in parse_query(scope.get("query_string", b"")):
        pairs.setdefault(key, []).append(value)
    return pairs


def _content_of(scope: Scope, body: bytes) -> Any:
    """Return the value of a JSON body, or MISSING if there is none."""
    if not body:
        return MISSING
    if not is_plain_json(scope):
        raise ValueError
    return decode_json(body)


def _member_of(content: Any, key: str) -> Any:
    if content is MISSING:
        return MISSING
    if type(content) is not dict:
        raise TypeError
    return content.get(key, MISSING)
