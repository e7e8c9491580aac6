"""The broker of a parent process, as its workers see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from tangram.broker.embedded import BrokerStatistics
from tangram.errors import BrokerUnavailable

__all__ = ["SharedBroker"]


class SharedBroker:
    """Follows the embedded broker of the parent process.

    It behaves as the embedded broker does: it ends with an error when the broker ends, and starts when the
    parent has started it again, with another password. So a worker and a single process restart alike.
    """

    def __init__(self) -> None:
        self._news: Mapping[str, Any] | None = None
        self._changed = trio.Event()

    def announce(self, news: Mapping[str, Any] | None) -> None:
        """Take the parent's report: the values of its broker, or None if that has ended."""
        self._news = news
        self._changed.set()
        self._changed = trio.Event()

    @property
    def server_url(self) -> str:
        """The URL for the server itself; empty while there is no broker."""
        return "" if self._news is None else str(self._news["server_url"])

    @property
    def identity(self) -> str | None:
        """A name of the stored data, as of the embedded broker."""
        return None if self._news is None else self._news["identity"]

    def statistics(self) -> BrokerStatistics:
        """Return a record of this moment."""
        news = self._news or {}
        return BrokerStatistics(
            kind="embedded",
            url=news.get("shown"),
            up=self._news is not None,
            pid=news.get("pid"),
            version=news.get("version"),
            starts=news.get("starts", 0),
        )

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Report the URL for clients when the broker runs, and wait for its end.

        Raises:
            BrokerUnavailable: the broker has ended.
        """
        while self._news is None:
            await self._changed.wait()
        news = self._news
        task_status.started(str(news["url"]))
        while self._news is news:
            await self._changed.wait()
        raise BrokerUnavailable(f"the broker of the parent process (process {news['pid']}) ended")
