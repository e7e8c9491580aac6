"""A plugin's code is imported again while everything else runs on."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, Final

import pytest
import trio

import tangram as public
from tangram.testing import RunningTangram, open_tangram

REPEATS: Final = 50
IDLE: Final = 100.0
"""Seconds after which the connections of earlier requests are closed."""

SOURCE: Final = """
import tangram
import trio
{extra}
router = tangram.APIRouter(prefix="/shop")
plugin = tangram.Plugin(routers=[router], authorize=lambda topic, id, request: {refusal!r})

@router.get("/{path}")
async def price() -> dict[str, int]:
    return {{"price": {price}}}

@plugin.register_service()
async def publish(state: tangram.BackendState) -> None:
    while True:
        await state.publish("to:shop:price", {{"price": {price}}})
        await trio.sleep(1)
"""


def source(*, price: int, path: str = "price", refusal: str | None = None, extra: str = "") -> str:
    return SOURCE.format(price=price, path=path, refusal=refusal, extra=extra)


@pytest.fixture(autouse=True)
def forgotten(modules_are_forgotten: None) -> None:
    """Modules that a test imports are forgotten after it."""


def write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop_rx.py"
    write(path, source(price=1))
    return path


async def reload(tangram: RunningTangram, name: str = "shop_rx") -> Any:
    return await tangram.http.post(f"/-/plugins/{name}/restart?reload=true", headers=tangram.operator)


def incarnations(tangram: RunningTangram) -> dict[str, int]:
    tree = tangram.server.tree
    assert tree is not None
    assert tree.incarnation.supervisor is not None
    return {child.name: child.incarnation for child in tree.incarnation.supervisor.statistics().children}


async def test_new_code_runs_and_browsers_stay_joined(autojump_clock: object, file: Path) -> None:
    """Routes, services and ``authorize`` are new; no other part restarts, and no browser is disconnected."""
    async with open_tangram([str(file)], fakes=True) as tangram, tangram.open_socket() as socket:
        token = await public.fetch_token(tangram.url, "shop")
        channel = await socket.join("shop", token=token.token)
        assert (await channel.receive()).payload == {"price": 1}
        before = incarnations(tangram)

        write(file, source(price=2, path="cost", refusal="closed"))
        answer = await reload(tangram)

        values = [(await channel.receive()).payload["price"] for _ in range(3)]
        after = incarnations(tangram)
        assert (answer.status_code, answer.json()["status"]) == (200, "restarted")
        assert values[-1] == 2
        assert (await tangram.http.get("/shop/cost")).json() == {"price": 2}
        assert (await tangram.http.get("/shop/price")).status_code == 404
        assert "/shop/cost" in (await tangram.http.get("/openapi.json")).json()["paths"]
        assert {name for name in after if after[name] != before[name]} == {"plugin:shop_rx"}
        with pytest.raises(public.Refused, match="closed"):
            await socket.join("other", token=(await public.fetch_token(tangram.url, "other")).token)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("def broken(:\n", "SyntaxError: invalid syntax (/"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("plugin = 3\n", "no tangram.Plugin"),
    ],
)
async def test_broken_code_leaves_the_old_one_running(
    autojump_clock: object, file: Path, text: str, cause: str
) -> None:
    """The answer has the cause; the plugin is not even restarted, and a mended file is taken."""
    async with open_tangram([str(file)], fakes=True) as tangram:
        before = incarnations(tangram)
        write(file, text)
        answer = await reload(tangram)

        assert answer.status_code == 409
        assert cause in answer.json()["cause"]
        assert incarnations(tangram) == before
        assert (await tangram.http.get("/shop/price")).json() == {"price": 1}

        write(file, source(price=3))
        assert (await reload(tangram)).status_code == 200
        assert (await tangram.http.get("/shop/price")).json() == {"price": 3}


async def test_a_configuration_that_no_longer_fits_is_refused(autojump_clock: object, file: Path) -> None:
    """The new ``config_class`` is checked before the old code is given up."""
    strict = "import attrs\n@attrs.frozen\nclass C:\n    needed: int\n"
    async with open_tangram([str(file)], fakes=True) as tangram:
        write(file, source(price=2, extra=strict).replace("routers=", "config_class=C, routers="))
        answer = await reload(tangram)

        assert answer.status_code == 409
        assert "needed" in answer.json()["cause"]
        assert (await tangram.http.get("/shop/price")).json() == {"price": 1}


async def test_modules_of_the_plugin_are_imported_again(autojump_clock: object, tmp_path: Path) -> None:
    """A module that another one of the plugin imports is read again as well; other modules are not."""
    package = tmp_path / "store_rx"
    package.mkdir()
    write(package / "values.py", "PRICE = 1\n")
    write(
        package / "__init__.py",
        source(price=0, extra="import json\nfrom store_rx.values import PRICE").replace("0}", "PRICE}"),
    )
    async with open_tangram([str(package)], fakes=True) as tangram:
        assert (await tangram.http.get("/shop/price")).json() == {"price": 1}
        json = sys.modules["json"]
        write(package / "values.py", "PRICE = 2\n")

        assert (await reload(tangram, "store_rx")).status_code == 200
        assert (await tangram.http.get("/shop/price")).json() == {"price": 2}
        assert sys.modules["json"] is json


EXISTING = """
import asyncio
import fastapi
import tangram_core

