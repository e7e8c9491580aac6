"""The generated function of an endpoint answers as the other way does, fault by fault."""

from __future__ import annotations

from typing import Annotated, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.routing import APIRouter, Body, Cookie, Depends, Header, Query, Request, Response, RouteTable
from tangram.routing.endpoint import Endpoint
from tests.routing.calling import Answer, Peer, call, scope_of, table_of


@attrs.frozen
class Point:
    lat: float
    lon: float = attrs.field(default=0.5, validator=attrs.validators.lt(180))


class Registry:
    name = "registry"


async def one() -> int:
    return 1


def routes() -> APIRouter:
    router = APIRouter()

    @router.get("/path/{number}/{word}")
    async def path(word: str, number: int) -> list[object]:
        return [number, word]

    @router.get("/query")
    async def query(
        level: Annotated[int, Query(ge=0)],
        tags: Annotated[list[str], Query(default_factory=list)],
        flag: bool = False,
    ) -> list[object]:
        return [level, tags, flag]

    @router.get("/headers")
    async def headers(request: Request, x_token: Annotated[int, Header()], sid: str = Cookie("none")) -> Any:
        return [x_token, sid, request.path_params, request.query.get("level")]

    @router.post("/body/{number}", max_body=64)
    async def body(number: int, point: Point) -> Point:
        return attrs.evolve(point, lat=point.lat + number)

    @router.post("/members")
    async def members(point: Point, level: Annotated[int, Body()] = 3) -> dict[str, object]:
        return {"point": point, "level": level}

    @router.post("/maybe")
    async def maybe(point: Point | None = None) -> Point | None:
        return point

    @router.post("/bytes")
    async def raw(data: Annotated[bytes, Body()]) -> int:
        return len(data)

    @router.post("/registry")
    async def registry(registry: Registry, request: Request, points: list[Point]) -> Any:
        return [registry.name, len(points), len(await request.body())]

    @router.get("/response", status_code=201)
    async def response(status: int = 200) -> Any:
        return Response("text", status) if status != 200 else {"status": status}

    return router


def table(*, short: bool) -> RouteTable:
    made = table_of(routes(), injectable=[Registry], resolve=lambda kind: kind())
    if not short:
        for endpoint in made.endpoints:
            endpoint.short = None
    return made


SHORT, LONG = table(short=True), table(short=False)

TARGETS = st.sampled_from(
    [
        *("/path/1/a", "/path/x/a", "/path/%31/%2F", "/query", "/query?level=1", "/query?level=-1&flag=x"),
        *("/query?level=1&level=2&tags=a&tags=b", "/query?level=%ff", "/query?tags=a", "/headers?level=2"),
        *("/body/1", "/body/x", "/members", "/maybe", "/bytes", "/registry", "/response?status=404"),
        *("/response?status=x", "/response"),
    ]
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "x-token": st.sampled_from(["1", "x", ""]),
        "cookie": st.sampled_from(["sid=7", "other=1"]),
        "content-type": st.sampled_from(
            ["application/json; charset=utf-8", "text/plain", "application/x+json"]
        ),
        "content-encoding": st.sampled_from(["identity", "gzip"]),
        "content-length": st.sampled_from(["1", "100", "x"]),
    },
)
BODIES = st.sampled_from(
    [
        *(b"", b"{}", b"[]", b"null", b"{", b'{"lat":1}', b'{"lat":"1.5","lon":3}', b'{"lat":1,"lon":200}'),
        *(b'{"lat":"x","lon":[]}', b'[{"lat":1},{"lat":2}]', b'[{"lat":1},{}]', b'{"point":{"lat":1}}'),
        *(b'{"point":{"lat":1},"level":"4"}', b'{"point":3,"level":[]}', b"\xef\xbb\xbf{}", b"\xff"),
        b'{"lat":1,"more":"' + b"z" * 80 + b'"}',
    ]
)


@pytest.mark.slow
@given(
    method=st.sampled_from(["GET", "POST", "HEAD"]),
    target=TARGETS,
    headers=HEADERS,
    body=BODIES,
    pieces=st.integers(1, 3),
)
async def test_both_ways_answer_alike(
    method: str, target: str, headers: dict[str, str], body: bytes, pieces: int
) -> None:
    """Status, headers and body are the same, whatever is missing, malformed or too large."""
    if method != "POST":
        body = b""
    size = max(1, len(body) // pieces)
    parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    given_headers = {"content-type": "application/json", **headers}
    answers = [await call(made, method, target, parts, given_headers) for made in (SHORT, LONG)]

    assert answers[0] == answers[1]


async def test_requests_without_a_fault_take_the_short_way() -> None:
    """The function is generated at the first request, and reads the body with one ``receive``."""
    made = table(short=True)
    answer = await call(made, "POST", "/body/2", b'{"lat":1}')

    assert answer == Answer(
        200,
        [("content-type", "application/json"), ("content-length", "21")],
        b'{"lat":3.0,"lon":0.5}',
        [b'{"lat":3.0,"lon":0.5}'],
    )
    found = made.match("POST", "/body/2")
    assert found is not None
    assert isinstance(found.value, Endpoint)
    assert found.value.short.__qualname__ == "short"  # type: ignore[union-attr]  # see above


@pytest.mark.parametrize("kind", ["dependency", "response", "thread", "class", "bodiless"])
async def test_other_endpoints_have_no_short_way(kind: str) -> None:
    """Dependencies, injected responses, threads and answers that are no JSON are left to ``calls``."""
    router = APIRouter()

    async def depending(number: Annotated[int, Depends(one)]) -> int:
        return number

    async def responding(response: Response) -> int:
        response.headers["x-one"] = "1"
        return 1

    def threaded() -> int:
        return 1

    handlers: dict[str, Any] = {"dependency": depending, "response": responding, "thread": threaded}
    settings: dict[str, Any] = {"class": {"response_class": Response}, "bodiless": {"status_code": 204}}
    router.add_api_route("/", handlers.get(kind, one), **settings.get(kind, {}))
    made = table_of(router)
    await call(made, "GET", "/")

    (endpoint,) = made.endpoints
    assert endpoint.short is None


class Whole:
    """An engine's ``send`` that takes whole responses."""

    def __init__(self) -> None:
        self.answers: list[tuple[Any, ...]] = []

    async def __call__(self, message: Any) -> None:
        raise AssertionError(message)

    async def answer(self, *answer: Any) -> None:
        self.answers.append(answer)
        if len(self.answers) > 1:
            raise OSError("gone")


async def test_an_answer_is_given_to_the_engine_in_one_call() -> None:
    """With the fields of the server; a client that has gone ends the request without another answer."""
    send = Whole()
    for _ in range(2):
        scope = scope_of("GET", "/path/1/a")
        assert await SHORT.handle(scope, Peer().receive, send, ((b"vary", b"Origin"),))

    fields = ((b"content-type", b"application/json"), (b"vary", b"Origin"))
    assert send.answers == [(200, fields, b'[1,"a"]')] * 2
