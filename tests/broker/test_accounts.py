"""The rights of the embedded broker's accounts, and the broker on a private socket."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import structlog
import trio

from tangram.broker.accounts import Accounts
from tangram.broker.embedded import EmbeddedBroker
from tangram.broker.ping import Probe, open_probe
from tangram.bus import Bus
from tangram.config.load import load_tables
from tangram.config.model import BrokerConfig
from tangram.config.state import broker_folder
from tangram.errors import BrokerStartError, BrokerUnavailable, ConfigError
from tangram.redis_url import parse_redis_url, redact_url

pytestmark = pytest.mark.slow

FORBIDDEN = [
    "ACL LIST",
    "ACL SETUSER default on nopass +@all",
    "BGREWRITEAOF",
    "BGSAVE",
    "CLIENT KILL TYPE normal",
    "CLIENT LIST",
    "CLIENT PAUSE 1000",
    "CLUSTER RESET",
    "CONFIG GET dir",
    "CONFIG REWRITE",
    "CONFIG SET bind 0.0.0.0",
    "CONFIG SET protected-mode no",
    "DEBUG SLEEP 1",
    "FAILOVER",
    "LASTSAVE",
    "LATENCY RESET",
    "MIGRATE 127.0.0.1 1 key 0 1",
    "MODULE LOAD /tmp/x.so",
    "MONITOR",
    "PSYNC ? -1",
    "REPLICAOF 127.0.0.1 1",
    "RESTORE key 0 x",
    "SAVE",
    "SHUTDOWN NOSAVE",
    "SLAVEOF 127.0.0.1 1",
    "SLOWLOG GET",
    "SWAPDB 0 1",
    "SYNC",
]
"""Commands that change or end the broker, or read other clients."""

ALLOWED = [
    "SET key value",
    "GET key",
    "DEL key",
    "KEYS *",
    "INFO server",
    "HSET hash a 1",
    "LPUSH list 3 1 2",
    "SORT list",
    "XADD stream * a 1",
    "PUBLISH to:demo:clock {}",
    "SUBSCRIBE from:demo:click",
    "CLIENT SETNAME plugin",
    "CLIENT ID",
    "FLUSHDB",
]
"""Commands of plugins: data and pub/sub."""


@asynccontextmanager
async def running(broker: EmbeddedBroker) -> AsyncIterator[str]:
    """Run a broker for the block, and yield the URL for plugins."""
    error: Exception | None = None

    async def run(*, task_status: trio.TaskStatus[str]) -> None:
        nonlocal error
        try:
            await broker.run(task_status=task_status)
        except (BrokerUnavailable, BrokerStartError) as raised:
            error = raised

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(run)
            yield url
            nursery.cancel_scope.cancel()


async def refused(probe: Probe, commands: Sequence[str]) -> list[str]:
    """Return the commands that are refused for lack of rights."""
    found = []
    for command in commands:
        try:
            await probe.ask(*command.split())
        except BrokerUnavailable as error:
            if any(word in str(error) for word in ("NOPERM", "NOAUTH", "not allowed")):
                found.append(command)
    return found


async def test_other_clients_keep_data_and_lose_administration() -> None:
    """The default user cannot change or end the broker, without a password as before."""
    async with running(EmbeddedBroker(BrokerConfig(port=0))) as url:
        assert parse_redis_url(url).password is None
        async with open_probe(parse_redis_url(url)) as probe:
            assert await refused(probe, FORBIDDEN) == FORBIDDEN
            assert await refused(probe, ALLOWED) == []
        async with open_probe(parse_redis_url(url)) as probe:
            await probe.ping()


async def test_a_script_has_no_more_rights_than_its_client() -> None:
    """Lua scripts and functions of the default user cannot administer either."""
    async with running(EmbeddedBroker(BrokerConfig(port=0))) as url:
        async with open_probe(parse_redis_url(url)) as probe:
            for words in ("'config', 'set', 'maxclients', '1'", "'shutdown'", "'acl', 'list'"):
                with pytest.raises(BrokerUnavailable, match=r"not allowed|permission|ACL"):
                    await probe.ask("EVAL", f"return redis.call({words})", "0")


async def test_the_server_has_a_user_of_its_own() -> None:
    """It has every right, and a password that no command line shows."""
    broker = EmbeddedBroker(BrokerConfig(port=0))
    async with running(broker):
        address = parse_redis_url(broker.server_url)
        assert address.username == "tangram"
        assert address.password is not None
        async with open_probe(address) as probe:
            assert await probe.ask("ACL", "WHOAMI") == b"tangram"
            assert await probe.ask("CONFIG", "GET", "save") == [b"save", b""]
        pid = broker.statistics().pid
        assert pid is not None
        words = " ".join(psutil.Process(pid).cmdline())
        assert address.password not in words
        async with open_probe(address) as probe:
            first = address.password

    async with running(broker):
        assert parse_redis_url(broker.server_url).password != first  # each run has its own


async def test_a_wrong_password_is_refused() -> None:
    """The user of the server exists only with its password."""
    broker = EmbeddedBroker(BrokerConfig(port=0))
    async with running(broker) as url:
        wrong = url.replace("redis://", "redis://tangram:guess@")
        with pytest.raises(BrokerUnavailable, match="WRONGPASS"):
            async with open_probe(parse_redis_url(wrong)) as probe:
                await probe.ping()


async def test_a_broker_with_a_password_asks_every_client_on_its_port() -> None:
    """The URL for plugins has the password; a client without it may do nothing."""
    broker = EmbeddedBroker(BrokerConfig(port=0, password=True))
    async with running(broker) as url:
        address = parse_redis_url(url)
        assert (address.host, address.username) == ("127.0.0.1", None)
        assert address.password
        async with open_probe(address) as probe:
            assert await refused(probe, FORBIDDEN) == FORBIDDEN
            assert await refused(probe, ALLOWED) == []
        async with open_probe(parse_redis_url(f"redis://127.0.0.1:{address.port}")) as stranger:
            assert await refused(stranger, ["GET key", "PUBLISH a b"]) == ["GET key", "PUBLISH a b"]
        shown = broker.statistics().url

    assert shown == redact_url(url)
    async with running(broker) as again:
        assert again == url  # plugins keep it


async def test_a_private_broker_listens_on_a_socket_with_a_password(tmp_path: Path) -> None:
    """Only the owner can open the socket, every client must log in, and there is no port."""
    broker = EmbeddedBroker(BrokerConfig(private=True), folder=tmp_path)
    with structlog.testing.capture_logs() as logs:
        async with running(broker) as url:
            address = parse_redis_url(url)
            assert Path(address.path).parent == tmp_path
            assert stat.S_IMODE((await trio.Path(address.path).stat()).st_mode) == 0o600
            pid = broker.statistics().pid
            assert pid is not None
            assert list(psutil.Process(pid).net_connections(kind="tcp")) == []
            async with open_probe(address) as probe:
                assert await refused(probe, FORBIDDEN) == FORBIDDEN
                assert await refused(probe, ALLOWED) == []
            async with open_probe(parse_redis_url(f"unix://{address.path}")) as stranger:
                assert await refused(stranger, ["GET key", "PUBLISH a b"]) == ["GET key", "PUBLISH a b"]
            async with open_probe(parse_redis_url(broker.server_url)) as probe:
                assert await probe.ask("ACL", "WHOAMI") == b"tangram"
            shown = broker.statistics()

    assert list(await trio.Path(tmp_path).iterdir()) == []
    assert address.password
    assert shown.url == redact_url(url)
    assert address.password not in f"{logs} {shown}"


async def test_a_private_broker_keeps_its_address_over_runs(tmp_path: Path) -> None:
    """Plugins keep the URL, also after the broker was killed."""
    broker = EmbeddedBroker(BrokerConfig(private=True), folder=tmp_path)
    async with running(broker) as first:
        pid = broker.statistics().pid
        assert pid is not None
        os.kill(pid, 9)
        while broker.statistics().pid is not None:  # noqa: ASYNC110 - no event tells
            await trio.sleep(0.01)
    async with running(broker) as second:
        assert second == first
        async with open_probe(parse_redis_url(first)) as probe:
            await probe.ping()


async def test_sockets_of_killed_brokers_are_removed(tmp_path: Path) -> None:
    """A socket without a listener is removed at the next start, and one in use stays."""
    import socket

    dead, used = tmp_path / "broker-dead.sock", tmp_path / "broker-used.sock"
    with socket.socket(socket.AF_UNIX) as left, socket.socket(socket.AF_UNIX) as listener:
        left.bind(str(dead))
        listener.bind(str(used))
        listener.listen(1)
        async with running(EmbeddedBroker(BrokerConfig(private=True), folder=tmp_path)):
            assert not dead.exists()
            assert used.exists()


async def test_bus_and_redis_client_use_a_private_broker(tmp_path: Path) -> None:
    """The bus connects as the server, and messages of other clients arrive."""
    broker = EmbeddedBroker(BrokerConfig(private=True), folder=tmp_path)
    async with running(broker) as url, trio.open_nursery() as nursery:
        server = await nursery.start(Bus(broker.server_url).run)
        plugin = await nursery.start(Bus(url).run)
        async with server.subscribe("from:demo:*") as messages:
            assert await plugin.publish("from:demo:click", b"1") == 1
            assert (await anext(messages)).payload == b"1"
        nursery.cancel_scope.cancel()


async def test_the_working_folder_is_the_given_one(tmp_path: Path) -> None:
    """The broker writes nothing into it; without one it runs in ``/``."""
    for folder, expected in ((tmp_path, str(tmp_path)), (None, "/")):
        broker = EmbeddedBroker(BrokerConfig(port=0), folder=folder)
        async with running(broker):
            pid = broker.statistics().pid
            assert pid is not None
            assert psutil.Process(pid).cwd() == expected
    assert list(await trio.Path(tmp_path).iterdir()) == []


async def test_a_private_broker_without_a_usable_folder_is_a_start_error(tmp_path: Path) -> None:
    """The error names the setting."""
    with pytest.raises(BrokerStartError, match=r"set server\.state_dir"):
        await EmbeddedBroker(BrokerConfig(private=True)).run()
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    with pytest.raises(BrokerStartError, match="too long"):
        await EmbeddedBroker(BrokerConfig(private=True), folder=deep).run()


def test_the_folder_of_the_broker_is_in_the_state_folder(tmp_path: Path) -> None:
    """It has mode 0700; without a usable state folder only a private broker fails."""
    config = load_tables({"server": {"state_dir": str(tmp_path / "state")}}).config
    folder = broker_folder(config, {})
    assert folder == tmp_path / "state" / "broker"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    blocked = {"state_dir": str(tmp_path / "file" / "state")}
    (tmp_path / "file").write_text("")
    assert broker_folder(load_tables({"server": blocked}).config, {}) is None
    with pytest.raises(ConfigError, match=r"server\.state_dir"):
        broker_folder(load_tables({"server": blocked, "broker": {"private": True}}).config, {})


def test_arguments_hold_no_password() -> None:
    """Command lines are readable for every account of the machine."""
    accounts = Accounts(ask_clients=True)
    assert accounts.client_password is not None

    words = " ".join(accounts.arguments())

    assert accounts.server_password not in words
    assert accounts.client_password not in words
    assert "nopass" not in words
