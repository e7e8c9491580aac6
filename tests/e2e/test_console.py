"""An operator who has never seen the console finds everything on a phone."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

import tangram
from tangram.client import Channel, open_socket
from tangram.testing import open_broker
from tests.e2e.console import Driven, drive
from tests.e2e.harness import LONG, Home, Server, open_process, open_server, write_plugin

SHAKY = """
import itertools
import tangram
import trio

plugin = tangram.Plugin(console="pages")


@plugin.register_service()
async def watch(state, *, task_status):
    async with state.subscribe("from:loud:crash") as messages:
        task_status.started()
        async for message in messages:
            raise ValueError("no such aircraft")


@plugin.register_service()
async def talk(state):
    for number in itertools.count():
        await state.publish("to:loud:moved", '{"n": %d, "text": "%s"}' % (number, "x" * 2000))
        if number % 10 == 0:
            await state.publish("to:quiet:tick", "{}")
        await trio.sleep(0.01)
"""
PAGE = '<!doctype html><title>Shaky</title><link rel="icon" href="data:," /><p>its own page</p>'
LINE = SHAKY.splitlines().index('            raise ValueError("no such aircraft")') + 1


@pytest.fixture
def shaky(home: Home) -> Home:
    write_plugin(home.site, "shaky", SHAKY)
    (home.site / "pages").mkdir()
    (home.site / "pages" / "index.html").write_text(PAGE)
    return home


@asynccontextmanager
async def joined(server: Server, *topics: str) -> AsyncIterator[Channel]:
    """A client that keeps up; yields its channel of the last topic."""
    async with open_socket(server.url) as client, trio.open_nursery() as nursery:
        channels = []
        for topic in topics:
            token = await tangram.fetch_token(server.url, topic)
            channels.append(await client.join(topic, token=token.token))
            nursery.start_soon(read_all, channels[-1])
        yield channels[-1]
        nursery.cancel_scope.cancel()


async def read_all(channel: Channel) -> None:
    while True:
        await channel.receive()


@contextmanager
def slow_client(server: Server, token: str) -> Iterator[int]:
    """A client that joins ``loud`` and then reads nothing; yields its port."""
    uri = parse_uri(f"{server.url.replace('http', 'ws')}/websocket?vsn=2.0.0")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((uri.host, uri.port))
        protocol = ClientProtocol(uri)
        protocol.send_request(protocol.connect())
        sock.sendall(b"".join(protocol.data_to_send()))
        protocol.receive_data(sock.recv(4096))
        protocol.send_text(f'["1","1","loud","phx_join",{{"token":"{token}"}}]'.encode())
        sock.sendall(b"".join(protocol.data_to_send()))
        yield sock.getsockname()[1]


async def publish(server: Server, topic: str, event: str, payload: object) -> None:
    token = (server.home.state / "operator-token").read_text().strip()
    message = {"topic": topic, "event": event, "payload": payload}
    headers = {"authorization": f"Bearer {token}"}
    (await server.request("POST", "/-/publish", json=message, headers=headers)).raise_for_status()


async def test_which_plugin_crashed_last_and_where_and_how_to_restart_it(shaky: Home) -> None:
    """The first page names plugin, cause and the plugin's own line, and restarts it by one touch."""
    async with open_server(shaky, "shaky", "tangram_demo") as server, joined(server, "loud") as channel:

        def look(driven: Driven) -> tuple[str, str, str]:
            driven.login()
            driven.on_trio(channel.push, "crash", {})
            driven.wait(".crash")
            crash = driven.text(".crash")
            driven.page.click(".crash summary")
            own = driven.text(".crash .own")
            driven.page.click("[aria-label='Restart plugin shaky']")
            driven.wait("#said:has-text('Restart shaky: done')")
            return crash, own, driven.text("#crashed")

        crash, own, name = await drive(server, look)
        plugin = next(one for one in await server.get("/-/plugins") if one["name"] == "shaky")

    assert name == "shaky"
    assert f"shaky.py:{LINE} in watch" in crash
    assert "ValueError: no such aircraft" in crash
    assert own.endswith(f"shaky.py:{LINE} in watch")
    assert plugin["incarnation"] >= 2
    assert plugin["state"] == "running"


