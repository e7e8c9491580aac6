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


async def test_the_page_explains_that_the_demo_is_not_enabled(home: Home, browser: Browser) -> None:
    """Without the demo the page says how to enable it, and shows no empty cards."""
    async with open_server(home) as server:
        page = await browser.open_page(server.url)
        await page.wait("!document.querySelector('#notice').hidden")

        assert "not enabled" in await page.text("#notice-title")
        assert 'plugins = ["tangram_demo"]' in await page.text("#notice-code")
        assert await page.run("return document.querySelector('#demo').hidden") is True


async def test_the_page_reconnects_by_itself(home: Home, browser: Browser) -> None:
    """The page shows that it reconnects, and works again once the server is back."""
    async with open_server(home, "tangram_demo") as server:
        page = await browser.open_page(server.url)
        await page.wait(CONNECTED)
    await page.wait("document.querySelector('#status').dataset.state === 'reconnecting'")
    disabled = await page.run("return document.querySelector('#send').disabled")
    async with open_server(home, "tangram_demo"):
        await page.wait(CONNECTED, within=30)
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
