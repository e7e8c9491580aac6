from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from tangram.routing import APIRouter, Mount, RouteTable, openapi
from tests.routing.calling import call

PAGE = (Path(__file__).parents[2] / "docs" / "routing.md").read_text()


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> RouteTable:
    """The routes of the page, its Python blocks run one after another as one module."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/routing.md", "exec"), module.__dict__)
    routers = [value for value in vars(module).values() if isinstance(value, APIRouter)]
    return RouteTable([Mount(router, "page") for router in routers])


async def test_the_page_says_what_happens(table: RouteTable) -> None:
    """Every request of the page gets the answer that stands below it."""
    assert table.problems == []
    examples = re.findall(r"^(GET|POST) (\S+)(?: (.*))?\n(\d{3}) (.*)$", PAGE, re.MULTILINE)

    assert len(examples) >= 8
    for method, target, body, status, expected in examples:
        answer = await call(table, method, target, body.encode())

        assert (answer.status, answer.body.decode()) == (int(status), expected)


def test_the_page_names_what_there_is(table: RouteTable) -> None:
    """Each public name of the room that an author uses is on the page, and its routes can be documented."""
    import tangram.routing

    inner = {"InvalidRequest", "Mount", "Resolver", "ResponseAborted", "check_router", "json_schema"}
    shown = {name for name in tangram.routing.__all__ if re.search(rf"\b{name}\b", PAGE)}

    assert set(tangram.routing.__all__) - inner - shown <= {"HTMLResponse", "JSONResponse"}
    assert "/weather/wind/{level}" in openapi(table)["paths"]
