"""A real headless Chromium, driven from Trio over its DevTools protocol."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from trio_websocket import WebSocketConnection, wrap_client_stream

from tests.e2e.prepare import find_browser

OPTIONS = (
    "--headless",
    "--no-sandbox",  # it has no rights to give up in a container, where tests often run as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
LONG = 60.0  # seconds after which a wait has failed: a bound that ends a hang
START_WITHIN = 60.0  # seconds, on a machine that is busy with other tests
LARGEST = 64 * 2**20  # bytes of one DevTools message


class ScriptError(Exception):
    """An exception that JavaScript raised in the page."""


class Browser:
    """One Chromium with a profile of its own."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[trio.Event, dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}

    async def read(self) -> None:
        """Deliver responses to waiting calls and events to their pages."""
        while True:
            message = json.loads(await self._connection.get_message())
            if "id" in message:
                event, answer = self._waiting.pop(message["id"])
                answer.update(message)
                event.set()
            elif page := self._pages.get(message.get("sessionId", "")):
                page.told(message["method"], message["params"])

    async def send(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        number = next(self._ids)
        event, answer = trio.Event(), dict[str, Any]()
        self._waiting[number] = (event, answer)
        message = {"id": number, "method": method, "params": parameters}
        await self._connection.send_message(json.dumps(message | ({"sessionId": session} if session else {})))
        await event.wait()
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    async def open_page(self, url: str) -> Page:
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"])
        self._pages[page.session] = page
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.send(f"{domain}.enable")
        await page.goto(url)
        return page


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self.session = session
        self._loaded = trio.Event()
        self.errors: list[str] = []
        """Errors of the console: exceptions, failed requests and refused content."""

    async def send(self, method: str, **parameters: object) -> dict[str, Any]:
        return await self._browser.send(method, self.session, **parameters)

    def told(self, method: str, parameters: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

    async def goto(self, url: str) -> None:
        self._loaded = trio.Event()
        await self.send("Page.navigate", url=url)
        await self._loaded.wait()

    async def run(self, script: str) -> Any:
        """Run the body of an async function and return its result, decoded from JSON."""
        answer = await self.send(
            "Runtime.evaluate",
            expression=f"(async () => {{ {script} }})()",
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in answer:
            raise ScriptError(answer["exceptionDetails"]["exception"].get("description", "?"))
        return answer["result"].get("value")

    async def text(self, selector: str) -> str:
        return str(
            await self.run(f"return document.querySelector({json.dumps(selector)}).textContent.trim()")
        )

    async def wait(self, expression: str, *, within: float = LONG) -> Any:
        """The value of a JavaScript expression, once it is truthy."""
        value: Any = None
        with trio.move_on_after(within):
            while True:
                if value := await self.run(f"return {expression}"):
                    return value
                await trio.sleep(0.02)
        raise AssertionError(f"{expression} is {value!r} after {within} s; console: {self.errors}")


async def _read_all(stream: trio.abc.ReceiveStream) -> None:
    async for _ in stream:
        pass  # a full pipe would stop the browser


async def _find_address(stream: trio.abc.ReceiveStream) -> tuple[int, str]:
    seen = b""
    with trio.fail_after(START_WITHIN):
        async for chunk in stream:
            seen += chunk
            if found := re.search(rb"DevTools listening on ws://[^:]+:(\d+)(/\S+)\n", seen):
                return int(found.group(1)), found.group(2).decode()
    raise RuntimeError(f"the browser ended at once: {seen.decode(errors='replace')}")


@asynccontextmanager
async def open_browser(profile: Path) -> AsyncIterator[Browser]:
    process = await trio.lowlevel.open_process(
        [find_browser(), *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with trio.open_nursery() as nursery:
            port, path = await _find_address(process.stderr)
            nursery.start_soon(_read_all, process.stderr)
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                connection = await wrap_client_stream(
                    nursery, stream, f"127.0.0.1:{port}", path, max_message_size=LARGEST
                )
                browser = Browser(connection)
                nursery.start_soon(browser.read)
                yield browser
                nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
