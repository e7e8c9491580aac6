"""The page at ``/``, in a real browser."""

from __future__ import annotations

from tests.e2e.browser import Browser
from tests.e2e.harness import Home, open_server

CONNECTED = "document.querySelector('#status').dataset.state === 'connected'"


def number(selector: str) -> str:
    return f"Number(document.querySelector('{selector}').textContent)"


async def test_values_move_and_the_count_goes_up(home: Home, browser: Browser) -> None:
    """The demo's values are drawn as they come, and a click is counted by the plugin."""
    async with open_server(home, "tangram_demo") as server:
        page = await browser.open_page(server.url)
        await page.wait(CONNECTED)
        await page.wait(f"{number('#memory')} > 0")
        drawn = "document.querySelector('[data-metric=cpu] .line').getAttribute('d')"
        before = await page.wait(drawn)
        await page.wait(f"{drawn} !== {before!r} && {drawn}")
        await page.wait("document.querySelector('#count').textContent === '0'")
        await page.run("document.querySelector('#send').click()")
        await page.wait("document.querySelector('#count').textContent === '1'")
        await page.run("document.querySelector('#send').click()")
        await page.wait("document.querySelector('#count').textContent === '2'")
        tree = await page.wait(
            "[...document.querySelectorAll('#children .name')].map((it) => it.textContent)"
        )

        assert "cores" in await page.text("#host")
        assert "machine up" in await page.text("#uptime")
        assert {"broker", "bus", "plugin:tangram_demo", "channels", "web"} <= set(tree)
        assert page.errors == []


async def test_the_page_explains_that_no_plugin_is_enabled(home: Home, browser: Browser) -> None:
    """Without any plugin the page says how to enable one, and shows no empty cards."""
    async with open_server(home) as server:
        page = await browser.open_page(server.url)
        await page.wait("!document.querySelector('#notice').hidden")

        assert "No plugin is enabled" in await page.text("#notice-title")
        assert 'plugins = ["my_plugin"]' in await page.text("#notice-code")
        assert await page.run("return document.querySelector('#demo').hidden") is True
        assert page.errors == []


OWN = """
import tangram

router = tangram.APIRouter()
plugin = tangram.Plugin(routers=[router])


@router.get("/harbour/{name}")
async def harbour(name: str) -> str:
    return name


@router.get("/quay")
async def quay() -> str:
    return "quay"


@plugin.register_service()
async def listen(state: tangram.BackendState) -> None:
    async for _ in state.subscribe("from:ships:*", "from:" + "made:*"[::1]):
        pass
"""


async def test_the_page_shows_other_plugins(home: Home, browser: Browser) -> None:
    """Without the demo the page lists the plugins that run, with their routes and topics."""
    home.install("harbour", OWN)
    async with open_server(home, "harbour") as server:
        page = await browser.open_page(server.url)
        await page.wait("document.querySelector('#plugin-list .name') !== null")
        text = await page.text("#plugin-list")
        await page.wait("document.querySelector('#demo').hidden")

        assert "harbour" in text
        assert "GET /harbour/{name}" in text
        assert "topics: ships" in text
        assert "made" not in text
        links = await page.run("return [...document.querySelectorAll('#plugin-list a')].map((a) => a.href)")
        assert links == [f"{server.url.rstrip('/')}/quay"]
        assert page.errors == []
        assert await page.run("return document.querySelector('#notice').hidden")


async def test_the_page_greys_old_news(home: Home, browser: Browser) -> None:
    """Once the server has gone, no row looks as if it still ran, and the time of the last news is shown."""
    async with open_server(home, "tangram_demo") as server:
        page = await browser.open_page(server.url)
        await page.wait("document.querySelector('#children .good') !== null")
        fresh = await page.wait("document.querySelector('#main').dataset.news === 'new' && 'new'")
    await page.wait("document.querySelector('#main').dataset.news === 'old'")
    news = await page.text("#news")
    filtered = await page.run("return getComputedStyle(document.querySelector('#children')).filter")

    assert fresh == "new"
    assert "last news at" in news
    assert filtered == "grayscale(1)"


async def test_the_page_reconnects_by_itself(home: Home, browser: Browser) -> None:
    """The page shows that it reconnects, and works again once the server is back."""
    async with open_server(home, "tangram_demo") as server:
        page = await browser.open_page(server.url)
        await page.wait(CONNECTED)
    await page.wait("document.querySelector('#status').dataset.state === 'reconnecting'")
    disabled = await page.run("return document.querySelector('#send').disabled")
    async with open_server(home, "tangram_demo"):
        await page.wait(CONNECTED)
        await page.run("document.querySelector('#send').click()")
        await page.wait("document.querySelector('#count').textContent === '1'")

        assert disabled is True


async def test_the_page_fits_a_phone(home: Home, browser: Browser) -> None:
    """On a phone nothing scrolls sideways, and touch targets are large enough."""
    async with open_server(home, "tangram_demo") as server:
        page = await browser.open_page(server.url)
        await page.send(
            "Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True
        )
        await page.wait(CONNECTED)
        width = await page.run("return document.documentElement.scrollWidth")
        tapped = await page.run(
            "return [...document.querySelectorAll('button:not([hidden]), footer a')]"
            ".filter((it) => it.offsetParent).map((it) => it.getBoundingClientRect().height)"
        )

        assert width <= 360
        assert min(tapped) >= 44
