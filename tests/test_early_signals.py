"""A stop that is requested before the server handles signals is obeyed, and ends with status 0."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import trio

import tangram.app
from tangram import early_signals
from tangram.app.signals import SignalGuard, open_signals
from tangram.cli import main as command_line
from tangram.cli import serving
from tangram.config import LoadedConfig, load_tables
from tangram.errors import BrokerStartError
from tangram.idle import IdleClock
from tangram.supervision import Child
from tangram.testing import RunningTangram, TangramEnded, open_tangram

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _own_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(early_signals, "_noted", [])
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def status_of(monkeypatch: pytest.MonkeyPatch, serve: Callable[[], object]) -> object:
    """Return the exit status of the command line, where the command is a function."""

    class Command:
        def main(self, **_options: Any) -> None:
            serve()

    monkeypatch.setattr(command_line, "cli", Command())
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    return ended.value.code


class Broken:
    """An object whose class cannot be made during a signal, as an enumeration on Python 3.11."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __set_name__(self, owner: type, name: str) -> None:
        try:
            signal.raise_signal(self.number)
        except SystemExit as error:
            raise RuntimeError("error calling __set_name__") from error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_import_that_changes_the_exception_ends_with_status_0(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The exception of the handler leaves the import as another one."""

    def serve() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        early_signals.prepare_server()
        type("Enumeration", (), {"member": Broken(number)})

    assert status_of(monkeypatch, serve) == 0


def test_an_exception_without_a_signal_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the program keeps its traceback."""

    def serve() -> None:
        raise RuntimeError("a fault")

    class Command:
        def main(self, **_options: Any) -> None:
            serve()

    monkeypatch.setattr(command_line, "cli", Command())
    with pytest.raises(RuntimeError, match="a fault"):
        command_line.main()


async def serve_until_signal(received: list[signal.Signals]) -> int:
    """Stand for a server: handle signals, and wait for the first one."""
    guard = SignalGuard(lambda _file: None, on_stop=lambda: None, on_repeat=lambda: None)
    with open_signals(guard), trio.fail_after(60):
        received.append(await guard.next_request())
    return 0


def serve_alone(monkeypatch: pytest.MonkeyPatch, clock: type[IdleClock]) -> list[signal.Signals]:
    """Run the shell around a server with this clock; return the signals that the server gets."""
    received: list[signal.Signals] = []

    async def run(_boot: object) -> int:
        return await serve_until_signal(received)

    monkeypatch.setattr(tangram.app, "run_server", run)
    monkeypatch.setattr(serving, "IdleClock", clock)
    # These change the process of the tests for good.
    monkeypatch.setattr(serving, "raise_limits", lambda _most: None)
    monkeypatch.setattr(serving, "keep_freed_memory", lambda: None)
    loaded: LoadedConfig = load_tables({})
    status = serving._serve_alone(
        loaded, None, watch=False, reload=lambda: loaded, on_first_ready=lambda _url: None
    )
    assert status == 0
    return received


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_in_trios_own_code_reaches_the_server(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """It comes while Trio starts its clock: an exception there is an internal error of Trio."""

    class Struck(IdleClock):
        def start_clock(self) -> None:
            super().start_clock()
            signal.raise_signal(number)

    early_signals.end_on_term()
    early_signals.prepare_server()

    assert serve_alone(monkeypatch, Struck) == [number]


def test_a_signal_that_code_has_swallowed_reaches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finalizer ignores the exception of the handler."""
    early_signals.end_on_term()
    with suppress(SystemExit):
        signal.raise_signal(signal.SIGTERM)

    assert serve_alone(monkeypatch, IdleClock) == [signal.SIGTERM]


def test_a_signal_after_the_server_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second SIGTERM comes during the clean-up, in which Trio may still run."""
    early_signals.end_on_term()
    close = SignalGuard.close

    def close_and_repeat(self: SignalGuard) -> None:
        close(self)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(SignalGuard, "close", close_and_repeat)
    with suppress(SystemExit):
        signal.raise_signal(signal.SIGTERM)

    assert serve_alone(monkeypatch, IdleClock) == [signal.SIGTERM]


def test_an_ignored_signal_stays_ignored() -> None:
    """A program that the shell has started in the background outlives its terminal."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    early_signals.prepare_server()
    with early_signals.deferred():
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGINT)

    assert not early_signals.is_stop_noted()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


async def test_a_broker_that_ends_with_the_server_is_no_failed_start(autojump_clock: object) -> None:
    """A signal for all processes of a service ends the broker between the handler and the stop."""
    started: list[RunningTangram] = []

    def wrap(child: Child) -> Child:
        async def end(*, task_status: trio.TaskStatus[str]) -> None:
            started[0].server.note_stop()
            raise BrokerStartError("the broker ended with signal 15")

        return Child("broker", end) if child.name == "broker" else child

    with pytest.raises(TangramEnded) as ended:
        # Without the check that a supervisor that gives up ends the server with another status.
        async with open_tangram([], wrap=wrap, fakes=True, on_server=started.append, checks=()):
            raise AssertionError("it has not started")
    assert ended.value.status == 0
