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
    """The routes of the page, from its Python blocks run one after another as one module."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/routing.md", "exec"), module.__dict__)
    routers = [value for value in vars(module).values() if isinstance(value, APIRouter)]
    return RouteTable([Mount(router, "page") for router in routers])


async def test_requests_on_the_page_get_the_printed_answers(table: RouteTable) -> None:
    """Each request on the page gets the answer that is printed below it."""
    assert table.problems == []
    text = "\n".join(re.findall(r"```http\n(.*?)```", PAGE, re.DOTALL))
    examples = re.findall(r"^(GET|POST) (\S+)(?: (.*))?\n(\d{3}) (.*)$", text, re.MULTILINE)

    assert len(examples) >= 8
    for method, target, body, status, expected in examples:
        answer = await call(table, method, target, body.encode())

        assert (answer.status, answer.body.decode()) == (int(status), expected)


def test_the_page_has_all_public_names(table: RouteTable) -> None:
    """The page has every public name for authors, and its routes can be documented."""
    import tangram.routing

    inner = {"InvalidRequest", "Mount", "Resolver", "ResponseAborted", "check_router", "json_schema"}
    shown = {name for name in tangram.routing.__all__ if re.search(rf"\b{name}\b", PAGE)}

    assert set(tangram.routing.__all__) - inner - shown <= {"HTMLResponse", "JSONResponse"}
    assert "/weather/wind/{level}" in openapi(table)["paths"]
