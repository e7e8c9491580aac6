"""What a fault is, and who puts it in: `Chaos`. The faults themselves stand beside this file, by who is
struck.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Literal

import attrs
import trio

from tangram.errors import BrokerUnavailable
from tangram.testing.heard import Heard, ranked
from tangram.testing.invariants import Broken, Evidence, InvariantBroken, broken, check
from tangram.testing.server import RunningTangram

__all__ = ["FAULTS", "TOPIC", "Chaos", "Fault", "On", "Struck", "fault", "get", "must_answer", "publishes"]

PAUSE = (0.05, 0.2)
"""Seconds between two faults that strike beside a test."""

READY_SECONDS = 30.0
"""Seconds that are waited for a server to be at rest again after a fault, before it is given up."""

START_SECONDS = 5.0
"""Seconds for everything to start, on a slow machine: it takes a tenth of one."""

MOST_JITTER = 1.2
"""Of a back-off, at most: a restart may have to wait so long before it begins."""

TOPIC = "tangram-chaos-fault"
"""On which a fault's own browser reads messages."""

TELL_EVERY = 0.05
"""Seconds between two of these messages."""

ANSWER_SECONDS = 5.0
"""Within which a server that is not hurt answers anybody."""

Strike = Callable[["Chaos"], Awaitable[None]]

On = Literal["anything", "sockets", "real", "process"]
"""What a fault needs: nothing (it works on fakes under a virtual clock, and on a real server), real sockets
for a proxy (the broker may be in memory, the clock virtual), a real broker or real time, or a server in a
process of its own, which it starts and ends itself: the promise is about the end of a process, or the fault
would hurt the test as well."""


@attrs.frozen
class Fault:
    """One kind of fault."""

    name: str
    strike: Strike
    counts: str | tuple[str, ...] | None
    """The child whose crash it should count as, ``plugin`` for any; several where it should be several
    crashes; None where it should crash nobody."""
    about: str
    on: On = "anything"
    """What it needs."""

    @property
    def strikes_plugin(self) -> bool:
        """Whether it strikes one plugin and nothing else."""
        return set(self.crashes) == {"plugin"}

    @property
    def crashes(self) -> list[str]:
        """Whom it should crash."""
        return [self.counts] if isinstance(self.counts, str) else list(self.counts or ())


FAULTS: dict[str, Fault] = {}
"""All of them, by name."""


def fault(*, counts: str | tuple[str, ...] | None = None, on: On = "anything") -> Callable[[Strike], Strike]:
    """Decorator: keep a function in `FAULTS` under its name; its docstring is what is told of it."""

    def keep(strike: Strike) -> Strike:
        name = strike.__name__
        FAULTS[name] = Fault(name, strike, counts, " ".join((strike.__doc__ or "").split()), on)
        return strike

    return keep


@attrs.frozen
class Struck:
    """One fault that was put in."""

    name: str
    at: float
    """On the loop's clock."""
    healed: float
    """Seconds until everything was at rest again."""
    outcome: str
    """``up``, ``quarantined`` or ``ended``; in a campaign ``broken`` where it did not end as promised."""


