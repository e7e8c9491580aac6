"""The main program of a worker: the server, on the sockets of its parent."""

from __future__ import annotations

import gc
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import attrs
import trio

from tangram.broker import SharedBroker
from tangram.cli.exit_record import ExitRecord
from tangram.cli.force_exit import ForceExit
from tangram.cli.plugin_output import tagged_output
from tangram.cli.process_setup import (
    find_state_dir,
    keep_freed_memory,
    note_import,
    note_plugins,
    raise_limits,
    set_up_log,
)
from tangram.cli.streams import give_up_dead_streams
from tangram.errors import OperatorError
from tangram.groups import unwrap_single
from tangram.idle import IdleClock
from tangram.workers.handover import Handover, receive_handover, worker_config
from tangram.workers.link import ParentLink
from tangram.workers.share import Share

if TYPE_CHECKING:
    from tangram.app import Boot

__all__ = ["main"]


def main() -> NoReturn:
    """Serve with the parameters that come on the socket of the last argument."""
    connection = socket.socket(fileno=int(sys.argv[-1]))
    connection.set_inheritable(False)
    handover, rest = receive_handover(connection)
    sys.path[:] = handover.sys_path
    broker = SharedBroker()
    if handover.broker is not None:
        broker.announce(handover.broker)
    link = ParentLink(connection, rest, broker)
    status = 1
    try:
        status = _serve(handover, link, broker)
    except OperatorError as error:
        status = error.exit_status
        link.report({"failed": str(error), "status": status})
    finally:
        give_up_dead_streams()
    sys.exit(status)


def _serve(handover: Handover, link: ParentLink, broker: SharedBroker) -> int:
    from tangram.app import Boot

    loaded = worker_config(handover)
    config = loaded.config
    set_up_log(config, handover.log_format, worker=handover.name, colours=handover.terminal)
    raise_limits(config.server.max_connections)
    keep_freed_memory()
    record = ExitRecord(find_state_dir(config))
    force_exit = ForceExit(exit_process=record.force_exit)
    share = Share(*handover.share)
    boot = Boot(
        loaded=loaded,
        on_stopping=force_exit.arm,
        on_repeat=force_exit.force,
        on_import=partial(note_import, record),
        on_plugins=partial(note_plugins, record),
        listen=lambda _config: handover.held_sockets(share),
        shared_broker=broker,
    )
    status = 1
    force_exit.watch()
    record.open()
    try:
        with tagged_output():
            status = trio.run(_run, boot, link, handover.beat, clock=IdleClock())
    finally:
        force_exit.disarm()
        record.close()
        force_exit.leave(status)
    return status


async def _run(boot: Boot, link: ParentLink, beat: float | None) -> int:
    from tangram.app import Server

    def report_ready(url: str) -> None:
        gc.freeze()
        link.report({"ready": url, "histories": server.has_histories})

    server = Server(attrs.evolve(boot, on_first_ready=report_ready))
    status = 1
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run, server, beat)
            status = await server.run()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise unwrap_single(group) from None
    return status
