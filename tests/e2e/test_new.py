"""From nothing to a value that moves in a browser, as a newcomer does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tangram.testing import Home, open_process
from tests.e2e.browser import Browser
from tests.e2e.prepare import ROOT
from tests.release.interpreters import install, uv

VALUE = "Number(document.querySelector('output').textContent)"
WATCH = f"""
window.least = Infinity;  // a slow machine may look after the value has grown again
new MutationObserver(() => {{ least = Math.min(least, {VALUE}); }})
  .observe(document.querySelector('output'), {{ childList: true, characterData: true, subtree: true }});
"""


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def install_wheel(folder: Path) -> Path:
    """Install a fresh wheel into a new environment, and return its folder of programs."""
    uv("build", "--quiet", "--wheel", "--out-dir", str(folder / "dist"), str(ROOT))
    uv("venv", "--quiet", "--python", sys.executable, str(folder / "env"))
    (wheel,) = (folder / "dist").glob("*.whl")
    install(folder / "env/bin/python", str(wheel))
    return folder / "env" / "bin"


async def test_a_new_plugin_moves_a_value_in_a_browser(tmp_path: Path, browser: Browser) -> None:
    """The wheel in a fresh environment, ``tangram new``, an install, ``tangram serve``: the page counts."""
    programs = install_wheel(tmp_path)
    project = tmp_path / "tank-watch"
    run(str(programs / "tangram"), "new", "tank-watch", cwd=tmp_path)
    install(programs / "python", "--editable", str(project))
    home = Home(tmp_path / "home")
    home.python, home.path = programs / "python", []
    arguments = ("--config", str(project / "tangram.toml"), "--port", str(home.port), "--log-format", "json")

    async with open_process(home, "serve", *arguments, environ={"TANGRAM_BROKER__PORT": "0"}) as server:
        await server.wait_ready()
        page = await browser.open_page(f"{server.url}/tank-watch/")
        first = await page.wait(f"{VALUE} > 0 && {VALUE}")
        await page.wait(f"{VALUE} > {first}")
        await page.run(WATCH)
        await page.run("document.querySelector('button').click()")
        await page.wait(f"least < {first} + 1")

        assert await page.text("[role=status]") == "joined"
        assert page.errors == []
