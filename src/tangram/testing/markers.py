"""Read the markers ``tangram`` and ``chaos`` of a test, and check them.

A mistake is reported before a server boots, as an error of that test alone.
"""

from __future__ import annotations

import inspect
import unittest
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Any, Final

import attrs
import pytest

__all__ = [
    "Wanted",
    "check_markers",
    "has_server",
    "is_async",
    "is_repeated",
    "runs_on_pytest_trio",
    "wanted",
]

_FIXTURES: Final = frozenset({"tangram", "tangram_socket", "chaos"})

_CLOCKS: Final = frozenset({"autojump_clock", "mock_clock"})
"""Fixtures of pytest-trio that give the test's loop a virtual clock."""

_LACKING: Final = (
    "@{name} over this test does nothing, for the test has no server: it must take the fixture 'tangram', as "
    "an argument or by @pytest.mark.usefixtures('tangram')"
)


@attrs.frozen
class Wanted:
    """The settings of one test's server, and the faults that strike it."""

    settings: Mapping[str, Any]
    """As for ``open_tangram``."""
    faults: tuple[str, ...]
    chaos: Mapping[str, Any]
    """As for ``Chaos``."""
    prints_log: bool = False
    """Whether the server's log is printed: ``--tangram-log``."""


def wanted(node: Any) -> Wanted:
    """Return the settings in the markers of a test."""
    settings, faults = node.get_closest_marker("tangram"), node.get_closest_marker("chaos")
    return Wanted(
        {} if settings is None else settings.kwargs,
        () if faults is None else faults.args,
        {} if faults is None else faults.kwargs,
        node.config.getoption("--tangram-log"),
    )


def has_server(item: Any) -> bool:
    """Return whether a test takes one of the fixtures with a server."""
    return not _FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))


def is_repeated(node: Any) -> bool:
    """Return whether hypothesis runs the test many times."""
    return hasattr(getattr(node, "obj", None), "hypothesis")


def is_async(node: Any) -> bool:
    """Return whether the test is a coroutine function, below the wrappers of others."""
    function: Any = getattr(node, "obj", None) or (lambda: None)
    if not is_repeated(node):
        return inspect.iscoroutinefunction(inspect.unwrap(function))
    inner = inspect.unwrap(function.hypothesis.inner_test)
    # After the run on one backend anyio leaves a plain function there, but it only runs coroutines.
    return inspect.iscoroutinefunction(inner) or "anyio_backend" in node.fixturenames


def runs_on_pytest_trio(node: Any) -> bool:
    """Return whether pytest-trio runs the test."""
    marked = node.get_closest_marker("trio") is not None
    return marked and node.config.pluginmanager.hasplugin("trio") and is_async(node)


def check_markers(item: pytest.Item) -> None:
    """Check that the markers of a test are right, and that the test can use them.

    Raises:
        pytest.fail.Exception: they are not; the message says what to do.
    """
    with_server = has_server(item)
    mistake = _wrong_faults(item, with_server=with_server) or _wrong_settings(item, with_server=with_server)
    if with_server:
        mistake = mistake or _wrong_runner(item) or _lacking_client()
    if mistake:
        pytest.fail(mistake, pytrace=False)


def _wrong_faults(item: pytest.Item, *, with_server: bool) -> str | None:
    """Return the mistake in a ``chaos`` marker.

    A marker on a whole module or class is checked for each test too, because an author relies on the
    faults.
    """
    marker = item.get_closest_marker("chaos")
    if marker is None:
        return None
    if not with_server:
        return _LACKING.format(name="chaos")
    from tangram.testing.faults.catalogue import FAULTS, Chaos, no_such_fault

    if not marker.args or callable(marker.args[0]):
        return "@chaos names no fault; it is used like @chaos('broker_kill')"
    unknown = [no_such_fault(name) for name in marker.args if name not in FAULTS]
    return "\n".join(unknown) or _unfit(Chaos, "@chaos", marker.kwargs)


def _wrong_settings(item: pytest.Item, *, with_server: bool) -> str | None:
    """Return the mistake in a ``tangram`` marker.

    On a module or class it is a default for tests that open a server, so a test without one is no
    mistake.
    """
    marker = item.get_closest_marker("tangram")
    if marker is None:
        return None
    if not with_server:
        own = any(mark.name == "tangram" for mark in item.own_markers)
        return _LACKING.format(name="pytest.mark.tangram") if own else None
    if marker.args:
        return "@pytest.mark.tangram takes keywords: plugins=[...], config={...}, fakes=True"
    from tangram.testing.run.server import open_tangram

    plugins = marker.kwargs.get("plugins", ())
    if isinstance(plugins, str) or not isinstance(plugins, Iterable):
        return f"@pytest.mark.tangram(plugins={plugins!r}) is not a list; expected plugins=[...]"
    return _unfit(open_tangram, "@pytest.mark.tangram", marker.kwargs)


def _unfit(function: Callable[..., Any], marker: str, settings: Mapping[str, Any]) -> str | None:
    known = [
        name
        for name, one in inspect.signature(function).parameters.items()
        if one.kind is one.KEYWORD_ONLY or name in {"plugins", "config"}
    ]
    unknown = [name for name in settings if name not in known]
    if not unknown:
        return None
    return f"{marker} has no setting {', '.join(map(repr, unknown))}; expected some of {', '.join(known)}"


def _lacking_client() -> str | None:
    if find_spec("httpx") is not None:
        return None
    return "a server under test needs httpx, which is not installed: pip install 'tangram-trio[http]'"


def _wrong_runner(item: pytest.Item) -> str | None:
    """Return why a test cannot be run, or cannot have a server."""
    if not runs_on_pytest_trio(item):
        return None
    if issubclass(getattr(item, "cls", None) or object, unittest.TestCase):
        return "pytest-trio does not run methods of unittest.TestCase: make it a method of a plain class"
    if item.config.pluginmanager.hasplugin("asyncio") and item.get_closest_marker("asyncio") is not None:
        return (
            "pytest-trio and pytest-asyncio both take this test: with asyncio_mode = 'strict' pytest-asyncio "
            "takes only what is marked asyncio, and without trio_mode pytest-trio only what is marked trio"
        )
    clocks = sorted(_CLOCKS.intersection(getattr(item, "fixturenames", ())))
    if is_repeated(item) and clocks:
        return (
            f"the server of a test under @given runs in a thread, in real time, for all of its examples: "
            f"leave out the fixture {clocks[0]!r}, or open a server in each example by open_tangram"
        )
    return None