class Chaos:
    """Puts faults into one server."""

    def __init__(self, tangram: RunningTangram, *, seed: int = 0, plugin: str | None = None) -> None:
        self.tangram = tangram
        self.rng = random.Random(seed)  # noqa: S311 - reproducible
        self.plugin = plugin
        """The plugin that is struck; None: any."""
        self.struck: list[Struck] = []
        self.told = 0
        """Messages that faults have published for their own browser."""

    async def strike(self, *names: str) -> Struck:
        """Put in one fault, or several at once, and wait until the server is at rest again.

        Raises:
            LookupError: there is no fault of that name, or nothing that it could strike.
            InvariantBroken: the server did not do about it what it promises.
        """
        faults = [self._find(name) for name in names]
        mark, began = len(self.tangram.events), trio.current_time()
        for one in faults:
            await self._put_in(one)
        over = trio.current_time()
        try:
            outcome = await self.tangram.wait_steady(seconds=READY_SECONDS)
        except AssertionError as error:
            seen = Evidence(steady=False, missing=self.tangram.missing())
            raise InvariantBroken(broken(seen, ["comes_to_rest"])) from error
        now = trio.current_time()
        struck = Struck(" + ".join(names), began, now - began, outcome)
        bound = self.tangram.server.config.supervisor.backoff_max * MOST_JITTER + START_SECONDS
        check(Evidence(healed={struck.name: now - over}, heal_bound=bound), ["steady_in_time"])
        self.struck.append(struck)
        if outcome == "up" and len(faults) == 1:
            self._count(faults[0], mark)
        return struck

    async def _put_in(self, one: Fault) -> None:
        try:
            await one.strike(self)
        except (Exception, BaseExceptionGroup) as raised:
            error: BaseException = raised
            while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]
            if isinstance(error, InvariantBroken | LookupError):
                raise error from None
            if not isinstance(error, Exception):
                raise
            # Also what a client of the fault was told: nobody who comes by should be hurt.
            told = "it took too long" if isinstance(error, trio.TooSlowError) else _told(error)
            raise InvariantBroken([Broken("ends_as_promised", f"{one.name}: {told}")]) from error

    def _find(self, name: str) -> Fault:
        try:
            return FAULTS[name]
        except KeyError:
            raise LookupError(f"there is no fault {name!r}; expected one of {', '.join(FAULTS)}") from None

    def _count(self, struck: Fault, mark: int) -> None:
        """A fault that should count is one crash, of the child that it struck."""
        crashed = [
            event.child or ""
            for event in self.tangram.events[mark:]
            if (
                event.kind == "crashed"
                and event.supervisor in {"root", "incarnation"}
                # A service that does not expect an outage ends with it, beside the fault that caused it.
                and not (event.cause or "").startswith("tangram.errors.BrokerUnavailable")
            )
            or (event.child == "broker" and event.kind == "crashed")
        ]
        wanted = struck.crashes
        # Two at once may be noticed in either order.
        right = sorted(name.split(":")[0] for name in crashed) == sorted(wanted)
        crashes = len(crashed) if right else -len(crashed)
        found = broken(Evidence(faults=len(wanted), crashes=crashes), ["faults_are_counted"])
        if found and crashed != wanted:
            message = f"{struck.name} should crash {wanted or 'nobody'}, it crashed {crashed or 'nobody'}"
            raise InvariantBroken([attrs.evolve(found[0], message=message)])

    @asynccontextmanager
    async def striking(self, *names: str) -> AsyncIterator[None]:
        """Strike one fault after another beside the block; at its end all have struck and are healed."""
        for name in names:
            self._find(name)

        async def strike_all() -> None:
            for name in names:
                await trio.sleep(self.rng.uniform(*PAUSE))
                await self.strike(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(strike_all)
            yield

    def any_plugin(self) -> str:
        """The child of a plugin that runs now."""
        found = [name for name in self.tangram.ports.names if name.startswith("plugin:")]
        if self.plugin is not None:
            found = [name for name in found if name == f"plugin:{self.plugin}"]
        if not found:
            raise LookupError("no plugin runs that could be struck")
        return self.rng.choice(found)

    def affordable(self, seconds: float, most: float) -> float:
        """``seconds``, if they are few enough for real time, or the clock is a virtual one.

        Raises:
            LookupError: they are not.
        """
        virtual = hasattr(trio.lowlevel.current_clock(), "autojump_threshold")
        if seconds > most and not virtual:
            raise LookupError(
                f"it would take {seconds:g} s, more than {most:g} s: shorten start_timeout and stop_timeout"
            )
        return seconds

    async def wait_events(
        self, kind: str, child: str, count: int, *, after: int, seconds: float = READY_SECONDS
    ) -> None:
        """Until so many events of ``kind`` and ``child`` have come since ``after``."""
        mark, until = after, trio.current_time() + seconds
        for _ in range(count):
            left = until - trio.current_time()
            event = await self.tangram.wait_event(kind, child, after=mark, seconds=left)
            mark = next(at for at, one in enumerate(self.tangram.events) if one is event) + 1

    async def wait_bus(self, *, up: bool = True, seconds: float = READY_SECONDS) -> None:
        """Until the bus is up, or down."""
        with trio.move_on_after(seconds):
            while self._bus_is_up() != up:  # noqa: ASYNC110 - the bus of the next incarnation is another one
                await trio.sleep(0.01)
            return
        raise AssertionError(f"the bus should be {'up' if up else 'down'} within {seconds:g} s")

    def _bus_is_up(self) -> bool:
        tree = self.tangram.server.tree
        return tree is not None and tree.bus is not None and tree.bus.up

    def broker_pid(self) -> int:
        """The process that the server started; only a broker of its own is ever touched."""
        tree = self.tangram.server.tree
        pid = None if tree is None or tree.broker is None else tree.broker.statistics().pid
        if pid is None:
            raise LookupError("the server has no broker process of its own")
        return pid


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, AssertionError) else repr(error)