async def test_since_when_the_broker_is_away(shaky: Home) -> None:
    """The page says since when, on every page, and forgets it when the broker is back."""
    with open_broker() as broker:
        async with open_server(shaky, "shaky", core=f'redis_url = "{broker.url}"') as server:

            def look(driven: Driven) -> tuple[str, str]:
                driven.login()
                driven.wait("[data-tone=good]")
                broker.kill()
                driven.wait("#redis:not([hidden])")
                on_page = driven.text("#redis")
                driven.show("Topics")
                driven.wait("#status-text:has-text('Redis is away since')")
                at_top = driven.text("#status-text")
                broker.start()
                driven.wait("#status-text:has-text('All well')")
                return on_page, at_top

            before = time.time()
            on_page, at_top = await drive(server, look)
            seconds = range(round(time.time() - before) + 2)

    clocks = [time.strftime("%H:%M:%S", time.localtime(before + n)) for n in seconds]
    for text in (on_page, at_top):
        found = re.search(r"since (\d\d:\d\d:\d\d)", text)
        assert found is not None, text
        assert found[1] in clocks


async def test_which_topic_has_the_largest_traffic_and_a_look_at_it(shaky: Home) -> None:
    """It comes first, with its rate; its messages pass by, can be paused, and one can be published."""
    async with open_server(shaky, "shaky") as server, joined(server, "quiet", "loud"):

        def look(driven: Driven) -> tuple[list[str], str]:
            driven.login()
            driven.show("Topics")
            driven.wait("tbody tr:first-child:has-text('loud'):has-text('KiB')")
            names = driven.page.locator("tbody th").all_inner_texts()
            rate = driven.text("tbody tr:first-child td[data-label='sent/s']")
            driven.page.click("text=quiet")
            driven.wait(".tail li:has-text('tick')")
            driven.page.fill("#event", "greeting")
            driven.page.fill("#payload", '{"hello": "phone"}')
            driven.page.click("form.publish button")
            driven.wait(".tail li:has-text('greeting')")
            driven.page.click("text=Pause")
            driven.wait("text=messages passed")
            return names, rate

        names, rate = await drive(server, look)

    assert names[:2] == ["loud", "quiet"]
    assert rate.endswith("KiB")


PAST = '[[channel.history]]\ntopics = "past:*"\nsize = 5\n'


async def test_a_topic_without_members_is_opened_by_its_name(shaky: Home) -> None:
    """Its page shows the kept messages, then the next one as it passes."""
    async with open_server(shaky, "shaky", extra=PAST) as server:

        async def sink(number: int) -> None:
            await publish(server, "past:eu/1", "sunk", {"n": number})

        for number in range(7):
            await sink(number)

        def look(driven: Driven) -> tuple[list[str], str, str]:
            driven.login()
            driven.show("Topics")
            driven.page.click("button:has-text('past:*')")
            begun = driven.page.input_value("#topic")
            driven.page.type("#topic", "eu/1")
            driven.page.press("#topic", "Enter")
            driven.wait(".kept li")
            kept = driven.page.locator(".kept li").all_inner_texts()
            note = driven.text("section:has(.kept) .note")
            driven.wait("text=no member on this server")
            driven.on_trio(sink, 7)
            driven.wait(".tail:not(.kept) li:has-text('\"n\":7')")
            return kept, begun, note

        kept, begun, note = await drive(server, look)

    assert begun == "past:"
    assert [re.sub(r"\s", "", one) for one in kept] == [f'sunk{{"n":{number}}}' for number in (6, 5, 4, 3, 2)]
    assert "the last 5 messages, for 5 min 0 s" in note


async def test_which_client_is_slow_and_how_to_disconnect_it(shaky: Home) -> None:
    """The client that does not read comes first, with its backlog, and is ended by two touches."""
    extra = "[channel]\nmax_backlog = 100000000\n"
    environ = {"TANGRAM_SERVER__WRITE_TIMEOUT": "600.0"}
    async with open_server(shaky, "shaky", extra=extra, environ=environ) as server, joined(server, "loud"):
        token = await tangram.fetch_token(server.url, "loud")
        with slow_client(server, token.token):
            # More than the kernel's buffers hold: the plugin alone fills them slowly on a busy machine.
            for _ in range(20):
                await publish(server, "loud", "large", "x" * 500_000)

            def look(driven: Driven) -> tuple[str, str]:
                driven.login()
                driven.show("Connections")
                driven.wait("tbody tr:first-child .badge")
                first = driven.text("tbody tr:first-child")
                last = driven.text("tbody tr:last-child")
                driven.page.click("tbody tr:first-child button")
                driven.page.click("tbody tr:first-child button")
                driven.wait("#said:has-text('done')")
                driven.wait("text=1 connection; none slow")
                return first, last

            first, last = await drive(server, look)

    assert "slow" in first
    assert re.search(r"[\d.]+ [KM]iB", first)
    assert "slow" not in last


