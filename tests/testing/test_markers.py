"""The runners and markers of tests: each test gets a server or an error with advice."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow

HEAD = """
import asyncio
import unittest

import pytest
import trio
import tangram as tg
from hypothesis import HealthCheck, given, settings, strategies as st
from tangram.testing import chaos

few = settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
fakes = pytest.mark.tangram(fakes=True)

async def ask(tangram):
    assert (await tangram.http.get("/-/readyz")).status_code == 200
"""


def needs(module: str) -> pytest.MarkDecorator:
    """Skip unless a plugin of pytest is installed; it is not imported."""
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed")


def run(
    pytester: pytest.Pytester, source: str, ini: str = "", options: Sequence[str] = (), **outcomes: int
) -> pytest.RunResult:
    pytester.makepyfile(HEAD + source)
    pytester.makeini(f"[pytest]\n{ini}\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)
    result.assert_outcomes(**outcomes)
    return result


WRONG_MARKERS = """
@chaos("broker_kill")
def test_no_server(): ...

@fakes
def test_no_server_either(): ...

@chaos("broker_kil")
@fakes
def test_misspelt(tangram): ...

@chaos
@fakes
def test_no_name(tangram_socket): ...

@chaos("broker_kill", sed=3)
@fakes
def test_wrong_setting(tangram): ...

@pytest.mark.tangram(plugin=[])
def test_wrong_server(tangram): ...

@pytest.mark.tangram(plugins="mine")
def test_no_list(tangram): ...

@pytest.mark.tangram([])
def test_no_keyword(tangram): ...

@pytest.mark.skip
@chaos("broker_kill")
def test_not_today(): ...
"""


def test_a_useless_marker_is_an_error_before_a_server_boots(pytester: pytest.Pytester) -> None:
    """Each mistake is one line without a traceback that says what to do."""
    result = run(pytester, WRONG_MARKERS, errors=8, skipped=1)

    result.stdout.fnmatch_lines(
        [
            "@chaos over this test does nothing*must take the fixture 'tangram'*",
            "@pytest.mark.tangram over this test does nothing*must take the fixture 'tangram'*",
            "there is no fault 'broker_kil'; did you mean 'broker_kill'?*",
            "@chaos names no fault; it is used like @chaos('broker_kill')",
            "@chaos has no setting 'sed'; expected some of seed, plugin",
            "@pytest.mark.tangram has no setting 'plugin'; expected some of plugins, config,*",
            "@pytest.mark.tangram(plugins='mine') is not a list; expected plugins=*",
            "@pytest.mark.tangram takes keywords*",
        ]
    )
    assert "Traceback" not in result.stdout.str()
    assert "tangram ready" not in result.stdout.str()


def test_a_module_may_have_tests_without_a_server(pytester: pytest.Pytester) -> None:
    """Settings for a module or class are for the tests that have a server."""
    source = """
pytestmark = fakes

def test_without(): ...

class TestThese:
    pytestmark = fakes

    def test_without(self): ...

    @chaos("crash_web")
    @pytest.mark.usefixtures("tangram")
    def test_with(self): ...
"""
    run(pytester, source, passed=3)


def test_a_missing_httpx_is_an_error_before_a_server_boots(pytester: pytest.Pytester) -> None:
    """The fixtures say how to install httpx."""
    pytester.makeconftest("import tangram.testing.markers as used\nused.find_spec = lambda _name: None")
    result = run(pytester, "@fakes\ndef test_it(tangram): ...", errors=1)

    result.stdout.fnmatch_lines(["*httpx, which is not installed: pip install 'tangram-trio?http?'"])


REPEATED = """
pytestmark = fakes

@pytest.mark.trio
@few
@given(st.integers())
async def test_on_trio(tangram, number):
    await ask(tangram)

@pytest.mark.anyio
@few
@given(st.integers())
async def test_on_anyio(tangram, number):
    await ask(tangram)

@few
@given(st.integers())
def test_without_a_loop(tangram, number):
    assert tangram.http.get("/-/readyz").status_code == 200

@pytest.mark.trio
@few
@given(st.integers())
async def test_virtual_clock(autojump_clock, tangram, number): ...
"""


def test_hypothesis_repeats_tests_of_every_kind(pytester: pytest.Pytester) -> None:
    """All examples of a test share one server; a virtual clock is refused."""
    result = run(pytester, REPEATED, passed=4, errors=1)

    result.stdout.fnmatch_lines(["*under @given runs in a thread*leave out the fixture 'autojump_clock'*"])


ANYIO = """
pytestmark = [fakes, pytest.mark.anyio]

