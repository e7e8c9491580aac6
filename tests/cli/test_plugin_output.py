"""Records and printed lines of a plugin have its name."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import structlog

from tangram.cli.logs import configure_logging
from tangram.cli.plugin_output import plugin_finder, tagged_output
from tests.e2e.harness import Home, open_server

SOURCE = """
import logging, sys, structlog

def say(text, **options):
    print(text, **options)

def complain(text):
    print(text, file=sys.stderr)

def log(text):
    logging.getLogger("radar").warning(text)

def log_structured(text):
    structlog.get_logger().info(text, size=3)

def call(function, *arguments):
    return function(*arguments)
"""


Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    plugin_finder.use(lambda _: None)
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def radar(tmp_path: Path) -> ModuleType:
    """A module that belongs to the plugin ``radar``."""
    file = tmp_path / "radar.py"
    file.write_text(SOURCE)
    module = ModuleType("radar")
    exec(compile(SOURCE, str(file), "exec"), vars(module))
    plugin_finder.use({str(file): "radar"}.get)
    return module


def records(capsys: Capture) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_printed_lines_are_records_of_the_plugin(radar: ModuleType, capsys: Capture) -> None:
    """Each line is a record with the plugin's name, at level info, on standard error at level warning."""
    configure_logging("INFO", "json")
    with tagged_output():
        radar.say("two\nlines")
        radar.say("half", end="")
        radar.say(" a line")
        radar.complain("trouble")

    found = [(one["event"], one["level"], one["plugin"], one["logger"]) for one in records(capsys)]
    assert found == [
        ("two", "info", "radar", "plugin.radar"),
        ("lines", "info", "radar", "plugin.radar"),
        ("half a line", "info", "radar", "plugin.radar"),
        ("trouble", "warning", "radar", "plugin.radar"),
    ]


def test_other_output_passes_unchanged(radar: ModuleType, capsys: Capture) -> None:
    """Output of the server itself, and the stream's other methods, are those of the original."""
    out = sys.stdout
    with tagged_output():
        print("ours", end="")  # noqa: T201 - output is tested
        assert sys.stdout.encoding == out.encoding
    assert sys.stdout is out
    assert capsys.readouterr() == ("ours", "")


def test_records_of_a_plugin_and_of_its_libraries_have_its_name(radar: ModuleType, capsys: Capture) -> None:
    """``logging``, structlog, and a library that the plugin calls, also in a thread."""
    configure_logging("INFO", "json")
    with tagged_output():
        radar.log("by logging")
        radar.log_structured("by structlog")
        radar.call(logging.getLogger("library").warning, "by a library")
        thread = threading.Thread(target=radar.log, args=("in a thread",))
        thread.start()
        thread.join()
        logging.getLogger("library").warning("by the server")
        radar.call(structlog.get_logger("tangram.bus").info, "about the server")

    plugins = {one["event"]: one.get("plugin") for one in records(capsys)}
    assert plugins == {
        "by logging": "radar",
        "by structlog": "radar",
        "by a library": "radar",
        "in a thread": "radar",
        "by the server": None,
        "about the server": None,
    }


@pytest.mark.parametrize("say", ["log", "log_structured", "say"])
def test_a_plugin_has_a_level_of_its_own(radar: ModuleType, capsys: Capture, say: str) -> None:
    """``[log] levels`` with ``plugin.NAME`` hold for all that the plugin logs or prints."""
    configure_logging("INFO", "json", levels={"plugin.radar": "error"})
    with tagged_output():
        getattr(radar, say)("hidden")
        logging.getLogger("library").warning("shown")

    assert [one["event"] for one in records(capsys)] == ["shown"]


def test_output_during_an_import_belongs_to_the_imported_plugin(capsys: Capture) -> None:
    """The files of a plugin are known once it is loaded."""
    configure_logging("INFO", "json")
    with tagged_output():
        plugin_finder.note_import("radar")
        print("importing")  # noqa: T201 - output is tested
        plugin_finder.use(lambda _: None)

    assert [(one["event"], one["plugin"]) for one in records(capsys)] == [("importing", "radar")]


@pytest.mark.parametrize("make", [lambda: None, io.StringIO], ids=["none", "closed"])
def test_dead_streams_lose_lines_without_an_error(
    radar: ModuleType, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any]
) -> None:
    """A server without a terminal goes on."""
    dead = make()
    if dead is not None:
        dead.close()
    monkeypatch.setattr(sys, "stderr", dead)
    configure_logging("INFO", "json")
    with tagged_output():
        radar.say("unheard")
        radar.complain("unheard")


@pytest.mark.slow
async def test_a_server_logs_the_output_of_its_plugins(tmp_path: Path) -> None:
    """Through the real command: at the import, in a service, and in a handler of a route."""
    home = Home(tmp_path)
    home.install(
        "radar",
        """
import logging
import tangram, trio
print("imported")
router = tangram.APIRouter()
plugin = tangram.Plugin(routers=[router])

@router.get("/say")
async def say() -> None:
    print("answering")
    logging.getLogger("httpx").warning("a library")

@plugin.register_service()
async def serve(state: tangram.BackendState) -> None:
    print("serving")
    await trio.sleep_forever()
""",
    )
    async with open_server(home, "radar", extra="[log]\naccess = true\n") as server:
        await server.request("GET", "/say")
        await server.wait_line("answering")
        await server.wait_line('"event": "request"|"path": "/say"')

    for event in ("imported", "serving", "answering", "a library"):
        assert server.events(event, plugin="radar"), event
    (access,) = [one for one in server.events("request") if one["path"] == "/say"]
    assert (access["method"], access["status"], access["client"]) == ("GET", 200, "127.0.0.1")
