"""The pytest plugin: fixtures ``tangram``, ``tangram_socket`` and ``chaos``.

For tests of pytest-trio the server runs in the test's own loop; for synchronous tests and those of
asyncio and anyio it runs in a thread. Settings come from a marker:
``@pytest.mark.tangram(plugins=[...], config={...}, fakes=True)``. With ``tangram_core = true`` in
pytest's configuration, ``import tangram_core`` is answered as in the server.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tangram.testing.markers import (
    check_markers,
    has_server,
    is_async,
    is_repeated,
    runs_on_pytest_trio,
    wanted,
)

if TYPE_CHECKING:
    from tangram.testing.threaded.bridge import Bridge

__all__ = [
    "chaos",
    "pytest_addoption",
    "pytest_configure",
    "pytest_runtest_call",
    "pytest_runtest_setup",
    "tangram",
    "tangram_socket",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting ``tangram_core`` and the option ``--tangram-log``."""
    parser.getgroup("tangram").addoption(
        "--tangram-log", action="store_true", help="print the log of servers under test, for failed tests"
    )
    parser.addini(
        "tangram_core",
        "answer `import tangram_core` as the server does, also where the real package is installed",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and answer ``import tangram_core`` where the project asks for it.

    This happens before any test of the project is imported.
    """
    if config.getini("tangram_core"):
        from tangram.compat import answer_imports

        answer_imports()
    config.addinivalue_line(
        "markers",
        "tangram(plugins=(), config=None, fakes=False, checks=...): how the fixture `tangram` is opened",
    )
    config.addinivalue_line("markers", "chaos(*faults, seed=0): what strikes the fixture `tangram` meanwhile")
    if config.pluginmanager.hasplugin("trio"):
        config.pluginmanager.import_plugin("tangram.testing.threaded.trio_fixtures")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Report mistakes in the markers of a test before any server boots, and after skips."""
    check_markers(item)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Raise the single exception of a test with a server without the groups around it.

    pytest-trio runs test and fixtures in a nursery, which wraps a failing ``assert`` of the test. pytest then
    prints a nested traceback instead of the line with its values.
    """
    __tracebackhide__ = True
    try:
        return (yield)
    except BaseExceptionGroup as group:
        from tangram.groups import unwrap_single

        alone = unwrap_single(group)
        if alone is group or not has_server(item):
            raise
    raise alone  # outside of the handler, so that the group does not become its context


@pytest.fixture
def tangram(request: pytest.FixtureRequest) -> Any:
    """Run a whole server.

    Returns:
        A `RunningTangram`, or a `Bridge` to one where the test does not run on Trio.
    """
    return _for_mode(request, "_tangram")


@pytest.fixture
def tangram_socket(request: pytest.FixtureRequest) -> Any:
    """Connect a channel client to the server of the fixture ``tangram``."""
    return _for_mode(request, "_tangram_socket")


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> Any:
    """Return the `Chaos` of the fixture ``tangram``: ``await chaos.strike("broker_kill")``."""
    return _for_mode(request, "_chaos")


def _for_mode(request: pytest.FixtureRequest, name: str) -> Any:
    return request.getfixturevalue(f"{name}_{'on_trio' if _is_trio(request) else 'in_thread'}")


def _is_trio(request: pytest.FixtureRequest) -> bool:
    """Return whether the server can live in the test's own loop.

    Runners other than pytest-trio run a Trio test in a loop of their own. A test that hypothesis
    repeats has a loop for each example, but its fixtures only once.
    """
    return runs_on_pytest_trio(request.node) and not is_repeated(request.node)


def _open_shared_loop(request: pytest.FixtureRequest) -> None:
    """Let pytest-asyncio open a loop that several tests share before the server starts.

    It opens it when it first runs one of them, and the descriptors would look like a leak of that
    test's server.
    """
    for name in request.node.fixturenames:
        if name.endswith("_scoped_runner") and not name.startswith("_function"):
            request.getfixturevalue(name)


@pytest.fixture
def _tangram_in_thread(request: pytest.FixtureRequest) -> Iterator[Bridge]:
    from tangram.testing.checks.log_records import server_log
    from tangram.testing.checks.quarantines import print_quarantines
    from tangram.testing.threaded.bridge import threaded_tangram

    _open_shared_loop(request)
    want, asynchronous = wanted(request.node), is_async(request.node)
    strikes: dict[str, Any] = {"faults": want.faults, "chaos": want.chaos}
    with (
        server_log(printed=want.prints_log),
        threaded_tangram(want.settings, asynchronous=asynchronous, **strikes) as bridge,
    ):
        try:
            yield bridge
        finally:
            print_quarantines(bridge.events)


@pytest.fixture
def _tangram_socket_in_thread(_tangram_in_thread: Bridge) -> Iterator[Any]:
    with _tangram_in_thread.open_socket() as client:
        yield client


@pytest.fixture
def _chaos_in_thread(_tangram_in_thread: Bridge) -> Bridge:
    from tangram.testing.threaded.bridge import chaos_of

    return chaos_of(_tangram_in_thread)
