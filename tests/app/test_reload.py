"""The settings that a reload changes, those that it reports instead, and its time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio

import tangram
from tangram.app.reload import BOUND, bound_changes, with_bound
from tangram.app.tree import Secrets
from tangram.config import BrokerConfig, Config, LoadedConfig
from tangram.errors import Refused
from tangram.testing import RunningTangram, TangramEnded, open_tangram
from tests.app.helpers import Journal, make_plugin

TLS = Path(__file__).parents[1] / "http" / "tls"

NEXT_INCARNATION = {
    "core": "plugins log_level theme themes",
    "server": "hosts allowed_origins root_path forwarded_allow_ips"
    " engine tls_cert tls_key frontend ready_requires"
    " access_log max_header_bytes max_headers max_body max_pending_bytes body_timeout header_timeout"
    " idle_timeout write_timeout max_connections"
    " max_connections_per_address drain_grace",
    "channel": "public_url jwt_expiration_secs id_length ids presence presence_rate push_replies"
    " broadcast_join_ref"
    " conflate max_backlog max_message max_unjoined max_joins idle_timeout ping_interval streaming_grace"
    " history compression token_rate token_burst join_rate join_burst upgrade_rate upgrade_burst",
    "map": "style styles center_lat center_lon zoom pitch bearing lang min_zoom max_zoom max_pitch"
    " allow_pitch allow_bearing layers_visibility",
    "cache": "entries",
    "compat": "islands max_body",
    "metrics": "public topics",
    "cluster": "presence_grace",
    "supervisor": "strategy plugin_restarts plugin_window exhausted",
}
"""Settings that every incarnation reads again; the reader of the file reads the log's level."""

HANDED_ON = {
    "server": "operator_token",
    "channel": "jwt_secret",
    "supervisor": "root_restarts root_window backoff_initial backoff_max backoff_reset start_timeout"
    " stop_timeout shutdown_timeout stall_after",
    "broker": "start_timeout stop_timeout",
}
"""Settings in use above the incarnations, set there by `Tree.take_over` and the server."""

READ_BY_THE_COMMAND = {"log": "level levels access access_format"}
"""Settings that the reader of the file obeys itself: see ``cli.serving``."""

FIRST_BOOT = {"core": "strict"}
"""Settings without a meaning after the first boot."""

OTHERS: Mapping[str, object] = {
    "core.redis_url": "redis://:hunter2@elsewhere",
    "server.host": "::1",
    "server.port": 1,
    "server.state_dir": Path("/elsewhere"),
    "server.workers": 2,
    "channel.host": "::1",
    "channel.port": 2,
    "broker.port": 3,
    "broker.private": True,
    "broker.password": True,
    "broker.binary": Path("/elsewhere/valkey-server"),
    "cluster.node": "other",
    "cluster.listen": "127.0.0.1:9",
    "cluster.lease_ttl": 9.0,
}


def every_setting() -> list[str]:
    return [
        f"{table.name}.{setting.name}"
        for table in attrs.fields(Config)
        if attrs.has(type(value := getattr(Config(), table.name)))
        for setting in attrs.fields(type(value))
    ]


def changed(config: Config, path: str, value: object) -> Config:
    table, _, key = path.partition(".")
    return attrs.evolve(config, **{table: attrs.evolve(getattr(config, table), **{key: value})})


async def reload(running: RunningTangram, **settings: object) -> None:
    """Reload with these settings (``server__port=1``) in addition to the present ones."""
    config = running.server.config
    for name, value in settings.items():
        config = changed(config, name.replace("__", "."), value)
    await reload_as(running, config)


async def reload_as(running: RunningTangram, config: Config) -> None:
    server = running.server
    server.boot = attrs.evolve(server.boot, reload=lambda: LoadedConfig(config, ()))
    await server.reload()


def logged(running: RunningTangram, event: str) -> list[dict[str, Any]]:
    return [record for record in running.logs if record["event"].startswith(event)]


def test_every_setting_is_taken_over_or_reported() -> None:
    """Each setting of the model is in one of the lists; put a new setting into the right one."""
    seen_to = [
        f"{table}.{key}"
        for tables in (NEXT_INCARNATION, HANDED_ON, READ_BY_THE_COMMAND, FIRST_BOOT)
        for table, keys in tables.items()
        for key in keys.split()
    ]

    assert sorted(every_setting()) == sorted([*BOUND, *seen_to])


