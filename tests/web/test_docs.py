from __future__ import annotations

import re

import pytest

from tangram.web import docs
from tests.web.asgi import call, site_of


async def test_the_docs_page_needs_no_other_server() -> None:
    """The page works without internet access: every address in it is ours, and answers."""
    site = site_of()
    page = await call(site, "GET", "/docs")
    text = page.body.decode()

    assert page.headers["content-type"].startswith("text/html")
    named = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert len(named) >= 4
    for address in named:
        assert re.match(r"docs/|openapi.json", address), address
        assert (await call(site, "GET", f"/{address}")).status == 200, address


async def test_nothing_else_of_the_distribution_is_served() -> None:
    """Only the files that the page needs."""
    site = site_of()

    for path in ["/docs/index.html", "/docs/swagger-ui-bundle.js.map", "/docs/../__init__.py", "/docs/"]:
        assert (await call(site, "GET", path)).status in {307, 404}, path


async def test_without_the_distribution_the_page_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The document is still there, and the page names the package."""
    monkeypatch.setattr(docs, "find_spec", lambda name: None)
    page = await call(site_of(), "GET", "/docs")

    assert page.status == 200
    assert b"swagger-ui-bundle" in page.body
    assert b"/openapi.json" in page.body


async def test_redoc_leads_to_the_docs() -> None:
    """``/redoc``, which the published server has, redirects to ``/docs``."""
    answer = await call(site_of(), "GET", "/redoc")

    assert (answer.status, answer.headers["location"]) == (307, "/docs")
