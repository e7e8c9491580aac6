from __future__ import annotations

import re
from pathlib import Path

import pytest

from tangram.routing import Mount, RouteTable
from tangram.web.channel_docs import channel_docs_router
from tests.web.asgi import site_of

HTTP = Path(__file__).parents[2] / "docs" / "http.md"


def routes() -> set[str]:
    """The built-in routes: those of every site, and those of the declared channels."""
    channels = RouteTable([Mount(channel_docs_router(list), "core")])
    return {
        f"{method} {endpoint.route.template.display}"
        for table in (site_of().table, channels)
        for endpoint in table.endpoints
        for method in endpoint.route.methods
    }


def headings() -> set[str]:
    return set(re.findall(r"^### (\w+ /\S*)$", HTTP.read_text(), flags=re.MULTILINE))


def test_every_built_in_route_has_a_heading() -> None:
    """Every built-in route has a heading in docs/http.md."""
    missing = {route for route in routes() if route not in headings() and not route.startswith("GET /docs/")}
    assert missing == set()


@pytest.mark.parametrize("served", ["GET /", "GET /static/{file}", "GET /plugins/{distribution}/{file}"])
def test_file_routes_have_a_heading(served: str) -> None:
    """Folders are no routes of the table, and are described all the same."""
    assert served in headings()


def test_every_heading_is_a_route() -> None:
    """A route that is gone leaves the page as well."""
    files = {
        "GET /",
        "GET /-/",
        "GET /static/{file}",
        "GET /plugins/{distribution}/{file}",
        "GET /docs/{file}",
    }
    assert len(routes()) >= 8
    assert headings() - routes() - files == set()