@pytest.mark.parametrize("path", BOUND)
def test_a_setting_of_the_whole_process_is_reported_and_kept(path: str) -> None:
    """A change is reported with the setting's name and no password; the old value stays."""
    old = Config()
    new = changed(changed(old, path, OTHERS[path]), "server.max_headers", 7)

    (found,) = bound_changes(old, new)
    kept = with_bound(old, new)

    assert found[0] == path
    assert "hunter2" not in repr(found)
    assert kept == changed(old, "server.max_headers", 7)
    assert list(bound_changes(new, new)) == []


def test_another_redis_is_reported_without_its_address() -> None:
    """The report of a changed URL shows no part of it, because only the password may differ."""
    old = changed(Config(), "core.redis_url", "redis://:hunter2@h")

    found = list(bound_changes(old, changed(old, "core.redis_url", "redis://:hunter3@h")))

    assert found == [("core.redis_url", "(set)", "(another)")]


async def test_a_changed_port_is_logged_at_a_reload(autojump_clock: object) -> None:
    """The log says that a changed port needs a new process."""
    async with open_tangram(fakes=True, memory_port=True) as running:
        await reload(running, broker__port=7, server__host="::1")
        found = [record["setting"] for record in logged(running, "setting needs a restart")]

    assert found == ["server.host", "broker.port"]


async def test_new_secrets_are_in_force(autojump_clock: object) -> None:
    """After a reload tokens and operators are checked with the new secrets.

    The log says so, and the invariant about secrets in the log knows both.
    """
    old, new = Secrets(jwt="a" * 32, operator="b" * 32), Secrets(jwt="c" * 32, operator="d" * 32)
    tables = {"server": {"operator_token": old.operator}, "channel": {"jwt_secret": old.jwt}}
    async with open_tangram([make_plugin(Journal())], tables, fakes=True, memory_port=True) as running:
        stale, former = await token(running), running.operator
        await reload(running, server__operator_token=new.operator, channel__jwt_secret=new.jwt)
        statuses = [
            (await running.http.post("/-/plugins/probe/restart", headers=headers)).status_code
            for headers in (former, {"authorization": f"Bearer {new.operator}"})
        ]
        fresh = await token(running)
        async with running.open_socket() as socket:
            with pytest.raises(Refused):
                await socket.join("probe", token=stale)
            await socket.join("probe", token=fresh)
        found = [record["setting"] for record in logged(running, "secret replaced")]
        known = set(running.evidence().secrets)

    assert statuses == [401, 200]
    assert found == ["channel.jwt_secret", "server.operator_token"]
    assert known >= {old.jwt, old.operator, new.jwt, new.operator}


async def token(running: RunningTangram) -> str:
    answer = await running.http.post("/token", json={"channel": "probe"})
    return str(answer.json()["token"])


async def test_a_secret_whose_file_was_removed_is_created_again(autojump_clock: object) -> None:
    """Removing the file of a secret and reloading replaces the secret."""
    async with open_tangram(fakes=True, memory_port=True) as running:
        former, folder = running.operator, running.server.config.server.state_dir
        assert folder is not None
        (folder / "operator-token").unlink()
        await reload(running)

        assert running.operator != former
        assert (await running.http.get("/-/plugins", headers=running.operator)).status_code == 200


async def test_a_reload_with_an_unusable_state_folder_changes_nothing(autojump_clock: object) -> None:
    """A configuration that cannot be used as a whole is not used in part."""
    async with open_tangram(fakes=True, memory_port=True) as running:
        folder = running.server.config.server.state_dir
        assert folder is not None
        (folder / "jwt-secret").write_text("")
        await reload(running, server__max_headers=7)

        assert running.server.config.server.max_headers == 100
        assert running.server.ready_count == 1
        assert "is empty" in logged(running, "configuration rejected")[0]["cause"]


