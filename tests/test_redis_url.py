"""One parser and one redaction for Redis URLs, at every entrance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import structlog
import trio
from hypothesis import example, given
from hypothesis import strategies as st

import tangram
from tangram.broker import ping
from tangram.broker.external import ExternalBroker
from tangram.bus import Bus
from tangram.compat.core.redis import Subscriber as CompatSubscriber
from tangram.config import CoreConfig, load_config
from tangram.config.structure import structure_table
from tangram.errors import BrokerUnavailable, ConfigError
from tangram.redis_url import (
    OPTIONS,
    TLS_OPTIONS,
    RedisAddress,
    local_redis_url,
    parse_redis_url,
    redact_text,
    redact_url,
)

SECRET = "hunter2"


def test_a_tcp_url_gives_host_port_account_and_database() -> None:
    """Parts that are left out have Redis's defaults; the account's parts are unquoted."""
    address = parse_redis_url("redis://user:p%40ss@example.org:7000/3")

    assert (address.host, address.port, address.db, address.tls) == ("example.org", 7000, 3, False)
    assert (address.username, address.password) == ("user", "p@ss")
    plain = parse_redis_url(local_redis_url(5))
    assert (plain.host, plain.port, plain.db, plain.password) == ("127.0.0.1", 5, 0, None)
    assert parse_redis_url("redis://h").port == 6379
    assert parse_redis_url("redis://:a b@h").password == "a b"


def test_a_host_may_be_an_ipv6_address() -> None:
    """An address in brackets is a host; a password may stand without a user."""
    address = parse_redis_url("redis://:secret@[::1]:1?db=4")

    assert (address.host, address.port, address.db) == ("::1", 1, 4)
    assert (address.username, address.password) == (None, "secret")


def test_a_unix_url_gives_the_path_and_a_tls_url_its_options() -> None:
    """The options have redis-py's names; account and database are not among the rest."""
    unix = parse_redis_url("unix:///run/redis.sock?db=2&password=x")
    assert (unix.path, unix.db, unix.password, unix.host) == ("/run/redis.sock", 2, "x", "")
    secured = parse_redis_url("rediss://host?ssl_ca_certs=/ca.pem&password=%2525")
    assert secured.tls
    assert secured.password == "%25"
    assert secured.options == {"ssl_ca_certs": "/ca.pem"}


def test_a_url_with_sentinels_gives_all_of_them_and_two_accounts() -> None:
    """The account before the hosts is that of Redis; equal hosts count once."""
    address = parse_redis_url(
        "rediss+sentinel://u:p%40@h1,[::1]:5,h1:26379/2?master=my%20one&sentinel_username=s"
        "&sentinel_password=w&ssl_ca_certs=/ca.pem"
    )

    assert (address.kind, address.master, address.tls, address.db) == ("sentinel", "my one", True, 2)
    assert address.guides == (("h1", 26379), ("::1", 5))
    assert (address.username, address.password) == ("u", "p@")
    asked = address.guide(("h9", 1))
    assert (asked.endpoint, asked.username, asked.password, asked.db) == (("h9", 1), "s", "w", 0)
    found = address.primary(("h8", 2))
    assert (found.endpoint, found.username, found.password, found.db) == (("h8", 2), "u", "p@", 2)
    assert (found.kind, found.options) == ("single", {"ssl_ca_certs": "/ca.pem"})
    cluster = parse_redis_url("redis+cluster://u:p@h1,h2:1/0")
    assert (cluster.kind, cluster.guides) == ("cluster", (("h1", 6379), ("h2", 1)))
    assert cluster.guide(("h2", 1)).password == "p"


