"""Every example passes check_plugin; bad plugins fail with a message that says why."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tangram import APIRouter, BackendState, Plugin
from tangram.chaos.conformance import check_plugin
from tangram.testing.openapi_samples import SampleRequest, requests_of, sample_of
from tests.app.helpers import Journal, make_plugin

EXAMPLES = [
    "tangram_demo",
    "tangram_example_commands",
    "tangram_example_endpoint",
    "tangram_example_fleet",
    "tangram_example_periodic",
    "tangram_example_publish",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
async def test_the_examples_conform(name: str) -> None:
    """Each example passes with a real broker."""
    await check_plugin(name)


@pytest.mark.slow
async def test_a_good_plugin_conforms_on_fakes(autojump_clock: MockClock) -> None:
    """A plugin with services, a lifespan and routes passes under a virtual clock."""
    await check_plugin(make_plugin(Journal()), fakes=True)


@pytest.fixture
def leaked() -> Iterator[list[socket.socket]]:
    """Keep leaked sockets, and close them after the test."""
    found: list[socket.socket] = []
    yield found
    for one in found:
        one.close()


@pytest.mark.slow
async def test_a_plugin_that_leaks_a_socket_fails(
    autojump_clock: MockClock, leaked: list[socket.socket]
) -> None:
    """A socket for each incarnation is reported after the restarts."""
    plugin = Plugin()

    @plugin.register_service()
    async def leak(state: BackendState) -> None:
        leaked.append(socket.socket())
        await trio.sleep_forever()

    with pytest.raises(AssertionError, match="3 restarts of the plugin left 3 descriptors open"):
        await check_plugin(plugin, fakes=True)


@pytest.mark.slow
async def test_a_plugin_that_leaks_once_fails(autojump_clock: MockClock, leaked: list[socket.socket]) -> None:
    """A socket that is left at the end is reported by the invariant."""
    plugin = Plugin()

    @plugin.register_service()
    async def leak(state: BackendState) -> None:
        if not leaked:
            leaked.append(socket.socket())
        await trio.sleep_forever()

    with pytest.raises(AssertionError, match="nothing_left_alive"):
        await check_plugin(plugin, fakes=True)


@pytest.mark.slow
async def test_a_plugin_that_ignores_its_cancellation_fails(autojump_clock: MockClock) -> None:
    """A service past its stop time is named with its line."""
    plugin = Plugin()

    @plugin.register_service(stop_timeout=1.0)
    async def deaf(state: BackendState) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1.5)

    with pytest.raises(AssertionError, match=r"nobody_is_stubborn: .*deaf went on although it was cancelled"):
        await check_plugin(plugin, fakes=True)


async def test_a_plugin_that_is_never_ready_fails(autojump_clock: MockClock) -> None:
    """It is reported after its start time."""
    plugin = Plugin()

    @plugin.register_service()
    async def silent(state: BackendState, *, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep_forever()

    with pytest.raises(AssertionError, match="the plugin was not up within 15 s"):
        await check_plugin(plugin, fakes=True)


async def test_a_plugin_that_was_given_up_fails(autojump_clock: MockClock) -> None:
    """A server that is up without the plugin is reported as a failed start."""
    plugin = Plugin()

    @plugin.register_service()
    async def broken(state: BackendState) -> None:
        raise ValueError("no map today")

    tables = {"core": {"strict": False}, "supervisor": {"plugin_restarts": 0}}
    with pytest.raises(AssertionError, match="the plugin does not start: ValueError: no map today"):
        await check_plugin(plugin, tables, fakes=True)


async def test_a_plugin_that_raises_at_its_start_fails(autojump_clock: MockClock) -> None:
    """The message has its exception."""
    plugin = Plugin()

    @plugin.register_service()
    async def broken(state: BackendState, *, task_status: trio.TaskStatus[None]) -> None:
        raise ValueError("no map today")

    with pytest.raises(AssertionError, match="the plugin does not start: ValueError: no map today"):
        await check_plugin(plugin, fakes=True)


async def test_a_plugin_with_a_failing_route_fails(autojump_clock: MockClock) -> None:
    """A route that answers its own example with 500 is reported."""
    router = APIRouter(prefix="/bad")
    plugin = Plugin(routers=[router])

    @router.get("/{number}")
    async def fail(number: int) -> dict[str, float]:
        return {"share": 1 / number}

    with pytest.raises(AssertionError, match="GET /bad/0 was answered 500"):
        await check_plugin(plugin, fakes=True)


def test_requests_are_the_smallest_that_a_document_allows() -> None:
    """Examples come first, then defaults, then the smallest values."""
    document = {
        "paths": {
            "/a/{name}": {
                "post": {
                    "parameters": [
                        {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}},
                        {
                            "name": "n",
                            "in": "query",
                            "required": True,
                            "schema": {"minimum": 3, "type": "integer"},
                        },
                        {"name": "o", "in": "query", "schema": {"type": "string"}},
                    ],
                    "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/B"}}}},
                }
            }
        },
        "components": {
            "B": {"type": "object", "required": ["b"], "properties": {"b": {"$ref": "#/components/B"}}},
        },
    }

    (request,) = requests_of(document)

    assert (request.method, request.path, request.query) == ("POST", "/a/x", {"n": "3"})
    assert isinstance(request, SampleRequest)
    assert sample_of(document, {"type": ["integer", "null"], "exclusiveMinimum": 0}) == 1
    assert sample_of(document, {"anyOf": [{"enum": ["up"]}]}) == "up"


@pytest.mark.slow
async def test_a_plugin_that_raises_in_its_clean_up_fails(autojump_clock: MockClock) -> None:
    """An exception during a requested stop is no crash, but a mistake of the plugin."""

    @asynccontextmanager
    async def lifespan(state: BackendState) -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise ValueError("in the clean-up")

    with pytest.raises(AssertionError, match=r"raises in its clean-up, .*in the clean-up"):
        await check_plugin(Plugin(lifespan=lifespan), fakes=True)


@pytest.mark.slow
async def test_a_service_that_fails_at_once_is_reported_with_its_cause(autojump_clock: MockClock) -> None:
    """The most common mistake has a plain message."""
    plugin = Plugin()

    @plugin.register_service()
    async def fail(state: BackendState) -> None:
        raise ValueError("no such device")

    with pytest.raises(AssertionError, match=r"the plugin does not .*no such device"):
        await check_plugin(plugin, fakes=True)


async def test_an_unknown_exception_of_a_plugin_is_an_error(autojump_clock: MockClock) -> None:
    """``but`` accepts names of invariants only."""
    with pytest.raises(ValueError, match=r"no invariant \['leaks'\]: expected some of nothing_left_alive"):
        await check_plugin(Plugin(), fakes=True, but={"leaks": "on purpose"})


@pytest.mark.slow
async def test_a_service_that_has_nothing_to_do_conforms(autojump_clock: MockClock) -> None:
    """A service that returns before it has started has done its work."""
    plugin = Plugin()

    @plugin.register_service()
    async def optional(state: BackendState, *, task_status: trio.TaskStatus[None]) -> None:
        await trio.lowlevel.checkpoint()  # it has looked, and there is no device

    await check_plugin(plugin, fakes=True)
