"""A page in Chromium with unmodified npm ``phoenix`` counts through six faults, and misses no number."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping

import trio

from tangram.testing import Proxy, open_proxy
from tests.downstream.harness import restart
from tests.e2e.browser import Browser, Page
from tests.e2e.harness import Home, Server, open_process
from tests.e2e.prepare import PHOENIX
from tests.history.test_phoenix import HISTORY, PLUGIN

SCRIPT = """
window.pages = {};
const answer = await fetch("/token", {
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify({ channel: "numbers:ours" }),
});
const { token } = await answer.json();
for (const version of %s) {
  const { Socket } = await import(`/e2e/phoenix/${version}`);
  const page = (pages[version] = { seen: [], replies: [] });
  const socket = new Socket(location.origin.replace("http", "ws"), { heartbeatIntervalMs: 1000 });
  socket.connect();
  let position = "";
  const channel = socket.channel("numbers:ours", () => ({ token, recover: position }));
  channel.on("tangram:position", ({ at }) => { position = at; });
  channel.on("n", ({ n }) => page.seen.push(n));
  channel.join().receive("ok", (reply) => {
    position = reply.position;
    page.replies.push([reply.recovered, reply.reason]);
  });
}
"""
STALL = 4.0
"""Seconds of a stalled proxy: several heartbeats of the page."""


async def wait_joins(page: Page, joins: Mapping[str, int]) -> Mapping[str, int]:
    """Wait until each client has joined more often than it had; return how often each has.

    On a slow machine one of them may join once more than the others: a heartbeat is not answered in time.
    """
    more = f"replies.length > ({json.dumps(joins)}[version] ?? 0)"
    await page.wait(f"Object.entries(pages).every(([version, {{ replies }}]) => {more})")
    found: dict[str, int] = await page.run(
        "return Object.fromEntries(Object.entries(pages).map(([name, page]) => [name, page.replies.length]))"
    )
    return found


async def wait_numbers(page: Page) -> None:
    """Wait until each client has a newer number than any had before."""
    newest = await page.run("return Math.max(0, ...Object.values(pages).flatMap(({ seen }) => seen))")
    await page.wait(f"Object.values(pages).every(({{ seen }}) => seen.at(-1) > {newest})")


async def cut(_: Server, proxy: Proxy) -> None:
    proxy.reset_all()


async def reload(server: Server, _: Proxy) -> None:
    server.send(signal.SIGHUP)


async def kill_broker(server: Server, _: Proxy) -> None:
    server.broker().kill()


async def stall(_: Server, proxy: Proxy) -> None:
    """Swallow everything for a time, as a proxy that hangs and is started anew."""
    proxy.black_hole = True
    await trio.sleep(STALL)
    proxy.restore()
    proxy.reset_all()


async def kill_server(server: Server, _: Proxy) -> None:
    server.process.kill()
    await server.wait_end()


async def test_a_page_misses_no_number_through_six_faults(home: Home, browser: Browser) -> None:
    """Three versions of the client, in one page behind a proxy: no number is missed or out of order."""
    home.install("counter", PLUGIN)
    home.configure(["tangram_e2e", "counter"], extra=HISTORY)
    async with open_proxy("127.0.0.1", home.port) as proxy:
        async with open_process(home) as first:
            await first.wait_ready()
            page = await browser.open_page(f"http://127.0.0.1:{proxy.port}/docs")
            await page.run(SCRIPT % list(PHOENIX))
            joins = await wait_joins(page, {})
            await wait_numbers(page)
            await restart(first, "counter")  # its pages stay joined
            await wait_numbers(page)
            for strike in (cut, reload, kill_broker, stall):
                await strike(first, proxy)
                joins = await wait_joins(page, joins)
                await wait_numbers(page)
            await kill_server(first, proxy)
        async with open_process(home) as second:
            await second.wait_ready()
            joins = await wait_joins(page, joins)
            await wait_numbers(page)
            pages = await page.run("return pages")

    for version in PHOENIX:
        seen, replies = pages[version]["seen"], pages[version]["replies"]
        assert sorted(set(seen)) == list(range(min(seen), max(seen) + 1)), version
        ordered = [number for at, number in enumerate(seen) if number > max(seen[:at], default=0)]
        assert ordered == sorted(set(seen)), version
        assert len(replies) >= 6, version
        assert [reply for reply in replies[1:] if reply != [True, None]] == [], version