def test_a_user_name_without_a_password_is_no_account() -> None:
    """Some providers write user names that mean nothing; the connection does not log in then."""
    assert parse_redis_url("redis://user@host").password is None


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("", "begins with redis://"),
        ("http://x", "begins with redis://"),
        (" redis://h", "begins with redis://"),
        ("REDIS://h", "begins with redis://"),
        ("redis://", "expected a host"),
        ("redis:///0", "expected a host"),
        ("redis://redis..internal", "expected the name of a host"),
        ("redis://h:0", "expected a port"),
        ("redis://h:99999", "expected a port"),
        ("redis://[::1", "expected a port"),
        ("redis://h/x", "number of a database"),
        ("redis://h/-1", "number of a database"),
        ("redis://h?db=x", "number of a database"),
        ("redis://h/0#x", "no '#'"),
        ("redis://h\n", "line breaks"),
        ("unix://", "path of a socket"),
        ("redis://h?foo=bar", "known options"),
        ("redis://h?socket_timeout=x", "seconds above 0 for the option 'socket_timeout'"),
        ("redis://h?socket_timeout", "seconds above 0"),
        ("redis://h?max_connections=many", "a number"),
        ("redis://h?retry_on_timeout=perhaps", "true or false"),
        ("redis://h?db=1&db=2", "'db' once"),
        ("redis://h?ssl_ca_certs=/ca.pem", "rediss://"),
        ("rediss://h?ssl_cert_reqs=some", "none, optional or required"),
        ("unix:///run/x?socket_keepalive=true", "known options"),
        ("redis+sentinel://h1,h2", "the option 'master'"),
        ("redis+sentinel://h1,?master=m", "expected a host"),
        ("redis+sentinel://h1:1,h2:x/?master=m", "expected a port"),
        ("redis+sentinel://h1:1,h2:0/?master=m", "expected a port"),
        ("redis+sentinel://h1?master=m&ssl_ca_certs=/ca.pem", "rediss"),
        ("redis://h?master=m", "redis+sentinel://"),
        ("redis://h1,h2:1,h3", "expected a port"),
        ("redis+cluster://h1,h2/1", "only database 0"),
        ("redis+cluster://h1?db=1", "only database 0"),
        ("unix+sentinel:///run/x?master=m", "begins with redis://"),
    ],
)
def test_a_malformed_url_is_refused_with_the_expectation(url: str, what: str) -> None:
    """The fault names the expectation and the setting, and shows the URL."""
    with pytest.raises(ConfigError) as caught:
        parse_redis_url(url, where="somewhere")

    assert what in str(caught.value)
    assert "somewhere" in str(caught.value)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix"])
def test_every_accepted_option_is_one_that_redis_py_takes(scheme: str) -> None:
    """A URL that passes the check gives a redis-py connection, with each option of the table."""
    from redis.asyncio import Redis

    values = {"db": "1", "protocol": "2", "ssl_cert_reqs": "none", "encoding": "utf-8"}
    values |= {"encoding_errors": "strict", "ssl_min_version": "771"}
    values |= dict.fromkeys(["socket_timeout", "socket_connect_timeout"], "1.5")
    values |= dict.fromkeys(["health_check_interval", "max_connections"], "5")
    values |= dict.fromkeys(["retry_on_timeout", "socket_keepalive", "ssl_check_hostname"], "no")
    tried = 0
    for name in {**OPTIONS, **TLS_OPTIONS}:
        url = f"{scheme}://{'' if scheme == 'unix' else 'h'}/{1 if scheme != 'unix' else 'x'}"
        url += f"?{name}={values.get(name, 'x')}"
        try:
            parse_redis_url(url)
        except ConfigError:
            continue
        pool = Redis.from_url(url).connection_pool
        pool.connection_class(**pool.connection_kwargs)
        tried += 1

    assert (
        tried
        == {"redis": len(OPTIONS), "rediss": len({**OPTIONS, **TLS_OPTIONS}), "unix": len(OPTIONS) - 1}[
            scheme
        ]
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:hunter2@h:1/2", "redis://u:***@h:1/2"),
        ("redis://:hunter2@h", "redis://:***@h"),
        ("redis://:hun/ter2@h/0", "redis://:***@h/0"),
        ("redis://u:hun ter2@h", "redis://u:***@h"),
        ("redis://h:hunter2", "redis://h:***"),
        ("redis://h:99999", "redis://h:***"),
        ("unix:///run/x?db=2&password=hunter2", "unix:///run/x?db=2&password=***"),
        ("unix:///run/x?p%61ssword=hunter2", "unix:///run/x?p%61ssword=***"),
        ("rediss://h?ssl_password=hunter2", "rediss://h?ssl_password=***"),
        ("https://maps.example.org/style.json?key=hunter2", "https://maps.example.org/style.json?key=***"),
        ("u:hunter2@h", "u:***@h"),
        ("u://hunter2@h", "u://***@h"),
        ("redis://user@h", "redis://user@h"),
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://[::1]:6379", "redis://[::1]:6379"),
        ("rediss://h?ssl_ca_certs=/ca.pem", "rediss://h?ssl_ca_certs=/ca.pem"),
        ("redis+sentinel://h1:1,[::1]:2,h3/?master=m", "redis+sentinel://h1:1,[::1]:2,h3/?master=m"),
        ("redis+sentinel://u:hunter2@h1:1,h2/?master=m", "redis+sentinel://u:***@h1:1,h2/?master=m"),
        (
            "redis+sentinel://h1,h2/?master=m&sentinel_password=hunter2",
            "redis+sentinel://h1,h2/?master=m&sentinel_password=***",
        ),
        ("redis+cluster://h1:1,h2:hunter2", "redis+cluster://h1:1,***"),
        ("rediss+cluster://h:hunter2", "rediss+cluster://h:***"),
        ("localhost:6379", "localhost:6379"),
        ("", ""),
    ],
)
def test_redact_url_hides_the_password_and_shows_the_rest(url: str, shown: str) -> None:
    """A URL is readable without its password, also where it is malformed."""
    assert redact_url(url) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis at redis://u:hunter2@h:1 is away", "redis at redis://u:***@h:1 is away"),
        ("two\nredis://:hun ter2@h\nlines", "two\nredis://:***@h\nlines"),
        ("cannot reach 'redis://h:hunter2'", "cannot reach 'redis://h:***"),
        ("GET /websocket?userToken=hunter2&vsn=2", "GET /websocket?userToken=***&vsn=2"),
        ("redis://h:6379: refused", "redis://h:6379: refused"),
    ],
)
def test_redact_text_hides_passwords_in_messages(text: str, shown: str) -> None:
    """Messages and tracebacks that quote a URL lose its password and keep the other lines."""
    assert redact_text(text) == shown


