"""A browser on the console, driven by Playwright in a thread beside the test's Trio loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
from playwright.sync_api import Browser, Page, sync_playwright

from tests.e2e.harness import Server
from tests.e2e.prepare import find_browser

__all__ = ["EXPECTED", "Driven", "drive"]

T = TypeVar("T")

PHONE = {"width": 390, "height": 844}
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
SECONDS = 60_000  # milliseconds that an expectation may take on a busy machine

EXPECTED = (
    "401",
    "ERR_INCOMPLETE_CHUNKED_ENCODING",
    "ERR_CONNECTION_REFUSED",
    "ERR_CONNECTION_RESET",
    "ERR_EMPTY_RESPONSE",
)
"""Messages of the browser about a login that is asked for and a server that was stopped."""


class Driven:
    """One page of one browser, and everything that the browser complained about."""

    def __init__(self, server: Server, browser: Browser) -> None:
        self.server = server
        self.browser = browser
        self.complaints: list[str] = []
        self.page = self.open()

    @property
    def token(self) -> str:
        return (self.server.home.state / "operator-token").read_text().strip()

    def open(self, *, phone: bool = True, scheme: Any = "light") -> Page:
        context = self.browser.new_context(
            viewport=PHONE if phone else {"width": 1200, "height": 800},  # type: ignore[arg-type]
            is_mobile=phone,
            has_touch=phone,
            color_scheme=scheme,
        )
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.on("console", lambda said: self._note(said.type, said.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        return page

    def _note(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"} and not any(one in text for one in EXPECTED):
            self.complaints.append(text)

    def login(self) -> None:
        self.page.goto(f"{self.server.url}/-/")
        self.page.fill("#token", self.token)
        self.page.press("#token", "Enter")
        self.page.wait_for_selector("#menu a[aria-current=page]")

    def show(self, name: str) -> None:
        """Open a page as a finger does."""
        self.page.click(f"#menu >> text={name}")
        self.page.wait_for_selector(f"h2.title:has-text('{name}')")

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def wait(self, selector: str) -> None:
        self.page.wait_for_selector(selector)

    def on_trio(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run an async function on the test's own loop."""
        return trio.from_thread.run(function, *arguments)


@contextmanager
def _open(server: Server) -> Iterator[Driven]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=list(ARGUMENTS))
        try:
            yield Driven(server, browser)
        finally:
            browser.close()


async def drive(server: Server, work: Callable[[Driven], T]) -> T:
    """Run ``work`` with a browser in a thread; the browser must have nothing to complain about."""

    def run() -> T:
        # trio-asyncio, where another test has imported it, keeps a policy for each thread.
        asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
        try:
            with _open(server) as driven:
                result = work(driven)
                assert driven.complaints == [], driven.complaints
                return result
        finally:
            asyncio.set_event_loop_policy(None)

    return await trio.to_thread.run_sync(run)
