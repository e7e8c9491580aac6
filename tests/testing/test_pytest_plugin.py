"""The pytest plugin in tests of authors: on Trio, without a loop, and on asyncio."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

import tangram.testing

pytest_plugins = ["pytester"]

PLUGIN = """
import pytest
import trio
import tangram as tg
from tangram.testing import chaos

router = tg.APIRouter(prefix="/hello")

@router.get("/")
async def hello() -> dict[str, str]:
    return {"hello": "world"}

plugin = tg.Plugin(routers=[router])

@plugin.register_service()
async def tell(state: tg.BackendState) -> None:
    while True:
        await state.redis_client.publish("to:hello:tick", b"{}")
        await trio.sleep(0.02)

pytestmark = pytest.mark.tangram(plugins=[plugin], fakes=True)
"""


PLUGINS: Final = ("-p", "no:cacheprovider", "-p", "no:schemathesis")
"""schemathesis removes exceptions from a group that look alike."""


def run(pytester: pytest.Pytester, source: str, **outcomes: int) -> pytest.RunResult:
    pytester.makepyfile(PLUGIN + source)
    pytester.makeini("[pytest]\nstrict_markers = true\n")
    result = pytester.runpytest_subprocess(*PLUGINS)
    result.assert_outcomes(**outcomes)
    return result


@pytest.mark.slow
def test_a_trio_test_gets_a_server_in_its_own_loop(pytester: pytest.Pytester) -> None:
    """A Trio test requests, joins and crashes the plugin in its own loop and virtual clock."""
    source = """
@pytest.mark.trio
async def test_it(autojump_clock, tangram, tangram_socket):
    assert (await tangram.http.get("/hello/")).json() == {"hello": "world"}
    token = await tg.fetch_token(tangram.url, "hello")
    channel = await tangram_socket.join("hello", token=token.token)
    assert (await channel.receive()).name == "tick"
    tangram.crash("plugin:plugin")
    assert await tangram.wait_steady() == "up"
"""
    run(pytester, source, passed=1)


@pytest.mark.slow
def test_a_synchronous_test_gets_a_server_in_a_thread(pytester: pytest.Pytester) -> None:
    """A test without a loop calls the same methods, which block."""
    source = """
def test_it(tangram, tangram_socket):
    assert tangram.http.get("/hello/").json() == {"hello": "world"}
    from tangram.client import fetch_token
    token = trio.run(fetch_token, tangram.url, "hello")
    channel = tangram_socket.join("hello", token=token.token)
    assert channel.receive().name == "tick"
    channel.push("wave", {"at": "you"})
    names = {name for _, (name, *_rest) in zip(range(3), channel)}
    assert names == {"tick"}
    with tangram.open_socket() as another:
        assert another.connected
    with tangram.http.stream("GET", "/hello/") as answer:
        assert answer.status_code == 200
    tangram.crash("plugin:plugin")
    assert tangram.wait_steady() == "up"
"""
    run(pytester, source, passed=1)


@pytest.mark.slow
def test_an_asyncio_test_awaits_the_same_methods(pytester: pytest.Pytester) -> None:
    """A test on asyncio awaits the methods of a Trio test, and its loop goes on meanwhile."""
    source = """
import asyncio

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_it(tangram, tangram_socket):
    answer, _ = await asyncio.gather(tangram.http.get("/hello/"), asyncio.sleep(0))
    assert answer.json() == {"hello": "world"}
    token = (await asyncio.to_thread(trio.run, tg.fetch_token, tangram.url, "hello")).token
    channel = await tangram_socket.join("hello", token=token)
    async for event in channel:
        assert event.name == "tick"
        break
    async with tangram.open_socket() as another:
        assert another.connected
    tangram.crash("plugin:plugin")
    assert await tangram.wait_steady() == "up"
"""
    run(pytester, source, passed=1)


@pytest.mark.slow
def test_faults_strike_while_a_test_runs(pytester: pytest.Pytester) -> None:
    """``@chaos`` injects its faults beside the test, and the server heals before its end."""
    source = """
@chaos("broker_kill", "crash_plugin")
@pytest.mark.trio
async def test_it(autojump_clock, tangram):
    for _ in range(20):
        assert (await tangram.http.get("/hello/")).status_code in (200, 503)