# --- no password anywhere, and the same URLs at both entrances


class _Native(tangram.Subscriber[None]):
    async def message_handler(self, event: str, payload: str, pattern: str, state: None) -> None: ...


class _Existing(CompatSubscriber[None]):
    async def message_handler(self, event: str, payload: str, pattern: str, state: None) -> None: ...


def _subscribe(url: str) -> object:
    """Try the existing plugins' Subscriber, without its connection."""
    subscriber = _Existing("x", url, ["a"], None)

    async def refuse() -> None:
        raise ConnectionRefusedError

    subscriber._open = refuse  # type: ignore[assignment, method-assign]

    async def run() -> None:
        try:
            await subscriber.subscribe()
        except ConnectionRefusedError:
            return

    asyncio.run(run())
    return subscriber


ENTRANCES: dict[str, Callable[[str], Any]] = {
    "configuration": lambda url: structure_table(CoreConfig, {"redis_url": url}),
    "environment": lambda url: load_config(None, environ={"TANGRAM_CORE__REDIS_URL": url}),
    "tangram.Subscriber": lambda url: _Native("x", url, ["a"], None),
    "existing Subscriber": _subscribe,
    "bus": Bus,
    "external broker": lambda url: (ExternalBroker(url), ExternalBroker(url).statistics()),
    "address": parse_redis_url,
}

FORMS = [
    "redis://:{}@h/0",
    "redis://u:{}@h",
    "redis://h:{}",
    "redis://h:{}/0",
    "rediss://u:{}@h:6379/1?ssl_cert_reqs=none",
    "redis://u:{}@h/x",
    "redis://u:{}@:0",
    "redis://h?password={}",
    "redis://h/0?db=1&password={}",
    "unix:///run/x.sock?password={}",
    "unix://:{}@/run/x.sock",
    "redis+sentinel://u:{}@h1:1,h2/?master=m",
    "redis+sentinel://h1,h2:{}/?master=m",
    "redis+sentinel://h1,h2?master=m&sentinel_password={}",
    "redis+cluster://:{}@h1,h2",
    "http://u:{}@h",
    "u:{}@h",
]


def tried(url: str) -> tuple[set[str], list[str]]:
    """Return the entrances that accept a URL, and everything that they show of it."""
    accepted, shown = set(), []
    for name, enter in ENTRANCES.items():
        try:
            made = enter(url)
        except ConfigError as error:
            shown += [str(error), repr(error), repr(error.__cause__)]
        else:
            accepted.add(name)
            shown.append(repr(made))
    return accepted, shown


passwords = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=6),
    st.text("/?#@:& %[]\\'\"=;\t", min_size=1, max_size=4),
)


