"""``tangram dev``: saved files are in force, and browsers stay joined."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.browser import Browser
from tests.e2e.harness import Home, open_process

PLUGIN = """
import tangram

router = tangram.APIRouter(prefix="/dev")
plugin = tangram.Plugin(routers=[router])


@router.get("/", response_class=tangram.HTMLResponse)
async def page() -> str:
    return '<link rel="icon" href="data:,"><p>{text}</p><script type="module" src="/dev/page.js"></script>'


@router.get("/text")
async def text() -> dict[str, str]:
    return {{"text": "{text}"}}


@router.get("/page.js")
async def script() -> tangram.Response:
    return tangram.Response(SCRIPT, media_type="text/javascript")


SCRIPT = '''
import {{ connect }} from "/static/tangram.js";
const changes = connect().channel("tangram:dev");
changes.state.subscribe(({{ name }}) => {{ document.title = name; }});
changes.on("reload", ({{ error }}) => {{
  if (error) document.querySelector("p").textContent = error;
  else location.reload();
}});
changes.join();
'''
"""


def save(file: Path, text: str) -> None:
    file.write_text(text)


async def test_a_saved_file_is_in_force_and_the_page_loads_itself_again(home: Home, browser: Browser) -> None:
    """New code is served after a save; broken code is shown in the page, and the old code runs on."""
    file = home.folder / "dev_plugin.py"
    save(file, PLUGIN.format(text="first"))
    home.configure([str(file)])
    arguments = ("dev", "--config", str(home.config), "--log-format", "json")
    async with open_process(home, *arguments) as server:
        await server.wait_ready()
        page = await browser.open_page(f"{server.url}/dev/")
        await page.wait("document.title === 'joined'")

        save(file, PLUGIN.format(text="second"))
        await page.wait(
            "document.querySelector('p')?.textContent === 'second' && document.title === 'joined'"
        )
        save(file, "def broken(:\n")
        await page.wait("document.querySelector('p').textContent.includes('SyntaxError')")
        assert await server.get("/dev/text") == {"text": "second"}

        save(file, PLUGIN.format(text="third"))
        await page.wait("document.querySelector('p')?.textContent === 'third'")
        await server.wait_line("plugin imported again", times=2)

        assert server.events("incarnation did not start") == []
        assert [one["child"] for one in server.events("planned restart")] == ["plugin:dev_plugin"] * 2
        assert page.errors == []
