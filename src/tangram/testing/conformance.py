"""Try a plugin as a whole: it must start, answer, restart, survive and stop."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any, Final

import trio

from tangram.errors import SupervisionError
from tangram.plugins import Plugin
from tangram.testing.checks.census import take_census
from tangram.testing.openapi_samples import SampleRequest, requests_of
from tangram.testing.run.server import CHEAP, RunningTangram, TangramEnded, open_tangram

__all__ = ["check_plugin"]

START_SECONDS: Final = 15.0
"""Seconds for the plugin's start: while it starts again, requests to it wait."""

ANSWER_SECONDS: Final = 5.0
"""Seconds for a route to begin its answer."""

RESTARTS: Final = 3
"""Restarts after which a leak at each of them is visible."""

ENDS_WELL: Final = frozenset({"returned", "returned before its start"})
"""Causes of a stop without an exception: the service has done its work, or had nothing to do."""

CHECKS: Final = (*CHEAP, "nobody_is_stubborn", "comes_to_rest")


_IN_CHAOS: Final = frozenset({"Broker", "Transport", "check_broker", "check_transport", "transport_of"})


def __getattr__(name: str) -> object:
    if name in _IN_CHAOS:
        raise ImportError(f"{__name__}.{name} has moved, import {name!r} from tangram.chaos.conformance")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


async def check_plugin(
    plugin: Plugin | str,
    config: Mapping[str, Any] | None = None,
    *,
    fakes: bool = False,
    start_seconds: float = START_SECONDS,
    but: Mapping[str, str] | None = None,
) -> None:
    """Check that a plugin starts, answers, restarts, survives faults and leaves nothing.

    It sends each route of the plugin an example request, restarts the plugin cleanly and alone, ends
    its services and crashes it, and checks after each step that it is up again.

    Args:
        plugin: a ``Plugin``, or the name of an installed one.
        config: tables and keys as in ``tangram.toml``; the plugin's own are in ``{"plugins.NAME":
            {...}}``.
        fakes: use a broker in memory, so that a virtual clock works.
        start_seconds: within which it has to be up.
        but: invariants that this plugin breaks on purpose, each with the reason.

    Raises:
        ValueError: ``but`` has another name.
        AssertionError: the plugin fails; the message says how. `InvariantBroken` is one of them.
    """
    if unknown := (but or {}).keys() - set(CHECKS):
        raise ValueError(f"no invariant {sorted(unknown)!r}: expected some of {', '.join(CHECKS)}")
    checks = [name for name in CHECKS if name not in (but or {})]
    tables = {name: dict(table) for name, table in (config or {}).items()}
    tables["core"] = {"strict": True, **tables.get("core", {})}
    builtin = await _paths_without(fakes=fakes)
    seen: list[RunningTangram] = []
    try:
        # This scope bounds the start only; it is lifted when the plugin is up.
        with trio.CancelScope(deadline=trio.current_time() + start_seconds) as limit:
            async with open_tangram(
                [plugin], tables, fakes=fakes, checks=checks, on_server=seen.append
            ) as running:
                limit.deadline = float("inf")
                await _lives(running, builtin)
    except TangramEnded as error:
        raise AssertionError(f"the plugin does not start: {_last_crash(seen[0]) or error}") from error
    except SupervisionError as error:
        raise AssertionError(f"the plugin cannot be restarted: {error}") from error
    if limit.cancelled_caught:
        raise AssertionError(f"the plugin was not up within {start_seconds:g} s")


def _last_crash(running: RunningTangram) -> str | None:
    causes = [event.cause for event in running.events if event.kind == "crashed"]
    return causes[0] if causes else None


async def _paths_without(*, fakes: bool) -> set[str]:
    """Return the paths that a server without plugins has."""
    async with open_tangram(fakes=fakes, checks=()) as running:
        return set((await running.http.get("/openapi.json")).json()["paths"])


async def _lives(running: RunningTangram, builtin: set[str]) -> None:
    outcome = await running.wait_steady()
    assert outcome == "up", f"the plugin does not start: {_last_crash(running) or outcome}"
    (child,) = [name for name in running.ports.names if name.startswith("plugin:")]
    await _answers(running, builtin)
    await _restarts(running, child)
    await _survives_a_cancel(running, child)
    running.crash(child)
    outcome = await running.wait_steady()
    assert outcome == "up", f"after a crash the plugin is not up again, it is {outcome}"
    await _answers(running, builtin)


async def _answers(running: RunningTangram, builtin: set[str]) -> None:
    document = (await running.http.get("/openapi.json")).json()
    document["paths"] = {path: item for path, item in document["paths"].items() if path not in builtin}
    for request in requests_of(document):
        status = await _status(running, request)
        assert status < 500, f"{request.method} {request.path} was answered {status}"


async def _status(running: RunningTangram, request: SampleRequest) -> int:
    """Return the status of an answer, without its body: a stream may not end."""
    content: dict[str, Any] = {} if request.body is None else {"json": request.body}
    try:
        with trio.fail_after(ANSWER_SECONDS):
            async with running.http.stream(
                request.method, request.path, params=request.query, headers=request.headers, **content
            ) as answer:
                return answer.status_code
    except trio.TooSlowError:
        message = f"{request.method} {request.path} was not answered within {ANSWER_SECONDS:g} s"
        raise AssertionError(message) from None


async def _restarts(running: RunningTangram, child: str) -> None:
    tree = running.server.tree
    assert tree is not None
    running.planned = True
    mark, counts = len(running.events), []
    for _ in range(RESTARTS + 1):  # the first restart may open descriptors that are kept for good
        assert tree.incarnation.supervisor is not None
        await tree.incarnation.supervisor.restart_child(child)
        counts.append(_open_descriptors())
    raised = [event for event in running.events[mark:] if event.kind == "stopped" and event.cause]
    # One exception may be a simultaneous crash; one at each restart comes from the clean-up.
    causes = [f"{'/'.join(event.path)}: {event.cause}" for event in raised if event.cause not in ENDS_WELL]
    assert len(causes) <= RESTARTS, f"the plugin raises in its clean-up, {causes[0]}"
    more = counts[-1] - counts[0]
    assert more < RESTARTS, f"{RESTARTS} restarts of the plugin left {more} descriptors open"
    await running.server.restart()
    outcome = await running.wait_steady()
    assert outcome == "up", f"after a restart of everything the plugin is not up, it is {outcome}"


def _open_descriptors() -> int:
    gc.collect()  # closes unreferenced descriptors, which are no leak
    return len(take_census().descriptors)


async def _survives_a_cancel(running: RunningTangram, child: str) -> None:
    """Check that it is up again after its services were cancelled from outside."""
    running.ports.end(child)
    await running.wait_event("crashed", child)
    outcome = await running.wait_steady()
    assert outcome == "up", f"after its services were cancelled the plugin is not up, it is {outcome}"