async def test_the_page_greys_when_the_server_goes_and_comes_back_by_itself(shaky: Home) -> None:
    """It says since when it has no news; after a restart of the process the session is still good."""
    async with open_server(shaky, "shaky") as server:

        def look(driven: Driven) -> str:
            driven.login()
            driven.wait(".tree .row")
            server.process.kill()
            driven.wait("main[data-live=false]")
            away = driven.text("#away")
            driven.on_trio(again.set_async)
            driven.wait("main[data-live=true]")
            driven.page.wait_for_selector("#away", state="hidden")
            driven.page.click("[aria-label='Restart plugin shaky']")
            driven.wait("#said:has-text('Restart shaky: done')")
            return away

        again = Starting()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again.serve, shaky)
            away = await drive(server, look)
            nursery.cancel_scope.cancel()

    assert re.search(r"does not answer.*from \d\d:\d\d:\d\d", away)


class Starting:
    """A second process of the same server, started at a signal."""

    def __init__(self) -> None:
        self._wanted = trio.Event()

    async def set_async(self) -> None:
        await trio.lowlevel.checkpoint()
        self._wanted.set()

    async def serve(self, home: Home) -> None:
        await self._wanted.wait()
        async with open_process(home) as server:
            await server.wait_ready()
            await trio.sleep_forever()


@pytest.mark.parametrize(("phone", "scheme"), [(True, "dark"), (False, "light")])
async def test_every_page_obeys_the_policy_and_fits_the_screen(shaky: Home, phone: bool, scheme: str) -> None:
    """No refused content, no script error, nothing sideways, names for every control, large targets."""
    async with open_server(shaky, "shaky", "tangram_demo") as server, joined(server, "loud"):

        def look(driven: Driven) -> list[str]:
            driven.login()
            cookies = driven.page.context.cookies()
            driven.page = driven.open(phone=phone, scheme=scheme)
            driven.page.context.add_cookies(cookies)  # type: ignore[arg-type]
            driven.page.goto(f"{server.url}/-/")
            faults = []
            for name, filled in PAGES.items():
                driven.show(name)
                driven.wait(filled)
                faults += [f"{name}: {fault}" for fault in driven.page.evaluate(LOOK)]
            driven.show("Plugins")
            driven.page.click("#menu >> text=shaky")
            driven.wait("text=its own page")
            return faults

        assert await drive(server, look) == []


PAGES = {
    "Tree": ".tree .row",
    "Topics": "tbody tr",
    "Connections": "tbody tr",
    "Pictures": "main .u-wrap canvas",
    "Plugins": "main >> text=tangram_demo",
    "Log": "main li",
}
"""The part of each page that appears once the page has its data."""

LOOK = """() => {
  const faults = [];
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) faults.push(`the page is ${wide} pixels wide`);
  for (const it of document.querySelectorAll("button, input, select, textarea, a")) {
    if (!it.offsetParent || it.classList.contains("skip")) continue;
    const name = it.getAttribute("aria-label") || it.textContent || it.labels?.[0]?.textContent;
    if (!name?.trim()) faults.push(`a ${it.tagName} has no name`);
    const small = it.getBoundingClientRect().height < 44;
    if (small && it.matches("button, nav a")) faults.push(`${name} is small`);
  }
  if (document.querySelectorAll("main .u-wrap canvas").length === 0 && location.hash === "#/pictures")
    faults.push("nothing is drawn");
  return faults;
}"""


async def test_a_link_of_the_command_logs_in_once(shaky: Home) -> None:
    """``tangram console`` prints a URL that needs no typing, and works once."""
    async with open_server(shaky, "shaky") as server:
        async with open_process(shaky, "console", "--no-browser", "--config", str(shaky.config)) as command:
            await command.wait_end(within=LONG)
        url = command.out[-1]

        def look(driven: Driven) -> str:
            driven.page.goto(url)
            driven.wait(".tree .row")
            address = driven.page.url
            driven.page = driven.open()
            driven.page.goto(url)
            driven.wait("#login-error:has-text('link was used')")
            return address

        address = await drive(server, look)

    assert "code" not in address
