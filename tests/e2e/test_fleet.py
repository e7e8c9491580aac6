"""The example ``fleet`` in Chromium, and its picture for the documentation.

``python -m tests.e2e.test_fleet [FILE WIDTH HEIGHT [dark]]`` makes ``docs/fleet.webp`` anew.
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

import trio

from tests.e2e.browser import Browser, Page, open_browser
from tests.e2e.harness import Home, open_server
from tests.e2e.prepare import ROOT

PICTURE = ROOT / "docs" / "fleet.webp"
CLICK = """
const canvas = document.querySelector("canvas").getBoundingClientRect();
const scale = Math.min(canvas.width, canvas.height) / 6000;
const [x, y] = fleet.places.slice(2 * %(vehicle)d, 2 * %(vehicle)d + 2);
return [canvas.left + (canvas.width - 6000 * scale) / 2 + x * scale,
        canvas.top + (canvas.height - 6000 * scale) / 2 + y * scale];
"""


async def resize(page: Page, width: int, height: int, *, dark: bool = False) -> None:
    await page.send(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    await page.send("Emulation.setEmulatedMedia", features=[scheme])


async def click_vehicle(page: Page, vehicle: int) -> None:
    """Press where a vehicle is."""
    x, y = await page.run(CLICK % {"vehicle": vehicle})
    for kind in ("mousePressed", "mouseReleased"):
        await page.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


async def test_vehicles_move_and_a_selection_is_answered(home: Home, browser: Browser) -> None:
    """All 500 move, a click is answered and marked on another page, and a phone need not scroll sideways."""
    async with open_server(home, "tangram_example_fleet") as server:
        page = await browser.open_page(f"{server.url}/fleet/")
        await page.wait("window.fleet?.places.length === 1000")
        first = await page.run("return fleet.places")
        other = await browser.open_page(f"{server.url}/fleet/")
        await page.wait(f"fleet.places.some((place, index) => place !== {first}[index])")

        await click_vehicle(page, 100)
        await page.wait("!document.querySelector('#details').hidden")
        selected = await page.run("return fleet.selected")
        name = await page.text("#details h2")
        await other.wait(f"fleet.marked.includes({selected})")
        await page.run("document.querySelector('#release').click()")
        await other.wait("fleet.marked.length === 0")

        assert name.endswith(f" {selected + 1}")
        for dark in (False, True):
            await resize(page, 390, 844, dark=dark)
            assert await page.run("return document.documentElement.scrollWidth") <= 390
        assert page.errors == []
        assert other.errors == []


async def take_picture(kind: str, width: int, height: int, *, dark: bool) -> bytes:
    """Return a picture of the page with one vehicle that is followed."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home")
        async with (
            open_server(home, "tangram_example_fleet") as server,
            open_browser(Path(folder) / "profile") as browser,
        ):
            page = await browser.open_page("about:blank")
            await resize(page, width, height, dark=dark)
            await page.goto(f"{server.url}/fleet/")
            await page.wait("window.fleet?.places.length === 1000")
            await trio.sleep(20)  # a trail of some length
            await click_vehicle(page, 100)
            await page.wait("!document.querySelector('#details').hidden && fleet.selected !== null")
            await trio.sleep(1.5)
            shot = await page.send("Page.captureScreenshot", format=kind)
            return base64.b64decode(shot["data"])


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    size = [int(one) for one in sys.argv[2:4]] or [1200, 720]
    dark = "dark" in sys.argv
    target.write_bytes(trio.run(lambda: take_picture(target.suffix[1:], size[0], size[1], dark=dark)))
