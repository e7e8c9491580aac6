"""Two harnesses with one interface: `Decided` and `Running`.

`Decided` drives the decider alone, `Running` drives real tasks on the autojump clock. A test in their common
terms checks both, so that the shell and the decisions cannot differ.

Children follow a script: ``starts`` holds the results of a child's next starts (``ok`` by default, ``fail``,
``hang``, ``ignore``), `crash` and `finish` end a child, names in ``stubborn`` ignore cancellation, and names
in ``dirty`` raise in their clean-up.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from functools import partial
from typing import Any

import trio
import trio.testing

from tangram.errors import ChildStubborn, RestartsExhausted, StartFailed
from tangram.supervision import (
    CURRENT_CHILD_TASK,
    Backoff,
    Child,
    SupervisionEvent,
    Supervisor,
    Window,
)
from tangram.supervision.decide import Decider
from tangram.supervision.records import crash_of
from tangram.supervision.spec import check_supervisor
from tangram.supervision.table import AT_REST, Effect, Report, Start, State
from tangram.testing import open_supervised

KINDS: dict[type[BaseException], str] = {
    StartFailed: "boot",
    RestartsExhausted: "exhausted",
    ChildStubborn: "stubborn",
    KeyboardInterrupt: "fatal",
    SystemExit: "fatal",
}


STUBBORN = dict.fromkeys(
    ("nobody_is_stubborn", "stops_within_bound", "stops_in_reverse_order"),
    "children that the case names ignore their cancellation, and end when it releases them",
)


class World(ABC):
    def __init__(self) -> None:
        self.log: list[str] = []
        self.events: list[SupervisionEvent] = []
        self.starts: defaultdict[str, deque[str]] = defaultdict(deque)
        self.stubborn: set[str] = set()
        self.dirty: set[str] = set()

    def child(self, name: str, restart: str = "permanent", **more: Any) -> Child:
        return Child(name, partial(self.live, name), restart=restart, **more)  # type: ignore[arg-type]

    def children(self, names: str, restart: str = "permanent", **more: Any) -> list[Child]:
        return [self.child(name, restart, **more) for name in names.split()]

    def reported(self, *kinds: str) -> list[tuple[str, str | None]]:
        return [(event.kind, event.child) for event in self.events if event.kind in kinds]

    def forget(self) -> None:
        self.log.clear()
        self.events.clear()

    async def live(self, name: str, *, task_status: trio.TaskStatus[str]) -> None:
        raise NotImplementedError

    @abstractmethod
    async def open(self, children: list[Child], **settings: Any) -> None: ...
    @abstractmethod
    async def crash(self, *names: str, error: BaseException | None = None) -> None: ...
    @abstractmethod
    async def finish(self, name: str) -> None: ...
    @abstractmethod
    async def advance(self, seconds: float) -> None: ...
    @abstractmethod
    async def start_child(self, child: Child) -> None: ...
    @abstractmethod
    async def stop_child(self, name: str) -> None: ...
    @abstractmethod
    async def restart_child(self, name: str) -> None: ...
    @abstractmethod
    async def restart_all(self) -> None: ...
    @abstractmethod
    async def delete_child(self, name: str) -> None: ...
    @abstractmethod
    async def hurry(self) -> None: ...
    @abstractmethod
    async def close(self) -> None: ...
    @abstractmethod
    async def release(self, name: str) -> None: ...
    @abstractmethod
    async def end(self) -> None: ...

    @property
    @abstractmethod
    def decider(self) -> Decider: ...
    @property
    @abstractmethod
    def failure(self) -> str | None: ...

    @property
    def states(self) -> dict[str, str]:
        return {name: entry.state.value for name, entry in self.decider.entries.items()}

    @property
    def running(self) -> list[str]:
        return [name for name, state in self.states.items() if state == "running"]

    @property
    def closed(self) -> bool:
        return self.decider.closed

    def incarnation(self, name: str) -> int:
        return self.decider.entries[name].incarnation


class Decided(World):
    """The decider alone: time is a number, children are names."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._made: Decider | None = None
        self._queue: deque[Any] = deque()
        self._busy = False

    @property
    def decider(self) -> Decider:
        assert self._made is not None
        return self._made

    @property
    def failure(self) -> str | None:
        failure = self.decider.failure
        return None if failure is None else failure.kind

    async def open(self, children: list[Child], **settings: Any) -> None:
        settings.pop("but", None)
        window = settings.pop("window", 60.0)
        restarts = settings.pop("restarts", 3)
        check_supervisor(
            children,
            strategy=settings.get("strategy", "one_for_all"),
            auto_shutdown=settings.get("auto_shutdown", "never"),
            shutdown_timeout=settings.get("shutdown_timeout", 10.0),
        )
        settings.setdefault("backoff", Backoff(initial=0))
        self._made = Decider(
            children,
            window=window if isinstance(window, Window) else Window(restarts, window),
            draw=random.Random(1).random,
            **settings,
        )
        self.do(self._made.open(self.now))

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Report):
                self.events.append(effect.event)
            elif isinstance(effect, Start):
                self._start(effect.child)
            elif effect.child not in self.stubborn:
                error = ValueError("in clean-up") if effect.child in self.dirty else None
                self._queue.append(partial(self._end, effect.child, error))
        if self._busy:
            return
        self._busy = True
        while self._queue:
            self._queue.popleft()()
        self._busy = False

    def _start(self, name: str) -> None:
        self.log.append(f"+{name}")
        how = self.starts[name].popleft() if self.starts[name] else "ok"
        if how == "ok":
            self._queue.append(lambda: self.do(self.decider.started(name, self.now)))
        elif how == "fail":
            self._queue.append(partial(self._end, name, ValueError("no start")))
        elif how == "ignore":
            self._queue.append(partial(self._end, name, None))

    def _end(self, name: str, error: BaseException | None) -> None:
        entry = self.decider.entries.get(name)
        if entry is None or entry.gone:
            return
        self.log.append(f"-{name}")
        crash = None
        if error is not None:
            crash = crash_of(name, error, at=self.now, incarnation=entry.incarnation)
        fatal = isinstance(error, KeyboardInterrupt | SystemExit)
        self.do(self.decider.ended(name, self.now, crash, fatal=fatal))

    async def crash(self, *names: str, error: BaseException | None = None) -> None:
        for name in names:
            self._queue.append(partial(self._end, name, error or ValueError("boom")))
        self.do([])

    async def finish(self, name: str) -> None:
        self._end(name, None)

    async def release(self, name: str) -> None:
        self.stubborn.discard(name)
        self._end(name, None)

    async def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while (due := self.decider.wake_at) <= until:
            self.now = max(self.now, due)
            self.do(self.decider.tick(self.now))
        self.now = until
        self.do(self.decider.tick(self.now))

    async def _until_up(self, name: str, above: int = 0) -> None:
        entry = self.decider.entries[name]
        for _ in range(1000):
            failure = entry.failure
            failed = failure is not None and failure.incarnation > above
            if failure is not None and failed and (entry.gone or entry.incarnation > failure.incarnation):
                raise StartFailed(name, failure.cause)
            if entry.state in AT_REST or (entry.state is State.RUNNING and entry.incarnation > above):
                return
            await self.advance(max(0.0, self.decider.wake_at - self.now))
        raise AssertionError(f"{name} neither starts nor fails")

    async def start_child(self, child: Child) -> None:
        effects = self.decider.add(child, self.now)
        entry = self.decider.entries[child.name]
        self.do(effects)
        if entry.state not in AT_REST:
            await self._until_up(child.name)
        if entry.failure is not None:
            raise StartFailed(child.name, entry.failure.cause)

    async def stop_child(self, name: str) -> None:
        self.do(self.decider.stop(name, self.now))

    async def restart_child(self, name: str) -> None:
        entry = self.decider.entry(name)
        above = entry.incarnation
        self.do(self.decider.restart(name, self.now))
        if name not in self.decider.entries:  # a temporary child that did not start again is forgotten
            assert entry.failure is not None
            raise StartFailed(name, entry.failure.cause)
        await self._until_up(name, above)

    async def restart_all(self) -> None:
        self.do(self.decider.restart_all(self.now))

    async def delete_child(self, name: str) -> None:
        self.do(self.decider.delete(name, self.now))

    async def hurry(self) -> None:
        self.do(self.decider.hurry(self.now))

    async def close(self) -> None:
        self.do(self.decider.close(self.now))

    async def end(self) -> None:
        if self._made is not None:
            await self.close()
            for name in list(self.stubborn):
                await self.release(name)
            assert self.closed


