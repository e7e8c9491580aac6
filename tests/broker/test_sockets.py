"""The Unix socket by which the server reaches its own broker, beside the port of plugins."""

import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio

from tangram.broker import embedded
from tangram.broker.embedded import EmbeddedBroker, find_server
from tangram.broker.ping import open_probe
from tangram.broker.sockets import why_unusable
from tangram.bus import Bus
from tangram.config.model import BrokerConfig
from tangram.errors import BrokerUnavailable
from tangram.redis_url import parse_redis_url

BY_PORT = "broker reached by its port"


@asynccontextmanager
async def running(broker: EmbeddedBroker) -> AsyncIterator[str]:
    """Run a broker for the block; it may be killed there."""

    async def run(task_status: trio.TaskStatus[str]) -> None:
        with pytest.raises(BrokerUnavailable):
            await broker.run(task_status=task_status)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(run)
            nursery.cancel_scope.cancel()


def causes(logs: Sequence[structlog.typing.EventDict]) -> list[str]:
    return [entry["cause"] for entry in logs if entry["event"] == BY_PORT]


@pytest.mark.slow
async def test_the_server_uses_a_socket_and_plugins_the_port(tmp_path: Path) -> None:
    """Only the owner can open the socket; messages pass between both, and a killed broker leaves nothing."""
    broker = EmbeddedBroker(BrokerConfig(port=0), folder=tmp_path)
    with structlog.testing.capture_logs() as logs:
        async with running(broker) as url:
            first = parse_redis_url(broker.server_url)
            assert Path(first.path).parent == tmp_path
            assert stat.S_IMODE((await trio.Path(first.path).stat()).st_mode) == 0o600
            assert parse_redis_url(url).host == "127.0.0.1"
            async with trio.open_nursery() as nursery:
                server = await nursery.start(Bus(broker.server_url).run)
                plugin = await nursery.start(Bus(url).run)
                async with server.subscribe("from:demo:*") as messages:
                    assert await plugin.publish("from:demo:click", b"1") == 1
                    assert (await anext(messages)).payload == b"1"
                nursery.cancel_scope.cancel()
            pid = broker.statistics().pid
            assert pid is not None
            os.kill(pid, 9)
            while broker.statistics().pid is not None:  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.01)
        assert list(await trio.Path(tmp_path).iterdir()) == []
        async with running(broker) as again:
            assert again == url
            second = parse_redis_url(broker.server_url)
            assert second.path
            async with open_probe(second) as probe:
                assert await probe.ask("ACL", "WHOAMI") == b"tangram"

    assert list(await trio.Path(tmp_path).iterdir()) == []
    assert causes(logs) == []


@pytest.mark.slow
async def test_a_folder_without_room_for_a_socket_costs_one_log_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server uses the port then, also in a run after one with a socket: the broker must start."""
    broker = EmbeddedBroker(BrokerConfig(port=0), folder=tmp_path)
    with structlog.testing.capture_logs() as logs:
        async with running(broker) as url:
            assert parse_redis_url(broker.server_url).path
        monkeypatch.setattr(embedded, "why_unusable", lambda _path: "no space left on device")
        async with running(broker) as again:
            assert again == url
            assert parse_redis_url(broker.server_url).port == parse_redis_url(url).port
            async with open_probe(parse_redis_url(broker.server_url)) as probe:
                assert await probe.ask("ACL", "WHOAMI") == b"tangram"

    assert causes(logs) == ["no space left on device"]


@pytest.mark.slow
async def test_a_broker_that_may_not_open_a_socket_is_started_without(tmp_path: Path) -> None:
    """A sandbox may allow sockets to the server and not to its child; later runs do not try again."""
    binary = tmp_path / "sandboxed"
    refusal = "1:M 23 Nov 2026 01:07:22.123 # Failed opening Unix socket: bind: Operation not permitted"
    script = f'case "$*" in *--unixsocket*) echo "{refusal}"; exit 1;; esac\nexec {find_server()} "$@"\n'
    binary.write_text(f"#!/bin/sh\n{script}")
    binary.chmod(0o755)
    folder = tmp_path / "broker"
    folder.mkdir()
    broker = EmbeddedBroker(BrokerConfig(port=0, binary=binary), folder=folder)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            async with running(broker) as url:
                assert parse_redis_url(broker.server_url).port == parse_redis_url(url).port

    assert causes(logs) == ["Failed opening Unix socket: bind: Operation not permitted"]


def test_a_path_is_tried_before_it_is_used(tmp_path: Path) -> None:
    """A long path and a folder that cannot hold it are reported; a usable one is left empty."""
    assert "longer than 103 bytes" in why_unusable(tmp_path / ("x" * 104))
    assert "No such file" in why_unusable(tmp_path / "missing" / "a.sock")
    assert why_unusable(tmp_path / "a.sock") == ""
    assert list(tmp_path.iterdir()) == []
