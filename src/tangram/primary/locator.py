"""Ask sentinels, or the nodes of a Redis Cluster, for the primary.

All connections of a server need the answer at the same moment, when the primary has gone. A question costs
one connection to each guide, and over TLS a handshake with each. So one question is on its way at a time, and
its answer is that of every task that has asked meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import attrs
import hiredis
import trio

from tangram.errors import BrokerUnavailable
from tangram.groups import first_leaf
from tangram.primary.answers import GuideAnswer, Guides, newest, questions, read
from tangram.redis_url import Endpoint, RedisAddress

__all__ = ["FOLLOW_EVERY", "Connect", "Locator", "shared_locator"]

Connect = Callable[[RedisAddress], Awaitable[trio.abc.Stream]]

ASK_TIMEOUT: Final = 1.0
"""Seconds for the first answer; a dial has two in all."""

GATHER: Final = 0.1
"""Seconds in which further answers are awaited after the first one: a guide may know only an old primary."""

FOLLOW_EVERY: Final = 5.0
"""Seconds between two questions while a connection works. A primary that was cut off keeps its connections,
and answers pings: only the guides know that another one has its place."""

_FAILED: Final = (
    OSError,
    UnicodeError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    hiredis.HiredisError,
    BrokerUnavailable,
)

_shared: Final = trio.lowlevel.RunVar["dict[tuple[str, object], Locator] | None"]("tangram_locators", None)

# The stub says "a tuple of one"; the function takes any number.
_pack = cast("Callable[[tuple[str, ...]], bytes]", hiredis.pack_command)


@attrs.define
class _Question:
    """A question to all guides that is on its way."""

    over: trio.Event = attrs.Factory(trio.Event)
    answer: GuideAnswer | None = None
    fault: str | None = None


def shared_locator(address: RedisAddress, connect: Connect) -> Locator:
    """Return the locator that all connections to an address share in this run of Trio.

    Args:
        address: the address from a URL; of any kind.
        connect: opens a connection to a guide.
    """
    if address.kind == "single":
        return Locator(address)
    locators = _shared.get()
    if locators is None:
        locators = {}
        _shared.set(locators)
    return locators.setdefault((address.url, connect), Locator(address))


class Locator:
    """Finds the primary of an address, and remembers the guides that it learned of.

    Args:
        address: the address from a URL; of any kind.
    """

    def __init__(self, address: RedisAddress) -> None:
        self.address = address
        self._guides = Guides(address.guides)
        self._epoch = 0
        self._question: _Question | None = None
        self._looked: float | None = None

    @property
    def moves(self) -> bool:
        """Whether the primary may move, so that it is asked for at each dial."""
        return self.address.kind != "single"

    async def locate(self, connect: Connect) -> RedisAddress:
        """Return the address of the primary now; all known guides are asked at once.

        A task that asks while a question is on its way gets the answer to that one.

        Args:
            connect: opens a connection to a guide.

        Raises:
            BrokerUnavailable: no guide knows it. The message names each guide and its fault.
        """
        if not self.moves:
            await trio.lowlevel.checkpoint()
            return self.address
        answer = await self._find(connect)
        self._epoch = answer.epoch
        return self.address.primary(answer.primary)

    async def _find(self, connect: Connect) -> GuideAnswer:
        """Return the answer that counts, to the question that is on its way or to a new one."""
        while self._question is not None:
            question = self._question
            await question.over.wait()
            if question.answer is not None:
                return question.answer
            if question.fault is not None:
                raise BrokerUnavailable(question.fault)
            # The task that has asked was cancelled, so that another one asks.
        question = self._question = _Question()
        try:
            question.answer = await self._ask_all(connect)
        except BrokerUnavailable as error:
            question.fault = str(error)
            raise
        finally:
            self._question = None
            question.over.set()
        return question.answer

    async def _ask_all(self, connect: Connect) -> GuideAnswer:
        """Ask all known guides, and return the answer that counts."""
        found: list[GuideAnswer] = []
        faults: dict[Endpoint, str] = {}

        async def ask(guide: Endpoint) -> None:
            try:
                found.append(await self._ask(guide, connect))
            except _FAILED as error:
                faults[guide] = _reason(error)
                return
            nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, trio.current_time() + GATHER)

        guides = self._guides.all()
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + ASK_TIMEOUT
            for guide in guides:
                nursery.start_soon(ask, guide)
        if not found:
            raise BrokerUnavailable(self._describe(guides, faults))
        chosen = newest(found)
        self._guides.learn(chosen)
        return chosen

    async def wait_moved(self, here: RedisAddress, connect: Connect) -> Endpoint:
        """Return once another Redis than ``here`` is the primary; ask every ``FOLLOW_EVERY`` s.

        Without an answer, and with the answer of a guide that missed the last failover, nothing has changed.
        All connections look at the same moments, so that they share one question.
        """
        epoch = self._epoch
        while True:
            await trio.sleep_until(self._next_look())
            try:
                answer = await self._find(connect)
            except BrokerUnavailable:
                continue
            if answer.epoch < epoch:
                continue
            epoch = answer.epoch
            if answer.primary != here.endpoint:
                return answer.primary

    def _next_look(self) -> float:
        """Return the next moment at which all connections look."""
        now = trio.current_time()
        if self._looked is None:
            self._looked = now
        self._looked += (now - self._looked) // FOLLOW_EVERY * FOLLOW_EVERY
        return self._looked + FOLLOW_EVERY

    def _describe(self, guides: object, faults: dict[Endpoint, str]) -> str:
        assert isinstance(guides, tuple)
        causes = [
            f"{host}:{port}: {faults.get((host, port), f'no answer within {ASK_TIMEOUT:g} s')}"
            for host, port in guides
        ]
        what = (
            "no sentinel knows the primary"
            if self.address.kind == "sentinel"
            else "no node of the cluster knows the primary"
        )
        return f"{what}: {'; '.join(causes)}"

    async def _ask(self, guide: Endpoint, connect: Connect) -> GuideAnswer:
        place = self.address.guide(guide)
        stream = await connect(place)
        try:
            commands: list[tuple[str, ...]] = []
            if place.password is not None:
                commands.append(("AUTH", *([place.username] if place.username else []), place.password))
            logins = len(commands)
            commands += questions(self.address)
            await stream.send_all(b"".join(map(_pack, commands)))
            answers = await _receive(stream, len(commands))
        finally:
            await trio.aclose_forcefully(stream)
        for refused in answers[:logins]:
            if isinstance(refused, hiredis.ReplyError):
                raise BrokerUnavailable(str(refused))
        return read(self.address, guide, answers[logins:])


async def _receive(stream: trio.abc.Stream, count: int) -> list[Any]:
    reader, answers = hiredis.Reader(), list[Any]()
    while len(answers) < count:
        answer = reader.gets()
        if answer is not False:
            answers.append(answer)
            continue
        data = await stream.receive_some(65536)
        if not data:
            raise BrokerUnavailable("it closed the connection")
        reader.feed(bytes(data))
    return answers


def _reason(error: BaseException) -> str:
    error = first_leaf(error)
    while error.__cause__ is not None:
        error = first_leaf(error.__cause__)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