class Running(World):
    """Real tasks under a real supervisor."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__()
        self._nursery = nursery
        self._made: Supervisor | None = None
        self._orders: dict[str, tuple[trio.Event, list[BaseException]]] = {}
        self._releases: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self._leave = trio.Event()
        self.error: BaseException | None = None

    @property
    def supervisor(self) -> Supervisor:
        assert self._made is not None
        return self._made

    @property
    def decider(self) -> Decider:
        return self.supervisor._decider

    @property
    def failure(self) -> str | None:
        return None if self.error is None else KINDS[type(self.error)]

    async def live(self, name: str, *, task_status: trio.TaskStatus[str]) -> None:
        child_task = CURRENT_CHILD_TASK.get()
        assert child_task is not None
        assert isinstance(child_task.supervisor, Supervisor)
        self._made = child_task.supervisor  # wanted during boot as well, before the block is entered
        self.log.append(f"+{name}")
        how = self.starts[name].popleft() if self.starts[name] else "ok"
        try:
            await self._behave(name, how, task_status)
        finally:
            if name in self.stubborn:
                with trio.CancelScope(shield=True):
                    await self._releases[name].wait()
            self.log.append(f"-{name}")
            if name in self.dirty:
                raise ValueError("in clean-up")

    async def _behave(self, name: str, how: str, task_status: trio.TaskStatus[str]) -> None:
        if how == "fail":
            raise ValueError("no start")
        if how == "ignore":
            return
        if how == "hang":
            await trio.sleep_forever()
        order, errors = trio.Event(), list[BaseException]()
        self._orders[name] = order, errors
        task_status.started(name)
        await order.wait()
        if errors:
            raise errors[0]

    async def open(self, children: list[Child], **settings: Any) -> None:
        settings.setdefault("backoff", Backoff(initial=0))
        settings.setdefault("rng", random.Random(1))
        settings.setdefault("but", STUBBORN if self.stubborn else {})
        self._nursery.start_soon(self._hold, children, settings)
        await trio.testing.wait_all_tasks_blocked()

    async def _hold(self, children: list[Child], settings: dict[str, Any]) -> None:
        try:
            async with open_supervised(children, on_event=self.events.append, **settings) as seen:
                self._made = seen.supervisor
                await self._leave.wait()
        except tuple(KINDS) as error:
            self.error = error

    async def crash(self, *names: str, error: BaseException | None = None) -> None:
        for name in names:
            event, errors = self._orders[name]
            errors.append(error or ValueError("boom"))
            event.set()
        await trio.testing.wait_all_tasks_blocked()

    async def finish(self, name: str) -> None:
        self._orders[name][0].set()
        await trio.testing.wait_all_tasks_blocked()

    async def release(self, name: str) -> None:
        self.stubborn.discard(name)
        self._releases.pop(name).set()
        await trio.testing.wait_all_tasks_blocked()

    async def advance(self, seconds: float) -> None:
        await trio.sleep(seconds)
        await trio.testing.wait_all_tasks_blocked()

    async def start_child(self, child: Child) -> None:
        await self.supervisor.start_child(child)

    async def stop_child(self, name: str) -> None:
        await self.supervisor.stop_child(name)

    async def restart_child(self, name: str) -> None:
        await self.supervisor.restart_child(name)

    async def restart_all(self) -> None:
        await self.supervisor.restart_all()

    async def delete_child(self, name: str) -> None:
        self.supervisor.delete_child(name)

    async def hurry(self) -> None:
        self.supervisor.hurry()
        await trio.testing.wait_all_tasks_blocked()

    async def close(self) -> None:
        self._leave.set()
        await trio.testing.wait_all_tasks_blocked()

    async def end(self) -> None:
        if self._made is not None:
            await self.close()
            for name in list(self.stubborn):
                if name in self._releases:
                    await self.release(name)
