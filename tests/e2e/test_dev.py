"""``tangram dev``: saved files are in force, and browsers stay joined."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

from tangram.client import fetch_token, open_socket
from tests.e2e.browser import Browser
from tests.e2e.harness import Home, open_process, wait_until
from tests.e2e.polling import polling

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


COMPILED = """
import tangram
from . import {module}

router = tangram.APIRouter()
plugin = tangram.Plugin(routers=[router])


@router.get("/text")
async def text() -> dict[str, str]:
    return {{"text": "{text}", "module": {module}.__name__}}
"""


def compiled_module() -> Path:
    """Return the file of some compiled module of Python that can stand in a package."""
    folder = Path(str(sysconfig.get_config_var("DESTSHARED")))
    return next(file for name in ("_queue", "_json", "_bisect") for file in folder.glob(f"{name}.*.so"))


async def test_a_plugin_with_a_compiled_module_gets_a_new_process(home: Home) -> None:
    """No connection is refused, the process id stays, and a joined client is sent back with 1012."""
    package = home.folder / "fast"
    package.mkdir()
    source = compiled_module()
    module = source.name.partition(".")[0]
    shutil.copy(source, package)
    save(package / "__init__.py", COMPILED.format(module=module, text="first"))
    home.configure([str(package)])
    arguments = ("dev", "--config", str(home.config), "--log-format", "json")
    async with open_process(home, *arguments) as server:
        await server.wait_ready()
        assert await server.get("/text") == {"text": "first", "module": f"fast.{module}"}
        token = await fetch_token(server.url, "topic")
        async with open_socket(server.url) as socket, polling(server, "/text") as polls:
            channel = await socket.join("topic", token=token.token)

            async def came_back() -> bool:
                return bool(socket.server_codes) and channel.joined

            save(package / "__init__.py", COMPILED.format(module=module, text="second"))
            await server.wait_ready(times=2)
            await wait_until(came_back)
            assert (await server.get("/text"))["text"] == "second"

        assert (polls.refused, polls.reset, polls.other) == (0, 0, [])
        assert socket.server_codes == [1012]
        assert [one["changed"] for one in server.events("a new process takes over")] == [["fast"]]
        assert server.process.poll() is None