async def get(host: str, port: int, path: str = "/-/healthz", *, seconds: float = ANSWER_SECONDS) -> bytes:
    """The whole answer to one request, on a connection of its own; empty if there was none.

    Raises:
        trio.TooSlowError: it did not come in time.
    """
    answer = b""
    with trio.fail_after(seconds):
        async with await trio.open_tcp_stream(host, port) as stream:
            try:
                await stream.send_all(
                    f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
                )
                while data := await stream.receive_some(65536):
                    answer += data
            except trio.BrokenResourceError:
                return b""
    return answer


async def must_answer(chaos: Chaos) -> None:
    """Somebody else asks meanwhile, and is answered."""
    with trio.fail_after(ANSWER_SECONDS):
        answer = await chaos.tangram.http.get("/-/healthz", headers={"connection": "close"})
    assert answer.status_code == 200, f"somebody else asked, and was answered {answer.status_code}"


@asynccontextmanager
async def publishes(chaos: Chaos, *, meanwhile: int = 0) -> AsyncIterator[None]:
    """Around the block a browser is joined: it gets a message before it, and one after it; so many are sent
    at the block's beginning. All come in order, none twice, none is missing without a rejoin.
    """
    from tangram.client import fetch_token

    sent: list[int] = []
    tangram = chaos.tangram
    token = await fetch_token(tangram.url, TOPIC)
    async with tangram.open_socket(rng=chaos.rng) as client:
        heard = Heard(await client.join(TOPIC, token=token.token))
        async with trio.open_nursery() as nursery:
            await _until_heard(chaos, heard, sent)
            for _ in range(meanwhile):
                nursery.start_soon(_tell, chaos, sent)
            yield
            await _until_heard(chaos, heard, sent)
            nursery.cancel_scope.cancel()
    check(Evidence(messages=ranked(heard.messages, sent)), ["messages_in_order"])


async def _until_heard(chaos: Chaos, heard: Heard, sent: list[int]) -> None:
    last = chaos.told
    with trio.move_on_after(READY_SECONDS):
        while not heard.messages or heard.messages[-1][0] <= last:
            await _tell(chaos, sent)
            await trio.sleep(TELL_EVERY)
        return
    raise AssertionError(f"a browser got no message within {READY_SECONDS:g} s")


async def _tell(chaos: Chaos, sent: list[int]) -> None:
    tree = chaos.tangram.server.tree
    if tree is None or tree.bus is None:
        return
    chaos.told += 1
    number = chaos.told
    try:
        await tree.bus.publish(f"to:{TOPIC}:n", b'{"n":%d}' % number)
    except BrokerUnavailable:
        return
    sent.append(number)
