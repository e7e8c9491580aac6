"""The pytest plugin, as an author's own tests use it: on Trio, without any loop, and on asyncio."""

from __future__ import annotations

import subprocess
import sys

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


def run(pytester: pytest.Pytester, source: str, **outcomes: int) -> pytest.RunResult:
    pytester.makepyfile(PLUGIN + source)
    pytester.makeini("[pytest]\nstrict_markers = true\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(**outcomes)
    return result


@pytest.mark.slow
def test_a_trio_test_gets_a_server_in_its_own_loop(pytester: pytest.Pytester) -> None:
    """A Trio test asks, joins and crashes the plugin in the loop that it runs on, with a virtual clock."""
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
    """A test without any loop calls the same methods, which block."""
    source = """
def test_it(tangram, tangram_socket):
    assert tangram.http.get("/hello/").json() == {"hello": "world"}
    from tangram.client import fetch_token
    token = trio.run(fetch_token, tangram.url, "hello")
    channel = tangram_socket.join("hello", token=token.token)
    assert channel.receive().name == "tick"
    tangram.crash("plugin:plugin")
    assert tangram.wait_steady() == "up"
"""
    run(pytester, source, passed=1)


@pytest.mark.slow
def test_an_asyncio_test_awaits_the_same_methods(pytester: pytest.Pytester) -> None:
    """A test on asyncio awaits what a Trio test awaits, and its loop goes on meanwhile."""
    source = """
import asyncio

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_it(tangram):
    answer, _ = await asyncio.gather(tangram.http.get("/hello/"), asyncio.sleep(0))
    assert answer.json() == {"hello": "world"}
    tangram.crash("plugin:plugin")
    assert await tangram.wait_steady() == "up"
"""
    run(pytester, source, passed=1)


@pytest.mark.slow
def test_faults_strike_while_a_test_runs(pytester: pytest.Pytester) -> None:
    """``@chaos`` strikes its faults beside the test, and the server heals before the test is over."""
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
    result = run(pytester, source, passed=2, failed=1)
    result.stdout.fnmatch_lines(["*there is no fault 'no_such_fault'*"])


@pytest.mark.slow
def test_a_broken_promise_is_an_error_of_the_test(pytester: pytest.Pytester) -> None:
    """What the plugin leaves behind makes the test's tear-down fail, with the invariant's name."""
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


def test_loading_the_plugin_costs_whoever_does_not_use_it_next_to_nothing() -> None:
    """pytest loads it in every run of whoever has tangram installed: it brings no server with it."""
    code = "import sys, tangram.testing.pytest_plugin; print(*sorted(sys.modules))"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    assert not {"trio", "structlog", "httpx", "tangram.app"} & set(loaded)


def test_every_public_name_is_there() -> None:
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
    """With ``tangram_core = true`` a test module says ``import tangram_core`` at its top and gets ours, as
    its plugin does in the server; a package of that name that lies beside it is not asked.
    """
    pytester.mkpydir("tangram_core").joinpath("__init__.py").write_text("raise ImportError('the real one')")
    pytester.makepyfile(OLD)
    pytester.makeini("[pytest]\ntangram_core = true\n")

    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_the_old_import_is_left_alone_unless_asked_for(pytester: pytest.Pytester) -> None:
    """Without the setting ``import tangram_core`` is whatever is installed."""
    pytester.mkpydir("tangram_core").joinpath("__init__.py").write_text("raise ImportError('the real one')")
    pytester.makepyfile(OLD)

    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the real one*"])