@pytest.mark.trio
async def test_by_hand(autojump_clock, tangram, chaos):
    assert (await chaos.strike("crash_web")).outcome == "up"

@chaos("no_such_fault")
@pytest.mark.trio
async def test_unknown(autojump_clock, tangram):
    pass
"""
    result = run(pytester, source, passed=2, errors=1)
    result.stdout.fnmatch_lines(["*there is no fault 'no_such_fault'*"])


@pytest.mark.slow
def test_faults_strike_beside_tests_of_every_kind(pytester: pytest.Pytester) -> None:
    """Marker and fixture work for a test without a loop, and for one on asyncio."""
    source = """
@pytest.fixture
def anyio_backend():
    return "asyncio"

struck = []

@pytest.fixture(autouse=True)
def evidence(tangram):
    yield
    crashed = [event.child for event in tangram.events if event.kind == "crashed"]
    # The plugin's service may lose the bus first.
    struck.append([child for child in crashed if child != "tell"])

@chaos("crash_plugin", "crash_web")
def test_marked(tangram):
    assert tangram.http.get("/-/healthz").status_code == 200

def test_by_hand(tangram, chaos):
    assert chaos.strike("crash_bus").outcome == "up"
    assert [one.name for one in chaos.struck] == ["crash_bus"]

@pytest.mark.anyio
async def test_on_asyncio(tangram, chaos):
    assert (await chaos.strike("crash_channels")).outcome == "up"

def test_the_struck_faults(tangram):
    assert struck[1:] == [["bus"], ["channels"]]

@chaos("crash_web")
@pytest.mark.tangram(plugins=[plugin], fakes=True, on_server=lambda running: heard.append(running))
def test_that_all_have_struck(tangram):
    pass

def test_that_all_had_struck(tangram):
    assert [event.child for event in heard[0].events if event.kind == "crashed"] == ["web"]

heard = []

@chaos("no_such_fault")
def test_unknown(tangram):
    pass
"""
    result = run(pytester, source, passed=6, errors=1)
    result.stdout.fnmatch_lines(["*there is no fault 'no_such_fault'*"])


@pytest.mark.slow
def test_a_server_that_does_not_end_is_reported_with_its_place(pytester: pytest.Pytester) -> None:
    """A plugin that blocks the server's loop fails its own test only."""
    source = """
import threading
from tangram.testing.threaded import bridge

bridge.END_SECONDS = 1.0
bad = tg.Plugin()

@bad.register_service()
async def block(state):
    try:
        await trio.sleep_forever()
    finally:
        threading.Event().wait()

@pytest.mark.tangram(plugins=[bad], fakes=True)
def test_it(tangram):
    assert tangram.http.get("/-/readyz").status_code == 200
"""
    result = run(pytester, source, passed=1, errors=1)
    result.stdout.fnmatch_lines(["*did not end within 1 s; it stands at*", "*in block*"])


@pytest.mark.slow
def test_a_broken_promise_is_an_error_of_the_test(pytester: pytest.Pytester) -> None:
    """A leak of the plugin makes the tear-down of the test fail, with the invariant's name."""
    source = """
import threading
over = threading.Event()
bad = tg.Plugin()

@bad.register_service()
async def leave(state):
    threading.Thread(target=over.wait, daemon=True).start()

@pytest.mark.tangram(plugins=[bad], fakes=True)
def test_it(tangram):
    assert tangram.http.get("/-/readyz").status_code == 200

@pytest.mark.tangram(plugins=[bad], fakes=True)
@pytest.mark.trio
async def test_on_trio(autojump_clock, tangram):
    assert (await tangram.http.get("/-/readyz")).status_code == 200
"""
    result = run(pytester, source, passed=1, errors=1, failed=1)
    result.stdout.fnmatch_lines(["*nothing_left_alive*thread*"])


FAILING = """
@pytest.mark.trio
async def test_on_trio(autojump_clock, tangram):
    answer = await tangram.http.get("/hello/")
    assert answer.status_code == 201

@pytest.mark.trio
async def test_in_a_nursery(autojump_clock, tangram):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        assert tangram is None

def test_in_a_thread(tangram):
    assert tangram.http.get("/hello/").status_code == 201
"""


