from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
import trio.lowlevel

from tangram.channels import disconnects
from tangram.channels.disconnects import Refusal
from tangram.channels.origins import OriginPolicy
from tangram.channels.policy import Authorizer, ConnectInfo, Gate, Minted
from tangram.channels.tokens import Claims, mint, verify
from tangram.errors import Refused
from tests.channels.fakes import Settings, counting_ids

SECRET = "the secret"
NOW = 1_700_000_000.0
LOCAL = ConnectInfo("127.0.0.1")
STRANGER = ConnectInfo("192.0.2.7")


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def open_gate(
    *functions: Callable[..., Any], clock: Callable[[], float] | None = None, settings: Settings | None = None
) -> Gate:
    return Gate(
        settings or Settings(),
        SECRET,
        origins=OriginPolicy(),
        new_id=counting_ids("id"),
        clock=clock or Clock(),
        operator_token="operator",
        authorizers=[Authorizer(f"plugin{number}", function) for number, function in enumerate(functions)],
    )


def token(channel: str, id_: str = "alice") -> str:
    return mint(Claims(id_, channel, int(NOW) + 100), SECRET)


async def test_a_minted_token_has_the_requested_claims() -> None:
    """The token has channel, id and expiry; without an id a new one is made."""
    minted = await open_gate().mint("obs", None, LOCAL)

    assert isinstance(minted, Minted)
    assert (minted.channel, minted.id) == ("obs", "id1")
    assert verify(minted.token, SECRET, NOW) == Claims("id1", "obs", int(NOW) + 2_592_000)


@pytest.mark.parametrize(
    ("channel", "id_", "bearer", "refusal"),
    [
        ("admin", None, None, disconnects.NOT_OPERATOR),
        ("admin", None, "wrong", disconnects.NOT_OPERATOR),
        ("admin", None, "operator", None),
        ("streaming-bob", "bob", None, None),
        ("streaming-bob", "eve", None, disconnects.NOT_YOUR_STREAM),
        ("streaming-bob", None, None, disconnects.NOT_YOUR_STREAM),
        ("streaming-bob", "eve", "operator", disconnects.NOT_YOUR_STREAM),
        ("", "", None, None),
        ("x" * 256, None, None, disconnects.TOPIC_TOO_LONG),
        ("x", "é" * 128, None, disconnects.ID_TOO_LONG),
    ],
)
async def test_tokens_are_minted_by_the_policy(
    channel: str, id_: str | None, bearer: str | None, refusal: Refusal | None
) -> None:
    """admin is for the operator, a stream for its own id, and all other topics are open."""
    minted = await open_gate().mint(channel, id_, LOCAL, bearer=bearer)

    assert minted == refusal if refusal is not None else isinstance(minted, Minted)


async def test_without_an_operator_token_there_is_no_operator() -> None:
    """An empty operator token matches nothing, not even an empty bearer."""
    gate = Gate(Settings(), SECRET, origins=OriginPolicy(), new_id=str, clock=Clock(), operator_token="")

    assert not gate.is_operator("")
    assert not gate.is_operator(None)


@pytest.mark.parametrize(
    ("topic", "own", "users", "verdict"),
    [
        ("obs", token("obs"), None, "alice"),
        ("obs", None, token("obs"), "alice"),
        ("obs", None, None, disconnects.UNAUTHORIZED),
        ("obs", token("other"), None, disconnects.WRONG_CHANNEL),
        ("obs", None, token("system"), disconnects.WRONG_CHANNEL),
        ("obs", "garbage", token("obs"), disconnects.UNAUTHORIZED),
        ("obs", "", token("obs"), disconnects.UNAUTHORIZED),
        ("obs", mint(Claims("a", "obs", int(NOW) - 100), SECRET), None, disconnects.TOKEN_EXPIRED),
        ("streaming-bob", token("streaming-bob", "bob"), None, "bob"),
        ("streaming-bob", token("streaming-bob", "eve"), None, disconnects.NOT_YOUR_STREAM),
        ("obs:*", token("obs:*"), None, "alice"),
        ("obs:x", token("obs:*"), None, disconnects.WRONG_CHANNEL),
    ],
)
def test_a_join_needs_a_token_for_its_topic(
    topic: str, own: str | None, users: str | None, verdict: str | Refusal
) -> None:
    """A token allows exactly its topic; a join's own token goes before the connection's."""
    assert open_gate().check_join(topic, own, users, LOCAL) == verdict


async def test_rates_are_per_address_and_loopback_is_not_exempt() -> None:
    """Tokens, joins and upgrades each have a bucket, with distinct refusals."""
    settings = Settings(
        token_rate=1, token_burst=1, join_rate=1, join_burst=1, upgrade_rate=1, upgrade_burst=1
    )
    clock = Clock()
    gate = open_gate(settings=settings, clock=clock)
    for info, limited in ((STRANGER, True), (LOCAL, True), (ConnectInfo("192.0.2.8"), True)):
        for attempt in range(3):
            refused = limited and attempt > 0
            assert (await gate.mint("obs", None, info) == disconnects.LIMITED) is refused
            assert (gate.check_join("obs", token("obs"), None, info) == disconnects.LIMITED) is refused
            assert (gate.check_upgrade(info) == disconnects.BUSY) is refused
    clock.now += 1

    assert gate.check_upgrade(STRANGER) is None