@given(form=st.sampled_from(FORMS), before=passwords, after=passwords, quoted=st.booleans())
@example(form=FORMS[0], before="se/cret", after="x", quoted=False)
@example(form=FORMS[1], before="p", after="w", quoted=False)
@example(form=FORMS[1], before="my ", after=" word", quoted=False)
@example(form=FORMS[1], before="a@", after="@b", quoted=True)
@example(form=FORMS[2], before="", after="", quoted=False)
@example(form=FORMS[9], before="a&", after="#b", quoted=False)
@example(form="unix://:{}@/run/x.sock", before="/", after="0", quoted=False)
def test_no_entrance_shows_a_password_and_all_accept_the_same_urls(
    form: str, before: str, after: str, quoted: bool
) -> None:
    """A secret inside any password appears in no error and no ``repr``."""
    if "@" not in form and not quoted:
        before, after = before.replace("@", ""), after.replace("@", "")  # "redis://h:@host" is a valid URL
    password = f"{before}{SECRET}{after}"
    url = form.format(quote(password, safe="") if quoted else password)
    if "\0" in url:
        url = url.replace("\0", "")  # an environment cannot hold it

    accepted, shown = tried(url)

    assert accepted in (set(), set(ENTRANCES)), url
    assert SECRET not in "".join(shown)


@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        ("redis://:se/cret@h/0", False),
        ("redis://h:secret", False),
        ("redis://u:p%40ss@h", True),
        ("redis://u:a secret@h", True),
        ("unix:///run/x?password=secret", True),
        ("redis:///0", False),
        ("redis://h/x", False),
        ("redis://h?foo=bar", False),
    ],
)
def test_both_entrances_accept_and_refuse_the_same_urls(url: str, accepted: bool) -> None:
    """A URL in the configuration and the same in a plugin's code are judged alike."""
    assert tried(url)[0] == (set(ENTRANCES) if accepted else set())


@pytest.mark.parametrize("form", FORMS)
async def test_an_outage_is_logged_without_the_password(form: str) -> None:
    """The message of a failed PING names the URL, and not its password."""
    url = form.format(f"{SECRET} and more")
    with structlog.testing.capture_logs() as logs, pytest.raises(BrokerUnavailable) as caught:
        await ping(url, 0.5)

    assert SECRET not in f"{caught.value} {caught.value!r} {logs}"


def test_the_hint_of_a_raw_slash_in_a_password_names_the_escapes() -> None:
    """A password that is not percent-encoded is the usual mistake."""
    with pytest.raises(ConfigError, match="write / as %2F"):
        parse_redis_url("redis://:se/cret@h/0")


def test_an_address_is_a_value() -> None:
    """Equal URLs give equal addresses, and their ``repr`` is readable."""
    assert parse_redis_url("redis://u:x@h:1") == parse_redis_url("redis://u:x@h:1")
    assert repr(parse_redis_url("redis://u:x@h:1")).startswith(f"{RedisAddress.__name__}(host='h', port=1")


@pytest.mark.parametrize(
    "url",
    [
        f"redis://u:{SECRET} and more@127.0.0.1:1",
        f"redis://:{quote(SECRET + '/@?#', safe='')}@127.0.0.1:1/0",
        f"redis://127.0.0.1:1?password={SECRET}",
        f"unix:///nowhere/redis.sock?password={SECRET} and more",
        f"rediss://u:{SECRET}@127.0.0.1:1?ssl_cert_reqs=none",
    ],
)
async def test_an_outage_of_every_part_is_logged_without_the_password(
    url: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Bus, subscriber and watch report the loss, and no record has the password."""
    errors: list[object] = []
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            bus = await nursery.start(Bus(url).run)
            watch = ExternalBroker(url)
            await nursery.start(watch.run)
            nursery.start_soon(_listen, url)
            await trio.sleep(5)
            with pytest.raises(BrokerUnavailable) as caught:
                await bus.publish("a", b"b")
            errors += [str(caught.value), repr(caught.value.__cause__)]
            with pytest.raises(BrokerUnavailable) as caught:
                async with bus.subscribe("a", timeout=1):
                    raise AssertionError
            errors += [str(caught.value), repr(caught.value.__cause__)]
            shown = [bus.statistics(), watch.statistics()]
            nursery.cancel_scope.cancel()

    assert len(logs) >= 4
    assert SECRET not in f"{logs} {errors} {shown}"


async def _listen(url: str) -> None:
    async with _Native("x", url, ["a"], None):
        await trio.sleep_forever()
