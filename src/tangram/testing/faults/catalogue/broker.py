"""Faults of the broker: it dies, stands still, refuses writes, or wants another password."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

import trio

from tangram.broker.accounts import SERVER_USER
from tangram.broker.ping import Probe, open_probe
from tangram.redis_url import parse_redis_url
from tangram.testing.faults.catalogue.base import Chaos, fault
from tangram.testing.faults.catalogue.witness import expect_delivery
from tangram.testing.injection.child_faults import NothingToStrike, StruckAlready

__all__ = ["broker_kill", "broker_password", "broker_readonly", "broker_stop"]

FREEZE_SECONDS: Final = 1.0
"""Seconds for which the broker stands still: less than the bus waits for a silent broker."""

READONLY_SECONDS: Final = 0.2
"""Seconds for which the broker refuses writes."""

REFUSED_SECONDS: Final = 30.0
"""Seconds within which the bus must have noticed that its password is refused."""


@fault(counts="broker")
async def broker_kill(chaos: Chaos) -> None:
    """The embedded broker gets SIGKILL: it returns on the same port, everything restarts."""
    mark = len(chaos.tangram.events)
    memory = chaos.tangram.memory
    url = chaos.tangram.redis_url
    if memory is not None:
        memory.kill()
    else:
        os.kill(chaos.broker_pid(), signal.SIGKILL)
    await chaos.wait_crash("broker", after=mark)
    try:
        await chaos.wait_events("started", "broker", 1, after=mark)
    except NothingToStrike:
        return  # one crash too many: the server ends, which the caller reports
    assert chaos.tangram.redis_url == url, "plugins keep the broker's address, but it came back at another"


@fault()
async def broker_stop(chaos: Chaos) -> None:
    """The broker is stopped (SIGSTOP) for a second: no child crashes.

    Messages that are sent meanwhile arrive, without a gap.
    """
    async with expect_delivery(chaos, meanwhile=1, lossless=True) as log:
        with _stopped(chaos):
            before = len(log.messages)
            await trio.sleep(FREEZE_SECONDS)
            came = len(log.messages) - before
            assert not (came and chaos.alone), f"the broker stood still, but {came} messages came"


@contextmanager
def _stopped(chaos: Chaos) -> Iterator[None]:
    """Stop the broker for the block, and continue it however the block ends."""
    memory = chaos.tangram.memory
    if memory is not None:
        memory.freeze()
        try:
            yield
        finally:
            memory.thaw()
        return
    pid = chaos.broker_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # another fault may have killed it
            os.kill(pid, signal.SIGCONT)


@fault()
async def broker_readonly(chaos: Chaos) -> None:
    """The broker becomes a replica and refuses writes: no child crashes, messages go on."""
    async with _readonly(chaos):
        await _must_refuse_writes(chaos)
        async with expect_delivery(chaos, lossless=True):
            await trio.sleep(READONLY_SECONDS)


@asynccontextmanager
async def _readonly(chaos: Chaos) -> AsyncIterator[None]:
    """Make the broker a replica for the block."""
    memory = chaos.tangram.memory
    if memory is not None:
        memory.make_readonly()
        try:
            yield
        finally:
            memory.make_readonly(readonly=False)
        return
    async with _open_probe(chaos) as probe:
        # A replica of a master that does not exist: nothing listens on port 1.
        await probe.ask("REPLICAOF", "127.0.0.1", "1")
        try:
            yield
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + REFUSED_SECONDS):
                await probe.ask("REPLICAOF", "NO", "ONE")


async def _must_refuse_writes(chaos: Chaos) -> None:
    """Check that a plugin's write is refused."""
    tree = chaos.tangram.server.tree
    if tree is None or tree.incarnation.state is None:
        raise StruckAlready("the server is between two incarnations")
    answer = "accepted"
    try:
        await tree.incarnation.state.redis_client.set("tangram-chaos", "1")
    except Exception as error:  # noqa: BLE001 - redis-py has a class for it and is not imported here
        answer = str(error)
    assert "replica" in answer, f"a write should be refused as by a replica, it was: {answer}"


@fault(on="real")
async def broker_password(chaos: Chaos) -> None:
    """The broker's password is changed and its clients are disconnected: no child crashes.

    Readiness reports that Redis is away, and when the old password holds again the bus is back.
    """
    chaos.broker_pid()  # raises where the broker is not the server's own
    new = secrets.token_hex(8)
    async with _open_probe(chaos) as probe:
        old = parse_redis_url(_server_url(chaos)).password
        await probe.ask("ACL", "SETUSER", SERVER_USER, "resetpass", f">{new}")
        try:
            await _disconnect_clients(probe)
            with trio.move_on_after(REFUSED_SECONDS):
                while not _is_refused(chaos):  # noqa: ASYNC110 - the bus has no event for it
                    await trio.sleep(0.02)
            assert _is_refused(chaos), "the password was changed, the bus does not report that it is refused"
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + REFUSED_SECONDS):
                await probe.ask("ACL", "SETUSER", SERVER_USER, "resetpass", f">{old}")
    await chaos.wait_bus()


def _is_refused(chaos: Chaos) -> bool:
    tree = chaos.tangram.server.tree
    return (
        tree is not None
        and tree.incarnation.bus is not None
        and not tree.incarnation.bus.up
        and "WRONGPASS" in tree.incarnation.bus.statistics().cause
    )


@asynccontextmanager
async def _open_probe(chaos: Chaos) -> AsyncIterator[Probe]:
    """Open a connection to the server's own broker, beside the connections of the server."""
    chaos.broker_pid()
    async with open_probe(parse_redis_url(_server_url(chaos))) as probe:
        yield probe


def _server_url(chaos: Chaos) -> str:
    """Return the URL with the rights of the server, which may do what a client may not."""
    tree = chaos.tangram.server.tree
    assert tree is not None
    assert tree.broker is not None
    return tree.broker.server_url


async def _disconnect_clients(probe: Probe) -> None:
    for kind in ("pubsub", "normal"):
        await probe.ask("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
