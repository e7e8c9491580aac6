"""npm's ``phoenix``, unmodified, in a page of the server's own origin."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.browser import LONG, Browser, Page
from tests.e2e.prepare import PHOENIX

# A program around the client: it gets a token for each topic, opens one socket, and records each event.
SCRIPT = """
const { Socket } = await import("/e2e/phoenix/%(version)s");
window.seen = [];                                  // [topic, event, payload]
window.states = [];                                // open, close CODE
window.channels = {};
window.socket = new Socket(location.origin.replace(/^http/, "ws"), {});
socket.onOpen(() => states.push("open"));
socket.onClose((event) => states.push(`close ${event.code}`));
socket.connect();

const plain = (it) => (it instanceof ArrayBuffer ? { bytes: [...new Uint8Array(it)] } : it);
const answer = (push, resolve) =>
  ["ok", "error", "timeout"].forEach((status) =>
    push.receive(status, (response) => resolve({ status, response })));

window.join = async (topic, events) => {
  const asked = await fetch("/token", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ channel: topic }),
  });
  const { token } = await asked.json();
  const channel = (channels[topic] = socket.channel(topic, { token }));
  channel.errors = 0;
  channel.onError(() => channel.errors++);
  for (const event of events) channel.on(event, (payload) => seen.push([topic, event, plain(payload)]));
  return new Promise((resolve) => answer(channel.join(), resolve));
};
window.push = (topic, event, payload) =>
  new Promise((resolve) => answer(channels[topic].push(event, payload), resolve));
window.leave = (topic) => new Promise((resolve) => answer(channels[topic].leave(), resolve));
window.last = (event) => seen.findLast(([, name]) => name === event)?.[2];
"""


class Client:
    """One page with one ``phoenix`` socket."""

    def __init__(self, page: Page) -> None:
        self.page = page

    async def join(self, topic: str, *events: str) -> dict[str, Any]:
        """The answer: ``{"status": "ok", "response": ...}``."""
        script = f"return join({json.dumps(topic)}, {json.dumps(events)})"
        return dict(await self.page.run(script))

    async def push(self, topic: str, event: str, payload: object) -> dict[str, Any]:
        script = f"return push({json.dumps(topic)}, {json.dumps(event)}, {json.dumps(payload)})"
        return dict(await self.page.run(script))

    async def leave(self, topic: str) -> dict[str, Any]:
        return dict(await self.page.run(f"return leave({json.dumps(topic)})"))

    async def count(self, event: str) -> int:
        return int(
            await self.page.run(f"return seen.filter(([, name]) => name === {json.dumps(event)}).length")
        )

    async def last(self, event: str) -> Any:
        return await self.page.run(f"return last({json.dumps(event)})")

    async def wait(self, expression: str, *, within: float = LONG) -> Any:
        return await self.page.wait(expression, within=within)

    async def wait_more(self, event: str, *, within: float = LONG) -> None:
        """Until one more of them comes than have come so far."""
        now = await self.count(event)
        await self.wait(
            f"seen.filter(([, name]) => name === {json.dumps(event)}).length > {now}", within=within
        )


async def open_client(browser: Browser, url: str, version: str = PHOENIX[0]) -> Client:
    page = await browser.open_page(f"{url}/e2e/page")
    await page.run(SCRIPT % {"version": version})
    return Client(page)