@pytest.mark.slow
def test_a_failing_assert_is_shown_without_groups_and_log(pytester: pytest.Pytester) -> None:
    """The report begins with the line and its values, and has no log of the server."""
    result = run(pytester, FAILING, failed=3)

    result.stdout.fnmatch_lines([">       assert answer.status_code == 201", "E       assert 200 == 201"])
    assert result.stdout.str().count("E   ") >= 3
    for absent in ("Exception Group", "child started", "Captured stdout", "pytest_runtest_call"):
        result.stdout.no_fnmatch_line(f"*{absent}*")


@pytest.mark.slow
def test_a_plugin_that_was_left_stopped_is_named_in_the_report(pytester: pytest.Pytester) -> None:
    """The test fails at its first request; the cause stands on standard output, without the log."""
    source = """
bad = tg.Plugin()

@bad.register_service()
async def read(state):
    raise OSError("no table")

tight = {"supervisor": {"plugin_restarts": 0}}

@pytest.mark.tangram(plugins=[bad], config=tight, fakes=True)
@pytest.mark.trio
async def test_on_trio(autojump_clock, tangram):
    assert await tangram.wait_steady() == "up"

@pytest.mark.tangram(plugins=[bad], config=tight, fakes=True)
def test_in_a_thread(tangram):
    assert tangram.wait_steady() == "up"
"""
    result = run(pytester, source, failed=2)

    line = "plugin 'plugin' was left stopped: OSError: no table at *:* in read"
    result.stdout.fnmatch_lines([line, line])
    result.stdout.no_fnmatch_line("*child started*")


@pytest.mark.slow
def test_the_log_of_the_server_is_shown_on_request(pytester: pytest.Pytester) -> None:
    """``--tangram-log`` prints it for the failed test."""
    pytester.makepyfile(PLUGIN + FAILING)
    result = pytester.runpytest_subprocess(*PLUGINS, "--tangram-log")

    result.stdout.fnmatch_lines(["*child started*"])


@pytest.mark.slow
def test_several_errors_of_a_test_stay_in_their_group(pytester: pytest.Pytester) -> None:
    """Two exceptions of one test are both shown."""
    source = """
@pytest.mark.trio
async def test_two(autojump_clock, tangram):
    async def fail(text):
        raise ValueError(text)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail, "the first")
        nursery.start_soon(fail, "the second")
"""
    result = run(pytester, source, failed=1)

    result.stdout.fnmatch_lines_random(["*ValueError: the first*", "*ValueError: the second*"])


def test_loading_the_plugin_imports_no_server() -> None:
    """pytest loads it in every project of a user of tangram."""
    code = "import sys, tangram.testing.pytest_plugin; print(*sorted(sys.modules))"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    assert not {"trio", "structlog", "httpx", "tangram.app"} & set(loaded)


def test_every_public_name_can_be_imported() -> None:
    """Each name of ``__all__`` can be imported."""
    assert all(getattr(tangram.testing, name) is not None for name in tangram.testing.__all__)


OLD = """
import asyncio
import pytest
import tangram_core
from tangram_core.redis import Subscriber
from fastapi import APIRouter

router = APIRouter(prefix="/old")

@router.get("/")
async def old() -> dict[str, str]:
    return {"hello": "old world"}

plugin = tangram_core.Plugin(routers=[router])

@pytest.mark.tangram(plugins=[plugin], fakes=True)
def test_it(tangram):
    assert tangram.http.get("/old/").json() == {"hello": "old world"}
"""


def test_an_existing_plugins_tests_get_the_old_import(pytester: pytest.Pytester) -> None:
    """With ``tangram_core = true`` a test module imports tangram_core as in the server."""
    pytester.mkpydir("tangram_core").joinpath("__init__.py").write_text("raise ImportError('the real one')")
    pytester.makepyfile(OLD)
    pytester.makeini("[pytest]\ntangram_core = true\n")

    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_the_old_import_is_unchanged_by_default(pytester: pytest.Pytester) -> None:
    """Without the setting ``import tangram_core`` is the installed package."""
    pytester.mkpydir("tangram_core").joinpath("__init__.py").write_text("raise ImportError('the real one')")
    pytester.makepyfile(OLD)

    result = pytester.runpytest_subprocess(*PLUGINS)

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the real one*"])