async def test_origins_are_checked_for_tokens_and_upgrades() -> None:
    """A page of another origin gets neither."""
    page = ConnectInfo("127.0.0.1", origin="http://evil.example")

    assert await open_gate().mint("obs", None, page) == disconnects.ORIGIN
    assert open_gate().check_upgrade(page) == disconnects.ORIGIN


def allow(topic: str, id_: str, info: ConnectInfo) -> None:
    return None


def refuse(topic: str, id_: str, info: ConnectInfo) -> str:
    return f"not {id_} on {topic} from {info.address}"


def refuse_by_raising(topic: str, id_: str, info: ConnectInfo) -> None:
    raise Refused("no")


def crash(topic: str, id_: str, info: ConnectInfo) -> None:
    raise RuntimeError("a bug")


def confused(topic: str, id_: str, info: ConnectInfo) -> bool:
    return True


async def refuse_later(topic: str, id_: str, info: ConnectInfo) -> str:
    await trio.sleep(1)
    return "later"


async def never(topic: str, id_: str, info: ConnectInfo) -> None:
    await trio.sleep_forever()


async def allow_later(topic: str, id_: str, info: ConnectInfo) -> None:
    await trio.lowlevel.checkpoint()


class AsyncCallable:
    async def __call__(self, topic: str, id_: str, info: ConnectInfo) -> str:
        await trio.lowlevel.checkpoint()
        return "object"


SYNC: list[tuple[list[Callable[..., Any]], str | None]] = [
    ([], None),
    ([allow, allow], None),
    ([allow, refuse], "not alice on obs from 127.0.0.1"),
    ([refuse_by_raising, refuse], "no"),
    ([crash], "unavailable"),
    ([confused], "unavailable"),
]
ASYNC: list[tuple[list[Callable[..., Any]], str | None]] = [
    ([refuse_later], "later"),
    ([never, allow_later], "unavailable"),
    ([AsyncCallable()], "object"),
]


async def check_say(functions: Sequence[Callable[..., Any]], reason: str | None) -> None:
    refusal = await open_gate(*functions).ask("obs", "alice", LOCAL)

    assert (None if refusal is None else refusal.reason) == reason
    if refusal is not None:
        assert refusal.retry is (reason == "unavailable")


@pytest.mark.parametrize(("functions", "reason"), SYNC)
async def test_sync_authorize_functions_allow_or_refuse(
    functions: Sequence[Callable[..., Any]], reason: str | None
) -> None:
    """None allows, a string or Refused refuses; an error or another answer is unavailable."""
    await check_say(functions, reason)


@pytest.mark.parametrize(("functions", "reason"), ASYNC)
async def test_async_authorize_functions_allow_or_refuse(
    autojump_clock: trio.testing.MockClock, functions: Sequence[Callable[..., Any]], reason: str | None
) -> None:
    """The same for async functions; one that hangs is unavailable."""
    await check_say(functions, reason)


async def test_sync_plugins_run_in_threads() -> None:
    """A blocking authorize does not block the loop."""
    threads: list[int] = []

    def note(topic: str, id_: str, info: ConnectInfo) -> None:
        threads.append(threading.get_ident())

    await open_gate(note).ask("obs", "alice", LOCAL)
    assert threads != [threading.get_ident()]


async def test_a_stuck_thread_is_abandoned(autojump_clock: trio.testing.MockClock) -> None:
    """The verdict comes at the deadline although the plugin's thread goes on."""
    stuck = threading.Event()
    autojump_clock.autojump_threshold = 0.01

    def hang(topic: str, id_: str, info: ConnectInfo) -> None:
        stuck.wait(10)

    try:
        assert await open_gate(hang).ask("obs", "alice", LOCAL) == disconnects.UNAVAILABLE
    finally:
        stuck.set()


async def test_plugins_are_asked_when_a_token_is_minted() -> None:
    """The refusal has the plugin's reason."""
    refused = await open_gate(refuse).mint("obs", "alice", LOCAL)

    assert isinstance(refused, Refusal)
    assert refused.status == 403
    assert refused.reason.startswith("not alice")


async def test_authorize_by_pattern_guards_the_topics_below() -> None:
    """Each pattern asks its own function, and other topics are open."""
    authorizers = Authorizer.of("p", {"secret": refuse, "secret:*": refuse, "*:staff": refuse_by_raising})
    gate = open_gate()
    gate.authorizers = (*authorizers, *Authorizer.of("other", allow))

    refused = {topic: await gate.ask(topic, "alice", LOCAL) is not None for topic in TOPICS}
    assert refused == {
        "secret": True,
        "secret:x": True,
        "secret:x:y": True,
        "Secret": False,
        "secrets": False,
        "obs:staff": True,
        "obs": False,
    }


TOPICS = ["secret", "secret:x", "secret:x:y", "Secret", "secrets", "obs:staff", "obs"]
