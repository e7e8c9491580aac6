from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import attrs
import pytest
from openapi_spec_validator import validate

from tangram.routing import (
    APIRouter,
    Body,
    Cookie,
    Depends,
    FileResponse,
    Header,
    PlainTextResponse,
    Query,
    openapi,
)
from tests.routing.calling import table_of

SOURCE = str(Path(__file__).parents[2] / "src")


@attrs.define
class Wind:
    speed: float
    gusts: list[Wind] = attrs.field(factory=list)


def other_wind() -> type:
    @attrs.define
    class Wind:
        direction: int

    return Wind


OtherWind = other_wind()


class State: ...


Tags = Annotated[frozenset[str], Query()]


@attrs.define
class Filters:
    tags: list[str] = attrs.field(factory=list)
    offset: int = 5


async def paging(limit: Annotated[int, Query(ge=1, description="how many")] = 10) -> int:
    return limit


def routers() -> list[APIRouter]:
    first = APIRouter(prefix="/weather", tags=["weather"], dependencies=[Depends(paging)])
    second = APIRouter(prefix="/other")

    @first.get("/wind/{level}", responses={404: {"description": "no such level", "model": OtherWind}})
    async def wind(
        level: int,
        state: State,
        x_key: Annotated[str, Header()],
        session: Annotated[str | None, Cookie()] = None,
    ) -> Wind | None:
        """The wind at a level."""

    @first.post("/wind", status_code=201, summary="Add")
    async def wind_add(wind: Wind, note: Annotated[str, Body()] = "") -> OtherWind: ...  # type: ignore[valid-type]

    @first.api_route("/both", methods=["GET", "DELETE"], operation_id="both")
    async def both(filters: Annotated[Filters, Depends()]) -> None: ...

    @first.get("/hidden", include_in_schema=False)
    async def hidden() -> None: ...

    @second.get("/wind/{rest:path}", response_class=PlainTextResponse)
    async def wind_again(rest: str) -> str: ...  # type: ignore[empty-body]

    @second.put("/raw", status_code=204, name="wind")
    async def raw(data: Annotated[bytes, Body()]) -> None: ...

    @second.get("/file")
    async def file() -> FileResponse: ...  # type: ignore[empty-body]

    return [first, second]


def document() -> dict[str, Any]:
    tables = [table_of(router, injectable=[State]) for router in routers()]
    return openapi(tables, title="mine", version="1.2")


@pytest.mark.slow
def test_the_document_is_valid() -> None:
    """An independent validator accepts the document, and the document is JSON."""
    made = document()

    validate(json.loads(json.dumps(made)))
    assert made["info"] == {"title": "mine", "version": "1.2"}


def test_operations() -> None:
    """Each method of each path is there, with tags, summary, parameters, body and answers."""
    paths = document()["paths"]
    wind, add = paths["/weather/wind/{level}"]["get"], paths["/weather/wind"]["post"]

    assert "/weather/hidden" not in paths
    assert set(paths["/weather/both"]) == {"get", "delete"}
    both = {p["name"]: p["schema"].get("default") for p in paths["/weather/both"]["get"]["parameters"]}
    assert both == {"tags": None, "offset": 5, "limit": 10}
    assert (wind["tags"], wind["summary"], wind["description"]) == (
        ["weather"],
        "Wind",
        "The wind at a level.",
    )
    assert {(p["in"], p["name"], p["required"]) for p in wind["parameters"]} == {
        ("path", "level", True),
        ("query", "limit", False),
        ("header", "x-key", True),
        ("cookie", "session", False),
    }
    limit = next(p for p in wind["parameters"] if p["name"] == "limit")
    assert limit["schema"]["minimum"] == 1
    assert limit["description"] == "how many"
    assert set(wind["responses"]) == {"200", "404", "422"}
    assert wind["responses"]["404"]["description"] == "no such level"
    assert (add["summary"], "201" in add["responses"]) == ("Add", True)
    assert add["requestBody"]["content"]["application/json"]["schema"]["required"] == ["wind"]
    assert "content" not in paths["/other/raw"]["put"]["responses"]["204"]
    assert "application/octet-stream" in paths["/other/raw"]["put"]["requestBody"]["content"]
    assert "text/plain" in paths["/other/wind/{rest}"]["get"]["responses"]["200"]["content"]


def test_the_document_describes_the_bodies_of_routes() -> None:
    """Parameters have no null, sets may have repeated items, and bodies of bytes may be empty."""
    router = APIRouter(prefix="/x")

    @router.get("/get")
    async def get(
        level: int | None = None, kind: int | str | None = None, tags: Tags = frozenset()
    ) -> None: ...

    @router.post("/raw", openapi_extra={"x-more": 1})
    async def raw(data: Annotated[bytes, Body()]) -> None: ...

    @router.post("/json", responses={415: {"description": "own words"}})
    async def json_body(filters: Filters) -> None: ...

    paths = openapi([table_of(router)])["paths"]
    level, kind, tags = paths["/x/get"]["get"]["parameters"]
    assert level["schema"] == {"title": "Level", "type": "integer"}
    assert kind["schema"] == {"title": "Kind", "anyOf": [{"type": "integer"}, {"type": "string"}]}
    assert "uniqueItems" not in tags["schema"]
    assert paths["/x/raw"]["post"]["requestBody"]["required"] is False
    assert paths["/x/raw"]["post"]["x-more"] == 1
    assert set(paths["/x/raw"]["post"]["responses"]) == {"200", "413", "422"}
    assert set(paths["/x/json"]["post"]["responses"]) == {"200", "413", "415", "422"}
    assert paths["/x/json"]["post"]["responses"]["415"]["description"] == "own words"


def test_names_do_not_clash() -> None:
    """Operation ids are unique, and two classes with one name are two schemas."""
    made = document()
    ids = [operation["operationId"] for item in made["paths"].values() for operation in item.values()]
    winds = [name for name in made["components"]["schemas"] if name.endswith("Wind")]

    assert len(set(ids)) == len(ids)
    assert len(winds) == 2


def test_no_routes() -> None:
    """The document of a server without routes is valid."""
    validate(openapi([]))


@pytest.mark.slow
def test_import_is_light() -> None:
    """The import of the package loads no web framework and no other slow module."""
    script = "import sys, tangram.routing, json; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, env={"PYTHONPATH": SOURCE}
    )
    loaded = set(json.loads(run.stdout))

    heavy = {"quart", "werkzeug", "structlog", "cattrs", "email", "mimetypes", "annotated_types", "pydantic"}
    assert loaded & (heavy | {"tangram.routing.document", "tangram.routing.files"}) == set()
