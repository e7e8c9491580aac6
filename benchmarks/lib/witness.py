"""A subscriber on Redis that hears every message of a plugin which should run on one node at a time."""

from __future__ import annotations

import json
import threading
import time
from typing import NamedTuple, Self

import redis
import trio

__all__ = ["Witness", "Word"]


class Word(NamedTuple):
    """One message of the plugin: ``{"node": NAME, "count": NUMBER}``."""

    at: float
    node: str
    number: int


class Witness:
    """Hears the messages on a channel, in a thread, which needs no event loop.

    Args:
        port: of Redis, on this machine.
        channel: the channel on which the plugin publishes.
    """

    def __init__(self, port: int, channel: str) -> None:
        self.words: list[Word] = []
        self._client = redis.Redis(port=port)
        self._pubsub = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._pubsub.subscribe(channel)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def _listen(self) -> None:
        while not self._ended.is_set():
            message = self._pubsub.get_message(timeout=0.1)
            if message is not None:
                word = json.loads(message["data"])
                self.words.append(Word(time.monotonic(), word["node"], word["count"]))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._pubsub.close()
        self._client.close()

    def turns(self) -> list[str]:
        """Return the nodes in the order in which they published, each run of one node once."""
        nodes = [word.node for word in list(self.words)]
        return [node for at, node in enumerate(nodes) if not at or nodes[at - 1] != node]

    async def wait_other(self, *nodes: str, within: float) -> Word:
        """Return the first further message of a node that is none of these.

        Raises:
            AssertionError: there was none in time.
        """
        at = len(self.words)
        with trio.move_on_after(within):
            while True:
                for word in self.words[at:]:
                    if word.node not in nodes:
                        return word
                await trio.sleep(0.005)
        raise AssertionError(f"only {nodes} published within {within} s: {self.words[-3:]}")

    async def wait_more(self, count: int, *, within: float) -> None:
        """Wait for further messages.

        Raises:
            trio.TooSlowError: they did not come in time.
        """
        wanted = len(self.words) + count
        with trio.fail_after(within):
            while len(self.words) < wanted:  # noqa: ASYNC110 - a thread appends them
                await trio.sleep(0.02)
