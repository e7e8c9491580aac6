from __future__ import annotations

import functools
from typing import Any

import pytest
import trio

from tangram.errors import PluginError
from tangram.plugins.plugin import Plugin


async def serve(state: object) -> None:
    await trio.sleep_forever()


def test_a_service_is_registered_and_its_function_is_returned() -> None:
    """The decorator returns the function and records its supervision settings."""
    plugin = Plugin()
    returned = plugin.register_service(priority=3, restart="permanent", stop_timeout=1.5)(serve)

    assert returned is serve
    (service,) = plugin.services
    assert (service.name, service.priority, service.restart, service.stop_timeout) == (
        "serve",
        3,
        "permanent",
        1.5,
    )
    assert not service.threaded
    assert not service.reports_start


def test_services_are_sorted_by_priority_and_name() -> None:
    """Services are sorted by (priority, name), for any order of registration."""
    plugin = Plugin()
    for priority, name in [(1, "a"), (0, "z"), (0, "b")]:
        plugin.register_service(priority, name=name)(serve)

    assert [service.name for service in plugin.services] == ["b", "z", "a"]


def test_the_decorator_without_parentheses_is_an_error_that_says_so() -> None:
    """The error for a decorator without parentheses shows the correct form."""
    plugin = Plugin()
    bare: Any = plugin.register_service

    with pytest.raises(PluginError, match=r"@plugin\.register_service\(\) above 'serve', with parentheses"):
        bare(serve)
    assert plugin.services == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"restart": "always"}, "restart='always'"),
        ({"stop_timeout": 0}, "above 0"),
        ({"start_timeout": -1}, "above 0"),
    ],
)
def test_a_declaration_that_cannot_work_is_an_error(arguments: dict[str, Any], told: str) -> None:
    """Wrong restart types and times raise at import."""
    with pytest.raises(PluginError, match=told):
        Plugin().register_service(**arguments)


def test_two_services_with_one_name_are_an_error() -> None:
    """A second service with the same name is refused."""
    plugin = Plugin()
    plugin.register_service()(serve)

    with pytest.raises(PluginError, match=r"service 'serve' is registered twice: pass name="):
        plugin.register_service()(serve)


def test_plain_functions_are_for_threads() -> None:
    """A function that is not async runs in a thread, also inside a partial."""

    def plain(state: object, extra: int = 0) -> None: ...

    plugin = Plugin()
    plugin.register_service()(plain)
    plugin.register_service(name="partial")(functools.partial(plain, extra=1))
    plugin.register_service(name="async partial")(functools.partial(serve))

    threaded = {service.name: service.threaded for service in plugin.services}
    assert threaded == {"plain": True, "partial": True, "async partial": False}


def test_a_plain_function_cannot_report_its_start() -> None:
    """A sync service with task_status is refused."""

    def plain(state: object, *, task_status: object) -> None: ...

    with pytest.raises(PluginError, match="cannot take task_status"):
        Plugin().register_service()(plain)


def test_a_plugin_is_a_plain_object_with_an_identity() -> None:
    """Plugins are compared by identity, are hashable, and accept attributes of authors."""
    one, other = Plugin(), Plugin()
    one.anything = 1  # type: ignore[attr-defined]

    assert one != other
    assert len({one, other}) == 2
    assert one.routers is not other.routers
