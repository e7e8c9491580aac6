"""The pytest plugin: fixtures ``tangram``, ``tangram_socket`` and ``chaos``.

They serve Trio tests in the test's own loop; for synchronous tests and asyncio tests the server runs in a
thread of its own. Settings come from a marker: ``@pytest.mark.tangram(plugins=[...], config={...},
fakes=True)``. With ``tangram_core = true`` in pytest's configuration, ``import tangram_core`` is answered as
in the server.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tangram.client import ClientSocket
    from tangram.testing.bridge import Bridge
    from tangram.testing.catalogue import Chaos
    from tangram.testing.server import RunningTangram

__all__ = ["chaos", "pytest_addoption", "pytest_configure", "tangram", "tangram_socket"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The setting ``tangram_core``."""
    parser.addini(
        "tangram_core",
        "answer `import tangram_core` as the server does, also where the real package is installed",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    """Answer the old import where the project asks for it, before any of its tests is imported; and make
    the markers known, also to a strict pytest.
    """
    if config.getini("tangram_core"):
        from tangram.compat import answer_imports

        answer_imports()
    config.addinivalue_line(
        "markers",
        "tangram(plugins=(), config=None, fakes=False, checks=...): how the fixture `tangram` is opened",
    )
    config.addinivalue_line("markers", "chaos(*faults, seed=0): what strikes the fixture `tangram` meanwhile")


def _is_trio(request: pytest.FixtureRequest) -> bool:
    node = request.node
    return node.get_closest_marker("trio") is not None and inspect.iscoroutinefunction(
        inspect.unwrap(getattr(node, "obj", None) or (lambda: None))
    )


def _is_async(request: pytest.FixtureRequest) -> bool:
    return inspect.iscoroutinefunction(getattr(request.node, "obj", None))


def _settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    marker = request.node.get_closest_marker("tangram")
    if marker is None:
        return {}
    if marker.args:
        raise pytest.UsageError(
            "@pytest.mark.tangram takes keywords: plugins=[...], config={...}, fakes=True"
        )
    return dict(marker.kwargs)


@pytest.fixture
def tangram(request: pytest.FixtureRequest) -> Any:
    """A whole server: a `RunningTangram`, or a `Bridge` to one where the test does not run on Trio."""
    return _for_mode(request, "_tangram")


@pytest.fixture
def tangram_socket(request: pytest.FixtureRequest) -> Any:
    """A channel client, connected to the server of the fixture ``tangram``."""
    return _for_mode(request, "_tangram_socket")


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> Any:
    """Faults by name, for the server of the fixture ``tangram``: ``await chaos.strike("broker_kill")``."""
    return _for_mode(request, "_chaos")


def _for_mode(request: pytest.FixtureRequest, name: str) -> Any:
    on_trio = request.config.pluginmanager.hasplugin("trio") and _is_trio(request)
    return request.getfixturevalue(f"{name}_{'on_trio' if on_trio else 'in_thread'}")


def _faults(request: pytest.FixtureRequest) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What strikes the test's server meanwhile, and the settings of ``Chaos``."""
    marker = request.node.get_closest_marker("chaos")
    return ((), {}) if marker is None else (marker.args, dict(marker.kwargs))


@pytest.fixture
async def _tangram_on_trio(request: pytest.FixtureRequest) -> AsyncIterator[RunningTangram]:
    from tangram.testing.catalogue import Chaos
    from tangram.testing.server import open_tangram

    faults, settings = _faults(request)
    async with open_tangram(**_settings(request)) as running:
        if not faults:
            yield running
            return
        async with Chaos(running, **settings).striking(*faults):
            yield running


@pytest.fixture
async def _tangram_socket_on_trio(_tangram_on_trio: RunningTangram) -> AsyncIterator[ClientSocket]:
    async with _tangram_on_trio.open_socket() as client:
        yield client


@pytest.fixture
async def _chaos_on_trio(_tangram_on_trio: RunningTangram) -> Chaos:
    from tangram.testing.catalogue import Chaos

    return Chaos(_tangram_on_trio)


@pytest.fixture
def _tangram_in_thread(request: pytest.FixtureRequest) -> Iterator[Bridge]:
    from tangram.testing.bridge import threaded_tangram

    faults, chaos = _faults(request)
    settings, asynchronous = _settings(request), _is_async(request)
    with threaded_tangram(settings, asynchronous=asynchronous, faults=faults, chaos=chaos) as bridge:
        yield bridge


@pytest.fixture
def _tangram_socket_in_thread(_tangram_in_thread: Bridge) -> Iterator[Any]:
    with _tangram_in_thread.open_socket() as client:
        yield client


@pytest.fixture
def _chaos_in_thread(_tangram_in_thread: Bridge) -> Bridge:
    from tangram.testing.bridge import chaos_of

    return chaos_of(_tangram_in_thread)