async def test_the_limits_of_the_root_are_the_new_ones(autojump_clock: object) -> None:
    """Budget, back-off, watchdog and the broker's limits are the new ones after a reload."""
    limits = {"root_restarts": 0, "backoff_initial": 0.0, "backoff_max": 0.0}
    async with open_tangram(config={"supervisor": limits}, fakes=True, memory_port=True) as running:
        await reload(
            running,
            supervisor__root_restarts=2,
            supervisor__root_window=1000.0,
            supervisor__backoff_initial=4.0,
            supervisor__backoff_max=4.0,
            supervisor__stall_after=9.0,
            broker__stop_timeout=8.0,
        )
        for count in (3, 4):
            running.crash("broker")
            await running.wait_ready(count)
        delays = [event.delay for event in running.events if event.kind == "restarting"]
        server = running.server
        assert server.watchdog is not None
        assert server.tree is not None
        assert server.tree.broker is not None
        stall_after = server.watchdog.stall_after
        broker: BrokerConfig = server.tree.broker._config  # type: ignore[union-attr]
        running.crash("broker")
        status = await running.wait_ended()

    assert delays[0] == 0
    assert delays[1] == pytest.approx(4.0, rel=0.2)
    assert (stall_after, broker.stop_timeout, status) == (9.0, 8.0, 70)


async def test_a_web_stopped_by_a_reload_keeps_the_limits_of_its_start(autojump_clock: object) -> None:
    """Requests in flight get the old grace, which fits the web's own stop time.

    With the new grace the web would be reported as stubborn, which an invariant forbids.
    """
    router = tangram.APIRouter()

    @router.get("/slow")
    async def slow() -> None:
        await trio.sleep(50)

    limits = {"server": {"drain_grace": 1.0}}
    plugins = [tangram.Plugin(routers=[router])]
    async with open_tangram(plugins, limits, fakes=True, memory_port=True) as running:
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(httpx.HTTPError):
                    await running.http.get("/slow", timeout=100)

            nursery.start_soon(ask)
            await trio.sleep(1)
            began = trio.current_time()
            await reload(running, server__drain_grace=40.0, supervisor__shutdown_timeout=300.0)
            took = trio.current_time() - began

    assert took == pytest.approx(1.0, abs=0.5)


@pytest.mark.slow
async def test_tls_comes_with_a_reload(tmp_path: Path) -> None:
    """After a reload the same port speaks TLS; faulty files are reported."""
    async with open_tangram() as running, httpx.AsyncClient(verify=False) as client:
        (tmp_path / "broken.pem").write_text("nothing")
        await reload(
            running, server__tls_cert=tmp_path / "broken.pem", server__tls_key=tmp_path / "broken.pem"
        )
        before = running.url
        await reload(running, server__tls_cert=TLS / "cert.pem", server__tls_key=TLS / "key.pem")
        answer = await client.get(f"{running.url}/-/healthz")

        assert before.startswith("http://")
        assert "broken.pem" in logged(running, "configuration rejected")[0]["cause"]
        assert running.url == before.replace("http://", "https://")
        assert answer.status_code == 200
        assert running.server.ready_count == 2


async def test_a_reload_during_the_boot_follows_it(autojump_clock: object) -> None:
    """A reload while a plugin still starts is logged, waits, and comes after the boot."""
    starts = 0
    plugin = tangram.Plugin()

    @plugin.register_service()
    async def slow(state: tangram.BackendState, *, task_status: trio.TaskStatus[None]) -> None:
        nonlocal starts
        starts += 1
        await trio.sleep(10)
        task_status.started()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:

        async def hang_up(running: RunningTangram) -> None:
            await trio.sleep(1)
            await reload(running, server__max_headers=7)

        async with open_tangram(
            [plugin],
            fakes=True,
            memory_port=True,
            on_server=lambda running: nursery.start_soon(hang_up, running),
        ) as running:
            found = logged(running, "reload postponed")
            await running.wait_ready(2, seconds=60)
            headers = running.server.config.server.max_headers

    assert (len(found), starts, headers) == (1, 2, 7)


async def test_a_boot_that_fails_leaves_no_reload_behind(autojump_clock: object) -> None:
    """A reload that waits for the end of the boot ends with it."""
    plugin = tangram.Plugin()

    @plugin.register_service()
    async def never(state: tangram.BackendState, *, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(5)
        raise ValueError("it cannot start")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            with pytest.raises(TangramEnded):
                async with open_tangram(
                    [plugin],
                    {"core": {"strict": True}},
                    fakes=True,
                    memory_port=True,
                    on_server=lambda running: nursery.start_soon(running.server.reload),
                ):
                    pass


async def test_a_short_configured_secret_is_reported() -> None:
    """The log names the setting of a configured secret that is too short for a file."""
    config = {"server": {"operator_token": "t1ny"}, "channel": {"jwt_secret": "x" * 32}}
    async with open_tangram([], config, fakes=True) as running:
        (warning,) = logged(running, "configured secret is short")

    assert warning["setting"] == "server.operator_token"
    assert "t1ny" not in str(warning)