async def test_it(tangram, tangram_socket, chaos):
    import anyio
    await ask(tangram)
    with anyio.move_on_after(0.05) as waited:
        await tangram.wait_event("crashed")
    assert waited.cancelled_caught
    assert (await chaos.strike("crash_web")).outcome == "up"
    async with tangram.open_socket() as another:
        assert another.connected

@pytest.mark.parametrize("number", [1, 2])
async def test_of_many(tangram, number):
    await ask(tangram)

@pytest.mark.parametrize("anyio_backend", [("trio", {"restrict_keyboard_interrupt_to_checkpoints": True})])
async def test_with_options(tangram, anyio_backend):
    await ask(tangram)
"""


def test_anyio_runs_a_test_on_both_of_its_backends(pytester: pytest.Pytester) -> None:
    """The same test passes on asyncio and on Trio without any setting."""
    result = run(pytester, ANYIO, options=["-v"], passed=7)

    result.stdout.fnmatch_lines(["*test_it?asyncio?*PASSED*"])
    result.stdout.fnmatch_lines(["*test_it?trio?*PASSED*"])


def test_pytest_trio_may_take_all_tests(pytester: pytest.Pytester) -> None:
    """With ``trio_mode`` pytest-trio also runs tests marked anyio."""
    run(pytester, ANYIO, "trio_mode = true", passed=7)


def test_a_project_without_pytest_trio_has_the_fixtures(pytester: pytest.Pytester) -> None:
    """pytest-trio is only needed for tests marked trio."""
    source = """
@fakes
def test_it(tangram):
    assert tangram.http.get("/-/readyz").status_code == 200
"""
    run(pytester, source, options=["-p", "no:trio"], passed=1)


CLASSES = """
pytestmark = fakes

class TestPlain:
    def test_without_a_loop(self, tangram):
        assert tangram.http.get("/-/readyz").status_code == 200

    @pytest.mark.trio
    @pytest.mark.parametrize("number", [1, 2])
    async def test_on_trio(self, autojump_clock, tangram, number):
        await ask(tangram)

class Served:
    @pytest.fixture(autouse=True)
    def serve(self, tangram):
        self.tangram = tangram

class TestCase(Served, unittest.TestCase):
    def test_without_a_loop(self):
        assert self.tangram.http.get("/-/readyz").status_code == 200

    @pytest.mark.trio
    async def test_on_trio(self): ...

class TestAsyncio(Served, unittest.IsolatedAsyncioTestCase):
    async def test_on_asyncio(self):
        await ask(self.tangram)
"""


def test_classes_have_servers(pytester: pytest.Pytester) -> None:
    """Methods get fixtures like functions; those of unittest by an autouse fixture."""
    result = run(pytester, CLASSES, passed=5, errors=1)

    result.stdout.fnmatch_lines(["pytest-trio does not run methods of unittest.TestCase*"])


ASYNCIO = """
pytestmark = fakes

@pytest.mark.asyncio
async def test_on_asyncio(tangram, tangram_socket):
    await ask(tangram)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tangram.wait_event("crashed"), 0.05)

@pytest.mark.trio
async def test_on_trio(autojump_clock, tangram, tangram_socket, chaos):
    await ask(tangram)
    assert (await chaos.strike("crash_web")).outcome == "up"
"""


@needs("pytest_asyncio")
def test_pytest_asyncio_and_pytest_trio_stand_beside_each_other(pytester: pytest.Pytester) -> None:
    """Each runs the tests marked for it; a test that both take is an error."""
    run(pytester, ASYNCIO, "asyncio_mode = strict", passed=2)
    for setting in ("asyncio_mode = auto", "trio_mode = true"):
        result = run(pytester, ASYNCIO, setting, passed=1, errors=1)
        result.stdout.fnmatch_lines(
            ["pytest-trio and pytest-asyncio both take this test: with asyncio_mode*"]
        )


@needs("pytest_asyncio")
def test_a_shared_loop_is_no_leak_of_a_server(pytester: pytest.Pytester) -> None:
    """The loop exists before the first server, and after it."""
    source = """
@fakes
@pytest.mark.asyncio(loop_scope="session")
async def test_it(tangram):
    await ask(tangram)
"""
    run(pytester, source, passed=1)


@needs("xdist")
def test_tests_are_shared_among_processes(pytester: pytest.Pytester) -> None:
    """Under pytest-xdist each process has servers of its own."""
    run(pytester, ANYIO, options=["-n", "2"], passed=7)