router = fastapi.APIRouter(prefix="/old")
plugin = tangram_core.Plugin(routers=[router])

@router.get("/{path}")
async def answer():
    return {{"n": {number}}}

@plugin.register_service()
async def publish(state):
    while True:
        await state.redis_client.publish("to:old:n", '{{"n": {number}}}')
        await asyncio.sleep(1)
"""


@pytest.mark.slow
async def test_an_existing_plugin_is_reloaded_alone(tmp_path: Path) -> None:
    """Its routes and services are new, and browsers stay joined, as with a native plugin."""
    file = tmp_path / "old_rx.py"
    write(file, EXISTING.format(path="value", number=1))
    async with open_tangram([str(file)]) as tangram, tangram.open_socket() as socket:
        channel = await socket.join("old", token=(await public.fetch_token(tangram.url, "old")).token)
        assert (await channel.receive()).payload == {"n": 1}
        before = incarnations(tangram)

        write(file, EXISTING.format(path="other", number=2))
        answer = await reload(tangram, "old_rx")
        with trio.fail_after(60):
            while (await channel.receive()).payload != {"n": 2}:
                pass

        after = incarnations(tangram)
        assert (answer.status_code, answer.json()["status"]) == (200, "restarted")
        assert (await tangram.http.get("/old/other")).json() == {"n": 2}
        assert (await tangram.http.get("/old/value")).status_code == 404
        assert {name for name in after if after[name] != before[name]} == {"plugin:old_rx"}


@pytest.mark.slow
async def test_a_plugin_cannot_move_between_the_worlds(tmp_path: Path) -> None:
    """An existing plugin that has become a native one is refused, and runs on."""
    file = tmp_path / "moved_rx.py"
    write(file, EXISTING.format(path="value", number=1))
    async with open_tangram([str(file)]) as tangram:
        write(file, source(price=1))
        answer = await reload(tangram, "moved_rx")

        assert answer.status_code == 409
        assert "restart the process" in answer.json()["cause"]
        assert (await tangram.http.get("/old/value")).json() == {"n": 1}


async def test_new_code_that_does_not_start_is_told_as_that(autojump_clock: object, file: Path) -> None:
    """The new code is in force and in quarantine; the next version starts."""
    broken = """
import contextlib

@contextlib.asynccontextmanager
async def broken(state):
    raise OSError("no lamp")
    yield
"""
    async with open_tangram([str(file)], fakes=True) as tangram:
        write(file, source(price=2, extra=broken).replace("routers=", "lifespan=broken, routers="))
        answer = await reload(tangram)

        assert answer.status_code == 503
        assert "no lamp" in answer.json()["cause"]
        write(file, source(price=3))
        assert (await reload(tangram)).status_code == 200
        assert (await tangram.http.get("/shop/price")).json() == {"price": 3}


async def test_compiled_modules_are_not_imported_twice(autojump_clock: object, tmp_path: Path) -> None:
    """A plugin with a compiled module is refused, and runs on with all of its modules."""
    package = tmp_path / "fast_rx"
    package.mkdir()
    write(package / "__init__.py", source(price=1))
    async with open_tangram([str(package)], fakes=True) as tangram:
        compiled = types.ModuleType("fast_rx.native")
        compiled.__file__ = str(package / "native.cpython-311-x86_64-linux-gnu.so")
        sys.modules["fast_rx.native"] = compiled
        write(package / "__init__.py", source(price=2))
        answer = await reload(tangram, "fast_rx")

        assert answer.status_code == 409
        assert "'fast_rx.native'" in answer.json()["cause"]
        assert sys.modules["fast_rx.native"] is compiled
        assert (await tangram.http.get("/shop/price")).json() == {"price": 1}


async def test_a_plugin_given_as_an_object_has_no_file(autojump_clock: object) -> None:
    """It cannot be imported again, and the answer says so."""
    async with open_tangram([public.Plugin()], fakes=True) as tangram:
        answer = await reload(tangram, "plugin")

        assert answer.status_code == 409
        assert "has no file" in answer.json()["cause"]


@pytest.mark.slow
async def test_many_reloads_leave_nothing_behind(autojump_clock: object, file: Path) -> None:
    """No module and no task is left, and the number of objects does not grow."""
    import gc

    async with open_tangram([str(file)], fakes=True) as tangram:
        for _ in range(20):
            await reload(tangram)
        await trio.sleep(IDLE)
        gc.collect()
        objects, modules = len(gc.get_objects()), len(sys.modules)
        tasks = trio.lowlevel.current_statistics().tasks_living
        for number in range(REPEATS):
            write(file, source(price=number))
            assert (await reload(tangram)).status_code == 200
        await trio.sleep(IDLE)
        gc.collect()

        assert len(sys.modules) == modules
        assert trio.lowlevel.current_statistics().tasks_living <= tasks + 2
        assert len(gc.get_objects()) - objects < REPEATS * 20
